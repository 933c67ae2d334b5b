"""The trade between misses and false accepts: FRR, FDR, FA/h with their counts, DET curves, operating points.

Definitions, for one keyword and one threshold (detector: metrics.events):

- A *positive* is a segment whose label is the keyword. It is accepted (TP) if the detector fires anywhere
  in it, that is, if its largest smoothed score is at or above the threshold; otherwise it is a miss (FN).
  **FRR = FN / (TP + FN)**.
- Every other segment is *negative*: other words, noise and continuous speech.
  **FA/h = events in all negative segments / their hours** (hours = frames x frame_seconds, nothing left
  out). A long negative can fire many times. ``fa_per_hour_speech`` is the same over segments of continuous
  speech only.
- A *negative clip* is a negative segment of one word; continuous speech and noise recordings are not clips.
  It counts as one false accept (FA) if the detector fires in it at all. **FDR = FA / (FA + TP)**, the false
  *discovery* rate. It depends on the mix of the set: twice the negative clips, nearly twice the FDR.
  Compare FDRs of one evaluation set only, and read them with their counts.
- A ratio with nothing below the bar (FDR when nothing fired, or without negative clips; FA/h of speech
  without speech) is NaN.

As the threshold rises FRR never falls, and neither the clip false accepts nor the events ever rise (why that
holds with a refractory time is told in metrics.events). The curve holds the exact counts at each of its
thresholds; it is not smoothed, and no hull is drawn over it.

An operating point is a threshold chosen on validation scores and applied to test scores:
``evaluate(test, keyword, operating_point(det_curve(validation, keyword, config)), config)``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kwsbench.metrics.compare import poisson_interval, poisson_upper, wilson_interval
from kwsbench.metrics.events import DetectorConfig, count_events, segment_maxima, smooth_segments
from kwsbench.metrics.scores import CONTINUOUS_SPEECH, Scores, read_npz, write_npz

MAX_THRESHOLDS = 1000
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, eq=False)
class DetCurve:
    """Counts at each of T ascending thresholds; the rates are properties made from them."""

    thresholds: np.ndarray  # float64 [T]
    misses: np.ndarray  # int64 [T], of n_positives
    false_accepts: np.ndarray  # int64 [T], events in negative_hours
    speech_false_accepts: np.ndarray  # int64 [T], events in speech_hours
    clip_false_accepts: np.ndarray  # int64 [T], of n_negative_clips
    n_positives: int
    n_negative_clips: int
    negative_hours: float
    speech_hours: float
    keyword: str
    system: str

    @property
    def frr(self) -> np.ndarray:
        """Share of positives missed [T]."""
        return self.misses / self.n_positives

    @property
    def true_accepts(self) -> np.ndarray:
        """Positives accepted [T]."""
        return self.n_positives - self.misses

    @property
    def fdr(self) -> np.ndarray:
        """Share of false ones among all accepted clips [T]; NaN where undefined."""
        if self.n_negative_clips == 0:
            return np.full(len(self.thresholds), np.nan)
        return _ratio(self.clip_false_accepts, self.clip_false_accepts + self.true_accepts)

    @property
    def fa_per_hour(self) -> np.ndarray:
        """Events per hour of negative audio [T]."""
        return self.false_accepts / self.negative_hours

    @property
    def fa_per_hour_speech(self) -> np.ndarray:
        """Events per hour of continuous speech [T]; NaN without any."""
        return _ratio(self.speech_false_accepts, self.speech_hours)

    @property
    def clip_far(self) -> np.ndarray:
        """Share of negative clips accepted [T]; NaN without any."""
        return _ratio(self.clip_false_accepts, self.n_negative_clips)

    def save(self, path: str | Path) -> None:
        """Write an npz to a temporary name, then rename."""
        write_npz(path, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> DetCurve:
        """Read what :meth:`save` wrote. Raises FileNotFoundError, or ValueError for any other file."""
        arrays = read_npz(path, tuple(f.name for f in fields(cls)))
        values: dict[str, Any] = {k: v if v.ndim else v.item() for k, v in arrays.items()}
        return cls(**values)


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold on one set: every rate beside its counts. 95% intervals; see metrics.compare."""

    keyword: str
    system: str
    threshold: float
    frr: float
    misses: int
    n_positives: int
    frr_low95: float  # Wilson
    frr_high95: float
    fdr: float
    true_accepts: int
    false_accepts: int  # negative clips accepted
    n_negative_clips: int
    fa_per_hour: float
    events: int
    hours: float
    fa_per_hour_low95: float  # Poisson, exact
    fa_per_hour_high95: float
    fa_per_hour_upper95: float  # one-sided: 3 / hours when there is no event
    fa_per_hour_speech: float
    speech_events: int
    speech_hours: float

    def as_row(self) -> dict[str, Any]:
        """Fields as plain values for a table or JSON; undefined ratios (NaN) become None."""
        return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(self).items()}


