"""What training asks of a quantized model, of whatever shape."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn


class QuantizedModel(nn.Module, ABC):
    """A model behind quantizers.

    Attributes:
        observing: while True, a forward moves batchnorm statistics and activation ranges (stage 2).
    """

    observing: bool = False

    @property
    @abstractmethod
    def integer(self) -> bool:
        """Whether the forward is the integer arithmetic (stage 2)."""

    @abstractmethod
    def anneal(self, step: int, steps: int, every: int = 1) -> None:
        """Told before each training step of ``steps``; ``step == steps`` ends the stage: everything is hard."""

    @abstractmethod
    def penalty(self) -> torch.Tensor | None:
        """What the model adds to the loss, a scalar; None for nothing."""
