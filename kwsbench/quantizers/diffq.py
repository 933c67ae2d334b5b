"""Widths learned through pseudo-noise (DiffQ: Defossez, Adi, Synnaeve, arXiv 2104.09987), written from the paper.

    training     x + Delta(b) eps,   eps uniform on [-1/2, 1/2];  Delta: spacing of a grid of b bits over the range
    evaluation   the linear codebook of round(b) bits
    b = low + (high - low) sigmoid(l)                               l trained, per tensor

Nothing is rounded in training, so b has a true gradient: noise of the size of the rounding error, which shrinks as b
grows. The size ``N b`` is differentiable in l as it is. In the paper b runs over 2..15, ``Delta = (max - min) /
(2^b - 1)``; here b ends at the widths that the integer arithmetic has (weights and signed outputs 2..8, outputs of a
ReLU6 1..7) and Delta is the spacing of the symmetric grid that is frozen, ``max|x| / (2^(b-1) - 1)`` (unsigned: ``max /
(2^b - 1)``). Weights take their range from themselves, outputs a trained one, outside which they are clipped before
the noise. ``l`` moves ``PACE`` times as fast as the other parameters, or a width would need thousands of steps of Adam.

The noise of a step is drawn from ``(seed, step)``: a run that is resumed sees the same.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from kwsbench.arithmetic.codebook import Codebook
from kwsbench.quantizers.activation import LOG2_STEP_END, RELU6, ActivationQuantizer, LinearActivation
from kwsbench.quantizers.gradients import fenced, straight_through
from kwsbench.quantizers.linear import linear_codebook, linear_grid
from kwsbench.quantizers.lsq import SMALLEST_STEP, LsqWeight
from kwsbench.quantizers.weight import WeightQuantizer

PACE = 30.0
START = 0.95  # of the way from the narrowest to the widest


class NoisyWidth(nn.Module):
    """The width b of one tensor, and the noise of a training step."""

    def __init__(self, low: int, high: int, bits: int, seed: int = 0):
        """``bits``: the first width; the widest is approached only (``START``)."""
        super().__init__()
        if not low <= bits <= high:
            raise ValueError(f"a learned width starts at {low} to {high} bits, got {bits}")
        self.low, self.high, self.seed, self.at = low, high, seed, 0
        share = min(max((bits - low) / (high - low), 1 - START), START)
        self.logit_pace = nn.Parameter(torch.tensor(math.log(share / (1 - share)) / PACE))

    def forward(self) -> torch.Tensor:
        """b, a scalar."""
        return self.low + (self.high - self.low) * torch.sigmoid(PACE * self.logit_pace)

    @property
    def nearest(self) -> int:
        """The width that is frozen."""
        return int(torch.floor(self().detach() + 0.5))

    def noise(self, like: torch.Tensor) -> torch.Tensor:
        """eps of this step, uniform on [-1/2, 1/2]."""
        seed = int(np.random.SeedSequence((self.seed, self.at)).generate_state(1)[0])
        generator = torch.Generator(like.device).manual_seed(seed)
        return torch.rand(like.shape, generator=generator, device=like.device) - 0.5


class DiffqWeight(WeightQuantizer):
    """Weight ``[N, K]`` under noise in training, on the linear grid of the nearest width in evaluation."""

    method = "diffq"
    per_channel = False

    def __init__(self, weight: torch.Tensor, bits: int = 8, seed: int = 0):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.width = NoisyWidth(2, 8, bits, seed)

    @property
    def bits(self) -> int:  # type: ignore[override]
        """The nearest width at this moment."""
        return self.width.nearest

    @property
    def codebook(self) -> Codebook:  # type: ignore[override]
        """That of the nearest width."""
        return linear_codebook(self.bits)

    @property
    def grid(self) -> str:  # type: ignore[override]
        """Name of the grid at the nearest width."""
        return linear_grid(self.bits)

    def anneal(self, step: int, steps: int) -> None:
        self.width.at = step

    def step(self) -> torch.Tensor:
        largest = float(self.codebook.levels[-1])
        return (self.weight.abs().max() / largest).clamp_min(SMALLEST_STEP)[None]

    def codes(self) -> torch.Tensor:
        x = self.weight / self.step()[:, None]
        low, high = float(self.codebook.levels[0]), float(self.codebook.levels[-1])
        return straight_through(x.clamp(low, high), self.codebook.encode_codes(x))

    def quantized(self) -> torch.Tensor:
        """Weights with noise in training; ``step * codes`` in evaluation."""
        if not self.training:
            return super().quantized()
        delta = self.weight.abs().max() / (2 ** (self.width() - 1) - 1)
        return self.weight + delta * self.width.noise(self.weight)

    def latent(self) -> torch.Tensor:
        return self.weight

    def soft_bits(self) -> torch.Tensor:
        """b, a scalar."""
        return self.width()  # type: ignore[no-any-return]

    counted_bits = soft_bits

    @torch.no_grad()
    def collapsed(self) -> bool:
        """Whether all weights have one code."""
        codes = self.codes()
        return bool(codes.min() == codes.max())

    @torch.no_grad()
    def frozen(self) -> LsqWeight:
        """The same weights at the nearest width, with a step that goes on training."""
        fixed = LsqWeight(self.weight, self.bits)
        fixed.begin_at(self.step())
        return fixed


class DiffqActivation(ActivationQuantizer):
    """The output of a layer under noise in training, on the nearest width's grid in evaluation, its range trained."""

    def __init__(self, bits: int, signed: bool, relu: bool = False, seed: int = 0):
        super().__init__()
        self.relu, self.signed = relu, signed
        self.width = NoisyWidth(2 if signed else 1, 8 if signed else 7, bits if signed else min(bits, 7), seed)
        self.log2_peak = nn.Parameter(torch.tensor(math.log2(RELU6)))

    @property
    def bits(self) -> int:
        return self.width.nearest

    def peak(self) -> torch.Tensor:
        """The largest value, a scalar."""
        return torch.exp2(fenced(self.log2_peak, -LOG2_STEP_END, math.log2(RELU6) if self.relu else LOG2_STEP_END))

    def step(self) -> torch.Tensor:
        return self.peak() / self.limits()[1]

    def limits(self) -> tuple[int, int]:
        largest = 2 ** (self.bits - int(self.signed)) - 1
        return (-largest if self.signed else 0), largest

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        high = self.peak()
        return -high if self.signed else torch.zeros_like(high), high

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.frozen()(z)  # type: ignore[no-any-return]
        low, high = self.bounds()
        clipped = torch.maximum(torch.minimum(z, high), low)
        return clipped + high / (2 ** (self.width() - int(self.signed)) - 1) * self.width.noise(z)

    def anneal(self, step: int, steps: int) -> None:
        """As a weight's."""
        self.width.at = step

    def soft_bits(self) -> torch.Tensor:
        """b, a scalar."""
        return self.width()  # type: ignore[no-any-return]

    counted_bits = soft_bits

    @torch.no_grad()
    def calibrate(self, z: torch.Tensor) -> None:
        fixed = LinearActivation(self.bits, self.signed, self.relu).to(z.device)
        fixed.calibrate(z)
        self.log2_peak.copy_(torch.log2(fixed.step() * self.limits()[1]))

    @torch.no_grad()
    def frozen(self) -> LinearActivation:
        """The same codes at the nearest width, with a step that goes on training."""
        fixed = LinearActivation(self.bits, self.signed, self.relu)
        low, high = self.limits()
        fixed.log2_step.copy_(torch.log2(self.step()))
        fixed.lowest.fill_(low)
        fixed.highest.fill_(high)
        return fixed.to(self.log2_peak.device)
