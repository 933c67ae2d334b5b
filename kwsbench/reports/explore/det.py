"""The DET explorer's arithmetic: cached scores, detector settings and a threshold -> curves, counts and errors.

All counting is that of metrics.det and metrics.events. Bands are 95% Wilson intervals of the FRR at each threshold; the
cross of the inspected system carries the 95% intervals of both rates. Thresholds are log odds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import plotly.graph_objects as go

from kwsbench.data.audio import SAMPLE_RATE
from kwsbench.data.mixing import Mixer
from kwsbench.metrics.compare import wilson_interval
from kwsbench.metrics.det import DetCurve, OperatingPoint, det_curve, evaluate
from kwsbench.metrics.events import DetectorConfig, detect, smooth
from kwsbench.metrics.scores import Scores
from kwsbench.reports.explore.artifacts import Study
from kwsbench.reports.explore.panels import Content, apply
from kwsbench.reports.figures import FA_TITLE, FRR_TITLE, thin
from kwsbench.reports.style import INK, MARKERS, figure, series, text
from kwsbench.reports.tables import operating_rows
from kwsbench.training.experiment import MIX_SEED, System

MAX_SYSTEMS = 6
MAX_POINTS = 200
MAX_ERRORS = 200
KEPT_CURVES = 256
CONTEXT_SECONDS = (2.0, 1.0)  # heard before and after a mistake in a recording longer than WHOLE_SECONDS
WHOLE_SECONDS = 4.0
HIGHEST_FRR = 0.5  # in view


@dataclass(frozen=True)
class DetState:
    """What is chosen: systems overlaid, the one inspected, its threshold, and the detector's settings."""

    systems: tuple[str, ...]
    inspected: str
    threshold: float
    smoothing_frames: int = 1
    refractory_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.inspected not in self.systems:
            raise ValueError(f"{self.inspected!r} is inspected but not overlaid: {', '.join(self.systems)}")
        if len(self.systems) > MAX_SYSTEMS:
            raise ValueError(f"at most {MAX_SYSTEMS} systems are overlaid, got {len(self.systems)}")

    @property
    def detector(self) -> DetectorConfig:
        return DetectorConfig(self.smoothing_frames, self.refractory_seconds)


@dataclass(frozen=True)
class Mistake:
    """A miss or a false accept: segment of the test set, its clip, its best or firing score and when that was."""

    segment: int
    path: str
    label: str
    score: float
    seconds: float

    def text(self) -> str:
        return f"{self.score:+.2f} at {self.seconds:.2f} s, {self.label}: {self.path}"


@dataclass(frozen=True, eq=False)
class DetView:
    """What the explorer shows of a state."""

    state: DetState
    curves: dict[str, DetCurve] = field(repr=False)
    point: OperatingPoint
    misses: tuple[Mistake, ...] = field(repr=False)
    false_accepts: tuple[Mistake, ...] = field(repr=False)

    def rows(self) -> list[dict[str, str]]:
        """The operating point beside its counts and intervals, for a table."""
        return operating_rows({self.state.inspected: self.point})


