"""Two runs side by side: what was asked, what they stood on, what came out, and where their programs part.

Everything is read from the runs' folders (reports.run_folder); no model is needed. Differences are second minus
first, ratios second over first. The first divergent layer of two integer systems is the first entry of their
records' ``layers`` whose digest differs (training.record): the float features come first, so that other input data
are told from another program.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat

from kwsbench.reports.run_folder import Run, executed_notebook, load_run
from kwsbench.reports.status import RunStatus
from kwsbench.reports.tables import NONE, format_value

FEATURES = "features"
MISSING = "(none)"


@dataclass(frozen=True)
class Pair:
    """One named value in both runs; None where a run has none."""

    name: str
    a: Any
    b: Any

    @property
    def same(self) -> bool:
        """Equal; 1 and 1.0 are, 1 and True are not."""
        return isinstance(self.a, bool) == isinstance(self.b, bool) and self.a == self.b

    @property
    def difference(self) -> float | None:
        """Second minus first, for numbers."""
        return self.b - self.a if _number(self.a) and _number(self.b) else None

    @property
    def ratio(self) -> float | None:
        """Second over first, for numbers other than zero."""
        return self.b / self.a if _number(self.a) and _number(self.b) and self.a else None


@dataclass(frozen=True)
class SystemPair:
    """One system of both runs: its label in each ("" where a run has none), its figures, where the programs part."""

    a: str
    b: str
    seed_a: int | None
    seed_b: int | None
    values: tuple[Pair, ...]  # threshold, FRR, FDR, FA/h at the operating point, bytes
    divergence: str  # the first divergent layer in words; "" for systems that are not integer programs


@dataclass(frozen=True)
class CellPair:
    """One cell of a table that reads otherwise in the other run."""

    row: str
    column: str
    a: str
    b: str


@dataclass(frozen=True)
class TablePair:
    """One table of both notebooks, by its caption in the first (or only) run that shows it."""

    caption: str
    cells: int  # cells compared
    differing: tuple[CellPair, ...]
    only_in: str = ""  # "a" or "b": the other run shows no such table


@dataclass(frozen=True)
class Comparison:
    """What tells two runs apart, and what does not."""

    a: RunStatus
    b: RunStatus
    parameters: tuple[Pair, ...]
    identity: tuple[Pair, ...]
    figures: tuple[Pair, ...]
    systems: tuple[SystemPair, ...]
    tables: tuple[TablePair, ...]

    @property
    def same_results(self) -> bool:
        """Whether key figures, systems and tables agree."""
        return (
            all(pair.same for pair in self.figures)
            and all(s.a and s.b and all(p.same for p in s.values) for s in self.systems)
            and not any(t.differing or t.only_in for t in self.tables)
        )

    def as_text(self) -> str:
        """For a terminal: differences only, each part with a count of what agrees."""
        parts = [f"a: {self.a.name} ({self.a.state})", f"b: {self.b.name} ({self.b.state})"]
        parts += _part("parameters", self.parameters, lambda p: [p.name, told(p.a), told(p.b)])
        parts += _part("identity", self.identity, lambda p: [p.name, short(p.a), short(p.b)])
        parts += _part("key figures", self.figures, _figure_row, ["", "a", "b", "b - a", "b / a"])
        for system in self.systems:
            parts += _system_lines(system)
        differing = [t for t in self.tables if t.differing or t.only_in]
        parts += ["", f"tables: {len(differing)} of {len(self.tables)} differ"]
        for table in differing:
            parts += _table_lines(table)
        return "\n".join(parts)


def compare_runs(folder_a: Path, folder_b: Path) -> Comparison:
    """Compare two finished runs by their folders; they may be of different notebooks, or failed.

    Raises:
        ValueError: a folder is no run, or a file in it cannot be read.
    """
    a, b = load_run(folder_a), load_run(folder_b)
    return Comparison(
        a=a.status,
        b=b.status,
        parameters=_pairs(a.status.parameters, b.status.parameters),
        identity=_pairs(identity_of(a.status), identity_of(b.status)),
        figures=_pairs(a.figures, b.figures),
        systems=_system_pairs(a, b),
        tables=_table_pairs(
            _tables(executed_notebook(a.folder)),
            _tables(executed_notebook(b.folder)),
            same_notebook=a.status.notebook == b.status.notebook,
        ),
    )


def identity_of(status: RunStatus) -> dict[str, Any]:
    """What a run stands on, flat: code, data, notebook, and each part of the environment.

    Runs outside a sweep record no code and no data; the versions they name stand for the environment.
    """
    known = status.identity
    flat = {
        "code": known.get("code_sha256"),
        "data": known.get("data_sha256"),
        "notebook": known.get("notebook_sha256") or status.notebook_sha256 or None,
    }
    environment = {**status.versions, **(known.get("environment") or {})}
    return {**flat, **{str(name): value for name, value in environment.items()}}


def first_divergence(a: Sequence[dict[str, str]], b: Sequence[dict[str, str]]) -> str:
    """Where two programs part, in words; "" unless both records hold layers.

    >>> rows = [{"layer": "features", "sha256": "1"}, {"layer": "layer0: outputs", "sha256": "2"}]
    >>> first_divergence(rows, [rows[0], {"layer": "layer0: outputs", "sha256": "3"}])
    'first divergent: layer0: outputs'
    """
    if not a or not b:
        return ""
    for row_a, row_b in zip(a, b, strict=False):
        if row_a["layer"] != row_b["layer"]:
            return f"other layers: {row_a['layer']} against {row_b['layer']}"
        if row_a["sha256"] != row_b["sha256"]:
            if row_a["layer"] == FEATURES:
                return "input data differ (features)"
            return f"first divergent: {row_a['layer']}"
    if len(a) != len(b):
        return f"one program goes on: {len(a)} against {len(b)} entries, equal so far"
    return f"no layer differs ({len(a)} digests)"


def told(value: Any) -> str:
    """A value in a terminal or a cell: floats at full precision, so that what differs reads differently."""
    return MISSING if value is None else str(value)


def short(value: Any) -> str:
    """The same, hashes by their first twelve digits."""
    text = told(value)
    return text[:12] if len(text) == 64 and not text.strip("0123456789abcdef") else text


# ---------------------------------------------------------------------------------------------- pairs


def _pairs(a: dict[str, Any], b: dict[str, Any]) -> tuple[Pair, ...]:
    return tuple(Pair(name, a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b]))


def _system_pairs(a: Run, b: Run) -> tuple[SystemPair, ...]:
    """Same label, keyword and seed first; then same label and keyword; then what is alone in its kind."""
    left, right = list(a.systems), list(b.systems)
    matched: list[tuple[dict[str, Any] | None, dict[str, Any] | None]] = []
    for keys in (("system", "keyword", "seed"), ("system", "keyword"), ("kind", "keyword")):
        for record in list(left):
            key = [record[k] for k in keys]
            found = [other for other in right if [other[k] for k in keys] == key]
            alone = sum([other[k] for k in keys] == key for other in left) == 1 == len(found)
            if found and (alone or keys[0] == "system"):
                matched.append((record, found[0]))
                left.remove(record)
                right.remove(found[0])
    order = {id(record): i for i, record in enumerate([*a.systems, *b.systems])}
    matched += [(record, None) for record in left] + [(None, record) for record in right]
    matched.sort(key=lambda pair: order[id(pair[0] or pair[1])])
    return tuple(_system_pair(one, other) for one, other in matched)


def _system_pair(a: dict[str, Any] | None, b: dict[str, Any] | None) -> SystemPair:
    values_a, values_b = (_system_values(record) for record in (a, b))
    return SystemPair(
        a=a["system"] if a else "",
        b=b["system"] if b else "",
        seed_a=a["seed"] if a else None,
        seed_b=b["seed"] if b else None,
        values=_pairs(values_a, values_b),
        divergence=first_divergence(a["layers"], b["layers"]) if a and b else "",
    )


def _system_values(record: dict[str, Any] | None) -> dict[str, Any]:
    if record is None:
        return {}
    point = record["point"]
    return {
        "threshold": point.get("threshold"),
        "frr_percent": _percent(point.get("frr")),
        "fdr_percent": _percent(point.get("fdr")),
        "fa_per_hour": point.get("fa_per_hour"),
        "bytes": record["bytes"],
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 9)


# --------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class _Table:
    cell: str  # id of the notebook's cell, and the table's place in it
    caption: str
    rows: tuple[tuple[str, ...], ...]  # the first row holds the titles


class _Cells(HTMLParser):
    """The texts of a table's cells, row by row."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.inside = True
        elif tag == "br" and self.inside:
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def _tables(notebook: nbformat.NotebookNode) -> list[_Table]:
    tables: list[_Table] = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "<table" in data.get("text/html", ""):
                reader = _Cells()
                reader.feed(data["text/html"])
                rows = tuple(tuple(" ".join(text.split()) for text in row) for row in reader.rows)
                place = sum(table.cell.startswith(f"{number}/") for table in tables)
                tables.append(_Table(f"{number}/{place}", "", rows))
            elif output.get("metadata", {}).get("kwsbench", {}).get("role") == "caption" and tables:
                last = tables[-1]
                if last.cell.startswith(f"{number}/") and not last.caption:
                    tables[-1] = _Table(last.cell, str(data.get("text/plain", "")), last.rows)
    return tables


