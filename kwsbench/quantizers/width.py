"""Trained widths: step d and range xmax are learned, and the width follows (Uhlich et al., arXiv 1905.11452).

    Q(x) = d round(clip(x, -xmax, xmax) / d)        clip(x, 0, xmax) after a ReLU6; d a power of two
    dQ/dx    = 1 inside, 0 outside
    dQ/dd    = (Q(x) - x) / d inside, 0 outside     d passes the snapping to a power of two straight through
    dQ/dxmax = 0 inside, sign(x) outside
    bits     = ceil(log2(K + 1) + 1) signed, ceil(log2(K + 1)) unsigned,   K = round(xmax / d) the largest code

both rounded with the gradient passed straight through, so that a size in bits pushes at d and xmax. Of the paper's
three parametrizations this is the one whose gradients are bounded. Ours: the ratio is rounded before the bits are
counted (codes are integers; 3.4 would count as three bits where two do); logarithms of d and xmax are trained, and
``PACE`` times as fast as the other parameters, or a bit would take a thousand steps of Adam; and the ratio stays
within 1 and 127, which is 2 to 8 bits signed, 1 to 7 unsigned: a width cannot reach zero by the ratio. It still does
where d outgrows the values themselves and all of them get one code; ``collapsed`` tells.

Weights have one d and one xmax per tensor. What is frozen has the same d and codes: its forward is equal.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from kwsbench.arithmetic.codebook import Codebook
from kwsbench.quantizers import fused
from kwsbench.quantizers.activation import RELU6, ActivationQuantizer, LinearActivation
from kwsbench.quantizers.gradients import fenced, straight_through
from kwsbench.quantizers.linear import linear_codebook, linear_grid
from kwsbench.quantizers.lsq import LsqWeight
from kwsbench.quantizers.weight import WeightQuantizer

PACE = 10.0
LARGEST_CODE = 127
SMALLEST, LARGEST = 2.0**-20, 2.0**20  # where d and xmax end


class TrainedRange(nn.Module):
    """d and xmax of one tensor. ``top``: what xmax cannot exceed."""

    def __init__(self, peak: float, bits: int, signed: bool, top: float = LARGEST):
        """``peak``: the first xmax; ``bits``: the first width, from 2 (signed) or 1 on."""
        super().__init__()
        if not (2 if signed else 1) <= bits <= 8:
            raise ValueError(f"a trained width starts at {2 if signed else 1} to 8 bits, got {bits}")
        self.signed, self.top = signed, top
        peak = max(min(peak, top), SMALLEST)
        largest = min(2 ** (bits - signed) - 1, LARGEST_CODE)
        # Snapped upwards: no code is lost, a start of b bits has at most b.
        self.step_pace = nn.Parameter(torch.tensor(math.ceil(math.log2(peak / largest)) / PACE))
        self.peak_pace = nn.Parameter(torch.tensor(math.log2(peak) / PACE))

    def step(self) -> torch.Tensor:
        """d, a power of two."""
        wished = fenced(PACE * self.step_pace, math.log2(SMALLEST), math.floor(math.log2(self.top)))
        return torch.exp2(straight_through(wished, (wished.detach() + 0.5).floor()))

    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """d and xmax, which lies from d to 127 d: scalars."""
        d = self.step()
        peak = torch.exp2(fenced(PACE * self.peak_pace, math.log2(SMALLEST), math.log2(self.top)))
        return d, torch.minimum(torch.maximum(peak, d), LARGEST_CODE * d)

    def peak(self) -> torch.Tensor:
        """xmax."""
        return self.pair()[1]

    def largest(self) -> int:
        """K, the largest code."""
        return _largest(*self.pair())

    def soft_bits(self) -> torch.Tensor:
        """The width before it is rounded upwards, from the real ratio: a scalar."""
        d, peak = self.pair()
        return torch.log2(peak / d + 1) + self.signed

    def counted_bits(self) -> torch.Tensor:
        """The width, a whole number in value, with the gradient of d and xmax: a scalar."""
        d, peak = self.pair()
        ratio = peak / d
        bits = torch.log2(straight_through(ratio, (ratio.detach() + 0.5).floor()) + 1) + self.signed
        return straight_through(bits, bits.detach().ceil())

    @property
    def bits(self) -> int:
        """The width at this moment."""
        return self.largest().bit_length() + self.signed

    def limits(self) -> tuple[int, int]:
        """Lowest and highest code."""
        largest = self.largest()
        return -largest if self.signed else 0, largest

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """``Q(x)``."""
        d, peak = self.pair()
        largest = _largest(d, peak)
        if self.signed:
            return fused.uniform(x, d, -peak, peak, -largest, largest)
        return fused.uniform(x, d, torch.zeros_like(peak), peak, 0, largest)


class TrainedWidthWeight(WeightQuantizer):
    """Weight ``[N, K]`` whose width is trained."""

    method = "trained_width"
    per_channel = False

    def __init__(self, weight: torch.Tensor, bits: int = 8):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.range = TrainedRange(float(weight.detach().abs().max()), bits, signed=True)

    @property
    def bits(self) -> int:  # type: ignore[override]
        """The width at this moment."""
        return self.range.bits

    @property
    def codebook(self) -> Codebook:  # type: ignore[override]
        """That of the width at this moment; codes beyond K are not used."""
        return linear_codebook(self.bits)

    @property
    def grid(self) -> str:  # type: ignore[override]
        """Name of the grid at this width."""
        return linear_grid(self.bits)

    def step(self) -> torch.Tensor:
        return self.range.step()[None]

    def quantized(self) -> torch.Tensor:
        return self.range.quantize(self.weight)

    def codes(self) -> torch.Tensor:
        # Exact: d is a power of two.
        return self.quantized() / self.range.step()

    def latent(self) -> torch.Tensor:
        return self.weight

    def soft_bits(self) -> torch.Tensor:
        """The width before rounding, a scalar."""
        return self.range.soft_bits()

    def counted_bits(self) -> torch.Tensor:
        """The width with its gradient, a scalar."""
        return self.range.counted_bits()

    @torch.no_grad()
    def collapsed(self) -> bool:
        """Whether all weights have one code: zero bits, whatever the ratio says."""
        codes = self.codes()
        return bool(codes.min() == codes.max())

    @torch.no_grad()
    def frozen(self) -> LsqWeight:
        """The same weights at the width of this moment, with a step that goes on training."""
        peak = self.range.peak()
        fixed = LsqWeight(self.weight.clamp(-peak, peak), self.bits)
        fixed.begin_at(self.step())
        return fixed


class TrainedWidthActivation(ActivationQuantizer):
    """The output of a layer, whose width is trained."""

    def __init__(self, bits: int, signed: bool, relu: bool = False):
        super().__init__()
        self.relu, self.start_bits = relu, bits
        self.range = TrainedRange(RELU6, bits, signed, RELU6 if relu else LARGEST)

    @property
    def bits(self) -> int:
        return self.range.bits

    def step(self) -> torch.Tensor:
        return self.range.step()

    def limits(self) -> tuple[int, int]:
        # xmax ends at 6 after a ReLU6: no code lies beyond the one nearest to it.
        return self.range.limits()

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        high = self.range.peak()
        return -high if self.range.signed else torch.zeros_like(high), high

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.range.quantize(z)

    def soft_bits(self) -> torch.Tensor:
        """The width before rounding, a scalar."""
        return self.range.soft_bits()

    def counted_bits(self) -> torch.Tensor:
        """The width with its gradient, a scalar."""
        return self.range.counted_bits()

    @torch.no_grad()
    def calibrate(self, z: torch.Tensor) -> None:
        """The range of least squared error at the first width, then d at the power of two above."""
        fixed = LinearActivation(self.start_bits, self.range.signed, self.relu).to(z.device)
        fixed.calibrate(z)
        peak = fixed.step().item() * int(fixed.highest) if int(fixed.highest) else fixed.step().item()
        fresh = TrainedRange(peak, self.start_bits, self.range.signed, self.range.top)
        self.range.load_state_dict(fresh.state_dict())

    @torch.no_grad()
    def frozen(self) -> LinearActivation:
        """The same codes at the width of this moment, with a step that goes on training."""
        fixed = LinearActivation(self.bits, self.range.signed, self.relu)
        low, high = self.limits()
        fixed.log2_step.copy_(torch.log2(self.step()))
        fixed.lowest.fill_(low)
        fixed.highest.fill_(high)
        return fixed.to(self.step().device)


def _largest(d: torch.Tensor, peak: torch.Tensor) -> int:
    return int((peak.detach() / d.detach() + 0.5).floor())
