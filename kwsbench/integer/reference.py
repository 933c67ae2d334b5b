"""The NumPy reference of an integer program: one short function per operation.

Slow where it must be, obvious everywhere; the kernels are tested equal to it bit for bit. Matrix products run
as float64 GEMM, which is exact for these integers (the program's proof bounds every partial sum far below 2^53).
"""

from __future__ import annotations

import numpy as np

from kwsbench.arithmetic import fixedpoint
from kwsbench.integer.program import Dense, InputQuantizer, OutputDense, UnfoldedDense


def quantize_input(frames: np.ndarray, quantizer: InputQuantizer, bits: int = 8) -> np.ndarray:
    """Features float32 ``[..., M]`` -> int8 ``[..., M]`` (int16 for 16 bits), every operation in float32."""
    frames = np.asarray(frames, np.float32)
    x = (frames - quantizer.mean) * quantizer.inverse_std / np.float32(quantizer.scale)
    half = 2 ** (bits - 1)
    return fixedpoint.saturate(fixedpoint.round_half_up(x), -half, half - 1).astype(f"int{bits}")


def accumulate(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """``sum_k c_k x_k``: int8 ``[T, K]`` and int8 ``[N, K]`` -> int64 ``[T, N]``."""
    return (x.astype(np.float64) @ codes.astype(np.float64).T).astype(np.int64)


def dense(x: np.ndarray, layer: Dense) -> np.ndarray:
    """Folded dense layer, int8 ``[T, K]`` -> int8 ``[T, N]`` (docs/arithmetic.md, section 2)."""
    acc = accumulate(x, layer.codes) + layer.bias.astype(np.int64)
    multiplier, shift = layer.multiplier.astype(np.int64), layer.shift.astype(np.int64)
    return fixedpoint.requantize(acc, multiplier, shift, _lowest(layer.relu), 127, layer.rounding).astype(np.int8)


def unfolded_dense(x: np.ndarray, layer: UnfoldedDense) -> np.ndarray:
    """Dense layer with 8-bit gain and offset codes, int8 -> int8 (section 3)."""
    acc = accumulate(x, layer.codes)
    a, b = layer.gain_codes.astype(np.int64), layer.offset_codes.astype(np.int64)
    y = fixedpoint.requantize_unfolded(acc, a, b, layer.m1, layer.m2, layer.shift, _lowest(layer.relu), 127)
    return y.astype(np.int8)


def output_dense(x: np.ndarray, layer: OutputDense) -> np.ndarray:
    """Last layer, int8 ``[T, K]`` -> raw int32 ``[T, N]`` (section 4)."""
    return (accumulate(x, layer.codes) + layer.bias).astype(np.int32)


OPERATIONS = {"dense": dense, "unfolded_dense": unfolded_dense, "output_dense": output_dense}


def _lowest(relu: bool) -> int:
    return 0 if relu else -128
