"""Batches of one-second clips as a network hears them, each a pure function of (seed, step).

Raw audio and features hear the same augmented sound: round r of a clip (``data.clips.augment``) is one sound for every
front end, every training seed and every network. Raw batches are augmented when they are drawn; features of the
``rounds`` rounds are computed once and kept on disk. A batch draws classes in the shares of the task (silence and
unknown words a tenth of the words each; a keyword ``positive_share``), then clips, then rounds.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from kwsbench.data.clips import SHARE_PERCENT, Augmentation, ClipSet, augment
from kwsbench.features.lfbe import lfbe
from kwsbench.features.mfcc import MFCC_LFBE, MfccConfig, mfcc
from kwsbench.files import locked
from kwsbench.metrics.scores import read_npz, write_npz
from kwsbench.models.layers import Front
from kwsbench.training.loop import StageConfig

FEATURES_VERSION = 1  # part of a cached file's name: raise it when the same sound would give other features
AUGMENT_SEED = 7  # every training seed hears the same rounds


@dataclass(frozen=True)
class ClipStage(StageConfig):
    """A stage of training on clips.

    ``label_smoothing``: share of the target spread over all classes. ``momentum``: 0 trains by AdamW, else by SGD with
    Nesterov momentum.
    """

    label_smoothing: float = 0.0
    momentum: float = 0.0
    mine_every: int = 0  # clips have no hard negatives to mine

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy against smoothed labels."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum where there is one."""
        if not self.momentum:
            return super().optimizer(groups)
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum, nesterov=True)


@dataclass(frozen=True)
class ClipSampling:
    """Clips in a batch; different rounds of augmentation; share of the keyword in a keyword task."""

    batch: int = 64
    rounds: int = 4
    positive_share: float = 0.25
    augmentation: Augmentation = Augmentation()

    def __post_init__(self) -> None:
        if self.batch < 1 or self.rounds < 1 or not 0 < self.positive_share < 1:
            raise ValueError(f"batch and rounds are at least 1 and positive_share lies between 0 and 1, got {self}")


class ClipSampler:
    """What :func:`~kwsbench.training.loop.train` draws its batches from.

    ``mean``, ``std`` ``[bins]``: of the training features in round 0; 0 and 1 of raw audio.
    """

    def __init__(
        self,
        sets: Mapping[str, ClipSet],
        front: Front,
        config: ClipSampling,
        seed: int,
        cache_dir: str | Path | None = None,
        device: str = "cpu",
        progress: bool = False,
    ):
        self.sets, self.front, self.config, self.seed = sets, front, config, seed
        self.cache_dir, self.device, self.progress = cache_dir, device, progress
        self.hard = np.zeros(0, np.int64)  # the loop's pool of hard negatives: clips have none
        train = sets["train"]
        self.labels = train.labels
        self.shares = _shares(train, config.positive_share)
        self.rows = [np.flatnonzero(train.labels == c) for c in range(len(self.shares))]
        self.rounds = [] if front.kind == "raw" else [self._features("train", r) for r in range(config.rounds)]
        self.mean, self.std = np.zeros(1, np.float32), np.ones(1, np.float32)
        if self.rounds:
            frames = self.rounds[0].reshape(-1, front.bins)
            self.mean = frames.mean(axis=0, dtype=np.float64).astype(np.float32)
            self.std = np.maximum(frames.std(axis=0, dtype=np.float64), 1e-3).astype(np.float32)

    def with_seed(self, seed: int) -> ClipSampler:
        """The same clips in another order; features are shared."""
        other = copy.copy(self)
        other.seed, other.hard = seed, np.zeros(0, np.int64)
        return other

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``(x float32 [B, T, bins], labels int64 [B])`` of a step; the same for the same seed and step."""
        rng = np.random.default_rng([self.seed, 1, step])
        classes = rng.choice(len(self.shares), self.config.batch, p=self.shares)
        rows = np.array([self.rows[c][int(u * len(self.rows[c]))] for c, u in zip(classes, rng.random(len(classes)))])
        rounds = rng.integers(self.config.rounds, size=len(rows))
        if self.rounds:
            x = np.stack([self.rounds[r][row] for r, row in zip(rounds, rows)])
        else:
            x = heard(self.front, augment(self.sets["train"], rows, rounds, AUGMENT_SEED, self.config.augmentation))
        return torch.from_numpy(x).to(self.device), torch.from_numpy(self.labels[rows]).to(self.device)

    def evaluation(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All clips of a split in order, as they stand: ``(x float32 [N, T, bins], labels int64 [N])``."""
        clips = self.sets[split]
        x = heard(self.front, clips.audio) if self.front.kind == "raw" else self._features(split, None)
        return x, clips.labels

    def _features(self, split: str, round: int | None) -> np.ndarray:
        """Features of a round (None: as they stand) of all clips of a split, from the cache if they are there."""
        clips, how = self.sets[split], self.config.augmentation

        def make() -> np.ndarray:
            told = f"{self.front.kind}, {split}" + ("" if round is None else f", round {round + 1}")
            parts = []
            for at in tqdm(range(0, len(clips), 256), desc=told, disable=not self.progress):
                rows = np.arange(at, min(at + 256, len(clips)))
                sound = clips.audio[rows]
                if round is not None:
                    sound = augment(clips, rows, np.full(len(rows), round), AUGMENT_SEED, how)
                parts.append(heard(self.front, sound))
            return np.concatenate(parts)

        if self.cache_dir is None:
            return make()
        heard_as = None if round is None else [round, AUGMENT_SEED, asdict(how)]
        text = json.dumps([FEATURES_VERSION, clips.source_hash, asdict(self.front), heard_as], sort_keys=True)
        file = Path(self.cache_dir) / f"features-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        with locked(file, f"features, {split}"):
            if not _usable(file):
                write_npz(file, features=make())
        return read_npz(file, ("features",))["features"]


def heard(front: Front, audio: np.ndarray) -> np.ndarray:
    """Clips int16 ``[B, n]`` through a front end: float32 ``[B, frames, bins]``."""
    if front.kind == "raw":
        return (audio.astype(np.float32) / np.float32(32768))[:, :, None]
    return np.stack([_features_of(front)(clip.astype(np.float32) / np.float32(32768)) for clip in audio])


@cache
def _features_of(front: Front) -> Callable[[np.ndarray], np.ndarray]:
    fft = 1 << (front.window_samples - 1).bit_length()
    config = replace(MFCC_LFBE, window_samples=front.window_samples, hop_samples=front.hop_samples, n_fft=fft)
    if front.kind == "mfcc":
        return partial(mfcc, config=MfccConfig(front.bins, config))
    return partial(lfbe, config=replace(config, n_mels=front.bins))


def _shares(clips: ClipSet, positive_share: float) -> np.ndarray:
    """How often each class is drawn."""
    if clips.task.keyword:
        return np.array([1 - positive_share, positive_share])
    counts = np.bincount(clips.labels, minlength=len(clips.task.labels)).astype(np.float64)
    counts[:2] = counts[2:].sum() * SHARE_PERCENT / 100
    return counts / counts.sum()


def _usable(file: Path) -> bool:
    try:
        return file.is_file() and bool(read_npz(file, ("features",)))
    except ValueError:
        return False
