"""One-second clips to classify, from any corpus that ``open_corpus`` reads.

    task_clips(corpus, clip_task("twelve"), "train") -> ClipSet(audio int16 [N, 16000], labels [N], ...)

Tasks. ``twelve``: the ten commands of Speech Commands (arXiv 1804.03209), ``_silence_`` and ``_unknown_`` (all other
words); ``yes,no,up``: the same for words of one's own; ``happy``: one keyword against ``_other_`` (all other words,
and silence). Continuous speech is no word and is left out.

Shares. As there, silence counts ceil(10%) of a split's clips of the task's words, and so do unknown words in
validation and test (in the order of their paths' hashes, always the same); the training set holds every unknown clip
and the sampler draws 10%. A split with clips labelled ``_silence_`` or ``_unknown_`` (the companion test archives of
Speech Commands) takes those as they stand. Silence is a cut of the split's own background noise at a volume drawn from
0..1; without recorded noise, coloured noise. The published code cuts silence for all splits from the same recordings.

Length. One second as it stands; a longer recording is cut to the second around its word (where the corpus says, else
by energy, ``spans.word_span``); a shorter one gets zeros on both sides, the odd one behind.

Augmentation (training only; the sibling's, arXiv 2012.10138): a shift of up to +-100 ms, zeros moving in, and with
p = 0.8 background noise at a volume drawn from 0..0.1 of full scale; a pure function of (seed, round, clip), rounded
to int16, so that integer programs hear the same samples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kwsbench.data.audio import SAMPLE_RATE, AudioError, read_audio
from kwsbench.data.contents import content_sha256
from kwsbench.data.corpora import NOISE, SPEECH, SPLITS, Clip, Corpus, check_keywords
from kwsbench.data.noise import coloured_noise
from kwsbench.data.spans import word_span
from kwsbench.data.synth import SynthRecipe, profile_recipe
from kwsbench.data.texts import WORDS
from kwsbench.files import locked, replacing, set_aside

SILENCE, UNKNOWN, OTHER = "_silence_", "_unknown_", "_other_"
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
TWELVE = "twelve"
CLIP_SAMPLES = SAMPLE_RATE
SHARE_PERCENT = 10  # of silence, and of unknown words, to the words of the task
# Fewer clips of a word than this say nothing, and a class of none breaks training.
FEWEST = {"train": 10, "validation": 5, "test": 5}
VERSION = 1  # part of a cached set's name: raise it when the same corpus would give other clips
COLOURED_SECONDS, COLOURED_RECORDINGS, COLOURED_LEVEL = 10, 6, 0.1
DRAWS_KEPT = 64  # rounds whose draws are remembered
SPLIT_SEED = {split: number for number, split in enumerate(SPLITS, start=1)}


@dataclass(frozen=True)
class ClipTask:
    """What is told apart: ``labels`` by class number. ``words``: those of the task, each a class of its own."""

    name: str
    words: tuple[str, ...]

    @property
    def keyword(self) -> str:
        """The one word of a keyword task, "" for a task of several classes."""
        return self.words[0] if len(self.words) == 1 else ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes; 0 is everything else (of several words: silence, then unknown)."""
        return (OTHER, *self.words) if self.keyword else (SILENCE, UNKNOWN, *self.words)

    def class_of(self, word: str) -> int:
        """The class of a corpus label, or of ``_silence_``."""
        if word in self.words:
            return self.words.index(word) + (1 if self.keyword else 2)
        return 0 if self.keyword or word == SILENCE else 1


def clip_task(name: str) -> ClipTask:
    """``twelve``, comma-separated words, or one keyword.

    Raises:
        ValueError: no word, a word twice, or a reserved one.
    """
    words = COMMANDS if name == TWELVE else tuple(part.strip() for part in name.split(","))
    if not all(words) or len(set(words)) < len(words) or any(word.startswith("_") for word in words):
        raise ValueError(f"a task is 'twelve', a keyword, or different words with commas between, got {name!r}")
    return ClipTask(name, words)


def synthetic_recipe(task: ClipTask, profile: str) -> SynthRecipe:
    """The embedded corpus that serves a task: of a keyword the usual one; of several words, voices that say each once,
    and three others.

    Raises:
        ValueError: a word that cannot be said, or that others contain.
    """
    if task.keyword:
        return profile_recipe(profile, task.keyword)
    first, rest = task.words[0], task.words[1:]
    others = tuple(w for w in WORDS if w not in task.words and first.lower() not in w.lower())[: max(8, len(rest))]
    small = profile in ("tiny", "smoke")
    return SynthRecipe(
        keyword=first, confusables=rest, words=others, n_voices=36 if small else 240, keyword_renderings=1,
        confusable_renderings=len(rest), word_renderings=3, sentence_renderings=0,
        train_minutes=0.0, validation_minutes=0.0, test_minutes=0.0,
    )  # fmt: skip


