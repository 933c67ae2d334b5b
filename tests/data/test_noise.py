"""Noise: power, colour, repetition without clicks."""

import numpy as np
import pytest

from kwsbench.data.noise import coloured_noise, cut_loop, seamless, tonal_noise, unit_power

N = 64000


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_colour_is_the_slope_of_the_spectrum(exponent):
    signal = coloured_noise(8 * N, exponent, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(signal)) ** 2
    hz = np.fft.rfftfreq(len(signal), 1 / 16000)
    octaves = [power[(hz >= low) & (hz < 2 * low)].mean() for low in 62.5 * 2.0 ** np.arange(7)]
    slopes_db = np.diff(10 * np.log10(octaves))
    np.testing.assert_allclose(slopes_db, -exponent * 10 * np.log10(2), atol=0.7)
    assert power[hz < 25].sum() < 1e-3 * power.sum()


@pytest.mark.parametrize("make", [lambda rng: coloured_noise(N, 1.3, rng), lambda rng: tonal_noise(N, rng)])
def test_power_is_one_and_the_seed_decides(make):
    first, again, other = (make(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.mean(first**2) == pytest.approx(1)
    np.testing.assert_array_equal(first, again)
    assert abs(np.mean(first * other)) < 0.9


def test_tonal_noise_is_mostly_lines():
    power = np.sort(np.abs(np.fft.rfft(tonal_noise(N, np.random.default_rng(3)) * np.hanning(N))) ** 2)[::-1]
    assert power[:300].sum() > 0.9 * power.sum()


def test_silence_stays_silence():
    np.testing.assert_array_equal(unit_power(np.zeros(10)), 0)


def test_a_loop_repeats_without_a_click():
    # A slow ramp jumps by 1 where it starts again; faded, no step is larger than the fade's.
    ramp = np.linspace(-0.5, 0.5, 8000)
    assert np.abs(np.diff(np.tile(ramp, 2))).max() > 0.99
    assert np.abs(np.diff(np.tile(seamless(ramp), 2))).max() < 0.1


@pytest.mark.parametrize("n_samples", [10, 4000, 9999])
def test_a_cut_is_the_loop_repeated(n_samples):
    loop = np.arange(1.0, 4001)
    cut = cut_loop(loop, n_samples, np.random.default_rng(5))
    assert len(cut) == n_samples
    np.testing.assert_array_equal(np.diff(cut) % 4000, 1)


def test_cuts_avoid_the_silence_between_events():
    bark = np.zeros(80000)
    bark[40000:44000] = np.random.default_rng(0).standard_normal(4000)
    for seed in range(50):
        assert np.any(cut_loop(bark, 8000, np.random.default_rng(seed)))
