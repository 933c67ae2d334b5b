"""Word error rate: substitutions, insertions and deletions of a best alignment, over the words that were said.

    WER = (S + I + D) / N          N: words of the references; above 1 where much was inserted

The alignment has the fewest errors (Levenshtein 1966). Where several have, the one is taken that follows, from the end
backwards, a match or substitution before a deletion before an insertion: S + I + D does not depend on that,
their shares do (NIST's sclite weighs 4 : 3 : 3 and may share them out differently). Words are compared as they are:
bring both sides to one case and spelling before.

Intervals are by bootstrap over utterances (Bisani and Ney 2004): WER pooled over utterances drawn with replacement, the
percentiles of many draws. It takes utterances as independent; those of one speaker are not. Rows summed by
speaker first give a bootstrap over speakers, wider and more honest where speakers are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Pair = tuple[str | None, str | None]


@dataclass(frozen=True)
class WordErrors:
    """Counts of one utterance, or of many added up."""

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    words: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """WER. Raises ValueError where no word was said: insertions over nothing are no rate."""
        if not self.words:
            raise ValueError("a word error rate needs at least one word in the references")
        return self.errors / self.words

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.words + other.words,
        )

    def text(self) -> str:
        """For a person: ``"WER 25.0% (1 S + 0 I + 0 D of 4 words)"``."""
        rate = f"{100 * self.rate:.1f}%" if self.words else "undefined"
        return f"WER {rate} ({self.substitutions} S + {self.insertions} I + {self.deletions} D of {self.words} words)"


@dataclass(frozen=True)
class RateInterval:
    """A rate and its interval, from the ``n`` utterances (or speakers) that were resampled."""

    rate: float
    low: float
    high: float
    n: int


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    """Pairs (said, recognised) in order; None stands on the left of an insertion, on the right of a deletion."""
    cost = _distances(reference, hypothesis)
    pairs: list[Pair] = []
    i, j = len(reference), len(hypothesis)
    while i or j:
        differ = bool(i and j and reference[i - 1] != hypothesis[j - 1])
        if i and j and cost[i, j] == cost[i - 1, j - 1] + differ:
            i, j = i - 1, j - 1
            pairs.append((reference[i], hypothesis[j]))
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            pairs.append((reference[i], None))
        else:
            j -= 1
            pairs.append((None, hypothesis[j]))
    return pairs[::-1]


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> WordErrors:
    """Errors of one utterance, both sides as sequences of words.

    Raises:
        TypeError: a string instead of words (it would be compared letter by letter).

    >>> word_errors("stop the alarm".split(), "the the alarm now".split())
    WordErrors(substitutions=1, insertions=1, deletions=0, words=3)
    """
    for side in (reference, hypothesis):
        if isinstance(side, str):
            raise TypeError(f"words are expected, got the string {side!r}: split it first")
    pairs = align(reference, hypothesis)
    return WordErrors(
        substitutions=sum(said is not None and heard is not None and said != heard for said, heard in pairs),
        insertions=sum(said is None for said, _ in pairs),
        deletions=sum(heard is None for _, heard in pairs),
        words=len(reference),
    )


def total_errors(errors: Sequence[WordErrors]) -> WordErrors:
    """The sum over utterances."""
    return sum(errors, WordErrors())


def wer_interval(
    errors: Sequence[WordErrors], seed: int = 0, draws: int = 2000, confidence: float = 0.95
) -> RateInterval:
    """WER over all utterances and its bootstrap interval.

    Raises:
        ValueError: no utterance, no word said, ``draws`` below 100, ``confidence`` outside (0, 1).
    """
    table = _table(errors)
    rates = _resampled(table, seed, draws, confidence)
    low, high = np.quantile(rates, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return RateInterval(_rate(table), float(low), float(high), len(table))


def wer_difference_interval(
    errors: Sequence[WordErrors],
    baseline: Sequence[WordErrors],
    seed: int = 0,
    draws: int = 2000,
    confidence: float = 0.95,
) -> RateInterval:
    """WER minus that of a baseline on the same utterances in the same order, and its paired bootstrap interval.

    Both systems are resampled together: what makes an utterance hard for both falls out of the difference.

    Raises:
        ValueError: as :func:`wer_interval`, or the two do not hold the same utterances (their words differ).
    """
    ours, theirs = _table(errors), _table(baseline)
    if ours.shape != theirs.shape or (ours[:, 1] != theirs[:, 1]).any():
        raise ValueError(
            "a paired comparison needs the same utterances in the same order, "
            f"got {len(ours)} of {int(ours[:, 1].sum())} words and {len(theirs)} of {int(theirs[:, 1].sum())} words"
        )
    differences = _resampled(ours, seed, draws, confidence) - _resampled(theirs, seed, draws, confidence)
    low, high = np.quantile(differences, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return RateInterval(_rate(ours) - _rate(theirs), float(low), float(high), len(ours))


def _distances(reference: Sequence[str], hypothesis: Sequence[str]) -> np.ndarray:
    """Edit distances of all prefixes, int64 ``[len(reference) + 1, len(hypothesis) + 1]``."""
    numbers = {word: n for n, word in enumerate(dict.fromkeys((*reference, *hypothesis)))}
    said = np.array([numbers[w] for w in reference], np.int64)
    heard = np.array([numbers[w] for w in hypothesis], np.int64)
    columns = np.arange(len(heard) + 1)
    cost = np.empty((len(said) + 1, len(heard) + 1), np.int64)
    cost[0] = columns
    for i in range(1, len(cost)):
        row = np.empty(len(columns), np.int64)
        row[0] = i
        row[1:] = np.minimum(cost[i - 1, :-1] + (heard != said[i - 1]), cost[i - 1, 1:] + 1)
        # Insertions run along the row: the least of row[k] + (j - k) over k <= j.
        cost[i] = np.minimum.accumulate(row - columns) + columns
    return cost


def _table(errors: Sequence[WordErrors]) -> np.ndarray:
    """Errors and words per utterance, float64 ``[n, 2]``."""
    table = np.array([(e.errors, e.words) for e in errors], np.float64).reshape(-1, 2)
    if not len(table) or not table[:, 1].sum() > 0:
        raise ValueError(f"an interval of a word error rate needs utterances with words, got {len(table)} utterances")
    return table


def _resampled(table: np.ndarray, seed: int, draws: int, confidence: float) -> np.ndarray:
    """Rates of ``draws`` bootstrap samples; the same seed draws the same utterances."""
    if draws < 100:
        raise ValueError(f"a bootstrap needs at least 100 draws, got {draws}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    rng = np.random.default_rng(seed)
    rates = np.empty(draws)
    for i in range(draws):
        sums = table[rng.integers(len(table), size=len(table))].sum(0)
        # A sample without a single word has no rate; with words in every utterance it cannot occur.
        rates[i] = sums[0] / sums[1] if sums[1] else np.nan
    return rates[~np.isnan(rates)]


def _rate(table: np.ndarray) -> float:
    errors, words = table.sum(0)
    return float(errors / words)
