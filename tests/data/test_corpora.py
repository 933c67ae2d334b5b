"""Corpora: three layouts give one table, and what is wrong with a corpus is said before work starts."""

import csv
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kwsbench.data.audio import SAMPLE_RATE, read_audio
from kwsbench.data.corpora import (
    NOISE,
    SPEECH,
    SPLITS,
    Clip,
    Corpus,
    check_speakers,
    hash_split,
    load_manifest,
    load_speech_commands,
    load_word_folders,
    open_corpus,
)

# Speakers from the lists inside the published archive; those of neither list are train.
PUBLISHED = {
    "test": "2aa787cf ffa76c4a 24ad3ebe d7467392 5828dfa2 91223b83 f0ae7203 95ba4996 94de6a6a caf9fceb "
    "82b99576 81dc4a94 e41a903b a1533da4 50033893 20d3f11f ef2a3cfb 37dca74f fce96bac 7bae88ed "
    "daf230ac 1b4c9b89 85834399",
    "validation": "8b775397 2643992f 060cd039 f5e5e8b0 dbb40d24 d57febf0 16db1582 171b56dc 66cff190 22aa3665 "
    "b1426003 67c7fecb d9ae8983 826268f8 61bcb275 f84762e5 27b9a84f aa753bb9 88f8a99c 6071a214 "
    "3903b558 6a27a9bf",
}


def put(path: Path, seconds: float = 0.1, rate: int = SAMPLE_RATE, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.name))
    audio = np.random.default_rng(seed).normal(0, 0.1, (int(seconds * rate), channels))
    soundfile.write(path, audio, rate)
    return path


