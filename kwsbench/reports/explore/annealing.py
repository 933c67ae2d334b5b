"""The annealing explorer's arithmetic: a recorded stage, a layer and a snapshot -> four panels.

What is shown was recorded while the stage trained (quantizers.annealing); nothing is trained, and no model is opened.
Levels and weights are in units of the scale; the curve is what the forward of the snapshot's step made of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import plotly.graph_objects as go

from kwsbench.quantizers.annealing import AnnealingRecord, Finding, LayerAnnealing, findings, response_at
from kwsbench.reports.centroids import PATHS, annealing_slider, drawn_levels, marker_sizes
from kwsbench.reports.explore.artifacts import Shelf
from kwsbench.reports.explore.panels import Content, apply, skeleton
from kwsbench.reports.style import INK, PALETTE, series, text
from kwsbench.training.experiment import ANNEALING

POINTS = 801  # of the curve
MARGIN = 1.15  # of the axes, beyond the outermost level
NO_RECORD = (
    "No cached system has a record of its annealing. `kwsbench train stage_one --method general --bits 2 "
    "--profile smoke` makes one; a system that was trained before there were records is trained again once its folder "
    "is deleted."
)


@dataclass(frozen=True)
class AnnealingState:
    """A system, a layer of it, and which of its snapshots, from 0."""

    system: str
    layer: str
    snapshot: int


@dataclass(frozen=True, eq=False)
class AnnealingView:
    """What the explorer shows of a state."""

    state: AnnealingState
    steps: int  # of the stage
    step: np.ndarray  # [S]
    layer: LayerAnnealing = field(repr=False)
    x: np.ndarray = field(repr=False)  # [POINTS], weight / scale
    response: np.ndarray = field(repr=False)  # [POINTS], what became of it
    found: tuple[Finding, ...]  # of this layer, over the whole stage

    @property
    def bits(self) -> float:
        """The width: log2 of the number of centroids."""
        return float(np.log2(self.layer.levels.shape[1]))

    @property
    def entropy_bits(self) -> float:
        return float(self.layer.entropy_bits[self.state.snapshot])

    @property
    def distinct(self) -> int:
        return int(self.layer.distinct[self.state.snapshot])

    @property
    def hard_from(self) -> int | None:
        """The first step that was seen hard; None if none was."""
        hard = np.flatnonzero(~np.isfinite(self.layer.sharpness))
        return int(self.step[hard[0]]) if len(hard) else None

    def told(self) -> str:
        """What went wrong, in whole sentences."""
        if not self.found:
            return f"{self.state.layer}: nothing found."
        return " ".join(f"{self.state.layer}, {f.kind}: {f.message}." for f in self.found)


class Annealings:
    """The records of a shelf's systems, by what the system is called there."""

    def __init__(self, shelf: Shelf):
        self.records: dict[str, AnnealingRecord] = {}
        self.left_out: tuple[str, ...] = ()
        for name, (study, system) in shelf.systems.items():
            path = study.experiment.folder(study.systems[system]) / ANNEALING
            if not path.is_file():
                continue
            try:
                self.records[name] = AnnealingRecord.load(path)
            except ValueError as error:
                self.left_out += (f"Left out: {name}: {error}.",)

    @cached_property
    def _found(self) -> dict[str, list[Finding]]:
        return {name: findings(record) for name, record in self.records.items()}

    def start(self) -> AnnealingState:
        """As a stage left its first layer: of the first system of which every level gets a path, if there is one.

        Raises:
            ValueError: no system has a record.
        """
        if not self.records:
            raise ValueError("no cached system has a record of its annealing")
        few = (name for name, r in self.records.items() if next(iter(r.layers.values())).levels.shape[1] <= PATHS)
        system = next(few, next(iter(self.records)))
        record = self.records[system]
        return AnnealingState(system, next(iter(record.layers)), len(record.step) - 1)

    def found(self, system: str, layer: str) -> tuple[Finding, ...]:
        """What went wrong with a layer."""
        return tuple(f for f in self._found[system] if f.layer == layer)

    def view(self, state: AnnealingState) -> AnnealingView:
        """The curve of a snapshot beside the record. Raises ValueError for a state that no record has."""
        record = _chosen(self.records, state.system, "system")
        layer = _chosen(record.layers, state.layer, "layer")
        if not 0 <= state.snapshot < len(record.step):
            raise ValueError(f"{state.system} has the snapshots 0 to {len(record.step) - 1}, got {state.snapshot}")
        x = _window(layer) * np.linspace(-1, 1, POINTS)
        response = response_at(layer, state.snapshot, x)
        found = self.found(state.system, state.layer)
        return AnnealingView(state, record.steps, record.step, layer, x, response, found)


def _chosen(there: dict, name: str, kind: str):
    if name not in there:
        raise ValueError(f"no {kind} {name!r} has a record; choose one of {', '.join(there) or 'none'}")
    return there[name]


def _window(layer: LayerAnnealing) -> float:
    """How far the axes reach: the same over all snapshots, so that levels move and not the axes."""
    return MARGIN * max(float(np.abs(layer.levels).max()), 1e-6)


def _sharpness(value: float) -> str:
    return f"sharpness {value:.3g}" if np.isfinite(value) else "hard"


def slider(v: AnnealingView) -> go.Figure:
    """The curve and its levels at every snapshot, as a figure with a slider of its own."""
    layer, snapshots = v.layer, range(len(v.step))
    notes = [
        f"{_sharpness(layer.sharpness[s])}, mu {layer.mu[s]:.2f}, entropy {layer.entropy_bits[s]:.2f} bits"
        for s in snapshots
    ]
    return annealing_slider(
        v.x,
        [response_at(layer, s, v.x) for s in snapshots],
        layer.levels,
        layer.usage,
        v.step.astype(int).tolist(),
        notes,
        f"{v.state.system}, {v.state.layer}",
    )


