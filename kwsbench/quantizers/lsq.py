"""LSQ, learned step size quantization, as published (Esser et al., arXiv 1902.08153).

The grid and the gradients are those of ``linear``; the step itself is the parameter, not its logarithm, and starts at
``2 mean|w| / sqrt(Qp)``, Qp the largest code. At 1 bit, where the paper has no signed grid, it starts at mean|w|.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kwsbench.quantizers.gradients import scale_gradient
from kwsbench.quantizers.linear import LinearWeight
from kwsbench.quantizers.scales import mean_abs_scale

SMALLEST_STEP = 1e-8


class LsqWeight(LinearWeight):
    """Weight ``[N, K]`` on a linear grid with a learned step (one, or one per row)."""

    method = "lsq"

    def __init__(self, weight: torch.Tensor, bits: int, per_channel: bool = False):
        super().__init__(weight, bits, per_channel)
        mean = mean_abs_scale(weight.detach().cpu().numpy(), per_channel)
        start = mean if self.bits == 1 else 2 * mean / np.sqrt(self._largest())
        del self.log_step
        self.step_size = nn.Parameter(torch.as_tensor(start, dtype=torch.float32))

    def _largest(self) -> float:
        return float(self.codebook.levels[-1])

    def step(self) -> torch.Tensor:
        """Real value of one code unit, float32 ``[1]`` or ``[N]``."""
        elements = self.weight.numel() / self.step_size.numel()
        factor = 1 / float(np.sqrt(elements * self._largest()))
        return scale_gradient(self.step_size, factor).clamp_min(SMALLEST_STEP)
