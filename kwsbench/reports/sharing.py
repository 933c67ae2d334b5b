"""Finished runs as something to hand on: a folder of pages with the runs it shows, or one HTML file.

The single file holds the index, all pages, the comparison, scripts, style, pictures and sounds. It works from a file
system alone: its content security policy allows the scripts by their hashes and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kwsbench.files import check_writable, replacing, write_text
from kwsbench.reports.blocks import Content
from kwsbench.reports.comparison import compare_runs
from kwsbench.reports.page import Unreadable, asset, environment, index_values, run_values, write_report
from kwsbench.reports.run_folder import METRICS, NOTEBOOK, STATUS, Run, load_run

SCRIPTS = ("page.js", "index.js", "single.js")


@dataclass(frozen=True)
class SinglePageLinks:
    """Addresses within one file: the pages are its parts, and what lies in other files is left out."""

    prefix: str = ""
    index: str = "#index"
    comparison: str = ""

    def page(self, name: str) -> str:
        return f"#{page_id(name)}"

    def notebook(self, name: str) -> str:
        return ""

    def sound(self, digest: str, content: Content) -> str:
        return f"data:audio/wav;base64,{base64.b64encode(content.sounds[digest]).decode()}"


def page_id(name: str) -> str:
    """The id of a run's part of the single file; names of runs may hold any character."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return f"page-{plain}" if plain == name else f"page-{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def share_folder(folders: Sequence[Path], out_dir: Path, compare: tuple[Path, Path] | None = None) -> Path:
    """Copy runs into ``out_dir/runs``, unless they lie there, and render them; return the index's path.

    Args:
        folders: the runs' folders; two of one name are told apart by a number.
        compare: two of them, set side by side on a page of their own.

    Raises:
        ValueError: ``out_dir`` holds other runs, which the index would not list.
        OSError: it cannot be written.
    """
    check_writable(out_dir)
    names = _names(folders, out_dir)
    _refuse_others(out_dir, set(names.values()))
    for folder, name in names.items():
        target = out_dir / "runs" / name
        if target.resolve() != folder.resolve():
            _copy_run(folder, target)
    chosen = (names[compare[0]], names[compare[1]]) if compare else None
    return write_report(out_dir, list(names.values()), chosen)


def single_file(folders: Sequence[Path], path: Path, compare: tuple[Path, Path] | None = None) -> Path:
    """Write one self-contained HTML file of the runs; return its path.

    Raises:
        OSError: it cannot be written.
    """
    check_writable(path.parent)
    write_text(path, render_single(folders, compare))
    return path


def render_single(folders: Sequence[Path], compare: tuple[Path, Path] | None = None) -> str:
    """The single file as text."""
    names = _names(folders, None)
    runs: list[Run] = []
    unreadable: list[Unreadable] = []
    for folder, name in names.items():
        try:
            run = load_run(folder)
            runs.append(replace(run, status=replace(run.status, name=name)))
        except (ValueError, OSError) as error:
            unreadable.append(Unreadable(name, str(error)))
    side_by_side = compare_runs(*compare) if compare else None
    if side_by_side and compare:
        side_by_side = replace(
            side_by_side,
            a=replace(side_by_side.a, name=names[compare[0]]),
            b=replace(side_by_side.b, name=names[compare[1]]),
        )
    links = SinglePageLinks(comparison="#comparison" if compare else "")
    template = environment().get_template
    pages = [(page_id(run.name), Markup(template("page_body.html").render(**_values(run, links)))) for run in runs]
    plotly = (importlib.resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    scripts = [_inlined(plotly), *(_inlined(asset(name)) for name in SCRIPTS)]
    return template("single.html").render(
        **index_values(runs, unreadable, links),
        pages=pages,
        comparison=side_by_side,
        comparison_links=replace(links, prefix="comparison--"),
        style=Markup(asset("page.css")),
        scripts=[Markup(script) for script in scripts],
        hashes=[base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts],
    )


def _values(run: Run, links: SinglePageLinks) -> dict[str, Any]:
    values, _ = run_values(run, replace(links, prefix=f"{page_id(run.name)}--"))
    return values


def _inlined(script: str) -> str:
    """A script as the text of a script element: nothing in it ends the element, or opens another."""
    return re.sub(r"<(?=/script|!--|script)", r"\\x3c", script.replace("\r\n", "\n"), flags=re.IGNORECASE)


def _names(folders: Sequence[Path], out_dir: Path | None) -> dict[Path, str]:
    """A name for each run, by its folder's; runs that lie in ``out_dir`` already keep theirs."""
    names: dict[Path, str] = {}
    if out_dir is not None:
        names = {f: f.name for f in folders if f.resolve().parent == (out_dir / "runs").resolve()}
    for folder in folders:
        if folder in names:
            continue
        base, number = folder.resolve().name, 2
        name = base
        while name in names.values():
            name, number = f"{base}-{number}", number + 1
        names[folder] = name
    return {folder: names[folder] for folder in folders}


def _refuse_others(out_dir: Path, names: set[str]) -> None:
    others = sorted(p.parent.name for p in (out_dir / "runs").glob(f"*/{STATUS}") if p.parent.name not in names)
    if others:
        told = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise ValueError(f"{out_dir} holds other runs ({told}); choose another folder with --out")


def _copy_run(folder: Path, target: Path) -> None:
    for name in (NOTEBOOK, METRICS, STATUS):  # the status last: with it the folder is a run
        if (folder / name).is_file():
            with replacing(target / name) as partial:
                shutil.copyfile(folder / name, partial)
