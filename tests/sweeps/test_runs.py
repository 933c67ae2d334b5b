"""Runs are found, filtered, tabulated and pruned."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_tools import environment
from typer.testing import CliRunner

from kwsbench.cli import app
from kwsbench.files import locked
from kwsbench.reports.status import Failure, RunStatus
from kwsbench.sweeps.identity import code_sha256
from kwsbench.sweeps.runs import as_csv, as_json, as_text, find_run, find_runs, prunable, prune, table, where

OLD = "0" * 64


def put(out: Path, name: str, state: str = "passed", code: str | None = None, figures=None, **parameters) -> None:
    folder = out / "runs" / name
    folder.mkdir(parents=True)
    failure = Failure("ValueError", "=1+1 <b>", "trace") if state == "failed" else None
    RunStatus(
        name,
        name.split("-")[0] + ".ipynb",
        "Title",
        state,
        "smoke",
        parameters,
        tuple(parameters),
        "2024-01-01T00:00:00+00:00",
        seconds=1.25,
        failure=failure,
        key_figures=figures or {},
        identity={"code_sha256": code or code_sha256(), "data_sha256": None},
    ).save(folder / "status.json")
    (out / f"{name}.html").write_text("page")


@pytest.fixture
def out(tmp_path):
    out = tmp_path / "sweeps" / "one"
    put(out, "a-01", bits=[5], seed=0, word="x", figures={"fdr": 0.05, "exact": True})
    put(out, "a-02", bits=[5], seed=1, word="x", figures={"fdr": 0.2, "exact": False})
    put(out, "a-11", "failed", OLD, bits=[8, 5], seed=0, word="x")
    put(out, "b-03", "failed", seed=0)
    return out


def names(runs) -> list[str]:
    return [run.status.name for run in runs]


@pytest.mark.parametrize(
    "conditions, expected",
    [
        ([], ["a-01", "a-02", "a-11", "b-03"]),
        (["bits=5"], ["a-01", "a-02"]),
        (["bits=[5]"], ["a-01", "a-02"]),
        (["bits=8,5"], ["a-11"]),
        (["bits!=5"], ["a-11", "b-03"]),
        (["state=failed"], ["a-11", "b-03"]),
        (["state=failed", "notebook=b.ipynb"], ["b-03"]),
        (["seed=0.0"], ["a-01", "a-11", "b-03"]),
        (["fdr<0.1"], ["a-01"]),
        (["fdr >= 0.05"], ["a-01", "a-02"]),
        (["fdr>0.2"], []),
        (["exact=true"], ["a-01"]),
        (["word=x", "seed=1"], ["a-02"]),
        (["sweep=one", "profile=smoke", "seconds<=1.25", "word=x"], ["a-01", "a-02", "a-11"]),
    ],
)
def test_conditions(out, conditions, expected):
    assert names(where(find_runs(out)[0], conditions)) == expected


@pytest.mark.parametrize(
    "condition, says",
    [
        ("bits", "a condition is written name=value .*got 'bits'"),
        ("=5", "a condition is written"),
        ("bts=5", "no run has 'bts'; did you mean 'bits'"),
        ("state=failde", "a state is one of .*'failde'"),
        ("fdr<low", "< compares numbers, got 'low'"),
    ],
)
def test_conditions_that_are_refused(out, condition, says):
    with pytest.raises(ValueError, match=says):
        where(find_runs(out)[0], [condition])


def test_the_table_shows_what_differs(out):
    columns, rows = table(find_runs(out)[0])
    assert columns == ["run", "state", "notebook", "bits", "seed", "word", "fdr", "exact", "seconds"]
    assert rows[0] == ["a-01", "passed", "a.ipynb", [5], 0, "x", 0.05, True, 1.25]
    assert rows[3] == ["b-03", "failed", "b.ipynb", None, 0, None, None, None, 1.25]
    columns, _ = table(find_runs(out)[0][:2])
    assert "bits" not in columns and "seed" in columns, "what is the same in all is left out"
    assert table(find_runs(out)[0], ["run", "failure"])[1][2] == ["a-11", "ValueError: =1+1 <b>"]
    with pytest.raises(ValueError, match="no run has 'fdt'; did you mean 'fdr'"):
        table(find_runs(out)[0], ["fdt"])


def test_the_three_ways_to_write_a_table(out):
    columns, rows = table(find_runs(out)[0], ["run", "bits", "fdr", "failure"])
    assert json.loads(as_json(columns, rows))[0] == {"run": "a-01", "bits": [5], "fdr": 0.05, "failure": ""}
    parsed = list(csv.reader(as_csv(columns, rows).splitlines()))
    assert parsed[0] == columns and parsed[1] == ["a-01", "[5]", "0.05", ""] and parsed[4][1] == ""
    lines = as_text(columns, rows).splitlines()
    assert lines[0].split() == columns and {line.index("[") for line in lines[1:4]} == {lines[0].index("bits")}


def test_values_cannot_act_on_a_spreadsheet_or_a_terminal():
    assert as_csv(["a"], [["=HYPERLINK(1)"], ["@x"], ["-1"], [-1]]).splitlines()[1:] == [
        "'=HYPERLINK(1)",
        "'@x",
        "'-1",
        "-1",
    ]
    assert "\x1b" not in as_text(["a"], [["\x1b[2J"], ["a\nb"]])
    assert len(as_text(["a"], [["a\nb"]]).splitlines()) == 2


def test_a_folder_of_sweeps_is_searched_and_a_broken_status_is_named(out):
    put(out.parent / "two", "c-04", seed=3)
    (out / "runs" / "a-02" / "status.json").write_text("{")
    runs, problems = find_runs(out.parent)
    assert names(runs) == ["a-01", "a-11", "b-03", "c-04"]
    assert len(problems) == 1 and "a-02" in problems[0]
    with pytest.raises(FileNotFoundError, match="no runs in"):
        find_runs(out / "runs" / "a-01")


def test_a_run_is_named_by_its_path_or_the_beginning_of_its_name(out):
    assert find_run(str(out / "runs" / "a-01"), Path("nowhere")) == out / "runs" / "a-01"
    assert find_run("b", out) == out / "runs" / "b-03"
    assert find_run("a-01", out.parent) == out / "runs" / "a-01"
    with pytest.raises(ValueError, match=r"2 runs in .* begin with 'a-0': a-01, a-02"):
        find_run("a-0", out)
    with pytest.raises(ValueError, match=r"no run in .* begins with 'z'.*there are: a-01, a-02"):
        find_run("z", out)


@pytest.mark.parametrize(
    "states, conditions, keep, expected",
    [
        (["failed"], [], "", ["a-11", "b-03"]),
        (["failed"], [], "current", ["a-11"]),
        ([], [], "current", ["a-11"]),
        ([], [], OLD[:8], ["a-01", "a-02", "b-03"]),
        (["passed", "failed"], ["seed=0"], "", ["a-01", "a-11", "b-03"]),
        (["interrupted"], [], "", []),
    ],
)
def test_what_is_prunable(out, states, conditions, keep, expected):
    assert names(prunable(find_runs(out)[0], states, conditions, keep)) == expected


def test_pruning_everything_is_refused(out):
    runs = find_runs(out)[0]
    with pytest.raises(ValueError, match="which runs"):
        prunable(runs, [], [], "")
    with pytest.raises(ValueError, match="a state is one of"):
        prunable(runs, ["bad"], [], "")
    with pytest.raises(ValueError, match="--keep-code takes current"):
        prunable(runs, [], [], "v1")


def test_pruned_runs_are_gone_with_their_pages_and_nothing_else_is(out):
    runs = find_runs(out)[0]
    deleted, busy = prune([run for run in runs if run.status.state == "failed"])
    assert names(deleted) == ["a-11", "b-03"] and not busy
    assert names(find_runs(out)[0]) == ["a-01", "a-02"]
    assert sorted(p.name for p in out.iterdir()) == ["a-01.html", "a-02.html", "runs"]


def test_a_run_on_which_a_process_works_is_left(out):
    code = (
        "import sys\nfrom kwsbench.files import locked\n"
        f"with locked({str(out / 'runs' / 'b-03')!r}):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        deleted, busy = prune([r for r in find_runs(out)[0] if r.status.state == "failed"])
        assert names(deleted) == ["a-11"] and names(busy) == ["b-03"]
        assert (out / "runs" / "b-03" / "status.json").is_file() and (out / "b-03.html").is_file()
    finally:
        holder.communicate(timeout=30)
    with locked(out / "runs" / "b-03", timeout_seconds=5):
        pass


# ------------------------------------------------------------------ the commands


def invoke(*words) -> str:
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_lists(out):
    assert [r["run"] for r in json.loads(invoke("runs", "list", out, "--json", "--where", "bits=5"))] == [
        "a-01",
        "a-02",
    ]
    assert invoke("runs", "list", out, "--csv", "--columns", "run, seed", "--where", "fdr<0.1") == "run,seed\na-01,0\n"
    assert "a-11" in invoke("runs", "list", out)
    result = CliRunner().invoke(app, ["runs", "list", str(out), "--csv", "--json"])
    assert isinstance(result.exception, ValueError)


def test_the_command_prunes_only_with_yes(out):
    said = invoke("runs", "prune", out, "--state", "failed", "--keep-code", "current")
    assert "a-11" in said and "b-03" not in said and "1 of 4 runs would be deleted; add --yes" in said
    assert len(find_runs(out)[0]) == 4
    said = invoke("runs", "prune", out, "--state", "failed", "--keep-code", "current", "--yes")
    assert "1 runs deleted" in said and "not touched" in said
    assert names(find_runs(out)[0]) == ["a-01", "a-02", "b-03"]
    assert "a-11" not in (out / "index.html").read_text() and "b-03" in (out / "index.html").read_text()


def test_the_command_compares(out):
    said = invoke("runs", "compare", "a-01", "a-02", "--folder", out)
    assert "seed" in said and "fdr" in said


@pytest.mark.parametrize("words", [["sweep"], ["runs", "list"], ["runs", "compare"], ["runs", "prune"]])
def test_help_has_an_example(words):
    assert "Example: kwsbench " + " ".join(words) in " ".join(invoke(*words, "--help").split())
