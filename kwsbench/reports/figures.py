"""Plotly figures from plain arrays and DET curves, in one style (reports.style), with units on every axis.

They stay small: curves keep the points without which they would look otherwise, distributions are counted before
they are drawn, sound is drawn by its envelope. No figure carries a raw weight matrix or recording.

DET axes (the conventions of metrics.det):

- ``linear``: FRR over false accepts per hour.
- ``log``: the same over a logarithmic axis of false accepts per hour.
- ``probit``: FRR over the share of negative *clips* accepted, both on normal-deviate axes (a rate per hour
  is no probability and has no such axis). Two normal score distributions give a straight line.
- ``fdr``: FRR over the false discovery rate of clips.

A count of zero has no place on a logarithmic or probit axis: it is drawn at half a count, on a tick marked
``<`` with the value of one count. On probit axes a share of all is drawn half a count below 100%.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.special import ndtri

from kwsbench.metrics.compare import wilson_interval
from kwsbench.metrics.det import DetCurve, OperatingPoint
from kwsbench.reports.style import COLOUR_SCALE, GRID, HEIGHT_PX, INK, PALETTE, figure, series, text

MAX_POINTS = 150  # of a history
HOVER_POINTS = 40  # of a DET curve, beside its corners: where a pointer finds values
TOLERANCE = 0.001  # of the axis, less than a pixel: what a thinned curve may be off
DET_TOLERANCE = 0.002  # of a DET curve, whose line is wider than that
MANTISSA_BITS = 12  # of a DET curve's coordinates: a fortieth of a percent, and half the bytes once packed
MAX_FRAMES = 400  # columns of a sound's envelope
MAX_COLUMNS = 250  # of a heat map
MAX_BANDS = 64  # of a spectrogram
TICK_SPACING = 0.13  # of the axis: labels do not collide on a page of 390 px
FRR_TITLE = "false rejects (FRR, %)"
FA_TITLE = "false accepts per hour of negative audio"


# ------------------------------------------------------------------------------------------------ DET


def det_figure(
    curves: Mapping[str, DetCurve],
    axes: str = "log",
    points: Mapping[str, OperatingPoint] | None = None,
    target_frr: float | None = 0.05,
    title: str = "",
) -> go.Figure:
    """DET curves by name, lower left is better.

    Args:
        axes: "linear", "log", "probit" or "fdr" (module docstring).
        points: operating points drawn with 95% intervals, in the colour of the curve of the same name.
        target_frr: a dotted line at this FRR; None for no line.

    Raises:
        ValueError: no curve, unknown axes, or axes of clips without negative clips.
    """
    if not curves:
        raise ValueError("a DET figure needs at least one curve")
    if axes not in DET_AXES:
        raise ValueError(f"unknown DET axes {axes!r}; choose one of {sorted(DET_AXES)}")
    x_axis, y_axis = DET_AXES[axes](list(curves.values()))
    keywords = ", ".join(sorted({c.keyword for c in curves.values()}))
    title = title or f"Misses against false accepts: {keywords}"
    fig = figure(title, x_axis.title, y_axis.title, f"{title}. {len(curves)} curves: {', '.join(curves)}.")
    for i, (name, curve) in enumerate(curves.items()):
        x, y = x_axis.place(x_axis.of_curve(curve)), y_axis.place(y_axis.of_curve(curve))
        kept = _det_points(np.clip(x, *x_axis.window), np.clip(y, *y_axis.window))
        style = series(i)
        fig.add_scatter(
            x=_rounded(x[kept]),
            y=_rounded(y[kept]),
            name=text(name),
            mode="lines",
            line={"color": style.colour, "dash": style.dash, "width": 2.5},
            customdata=_compact(_hover_columns(curve)[kept]),
            hovertemplate=_hover_template(curve),
        )
        if points and name in points:
            _add_point(fig, name, points[name], x_axis, y_axis, i)
    if target_frr is not None:
        level = float(y_axis.place(np.array([100 * target_frr]))[0])
        fig.add_hline(y=level, line={"dash": "dot", "width": 1.5, "color": INK})
        _add_note(fig, f"FRR {100 * target_frr:g}%", level)
    fig.update_xaxes(x_axis.layout())
    fig.update_yaxes(y_axis.layout())
    fig.update_layout(showlegend=True)
    return fig


@dataclass(frozen=True, eq=False)
class DetAxis:
    """One axis of a DET plot: what it shows, and where a value lies on the screen."""

    title: str
    of_curve: Callable[[DetCurve], np.ndarray]
    of_point: Callable[[OperatingPoint], tuple[float, float, float]]  # value, low and high of 95%
    place: Callable[[np.ndarray], np.ndarray]
    window: tuple[float, float]  # shown at first, in screen coordinates
    ticks: tuple[np.ndarray, list[str]] | None = None  # screen coordinates and labels; None: Plotly's own

    def layout(self) -> dict:
        """The axis as Plotly's layout."""
        layout: dict = {"range": [float(v) for v in self.window]}
        if self.ticks is not None:
            layout |= {
                "tickmode": "array",
                "tickangle": 0,
                "tickvals": self.ticks[0].tolist(),
                "ticktext": self.ticks[1],
            }
        return layout


