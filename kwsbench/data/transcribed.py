"""Recordings with their words: what a speech recognizer learns from and is scored on.

An utterance is one or more stretches of recordings of one speaker, in a row, and the text they say. Three sources:

- :func:`open_librispeech`: LibriSpeech's folders, ``<set>/<speaker>/<chapter>/<speaker>-<chapter>-<n>.flac`` with
  ``<speaker>-<chapter>.trans.txt`` (one line each: the file's name and its text), as at openslr.org/12;
- :func:`open_transcribed_manifest`: a manifest (corpora.py) with a column ``text``, such as the embedded corpus writes;
- :func:`kwsbench.data.sequences.command_sequences`: recorded single words strung together.

Nothing is decoded here but headers. What cannot be used (no transcript, no audio, an empty text, too long) goes to
``TranscribedCorpus.skipped`` with the reason. A known speaker belongs to one split; that is checked.

Texts are lower case, words of letters, digits and apostrophes with one space between: see :func:`plain_text`. A
:class:`Vocabulary` turns them into labels 1, 2, ...; 0 is left to the blank of a transducer.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kwsbench.data.audio import SAMPLE_RATE, AudioError, probe, read_audio
from kwsbench.data.corpora import (
    MANIFEST,
    NOISE,
    SPEECH,
    SPLITS,
    Clip,
    Skipped,
    check_speakers,
    load_manifest,
)

LONGEST_SECONDS = 35.0
LIBRISPEECH_SETS = {"train": "train", "dev": "validation", "test": "test"}  # by what stands before the first "-"
FADE_SAMPLES = 80


@dataclass(frozen=True)
class Part:
    """A stretch of a recording, scaled by ``gain``, after ``gap_seconds`` of silence. ``path`` is posix, relative to
    the corpus root; without start and end it is the whole recording."""

    path: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    gap_seconds: float = 0.0
    gain: float = 1.0


@dataclass(frozen=True)
class Utterance:
    """What one speaker says in a row. ``name`` is unique in its corpus; ``speaker`` "" is unknown."""

    name: str
    text: str
    speaker: str
    split: str
    seconds: float
    parts: tuple[Part, ...]

    @property
    def words(self) -> list[str]:
        return self.text.split()


@dataclass(frozen=True)
class TranscribedCorpus:
    """Utterances sorted by name, recorded noise to mix in, what was left out, and what should be said once."""

    root: Path
    utterances: tuple[Utterance, ...]
    noise: tuple[Clip, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def select(self, split: str) -> tuple[Utterance, ...]:
        """The utterances of a split."""
        return tuple(u for u in self.utterances if u.split == split)

    def texts(self, split: str) -> list[str]:
        """The texts of a split."""
        return [u.text for u in self.select(split)]

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what is heard and said, as hex."""
        digest = hashlib.sha256()
        for u in self.utterances:
            parts = [(p.path, p.start_seconds, p.end_seconds, p.gap_seconds, p.gain) for p in u.parts]
            digest.update(json.dumps((u.name, u.text, u.speaker, u.split, parts)).encode() + b"\n")
        for clip in self.noise:
            digest.update(json.dumps((clip.path, clip.split)).encode() + b"\n")
        return digest.hexdigest()

    def summary(self) -> str:
        """A few lines for a person: utterances, speakers, words and hours by split, what was skipped, the notes."""
        lines = [f"{self.root}: {len(self.utterances)} utterances"]
        for split in SPLITS:
            chosen = self.select(split)
            words = Counter(word for u in chosen for word in u.words)
            speakers = len({u.speaker for u in chosen if u.speaker})
            hours = math.fsum(u.seconds for u in chosen) / 3600
            lines.append(
                f"  {split}: {len(chosen)} utterances, {speakers} known speakers, {sum(words.values())} words "
                f"({len(words)} different), {hours:.2f} h"
            )
        if self.skipped:
            shown = "; ".join(f"{item.path} ({item.reason})" for item in self.skipped[:3])
            lines.append(f"  {len(self.skipped)} skipped: {shown}{'; ...' if len(self.skipped) > 3 else ''}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


class UnknownSymbolError(ValueError):
    """A text holds a word or character that the vocabulary does not."""


@dataclass(frozen=True)
class Vocabulary:
    """``symbols[k]`` is label k + 1; 0 is left to the blank. Texts fall apart at ``separator``: " " gives words, ""
    characters."""

    symbols: tuple[str, ...]
    separator: str = " "

    def __post_init__(self) -> None:
        if self.separator not in ("", " "):
            raise ValueError(f'separator must be " " (words) or "" (characters), got {self.separator!r}')
        if not self.symbols or len(set(self.symbols)) != len(self.symbols) or "" in self.symbols:
            raise ValueError(f"a vocabulary needs distinct symbols, none empty, got {self.symbols[:8]}")
        for symbol in self.symbols:
            if (self.separator and self.separator in symbol) or (not self.separator and len(symbol) != 1):
                raise ValueError(f"{symbol!r} is not one {'word' if self.separator else 'character'}")

    @property
    def size(self) -> int:
        """Number of labels with the blank."""
        return len(self.symbols) + 1

    def encode(self, text: str) -> np.ndarray:
        """Labels int64 [n] of a text. Raises UnknownSymbolError, which names what is unknown."""
        numbers = {symbol: k + 1 for k, symbol in enumerate(self.symbols)}
        pieces = text.split() if self.separator else list(text)
        unknown = sorted({piece for piece in pieces if piece not in numbers})
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            names = ", ".join(map(repr, unknown[:3]))
            raise UnknownSymbolError(f"not among the {len(numbers)} symbols of the vocabulary: {names}{more}")
        return np.array([numbers[piece] for piece in pieces], np.int64)

    def decode(self, labels: Iterable[int]) -> str:
        """The text of labels. Raises ValueError for a label that is none."""
        labels = [int(label) for label in labels]
        wrong = [label for label in labels if not 1 <= label <= len(self.symbols)]
        if wrong:
            raise ValueError(f"labels are 1..{len(self.symbols)}, got {wrong[0]}")
        return self.separator.join(self.symbols[label - 1] for label in labels)

    def to_json(self) -> dict[str, Any]:
        return {"symbols": list(self.symbols), "separator": self.separator}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Vocabulary:
        return Vocabulary(tuple(values["symbols"]), values["separator"])


def word_vocabulary(texts: Iterable[str]) -> Vocabulary:
    """All words of some texts, sorted. Raises ValueError where there is none."""
    return Vocabulary(tuple(sorted({word for text in texts for word in text.split()})), " ")


def character_vocabulary(texts: Iterable[str]) -> Vocabulary:
    """All characters of some texts, the space among them, sorted. Raises ValueError where there is none."""
    return Vocabulary(tuple(sorted({character for text in texts for character in text})), "")


def plain_text(text: str) -> str:
    """Lower case; letters, digits and apostrophes; one space between words. Other marks become spaces.

    >>> plain_text("It's  HALF-past nine.")
    "it's half past nine"
    """
    text = unicodedata.normalize("NFC", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower()
    words = re.sub(r"[^\w']|_", " ", text).split()
    return " ".join(word.strip("'") for word in words if word.strip("'"))


def open_librispeech(root: str | Path, longest_seconds: float = LONGEST_SECONDS) -> TranscribedCorpus:
    """LibriSpeech's folder ``root``, which holds sets such as ``train-clean-100``, ``dev-clean``, ``test-clean``.

    What stands before the first "-" of a set's name gives the split (train, dev: validation, test); other folders are
    named in the notes. Recordings above ``longest_seconds`` are skipped.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no set in it, no usable utterance, speakers shared between splits, or a transcript file
            that cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: give the one that holds LibriSpeech's sets, such as dev-clean")
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    sets = {name: LIBRISPEECH_SETS[name.split("-")[0]] for name in folders if name.split("-")[0] in LIBRISPEECH_SETS}
    if not sets:
        raise ValueError(
            f"{root} holds no folder train-..., dev-... or test-... (found {', '.join(folders[:5]) or 'nothing'}); "
            "give the folder above the sets, usually called LibriSpeech"
        )
    utterances: list[Utterance] = []
    skipped: list[Skipped] = []
    for name, split in sets.items():
        for chapter in sorted(path for path in (root / name).glob("*/*") if path.is_dir()):
            for item in _librispeech_chapter(root, chapter, split):
                (skipped if isinstance(item, Skipped) else utterances).append(item)  # type: ignore[arg-type]
    others = [name for name in folders if name not in sets]
    notes = [f"folders that are no sets: {', '.join(others)}"] if others else []
    return _finish(root, utterances, (), skipped, notes, longest_seconds)


def open_transcribed_manifest(
    path: str | Path, labels: tuple[str, ...] = (SPEECH,), longest_seconds: float = LONGEST_SECONDS
) -> TranscribedCorpus:
    """The clips of a manifest that state their ``text`` and bear one of ``labels``; its noise clips as noise.

    The embedded corpus writes such a manifest (``synthesize(recipe, folder).root``): its sentences are short clips
    labelled SPEECH; its files of continuous speech are longer than ``longest_seconds`` and are skipped.

    Raises:
        FileNotFoundError, ValueError: as :func:`kwsbench.data.corpora.load_manifest`; no column ``text``; no
            usable utterance; speakers shared between splits.
    """
    path = Path(path)
    manifest = path / MANIFEST if path.is_dir() else path
    if not manifest.is_file():
        raise FileNotFoundError(f"no manifest at {manifest}")
    corpus = load_manifest(path)
    with open(manifest, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "text" not in (reader.fieldnames or ()):
            raise ValueError(
                f"{manifest} has no column text: its first line is {','.join(reader.fieldnames or ())!r}; add what "
                "each recording says"
            )
        texts = {row["path"].strip().replace("\\", "/"): plain_text(row["text"] or "") for row in reader}
    utterances = [
        Utterance(c.path, texts[c.path], c.speaker, c.split, c.seconds, (Part(c.path),))
        for c in corpus.clips
        if c.label in labels
    ]
    if not utterances:
        raise ValueError(f"no recording of {manifest} has a label among {', '.join(labels)}: {corpus.labels()}")
    return _finish(
        corpus.root, utterances, corpus.select(NOISE), list(corpus.skipped), list(corpus.notes), longest_seconds
    )


def check_disjoint(root: Path, utterances: Iterable[Utterance]) -> None:
    """Raise ValueError where a known speaker is in more than one split."""
    check_speakers(root, (Clip(u.name, SPEECH, u.speaker, u.split, u.seconds) for u in utterances))


def read_utterance(root: Path, utterance: Utterance) -> np.ndarray:
    """Its audio, float32 [samples] at 16 kHz: its parts in a row, each faded in and out over 5 ms where it was cut.

    Raises AudioError for a recording that cannot be used.
    """
    pieces = []
    for part in utterance.parts:
        audio = read_audio(root / part.path)
        if part.start_seconds is not None or part.end_seconds is not None:
            start = round((part.start_seconds or 0.0) * SAMPLE_RATE)
            end = len(audio) if part.end_seconds is None else round(part.end_seconds * SAMPLE_RATE)
            audio = _faded(audio[max(start, 0) : end])
        pieces += [np.zeros(round(part.gap_seconds * SAMPLE_RATE), np.float32), audio * np.float32(part.gain)]
    return np.concatenate(pieces)


def _librispeech_chapter(root: Path, chapter: Path, split: str) -> Iterator[Utterance | Skipped]:
    """The utterances of one chapter's folder, and what is wrong with the others."""
    speaker = chapter.parent.name
    transcript = chapter / f"{speaker}-{chapter.name}.trans.txt"
    recordings = {path.stem: path for path in sorted(chapter.glob("*.flac"))}
    texts = _read_transcript(transcript) if transcript.is_file() else {}
    for name, path in recordings.items():
        where = path.relative_to(root).as_posix()
        if name not in texts:
            what = f"no line in {transcript.name}" if transcript.is_file() else f"no file {transcript.name}"
            yield Skipped(where, f"no transcript: {what}")
            continue
        try:
            seconds = probe(path).seconds
        except AudioError as error:
            yield Skipped(where, error.reason)
            continue
        yield Utterance(where, texts[name], speaker, split, seconds, (Part(where),))
    for name in texts:
        if name not in recordings:
            yield Skipped((chapter / f"{name}.flac").relative_to(root).as_posix(), "a transcript without a recording")


def _read_transcript(path: Path) -> dict[str, str]:
    """{name: text}. Raises ValueError for a file that is not text, or that has a name twice."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); fetch it again") from None
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name, _, text = line.strip().partition(" ")
        if name in texts:
            raise ValueError(f"{path} line {number}: {name} has two transcripts; leave one")
        if name:
            texts[name] = plain_text(text)
    return texts


def _finish(
    root: Path,
    utterances: list[Utterance],
    noise: tuple[Clip, ...],
    skipped: list[Skipped],
    notes: list[str],
    longest_seconds: float,
) -> TranscribedCorpus:
    """Leave out empty texts and long recordings, check speakers, note unknown ones."""
    kept = []
    for u in sorted(utterances, key=lambda u: u.name):
        if not u.text:
            skipped.append(Skipped(u.name, "empty transcript"))
        elif u.seconds > longest_seconds:
            skipped.append(Skipped(u.name, f"{u.seconds:.1f} s is longer than {longest_seconds:g} s"))
        else:
            kept.append(u)
    if not kept:
        first = f"; the first: {skipped[0].path} ({skipped[0].reason})" if skipped else ""
        raise ValueError(f"no usable utterance in {root}, {len(skipped)} skipped{first}")
    check_disjoint(root, kept)
    unknown = sum(not u.speaker for u in kept)
    if unknown:
        notes.append(f"{unknown} utterances of unknown speakers: their splits may share voices")
    return TranscribedCorpus(root, tuple(kept), noise, tuple(skipped), tuple(notes))


def _faded(audio: np.ndarray) -> np.ndarray:
    fade = min(FADE_SAMPLES, len(audio) // 2)
    ramp = (0.5 - 0.5 * np.cos(np.pi * np.arange(fade) / max(fade, 1))).astype(np.float32)
    audio = audio.copy()
    audio[:fade] *= ramp
    audio[len(audio) - fade :] *= ramp[::-1]
    return audio
