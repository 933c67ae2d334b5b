"""What the runs of one or more sweeps came to: find, filter, tabulate, compare, prune.

A folder is a report folder (it holds ``runs/``), or holds report folders one level below, as ``sweeps/`` does.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kwsbench.files import locked
from kwsbench.reports.status import STATES, RunStatus
from kwsbench.sweeps.identity import code_sha256

BASIC = ("run", "state", "notebook")
CONDITION = re.compile(r"(?P<name>[^=!<>]+?)(?P<sign>!=|<=|>=|=|<|>)(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True)
class Found:
    """A run and its folder."""

    folder: Path
    status: RunStatus

    @property
    def out(self) -> Path:
        """The report folder that it belongs to."""
        return self.folder.parent.parent

    def row(self) -> dict[str, Any]:
        """Everything to filter and tabulate by: basics, parameters, key figures. A figure never hides a parameter."""
        s = self.status
        basics = {
            "run": s.name,
            "state": s.state,
            "notebook": s.notebook,
            "profile": s.profile,
            "seconds": s.seconds,
            "started_utc": s.started_utc,
            "attempts": s.attempts,
            "failure": f"{s.failure.kind}: {s.failure.message}" if s.failure else "",
            "code": s.identity.get("code_sha256", "")[:12],
            "data_sha256": s.identity.get("data_sha256"),
            "sweep": self.out.name,
        }
        return s.key_figures | s.parameters | basics


def find_runs(folder: Path) -> tuple[tuple[Found, ...], tuple[str, ...]]:
    """Runs by name, and a line for each status that cannot be read.

    Raises FileNotFoundError when the folder holds no runs.
    """
    folders = [folder] if (folder / "runs").is_dir() else sorted(p.parent for p in folder.glob("*/runs"))
    if not folders:
        raise FileNotFoundError(f"no runs in {folder}: give the folder of a sweep or a report, which holds runs/")
    found, problems = [], []
    for out in folders:
        for path in sorted((out / "runs").glob("*/status.json")):
            try:
                found.append(Found(path.parent, RunStatus.load(path)))
            except ValueError as error:
                problems.append(str(error))
    return tuple(found), tuple(problems)


def where(runs: Sequence[Found], conditions: Sequence[str]) -> tuple[Found, ...]:
    """The runs that meet all conditions: ``bits=5``, ``state!=passed``, ``fdr<0.1``; ``bits=8,5`` for a list.

    A run that has no such parameter or figure meets none but ``!=``. Raises ValueError for a condition that cannot be
    read, and for a name that no run has, with the nearest one.
    """
    rows = [run.row() for run in runs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    chosen = list(zip(runs, rows))
    for text in conditions:
        match = CONDITION.fullmatch(text)
        if not match:
            raise ValueError(f"a condition is written name=value (also != < <= > >=), got {text!r}")
        name, sign, value = match["name"].strip(), match["sign"], match["value"].strip()
        _check_name(name, names)
        if name == "state" and value not in STATES:
            raise ValueError(f"a state is one of {', '.join(STATES)}; got {value!r}")
        chosen = [(run, row) for run, row in chosen if _meets(row.get(name), sign, value)]
    return tuple(run for run, _ in chosen)


def table(runs: Sequence[Found], columns: Sequence[str] = ()) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows. Without ``columns``: basics, parameters in which the runs differ, key figures.

    Raises ValueError for a column that no run has.
    """
    rows = [run.row() for run in runs]
    if not columns:
        given = dict.fromkeys(name for run in runs for name in run.status.parameters)
        differing = [n for n in given if len({json.dumps(row.get(n)) for row in rows}) > 1]
        figures = dict.fromkeys(name for run in runs for name in run.status.key_figures if name not in given)
        columns = [*BASIC, *differing, *figures, "seconds"]
    names = list(dict.fromkeys(name for row in rows for name in row))
    for column in columns if rows else ():
        _check_name(column, names)
    return list(columns), [[row.get(column) for column in columns] for row in rows]


