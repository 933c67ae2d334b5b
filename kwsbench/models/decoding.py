"""From encoder frames to labels: greedy and beam search of a transducer, streaming.

Both work frame by frame and carry all they know in a state, so that encoder frames in any chunks give what they give
in one piece, to the bit. At each frame at most ``labels_per_frame`` labels are emitted (``TransducerConfig``), then the
blank follows by force. What was emitted stays in the state.

Greedy takes the best symbol at every step. The beam search is that of ``kwsbench.beam``, which tells its rules; here
are its frames in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kwsbench.beam import Hypothesis, beginning, search
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
class Beam:
    """The hypotheses, best first (their prediction states ``[1, n]`` each), and the number of encoder frames heard."""

    hypotheses: tuple[Hypothesis[LstmState], ...]
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
    return Beam(beginning(model.prediction.fresh()), 0)


@torch.no_grad()
def beam_search(model: Transducer, encoded: torch.Tensor, state: Beam, width: int) -> Beam:
    """Take in encoder frames ``[T, width of the encoder]``, any T, keeping ``width`` hypotheses.

    Raises:
        ValueError: width below 1.
        FloatingPointError: a logit is NaN (the frame is named).
    """
    frames = (_Frame(model, frame, number) for number, frame in enumerate(encoded, start=state.frames))
    hypotheses = search(frames, state.hypotheses, width, model.config.labels_per_frame)
    return Beam(hypotheses, state.frames + len(encoded))


class _Frame:
    """An encoder frame, projected ``[1, joint]``, as the search asks for it (``kwsbench.beam``)."""

    def __init__(self, model: Transducer, frame: torch.Tensor, number: int):
        self._model, self._number = model, number
        self._projected = model.joiner.encoder(frame[None].clone())

    def log_probabilities(self, states: Sequence[LstmState]) -> np.ndarray:
        joiner = self._model.joiner
        logits = joiner.join(self._projected, joiner.prediction(torch.cat([h for h, _ in states]))).double()
        if torch.isnan(logits).any():
            raise FloatingPointError(f"logits at encoder frame {self._number} are not finite")
        return logits.log_softmax(-1).cpu().numpy()  # type: ignore[no-any-return]

    def emit(self, states: Sequence[LstmState], labels: Sequence[int]) -> list[LstmState]:
        h, c = (torch.cat([state[i] for state in states]) for i in (0, 1))
        h, c = self._model.prediction.emit(torch.tensor(labels, device=h.device), (h, c))
        return [(h[i : i + 1], c[i : i + 1]) for i in range(len(labels))]


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
    """Take in log-mel frames ``[T, n_mels]``, any T; ``state.search.labels`` are the labels so far.

    Raises:
        ValueError: the state was started for a greedy search and ``width`` asks for a beam.
    """
    if isinstance(state.search, Greedy) and width != 1:
        raise ValueError(f"this state searches greedily: start with listen_start(model, {width}) for a beam of {width}")
    encoded, encoder = model.encoder.step(model.normalise(frames[None]), state.encoder)
    if isinstance(state.search, Beam):
        return Listening(encoder, beam_search(model, encoded[0], state.search, width))
    return Listening(encoder, greedy_search(model, encoded[0], state.search))


def recognise(model: Transducer, frames: torch.Tensor, width: int = 1) -> tuple[int, ...]:
    """Labels of a whole recording: log-mel frames ``[T, n_mels]`` through a fresh recognizer.

    >>> # labels = recognise(model, torch.from_numpy(lfbe(audio, config)), width=4)
    """
    return listen(model, frames, listen_start(model, width), width).search.labels
