"""What every weight quantizer offers; see the package's docstring for the meaning of each part."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from kwsbench.arithmetic.codebook import Codebook

# Soft quantizers are annealed over this share of a stage; the rest of it, as every evaluation, is hard.
HARD_SHARE = 0.8


class WeightQuantizer(nn.Module, ABC):
    """A trained float weight ``[N, K]`` seen through a codebook: the quantized weight is ``step * codes``."""

    method: str
    bits: int
    per_channel: bool
    codebook: Codebook
    grid: str  # its name in integer programs

    @abstractmethod
    def step(self) -> torch.Tensor:
        """Real value of one code unit, float32 ``[1]`` or ``[N]``."""

    @abstractmethod
    def codes(self) -> torch.Tensor:
        """Integer codes as float32 ``[N, K]``, with the method's gradient."""

    @abstractmethod
    def latent(self) -> torch.Tensor:
        """The float weight behind the codes, ``[N, K]``."""

    def anneal(self, step: int, steps: int) -> None:
        """Told before training step ``step`` of ``steps``; ``step == steps`` ends it: hard, as evaluation is."""

    def penalty(self) -> torch.Tensor | None:
        """What a regularizing method adds to the loss, a scalar; None for the others."""
        return None

    def quantized(self) -> torch.Tensor:
        """``step * codes``, float32 ``[N, K]``."""
        return self.step()[:, None] * self.codes()

    def turned(self, factor: torch.Tensor) -> torch.Tensor:
        """Codes with each row times its ``factor`` ``[N]`` of -1, 0 or 1: a negative gain folded into them. Two's
        complement first gives up its lowest code, which has no negative."""
        codes = self.codes()
        if self.grid == "twos_complement":
            highest = float(self.codebook.levels[-1])
            codes = torch.where(factor[:, None] < 0, codes.clamp(min=-highest), codes)
        return codes * factor[:, None]
