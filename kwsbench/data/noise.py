"""Synthetic noise (float64 [n], mean power 1), and tools to cut recorded noise. All chance from ``rng``."""

from __future__ import annotations

import numpy as np
from scipy.fft import irfft, next_fast_len

from kwsbench.data.audio import SAMPLE_RATE

LOWEST_HZ = 30.0
LOOP_FADE_SAMPLES = 320


def coloured_noise(n_samples: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, power as ``1 / f**exponent`` (0 white, 1 pink, 2 brown), nothing below 30 Hz."""
    n_fft = next_fast_len(n_samples, real=True)
    hz = np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE)
    gain = np.zeros(len(hz))
    heard = hz >= LOWEST_HZ
    gain[heard] = hz[heard] ** (-exponent / 2)
    spectrum = gain * (rng.standard_normal(len(hz)) + 1j * rng.standard_normal(len(hz)))
    return unit_power(irfft(spectrum, n_fft)[:n_samples])


def tonal_noise(n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """A hum or whine: one to three harmonic series (50-800 Hz, slow swelling) over pink noise 15 dB below."""
    seconds = np.arange(n_samples) / SAMPLE_RATE
    tones = np.zeros(n_samples)
    for _ in range(rng.integers(1, 4)):
        base_hz = 50 * 16 ** rng.random()
        swell = 1 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.1, 3) * seconds + rng.random()))
        base = np.exp(2j * np.pi * base_hz * seconds)
        tone, series = np.ones_like(base), np.zeros_like(base)
        for harmonic in range(1, rng.integers(2, 9)):
            tone *= base
            series += rng.random() / harmonic * np.exp(2j * np.pi * rng.random()) * tone
        tones += swell * series.real
    return unit_power(unit_power(tones) + 10 ** (-15 / 20) * coloured_noise(n_samples, 1.0, rng))


def unit_power(signal: np.ndarray) -> np.ndarray:
    """Scaled to mean square 1; silence stays silence."""
    power = np.mean(np.square(signal, dtype=np.float64))
    return signal / np.sqrt(power) if power > 0 else signal


def seamless(recording: np.ndarray) -> np.ndarray:
    """A recording that can be repeated without a click: its end is faded into its beginning (20 ms)."""
    fade = min(LOOP_FADE_SAMPLES, len(recording) // 2)
    up = np.linspace(0, 1, fade, endpoint=False)
    loop = recording[: len(recording) - fade].copy()
    loop[:fade] = recording[:fade] * np.sqrt(up) + recording[len(recording) - fade :] * np.sqrt(1 - up)
    return loop


def cut_loop(loop: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """``n_samples`` of a repeated recording from a random place that is not nearly silent.

    Recorded noise has silences (between barks); a cut is taken if its power is within 10 dB of the whole
    recording's, else another is tried, and after eight the cut around the loudest sample serves.
    """
    enough = 0.1 * np.mean(np.square(loop))
    for _ in range(8):
        cut = _wrapped(loop, int(rng.integers(len(loop))), n_samples)
        if np.mean(np.square(cut)) >= enough:
            return cut
    return _wrapped(loop, int(np.argmax(np.abs(loop))) - n_samples // 2, n_samples)


def _wrapped(loop: np.ndarray, start: int, n_samples: int) -> np.ndarray:
    start %= len(loop)
    turns = -(-(start + n_samples) // len(loop))
    return np.tile(loop, turns)[start : start + n_samples] if turns > 1 else loop[start : start + n_samples]
