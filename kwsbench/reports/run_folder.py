"""A run's folder as it lies on disk: ``status.json``, ``metrics.json`` and the executed ``notebook.ipynb``.

A run that failed early has no notebook and no metrics; it is a run all the same. Files that cannot be read are
named in the error: nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nbformat

from kwsbench.reports.status import RunStatus

STATUS, METRICS, NOTEBOOK = "status.json", "metrics.json", "notebook.ipynb"


@dataclass(frozen=True)
class Run:
    """One run: its status, its key figures, and the records of its systems (training.record)."""

    folder: Path
    status: RunStatus
    figures: dict[str, Any]
    systems: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        return self.status.name


def load_run(folder: str | Path) -> Run:
    """Read a run's folder. A run goes by its folder's name: copied under another, it is another.

    Raises:
        ValueError: it is no run, or a file in it cannot be read (the file is named).
    """
    folder = Path(folder)
    if not (folder / STATUS).is_file():
        raise ValueError(f"{folder} is no run: it has no {STATUS}; name one folder of <report>/runs")
    status = replace(RunStatus.load(folder / STATUS), name=folder.resolve().name)
    metrics = folder / METRICS
    if not metrics.is_file():
        return Run(folder, status, dict(status.key_figures), ())
    try:
        raw = json.loads(metrics.read_text(encoding="utf-8"))
        # In the order in which they were published, which the status keeps.
        figures = {
            name: raw["figures"][name] for name in [*status.key_figures, *raw["figures"]] if name in raw["figures"]
        }
        systems = tuple(raw["systems"])
        for record in systems:
            _check_record(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{metrics} does not hold a run's figures and systems: {error}") from error
    return Run(folder, status, figures, systems)


def executed_notebook(folder: str | Path) -> nbformat.NotebookNode:
    """The executed notebook of a run; an empty one where the run left none.

    Raises:
        ValueError: it cannot be read.
    """
    path = Path(folder) / NOTEBOOK
    if not path.is_file():
        return nbformat.v4.new_notebook()
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many kinds
        raise ValueError(f"{path} is not a notebook: {error}") from error


def find_runs(names: Sequence[str | Path], report: Path) -> tuple[Path, ...]:
    """The run folders meant by ``names``, in order and each once.

    A name is a run's folder, a report's or sweep's folder (all its runs), or the name of a run in ``report``.

    Raises:
        ValueError: a name is none of these.
    """
    found: dict[Path, Path] = {}
    for name in names:
        for folder in _folders(name, report):
            found.setdefault(folder.resolve(), folder)
    return tuple(found.values())


def _folders(name: str | Path, report: Path) -> list[Path]:
    given = Path(name)
    if (given / STATUS).is_file():
        return [given]
    inside = sorted(path.parent for path in (given / "runs").glob(f"*/{STATUS}"))
    if inside:
        return inside
    if (report / "runs" / given / STATUS).is_file():
        return [report / "runs" / given]
    raise ValueError(
        f"no run {str(name)!r}: it is neither a run's folder (with {STATUS}), nor a folder with runs/*/{STATUS}, "
        f"nor a run of {report}; `kwsbench runs list` names the runs"
    )


def _check_record(record: dict[str, Any]) -> None:
    """Raises KeyError or TypeError for what is no record of a system."""
    for key in ("system", "kind", "keyword", "seed", "bytes", "point", "curve", "layers"):
        record[key]
    if not all(isinstance(record["curve"][key], list) for key in ("frr", "fa_per_hour", "fdr")):
        raise TypeError("a curve holds lists")
    for row in record["layers"]:
        row["layer"], row["sha256"]
