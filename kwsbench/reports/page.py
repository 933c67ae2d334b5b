"""The report: one HTML page per run and an index, readable offline, from a folder of runs.

``index.html``, ``<run>.html``, one ``plotly.min.js`` (copied from the installed plotly), ``page.css``, ``page.js``
and ``index.js`` lie beside each other, sounds in ``audio/``; ``runs/<run>/`` holds the executed notebook,
``status.json`` and ``metrics.json``. Pages ask for nothing off-site, and their content security policy allows
nothing else. Figures travel as packed JSON in the page and are drawn by ``page.js``; what comes from names,
parameters and notebooks is escaped.

Several processes may write one report: each file is whole or not there, and one process writes at a time. A page
carries the digest of what it was made from, and is made again only when that changed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
from jinja2 import Environment, PackageLoader, StrictUndefined

from kwsbench.files import locked, remove_leftovers, replacing, write_bytes, write_text
from kwsbench.reports import comparison as compared
from kwsbench.reports.blocks import Content, inline, notebook_content, packed
from kwsbench.reports.comparison import Comparison, compare_runs
from kwsbench.reports.overview import CARD_FIGURES, Overview, index_data, overview
from kwsbench.reports.parameters import declared_parameters
from kwsbench.reports.reproduce import run_command
from kwsbench.reports.run_folder import NOTEBOOK, STATUS, Run, executed_notebook, load_run
from kwsbench.reports.status import RunStatus
from kwsbench.reports.tables import format_value

ASSETS = ("page.css", "page.js", "index.js")
COMPARISON = "comparison.html"
MADE_FROM = re.compile(r'<meta name="made-from" content="([0-9a-f]{64})">')
HEAD_BYTES = 2000  # of a page, within which it says what it was made from


@dataclass(frozen=True)
class Unreadable:
    """A folder under runs/ that should hold a run, and why it cannot be read."""

    name: str
    why: str


@dataclass(frozen=True)
class Links:
    """Addresses within a report: of pages in one folder."""

    index: str = "index.html"
    comparison: str = ""  # without one there is no link
    prefix: str = ""  # of the ids in a page

    def page(self, name: str) -> str:
        return f"{quote(name)}.html"

    def notebook(self, name: str) -> str:
        return f"runs/{quote(name)}/{NOTEBOOK}"

    def sound(self, digest: str, content: Content) -> str:
        return f"audio/{digest}.wav"


def write_report(out_dir: Path, names: Sequence[str] | None = None, compare: tuple[str, str] | None = None) -> Path:
    """Write the index and the pages that are not up to date from ``out_dir/runs``; return the index's path.

    A run that cannot be read is listed as such and the rest goes on. Pages of runs that are gone are removed.

    Args:
        names: the runs that the index lists, in this order; all of them by default.
        compare: two of them: `comparison.html` sets them side by side.

    Raises:
        ValueError: a run to be compared cannot be read.
        OSError: the folder cannot be written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    # The lock lies in the report's own folder: the folder above it may not be ours to write.
    with locked(out_dir / "pages", f"the report {out_dir}"):
        remove_leftovers(out_dir)
        write_assets(out_dir)
        runs, unreadable = read_runs(out_dir, names)
        for run in runs:
            write_page(out_dir, run)
        if compare:
            folders = [out_dir / "runs" / name for name in compare]
            html = render_comparison(compare_runs(*folders), Links())
            write_text(out_dir / COMPARISON, html)
        if names is None:
            _remove_stale(out_dir, {run.name for run in runs})
        links = Links(comparison=COMPARISON if compare else "")
        write_text(out_dir / "index.html", render_index(runs, unreadable, links))
    return out_dir / "index.html"


def read_runs(out_dir: Path, names: Sequence[str] | None = None) -> tuple[tuple[Run, ...], tuple[Unreadable, ...]]:
    """The runs of a report, by name or in the order of ``names``, and those that cannot be read."""
    folders = sorted(path.parent for path in (out_dir / "runs").glob(f"*/{STATUS}"))
    if names is not None:
        folders = [out_dir / "runs" / name for name in names]
    runs, unreadable = [], []
    for folder in folders:
        try:
            runs.append(load_run(folder))
        except (ValueError, OSError) as error:
            unreadable.append(Unreadable(folder.name, str(error)))
    return tuple(runs), tuple(unreadable)


def page_sizes(out_dir: Path) -> dict[str, int]:
    """Bytes of each page of a report, scripts and sounds not counted, the largest first."""
    sizes = {path.name: path.stat().st_size for path in out_dir.glob("*.html")}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def load_statuses(out_dir: Path) -> tuple[RunStatus, ...]:
    """The statuses of a report's runs, by name; those that cannot be read are left out."""
    return tuple(run.status for run in read_runs(out_dir)[0])


def write_assets(out_dir: Path) -> None:
    """Copy plotly.min.js, page.css, page.js and index.js beside the pages, where they are not there yet."""
    for name in ASSETS:
        text, target = asset(name), out_dir / name
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            write_text(target, text)
    plotly = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    target = out_dir / "plotly.min.js"
    with importlib.resources.as_file(plotly) as source_path:
        if not target.exists() or target.stat().st_size != source_path.stat().st_size:
            with replacing(target) as partial:
                shutil.copyfile(source_path, partial)


def asset(name: str) -> str:
    """The text of a style sheet or script of the pages."""
    return (importlib.resources.files("kwsbench.reports") / "templates" / name).read_text(encoding="utf-8")


