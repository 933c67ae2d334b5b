"""Figures of searched networks: how a search decides, what it found, what each bit and operation buys.

Plain arrays and networks as data in, Plotly figures out, as in figures.py. A slider is part of its figure (no widget).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from matplotlib.ticker import MaxNLocator

from kwsbench.metrics.pareto import front_of
from kwsbench.models.layers import Add, Conv, Network, Output, Pool, shapes
from kwsbench.reports.style import COLOUR_SCALE, INK, PALETTE, figure, series, text

SLIDER_PX = 90  # below the plot
ROW_PX = 24  # of a heat map
LARGEST_WIDTH = 8  # bits; the colour scale of widths ends here


def search_slider(
    probabilities: np.ndarray,
    choices: Sequence[str],
    steps: Sequence[int],
    notes: Sequence[str],
    title: str = "A search while it decides",
) -> go.Figure:
    """Probability of every choice in every cell at each snapshot, a heat map under a slider.

    Args:
        probabilities: ``[S, cells, choices]``, NaN where a cell does not have a choice.
        steps: training step of each snapshot; ``notes``: what stands above the plot there.

    Raises:
        ValueError: no snapshot, or not the same number of everything.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 3 or {len(p), len(steps), len(notes)} != {len(p)} or not len(p) or p.shape[2] != len(choices):
        raise ValueError(
            f"a slider needs [snapshots, cells, choices] and a step and a note per snapshot, got {p.shape}, "
            f"{len(steps)} steps, {len(notes)} notes, {len(choices)} choices"
        )
    cells = [f"cell {i + 1}" for i in range(p.shape[1])]
    told = f"{title}: {p.shape[1]} cells, {len(choices)} choices, {len(p)} snapshots up to step {steps[-1]}."
    fig = figure(title, "choice (kernel e expansion)", "cell", told)
    frames = [_finite(np.round(100 * snapshot, 1)) for snapshot in p]
    fig.add_heatmap(
        z=frames[-1],
        x=[text(c) for c in choices],
        y=cells,
        zmin=0,
        zmax=100,
        colorscale=COLOUR_SCALE,
        colorbar={"title": {"text": "%"}, "thickness": 12},
        hovertemplate="%{y}, %{x}: %{z:.1f}%<extra></extra>",
        xgap=1,
        ygap=1,
    )
    note = {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "bottom"}
    fig.add_annotation(text=text(notes[-1]), showarrow=False, font={"size": 12}, **note)
    positions = [
        {"method": "update", "label": f"{step:,}", "args": [{"z": [z]}, {"annotations[0].text": text(told)}]}
        for step, z, told in zip(steps, frames, notes)
    ]
    fig.update_xaxes(type="category")
    fig.update_yaxes(autorange="reversed")
    fig.update_layout(
        sliders=[
            {
                "active": len(positions) - 1,
                "steps": positions,
                "currentvalue": {"prefix": "training step ", "font": {"size": 13}},
                "pad": {"t": 60, "b": 4},
                "font": {"size": 11, "color": INK},
                "ticklen": 4,
                "minorticklen": 0,
            }
        ],
        height=150 + ROW_PX * p.shape[1] + SLIDER_PX,
    )
    return fig


def blocks(network: Network) -> dict[str, list[Conv | Add | Pool | Output]]:
    """The layers by block: their names up to the first dot or underscore."""
    groups: dict[str, list[Conv | Add | Pool | Output]] = {}
    for layer in network.layers:
        groups.setdefault(re.split(r"[._]", layer.name)[0], []).append(layer)
    return groups


def network_drawing(network: Network, labels: Mapping[str, str] | None = None, title: str = "The network") -> go.Figure:
    """One box per block of layers, as tall as it has channels, in the colour of its kernel, its frames per second of
    audio above it, residual additions as arcs.

    ``labels``: what stands in a block instead of its name.
    """
    groups, sizes = blocks(network), shapes(network, 16000)
    kernels = sorted({_kernel(group) for group in groups.values()} - {0})
    fig = figure(title, "block, from sound to label", "channels", _told(title, network))
    seen: set[int] = set()
    tallest = max(_channels(group, sizes) for group in groups.values())
    for i, (name, group) in enumerate(groups.items()):
        kernel, height = _kernel(group), _channels(group, sizes)
        frames = sizes[group[-1].name][0]
        fig.add_bar(
            x=[i],
            y=[height],
            width=0.8,
            name=f"kernel of {kernel}" if kernel else "no kernel in time",
            legendgroup=str(kernel),
            showlegend=kernel not in seen,
            marker={"color": PALETTE[kernels.index(kernel) % 6] if kernel else PALETTE[6]},
            hovertemplate=_hover(name, group, sizes) + "<extra></extra>",
        )
        fig.add_annotation(
            x=i, y=height, text=f"{frames:,}", showarrow=False, yanchor="bottom", font={"size": 11}
        )  # fmt: skip
        seen.add(kernel)
        if any(isinstance(layer, Add) for layer in group):
            arc = np.linspace(0, np.pi, 12)
            fig.add_scatter(
                x=(i - 0.5 + 0.45 * (1 - np.cos(arc)) - 0.0).round(3).tolist(),
                y=(height + tallest * (0.09 + 0.06 * np.sin(arc))).round(2).tolist(),
                mode="lines",
                line={"color": INK, "width": 1.5},
                hoverinfo="skip",
                showlegend=False,
            )
    names = [text((labels or {}).get(name, name)) for name in groups]
    fig.update_xaxes(tickvals=list(range(len(groups))), ticktext=names, tickangle=-45, showgrid=False)
    fig.update_yaxes(range=[0, 1.22 * tallest])
    fig.update_layout(
        barmode="overlay",
        margin={"t": 84},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
    )
    return fig


