"""Beam search of a transducer, frame by frame, in whatever arithmetic scores its symbols. No torch.

After Graves 2012 (arXiv 1211.3711), but frame by frame and without his search over prefixes (choice). ``width``
hypotheses are kept at every step: within a frame, all open ones are extended by every symbol at once, the blank (symbol
0) closing them for this frame; closed ones with the same labels are added up; the best ``width`` of open and closed
together go on until all are closed. After ``labels_per_frame`` labels the blank follows by force. Hence

- width 1 is greedy search: one hypothesis, its best symbol;
- with a width that prunes nothing, a score is the log-probability of the labels summed over all alignments with
  at most ``labels_per_frame`` labels at a frame, exactly.

Scores are natural logs, in float64. Equal scores: the smaller label sequence first, so that results do not hang on the
order of a sort. All that is known stands in the hypotheses: frames in any pieces give what they give in one, to the
bit.

Who searches brings a :class:`Frame` for every encoder frame: ``models.decoding`` in torch, ``integer.listen`` in
integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

BLANK = 0
State = TypeVar("State")  # the prediction network's, after some labels; the search hands it on and never looks inside


class Frame(Protocol[State]):
    """One encoder frame before the network that is searched."""

    def log_probabilities(self, states: Sequence[State]) -> np.ndarray:
        """Natural logs float64 ``[states, symbols]`` at this frame, none of them NaN."""

    def emit(self, states: Sequence[State], labels: Sequence[int]) -> Sequence[State]:
        """The states after one more label each; those given stay as they are."""


@dataclass(frozen=True, eq=False)
class Hypothesis(Generic[State]):
    """Labels, the log of their probability so far, and the prediction network's state after them."""

    labels: tuple[int, ...]
    score: float
    prediction: State


def beginning(prediction: State) -> tuple[Hypothesis[State], ...]:
    """Before the first frame: no labels, certain; ``prediction``: the state before any label."""
    return (Hypothesis((), 0.0, prediction),)


def check_width(width: int) -> int:
    """The width of a beam. Raises ValueError below 1."""
    if width < 1:
        raise ValueError(f"a beam needs a width of at least 1, got {width}")
    return width


def search(
    frames: Iterable[Frame[State]], hypotheses: tuple[Hypothesis[State], ...], width: int, labels_per_frame: int
) -> tuple[Hypothesis[State], ...]:
    """Take in any number of frames: the best ``width`` hypotheses after them, best first.

    Raises:
        ValueError: width below 1.
    """
    check_width(width)
    for frame in frames:
        hypotheses = _search_frame(frame, hypotheses, width, labels_per_frame)
    return hypotheses


def _search_frame(
    frame: Frame[State], hypotheses: tuple[Hypothesis[State], ...], width: int, labels_per_frame: int
) -> tuple[Hypothesis[State], ...]:
    opened = list(hypotheses)
    closed: dict[tuple[int, ...], Hypothesis[State]] = {}
    for _ in range(labels_per_frame):
        scores = _scores(frame, opened)
        candidates = _closing(closed, opened, scores[:, BLANK])
        ranked: list[tuple[Any, ...]] = [(-h.score, h.labels, True, h, BLANK) for h in candidates.values()]
        for parent, row in zip(opened, scores):
            ranked += [
                (-(parent.score + float(row[k])), (*parent.labels, k), False, parent, k)
                for k in _best_labels(row, width)
            ]
        ranked.sort(key=lambda entry: entry[:3])
        kept = ranked[:width]
        closed = {entry[1]: entry[3] for entry in kept if entry[2]}
        opened = _emit(frame, [(labels, -cost, parent, k) for cost, labels, done, parent, k in kept if not done])
        if not opened:
            break
    else:
        closed = _closing(closed, opened, _scores(frame, opened)[:, BLANK])
    return tuple(sorted(closed.values(), key=lambda h: (-h.score, h.labels))[:width])


def _scores(frame: Frame[State], opened: list[Hypothesis[State]]) -> np.ndarray:
    return frame.log_probabilities([h.prediction for h in opened])


def _closing(
    closed: dict[tuple[int, ...], Hypothesis[State]], opened: list[Hypothesis[State]], blank: np.ndarray
) -> dict[tuple[int, ...], Hypothesis[State]]:
    """The closed hypotheses after the open ones have taken the blank too; equal labels are added up."""
    merged = dict(closed)
    for hypothesis, log_p in zip(opened, blank):
        score = hypothesis.score + float(log_p)
        if hypothesis.labels in merged:
            score = float(np.logaddexp(merged[hypothesis.labels].score, score))
        merged[hypothesis.labels] = replace(hypothesis, score=score)
    return merged


def _best_labels(row: np.ndarray, count: int) -> list[int]:
    """The ``count`` best symbols but the blank; equal ones in order. No more can survive in a beam as wide."""
    return (1 + np.argsort(-row[1:], kind="stable")[:count]).tolist()  # type: ignore[no-any-return]


def _emit(
    frame: Frame[State], children: list[tuple[tuple[int, ...], float, Hypothesis[State], int]]
) -> list[Hypothesis[State]]:
    """Hypotheses ``(labels, score, parent, label)`` with the prediction network moved on, in one call."""
    if not children:
        return []
    states = frame.emit([parent.prediction for *_, parent, _ in children], [k for *_, k in children])
    return [Hypothesis(labels, score, state) for (labels, score, _, _), state in zip(children, states, strict=True)]
