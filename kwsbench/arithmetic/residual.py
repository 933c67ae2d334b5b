"""Integer arithmetic of convolutional networks beside the convolution itself: ranges of activations, the residual
addition, the average (docs/arithmetic.md, sections 11 to 13).

One code for NumPy arrays and torch tensors: the training emulation, the NumPy reference and the lowering call these
functions; the Numba kernels restate them and are tested equal. Integers are int32 or wider, bounds are proven below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kwsbench.arithmetic.fixedpoint import quantize_multiplier, round_half_up, saturate

ACTIVATION_BITS = range(1, 9)
ADD_BITS = 20  # of the larger multiplier of an addition: 2 * 128 * 2^20 + 2^30 < 2^31
ADD_SHIFT = 31
POOLED = 2**24 - 1  # most values in a mean: 128 each, their sum fits int32
POOL_FREQUENCIES = 256  # most frequencies in a mean: their sum fits int16


@dataclass(frozen=True)
class AddConstants:
    """``y = (x multiplier + x' source_multiplier + 2^(shift-1)) >> shift``."""

    multiplier: int
    source_multiplier: int
    shift: int


def activation_range(bits: int, relu: bool) -> tuple[int, int]:
    """Lowest and highest code of activations: from 0 on where nothing is negative (``relu``), else two's complement.

    Raises:
        ValueError: no such width.

    >>> activation_range(4, True), activation_range(8, True), activation_range(4, False), activation_range(1, False)
    ((0, 15), (0, 127), (-8, 7), (-1, 0))
    """
    if bits not in ACTIVATION_BITS:
        raise ValueError(f"activations have 1 to 8 bits, got {bits}")
    if relu:
        return 0, min(2**bits - 1, 127)
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def relu6_range(bits: int, scale: float) -> tuple[int, int]:
    """Codes after ReLU6 where one unit is ``scale``: up to the code nearest to 6, and no further than the bits go.

    Raises:
        ValueError: no such width, or a unit so large that nothing but zero is left.

    >>> relu6_range(4, 0.5), relu6_range(4, 0.25)
    ((0, 12), (0, 15))
    """
    low, high = activation_range(bits, True)
    six = float(round_half_up(np.float64(6 / scale))) if scale > 0 else 0.0
    if not six >= 1:
        raise ValueError(f"a unit of {scale!r} leaves only zero between 0 and 6: calibrate the range again")
    return low, int(min(high, six))


def add_constants(s_x: float, s_source: float, s_y: float) -> AddConstants:
    """Section 12: the constants of ``y s_y ~ x s_x + x' s_source``.

    Raises:
        ValueError: a scale that is not positive and finite, or an output unit 2^19 times smaller than an input's.

    >>> add_constants(0.5, 0.25, 0.5)
    AddConstants(multiplier=524288, source_multiplier=262144, shift=19)
    """
    scales = (s_x, s_source, s_y)
    if not all(np.isfinite(s) and s > 0 for s in scales):
        raise ValueError(f"the scales of an addition must be positive and finite, got {scales}")
    ratio, source_ratio = float(s_x) / float(s_y), float(s_source) / float(s_y)
    shift = min(ADD_BITS - int(np.frexp(max(ratio, source_ratio))[1]), ADD_SHIFT)
    if shift < 1:
        raise ValueError(
            f"an addition with input units {s_x:.3g}, {s_source:.3g} and an output unit {s_y:.3g} needs a shift of "
            f"{shift}, outside 1..{ADD_SHIFT}: calibrate the ranges again"
        )
    multiplier, source_multiplier = (int(np.floor(r * 2.0**shift + 0.5)) for r in (ratio, source_ratio))
    return AddConstants(multiplier, source_multiplier, shift)


def add(x: Any, source: Any, constants: AddConstants, low: int, high: int) -> Any:
    """Section 12: codes of the sum, one rounding, half up. ``x``, ``source``: int32 or int64 codes of any one shape.

    >>> add(np.array([3, -3, 100]), np.array([1, -1, 100]), add_constants(0.5, 0.25, 0.5), -128, 127).tolist()
    [4, -3, 127]
    """
    half = 1 << (constants.shift - 1)
    total = x * constants.multiplier + source * constants.source_multiplier + half
    return saturate(total >> constants.shift, low, high)


def pool_constants(s_x: float, s_y: float, frames: int, frequencies: int) -> tuple[int, int]:
    """Section 13: multiplier and shift that turn the sum over ``frames * frequencies`` values into their mean.

    The mean is then ``fixedpoint.requantize(sum, multiplier, shift, low, high, rounding)``.

    Raises:
        ValueError: more values than an int32 sum takes, or scales out of proportion.

    >>> pool_constants(1.0, 1.0, 4, 2)
    (1073741824, 33)
    """
    if not 1 <= frames * frequencies <= POOLED:
        raise ValueError(f"a mean takes 1 to {POOLED} values, got {frames} frames of {frequencies}")
    multiplier, shift = quantize_multiplier(np.array(s_x / (s_y * (frames * frequencies)), np.float64))
    return int(multiplier), int(shift)
