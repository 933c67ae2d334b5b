"""The General Quantizer: trained centroids in a mu-law space, annealed from soft to hard (arXiv 2210.09188).

The paper names the parts (regularization-free, softmax annealing, self-adjustable centroids in a mu-law constrained
space, bit depth per kernel, layer or module) and publishes no code; this form is ours. With a scale s per tensor or
row, w~ = w / s, and trained mu > 0:

    F(v)    = sgn(v) ln(1 + mu |v|) / ln(1 + mu)          F^-1(y) = sgn(y) ((1 + mu)^|y| - 1) / mu
    c_j     = F^-1(z_j)                                   z_j trained, in the companded space
    soft:  w^_i = s sum_j A_ij c_j,   A_ij = softmax_j(-a |F(w~_i) - z_j| / spacing)
    hard:  w^_i = s c_j of the nearest z_j                the thresholds on w~ are F^-1((z_j + z_j+1) / 2)

``a`` rises geometrically over the first ``HARD_SHARE`` of a stage and the rest is hard, as is every evaluation.
Distances are in units of the mean spacing of the centroids, so that one schedule serves all widths. The softmax is over
the two centroids around a weight (over all, the third would get e^-a of their share, at most, and cost 2^b terms).

Hard centroids are snapped to ``step * int8``: a table of at most 2^b int8 codes decodes them, and they run in integer
arithmetic as they are. Where a step reproduces the centroids exactly it is taken (uniform centroids with mu -> 0 are
the odd linear grid); else the outermost one gets the code 127. Centroids that share a code are one level:
``codebook`` has the distinct ones. The hard gradient is straight-through to the weight inside the outermost
centroids, and exact to the centroid of each cell.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kwsbench.arithmetic.codebook import Codebook, check_bits, integer_codebook, midpoint_codebook
from kwsbench.quantizers import centroids
from kwsbench.quantizers.gradients import straight_through
from kwsbench.quantizers.scales import max_abs_scale, mse_scale
from kwsbench.quantizers.weight import HARD_SHARE, WeightQuantizer

SHARPNESS = (2.0, 100.0)  # of the softmax, per spacing, at the start and at the end of annealing
# Companding by width. Thresholds halfway in the companded space are not halfway between the levels, which costs SQNR
# where levels are few (0.9 dB at mu = 30 and 2 bits); with many levels it snaps neighbours onto one int8 code.
START_MU = {1: 2.0, 2: 2.0, 3: 2.0, 4: 2.0, 5: 2.0, 6: 2.0, 7: 1.0, 8: 0.1}
LOG_MU_RANGE = (float(np.log(1e-6)), float(np.log(255.0)))


def compand(v: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """``F(v)``, elementwise; mu -> 0 is the identity."""
    return torch.sign(v) * torch.log1p(mu * v.abs()) / torch.log1p(mu)


def expand(y: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """``F^-1(y)``, elementwise."""
    return torch.sign(y) * torch.expm1(y.abs() * torch.log1p(mu)) / mu


def general_codebook(bits: int) -> Codebook:
    """A unit codebook without weights: centroids even in the companded space of ``START_MU``, snapped to int8.

    >>> general_codebook(2).codes.tolist()
    [-127, -22, 22, 127]
    """
    if check_bits(bits) == 8:
        return integer_codebook(np.arange(-127, 128), 1 / 127)
    mu = torch.tensor(START_MU[bits], dtype=torch.float64)
    n = 2**bits - 1
    z = torch.arange(-n, n + 1, 2, dtype=torch.float64) / n
    codes, step = centroids.snap(expand(z, mu).numpy())
    return integer_codebook(np.unique(codes), step)


class GeneralWeight(WeightQuantizer):
    """Weight ``[N, K]`` on 2^b trained centroids, one table for the tensor, one scale or one per row.

    Attributes:
        sharpness: of the softmax; None is hard. Only a training forward is ever soft.
    """

    method = "general"
    grid = "table"
    schedule = SHARPNESS

    def __init__(self, weight: torch.Tensor, bits: int, per_channel: bool = False):
        super().__init__()
        self.bits, self.per_channel = check_bits(bits), per_channel
        self.sharpness: float | None = None
        array = weight.detach().cpu().numpy().astype(np.float64)
        scale = max_abs_scale(array, 1.0, per_channel)
        mu = START_MU[self.bits]
        start = start_centroids(array / scale[:, None], self.bits, mu)
        self.weight = nn.Parameter(weight.detach().clone())
        self.log_scale = nn.Parameter(torch.as_tensor(np.log(scale), dtype=torch.float32))
        self.log_mu = nn.Parameter(torch.tensor(float(np.log(mu))))
        self.centroids = nn.Parameter(torch.as_tensor(start, dtype=torch.float32))

    @property
    def mu(self) -> torch.Tensor:
        """The companding constant, a scalar within ``LOG_MU_RANGE``."""
        return torch.exp(self.log_mu.clamp(*LOG_MU_RANGE))

    def anneal(self, step: int, steps: int) -> None:
        """Set the sharpness for a step of a stage."""
        first, last = self.schedule
        done = step / (HARD_SHARE * steps)
        self.sharpness = None if done >= 1 else first * (last / first) ** done

    def table(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Thresholds float64 ``[L - 1]`` on w~, the int16 code of each of the L cells, and the step of a code."""
        mu = self.mu.detach().cpu().double()
        z = self.centroids.detach().cpu().double().sort().values
        levels = expand(z, mu).numpy()
        codes, step = centroids.snap(levels)
        bounds = expand((z[1:] + z[:-1]) / 2, mu).numpy()
        snapped = codes * step
        # Snapping moves a level by half a step; its threshold stays between the levels it parts.
        return np.clip(bounds, snapped[:-1], snapped[1:]), codes, step

    @property
    def codebook(self) -> Codebook:  # type: ignore[override]
        """The distinct levels at this moment, on w~."""
        bounds, codes, step = self.table()
        if codes[0] == codes[-1]:  # all centroids in one place: two levels keep the codebook one
            return integer_codebook(np.array([codes[0] - 1, codes[0]]), step)
        kept = np.flatnonzero(np.diff(codes) > 0)
        distinct = np.append(codes[kept], codes[-1])
        return Codebook(distinct * step, bounds[kept], distinct, step)

    def step(self) -> torch.Tensor:
        """Real value of one code unit, float32 ``[1]`` or ``[N]``."""
        return torch.exp(self.log_scale) * self.table()[2]

    @torch.no_grad()
    def cells(self) -> torch.Tensor:
        """Which of the 2^b centroids each weight takes when hard, counted from the lowest: int64 ``[N, K]``."""
        return self._cells(self.table()[0])

    @torch.no_grad()
    def _cells(self, bounds: np.ndarray) -> torch.Tensor:
        x = self.weight / torch.exp(self.log_scale)[:, None]
        return torch.bucketize(x.double(), torch.as_tensor(bounds, device=x.device), right=True)

    def codes(self) -> torch.Tensor:
        """Integer codes as float32 ``[N, K]``, always hard."""
        bounds, table, step = self.table()
        x = self.weight / torch.exp(self.log_scale)[:, None]
        cells = self._cells(bounds)
        exact = torch.as_tensor(table.astype(np.int64), device=x.device)[cells]
        levels = expand(self.centroids.sort().values, self.mu)
        moved = (levels - levels.detach())[cells]  # zero, with the gradient of each cell's centroid
        inside = x.clamp(float(levels[0].detach()), float(levels[-1].detach()))
        return straight_through((inside + moved) / step, exact)

    def quantized(self) -> torch.Tensor:
        """The soft weight while a training forward anneals, else ``step * codes``; float32 ``[N, K]``."""
        if self.training and self.sharpness is not None:
            return self.softened(self.sharpness)
        return super().quantized()

    def softened(self, sharpness: float) -> torch.Tensor:
        """The soft weight at a sharpness, ``[N, K]``: differentiable in weight, scale, mu and centroids."""
        scale = torch.exp(self.log_scale)[:, None]
        z = self.centroids.sort().values
        mu = self.mu
        y = compand(self.weight / scale, mu)
        levels = expand(z, mu)
        left, upper = _assignment(y, z, sharpness)
        return scale * torch.lerp(levels[left], levels[left + 1], upper)

    @torch.no_grad()
    def undecided(self, sharpness: float, sure: float) -> float:
        """The share of weights of which no centroid has ``sure`` of the softmax."""
        z = self.centroids.sort().values
        _, upper = _assignment(compand(self.weight / torch.exp(self.log_scale)[:, None], self.mu), z, sharpness)
        return float((torch.maximum(upper, 1 - upper) < sure).double().mean())

    def latent(self) -> torch.Tensor:
        """The float weight behind the codes."""
        return self.weight