def _table_pairs(a: list[_Table], b: list[_Table], same_notebook: bool) -> tuple[TablePair, ...]:
    """Same caption first, then same place in one notebook: captions may hold numbers of the run."""
    left, right = list(a), list(b)
    matched: list[tuple[_Table, _Table]] = []
    for same in (lambda x, y: x.caption == y.caption != "", lambda x, y: same_notebook and x.cell == y.cell):
        for table in list(left):
            found = next((other for other in right if same(table, other)), None)
            if found is not None:
                matched.append((table, found))
                left.remove(table)
                right.remove(found)
    matched.sort(key=lambda pair: a.index(pair[0]))
    rest = [TablePair(t.caption, 0, (), "a") for t in left] + [TablePair(t.caption, 0, (), "b") for t in right]
    return (*(_table_pair(one, other) for one, other in matched), *rest)


def _table_pair(a: _Table, b: _Table) -> TablePair:
    cells_a, cells_b = _by_name(a), _by_name(b)
    names = list(dict.fromkeys([*cells_a, *cells_b]))
    differing = tuple(
        CellPair(*name[:2], cells_a.get(name, MISSING), cells_b.get(name, MISSING))
        for name in names
        if cells_a.get(name) != cells_b.get(name)
    )
    return TablePair(a.caption or b.caption, len(names), differing)


