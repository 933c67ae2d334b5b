"""Matrix-vector kernels on packed weights against exact sums: every grid and width, odd sizes, extremes, layouts."""

import os
import subprocess
import sys

import numpy as np
import pytest

from kwsbench.export.pack import pack, packed_bytes
from kwsbench.integer.drawn import draw_codes
from kwsbench.integer.kernels import matvec
from kwsbench.integer.kernels.arena import choose_layout, make_arena
from kwsbench.integer.kernels.layout import lay_blocks, lay_rows
from kwsbench.integer.recognizer import Matrix

GRIDS = [("odd", b) for b in range(1, 8)] + [("twos_complement", b) for b in range(2, 8)] + [("binary", 1)]
GRIDS += [("symmetric", b) for b in range(2, 9)] + [("table", b) for b in range(1, 9)]
SHAPES = [(1, 1), (17, 33), (16, 32), (5, 300), (63, 31), (130, 64)]
KERNELS = [False] + [True] * matvec.has_blocks()  # whether in blocks


def product(matrix, x, blocks):
    arena = make_arena([matrix], [choose_layout(matrix, blocks)])
    n, k = matrix.codes.shape
    padded, out = np.zeros(-(-k // 32) * 32, np.int8), np.full(-(-n // 16) * 16, -7, np.int32)
    padded[:k] = x
    matvec.multiply(arena.descriptions[0], arena.data, padded, out)
    return out[:n]


@pytest.mark.parametrize("blocks", KERNELS)
@pytest.mark.parametrize("grid, bits", GRIDS)
def test_products_are_exact(grid, bits, blocks):
    rng = np.random.default_rng(bits)
    for shape in SHAPES:
        codes = draw_codes(rng, shape, bits, grid)
        x = rng.integers(-128, 128, shape[1]).astype(np.int8)
        want = codes.astype(np.int64) @ x.astype(np.int64)
        assert np.array_equal(product(Matrix("m", codes, bits, grid), x, blocks), want), shape


@pytest.mark.parametrize("blocks", KERNELS)
@pytest.mark.parametrize("grid, bits", GRIDS)
def test_extreme_codes_and_inputs_are_exact(grid, bits, blocks):
    """All of 1000 products at their largest, of either sign."""
    some = draw_codes(np.random.default_rng(0), (4, 2000), bits, grid)
    for code in (some.min(), some.max()):
        codes = some.copy()
        codes[:2] = code
        for value in (-128, 127):
            x = np.full(2000, value, np.int8)
            want = codes.astype(np.int64) @ x.astype(np.int64)
            assert np.array_equal(product(Matrix("m", codes, bits, grid), x, blocks), want)


@pytest.mark.parametrize("grid, bits", GRIDS)
def test_rows_are_read_back(grid, bits):
    codes = draw_codes(np.random.default_rng(1), (7, 45), bits, grid)
    arena = make_arena([Matrix("m", codes, bits, grid)], ["rows"])
    row = np.zeros(45, np.int8)
    for n in range(7):
        matvec.decode_row(arena.descriptions[0], arena.data, n, row)
        assert np.array_equal(row, codes[n])


@pytest.mark.parametrize("grid, bits", GRIDS)
def test_memory_is_that_of_the_packed_file_with_its_padding(grid, bits):
    """Rows to 16 where the file has 8, and at least 64 bytes for a table."""
    codes = draw_codes(np.random.default_rng(2), (300, 200), bits, grid)
    blocks, rows = lay_blocks(codes, bits, grid), lay_rows(codes, bits, grid)
    room = max(64, 2**bits) if grid == "table" else 0
    assert len(blocks.data) == packed_bytes((304, 200), bits, "odd") + (room if bits not in (1, 8) else 0)
    assert len(rows.data) <= len(pack(codes, bits, grid)) + room
    assert choose_layout(Matrix("m", codes, bits, grid), True) == "blocks"
    widened = grid == "table" and bits not in (1, 8)
    assert choose_layout(Matrix("m", codes, bits, grid), False) == ("widened" if widened else "rows")


def test_codes_off_their_grid_and_matrices_too_wide_are_refused():
    with pytest.raises(ValueError, match=r"w: a code lies off the 4-bit grid 'odd' \(-15 to 15"):
        make_arena([Matrix("w", np.full((2, 2), 4, np.int8), 4, "odd")], ["rows"])
    with pytest.raises(ValueError, match="w: 17 different codes do not fit a 4-bit table of 16"):
        make_arena([Matrix("w", np.arange(17, dtype=np.int8)[None], 4, "table")], ["rows"])
    with pytest.raises(ValueError, match="w has 70000 columns"):
        make_arena([Matrix("w", np.ones((1, 70_000), np.int8), 8, "symmetric")], ["rows"])


def test_a_processor_without_the_instructions_runs_the_plain_loops(tmp_path):
    """As Numba compiles for one: no blocks, the same sums."""
    code = (
        "import numpy as np\n"
        "from kwsbench.integer.kernels import matvec\n"
        "from kwsbench.integer.kernels.arena import make_arena\n"
        "from kwsbench.integer.recognizer import Matrix\n"
        "assert not matvec.has_blocks()\n"
        "m = Matrix('m', np.ones((3, 40), np.int8), 1, 'binary')\n"
        "try: make_arena([m], ['blocks'])\n"
        "except ValueError as error: print(error)\n"
        "arena, out = make_arena([m], ['rows']), np.zeros(16, np.int32)\n"
        "matvec.multiply(arena.descriptions[0], arena.data, np.full(64, 3, np.int8), out)\n"
        "print(out[:3])"
    )
    chosen = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **chosen}
    )
    assert run.returncode == 0, run.stderr
    assert "lacks avx512f, avx512bw, avx512vnni, avx512vbmi: use the layout 'rows'" in run.stdout
    assert "[120 120 120]" in run.stdout
