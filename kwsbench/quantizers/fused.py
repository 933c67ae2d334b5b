"""Quantizing activations in one pass over the memory: what training spends its time on.

Two operations with their gradients, each a Numba loop on the CPU and the same in torch's own operations elsewhere
(the ``plain_*`` functions, which tests compare with the loops). Tensors ``[B, C, T, F]`` are read and written
channels-last.

``uniform``       fake quantization, real values in and out
``requantized``   exact integers: accumulators in, codes out, the gradient that of a float expression
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit

from kwsbench.arithmetic import fixedpoint
from kwsbench.arithmetic.folding import Folded
from kwsbench.integer.kernels.scalar import ROUNDINGS, codes_of_rows
from kwsbench.quantizers.gradients import straight_through


def uniform(
    z: torch.Tensor, step: torch.Tensor, low: torch.Tensor, high: torch.Tensor, lowest: int, highest: int
) -> torch.Tensor:
    """``step * clamp(round(z / step), lowest, highest)`` of any float32 tensor.

    The gradient is that of ``clip(z, low, high)`` with the rounding passed straight through: to ``z`` where it lies
    inside, there ``round(z / step) - z / step`` to the step; outside to the scalars ``low`` and ``high``.
    """
    if z.device.type != "cpu":
        return plain_uniform(z, step, low, high, lowest, highest)
    return _Uniform.apply(z, step, low, high, lowest, highest)  # type: ignore[no-any-return, no-untyped-call]


def plain_uniform(
    z: torch.Tensor, step: torch.Tensor, low: torch.Tensor, high: torch.Tensor, lowest: int, highest: int
) -> torch.Tensor:
    """:func:`uniform` in torch's own operations."""
    exact = step * fixedpoint.saturate(fixedpoint.round_half_up(z / step), lowest, highest)
    surrogate = torch.maximum(torch.minimum(z, high), low)
    inside = (z >= low) & (z <= high)
    # Zero in value; its gradient in the step is round(z / d) - z / d.
    moved = torch.where(inside, (exact - z).detach() / step.detach(), 0) * (step - step.detach())
    return straight_through(surrogate + moved, exact.detach())


def requantized(
    acc: torch.Tensor,
    unit: torch.Tensor,
    offset: torch.Tensor,
    constants: Folded,
    low: int,
    high: int,
    rounding: str,
    highest: torch.Tensor,
) -> torch.Tensor:
    """Codes ``clamp(requantize(acc + bias, multiplier, shift), low, high)`` as float32, channel by channel.

    ``acc`` ``[B, C, T, F]`` holds integers, float32 or float64. The gradient is that of ``clip(acc * unit + offset,
    low, highest)``; ``unit``, ``offset`` float32 ``[C]``, ``highest`` a scalar near ``high``.
    """
    if acc.device.type != "cpu":
        return plain_requantized(acc, unit, offset, constants, low, high, rounding, highest)
    return _Requantized.apply(acc, unit, offset, highest, constants, low, high, rounding)  # type: ignore[no-any-return, no-untyped-call]


def plain_requantized(
    acc: torch.Tensor,
    unit: torch.Tensor,
    offset: torch.Tensor,
    constants: Folded,
    low: int,
    high: int,
    rounding: str,
    highest: torch.Tensor,
) -> torch.Tensor:
    """:func:`requantized` in torch's own operations. Sums of a library that transforms are integers once rounded."""
    bias, multiplier, shift = (
        torch.as_tensor(v, device=acc.device)[:, None, None]
        for v in (constants.bias, constants.multiplier, constants.shift)
    )
    exact = fixedpoint.requantize(acc.detach().round().to(torch.int64) + bias, multiplier, shift, low, high, rounding)
    z = acc.to(unit.dtype) * unit[:, None, None] + offset[:, None, None]
    return straight_through(torch.minimum(z, highest).clamp(min=low), exact)


