"""Integer LSTM arithmetic: gates, their curves, the cell (docs/arithmetic.md, sections 8 and 9).

One code for NumPy arrays and torch tensors, as in fixedpoint.py; int64 in and out. Units: gates before their
curves 2^-12, after them 2^-15, cell state 2^-11, output state 2^-7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kwsbench.arithmetic.fixedpoint import round_half_up, saturate

GATE_BITS, CURVE_BITS, CELL_BITS, STATE_BITS = 12, 15, 11, 7  # one unit is 2^-bits
STATE_UNIT = 2.0**-STATE_BITS
MULTIPLIER_BITS = 24
BIAS_LIMIT = 2**51
ENTRIES = 513  # of a curve's table: every 2^7 units of the argument


def _table(values: np.ndarray) -> np.ndarray:
    table = np.minimum(round_half_up(values * 2.0**CURVE_BITS), 2**CURVE_BITS - 1).astype(np.int16)
    table.setflags(write=False)
    return table


_POINTS = (np.arange(ENTRIES) - ENTRIES // 2) / 32
SIGMOID = _table(1 / (1 + np.exp(-_POINTS)))  # int16 [513], unit 2^-15
TANH = _table(np.tanh(_POINTS))


@dataclass(frozen=True, eq=False)
class GateConstants:
    """Integer constants of the rows of a gate, int64 ``[N]`` each."""

    input_multiplier: np.ndarray
    state_multiplier: np.ndarray
    bias: np.ndarray
    shift: np.ndarray


def gate_constants(input_unit: np.ndarray, state_unit: np.ndarray, bias: np.ndarray) -> GateConstants:
    """Section 8. ``input_unit``, ``state_unit``: of one unit of each accumulator, real float64 ``[1]`` or ``[N]``.

    Raises:
        ValueError: a unit or bias that is not finite, or beyond what a shift of 1..50 and a bias of 51 bits hold.
    """
    bias = np.asarray(bias, np.float64)
    rho_x, rho_h = (np.broadcast_to(u, bias.shape) * 2.0**GATE_BITS for u in (input_unit, state_unit))
    largest = np.maximum(rho_x, rho_h)
    bad = np.flatnonzero(~(np.isfinite(bias) & np.isfinite(largest) & (largest > 0) & (rho_x >= 0) & (rho_h >= 0)))
    if len(bad):
        n = int(bad[0])
        raise ValueError(
            f"row {n} of a gate has units {rho_x[n]:.3g}, {rho_h[n]:.3g} and bias {bias[n]:.3g}: not finite, or not "
            "above 0"
        )
    fraction, exponent = np.frexp(largest)
    exponent = exponent.astype(np.int64) + (round_half_up(fraction * 2.0**MULTIPLIER_BITS) == 2.0**MULTIPLIER_BITS)
    shift = MULTIPLIER_BITS - exponent
    if np.any((shift < 1) | (shift > 50)):
        n = int(np.flatnonzero((shift < 1) | (shift > 50))[0])
        raise ValueError(f"row {n} of a gate needs a shift of {shift[n]}, outside 1..50: check its weights' scales")
    scale = np.ldexp(1.0, shift)
    wide = round_half_up(bias * 2.0**GATE_BITS * scale)
    if np.any(np.abs(wide) >= BIAS_LIMIT):
        n = int(np.argmax(np.abs(wide)))
        raise ValueError(f"the bias {bias[n]:.3g} of row {n} of a gate exceeds 51 bits at a shift of {shift[n]}")
    return GateConstants(
        round_half_up(rho_x * scale).astype(np.int64),
        round_half_up(rho_h * scale).astype(np.int64),
        wide.astype(np.int64),
        shift,
    )


def preactivation(acc_x: Any, acc_h: Any, input_multiplier: Any, state_multiplier: Any, bias: Any, shift: Any) -> Any:
    """``z = sat16((acc_x m_x + acc_h m_h + b + 2^(S-1)) >> S)``; accumulators ``[..., N]``, constants ``[N]``."""
    total = acc_x * input_multiplier + acc_h * state_multiplier + bias
    return saturate((total + ((1 << shift) >> 1)) >> shift, -(2**15), 2**15 - 1)


def curve(z: Any, table: Any) -> Any:
    """A table's curve at ``z`` (-2^15..2^15 - 1); ``table`` of the kind of ``z``: NumPy, or an int64 tensor.

    >>> curve(np.array([0, 64, -32768]), TANH.astype(np.int64)).tolist()
    [0, 512, -32768]
    """
    below = (z + 2**15) >> 7
    low = table[below]
    return low + (((table[below + 1] - low) * (z & 127) + 64) >> 7)


def cell(i: Any, f: Any, g: Any, c: Any) -> Any:
    """``c' = sat16((16 f c + i g + 2^18) >> 19)``."""
    return saturate((16 * f * c + i * g + 2**18) >> 19, -(2**15), 2**15 - 1)


def cell_argument(c: Any) -> Any:
    """The cell state in units of the curves' argument, saturated: ``sat16(2 c)``."""
    return saturate(2 * c, -(2**15), 2**15 - 1)


def output(o: Any, tanh_c: Any) -> Any:
    """``h' = sat8((o tanh_c + 2^22) >> 23)``."""
    return saturate((o * tanh_c + 2**22) >> 23, -128, 127)


def lstm(z: Any, c: Any, sigmoid: Any, tanh: Any) -> tuple[Any, Any]:
    """Gates ``z`` ``[..., 4 H]`` (order i f g o) and cell state ``[..., H]`` -> ``h'`` and ``c'``."""
    hidden = c.shape[-1]
    i, f, g, o = (z[..., k * hidden : (k + 1) * hidden] for k in range(4))
    c = cell(curve(i, sigmoid), curve(f, sigmoid), curve(g, tanh), c)
    return output(curve(o, sigmoid), curve(cell_argument(c), tanh)), c


def squash(z: Any, tanh: Any) -> Any:
    """The joiner's ``sat8((tanh(z) + 2^7) >> 8)``, unit 2^-7."""
    return saturate((curve(z, tanh) + 2**7) >> 8, -128, 127)