def det_curve(scores: Scores, keyword: str, config: DetectorConfig, thresholds: np.ndarray | None = None) -> DetCurve:
    """Exact counts of one keyword at each threshold.

    Args:
        thresholds: any finite values; by default taken from the scores (:func:`observed_thresholds`).

    Raises:
        ValueError: no positives, no negative audio, or thresholds that are empty or not finite.
    """
    trials = _Trials.of(scores, keyword, config)
    if thresholds is None:
        thresholds = observed_thresholds(trials.positive_maxima, trials.clip_maxima, trials.peaks())
    thresholds = np.unique(np.asarray(thresholds, np.float64))
    if thresholds.size == 0 or not np.all(np.isfinite(thresholds)):
        raise ValueError(f"thresholds must be finite and at least one, got {thresholds}")
    events, speech_events = trials.events(thresholds)
    return DetCurve(
        thresholds=thresholds,
        misses=np.searchsorted(np.sort(trials.positive_maxima), thresholds, side="left"),
        false_accepts=events,
        speech_false_accepts=speech_events,
        clip_false_accepts=len(trials.clip_maxima)
        - np.searchsorted(np.sort(trials.clip_maxima), thresholds, side="left"),
        n_positives=len(trials.positive_maxima),
        n_negative_clips=len(trials.clip_maxima),
        negative_hours=trials.negative_hours,
        speech_hours=trials.speech_hours,
        keyword=keyword,
        system=scores.system,
    )


