"""Triangular mel filters as Kaldi lays them out.

The mel scale is ``1127 ln(1 + f / 700)`` (O'Shaughnessy 1987, in HTK's constants). Filters are triangles *on
the mel axis*, their corners equally spaced between ``low_hz`` and ``high_hz``, peak 1, and the Nyquist bin is
left out, as in Kaldi's ``MelBanks``.

A filter touches few FFT bins, so a bank is kept as runs: filter ``m`` reads bins
``first[m] .. first[m] + count[m] - 1`` with consecutive entries of ``weights``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def hz_to_mel(hz: np.ndarray | float) -> np.ndarray:
    """Mel value of a frequency in Hz.

    >>> round(float(hz_to_mel(1000.0)), 1)
    1000.0
    """
    return 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)


def mel_to_hz(mel: np.ndarray | float) -> np.ndarray:
    """Inverse of :func:`hz_to_mel`."""
    return 700.0 * np.expm1(np.asarray(mel, np.float64) / 1127.0)


@dataclass(frozen=True, eq=False)
class MelBank:
    """Sparse filters: ``first``, ``count`` int64 [n_mels]; ``weights`` float64 [sum(count)]."""

    first: np.ndarray
    count: np.ndarray
    weights: np.ndarray

    def dense(self, n_bins: int) -> np.ndarray:
        """The same filters as a float64 matrix [n_mels, n_bins]."""
        matrix = np.zeros((len(self.first), n_bins))
        at = 0
        for row, first, count in zip(matrix, self.first, self.count):
            row[first : first + count] = self.weights[at : at + count]
            at += count
        return matrix


def mel_bank(n_mels: int, n_fft: int, sample_rate: int, low_hz: float, high_hz: float) -> MelBank:
    """Filters over the ``n_fft // 2`` bins below Nyquist; ``high_hz <= 0`` counts down from Nyquist.

    Raises:
        ValueError: the band is empty or leaves 0..Nyquist, or a filter is so narrow that it holds no bin.
    """
    nyquist_hz = sample_rate / 2
    top_hz = high_hz if high_hz > 0 else nyquist_hz + high_hz
    if n_mels < 1:
        raise ValueError(f"n_mels must be at least 1, got {n_mels}")
    if not 0 <= low_hz < top_hz <= nyquist_hz:
        raise ValueError(
            f"mel filters need 0 <= low_hz < high_hz <= {nyquist_hz:g} Hz, got low_hz={low_hz}, high_hz={high_hz}"
        )
    bins = hz_to_mel(np.arange(n_fft // 2) * (sample_rate / n_fft))
    corners = np.linspace(hz_to_mel(low_hz), hz_to_mel(top_hz), n_mels + 2)
    first, count, weights = [], [], []
    for m, (left, centre, right) in enumerate(zip(corners, corners[1:], corners[2:])):
        inside = np.flatnonzero((bins > left) & (bins < right))
        if not len(inside):
            raise ValueError(
                f"mel filter {m} of {n_mels} ({mel_to_hz(left):.0f}-{mel_to_hz(right):.0f} Hz) holds no "
                f"FFT bin; use fewer mels or a larger n_fft than {n_fft}"
            )
        mel = bins[inside]
        first.append(inside[0])
        count.append(len(inside))
        weights.append(np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)))
    return MelBank(np.array(first, np.int64), np.array(count, np.int64), np.concatenate(weights))
