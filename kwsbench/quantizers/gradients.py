"""How gradients pass a rounding. The forward value is always the exact one; only the backward differs.

``straight_through(surrogate, exact)`` returns ``exact`` bit for bit and sends the whole gradient to
``surrogate`` (the usual ``s + (e - s).detach()`` would round in float32). Masking (no gradient outside the
range) comes from clamping the surrogate. ``fenced`` keeps a parameter within bounds.
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


class _Fence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        (x,) = ctx.saved_tensors
        outwards = ((x >= ctx.high) & (gradient < 0)) | ((x <= ctx.low) & (gradient > 0))
        return torch.where(outwards, 0, gradient), None, None


def straight_through(surrogate: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Value of ``exact``, gradient of ``surrogate``."""
    return _StraightThrough.apply(surrogate, exact)


def scale_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Value of ``x``, its gradient times ``factor`` (LSQ's step-size rule)."""
    return _ScaleGradient.apply(x, factor)


def fenced(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """``x`` within bounds. On or beyond one only a gradient that leads back passes (descent goes against it), so that a
    trained bound neither sticks nor runs away."""
    return _Fence.apply(x, low, high)
