"""From float layer parameters to integer constants (docs/arithmetic.md, sections 2 to 4). NumPy, float64.

The training emulation and the lowering both call these functions, so they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kwsbench.arithmetic.fixedpoint import quantize_multiplier, round_half_up

BIAS_MAX = 2**30
# A constant channel on a grid without zero: y = const while |sum c x| stays below half of this.
CONSTANT_UNIT = 2**23
GRIDS_WITH_ZERO = ("symmetric", "twos_complement")


@dataclass(frozen=True, eq=False)
class Folded:
    """Constants of a folded layer: int64 arrays ``[N]``; ``row_factor`` in {-1, 0, +1} multiplies the codes."""

    row_factor: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, eq=False)
class Unfolded:
    """Constants of an unfolded layer: 8-bit codes A and B ``[N]``, and m1, m2, S of the layer."""

    gain_codes: np.ndarray
    offset_codes: np.ndarray
    m1: int
    m2: int
    shift: int


def fold(
    g: np.ndarray,
    offset: np.ndarray,
    weight_step: np.ndarray,
    s_x: float,
    s_y: float,
    grid: str,
    gemm_bound: int,
) -> Folded:
    """Section 2. ``g``, ``offset`` float64 ``[N]``, ``weight_step`` ``[1]`` or ``[N]``.

    ``gemm_bound`` is the largest ``sum |c| max|x|`` of the layer.

    Raises:
        ValueError: a constant channel that its grid cannot express, or a gain or offset that is not finite (named).
    """
    _check_finite(g, offset, weight_step)
    unit = s_x * np.broadcast_to(weight_step, g.shape) * np.abs(g)  # real value of one accumulator unit
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        bias = round_half_up(offset / unit)
    constant = (unit / s_y < 2.0**-30) | ~(np.abs(bias) <= BIAS_MAX)
    row_factor = np.where(g < 0, -1, 1)
    multiplier, shift = quantize_multiplier(np.where(constant, 0.5, unit / s_y))
    bias = np.where(constant, 0, bias).astype(np.int64)
    if np.any(constant):
        level = np.clip(round_half_up(offset / s_y), -128, 127).astype(np.int64)
        if grid in GRIDS_WITH_ZERO:
            row_factor = np.where(constant, 0, row_factor)
        elif gemm_bound >= CONSTANT_UNIT // 2:
            raise ValueError(
                f"channel {int(np.flatnonzero(constant)[0])} has a gain of zero, and its {grid} weights cannot "
                "become zero: retrain, or give this layer a grid with a zero"
            )
        bias = np.where(constant, level * CONSTANT_UNIT, bias)
        multiplier = np.where(constant, 2**30, multiplier)
        shift = np.where(constant, 53, shift)
    return Folded(row_factor, bias, multiplier, shift)


def unfold(g: np.ndarray, offset: np.ndarray, weight_step: np.ndarray, s_x: float, s_y: float) -> Unfolded:
    """Section 3: 8-bit codes for gain and offset, and the layer's two multipliers on one shift.

    Raises:
        ValueError: the shift is out of range, or a gain or offset is not finite (named).
    """
    _check_finite(g, offset, weight_step)
    if len(weight_step) > 1:
        g, step = g * weight_step, 1.0
    else:
        step = float(weight_step[0])
    s_a, s_b = _code_scale(g), _code_scale(offset)
    fraction, exponent = np.frexp(s_x * step * s_a / s_y)
    m1, exponent = int(np.floor(fraction * 2**15 + 0.5)), int(exponent)
    if m1 == 2**15:
        m1, exponent = 2**14, exponent + 1
    shift = 15 - exponent
    if not 1 <= shift <= 46:
        raise ValueError(
            f"the unfolded layer needs a shift of {shift}, outside 1..46 (input scale {s_x:.3g}, output scale "
            f"{s_y:.3g}, largest gain {np.max(np.abs(g)):.3g}): calibrate the ranges again"
        )
    m2 = int(np.floor(2.0**shift * s_b / s_y + 0.5))
    return Unfolded(_code(g, s_a), _code(offset, s_b), m1, m2, shift)


def output_bias(bias: np.ndarray, unit: np.ndarray, unfolded: bool) -> np.ndarray:
    """Section 4: int64 bias ``[N]`` of the last layer; ``unit = s_x s_w`` is ``[1]`` or ``[N]``.

    Raises:
        ValueError: it does not fit ``|b| <= 2**30``, or is not finite.
    """
    _check_finite(np.ones_like(bias), bias, unit)
    if unfolded:
        scale = _code_scale(bias)
        bias = _code(bias, scale) * scale
    b = round_half_up(bias / unit)
    if np.max(np.abs(b)) > BIAS_MAX:
        raise ValueError(f"the last layer's bias {np.max(np.abs(bias)):.3g} exceeds 2^30 accumulator units")
    return np.asarray(b, np.int64)


def _check_finite(g: np.ndarray, offset: np.ndarray, step: np.ndarray) -> None:
    """NaN would turn into integers without a word: a code, or a constant channel."""
    for name, values in (("gain", g), ("offset", offset), ("weight step", step)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(f"the {name} of channel {bad[0]} is {values[bad[0]]}: the parameters are not finite")


def _code_scale(x: np.ndarray) -> float:
    peak = float(np.max(np.abs(x)))
    return peak / 127 if peak > 0 else 1.0


def _code(x: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(round_half_up(x / scale), -127, 127).astype(np.int64)
