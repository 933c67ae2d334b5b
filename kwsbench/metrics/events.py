"""From frame scores to events: the streaming detector.

The detector smooths the scores by a moving average over the past, fires at the first frame whose smoothed
score is *at or above* the threshold, and is then deaf for the refractory time: the next event comes no
earlier than ``refractory_frames`` after the last. A score that stays high therefore fires again and again,
once per refractory time, as a device would. Every segment starts from a fresh state.

Smoothing over n frames averages the last n scores, or all so far at the start of a segment; the average is
summed in float64 and rounded to float32, the precision of the scores and thresholds. One frame of
smoothing leaves the scores as they are.

The number of events never rises with the threshold, refractory time and all: firing as early as possible
picks the largest possible set of frames at or above the threshold that keep the refractory distance (the
exchange argument of interval scheduling), and a lower threshold only adds frames to pick from. *Which*
frames fire may differ. This holds for this detector, not for ones that re-arm below a second threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np


@dataclass(frozen=True)
class DetectorConfig:
    """Moving average over ``smoothing_frames``; deaf for ``refractory_seconds`` after an event."""

    smoothing_frames: int = 1
    refractory_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.smoothing_frames < 1:
            raise ValueError(f"smoothing_frames must be at least 1, got {self.smoothing_frames}")
        if not self.refractory_seconds >= 0:
            raise ValueError(f"refractory_seconds must not be negative, got {self.refractory_seconds}")

    def refractory_frames(self, frame_seconds: float) -> int:
        """Least distance of two events in frames, at least 1 (rounded to the nearest frame)."""
        return max(1, round(self.refractory_seconds / frame_seconds))


def smooth(values: np.ndarray, frames: int) -> np.ndarray:
    """Mean of each value and its ``frames - 1`` predecessors (fewer at the start); float32 [n].

    >>> smooth(np.array([0.0, 2.0, 4.0]), 2).tolist()
    [0.0, 1.0, 3.0]
    """
    values = np.ascontiguousarray(values, np.float32)
    return values if frames == 1 else _smooth(values, frames)


def detect(values: np.ndarray, threshold: float, frame_seconds: float, config: DetectorConfig) -> np.ndarray:
    """Frames (int64) at which the detector fires over one segment's scores ``values`` [n].

    Raises:
        ValueError: a score or the threshold is NaN.
    """
    if np.isnan(threshold) or np.any(np.isnan(values)):
        raise ValueError("the threshold or a score is NaN: nothing can be compared with it")
    smoothed = smooth(values, config.smoothing_frames)
    return _fire(smoothed, float(threshold), config.refractory_frames(frame_seconds))


def smooth_segments(values: np.ndarray, offsets: np.ndarray, frames: int) -> np.ndarray:
    """:func:`smooth` over each segment ``values[offsets[i]:offsets[i+1]]`` from a fresh state; float32."""
    if frames == 1:
        return np.ascontiguousarray(values, np.float32)
    return np.concatenate([smooth(values[a:b], frames) for a, b in pairwise(offsets)] or [np.empty(0, np.float32)])


def segment_maxima(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Largest value of each segment, float32 [S]; -inf for an empty one."""
    return np.array([values[a:b].max(initial=-np.inf) for a, b in pairwise(offsets)], np.float32)


def count_events(values: np.ndarray, offsets: np.ndarray, thresholds: np.ndarray, refractory_frames: int) -> np.ndarray:
    """Events over all segments at each of the *ascending* ``thresholds`` [T]: int64 [T], exact.

    One pass: a frame visits only the thresholds at or below its score, each of which remembers from which
    frame on it listens again.
    """
    reached = np.searchsorted(thresholds, values, side="right")
    return _count_events(reached, np.asarray(offsets, np.int64), len(thresholds), refractory_frames)


def _smooth_py(values, frames):
    out = np.empty_like(values)
    for t in range(len(values)):
        first = max(0, t - frames + 1)
        total = 0.0
        for i in range(first, t + 1):
            total += np.float64(values[i])
        out[t] = np.float32(total / (t + 1 - first))
    return out


def _fire_py(values, threshold, refractory_frames):
    events = np.empty(len(values), np.int64)
    n = 0
    listens_from = 0
    for t in range(len(values)):
        if t >= listens_from and values[t] >= threshold:
            events[n] = t
            n += 1
            listens_from = t + refractory_frames
    return events[:n].copy()


def _count_events_py(reached, offsets, n_thresholds, refractory_frames):
    counts = np.zeros(n_thresholds, np.int64)
    listens_from = np.zeros(n_thresholds, np.int64)
    for s in range(len(offsets) - 1):
        listens_from[:] = offsets[s]
        for t in range(offsets[s], offsets[s + 1]):
            for j in range(reached[t]):
                if t >= listens_from[j]:
                    counts[j] += 1
                    listens_from[j] = t + refractory_frames
    return counts


_smooth = numba.njit(cache=True)(_smooth_py)
_fire = numba.njit(cache=True)(_fire_py)
_count_events = numba.njit(cache=True)(_count_events_py)
