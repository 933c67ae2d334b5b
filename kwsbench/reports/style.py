"""One look for every figure: colours, dashes, type and margins, for Plotly and for Matplotlib.

The colours are those of Okabe and Ito (2008), which readers with a colour vision deficiency can tell apart,
without yellow and black: one vanishes on white paper, the other on dark. Series also differ by dash and
marker, so a figure survives a grey print. Backgrounds are transparent and the ink is a middle grey that
reads on white and on dark paper; the report page replaces it by its own ink.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down")
INK = "#767676"
GRID = "rgba(128,128,128,0.25)"
CLEAR = "rgba(0,0,0,0)"
COLOUR_SCALE = "Cividis"  # even in lightness, safe for colour vision deficiencies
HEIGHT_PX = 420


@dataclass(frozen=True)
class Series:
    """Colour, dash and marker of one series."""

    colour: str
    dash: str
    marker: str


def series(i: int) -> Series:
    """Style of series ``i``: the first 42 differ as lines and as points (markers move on by one with every round)."""
    marker = MARKERS[(i + i // len(PALETTE)) % len(MARKERS)]
    return Series(PALETTE[i % len(PALETTE)], DASHES[i % len(DASHES)], marker)


def text(label: str) -> str:
    """A label as Plotly text: markup in a name is shown, not obeyed."""
    return html.escape(str(label), quote=False)


def figure(title: str, x_title: str, y_title: str, alt: str = "") -> go.Figure:
    """An empty figure in the house style. Axis titles carry their units.

    ``alt`` is what a reader who cannot see the plot is told; the title by default.
    """
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "tickcolor": GRID,
        "automargin": True,
        "title": {"standoff": 8},
    }
    template = go.layout.Template(layout={"xaxis": axis, "yaxis": axis, "colorway": list(PALETTE)})
    return go.Figure(
        layout={
            "template": template,
            "title": {"text": title, "x": 0, "xref": "paper", "font": {"size": 16}},
            "xaxis": {"title": {"text": x_title}},
            "yaxis": {"title": {"text": y_title}},
            "font": {"size": 14, "color": INK, "family": "system-ui, DejaVu Sans, sans-serif"},
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "legend": {"bgcolor": CLEAR},
            "hoverlabel": {"font": {"size": 13}},
            "margin": {"l": 10, "r": 10, "t": 44, "b": 10},
            "height": HEIGHT_PX,
            "autosize": True,
            "meta": {"alt": alt or title},
        }
    )


def matplotlib_style() -> dict[str, Any]:
    """The same look as ``matplotlib.rcParams``: ``matplotlib.rc_context(matplotlib_style())``."""
    from cycler import cycler

    return {
        "axes.prop_cycle": cycler(color=PALETTE),
        "axes.grid": True,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": "#80808040",
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "font.size": 11,
        "image.cmap": COLOUR_SCALE.lower(),
    }
