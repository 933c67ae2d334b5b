"""MFCC: streamed = whole bit for bit, two independent oracles, bad input."""

from dataclasses import replace

import kaldi_native_fbank as knf
import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsbench.features import mfcc as module
from kwsbench.features.lfbe import LfbeConfig, lfbe
from kwsbench.features.mfcc import MFCC_LFBE, MfccConfig, MfccStream, mfcc, transform

ODD = MfccConfig(7, LfbeConfig(n_mels=13, window_samples=333, hop_samples=77, keep_every=1))


def noise(n_samples, seed=0, scale=0.1):
    return (scale * np.random.default_rng(seed).standard_normal(n_samples)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    config=st.sampled_from([MfccConfig(), MfccConfig(40), ODD]),
    n_samples=st.integers(0, 6000),
    cuts=st.lists(st.integers(0, 6000), max_size=20),
)
def test_streamed_is_whole_for_any_cuts(config, n_samples, cuts):
    audio, stream = noise(n_samples, n_samples), MfccStream(config)
    streamed = np.concatenate([stream.push(chunk) for chunk in np.split(audio, sorted(cuts))])
    np.testing.assert_array_equal(streamed, mfcc(audio, config))


@pytest.mark.parametrize("coefficients", [1, 10, 39, 40])
def test_it_is_the_orthonormal_transform_of_the_energies(coefficients):
    audio = noise(16000)
    expected = scipy.fft.dct(lfbe(audio, MFCC_LFBE).astype(np.float64), type=2, norm="ortho", axis=1)[:, :coefficients]
    found = mfcc(audio, MfccConfig(coefficients))
    assert found.dtype == np.float32 and found.shape == (49, coefficients)
    # Rounded once to float32, of sums that cancel.
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-6)


def test_all_coefficients_keep_the_energy_and_the_first_is_the_level():
    log_mel = noise(5 * 40, scale=3).reshape(5, 40)
    all_of_them = transform(log_mel, 40).astype(np.float64)
    np.testing.assert_allclose((all_of_them**2).sum(1), (log_mel.astype(np.float64) ** 2).sum(1), rtol=1e-6)
    np.testing.assert_allclose(all_of_them[:, 0], log_mel.mean(1) * np.sqrt(40), rtol=1e-4, atol=1e-5)


def test_the_frames_of_kaldi():
    """Without liftering and with coefficient 0, where the recipes agree; tolerance: Kaldi computes in float32."""
    options = knf.MfccOptions()
    options.frame_opts.dither = 0
    options.frame_opts.frame_length_ms, options.frame_opts.frame_shift_ms = 40, 20
    options.mel_opts.num_bins, options.mel_opts.low_freq, options.mel_opts.high_freq = 40, 20, 0
    options.num_ceps, options.use_energy, options.cepstral_lifter = 13, False, 0
    computer, audio = knf.OnlineMfcc(options), noise(32000)
    computer.accept_waveform(16000, (audio * 32768).tolist())
    expected = np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])
    found = mfcc(audio, MfccConfig(13))
    assert found.shape == expected.shape == (99, 13)
    assert np.abs(found - expected).max() < 2e-3


def test_what_kaldi_does_by_default_besides():
    """Liftering, to which ours lead by the factor the module tells."""
    options = knf.MfccOptions()
    options.frame_opts.dither = 0
    options.frame_opts.frame_length_ms, options.frame_opts.frame_shift_ms = 40, 20
    options.mel_opts.num_bins, options.mel_opts.high_freq, options.use_energy = 40, 0, False
    computer, audio = knf.OnlineMfcc(options), noise(16000)
    computer.accept_waveform(16000, (audio * 32768).tolist())
    expected = np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])
    lifter = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    assert np.abs(mfcc(audio, MfccConfig(13)) * lifter - expected).max() < 2e-2


def test_the_loop_compiled_is_the_loop_as_written():
    log_mel, out = noise(200, scale=5).reshape(5, 40), np.empty((5, 12), np.float32)
    module._transform_loop(log_mel, module._basis(40)[:12], out)
    np.testing.assert_allclose(transform(log_mel, 12), out, rtol=2e-7)


@pytest.mark.parametrize("coefficients", [0, 41])
def test_more_coefficients_than_bands_are_refused(coefficients):
    with pytest.raises(ValueError, match=f"of 40 mel bands come 1 to 40 coefficients, got {coefficients}"):
        replace(MfccConfig(), coefficients=coefficients)


def test_too_short_is_no_frame_and_other_audio_is_refused():
    assert mfcc(noise(639), MfccConfig()).shape == (0, 10)
    with pytest.raises(TypeError, match="LFBE takes float32 audio"):
        mfcc(np.zeros(16000, np.int16), MfccConfig())