def write_manifest(root: Path, rows: list[dict]) -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(root / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return root / "manifest.csv"


@pytest.fixture
def listed(tmp_path) -> Path:
    """Speech Commands folders with lists, as in the archive."""
    for speaker in ("aaaa", "bbbb", "cccc"):
        put(tmp_path / "yes" / f"{speaker}_nohash_0.wav")
        put(tmp_path / "no" / f"{speaker}_nohash_1.flac", 0.2)
    put(tmp_path / "_background_noise_" / "tap.wav", 1.0)
    put(tmp_path / "_background_noise_" / "wind.wav", 1.0)
    put(tmp_path / "_speech_" / "dddd" / "chapter.flac", 3.0)
    (tmp_path / "validation_list.txt").write_text("yes/bbbb_nohash_0.wav\nno/bbbb_nohash_1.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/cccc_nohash_0.wav\nno/cccc_nohash_1.wav\n")
    (tmp_path / "README.md").write_text("not audio")
    return tmp_path


def test_speech_commands_with_lists(listed):
    corpus = open_corpus(listed, ["yes", "no"])
    assert corpus.clips == load_speech_commands(listed).clips
    assert corpus.labels() == {
        NOISE: {"train": 1, "validation": 1, "test": 0},
        SPEECH: dict.fromkeys(SPLITS, 0) | {hash_split("dddd"): 1},
        "no": dict.fromkeys(SPLITS, 1),
        "yes": dict.fromkeys(SPLITS, 1),
    }
    assert [clip.path for clip in corpus.clips] == sorted(clip.path for clip in corpus.clips)
    (clip,) = corpus.select("no", "test")
    assert clip == Clip("no/cccc_nohash_1.flac", "no", "cccc", "test", 0.2)
    assert corpus.hours(NOISE) * 3600 == pytest.approx(2.0)
    assert corpus.select(SPEECH)[0].speaker == "dddd"


def test_speech_commands_without_lists_use_the_published_hash(tmp_path):
    for split, speakers in PUBLISHED.items():
        for speaker in speakers.split():
            put(tmp_path / "yes" / f"{speaker}_nohash_0.wav", 0.01)
            assert hash_split(speaker) == hash_split(f"no/{speaker}_nohash_7.wav") == split
    put(tmp_path / "_background_noise_" / "tap.wav")
    corpus = open_corpus(tmp_path)
    for split, speakers in PUBLISHED.items():
        assert {clip.speaker for clip in corpus.select("yes", split)} == set(speakers.split())
    assert any("hash of the speaker" in note for note in corpus.notes)


def test_the_hash_gives_a_tenth_to_each_small_split():
    splits = [hash_split(f"{number:08x}_nohash_0.wav") for number in range(20000)]
    for split, share in (("validation", 0.1), ("test", 0.1), ("train", 0.8)):
        assert splits.count(split) / len(splits) == pytest.approx(share, abs=0.01)


def test_names_of_the_companion_test_archive_have_the_same_speaker(tmp_path):
    put(tmp_path / "yes" / "yes_1a2b3c4d_nohash_0.wav.wav")
    put(tmp_path / "yes" / "1a2b3c4d_nohash_1.wav")
    corpus = load_word_folders(tmp_path)
    assert {clip.speaker for clip in corpus.clips} == {"1a2b3c4d"}
    assert len({clip.split for clip in corpus.clips}) == 1


def test_word_folders_with_speaker_folders(tmp_path):
    for number in range(40):
        put(tmp_path / "lamp" / f"speaker{number}" / "one.wav", 0.01)
        put(tmp_path / "lamp" / f"speaker{number}" / "two.wav", 0.01)
    corpus = open_corpus(tmp_path)
    assert {clip.speaker for clip in corpus.clips} == {f"speaker{number}" for number in range(40)}
    assert set(corpus.labels()) == {"lamp"} and len(corpus.clips) == 80


def test_word_folders_below_split_folders(tmp_path):
    for split, speaker in zip(SPLITS, ("ann", "bob", "cat")):
        put(tmp_path / split / "lamp" / f"{speaker}_nohash_0.wav")
        put(tmp_path / split / "_background_noise_" / "tap.wav")
    corpus = open_corpus(tmp_path, ["lamp"])
    assert [(clip.path, clip.speaker) for clip in corpus.select("lamp", "test")] == [
        ("test/lamp/cat_nohash_0.wav", "cat")
    ]
    assert corpus.labels()[NOISE] == dict.fromkeys(SPLITS, 1)


def test_unknown_speakers_are_split_by_name_and_noted(tmp_path):
    for number in range(60):
        put(tmp_path / "lamp" / f"{number}.wav", 0.01)
    corpus = open_corpus(tmp_path, ["lamp"])
    assert {clip.speaker for clip in corpus.clips} == {""}
    assert "60 clips of unknown speakers (lamp): their splits may share voices" in corpus.notes


def test_a_linked_word_folder_is_read(tmp_path):
    put(tmp_path / "elsewhere" / "x" / "long.wav", 1.0)
    put(tmp_path / "corpus" / "lamp" / "ann_nohash_0.wav")
    (tmp_path / "corpus" / "_speech_").symlink_to(tmp_path / "elsewhere")
    (clip,) = open_corpus(tmp_path / "corpus").select(SPEECH)
    assert (clip.path, clip.speaker) == ("_speech_/x/long.wav", "x")


ROW = {"path": "a.wav", "label": "lamp", "speaker": "ann", "split": "train"}


def test_manifest_with_all_columns_trusts_seconds(tmp_path):
    put(tmp_path / "a.wav", 0.5)
    rows = [ROW | {"seconds": "0.75", "sample_rate": "16000", "start_seconds": "0.1", "end_seconds": "0.4"}]
    corpus = open_corpus(write_manifest(tmp_path, rows))
    assert corpus.clips == (Clip("a.wav", "lamp", "ann", "train", 0.75, 0.1, 0.4),)
    assert corpus.root == tmp_path and corpus.clips == open_corpus(tmp_path).clips


def test_manifest_with_two_columns_reads_headers_and_hashes(tmp_path):
    put(tmp_path / "a.wav", 0.5)
    corpus = open_corpus(write_manifest(tmp_path, [{"path": "a.wav", "label": "lamp"}]))
    assert corpus.clips == (Clip("a.wav", "lamp", "", hash_split("a"), 0.5),)


def test_nothing_is_opened_where_the_manifest_says_it_all(tmp_path, monkeypatch):
    put(tmp_path / "a.wav")
    write_manifest(tmp_path, [ROW | {"seconds": "0.1", "sample_rate": "16000"}])
    monkeypatch.setattr("kwsbench.data.corpora.probe", None)
    assert len(open_corpus(tmp_path).clips) == 1


def test_other_rates_and_channels_are_said_once(tmp_path):
    for number in range(3):
        put(tmp_path / "lamp" / f"ann{number}_nohash_0.wav", 0.1, 44100)
    put(tmp_path / "lamp" / "bob_nohash_0.wav", 0.1, 16000, channels=2)
    notes = open_corpus(tmp_path).notes
    assert notes.count("3 files resampled from 44100 Hz to 16000 Hz") == 1
    assert notes.count("1 files of 2 channels mixed down to one") == 1


def test_unusable_files_are_skipped_with_the_reason(tmp_path):
    put(tmp_path / "good.wav")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("hello")
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), SAMPLE_RATE)
    names = ("good", "empty", "text", "zero", "gone")
    rows = [ROW | {"path": f"{name}.wav", "seconds": "0.1"} for name in names]
    rows.append(ROW | {"path": "stated.wav", "seconds": "0.1", "sample_rate": "16000"})
    write_manifest(tmp_path, rows)
    corpus = open_corpus(tmp_path)
    assert [clip.path for clip in corpus.clips] == ["good.wav"]
    reasons = {item.path: item.reason for item in corpus.skipped}
    assert reasons.keys() == {"empty.wav", "text.wav", "zero.wav", "gone.wav", "stated.wav"}
    assert "0 bytes" in reasons["empty.wav"] and "unreadable" in reasons["text.wav"]
    assert "zero-length" in reasons["zero.wav"]
    assert reasons["gone.wav"] == reasons["stated.wav"] == "no such file"
    assert "5 files skipped" in corpus.summary()


