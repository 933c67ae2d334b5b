"""DET curves against plain Python written from the definitions."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kwsbench.metrics.det import (
    MAX_THRESHOLDS,
    DetCurve,
    det_curve,
    evaluate,
    fdr_at_frr,
    observed_thresholds,
    operating_point,
    operating_point_by_fa,
    point_at_frr,
)
from kwsbench.metrics.events import DetectorConfig
from kwsbench.metrics.scores import Scores

FRAME = 0.03
ONE_SECOND = DetectorConfig()


def make_scores(segments, frame_seconds=FRAME):
    """Scores from (label, values) pairs."""
    lengths = [len(values) for _, values in segments]
    return Scores(
        values=np.array([v for _, values in segments for v in values], np.float32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=tuple(label for label, _ in segments),
        paths=tuple(f"{label}/{i}.wav" for i, (label, _) in enumerate(segments)),
        word_end_seconds=np.full(len(segments), np.nan),
        frame_seconds=frame_seconds,
        system="test",
    )


def brute(segments, keyword, threshold, smoothing, refractory):
    """Every count, from the definitions, in plain Python."""
    counts = dict.fromkeys(("misses", "positives", "fa", "speech_fa", "clips", "clip_fa", "frames"), 0)
    for label, values in segments:
        smoothed = []
        for t in range(len(values)):
            past = values[max(0, t - smoothing + 1) : t + 1]
            smoothed.append(np.float32(sum(past) / len(past)))
        fired, t = 0, 0
        while t < len(smoothed):
            if smoothed[t] >= threshold:
                fired += 1
                t += refractory
            else:
                t += 1
        if label == keyword:
            counts["positives"] += 1
            counts["misses"] += fired == 0
            continue
        counts["fa"] += fired
        counts["frames"] += len(values)
        if label == "_speech_":
            counts["speech_fa"] += fired
        elif label != "_noise_":
            counts["clips"] += 1
            counts["clip_fa"] += fired > 0
    return counts


LEVELS = st.integers(-4, 4).map(lambda i: i / 4)
SEGMENT = st.tuples(st.sampled_from(["key", "cat", "dog", "_speech_", "_noise_"]), st.lists(LEVELS, max_size=12))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(SEGMENT, max_size=8),
    st.lists(LEVELS, min_size=1, max_size=6),
    st.lists(LEVELS, min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 5),
)
def test_every_count_equals_the_brute_force(segments, positive, negative, smoothing, refractory):
    segments = [*segments, ("key", positive), ("cat", negative)]
    config = DetectorConfig(smoothing, refractory * FRAME)
    curve = det_curve(make_scores(segments), "key", config)
    assert len(np.unique(curve.thresholds)) == len(curve.thresholds)
    for i, threshold in enumerate(curve.thresholds):
        c = brute(segments, "key", threshold, smoothing, refractory)
        assert (curve.misses[i], curve.n_positives) == (c["misses"], c["positives"])
        assert (curve.clip_false_accepts[i], curve.n_negative_clips) == (c["clip_fa"], c["clips"])
        assert (curve.false_accepts[i], curve.speech_false_accepts[i]) == (c["fa"], c["speech_fa"])
        assert curve.negative_hours == pytest.approx(c["frames"] * FRAME / 3600)
        point = evaluate(make_scores(segments), "key", threshold, config)
        assert (point.misses, point.events, point.false_accepts) == (c["misses"], c["fa"], c["clip_fa"])
    # Every observed score is there: no count changes between two thresholds.
    for column in (curve.misses, -curve.false_accepts, -curve.clip_false_accepts):
        assert np.all(np.diff(column) >= 0)
    assert (curve.misses[-1], curve.false_accepts[-1], curve.clip_false_accepts[-1]) == (c["positives"], 0, 0)


def hand_made():
    """2 positives, 3 negative clips, 1 stretch of speech; 1 s frames."""
    return make_scores(
        [
            ("key", [0.0, 3.0, 1.0]),
            ("key", [0.5, 0.5]),
            ("cat", [2.0, 0.0]),
            ("dog", [0.0, 1.0, 0.0, 1.0]),
            ("cat", [-1.0]),
            ("_speech_", [1.0, 1.0, 1.0, 0.0, 2.0]),
            ("_noise_", [0.0, 0.0, 0.0]),
        ],
        frame_seconds=1.0,
    )


def test_rates_by_hand():
    config = DetectorConfig(refractory_seconds=2.0)
    p = evaluate(hand_made(), "key", 1.0, config)
    assert (p.misses, p.n_positives, p.frr) == (1, 2, 0.5)
    assert (p.true_accepts, p.false_accepts, p.n_negative_clips) == (1, 2, 3)
    assert p.fdr == pytest.approx(2 / 3)
    # Events: cat 1; dog 2; speech at 0, 2, 4; noise none. Over 15 s; speech 5 s.
    assert (p.events, p.speech_events) == (6, 3)
    assert p.hours == pytest.approx(15 / 3600)
    assert p.fa_per_hour == pytest.approx(6 * 240)
    assert p.fa_per_hour_speech == pytest.approx(3 * 720)
    assert (p.frr_low95, p.frr_high95) == pytest.approx(tuple(stats.binomtest(1, 2).proportion_ci(method="wilson")))
    assert p.fa_per_hour_high95 == pytest.approx(stats.chi2.ppf(0.975, 14) / 2 * 240)
    assert p.fa_per_hour_low95 == pytest.approx(stats.chi2.ppf(0.025, 12) / 2 * 240)


def test_a_threshold_above_all_scores_has_no_rate_of_discovery():
    p = evaluate(hand_made(), "key", 10.0, ONE_SECOND)
    assert (p.frr, p.events) == (1.0, 0)
    assert np.isnan(p.fdr)
    assert p.fa_per_hour_upper95 == pytest.approx(3 / p.hours, rel=2e-3)
    row = p.as_row()
    assert row["fdr"] is None and row["misses"] == 2
    assert json.loads(json.dumps(row, allow_nan=False))["threshold"] == 10.0


def test_ratios_without_clips_or_speech_are_undefined():
    p = evaluate(make_scores([("key", [1.0]), ("_speech_", [0.0])]), "key", 0.5, ONE_SECOND)
    assert np.isnan(p.fdr) and p.n_negative_clips == 0
    assert p.fa_per_hour_speech == 0.0
    curve = det_curve(make_scores([("key", [1.0]), ("cat", [2.0])]), "key", ONE_SECOND)
    assert np.all(np.isnan(curve.fa_per_hour_speech)) and curve.speech_hours == 0
    assert curve.clip_far.tolist() == [1.0, 1.0, 0.0]


def test_an_empty_positive_segment_is_a_miss_at_any_threshold():
    scores = make_scores([("key", []), ("key", [1.0]), ("cat", [0.0])])
    curve = det_curve(scores, "key", ONE_SECOND)
    assert curve.frr.min() == 0.5
    with pytest.raises(ValueError, match=r"reaches an FRR of 0\.05; its least is 0\.5"):
        operating_point(curve, 0.05)


@pytest.mark.parametrize("n", [1, 7, 20, 60, 100, 333])
@pytest.mark.parametrize("target", [0.0, 0.01, 0.05, 0.07, 0.2, 0.5])
def test_operating_point_is_the_largest_threshold_that_keeps_the_target(n, target):
    rng = np.random.default_rng(n)
    maxima = np.round(rng.normal(2, 1, n), 1 if n > 50 else 3).astype(np.float32)
    scores = make_scores([*(("key", [m]) for m in maxima), ("cat", rng.normal(0, 1, 50))])
    threshold = operating_point(det_curve(scores, "key", ONE_SECOND), target)

    def share_missed(t):
        return sum(bool(m < t) for m in maxima) / n

    assert share_missed(threshold) <= target + 1e-12
    higher = sorted(float(m) for m in maxima if m > threshold)
    assert not higher or share_missed(np.nextafter(threshold, np.inf)) > target
    above = [t for t in higher if share_missed(t) <= target + 1e-12]
    assert above == []


def test_five_percent_of_twenty_is_one_miss():
    # 0.05 * 20 must not fall an ulp short of 1.
    scores = make_scores([*(("key", [float(i)]) for i in range(20)), ("cat", [0.0])])
    curve = det_curve(scores, "key", ONE_SECOND)
    assert operating_point(curve, 0.05) == 1.0
    assert operating_point(curve, 0.15) == 3.0
    assert point_at_frr(curve, 0.15).misses == 3


def test_the_point_chosen_on_validation_is_applied_to_test():
    rng = np.random.default_rng(3)
    validation, test = (
        make_scores(
            [
                *(("key", rng.normal(2, 1, 5)) for _ in range(80)),
                *(("cat", rng.normal(0, 1, 5)) for _ in range(80)),
            ]
        )
        for _ in range(2)
    )
    threshold = operating_point(det_curve(validation, "key", ONE_SECOND), 0.05)
    point = evaluate(test, "key", threshold, ONE_SECOND)
    maxima = [test.segment(i).max() for i in range(80)]
    assert point.misses == sum(m < threshold for m in maxima)
    assert point.threshold == threshold


def test_matched_frr_reads_the_same_point_as_evaluate():
    curve = det_curve(hand_made(), "key", ONE_SECOND)
    for frr in (0.0, 0.5):
        point = evaluate(hand_made(), "key", operating_point(curve, frr), ONE_SECOND)
        assert fdr_at_frr(curve, frr) == point.fdr
        assert point_at_frr(curve, frr) == point


def test_budget_takes_the_smallest_threshold_that_keeps_it():
    curve = det_curve(hand_made(), "key", DetectorConfig(refractory_seconds=2.0))
    per_event = 240.0
    threshold = operating_point_by_fa(curve, 2 * per_event)
    i = curve.thresholds.tolist().index(threshold)
    assert curve.false_accepts[i] == 2 and curve.false_accepts[i - 1] > 2
    assert operating_point_by_fa(curve, 0.0) == 3.0
    few = det_curve(hand_made(), "key", ONE_SECOND, np.array([0.0]))
    with pytest.raises(ValueError, match=r"keeps 1\.0 FA/h; the largest has"):
        operating_point_by_fa(few, 1.0)


def test_many_scores_are_thinned_but_keep_the_points_that_matter():
    rng = np.random.default_rng(5)
    positives = rng.normal(3, 1, 6000).astype(np.float32)
    clips = rng.normal(0, 1, 20_000).astype(np.float32)
    thresholds = observed_thresholds(positives, clips, clips)
    assert len(thresholds) <= MAX_THRESHOLDS
    ordered = np.sort(positives)
    for percent in range(1, 21):
        assert ordered[percent * 60] in thresholds
    assert np.isin(np.sort(clips)[-20:], thresholds).all()
    assert thresholds[-1] > max(positives.max(), clips.max())
    assert thresholds[0] <= min(positives.min(), clips.min())
    # One score in two steps of float32: the last threshold is the next one up.
    assert observed_thresholds(np.ones(2, np.float32), np.empty(0), np.empty(0)).tolist() == [
        1.0,
        float(np.nextafter(np.float32(1), np.float32(2))),
    ]


def test_the_thinned_curve_has_the_exact_counts_at_its_thresholds():
    rng = np.random.default_rng(6)
    segments = [("key", rng.normal(1, 1, 20)) for _ in range(500)]
    segments += [("cat", rng.normal(0, 1, 20)) for _ in range(1500)]
    segments += [("_speech_", rng.normal(0, 1, 3000)) for _ in range(3)]
    curve = det_curve(make_scores(segments), "key", DetectorConfig(2, 0.3))
    assert 300 < len(curve.thresholds) <= MAX_THRESHOLDS
    segments = [(label, np.float32(values).tolist()) for label, values in segments]
    for i in np.linspace(0, len(curve.thresholds) - 1, 5).astype(int):
        c = brute(segments, "key", curve.thresholds[i], 2, 10)
        assert (curve.misses[i], curve.false_accepts[i]) == (c["misses"], c["fa"])
        assert (curve.clip_false_accepts[i], curve.speech_false_accepts[i]) == (c["clip_fa"], c["speech_fa"])


def test_a_saved_curve_comes_back(tmp_path):
    curve = det_curve(hand_made(), "key", ONE_SECOND)
    curve.save(tmp_path / "c.npz")
    loaded = DetCurve.load(tmp_path / "c.npz")
    for f in dataclasses.fields(DetCurve):
        np.testing.assert_array_equal(getattr(loaded, f.name), getattr(curve, f.name))
    assert type(loaded.n_positives) is int and type(loaded.keyword) is str
    assert loaded.thresholds.dtype == np.float64
    hand_made().save(tmp_path / "s.npz")
    with pytest.raises(ValueError, match="holds something else"):
        DetCurve.load(tmp_path / "s.npz")


def test_scores_that_answer_nothing_are_refused():
    with pytest.raises(ValueError, match=r"no segment of 'test' is labelled 'dog'; labels there: \['cat', 'key'\]"):
        det_curve(make_scores([("key", [1.0]), ("cat", [0.0])]), "dog", ONE_SECOND)
    for negatives in ([], [("cat", [])]):
        with pytest.raises(ValueError, match="'test' has no negative audio"):
            det_curve(make_scores([("key", [1.0]), *negatives]), "key", ONE_SECOND)
    for thresholds in (np.empty(0), np.array([0.0, np.nan]), np.array([np.inf])):
        with pytest.raises(ValueError, match="thresholds must be finite and at least one"):
            det_curve(hand_made(), "key", ONE_SECOND, thresholds)
    for frr in (-0.1, 1.0, 5):
        with pytest.raises(ValueError, match="frr is a share from 0 to below 1"):
            operating_point(det_curve(hand_made(), "key", ONE_SECOND), frr)
