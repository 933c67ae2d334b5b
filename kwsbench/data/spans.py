"""Where the word lies in a short recording, by energy.

Recordings in the style of Speech Commands hold one word somewhere in a second of room noise, hum and clicks.
Loudness alone finds the vowel and loses a weak last syllable; so each mel band is measured against its own
floor, and the dB by which the bands stand out are averaged:

    excess(t) = mean over bands of max(0, L(t, band) - floor(band)),
    floor(band) = the larger of: 10th percentile over time; 45 dB below the band's maximum

The second term keeps the tail of a room out of very clean recordings. What exceeds the 10th percentile of the
contour by a fifth of its range is active; gaps up to 150 ms (a plosive's closure) are bridged; of the
stretches the one with the largest area wins, so that a click, loud but short, loses.
"""

from __future__ import annotations

import numpy as np

from kwsbench.data.audio import SAMPLE_RATE
from kwsbench.features.lfbe import LfbeConfig, lfbe

BANDS = LfbeConfig(n_mels=20, hop_samples=80, keep_every=1, low_hz=100.0, high_hz=7000.0)
DB_PER_NEPER = 10 / np.log(10)
QUIETEST_DB = 10.0
RANGE_DB = 45.0
ACTIVE_SHARE = 0.2
GAP_SECONDS = 0.15


def word_span(audio: np.ndarray) -> tuple[float, float]:
    """(start_seconds, end_seconds) of the word in ``audio``, float32 [n] at 16 kHz.

    Silence, or less than 50 ms of audio, gives the whole recording.
    """
    whole = (0.0, len(audio) / SAMPLE_RATE)
    if len(audio) < 2 * BANDS.window_samples:
        return whole
    excess = _excess_db(audio)
    quiet = np.percentile(excess, 10)
    threshold = quiet + ACTIVE_SHARE * (excess.max() - quiet)
    active = excess > threshold
    if not active.any():
        return whole
    hop_seconds = BANDS.frame_seconds
    area = np.maximum(excess - threshold, 0)
    stretches = _stretches(active, round(GAP_SECONDS / hop_seconds))
    first, last = max(stretches, key=lambda stretch: area[stretch[0] : stretch[1] + 1].sum())
    return float(first * hop_seconds), float(min(last * hop_seconds, whole[1]))


def _excess_db(audio: np.ndarray) -> np.ndarray:
    # Half a window of mirrored audio on both sides: frame i is centred on the sample i * hop.
    padded = np.pad(audio, BANDS.window_samples // 2, mode="reflect")
    level_db = np.maximum(lfbe(padded, BANDS) * DB_PER_NEPER, QUIETEST_DB)
    floor_db = np.maximum(np.percentile(level_db, 10, axis=0), level_db.max(axis=0) - RANGE_DB)
    excess = np.maximum(level_db - floor_db, 0).mean(axis=1)
    smooth = np.hanning(7)[1:-1]
    return np.convolve(np.pad(excess, 2, mode="edge"), smooth / smooth.sum(), "valid")


def _stretches(active: np.ndarray, gap_frames: int) -> list[tuple[int, int]]:
    """(first, last) frames of the active stretches, those within ``gap_frames`` of each other joined."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(np.int8), [0]])))
    joined: list[tuple[int, int]] = []
    for first, stop in edges.reshape(-1, 2):
        if joined and first - joined[-1][1] - 1 <= gap_frames:
            joined[-1] = (joined[-1][0], int(stop) - 1)
        else:
            joined.append((int(first), int(stop) - 1))
    return joined
