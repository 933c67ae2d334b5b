"""An executed notebook as blocks of a page: prose, code, figures, tables, pictures, sound, output.

What comes from the notebook is escaped or cleaned here; nothing of it reaches a page as markup that it wrote.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import json
import math
import re
import zlib
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import nbformat
from markupsafe import Markup, escape

from kwsbench.reports import markdown
from kwsbench.reports.parameters import TAG
from kwsbench.reports.show import AUDIO_SOURCE, KEY_FIGURES_MIME, PLOTLY_MIME, SYSTEMS_MIME

ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
IMAGES = {"image/svg+xml": "svg+xml", "image/png": "png"}
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Block:
    """One piece of a page, ready to be placed: kind names its place in the template."""

    kind: str  # prose, code, figure, table, image, audio, text, stream, error
    body: Markup
    caption: Markup | None = None
    label: str = ""  # what it shows, for those who cannot see it
    title: str = ""
    number: int = 0


@dataclass(frozen=True)
class Content:
    """The blocks of a page, its headings (text), its figures (Plotly JSON) and its sounds (WAV files by digest)."""

    blocks: tuple[Block, ...]
    headings: tuple[str, ...]
    figures: tuple[dict[str, Any], ...]
    sounds: dict[str, bytes]


def notebook_content(notebook: nbformat.NotebookNode, prefix: str = "") -> Content:
    """The pieces of a page; anchors of its headings are ``<prefix>part-1``, and so on."""
    reader = _Reader(prefix)
    for cell in notebook.cells:
        reader.add_cell(cell)
    return Content(tuple(reader.blocks), tuple(reader.headings), tuple(reader.figures), reader.sounds)


def inline(text: str) -> Markup:
    """A line of Markdown (a title, a caption)."""
    return Markup(markdown.MARKDOWN.renderInline(text))


def packed(value: Any) -> Markup:
    """A JSON value as the text of a data block: deflated, in base64, a JSON string. NaN and infinities become null.

    Curves and repeated layouts shrink to a third; page.js unpacks it. Nothing in it can end a script element.
    """
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    squeezed = zlib.compress(text.encode(), level=9, wbits=-15)
    return Markup(f'"{base64.b64encode(squeezed).decode()}"')


def unpacked(text: str) -> Any:
    """The value of a data block."""
    return json.loads(zlib.decompress(base64.b64decode(json.loads(text)), wbits=-15))


class _Reader:
    """Collects the content of a notebook, cell by cell."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.blocks: list[Block] = []
        self.headings: list[str] = []
        self.figures: list[dict[str, Any]] = []
        self.sounds: dict[str, bytes] = {}
        self.titled = False

    def add_cell(self, cell: nbformat.NotebookNode) -> None:
        tags = cell.metadata.get("tags", [])
        if "papermill-error-cell-tag" in tags:
            return
        if cell.cell_type == "markdown":
            self._add_prose(cell.source)
        elif cell.cell_type == "code":
            if cell.source.strip() and not {TAG, "injected-parameters"} & set(tags):
                self.blocks.append(Block("code", escape(cell.source)))
            for output in cell.outputs:
                self._add_output(output)

    def _add_prose(self, source: str) -> None:
        tokens = markdown.parse(source)
        if not self.titled:
            tokens, self.titled = _without_title(tokens)
        for heading, text in pairwise(tokens):
            if heading.type == "heading_open" and heading.tag in ("h1", "h2"):
                self.headings.append(text.content)
                heading.attrSet("id", f"{self.prefix}part-{len(self.headings)}")
        if tokens:
            self.blocks.append(Block("prose", Markup(markdown.render(tokens))))

    def _add_output(self, output: nbformat.NotebookNode) -> None:
        if output.output_type == "stream":
            self._add_stream(_terminal_text(output.text))
        elif output.output_type == "error":
            body = escape(ANSI.sub("", "\n".join(output.traceback)))
            self.blocks.append(Block("error", body, title=f"{output.ename}: {ANSI.sub('', output.evalue)}"))
        elif output.metadata.get("kwsbench", {}).get("role") == "caption":
            self._add_caption(output.data.get("text/markdown", ""))
        else:
            self._add_data(output.data, output.metadata)

    def _add_stream(self, text: str) -> None:
        if self.blocks and self.blocks[-1].kind == "stream":
            text = self.blocks.pop().body.unescape() + text
        if text.strip():
            lines = text.count("\n") + (not text.endswith("\n"))
            self.blocks.append(Block("stream", escape(text), number=lines))

    def _add_data(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        if KEY_FIGURES_MIME in data or SYSTEMS_MIME in data:
            return  # they stand in the strip at the top and in the index
        if WIDGET_MIME in data:
            return  # progress bars and sliders live in JupyterLab only; their text is what they said at the start
        if PLOTLY_MIME in data:
            self._add_figure(data[PLOTLY_MIME])
        elif (sound := _sound(data, metadata)) is not None:
            digest = hashlib.sha256(sound).hexdigest()[:16]
            self.sounds[digest] = sound
            label = str(metadata["kwsbench"].get("label", "")) or "Sound made by the code before it"
            self.blocks.append(Block("audio", escape(digest), label=label))
        elif "text/html" in data:
            self.blocks.append(Block("table", Markup(markdown.clean_html(data["text/html"]))))
        elif found := next((m for m in IMAGES if m in data), None):
            self.blocks.append(_image(found, data[found], metadata))
        elif "text/markdown" in data:
            self.blocks.append(Block("prose", Markup(markdown.markdown_to_html(data["text/markdown"]))))
        elif "text/latex" in data:
            latex = data["text/latex"].strip().strip("$").removeprefix(r"\displaystyle")
            self.blocks.append(Block("prose", Markup(markdown.markdown_to_html(f"$$\n{latex}\n$$"))))
        elif "text/plain" in data:
            self.blocks.append(Block("text", escape(_terminal_text(data["text/plain"]))))

    def _add_caption(self, text: str) -> None:
        """Give the caption to the figure, table, picture or sound just before it."""
        body = inline(text.removeprefix("*").removesuffix("*"))
        last = self.blocks[-1] if self.blocks else None
        if last and last.kind in ("figure", "table", "image", "audio") and not last.caption:
            self.blocks[-1] = replace(last, caption=body)
        else:
            self.blocks.append(Block("prose", body))

    def _add_figure(self, figure: dict[str, Any]) -> None:
        """A Plotly figure: its title becomes text of the page (it wraps there), its JSON goes to the data block."""
        layout = {k: v for k, v in figure.get("layout", {}).items() if k not in ("title", "width")}
        title = _plain(_title_text(figure.get("layout", {})))
        meta = layout.pop("meta", None)
        told = meta.get("alt") if isinstance(meta, dict) else None
        # WebGL traces compile shaders from text, which the content security policy forbids.
        traces = [
            {**t, "type": t["type"].removesuffix("gl")} if t.get("type", "") in ("scattergl", "scatterpolargl") else t
            for t in figure.get("data", [])
        ]
        self.figures.append({"data": traces, "layout": layout})
        label = str(told or _describe(title, layout, traces))
        self.blocks.append(Block("figure", Markup(), label=label, title=title, number=len(self.figures)))


def _without_title(tokens: list[Any]) -> tuple[list[Any], bool]:
    """Drop the first level-one heading: the page has it as its own title."""
    for i, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h1":
            return tokens[:i] + tokens[i + 3 :], True
    return tokens, False


def _finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has none, Plotly leaves a gap."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
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


def _sound(data: dict[str, Any], metadata: dict[str, Any]) -> bytes | None:
    """The WAV file that `show_audio` displayed, or None for any other output."""
    if metadata.get("kwsbench", {}).get("role") != "audio":
        return None
    found = AUDIO_SOURCE.search(data.get("text/html", ""))
    try:
        sound = base64.b64decode(found["data"], validate=True) if found else b""
    except binascii.Error:
        return None
    return sound if sound[:4] == b"RIFF" and sound[8:12] == b"WAVE" else None


def _terminal_text(text: str) -> str:
    """What a terminal would show at the end: no colours, each line as its last carriage return left it."""
    lines = ANSI.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
