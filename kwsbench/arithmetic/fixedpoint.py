"""Integer arithmetic of the bench: rounding, saturation, requantization.

One code for NumPy arrays and torch tensors. The training emulation, the NumPy reference and the lowering
all call these functions; the Numba kernels restate them as scalar loops and are tested equal.

Conventions: accumulators are int64 holding values that are proven to fit int32; shifts count bits to the
right; "half up" means a tie goes towards +infinity. The equations are written out in docs/arithmetic.md.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

INT32_MAX = 2**31 - 1


def round_half_up(x: Any) -> Any:
    """Nearest integer, ties towards +infinity, same float dtype as ``x``.

    Compares the fraction with 1/2 instead of computing ``floor(x + 1/2)``: in float32 that sum rounds
    0.49999997 up to 1, the one value where the textbook formula leaves the codebook's threshold.

    >>> round_half_up(np.array([-1.5, -0.5, 0.5, 2.5])).tolist()
    [-1.0, 0.0, 1.0, 3.0]
    """
    xp = _namespace(x)
    below = xp.floor(x)
    return xp.where(x - below >= 0.5, below + 1, below)


def saturate(x: Any, lo: int, hi: int) -> Any:
    """Clamp to ``[lo, hi]``."""
    return _namespace(x).clip(x, lo, hi)


def quantize_multiplier(ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Real multipliers as ``m * 2**-s`` with ``2**30 <= m < 2**31`` and ``1 <= s <= 62`` (int64 arrays).

    Args:
        ratio: positive float64 values, any shape (one per output channel).

    Raises:
        ValueError: a ratio is not positive and finite, or needs a shift outside 1..62.

    >>> [v.tolist() for v in quantize_multiplier(np.array([0.5, 0.75]))]
    [[1073741824, 1610612736], [31, 31]]
    """
    ratio = np.asarray(ratio, np.float64)
    if not np.all(np.isfinite(ratio) & (ratio > 0)):
        bad = ratio[~(np.isfinite(ratio) & (ratio > 0))].ravel()[0]
        raise ValueError(f"a requantization ratio must be positive and finite, got {bad!r}")
    fraction, exponent = np.frexp(ratio)
    multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    exponent = exponent.astype(np.int64)
    full = multiplier == 2**31
    multiplier = np.where(full, 2**30, multiplier)
    shift = 31 - np.where(full, exponent + 1, exponent)
    if np.any((shift < 1) | (shift > 62)):
        bad = ratio[(shift < 1) | (shift > 62)].ravel()[0]
        raise ValueError(f"the requantization ratio {bad!r} needs a shift outside 1..62: check the scales")
    return multiplier, shift


def requantize_single(acc: Any, multiplier: Any, shift: Any) -> Any:
    """``(acc * m + 2**(s-1)) >> s``: one rounding, half up (CMSIS-NN's single rounding). int64 in and out."""
    return (acc * multiplier + (1 << (shift - 1))) >> shift


def requantize_double(acc: Any, multiplier: Any, shift: Any) -> Any:
    """SQRDMULH, then a shift rounding half away from zero (the default of TFLite and CMSIS-NN)."""
    xp = _namespace(acc)
    high, right = _high_half(acc, multiplier, shift)
    half = (1 << right) >> 1
    magnitude = (xp.abs(high) + half) >> right
    return xp.where(high < 0, -magnitude, magnitude)


def requantize_double_up(acc: Any, multiplier: Any, shift: Any) -> Any:
    """SQRDMULH, then SRSHL: a shift rounding half up."""
    high, right = _high_half(acc, multiplier, shift)
    return (high + ((1 << right) >> 1)) >> right


REQUANTIZE = {
    "single": requantize_single,
    "double": requantize_double,
    "double_up": requantize_double_up,
}


def requantize(acc: Any, multiplier: Any, shift: Any, lo: int, hi: int, rounding: str = "single") -> Any:
    """Scale int32 accumulators to int8 range: ``clamp(acc * m * 2**-s, lo, hi)``.

    Args:
        acc: int64 array ``[..., N]`` with values that fit int32.
        multiplier, shift: int64 ``[N]`` from :func:`quantize_multiplier`.
        lo, hi: output range, for example 0 and 127 after a ReLU.
        rounding: "single", "double" or "double_up"; a field of the program, never a build flag.

    >>> requantize(np.array([3, -3]), np.int64(2**30), np.int64(31), -128, 127).tolist()
    [2, -1]
    """
    return saturate(REQUANTIZE[rounding](acc, multiplier, shift), lo, hi)


def requantize_unfolded(
    acc: Any, gain_codes: Any, offset_codes: Any, m1: int, m2: int, shift: int, lo: int, hi: int
) -> Any:
    """``clamp((acc A m1 + B m2 + 2**(S-1)) >> S, lo, hi)``: 8-bit gain codes A and offset codes B.

    ``acc`` int64 ``[..., N]``; ``gain_codes``, ``offset_codes`` int64 ``[N]``; the lowering proves
    ``|acc A m1| < 2**53`` and ``|B m2| < 2**53``.
    """
    y = (acc * gain_codes * m1 + offset_codes * m2 + ((1 << shift) >> 1)) >> shift
    return saturate(y, lo, hi)


def _high_half(acc: Any, multiplier: Any, shift: Any) -> tuple[Any, Any]:
    """SQRDMULH of ``acc << max(31 - s, 0)`` (saturated, as SQSHL does) with ``m``; and the shift left over."""
    left = saturate(31 - shift, 0, 31)
    right = saturate(shift - 31, 0, 31)
    acc = saturate(acc << left, -(2**31), INT32_MAX)
    return (acc * multiplier + 2**30) >> 31, right


def _namespace(x: Any) -> Any:
    """The module whose functions work on ``x``: numpy, or torch without importing it here."""
    return sys.modules["torch"] if type(x).__module__.startswith("torch") else np