class Detections:
    """The scores of a study's systems on the test split; curves are kept per detector setting."""

    def __init__(self, study: Study):
        self.study = study
        scored = {n: s for n, s in study.systems.items() if _is_scored(study, s)}
        self.systems = scored or dict(study.systems)
        self._scores: dict[str, Scores] = {}
        self._curves: dict[tuple[str, DetectorConfig], DetCurve] = {}

    def scores(self, name: str) -> Scores:
        """Frame scores of a system on the test split, read once."""
        if name not in self._scores:
            self._scores[name] = self.study.experiment.scores(self.systems[name], "test")
        return self._scores[name]

    def start(self) -> DetState:
        """At first: float and the stage-2 systems, the first stage-2 one inspected at its validation threshold."""
        first = [n for n, s in self.systems.items() if s.kind in ("float", "stage_two")] or list(self.systems)
        first = first[: MAX_SYSTEMS - 2]
        inspected = next((n for n in first if self.systems[n].kind == "stage_two"), first[0])
        detector = self.study.experiment.spec.detector
        return DetState(
            tuple(first),
            inspected,
            self.validation_threshold(inspected),
            detector.smoothing_frames,
            detector.refractory_seconds,
        )

    def validation_threshold(self, name: str) -> float:
        """The threshold that validation chose for a system, with the experiment's own detector."""
        return self.study.experiment.threshold(self.systems[name])

    def threshold_range(self) -> tuple[float, float]:
        """Log odds between which something changes, over all systems."""
        values = [self.scores(name).values for name in self.systems]
        return float(np.floor(min(v.min() for v in values))), float(np.ceil(max(v.max() for v in values)))

    def curve(self, name: str, detector: DetectorConfig) -> DetCurve:
        """The curve of a system, computed once per setting."""
        key = (name, detector)
        if key not in self._curves:
            while len(self._curves) >= KEPT_CURVES:
                self._curves.pop(next(iter(self._curves)))
            self._curves[key] = det_curve(self.scores(name), self.study.keyword, detector)
        return self._curves[key]

    def view(self, state: DetState) -> DetView:
        """Curves, the operating point and its mistakes."""
        scores = self.scores(state.inspected)
        return DetView(
            state,
            {name: self.curve(name, state.detector) for name in state.systems},
            evaluate(scores, self.study.keyword, state.threshold, state.detector),
            misses(scores, self.study.keyword, state.threshold, state.detector)[:MAX_ERRORS],
            false_accepts(scores, self.study.keyword, state.threshold, state.detector)[:MAX_ERRORS],
        )

    @cached_property
    def mixer(self) -> Mixer:
        """Mixes a clip as the test set did."""
        e = self.study.experiment
        return Mixer(e.corpus, e.spec.eval_mix, MIX_SEED["test"], e.spec.keywords, e.root / "banks")

    def audio(self, mistake: Mistake) -> np.ndarray:
        """The mixture in which a mistake was made, float32 [samples] at 16 kHz; long ones cut around it."""
        clips = {c.path: c for c in self.study.experiment.corpus.select(split="test")}
        audio = self.mixer.mix(clips[mistake.path]).audio
        before, after = CONTEXT_SECONDS
        if len(audio) <= WHOLE_SECONDS * SAMPLE_RATE:
            return audio
        start = max(0, int((mistake.seconds - before) * SAMPLE_RATE))
        return audio[start : int((mistake.seconds + after) * SAMPLE_RATE)]


def misses(scores: Scores, keyword: str, threshold: float, detector: DetectorConfig) -> tuple[Mistake, ...]:
    """Positives in which the detector never fires, lowest score first, with their largest smoothed score."""
    found = []
    for i in np.flatnonzero(np.array(scores.labels, dtype=object) == keyword).tolist():
        values = smooth(scores.segment(i), detector.smoothing_frames)
        if values.max(initial=-np.inf) < threshold:
            at = int(np.argmax(values)) if len(values) else 0
            best = float(values[at]) if len(values) else -np.inf
            found.append(_mistake(scores, i, best, at))
    return tuple(sorted(found, key=lambda m: m.score))


def false_accepts(scores: Scores, keyword: str, threshold: float, detector: DetectorConfig) -> tuple[Mistake, ...]:
    """Every event in negative audio, highest score first, with the smoothed score that fired."""
    found = []
    for i, label in enumerate(scores.labels):
        if label != keyword:
            segment = scores.segment(i)
            for at in detect(segment, threshold, scores.frame_seconds, detector).tolist():
                fired = smooth(segment, detector.smoothing_frames)[at]
                found.append(_mistake(scores, i, float(fired), at))
    return tuple(sorted(found, key=lambda m: -m.score))


def _mistake(scores: Scores, i: int, score: float, frame: int) -> Mistake:
    return Mistake(i, scores.paths[i], scores.labels[i], score, (frame + 1) * scores.frame_seconds)


def _is_scored(study: Study, system: System) -> bool:
    return any(study.experiment.folder(system).glob("scores-test-*.npz"))


# ------------------------------------------------------------------------------------------------ figure


