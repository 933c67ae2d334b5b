"""What the index of a report shows: runs grouped by notebook, columns of their metrics, and the data of its plots.

Runs of one notebook stand in one table: a column for each parameter that varies and for each key figure. What is the
same in all of them is said once. A notebook that ran once has a card. The plots and the comparison in the page are
made by index.js from `index_data`, which keeps of each run what they need and no more: hundreds of runs fit a page.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kwsbench.reports.comparison import identity_of, short
from kwsbench.reports.figures import corners, thin
from kwsbench.reports.run_folder import Run

POINT_KEYS = ("threshold", "frr", "fdr", "fa_per_hour")
CURVE_POINTS = 40  # of a DET curve in the index
CURVE_TOLERANCE = 0.004  # of the axis: less than two pixels
CARD_FIGURES = 6  # key figures that a card shows before its reader asks for more
QUIET_PARAMETERS = ("root",)  # where caches lie; never a column


@dataclass(frozen=True)
class Column:
    """One column of a table of runs."""

    name: str
    kind: str  # parameter or figure
    number: bool


@dataclass(frozen=True)
class Group:
    """The runs of one notebook."""

    notebook: str
    title: str
    runs: tuple[Run, ...]
    columns: tuple[Column, ...]  # what varies
    constant: tuple[tuple[str, Any], ...]  # parameters and key figures that are the same in all runs


@dataclass(frozen=True)
class Overview:
    """The runs of a report as its index shows them."""

    cards: tuple[Run, ...]  # of notebooks that ran once
    groups: tuple[Group, ...]
    labels: dict[str, str]  # run name -> what tells it from the others
    runs: tuple[Run, ...]  # cards and groups, as they stand on the page
    states: dict[str, int]
    profiles: tuple[str, ...]
    identity: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]  # name -> values with their numbers of runs


def overview(runs: Sequence[Run]) -> Overview:
    """Group runs by notebook; the runs of a group stand in the order of their parameters."""
    by_notebook: dict[str, list[Run]] = {}
    for run in runs:
        by_notebook.setdefault(run.status.notebook, []).append(run)
    groups = tuple(_group(name, members) for name, members in by_notebook.items() if len(members) > 1)
    cards = tuple(members[0] for members in by_notebook.values() if len(members) == 1)
    labels = {run.name: run.name for run in runs}
    for group in groups:
        labels.update(_labels(group))
    states: dict[str, int] = {}
    for run in runs:
        states[run.status.state] = states.get(run.status.state, 0) + 1
    return Overview(
        cards=cards,
        groups=groups,
        labels=labels,
        runs=(*(run for group in groups for run in group.runs), *cards),
        states=states,
        profiles=tuple(sorted({_profile(run) for run in runs} - {""})),
        identity=_identity(runs),
    )


def index_data(view: Overview, pages: Mapping[str, str]) -> dict[str, Any]:
    """What index.js draws and compares: JSON values. ``pages`` holds the address of each run's page.

    Digests of layers become numbers: only whether they are equal is asked.
    """
    known: dict[str, int] = {}
    return {
        "runs": [
            {
                "name": run.name,
                "label": view.labels[run.name],
                "page": pages[run.name],
                "notebook": run.status.notebook,
                "state": run.status.state,
                "parameters": {k: v for k, v in run.status.parameters.items() if k not in QUIET_PARAMETERS},
                "identity": {name: short(value) for name, value in identity_of(run.status).items()},
                "figures": run.figures,
                "systems": [_system(record, known) for record in run.systems],
            }
            for run in view.runs
        ]
    }


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; truth values are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


# ---------------------------------------------------------------------------------------------- table


def _group(notebook: str, runs: list[Run]) -> Group:
    columns, constant = [], []
    for kind, of in (("parameter", lambda r: r.status.parameters), ("figure", lambda r: r.figures)):
        for name in dict.fromkeys(name for run in runs for name in of(run)):
            if name in QUIET_PARAMETERS:
                continue
            values = [of(run)[name] for run in runs if name in of(run)]
            complete = kind == "figure" or len(values) == len(runs)  # a failed run has no figures
            if complete and len(values) > 1 and all(value == values[0] for value in values):
                constant.append((name, values[0]))
            else:
                columns.append(Column(name, kind, all(is_number(value) for value in values)))
    varying = [column.name for column in columns if column.kind == "parameter"]
    ordered = sorted(runs, key=lambda run: [_order(run.status.parameters.get(name)) for name in varying])
    return Group(notebook, runs[0].status.title, tuple(ordered), tuple(columns), tuple(constant))


def _order(value: Any) -> tuple[int, Any]:
    """A key by which values of any types can be sorted: numbers, then lists, then texts."""
    if is_number(value):
        return 0, value
    if isinstance(value, (list, tuple)):
        return 1, [_order(item) for item in value]
    return 2, str(value)


def _labels(group: Group) -> dict[str, str]:
    """Names of runs by the parameters that vary; the run's own name where these do not tell them apart."""
    varying = [column.name for column in group.columns if column.kind == "parameter"]
    labels = {
        run.name: ", ".join(f"{name} {_plain(run.status.parameters.get(name))}" for name in varying)
        for run in group.runs
    }
    texts = list(labels.values())
    return {name: text if text and texts.count(text) == 1 else name for name, text in labels.items()}


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _profile(run: Run) -> str:
    return str(run.status.profile or run.status.parameters.get("profile") or "")


def _identity(runs: Sequence[Run]) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    """What the runs stand on, with how many runs share each value; notebooks have their own place."""
    counts: dict[str, dict[str, int]] = {}
    for run in runs:
        for name, value in identity_of(run.status).items():
            if value is not None and name != "notebook":
                of = counts.setdefault(name, {})
                of[str(value)] = of.get(str(value), 0) + 1
    return tuple((name, tuple(values.items())) for name, values in counts.items())


# ----------------------------------------------------------------------------------------------- data


def _system(record: Mapping[str, Any], known: dict[str, int]) -> dict[str, Any]:
    point = record["point"]
    return {
        "system": record["system"],
        "kind": record["kind"],
        "keyword": record["keyword"],
        "seed": record["seed"],
        "bytes": record["bytes"],
        "basis": record.get("bytes_basis"),
        "point": {key: _rounded(point.get(key)) for key in POINT_KEYS},
        "curve": _curve(record["curve"]),
        "layers": [[row["layer"], known.setdefault(row["sha256"], len(known))] for row in record["layers"]],
    }


def _curve(curve: Mapping[str, Any]) -> dict[str, Any]:
    """FRR (%), FA/h and FDR (%) at few points; a count of no false accept lies at half a count per hour."""
    frr = 100 * np.array(curve["frr"], np.float64)
    floor = 0.5 / float(curve["negative_hours"])
    events = np.maximum(np.array(curve["fa_per_hour"], np.float64), floor)
    fdr = 100 * np.array([math.nan if v is None else v for v in curve["fdr"]], np.float64)
    kept = np.union1d(
        corners(np.log10(events), frr, CURVE_TOLERANCE), corners(np.nan_to_num(fdr), frr, CURVE_TOLERANCE)
    )
    kept = kept[thin(np.log10(events[kept]), frr[kept], CURVE_POINTS)]
    return {
        "frr": [_rounded(v) for v in frr[kept]],
        "fa": [_rounded(v) for v in events[kept]],
        "fdr": [None if math.isnan(v) else _rounded(v) for v in fdr[kept]],
        "floor": _rounded(floor),
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if is_number(value) else None
