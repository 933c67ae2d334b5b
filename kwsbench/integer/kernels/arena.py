"""Several packed matrices one behind the other in memory, and their descriptions for the kernels (matvec.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kwsbench.integer.kernels import matvec
from kwsbench.integer.kernels.layout import Laid, lay_blocks, lay_rows
from kwsbench.integer.recognizer import Matrix

LINE = 64  # bytes of a cache line: every matrix begins at one


# Layouts of a matrix. "widened": rows with 8 bits to a code, for tables where there is no permutation of bytes.
LAYOUTS = {
    "blocks": lay_blocks,
    "rows": lay_rows,
    "widened": lambda codes, bits, grid: lay_rows(codes, 8, "symmetric"),
}


@dataclass(frozen=True, eq=False)
class Arena:
    """``data`` uint8, begins at a cache line; ``descriptions`` int64 ``[matrices, FIELDS]``; ``held``: bytes per
    matrix."""

    data: np.ndarray
    descriptions: np.ndarray
    held: tuple[int, ...]


def choose_layout(matrix: Matrix, blocks: bool) -> str:
    """The layout in which a matrix is multiplied."""
    if blocks:
        return "blocks"
    return "widened" if matrix.grid == "table" and 1 < matrix.bits < 8 else "rows"


def make_arena(matrices: Sequence[Matrix], layouts: Sequence[str]) -> Arena:
    """Lay out every matrix, each in one of ``LAYOUTS``.

    Raises:
        ValueError: ``blocks`` where this processor lacks the instructions; a code off its grid, or too many
            columns (the matrix is named).
    """
    if "blocks" in layouts and not matvec.has_blocks():
        raise ValueError(f"this processor lacks {', '.join(matvec.NEEDED)}: use the layout 'rows'")
    for matrix in matrices:
        if matrix.codes.shape[1] > matvec.MAX_WIDTH:
            raise ValueError(f"{matrix.name} has {matrix.codes.shape[1]} columns, kernels take {matvec.MAX_WIDTH}")
    laid = [_lay(matrix, layout) for matrix, layout in zip(matrices, layouts)]
    sizes = [-(-len(one.data) // LINE) * LINE for one in laid]
    data = _aligned(sum(sizes))
    descriptions, at = np.zeros((len(laid), matvec.FIELDS), np.int64), 0
    for row, one, size, layout in zip(descriptions, laid, sizes, layouts):
        data[at : at + len(one.data)] = one.data
        row[matvec.OFFSET], row[matvec.TABLE] = at, at + (one.table or 0)
        row[matvec.BITS], row[matvec.COUNT], row[matvec.WIDTH] = one.bits, *one.shape
        row[matvec.SCALE], row[matvec.BASE] = one.scale, one.offset
        row[matvec.BLOCKED], row[matvec.HAS_TABLE] = layout == "blocks", one.table is not None
        at += size
    return Arena(data, descriptions, tuple(len(one.data) for one in laid))


def _lay(matrix: Matrix, layout: str) -> Laid:
    try:
        return LAYOUTS[layout](matrix.codes, matrix.bits, matrix.grid)
    except ValueError as error:
        raise ValueError(f"{matrix.name}: {error}") from error


def _aligned(size: int) -> np.ndarray:
    room = np.zeros(size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + size]
