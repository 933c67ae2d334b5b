"""Weights that stay float while a regularizer pulls them onto levels: the neighbours of the General Quantizer.

Absolute cosine (arXiv 2303.02284): levels an even distance D apart, penalty ``mean |cos(pi w / D)|`` between them,
which is zero on the odd grid. S8BQAT (arXiv 2206.15408): Lloyd-Max centroids of the float model, one absolute cosine
per region between neighbours ("multi-region"), and a hard compressor that puts every weight on its centroid now and
then. Neither paper publishes code; the forms here are ours:

    penalty(w) = |cos(pi (w - m_i) / (c_i+1 - c_i))|   between centroids c_i and c_i+1, m_i halfway
               = distance to the outermost centroid over the width of its region, beyond it

so it is 1 halfway and 0 on every centroid, whatever its region's width. The training forward has the float weights
for the first ``HARD_SHARE`` of a stage; then, and in every evaluation, weights are on their centroids with a
straight-through gradient. The levels are fixed from the float model and snapped to ``step * int8``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kwsbench.arithmetic.codebook import Codebook, check_bits, integer_codebook
from kwsbench.quantizers.centroids import lloyd, snap
from kwsbench.quantizers.gradients import straight_through
from kwsbench.quantizers.scales import max_abs_scale, mean_abs_scale, mse_scale
from kwsbench.quantizers.tanh import odd_codebook, odd_grid
from kwsbench.quantizers.weight import HARD_SHARE, WeightQuantizer

COMPRESSIONS = 8  # of S8BQAT's hard compressor, evenly over the soft share of a stage


class CosineWeight(WeightQuantizer):
    """Absolute cosine: weight ``[N, K]`` pulled to an odd grid of fixed scale."""

    method = "cosine"

    def __init__(self, weight: torch.Tensor, bits: int, per_channel: bool = False):
        super().__init__()
        self.bits, self.per_channel = check_bits(bits), per_channel
        array = weight.detach().cpu().numpy().astype(np.float64)
        self.codebook, self.grid, scale = self._levels(array)
        self.hard = True
        self.weight = nn.Parameter(weight.detach().clone())
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))

    scale: torch.Tensor

    def _levels(self, array: np.ndarray) -> tuple[Codebook, str, np.ndarray]:
        """Unit codebook, name of the grid, and the scale ``[1]`` or ``[N]``."""
        book = odd_codebook(self.bits)
        if self.bits == 1:
            return book, odd_grid(1), mean_abs_scale(array, self.per_channel)
        return book, odd_grid(self.bits), mse_scale(array, book, self.per_channel)

    def anneal(self, step: int, steps: int) -> None:
        self.hard = step >= HARD_SHARE * steps

    def step(self) -> torch.Tensor:
        return self.scale * float(self.codebook.step or 1)

    def codes(self) -> torch.Tensor:
        x = self.weight / self.scale[:, None]
        low, high = float(self.codebook.levels[0]), float(self.codebook.levels[-1])
        surrogate = x.clamp(low, high) / float(self.codebook.step or 1)
        return straight_through(surrogate, self.codebook.encode_codes(x))

    def quantized(self) -> torch.Tensor:
        """The float weight in a training forward that is not hard yet, else ``step * codes``."""
        return super().quantized() if self.hard or not self.training else self.weight

    def penalty(self) -> torch.Tensor:
        """Mean multi-region absolute cosine of the weights, 0 (all on centroids) to 1 and beyond; a scalar."""
        x = self.weight / self.scale[:, None]
        levels = torch.as_tensor(self.codebook.levels, dtype=x.dtype, device=x.device)
        region = torch.bucketize(x.detach(), levels[1:-1])
        low, high = levels[region], levels[region + 1]
        inside = torch.abs(torch.cos(torch.pi * (x - (low + high) / 2) / (high - low)))
        beyond = torch.relu(low - x) + torch.relu(x - high)
        outside = (x < levels[0]) | (x > levels[-1])
        return torch.where(outside, beyond / (high - low), inside).mean()

    def latent(self) -> torch.Tensor:
        """The float weight behind the codes."""
        return self.weight


class S8bWeight(CosineWeight):
    """S8BQAT: Lloyd-Max centroids of the float model, one table for the tensor, and a periodic hard compressor."""

    method = "s8b"

    def _levels(self, array: np.ndarray) -> tuple[Codebook, str, np.ndarray]:
        scale = max_abs_scale(array, 1.0, self.per_channel)
        if self.bits == 8:  # more centroids than int8 has codes: the even grid
            book = integer_codebook(np.arange(-127, 128), 1 / 127)
            return book, "table", mse_scale(array, book, self.per_channel)
        codes, step = snap(lloyd(array / scale[:, None], 2**self.bits))
        distinct = np.unique(codes)
        if len(distinct) == 1:
            distinct = np.array([distinct[0] - 1, distinct[0]], np.int16)
        return integer_codebook(distinct, step), "table", scale

    @torch.no_grad()
    def anneal(self, step: int, steps: int) -> None:
        super().anneal(step, steps)
        period = max(1, int(HARD_SHARE * steps / COMPRESSIONS))
        if step and step % period == 0 and not self.hard:
            self.weight.copy_(self.step()[:, None] * self.codes())
