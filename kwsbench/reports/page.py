"""The report: one HTML page per run and an index, readable offline, from a folder of runs.

``index.html``, ``<run>.html``, one ``plotly.min.js`` (copied from the installed plotly), ``page.css`` and
``page.js`` lie beside each other; ``runs/<run>/`` holds the executed notebook and ``status.json``. Pages ask
for nothing off-site, and their content security policy allows nothing else. Figures travel as JSON in the
page and are drawn by ``page.js``; what comes from names, parameters and notebooks is escaped.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import json
import math
import re
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from kwsbench.files import replacing, write_text
from kwsbench.reports import markdown
from kwsbench.reports.parameters import TAG, declared_parameters
from kwsbench.reports.show import KEY_FIGURES_MIME, PLOTLY_MIME, SYSTEMS_MIME
from kwsbench.reports.status import RunStatus

ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
IMAGES = {"image/svg+xml": "svg+xml", "image/png": "png"}
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
ASSETS = ("page.css", "page.js")


@dataclass(frozen=True)
class Block:
    """One piece of a page, ready to be placed: kind names its place in the template."""

    kind: str  # prose, code, figure, table, image, text, stream, error
    body: Markup
    caption: Markup | None = None
    label: str = ""  # what it shows, for those who cannot see it
    title: str = ""
    number: int = 0


def write_report(out_dir: Path) -> Path:
    """Write every run's page and the index anew from ``out_dir/runs``; return the index's path."""
    write_assets(out_dir)
    statuses = load_statuses(out_dir)
    for status in statuses:
        write_page(out_dir, status)
    index = out_dir / "index.html"
    write_text(index, _template("index.html").render(runs=statuses, profiles=_profiles(statuses)))
    return index


def load_statuses(out_dir: Path) -> tuple[RunStatus, ...]:
    """The runs of a report, by name."""
    return tuple(RunStatus.load(p) for p in sorted((out_dir / "runs").glob("*/status.json")))


def write_assets(out_dir: Path) -> None:
    """Copy plotly.min.js, page.css and page.js beside the pages."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for name in ASSETS:
        source = importlib.resources.files("kwsbench.reports") / "templates" / name
        write_text(out_dir / name, source.read_text(encoding="utf-8"))
    plotly = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    target = out_dir / "plotly.min.js"
    with importlib.resources.as_file(plotly) as source_path:
        if not target.exists() or target.stat().st_size != source_path.stat().st_size:
            with replacing(target) as partial:
                shutil.copyfile(source_path, partial)


def write_page(out_dir: Path, status: RunStatus) -> Path:
    """Write one run's page; without an executed notebook it still says what happened."""
    path = out_dir / f"{status.name}.html"
    kept = out_dir / "runs" / status.name / "notebook.ipynb"
    notebook = nbformat.read(kept, as_version=4) if kept.exists() else nbformat.v4.new_notebook()
    write_text(path, render_page(notebook, status))
    return path


def render_page(notebook: nbformat.NotebookNode, status: RunStatus) -> str:
    """The page of an executed notebook as HTML text."""
    blocks, contents = _blocks(notebook)
    return _template("page.html").render(
        status=status,
        comments=_comments(notebook),
        blocks=blocks,
        contents=contents,
        has_figures=any(b.kind == "figure" for b in blocks),
        has_notebook=bool(notebook.cells),
    )


def _template(name: str) -> Any:
    environment = Environment(
        loader=PackageLoader("kwsbench.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        shown=shown,
        duration=duration,
        inline=_inline,
        plain=lambda text: re.sub(r"[$`*\\]", "", text),
        spaced=lambda name: name.replace("_", " "),
    )
    return environment.get_template(name)


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


def _inline(text: str) -> Markup:
    """A line of Markdown (a title, a caption)."""
    return Markup(markdown.MARKDOWN.renderInline(text))


def duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)} min {rest:.0f} s" if minutes else f"{rest:.1f} s"


def _profiles(statuses: tuple[RunStatus, ...]) -> list[str]:
    return sorted({s.profile for s in statuses if s.profile})


def _comments(notebook: nbformat.NotebookNode) -> dict[str, str]:
    try:
        return {p.name: p.comment for p in declared_parameters(notebook, "")}
    except ValueError:  # a run that never started has no cells
        return {}


def _blocks(notebook: nbformat.NotebookNode) -> tuple[list[Block], list[tuple[str, str]]]:
    """The pieces of the page, and its contents as (anchor, text)."""
    blocks: list[Block] = []
    contents: list[tuple[str, str]] = []
    titled = False
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "papermill-error-cell-tag" in tags:
            continue
        if cell.cell_type == "markdown":
            tokens = markdown.parse(cell.source)
            if not titled:
                tokens, titled = _without_title(tokens)
            for heading, inline in pairwise(tokens):
                if heading.type == "heading_open" and heading.tag in ("h1", "h2"):
                    anchor = f"part-{len(contents) + 1}"
                    heading.attrSet("id", anchor)
                    contents.append((anchor, inline.content))
            if tokens:
                blocks.append(Block("prose", Markup(markdown.render(tokens))))
        elif cell.cell_type == "code":
            if cell.source.strip() and not {TAG, "injected-parameters"} & set(tags):
                blocks.append(Block("code", escape(cell.source)))
            for output in cell.outputs:
                _add_output(blocks, output)
    return blocks, contents