def _linear_axes(curves: list[DetCurve]) -> tuple[DetAxis, DetAxis]:
    # As far as the curves reach at 10% FRR, but not so far that a hopeless system hides the good ones.
    at_ten = [float(np.min(c.fa_per_hour[c.frr <= max(0.10, c.frr[0])])) for c in curves]
    floor = min(1 / c.negative_hours for c in curves)
    reach = max(min(1.3 * max(at_ten), 20 * min(at_ten)), 5 * floor)
    return _fa_axis(_identity, (0.0, reach)), _frr_axis(_identity, (0.0, 30.0))


def _log_axes(curves: list[DetCurve]) -> tuple[DetAxis, DetAxis]:
    one = min(1 / c.negative_hours for c in curves)
    largest = max(float(c.fa_per_hour.max()) for c in curves)
    place = _floored(np.log10, one / 2)
    top = float(place(np.array([2 * max(largest, one)]))[0])
    window = (float(np.log10(one / 2)) - 0.05, top)
    decades = 10.0 ** np.arange(np.floor(np.log10(one)), np.ceil(top) + 1)
    steps = (1, 2, 5) if top - window[0] < 3 else (1,)
    values = np.sort(np.concatenate([decades * s for s in steps]))
    ticks = _ticks(place, values[values > one], one, window)
    return _fa_axis(place, window, ticks), _frr_axis(_identity, (0.0, 30.0))


def _probit_axes(curves: list[DetCurve]) -> tuple[DetAxis, DetAxis]:
    _need_clips(curves)
    x_one = 100 / max(c.n_negative_clips for c in curves)
    y_one = 100 / max(c.n_positives for c in curves)
    axes = []
    for one in (x_one, y_one):
        place = _floored(_probit, one / 2)
        values = np.array([0.01, 0.1, 1, 5, 20, 40, 60])
        window = (float(_probit(np.array(one / 2))) - 0.1, float(_probit(np.array(60.0))))
        axes.append((place, window, _ticks(place, values[values > one], one, window)))
    x_axis = DetAxis(
        "negative clips accepted (%)",
        lambda c: 100 * c.clip_far,
        lambda p: _percent_interval(p.false_accepts, p.n_negative_clips),
        *axes[0],
    )
    return x_axis, _frr_axis(*axes[1])


def _fdr_axes(curves: list[DetCurve]) -> tuple[DetAxis, DetAxis]:
    _need_clips(curves)
    at_ten = [float(np.nanmin(100 * c.fdr[c.frr <= max(0.10, c.frr[0])])) for c in curves]
    x_axis = DetAxis(
        "false discovery rate (FDR, % of accepted clips)",
        lambda c: 100 * np.nan_to_num(c.fdr),
        lambda p: _percent_interval(p.false_accepts, p.false_accepts + p.true_accepts),
        _identity,
        (0.0, min(100.0, max(10.0, 1.4 * max(at_ten)))),
    )
    return x_axis, _frr_axis(_identity, (0.0, 30.0))


