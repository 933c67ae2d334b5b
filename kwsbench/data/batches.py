"""From clips to a bank of labelled feature frames, the form in which models are trained and scored.

    build_bank(corpus, split, keywords, recipe, features, rule, seed, ...) -> FeatureBank

A segment is one mixture of one clip; segments stand one after the other, clip by clip, round by round within
a clip. Frames are the model's (30 ms by default). Time in a segment counts from the first sample of its first
frame; frame ``i`` has been heard at ``i * frame_seconds + window_seconds``, and that instant is what labels
refer to: a window of frames ending at frame ``i`` has the label of frame ``i``.

Building is cached under a hash of all that goes in (the clip table and what is in the files), and goes
through shards: an interrupted run keeps the finished ones and goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kwsbench.data.audio import AudioError
from kwsbench.data.contents import content_sha256
from kwsbench.data.corpora import NOISE, Clip, Corpus
from kwsbench.data.mixing import Mixer, MixRecipe, clip_rng
from kwsbench.data.rooms import room_bank
from kwsbench.features.lfbe import LfbeConfig, lfbe
from kwsbench.files import locked, replacing, set_aside
from kwsbench.processes import die_with_parent

BANK_VERSION = 1
IGNORED = -1
SHARD_SECONDS = 1200.0
PHASE_STREAM = 1


@dataclass(frozen=True)
class LabelRule:
    """Which frames belong to a keyword, by the time from the word's end to the frame's, in ms.

    Positive from ``positive_from_ms`` to ``positive_to_ms``; ignored from ``ignore_before_ms`` before the end
    to ``ignore_after_ms`` after it, where not positive; negative elsewhere.
    """

    positive_from_ms: float = -30.0
    positive_to_ms: float = 150.0
    ignore_before_ms: float = 400.0
    ignore_after_ms: float = 500.0

    def __post_init__(self) -> None:
        if not -self.ignore_before_ms <= self.positive_from_ms < self.positive_to_ms <= self.ignore_after_ms:
            raise ValueError(
                "a label rule needs -ignore_before_ms <= positive_from_ms < positive_to_ms "
                f"<= ignore_after_ms, got {self}"
            )

    def labels(self, frame_end_seconds: np.ndarray, word_end_seconds: float, keyword: int) -> np.ndarray:
        """Labels int8 [frames] of a segment with keyword number ``keyword`` (1, 2, ...; 0: with none)."""
        labels = np.zeros(len(frame_end_seconds), np.int8)
        if keyword:
            after_ms = (np.asarray(frame_end_seconds) - word_end_seconds) * 1000
            labels[(after_ms >= -self.ignore_before_ms) & (after_ms <= self.ignore_after_ms)] = IGNORED
            labels[(after_ms >= self.positive_from_ms) & (after_ms <= self.positive_to_ms)] = keyword
        return labels


@dataclass(frozen=True, eq=False)
class FeatureBank:
    """Frames of many segments. Segment ``i`` is the frames ``offsets[i] .. offsets[i + 1] - 1``.

    ``features`` float32 [total, n_mels]; ``offsets`` int64 [segments + 1]; ``labels`` int8 [total]:
    0 negative, k >= 1 keyword ``keywords[k - 1]``, -1 ignored. Per segment the clip's path, its label
    (``_partial_`` for a keyword cut short) and the end of the word, float32 seconds. ``skipped``: files
    (clips, noise) that could not be read, with the reason; ``source_hash``: hash of all that the bank was made from.
    """

    features: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    clip_paths: tuple[str, ...]
    clip_labels: tuple[str, ...]
    word_end_seconds: np.ndarray
    frame_seconds: float
    window_seconds: float
    keywords: tuple[str, ...]
    skipped: tuple[str, ...]
    source_hash: str

    def __len__(self) -> int:
        return len(self.clip_paths)

    @property
    def seconds(self) -> float:
        """Length of all segments together."""
        return len(self.features) * self.frame_seconds

    def segment(self, i: int) -> np.ndarray:
        """Features float32 [frames, n_mels] of segment ``i``."""
        return self.features[self.offsets[i] : self.offsets[i + 1]]

    def segment_labels(self, i: int) -> np.ndarray:
        """Labels int8 [frames] of segment ``i``."""
        return self.labels[self.offsets[i] : self.offsets[i + 1]]

    def summary(self) -> str:
        """One line for a person."""
        counts = [f"{self.clip_labels.count(word)} {word}" for word in self.keywords]
        return (
            f"{len(self)} segments ({', '.join(counts)}), {self.seconds / 3600:.2f} h, "
            f"{len(self.skipped)} files skipped"
        )

    def save(self, path: str | Path) -> None:
        """Write an npz file, first under a temporary name."""
        columns = {name: getattr(self, name) for name in ARRAYS}
        columns |= {name: np.array(getattr(self, name), np.str_) for name in TEXTS}
        meta = {name: getattr(self, name) for name in ("frame_seconds", "window_seconds", "source_hash")}
        _save_npz(Path(path), columns | {"meta": np.array(json.dumps(meta))})

    @classmethod
    def load(cls, path: str | Path) -> FeatureBank:
        """Read what :meth:`save` wrote. Raises ValueError for another or a damaged file."""
        try:
            with open(path, "rb") as stream, np.load(stream) as file:
                values: dict[str, Any] = {name: file[name] for name in ARRAYS}
                values |= {name: tuple(file[name].tolist()) for name in TEXTS}
                return cls(**values, **json.loads(str(file["meta"])))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"{path} is not a feature bank, or is damaged ({error}); remove it and build again"
            ) from error


ARRAYS = ("features", "offsets", "labels", "word_end_seconds")
TEXTS = ("clip_paths", "clip_labels", "keywords", "skipped")


@dataclass(frozen=True)
class _Task:
    """All that decides a shard, and hence the bank."""

    corpus: Corpus
    split: str
    keywords: tuple[str, ...]
    recipe: MixRecipe
    features: LfbeConfig
    rule: LabelRule
    seed: int
    rounds: int
    random_phase: bool


def build_bank(
    corpus: Corpus,
    split: str,
    keywords: tuple[str, ...],
    recipe: MixRecipe,
    features: LfbeConfig,
    rule: LabelRule,
    seed: int,
    *,
    rounds: int = 1,
    random_phase: bool = False,
    workers: int = 1,
    cache_dir: str | Path | None = None,
    clips: Callable[[Clip], bool] | None = None,
    progress: bool = True,
) -> FeatureBank:
    """Mix every clip of a split (background noise aside) ``rounds`` times and take its features.

    The result depends neither on ``workers`` (processes; 1 runs here) nor on interruptions. ``random_phase``
    starts each mixture's framing 0 .. ``keep_every - 1`` hops late: wanted in training, where the model must
    not learn one alignment of words and frames. ``clips`` selects among the clips; ``cache_dir`` keeps the
    bank, its shards while it is built, and the rooms. A clip that cannot be read is skipped and listed.

    Raises:
        ValueError: no clip selected, a keyword without a clip among them, or nothing readable.
    """
    chosen = tuple(c for c in corpus.select(split=split) if c.label != NOISE and (clips is None or clips(c)))
    if not chosen:
        raise ValueError(f"no clips to mix in split {split!r}; the corpus has {corpus.labels()}")
    missing = set(keywords) - {clip.label for clip in chosen}
    if missing:
        raise ValueError(f"no clips of {', '.join(sorted(missing))} among the {len(chosen)} of split {split!r}")
    if rounds < 1 or workers < 1:
        raise ValueError(f"rounds and workers must be at least 1, got {rounds} and {workers}")
    task = _Task(corpus, split, tuple(keywords), recipe, features, rule, seed, rounds, random_phase)
    source_hash = _hash(task, chosen, cache_dir)
    with _working_folder(cache_dir) as folder:
        path = _path(folder, split, source_hash)
        if path.exists():
            try:
                return FeatureBank.load(path)
            except ValueError as error:
                set_aside(path, error)
        with locked(path.with_suffix(""), f"mixing {split}"):
            if path.exists():  # another process made it meanwhile
                return FeatureBank.load(path)
            shards = _build_shards(task, chosen, folder, path.with_suffix(""), workers, progress)
            bank = _join(task, shards, source_hash)
            if cache_dir is not None:
                bank.save(path)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        return bank


def bank_path(
    corpus: Corpus,
    split: str,
    keywords: tuple[str, ...],
    recipe: MixRecipe,
    features: LfbeConfig,
    rule: LabelRule,
    seed: int,
    *,
    rounds: int,
    random_phase: bool,
    cache_dir: str | Path,
) -> Path:
    """Where :func:`build_bank` keeps the bank of these settings, all clips of the split; it need not be there."""
    task = _Task(corpus, split, tuple(keywords), recipe, features, rule, seed, rounds, random_phase)
    chosen = tuple(c for c in corpus.select(split=split) if c.label != NOISE)
    return _path(Path(cache_dir), split, _hash(task, chosen, cache_dir))


def _path(folder: Path, split: str, source_hash: str) -> Path:
    return folder / f"bank-{split}-{source_hash[:16]}.npz"


@contextmanager
def _working_folder(cache_dir: str | Path | None) -> Iterator[Path]:
    if cache_dir is None:
        with tempfile.TemporaryDirectory(prefix="kwsbench-") as folder:
            yield Path(folder)
    else:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        yield Path(cache_dir)


def _hash(task: _Task, chosen: tuple[Clip, ...], cache_dir: str | Path | None) -> str:
    noise = [clip.path for clip in task.corpus.select(NOISE, task.split)]
    parts = {
        "version": BANK_VERSION,
        "corpus": task.corpus.fingerprint(),
        "clips": [(c.path, c.start_seconds, c.end_seconds) for c in chosen],
        "noise": noise,
        "contents": content_sha256(task.corpus.root, [*(c.path for c in chosen), *noise], cache_dir),
    } | {
        name: value if not hasattr(value, "__dataclass_fields__") else asdict(value)
        for name, value in vars(task).items()
        if name != "corpus"
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _build_shards(
    task: _Task, chosen: tuple[Clip, ...], cache: Path, folder: Path, workers: int, progress: bool
) -> list[Path]:
    """Files of all shards, those already there left alone."""
    folder.mkdir(exist_ok=True)
    groups = list(_groups(task, chosen))
    paths = [folder / f"shard-{i:05d}-of-{len(groups):05d}.npz" for i in range(len(groups))]
    todo = [i for i, path in enumerate(paths) if not path.exists()]
    done = sum(len(group) for i, group in enumerate(groups) if i not in set(todo))
    if todo and task.recipe.far_field > 0:
        # Once, here: each worker finds them on disk.
        room_bank(task.seed, task.split, task.recipe.n_rooms, task.recipe.rt60_seconds, cache)
    with tqdm(total=len(chosen), initial=done, desc=f"mixing {task.split}", unit="clip", disable=not progress) as bar:
        if workers == 1 or len(todo) < 2:
            mixer = _mixer(task, cache)
            for i in todo:
                bar.update(_build_shard(mixer, task, groups[i], paths[i]))
        else:
            # Spawned, not forked: a fork copies the locks of threads (a notebook's) without the threads.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(
                min(workers, len(todo)), mp_context=context, initializer=die_with_parent, initargs=(os.getpid(),)
            )
            try:
                jobs = [pool.submit(_work, task, groups[i], cache, paths[i]) for i in todo]
                for job in as_completed(jobs):
                    bar.update(job.result())
            finally:
                pool.shutdown(cancel_futures=True)
    return paths


def _groups(task: _Task, chosen: tuple[Clip, ...]) -> Iterator[tuple[Clip, ...]]:
    """Consecutive clips, about SHARD_SECONDS of mixtures in each group."""
    around = task.recipe.lead_seconds + task.recipe.tail_seconds
    group: list[Clip] = []
    seconds = 0.0
    for clip in chosen:
        group.append(clip)
        seconds += (clip.seconds + around) * task.rounds
        if seconds >= SHARD_SECONDS:
            yield tuple(group)
            group, seconds = [], 0.0
    if group:
        yield tuple(group)


def _mixer(task: _Task, cache: Path) -> Mixer:
    return Mixer(task.corpus, task.recipe, task.seed, task.keywords, cache)


# A worker gets shard after shard of one bank: decoded noise and rooms are kept between them.
_kept_mixer = lru_cache(maxsize=1)(_mixer)


def _work(task: _Task, group: tuple[Clip, ...], cache: Path, path: Path) -> int:
    return _build_shard(_kept_mixer(task, cache), task, group, path)


def _build_shard(mixer: Mixer, task: _Task, group: tuple[Clip, ...], path: Path) -> int:
    """Mix a group of clips into a file; returns how many clips it was."""
    config = task.features
    features, labels, paths, words, ends = [], [], [], [], []
    skipped: dict[str, str] = {}
    for clip in group:
        try:
            source = mixer.load(clip)
        except AudioError as error:
            skipped[clip.path] = error.reason
            continue
        for round in range(task.rounds):
            mixture = mixer.mix_source(source, round)
            phase = 0
            if task.random_phase:
                phase = int(clip_rng(clip, task.seed, round, PHASE_STREAM).integers(config.keep_every))
            late = phase * config.hop_samples
            frames = lfbe(mixture.audio[late:], config)
            end = mixture.end_seconds - late / config.sample_rate
            keyword = task.keywords.index(mixture.label) + 1 if mixture.label in task.keywords else 0
            features.append(frames)
            labels.append(task.rule.labels(config.frame_end_seconds(np.arange(len(frames))), end, keyword))
            paths.append(clip.path)
            words.append(mixture.label)
            ends.append(end)
    columns = {
        "features": np.concatenate([np.empty((0, config.n_mels), np.float32), *features]),
        "labels": np.concatenate([np.empty(0, np.int8), *labels]),
        "lengths": np.array([len(frames) for frames in features], np.int64),
        "clip_paths": np.array(paths, np.str_),
        "clip_labels": np.array(words, np.str_),
        "word_end_seconds": np.array(ends, np.float32),
        "skipped": np.array([f"{name}: {why}" for name, why in (skipped | mixer.unreadable).items()], np.str_),
    }
    _save_npz(path, columns)
    return len(group)


def _join(task: _Task, shards: list[Path], source_hash: str) -> FeatureBank:
    columns: dict[str, list] = {}
    for path in shards:
        with np.load(path) as file:
            for name in file.files:
                columns.setdefault(name, []).append(file[name])
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    if not len(joined["lengths"]):
        raise ValueError(f"none of the clips can be read; the first: {joined['skipped'][0]}")
    return FeatureBank(
        joined["features"],
        np.concatenate([[0], np.cumsum(joined["lengths"])]),
        joined["labels"],
        tuple(joined["clip_paths"].tolist()),
        tuple(joined["clip_labels"].tolist()),
        joined["word_end_seconds"],
        task.features.frame_seconds,
        task.features.window_samples / task.features.sample_rate,
        task.keywords,
        tuple(sorted(set(joined["skipped"].tolist()))),
        source_hash,
    )


def _save_npz(path: Path, columns: dict[str, Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **columns)
