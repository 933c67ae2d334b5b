"""Small search spaces, and a task on which the width of a kernel decides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kwsbench.models.layers import Add, Conv, Front, Network, Output, Pool
from kwsbench.training.clips import ClipStage

BINS, FRAMES = 4, 16


@dataclass(frozen=True)
class TinySpace:
    """A stem, cells of one depthwise and one full convolution (kernel in frames; 0 skips) with a sum, a mean."""

    kernels: tuple[tuple[int, ...], ...] = ((0, 1, 5), (0, 1, 5))
    width: int = 6
    labels: tuple[str, ...] = ("a", "b")

    @property
    def candidates(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(f"{k}" if k else "skip" for k in cell) for cell in self.kernels)

    def network(self, path: tuple[int, ...]) -> Network:
        layers: list = [Conv("stem", 1, self.width, (1, BINS), (1, 1))]
        for i, (cell, choice) in enumerate(zip(self.kernels, path, strict=True), 1):
            k, before = cell[choice], layers[-1].name
            if k:
                layers.append(Conv(f"cell{i}_depthwise", self.width, self.width, (k, 1), depthwise=True))
                layers.append(Conv(f"cell{i}_project", self.width, self.width, relu=False))
                layers.append(Add(f"cell{i}_add", before))
        layers += [
            Conv("head", self.width, self.width),
            Pool("pool", FRAMES),
            Output("output", self.width, len(self.labels)),
        ]
        front = Front("lfbe", BINS, 16000 // FRAMES, 16000 // FRAMES)
        notation = " ".join(names[k] for names, k in zip(self.candidates, path))
        return Network(front, self.labels, tuple(layers), notation)


def rhythm(count: int, seed: int, gap: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Noise with four pulses of random signs, each followed after ``gap`` frames by one of the same (class 1) or the
    opposite sign (class 0): only a kernel that spans both can tell."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    x = 0.1 * rng.normal(size=(count, FRAMES, BINS))
    starts = np.array([1, 2, 8, 9])
    signs = 2.0 * rng.choice([-1, 1], size=(count, len(starts), 1))
    x[:, starts] += signs
    x[:, starts + gap] += signs * np.where(labels == 1, 1, -1)[:, None, None]
    return x.astype(np.float32), labels.astype(np.int64)


class Rhythm:
    """Training batches of the task, pure functions of (seed, step)."""

    mean, std = np.zeros(BINS, np.float32), np.ones(BINS, np.float32)

    def __init__(self, seed: int = 0, batch: int = 32):
        self.seed, self.size = seed, batch
        self.hard = np.zeros(0, np.int64)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, labels = rhythm(self.size, [self.seed, step])  # type: ignore[arg-type]
        return torch.from_numpy(x), torch.from_numpy(labels)


def stage(name: str, steps: int, **changes) -> ClipStage:
    """A short stage, by SGD."""
    values = {"learning_rate": 0.1, "warmup_steps": 5, "momentum": 0.9, "checkpoint_every": 7} | changes
    return ClipStage(name, steps, **values)
