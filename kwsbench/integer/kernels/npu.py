"""A neural accelerator in Numba: 1- and 5-bit weights expanded on the fly, narrow accumulators.

The weight memory holds each row as a stream of b-bit indices, least significant bit first, rows padded to whole
bytes; an index expands to a code by a table of 2^b entries. This layout is our model: the paper names only the bit
widths. Three accumulators (docs/arithmetic.md, section 7): ``acc32`` exact, ``acc16`` wrapping,
``sat16`` saturating after every addition in order. Overflows are counted per layer and returned, never hidden.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kwsbench.export.pack import code_range, code_table
from kwsbench.integer.kernels.finish import bias_of, finish
from kwsbench.integer.program import Layer, OutputDense

ACC32, ACC16, SAT16 = 0, 1, 2
ACCUMULATORS = {"acc32": ACC32, "acc16": ACC16, "sat16": SAT16}
NPU_BITS = (1, 5)


def weight_stream(codes: np.ndarray, bits: int, grid: str) -> tuple[np.ndarray, np.ndarray]:
    """Bit stream uint8 ``[N, ceil(K bits / 8)]`` of int8 codes ``[N, K]``, and the table of its codes, int8 ``[2^b]``.

    Raises:
        ValueError: the accelerator has no such width, or a code is off its grid.
    """
    if bits not in NPU_BITS:
        raise ValueError(f"the accelerator holds weights of {NPU_BITS} bits, got {bits}; run them on NEON")
    if grid == "table":
        table = code_table(codes, bits)
    else:
        low, high, stride = code_range(bits, grid)
        table = np.arange(low, high + 1, stride, dtype=np.int8)
    index = np.searchsorted(table, codes).clip(0, len(table) - 1)
    if np.any(table[index] != codes):
        raise ValueError(f"a weight code lies off the {bits}-bit {grid} grid")
    planes = (index[..., None] >> np.arange(bits)) & 1  # [N, K, bits]
    stream = np.packbits(planes.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little")
    return stream, table


def _accumulate(x, stream, bits, table, bias, accumulator, acc):
    """Fills ``acc`` and returns how many additions left int16 (sat16) or final sums did (acc16)."""
    overflows = 0
    for n in range(acc.shape[1]):
        for t in range(acc.shape[0]):
            exact = np.int64(bias[n])
            total = np.int64(bias[n])
            if accumulator == SAT16:
                total = min(max(total, np.int64(-32768)), np.int64(32767))
                overflows += total != exact
            for k in range(x.shape[1]):
                index = 0
                for b in range(bits):
                    position = k * bits + b
                    index |= ((stream[n, position >> 3] >> (position & 7)) & 1) << b
                total += np.int64(x[t, k]) * np.int64(table[index])
                if accumulator == SAT16:
                    clipped = min(max(total, np.int64(-32768)), np.int64(32767))
                    overflows += clipped != total
                    total = clipped
            if accumulator == ACC16:
                wrapped = np.int64(np.int16(total & 0xFFFF))
                overflows += wrapped != total
                total = wrapped
            acc[t, n] = np.int32(total)
    return overflows


accumulate = njit(_accumulate, cache=True)


def layer_outputs(x: np.ndarray, layer: Layer, accumulator: str = "acc32") -> tuple[np.ndarray, int]:
    """One layer: int8 ``[T, K]`` -> int8 ``[T, N]`` (int32 for the last), and the number of overflows."""
    if accumulator not in ACCUMULATORS:
        raise ValueError(f"accumulator must be one of {sorted(ACCUMULATORS)}, got {accumulator!r}")
    stream, table = weight_stream(layer.codes, layer.weight_bits, layer.grid)
    acc = np.empty((len(x), len(layer.codes)), np.int32)
    bits, mode = layer.weight_bits, ACCUMULATORS[accumulator]
    overflows = int(accumulate(x, stream, bits, table, bias_of(layer), mode, acc))
    return (acc if isinstance(layer, OutputDense) else finish(acc, layer)), overflows


def acc32(x: np.ndarray, layer: Layer) -> np.ndarray:
    """One layer with the exact accumulator."""
    return layer_outputs(x, layer)[0]