@dataclass(frozen=True)
class Augmentation:
    """What training adds: a shift of up to +-``shift_ms``, noise with ``noise_probability`` at a volume of up to
    ``volume`` of full scale."""

    shift_ms: float = 100.0
    noise_probability: float = 0.8
    volume: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.shift_ms < 1000 * CLIP_SAMPLES / SAMPLE_RATE:
            raise ValueError(f"shift_ms must lie within a clip of one second, got {self.shift_ms}")
        if not (0 <= self.noise_probability <= 1 and 0 <= self.volume <= 1):
            raise ValueError(f"noise_probability and volume must lie in 0..1, got {self}")


@dataclass(frozen=True, eq=False)
class ClipSet:
    """The clips of a split: ``audio`` int16 [N, 16000], ``labels`` int64 [N], by ``task.labels``; ``words`` the corpus
    labels; ``paths`` (of silence: a number); ``speakers``, "" where unknown.

    ``noise`` int16, recordings one after the other, of ``noise_lengths`` samples each. ``skipped``: files that could
    not be read, with the reason; ``source_hash``: of all that decides it.
    """

    task: ClipTask
    split: str
    audio: np.ndarray
    labels: np.ndarray
    words: tuple[str, ...]
    paths: tuple[str, ...]
    speakers: tuple[str, ...]
    noise: np.ndarray
    noise_lengths: np.ndarray
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    source_hash: str
    _drawn: dict[tuple, _Draws] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def noise_starts(self) -> np.ndarray:
        """Where each recording of ``noise`` begins."""
        return np.concatenate([[0], np.cumsum(self.noise_lengths)[:-1]])

    def counts(self) -> dict[str, int]:
        """Clips by class."""
        found = np.bincount(self.labels, minlength=len(self.task.labels))
        return dict(zip(self.task.labels, found.tolist(), strict=True))

    def summary(self) -> str:
        """One line for a person."""
        counts = ", ".join(f"{count} {label}" for label, count in self.counts().items())
        lost = f"; {len(self.skipped)} files skipped: {'; '.join(self.skipped[:3])}" if self.skipped else ""
        return f"{self.split}: {len(self)} clips ({counts}){lost}"


def task_clips(corpus: Corpus, task: ClipTask, split: str, cache_dir: str | Path | None = None) -> ClipSet:
    """The clips of a split, from ``cache_dir`` if they were decoded before.

    Raises:
        ValueError: a class without clips, or with fewer than ``FEWEST``.
    """
    check_task(corpus, task)
    chosen, source_hash = _chosen(corpus, task, split), set_hash(corpus, task, split, cache_dir)
    if cache_dir is None:
        return _decoded(corpus, task, split, chosen, source_hash)
    file = Path(cache_dir) / f"clips-{source_hash[:16]}.npz"
    if file.is_file():
        try:
            return _load(file)
        except ValueError as error:
            set_aside(file, error)
    with locked(file, f"clips, {split}"):
        if not file.is_file():
            _save(file, _decoded(corpus, task, split, chosen, source_hash))
    return _load(file)


def set_hash(corpus: Corpus, task: ClipTask, split: str, cache_dir: str | Path | None = None) -> str:
    """``source_hash`` of the set, without decoding anything: the table of clips and what is in their files."""
    heard = [clip.path for clip in (*_chosen(corpus, task, split), *corpus.select(NOISE, split))]
    contents = content_sha256(corpus.root, heard, cache_dir)
    text = json.dumps([VERSION, task.words, split, corpus.fingerprint(), contents])
    return hashlib.sha256(text.encode()).hexdigest()


def check_task(corpus: Corpus, task: ClipTask) -> None:
    """Raise ValueError where a split lacks clips of a word (too few are none), or other words."""
    check_keywords(corpus, task.words)
    for split in SPLITS:
        counts = {word: len(corpus.select(word, split)) for word in task.words}
        _check_counts(counts, split, str(corpus.root))
        if not any(_is_other(clip, task) for clip in corpus.select(split=split)):
            raise ValueError(
                f"no clip of other words than {', '.join(task.words)} in {split} of {corpus.root}: what is unknown "
                "has to be heard; add recordings of other words"
            )


