"""The embedded corpus: repeatable to the byte, disjoint voices, a known place of the keyword."""

import csv
import hashlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsbench.data import synth
from kwsbench.data.audio import SAMPLE_RATE, read_audio
from kwsbench.data.corpora import NOISE, SPEECH, SPLITS, open_corpus
from kwsbench.data.synth import (
    ACCENTS,
    RECIPES,
    SynthRecipe,
    SynthUnavailable,
    Utterance,
    Voice,
    content_address,
    draw_voice,
    find_library,
    speak,
    speech_span,
    synthesize,
)
from kwsbench.data.texts import CONFUSABLES, WORDS, sentence

TINY = SynthRecipe(
    n_voices=6,
    keyword_renderings=2,
    confusable_renderings=2,
    word_renderings=1,
    train_minutes=0.2,
    validation_minutes=0.1,
    test_minutes=0.3,
    file_seconds=6.0,
)
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed"
)


def contents(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    pytest.importorskip("espeakng_loader")
    return synthesize(TINY, tmp_path_factory.mktemp("synth"), workers=1, progress=False)


def test_the_same_recipe_gives_the_same_bytes_with_any_number_of_workers(tiny, tmp_path):
    again = synthesize(TINY, tmp_path, workers=3, progress=False)
    assert contents(again.root) == contents(tiny.root)
    assert len(contents(tiny.root)) > 40
    assert again.fingerprint() == tiny.fingerprint()


def test_another_seed_is_another_corpus(tiny, tmp_path):
    other = synthesize(replace(TINY, seed=1), tmp_path, workers=1, progress=False)
    assert other.root.name != tiny.root.name
    same = set(contents(other.root).values()) & set(contents(tiny.root).values())
    assert not same


def test_an_interrupted_run_is_completed_and_a_complete_one_is_opened(tiny, tmp_path, monkeypatch):
    def stops_at_the_fourth(voice, *rest):
        if voice.number == 3:
            raise RuntimeError("the power went out")
        return make_voice(voice, *rest)

    make_voice = synth._make_voice
    monkeypatch.setattr(synth, "_make_voice", stops_at_the_fourth)
    with pytest.raises(RuntimeError, match="power"):
        synthesize(TINY, tmp_path, workers=1, progress=False)
    root = tmp_path / tiny.root.name
    assert not (root / "manifest.csv").exists()
    kept = (root / "v0000" / "rows.json").stat().st_mtime_ns
    monkeypatch.setattr(synth, "_make_voice", make_voice)
    assert synthesize(TINY, tmp_path, workers=1, progress=False).clips == tiny.clips
    assert (root / "v0000" / "rows.json").stat().st_mtime_ns == kept
    monkeypatch.setattr(synth, "speak", None)  # nothing is spoken again
    assert synthesize(TINY, tmp_path, workers=1, progress=False).clips == tiny.clips
    assert contents(root) == contents(tiny.root)


def test_voices_belong_to_one_split_and_every_split_has_everything(tiny):
    by_split = {split: {clip.speaker for clip in tiny.select(split=split)} for split in SPLITS}
    assert sum(map(len, by_split.values())) == len(set().union(*by_split.values())) == TINY.n_voices
    for split in SPLITS:
        voices = len(by_split[split])
        assert len(tiny.select(TINY.keyword, split)) == TINY.keyword_renderings * voices
        confusables = [clip for clip in tiny.select(split=split) if clip.label in CONFUSABLES]
        assert len(confusables) == TINY.confusable_renderings * voices
    assert not tiny.select(NOISE) and not tiny.skipped and not tiny.notes


def test_continuous_speech_has_the_length_asked_for(tiny):
    for split in SPLITS:
        long = [clip for clip in tiny.select(SPEECH, split) if "continuous" in clip.path]
        minutes = sum(clip.seconds for clip in long) / 60
        last_sentences = len(long) * 12 / 60  # a file ends with the sentence that fills it
        assert TINY.minutes(split) <= minutes <= TINY.minutes(split) + last_sentences


def test_no_text_of_a_negative_clip_has_the_keyword(tiny):
    with open(tiny.root / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(tiny.clips)
    for row in rows:
        assert (TINY.keyword in row["text"].lower()) == (row["label"] == TINY.keyword)


def test_the_keyword_lies_where_the_table_says(tiny):
    for clip in tiny.select(TINY.keyword):
        audio = read_audio(tiny.root / clip.path)
        assert clip.seconds == pytest.approx(len(audio) / SAMPLE_RATE, abs=1e-4)
        start, end = round(clip.start_seconds * SAMPLE_RATE), round(clip.end_seconds * SAMPLE_RATE)
        inside, outside = audio[start:end], np.concatenate([audio[:start], audio[end:]])
        assert np.sum(outside**2) < 1e-3 * np.sum(inside**2)
        assert 0.35 < clip.end_seconds - clip.start_seconds < 0.93
        assert np.abs(audio).max() < 1


def test_renderings_of_a_voice_differ(tiny):
    clips = [clip for clip in tiny.select(TINY.keyword) if clip.speaker == "v0000"]
    first, second = (read_audio(tiny.root / clip.path) for clip in clips)
    assert len(first) != len(second) or not np.allclose(first, second)


@needs_library
@pytest.mark.parametrize("accent", ACCENTS)
def test_every_accent_speaks(accent):
    voice = Voice(0, accent, draw_voice(0, 0).settings, 170)
    (audio,) = speak(voice, [Utterance("computer", 170, 50, 50)], 0, *find_library())
    first, last = speech_span(audio)
    assert audio.dtype == np.float32 and 0.3 < (last - first) / SAMPLE_RATE < 1.0


@needs_library
def test_pitch_of_the_voice_file_is_heard():
    """Fundamental by autocorrelation: were the voice file ignored, both voices would be at the default."""

    def fundamental_hz(pitch_hz: int) -> float:
        voice = Voice(0, "en-US", (f"pitch {pitch_hz} {pitch_hz}",), 120)
        (audio,) = speak(voice, [Utterance("aah", 100, 50, 50)], 0, *find_library())
        middle = audio[len(audio) // 2 - 1000 : len(audio) // 2 + 1000].astype(np.float64)
        lags = np.arange(SAMPLE_RATE // 400, SAMPLE_RATE // 60)
        return SAMPLE_RATE / lags[np.argmax([np.dot(middle[lag:], middle[:-lag]) / (2000 - lag) for lag in lags])]

    low, high = fundamental_hz(90), fundamental_hz(200)
    assert 70 < low < 115 and 160 < high < 250


@needs_library
def test_a_failure_of_the_process_is_told():
    library, data = find_library()
    with pytest.raises(RuntimeError, match="v0000 could not be spoken"):
        speak(draw_voice(0, 0), [Utterance("a", 170, 50, 50)], 0, library + ".absent", data)


def test_the_library_is_not_loaded_into_this_process(tiny):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc on this system")
    assert "espeak" not in maps.read_text()


def test_without_the_library_the_error_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SynthUnavailable, match=r"pip install 'kwsbench\[synth\]'"):
        synthesize(TINY, tmp_path)
    assert not list(tmp_path.iterdir())


@needs_library
def test_a_corpus_cannot_be_written_below_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OSError):
        synthesize(TINY, tmp_path / "out", progress=False)


BAD_RECIPES = {
    "keyword must be letters": {"keyword": "r2d2"},
    "at least 3": {"n_voices": 2},
    "confusables must not contain": {"confusables": ("the computers",)},
    "words must not contain": {"keyword": "happy"},
    "word_renderings must be >= 0": {"word_renderings": -1},
    "test_minutes must be >= 0": {"test_minutes": float("nan")},
    "must be at least 1": {"keyword_renderings": 0},
}


@pytest.mark.parametrize("message", BAD_RECIPES)
def test_bad_recipes_are_refused(message):
    with pytest.raises(ValueError, match=message):
        SynthRecipe(**BAD_RECIPES[message])


@needs_library
def test_every_field_of_a_recipe_is_part_of_its_address():
    other = {
        "keyword": "marvin", "confusables": ("a",), "words": ("a",), "seed": 5, "file_seconds": 61.0,
        "n_voices": 7, "train_minutes": 1.0, "validation_minutes": 1.5, "test_minutes": 1.25,
        "keyword_renderings": 3, "confusable_renderings": 3, "word_renderings": 3, "sentence_renderings": 3,
    }  # fmt: skip
    addresses = {content_address(replace(TINY, **{name: value})) for name, value in other.items()}
    assert len(addresses | {content_address(TINY)}) == len(other) + 1
    assert set(other) == set(SynthRecipe.__dataclass_fields__)


def test_recipes_grow():
    assert [RECIPES[name].n_voices for name in ("smoke", "default", "full")] == [30, 240, 1200]
    assert RECIPES["full"].test_minutes >= 20 * 60


def test_voices_are_all_different():
    assert len({draw_voice(number, seed).settings for number in range(200) for seed in (0, 1)}) == 400


@given(seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_sentences_avoid_the_keyword(seed):
    text = sentence(np.random.default_rng(seed), "walked")
    assert "walked" not in text.lower() and 3 <= len(text.split()) <= 30 and text.endswith(".")


def test_word_lists_have_no_repetition():
    assert len(set(CONFUSABLES)) == len(CONFUSABLES) and len(set(WORDS)) == len(WORDS)


def test_span_of_a_burst():
    audio = np.zeros(16000, dtype=np.float32)
    audio[4000:8000] = 0.5
    assert speech_span(audio) == (4000, 8000)
    with pytest.raises(ValueError, match="no sound"):
        speech_span(np.zeros(100, dtype=np.float32))


@needs_library
def test_the_process_says_what_is_wrong_with_a_data_folder(tmp_path):
    library, _ = find_library()
    request = {"library": library, "data": str(tmp_path), "voice_file": "x", "seed": 0, "utterances": []}
    script = Path(synth.__file__).with_name("espeak_process.py")
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(request).encode(), capture_output=True, check=False
    )
    assert done.returncode != 0 and done.stderr


def test_the_folder_is_an_ordinary_corpus(tiny):
    assert open_corpus(tiny.root, [TINY.keyword]).clips == tiny.clips
    assert open_corpus(tiny.root / "manifest.csv").clips == tiny.clips
