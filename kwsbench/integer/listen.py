"""Run an integer recognizer over frames, whole or streamed, with greedy or beam search. No torch.

``listen(engine, frames, state)`` takes any number of log-mel frames; a whole recording is a call from the fresh state,
and every chunking gives the same. An engine does the arithmetic: ``Reference`` in NumPy, ``Packed`` (integer/packed.py)
by kernels on packed weights. All engines give the same integers. Frames that do not fill the last group at the end of a
recording are not encoded.

Greedy search on the int32 accumulators: the best symbol at every step, of equal ones the first; at most
``labels_per_frame`` labels at an encoder frame. A wider search, ``start(engine, width)``, is the beam of
``kwsbench.beam`` on log-probabilities in float64, made from the accumulators by their unit. Its best labels may change
until the last frame has been heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from kwsbench import beam
from kwsbench.integer import recognizer_reference as reference
from kwsbench.integer.program import OutputDense
from kwsbench.integer.recognizer import Recognizer
from kwsbench.integer.reference import quantize_input

BLANK = beam.BLANK
PredictionState = tuple[np.ndarray, np.ndarray]  # h int8, c int16 [H]


class Engine(Protocol):
    """The arithmetic of one recognizer. Layers' states lie one behind the other, and are updated in place."""

    recognizer: Recognizer

    def encode(self, x: np.ndarray, h: np.ndarray, c: np.ndarray, first: int, last: int) -> None:
        """Encoder layers ``first..last - 1`` on one frame int8 [K]; ``h`` int8, ``c`` int16 of all layers."""

    def predict(self, label: int, h: np.ndarray, c: np.ndarray) -> None:
        """The prediction network takes a label; its ``h`` int8, ``c`` int16."""

    def scores(self, encoded: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """int32 accumulators of all symbols, from the ``h`` of both networks."""


class Reference:
    """Every operation by NumPy."""

    def __init__(self, recognizer: Recognizer):
        self.recognizer = recognizer
        self._spans = spans(recognizer)

    def encode(self, x: np.ndarray, h: np.ndarray, c: np.ndarray, first: int, last: int) -> None:
        for layer, span in zip(self.recognizer.encoder[first:last], self._spans[first:last]):
            h[span], c[span] = reference.lstm(x, h[span], c[span], layer)
            x = h[span]

    def predict(self, label: int, h: np.ndarray, c: np.ndarray) -> None:
        x = reference.embedding_row(label, self.recognizer.embedding)
        h[:], c[:] = reference.lstm(x, h, c, self.recognizer.prediction)

    def scores(self, encoded: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        y = reference.joint(encoded, predicted, self.recognizer.joint)
        return reference.output(y, self.recognizer.output)


@dataclass(frozen=True, eq=False)
class Listening:
    """All that is remembered between calls; arrays are never changed once they stand here.

    Of a beam, ``labels`` and the prediction network's state are those of its best hypothesis, and ``emitted_at`` stays
    empty: a score adds up several alignments.
    """

    pending: np.ndarray  # int8 [< stack, n_mels]
    unreduced: np.ndarray  # int8 [< reduction, width of the layer before the reduction]
    h: np.ndarray  # int8, of all encoder layers
    c: np.ndarray  # int16
    prediction_h: np.ndarray  # int8 [H]
    prediction_c: np.ndarray  # int16 [H]
    labels: tuple[int, ...] = ()
    emitted_at: tuple[int, ...] = ()  # encoder frame, from the stream's beginning, of each label
    frames: int = 0  # encoder frames so far
    width: int = 1  # of the search; 1: greedy
    hypotheses: tuple[beam.Hypothesis[PredictionState], ...] = ()  # of a beam, best first


def spans(recognizer: Recognizer) -> list[slice]:
    """Where the state of each encoder layer lies."""
    ends = np.cumsum([layer.state.codes.shape[1] for layer in recognizer.encoder]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends)]


def start(engine: Engine, width: int = 1) -> Listening:
    """The state before the first frame: zeros, and the prediction network after the blank. ``width`` 1 searches
    greedily, more by beam.

    Raises:
        ValueError: width below 1.
    """
    beam.check_width(width)
    recognizer = engine.recognizer
    places, hidden = spans(recognizer), recognizer.prediction.state.codes.shape[1]
    before = places[max(recognizer.reduce_after, 1) - 1]
    h, c = np.zeros(hidden, np.int8), np.zeros(hidden, np.int16)
    engine.predict(BLANK, h, c)
    return Listening(
        np.zeros((0, recognizer.n_mels), np.int8),
        np.zeros((0, before.stop - before.start), np.int8),
        np.zeros(places[-1].stop, np.int8),
        np.zeros(places[-1].stop, np.int16),
        h,
        c,
        width=width,
        hypotheses=beam.beginning((h, c)) if width > 1 else (),
    )


def listen(engine: Engine, frames: np.ndarray, state: Listening) -> Listening:
    """Log-mel frames float32 ``[T, n_mels]``, any T -> the next state; it holds all labels so far.

    Raises:
        ValueError: frames of another width, or not finite.
    """
    encoded, state = encode(engine, frames, state)
    return search(engine, encoded, state) if state.width == 1 else beam_search(engine, encoded, state)


def transcribe(engine: Engine, frames: np.ndarray, width: int = 1) -> tuple[int, ...]:
    """Labels of a whole recording, by greedy search or a beam of ``width``.

    Raises:
        ValueError: width below 1; frames of another width, or not finite.
    """
    return listen(engine, frames, start(engine, width)).labels


def encode(engine: Engine, frames: np.ndarray, state: Listening) -> tuple[np.ndarray, Listening]:
    """Log-mel frames float32 ``[T, n_mels]`` -> the encoder frames they complete, int8 ``[T', H]``, and the next state.

    Raises:
        ValueError: frames of another width, or not finite.
    """
    recognizer = engine.recognizer
    frames = np.asarray(frames, np.float32)
    if frames.ndim != 2 or frames.shape[1] != recognizer.n_mels:
        raise ValueError(f"this recognizer takes frames of {recognizer.n_mels} mel bands, got shape {frames.shape}")
    if not np.all(np.isfinite(frames)):
        raise ValueError("the frames hold NaN or infinite values: check the audio before the features")
    joined, pending = _join(quantize_input(frames, recognizer.input), state.pending, recognizer.stack)
    places, layers = spans(recognizer), len(recognizer.encoder)
    cut = recognizer.reduce_after if recognizer.reduction > 1 else layers
    h, c, unreduced, encoded = state.h.copy(), state.c.copy(), state.unreduced, []
    for x in joined:
        engine.encode(x, h, c, 0, cut)
        if cut < layers:
            reduced, unreduced = _join(h[None, places[cut - 1]], unreduced, recognizer.reduction)
            if not len(reduced):
                continue
            engine.encode(reduced[0], h, c, cut, layers)
        encoded.append(h[places[-1]].copy())
    width = places[-1].stop - places[-1].start
    after = replace(state, pending=pending, unreduced=unreduced, h=h, c=c)
    return np.array(encoded, np.int8).reshape(len(encoded), width), after


def search(engine: Engine, encoded: np.ndarray, state: Listening) -> Listening:
    """Greedy search over encoder frames int8 ``[T, H]``."""
    labels, emitted_at = list(state.labels), list(state.emitted_at)
    h, c = state.prediction_h.copy(), state.prediction_c.copy()
    for t, frame in enumerate(encoded, start=state.frames):
        for _ in range(engine.recognizer.labels_per_frame):
            best = int(np.argmax(engine.scores(frame, h)))
            if best == BLANK:
                break
            labels.append(best)
            emitted_at.append(t)
            engine.predict(best, h, c)
    return replace(
        state,
        prediction_h=h,
        prediction_c=c,
        labels=tuple(labels),
        emitted_at=tuple(emitted_at),
        frames=state.frames + len(encoded),
    )


def beam_search(engine: Engine, encoded: np.ndarray, state: Listening) -> Listening:
    """Beam search over encoder frames int8 ``[T, H]``, from a state that holds hypotheses."""
    frames = (_Frame(engine, frame) for frame in encoded)
    hypotheses = beam.search(frames, state.hypotheses, state.width, engine.recognizer.labels_per_frame)
    h, c = hypotheses[0].prediction
    return replace(
        state,
        prediction_h=h,
        prediction_c=c,
        labels=hypotheses[0].labels,
        frames=state.frames + len(encoded),
        hypotheses=hypotheses,
    )


def log_probabilities(acc: np.ndarray, output: OutputDense) -> np.ndarray:
    """int32 accumulators ``[..., symbols]`` -> natural logs of the symbols' probabilities, float64."""
    logits = acc * output.scale
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]


class _Frame:
    """An encoder frame int8 ``[H]`` as the search asks for it (``kwsbench.beam``)."""

    def __init__(self, engine: Engine, encoded: np.ndarray):
        self._engine, self._encoded = engine, encoded

    def log_probabilities(self, states: Sequence[PredictionState]) -> np.ndarray:
        acc = np.stack([self._engine.scores(self._encoded, h) for h, _ in states])
        return log_probabilities(acc, self._engine.recognizer.output)

    def emit(self, states: Sequence[PredictionState], labels: Sequence[int]) -> list[PredictionState]:
        after = [(h.copy(), c.copy()) for h, c in states]
        for label, (h, c) in zip(labels, after, strict=True):
            self._engine.predict(label, h, c)
        return after


def _join(x: np.ndarray, pending: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Every ``count`` rows become one, oldest first, and what is left over."""
    rows = np.concatenate([pending, x])
    whole = len(rows) // count
    return rows[: whole * count].reshape(whole, count * rows.shape[1]), rows[whole * count :]
