"""LSQ, learned step size quantization, as published (Esser et al., arXiv 1902.08153).

The grid and the gradients are those of ``linear``; the step is a parameter, not its logarithm, and starts at
``2 mean|w| / sqrt(Qp)``, Qp the largest code. At 1 bit, where the paper has no signed grid, it starts at mean|w|.

Trained is its ratio to that start. The paper trains by SGD, which moves a step by its gradient; Adam moves every
parameter by its rate, and a rate that suits weights is as large as a whole step of 8 bits (the step itself under AdamW
broke down there in one of two seeds). In the ratio, a rate of 0.001 is a thousandth of the step at every width.
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
    start: torch.Tensor

    def __init__(self, weight: torch.Tensor, bits: int, per_channel: bool = False):
        super().__init__(weight, bits, per_channel)
        mean = mean_abs_scale(weight.detach().cpu().numpy(), per_channel)
        start = mean if self.bits == 1 else 2 * mean / np.sqrt(self._largest())
        del self.log_step
        self.register_buffer("start", torch.as_tensor(start, dtype=torch.float32))
        self.ratio = nn.Parameter(torch.ones_like(self.start))

    def _largest(self) -> float:
        return float(self.codebook.levels[-1])

    def step(self) -> torch.Tensor:
        """Real value of one code unit, float32 ``[1]`` or ``[N]``."""
        elements = self.weight.numel() / self.ratio.numel()
        factor = 1 / float(np.sqrt(elements * self._largest()))
        return (self.start * scale_gradient(self.ratio, factor)).clamp_min(SMALLEST_STEP)

    @torch.no_grad()
    def begin_at(self, step: torch.Tensor) -> None:
        """Start from another step, ``[1]`` or ``[N]``: exactly that."""
        self.start.copy_(step)
        self.ratio.fill_(1.0)
