"""Where the word is: built signals with known spans, and real clips against a second estimate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsbench.data.audio import read_audio
from kwsbench.data.spans import word_span


def voiced(n_samples, hz=140.0):
    """A buzz with formant-like emphasis, [n]."""
    t = np.arange(n_samples) / 16000
    return sum(np.sin(2 * np.pi * hz * k * t) / (1 + abs(k - 5)) for k in range(1, 25)) / 4


def second_of(parts, floor=1e-3, seed=0):
    """One second of noise at rms ``floor`` with ``parts`` (start_seconds, samples) added."""
    audio = floor * np.random.default_rng(seed).standard_normal(16000)
    for start, samples in parts:
        at = round(start * 16000)
        audio[at : at + len(samples)] += samples
    return audio.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    start=st.floats(0.05, 0.4),
    length=st.floats(0.2, 0.5),
    floor_db=st.floats(-70, -35),
    seed=st.integers(0, 99),
)
def test_a_burst_is_found_within_20_ms(start, length, floor_db, seed):
    word = 0.3 * voiced(round(length * 16000))
    got = word_span(second_of([(start, word)], 10 ** (floor_db / 20), seed))
    np.testing.assert_allclose(got, (start, start + length), atol=0.02)


def test_a_closure_inside_the_word_is_bridged_and_a_weak_end_kept():
    parts = [(0.2, 0.3 * voiced(2400)), (0.45, 0.03 * voiced(2400, 200))]
    np.testing.assert_allclose(word_span(second_of(parts)), (0.2, 0.6), atol=0.02)


def test_a_loud_click_loses_against_a_word():
    click = 0.9 * np.random.default_rng(1).standard_normal(160)
    parts = [(0.1, click), (0.5, 0.1 * voiced(4800))]
    np.testing.assert_allclose(word_span(second_of(parts)), (0.5, 0.8), atol=0.02)


def test_hum_does_not_count():
    t = np.arange(16000) / 16000
    hum = (0.2 * np.sin(2 * np.pi * 100 * t) + 0.1 * np.sin(2 * np.pi * 700 * t)).astype(np.float32)
    audio = second_of([(0.3, 0.1 * voiced(4000))]) + hum
    np.testing.assert_allclose(word_span(audio), (0.3, 0.55), atol=0.03)


def test_the_tail_of_a_room_in_a_very_clean_recording_does_not_last_to_its_end():
    # Reverberation from 20 dB below the word, 60 dB per half second, over a floor of -120 dB: audible to 1 s.
    seconds = np.arange(8800) / 16000
    tail = 0.02 * np.random.default_rng(2).standard_normal(8800) * 10 ** (-3 * seconds / 0.5)
    start, end = word_span(second_of([(0.2, 0.3 * voiced(4000)), (0.45, tail)], 1e-6))
    assert start == pytest.approx(0.2, abs=0.02)
    assert 0.45 <= end < 0.72


def test_gain_does_not_matter():
    audio = second_of([(0.2, 0.3 * voiced(4000))])
    np.testing.assert_allclose(word_span(audio * np.float32(0.2)), word_span(audio), atol=0.006)


@pytest.mark.parametrize("n_samples", [1, 300, 799, 16000])
def test_silence_or_too_little_is_all_of_it(n_samples):
    assert word_span(np.zeros(n_samples, np.float32)) == (0.0, n_samples / 16000)


def loud_span(audio):
    """A second opinion: one band, 25 ms energies, quarter of the range in dB, around the loudest frame."""
    rough = np.append(audio[0], audio[1:] - 0.9 * audio[:-1]).astype(np.float64)
    sums = np.concatenate([[0], np.cumsum(rough**2)])
    at = np.arange(0, len(rough) - 400, 80)
    level = 10 * np.log10((sums[at + 400] - sums[at]) / 400 + 1e-12)
    low, high = np.percentile(level, 10), level.max()
    active = np.flatnonzero(level > max(low + 0.25 * (high - low), high - 35))
    breaks = np.flatnonzero(np.diff(active) > 30)
    groups = np.split(active, breaks + 1)
    group = next(g for g in groups if g[0] <= level.argmax() <= g[-1])
    return (at[group[0]] + 200) / 16000, (at[group[-1]] + 200) / 16000


@pytest.mark.speech
@pytest.mark.parametrize("word", ["happy", "bed", "cat"])
def test_real_words_end_where_a_second_estimate_says(speech_root, word):
    folder = speech_root / "commands" / word
    paths = sorted(folder.glob("*.flac"))[::12]
    if len(paths) < 50:
        pytest.skip(f"too few recordings in {folder}")
    clips = [read_audio(path) for path in paths]
    spans = np.array([word_span(audio) for audio in clips])
    apart = np.abs(spans[:, 1] - np.array([loud_span(audio)[1] for audio in clips]))
    # Measured: median 10 ms, 4-6% more than 100 ms apart, most of them clips where the second estimate loses
    # a weak syllable or takes noise for speech.
    assert np.median(apart) < 0.02
    assert np.mean(apart > 0.1) < 0.1
    seconds = spans[:, 1] - spans[:, 0]
    assert 0.3 < np.median(seconds) < 0.6
    assert np.mean((seconds > 0.15) & (seconds < 0.9)) > 0.95