def observed_thresholds(positive_maxima: np.ndarray, clip_maxima: np.ndarray, negative_peaks: np.ndarray) -> np.ndarray:
    """Thresholds (float64, ascending) at which a count can change, at most about ``MAX_THRESHOLDS``.

    All distinct values if they are few enough. Otherwise: the positives' maxima up to FRR 25% (evenly by
    rank where too many, always with the largest threshold of FRR <= 1%, 2% ... 20%), the rest of them
    coarsely, and the negatives' maxima and peaks by rank from the top, logarithmically: dense where false
    accepts are few. One threshold lies above every score, so the curve ends at FRR 100% without events.
    """
    sets = [v[np.isfinite(v)].astype(np.float64) for v in (positive_maxima, clip_maxima, negative_peaks)]
    everything = np.unique(np.concatenate(sets))
    if everything.size == 0:
        raise ValueError("no score to take thresholds from: every segment is empty")
    above = np.nextafter(np.float32(everything[-1]), np.float32(np.inf))
    if everything.size > MAX_THRESHOLDS - 1:
        positives, clips, peaks = (np.sort(v) for v in sets)
        n = len(positive_maxima)
        missing = n - len(positives)  # empty segments, missed at any threshold
        wanted = np.arange(1, 21) * n // 100 - missing
        ranks = np.concatenate([np.clip(wanted, 0, None), _spaced(n // 4 + 1, 400), _spaced(n, 100)])
        kept = positives[np.unique(ranks[ranks < len(positives)])]
        tops = [v[::-1][_log_spaced(len(v), 220)] for v in (clips, peaks)]
        everything = np.unique(np.concatenate([kept, *tops]))
    return np.append(everything, np.float64(above))


def operating_point(curve: DetCurve, frr: float = 0.05) -> float:
    """The largest threshold of the curve whose FRR is at most ``frr``.

    Raises:
        ValueError: ``frr`` is outside [0, 1), or no threshold of the curve reaches it.
    """
    return float(curve.thresholds[_index_at_frr(curve, frr)])


def operating_point_by_fa(curve: DetCurve, fa_per_hour: float = 1.0) -> float:
    """The smallest threshold of the curve that keeps to a budget of false accepts per hour.

    Raises:
        ValueError: even the largest threshold of the curve breaks the budget.
    """
    within = np.flatnonzero(curve.fa_per_hour <= fa_per_hour)
    if len(within) == 0:
        raise ValueError(
            f"no threshold of the curve keeps {fa_per_hour} FA/h; the largest has "
            f"{curve.fa_per_hour[-1]:.3g}: use det_curve's own thresholds"
        )
    return float(curve.thresholds[within[0]])


def fdr_at_frr(curve: DetCurve, frr: float) -> float:
    """FDR at the largest threshold whose FRR is at most ``frr``: for reading two systems at one FRR.

    The threshold is chosen on the curve's own set, so it compares systems; it does not promise performance.
    """
    return float(curve.fdr[_index_at_frr(curve, frr)])


def point_at_frr(curve: DetCurve, frr: float) -> OperatingPoint:
    """Like :func:`fdr_at_frr`, with every count."""
    return _point(curve, _index_at_frr(curve, frr))


def clip_maxima(scores: Scores, keyword: str, config: DetectorConfig) -> tuple[np.ndarray, np.ndarray]:
    """The largest smoothed score of each positive, and of each negative clip: what FRR and FDR are counted from.

    A clip is accepted at every threshold up to its maximum.
    """
    trials = _Trials.of(scores, keyword, config)
    return trials.positive_maxima, trials.clip_maxima


def clip_kinds(scores: Scores, keyword: str) -> tuple[np.ndarray, np.ndarray]:
    """Which segments are positives, and which are negative clips: two bool [S]."""
    positive = np.array([label == keyword for label in scores.labels], bool)
    reserved = np.array([label.startswith("_") for label in scores.labels], bool)
    return positive, ~positive & ~reserved


def evaluate(scores: Scores, keyword: str, threshold: float, config: DetectorConfig) -> OperatingPoint:
    """Rates and counts of one keyword at one threshold. Raises ValueError as :func:`det_curve` does."""
    return _point(det_curve(scores, keyword, config, np.array([threshold])), 0)


def _index_at_frr(curve: DetCurve, frr: float) -> int:
    if not 0 <= frr < 1:
        raise ValueError(f"frr is a share from 0 to below 1, got {frr}")
    # Compare counts: 0.05 * 20 may lie an ulp below 1.
    allowed = np.floor(frr * curve.n_positives + 1e-9)
    within = np.flatnonzero(curve.misses <= allowed)
    if len(within) == 0:
        raise ValueError(
            f"no threshold of the curve of {curve.system!r} reaches an FRR of {frr}; its least is "
            f"{curve.frr[0]:.3g}: give lower thresholds, or look for empty positive segments"
        )
    return int(within[-1])


def _point(curve: DetCurve, i: int) -> OperatingPoint:
    misses, events = int(curve.misses[i]), int(curve.false_accepts[i])
    frr_low95, frr_high95 = wilson_interval(misses, curve.n_positives)
    fa_low95, fa_high95 = poisson_interval(events, curve.negative_hours)
    return OperatingPoint(
        keyword=curve.keyword,
        system=curve.system,
        threshold=float(curve.thresholds[i]),
        frr=float(curve.frr[i]),
        misses=misses,
        n_positives=curve.n_positives,
        frr_low95=frr_low95,
        frr_high95=frr_high95,
        fdr=float(curve.fdr[i]),
        true_accepts=int(curve.true_accepts[i]),
        false_accepts=int(curve.clip_false_accepts[i]),
        n_negative_clips=curve.n_negative_clips,
        fa_per_hour=float(curve.fa_per_hour[i]),
        events=events,
        hours=curve.negative_hours,
        fa_per_hour_low95=fa_low95,
        fa_per_hour_high95=fa_high95,
        fa_per_hour_upper95=poisson_upper(events, curve.negative_hours),
        fa_per_hour_speech=float(curve.fa_per_hour_speech[i]),
        speech_events=int(curve.speech_false_accepts[i]),
        speech_hours=curve.speech_hours,
    )


@dataclass(frozen=True, eq=False)
class _Trials:
    """The smoothed scores of one keyword, sorted into positives, negative clips and negative audio."""

    positive_maxima: np.ndarray  # [P]
    clip_maxima: np.ndarray  # [C], negative clips
    speech: tuple[np.ndarray, np.ndarray]  # values, offsets of continuous speech
    others: tuple[np.ndarray, np.ndarray]  # values, offsets of all other negatives
    frame_seconds: float
    refractory_frames: int

    @classmethod
    def of(cls, scores: Scores, keyword: str, config: DetectorConfig) -> _Trials:
        smoothed = smooth_segments(scores.values, scores.offsets, config.smoothing_frames)
        maxima = segment_maxima(smoothed, scores.offsets)
        positive, clips = clip_kinds(scores, keyword)
        speech = np.array([label == CONTINUOUS_SPEECH for label in scores.labels], bool)
        if not positive.any():
            words = sorted({label for label in scores.labels if not label.startswith("_")})
            raise ValueError(f"no segment of {scores.system!r} is labelled {keyword!r}; labels there: {words[:10]}")
        trials = cls(
            positive_maxima=maxima[positive],
            clip_maxima=maxima[clips],
            speech=_gather(smoothed, scores.offsets, speech),
            others=_gather(smoothed, scores.offsets, ~positive & ~speech),
            frame_seconds=scores.frame_seconds,
            refractory_frames=config.refractory_frames(scores.frame_seconds),
        )
        if trials.negative_hours == 0:
            raise ValueError(
                f"{scores.system!r} has no negative audio, so no false accept can be counted: add clips of "
                "other words or continuous speech"
            )
        return trials

    @property
    def speech_hours(self) -> float:
        return len(self.speech[0]) * self.frame_seconds / SECONDS_PER_HOUR

    @property
    def negative_hours(self) -> float:
        return (len(self.speech[0]) + len(self.others[0])) * self.frame_seconds / SECONDS_PER_HOUR

    def peaks(self) -> np.ndarray:
        """Largest score of each stretch of one refractory time of negative audio: where events begin."""
        peaks = []
        for values, offsets in (self.speech, self.others):
            if len(values):
                starts = [np.arange(a, b, self.refractory_frames) for a, b in pairwise(offsets)]
                peaks.append(np.maximum.reduceat(values, np.concatenate(starts)))
        return np.concatenate(peaks)

    def events(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Events in all negatives, and in continuous speech only: two int64 [T]."""
        speech = count_events(*self.speech, thresholds, self.refractory_frames)
        return speech + count_events(*self.others, thresholds, self.refractory_frames), speech


def _gather(values: np.ndarray, offsets: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chosen segments one after the other, and their offsets."""
    parts = [values[offsets[i] : offsets[i + 1]] for i in np.flatnonzero(chosen)]
    lengths = np.array([len(p) for p in parts], np.int64)
    joined = np.concatenate(parts) if parts else np.empty(0, np.float32)
    return joined, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _ratio(numerator: np.ndarray, denominator: np.ndarray | float) -> np.ndarray:
    """``numerator / denominator``, NaN where the denominator is 0."""
    nan = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=nan, where=np.asarray(denominator) > 0)


def _spaced(n: int, count: int) -> np.ndarray:
    """At most ``count`` ranks out of 0..n-1, evenly spaced, ends included."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, count)).astype(np.int64))


def _log_spaced(n: int, count: int) -> np.ndarray:
    """At most ``count`` ranks out of 0..n-1: the first ones all, then spaced logarithmically."""
    if n == 0:
        return np.empty(0, np.int64)
    return np.unique(np.geomspace(1, n, min(n, count)).astype(np.int64) - 1)
