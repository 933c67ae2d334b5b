"""Activation quantizers: ``y = d clamp(round(z / d), low, high)`` with a trained step d.

Codes are those of docs/arithmetic.md, section 11: from 0 on after a ReLU6, where nothing beyond 6 is reached, else
two's complement. The gradient is that of the clip in z (masked outside) and, as in LSQ (Esser et al., arXiv
1902.08153), ``round(z / d) - z / d`` inside and the code at the edge outside in d. Trained is the logarithm of d to
base 2, from which a power of two comes back exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import nn

from kwsbench.arithmetic.fixedpoint import round_half_up
from kwsbench.arithmetic.residual import activation_range, relu6_range
from kwsbench.quantizers import fused
from kwsbench.quantizers.gradients import fenced

RELU6 = 6.0
LOG2_STEP_END = 30.0
BINS = 2**13  # of the histogram that decides a range
STEPS_TRIED = 48


class ActivationQuantizer(nn.Module, ABC):
    """The output of one layer, fake-quantized in float. ``relu``: it comes out of a ReLU6."""

    relu: bool

    @property
    @abstractmethod
    def bits(self) -> int:
        """Width at this moment."""

    @abstractmethod
    def step(self) -> torch.Tensor:
        """Real value of one unit, a scalar."""

    @abstractmethod
    def limits(self) -> tuple[int, int]:
        """Lowest and highest code at this moment."""

    @abstractmethod
    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Real values between which the gradient passes, differentiable: scalars."""

    def highest_code(self) -> torch.Tensor:
        """The highest code as the gradient sees it: that of 6, in units of a trained step, is no integer. A scalar."""
        return self.bounds()[1] / self.step()

    @abstractmethod
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Real values before the ReLU6 -> ``d`` times a code."""

    @abstractmethod
    def calibrate(self, z: torch.Tensor) -> None:
        """Set the range from values before the ReLU6: all of them, the rare large ones among them decide."""


class LinearActivation(ActivationQuantizer):
    """At a fixed width. ``lowest``, ``highest`` are the codes used, all that the width has unless set to fewer."""

    lowest: torch.Tensor
    highest: torch.Tensor

    def __init__(self, bits: int, signed: bool, relu: bool = False):
        """``signed``: the values can be negative; ``relu``: a ReLU6 is applied here."""
        super().__init__()
        low, high = activation_range(bits, not signed)
        self._bits, self.relu = bits, relu
        self.register_buffer("lowest", torch.tensor(low))
        self.register_buffer("highest", torch.tensor(high))
        self.log2_step = nn.Parameter(torch.log2(torch.tensor(RELU6 / max(high, -low))))

    @property
    def bits(self) -> int:
        return self._bits

    def step(self) -> torch.Tensor:
        # A step beyond 6 would leave a ReLU6 nothing but zero.
        return torch.exp2(fenced(self.log2_step, -LOG2_STEP_END, math.log2(RELU6) if self.relu else LOG2_STEP_END))

    def limits(self) -> tuple[int, int]:
        low, high = int(self.lowest), int(self.highest)
        return low, min(high, relu6_range(self.bits, self.step().item())[1]) if self.relu else high

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        step = self.step()
        low, high = step * self.lowest, step * self.highest
        return low, high.clamp(max=RELU6) if self.relu else high

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return fused.uniform(z, self.step(), *self.bounds(), *self.limits())

    @torch.no_grad()
    def calibrate(self, z: torch.Tensor) -> None:
        values, counts = histogram(z.clamp(0, RELU6) if self.relu else z)
        low, high = int(self.lowest), int(self.highest)
        largest = max(float(values.abs().max()), 1e-3)
        steps = largest / max(high, -low) * torch.logspace(-1.3, 0.2, STEPS_TRIED, dtype=torch.float64)
        errors = [((round_half_up(values / d).clamp(low, high) * d - values) ** 2 * counts).sum() for d in steps]
        self.log2_step.copy_(torch.log2(steps[int(torch.stack(errors).argmin())]))


def histogram(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of ``BINS`` even steps from the least to the largest of ``z``, and how often each is the nearest: float64
    [BINS] each, on the CPU. Counts are whole, so that they do not depend on the order in which a device adds."""
    flat = z.detach().flatten()
    low, high = float(flat.min()), float(flat.max())
    width = max((high - low) / (BINS - 1), 1e-12)
    index = ((flat - low) / width + 0.5).long().clamp_(0, BINS - 1)
    counts = torch.bincount(index, minlength=BINS).double().cpu()
    return low + width * torch.arange(BINS, dtype=torch.float64), counts
