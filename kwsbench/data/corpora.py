"""Corpora: a folder of recordings read as a table of clips (path, label, speaker, split, seconds).

Three layouts are accepted, see data/README.md: a CSV manifest, Speech Commands folders, any folder of word
folders. Nothing is decoded here: a manifest that states seconds and rate costs one stat per file, anything
else one header per file. Files that are missing, empty or have an unreadable header go to Corpus.skipped with
the reason; damage inside a file is found by read_audio.

Labels: a word, or NOISE (background recordings), or SPEECH (continuous speech without the keyword).
Speakers: "" is an unknown speaker. Splits must not share a known speaker; noise has no speakers to share, and
clips of unknown speakers cannot be checked, which Corpus.notes says.
"""

import csv
import difflib
import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kwsbench.data.audio import AUDIO_SUFFIXES, SAMPLE_RATE, AudioError, AudioHeader, probe

NOISE = "_noise_"
SPEECH = "_speech_"
SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.csv"
BACKGROUND_FOLDER = "_background_noise_"
SPLIT_LISTS = {"validation_list.txt": "validation", "testing_list.txt": "test"}

# Speech Commands (arXiv 1804.03209): files per class at most, and the share of the two smaller splits.
MAX_FILES_PER_CLASS = 2**27 - 1
VALIDATION_PERCENT = 10.0
TEST_PERCENT = 10.0
# Noise has no speakers to hash and few files: they are dealt out in order of name.
NOISE_DEAL = ("train", "validation", "test", "train", "train", "train")


