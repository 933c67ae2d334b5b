"""NEON int8 kernels in Numba: weights of any width in 8-bit containers, one output at a time.

``lanes`` is the Armv8.0 model without dot product: eight int16 lanes, SMLAL wraps, SADALP widens to int32 on
the schedule that the codes allow (docs/arithmetic.md, section 6). ``sdot`` is Armv8.2: int32 directly. Both equal the
reference bit for bit; the lane model equals it *because* the schedule is proven, not because it cannot wrap.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kwsbench.integer.kernels.finish import bias_of, finish
from kwsbench.integer.program import Layer, OutputDense


def lane_products(codes: np.ndarray, max_abs_input: int) -> int:
    """Products an int16 lane takes before it must be widened: ``floor(32767 / (max|c| max|x|))``, at least 1."""
    largest = max(1, int(np.max(np.abs(codes.astype(np.int64)))))
    return max(1, 32767 // (largest * max_abs_input))


def _accumulate_lanes(x, codes, bias, products, acc):
    lanes = np.zeros(8, np.int16)
    for t in range(x.shape[0]):
        for n in range(codes.shape[0]):
            total = np.int32(bias[n])
            lanes[:] = 0
            held = 0
            for k in range(0, codes.shape[1], 8):
                for j in range(min(8, codes.shape[1] - k)):
                    product = np.int16(np.int32(x[t, k + j]) * np.int32(codes[n, k + j]))  # SMULL
                    lanes[j] = np.int16(np.int32(lanes[j]) + np.int32(product))  # SMLAL wraps
                held += 1
                if held == products:
                    for j in range(8):
                        total = np.int32(total + np.int32(lanes[j]))  # SADALP
                    lanes[:] = 0
                    held = 0
            for j in range(8):
                total = np.int32(total + np.int32(lanes[j]))
            acc[t, n] = total


def _accumulate_sdot(x, codes, bias, acc):
    for t in range(x.shape[0]):
        for n in range(codes.shape[0]):
            total = np.int32(bias[n])
            for k in range(codes.shape[1]):
                total = np.int32(total + np.int32(x[t, k]) * np.int32(codes[n, k]))
            acc[t, n] = total


accumulate_lanes = njit(_accumulate_lanes, cache=True)
accumulate_sdot = njit(_accumulate_sdot, cache=True)


def lanes(x: np.ndarray, layer: Layer) -> np.ndarray:
    """One layer by the Armv8.0 lane model: int8 ``[T, K]`` -> int8 ``[T, N]``, or int32 for the last layer."""
    acc = np.empty((len(x), len(layer.codes)), np.int32)
    products = lane_products(layer.codes, layer.proof.max_abs_input)
    accumulate_lanes(x, layer.codes, bias_of(layer), products, acc)
    return acc if isinstance(layer, OutputDense) else finish(acc, layer)


def sdot(x: np.ndarray, layer: Layer) -> np.ndarray:
    """One layer by SDOT (Armv8.2): int8 ``[T, K]`` -> int8 ``[T, N]``, or int32 for the last layer."""
    acc = np.empty((len(x), len(layer.codes)), np.int32)
    accumulate_sdot(x, layer.codes, bias_of(layer), acc)
    return acc if isinstance(layer, OutputDense) else finish(acc, layer)
