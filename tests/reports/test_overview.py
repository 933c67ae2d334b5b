"""What the index groups, names and carries, and how it bears damaged, many and simultaneous runs."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from kwsbench.reports.blocks import unpacked
from kwsbench.reports.overview import index_data, overview
from kwsbench.reports.page import load_statuses, read_runs, write_report
from kwsbench.reports.run_folder import find_runs, load_run
from tests.reports.made_runs import failed, made_run, plot, record


def sweep(report: Path, n: int = 6) -> Path:
    for i in range(n):
        made_run(
            report,
            f"run-{i:03d}",
            parameters={"bits": [8 - i % 3], "seed": i // 3, "keyword": "computer", "root": f"../{i}"},
            figures={"fdr_percent": 10.0 - i, "clips": 20},
            systems=[record("float", "float", size=900_000), record("stage 2", fdr=0.1 - 0.01 * i, size=100_000 - i)],
        )
    return report


def of_page(path: Path):
    return unpacked(path.read_text().split('id="index-data">')[1].split("</script>")[0])


def test_runs_of_one_notebook_are_a_table_of_what_varies(tmp_path):
    runs, _ = read_runs(sweep(tmp_path))
    made_run(tmp_path, "alone", notebook="01_a.ipynb")
    (group,) = overview(runs).groups
    assert [(c.name, c.kind, c.number) for c in group.columns] == [
        ("bits", "parameter", False),
        ("seed", "parameter", True),
        ("fdr_percent", "figure", True),
    ]
    assert group.constant == (("keyword", "computer"), ("clips", 20))
    view = overview(read_runs(tmp_path)[0])
    assert [run.name for run in view.cards] == ["alone"] and len(view.groups) == 1
    assert view.labels["run-004"] == "bits 7, seed 1" and view.labels["alone"] == "alone"


def test_runs_that_their_parameters_do_not_tell_apart_go_by_their_names(tmp_path):
    for name in ("a", "b"):
        made_run(tmp_path, name, parameters={"seed": 0})
    assert overview(read_runs(tmp_path)[0]).labels == {"a": "a", "b": "b"}


def test_the_index_says_how_every_run_ended(tmp_path):
    sweep(tmp_path, 2)
    made_run(tmp_path, "bad", **failed(message="<b>no</b> corpus"))
    made_run(tmp_path, "late", **failed("Timeout", "stopped after 300 s", "timed out"))
    made_run(tmp_path, "now", state="running", figures={})
    page = write_report(tmp_path).read_text()
    assert "2 of 5 runs passed, 1 failed, 1 timed out, 1 running" in page
    assert "&lt;b&gt;no&lt;/b&gt; corpus" in page and "Timeout: stopped after 300 s" in page


@pytest.mark.parametrize("name, text", [("status.json", "{ half"), ("metrics.json", '{"figures": 3}')])
def test_a_damaged_run_is_named_and_the_rest_goes_on(tmp_path, name, text):
    sweep(tmp_path, 3)
    (tmp_path / "runs/run-001" / name).write_text(text)
    page = write_report(tmp_path).read_text()
    assert "<strong>run-001</strong> cannot be read" in page and name in page
    assert [s.name for s in load_statuses(tmp_path)] == ["run-000", "run-002"]
    assert (tmp_path / "run-002.html").exists() and not (tmp_path / "run-001.html").exists()


def test_a_damaged_notebook_leaves_a_page_that_says_so(tmp_path):
    folder = made_run(tmp_path, "a")
    (folder / "notebook.ipynb").write_text("no json")
    write_report(tmp_path)
    assert "The executed notebook cannot be read" in (tmp_path / "a.html").read_text()


def test_a_page_is_written_again_only_when_its_run_changed(tmp_path):
    sweep(tmp_path, 3)
    write_report(tmp_path)
    pages = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("run-*.html")}
    before = {p.name: p.read_bytes() for p in tmp_path.glob("run-*.html")}
    shutil.rmtree(tmp_path / "runs/run-001")
    made_run(tmp_path, "run-001", figures={"fdr_percent": 99.0})
    write_report(tmp_path)
    changed = [n for n, at in pages.items() if (tmp_path / n).stat().st_mtime_ns != at]
    assert changed == ["run-001.html"] and (tmp_path / "run-001.html").read_bytes() != before["run-001.html"]
    # What is damaged or of another version is written anew too.
    (tmp_path / "run-002.html").write_text("half")
    write_report(tmp_path)
    assert (tmp_path / "run-002.html").read_bytes() == before["run-002.html"]


def test_pages_of_runs_that_are_gone_are_removed_and_other_files_stay(tmp_path):
    sweep(tmp_path, 3)
    (tmp_path / "mine.html").write_text("<p>notes</p>")
    write_report(tmp_path)
    shutil.rmtree(tmp_path / "runs/run-001")
    write_report(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.html")) == [
        "index.html",
        "mine.html",
        "run-000.html",
        "run-002.html",
    ]


def test_digests_become_numbers_that_are_equal_where_they_were(tmp_path):
    made_run(tmp_path, "a", systems=[record("s"), record("t", changed="layer0: outputs")])
    made_run(tmp_path, "b", systems=[record("s")])
    runs, _ = read_runs(tmp_path)
    a, b = index_data(overview(runs), {"a": "", "b": ""})["runs"]
    assert a["systems"][0]["layers"] == b["systems"][0]["layers"]
    differ = [x[1] != y[1] for x, y in zip(a["systems"][1]["layers"], b["systems"][0]["layers"], strict=True)]
    assert differ == [False, False, False, True, True]


def test_curves_of_the_index_follow_those_of_the_record(tmp_path):
    made_run(tmp_path, "a", systems=[record("s")])
    runs, _ = read_runs(tmp_path)
    curve = index_data(overview(runs), {"a": ""})["runs"][0]["systems"][0]["curve"]
    whole = record("s")["curve"]
    events = np.maximum(whole["fa_per_hour"], 0.5 / whole["negative_hours"])
    assert curve["floor"] == 1.0 and min(curve["fa"]) == 1.0
    near = np.interp(100 * np.array(whole["frr"]), curve["frr"], np.log10(curve["fa"]))
    assert np.max(np.abs(near - np.log10(events))) < 0.05


def test_three_hundred_runs_make_a_small_index(tmp_path):
    sweep(tmp_path, 300)
    index = write_report(tmp_path)
    assert index.stat().st_size < 400_000
    assert len(of_page(index)["runs"]) == 300


def test_several_processes_write_one_report(tmp_path):
    sweep(tmp_path, 8)
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    writers = [context.Process(target=write_report, args=(tmp_path,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    assert len(list(tmp_path.glob("run-*.html"))) == 8
    assert not [p for p in tmp_path.rglob("*.partial*")]


def test_runs_are_found_by_folder_by_report_and_by_name(tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    a, b = made_run(first, "a"), made_run(first, "b")
    c = made_run(second, "c")
    assert find_runs([a, first, "c", second], second) == (a, b, c)
    with pytest.raises(ValueError, match=r"no run 'nowhere': it is neither a run's folder .* nor a run of"):
        find_runs(["nowhere"], first)
    with pytest.raises(ValueError, match="is no run"):
        load_run(tmp_path)


def test_the_pages_of_a_run_say_how_to_make_it_again(tmp_path):
    identity = {"address": "e" * 64, "code_sha256": "a" * 64, "data_sha256": "b" * 64, "environment": {"torch": "2.7"}}
    made_run(tmp_path, "a", parameters={"bits": [5, 4]}, identity=identity, outputs=plot())
    write_report(tmp_path)
    page = (tmp_path / "a.html").read_text()
    for expected in (
        "kwsbench run 04_stage_two.ipynb --profile smoke -p bits=5,4",
        "a" * 64,
        "b" * 64,
        "e" * 64,
        "2.7",
    ):
        assert expected in page
