"""Batches of training windows from a feature bank, each a pure function of (seed, step).

A window is the ``stacked_frames`` frames that end at one frame of the bank; frames before the segment's start
are the mean frame, as in a fresh ring. A batch mixes positives, negatives from word clips (confusable words, the lead
and tail around keywords, truncated keywords), negatives from continuous speech and, once mined, the negatives
that the model currently scores highest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kwsbench.data.batches import FeatureBank
from kwsbench.data.corpora import SPEECH


@dataclass(frozen=True)
class SamplerConfig:
    """Shares of a batch and masking augmentation (0 switches a mask off)."""

    batch: int = 512
    positive_share: float = 0.25
    speech_share: float = 0.3  # of the negatives
    hard_share: float = 0.3  # of the negatives, once a pool was mined
    mask_frames: int = 4
    mask_mels: int = 3

    def __post_init__(self) -> None:
        shares = (self.positive_share, self.speech_share, self.hard_share)
        if self.batch < 1 or min(self.mask_frames, self.mask_mels) < 0:
            raise ValueError(f"a batch needs at least one window and masks no negative length, got {self}")
        if min(shares) < 0 or self.positive_share > 1 or self.speech_share + self.hard_share > 1:
            raise ValueError(f"shares lie in 0..1, those of speech and hard negatives together too, got {self}")


class WindowSampler:
    """Draws ``(windows float32 [B, stacked_frames, n_mels], labels int64 [B])``.

    Raises:
        ValueError: the bank has no positive or no negative window.
    """

    def __init__(self, bank: FeatureBank, stacked_frames: int, config: SamplerConfig, seed: int, device: str = "cpu"):
        self.config, self.seed, self.stacked_frames = config, seed, stacked_frames
        self.mean = bank.features.mean(axis=0, dtype=np.float64).astype(np.float32)
        # Band by band: over the whole matrix at once NumPy would copy it in float64, gigabytes for a large corpus.
        std = [bank.features[:, m].std(dtype=np.float64) for m in range(bank.features.shape[1])]
        self.std = np.maximum(std, 1e-3).astype(np.float32)
        # One extra row, the mean frame, stands in for frames before a segment's start.
        self.features = torch.as_tensor(np.concatenate([bank.features, self.mean[None]]), device=device)
        lengths = np.diff(bank.offsets)
        self.starts = np.repeat(bank.offsets[:-1], lengths)
        self.labels = bank.labels.astype(np.int64)
        in_speech = np.repeat(np.array([label == SPEECH for label in bank.clip_labels]), lengths)
        self.positives = np.flatnonzero(self.labels > 0)
        self.word_negatives = np.flatnonzero((self.labels == 0) & ~in_speech)
        self.speech_negatives = np.flatnonzero((self.labels == 0) & in_speech)
        self.hard = np.zeros(0, np.int64)
        if len(self.positives) == 0:
            raise ValueError("the training bank has no positive window: is the keyword in the training split?")
        if len(self.word_negatives) + len(self.speech_negatives) == 0:
            raise ValueError("the training bank has no negative window: add other words or continuous speech")

    def windows(self, ends: np.ndarray) -> torch.Tensor:
        """Windows that end at bank frames ``ends`` ``[B]``: float32 ``[B, stacked_frames, n_mels]``."""
        index = ends[:, None] + np.arange(1 - self.stacked_frames, 1)
        index = np.where(index < self.starts[ends][:, None], len(self.labels), index)
        return self.features[torch.as_tensor(index, device=self.features.device)]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step; the same for the same seed, step and hard pool."""
        rng = np.random.default_rng([self.seed, 1, step])
        c = self.config
        n_positive = round(c.batch * c.positive_share)
        n_negative = c.batch - n_positive
        n_hard = round(n_negative * c.hard_share) if len(self.hard) else 0
        n_speech = round(n_negative * c.speech_share) if len(self.speech_negatives) else 0
        if len(self.word_negatives) == 0:
            n_speech = n_negative - n_hard
        n_speech = min(n_speech, n_negative - n_hard)
        ends = np.concatenate(
            [
                rng.choice(self.positives, n_positive),
                rng.choice(self.hard, n_hard) if n_hard else self.hard[:0],
                rng.choice(self.speech_negatives, n_speech) if n_speech else self.hard[:0],
                rng.choice(self.word_negatives, n_negative - n_hard - n_speech)
                if n_negative - n_hard - n_speech > 0
                else self.hard[:0],
            ]
        )
        windows = self._mask(self.windows(ends), rng)
        return windows, torch.as_tensor(self.labels[ends], device=windows.device)

    def candidates(self, step: int, count: int) -> np.ndarray:
        """Random negative ends to mine from."""
        rng = np.random.default_rng([self.seed, 2, step])
        everything = np.concatenate([self.word_negatives, self.speech_negatives])
        return rng.choice(everything, min(count, len(everything)), replace=False)

    def _mask(self, windows: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Replace a random run of frames and of mel bands by the mean, independently per window."""
        batch, frames, mels = windows.shape
        keep_time = _keep(rng, batch, frames, self.config.mask_frames)
        keep_mels = _keep(rng, batch, mels, self.config.mask_mels)
        keep = torch.as_tensor(keep_time[:, :, None] & keep_mels[:, None, :], device=windows.device)
        return torch.where(keep, windows, self.features[-1])


def _keep(rng: np.random.Generator, batch: int, length: int, longest: int) -> np.ndarray:
    """bool ``[batch, length]``, False on one random run of 0..longest positions per row."""
    width = rng.integers(0, longest + 1, batch)[:, None]
    start = rng.integers(0, length, batch)[:, None]
    position = np.arange(length)
    return (position < start) | (position >= start + width)