def widths_over_training(
    steps: Sequence[int], bits: Mapping[str, Sequence[float]], title: str = "Bits per layer over training"
) -> go.Figure:
    """Width of every tensor (rows) at each recorded step (columns), a heat map from 1 to 8 bits.

    Raises:
        ValueError: nothing recorded, or a tensor without a width per step.
    """
    if not bits or not len(steps):
        raise ValueError("no widths were recorded: nothing to draw")
    for name, values in bits.items():
        if len(values) != len(steps):
            raise ValueError(f"{len(steps)} steps, but {len(values)} widths of {name!r}")
    z = np.array([list(v) for v in bits.values()], np.float64)
    fig = figure(title, "training step", "layer", f"{title}: {len(bits)} tensors, {len(steps)} snapshots.")
    fig.add_heatmap(
        z=_finite(z.round(2)),
        x=[int(s) for s in steps],
        y=[text(name) for name in bits],
        zmin=1,
        zmax=LARGEST_WIDTH,
        colorscale=COLOUR_SCALE,
        colorbar={"title": {"text": "bits"}, "thickness": 12, "dtick": 1},
        hovertemplate="%{y}, step %{x}: %{z:.2f} bits<extra></extra>",
        ygap=1,
    )
    fig.update_yaxes(autorange="reversed", dtick=1, tickfont={"size": 11})
    fig.update_layout(height=110 + 17 * len(bits))
    return fig


def pareto_figure(
    groups: Mapping[str, Sequence[Mapping[str, object]]],
    x_title: str,
    y_title: str,
    title: str = "What each byte buys",
) -> go.Figure:
    """Points ``{"name", "x", "y", "low", "high"}`` by group over a logarithmic x, and a front: that of the points which
    say so (``on_front``: it was found elsewhere, on validation), else what none of those shown beats.

    Raises:
        ValueError: no point, or one whose x is not above 0.
    """
    points = [point for group in groups.values() for point in group]
    if not points or min(float(p["x"]) for p in points) <= 0:  # type: ignore[arg-type]
        raise ValueError("a Pareto plot needs points of a positive x")
    fig = figure(title, x_title, y_title, f"{title}: {len(points)} systems in {len(groups)} groups.")
    if any("on_front" in p for p in points):
        front = [i for i, p in enumerate(points) if p.get("on_front")]
    else:
        front = front_of([(float(p["x"]), float(p["y"])) for p in points])  # type: ignore[arg-type]
    on = sorted({(float(points[i]["x"]), float(points[i]["y"])) for i in front})  # type: ignore[arg-type]
    fig.add_scatter(
        x=[x for x, _ in on],
        y=[y for _, y in on],
        mode="lines",
        line={"color": INK, "width": 1.5, "shape": "hv", "dash": "dot"},
        name="front",
        hoverinfo="skip",
        showlegend=len(on) > 1,  # a front of one point is no line
    )
    for i, (name, group) in enumerate(groups.items()):
        style = series(i)
        fig.add_scatter(
            x=[p["x"] for p in group],
            y=[p["y"] for p in group],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [float(p["high"]) - float(p["y"]) for p in group],  # type: ignore[arg-type]
                "arrayminus": [float(p["y"]) - float(p["low"]) for p in group],  # type: ignore[arg-type]
                "color": style.colour,
                "thickness": 1,
            },
            mode="markers",
            marker={"color": style.colour, "symbol": style.marker, "size": 10},
            text=[text(str(p["name"])) for p in group],
            hovertemplate="%{text}<br>%{x:,} , %{y:.2f}<extra></extra>",
            name=text(name),
        )
    ticks = _log_ticks([float(p["x"]) for p in points])  # type: ignore[arg-type]
    fig.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    fig.update_layout(margin={"t": 84}, legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0})
    return fig


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers for a logarithmic axis over ``values``: few over decades, some within one, evenly spaced ones where
    the largest is not even thrice the least."""
    low, high = min(values) / 1.25, max(values) * 1.25
    if max(values) < 3 * min(values):
        even = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(0.95 * min(values), 1.05 * max(values))
        return [t for t in np.round(even, 10).tolist() if t > 0]
    mantissas = (1, 2, 5) if high / low > 8 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [t for d in decades for m in mantissas if low <= (t := round(m * 10.0**d, 10)) <= high]


def _finite(z: np.ndarray) -> list[list[float | None]]:
    """Rows for a heat map; what is not there is empty."""
    return [[None if not np.isfinite(v) else float(v) for v in row] for row in z]


def _kernel(group: Sequence[Conv | Add | Pool | Output]) -> int:
    """Longest kernel in time of a block; 0 where there is none."""
    return max((layer.kernel[0] for layer in group if isinstance(layer, Conv)), default=0)


def _channels(group: Sequence[Conv | Add | Pool | Output], sizes: Mapping[str, tuple[int, int, int]]) -> int:
    return max(sizes[layer.name][2] for layer in group)


def _hover(name: str, group: Sequence[Conv | Add | Pool | Output], sizes: Mapping[str, tuple[int, int, int]]) -> str:
    told = [f"<b>{text(name)}</b>"]
    for layer in group:
        t, f, c = sizes[layer.name]
        how = ""
        if isinstance(layer, Conv):
            kernel, stride = "x".join(map(str, layer.kernel)), "x".join(map(str, layer.stride))
            how = f" {kernel}" + (f" stride {stride}" if layer.stride != (1, 1) else "")
            how += " depthwise" if layer.depthwise else ""
        told.append(f"{text(layer.name)}:{how} -> {t} x {f} x {c}")
    return "<br>".join(told)


def _told(title: str, network: Network) -> str:
    return f"{title}: {network.notation or f'{len(network.layers)} layers'}, {len(network.labels)} labels."