class HardGeneralWeight(GeneralWeight):
    """The same without the soft phase: trained centroids, hard with a straight-through gradient from the first step.

    What annealing adds, or costs, is the difference from ``general``.
    """

    method = "general_hard"

    def anneal(self, step: int, steps: int) -> None:
        self.sharpness = None


class SlowGeneralWeight(GeneralWeight):
    """The same, softer at first: weights stay free between two centroids for longer, until the learning rate is lower.

    What an earlier end of their freedom costs is the difference from ``general``.
    """

    method = "general_slow"
    schedule = (SHARPNESS[0] / 8, SHARPNESS[1])


def _assignment(y: torch.Tensor, z: torch.Tensor, sharpness: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower one of the two centroids around each companded weight, and the upper one's part of the softmax."""
    left = (torch.searchsorted(z.detach(), y.detach(), right=True) - 1).clamp(0, len(z) - 2)
    low, high = z[left], z[left + 1]
    spacing = ((z[-1] - z[0]) / (len(z) - 1)).clamp_min(1e-6)
    return left, torch.sigmoid(sharpness * ((y - low).abs() - (y - high).abs()) / spacing)


def start_centroids(x: np.ndarray, bits: int, mu: float) -> np.ndarray:
    """Centroids float64 ``[2^b]`` in the companded space for normalised weights ``[N, K]``.

    At 8 bits int8 has no room for uneven levels, nor for a 256th: the codes -127..127 at the scale of least squared
    error, the last one twice. Else Lloyd-Max
    with the cells that the quantizer itself will use.
    """
    if bits < 8:
        # Equal centroids are spread apart by a little, so that each can move.
        return centroids.compand(centroids.lloyd(x, 2**bits, mu), mu) + 1e-4 * np.linspace(-1, 1, 2**bits)
    even = np.append(np.arange(-127, 128), 127) / 127
    return centroids.compand(even * mse_scale(x, midpoint_codebook(even), False), mu)
