"""The resource explorer's arithmetic: a width per layer -> bytes, MACs, predicted SQNR, and what was measured.

Bytes of weights are those that export.pack writes, padding included; the rest of a stream (constants, ring,
activations) does not depend on the widths and is that of a program of the same network.

The predicted SQNR is *modelled*: each layer's relative weight noise, at the best scale for a sample (``SAMPLES``) of
its weights, and the noise of the network as the sum over layers, as if they were independent and every layer passed
a relative error on unchanged. Activations, batchnorm codes and training are not in it; the measured points are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import plotly.graph_objects as go

from kwsbench.arithmetic.codebook import check_bits
from kwsbench.export.pack import packed_bytes
from kwsbench.metrics.det import OperatingPoint
from kwsbench.models.feedforward import Spotter
from kwsbench.quantizers import CODEBOOKS, QUANTIZERS
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.usage import best_scale, rounded_sqnr_db
from kwsbench.reports.explore.artifacts import Study
from kwsbench.reports.explore.panels import Content, apply, skeleton
from kwsbench.reports.explore.quantizer import float_weights
from kwsbench.reports.style import PALETTE, text
from kwsbench.resources.memory import memory_parts
from kwsbench.training.experiment import System

SAMPLES = (8192, 2048)  # weights of a layer for its SQNR, and for the scale: a search


@dataclass(frozen=True)
class ResourceState:
    """A method and a width per layer."""

    method: str
    bits: tuple[int, ...]

    def __post_init__(self) -> None:
        for width in self.bits:
            check_bits(width)
        if self.method not in QUANTIZERS:
            raise ValueError(f"unknown quantizer {self.method!r}; choose one of {sorted(QUANTIZERS)}")


@dataclass(frozen=True)
class Measured:
    """An integer system, its bytes, its operating point on the test split, and how long this took just now."""

    name: str
    bytes: int
    point: OperatingPoint
    seconds: float


@dataclass(frozen=True, eq=False)
class ResourceView:
    """What the explorer shows of a state."""

    state: ResourceState
    layers: tuple[str, ...]
    layer_bytes: np.ndarray  # [L]
    layer_sqnr_db: np.ndarray  # [L], modelled
    sqnr_db: float  # of the network, modelled
    macs: int  # per frame
    other_bytes: int  # constants, input tables, ring, activations
    float32_bytes: int  # weights only
    measured: tuple[Measured, ...] = field(repr=False)

    @property
    def total_bytes(self) -> int:
        return int(self.layer_bytes.sum()) + self.other_bytes


class Resources:
    """The float model of a study under widths per layer; what was measured is kept."""

    def __init__(self, study: Study):
        self.study = study
        floats = [s for s in study.systems.values() if s.kind == "float"]
        if not floats:
            raise ValueError(f"{study.label} has no float model; train one first")
        self.float_system = floats[0]
        self.measured: dict[str, Measured] = {}
        self._sqnr: dict[tuple[str, int, int], float] = {}

    @cached_property
    def weights(self) -> list[np.ndarray]:
        model = self.study.experiment.model(self.float_system)
        assert isinstance(model, Spotter)
        return float_weights(model)

    @cached_property
    def other_bytes(self) -> int:
        """Bytes of a stream besides the weights, from a cached program; 0 if there is none."""
        program = next((p for p in map(self._cached_program, self.study.systems.values()) if p is not None), None)
        if program is None:
            return 0
        parts = [p for p in memory_parts(program) if p["system"] == "packed"]
        return sum(p["bytes"] for p in parts if p["part"] != "weights")

    def _cached_program(self, system: System):
        experiment = self.study.experiment
        there = (experiment.folder(system) / "program.safetensors").is_file()
        return experiment.program(system) if there else None

    def start(self) -> ResourceState:
        return ResourceState("tanh", tuple([5] * len(self.weights)))

    def sqnr_db(self, method: str, layer: int, bits: int) -> float:
        """SQNR of a layer's weights at the best scale, on samples of them; computed once."""
        key = (method, layer, bits)
        if key not in self._sqnr:
            w = self.weights[layer].ravel()
            many, few = (w[np.linspace(0, w.size - 1, min(n, w.size)).astype(np.int64)][None] for n in SAMPLES)
            book = CODEBOOKS[method](bits)
            self._sqnr[key] = rounded_sqnr_db(many, book, best_scale(few, book, False))
        return self._sqnr[key]

    def view(self, state: ResourceState) -> ResourceView:
        """Bytes, MACs and the modelled noise of a state; raises ValueError for another number of layers."""
        if len(state.bits) != len(self.weights):
            raise ValueError(f"this model has {len(self.weights)} layers, got {len(state.bits)} widths")
        sqnr = np.array([self.sqnr_db(state.method, i, b) for i, b in enumerate(state.bits)])
        sizes = [w.size for w in self.weights]
        return ResourceView(
            state,
            tuple(str(i) for i in range(len(sizes))),
            np.array([packed_bytes(w.shape, b) for w, b in zip(self.weights, state.bits, strict=True)]),
            sqnr,
            -10 * float(np.log10(np.sum(10 ** (-sqnr / 10)))),
            sum(sizes),
            self.other_bytes,
            4 * sum(sizes),
            tuple(self.measured.values()),
        )

    def system(self, state: ResourceState) -> System:
        """The post-training system of a state; one width for all layers is the system that others use too."""
        weights = WeightPlan(state.method, max(state.bits))
        mixed = len(set(state.bits)) > 1
        return System("post_training", self.float_system.seed, weights, None, state.bits if mixed else None)

    def evaluate(self, state: ResourceState) -> Measured:
        """Quantize, lower and score a state: threshold from validation, the whole test split by the SDOT kernel.

        Made once and kept on disk like every system.
        """
        experiment, system, start = self.study.experiment, self.system(state), time.perf_counter()
        point = experiment.point(system)
        return self._keep(system.label, system, point, time.perf_counter() - start)

    def read_measured(self) -> None:
        """Take in the integer systems that are scored already."""
        experiment = self.study.experiment
        for name, system in self.study.systems.items():
            scored = any(experiment.folder(system).glob("scores-test-*.npz"))
            if system.kind in ("stage_two", "post_training") and scored:
                self._keep(name, system, experiment.point(system), 0.0)

    def _keep(self, name: str, system: System, point: OperatingPoint, seconds: float) -> Measured:
        parts = memory_parts(self.study.experiment.program(system))
        size = sum(p["bytes"] for p in parts if p["system"] == "packed")
        self.measured[name] = Measured(name, size, point, seconds)
        return self.measured[name]


