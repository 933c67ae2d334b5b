"""Markdown and HTML of a notebook as safe HTML: math becomes MathML, raw HTML is shown as text.

Tables arrive as HTML; `clean_html` keeps the tags of tables and text and drops every other tag and attribute.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

KEPT_TAGS = frozenset(
    "a abbr b br caption code col colgroup dd div dl dt em figcaption figure h3 h4 i li ol p pre s small "
    "span strong sub sup table tbody td tfoot th thead tr ul var".split()
)
VOID_TAGS = frozenset(("br", "col"))
KEPT_ATTRIBUTES = frozenset(("class", "scope", "colspan", "rowspan", "title", "aria-label"))
DROPPED_WITH_CONTENT = frozenset(("script", "style", "template", "iframe", "object", "svg", "math"))


def math_to_mathml(latex: str, display: bool) -> str:
    """MathML of a formula; a formula that cannot be read is shown as its source, marked.

    latex2mathml's own string form unescapes the markup it has just escaped (``$<script>$`` would become a
    tag), so its element tree is written out here.
    """
    try:
        tree = convert_to_element(latex, display="block" if display else "inline")
    except Exception as error:  # the converter raises many kinds
        source, why = html.escape(latex), html.escape(str(error) or type(error).__name__)
        return f'<code class="bad-math" title="{why}">{source}</code>'
    for element in tree.iter():
        if element.text:
            element.text = html.unescape(element.text)
    tree.set("aria-label", latex.strip())
    return ElementTree.tostring(tree, encoding="unicode")


def _renderer() -> MarkdownIt:
    md = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    md.use(
        dollarmath_plugin,
        allow_labels=False,
        allow_space=False,
        allow_digits=False,  # "costs 5$ or 6$" is no formula
        double_inline=True,
        renderer=lambda latex, options: math_to_mathml(latex, options["display_mode"]),
    )
    md.add_render_rule("image", _image)
    return md


def _image(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """An image that the page itself carries; any other would be fetched, so its text stands for it."""
    token = tokens[index]
    if str(token.attrs["src"]).startswith("data:image/"):
        return renderer.image(tokens, index, options, env)
    return f"[{html.escape(token.content)}]"


MARKDOWN = _renderer()


def parse(text: str) -> list[Token]:
    """Markdown as markdown-it tokens."""
    return MARKDOWN.parse(text)


def render(tokens: Sequence[Token]) -> str:
    """Tokens as HTML; what is wide scrolls by itself."""
    body = MARKDOWN.renderer.render(tokens, MARKDOWN.options, {})
    # Wide tables and formulas scroll by themselves, by keyboard too; the page does not.
    body = body.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
    return re.sub(r'<div class="math block">', '<div class="math block" tabindex="0">', body)


def markdown_to_html(text: str) -> str:
    """Markdown with $math$ as HTML."""
    return render(parse(text))


class _Cleaner(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.open: list[str] = []
        self.dropping = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in DROPPED_WITH_CONTENT:
            self.dropping += 1
        elif not self.dropping and tag in KEPT_TAGS:
            kept = "".join(f' {k}="{html.escape(v or "")}"' for k, v in attrs if k in KEPT_ATTRIBUTES)
            self.out.append(f"<{tag}{kept}>")
            if tag not in VOID_TAGS:
                self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in DROPPED_WITH_CONTENT:
            self.dropping = max(0, self.dropping - 1)
        elif not self.dropping and tag in self.open:
            while self.open:
                last = self.open.pop()
                self.out.append(f"</{last}>")
                if last == tag:
                    break

    def handle_data(self, data: str) -> None:
        if not self.dropping:
            self.out.append(html.escape(data, quote=False))


def clean_html(text: str) -> str:
    """The text with known, harmless tags and attributes only, every tag closed."""
    cleaner = _Cleaner()
    cleaner.feed(text)
    cleaner.close()
    return "".join(cleaner.out) + "".join(f"</{tag}>" for tag in reversed(cleaner.open))