DET_AXES: dict[str, Callable[[list[DetCurve]], tuple[DetAxis, DetAxis]]] = {
    "linear": _linear_axes,
    "log": _log_axes,
    "probit": _probit_axes,
    "fdr": _fdr_axes,
}


def _fa_axis(place, window, ticks=None) -> DetAxis:
    return DetAxis(
        FA_TITLE,
        lambda c: c.fa_per_hour,
        lambda p: (p.fa_per_hour, p.fa_per_hour_low95, p.fa_per_hour_high95),
        place,
        window,
        ticks,
    )


def _frr_axis(place, window, ticks=None) -> DetAxis:
    return DetAxis(
        FRR_TITLE,
        lambda c: 100 * c.frr,
        lambda p: (100 * p.frr, 100 * p.frr_low95, 100 * p.frr_high95),
        place,
        window,
        ticks,
    )


def _identity(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64)


def _probit(percent: np.ndarray) -> np.ndarray:
    return ndtri(np.asarray(percent, np.float64) / 100)


def _floored(place: Callable, floor: float) -> Callable:
    """``place`` for values at or below ``floor`` too: they lie on the floor; a share stays below 100%."""
    top = 100 - floor if place is _probit else np.inf
    return lambda values: place(np.clip(values, floor, top))


def _ticks(
    place: Callable, values: np.ndarray, one: float, window: tuple[float, float]
) -> tuple[np.ndarray, list[str]]:
    """Ticks at ``values``, and one on the floor, where zero counts lie: ``<`` the value of one count.

    Ticks closer than ``TICK_SPACING`` of the window to the one before are left out.
    """
    at, labels = [float(place(np.array(one / 2)))], [f"<{_short(one)}"]
    for value in values:
        screen = float(place(np.array(value)))
        if screen - at[-1] >= TICK_SPACING * (window[1] - window[0]) and screen <= window[1]:
            at.append(screen)
            labels.append(_short(value))
    return np.array(at), labels


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _percent_interval(count: int, n: int) -> tuple[float, float, float]:
    if n == 0:
        return 0.0, 0.0, 100.0
    low, high = wilson_interval(count, n)
    return 100 * count / n, 100 * low, 100 * high


def _need_clips(curves: list[DetCurve]) -> None:
    for curve in curves:
        if curve.n_negative_clips == 0:
            raise ValueError(f"{curve.system!r} has no negative clips: use the axes 'linear' or 'log'")


