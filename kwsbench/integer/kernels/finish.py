"""What every kernel does with its int32 accumulators: requantize to int8, by layer kind. Plain Numba loops."""

from __future__ import annotations

import numpy as np
from numba import njit

from kwsbench.integer.kernels.scalar import ROUNDINGS, clamp, requantize, requantize_unfolded
from kwsbench.integer.program import Dense, UnfoldedDense


def _finish_folded(acc, multiplier, shift, rounding, lo, y):
    for t in range(acc.shape[0]):
        for n in range(acc.shape[1]):
            value = requantize(acc[t, n], multiplier[n], shift[n], rounding)
            y[t, n] = np.int8(clamp(value, np.int64(lo), np.int64(127)))


def _finish_unfolded(acc, a, b, m1, m2, shift, lo, y):
    for t in range(acc.shape[0]):
        for n in range(acc.shape[1]):
            value = requantize_unfolded(acc[t, n], a[n], b[n], m1, m2, shift)
            y[t, n] = np.int8(clamp(value, np.int64(lo), np.int64(127)))


finish_folded_loop = njit(_finish_folded, cache=True)
finish_unfolded_loop = njit(_finish_unfolded, cache=True)


def finish(acc: np.ndarray, layer: Dense | UnfoldedDense) -> np.ndarray:
    """int32 accumulators ``[T, N]`` (bias included where the layer has one) -> int8 ``[T, N]``."""
    y = np.empty(acc.shape, np.int8)
    lo = 0 if layer.relu else -128
    if isinstance(layer, Dense):
        finish_folded_loop(acc, layer.multiplier, layer.shift, ROUNDINGS[layer.rounding], lo, y)
    else:
        finish_unfolded_loop(acc, layer.gain_codes, layer.offset_codes, layer.m1, layer.m2, layer.shift, lo, y)
    return y


def bias_of(layer) -> np.ndarray:
    """int32 bias ``[N]`` that starts the accumulator; zero for an unfolded layer, whose offset comes later."""
    if isinstance(layer, UnfoldedDense):
        return np.zeros(len(layer.codes), np.int32)
    return layer.bias