@dataclass(frozen=True)
class Clip:
    """One recording. `path` is posix, relative to the corpus root; start and end of the word where known."""

    path: str
    label: str
    speaker: str
    split: str
    seconds: float
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A file of the corpus that is not used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """The table: clips sorted by path, what was left out, and what should be said once about the rest."""

    root: Path
    clips: tuple[Clip, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def select(self, label: str | None = None, split: str | None = None) -> tuple[Clip, ...]:
        """The clips of a label and a split; None stands for all."""
        return tuple(
            clip
            for clip in self.clips
            if (label is None or clip.label == label) and (split is None or clip.split == split)
        )

    def labels(self) -> dict[str, dict[str, int]]:
        """Number of clips: {label: {split: count}}, every split present."""
        counts: dict[str, dict[str, int]] = {}
        for clip in self.clips:
            counts.setdefault(clip.label, dict.fromkeys(SPLITS, 0))[clip.split] += 1
        return dict(sorted(counts.items()))

    def hours(self, label: str | None = None, split: str | None = None) -> float:
        """Hours of audio of a label and a split; None stands for all."""
        return math.fsum(clip.seconds for clip in self.select(label, split)) / 3600

    def fingerprint(self) -> str:
        """SHA-256 of the table (path, label, speaker, split, seconds to 3 places), as hex."""
        digest = hashlib.sha256()
        for clip in self.clips:
            row = (clip.path, clip.label, clip.speaker, clip.split, f"{clip.seconds:.3f}")
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()

    def summary(self) -> str:
        """A few lines for a person: clips, speakers and hours by split, what was skipped, the notes."""
        lines = [f"{self.root}: {len(self.clips)} clips, {self.hours():.2f} h, {len(self.labels())} labels"]
        for split in SPLITS:
            clips = self.select(split=split)
            speakers = len({clip.speaker for clip in clips if clip.label != NOISE and clip.speaker})
            all_hours, speech, noise = (self.hours(label, split) for label in (None, SPEECH, NOISE))
            lines.append(
                f"  {split}: {len(clips)} clips, {speakers} known speakers, {all_hours:.2f} h, "
                f"of which {speech:.2f} h continuous speech and {noise:.2f} h noise"
            )
        if self.skipped:
            shown = "; ".join(f"{item.path} ({item.reason})" for item in self.skipped[:3])
            lines.append(f"  {len(self.skipped)} files skipped: {shown}{'; ...' if len(self.skipped) > 3 else ''}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def open_corpus(path: str | Path, keywords: Sequence[str] = ()) -> Corpus:
    """Open a corpus in any layout and check it before work starts.

    path: a folder, or a CSV manifest. keywords: words that must occur in every split. Raises
    FileNotFoundError (nothing there), ValueError (empty, keyword absent, speakers shared between splits).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no corpus at {path}: give a folder of recordings or a CSV manifest")
    if path.is_file() or (path / MANIFEST).is_file():
        corpus = load_manifest(path)
    elif any((path / name).exists() for name in (BACKGROUND_FOLDER, *SPLIT_LISTS)):
        corpus = load_speech_commands(path)
    else:
        corpus = load_word_folders(path)
    check_keywords(corpus, keywords)
    return corpus


def load_manifest(path: str | Path) -> Corpus:
    """A CSV manifest, or the folder that holds `manifest.csv`.

    Columns: path (relative to the manifest's folder) and label; optional: speaker, split, seconds,
    sample_rate, start_seconds, end_seconds; any other column is ignored. Without a split the hash of the
    speaker decides, of the file's name where the speaker is unknown. Seconds are taken from the table where
    it states a sample_rate of 16000, from the header of the file otherwise. Raises ValueError with the line
    number for a bad row.
    """
    path = Path(path)
    manifest = path / MANIFEST if path.is_dir() else path
    if manifest.suffix.lower() != ".csv":
        raise ValueError(f"{manifest} is not a CSV manifest: give a folder or a file that ends in .csv")
    with open(manifest, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"path", "label"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"{manifest} lacks the column(s) {', '.join(sorted(missing))}: "
                f"its first line is {','.join(reader.fieldnames or ())!r}, it needs at least path,label"
            )
        rows = [(reader.line_num, row) for row in reader]
    clips, headers = [], {}
    for line, row in rows:
        clip, header = _manifest_row(row, f"{manifest} line {line}")
        clips.append(clip)
        if header:
            headers[clip.path] = header
    repeated = [name for name, count in Counter(clip.path for clip in clips).items() if count > 1]
    if repeated:
        raise ValueError(f"{manifest} lists {len(repeated)} path(s) twice, for example {repeated[0]!r}")
    return _finish(manifest.parent, clips, headers, [])


def load_speech_commands(root: str | Path) -> Corpus:
    """Speech Commands folders (arXiv 1804.03209), wav or flac.

    `<word>/<speaker>_nohash_<n>.wav`; `validation_list.txt` and `testing_list.txt` name two splits, the rest
    is train; without lists, the published hash of the speaker decides. `_background_noise_` is noise, dealt
    to the splits in order of name; a folder `_speech_` holds continuous speech without the keyword.
    """
    root = Path(root)
    listed: dict[str, str] = {}
    for name, split in SPLIT_LISTS.items():
        if (root / name).is_file():
            lines = (root / name).read_text(encoding="utf-8").split("\n")
            listed |= {_without_suffixes(line.strip()): split for line in lines if line.strip()}
    has_lists = any((root / name).is_file() for name in SPLIT_LISTS)
    clips = []
    for path, label, speaker in _walk_word_folders(root):
        if has_lists and label not in (NOISE, SPEECH):
            split = listed.get(_without_suffixes(path), "train")
        else:
            split = hash_split(speaker or _without_suffixes(path))
        clips.append(Clip(path, label, speaker, split, 0.0))
    notes = [] if has_lists else ["no validation_list.txt or testing_list.txt: split by the hash of the speaker"]
    return _finish(root, list(_deal_noise(clips)), {}, notes)


def load_word_folders(root: str | Path) -> Corpus:
    """Any folder of word folders, `<word>/<file>` or `<word>/<speaker>/<file>`, also below split folders.

    Split folders are train/, validation/ and test/, and there is nothing beside them.
    The speaker is what stands before `_nohash_` in the file's name, or the folder between word and file, or
    unknown. Without split folders the hash of the speaker decides, of the file's name where the speaker is
    unknown. `_background_noise_` and `_speech_` are folders of noise and of continuous speech.
    """
    root = Path(root)
    folders = {entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")}
    if folders and folders <= set(SPLITS):
        clips = [
            Clip(f"{split}/{path}", label, speaker, split, 0.0)
            for split in sorted(folders)
            for path, label, speaker in _walk_word_folders(root / split)
        ]
        return _finish(root, clips, {}, [])
    clips = [
        Clip(path, label, speaker, hash_split(speaker or _without_suffixes(path)), 0.0)
        for path, label, speaker in _walk_word_folders(root)
    ]
    return _finish(root, list(_deal_noise(clips)), {}, ["no split folders or lists: split by the hash of the speaker"])


def hash_split(name: str) -> str:
    """The published split of Speech Commands: SHA-1 of what stands before `_nohash_` in the base name.

    All files of a speaker fall into one split, whatever is added to the corpus later.
    """
    speaker = re.sub(r"_nohash_.*$", "", name.rsplit("/", 1)[-1])
    number = int(hashlib.sha1(speaker.encode(), usedforsecurity=False).hexdigest(), 16)
    percent = (number % (MAX_FILES_PER_CLASS + 1)) * (100.0 / MAX_FILES_PER_CLASS)
    if percent < VALIDATION_PERCENT:
        return "validation"
    return "test" if percent < VALIDATION_PERCENT + TEST_PERCENT else "train"


def check_keywords(corpus: Corpus, keywords: Iterable[str]) -> None:
    """Raise ValueError where a keyword has no clip at all, or none in one of the splits."""
    counts = corpus.labels()
    for keyword in keywords:
        if keyword in (NOISE, SPEECH):
            raise ValueError(f"{keyword!r} is a reserved label and cannot be a keyword")
        if keyword not in counts:
            words = sorted(
                (word for word in counts if word not in (NOISE, SPEECH)),
                key=lambda w: -sum(counts[w].values()),
            )
            nearest = difflib.get_close_matches(keyword, words, n=3)
            hint = f"nearest: {', '.join(nearest)}; " if nearest else ""
            raise ValueError(
                f"no clip of the keyword {keyword!r} in {corpus.root}; {hint}most frequent: {', '.join(words[:8])}"
            )
        absent = [split for split, count in counts[keyword].items() if count == 0]
        if absent:
            raise ValueError(
                f"the keyword {keyword!r} has no clip in {' and '.join(absent)} of {corpus.root}: "
                f"{counts[keyword]}; add recordings of other speakers, or state the split in a manifest"
            )


def check_speakers(root: Path, clips: Iterable[Clip]) -> None:
    """Raise ValueError where a known speaker is in more than one split. Noise is exempt."""
    splits: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        if clip.label != NOISE and clip.speaker:
            splits[clip.speaker].add(clip.split)
    shared = sorted(speaker for speaker, found in splits.items() if len(found) > 1)
    if shared:
        some = ", ".join(f"{speaker} ({'+'.join(sorted(splits[speaker]))})" for speaker in shared[:5])
        raise ValueError(
            f"{len(shared)} speaker(s) are shared between splits in {root}: {some}"
            f"{', ...' if len(shared) > 5 else ''}; "
            "give each speaker one split (results on known voices say nothing about new ones), "
            "or leave the speaker empty if it is not known"
        )


def _manifest_row(row: dict[str, str], where: str) -> tuple[Clip, AudioHeader | None]:
    path, label = (row["path"] or "").strip().replace("\\", "/"), (row["label"] or "").strip()
    if not path or path.startswith("/") or re.match("[A-Za-z]:", path):
        raise ValueError(f"{where}: path must be relative to the manifest's folder, got {path!r}")
    if not label:
        raise ValueError(f"{where}: empty label for {path!r}")
    speaker = (row.get("speaker") or "").strip()
    split = (row.get("split") or "").strip() or hash_split(speaker or _without_suffixes(path))
    if split not in SPLITS:
        raise ValueError(f"{where}: split must be one of {', '.join(SPLITS)}, got {split!r}")
    seconds = _number(row, "seconds", where)
    start, end = _number(row, "start_seconds", where), _number(row, "end_seconds", where)
    if start is not None and end is not None and not start < end:
        raise ValueError(f"{where}: start_seconds {start} is not before end_seconds {end}")
    rate = _number(row, "sample_rate", where)
    header = AudioHeader(seconds, SAMPLE_RATE, 1) if seconds and rate == SAMPLE_RATE else None
    return Clip(path, label, speaker, split, seconds or 0.0, start, end), header


def _number(row: dict[str, str], column: str, where: str) -> float | None:
    text = (row.get(column) or "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where}: {column} must be a number >= 0, got {text!r}")
    return value


def _walk_word_folders(root: Path) -> Iterator[tuple[str, str, str]]:
    """(path, label, speaker) of the files below `<root>/<word>/`, sorted. A word folder may be a link."""
    for word in sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")):
        label = NOISE if word == BACKGROUND_FOLDER else word
        for folder, inner, names in os.walk(root / word):
            inner.sort()
            parents = Path(folder).relative_to(root / word).parts
            for name in sorted(names):
                if name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith("."):
                    speaker = _speaker(name, label) or (parents[0] if parents else "")
                    yield "/".join((word, *parents, name)), label, speaker


def _speaker(name: str, word: str) -> str:
    """`<speaker>_nohash_<n>`, or the form of the companion test archive, `<word>_<speaker>_nohash_<n>`."""
    speaker, mark, _ = name.partition("_nohash_")
    return speaker.removeprefix(f"{word}_") if mark else ""


def _without_suffixes(path: str) -> str:
    """`no/a_nohash_0.wav.flac` -> `no/a_nohash_0`: lists name wav files, a corpus may hold flac."""
    while path.lower().endswith(AUDIO_SUFFIXES):
        path = path.rpartition(".")[0]
    return path


def _deal_noise(clips: list[Clip]) -> Iterator[Clip]:
    """Give noise a split by order of name, so that each split has its own recordings."""
    dealt = 0
    for clip in clips:
        if clip.label == NOISE:
            clip = replace(clip, split=NOISE_DEAL[dealt % len(NOISE_DEAL)])
            dealt += 1
        yield clip


def _finish(root: Path, clips: list[Clip], headers: dict[str, AudioHeader], notes: list[str]) -> Corpus:
    """Check files and speakers, fill in seconds, collect notes. `headers` are those the manifest stated."""
    clips = sorted(clips, key=lambda clip: clip.path)
    if not clips:
        raise ValueError(f"no recordings in {root}: see data/README.md for the layouts ({', '.join(AUDIO_SUFFIXES)})")
    headers, skipped = _scan(root, clips, headers)
    kept = [replace(clip, seconds=headers[clip.path].seconds) for clip in clips if clip.path in headers]
    if not kept:
        raise ValueError(
            f"none of the {len(clips)} recordings in {root} can be used, "
            f"for example {skipped[0].path}: {skipped[0].reason}"
        )
    check_speakers(root, kept)
    return Corpus(root, tuple(kept), tuple(skipped), tuple(notes + _notes(kept, headers)))


def _notes(clips: list[Clip], headers: dict[str, AudioHeader]) -> list[str]:
    rates = Counter(headers[clip.path].sample_rate for clip in clips)
    channels = Counter(headers[clip.path].channels for clip in clips)
    unknown = [clip for clip in clips if clip.label != NOISE and not clip.speaker]
    notes = [
        f"{count} files resampled from {rate} Hz to {SAMPLE_RATE} Hz"
        for rate, count in sorted(rates.items())
        if rate != SAMPLE_RATE
    ]
    notes += [f"{count} files of {n} channels mixed down to one" for n, count in sorted(channels.items()) if n > 1]
    if unknown:
        labels = ", ".join(sorted({clip.label for clip in unknown})[:5])
        notes.append(f"{len(unknown)} clips of unknown speakers ({labels}): their splits may share voices")
    return notes


def _scan(
    root: Path, clips: list[Clip], stated: dict[str, AudioHeader]
) -> tuple[dict[str, AudioHeader], list[Skipped]]:
    """The header of every usable file, stated or read, and the files without one."""
    headers: dict[str, AudioHeader] = {}
    skipped: list[Skipped] = []
    for clip in clips:
        try:
            trusted = clip.path in stated and _has_bytes(root / clip.path)
            headers[clip.path] = stated[clip.path] if trusted else probe(root / clip.path)
        except AudioError as error:
            skipped.append(Skipped(clip.path, error.reason))
    return headers, skipped


def _has_bytes(path: Path) -> bool:
    try:
        return os.path.getsize(path) > 0
    except OSError:
        return False
