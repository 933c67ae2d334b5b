"""Packed weights: the bytes that a device stores for a matrix of codes, and back.

A weight ``codes`` [N, K] (int8) is padded to N a multiple of 8 and K a multiple of 32 and cut into panels of
8 rows. What is stored in the padding is the byte 0; the activations that meet it are zeros, so every product
there is zero whatever code a zero byte stands for, and the rows beyond N are never read. Predicted bytes
(:func:`packed_bytes`) are the written bytes, padding included.

A code is stored as a b-bit two's complement number q:

- grids ``symmetric`` and ``twos_complement``: q = c.
- grids ``odd`` and ``binary`` (codes of -(2^b - 1)..2^b - 1, odd): q = (c - 1) / 2. A kernel takes
  ``sum c x = 2 sum q x + sum x``. At 1 bit: a set bit is -1, a clear bit is +1.

Layouts, from the outermost index in (k counts inputs, r the 8 rows of a panel):

=====  ==========================================================================================
bits   bytes
=====  ==========================================================================================
8      ``[N/8][K/16][8][16]``: row r, byte j is q[r, k+j].
4      ``[N/8][K/32][8][16]``: row r, byte j is ``(q[r, k+j] & 15) | (q[r, k+16+j] & 15) << 4``.
5      ``[N/8][K/32][160]``: 128 bytes as for 4 bits (the low four bits of q), then two planes of
       16 bytes with its sign bit: plane h, byte j, bit r is bit 4 of q[r, k+16h+j].
1      ``[N/8][K/16][16]``: byte j, bit r is q[r, k+j] & 1.
2367   a stream of b-bit numbers, least significant bit first, in the order of the 8-bit layout: a
       loader expands it to containers in one pass.
=====  ==========================================================================================

The grid ``table`` (trained centroids) has codes of any value -127..127, at most 2^b different ones in a matrix. Its
bytes begin with the table, 2^b signed bytes in ascending order (the largest code repeated where there are fewer), and
q is the index into it less 2^(b-1). Predicted and written bytes include the table. At 8 bits it is ``symmetric``
without a table.

Where the contract of the formats is silent (order of the blocks, order and bits of the sign planes, polarity
of 1 bit, order of the stream) the lines above decide.
"""

from __future__ import annotations

import numpy as np

from kwsbench.arithmetic.codebook import check_bits

ROWS = 8
COLUMNS = 32


def code_range(bits: int, grid: str) -> tuple[int, int, int]:
    """Least code, largest code and the step between codes of a grid.

    Raises:
        ValueError: unknown grid, or a width that the grid does not have.

    >>> code_range(5, "odd"), code_range(4, "twos_complement"), code_range(8, "symmetric")
    ((-31, 31, 2), (-8, 7, 1), (-127, 127, 1))
    """
    bits = check_bits(bits)
    half = 2 ** (bits - 1)
    ranges = {
        "table": ((-127, 127, 1), range(1, 9)),
        "symmetric": ((1 - half, half - 1, 1), range(2, 9)),
        # 8-bit codes stop at -127: two products -128 * -128 wrap an int16 lane.
        "twos_complement": ((-half, half - 1, 1), range(2, 8)),
        "odd": ((1 - 2 * half, 2 * half - 1, 2), range(1, 8)),
        "binary": ((-1, 1, 2), range(1, 2)),
    }
    if grid not in ranges:
        raise ValueError(f"unknown grid {grid!r}; choose one of {sorted(ranges)}")
    codes, widths = ranges[grid]
    if bits not in widths:
        raise ValueError(f"the grid {grid!r} has {widths[0]} to {widths[-1]} bits, got {bits}")
    return codes


