"""How a matrix of codes lies in memory for the matrix-vector kernels (matvec.py), at its own width.

A kernel works on unsigned indices ``u`` of b bits; a code is ``c = a u + b`` on an even grid, or ``c = table[u]``:

    y = sum c x = a sum u x + b sum x            sum x once per vector: the zero of a grid costs nothing

An index is cut into parts of 4, 2 and 1 bits (8 bits: one part), the lowest first: 5 = 4 + 1, 3 = 2 + 1, 7 = 4 + 2 + 1.
A byte of a part of p bits holds 8/p fields, of as many columns. Columns are padded to a multiple of 32 (``x`` is 0
there).

``blocks`` (for dot-product instructions): rows padded to 16, panels of 16 rows, in a panel blocks of 32 columns. A
block has 8 groups of 4 columns; a vector of 64 bytes holds, byte 4 r + j, column j of a group for row r. Part p fills p
vectors, field f of vector v is group v 8/p + f. So a vector multiplies four inputs, repeated 16 times, and lane r of
the result is row r.

``rows`` (for plain loops): each row by itself; byte i of part p, field f, is column f n + i, n = padded columns p/8.

A table is stored behind its matrix as ``c + 128``, repeated to 64 bytes (7 bits: 128).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kwsbench.export.pack import code_range, code_table

PARTS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
COLUMNS = 32  # of a block
ROWS = 16  # of a panel
GROUPS, IN_GROUP = 8, 4


@dataclass(frozen=True, eq=False)
class Laid:
    """A matrix as a kernel reads it: ``data`` uint8, its table (if any) from ``table`` on; ``c = scale u + offset``."""

    data: np.ndarray
    shape: tuple[int, int]
    bits: int
    table: int | None
    scale: int
    offset: int


def lay_blocks(codes: np.ndarray, bits: int, grid: str) -> Laid:
    """Codes int8 ``[N, K]`` in the layout ``blocks``.

    Raises:
        ValueError: a code that the grid does not have.
    """
    u, table, scale, offset = indices(codes, bits, grid)
    padded = _padded(u, ROWS)
    n, k = padded.shape
    blocks = padded.reshape(n // ROWS, ROWS, k // COLUMNS, GROUPS, IN_GROUP).transpose(0, 2, 3, 1, 4)
    blocks = blocks.reshape(n // ROWS, k // COLUMNS, GROUPS, ROWS * IN_GROUP)
    data = np.concatenate(
        [_fields(part, width, 2).reshape(*part.shape[:2], -1) for part, width in _cut(blocks, bits)], 2
    )
    return _laid(data, codes, bits, table, scale, offset)


def lay_rows(codes: np.ndarray, bits: int, grid: str) -> Laid:
    """Codes int8 ``[N, K]`` in the layout ``rows``.

    Raises:
        ValueError: a code that the grid does not have.
    """
    u, table, scale, offset = indices(codes, bits, grid)
    padded = _padded(u, 1)
    n = len(padded)
    parts = [
        _fields(part.reshape(n, 8 // width, -1).swapaxes(1, 2), width, 2).reshape(n, -1)
        for part, width in _cut(padded, bits)
    ]
    return _laid(np.concatenate(parts, axis=1), codes, bits, table, scale, offset)


def indices(codes: np.ndarray, bits: int, grid: str) -> tuple[np.ndarray, np.ndarray | None, int, int]:
    """Indices uint8 ``[N, K]``, the table (int8 ``[2^b]``, or None) and ``a``, ``b`` of ``c = a u + b``.

    Raises:
        ValueError: a code that the grid does not have.
    """
    if grid == "table" and bits < 8:
        table = code_table(codes, bits)
        u = np.searchsorted(table, np.arange(-128, 128)).astype(np.uint8)[codes.astype(np.int16) + 128]
        if bits == 1:  # two values are an even grid
            return u, None, int(table[1]) - int(table[0]), int(table[0])
        return u, table, 1, -128
    low, high, step = code_range(bits, grid)
    scale, offset = (2, low) if step == 2 else (1, -(2 ** (bits - 1)))
    if codes.min() < low or codes.max() > high or (step == 2 and np.any(codes & 1 == 0)):
        raise ValueError(f"a code lies off the {bits}-bit grid {grid!r} ({low} to {high} in steps of {step})")
    return ((codes.astype(np.int16) - offset) // scale).astype(np.uint8), None, scale, offset


def _padded(u: np.ndarray, rows: int) -> np.ndarray:
    n, k = u.shape
    padded = np.zeros((-(-n // rows) * rows, -(-k // COLUMNS) * COLUMNS), np.uint8)
    padded[:n, :k] = u
    return padded


def _cut(u: np.ndarray, bits: int) -> list[tuple[np.ndarray, int]]:
    """The parts of indices and their widths, lowest first."""
    low, parts = 0, []
    for width in PARTS[bits]:
        parts.append(((u >> low) & (2**width - 1), width))
        low += width
    return parts


def _fields(part: np.ndarray, width: int, axis: int) -> np.ndarray:
    """Along ``axis``, every 8/width neighbours become the fields of one byte, the first lowest."""
    fields = 8 // width
    split = part.reshape(*part.shape[:axis], part.shape[axis] // fields, fields, *part.shape[axis + 1 :])
    shifts = (np.arange(fields) * width).reshape(-1, *[1] * (split.ndim - axis - 2)).astype(np.uint8)
    return np.bitwise_or.reduce(split << shifts, axis=axis + 1)


def _laid(data: np.ndarray, codes: np.ndarray, bits: int, table: np.ndarray | None, scale: int, offset: int) -> Laid:
    flat = np.ascontiguousarray(data).reshape(-1)
    if table is None:
        return Laid(flat, codes.shape, bits, None, scale, offset)
    repeated = np.resize(table.astype(np.int16) + 128, max(64, 2**bits)).astype(np.uint8)
    return Laid(np.concatenate([flat, repeated]), codes.shape, bits, len(flat), scale, offset)
