"""Two runs side by side: what differs is named, what is equal is not, and what is no run is refused."""

from __future__ import annotations

import json
import shutil

import pytest

from kwsbench.reports.comparison import Pair, compare_runs, first_divergence, identity_of, short
from tests.reports.made_runs import failed, made_run, record, table


def identity(**changes):
    known = {"address": "f" * 64, "code_sha256": "a" * 64, "data_sha256": "b" * 64, "notebook_sha256": "c" * 64}
    return {**known, "environment": {"torch": "2.7", "machine": "x86_64"}, **changes}


@pytest.fixture
def pair(tmp_path):
    rows = [["layer", "SQNR", "codes"], ["layer0", "20.1", "31"], ["layer1", "19.0", "30"]]
    a = made_run(
        tmp_path,
        "a",
        parameters={"bits": [5], "seed": 0, "profile": "smoke"},
        figures={"fdr_percent": 4.0, "clips": 10, "name": "x"},
        systems=[record("float", "float", size=900_000), record("stage 2, 5-bit tanh")],
        outputs=[*table("Layers", rows), *table("Only here", [["k"], ["v"]])],
        identity=identity(),
    )
    rows = [["layer", "SQNR", "codes"], ["layer0", "20.1", "31"], ["layer1", "18.5", "30"]]
    b = made_run(
        tmp_path,
        "b",
        parameters={"bits": [4], "seed": 0, "profile": "smoke"},
        figures={"fdr_percent": 5.0, "clips": 10, "name": "x", "extra": 1},
        systems=[
            record("float", "float", size=900_000),
            record("stage 2, 4-bit tanh", fdr=0.06, changed="layer0: weights and constants"),
        ],
        outputs=table("Layers", rows),
        identity=identity(data_sha256="d" * 64, environment={"torch": "2.8", "machine": "x86_64"}),
    )
    return a, b


def test_what_differs_is_named_with_both_values(pair):
    c = compare_runs(*pair)
    assert [(p.name, p.a, p.b) for p in c.parameters if not p.same] == [("bits", [5], [4])]
    assert [p.name for p in c.identity if not p.same] == ["data", "torch"]
    assert {p.name for p in c.identity if p.same} == {"code", "notebook", "machine", "kwsbench"}
    figures = {p.name: (p.difference, p.ratio) for p in c.figures}
    assert figures == {"fdr_percent": (1.0, 1.25), "clips": (0, 1.0), "name": (None, None), "extra": (None, None)}
    assert not c.same_results


def test_systems_are_paired_and_their_first_divergent_layer_is_named(pair):
    c = compare_runs(*pair)
    assert [(s.a, s.b) for s in c.systems] == [("float", "float"), ("stage 2, 5-bit tanh", "stage 2, 4-bit tanh")]
    assert [s.divergence for s in c.systems] == ["", "first divergent: layer0: weights and constants"]
    assert [(p.name, p.a, p.b) for p in c.systems[1].values if not p.same] == [("fdr_percent", 5.0, 6.0)]


def test_tables_are_compared_cell_by_cell(pair):
    layers, alone = compare_runs(*pair).tables
    assert (layers.caption, layers.cells) == ("Layers", 4)
    (cell,) = layers.differing
    assert (cell.row, cell.column, cell.a, cell.b) == ("layer1", "SQNR", "19.0", "18.5")
    assert (alone.caption, alone.only_in) == ("Only here", "a")


def test_tables_with_the_runs_numbers_in_their_captions_are_paired_by_place(tmp_path):
    rows = [["k", "v"], ["x", "1"]]
    a = made_run(tmp_path, "a", outputs=table("Over 20 clips", rows))
    b = made_run(tmp_path, "b", outputs=table("Over 30 clips", rows))
    (found,) = compare_runs(a, b).tables
    assert not found.only_in and not found.differing
    other = made_run(tmp_path, "c", notebook="05_other.ipynb", outputs=table("Over 40 clips", rows))
    assert [t.only_in for t in compare_runs(a, other).tables] == ["a", "b"], "other notebooks, other tables"


def test_rows_of_one_name_are_told_apart_by_their_next_cells(tmp_path):
    head = ["width", "layer", "entropy"]
    a = made_run(tmp_path, "a", outputs=table("T", [head, ["5", "l0", "4.1"], ["5", "l1", "4.2"]]))
    b = made_run(tmp_path, "b", outputs=table("T", [head, ["5", "l1", "4.2"], ["5", "l0", "4.0"]]))
    (cell,) = compare_runs(a, b).tables[0].differing
    assert (cell.row, cell.column, cell.a, cell.b) == ("5, l0", "entropy", "4.1", "4.0")


