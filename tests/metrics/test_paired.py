"""Paired differences of FDR: against the DET curve, a direct resampling, and systems that are known to differ."""

import numpy as np
import pytest

from kwsbench.metrics.det import clip_maxima, det_curve, fdr_at_frr
from kwsbench.metrics.events import DetectorConfig
from kwsbench.metrics.paired import accuracy_difference, fdr_at, fdr_difference
from kwsbench.metrics.scores import Scores


def maxima(shift=2.0, seed=0, positives=80, negatives=200):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, positives), rng.normal(0, 1, negatives)


def scores(seed, segments=60, frames=20):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(segments, frames)).astype(np.float32)
    values[::3] += 1.0
    labels = tuple("yes" if i % 3 == 0 else "no" for i in range(segments))
    names = tuple(map(str, range(segments)))
    offsets = np.arange(segments + 1) * frames
    return Scores(values.ravel(), offsets, labels, names, np.full(segments, np.nan), 0.03, "x")


@pytest.mark.parametrize("frr", [0.0, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("smoothing", [1, 4])
def test_fdr_at_a_frr_is_that_of_the_curve(frr, smoothing):
    config = DetectorConfig(smoothing)
    s = scores(3)
    assert fdr_at(*clip_maxima(s, "yes", config), frr) == fdr_at_frr(det_curve(s, "yes", config), frr)


def test_a_system_differs_from_itself_by_nothing():
    same = fdr_difference([maxima()], [maxima()], [0.05], draws=100)
    assert (same.mean, same.low, same.high, same.per_seed) == (0, 0, 0, (0.0,)) and same.outcome == "ties"


def test_a_better_system_wins_and_the_other_way_round_it_loses():
    good, bad = [maxima(3.5, 1), maxima(3.5, 2)], [maxima(1.0, 1), maxima(1.0, 2)]
    won, lost = fdr_difference(good, bad, [0.05] * 2, draws=200), fdr_difference(bad, good, [0.05] * 2, draws=200)
    assert won.outcome == "wins" and won.high < 0
    assert (lost.outcome, lost.mean) == ("loses", -won.mean)
    assert won.mean == pytest.approx(np.mean(won.per_seed)) and len(won.per_seed) == 2


def test_the_interval_is_that_of_resampling_the_clips_by_hand():
    a, b = maxima(2.0, 1), maxima(1.6, 2)
    rng = np.random.default_rng(7)
    drawn = []
    for _ in range(3000):
        p, n = rng.choice(80, 80), rng.choice(200, 200)
        values = []
        for positives, negatives in ((a[0][p], a[1][n]), (b[0][p], b[1][n])):
            threshold = max(t for t in positives if np.mean(positives < t) <= 0.1)
            false = (negatives >= threshold).sum()
            values.append(false / (false + (positives >= threshold).sum()))
        drawn.append(values[0] - values[1])
    ours = fdr_difference([a], [b], [0.1], draws=3000)
    assert [ours.low, ours.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)


def test_what_makes_a_clip_hard_for_both_falls_out():
    a = maxima(1.5, 1)
    b = (a[0] + 0.01, a[1])
    paired = fdr_difference([a], [b], [0.05], draws=300)
    apart = fdr_difference([a], [maxima(1.5, 2)], [0.05], draws=300)
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


@pytest.mark.parametrize(
    "ours, theirs, frr, message",
    [
        ([], [], [], "one pair and one FRR per seed are expected, got 0, 0 and 0"),
        ([maxima()], [maxima()], [0.1, 0.1], "one pair and one FRR per seed are expected, got 1, 1 and 2"),
        ([maxima()], [maxima(positives=79)], [0.1], "needs the same clips"),
        ([maxima()], [maxima()], [1.0], "frr is a share from 0 to below 1"),
    ],
)
def test_what_cannot_be_paired_is_refused(ours, theirs, frr, message):
    with pytest.raises(ValueError, match=message):
        fdr_difference(ours, theirs, frr)
    with pytest.raises(ValueError, match="at least 100 draws, got 99"):
        fdr_difference([maxima()], [maxima()], [0.1], draws=99)


def told(share, seed, seeds=3, clips=400):
    return np.random.default_rng(seed).random((seeds, clips)) < share


def test_accuracy_is_compared_clip_by_clip():
    ours, theirs = told(0.9, 1), told(0.8, 2)
    found = accuracy_difference(ours, theirs)
    assert found.mean == pytest.approx(ours.mean() - theirs.mean())
    assert found.per_seed == pytest.approx(ours.mean(1) - theirs.mean(1))
    assert found.low < found.mean < found.high and found.outcome == "wins"
    back = accuracy_difference(theirs, ours)
    assert (back.mean, back.outcome) == (-found.mean, "loses")
    same = accuracy_difference(ours, ours)
    assert (same.low, same.mean, same.high, same.outcome) == (0, 0, 0, "ties")


def test_one_seed_has_the_interval_of_mcnemar():
    """Of n clips b and c are told right by one system alone: (b - c) / n, variance (b + c - (b - c)^2 / n) / n^2."""
    ours, theirs = told(0.85, 3, seeds=1, clips=2000), told(0.8, 4, seeds=1, clips=2000)
    b, c, n = int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), ours.size
    deviation = np.sqrt(b + c - (b - c) ** 2 / n) / n
    found = accuracy_difference(ours, theirs, draws=4000)
    assert found.mean == pytest.approx((b - c) / n)
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.06)