def _det_points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the points that are drawn: those that shape the curve, and some for the pointer between them."""
    return np.union1d(corners(x, y, DET_TOLERANCE), thin(x, y, HOVER_POINTS))


def _hover_columns(curve: DetCurve) -> np.ndarray:
    """threshold, misses, events, clips accepted: [T, 4]."""
    return np.column_stack(
        [np.round(1024 * curve.thresholds) / 1024, curve.misses, curve.false_accepts, curve.clip_false_accepts]
    )


def _hover_template(curve: DetCurve) -> str:
    return (
        "threshold %{customdata[0]:.3f}<br>"
        f"%{{customdata[1]:.0f}} of {curve.n_positives} keywords missed<br>"
        f"%{{customdata[2]:.0f}} false accepts in {curve.negative_hours:.3g} h<br>"
        f"%{{customdata[3]:.0f}} of {curve.n_negative_clips} negative clips accepted"
    )


def _add_point(fig: go.Figure, name: str, point: OperatingPoint, x_axis: DetAxis, y_axis: DetAxis, i: int) -> None:
    (x, x_low, x_high), (y, y_low, y_high) = (
        axis.place(np.array(axis.of_point(point))).tolist() for axis in (x_axis, y_axis)
    )
    style = series(i)
    bar = {"type": "data", "symmetric": False, "color": style.colour, "thickness": 1.5}
    fig.add_scatter(
        x=[x],
        y=[y],
        error_x=bar | {"array": [x_high - x], "arrayminus": [x - x_low]},
        error_y=bar | {"array": [y_high - y], "arrayminus": [y - y_low]},
        mode="markers",
        marker={"color": style.colour, "symbol": style.marker, "size": 10},
        name=text(f"{name}: operating point"),
        showlegend=False,
        hovertemplate=(
            f"threshold {point.threshold:.3f}, chosen on validation<br>"
            f"FRR {100 * point.frr:.2f}% ({point.misses} of {point.n_positives})<br>"
            f"FA/h {point.fa_per_hour:.3g} ({point.events} in {point.hours:.3g} h)"
        ),
    )


# ----------------------------------------------------------------------------------------- quantizers


def transfer_figure(
    x: np.ndarray,
    curves: Mapping[str, np.ndarray],
    title: str = "Transfer curves",
    x_title: str = "input / scale",
    y_title: str = "quantized / scale",
) -> go.Figure:
    """Quantizer outputs over the input ``x`` [n] (ascending). Steps keep their corners."""
    fig = figure(title, x_title, y_title)
    x = np.asarray(x, np.float64)
    for i, (name, y) in enumerate(curves.items()):
        y = np.asarray(y, np.float64)
        kept = corners(x, y, TOLERANCE)
        style = series(i)
        fig.add_scatter(
            x=_compact(x[kept]),
            y=_compact(y[kept]),
            name=text(name),
            mode="lines",
            line={"color": style.colour, "dash": style.dash, "width": 2},
        )
    fig.update_layout(showlegend=len(curves) > 1)
    return fig


def weight_histogram(
    before: np.ndarray,
    after: np.ndarray,
    levels: np.ndarray,
    names: tuple[str, str] = ("before", "after"),
    title: str = "Weights before and after",
    bins: int = 80,
) -> go.Figure:
    """Shares of weights per bin, before and after training, and where the levels lie. Counted here."""
    before, after, levels = (np.asarray(a, np.float64).ravel() for a in (before, after, levels))
    if before.size == 0 or after.size == 0:
        raise ValueError("a histogram needs weights")
    low = min(before.min(), after.min(), levels.min())
    high = max(before.max(), after.max(), levels.max())
    edges = np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.5, low + 0.5])
    fig = figure(
        title, "weight", "share of weights per bin (%)",
        f"{title}: two histograms and {len(levels)} levels from {low:.3g} to {high:.3g}.",
    )  # fmt: skip
    shares = [100 * np.histogram(w, edges)[0] / len(w) for w in (before, after)]
    top = float(max(share.max() for share in shares))
    fig.add_bar(
        x=_compact((edges[1:] + edges[:-1]) / 2),
        y=_compact(shares[0]),
        name=text(names[0]),
        marker={"color": PALETTE[5], "line": {"width": 0}},
    )
    # An outline: two filled histograms over each other make a third colour.
    fig.add_scatter(
        x=_compact(edges),
        y=_compact(np.append(shares[1], shares[1][-1])),
        line={"shape": "hv", "color": PALETTE[1], "width": 2},
        mode="lines",
        name=text(names[1]),
    )
    # Few levels are drawn as lines through the plot, many as short ticks.
    height = top if len(levels) <= 32 else top / 12
    fig.add_scatter(
        x=np.repeat(levels, 3).astype(np.float32),
        y=np.tile([0.0, height, np.nan], len(levels)).astype(np.float32),
        mode="lines",
        line={"color": INK, "width": 1.2},
        name=f"{len(levels)} levels",
        hoverinfo="skip",
    )
    fig.update_layout(bargap=0)
    return fig


def codebook_usage(codes: np.ndarray, counts: np.ndarray, title: str = "Codebook usage") -> go.Figure:
    """Share of weights on each code, and the entropy: how much of the width is used."""
    counts = np.asarray(counts, np.float64)
    if len(codes) != len(counts) or counts.sum() <= 0:
        raise ValueError(f"codes and counts must match and not be empty, got {len(codes)} and {counts.sum():g}")
    share = counts / counts.sum()
    used = share[share > 0]
    entropy = float(-(used * np.log2(used)).sum())
    told = f"{len(used)} of {len(codes)} codes used; entropy {entropy:.2f} of {np.log2(len(codes)):.2f} bits"
    fig = figure(title, "code", "share of weights (%)", f"{title}: {told}.")
    fig.add_bar(x=[int(c) for c in codes], y=_compact(100 * share), marker={"color": PALETTE[0]}, name="share")
    fig.add_annotation(
        text=told, x=0, xref="paper", xanchor="left", y=1, yref="paper", yanchor="bottom", showarrow=False,
        font={"size": 12},
    )  # fmt: skip
    if len(codes) <= 16:
        fig.update_xaxes(tickvals=[int(c) for c in codes])
    fig.update_layout(showlegend=False)
    return fig


def sqnr_figure(
    bits: Sequence[int], curves: Mapping[str, Sequence[float]], title: str = "Signal to quantization noise"
) -> go.Figure:
    """SQNR in dB over the width, one line per method."""
    fig = figure(title, "width (bits)", "SQNR (dB)")
    _add_lines(fig, list(bits), curves)
    fig.update_xaxes(dtick=1)
    return fig


# ------------------------------------------------------------------------------------ training, bars


def training_figure(histories: Mapping[str, Mapping[str, Sequence[float]]], title: str = "Training") -> go.Figure:
    """Loss (logarithmic) and error over the steps, one line per stage or seed.

    Each history holds ``step``, ``loss`` and ``error`` (share of windows), of equal length; long ones are
    drawn as means of neighbours.
    """
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    house = figure(title, "", "", f"{title}: loss and error of {', '.join(histories)}.").layout
    fig.layout.template = None  # else Plotly's own template is merged into the house's, and travels along
    fig.update_layout(house)
    for i, (name, history) in enumerate(histories.items()):
        step = _compact(_block_means(history["step"], MAX_POINTS))
        style = series(i)
        for row, key, factor in ((1, "loss", 1), (2, "error", 100)):
            fig.add_scatter(
                x=step,
                y=_compact(factor * _block_means(history[key], MAX_POINTS)),
                name=text(name),
                legendgroup=name,
                showlegend=row == 1,
                mode="lines",
                line={"color": style.colour, "width": 2},
                row=row,
                col=1,
            )
    # Plotly's own ticks between decades would be bare digits.
    ticks = [digit * 10.0**decade for decade in range(-6, 3) for digit in (1, 2, 5)]
    labels = [f"{tick:.6f}".rstrip("0").rstrip(".") for tick in ticks]
    fig.update_yaxes(title_text="loss (nats)", type="log", tickvals=ticks, ticktext=labels, row=1, col=1)
    fig.update_yaxes(title_text="wrong windows (%)", rangemode="tozero", row=2, col=1)
    fig.update_xaxes(title_text="training step", row=2, col=1)
    fig.update_layout(height=HEIGHT_PX + 100)
    return fig


def bars(
    labels: Sequence[str],
    groups: Mapping[str, Sequence[float]],
    y_title: str,
    title: str = "",
    x_title: str = "",
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> go.Figure:
    """Grouped bars; ``intervals`` gives (low, high) of a group's bars. A missing value is None."""
    fig = figure(title, x_title, y_title)
    for i, (name, values) in enumerate(groups.items()):
        if len(values) != len(labels):
            raise ValueError(f"{len(labels)} labels, but {len(values)} values of {name!r}")
        error = None
        if intervals and name in intervals:
            pairs = [
                (0.0, 0.0) if v is None else (v - low, high - v)
                for v, (low, high) in zip(values, intervals[name], strict=True)
            ]
            error = {
                "type": "data",
                "symmetric": False,
                "array": [p[1] for p in pairs],
                "arrayminus": [p[0] for p in pairs],
                "color": INK,
                "thickness": 1.5,
            }
        fig.add_bar(
            x=[text(label) for label in labels],
            y=list(values),
            name=text(name),
            error_y=error,
            marker={"color": PALETTE[i % len(PALETTE)]},
        )
    fig.update_layout(barmode="group", showlegend=len(groups) > 1)
    return fig


