import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kwsbench.metrics.compare import (
    design_effect,
    poisson_interval,
    poisson_upper,
    speaker_groups,
    spread,
    wilson_interval,
)


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_equals_scipy(a, b, confidence):
    count, n = min(a, b), max(a, b, 1)
    expected = stats.binomtest(count, n).proportion_ci(confidence, method="wilson")
    np.testing.assert_allclose(wilson_interval(count, n, confidence), expected, rtol=1e-12, atol=1e-14)


def test_wilson_solves_its_defining_equation():
    # The bounds are the p at which the normal test of the observed share just rejects.
    for p in wilson_interval(7, 120):
        assert abs(7 / 120 - p) / np.sqrt(p * (1 - p) / 120) == pytest.approx(stats.norm.ppf(0.975))


def test_wilson_bounds_are_exact_at_none_and_all():
    assert wilson_interval(0, 30)[0] == 0.0
    assert wilson_interval(30, 30)[1] == 1.0


@given(st.integers(0, 2000), st.floats(0.01, 1e4), st.sampled_from([0.5, 0.9, 0.95]))
def test_poisson_equals_the_chi_square_form(events, hours, confidence):
    tail = (1 - confidence) / 2
    low = stats.chi2.ppf(tail, 2 * events) / 2 / hours if events else 0.0
    high = stats.chi2.ppf(1 - tail, 2 * events + 2) / 2 / hours
    np.testing.assert_allclose(poisson_interval(events, hours, confidence), (low, high), rtol=1e-9)
    upper = stats.chi2.ppf(confidence, 2 * events + 2) / 2 / hours
    assert poisson_upper(events, hours, confidence) == pytest.approx(upper, rel=1e-9)


def test_poisson_bounds_are_where_the_tails_have_their_share():
    low, high = poisson_interval(5, 2.0)
    assert stats.poisson.sf(4, low * 2) == pytest.approx(0.025)
    assert stats.poisson.cdf(5, high * 2) == pytest.approx(0.025)


def test_no_event_gives_the_rule_of_three():
    assert poisson_upper(0, 10.0) == pytest.approx(-np.log(0.05) / 10)
    assert poisson_upper(0, 10.0) == pytest.approx(0.3, rel=2e-3)


def test_spread_over_seeds():
    s = spread([0.05, 0.07, 0.06])
    assert (s.mean, s.least, s.largest, s.n) == (pytest.approx(0.06), 0.05, 0.07, 3)
    assert s.text(factor=100) == "6 (5 to 7, n = 3)"
    assert spread([0.123]).text() == "0.123 (n = 1)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spread([]), "at least one value"),
        (lambda: spread([1.0, float("nan")]), "is NaN"),
        (lambda: wilson_interval(0, 0), "got 0 of 0"),
        (lambda: wilson_interval(4, 3), "got 4 of 3"),
        (lambda: wilson_interval(1, 3, 1.0), "confidence must lie between 0 and 1, got 1.0"),
        (lambda: poisson_interval(-1, 1.0), "got -1 in 1.0"),
        (lambda: poisson_upper(0, 0.0), "got 0 in 0.0"),
        (lambda: poisson_upper(0, 1.0, 95), "confidence must lie between 0 and 1, got 95"),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_speakers_get_numbers_and_unknown_ones_each_their_own():
    assert speaker_groups(["b", "", "a", "b", "", "\0"]).tolist() == [0, 1, 2, 0, 3, 4]
    assert speaker_groups([]).shape == (0,)


@pytest.mark.parametrize("times", [2, 5])
def test_a_clip_said_again_and_again_counts_once(times):
    values = (np.random.default_rng(0).random(400) < 0.7).astype(float)
    effect = design_effect(np.repeat(values, times), np.repeat(np.arange(400), times))
    assert effect == pytest.approx(times, rel=0.01)
    assert design_effect(values, np.arange(400)) == pytest.approx(1.0)


def test_the_design_effect_is_that_of_clips_correlated_within_speakers():
    """Kish: 1 + (m - 1) rho for m clips a speaker, of correlation rho."""
    rng = np.random.default_rng(1)
    speakers, m, rho = 4000, 6, 0.3
    values = np.sqrt(rho) * rng.normal(size=(speakers, 1)) + np.sqrt(1 - rho) * rng.normal(size=(speakers, m))
    groups = np.repeat(np.arange(speakers), m)
    shuffled = rng.permutation(speakers * m)
    assert design_effect(values.ravel()[shuffled], groups[shuffled]) == pytest.approx(1 + 5 * rho, rel=0.05)


@pytest.mark.parametrize(
    "sizes, least",
    [([8] * 60, 0.92), ([66, 44, 13, 13, 10, 8, 8, 7, 6, 6, *[3] * 15, *[1] * 48], 0.84)],
    ids=["alike", "two speakers say most"],
)
def test_intervals_of_clustered_clips_hold_the_truth_more_often(sizes, least):
    """Speakers differ in how well they are understood. Wilson on effective clips holds their mean about as often as it
    says; less where few speakers say much, and always far more than on all clips."""
    rng, groups, truth = np.random.default_rng(2), np.repeat(np.arange(len(sizes)), sizes), 0.8
    n, held = len(groups), {"effective": 0, "all": 0}
    for _ in range(400):
        understood = rng.beta(4, 1, size=len(sizes))  # of mean 0.8
        right = (rng.random(n) < understood[groups]).astype(float)
        for name, worth in (("effective", n / design_effect(right, groups)), ("all", n)):
            low, high = wilson_interval(right.mean() * worth, worth)
            held[name] += low <= truth <= high
    assert least <= held["effective"] / 400 <= 0.98
    assert held["all"] / 400 < 0.9 and held["all"] < held["effective"] - 15


@pytest.mark.parametrize("values, groups", [(np.ones(10), np.arange(10)), (np.arange(4.0), np.zeros(4)), ([1.0], [0])])
def test_nothing_to_estimate_is_no_effect(values, groups):
    assert design_effect(values, groups) == 1.0


def test_a_design_effect_needs_values_with_groups():
    for values, groups in (([], []), ([1.0, 2.0], [1])):
        with pytest.raises(ValueError, match="a group for each value is expected"):
            design_effect(values, groups)