def test_seeds_that_disagree_widen_the_interval():
    theirs = told(0.8, 5)
    steady = np.tile(told(0.85, 6, seeds=1), (3, 1))
    apart = np.stack([told(share, 7, seeds=1)[0] for share in (0.7, 0.85, 1.0)])
    widths = [f.high - f.low for f in (accuracy_difference(ours, theirs) for ours in (steady, apart))]
    assert widths[1] > 1.5 * widths[0]


def test_accuracies_of_other_clips_are_refused():
    with pytest.raises(ValueError, match="one row per seed and one column per clip"):
        accuracy_difference(told(0.9, 1), told(0.9, 1, clips=300))
    with pytest.raises(ValueError, match="at least 100 draws"):
        accuracy_difference(told(0.9, 1), told(0.8, 1), draws=9)


def test_clips_that_are_said_twice_tell_nothing_new():
    """Every clip three times, as one speaker's: the interval of each once. Drawn as if independent, a narrower one."""
    ours, theirs = told(0.85, 8, clips=150), told(0.8, 9, clips=150)
    once = accuracy_difference(ours, theirs)
    thrice = [np.repeat(x, 3, axis=1) for x in (ours, theirs)]
    grouped = accuracy_difference(*thrice, groups=np.repeat(np.arange(150), 3))
    assert [grouped.mean, grouped.low, grouped.high] == pytest.approx([once.mean, once.low, once.high])
    blind = accuracy_difference(*thrice)
    assert blind.mean == pytest.approx(once.mean)
    assert blind.high - blind.low < 0.8 * (once.high - once.low)


def test_false_accepts_of_one_speaker_widen_the_interval():
    a, b = maxima(2.0, 1, negatives=120), maxima(1.6, 2, negatives=120)
    alone = np.arange(80), 80 + np.arange(120)
    once = fdr_difference([a], [b], [0.1], groups=alone)
    assert once.mean == fdr_difference([a], [b], [0.1]).mean
    again = [tuple(np.repeat(x, 4) for x in pair) for pair in (a, b)]
    grouped = fdr_difference(again[:1], again[1:], [0.1], groups=tuple(np.repeat(g, 4) for g in alone))
    blind = fdr_difference(again[:1], again[1:], [0.1])
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.02)
    assert blind.high - blind.low < 0.7 * (once.high - once.low)


def test_one_speaker_who_says_everything_is_drawn_clip_by_clip():
    ours, theirs = told(0.85, 8), told(0.8, 9)
    assert accuracy_difference(ours, theirs, groups=np.zeros(400)) == accuracy_difference(ours, theirs)
    pair = [maxima(2.0, 1)], [maxima(1.6, 2)]
    same = np.zeros(80, int), np.zeros(200, int)
    assert fdr_difference(*pair, [0.1], groups=same, draws=200) == fdr_difference(*pair, [0.1], draws=200)


def test_a_draw_without_a_positive_is_drawn_again():
    a, b = maxima(2.0, 1, positives=3), maxima(1.0, 2, positives=3)
    groups = np.zeros(3, int), 1 + np.arange(200) % 2
    found = fdr_difference([a], [b], [0.0], groups=groups, draws=200)
    assert np.isfinite([found.low, found.high]).all()


def test_speakers_of_other_clips_are_refused():
    with pytest.raises(ValueError, match="a speaker for each of 400 clips is expected, got 399"):
        accuracy_difference(told(0.85, 8), told(0.8, 9), groups=np.zeros(399))
    with pytest.raises(
        ValueError, match="a speaker for each of 80 positives and 200 negatives is expected, got 80 and 9"
    ):
        fdr_difference([maxima()], [maxima(2, 1)], [0.1], groups=(np.zeros(80), np.zeros(9)))
