"""Audio files: what is written is read back, and damage is named, never papered over."""

import copy

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsbench.data.audio import SAMPLE_RATE, AudioError, duration_seconds, read_audio, write_flac, write_wav

WRITERS = {"flac": write_flac, "wav": write_wav}


def tone(hz: float, seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", WRITERS)
@given(codes=st.lists(st.integers(-32768, 32767), min_size=1, max_size=400))
@settings(max_examples=25, deadline=None)
def test_sixteen_bit_samples_survive(suffix, codes, tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / f"a.{suffix}"
    audio = np.array(codes, dtype=np.float32) / 32768
    WRITERS[suffix](path, audio)
    assert np.array_equal(read_audio(path), audio)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_loud_samples_saturate(tmp_path):
    write_flac(tmp_path / "a.flac", np.array([2.0, -2.0, 1.0], dtype=np.float32))
    assert np.array_equal(read_audio(tmp_path / "a.flac") * 32768, [32767, -32768, 32767])


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_keep_pitch_and_length(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1000, 1.5, rate), rate, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav")
    assert audio.dtype == np.float32 and abs(len(audio) - 1.5 * SAMPLE_RATE) <= 1
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    assert abs(np.argmax(spectrum) * SAMPLE_RATE / len(audio) - 1000) < 1
    assert np.sqrt(np.mean(audio**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


def test_channels_are_averaged(tmp_path):
    left, right = tone(400, 0.2), tone(700, 0.2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), SAMPLE_RATE, subtype="FLOAT")
    assert np.allclose(read_audio(tmp_path / "a.wav"), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("suffix", ["flac", "wav", "ogg"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.99])
def test_a_file_cut_short_is_truncated(tmp_path, suffix, kept):
    noise = np.random.default_rng(1).normal(0, 0.1, 32000)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise, SAMPLE_RATE)
    read_audio(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(AudioError, match=r"truncated|decoded|unreadable|zero-length") as caught:
        read_audio(path)
    assert caught.value.path == str(path) and caught.value.reason in str(caught.value)


def test_a_wav_written_into_a_pipe_has_no_length_to_hold_against_it(tmp_path):
    write_wav(tmp_path / "a.wav", tone(300, 0.1))
    data = bytearray((tmp_path / "a.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "b.wav").write_bytes(data)
    assert np.array_equal(read_audio(tmp_path / "b.wav"), read_audio(tmp_path / "a.wav"))


def write_nan(path):
    soundfile.write(path, np.array([0.1, np.nan, np.inf, 0.2]), SAMPLE_RATE, subtype="FLOAT")


BAD = {
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "empty file"),
    "no samples": (lambda path: soundfile.write(path, np.zeros(0), SAMPLE_RATE), "zero-length"),
    "text": (lambda path: path.write_text("not audio at all"), "unreadable header"),
    "NaN": (write_nan, "2 NaN or infinite samples"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_name_the_reason(tmp_path, kind):
    write, message = BAD[kind]
    write(tmp_path / "a.wav")
    with pytest.raises(AudioError, match=message):
        read_audio(tmp_path / "a.wav")


def test_the_header_gives_the_length(tmp_path):
    soundfile.write(tmp_path / "a.ogg", tone(500, 2.5, 44100), 44100)
    assert duration_seconds(tmp_path / "a.ogg") == pytest.approx(2.5)


def test_an_error_crosses_processes():
    error = copy.copy(AudioError("a.wav", "truncated"))  # as a pool of processes rebuilds it
    assert (error.path, error.reason, str(error)) == ("a.wav", "truncated", "a.wav: truncated")


def test_what_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="non-empty"):
        write_flac(tmp_path / "a.flac", np.zeros(0, dtype=np.float32))
    with pytest.raises(ValueError, match="NaN"):
        write_flac(tmp_path / "a.flac", np.array([np.nan]))
    (tmp_path / "no folder").write_text("")
    with pytest.raises(OSError, match="no folder"):
        write_flac(tmp_path / "no folder" / "a.flac", tone(300, 0.1))
    assert [path.name for path in tmp_path.iterdir()] == ["no folder"]
