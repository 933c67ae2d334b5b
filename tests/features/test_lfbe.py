"""LFBE: streamed = whole bit for bit, two independent oracles, physics, bad input."""

import time
from dataclasses import replace

import kaldi_native_fbank as knf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsbench.features import lfbe as module
from kwsbench.features.lfbe import BLOCK_FRAMES, LfbeConfig, LfbeStream, lfbe
from kwsbench.features.mel import hz_to_mel, mel_bank, mel_to_hz

MODEL = LfbeConfig()
EVERY = LfbeConfig(n_mels=40, keep_every=1)
# Other windows and hops: overlapping a lot, abutting, and with gaps wider than a window.
ODD = LfbeConfig(n_mels=13, window_samples=333, hop_samples=77, keep_every=1, preemphasis=0.0)
GAPPED = LfbeConfig(window_samples=160, hop_samples=160, keep_every=5)
CONFIGS = pytest.mark.parametrize("config", [MODEL, EVERY, ODD, GAPPED], ids=["model", "every", "odd", "gapped"])


def noise(n_samples, seed=0, scale=0.1):
    return (scale * np.random.default_rng(seed).standard_normal(n_samples)).astype(np.float32)


def signals():
    """Kinds of audio that stress the arithmetic differently: name -> float32 [2 s]."""
    t = np.arange(32000) / 16000
    return {
        "noise": noise(32000),
        "faint": noise(32000, 1, 1e-4),
        "offset": noise(32000, 2, 0.05) + np.float32(0.5),
        "sweep": (0.5 * np.sin(2 * np.pi * (50 * t + 1900 * t * t))).astype(np.float32) + noise(32000, 3, 1e-3),
        "full scale": np.sign(np.sin(2 * np.pi * 440 * t)).astype(np.float32),
        "silence": np.zeros(32000, np.float32),
    }


def streamed(audio, config, cuts):
    stream = LfbeStream(config)
    return np.concatenate([stream.push(chunk) for chunk in np.split(audio, cuts)])


@CONFIGS
@pytest.mark.parametrize("chunk", [1, 7, 160, 161, 4096])
def test_streamed_is_whole_for_every_chunk_size(config, chunk):
    audio = noise(9000, chunk)
    whole = lfbe(audio, config)
    assert len(whole) == config.frame_count(9000) > 0
    np.testing.assert_array_equal(streamed(audio, config, range(chunk, 9000, chunk)), whole)


@settings(max_examples=60, deadline=None)
@given(
    config=st.sampled_from([MODEL, EVERY, ODD, GAPPED]),
    n_samples=st.integers(0, 12000),
    cuts=st.lists(st.integers(0, 12000), max_size=30),
)
def test_streamed_is_whole_for_any_cuts(config, n_samples, cuts):
    audio = noise(n_samples, n_samples)
    np.testing.assert_array_equal(streamed(audio, config, sorted(cuts)), lfbe(audio, config))


def test_a_frame_does_not_depend_on_the_frames_computed_with_it():
    # More frames than a block: the first of the next block equals itself computed alone.
    n_frames = BLOCK_FRAMES + 3
    audio = noise((n_frames - 1) * EVERY.stride_samples + EVERY.window_samples)
    whole = lfbe(audio, EVERY)
    assert len(whole) == n_frames
    for i in (0, BLOCK_FRAMES - 1, BLOCK_FRAMES, n_frames - 1):
        start = i * EVERY.stride_samples
        np.testing.assert_array_equal(lfbe(audio[start : start + EVERY.window_samples], EVERY)[0], whole[i])


def test_numpy_transforms_row_after_row():
    # What "fixed order" rests on: a batch of rows has the bits of each row alone.
    rows = np.random.default_rng(0).standard_normal((37, 512))
    together = np.fft.rfft(rows, axis=1)
    np.testing.assert_array_equal(together, [np.fft.rfft(row[None], axis=1)[0] for row in rows])


def test_keeping_every_third_frame_is_taking_every_third_frame():
    audio = noise(16000)
    np.testing.assert_array_equal(lfbe(audio, MODEL), lfbe(audio, replace(MODEL, keep_every=1))[::3])
    assert MODEL.frame_seconds == pytest.approx(0.03)


@pytest.mark.parametrize("n_mels", [20, 40])
@pytest.mark.parametrize("name", [name for name in signals() if name != "full scale"])
def test_kaldi_agrees(name, n_mels):
    # Settings: dither 0, povey, snip_edges, remove_dc_offset, preemphasis 0.97, no energy, 20 Hz .. Nyquist.
    # Kaldi computes in float32: 1e-3 nepers (0.004 dB) where a band is within 80 dB of the loudest.
    audio = signals()[name]
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = 16000
    options.frame_opts.window_type = "povey"
    options.frame_opts.snip_edges = True
    options.frame_opts.remove_dc_offset = True
    options.frame_opts.preemph_coeff = 0.97
    options.mel_opts.num_bins = n_mels
    options.mel_opts.low_freq = 20
    options.mel_opts.high_freq = 8000
    options.use_energy = False
    peer = knf.OnlineFbank(options)
    peer.accept_waveform(16000, (audio * 32768).tolist())
    peer.input_finished()
    expected = np.stack([peer.get_frame(i) for i in range(peer.num_frames_ready)])
    got = lfbe(audio, LfbeConfig(n_mels=n_mels, keep_every=1))
    assert got.shape == expected.shape == (198, n_mels)
    heard = expected > expected.max() - 80 / (10 / np.log(10))
    assert heard.mean() > 0.5
    np.testing.assert_allclose(got[heard], expected[heard], atol=1e-3)


