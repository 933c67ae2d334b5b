"""A figure whose traces keep their places while their data changes: drawn once, then updated where it stands.

``Content`` is what an explorer computes for a state: the data of every trace, in order, and the layout entries that
follow the state. ``apply`` puts it into a plain figure or into a live ``FigureWidget`` alike. ``redraw`` is for
drawings whose traces are others in every state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kwsbench.reports.style import figure


@dataclass(frozen=True, eq=False)
class Content:
    """``traces``: one dictionary of Plotly properties per trace; ``layout``: properties by path ("yaxis.range")."""

    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)
    alt: str = ""


def skeleton(
    rows: int,
    columns: int,
    titles: Sequence[str],
    axes: Sequence[tuple[str, str]],
    height: int,
    wide_last: bool = False,
) -> go.Figure:
    """An empty grid of panels in the house style. ``axes``: (x title, y title) per panel, row by row.

    ``wide_last``: the last row is one panel.
    """
    specs: list[list[Any]] = [[{}] * columns for _ in range(rows)]
    if wide_last:
        specs[-1] = [{"colspan": columns}, *[None] * (columns - 1)]
    fig = make_subplots(
        rows, columns, subplot_titles=titles, specs=specs, vertical_spacing=0.36 / rows, horizontal_spacing=0.13
    )
    house = figure("", "", "").layout
    fig.update_layout(template=house.template, font=house.font, paper_bgcolor=house.paper_bgcolor)
    fig.update_layout(plot_bgcolor=house.plot_bgcolor, margin={"l": 10, "r": 24, "t": 84, "b": 10}, height=height)
    fig.update_layout(title={"x": 0, "xref": "paper", "font": {"size": 13}, "y": 0.97, "yanchor": "top"})
    fig.update_layout(showlegend=False, autosize=True, hoverlabel={"font": {"size": 13}}, bargap=0.05)
    fig.update_annotations(font_size=13)
    for i, (x_title, y_title) in enumerate(axes):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        font = {"size": 12}
        fig.update_xaxes(title={"text": x_title, "font": font, "standoff": 4}, tickfont=font, **place)
        fig.update_yaxes(title={"text": y_title, "font": font, "standoff": 4}, tickfont=font, **place)
    return fig


def apply(fig: go.Figure, content: Content) -> None:
    """Put a state's content into a figure; its traces stay, so a zoom and a hidden legend entry stay too."""
    update = getattr(fig, "batch_update", contextlib.nullcontext)
    with update():
        for trace, values in zip(fig.data, content.traces, strict=True):
            trace.update(values, overwrite=True)
        for path, value in content.layout.items():
            fig.layout[path] = value
        if content.alt:
            fig.layout.meta = {"alt": content.alt}


def redraw(fig: go.Figure, drawing: go.Figure) -> None:
    """Make a figure show what ``drawing`` shows: where kinds and number of traces are the same, in place."""
    if [t.type for t in fig.data] != [t.type for t in drawing.data]:
        fig.data = ()
        fig.add_traces(drawing.data)
    update = getattr(fig, "batch_update", contextlib.nullcontext)
    with update():
        for trace, new in zip(fig.data, drawing.data, strict=True):
            values = new.to_plotly_json()
            values.pop("type")
            trace.update(values, overwrite=True)
        fig.update_layout(drawing.layout, overwrite=True)