def as_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in columns of even width; control characters of values are shown, not sent to the terminal."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in cells)


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV; lists as JSON, None as nothing. A text that a spreadsheet would take for a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_csv_cell(name) for name in columns])
    writer.writerows([_csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def as_json(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A list of objects."""
    return json.dumps([dict(zip(columns, row)) for row in rows], indent=1, ensure_ascii=False)


def find_run(text: str, folder: Path) -> Path:
    """The folder of a run: a path to it, or the beginning of a run's name in ``folder``.

    Raises ValueError when none or several match.
    """
    path = Path(text)
    if (path / "status.json").is_file():
        return path
    runs, _ = find_runs(folder)
    exact = [run for run in runs if run.status.name == text]
    matching = exact or [run for run in runs if run.status.name.startswith(text)]
    if len(matching) == 1:
        return matching[0].folder
    names = [run.status.name for run in matching or runs]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if matching:
        raise ValueError(f"{len(matching)} runs in {folder} begin with {text!r}: {shown}")
    raise ValueError(
        f"no run in {folder} begins with {text!r}, and no folder of a run has this path; there are: {shown}"
    )


def prunable(
    runs: Sequence[Found], states: Sequence[str], conditions: Sequence[str], keep_code: str
) -> tuple[Found, ...]:
    """The runs to delete: those in one of ``states`` and under all ``conditions``, but none made by ``keep_code``.

    Args:
        keep_code: ``current`` (this package as it is now), or the beginning of a hash of code; empty: keep none.

    Raises ValueError without any of the three: that would be every run.
    """
    if not states and not conditions and not keep_code:
        raise ValueError("which runs? give --state, --where or --keep-code; to delete all, delete the folder")
    for state in states:
        if state not in STATES:
            raise ValueError(f"a state is one of {', '.join(STATES)}; got {state!r}")
    kept = code_sha256() if keep_code == "current" else keep_code
    if kept and not re.fullmatch(r"[0-9a-f]{6,64}", kept):
        raise ValueError(f"--keep-code takes current or at least 6 hex digits of a hash, got {keep_code!r}")
    chosen = [run for run in where(runs, conditions) if not states or run.status.state in states]
    return tuple(r for r in chosen if not (kept and r.status.identity.get("code_sha256", "").startswith(kept)))


def prune(runs: Sequence[Found]) -> tuple[tuple[Found, ...], tuple[Found, ...]]:
    """Delete runs with their pages; returns those deleted, and those left because a process works on them.

    A run vanishes as a whole, even if this is interrupted. Artifacts and kept sources of notebooks are not touched.
    """
    deleted, busy = [], []
    for run in runs:
        try:
            with locked(run.folder, timeout_seconds=0):
                trash = run.out / f".pruned-{run.folder.name}"
                shutil.rmtree(trash, ignore_errors=True)
                run.folder.rename(trash)
                (run.out / f"{run.status.name}.html").unlink(missing_ok=True)
        except TimeoutError:
            busy.append(run)
            continue
        shutil.rmtree(trash, ignore_errors=True)
        deleted.append(run)
    return tuple(deleted), tuple(busy)


def _check_name(name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
        raise ValueError(f"no run has {name!r}; {hint}")


def _meets(value: Any, sign: str, text: str) -> bool:
    if sign in ("=", "!="):
        return _is(value, text) == (sign == "=")
    try:
        limit = float(text)
    except ValueError:
        raise ValueError(f"{sign} compares numbers, got {text!r}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[sign]


def _is(value: Any, text: str) -> bool:
    if isinstance(value, (list, tuple)):
        return text.replace(" ", "") in (",".join(map(str, value)), json.dumps(value, separators=(",", ":")))
    if isinstance(value, bool) or value is None:
        return text.lower() == str(value).lower()
    if isinstance(value, (int, float)):
        try:
            return float(text) == value
        except ValueError:
            return False
    return text == str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        text = f"{value:.4g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _csv_cell(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