def test_a_run_equals_itself_and_the_text_says_so(pair):
    c = compare_runs(pair[0], pair[0])
    assert c.same_results
    text = c.as_text()
    assert "key figures: 0 of 3 differ" in text and "tables: 0 of 2 differ" in text
    assert "no layer differs (5 digests)" in text


def test_the_text_holds_every_difference(pair):
    text = compare_runs(*pair).as_text()
    for expected in ("bits", "[5]", "[4]", "bbbbbbbbbbbb", "dddddddddddd", "1.25", "first divergent: layer0", "18.5"):
        assert expected in text
    assert "b" * 13 not in text, "hashes are shortened"


def test_seeds_are_paired_with_their_like(tmp_path):
    a = made_run(tmp_path, "a", systems=[record("s", seed=0), record("s", seed=1)])
    b = made_run(tmp_path, "b", systems=[record("s", seed=1, changed="layer1: outputs"), record("s", seed=0)])
    found = {(s.seed_a, s.seed_b): s.divergence for s in compare_runs(a, b).systems}
    assert found == {(0, 0): "no layer differs (5 digests)", (1, 1): "first divergent: layer1: outputs"}
    c = made_run(tmp_path, "c", systems=[record("s", seed=7)])
    assert [(s.seed_a, s.seed_b) for s in compare_runs(a, c).systems] == [(0, 7), (1, None)]


def test_a_failed_run_without_notebook_and_metrics_is_compared_too(tmp_path, pair):
    bad = made_run(tmp_path, "bad", parameters={"bits": [5]}, **failed())
    (bad / "notebook.ipynb").unlink()
    (bad / "metrics.json").unlink()
    c = compare_runs(bad, pair[0])
    assert c.a.state == "failed" and all(s.a == "" for s in c.systems)
    assert all(p.a is None for p in c.figures)


rows = [{"layer": layer, "sha256": str(i)} for i, layer in enumerate(("features", "int8 windows", "layer0: outputs"))]


@pytest.mark.parametrize(
    "other, told",
    [
        (rows, "no layer differs (3 digests)"),
        ([{"layer": "features", "sha256": "x"}, *rows[1:]], "input data differ (features)"),
        ([*rows[:2], {"layer": "layer0: outputs", "sha256": "x"}], "first divergent: layer0: outputs"),
        ([rows[0], {"layer": "conv0", "sha256": "1"}], "other layers: int8 windows against conv0"),
        (rows[:2], "one program goes on: 3 against 2 entries, equal so far"),
        ([], ""),
    ],
)
def test_where_programs_part(other, told):
    assert first_divergence(rows, other) == told


def test_one_and_true_differ_and_zero_has_no_ratio():
    assert Pair("n", 1, 1.0).same and not Pair("n", 1, True).same and not Pair("n", 0, None).same
    assert Pair("n", 0, 2).ratio is None and Pair("n", 0, 2).difference == 2
    assert Pair("n", True, 2).difference is None
    assert short("a" * 64) == "a" * 12 and short("word") == "word" and short(None) == "(none)"


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("status.json", None, "is no run: it has no status.json"),
        ("status.json", "{", "is not the status of a run"),
        ("metrics.json", "[]", "does not hold a run's figures and systems"),
        ("metrics.json", '{"figures": {}, "systems": [{"system": "x"}]}', "does not hold a run's figures"),
        ("notebook.ipynb", "{}", "is not a notebook"),
    ],
)
def test_what_cannot_be_read_is_named(pair, name, content, told):
    file = pair[1] / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ValueError, match=told) as caught:
        compare_runs(*pair)
    assert str(pair[1]) in str(caught.value)


def test_runs_outside_a_sweep_stand_on_their_versions(tmp_path):
    folder = made_run(tmp_path, "plain")
    c = compare_runs(folder, shutil.copytree(folder, tmp_path / "copy"))
    assert identity_of(c.a) == {"code": None, "data": None, "notebook": "ab" * 32, "kwsbench": "0.1.0"}
    assert json.loads((folder / "status.json").read_text())["identity"] == {}
