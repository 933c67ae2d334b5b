"""The search alone, on a network whose states are the labels themselves: all alignments, ties, pieces, bad input."""

import itertools

import numpy as np
import pytest

from kwsbench.beam import beginning, search


class DrawnFrame:
    """Log-probabilities drawn for every frame and label sequence; the state after some labels is these labels."""

    def __init__(self, number, symbols=3, logits=None):
        self.number, self.symbols, self.logits = number, symbols, logits
        self.asked = []

    def row(self, labels):
        logits = self.logits
        if logits is None:
            logits = 2 * np.random.default_rng([self.number, *labels]).normal(size=self.symbols)
        return np.asarray(logits) - np.logaddexp.reduce(logits)

    def log_probabilities(self, states):
        self.asked.append(len(states))
        return np.array([self.row(labels) for labels in states])

    def emit(self, states, labels):
        return [(*state, label) for state, label in zip(states, labels, strict=True)]


def frames(count, **options):
    return [DrawnFrame(n, **options) for n in range(count)]


def all_alignments(count, per_frame):
    """{labels: log-probability over all ways to deal them to frames}."""
    scores = {}
    for dealt in itertools.product(range(per_frame + 1), repeat=count):
        for labels in itertools.product((1, 2), repeat=sum(dealt)):
            total, u = 0.0, 0
            for frame, n in zip(frames(count), dealt):
                for label in (*labels[u : u + n], 0):
                    total += frame.row(labels[:u])[label]
                    u += label != 0
            scores[labels] = np.logaddexp(scores.get(labels, -np.inf), total)
    return scores


@pytest.mark.parametrize(("count", "per_frame"), [(1, 1), (2, 3), (3, 2), (5, 1)])
def test_without_pruning_scores_are_those_of_all_alignments(count, per_frame):
    expected = all_alignments(count, per_frame)
    found = search(frames(count), beginning(()), 10_000, per_frame)
    assert {h.labels for h in found} == expected.keys()
    assert all(h.prediction == h.labels for h in found)
    np.testing.assert_allclose([h.score for h in found], sorted(expected.values(), reverse=True), atol=1e-12)
    np.testing.assert_allclose([h.score for h in found], [expected[h.labels] for h in found], atol=1e-12)
    for h in search(frames(count), beginning(()), 3, per_frame):
        assert h.score <= expected[h.labels] + 1e-12  # pruned scores leave alignments out, they never add any


@pytest.mark.parametrize("width", [1, 2, 5])
def test_pieces_give_what_the_whole_gives_and_no_more_is_asked_than_the_width(width):
    heard = frames(12)
    whole = search(heard, beginning(()), width, 2)
    assert max(n for frame in heard for n in frame.asked) <= width == len(whole)
    for cut in range(13):
        first = search(frames(12)[:cut], beginning(()), width, 2)
        both = search(frames(12)[cut:], first, width, 2)
        assert [(h.labels, h.score) for h in both] == [(h.labels, h.score) for h in whole]


def test_of_equal_scores_the_smaller_labels_come_first():
    one = search(frames(1, logits=[0.0, 0.0, 0.0]), beginning(()), 3, 1)
    assert [h.labels for h in one] == [(), (1,), (2,)]
    assert search(frames(3, logits=[0.0, 1.0, 1.0]), beginning(()), 1, 2)[0].labels == (1,) * 6
    assert search(frames(3, logits=[1.0, 1.0, 1.0]), beginning(()), 1, 2)[0].labels == ()


def test_no_frames_change_nothing_and_bad_widths_are_named():
    fresh = beginning(())
    assert search([], fresh, 3, 2) == fresh
    for width in (0, -2):
        with pytest.raises(ValueError, match=f"width of at least 1, got {width}"):
            search(frames(1), fresh, width, 2)
