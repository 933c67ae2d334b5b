"""What every kernel does with its int32 accumulators: requantize to int8, by layer kind."""

from __future__ import annotations

import numpy as np

from kwsbench.integer.kernels.scalar import ROUNDINGS, finish_folded_loop, finish_unfolded_loop
from kwsbench.integer.program import Dense, UnfoldedDense


def finish(acc: np.ndarray, layer: Dense | UnfoldedDense) -> np.ndarray:
    """int32 accumulators ``[T, N]`` (bias included where the layer has one) -> int8 ``[T, N]``."""
    y = np.empty(acc.shape, np.int8)
    lo = 0 if layer.relu else -128
    if isinstance(layer, Dense):
        finish_folded_loop(acc, layer.multiplier, layer.shift, ROUNDINGS[layer.rounding], lo, 127, y)
    else:
        finish_unfolded_loop(acc, layer.gain_codes, layer.offset_codes, layer.m1, layer.m2, layer.shift, lo, y)
    return y


def bias_of(layer) -> np.ndarray:
    """int32 bias ``[N]`` that starts the accumulator; zero for an unfolded layer, whose offset comes later."""
    if isinstance(layer, UnfoldedDense):
        return np.zeros(len(layer.codes), np.int32)
    return layer.bias
