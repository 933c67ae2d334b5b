"""Figures of trained centroids: how they move while they anneal, how they are spaced, what each matrix can spare.

Plain arrays in, Plotly figures out, as in figures.py. A slider is part of its figure (no widget): it works in
JupyterLab and on the offline page, and paper shows its last position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from kwsbench.reports.figures import corners
from kwsbench.reports.style import INK, PALETTE, figure, series, text

SLIDER_PX = 90  # below the plot
PATHS = 16  # levels that get a line of their own
LARGEST_PX, SMALLEST_PX = 44.0, 3.0  # markers of a level with all weights, and with next to none


def annealing_slider(
    x: np.ndarray,
    responses: Sequence[np.ndarray],
    levels: np.ndarray,
    usage: np.ndarray,
    steps: Sequence[int],
    notes: Sequence[str],
    title: str = "A quantizer while it anneals",
) -> go.Figure:
    """The quantizer's curve over w~ at each snapshot, its levels and how many weights sit on each.

    Args:
        x: weights in units of the scale ``[n]``, ascending; ``responses``: what became of them, ``[n]`` per snapshot.
        levels, usage: ``[S, L]``, on w~ and as shares; a level's marker has an area in proportion to its share.
        steps: training step of each snapshot; ``notes``: what stands above the plot there, such as the sharpness.

    Raises:
        ValueError: no snapshot, or not the same number of everything.
    """
    counts = {len(responses), len(levels), len(usage), len(steps), len(notes)}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"a slider needs one of everything per snapshot, got {sorted(counts)} of them")
    told = f"{title}: {len(steps)} snapshots from step {steps[0]} to {steps[-1]}, {levels.shape[1]} levels."
    fig = figure(title, "weight before / scale", "weight after / scale", told)
    states = [_state(np.asarray(x), y, level, share) for y, level, share in zip(responses, levels, usage)]
    last = states[-1]
    fig.add_scatter(
        x=last["x"][0], y=last["y"][0], mode="lines", line={"color": PALETTE[0], "width": 2.5}, name="curve"
    )
    fig.add_scatter(
        x=last["x"][1],
        y=last["y"][1],
        mode="markers",
        marker={"size": last["marker.size"][1], "color": PALETTE[1], "opacity": 0.75, "line": {"width": 0}},
        name="levels (area: share of weights)",
        hovertemplate="level %{y:.3f}<extra></extra>",
    )
    note = {
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "showarrow": False,
    }
    fig.add_annotation(text=text(notes[-1]), font={"size": 12}, **note)
    positions = [
        {
            "method": "update",
            "label": f"{step:,}",
            "args": [state, {"annotations[0].text": text(told)}],
        }
        for step, state, told in zip(steps, states, notes)
    ]
    reach = 1.15 * float(np.abs(levels).max())
    fig.update_xaxes(range=[float(x[0]), float(x[-1])])
    fig.update_yaxes(range=[-reach, reach])
    fig.update_layout(
        sliders=[
            {
                "active": len(positions) - 1,
                "steps": positions,
                "currentvalue": {"prefix": "training step ", "font": {"size": 13}},
                "pad": {"t": 44, "b": 4},
                "font": {"size": 11, "color": INK},
                "ticklen": 4,
                "minorticklen": 0,
            }
        ],
        height=fig.layout.height + SLIDER_PX,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 1, "xanchor": "right", "itemsizing": "constant"},
    )
    return fig


def drawn_levels(count: int) -> np.ndarray:
    """Which of ``count`` levels get a path: at most ``PATHS``, evenly chosen, the outermost among them."""
    return np.unique(np.linspace(0, count - 1, min(count, PATHS)).round().astype(int))


def marker_sizes(usage: np.ndarray) -> np.ndarray:
    """Diameters (px) whose areas are in proportion to the shares; a level without weights is still seen."""
    return np.maximum(SMALLEST_PX, LARGEST_PX * np.sqrt(np.asarray(usage, np.float64)))


def centroid_paths(steps: np.ndarray, levels: np.ndarray, hard_from: float, title: str = "Centroids") -> go.Figure:
    """Levels ``[S, L]`` on w~ over the training steps ``[S]``; the hard phase begins at ``hard_from``.

    Of more than ``PATHS`` levels an even choice, the outermost among them, is drawn.
    """
    levels = np.asarray(levels, np.float64)
    count = levels.shape[1]
    chosen = drawn_levels(count)
    shown = f"{count} levels" if len(chosen) == count else f"{len(chosen)} of {count} levels"
    fig = figure(title, "training step", "level / scale", f"{title}: {shown} over {int(steps[-1]):,} steps.")
    for j in chosen:
        fig.add_scatter(
            x=np.asarray(steps, np.int64).tolist(),
            y=np.round(levels[:, j], 4).tolist(),
            mode="lines",
            line={"color": PALETTE[0], "width": 2},
            name=f"level {j}",
            showlegend=False,
        )
    fig.update_xaxes(range=[float(steps[0]), 1.01 * float(steps[-1])])
    fig.add_vline(x=float(hard_from), line={"dash": "dot", "width": 1.5, "color": INK})
    fig.add_annotation(
        text="hard from here",
        x=float(hard_from),
        xanchor="right" if hard_from > steps[-1] / 2 else "left",  # inside the plot: the axis would stretch
        y=1,
        yref="paper",
        yanchor="bottom",
        showarrow=False,
        font={"size": 12},
    )
    return fig


def spacing_figure(levels: Mapping[str, np.ndarray], title: str = "Where the levels lie") -> go.Figure:
    """Levels of several codebooks, each in units of its largest, one row of marks per name (the first on top).

    Raises:
        ValueError: no codebook, or one without a level but 0.
    """
    if not levels:
        raise ValueError("a figure of levels needs at least one codebook")
    fig = figure(title, "level / largest level", "codebook", f"{title}: {', '.join(levels)}.")
    for i, (name, values) in enumerate(levels.items()):
        values = np.asarray(values, np.float64)
        if not np.abs(values).max(initial=0) > 0:
            raise ValueError(f"{name!r} has no level but 0")
        fig.add_scatter(
            x=np.round(values / np.abs(values).max(), 4).tolist(),
            y=[text(name)] * len(values),
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 22, "line": {"width": 2.5}, "color": series(i).colour},
            name=text(name),
        )
    fig.update_yaxes(autorange="reversed", showgrid=True)
    fig.update_layout(showlegend=False, height=110 + 46 * len(levels))
    return fig


def sensitivity_figure(
    matrices: Sequence[str],
    increases: Mapping[str, Sequence[float]],
    x_title: str,
    title: str = "What each matrix minds",
) -> go.Figure:
    """What it costs to take bits from one matrix, all others at 8: a row per matrix, a mark per width.

    The axis is logarithmic: what lies below a thousandth of the largest increase, or below 0, is drawn there.

    Raises:
        ValueError: nothing to show, no increase is above 0, one is not a number, or a group has not one per matrix.
    """
    if not matrices or not increases:
        raise ValueError("a figure of sensitivities needs at least one matrix and one width")
    for name, values in increases.items():
        if len(values) != len(matrices):
            raise ValueError(f"{len(matrices)} matrices, but {len(values)} values of {name!r}")
        for matrix, value in zip(matrices, values):
            if not np.isfinite(value):
                raise ValueError(f"no increase of {name!r} at {matrix!r}: {value}")
    largest = max(max(values) for values in increases.values())
    if not largest > 0:
        raise ValueError("no matrix minds at all: every increase is 0 or below")
    floor = largest / 1000
    fig = figure(title, x_title, "matrix", f"{title}: {len(matrices)} matrices at {', '.join(increases)}.")
    for i, (name, values) in enumerate(increases.items()):
        fig.add_scatter(
            x=[max(float(v), floor) for v in values],
            y=[text(m) for m in matrices],
            customdata=[float(v) for v in values],
            mode="markers",
            marker={"color": series(i).colour, "symbol": series(i).marker, "size": 10},
            name=text(name),
            hovertemplate="%{y}: %{customdata:.4f}<extra></extra>",
        )
    fig.update_xaxes(type="log")
    fig.update_yaxes(autorange="reversed")
    fig.update_layout(height=120 + 26 * len(matrices), legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})
    return fig


def _state(x: np.ndarray, y: np.ndarray, levels: np.ndarray, usage: np.ndarray) -> dict[str, list]:
    """Data of both traces at one snapshot, as Plotly's ``update`` takes it."""
    kept = corners(x, np.asarray(y), 0.002)
    places = np.round(levels, 4).tolist()
    return {
        "x": [np.round(x[kept], 4).tolist(), places],
        "y": [np.round(np.asarray(y)[kept], 4).tolist(), places],
        "marker.size": [None, np.round(marker_sizes(usage), 1).tolist()],
    }
