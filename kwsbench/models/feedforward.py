"""The 250K-parameter streaming spotter of the two-stage paper (arXiv 2207.06920), in float.

    log-mel frames -> normalise -> ring of stacked frames -> [dense, batchnorm, gain, ReLU] x 4 -> dense

The paper gives the size (250K parameters, feedforward, streaming, state-free) and the components (dense
weights, bias, gain, batchnorm); the rest is our choice: 20 mel bands x 31 frames at 30 ms (0.93 s of context),
four hidden layers of 200, one output per keyword and one for "none of them".

What counts as a parameter: everything trained, that is weights, biases, gains, batchnorm's gamma and beta.
Running means and variances and the input normalisation are statistics, not trained, and do not count.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kwsbench.models.streaming import fresh_ring, stack_frames

# Batchnorm's epsilon and the weight of a new batch in the running statistics.
EPSILON = 1e-5
MOMENTUM = 0.05


@dataclass(frozen=True)
class SpotterConfig:
    """Shape of the spotter; the defaults have 247,602 parameters for one keyword."""

    keywords: tuple[str, ...] = ("keyword",)
    n_mels: int = 20
    stacked_frames: int = 31
    hidden: tuple[int, ...] = (200, 200, 200, 200)

    def __post_init__(self) -> None:
        if not self.keywords or len(set(self.keywords)) != len(self.keywords):
            raise ValueError(f"keywords must be one or more distinct words, got {self.keywords!r}")
        if min((self.n_mels, self.stacked_frames, *self.hidden)) < 1:
            raise ValueError(f"all sizes must be at least 1, got {self}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths from input to output."""
        return (self.n_mels * self.stacked_frames, *self.hidden, len(self.keywords) + 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "keywords": list(self.keywords),
            "n_mels": self.n_mels,
            "stacked_frames": self.stacked_frames,
            "hidden": list(self.hidden),
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> SpotterConfig:
        return SpotterConfig(
            tuple(values["keywords"]), values["n_mels"], values["stacked_frames"], tuple(values["hidden"])
        )


class ChannelNorm(nn.Module):
    """Batchnorm and gain of one layer: ``gain (gamma (a - mean) / sqrt(var + eps) + beta)``."""

    mean: torch.Tensor
    var: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """``a`` is ``[..., channels]``; in training mode by the batch's own statistics."""
        flat = a.reshape(-1, a.shape[-1])
        z = F.batch_norm(flat, self.mean, self.var, self.gamma, self.beta, self.training, MOMENTUM, EPSILON).reshape(
            a.shape
        )
        return self.gain * z

    def observe(self, a: torch.Tensor) -> None:
        """Move the running statistics towards those of the pre-activations ``a`` ``[B, channels]``."""
        with torch.no_grad():
            self.mean.lerp_(a.mean(0), MOMENTUM)
            self.var.lerp_(a.var(0), MOMENTUM)


class Spotter(nn.Module):
    """Float spotter. ``forward`` scores training windows; ``step`` streams."""

    mean: torch.Tensor
    inverse_std: torch.Tensor

    def __init__(self, config: SpotterConfig, seed: int = 0):
        super().__init__()
        self.config = config
        sizes = config.sizes
        generator = torch.Generator().manual_seed(seed)
        self.dense = nn.ModuleList(nn.Linear(k, n) for k, n in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(ChannelNorm(n) for n in config.hidden)
        for layer in self.dense:
            assert isinstance(layer, nn.Linear)
            # He's initialisation from an explicit generator: the same network whatever ran before.
            nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean", torch.zeros(config.n_mels))
        self.register_buffer("inverse_std", torch.ones(config.n_mels))

    def set_normalisation(self, mean: Any, std: Any) -> None:
        """Per-mel mean and standard deviation of the training frames, ``[n_mels]``."""
        self.mean.copy_(torch.as_tensor(mean, dtype=torch.float32))
        self.inverse_std.copy_(1 / torch.as_tensor(std, dtype=torch.float32))

    def normalise(self, frames: torch.Tensor) -> torch.Tensor:
        """Log-mel frames ``[..., n_mels]`` -> zero mean, unit variance per band."""
        return (frames - self.mean) * self.inverse_std

    def fresh(self, batch: int = 1) -> torch.Tensor:
        """State before the first frame: ``[batch, stacked_frames - 1, n_mels]``."""
        return fresh_ring(batch, self.config.stacked_frames, self.config.n_mels, self.mean)

    def step(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """New frames ``[B, T, n_mels]`` -> logits ``[B, T, K + 1]`` and the next state."""
        windows, state = stack_frames(self.normalise(x), state, self.config.stacked_frames)
        return self.logits(windows), state

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Raw log-mel windows ``[B, stacked_frames, n_mels]`` -> logits ``[B, K + 1]``."""
        return self.logits(self.normalise(windows).flatten(1))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Stacked normalised frames ``[..., stacked_frames * n_mels]`` -> logits ``[..., K + 1]``."""
        for dense, norm in zip(self.dense, self.norms):
            x = F.relu(norm(dense(x)))
        return self.dense[-1](x)


def parameter_count(model: nn.Module) -> int:
    """Number of trained parameters (see the module docstring for what counts)."""
    return sum(p.numel() for p in model.parameters())