def rows(annealings: Annealings, system: str) -> list[dict[str, str | float | int]]:
    """Every layer of a system at the end of its stage, for a table."""
    return [
        {
            "layer": name,
            "levels": layer.levels.shape[1],
            "distinct levels": int(layer.distinct[-1]),
            "entropy (bits)": float(layer.entropy_bits[-1]),
            "mu": float(layer.mu[-1]),
            "found": ", ".join(dict.fromkeys(f.kind for f in annealings.found(system, name))) or "nothing",
        }
        for name, layer in annealings.records[system].layers.items()
    ]


def draw(v: AnnealingView) -> go.Figure:
    """The four panels as a figure."""
    fig = skeleton(
        2,
        2,
        (
            "Weight in the forward",
            "Usage, <b>line: even share</b>",
            "Paths, <b>dotted: hard from here</b>",
            "How far it is",
        ),
        (
            ("weight / scale", "in the forward / scale"),
            ("level, from the lowest", "share of weights (%)"),
            ("training step", "level / scale"),
            ("training step", "%"),
        ),
        height=640,
    )
    here = {"color": PALETTE[1], "opacity": 0.75, "line": {"width": 0}}
    fig.add_scatter(name="curve", mode="lines", line={"color": PALETTE[0], "width": 2.5}, row=1, col=1)
    hover = "level %{y:.3f}, %{customdata:.2%} of the weights<extra></extra>"
    fig.add_scatter(name="levels", mode="markers", marker=here, hovertemplate=hover, row=1, col=1)
    fig.add_bar(name="weights on the level", marker={"color": PALETTE[1], "line": {"width": 0}}, row=1, col=2)
    fig.add_scatter(name="even share", mode="lines", line={"color": INK, "width": 1.5}, row=1, col=2)
    fig.add_scatter(name="paths", mode="lines", line={"color": PALETTE[0], "width": 1.5}, row=2, col=1)
    fig.add_scatter(name="levels now", mode="markers", marker=here | {"size": 8}, row=2, col=1)
    for i, name in enumerate(("entropy, of the width", "weights between two levels", "gap to hard, of the norm")):
        style = series(i)
        line = {"color": style.colour, "dash": style.dash, "width": 2}
        fig.add_scatter(name=name, mode="lines", line=line, showlegend=True, row=2, col=2)
    for trace in fig.data[:6]:
        trace.showlegend = False
    legend = {"orientation": "h", "x": 1, "xanchor": "right", "y": -0.14, "yanchor": "top", "font": {"size": 12}}
    fig.update_layout(showlegend=True, legend=legend)
    fig.update_yaxes(range=[0, 105], row=2, col=2)
    fig.update_annotations(font_color=INK)
    apply(fig, content(v))
    return fig


def content(v: AnnealingView) -> Content:
    """The data of the panels."""
    layer, s = v.layer, v.state.snapshot
    levels, usage, count = layer.levels[s], layer.usage[s], layer.levels.shape[1]
    step = v.step.astype(np.int64)
    paths = drawn_levels(count)
    reach = _window(layer)
    entropy = f"entropy {v.entropy_bits:.2f} of {v.bits:g} bit{'' if v.bits == 1 else 's'}"
    told = f"{entropy}, {v.distinct} of {count} levels distinct"
    found = ", ".join(dict.fromkeys(f.kind for f in v.found))
    told += f", found: {found}" if found else ", nothing found"
    # The name last: it may be long, and the menu says it too.
    at = f"Step {step[s]:,} of {v.steps:,}, {_sharpness(layer.sharpness[s])}, mu {layer.mu[s]:.2f}"
    title = f"{at}: {v.state.layer} of {text(v.state.system)}"
    return Content(
        (
            {"x": v.x, "y": v.response},
            {"x": levels, "y": levels, "customdata": usage, "marker.size": marker_sizes(usage)},
            {"x": np.arange(count, dtype=np.int32), "y": 100 * usage},
            {"x": [-0.5, count - 0.5], "y": [100 / count] * 2},
            {"x": _joined([step] * len(paths)), "y": _joined(list(layer.levels[:, paths].T))},
            {"x": [step[s]] * len(paths), "y": levels[paths]},
            {"x": step, "y": 100 * layer.entropy_bits / v.bits},
            {"x": step, "y": 100 * layer.undecided},
            {"x": step, "y": 100 * layer.gap},
        ),
        {
            "title.text": f"{title}<br><b>{told}</b>",
            "xaxis.range": [-reach, reach],
            "yaxis.range": [-reach, reach],
            "yaxis2.range": [0, 105 * float(layer.usage.max())],
            "yaxis3.range": [-reach, reach],
            "xaxis3.range": [-0.02 * v.steps, 1.02 * v.steps],
            "xaxis4.range": [-0.02 * v.steps, 1.02 * v.steps],
            "shapes": _marks(int(step[s]), v.hard_from),
        },
        alt=f"{title}, {told}.",
    )


def _joined(lines: Sequence[np.ndarray]) -> np.ndarray:
    """Lines one after the other, with a gap between: one trace holds as many as a layer has."""
    return np.concatenate([np.append(np.asarray(line, np.float64), np.nan) for line in lines])


def _marks(step: int, hard_from: int | None) -> list[dict]:
    """Vertical lines in both panels over the steps: the snapshot, and where it becomes hard."""
    lines = [(step, {"color": PALETTE[1], "width": 1.5})]
    if hard_from is not None:
        lines.append((hard_from, {"color": INK, "width": 1.5, "dash": "dot"}))
    return [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "xref": f"x{i}", "yref": f"y{i} domain", "line": line}
        for i in (3, 4)
        for x, line in lines
    ]