def draw(v: DetView) -> go.Figure:
    """The overlay as a figure: per system a band and a curve, and the cross of the inspected one."""
    fig = figure("", FA_TITLE, FRR_TITLE)
    for i in range(MAX_SYSTEMS):
        colour = series(i).colour
        fill = f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.10)"
        fig.add_scatter(
            fill="toself", fillcolor=fill, line={"width": 0}, mode="lines", hoverinfo="skip", showlegend=False
        )
    for i in range(MAX_SYSTEMS):
        s = series(i)
        fig.add_scatter(
            mode="lines+markers",
            line={"color": s.colour, "dash": s.dash, "width": 2.5},
            marker={"color": s.colour, "size": 5, "symbol": MARKERS[i]},
            hovertemplate="threshold %{customdata[0]:.3f}<br>"
            "FRR %{customdata[1]:.2f}% (%{customdata[2]:.0f} missed)<br>"
            "FA/h %{customdata[3]:.3g} (%{customdata[4]:.0f} events)",
        )
    bar = {"type": "data", "symmetric": False, "thickness": 2, "color": INK, "width": 5}
    fig.add_scatter(
        mode="markers",
        marker={"size": 13, "color": INK, "symbol": "cross", "line": {"width": 1, "color": "white"}},
        error_x=bar,
        error_y=bar,
        name="operating point, 95%",
    )
    fig.update_xaxes(type="log", exponentformat="none", dtick=1, title_font_size=13, tickfont_size=12)
    fig.update_yaxes(range=[-1.5, 100 * HIGHEST_FRR], title_font_size=13, tickfont_size=12)
    fig.update_layout(
        legend={"orientation": "h", "x": 0, "y": -0.14, "yanchor": "top", "font": {"size": 12}},
        title={"font": {"size": 13}, "y": 0.97, "yanchor": "top"},
        margin={"t": 56, "r": 24},
        height=520,
        clickmode="event",
        showlegend=True,
    )
    apply(fig, content(v))
    return fig


def content(v: DetView) -> Content:
    """The data of the overlay. A count of zero is drawn at half a count: a logarithmic axis has no zero."""
    names = list(v.state.systems)
    floor = min(0.5 / c.negative_hours for c in v.curves.values())
    bands, curves = [], []
    for i in range(MAX_SYSTEMS):
        if i >= len(names):
            bands.append({"x": [], "y": [], "visible": False})
            curves.append({"x": [], "y": [], "customdata": [], "name": f"system {i + 1}", "visible": False})
            continue
        curve = v.curves[names[i]]
        seen = np.flatnonzero(curve.frr <= HIGHEST_FRR * 1.2)
        x, y = np.maximum(curve.fa_per_hour[seen], floor), 100 * curve.frr[seen]
        kept = thin(np.log10(x), y, MAX_POINTS)
        at = seen[kept]
        low, high = np.array([wilson_interval(int(m), curve.n_positives) for m in curve.misses[at]]).T
        bands.append(
            {"x": np.concatenate([x[kept], x[kept][::-1]]), "y": 100 * np.concatenate([high, low[::-1]]),
             "visible": True}
        )  # fmt: skip
        counts = (curve.fa_per_hour[at], curve.false_accepts[at])
        columns = (curve.thresholds[at], 100 * curve.frr[at], curve.misses[at], *counts)
        curves.append(
            {"x": x[kept], "y": y[kept], "customdata": np.column_stack(columns), "name": text(names[i]),
             "visible": True}
        )  # fmt: skip
    p = v.point
    rate, frr = max(p.fa_per_hour, floor), 100 * p.frr
    cross = {
        "x": [rate],
        "y": [frr],
        "error_x.array": [max(0.0, p.fa_per_hour_high95 - rate)],
        "error_x.arrayminus": [max(0.0, rate - max(p.fa_per_hour_low95, floor))],
        "error_y.array": [100 * p.frr_high95 - frr],
        "error_y.arrayminus": [frr - 100 * p.frr_low95],
    }
    title = f"Misses against false accepts: {v.point.keyword}"
    told = (
        f"{text(v.state.inspected)} at {p.threshold:.2f}: FRR {100 * p.frr:.1f}% ({p.misses} of {p.n_positives}), "
        f"{p.fa_per_hour:.3g} FA/h ({p.events} in {p.hours:.2g} h)"
    )
    return Content((*bands, *curves, cross), {"title.text": f"{title}<br><b>{told}</b>"}, alt=f"{title}. {told}.")