BAD_ROWS = {
    r"line 3: path must be relative .*'/etc/a.wav'": {"path": "/etc/a.wav"},
    r"line 3: path must be relative .*''": {"path": ""},
    r"line 3: empty label for 'b.wav'": {"label": " "},
    r"line 3: split must be one of train, validation, test, got 'dev'": {"split": "dev"},
    r"line 3: seconds must be a number >= 0, got 'soon'": {"seconds": "soon"},
    r"line 3: seconds must be a number >= 0, got 'nan'": {"seconds": "nan"},
    r"line 3: start_seconds 2.0 is not before end_seconds 1.0": {"start_seconds": "2", "end_seconds": "1"},
    r"lists 1 path\(s\) twice, for example 'a.wav'": {"path": "a.wav"},
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_bad_rows_are_refused_with_their_line(tmp_path, message):
    put(tmp_path / "a.wav")
    put(tmp_path / "b.wav")
    write_manifest(tmp_path, [ROW, ROW | {"path": "b.wav"} | BAD_ROWS[message]])
    with pytest.raises(ValueError, match=message):
        open_corpus(tmp_path)


def test_a_manifest_without_the_columns_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_text("file;word\na.wav;lamp\n")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) label, path: its first line is 'file;word'"):
        open_corpus(tmp_path)
    (tmp_path / "manifest.csv").write_text("")
    with pytest.raises(ValueError, match="lacks the column"):
        open_corpus(tmp_path)
    (tmp_path / "list.txt").write_text("a")
    with pytest.raises(ValueError, match=r"is not a CSV manifest"):
        open_corpus(tmp_path / "list.txt")


