"""Clips to classify: which, how many, their second, what training adds, the cache, corpora that cannot serve."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from kwsbench.data.audio import SAMPLE_RATE
from kwsbench.data.clips import (
    CLIP_SAMPLES,
    COMMANDS,
    SILENCE,
    UNKNOWN,
    Augmentation,
    augment,
    clip_task,
    fitted,
    synthetic_recipe,
    task_clips,
)
from kwsbench.data.corpora import NOISE, SPEECH, Clip, Corpus, open_corpus
from tests.data.clip_tools import PER_SPLIT, WORDS, write_clips

TWO = clip_task("high,low")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def corpus(root):
    return open_corpus(root)


def same(first, second):
    return all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in ("audio", "labels", "noise", "noise_lengths", "words", "paths", "source_hash")
    )


def test_tasks_have_everything_else_first():
    twelve, keyword = clip_task("twelve"), clip_task("happy")
    assert twelve.labels == (SILENCE, UNKNOWN, *COMMANDS) and twelve.keyword == ""
    assert keyword.labels == ("_other_", "happy") and keyword.keyword == "happy"
    assert [twelve.class_of(word) for word in (SILENCE, "bird", UNKNOWN, "yes", "go")] == [0, 1, 1, 2, 11]
    assert [keyword.class_of(word) for word in (SILENCE, "bird", "happy")] == [0, 0, 1]


@pytest.mark.parametrize("name", ["", "yes,", "yes,yes", "_noise_"])
def test_a_task_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="'twelve', a keyword, or different words"):
        clip_task(name)


@pytest.mark.parametrize("split, words, others", [("train", 24, 36), ("validation", 12, 2), ("test", 12, 2)])
def test_silence_and_unknown_are_a_tenth_of_the_words(corpus, split, words, others):
    clips = task_clips(corpus, TWO, split)
    counts = clips.counts()
    assert counts["high"] == counts["low"] == PER_SPLIT[split] and counts[UNKNOWN] == others
    assert counts[SILENCE] == -(-words // 10)
    assert len(clips) == len(clips.paths) == len(set(clips.paths)) == sum(counts.values())
    assert clips.audio.dtype == np.int16 and clips.audio.shape == (len(clips), CLIP_SAMPLES)
    assert [clips.task.class_of(word) for word in clips.words] == clips.labels.tolist()


def test_a_keyword_stands_against_all_other_words_and_silence(corpus):
    clips = task_clips(corpus, clip_task("high"), "test")
    assert clips.counts() == {"_other_": 24 + 3, "high": 6}
    assert clips.words.count(SILENCE) == 3


def test_unknown_words_of_the_test_are_the_first_by_hash(corpus):
    clips = task_clips(corpus, TWO, "test")
    others = [c.path for c in corpus.select(split="test") if c.label in ("middle", "other", "more")]
    first = sorted(others, key=lambda path: hashlib.sha256(path.encode()).digest())[:2]
    assert {p for p, label in zip(clips.paths, clips.labels) if label == 1} == set(first)


def test_a_set_is_the_same_again_and_from_its_cache(corpus, tmp_path):
    made = task_clips(corpus, TWO, "test")
    assert same(made, task_clips(corpus, TWO, "test", tmp_path))
    assert same(made, task_clips(corpus, TWO, "test", tmp_path))
    (file,) = tmp_path.glob("clips-*.npz")
    file.write_bytes(file.read_bytes()[:1000])
    assert same(made, task_clips(corpus, TWO, "test", tmp_path))


def test_a_damaged_cache_is_told(corpus, tmp_path, capsys):
    task_clips(corpus, TWO, "test", tmp_path)
    (file,) = tmp_path.glob("clips-*.npz")
    file.write_bytes(b"no archive")
    task_clips(corpus, TWO, "test", tmp_path)
    assert "is made again" in capsys.readouterr().err


def test_labels_unknown_and_silence_of_a_corpus_are_taken_as_they_stand(tmp_path):
    words = dict.fromkeys(("high", "low", UNKNOWN, SILENCE), 500) | {"aside": 900}
    clips = task_clips(open_corpus(write_clips(tmp_path, words)), TWO, "test")
    assert clips.counts() == dict.fromkeys((SILENCE, UNKNOWN, "high", "low"), 6)
    assert not any(path.startswith("aside") for path in clips.paths)


def test_a_clip_of_a_second_is_taken_sample_for_sample():
    codes = np.random.default_rng(0).integers(-32768, 32768, CLIP_SAMPLES).astype(np.int16)
    np.testing.assert_array_equal(fitted((codes / 32768).astype(np.float32)), codes)


def test_a_short_clip_lies_in_the_middle_of_zeros():
    heard = fitted(np.full(5001, 0.5, np.float32))
    assert heard[5499] == 16384 and heard[5498] == 0 == heard[5499 + 5001]
    assert np.count_nonzero(heard) == 5001


@pytest.mark.parametrize("at", [0.0, 0.9, 2.5])
def test_a_long_clip_is_cut_around_its_word(at):
    audio = np.zeros(3 * SAMPLE_RATE, np.float32)
    first = int(at * SAMPLE_RATE)
    audio[first : first + 4000] = 0.25 * np.sin(np.arange(4000))
    hiss = (1e-4 * np.random.default_rng(0).standard_normal(len(audio))).astype(np.float32)
    told, found = fitted(audio, at, at + 0.25), fitted(audio + hiss)
    wanted = np.count_nonzero(np.abs(audio) > 0.5 / 32768)
    assert abs(np.count_nonzero(told) - wanted) <= 1
    assert np.count_nonzero(np.abs(found.astype(np.int64)) > 100) >= 0.95 * wanted, "found by its energy"
    if at == 0.9:
        assert abs(np.flatnonzero(told).mean() - CLIP_SAMPLES / 2) < 40


def test_what_training_adds_is_a_shift_and_noise(corpus):
    clips, how = task_clips(corpus, TWO, "train"), Augmentation()
    rows = np.arange(len(clips))
    words = np.array([word != SILENCE for word in clips.words])
    heard = augment(clips, rows, np.zeros(len(rows), np.int64), 3, how)
    shifts, levels = [], []
    for i in np.flatnonzero(words):
        clean, noisy = (np.abs(x[i].astype(np.float64)) for x in (clips.audio, heard))
        shifts.append(np.flatnonzero(noisy > 2000)[0] - np.flatnonzero(clean > 2000)[0])
        ends = heard[i][:100], heard[i][-100:]  # one of them holds no word
        levels.append(min(np.sqrt(np.mean(end.astype(np.float64) ** 2)) for end in ends))
    assert max(np.abs(shifts)) <= 1600 and np.ptp(shifts) > 1600
    # Noise of 0.1 at a volume of at most 0.1, in four of five.
    assert max(levels) < 32768 * 0.01 * 1.3 and 0.05 < np.mean(np.array(levels) == 0) < 0.5
    assert heard[~words].any(axis=1).all(), "silence of training is filled with noise"


def test_without_augmentation_words_stay_as_they_are(corpus):
    clips = task_clips(corpus, TWO, "train")
    rows = np.flatnonzero(clips.labels != 0)
    heard = augment(clips, rows, np.zeros(len(rows), np.int64), 0, Augmentation(0, 0, 0))
    np.testing.assert_array_equal(heard, clips.audio[rows])


def test_a_round_is_the_same_for_any_choice_of_rows(corpus):
    clips, how = task_clips(corpus, TWO, "train"), Augmentation()
    rows, rounds = np.array([5, 0, 5, 17]), np.array([1, 0, 0, 1])
    heard = augment(clips, rows, rounds, 3, how)
    for row, round, one in zip(rows, rounds, heard):
        np.testing.assert_array_equal(one, augment(clips, np.array([row]), np.array([round]), 3, how)[0])
    assert not np.array_equal(heard[0], heard[2]), "another round, another sound"
    assert not np.array_equal(heard, augment(clips, rows, rounds, 4, how)), "another seed too"


def test_loud_noise_is_limited_to_16_bits(corpus):
    clips = task_clips(corpus, TWO, "train")
    loud = clips.audio.copy()
    loud[:] = 32767
    heard = augment(
        type(clips)(**{f: getattr(clips, f) for f in clips.__dataclass_fields__ if f != "_drawn"} | {"audio": loud}),
        np.arange(8), np.zeros(8, np.int64), 0, Augmentation(0, 1.0, 1.0),
    )  # fmt: skip
    assert heard.max() == 32767 and heard.min() > 0


def test_without_recorded_noise_it_is_synthetic_and_said(tmp_path):
    clips = task_clips(open_corpus(write_clips(tmp_path, noise=False)), TWO, "test")
    assert "synthetic" in clips.notes[0] and clips.audio[clips.labels == 0].any(axis=1).all()


def test_unreadable_files_are_skipped_and_listed(tmp_path):
    root = write_clips(tmp_path)
    corpus = open_corpus(root)
    broken = root / "high" / "train3.flac"
    broken.write_bytes(broken.read_bytes()[:600])
    clips = task_clips(corpus, TWO, "train")
    assert clips.counts()["high"] == 11 and len(clips.skipped) == 1
    assert clips.skipped[0].startswith("high/train3.flac: ") and "1 files skipped: high/train3" in clips.summary()


@pytest.mark.parametrize(
    "split, drop, message",
    [
        ("validation", 6, "has no clip in validation"),
        ("validation", 3, "too few clips in validation .*3 of 'high'; at least 5"),
        ("train", 5, "too few clips in train .*7 of 'high'; at least 10"),
    ],
)
def test_too_few_clips_of_a_word_are_refused(corpus, split, drop, message):
    gone = {c.path for c in corpus.select("high", split)[:drop]}
    left = Corpus(corpus.root, tuple(c for c in corpus.clips if c.path not in gone))
    with pytest.raises(ValueError, match=message):
        task_clips(left, TWO, "train")


def test_files_that_turn_out_unreadable_may_leave_too_few(tmp_path):
    root = write_clips(tmp_path)
    corpus = open_corpus(root)
    for i in range(2):
        (root / "low" / f"test{i}.flac").write_bytes(b"fLaC")
    with pytest.raises(ValueError, match=r"too few clips in test .*4 of 'low'"):
        task_clips(corpus, TWO, "test")


def test_missing_words_are_named(corpus):
    with pytest.raises(ValueError, match="no clip of the keyword 'yes'"):
        task_clips(corpus, clip_task("twelve"), "train")


def test_something_else_has_to_be_heard(corpus):
    with pytest.raises(ValueError, match="no clip of other words than"):
        task_clips(corpus, clip_task(",".join(WORDS)), "train")


@pytest.mark.parametrize("wrong", [{"shift_ms": 1000}, {"noise_probability": 1.1}, {"volume": -0.1}])
def test_augmentation_beyond_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)


def test_continuous_speech_and_noise_are_no_words(corpus):
    more = (Clip("s.flac", SPEECH, "test", "test", 9.0), *corpus.clips)
    clips = task_clips(Corpus(corpus.root, more), clip_task("high"), "test")
    assert SPEECH not in clips.words and NOISE not in clips.words and not clips.skipped


@pytest.mark.parametrize("profile", ["smoke", "default"])
@pytest.mark.parametrize("name", ["twelve", "computer", "left,right"])
def test_the_embedded_corpus_can_serve_every_task(profile, name):
    task = clip_task(name)
    recipe = synthetic_recipe(task, profile)
    said = {recipe.keyword, *recipe.confusables[: recipe.confusable_renderings]}
    assert set(task.words) <= said | {recipe.keyword} and not set(recipe.words) & set(task.words)
    assert recipe.n_voices // 6 >= 5, "voices of the smaller splits"


def test_published_sizes_follow_from_the_rule():
    """2,567 and 4,074 test clips of the ten commands in v0.01 and v0.02; with silence and unknown 3,081 and 4,890."""
    for commands, published in ((2567, 3081), (4074, 4890)):
        share = -(-commands // 10)
        assert commands + 2 * share == published
