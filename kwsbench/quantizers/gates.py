"""The training forward of integer LSTM layers and joints: exact integers forward, the float cell's gradient backward.

Forward computes docs/arithmetic.md, sections 8 and 9, by the functions of arithmetic.gates, or by the same equations in
float64 where that is exact (proven there) and quicker; values are integer-valued tensors. Backward is that of the real
cell at the quantized values,

    z = acc_x u_x + acc_h u_h + bias,   c' = f c + i g,   h' = o tanh c'

roundings pass gradients straight through (where the curves saturate, their derivatives vanish). ``h`` is in units of
2^-7, and so is its gradient; ``u_x``, ``u_h`` are the real values of one unit of each accumulator.

One autograd node runs a whole sequence: a node per operation and frame would cost several times as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch.nn import functional as F

from kwsbench.arithmetic import gates
from kwsbench.quantizers.gradients import straight_through

UNITS = float(2**gates.STATE_BITS)  # of h in 1.0
CURVE_UNIT = 2.0**-gates.CURVE_BITS
ARGUMENTS = 2**16  # of a curve


@dataclass(frozen=True)
class GateTensors:
    """:class:`kwsbench.arithmetic.gates.GateConstants` as float64 tensors ``[N]``; ``unshift`` is 2^-S."""

    input_multiplier: torch.Tensor
    state_multiplier: torch.Tensor
    bias: torch.Tensor
    unshift: torch.Tensor


def gate_tensors(input_unit: torch.Tensor, state_unit: torch.Tensor, bias: torch.Tensor) -> GateTensors:
    """From real units ``[N]`` (float64) and the float bias ``[N]``; raises ValueError as ``gate_constants``."""
    constants = gates.gate_constants(*(t.detach().double().cpu().numpy() for t in (input_unit, state_unit, bias)))
    values = (
        constants.input_multiplier,
        constants.state_multiplier,
        constants.bias,
        np.ldexp(1.0, -constants.shift),
    )
    return GateTensors(*(torch.as_tensor(v, dtype=torch.float64, device=bias.device) for v in values))


def lstm_sequence(
    acc_x: torch.Tensor,
    codes: torch.Tensor,
    input_unit: torch.Tensor,
    state_unit: torch.Tensor,
    bias: torch.Tensor,
    constants: GateTensors,
    h: torch.Tensor,
    c: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """An LSTM layer over T frames.

    Args:
        acc_x: ``[B, T, 4 H]``, integer-valued float32: the product of inputs and codes.
        codes: of the recurrent matrix, ``[4 H, H]``.
        input_unit, state_unit, bias: float32 ``[4 H]``, for the gradient; ``constants`` are made of the same.
        h: integer-valued float32 ``[B, H]``; c: integer-valued float64 ``[B, H]``.

    Returns:
        ``h`` of every frame, float32 ``[B, T, H]``, and the last ``c`` (which no gradient passes).
    """
    return _LstmSequence.apply(acc_x, codes, input_unit, state_unit, bias, constants, h, c)  # type: ignore[no-any-return]


def joint(
    acc_x: torch.Tensor,
    acc_h: torch.Tensor,
    input_unit: torch.Tensor,
    state_unit: torch.Tensor,
    bias: torch.Tensor,
    constants: GateTensors,
) -> torch.Tensor:
    """``sat8((tanh(z) + 2^7) >> 8)``: accumulators ``[..., N]``, broadcast against each other -> float32, unit 2^-7."""
    z = _argument(acc_x.detach().double() * constants.input_multiplier + constants.bias, acc_h.detach(), constants)
    exact = torch.floor((_curves(acc_x.device.type)[1][z] + 2.0**7) * 2.0**-8).clamp_(-128, 127)
    real = torch.tanh(acc_x * input_unit + acc_h * state_unit + bias)
    return straight_through(real * UNITS, exact)


@cache
def _curves(device: str) -> torch.Tensor:
    """Sigmoid and tanh at all 65,536 arguments, float64 ``[2, 65536]`` in units of 2^-15."""
    z = np.arange(-(2**15), 2**15)
    values = [gates.curve(z, table.astype(np.int64)) for table in (gates.SIGMOID, gates.TANH)]
    return torch.as_tensor(np.stack(values), dtype=torch.float64, device=device)


def _argument(driven: torch.Tensor, acc_h: torch.Tensor, constants: GateTensors) -> torch.Tensor:
    """``z + 2^15`` as int64, from ``acc_x m_x + b`` (float64) and ``acc_h``: every step exact below 2^53."""
    total = torch.addcmul(driven, acc_h.double(), constants.state_multiplier)
    z = total.mul_(constants.unshift).add_(0.5).floor_().clamp_(-(2.0**15), 2.0**15 - 1)
    return z.add_(2.0**15).long()


class _LstmSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, acc_x, codes, input_unit, state_unit, bias, constants: GateTensors, h, c):
        batch, frames, rows = acc_x.shape
        hidden = rows // 4
        curves = _curves(acc_x.device.type)
        flat = curves.flatten()
        # i, f, o through the sigmoid, g (the third quarter) through tanh, which lies behind it.
        offset = torch.zeros(rows, dtype=torch.int64, device=acc_x.device)
        offset[2 * hidden : 3 * hidden] = ARGUMENTS
        driven = acc_x.double() * constants.input_multiplier + constants.bias
        states, cells, activations, squashed = [h], [c], [], []
        for t in range(frames):
            z = _argument(driven[:, t], F.linear(states[-1], codes), constants)
            a = flat[z + offset]
            i, f, g, o = a.chunk(4, dim=1)
            c = ((16 * f * cells[-1] + i * g) * 2.0**-19).add_(0.5).floor_().clamp_(-(2.0**15), 2.0**15 - 1)
            tanh_c = curves[1][(2 * c).clamp_(-(2.0**15), 2.0**15 - 1).add_(2.0**15).long()]
            h = (o * tanh_c * 2.0**-23).add_(0.5).floor_().clamp_(-128, 127).to(acc_x.dtype)
            states.append(h)
            cells.append(c)
            activations.append(a)
            squashed.append(tanh_c)
        if frames == 0:
            return acc_x.new_empty(batch, 0, hidden), c
        ctx.save_for_backward(acc_x, codes, input_unit, state_unit, torch.stack(states), torch.stack(cells))
        ctx.gates = torch.stack(activations), torch.stack(squashed)
        ctx.mark_non_differentiable(c)
        return torch.stack(states[1:], dim=1), c

    @staticmethod
    def backward(ctx, gradient, _):  # type: ignore[override]
        acc_x, codes, input_unit, state_unit, states, cells = ctx.saved_tensors
        kind = acc_x.dtype
        activations, tanh_c = ((a * CURVE_UNIT).to(kind) for a in ctx.gates)
        c = (cells * 2.0**-gates.CELL_BITS).to(kind)
        i, f, g, o = activations.chunk(4, dim=2)  # [T, B, H] each
        # What each gate's own curve and partner contribute, for all frames at once.
        by_c = o * (1 - tanh_c * tanh_c)
        by_i, by_f, by_g, by_o = g * i * (1 - i), c[:-1] * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)
        by_gate = torch.cat([by_i, by_f, by_g], dim=2)
        back = state_unit[:, None] * codes * UNITS
        dz = torch.empty_like(activations)
        hidden = codes.shape[1]
        dh, dc = torch.zeros_like(c[0]), torch.zeros_like(c[0])
        for t in range(len(tanh_c) - 1, -1, -1):
            dh = torch.add(dh, gradient[:, t], alpha=UNITS)
            dc = torch.addcmul(dc, dh, by_c[t])
            dz[t, :, : 3 * hidden] = by_gate[t] * dc.repeat(1, 3)
            dz[t, :, 3 * hidden :] = dh * by_o[t]
            dh = dz[t] @ back
            dc = dc * f[t]
        dz = dz.transpose(0, 1)  # [B, T, 4 H]
        before = states[:-1].transpose(0, 1)  # [B, T, H]
        rows = dz.flatten(0, 1)
        acc_h = F.linear(before, codes)
        return (
            dz * input_unit,
            state_unit[:, None] * (rows.t() @ before.flatten(0, 1)),
            (dz * acc_x).sum((0, 1)),
            (dz * acc_h).sum((0, 1)),
            dz.sum((0, 1)),
            None,
            dh / UNITS,
            None,
        )