def transcription(audio, config):
    """The recipe once more, in float64 NumPy, whole-array, a direct DFT and a dense filter matrix."""
    x = audio.astype(np.float64) * 32768
    frames = []
    dft = np.exp(-2j * np.pi * np.outer(np.arange(config.window_samples), np.arange(257)) / config.n_fft)
    n = np.arange(config.window_samples)
    window = (0.5 * (1 - np.cos(2 * np.pi * n / (config.window_samples - 1)))) ** 0.85
    for start in range(0, len(x) - config.window_samples + 1, config.hop_samples * config.keep_every):
        frame = x[start : start + config.window_samples]
        frame = frame - frame.mean()
        frame = frame - config.preemphasis * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs((frame * window) @ dft) ** 2
        bank = mel_bank(config.n_mels, config.n_fft, 16000, config.low_hz, config.high_hz).dense(257)
        frames.append(np.log(np.maximum(bank @ power, np.finfo(np.float32).eps)))
    return np.array(frames)


@pytest.mark.parametrize("name", list(signals()))
def test_a_float64_transcription_agrees(name):
    audio = signals()[name][:16000]
    for config in (MODEL, replace(MODEL, n_mels=40, keep_every=1)):
        expected = transcription(audio, config)
        got = lfbe(audio, config)
        assert got.dtype == np.float32
        # 1e-5 nepers, where the power is above the rounding error of a float64 sum of full-scale samples.
        audible = expected > -10 if name == "silence" else expected > 0
        np.testing.assert_allclose(got[audible], expected[audible], atol=1e-5)


def test_silence_is_the_floor():
    np.testing.assert_array_equal(lfbe(np.zeros(4000, np.float32), MODEL), np.float32(np.log(2.0**-23)))


def test_twice_the_amplitude_is_ln_4_more():
    audio = noise(8000)
    np.testing.assert_allclose(lfbe(2 * audio, EVERY) - lfbe(audio, EVERY), np.log(4), atol=1e-5)


def test_a_tone_is_loudest_in_the_filter_it_is_centred_in():
    centres_hz = mel_to_hz(np.linspace(hz_to_mel(20), hz_to_mel(8000), 22))[1:-1]
    t = np.arange(8000) / 16000
    for m, hz in enumerate(centres_hz):
        tone = (0.3 * np.sin(2 * np.pi * hz * t)).astype(np.float32)
        assert np.all(lfbe(tone, MODEL).argmax(axis=1) == m)


def test_frame_times():
    # A click in the last sample before the stated instant is in the frame, one sample later it is not.
    for i in (0, 1, 5):
        end = round(float(MODEL.frame_end_seconds(np.array(i))) * 16000)
        for at, inside in ((end - 2, True), (end, False)):
            audio = np.zeros(8000, np.float32)
            audio[at] = 0.9
            heard = lfbe(audio, MODEL)[i].max() > -15
            assert heard == inside


def test_state_shows_what_is_pending():
    stream = LfbeStream(MODEL)
    assert len(stream.push(noise(400))) == 1
    assert (len(stream.state.pending), stream.state.skip) == (0, 80)
    assert stream.push(noise(81)).shape == (0, 20)
    assert (len(stream.state.pending), stream.state.skip) == (1, 0)


def test_kernels_run_without_the_compiler():
    audio = noise(720)
    rows, unjitted = np.zeros((3, 512)), np.zeros((3, 512))
    window = module.povey_window(400)
    module._cut(audio, 0, 160, window, 0.97, rows)
    module._cut_loop(audio, 0, 160, window, 0.97, unjitted)
    np.testing.assert_array_equal(rows, unjitted)


@pytest.mark.parametrize("n_samples", [0, 1, 399])
def test_too_short_gives_no_frames(n_samples):
    assert lfbe(noise(n_samples), MODEL).shape == (0, 20)


@pytest.mark.parametrize(
    ("audio", "error", "message"),
    [
        (np.zeros(800, np.int16), TypeError, "got int16; convert.*int16 also divided by 32768"),
        (np.zeros(800), TypeError, "got float64"),
        ([0.0] * 800, TypeError, "got list"),
        (np.zeros((800, 2), np.float32), ValueError, r"one channel.*got shape \(800, 2\)"),
        (np.array([0, 1, np.nan], np.float32), ValueError, "first at sample 2"),
        (np.array([np.inf], np.float32), ValueError, "first at sample 0"),
    ],
)
def test_bad_audio_is_refused(audio, error, message):
    with pytest.raises(error, match=message):
        lfbe(audio, MODEL)


def test_a_refused_chunk_leaves_the_stream_as_it_was():
    audio, stream = noise(4000), LfbeStream(MODEL)
    first = stream.push(audio[:1500])
    with pytest.raises(ValueError, match="NaN"):
        stream.push(np.full(10, np.nan, np.float32))
    np.testing.assert_array_equal(np.concatenate([first, stream.push(audio[1500:])]), lfbe(audio, MODEL))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_samples": 600}, "window_samples must be 2..n_fft=512, got 600"),
        ({"hop_samples": 0}, "must be positive, got 0 and 3"),
        ({"keep_every": 0}, "got 160 and 0"),
        ({"preemphasis": 1.5}, "preemphasis must be 0..1, got 1.5"),
        ({"high_hz": 9000.0}, "high_hz=9000"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LfbeConfig(**fields)


def test_much_faster_than_real_time():
    audio = noise(16000 * 60)
    lfbe(audio[:16000], MODEL)
    start = time.process_time()
    lfbe(audio, MODEL)
    # About 15,000 times real time was measured on one core; 1,000 leaves room for a loaded machine.
    assert 60 / (time.process_time() - start) > 1000
