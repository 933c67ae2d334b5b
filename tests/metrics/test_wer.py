"""Word error rate against brute force, counts that add up, and intervals that cover what they should."""

import itertools
from functools import cache

import numpy as np
import pytest

from kwsbench.metrics.wer import (
    WordErrors,
    align,
    total_errors,
    wer_difference_interval,
    wer_interval,
    word_errors,
)


@cache
def fewest(reference: tuple[str, ...], hypothesis: tuple[str, ...]) -> int:
    """The definition, by trying everything: drop a word, add a word, or pair two."""
    if not reference or not hypothesis:
        return len(reference) + len(hypothesis)
    return min(
        fewest(reference[1:], hypothesis) + 1,
        fewest(reference, hypothesis[1:]) + 1,
        fewest(reference[1:], hypothesis[1:]) + (reference[0] != hypothesis[0]),
    )


def test_errors_are_the_fewest_on_every_short_pair():
    sequences = [s for n in range(4) for s in itertools.product("abc", repeat=n)]
    for reference, hypothesis in itertools.product(sequences, repeat=2):
        found = word_errors(reference, hypothesis)
        assert found.errors == fewest(reference, hypothesis), (reference, hypothesis)
        assert found.words == len(reference)
        # What was said and not deleted, and what came in, is what was recognised.
        assert found.words - found.deletions + found.insertions == len(hypothesis)


def test_errors_are_the_fewest_on_longer_random_pairs():
    rng = np.random.default_rng(0)
    for _ in range(200):
        reference = tuple(rng.choice(list("abcd"), rng.integers(0, 9)).tolist())
        hypothesis = tuple(rng.choice(list("abcd"), rng.integers(0, 9)).tolist())
        assert word_errors(reference, hypothesis).errors == fewest(reference, hypothesis)


def test_an_alignment_holds_both_sides_in_order():
    rng = np.random.default_rng(1)
    for _ in range(100):
        reference = rng.choice(list("abc"), rng.integers(0, 8)).tolist()
        hypothesis = rng.choice(list("abc"), rng.integers(0, 8)).tolist()
        pairs = align(reference, hypothesis)
        assert [said for said, _ in pairs if said is not None] == reference
        assert [heard for _, heard in pairs if heard is not None] == hypothesis
        assert (None, None) not in pairs


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("", "", (0, 0, 0)),
        ("yes no", "yes no", (0, 0, 0)),
        ("yes no", "", (0, 0, 2)),
        ("", "yes no", (0, 2, 0)),
        ("turn the light on", "turn light on now", (0, 1, 1)),
        ("up down", "down", (0, 0, 1)),
        ("stop", "go go", (1, 1, 0)),
    ],
)
def test_known_cases(reference, hypothesis, expected):
    found = word_errors(reference.split(), hypothesis.split())
    assert (found.substitutions, found.insertions, found.deletions) == expected


def test_a_rate_pools_over_utterances_and_can_exceed_one():
    errors = [word_errors(["a"], ["b", "c", "d"]), word_errors(["a", "b", "c"], ["a", "b", "c"])]
    assert total_errors(errors) == WordErrors(1, 2, 0, 4)
    assert total_errors(errors).rate == 0.75
    assert errors[0].rate == 3.0
    assert total_errors(errors).text() == "WER 75.0% (1 S + 2 I + 0 D of 4 words)"


def test_no_word_said_is_no_rate():
    with pytest.raises(ValueError, match="at least one word"):
        _ = word_errors([], ["a"]).rate
    assert WordErrors().text().startswith("WER undefined")


def test_a_string_is_not_words():
    with pytest.raises(TypeError, match="split it first"):
        word_errors("yes no", ["yes"])


def test_the_interval_is_the_percentiles_of_all_resamples():
    """Three utterances have 27 equally likely samples: with many draws the percentiles are those."""
    errors = [WordErrors(0, 0, 0, 2), WordErrors(1, 0, 0, 4), WordErrors(3, 0, 0, 3)]
    rates = sorted(sum(e.errors for e in s) / sum(e.words for e in s) for s in itertools.product(errors, repeat=3))
    found = wer_interval(errors, seed=3, draws=20000, confidence=0.8)
    assert found.rate == 4 / 9 and found.n == 3
    assert found.low == pytest.approx(np.quantile(rates, 0.1, method="inverted_cdf"), abs=1e-12)
    assert found.high == pytest.approx(np.quantile(rates, 0.9, method="inverted_cdf"), abs=1e-12)
    assert found == wer_interval(errors, seed=3, draws=20000, confidence=0.8)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(150):
        wrong = rng.binomial(5, 0.2, 60)
        found = wer_interval([WordErrors(int(k), 0, 0, 5) for k in wrong], seed=trial, draws=300, confidence=0.9)
        covered += found.low <= 0.2 <= found.high
    assert 0.8 <= covered / 150 <= 0.97  # 0.9, with the spread of 150 trials


def test_a_paired_difference_leaves_out_what_is_hard_for_both():
    rng = np.random.default_rng(0)
    hard = rng.binomial(10, np.where(rng.random(80) < 0.5, 0.05, 0.8))
    base = [WordErrors(int(k), 0, 0, 11) for k in hard]
    worse = [WordErrors(int(k) + 1, 0, 0, 11) for k in hard]
    found = wer_difference_interval(worse, base, seed=1)
    assert found.rate == pytest.approx(1 / 11) and found.high - found.low < 1e-12
    single = wer_interval(worse, seed=1)
    assert single.high - single.low > 0.1
    same = wer_difference_interval(base, base)
    assert (same.rate, same.low, same.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wer_interval([]), "needs utterances with words, got 0"),
        (lambda: wer_interval([WordErrors(0, 1, 0, 0)]), "needs utterances with words, got 1"),
        (lambda: wer_interval([WordErrors(0, 0, 0, 1)], draws=10), "at least 100 draws, got 10"),
        (lambda: wer_interval([WordErrors(0, 0, 0, 1)], confidence=1.0), "between 0 and 1, got 1.0"),
        (
            lambda: wer_difference_interval([WordErrors(0, 0, 0, 2)], [WordErrors(0, 0, 0, 3)]),
            "same utterances in the same order, got 1 of 2 words and 1 of 3 words",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