def _by_name(table: _Table) -> dict[tuple[str, str, int], str]:
    """Cells by row, column and a count that tells rows of one name apart; a row is named by its first cells."""
    if not table.rows:
        return {}
    titles, *body = table.rows
    named = next(
        (n for n in range(1, len(titles)) if len({row[:n] for row in body}) == len(body)),
        1,
    )
    cells: dict[tuple[str, str, int], str] = {}
    seen: dict[str, int] = {}
    for row in body:
        label = ", ".join(row[:named])
        seen[label] = seen.get(label, 0) + 1
        for title, text in zip(titles[named:], row[named:], strict=False):
            cells[label, title, seen[label]] = text
    return cells


# ----------------------------------------------------------------------------------------------- text


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _figure_row(pair: Pair) -> list[str]:
    return [pair.name, told(pair.a), told(pair.b), *(format_value(v) for v in (pair.difference, pair.ratio))]


def _part(title: str, pairs: Sequence[Pair], row: Any, head: Sequence[str] = ("", "a", "b")) -> list[str]:
    differing = [pair for pair in pairs if not pair.same]
    lines = ["", f"{title}: {len(differing)} of {len(pairs)} differ"]
    return lines + (_columns([list(head), *(row(pair) for pair in differing)]) if differing else [])


def _system_lines(system: SystemPair) -> list[str]:
    label = system.a if system.a == system.b else f"{system.a or MISSING} | {system.b or MISSING}"
    differing = [pair for pair in system.values if not pair.same]
    lines = ["", f"system {label}: {system.divergence or f'{len(differing)} of {len(system.values)} values differ'}"]
    return lines + (_columns([_figure_row(pair) for pair in differing]) if differing else [])


def _table_lines(table: TablePair) -> list[str]:
    if table.only_in:
        return [f"  only in {table.only_in}: {table.caption or NONE}"]
    lines = [f"  {table.caption or NONE}: {len(table.differing)} of {table.cells} cells"]
    return lines + _columns([[f"{cell.row}, {cell.column}", cell.a, cell.b] for cell in table.differing[:20]])


def _columns(rows: Iterable[list[str]]) -> list[str]:
    table = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  " + "  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in table]
