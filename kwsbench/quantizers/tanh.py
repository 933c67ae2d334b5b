"""Tanh weight quantizers: stage 1 of the two-stage training (arXiv 2207.06920).

The paper names only "a non-linear tanh(.) transformation"; two public forms are here.

SWD, squashed weight distribution (the default), with n = 2^b - 1 and odd codes c:

    Wq = s (2 floor(n (tanh(P) + 1) / 2 + 1/2) - n) / n = (s / n) c

``P`` is the trained tensor, ``s > 0`` a trained scale. The gradient passes the rounding only, so dW/dP keeps
tanh'. At 1 bit c = sign(P) with sign(0) = +1; at 8 bits the odd grid would need codes -255..255, so the symmetric
grid -127..127 serves. What it adds over a clipped uniform grid is training: P spreads until tanh(P) fills the range.

DoReFa (arXiv 1606.06160, equation 9): the same odd grid on ``tanh(w) / max|tanh(w)|``.

Thresholds are defined on tanh(P), never on P: tanh differs between math libraries by an ulp.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kwsbench.arithmetic.codebook import Codebook, check_bits, integer_codebook
from kwsbench.quantizers.gradients import straight_through
from kwsbench.quantizers.scales import mean_abs_scale, mse_scale
from kwsbench.quantizers.weight import WeightQuantizer

# atanh of the clip: latent values start at most this far out, where tanh' is still 0.02.
ATANH_CLIP = 0.99


def odd_codebook(bits: int) -> Codebook:
    """Codebook on [-1, 1]: levels ``c / n``, c odd in -n..n (8 bits: c / 127, every integer c).

    >>> odd_codebook(2).codes.tolist()
    [-3, -1, 1, 3]
    """
    bits = check_bits(bits)
    if bits == 8:
        return integer_codebook(np.arange(-127, 128), 1 / 127)
    n = 2**bits - 1
    return integer_codebook(np.arange(-n, n + 1, 2), 1 / n)


def odd_grid(bits: int) -> str:
    """Name of the grid as integer programs know it."""
    return {1: "binary", 8: "symmetric"}.get(bits, "odd")


class TanhWeight(WeightQuantizer):
    """SWD: weight ``[N, K]`` as ``s tanh(P)`` on an odd grid."""

    method = "tanh"

    def __init__(self, weight: torch.Tensor, bits: int, per_channel: bool = False):
        super().__init__()
        self.bits, self.per_channel = check_bits(bits), per_channel
        self.codebook = odd_codebook(bits)
        self.grid = odd_grid(bits)
        array = weight.detach().cpu().numpy().astype(np.float64)
        if bits == 1:
            # One level each side: the range only shapes tanh, the level itself is mean|W|.
            span = 2.5 * np.std(array, axis=1 if per_channel else None).reshape(-1)
            span = np.where(span > 0, span, 1.0)
            level = mean_abs_scale(array, per_channel)
        else:
            span = mse_scale(array, self.codebook, per_channel)
            level = span
        latent = np.arctanh(np.clip(array / span[:, None], -ATANH_CLIP, ATANH_CLIP))
        self.latent_weight = nn.Parameter(torch.as_tensor(latent, dtype=torch.float32))
        self.log_scale = nn.Parameter(torch.as_tensor(np.log(level), dtype=torch.float32))

    def step(self) -> torch.Tensor:
        """Real value of one code unit, float32 ``[1]`` or ``[N]``."""
        return torch.exp(self.log_scale) * float(self.codebook.step or 1)

    def codes(self) -> torch.Tensor:
        """Integer codes as float32 ``[N, K]``; the gradient is that of ``n tanh(P)``."""
        squashed = torch.tanh(self.latent_weight)
        return straight_through(squashed / float(self.codebook.step or 1), self.codebook.encode_codes(squashed))

    def latent(self) -> torch.Tensor:
        """The float weight behind the codes, ``s tanh(P)``."""
        return torch.exp(self.log_scale)[:, None] * torch.tanh(self.latent_weight)


class DorefaWeight(WeightQuantizer):
    """DoReFa: the odd grid on ``tanh(w) / max|tanh(w)|``, with a trained scale."""

    method = "dorefa"

    def __init__(self, weight: torch.Tensor, bits: int, per_channel: bool = False):
        super().__init__()
        self.bits, self.per_channel = check_bits(bits), per_channel
        self.codebook = odd_codebook(bits)
        self.grid = odd_grid(bits)
        self.weight = nn.Parameter(weight.detach().clone())
        with torch.no_grad():
            squashed = self._squashed().cpu().numpy()
        array = weight.detach().cpu().numpy().astype(np.float64)
        quantized = self.codebook.quantize(squashed)
        axis = 1 if per_channel else None
        # Least squares: the scale that brings the quantized shape closest to the float weight.
        energy = np.maximum(np.sum(quantized**2, axis=axis), 1e-12)  # zero weights: any scale will do
        scale = np.sum(array * quantized, axis=axis) / energy
        scale = np.maximum(np.reshape(scale, -1), 1e-6)
        self.log_scale = nn.Parameter(torch.as_tensor(np.log(scale), dtype=torch.float32))

    def _squashed(self) -> torch.Tensor:
        t = torch.tanh(self.weight)
        peak = t.abs().amax(dim=1, keepdim=True) if self.per_channel else t.abs().amax()
        return t / peak.clamp_min(1e-12)

    def step(self) -> torch.Tensor:
        return torch.exp(self.log_scale) * float(self.codebook.step or 1)

    def codes(self) -> torch.Tensor:
        squashed = self._squashed()
        return straight_through(squashed / float(self.codebook.step or 1), self.codebook.encode_codes(squashed))

    def latent(self) -> torch.Tensor:
        return torch.exp(self.log_scale)[:, None] * self._squashed()
