"""How gradients pass a rounding. The forward value is always the exact one; only the backward differs.

``straight_through(surrogate, exact)`` returns ``exact`` bit for bit and sends the whole gradient to
``surrogate`` (the usual ``s + (e - s).detach()`` would round in float32). Masking (no gradient outside the
range) comes from clamping the surrogate.
"""

from __future__ import annotations

import torch


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, surrogate: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        return exact.to(surrogate.dtype)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient * ctx.factor, None


def straight_through(surrogate: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Value of ``exact``, gradient of ``surrogate``."""
    return _StraightThrough.apply(surrogate, exact)


def scale_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Value of ``x``, its gradient times ``factor`` (LSQ's step-size rule)."""
    return _ScaleGradient.apply(x, factor)
