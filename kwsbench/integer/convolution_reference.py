"""The NumPy reference of an integer convolutional network, one short function per operation (docs/arithmetic.md,
sections 11 to 13).

Tensors are ``[time, frequency, channels]``. What looks back takes its past inputs and the new ones in one buffer.
Products run in float64, which is exact for these integers.
"""

from __future__ import annotations

import numpy as np

from kwsbench.arithmetic import fixedpoint, residual
from kwsbench.integer.convolution import Add, Conv, Pool
from kwsbench.integer.program import OutputDense
from kwsbench.integer.reference import output_dense


def conv(buffer: np.ndarray, operation: Conv) -> np.ndarray:
    """All outputs that ``k_t - s_t`` past frames and the new ones, int8 or int16 ``[., F, C]``, complete: int8."""
    acc = conv_sums(buffer, operation) + operation.bias.astype(np.int64)
    constants = operation.multiplier.astype(np.int64), operation.shift.astype(np.int64)
    return fixedpoint.requantize(acc, *constants, operation.low, operation.high, operation.rounding).astype(np.int8)


def conv_sums(buffer: np.ndarray, operation: Conv) -> np.ndarray:
    """``sum c x`` of those outputs, int64 ``[T', F', N]``, without the bias."""
    codes, (s_t, s_f) = operation.codes.astype(np.float64), operation.stride
    x = np.pad(buffer.astype(np.float64), ((0, 0), operation.padding, (0, 0)))
    n, k_t, k_f, _ = codes.shape
    frames, frequencies = output_frames(len(x), k_t, s_t), (x.shape[1] - k_f) // s_f + 1
    acc = np.zeros((frames, frequencies, n))
    for a in range(k_t):
        for e in range(k_f):
            part = x[a : a + frames * s_t : s_t, e : e + (frequencies - 1) * s_f + 1 : s_f][:frames]
            acc += part * codes[:, a, e, 0] if operation.depthwise else part @ codes[:, a, e].T
    return acc.astype(np.int64)


def output_frames(buffered: int, kernel: int, stride: int) -> int:
    """How many outputs so many frames complete, past ones included."""
    return (buffered - (kernel - stride)) // stride


def add(x: np.ndarray, source: np.ndarray, operation: Add) -> np.ndarray:
    """int8 and int8 of one shape -> int8."""
    constants = residual.AddConstants(operation.multiplier, operation.source_multiplier, operation.shift)
    pair = x.astype(np.int32), source.astype(np.int32)
    return residual.add(*pair, constants, operation.low, operation.high).astype(np.int8)


def frequency_sums(x: np.ndarray) -> np.ndarray:
    """What a mean remembers of frames int8 ``[T, F, C]``: int16 ``[T, C]``, or the codes themselves where F = 1."""
    return x[:, 0] if x.shape[1] == 1 else x.sum(axis=1, dtype=np.int16)


def pool(buffer: np.ndarray, operation: Pool) -> np.ndarray:
    """``frames - 1`` past and T new sums over frequency, ``[., C]`` -> int8 ``[T, 1, C]``."""
    count = len(buffer) - operation.frames + 1
    sums = np.cumsum(np.concatenate([np.zeros_like(buffer[:1]), buffer]), axis=0, dtype=np.int64)
    acc = sums[operation.frames :] - sums[:count]
    constants = np.int64(operation.multiplier), np.int64(operation.shift)
    y = fixedpoint.requantize(acc, *constants, operation.low, operation.high, operation.rounding)
    return y.astype(np.int8)[:, None]


def output(x: np.ndarray, operation: OutputDense) -> np.ndarray:
    """int8 ``[T, 1, C]`` -> raw int32 ``[T, labels]``."""
    return output_dense(x[:, 0], operation)
