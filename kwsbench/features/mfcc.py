"""Mel-frequency cepstral coefficients (MFCC): the orthonormal cosine transform of log-mel energies, streamed.

    audio float32 [n], full scale +-1, 16 kHz  ->  float32 [frames, coefficients]
    c[k] = s_k sum_m log_mel[m] cos(pi k (m + 1/2) / M),    s_0 = sqrt(1 / M), else s_k = sqrt(2 / M)

The log-mel energies are those of ``features/lfbe.py``, with all that is said there; 40 ms each 20 ms and 40 bands by
default (the sibling's code, arXiv 2012.10138): 49 frames for one second. Coefficient 0 is kept and is the level; no
liftering, no deltas. Kaldi's MFCC are the same but for its defaults: it lifters, ``c[k] (1 + 11 sin(pi k / 22))``
(``cepstral_lifter=0`` turns that off), and puts the log energy of the window in place of c[0] (``use_energy=False``).

A frame's sums run in one order in float64 on its own float32 energies, rounded once to float32: a stream has the bits
of the whole, whatever the chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np

from kwsbench.features.lfbe import LfbeConfig, LfbeState, initial_state, lfbe_step

MFCC_LFBE = LfbeConfig(n_mels=40, window_samples=640, hop_samples=320, n_fft=1024, keep_every=1)


@dataclass(frozen=True)
class MfccConfig:
    """The first ``coefficients`` of the transform of the energies ``lfbe``."""

    coefficients: int = 10
    lfbe: LfbeConfig = MFCC_LFBE

    def __post_init__(self) -> None:
        if not 1 <= self.coefficients <= self.lfbe.n_mels:
            raise ValueError(
                f"of {self.lfbe.n_mels} mel bands come 1 to {self.lfbe.n_mels} coefficients, got {self.coefficients}"
            )


def mfcc_step(chunk: np.ndarray, state: LfbeState, config: MfccConfig) -> tuple[np.ndarray, LfbeState]:
    """Feed ``chunk`` (float32 [n], any n): frames completed, float32 [new, coefficients], and the next state.

    Errors: those of :func:`~kwsbench.features.lfbe.lfbe_step`.
    """
    energies, state = lfbe_step(chunk, state, config.lfbe)
    return transform(energies, config.coefficients), state


def mfcc(audio: np.ndarray, config: MfccConfig) -> np.ndarray:
    """Frames of a whole recording: the stream from a fresh state. Shorter than a window: zero frames.

    >>> mfcc(np.zeros(16000, np.float32), MfccConfig()).shape
    (49, 10)
    """
    return mfcc_step(audio, initial_state(), config)[0]


class MfccStream:
    """:func:`mfcc_step` with its state kept: ``push`` chunks of any size."""

    def __init__(self, config: MfccConfig) -> None:
        self.config = config
        self.state = initial_state()

    def push(self, chunk: np.ndarray) -> np.ndarray:
        """The frames that ``chunk`` (float32 [n]) completes, float32 [new, coefficients]."""
        features, self.state = mfcc_step(chunk, self.state, self.config)
        return features


def transform(log_mel: np.ndarray, coefficients: int) -> np.ndarray:
    """The first coefficients of log-mel energies float32 [frames, n_mels], float32 [frames, coefficients]."""
    out = np.empty((len(log_mel), coefficients), np.float32)
    _transform(log_mel, _basis(log_mel.shape[1])[:coefficients], out)
    return out


@lru_cache(maxsize=8)
def _basis(n_mels: int) -> np.ndarray:
    rows, at = np.arange(n_mels)[:, None], np.arange(n_mels) + 0.5
    basis = np.sqrt(2 / n_mels) * np.cos(np.pi * rows * at / n_mels)
    basis[0] = np.sqrt(1 / n_mels)
    return basis


def _transform_loop(log_mel, basis, out):
    for f in range(out.shape[0]):
        for k in range(out.shape[1]):
            total = 0.0
            for m in range(log_mel.shape[1]):
                total += basis[k, m] * float(log_mel[f, m])
            out[f, k] = total


_transform = numba.njit(cache=True, nogil=True)(_transform_loop)
