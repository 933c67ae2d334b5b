"""What identifies a recording is its content, and a settled file is read once."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import soundfile

from kwsbench.data import contents
from kwsbench.data.clips import clip_task, set_hash, task_clips
from kwsbench.data.contents import GONE, content_rows, content_sha256
from kwsbench.data.corpora import open_corpus
from tests.data.clip_tools import write_clips


@pytest.fixture
def reads(monkeypatch):
    """Names of the files whose content was read."""
    names, digest = [], hashlib.file_digest
    monkeypatch.setattr(contents.hashlib, "file_digest", lambda f, n: names.append(Path(f.name).name) or digest(f, n))
    return names


def settle(*paths):
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))


def test_rows_are_sizes_times_and_contents(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"one")
    settle(tmp_path / "a.wav")
    rows = content_rows(tmp_path, ["no.wav", "a.wav"])
    assert rows == {"no.wav": GONE, "a.wav": [3, 10**18, hashlib.sha256(b"one").hexdigest()]}
    assert list(rows) == ["no.wav", "a.wav"]


def test_settled_files_are_read_once_and_fresh_ones_again(tmp_path, reads):
    root, kept = tmp_path / "data", tmp_path / "kept"
    root.mkdir()
    for name in ("old.wav", "new.wav"):
        (root / name).write_bytes(b"one")
    settle(root / "old.wav")
    first = content_sha256(root, ["old.wav", "new.wav"], kept)
    assert sorted(reads) == ["new.wav", "old.wav"]
    assert content_sha256(root, ["old.wav", "new.wav"], kept) == first
    assert reads[2:] == ["new.wav"], "a file of this second may change again within its clock tick"
    (root / "old.wav").write_bytes(b"ONE")
    assert content_sha256(root, ["old.wav", "new.wav"], kept) != first
    assert content_sha256(root, ["old.wav", "new.wav"]) != first, "without a folder to keep rows in"


def test_what_others_kept_stays(tmp_path):
    root, kept = tmp_path / "data", tmp_path / "kept"
    root.mkdir()
    for name in ("a", "b"):
        (root / name).write_bytes(name.encode())
        settle(root / name)
        content_rows(root, [name], kept)
    (file,) = kept.glob("contents-*.json")
    assert set(json.loads(file.read_text())) == {"a", "b"}


@pytest.mark.parametrize("path", ["low/train0", "noise/train"])
def test_a_recording_replaced_by_one_of_the_same_length_is_another_set(tmp_path, path):
    root, task, kept = write_clips(tmp_path / "data"), clip_task("low,high"), tmp_path / "kept"
    audio, _ = soundfile.read(root / f"{path}.flac", dtype="int16")
    soundfile.write(root / f"{path}.wav", audio, 16000, subtype="PCM_16")
    manifest = root / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(f"{path}.flac", f"{path}.wav"))
    corpus = open_corpus(root)
    before = {split: set_hash(corpus, task, split, kept) for split in ("train", "test")}
    heard = task_clips(corpus, task, "train", kept)
    size = (root / f"{path}.wav").stat().st_size
    soundfile.write(root / f"{path}.wav", audio[::-1], 16000, subtype="PCM_16")
    assert (root / f"{path}.wav").stat().st_size == size
    assert set_hash(corpus, task, "train", kept) != before["train"]
    assert set_hash(corpus, task, "test", kept) == before["test"], "the other splits stand"
    again = task_clips(corpus, task, "train", kept)
    assert (again.audio != heard.audio).any() or (again.noise != heard.noise).any()