def test_missing_and_empty_corpora(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no corpus at .*absent"):
        open_corpus(tmp_path / "absent")
    with pytest.raises(ValueError, match="no recordings in"):
        open_corpus(tmp_path)
    (tmp_path / "lamp").mkdir()
    (tmp_path / "lamp" / "a.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 1 recordings .* lamp/a.wav: empty file"):
        open_corpus(tmp_path)


def test_an_absent_keyword_is_met_with_the_nearest_words(listed):
    with pytest.raises(ValueError, match=r"no clip of the keyword 'yess' .*nearest: yes; most frequent: no, yes$"):
        open_corpus(listed, ["yess"])
    with pytest.raises(ValueError, match="'_speech_' is a reserved label"):
        open_corpus(listed, [SPEECH])


def test_a_keyword_must_be_in_every_split(listed):
    (listed / "yes" / "cccc_nohash_0.wav").unlink()
    open_corpus(listed, ["no"])
    with pytest.raises(ValueError, match="'yes' has no clip in test of"):
        open_corpus(listed, ["yes"])


def test_shared_speakers_are_refused_by_name(listed):
    put(listed / "no" / "cccc_nohash_5.wav")
    put(listed / "no" / "bbbb_nohash_5.wav")
    with pytest.raises(
        ValueError, match=r"2 speaker\(s\) are shared .*bbbb \(train\+validation\), cccc \(test\+train\)"
    ):
        open_corpus(listed)


def test_noise_and_unknown_speakers_may_be_in_all_splits():
    clips = [Clip(f"{split}.wav", NOISE, "fold1", split, 1.0) for split in SPLITS]
    clips += [Clip(f"{split}2.wav", "lamp", "", split, 1.0) for split in SPLITS]
    check_speakers(Path(), clips)
    with pytest.raises(ValueError, match="shared between splits"):
        check_speakers(Path(), [replace(clip, label=SPEECH) for clip in clips])


def test_the_fingerprint_sees_the_table_and_nothing_else(tmp_path):
    clip = Clip("a.wav", "lamp", "ann", "train", 0.5)
    corpus = Corpus(tmp_path, (clip,))
    assert Corpus(tmp_path / "moved", (clip,), notes=("x",)).fingerprint() == corpus.fingerprint()
    assert Corpus(tmp_path, (replace(clip, seconds=0.5001),)).fingerprint() == corpus.fingerprint()
    changes = {"path": "b.wav", "label": "door", "speaker": "bob", "split": "test", "seconds": 0.501}
    others = {Corpus(tmp_path, (replace(clip, **{name: changes[name]}),)).fingerprint() for name in changes}
    others.add(Corpus(tmp_path, (clip, clip)).fingerprint())
    assert len(others | {corpus.fingerprint()}) == len(changes) + 2


def test_a_moved_corpus_is_the_same_corpus(listed, tmp_path_factory):
    there = tmp_path_factory.mktemp("there") / "copy"
    shutil.copytree(listed, there)
    assert open_corpus(there).clips == open_corpus(listed).clips


@pytest.mark.speech
def test_real_recordings_open_and_read(speech_root):
    corpus = open_corpus(speech_root, ["happy"])
    assert not corpus.skipped and len(corpus.clips) > 7000
    assert sum("resampled from 44100 Hz" in note for note in corpus.notes) == 1
    for clip in random.Random(0).sample(corpus.clips, 200):
        audio = read_audio(corpus.root / clip.path)
        assert len(audio) / SAMPLE_RATE == pytest.approx(clip.seconds, abs=2e-3)


@pytest.mark.speech
def test_lists_and_manifest_of_the_real_recordings_agree(speech_root):
    by_lists = load_speech_commands(speech_root / "commands")
    by_manifest = {clip.path: clip for clip in load_manifest(speech_root).clips}
    assert len(by_lists.clips) > 6000
    for clip in by_lists.clips:
        other = by_manifest[f"commands/{clip.path}"]
        assert (clip.label, clip.speaker, clip.split) == (other.label, other.speaker, other.split)
