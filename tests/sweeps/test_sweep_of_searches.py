"""Many architecture searches as one sweep: a run each, side by side, and what runs share is trained once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell
from sweep_tools import write_spec

from kwsbench.data.clips import clip_task
from kwsbench.reports.notebooks import read_notebook
from kwsbench.sweeps.pool import LocalPool
from kwsbench.sweeps.runs import find_runs, table
from kwsbench.sweeps.spec import Overrides, read_sweep
from kwsbench.sweeps.sweep import run_sweep
from kwsbench.training.clip_search import SEARCHES, ClipSearch
from kwsbench.training.search_record import SearchRecord
from kwsbench.training.search_trials import draw_networks

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def example():
    return read_sweep(NOTEBOOKS / "sweep_search.yaml", dry=True)


def test_the_example_is_a_plan_of_fronts_targets_and_seeds():
    sweep = example()
    assert sorted((r.parameters["front"], r.parameters["target_mmacs"], r.parameters["seed"]) for r in sweep.runs) == [
        (front, target, seed)
        for front, targets in (("mfcc10", (0.6, 0.75)), ("mfcc20", (0.6, 0.75)), ("raw", (1.2,)))
        for target in targets
        for seed in (0, 1)
    ]
    assert {r.notebook.name for r in sweep.runs} == {"09_architecture_search.ipynb"}
    assert all(r.parameters["strategies"] == ["proxyless", "random"] for r in sweep.runs)
    assert {r.parameters["root"] for r in sweep.runs} == {"../runs"} and len({r.name for r in sweep.runs}) == 10
    assert "10 runs, profile smoke" in sweep.describe()


def test_every_strategy_of_the_example_can_meet_its_target():
    clips = SimpleNamespace(spec=SimpleNamespace(task=clip_task("computer")))
    for run in example().runs:
        p, seed = run.parameters, run.parameters["seed"]
        one = ClipSearch(clips, SEARCHES[p["profile"]], p["front"], 1e6 * p["target_mmacs"], seed)  # type: ignore[arg-type]
        assert len(draw_networks(one.table, one.target_macs, 0.3, one.profile.trials, seed)) == one.profile.trials


def tiny_notebook(path: Path) -> None:
    """Notebook 09 with the profile "tiny", which specifications do not offer."""
    notebook = read_notebook(NOTEBOOKS / "09_architecture_search.ipynb")
    (at,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    lines = notebook.cells[at].source.splitlines()
    kept = [line for line in lines if not line.startswith("profile:")]
    assert len(kept) == len(lines) - 1
    notebook.cells[at].source = "\n".join(kept)
    notebook.cells.insert(at + 1, new_code_cell('profile = "tiny"'))
    nbformat.write(notebook, path)


def made(root: Path) -> dict[str, int]:
    """What was searched or trained, and when it was written."""
    files = [p for name in ("record.npz", "trials.json", "model.safetensors") for p in root.glob(f"*/{name}")]
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in files}


@pytest.mark.slow
def test_two_seeds_are_two_records_and_another_strategy_trains_nothing_of_them_again(tmp_path):
    tiny_notebook(tmp_path / "search.ipynb")

    def sweep(strategies: list[str], seeds: list[int]) -> None:
        spec = write_spec(
            tmp_path / "s.yaml", notebooks=["search.ipynb"], parameters={"strategies": strategies}, seeds=seeds
        )
        plan = read_sweep(spec, Overrides(tmp_path / "out", tmp_path / "root"))
        statuses = run_sweep(plan, LocalPool(1, 1))
        assert [(s.state, s.failure) for s in statuses] == [("passed", None)] * len(seeds)

    sweep(["proxyless"], [0, 1])
    first = made(tmp_path / "root")
    records = [SearchRecord.load(tmp_path / "root" / name) for name in first if name.endswith("record.npz")]
    assert sorted(r.settings["seed"] for r in records) == [[0, 0], [1, 1]], "of search and of batches"
    assert records[0].macs != records[1].macs, "they drew other paths"

    sweep(["proxyless", "random"], [0])
    second = made(tmp_path / "root")
    assert {name: second[name] for name in first} == first, "what was there is as it was"
    assert sum(name.endswith("trials.json") for name in second) == 1
    assert sum(name.endswith("record.npz") for name in second) == 2

    columns, rows = table(find_runs(tmp_path / "out")[0])
    found = [dict(zip(columns, row)) for row in rows]
    assert sorted((r["strategies"], r["seed"]) for r in found) == [
        (["proxyless"], 0),
        (["proxyless"], 1),
        (["proxyless", "random"], 0),
    ]
    assert all(r["found"].startswith("mfcc10 w8 ") and r["values_different"] == 0 for r in found)
    same = [r["found"] for r in found if r["seed"] == 0]
    assert same[0] == same[1], "one search, told twice"
