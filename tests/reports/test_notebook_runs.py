"""Runs of small notebooks: passing, failing, too slow, dying, refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from kwsbench.files import write_text
from kwsbench.reports import notebooks
from kwsbench.reports.notebooks import plan_run, run_all, run_notebook
from kwsbench.reports.show import publish, show
from kwsbench.reports.status import RunStatus

PARAMETERS = 'profile: str = "none"  # how much\nword: str = "yes"  # the keyword\nbits: list[int] = [8]  # widths'


def write(path: Path, *cells: str, parameters: str = PARAMETERS, title: str = "A *title* of $x$") -> Path:
    nb = new_notebook(cells=[new_markdown_cell(f"# {title}\n\ntext")])
    nb.cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    nb.cells.extend(new_code_cell(source) for source in cells)
    nbformat.write(nb, path)
    return path


def outputs(folder: Path) -> str:
    nb = nbformat.read(folder / "notebook.ipynb", as_version=4)
    return "".join(o.get("text", "") for c in nb.cells if c.cell_type == "code" for o in c.outputs)


def test_a_passing_run_keeps_everything_about_itself(tmp_path):
    awkward = 'quo"te\\ \n new "line" {braces} ünï \'007\''
    path = write(
        tmp_path / "01_ok.ipynb",
        "import sys, os; from pathlib import Path",
        "print(sys.executable); print(repr(word)); print(Path.cwd()); print(os.environ['PLOTLY_RENDERER'])",
        "from kwsbench.reports.show import publish\nimport numpy as np\n"
        "publish(sqnr_db=np.float32(24.5), levels=np.int64(31), exact=True, arm='neon')",
    )
    planned = plan_run(path, {"word": awkward, "bits": [5, 4]})
    status = run_notebook(planned, tmp_path / "out {x}", timeout_seconds=60, profile="smoke")

    assert status.state == "passed" and status.failure is None
    assert status.title == "A *title* of $x$" and status.profile == "smoke"
    assert status.parameters == {"profile": "none", "word": awkward, "bits": [5, 4]}
    assert status.given == ("word", "bits")
    assert status.key_figures == {"sqnr_db": 24.5, "levels": 31, "exact": True, "arm": "neon"}
    assert list(status.key_figures) == ["sqnr_db", "levels", "exact", "arm"]
    assert 0 < status.seconds < 60
    folder = tmp_path / "out {x}" / "runs" / "01_ok"
    assert RunStatus.load(folder / "status.json") == status
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.json", "notebook.ipynb", "status.json"]
    said = outputs(folder)
    assert sys.executable in said, "the kernel is this interpreter"
    assert repr(awkward) in said, "the value arrives as it was given"
    assert str(tmp_path) in said and "plotly_mimetype" in said


def test_failing_slow_and_dying_runs_are_kept_and_do_not_stop_the_others(tmp_path):
    paths = [
        write(tmp_path / "1_fails.ipynb", "print('before')", "raise RuntimeError('value 17')", "print('never')"),
        write(tmp_path / "2_slow.ipynb", "print('started')", "import time\nfor _ in range(600): time.sleep(.1)"),
        write(tmp_path / "3_dies.ipynb", "import os; os._exit(3)"),
        write(tmp_path / "4_fine.ipynb", "print(profile, bits)"),
    ]
    seen = []
    done = run_all(paths, tmp_path / "out", "smoke", {"bits": [3]}, timeout_seconds=4, after_each=seen.append)
    assert [s.state for s in done] == ["failed", "timed out", "failed", "passed"] and tuple(seen) == done
    fails, slow, dies, fine = done
    assert fails.failure.kind == "RuntimeError" and fails.failure.message == "value 17"
    assert "raise RuntimeError" in fails.failure.traceback and "\x1b" not in fails.failure.traceback
    assert "before" in outputs(tmp_path / "out/runs/1_fails")
    assert "never" not in outputs(tmp_path / "out/runs/1_fails")
    assert slow.failure.message == "stopped after 4 s" and slow.seconds < 15
    assert "started" in outputs(tmp_path / "out/runs/2_slow")
    assert "Dead" in dies.failure.kind
    assert outputs(tmp_path / "out/runs/4_fine").strip() == "smoke [3]", "profile and parameters reach it"
    assert fine.given == ("profile", "bits")


def test_interrupting_a_run_leaves_a_status_that_says_so(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(notebooks, "_execute", interrupted)
    planned = plan_run(write(tmp_path / "n.ipynb"), {})
    with pytest.raises(KeyboardInterrupt):
        run_notebook(planned, tmp_path / "out", 10)
    assert RunStatus.load(tmp_path / "out/runs/n/status.json").state == "interrupted"


@pytest.mark.parametrize(
    "profile, parameters, error, says",
    [
        ("quick", {}, ValueError, "profile must be one of smoke, default, full; got 'quick'"),
        ("smoke", {"bit": [1]}, ValueError, "no parameter 'bit'; did you mean 'bits'"),
        ("smoke", {"bits": 8}, ValueError, r"bits must be list\[int\], got 8"),
    ],
)
def test_nothing_runs_when_anything_is_wrong(tmp_path, profile, parameters, error, says):
    with pytest.raises(error, match=says):
        run_all([write(tmp_path / "n.ipynb")], tmp_path / "out", profile, parameters)
    assert not (tmp_path / "out").exists()


def test_a_second_notebook_that_cannot_be_checked_stops_the_first(tmp_path):
    paths = [write(tmp_path / "a.ipynb"), write(tmp_path / "b.ipynb", parameters="x = 1")]
    with pytest.raises(ValueError, match=r"b\.ipynb: 'x = 1'"):
        run_all(paths, tmp_path / "out", "smoke", {})
    assert not (tmp_path / "out").exists()


def test_missing_files_non_notebooks_and_unwritable_outputs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no notebook"):
        plan_run(tmp_path / "missing.ipynb", {})
    (tmp_path / "x.ipynb").write_text("{}")
    with pytest.raises(ValueError, match="is not a notebook"):
        plan_run(tmp_path / "x.ipynb", {})
    with pytest.raises(ValueError, match="no notebooks"):
        run_all([], tmp_path / "out", "smoke", {})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        run_all([write(tmp_path / "a.ipynb")], tmp_path / "file" / "out", "smoke", {})


def test_run_names_are_plain_file_names(tmp_path):
    path = write(tmp_path / "x.ipynb")
    assert plan_run(path, {}, name="../../etc/<script> a").name == "etc_script_a"
    assert plan_run(path, {}, name="...").name == "run"


@pytest.mark.parametrize("text", ["{", "[]", '{"name": 1}', '{"state": "odd"}', ""])
def test_a_broken_status_is_refused(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(ValueError, match="is not the status of a run"):
        RunStatus.load(tmp_path / "status.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new \ud800")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("value, error", [([1], TypeError), (None, TypeError), (float("nan"), ValueError)])
def test_only_plain_finite_key_figures_are_published(value, error):
    with pytest.raises(error, match="key figure fdr"):
        publish(fdr=value)


def test_a_figure_travels_as_json_with_its_caption(capsys, monkeypatch):
    import plotly.graph_objects as go

    sent = []
    monkeypatch.setattr("kwsbench.reports.show.display", lambda data, **kw: sent.append((data, kw)))
    show(go.Figure(go.Scatter(y=[1.0, float("nan")]), layout={"title": {"text": "T"}}), "caption $x$")
    (figure, _), (caption, kw) = sent
    assert json.loads(json.dumps(figure, allow_nan=False))["text/plain"] == "[plot] T"
    assert set(figure) == {"application/vnd.plotly.v1+json", "text/plain"}
    assert caption["text/plain"] == "caption $x$" and kw["metadata"]["kwsbench"]["role"] == "caption"
