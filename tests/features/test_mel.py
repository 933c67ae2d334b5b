"""The mel filters against the textbook definition, bin by bin."""

import numpy as np
import pytest

from kwsbench.features.mel import hz_to_mel, mel_bank, mel_to_hz

N_BINS = 256


def triangle(hz, left, centre, right):
    mel = 1127 * np.log(1 + hz / 700)
    if left < mel <= centre:
        return (mel - left) / (centre - left)
    if centre < mel < right:
        return (right - mel) / (right - centre)
    return 0.0


@pytest.mark.parametrize(("n_mels", "low_hz", "high_hz"), [(20, 20, 8000), (40, 20, 8000), (23, 100, -400)])
def test_filters_are_the_triangles_of_the_definition(n_mels, low_hz, high_hz):
    top_hz = high_hz if high_hz > 0 else 8000 + high_hz
    corners = np.linspace(1127 * np.log(1 + low_hz / 700), 1127 * np.log(1 + top_hz / 700), n_mels + 2)
    expected = [[triangle(k * 31.25, *corners[m : m + 3]) for k in range(N_BINS)] for m in range(n_mels)]
    got = mel_bank(n_mels, 512, 16000, low_hz, high_hz).dense(N_BINS)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_neighbours_sum_to_one_between_the_outer_centres():
    total = mel_bank(20, 512, 16000, 20, 8000).dense(N_BINS).sum(axis=0)
    centres_hz = mel_to_hz(np.linspace(hz_to_mel(20), hz_to_mel(8000), 22))
    between = slice(int(np.ceil(centres_hz[1] / 31.25)), int(centres_hz[-2] / 31.25) + 1)
    np.testing.assert_allclose(total[between], 1, atol=1e-12)


def test_mel_and_hz_are_inverse():
    hz = np.array([0.0, 20.0, 700.0, 8000.0])
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hz)), hz, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 512, 16000, 20, 8000), "n_mels must be at least 1, got 0"),
        ((20, 512, 16000, 20, 9000), "high_hz=9000"),
        ((20, 512, 16000, 4000, 3000), "low_hz=4000"),
        ((250, 512, 16000, 20, 8000), "holds no FFT bin; use fewer mels or a larger n_fft than 512"),
    ],
)
def test_impossible_banks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mel_bank(*arguments)