def padded_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """``(N, K)`` rounded up to multiples of 8 and 32."""
    n, k = shape
    if n < 1 or k < 1:
        raise ValueError(f"a weight needs at least one row and one column, got shape {tuple(shape)}")
    return -(-n // ROWS) * ROWS, -(-k // COLUMNS) * COLUMNS


def packed_bytes(shape: tuple[int, int], bits: int, grid: str = "odd") -> int:
    """Bytes that :func:`pack` writes for a weight of ``shape``, padding and table included.

    >>> packed_bytes((204, 620), 5)  # 208 x 640 codes
    83200
    """
    n, k = padded_shape(shape)
    return n * k * check_bits(bits) // 8 + _table_bytes(bits, grid)


def code_table(codes: np.ndarray, bits: int) -> np.ndarray:
    """The table of a matrix on the grid ``table``: int8 ``[2^b]``, ascending, the last code repeated.

    Raises:
        ValueError: the matrix has more than 2^b different codes.
    """
    counts = np.bincount(np.asarray(codes, np.int16).reshape(-1) + 128, minlength=256)  # a sort would take seconds
    distinct = np.flatnonzero(counts) - 128
    if len(distinct) > 2 ** check_bits(bits):
        raise ValueError(f"{len(distinct)} different codes do not fit a {bits}-bit table of {2**bits}")
    return np.append(distinct, np.repeat(distinct[-1], 2**bits - len(distinct))).astype(np.int8)


def _table_bytes(bits: int, grid: str) -> int:
    return 2**bits if grid == "table" and bits < 8 else 0


def pack(codes: np.ndarray, bits: int, grid: str) -> bytes:
    """Codes int8 ``[N, K]`` as the bytes of their layout.

    Raises:
        ValueError: not a matrix, or a code that the grid does not have (the first one is named).
    """
    codes = np.asarray(codes)
    if codes.ndim != 2:
        raise ValueError(f"pack takes a matrix of codes, got shape {codes.shape}")
    if grid == "table" and check_bits(bits) < 8:
        table = code_table(codes, bits)
        index = np.searchsorted(table, codes) - 2 ** (bits - 1)
        return table.tobytes() + _pack(index, bits)
    low, high, step = code_range(bits, grid)
    wide = codes.astype(np.int64)
    outside = (wide != codes) | (wide < low) | (wide > high) | ((wide - low) % step != 0)
    if np.any(outside):
        row, column = np.argwhere(outside)[0]
        raise ValueError(
            f"code {codes[row, column]} at row {row}, column {column} is not one of the {bits}-bit grid "
            f"{grid!r} ({low} to {high} in steps of {step})"
        )
    return _pack((wide - 1) // 2 if step == 2 else wide, bits)


def _pack(q: np.ndarray, bits: int) -> bytes:
    n, k = padded_shape(q.shape)
    padded = np.zeros((n, k), np.uint8)
    padded[: q.shape[0], : q.shape[1]] = (q & (2**bits - 1)).astype(np.uint8)
    return _WRITERS[bits](_panels(padded), bits).tobytes()


def unpack(data: bytes, shape: tuple[int, int], bits: int, grid: str) -> np.ndarray:
    """The int8 codes ``[N, K]`` that :func:`pack` wrote.

    Raises:
        ValueError: the number of bytes does not belong to this shape and width.
    """
    step = 1 if grid == "table" else code_range(bits, grid)[2]
    expected = packed_bytes(shape, bits, grid)
    if len(data) != expected:
        raise ValueError(f"{bits}-bit codes of shape {tuple(shape)} fill {expected} bytes, got {len(data)}")
    table = np.frombuffer(data[: _table_bytes(bits, grid)], np.int8)
    n, k = padded_shape(shape)
    panels = _READERS[bits](np.frombuffer(data[len(table) :], np.uint8), n, k, bits)
    stored = panels.transpose(0, 2, 1, 3).reshape(n, k)[: shape[0], : shape[1]].astype(np.int16)
    q = stored - ((stored >> (bits - 1)) << bits)  # sign
    if len(table):
        return table[q + 2 ** (bits - 1)]
    return (2 * q + 1 if step == 2 else q).astype(np.int8)


def _panels(padded: np.ndarray) -> np.ndarray:
    """uint8 ``[N, K]`` as ``[N/8, K/16, 8, 16]``: the order of the 8-bit layout."""
    n, k = padded.shape
    return padded.reshape(n // ROWS, ROWS, k // 16, 16).transpose(0, 2, 1, 3)


def _write_bytes(panels: np.ndarray, bits: int) -> np.ndarray:
    return panels


def _read_bytes(data: np.ndarray, n: int, k: int, bits: int) -> np.ndarray:
    return data.reshape(n // ROWS, k // 16, ROWS, 16)


def _write_nibbles(panels: np.ndarray, bits: int) -> np.ndarray:
    """``[N/8, K/32, 8, 16]``: columns 0..15 of a block in the low nibbles, 16..31 in the high ones."""
    return (panels[:, 0::2] & 15) | ((panels[:, 1::2] & 15) << 4)


def _read_nibbles(data: np.ndarray, n: int, k: int, bits: int) -> np.ndarray:
    blocks = data.reshape(n // ROWS, k // COLUMNS, ROWS, 16)
    return np.stack([blocks & 15, blocks >> 4], axis=2).reshape(n // ROWS, k // 16, ROWS, 16)


def _write_plane(panels: np.ndarray, bits: int) -> np.ndarray:
    """``[N/8, K/16, 16]``: the lowest bit of row r becomes bit r of byte j."""
    return np.packbits(panels & 1, axis=2, bitorder="little")[:, :, 0]


def _read_plane(data: np.ndarray, n: int, k: int, bits: int) -> np.ndarray:
    planes = data.reshape(n // ROWS, k // 16, 1, 16)
    return np.unpackbits(planes, axis=2, bitorder="little")


def _write_nibbles_and_signs(panels: np.ndarray, bits: int) -> np.ndarray:
    blocks = (*panels[:, 0::2].shape[:2], -1)
    nibbles = _write_nibbles(panels, bits).reshape(blocks)
    return np.concatenate([nibbles, _write_plane(panels >> 4, bits).reshape(blocks)], axis=2)


def _read_nibbles_and_signs(data: np.ndarray, n: int, k: int, bits: int) -> np.ndarray:
    blocks = data.reshape(n // ROWS, k // COLUMNS, 160)
    return _read_nibbles(blocks[..., :128], n, k, bits) | _read_plane(blocks[..., 128:], n, k, bits) << 4


def _write_stream(panels: np.ndarray, bits: int) -> np.ndarray:
    digits = (panels.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(digits, bitorder="little")


def _read_stream(data: np.ndarray, n: int, k: int, bits: int) -> np.ndarray:
    digits = np.unpackbits(data, bitorder="little").reshape(-1, bits)
    values = (digits << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    return values.reshape(n // ROWS, k // 16, ROWS, 16)


_STREAM_WIDTHS = (2, 3, 6, 7)
_WRITERS = {
    1: _write_plane,
    4: _write_nibbles,
    5: _write_nibbles_and_signs,
    8: _write_bytes,
    **dict.fromkeys(_STREAM_WIDTHS, _write_stream),
}
_READERS = {
    1: _read_plane,
    4: _read_nibbles,
    5: _read_nibbles_and_signs,
    8: _read_bytes,
    **dict.fromkeys(_STREAM_WIDTHS, _read_stream),
}