def draw(v: ResourceView) -> go.Figure:
    """Bytes per layer, modelled noise per layer, and what was measured over bytes."""
    fig = skeleton(
        2,
        2,
        ("Packed weights", "Weight noise (modelled)", "Integer kernel on the test split (measured, 95% intervals)"),
        (("layer", "kilobytes"), ("layer", "SQNR (dB)"), ("kilobytes per stream", "FRR (%)")),
        height=600,
        wide_last=True,
    )
    label = {"texttemplate": "%{customdata} bits", "textposition": "outside", "cliponaxis": False}
    fig.add_bar(name="packed", marker={"color": PALETTE[0]}, showlegend=False, textfont_size=11, row=1, col=1, **label)
    fig.add_bar(name="SQNR", marker={"color": PALETTE[4]}, showlegend=False, row=1, col=2)
    hover = "%{text}<br>%{x:.1f} kB, FRR %{y:.1f}%<br>FDR %{customdata[0]:.1f}%, %{customdata[1]:.3g} FA/h"
    error = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3}
    for name, colour, symbol in (("stage 2", PALETTE[2], "square"), ("post-training", PALETTE[1], "circle")):
        marker = {"color": colour, "size": 10, "symbol": symbol}
        fig.add_scatter(name=name, mode="markers", marker=marker, error_y=error, hovertemplate=hover, row=2, col=1)
    fig.add_scatter(name="these widths", mode="lines", line={"color": PALETTE[3], "dash": "dot"}, row=2, col=1)
    fig.update_yaxes(rangemode="tozero")
    fig.update_xaxes(rangemode="tozero", row=2, col=1)
    fig.update_layout(showlegend=True, legend={"orientation": "h", "x": 0, "y": -0.11, "font": {"size": 12}})
    apply(fig, content(v))
    return fig


def content(v: ResourceView) -> Content:
    """The data of the panels."""
    groups = (
        [m for m in v.measured if m.name.startswith("stage 2")],
        [m for m in v.measured if not m.name.startswith("stage 2")],
    )
    points = [
        {
            "x": [m.bytes / 1000 for m in group],
            "y": [100 * m.point.frr for m in group],
            "text": [text(m.name) for m in group],
            "customdata": [[100 * m.point.fdr, m.point.fa_per_hour] for m in group],
            "error_y.array": [100 * (m.point.frr_high95 - m.point.frr) for m in group],
            "error_y.arrayminus": [100 * (m.point.frr - m.point.frr_low95) for m in group],
        }
        for group in groups
    ]
    here = v.total_bytes / 1000
    top = max([100 * m.point.frr_high95 for m in v.measured], default=10.0)
    share = v.float32_bytes / max(1, int(v.layer_bytes.sum()))
    weights = v.layer_bytes.sum() / 1000
    told = f"{weights:.1f} kB of weights ({share:.1f} × less than float32), {v.sqnr_db:.1f} dB SQNR (modelled)"
    title = f"A width per layer, {text(v.state.method)}: {here:.1f} kB per stream, {v.macs:,} MACs per frame"
    return Content(
        (
            {"x": v.layers, "y": v.layer_bytes / 1000, "customdata": list(v.state.bits)},
            {"x": v.layers, "y": v.layer_sqnr_db},
            *points,
            {"x": [here, here], "y": [0, top]},
        ),
        {"title.text": f"{title}<br><b>{told}</b>", "xaxis.type": "category", "xaxis2.type": "category"},
        alt=f"{title}: {told}.",
    )
