"""Log mel filter-bank energies (LFBE), streamed.

    audio float32 [n], full scale +-1, 16 kHz  ->  float32 [frames, n_mels], natural log of mel power

Kaldi's recipe on int16-scaled samples (x 32768): a 25 ms window each hop of 10 ms, no padding at the edges
(``snip_edges``), mean removed per window, pre-emphasis within the window, Povey window, power spectrum,
triangular mel filters, log with the floor float32 epsilon; no dither.

Frames. Of the 10 ms frames only every ``keep_every``-th is computed and returned: the frame rate is the
model's (30 ms by default). Frame ``i`` reads the samples ``i * stride .. i * stride + window - 1`` with
``stride = hop_samples * keep_every``, hence belongs to the instant ``config.frame_end_seconds(i)``.
``dataclasses.replace(config, keep_every=1)`` gives every 10 ms frame.

The whole file *is* the stream from a fresh state, and every chunk size gives the same bits: a frame is
computed from its own samples in one order (plain loops, and ``numpy.fft.rfft``, which transforms row after
row). No product of matrices: the order of a BLAS sum depends on how many frames came together. ``scipy.fft``
is avoided for the same reason: it packs several rows into one vector register. Inside all is float64, rounded
once to float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np

from kwsbench.features.mel import MelBank, mel_bank

INT16_SCALE = 32768.0
POWER_FLOOR = float(np.finfo(np.float32).eps)
POVEY_EXPONENT = 0.85
BLOCK_FRAMES = 128


@dataclass(frozen=True)
class LfbeConfig:
    """How audio becomes frames; see the module docstring. Lengths in samples, frequencies in Hz."""

    n_mels: int = 20
    sample_rate: int = 16000
    window_samples: int = 400
    hop_samples: int = 160
    n_fft: int = 512
    low_hz: float = 20.0
    high_hz: float = 8000.0
    preemphasis: float = 0.97
    keep_every: int = 3

    def __post_init__(self) -> None:
        if not 2 <= self.window_samples <= self.n_fft:
            raise ValueError(f"window_samples must be 2..n_fft={self.n_fft}, got {self.window_samples}")
        if self.hop_samples < 1 or self.keep_every < 1:
            raise ValueError(
                f"hop_samples and keep_every must be positive, got {self.hop_samples} and {self.keep_every}"
            )
        if not 0 <= self.preemphasis <= 1:
            raise ValueError(f"preemphasis must be 0..1, got {self.preemphasis}")
        _tables(self)

    @property
    def stride_samples(self) -> int:
        """Samples between two returned frames."""
        return self.hop_samples * self.keep_every

    @property
    def frame_seconds(self) -> float:
        """Seconds between two returned frames."""
        return self.stride_samples / self.sample_rate

    def frame_count(self, n_samples: int) -> int:
        """How many frames ``n_samples`` samples give."""
        return max(0, (n_samples - self.window_samples) // self.stride_samples + 1)

    def frame_end_seconds(self, frame: np.ndarray) -> np.ndarray:
        """When the last samples of the returned frames have been heard (indices in, seconds out)."""
        return (frame * self.stride_samples + self.window_samples) / self.sample_rate


@dataclass(frozen=True, eq=False)
class LfbeState:
    """All that a stream remembers: ``pending`` float32 samples from the next frame's start on, and how many
    samples still to come lie before that start (``skip``; only when the stride exceeds the window)."""

    pending: np.ndarray
    skip: int


def initial_state() -> LfbeState:
    """The state before the first sample."""
    return LfbeState(np.zeros(0, np.float32), 0)


def lfbe_step(chunk: np.ndarray, state: LfbeState, config: LfbeConfig) -> tuple[np.ndarray, LfbeState]:
    """Feed ``chunk`` (float32 [n], any n): frames completed, float32 [new, n_mels], and the next state.

    Raises:
        ValueError: not one-dimensional, or not finite.
        TypeError: not float32.
    """
    _check(chunk)
    fresh = chunk[min(state.skip, len(chunk)) :]
    samples = np.concatenate([state.pending, fresh])
    n_frames = config.frame_count(len(samples))
    features = np.empty((n_frames, config.n_mels), np.float32)
    window, bank = _tables(config)
    stride = config.stride_samples
    rows = np.zeros((min(n_frames, BLOCK_FRAMES), config.n_fft))
    for at in range(0, n_frames, BLOCK_FRAMES):
        out = features[at : at + BLOCK_FRAMES]
        _cut(samples, at * stride, stride, window, config.preemphasis, rows[: len(out)])
        spectrum = np.fft.rfft(rows[: len(out)], axis=1)
        _log_mel(spectrum.real, spectrum.imag, bank.first, bank.count, bank.weights, out)
    used = n_frames * stride
    skip = state.skip - (len(chunk) - len(fresh)) + max(0, used - len(samples))
    return features, LfbeState(samples[used:].copy(), skip)


def lfbe(audio: np.ndarray, config: LfbeConfig) -> np.ndarray:
    """Frames of a whole recording: the stream from a fresh state. Shorter than a window: zero frames.

    >>> lfbe(np.zeros(16000, np.float32), LfbeConfig()).shape
    (33, 20)
    """
    return lfbe_step(audio, initial_state(), config)[0]


class LfbeStream:
    """:func:`lfbe_step` with its state kept: ``push`` chunks of any size, read ``state`` at any time."""

    def __init__(self, config: LfbeConfig) -> None:
        self.config = config
        self.state = initial_state()

    def push(self, chunk: np.ndarray) -> np.ndarray:
        """The frames that ``chunk`` (float32 [n]) completes, float32 [new, n_mels]."""
        features, self.state = lfbe_step(chunk, self.state, self.config)
        return features


def povey_window(n_samples: int) -> np.ndarray:
    """Hann window to the power 0.85 (Kaldi's default), float64 [n_samples]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_samples) / (n_samples - 1))) ** POVEY_EXPONENT


@lru_cache(maxsize=32)
def _tables(config: LfbeConfig) -> tuple[np.ndarray, MelBank]:
    bank = mel_bank(config.n_mels, config.n_fft, config.sample_rate, config.low_hz, config.high_hz)
    return povey_window(config.window_samples), bank


def _check(chunk: np.ndarray) -> None:
    if not isinstance(chunk, np.ndarray) or chunk.dtype != np.float32:
        found = getattr(chunk, "dtype", type(chunk).__name__)
        raise TypeError(
            f"LFBE takes float32 audio in [-1, 1], got {found}; convert with "
            "x.astype(np.float32), int16 also divided by 32768"
        )
    if chunk.ndim != 1:
        raise ValueError(f"LFBE takes one channel, shape [samples], got shape {chunk.shape}")
    if not np.isfinite(chunk).all():
        raise ValueError(f"audio holds NaN or infinity, first at sample {int(np.argmin(np.isfinite(chunk)))}")


def _cut_loop(samples, start, stride, window, preemphasis, rows):
    # rows [frames, n_fft]: only the first len(window) columns are written, the rest stay zero.
    n = len(window)
    for f in range(rows.shape[0]):
        at = start + f * stride
        total = 0.0
        for i in range(n):
            total += float(samples[at + i])
        mean = total / n
        # Kaldi's pre-emphasis lets the first sample stand for the one before it.
        before = float(samples[at]) - mean
        for i in range(n):
            x = float(samples[at + i]) - mean
            rows[f, i] = (x - preemphasis * before) * INT16_SCALE * window[i]
            before = x


def _log_mel_loop(real, imag, first, count, weights, out):
    for f in range(out.shape[0]):
        at = 0
        for m in range(len(first)):
            total = 0.0
            for k in range(first[m], first[m] + count[m]):
                total += weights[at] * (real[f, k] * real[f, k] + imag[f, k] * imag[f, k])
                at += 1
            out[f, m] = math.log(max(total, POWER_FLOOR))


_cut = numba.njit(cache=True, nogil=True)(_cut_loop)
_log_mel = numba.njit(cache=True, nogil=True)(_log_mel_loop)
