"""How long a speaker waits for the result: recordings replayed as they would be heard, chunk after chunk.

The clock is simulated. Chunk k is there when its last sample has been heard; a chunk waits until the one before it is
done; working on it takes what that took here, measured. So a replay runs faster than real time, and depends on the
machine through the measured times only:

    done_k = max(arrives_k, done_k-1) + compute_k
    user-perceived latency = done of the chunk in which the last label came - end of speech

It is negative where the last label came before speech ended (a transducer need not hear the end of a word). Nothing is
known to be final before an endpoint: with ``endpoint_seconds``, the silence after which a device takes the result as
final, the latency is counted to the chunk that holds that moment, if it is the later one.

Compute time is processor time of this thread, as on a device that does nothing else; another ``clock`` can be given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kwsbench.features.lfbe import LfbeConfig, LfbeStream
from kwsbench.integer.listen import Engine, listen, start

Chunk = tuple[float, np.ndarray]  # when its last sample has been heard, in seconds; what was heard


class Stream(Protocol):
    """A recognizer that hears one recording."""

    def push(self, piece: np.ndarray) -> tuple[int, ...]:
        """What a chunk holds -> all labels so far."""


class FrameStream:
    """An engine that hears log-mel frames float32 ``[T, n_mels]``."""

    def __init__(self, engine: Engine):
        self._engine, self._state = engine, start(engine)

    def push(self, piece: np.ndarray) -> tuple[int, ...]:
        """See :class:`Stream`."""
        self._state = listen(self._engine, piece, self._state)
        return self._state.labels


class AudioStream:
    """An engine that hears audio float32 ``[samples]``: the filter bank's time counts too."""

    def __init__(self, engine: Engine, features: LfbeConfig):
        self._frames, self._features = FrameStream(engine), LfbeStream(features)

    def push(self, piece: np.ndarray) -> tuple[int, ...]:
        """See :class:`Stream`."""
        return self._frames.push(self._features.push(piece))


@dataclass(frozen=True, eq=False)
class Replay:
    """One recording as heard: ``done_seconds`` and ``compute_seconds`` of each chunk, ``audio_seconds`` of all of it,
    the chunk of the last label (None: no label came), and the end of speech."""

    labels: tuple[int, ...]
    done_seconds: np.ndarray
    compute_seconds: np.ndarray
    audio_seconds: float
    last_label_chunk: int | None
    endpoint_chunk: int | None
    speech_end_seconds: float

    @property
    def latency_seconds(self) -> float | None:
        """User-perceived latency; None where no label came."""
        if self.last_label_chunk is None:
            return None
        chunk = max(self.last_label_chunk, self.endpoint_chunk or 0)
        return float(self.done_seconds[chunk] - self.speech_end_seconds)


def audio_chunks(audio: np.ndarray, sample_rate: int, chunk_seconds: float) -> list[Chunk]:
    """Audio cut into chunks; the last may be shorter."""
    size = max(1, round(chunk_seconds * sample_rate))
    return [(min(at + size, len(audio)) / sample_rate, audio[at : at + size]) for at in range(0, len(audio), size)]


def frame_chunks(frames: np.ndarray, features: LfbeConfig, chunk_seconds: float) -> list[Chunk]:
    """Log-mel frames in the chunks of the audio that completes them; the first ones may hold none."""
    ends = features.frame_end_seconds(np.arange(len(frames)))
    count = int(np.ceil(ends[-1] / chunk_seconds - 1e-9)) if len(ends) else 0
    cuts = np.searchsorted(ends, chunk_seconds * np.arange(1, count + 1) + 1e-9, side="right")
    return [
        (chunk_seconds * (k + 1), frames[a:b]) for k, (a, b) in enumerate(zip([0, *cuts[:-1].tolist()], cuts.tolist()))
    ]


def replay(
    stream: Stream,
    chunks: Sequence[Chunk],
    speech_end_seconds: float,
    *,
    endpoint_seconds: float | None = None,
    times_slower: float = 1.0,
    clock: Callable[[], float] = time.thread_time,
) -> Replay:
    """Replay one recording. ``times_slower`` stretches the measured compute times: what a slower machine would need is
    then *projected*, not measured.

    Raises:
        ValueError: no chunks, or ``times_slower`` not above 0.
    """
    if not chunks or times_slower <= 0:
        raise ValueError(f"a replay needs chunks and times_slower above 0, got {len(chunks)} and {times_slower}")
    done, compute = np.zeros(len(chunks)), np.zeros(len(chunks))
    labels: tuple[int, ...] = ()
    last, now = None, 0.0
    for k, (arrives, piece) in enumerate(chunks):
        begin = clock()
        heard = stream.push(piece)
        compute[k] = (clock() - begin) * times_slower
        now = max(arrives, now) + compute[k]
        done[k] = now
        if len(heard) > len(labels):
            last = k
        labels = heard
    endpoint = None
    if endpoint_seconds is not None:
        moment = speech_end_seconds + endpoint_seconds
        endpoint = next((k for k, (arrives, _) in enumerate(chunks) if arrives >= moment), len(chunks) - 1)
    return Replay(labels, done, compute, chunks[-1][0], last, endpoint, speech_end_seconds)


def summarise(replays: Iterable[Replay]) -> dict[str, Any]:
    """Counts, median and 95% of the latency (``latency_median_ms``, ``latency_95_ms``), and the share of real time that
    computing takes."""
    every = list(replays)
    latencies = np.array([r.latency_seconds for r in every if r.latency_seconds is not None])
    audio = sum(r.audio_seconds for r in every)
    busiest = max((float(r.compute_seconds.max()) for r in every), default=0.0)
    return {
        "recordings": len(every),
        "without_labels": len(every) - len(latencies),
        "latency_median_ms": 1e3 * float(np.median(latencies)) if len(latencies) else None,
        "latency_95_ms": 1e3 * float(np.percentile(latencies, 95)) if len(latencies) else None,
        "compute_share": sum(float(r.compute_seconds.sum()) for r in every) / audio if audio else None,
        "longest_chunk_ms": 1e3 * busiest,
    }