def moments(acc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (unbiased) variance of each channel of ``[B, C, T, F]``, float32 ``[C]``."""
    if acc.device.type != "cpu":
        var, mean = torch.var_mean(acc.double(), (0, 2, 3))
        return mean.float(), var.float()
    sums, squares = _moments_loop(_matrix(_rows(acc)))
    count = acc.numel() // acc.shape[1]
    mean = sums / count
    var = np.maximum(squares - count * mean**2, 0) / max(1, count - 1)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(var.astype(np.float32))


class _Uniform(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z, step, low, high, lowest, highest):
        rows = _rows(z)
        y = torch.empty_like(rows)
        scalars = tuple(np.float32(v.item()) for v in (step, low, high))
        _uniform_loop(_flat(rows), scalars[0], np.float32(lowest), np.float32(highest), _flat(y))
        ctx.save_for_backward(rows, y)
        ctx.scalars, ctx.shapes = scalars, [v.shape for v in (step, low, high)]
        return _like(y, z)

    @staticmethod
    def backward(ctx: Any, gradient):  # type: ignore[override]
        rows, y = ctx.saved_tensors
        step, low, high = ctx.scalars
        upstream = _rows(gradient)
        out = torch.empty_like(rows)
        sums = _uniform_back_loop(_matrix(upstream), _matrix(rows), _matrix(y), step, low, high, _matrix(out))
        return (
            _like(out, gradient),
            *(gradient.new_tensor(v).reshape(s) for v, s in zip(sums, ctx.shapes)),
            None,
            None,
        )


class _Requantized(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, acc, unit, offset, highest, constants, low, high, rounding):
        rows = _rows(acc)
        y = torch.empty(rows.shape, dtype=torch.float32)
        codes_of_rows(
            _matrix(rows),
            constants.bias,
            constants.multiplier,
            constants.shift,
            ROUNDINGS[rounding],
            np.int64(low),
            np.int64(high),
            _matrix(y),
        )
        ctx.save_for_backward(rows, unit.detach(), offset.detach())
        ctx.limits = np.float32(low), np.float32(highest.item())
        ctx.shape = highest.shape
        return _like(y, acc)

    @staticmethod
    def backward(ctx: Any, gradient):  # type: ignore[override]
        rows, unit, offset = ctx.saved_tensors
        low, high = ctx.limits
        upstream = _rows(gradient)
        out = torch.empty_like(rows)
        to_unit, to_offset, to_highest = _requantized_back_loop(
            _matrix(upstream), _matrix(rows), unit.numpy(), offset.numpy(), low, high, _matrix(out)
        )
        return (
            _like(out, gradient),
            torch.from_numpy(to_unit).to(unit.dtype),
            torch.from_numpy(to_offset).to(unit.dtype),
            gradient.new_tensor(to_highest).reshape(ctx.shape),
            None,
            None,
            None,
            None,
        )


def _rows(t: torch.Tensor) -> torch.Tensor:
    """The tensor with its channels last, in order in memory; no copy where they lie so already."""
    return (t.permute(0, 2, 3, 1) if t.ndim == 4 else t).detach().contiguous()


def _like(rows: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return rows.permute(0, 3, 1, 2) if t.ndim == 4 else rows


def _flat(rows: torch.Tensor) -> np.ndarray:
    return rows.numpy().reshape(-1)


def _matrix(rows: torch.Tensor) -> np.ndarray:
    return rows.numpy().reshape(-1, rows.shape[-1])


@njit(cache=True)
def _uniform_loop(z, step, lowest, highest, y):
    for i in range(len(z)):
        v = z[i] / step
        below = np.floor(v)
        q = below + np.float32(1) if v - below >= np.float32(0.5) else below
        y[i] = step * min(max(q, lowest), highest)


@njit(cache=True)
def _uniform_back_loop(gradient, z, y, step, low, high, out):
    # One sum per channel and no branches, so that the inner loop runs in vectors; so below.
    channels = z.shape[1]
    to_step, below, above = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    for t in range(z.shape[0]):
        for n in range(channels):
            v, g = z[t, n], gradient[t, n]
            inside = g if low <= v <= high else np.float32(0)
            to_step[n] += np.float64(inside) * np.float64(y[t, n] - v)
            below[n] += g if v < low else np.float32(0)
            above[n] += g if v > high else np.float32(0)
            out[t, n] = inside
    return to_step.sum() / step, below.sum(), above.sum()


@njit(cache=True)
def _requantized_back_loop(gradient, acc, unit, offset, low, high, out):
    channels = acc.shape[1]
    to_unit, to_offset, above = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    for t in range(acc.shape[0]):
        for n in range(channels):
            z = np.float32(acc[t, n]) * unit[n] + offset[n]
            g = gradient[t, n]
            inside = g if low <= z <= high else np.float32(0)
            to_unit[n] += np.float64(inside) * np.float64(acc[t, n])
            to_offset[n] += inside
            above[n] += g if z > high else np.float32(0)
            out[t, n] = inside * unit[n]
    return to_unit, to_offset, above.sum()


@njit(cache=True)
def _moments_loop(acc):
    sums, squares = np.zeros(acc.shape[1]), np.zeros(acc.shape[1])
    for t in range(acc.shape[0]):
        for n in range(acc.shape[1]):
            v = np.float64(acc[t, n])
            sums[n] += v
            squares[n] += v * v
    return sums, squares
