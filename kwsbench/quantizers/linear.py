"""Linear quantization: ``q = clip(round(x / d), lo, hi)``.

Grids: 8 bits symmetric -127..127 (no -128, see docs/arithmetic.md); 2 to 7 bits two's complement; 1 bit
{-1, +1}. Post-training it is the first baseline. The first step ``d`` is that of the largest weight at 8 bits and that
of least squared error below: at 2 bits the largest weight would leave three levels, most weights at 0, and training
does not come back from there. In training d is learned as in LSQ (Esser et al., arXiv 1902.08153): gradient of d scaled
by 1 / sqrt(N Qp), gradient of the weight masked outside the range.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kwsbench.arithmetic.codebook import Codebook, check_bits, integer_codebook
from kwsbench.quantizers.gradients import scale_gradient, straight_through
from kwsbench.quantizers.scales import max_abs_scale, mean_abs_scale, mse_scale
from kwsbench.quantizers.weight import WeightQuantizer


def linear_codebook(bits: int) -> Codebook:
    """Unit codebook (step 1) of a signed linear grid.

    >>> linear_codebook(2).levels.tolist()
    [-2.0, -1.0, 0.0, 1.0]
    """
    bits = check_bits(bits)
    if bits == 1:
        return integer_codebook(np.array([-1, 1]), 1.0)
    lowest = -127 if bits == 8 else -(2 ** (bits - 1))
    return integer_codebook(np.arange(lowest, 2 ** (bits - 1)), 1.0)


def linear_grid(bits: int) -> str:
    """Name of the grid as integer programs know it."""
    return {1: "binary", 8: "symmetric"}.get(bits, "twos_complement")


def start_step(weight: np.ndarray, codebook: Codebook, per_channel: bool) -> np.ndarray:
    """The first step for a weight ``[N, K]`` on a linear unit codebook: float64 ``[1]`` or ``[N]``."""
    if len(codebook.levels) == 2:
        return mean_abs_scale(weight, per_channel)
    if len(codebook.levels) == 255:
        return max_abs_scale(weight, 127, per_channel)
    return mse_scale(weight, codebook, per_channel)


class LinearWeight(WeightQuantizer):
    """Weight ``[N, K]`` quantized linearly with a learned step (one, or one per row)."""

    method = "linear"

    def __init__(self, weight: torch.Tensor, bits: int, per_channel: bool = False):
        super().__init__()
        self.bits, self.per_channel = check_bits(bits), per_channel
        self.codebook = linear_codebook(bits)
        self.grid = linear_grid(bits)
        array = weight.detach().cpu().numpy()
        step = start_step(array, self.codebook, per_channel)
        self.weight = nn.Parameter(weight.detach().clone())
        self.log_step = nn.Parameter(torch.as_tensor(np.log(step), dtype=torch.float32))

    def step(self) -> torch.Tensor:
        """Real value of one code unit, float32 ``[1]`` or ``[N]``."""
        largest = max(1.0, float(self.codebook.levels[-1]))
        elements = self.weight.numel() / self.log_step.numel()
        return torch.exp(scale_gradient(self.log_step, 1 / float(np.sqrt(elements * largest))))

    def codes(self) -> torch.Tensor:
        """Integer codes as float32 ``[N, K]``, straight-through inside the range."""
        x = self.weight / self.step()[:, None]
        low, high = float(self.codebook.levels[0]), float(self.codebook.levels[-1])
        return straight_through(x.clamp(low, high), self.codebook.encode_codes(x))

    def latent(self) -> torch.Tensor:
        """The float weight behind the codes."""
        return self.weight