def write_page(out_dir: Path, run: Run) -> Path:
    """Write one run's page and its sounds, unless they are up to date.

    Without an executed notebook the page still says what happened; with one that cannot be read it says so.
    """
    path = out_dir / f"{run.name}.html"
    made_from = _made_from(run)
    if path.exists() and _head_digest(path) == made_from:
        return path
    notebook, status = _notebook_of(run)
    content = notebook_content(notebook)
    for digest, sound in content.sounds.items():
        target = out_dir / "audio" / f"{digest}.wav"
        if not target.exists():
            write_bytes(target, sound)
    html = _render("page.html", made_from=made_from, **_page_values(notebook, content, status, Links()))
    write_text(path, html)
    return path


def render_page(notebook: nbformat.NotebookNode, status: RunStatus) -> str:
    """The page of an executed notebook as HTML text."""
    values = _page_values(notebook, notebook_content(notebook), status, Links())
    return _render("page.html", made_from="", **values)


def render_index(runs: Sequence[Run], unreadable: Sequence[Unreadable], links: Any) -> str:
    """The index as HTML text."""
    return _render("index.html", **index_values(runs, unreadable, links))


def render_comparison(comparison: Comparison, links: Any) -> str:
    """The page that sets two runs side by side, as HTML text."""
    return _render("comparison.html", comparison=comparison, links=links, compared=compared)


def index_values(runs: Sequence[Run], unreadable: Sequence[Unreadable], links: Any) -> dict[str, Any]:
    """What the index's template shows."""
    view = overview(runs)
    data = index_data(view, {run.name: links.page(run.name) for run in runs})
    return {
        "view": view,
        "runs": runs,
        "unreadable": unreadable,
        "links": links,
        "data": packed(data),
        "has_systems": any(run.systems for run in runs),
        "card_figures": CARD_FIGURES,
        "summary": _states(view, len(runs) + len(unreadable)),
        "compared": compared,
    }


def run_values(run: Run, links: Any) -> tuple[dict[str, Any], Content]:
    """What the template of a run's page shows, and the content it was made from."""
    notebook, status = _notebook_of(run)
    content = notebook_content(notebook, links.prefix)
    return _page_values(notebook, content, status, links), content


def _page_values(notebook: nbformat.NotebookNode, content: Content, status: RunStatus, links: Any) -> dict[str, Any]:
    return {
        "status": status,
        "comments": _comments(notebook),
        "content": content,
        "figures": packed(list(content.figures)),
        "has_notebook": bool(notebook.cells),
        "links": links,
        "identity": compared.identity_of(status),
        "command": run_command(status),
        "compared": compared,
    }


def _notebook_of(run: Run) -> tuple[nbformat.NotebookNode, RunStatus]:
    """The executed notebook; one that cannot be read leaves a page with the reason as its text."""
    try:
        return executed_notebook(run.folder), run.status
    except ValueError as error:
        cell = nbformat.v4.new_markdown_cell("The executed notebook cannot be read.")
        output = nbformat.v4.new_output("stream", name="stderr", text=str(error))
        return nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell("", outputs=[output])]), run.status


def _states(view: Overview, total: int) -> str:
    passed = view.states.get("passed", 0)
    others = [f"{count} {state}" for state, count in view.states.items() if state != "passed"]
    return ", ".join([f"{passed} of {total} runs passed", *others])


def _remove_stale(out_dir: Path, names: set[str]) -> None:
    """Remove the pages of runs that are gone; only files that say they are such pages."""
    for path in out_dir.glob("*.html"):
        if path.stem not in names and _head_digest(path):
            path.unlink(missing_ok=True)


def _made_from(run: Run) -> str:
    """A digest of all that the run's page is made from: its files, and the code that renders them."""
    digest = hashlib.sha256(_code_digest().encode())
    digest.update(json.dumps(asdict(run.status), sort_keys=True).encode())
    notebook = run.folder / NOTEBOOK
    digest.update(hashlib.sha256(notebook.read_bytes()).digest() if notebook.is_file() else b"none")
    return digest.hexdigest()


@functools.cache
def _code_digest() -> str:
    folder = importlib.resources.files("kwsbench.reports")
    digest = hashlib.sha256()
    modules = ("page.py", "blocks.py", "markdown.py", "reproduce.py", "comparison.py", "show.py", "tables.py")
    templates = sorted(item.name for item in (folder / "templates").iterdir())
    for path in (*(folder / name for name in modules), *(folder / "templates" / name for name in templates)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _head_digest(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        found = MADE_FROM.search(file.read(HEAD_BYTES))
    return found[1] if found else ""


def _render(name: str, **values: Any) -> str:
    return environment().get_template(name).render(**values)


@functools.cache
def environment() -> Environment:
    """The templates, with everything escaped."""
    made = Environment(
        loader=PackageLoader("kwsbench.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "shown": shown,
        "duration": duration,
        "inline": inline,
        "number": format_value,
        "plain": lambda text: re.sub(r"[$`*\\]", "", text),
        "spaced": lambda name: name.replace("_", " "),
    }
    made.filters.update(filters)
    return made


def shown(value: Any) -> str:
    """A parameter or key figure as a reader wants it: four digits for floats, lists without brackets."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if value == "" or value == [] or value == ():
        return "(empty)"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(v) for v in value)
    return str(value)


def duration(seconds: float) -> str:
    """Seconds in words, for example ``"2 min 5 s"``."""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)} min {rest:.0f} s" if minutes else f"{rest:.1f} s"


def _comments(notebook: nbformat.NotebookNode) -> Mapping[str, str]:
    try:
        return {p.name: p.comment for p in declared_parameters(notebook, "")}
    except ValueError:  # a run that never started has no cells
        return {}