def histogram(
    groups: Mapping[str, Sequence[float] | np.ndarray], x_title: str, title: str = "", bins: int = 20
) -> go.Figure:
    """Shares of values per bin, counted here; groups share their bins. Not-finite values are left out."""
    arrays = {name: np.asarray(values, np.float64).ravel() for name, values in groups.items()}
    arrays = {name: a[np.isfinite(a)] for name, a in arrays.items()}
    if not arrays or any(a.size == 0 for a in arrays.values()):
        raise ValueError(f"a histogram needs values; empty: {', '.join(n for n, a in arrays.items() if not a.size)}")
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins)
    fig = figure(title, x_title, "share of values (%)")
    for i, (name, a) in enumerate(arrays.items()):
        counts = np.histogram(a, edges)[0]
        fig.add_bar(
            x=_compact((edges[1:] + edges[:-1]) / 2),
            y=_compact(100 * counts / a.size),
            name=text(name),
            marker={"color": PALETTE[i % len(PALETTE)]},
            customdata=counts,
            hovertemplate=f"%{{customdata}} of {a.size}<extra></extra>",
        )
    fig.update_layout(bargap=0.05, height=300, showlegend=len(arrays) > 1)
    return fig


def lines(
    x: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    x_title: str,
    y_title: str,
    title: str = "",
) -> go.Figure:
    """Lines with markers over common x values."""
    fig = figure(title, x_title, y_title)
    _add_lines(fig, list(x), curves)
    return fig


