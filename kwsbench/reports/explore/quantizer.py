"""The quantizer explorer's arithmetic: one weight matrix, one method, width and range -> six panels.

The weights are rounded to the method's codebook as they are, without training: ``scale * codebook(w / scale)`` with the
largest level at ``clip``, a share of the largest weight (of each row, with one scale per row). The transfer curve
and the gradient are the method's own forward and backward (quantizers.usage.response), over the matrix that training
moves: for tanh that is P, not the weight.

SQNR over the range and over the width is computed on at most ``SAMPLE`` weights, evenly spread; the figures in the
title on all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
import plotly.graph_objects as go

from kwsbench.arithmetic.codebook import Codebook, check_bits
from kwsbench.models.feedforward import Spotter
from kwsbench.quantizers import CODEBOOKS, QUANTIZERS
from kwsbench.quantizers.attach import QuantizedSpotter
from kwsbench.quantizers.usage import Response, entropy_bits, response
from kwsbench.reports.explore.artifacts import Shelf
from kwsbench.reports.explore.panels import Content, apply, skeleton
from kwsbench.reports.style import INK, PALETTE, text

SAMPLE = 4096
BINS = 80
RANGES = np.round(np.linspace(0.05, 1.5, 30), 4)
X = np.linspace(-2, 2, 401)
SYNTHETIC = "synthetic weights"


@dataclass(frozen=True)
class QuantizerState:
    """What the sliders say. ``clip``: the largest level as a share of the largest weight."""

    method: str = "tanh"
    bits: int = 4
    per_channel: bool = False
    clip: float = 0.6

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.method not in QUANTIZERS:
            raise ValueError(f"unknown quantizer {self.method!r}; choose one of {sorted(QUANTIZERS)}")
        if not self.clip > 0:
            raise ValueError(f"the range is a positive share of the largest weight, got {self.clip}")


@dataclass(frozen=True, eq=False)
class Weights:
    """A matrix to look at, float64 ``[N, K]``, its name, and the state it was trained with, if it was."""

    name: str
    values: np.ndarray
    trained: QuantizerState | None = None

    def peaks(self, per_channel: bool) -> np.ndarray:
        """Largest magnitude, ``[1]`` or ``[N]``; 1 for zero weights."""
        return self._row_peaks if per_channel else np.array([self._row_peaks.max()])

    @cached_property
    def _row_peaks(self) -> np.ndarray:
        peaks = np.abs(self.values).max(axis=1)
        return np.where(peaks > 0, peaks, 1.0)

    @cached_property
    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """At most ``SAMPLE`` weights, evenly spread, and the row of each."""
        at = np.linspace(0, self.values.size - 1, min(SAMPLE, self.values.size)).astype(np.int64)
        return self.values.ravel()[at], at // self.values.shape[1]


@dataclass(frozen=True, eq=False)
class QuantizerView:
    """Arrays of the six panels and the figures of the title."""

    name: str
    state: QuantizerState
    largest: float  # magnitude of the largest weight
    response: Response = field(repr=False)
    centres: np.ndarray  # [BINS], weight
    before_percent: np.ndarray
    after_percent: np.ndarray
    codes: np.ndarray  # [L]
    levels: np.ndarray  # [L], weight (of the row with the largest weight)
    usage_percent: np.ndarray  # [L]
    sqnr_by_range: np.ndarray  # [RANGES], dB
    sqnr_by_bits: np.ndarray  # [8], dB
    sqnr_db: float
    entropy_bits: float
    clipped_percent: float

    @property
    def codes_used(self) -> int:
        return int(np.count_nonzero(self.usage_percent))


def synthetic(name: str = "Gaussian", seed: int = 0) -> Weights:
    """``Gaussian``, ``Laplace`` or ``rows of unequal size``: [128, 512] values of standard deviation 0.05.

    Raises:
        ValueError: another name.
    """
    if name not in DISTRIBUTIONS:
        raise ValueError(f"unknown weights {name!r}; choose one of {', '.join(DISTRIBUTIONS)}")
    values = DISTRIBUTIONS[name](np.random.default_rng(seed))
    return Weights(f"{name} weights", 0.05 * values / values.std())


DISTRIBUTIONS = {
    "Gaussian": lambda rng: rng.standard_normal((128, 512)),
    "Laplace": lambda rng: rng.laplace(size=(128, 512)),
    "rows of unequal size": lambda rng: rng.standard_normal((128, 512)) * np.geomspace(0.2, 5, 128)[:, None],
}


def sources(shelf: Shelf) -> dict[str, list[str]]:
    """What can be looked at: {"synthetic weights": names, a system: its layers, ...}."""
    found = {SYNTHETIC: list(DISTRIBUTIONS)}
    for source, (study, _) in shelf.systems.items():
        found[source] = [f"layer{i}" for i in range(len(study.experiment.spec.model.sizes) - 1)]
    return found


def weights_of(shelf: Shelf, source: str, layer: str) -> Weights:
    """The float weights of a layer: of a quantized system those behind its codes, as it trained them."""
    if source == SYNTHETIC:
        return synthetic(layer)
    if source not in shelf.systems:
        raise ValueError(f"nothing is cached under the name {source!r}; there is {', '.join(sources(shelf))}")
    study, name = shelf.systems[source]
    model = study.experiment.model(study.systems[name])
    return _layer(model, int(layer.removeprefix("layer")), f"{name}, {layer}")


def float_weights(model: Spotter) -> list[np.ndarray]:
    """The dense weights of a float model, float64 ``[N, K]`` each."""
    named = dict(model.named_parameters())
    return [named[f"dense.{i}.weight"].detach().cpu().double().numpy() for i in range(len(model.dense))]


def _layer(model: Spotter | QuantizedSpotter, i: int, name: str) -> Weights:
    if isinstance(model, Spotter):
        return Weights(name, float_weights(model)[i])
    q = model.quantizer(i)
    values = q.latent().detach().cpu().double().numpy()
    largest = q.step().detach().cpu().double().numpy() * float(np.max(q.codebook.levels) / (q.codebook.step or 1))
    # One scale: the trained one. One per row: the rows' mean, since the explorer moves them together.
    peaks = np.abs(values).max(axis=1) if q.per_channel else np.array([np.abs(values).max()])
    clip = float(np.clip(np.mean(largest / np.where(peaks > 0, peaks, 1.0)), RANGES[0], RANGES[-1]))
    return Weights(name, values, QuantizerState(q.method, q.bits, q.per_channel, clip))


def view(weights: Weights, state: QuantizerState) -> QuantizerView:
    """Everything that the panels show of a state."""
    book = _codebook(state.method, state.bits)
    w, peaks = weights.values, weights.peaks(state.per_channel)
    scale = (state.clip * peaks / np.max(np.abs(book.levels)))[:, None]
    index = book.encode(w / scale)
    quantized = scale * book.decode(index)
    counts = np.bincount(index.ravel(), minlength=len(book.levels))
    largest = float(weights.peaks(False)[0])
    window = (-largest * max(1.0, state.clip), largest * max(1.0, state.clip))
    shares = [100 * np.histogram(a, BINS, window)[0] / w.size for a in (w, quantized)]
    edges = np.linspace(*window, BINS + 1)
    assert book.codes is not None
    return QuantizerView(
        name=weights.name,
        state=state,
        largest=largest,
        response=_response(state.method, state.bits),
        centres=(edges[1:] + edges[:-1]) / 2,
        before_percent=shares[0],
        after_percent=shares[1],
        codes=book.codes,
        levels=book.levels * float(scale.max()),
        usage_percent=100 * counts / w.size,
        sqnr_by_range=np.array([_sampled_sqnr_db(weights, replace(state, clip=float(c))) for c in RANGES]),
        sqnr_by_bits=np.array([_sampled_sqnr_db(weights, replace(state, bits=b)) for b in range(1, 9)]),
        sqnr_db=_sqnr_db(w, quantized),
        entropy_bits=entropy_bits(counts),
        clipped_percent=100 * float(np.mean(np.abs(w) > state.clip * peaks[:, None] * (1 + 1e-12))),
    )


# Of the method alone: asked for again at every move of the range.
_codebook = lru_cache(maxsize=64)(lambda method, bits: CODEBOOKS[method](bits))
_response = lru_cache(maxsize=64)(lambda method, bits: response(method, bits, X))


def _sampled_sqnr_db(weights: Weights, state: QuantizerState) -> float:
    book: Codebook = _codebook(state.method, state.bits)
    w, rows = weights.sample
    peaks = weights.peaks(state.per_channel)
    scale = state.clip * (peaks[rows] if state.per_channel else peaks) / np.max(np.abs(book.levels))
    return _sqnr_db(w, scale * book.quantize(w / scale))


def _sqnr_db(w: np.ndarray, quantized: np.ndarray) -> float:
    """As quantizers.scales.sqnr_db, and 0 dB for zero weights."""
    noise, signal = float(np.sum((w - quantized) ** 2)), float(np.sum(w**2))
    return 0.0 if signal == 0 else math.inf if noise == 0 else 10 * math.log10(signal / noise)


def draw(v: QuantizerView) -> go.Figure:
    """The six panels as a figure."""
    fig = skeleton(
        3,
        2,
        (
            "Transfer curve",
            "Gradient in training",
            "Weights",
            "Codebook usage",
            "SQNR over the range",
            "SQNR over bits",
        ),
        (
            ("trained value / range", "weight"),
            ("trained value / range", "d(weight) / d(trained)"),
            ("weight", "share (%)"),
            ("code", "share (%)"),
            ("range / largest weight", "SQNR (dB)"),
            ("bits", "SQNR (dB)"),
        ),
        height=760,
    )
    line = {"color": PALETTE[1], "width": 2}
    thin = {"color": PALETTE[0], "width": 1.5, "dash": "dot"}
    point = {"mode": "markers", "marker": {"size": 11, "color": PALETTE[1], "symbol": "diamond"}}
    curve = {"color": PALETTE[0], "width": 2}
    fig.add_scatter(name="float weight behind it", mode="lines", line=thin, row=1, col=1)
    fig.add_scatter(name="quantized weight", mode="lines", line=line, row=1, col=1)
    fig.add_scatter(name="gradient", mode="lines", line=line, row=1, col=2)
    fig.add_bar(name="before", marker={"color": PALETTE[5], "line": {"width": 0}}, row=2, col=1)
    fig.add_scatter(name="after", mode="lines", line=line | {"shape": "hvh"}, row=2, col=1)
    fig.add_bar(name="weights on the code", marker={"color": PALETTE[1], "line": {"width": 0}}, row=2, col=2)
    fig.add_scatter(name="SQNR", mode="lines", line=curve, row=3, col=1)
    fig.add_scatter(name="chosen", **point, row=3, col=1)
    fig.add_scatter(name="SQNR", mode="lines+markers", line=curve, row=3, col=2)
    fig.add_scatter(name="chosen", **point, row=3, col=2)
    fig.update_xaxes(dtick=1, row=3, col=2)
    fig.update_yaxes(rangemode="tozero", row=1, col=2)
    # Six small legends would cover the data: two words in the panels' own titles say what is what.
    fig.layout.annotations[0].text = "Transfer: <b>quantized</b>, dotted: float behind it"
    fig.layout.annotations[2].text = "Weights: bars before, <b>line after</b>"
    fig.update_annotations(font_color=INK)
    apply(fig, content(v))
    return fig


def content(v: QuantizerView) -> Content:
    """The data of the panels."""
    s, clip = v.state, v.state.clip * v.largest
    window = [1.08 * x for x in (-v.largest, v.largest)]
    scale = "per row" if s.per_channel else "per tensor"
    told = (
        f"{v.sqnr_db:.1f} dB SQNR, {v.codes_used} of {len(v.codes)} codes used, entropy {v.entropy_bits:.2f} bits, "
        f"{v.clipped_percent:.2g}% of weights clipped"
    )
    title = f"{text(v.name)} on {s.bits}-bit {s.method}, scale {scale}, range {s.clip:.2f} × largest"
    here = min(v.sqnr_by_bits[s.bits - 1], 200.0)
    return Content(
        (
            {"x": v.response.x, "y": v.response.latent * clip},
            {"x": v.response.x, "y": v.response.output * clip},
            {"x": v.response.x, "y": v.response.gradient},
            {"x": v.centres, "y": v.before_percent},
            {"x": v.centres, "y": v.after_percent},
            {"x": v.codes.astype(np.int32), "y": v.usage_percent},
            {"x": RANGES, "y": v.sqnr_by_range},
            {"x": [s.clip], "y": [_sampled_at(v)]},
            {"x": np.arange(1, 9), "y": v.sqnr_by_bits},
            {"x": [s.bits], "y": [here]},
        ),
        {"title.text": f"{title}<br><b>{told}</b>", "yaxis.range": window},
        alt=f"{title}: {told}.",
    )


def _sampled_at(v: QuantizerView) -> float:
    """The height of the curve over the range at the chosen range."""
    return float(np.interp(v.state.clip, RANGES, np.minimum(v.sqnr_by_range, 200.0)))
