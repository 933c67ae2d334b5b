"""From encoder frames to labels: greedy and beam search of a transducer, streaming.

Both work frame by frame and carry all they know in a state, so that encoder frames in any chunks give what they give
in one piece, to the bit. At each frame at most ``labels_per_frame`` labels are emitted (``TransducerConfig``), then the
blank follows by force. What was emitted stays in the state.

Greedy takes the best symbol at every step. The beam search (choice; after Graves 2012, arXiv 1211.3711, but frame by
frame and without his search over prefixes) keeps ``width`` hypotheses at every step: within a frame, all open ones are
extended by every symbol at once, the blank closing them for this frame; closed ones with the same labels are added up;
the best ``width`` of open and closed together go on until all are closed. Hence

- width 1 is greedy search, always: one hypothesis, its best symbol;
- with a width that prunes nothing, a score is the log-probability of the labels summed over all alignments with
  at most ``labels_per_frame`` labels at a frame, exactly.

Scores are natural logs, in float64. Equal scores: the smaller label sequence first, so that results do not hang on the
order of a sort.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from kwsbench.models.recurrent import LstmState
from kwsbench.models.transducer import BLANK, Transducer


@dataclass(frozen=True, eq=False)
class Greedy:
    """Labels so far, the encoder frame (from the stream's beginning) each was emitted at, frames heard, and the state
    of the prediction network."""

    labels: tuple[int, ...]
    emitted_at: tuple[int, ...]
    frames: int
    prediction: LstmState


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """Labels, the log of their probability so far, and the prediction network's state after them (``[1, n]`` each)."""

    labels: tuple[int, ...]
    score: float
    prediction: LstmState


@dataclass(frozen=True, eq=False)
class Beam:
    """The hypotheses, best first, and the number of encoder frames heard."""

    hypotheses: tuple[Hypothesis, ...]
    frames: int

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels of the best hypothesis."""
        return self.hypotheses[0].labels


@torch.no_grad()
def greedy_start(model: Transducer) -> Greedy:
    """The state before the first frame."""
    return Greedy((), (), 0, model.prediction.fresh())


@torch.no_grad()
def greedy_search(model: Transducer, encoded: torch.Tensor, state: Greedy) -> Greedy:
    """Take in encoder frames ``[T, width]``, any T; the state holds all labels so far.

    Raises:
        FloatingPointError: a logit is NaN (the frame is named).
    """
    labels, emitted_at = list(state.labels), list(state.emitted_at)
    prediction = state.prediction
    predicted = model.joiner.prediction(prediction[0])
    for t, frame in enumerate(encoded, start=state.frames):
        projected = model.joiner.encoder(frame[None].clone())
        for _ in range(model.config.labels_per_frame):
            logits = model.joiner.join(projected, predicted)[0]
            best = int(logits.argmax())
            if not torch.isfinite(logits[best]):
                raise FloatingPointError(f"logits at encoder frame {t} are not finite")
            if best == BLANK:
                break
            labels.append(best)
            emitted_at.append(t)
            prediction = model.prediction.emit(torch.tensor([best], device=encoded.device), prediction)
            predicted = model.joiner.prediction(prediction[0])
    return Greedy(tuple(labels), tuple(emitted_at), state.frames + len(encoded), prediction)


@torch.no_grad()
def beam_start(model: Transducer) -> Beam:
    """The state before the first frame: the empty hypothesis, certain."""
    return Beam((Hypothesis((), 0.0, model.prediction.fresh()),), 0)


@torch.no_grad()
def beam_search(model: Transducer, encoded: torch.Tensor, state: Beam, width: int) -> Beam:
    """Take in encoder frames ``[T, width of the encoder]``, any T, keeping ``width`` hypotheses.

    Raises:
        ValueError: width below 1.
        FloatingPointError: a logit is NaN (the frame is named).
    """
    if width < 1:
        raise ValueError(f"a beam needs a width of at least 1, got {width}")
    hypotheses = state.hypotheses
    for t, frame in enumerate(encoded, start=state.frames):
        projected = model.joiner.encoder(frame[None].clone())
        hypotheses = _search_frame(model, projected, hypotheses, width, t)
    return Beam(hypotheses, state.frames + len(encoded))


def _search_frame(
    model: Transducer, projected: torch.Tensor, hypotheses: tuple[Hypothesis, ...], width: int, frame: int
) -> tuple[Hypothesis, ...]:
    """One encoder frame, already projected ``[1, joint]``."""
    opened = list(hypotheses)
    closed: dict[tuple[int, ...], Hypothesis] = {}
    for _ in range(model.config.labels_per_frame):
        scores = _log_probabilities(model, projected, opened, frame)
        candidates = _closing(closed, opened, scores[:, BLANK])
        ranked = [(-h.score, h.labels, True, h, BLANK) for h in candidates.values()]
        for parent, row in zip(opened, scores):
            ranked += [
                (-(parent.score + float(row[k])), (*parent.labels, k), False, parent, k)
                for k in _best_labels(row, width)
            ]
        ranked.sort(key=lambda entry: entry[:3])
        kept = ranked[:width]
        closed = {entry[1]: entry[3] for entry in kept if entry[2]}
        opened = _emit(model, [(labels, -cost, parent, k) for cost, labels, done, parent, k in kept if not done])
        if not opened:
            break
    else:
        closed = _closing(closed, opened, _log_probabilities(model, projected, opened, frame)[:, BLANK])
    return tuple(sorted(closed.values(), key=lambda h: (-h.score, h.labels))[:width])


def _log_probabilities(model: Transducer, projected: torch.Tensor, opened: list[Hypothesis], frame: int) -> np.ndarray:
    """Log-probabilities ``[hypotheses, symbols]`` at this frame, float64."""
    states = torch.cat([h.prediction[0] for h in opened])
    logits = model.joiner.join(projected, model.joiner.prediction(states)).double()
    if torch.isnan(logits).any():
        raise FloatingPointError(f"logits at encoder frame {frame} are not finite")
    return logits.log_softmax(-1).cpu().numpy()


def _closing(
    closed: dict[tuple[int, ...], Hypothesis], opened: list[Hypothesis], blank: np.ndarray
) -> dict[tuple[int, ...], Hypothesis]:
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
    return (1 + np.argsort(-row[1:], kind="stable")[:count]).tolist()


def _emit(model: Transducer, children: list[tuple[tuple[int, ...], float, Hypothesis, int]]) -> list[Hypothesis]:
    """Hypotheses ``(labels, score, parent, label)`` with the prediction network moved on, in one call."""
    if not children:
        return []
    h, c = (torch.cat([parent.prediction[i] for _, _, parent, _ in children]) for i in (0, 1))
    emitted = torch.tensor([k for *_, k in children], device=h.device)
    h, c = model.prediction.emit(emitted, (h, c))
    return [Hypothesis(labels, score, (h[i : i + 1], c[i : i + 1])) for i, (labels, score, _, _) in enumerate(children)]


@dataclass(frozen=True, eq=False)
class Listening:
    """A recognizer's whole state: the encoder's and the search's."""

    encoder: Any
    search: Greedy | Beam


def listen_start(model: Transducer, width: int = 1) -> Listening:
    """The state before the first frame; ``width`` 1 searches greedily."""
    return Listening(model.encoder.fresh(), greedy_start(model) if width == 1 else beam_start(model))


@torch.no_grad()
def listen(model: Transducer, frames: torch.Tensor, state: Listening, width: int = 1) -> Listening:
    """Take in log-mel frames ``[T, n_mels]``, any T; ``state.search.labels`` are the labels so far."""
    encoded, encoder = model.encoder.step(model.normalise(frames[None]), state.encoder)
    if isinstance(state.search, Beam):
        return Listening(encoder, beam_search(model, encoded[0], state.search, width))
    return Listening(encoder, greedy_search(model, encoded[0], state.search))


def recognise(model: Transducer, frames: torch.Tensor, width: int = 1) -> tuple[int, ...]:
    """Labels of a whole recording: log-mel frames ``[T, n_mels]`` through a fresh recognizer.

    >>> # labels = recognise(model, torch.from_numpy(lfbe(audio, config)), width=4)
    """
    return listen(model, frames, listen_start(model, width), width).search.labels