# --------------------------------------------------------------------------------------------- sound


def waveform(
    audio: np.ndarray,
    sample_rate: int,
    title: str = "Waveform",
    spans: Sequence[tuple[float, float, str]] = (),
) -> go.Figure:
    """Envelope (least and largest sample of each stretch) of audio [n].

    ``spans`` are (start in seconds, end in seconds, name).
    """
    audio = np.asarray(audio, np.float32)
    width = max(1, -(-len(audio) // MAX_FRAMES))
    blocks = np.pad(audio, (0, -len(audio) % width), mode="edge").reshape(-1, width)
    fig = figure(title, "time (s)", "level (full scale 1)")
    for edge, fill in ((blocks.max(axis=1), None), (blocks.min(axis=1), "tonexty")):
        fig.add_scatter(
            x0=width / sample_rate / 2,
            dx=width / sample_rate,
            y=_compact(edge),
            fill=fill,
            mode="lines",
            line={"color": PALETTE[0], "width": 1},
            hoverinfo="skip",
            showlegend=False,
        )
    _add_spans(fig, spans)
    fig.update_layout(height=300)
    return fig


def feature_heatmap(
    features: np.ndarray,
    frame_seconds: float,
    title: str = "Log-mel energies",
    spans: Sequence[tuple[float, float, str]] = (),
) -> go.Figure:
    """Log-mel features [frames, n_mels] over time; long ones are drawn as means of neighbours."""
    features = np.asarray(features, np.float64)
    factor = max(1, -(-len(features) // MAX_COLUMNS))
    pooled = np.stack([_block_means(band, MAX_COLUMNS) for band in features.T])
    fig = figure(title, "time (s)", "mel band (from 0)")
    fig.add_heatmap(
        z=_compact(pooled),
        x0=frame_seconds * factor / 2,
        dx=frame_seconds * factor,
        colorscale=COLOUR_SCALE,
        colorbar={"title": {"text": "ln power", "side": "right"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="%{x:.2f} s, band %{y}<br>ln power %{z:.2f}<extra></extra>",
    )
    _add_spans(fig, spans)
    fig.update_layout(height=320)
    return fig


def spectrogram(audio: np.ndarray, sample_rate: int, title: str = "Spectrogram") -> go.Figure:
    """Power in dB of 25 ms Hann windows every 10 ms, pooled to ``MAX_COLUMNS`` columns and ``MAX_BANDS`` bands."""
    audio = np.asarray(audio, np.float64)
    window, hop = round(0.025 * sample_rate), round(0.010 * sample_rate)
    if len(audio) < window:
        raise ValueError(f"a spectrogram needs at least {window} samples, got {len(audio)}")
    frames = np.lib.stride_tricks.sliding_window_view(audio, window)[::hop] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, 512)[:, :256]) ** 2
    power = power.reshape(len(power), MAX_BANDS, -1).mean(axis=2)
    factor = max(1, -(-len(power) // MAX_COLUMNS))
    level_db = 10 * np.log10(np.stack([_block_means(band, MAX_COLUMNS) for band in power.T]) + 1e-10)
    fig = figure(title, "time (s)", "frequency (kHz)")
    fig.add_heatmap(
        z=np.round(level_db).clip(-128, 127).astype(np.int8),
        x0=0.0125 + 0.01 * (factor - 1) / 2,
        dx=0.01 * factor,
        y0=sample_rate / (4 * MAX_BANDS) / 1000,
        dy=sample_rate / (2 * MAX_BANDS) / 1000,
        zmin=float(level_db.max()) - 80,
        colorscale=COLOUR_SCALE,
        colorbar={"title": {"text": "power (dB)", "side": "right"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="%{x:.2f} s, %{y:.2f} kHz<br>%{z:.0f} dB<extra></extra>",
    )
    fig.update_layout(height=320)
    return fig


def score_figure(
    scores: Mapping[str, np.ndarray],
    frame_seconds: float,
    threshold: float | None = None,
    title: str = "Keyword scores",
    spans: Sequence[tuple[float, float, str]] = (),
) -> go.Figure:
    """Frame scores over time, one line per system, and the threshold."""
    fig = figure(title, "time (s)", "score (log odds)")
    for i, (name, values) in enumerate(scores.items()):
        seconds = np.arange(len(values)) * frame_seconds
        kept = corners(seconds, np.asarray(values, np.float64), TOLERANCE)
        style = series(i)
        fig.add_scatter(
            x=_compact(seconds[kept]),
            y=_compact(np.asarray(values)[kept]),
            name=text(name),
            mode="lines",
            line={"color": style.colour, "dash": style.dash, "width": 2},
        )
    if threshold is not None:
        fig.add_hline(y=threshold, line={"dash": "dot", "width": 1.5, "color": INK})
        _add_note(fig, f"threshold {threshold:.2f}", threshold)
    _add_spans(fig, spans)
    fig.update_layout(showlegend=len(scores) > 1)
    return fig


# ------------------------------------------------------------------------------------------- thinning


def thin(x: np.ndarray, y: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most ``most`` points of a curve, evenly spaced along it on the screen; ends are kept.

    Points that repeat their predecessor are dropped first.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) == 0:
        return np.empty(0, np.int64)
    moved = np.concatenate([[True], (np.diff(x) != 0) | (np.diff(y) != 0)])
    moved[-1] = True
    kept = np.flatnonzero(moved)
    if len(kept) <= most:
        return kept
    width, height = np.ptp(x) or 1.0, np.ptp(y) or 1.0
    length = np.hypot(np.diff(x[kept]) / width, np.diff(y[kept]) / height)
    along = np.concatenate([[0.0], np.cumsum(length)])
    picked = np.searchsorted(along, np.linspace(0, along[-1], most)).clip(0, len(kept) - 1)
    picked[-1] = len(kept) - 1
    return kept[np.unique(picked)]


def corners(x: np.ndarray, y: np.ndarray, tolerance: float) -> np.ndarray:
    """Indices of points whose polyline stays within ``tolerance`` of the curve, a share of its height and width.

    The method of Ramer (1972) and of Douglas and Peucker (1973): the farthest point of a stretch is kept until none
    is farther than the tolerance. Corners of steps stay where they are; straight stretches keep their ends.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n = len(x)
    if n < 3:
        return np.arange(n)
    u, v = (x - x.min()) / (np.ptp(x) or 1.0), (y - y.min()) / (np.ptp(y) or 1.0)
    kept = np.zeros(n, bool)
    kept[[0, -1]] = True
    stretches = [(0, n - 1)]
    while stretches:
        first, last = stretches.pop()
        if last - first < 2:
            continue
        inner = slice(first + 1, last)
        du, dv = u[last] - u[first], v[last] - v[first]
        pu, pv = u[inner] - u[first], v[inner] - v[first]
        square = du * du + dv * dv
        along = ((pu * du + pv * dv) / square).clip(0, 1) if square else np.zeros(len(pu))
        away = np.hypot(pu - along * du, pv - along * dv)
        farthest = int(np.argmax(away))
        if away[farthest] > tolerance:
            middle = first + 1 + farthest
            kept[middle] = True
            stretches += [(first, middle), (middle, last)]
    return np.flatnonzero(kept)


def _block_means(values: Sequence[float] | np.ndarray, most: int) -> np.ndarray:
    """Means of equal runs of neighbours, at most ``most`` of them; the last run may be shorter."""
    array = np.asarray(values, np.float64)
    width = max(1, -(-len(array) // most))
    starts = np.arange(0, len(array), width)
    if len(starts) == 0:
        return array
    return np.add.reduceat(array, starts) / np.diff(np.append(starts, len(array)))


def _compact(values: np.ndarray) -> np.ndarray:
    """float32: Plotly sends it as base64, a quarter of the text of float64 digits."""
    return np.ascontiguousarray(values, np.float32)


def _rounded(values: np.ndarray) -> np.ndarray:
    """The same with ``MANTISSA_BITS`` of precision: bytes of zeros, which a packed page does not pay for."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    return _compact(np.ldexp(np.round(mantissa * 2**MANTISSA_BITS) / 2**MANTISSA_BITS, exponent))


def _add_lines(fig: go.Figure, x: list, curves: Mapping[str, Sequence[float]]) -> None:
    for i, (name, values) in enumerate(curves.items()):
        if len(values) != len(x):
            raise ValueError(f"{len(x)} x values, but {len(values)} values of {name!r}")
        style = series(i)
        fig.add_scatter(
            x=x,
            y=_compact(np.array(values, np.float64)),
            name=text(name),
            mode="lines+markers",
            line={"color": style.colour, "dash": style.dash, "width": 2},
            marker={"symbol": style.marker, "size": 8},
        )
    fig.update_layout(showlegend=len(curves) > 1)


def _add_note(fig: go.Figure, note: str, y: float) -> None:
    """A small note at the right end of a horizontal line."""
    fig.add_annotation(
        text=note,
        x=1,
        xref="paper",
        xanchor="right",
        y=y,
        yanchor="bottom",
        showarrow=False,
        font={"size": 12},
    )


def _add_spans(fig: go.Figure, spans: Sequence[tuple[float, float, str]]) -> None:
    for i, (start, end, name) in enumerate(spans):
        fig.add_vrect(x0=start, x1=end, fillcolor=GRID, line={"width": 1.5, "color": PALETTE[1]})
        # Names of spans within spans stand a line higher: on a narrow page they would collide.
        level = sum(a < end and start < b for a, b, _ in spans[:i])
        fig.add_annotation(
            text=text(name), x=start, xanchor="left", y=1, yref="paper", yanchor="bottom", yshift=15 * level,
            showarrow=False, font={"size": 12},
        )  # fmt: skip
