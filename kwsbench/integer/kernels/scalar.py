"""Scalar integer operations for the Numba kernels, restated from arithmetic.fixedpoint and tested equal to it, and the
loops that apply them to a layer's accumulators.

Numba promotes int8 * int8 to int64, which hides wraps: every operation that must wrap or saturate is cast. The loops
stand in this file because Numba's cache on disk is renewed when the file of the cached function changes, not
when a function that it calls does: from another file they would go on running the old arithmetic after an edit here.
"""

import numpy as np
from numba import njit

SINGLE, DOUBLE, DOUBLE_UP = 0, 1, 2
ROUNDINGS = {"single": SINGLE, "double": DOUBLE, "double_up": DOUBLE_UP}


def _clamp(y, lo, hi):
    return min(max(y, lo), hi)


def _requantize(acc, multiplier, shift, rounding):
    """One int32 accumulator (as int64) to the unclamped output, in one of the three rounding modes."""
    acc, multiplier, shift = np.int64(acc), np.int64(multiplier), np.int64(shift)
    if rounding == SINGLE:
        return (acc * multiplier + (np.int64(1) << (shift - 1))) >> shift
    left = max(np.int64(31) - shift, np.int64(0))
    right = max(shift - np.int64(31), np.int64(0))
    shifted = _clamp(acc << left, np.int64(-(2**31)), np.int64(2**31 - 1))
    high = (shifted * multiplier + np.int64(2**30)) >> np.int64(31)
    half = (np.int64(1) << right) >> np.int64(1)
    if rounding == DOUBLE_UP:
        return (high + half) >> right
    if high < 0:
        return -((-high + half) >> right)
    return (high + half) >> right


def _requantize_unfolded(acc, a, b, m1, m2, shift):
    """``(acc A m1 + B m2 + 2^(S-1)) >> S`` for one accumulator."""
    total = np.int64(acc) * np.int64(a) * np.int64(m1) + np.int64(b) * np.int64(m2)
    return (total + ((np.int64(1) << np.int64(shift)) >> np.int64(1))) >> np.int64(shift)


_clamp = njit(_clamp)
requantize = njit(_requantize)
requantize_unfolded = njit(_requantize_unfolded)
clamp = _clamp


def _finish_folded(acc, multiplier, shift, rounding, lo, hi, y):
    for t in range(acc.shape[0]):
        for n in range(acc.shape[1]):
            value = requantize(acc[t, n], multiplier[n], shift[n], rounding)
            y[t, n] = np.int8(clamp(value, np.int64(lo), np.int64(hi)))


def _finish_unfolded(acc, a, b, m1, m2, shift, lo, y):
    for t in range(acc.shape[0]):
        for n in range(acc.shape[1]):
            value = requantize_unfolded(acc[t, n], a[n], b[n], m1, m2, shift)
            y[t, n] = np.int8(clamp(value, np.int64(lo), np.int64(127)))


finish_folded_loop = njit(_finish_folded, cache=True)
finish_unfolded_loop = njit(_finish_unfolded, cache=True)


def _codes_of_rows(acc, bias, multiplier, shift, rounding, low, high, y):
    # The training emulation's: integers arrive and leave as floats.
    for t in range(acc.shape[0]):
        for n in range(acc.shape[1]):
            total = np.int64(acc[t, n]) + np.int64(bias[n])
            y[t, n] = clamp(requantize(total, multiplier[n], shift[n], rounding), low, high)


codes_of_rows = njit(_codes_of_rows, cache=True)
