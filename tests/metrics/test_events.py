import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsbench.metrics import events
from kwsbench.metrics.events import (
    DetectorConfig,
    count_events,
    detect,
    segment_maxima,
    smooth,
    smooth_segments,
)

# Few distinct values: ties with the thresholds are then common.
LEVELS = st.integers(-3, 3).map(lambda i: i / 2)


def brute_detect(values, threshold, refractory_frames):
    fired, t = [], 0
    while t < len(values):
        if values[t] >= threshold:
            fired.append(t)
            t += refractory_frames
        else:
            t += 1
    return fired


def test_an_event_by_hand():
    values = np.array([0, 1, 2, 2, 0, 2, 2, 2, 2], np.float32)
    config = DetectorConfig(refractory_seconds=0.09)
    assert config.refractory_frames(0.03) == 3
    # Fires at 2, deaf at 3 and 4, fires at 5, deaf at 6 and 7, fires at 8.
    assert detect(values, 2.0, 0.03, config).tolist() == [2, 5, 8]
    assert detect(values, 2.001, 0.03, config).tolist() == []
    assert detect(values, 0.0, 0.03, config).tolist() == [0, 3, 6]


def test_a_score_on_the_threshold_fires():
    assert detect(np.array([0.1], np.float32), float(np.float32(0.1)), 0.03, DetectorConfig()).tolist() == [0]
    just_above = float(np.nextafter(np.float32(0.1), np.float32(1)))
    assert detect(np.array([0.1], np.float32), just_above, 0.03, DetectorConfig()).tolist() == []


@given(st.lists(LEVELS, max_size=30), st.integers(1, 8), LEVELS, LEVELS)
def test_firing_early_counts_the_most_events_and_never_more_at_a_higher_threshold(values, gap, a, b):
    scores = np.array(values, np.float32)
    config = DetectorConfig(refractory_seconds=gap * 0.03)
    low, high = (len(detect(scores, t, 0.03, config)) for t in (min(a, b), max(a, b)))
    assert low >= high
    # Most frames at or above the threshold that keep their distance, by dynamic programming.
    best = [0] * (len(values) + 1)
    for t in range(len(values)):
        chosen = best[max(0, t + 1 - gap)] + 1 if values[t] >= min(a, b) else 0
        best[t + 1] = max(best[t], chosen)
    assert low == best[-1]


def test_a_lower_threshold_may_fire_at_other_frames():
    values, config = np.array([1, 2, 0, 2, 1, 0], np.float32), DetectorConfig(refractory_seconds=0.06)
    assert detect(values, 1.0, 0.03, config).tolist() == [0, 3]
    assert detect(values, 2.0, 0.03, config).tolist() == [1, 3]


def test_without_refractory_time_every_frame_fires():
    assert detect(np.ones(4, np.float32), 1.0, 0.03, DetectorConfig(refractory_seconds=0)).tolist() == [
        0,
        1,
        2,
        3,
    ]


@given(st.lists(LEVELS, max_size=40), LEVELS, st.integers(1, 9))
def test_detect_equals_the_brute_force(values, threshold, refractory_frames):
    config = DetectorConfig(refractory_seconds=refractory_frames * 0.03)
    fired = detect(np.array(values, np.float32), threshold, 0.03, config)
    assert fired.tolist() == brute_detect(values, threshold, refractory_frames)


@given(
    st.lists(st.lists(LEVELS, max_size=25), max_size=5),
    st.lists(LEVELS | st.floats(-2, 2), min_size=1, max_size=6),
    st.integers(1, 7),
)
def test_counts_equal_the_detector_segment_by_segment(segments, thresholds, refractory_frames):
    thresholds = np.unique(thresholds)
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in segments])]).astype(np.int64)
    values = np.array([v for s in segments for v in s], np.float32)
    counts = count_events(values, offsets, thresholds, refractory_frames)
    expected = [sum(len(brute_detect(s, t, refractory_frames)) for s in segments) for t in thresholds]
    assert counts.tolist() == expected


@given(st.lists(st.floats(-1e3, 1e3, width=32), max_size=30), st.integers(1, 6))
def test_smoothing_is_the_mean_of_the_past(values, frames):
    smoothed = smooth(np.array(values, np.float32), frames)
    assert smoothed.dtype == np.float32
    expected = [np.mean(np.float64(values[max(0, t - frames + 1) : t + 1])) for t in range(len(values))]
    np.testing.assert_allclose(smoothed, np.array(expected), rtol=1e-6, atol=1e-6)


def test_segments_are_smoothed_from_a_fresh_state():
    values = np.array([4, 2, 8, 0, 6], np.float32)
    offsets = np.array([0, 2, 2, 5])
    assert smooth_segments(values, offsets, 2).tolist() == [4, 3, 8, 4, 3]
    assert smooth_segments(values, offsets, 1).tolist() == values.tolist()
    assert segment_maxima(values, offsets).tolist() == [4, -np.inf, 8]
    assert smooth_segments(np.empty(0, np.float32), np.array([0]), 2).tolist() == []


def test_the_loops_run_the_same_without_numba():
    rng = np.random.default_rng(1)
    values = rng.normal(size=400).astype(np.float32)
    offsets = np.array([0, 150, 400])
    thresholds = np.linspace(-2, 3, 20)
    reached = np.searchsorted(thresholds, values, side="right")
    plain = events._count_events_py(reached, offsets, 20, 5)
    np.testing.assert_array_equal(plain, count_events(values, offsets, thresholds, 5))
    np.testing.assert_array_equal(events._smooth_py(values, 3), smooth(values, 3))


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="smoothing_frames must be at least 1, got 0"):
        DetectorConfig(smoothing_frames=0)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        DetectorConfig(refractory_seconds=-1)
    with pytest.raises(ValueError, match="must not be negative, got nan"):
        DetectorConfig(refractory_seconds=float("nan"))
    for values, threshold in (([np.nan], 0.0), ([0.0], np.nan)):
        with pytest.raises(ValueError, match="NaN"):
            detect(np.array(values, np.float32), threshold, 0.03, DetectorConfig())