def _without_title(tokens: list[Any]) -> tuple[list[Any], bool]:
    """Drop the first level-one heading: the page has it as its own title."""
    for i, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h1":
            return tokens[:i] + tokens[i + 3 :], True
    return tokens, False


def _add_output(blocks: list[Block], output: nbformat.NotebookNode) -> None:
    if output.output_type == "stream":
        text = _terminal_text(output.text)
        if blocks and blocks[-1].kind == "stream":
            text = blocks.pop().body.unescape() + text
        if text.strip():
            lines = text.count("\n") + (not text.endswith("\n"))
            blocks.append(Block("stream", escape(text), number=lines))
        return
    if output.output_type == "error":
        blocks.append(
            Block(
                "error",
                escape(ANSI.sub("", "\n".join(output.traceback))),
                title=f"{output.ename}: {ANSI.sub('', output.evalue)}",
            )
        )
        return
    data = output.data
    if output.metadata.get("kwsbench", {}).get("role") == "caption":
        _caption(blocks, data.get("text/markdown", ""))
    elif KEY_FIGURES_MIME in data or SYSTEMS_MIME in data:
        return  # they stand in the strip at the top and in the index
    elif WIDGET_MIME in data:
        return  # progress bars and sliders live in JupyterLab only; their text is what they said at the start
    elif PLOTLY_MIME in data:
        blocks.append(_figure(data[PLOTLY_MIME], number=sum(b.kind == "figure" for b in blocks) + 1))
    elif "text/html" in data:
        blocks.append(Block("table", Markup(markdown.clean_html(data["text/html"]))))
    elif found := next((m for m in IMAGES if m in data), None):
        blocks.append(_image(found, data[found], output.metadata))
    elif "text/markdown" in data:
        blocks.append(Block("prose", Markup(markdown.markdown_to_html(data["text/markdown"]))))
    elif "text/latex" in data:
        latex = data["text/latex"].strip().strip("$").removeprefix(r"\displaystyle")
        blocks.append(Block("prose", Markup(markdown.markdown_to_html(f"$$\n{latex}\n$$"))))
    elif "text/plain" in data:
        blocks.append(Block("text", escape(_terminal_text(data["text/plain"]))))


def _caption(blocks: list[Block], text: str) -> None:
    """Give the caption to the figure, table or image just before it."""
    body = _inline(text.removeprefix("*").removesuffix("*"))
    if blocks and blocks[-1].kind in ("figure", "table", "image") and not blocks[-1].caption:
        last = blocks.pop()
        blocks.append(Block(last.kind, last.body, body, last.label, last.title, last.number))
    else:
        blocks.append(Block("prose", body))


def _figure(figure: dict[str, Any], number: int) -> Block:
    """A Plotly figure: its title becomes text of the page (it wraps there), its JSON a data block."""
    layout = {k: v for k, v in figure.get("layout", {}).items() if k not in ("title", "width")}
    title = _plain(_title_text(figure.get("layout", {})))
    alt = layout.pop("meta", None)
    told = alt.get("alt") if isinstance(alt, dict) else None
    # WebGL traces compile shaders from text, which the content security policy forbids.
    traces = [
        {**t, "type": t["type"].removesuffix("gl")} if t.get("type", "") in ("scattergl", "scatterpolargl") else t
        for t in figure.get("data", [])
    ]
    text = json.dumps(_finite({"data": traces, "layout": layout}), allow_nan=False)
    for character in "<>&":  # nothing in it can end the script element
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Block(
        "figure",
        Markup(text),
        label=str(told or _describe(title, layout, traces)),
        title=title,
        number=number,
    )


def _finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has none, Plotly leaves a gap."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _title_text(part: dict[str, Any]) -> str:
    title = part.get("title", "")
    return str(title.get("text") or "") if isinstance(title, dict) else str(title or "")


def _plain(text: str) -> str:
    """Plotly's text without its markup and entities."""
    lines = re.sub(r"\s*<br\s*/?>\s*", " – ", re.sub(r"</?(b|i|sub|sup|span|em|u|a)\b[^>]*>", "", text))
    return html.unescape(lines)


def _describe(title: str, layout: dict[str, Any], traces: list[dict[str, Any]]) -> str:
    """A figure in words, when its author gave none: title, axes, and the names of what is drawn."""
    axes = [
        f"{_plain(_title_text(layout[a]))} on the {a[0]} axis"
        for a in ("xaxis", "yaxis")
        if isinstance(layout.get(a), dict) and _title_text(layout[a])
    ]
    names = [_plain(str(t["name"])) for t in traces if t.get("name")]
    kinds = sorted({t.get("type", "scatter") for t in traces})
    parts = [title or "Plot", *axes, f"{len(traces)} traces ({', '.join(kinds)})"]
    return ". ".join([*parts, *([": ".join(("shown", ", ".join(names)))] if names else [])])


def _image(mime: str, data: str, metadata: dict[str, Any]) -> Block:
    if mime == "image/svg+xml":
        data = base64.b64encode(data.encode()).decode()
    source = f"data:image/{IMAGES[mime]};base64,{''.join(data.split())}"
    label = str(metadata.get("kwsbench", {}).get("alt", "")) or "Image made by the code before it"
    return Block("image", escape(source), label=label)


def _terminal_text(text: str) -> str:
    """What a terminal would show at the end: no colours, each line as its last carriage return left it."""
    lines = ANSI.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