def augment(clips: ClipSet, rows: np.ndarray, rounds: np.ndarray, seed: int, how: Augmentation) -> np.ndarray:
    """Clips ``rows`` [B] as heard in ``rounds`` [B]: int16 [B, 16000]."""
    out = np.empty((len(rows), CLIP_SAMPLES), np.int16)
    for round in np.unique(rounds):
        draws = _draws(clips, int(round), seed, how)
        for i in np.flatnonzero(rounds == round):
            row = rows[i]
            heard = _shifted(clips.audio[row], draws.shift[row]).astype(np.float32)
            if draws.volume[row] > 0:
                heard += draws.volume[row] * clips.noise[draws.start[row] : draws.start[row] + CLIP_SAMPLES]
            out[i] = _as_int16(heard)
    return out


def fitted(audio: np.ndarray, start_seconds: float | None = None, end_seconds: float | None = None) -> np.ndarray:
    """Float audio of any length as int16 [16000]: see the module. The word's span is found where it is not given."""
    if len(audio) > CLIP_SAMPLES:
        if start_seconds is None or end_seconds is None:
            start_seconds, end_seconds = word_span(audio)
        centre = round((start_seconds + end_seconds) / 2 * SAMPLE_RATE)
        first = min(max(0, centre - CLIP_SAMPLES // 2), len(audio) - CLIP_SAMPLES)
        audio = audio[first : first + CLIP_SAMPLES]
    missing = CLIP_SAMPLES - len(audio)
    return _as_int16(np.pad(audio * np.float32(32768), (missing // 2, missing - missing // 2)))


@dataclass(frozen=True, eq=False)
class _Draws:
    """What a round does to every clip of a set."""

    shift: np.ndarray  # samples, later is positive [N]
    volume: np.ndarray  # of the noise, 0 is none [N]
    start: np.ndarray  # its first sample [N]


def _draws(clips: ClipSet, round: int, seed: int, how: Augmentation) -> _Draws:
    kept, key = clips._drawn, (round, seed, how)
    if key not in kept:
        if len(kept) >= DRAWS_KEPT:
            kept.clear()
        rng = np.random.default_rng([seed, 4, round])
        n, reach = len(clips), _round(how.shift_ms * SAMPLE_RATE / 1000)
        silent = np.array([word == SILENCE for word in clips.words])
        noisy = rng.random(n) < how.noise_probability
        shift = np.where(silent, 0, rng.integers(-reach, reach + 1, n))
        volume, loudness = rng.uniform(0, how.volume, n), rng.random(n)
        # Recorded silence has its own sound; the empty rows get one.
        empty = silent & ~clips.audio.any(axis=1)
        volume = np.where(empty, loudness, np.where(noisy & ~silent, volume, 0)).astype(np.float32)
        kept[key] = _Draws(shift, volume, _noise_starts(clips.noise_starts, clips.noise_lengths, n, rng))
    return kept[key]


def _noise_starts(starts: np.ndarray, lengths: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """First samples of ``n`` cuts of one second: a recording each, longer ones as often as short ones."""
    which = rng.integers(len(starts), size=n)
    return starts[which] + (rng.random(n) * (lengths[which] - CLIP_SAMPLES + 1)).astype(np.int64)


def _round(value: float) -> int:
    """The nearest integer, halves upwards: as everywhere in this project."""
    return math.floor(value + 0.5)


def _shifted(audio: np.ndarray, samples: int) -> np.ndarray:
    out = np.zeros_like(audio)
    if samples >= 0:
        out[samples:] = audio[: len(audio) - samples]
    else:
        out[:samples] = audio[-samples:]
    return out


def _as_int16(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(samples + np.float32(0.5)), -32768, 32767).astype(np.int16)


def _check_counts(counts: dict[str, int], split: str, where: str) -> None:
    few = {word: count for word, count in counts.items() if count < FEWEST[split]}
    if few:
        told = ", ".join(f"{count} of {word!r}" for word, count in few.items())
        raise ValueError(
            f"too few clips in {split} of {where}: {told}; at least {FEWEST[split]} of each word are needed. Record "
            "more, or leave the word out of the task"
        )


def _is_other(clip: Clip, task: ClipTask) -> bool:
    """A clip of a word that is none of the task's, or labelled unknown as such."""
    return clip.label not in (NOISE, SPEECH, SILENCE, *task.words)


def _chosen(corpus: Corpus, task: ClipTask, split: str) -> list[Clip]:
    """Clips of the corpus in this set, sorted by path; silence that has to be cut comes later."""
    clips = corpus.select(split=split)
    words = [clip for clip in clips if clip.label in task.words]
    others = [clip for clip in clips if _is_other(clip, task)]
    named = [clip for clip in others if clip.label == UNKNOWN]
    if not task.keyword and named:
        others = named
    elif not task.keyword and split != "train":
        others.sort(key=lambda clip: hashlib.sha256(clip.path.encode()).digest())
        others = others[: _share(len(words))]
    silence = [clip for clip in clips if clip.label == SILENCE]
    return sorted([*words, *others, *silence], key=lambda clip: clip.path)


def _share(words: int) -> int:
    return -(-words * SHARE_PERCENT // 100)


def _decoded(corpus: Corpus, task: ClipTask, split: str, chosen: list[Clip], source_hash: str) -> ClipSet:
    audio, words, paths, speakers, skipped = [], [], [], [], []
    for clip in chosen:
        try:
            audio.append(fitted(read_audio(corpus.root / clip.path), clip.start_seconds, clip.end_seconds))
        except AudioError as error:
            skipped.append(f"{clip.path}: {error.reason}")
            continue
        words.append(clip.label)
        paths.append(clip.path)
        speakers.append(clip.speaker)
    found = Counter(words)
    _check_counts({word: found[word] for word in task.words}, split, str(corpus.root))
    noise, lengths, lost, notes = _noise(corpus, split)
    if SILENCE not in found:
        n = _share(len(words) if task.keyword else sum(found[word] for word in task.words))
        audio += list(_silence(noise, lengths, n, split))
        words += [SILENCE] * n
        paths += [f"{SILENCE}/{i}" for i in range(n)]
        speakers += [""] * n
    labels = np.array([task.class_of(word) for word in words], np.int64)
    return ClipSet(
        task, split, np.stack(audio), labels, tuple(words), tuple(paths), tuple(speakers), noise, lengths,
        tuple([*skipped, *lost]), notes, source_hash,
    )  # fmt: skip


def _silence(noise: np.ndarray, lengths: np.ndarray, n: int, split: str) -> np.ndarray:
    """Cuts of noise at a volume of 0..1, int16 [n, 16000]; in training zeros, which every round fills anew."""
    out = np.zeros((n, CLIP_SAMPLES), np.int16)
    if split != "train":
        rng = np.random.default_rng([SPLIT_SEED[split], 5])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        first, volume = _noise_starts(starts, lengths, n, rng), rng.random(n, np.float32)
        for i in range(n):
            out[i] = _as_int16(volume[i] * noise[first[i] : first[i] + CLIP_SAMPLES].astype(np.float32))
    return out


def _noise(corpus: Corpus, split: str) -> tuple[np.ndarray, np.ndarray, list[str], tuple[str, ...]]:
    """The split's noise (short recordings repeated to a second), lengths, what could not be read, notes."""
    recordings, skipped = [], []
    for clip in corpus.select(NOISE, split):
        try:
            audio = read_audio(corpus.root / clip.path)
        except AudioError as error:
            skipped.append(f"{clip.path}: {error.reason}")
            continue
        recordings.append(np.tile(audio, -(-CLIP_SAMPLES // len(audio))))
    notes: tuple[str, ...] = ()
    if not recordings:
        rng = np.random.default_rng([SPLIT_SEED[split], 6])
        samples = COLOURED_SECONDS * SAMPLE_RATE
        exponents = np.linspace(0, 2, COLOURED_RECORDINGS)
        recordings = [(COLOURED_LEVEL * coloured_noise(samples, e, rng)).astype(np.float32) for e in exponents]
        notes = (f"no recorded background noise in {split}: silence and noise are synthetic (coloured noise)",)
    lengths = np.array([len(r) for r in recordings], np.int64)
    return _as_int16(np.concatenate(recordings) * np.float32(32768)), lengths, skipped, notes


_ARRAYS = ("audio", "labels", "noise", "noise_lengths")
_TEXTS = ("words", "paths", "speakers", "skipped", "notes")


def _save(file: Path, clips: ClipSet) -> None:
    columns = {name: getattr(clips, name) for name in _ARRAYS}
    columns |= {name: np.array(getattr(clips, name), np.str_) for name in _TEXTS}
    meta = {"task": asdict(clips.task), "split": clips.split, "source_hash": clips.source_hash}
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, meta=np.array(json.dumps(meta)), **columns)


def _load(file: Path) -> ClipSet:
    try:
        with file.open("rb") as stream, np.load(stream) as archive:
            meta = json.loads(str(archive["meta"]))
            task = ClipTask(meta["task"]["name"], tuple(meta["task"]["words"]))
            columns: dict[str, Any] = {name: tuple(archive[name].tolist()) for name in _TEXTS}
            columns |= {name: archive[name] for name in _ARRAYS}
            return ClipSet(task, meta["split"], source_hash=meta["source_hash"], **columns)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{file} is no set of clips, or is damaged ({error})") from error
