"""Integer convolution, addition and average in Numba, int32 accumulators that wrap as the instructions do.

Tensors are ``[time, frequency, channels]``; the innermost loop always runs over contiguous outputs, so that LLVM
vectorises it. A window of the input is ``segments`` pieces of ``length`` contiguous values, one ``row`` apart: a piece
per frame of the kernel, or a single one where the kernel spans all frequencies (all of a one-dimensional network).
Four inputs are multiplied at a time: an accumulator is loaded and stored once for four products. A 1 x 1 convolution
is the same loop with one short piece, a matrix product.

What must not be promoted to int64 is cast; every loop stands in this file or, with the arithmetic that it calls, in
scalar.py (which tells why).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kwsbench.integer.convolution import Add, Conv, Pool
from kwsbench.integer.convolution_reference import output_frames
from kwsbench.integer.kernels import neon
from kwsbench.integer.kernels.scalar import ROUNDINGS, finish_folded_loop
from kwsbench.integer.program import OutputDense


def _accumulate(x, codes, bias, row, time_step, frequency_step, acc):
    """``x`` flat; ``codes`` int8 ``[segments, length, N]``; fills ``acc`` int32 ``[T', F', N]``."""
    segments, length, outputs = codes.shape
    whole = length - length % 4
    for t in range(acc.shape[0]):
        for f in range(acc.shape[1]):
            out = acc[t, f]
            for n in range(outputs):
                out[n] = bias[n]
            for a in range(segments):
                start = t * time_step + a * row + f * frequency_step
                window = x[start : start + length]
                for i in range(0, whole, 4):
                    x0, x1 = np.int32(window[i]), np.int32(window[i + 1])
                    x2, x3 = np.int32(window[i + 2]), np.int32(window[i + 3])
                    c0, c1, c2, c3 = codes[a, i], codes[a, i + 1], codes[a, i + 2], codes[a, i + 3]
                    for n in range(outputs):
                        low = np.int32(np.int32(x0 * np.int32(c0[n])) + np.int32(x1 * np.int32(c1[n])))
                        high = np.int32(np.int32(x2 * np.int32(c2[n])) + np.int32(x3 * np.int32(c3[n])))
                        out[n] = np.int32(out[n] + np.int32(low + high))
                for i in range(whole, length):
                    x0, c0 = np.int32(window[i]), codes[a, i]
                    for n in range(outputs):
                        out[n] = np.int32(out[n] + np.int32(x0 * np.int32(c0[n])))


def _accumulate_depthwise(x, codes, bias, time_stride, frequency_stride, acc):
    """``x`` ``[., F, N]``; ``codes`` int8 ``[k_t, k_f, N]``; fills ``acc`` int32 ``[T', F', N]``."""
    frames, frequencies, outputs = codes.shape
    for t in range(acc.shape[0]):
        for f in range(acc.shape[1]):
            out = acc[t, f]
            for n in range(outputs):
                out[n] = bias[n]
            for a in range(frames):
                for e in range(frequencies):
                    values, c = x[t * time_stride + a, f * frequency_stride + e], codes[a, e]
                    for n in range(outputs):
                        out[n] = np.int32(out[n] + np.int32(np.int32(values[n]) * np.int32(c[n])))


def _add(x, source, multiplier, source_multiplier, shift, low, high, y):
    half = np.int32(1) << np.int32(shift - 1)
    multiplier, source_multiplier, shift = np.int32(multiplier), np.int32(source_multiplier), np.int32(shift)
    for i in range(len(x)):
        products = np.int32(np.int32(x[i]) * multiplier) + np.int32(np.int32(source[i]) * source_multiplier)
        value = np.int32(np.int32(products) + half) >> shift
        y[i] = np.int8(min(max(value, np.int32(low)), np.int32(high)))


def _sliding_sums(buffer, frames, acc):
    """Sums int32 ``[T, C]`` of ``frames`` rows; ``buffer`` ``[frames - 1 + T, C]``."""
    if len(acc) == 0:
        return
    acc[0] = 0
    for t in range(frames):
        for c in range(acc.shape[1]):
            acc[0, c] = np.int32(acc[0, c] + np.int32(buffer[t, c]))
    for t in range(1, len(acc)):
        for c in range(acc.shape[1]):
            moved = np.int32(np.int32(buffer[t + frames - 1, c]) - np.int32(buffer[t - 1, c]))
            acc[t, c] = np.int32(acc[t - 1, c] + moved)


accumulate = njit(_accumulate, cache=True)
accumulate_depthwise = njit(_accumulate_depthwise, cache=True)
add_loop = njit(_add, cache=True)
sliding_sums = njit(_sliding_sums, cache=True)


def conv(buffer: np.ndarray, operation: Conv) -> np.ndarray:
    """All outputs that ``k_t - s_t`` past frames and the new ones, int8 or int16 ``[., F, C]``, complete: int8."""
    acc = conv_sums(buffer, operation)
    y = np.empty(acc.shape, np.int8)
    shape, rounding = (-1, acc.shape[2]), ROUNDINGS[operation.rounding]
    constants = operation.multiplier, operation.shift, rounding, operation.low, operation.high
    finish_folded_loop(acc.reshape(shape), *constants, y.reshape(shape))
    return y


def conv_sums(buffer: np.ndarray, operation: Conv) -> np.ndarray:
    """``bias + sum c x`` of those outputs, int32 ``[T', F', N]``."""
    x = _padded(buffer, *operation.padding)
    frequencies, channels = x.shape[1:]
    n, k_t, k_f, _ = operation.codes.shape
    s_t, s_f = operation.stride
    acc = np.empty((output_frames(len(x), k_t, s_t), (frequencies - k_f) // s_f + 1, n), np.int32)
    if operation.depthwise:
        codes = np.ascontiguousarray(operation.codes[..., 0].transpose(1, 2, 0))
        accumulate_depthwise(x, codes, operation.bias, s_t, s_f, acc)
        return acc
    row = frequencies * channels
    pieces = (k_t, k_f * channels) if k_f < frequencies else (1, k_t * row)
    codes = np.ascontiguousarray(operation.codes.reshape(n, *pieces).transpose(1, 2, 0))
    accumulate(x.reshape(-1), codes, operation.bias, row, s_t * row, s_f * channels, acc)
    return acc


def add(x: np.ndarray, source: np.ndarray, operation: Add) -> np.ndarray:
    """int8 and int8 of one shape -> int8."""
    y = np.empty(x.size, np.int8)
    constants = operation.multiplier, operation.source_multiplier, operation.shift, operation.low, operation.high
    add_loop(x.reshape(-1), source.reshape(-1), *constants, y)
    return y.reshape(x.shape)


def pool(buffer: np.ndarray, operation: Pool) -> np.ndarray:
    """``frames - 1`` past and T new sums over frequency, ``[., C]`` -> int8 ``[T, 1, C]``."""
    channels = buffer.shape[1]
    acc = np.empty((len(buffer) - operation.frames + 1, channels), np.int32)
    sliding_sums(np.ascontiguousarray(buffer), operation.frames, acc)
    y = np.empty(acc.shape, np.int8)
    constants = np.full(channels, operation.multiplier, np.int32), np.full(channels, operation.shift, np.int32)
    finish_folded_loop(acc, *constants, ROUNDINGS[operation.rounding], operation.low, operation.high, y)
    return y[:, None]


def output(x: np.ndarray, operation: OutputDense) -> np.ndarray:
    """int8 ``[T, 1, C]`` -> raw int32 ``[T, labels]``."""
    return neon.sdot(np.ascontiguousarray(x[:, 0]), operation)


def _padded(buffer: np.ndarray, below: int, above: int) -> np.ndarray:
    """``[T, F, C]`` with zeros along frequency, contiguous."""
    if not (below or above):
        return np.ascontiguousarray(buffer)
    frames, frequencies, channels = buffer.shape
    x = np.zeros((frames, below + frequencies + above, channels), buffer.dtype)
    x[:, below : below + frequencies] = buffer
    return x
