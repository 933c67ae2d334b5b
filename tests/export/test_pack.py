"""Packed weights against bytes written out by hand and against plain loops over the layout's definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsbench.export.pack import code_range, pack, packed_bytes, padded_shape, unpack
from kwsbench.integer.program import GRIDS

WIDTHS = {
    "symmetric": range(2, 9),
    "twos_complement": range(2, 8),
    "odd": range(1, 8),
    "binary": range(1, 2),
    "table": range(1, 9),
}
CASES = [(grid, bits) for grid, widths in WIDTHS.items() for bits in widths]


def codes_of(grid, bits):
    if grid == "table":  # uneven, and with 255 of them at 8 bits
        every = np.arange(-127, 128)
        return every if bits == 8 else np.sort(np.random.default_rng(bits).choice(every, 2**bits, replace=False))
    low, high, step = code_range(bits, grid)
    return np.arange(low, high + 1, step)


def stored(code, grid):
    return (code - 1) // 2 if grid in ("odd", "binary") else code


def by_loops(codes, bits, grid):
    """The layouts, one code at a time, from their definitions."""
    n, k = padded_shape(codes.shape)
    mask = 2**bits - 1
    table = sorted(set(codes.ravel().tolist())) if grid == "table" and bits < 8 else []
    head = [c & 255 for c in table + [table[-1]] * (2**bits - len(table))] if table else []

    def q(r, c):
        inside = r < codes.shape[0] and c < codes.shape[1]
        if not inside:
            return 0
        return (table.index(codes[r, c]) - 2 ** (bits - 1) if table else stored(int(codes[r, c]), grid)) & mask

    out = list(head)
    if bits == 8:
        for p in range(0, n, 8):
            for b in range(0, k, 16):
                out += [q(p + r, b + j) for r in range(8) for j in range(16)]
    elif bits in (4, 5):
        for p in range(0, n, 8):
            for b in range(0, k, 32):
                for r in range(8):
                    out += [(q(p + r, b + j) & 15) | (q(p + r, b + 16 + j) & 15) << 4 for j in range(16)]
                if bits == 5:
                    for half in (0, 16):
                        for j in range(16):
                            out.append(sum((q(p + r, b + half + j) >> 4) << r for r in range(8)))
    elif bits == 1:
        for p in range(0, n, 8):
            for b in range(0, k, 16):
                out += [sum(q(p + r, b + j) << r for r in range(8)) for j in range(16)]
    else:
        stream = position = 0
        for p in range(0, n, 8):
            for b in range(0, k, 16):
                for r in range(8):
                    for j in range(16):
                        stream |= q(p + r, b + j) << position
                        position += bits
        return bytes(head) + stream.to_bytes(position // 8, "little")
    return bytes(out)


def test_the_cases_cover_every_grid_of_a_program():
    assert set(WIDTHS) == set(GRIDS)


@pytest.mark.parametrize(("grid", "bits"), CASES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_bytes_are_the_definition_the_prediction_holds_and_codes_come_back(grid, bits, data):
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 70)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    codes = rng.choice(codes_of(grid, bits), shape).astype(np.int8)
    written = pack(codes, bits, grid)
    assert len(written) == packed_bytes(shape, bits, grid)
    assert written == by_loops(codes, bits, grid)
    back = unpack(written, shape, bits, grid)
    assert back.dtype == np.int8 and back.shape == shape
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize(("grid", "bits"), CASES)
def test_every_code_of_a_grid_survives(grid, bits):
    codes = codes_of(grid, bits).astype(np.int8)[None]
    np.testing.assert_array_equal(unpack(pack(codes, bits, grid), codes.shape, bits, grid), codes)
    assert len(codes[0]) == (2**bits - 1 if grid == "symmetric" or bits == 8 else 2**bits)


def test_eight_bits_by_hand():
    codes = np.array([[1, -1], [127, -127]], np.int8)
    expected = bytearray(256)  # 8 rows x 32 columns
    expected[0:2] = b"\x01\xff"
    expected[16:18] = b"\x7f\x81"  # row 1 follows 16 bytes later
    assert pack(codes, 8, "symmetric") == bytes(expected)
    wide = np.zeros((9, 33), np.int8)
    wide[0, 16], wide[8, 0], wide[0, 32] = 5, 6, 7
    written = pack(wide, 8, "symmetric")
    assert len(written) == 16 * 64
    # Column 16 opens the next block of 8 x 16; row 8 opens the next panel; column 32 the third block.
    assert (written[128], written[8 * 64], written[256]) == (5, 6, 7)
    assert sum(b != 0 for b in written) == 3


def test_four_bits_by_hand():
    codes = np.zeros((2, 18), np.int8)
    codes[0, :2], codes[0, 16:18], codes[1, 0] = (3, -1), (-8, 7), -2
    written = pack(codes, 4, "twos_complement")
    # Row 0, byte 0: low nibble 3, high nibble -8 = 8; byte 1: low -1 = 15, high 7. Row 1, byte 0: -2 = 14.
    assert written[:2] == bytes([0x83, 0x7F]) and written[16] == 0x0E
    assert len(written) == 128 and sum(b != 0 for b in written) == 3


def test_four_bits_odd_by_hand():
    # q = (c - 1) / 2: 15 -> 7, -15 -> -8 = 8, 1 -> 0, -1 -> -1 = 15.
    codes = np.array([[15, -15, 1, -1]], np.int8)
    assert pack(codes, 4, "odd")[:4] == bytes([0x07, 0x08, 0x00, 0x0F])


def test_five_bits_by_hand():
    codes = np.ones((2, 17), np.int8)  # q = 0
    codes[0, 0], codes[1, 0], codes[1, 16] = 31, -31, -1  # q = 15, -16, -1
    written = pack(codes, 5, "odd")
    assert len(written) == 160
    # Low nibbles: 15 -> F, -16 -> 0, -1 -> F (high nibble, since column 16).
    assert written[0] == 0x0F and written[16] == 0xF0
    # Signs: row 1 at column 0 is plane 0, byte 0, bit 1; at column 16 it is plane 1, byte 0, bit 1.
    assert written[128] == 0b10 and written[144] == 0b10
    assert sum(b != 0 for b in written) == 4


def test_one_bit_by_hand():
    codes = np.ones((3, 20), np.int8)
    codes[0, 0] = codes[2, 0] = codes[1, 17] = -1
    written = pack(codes, 1, "binary")
    assert len(written) == 32
    assert (written[0], written[17]) == (0b101, 0b010)
    assert sum(b != 0 for b in written) == 2
    assert written == pack(codes, 1, "odd")


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(2, 0b00_01_11_10), (3, 0b01_111_100), (6, 0b11_100000), (7, 0b1_1000000)],
)
def test_a_bit_stream_begins_with_its_lowest_bit(bits, expected):
    low = -(2 ** (bits - 1))
    codes = np.array([[low, -1, 1, 0]], np.int8)
    written = pack(codes, bits, "twos_complement")
    whole = sum((int(c) & (2**bits - 1)) << (bits * i) for i, c in enumerate(codes[0]))
    assert written[0] == expected == whole & 0xFF
    assert int.from_bytes(written, "little") == whole


@pytest.mark.parametrize(("grid", "bits"), [(g, b) for g, b in CASES if b <= 5])
def test_padding_adds_nothing_to_a_product(grid, bits):
    rng = np.random.default_rng(bits)
    codes = rng.choice(codes_of(grid, bits), (5, 37)).astype(np.int8)
    x = rng.integers(-128, 128, 37)
    padded_x = np.pad(x, (0, 64 - 37))
    padded = unpack(pack(codes, bits, grid), (8, 64), bits, grid).astype(np.int64)
    np.testing.assert_array_equal((padded @ padded_x)[:5], codes.astype(np.int64) @ x)
    if grid in ("odd", "binary"):
        q = (padded - 1) // 2
        np.testing.assert_array_equal((2 * q @ padded_x + padded_x.sum())[:5], codes.astype(np.int64) @ x)


def test_sizes_of_a_250_thousand_weight_network():
    shapes = [(204, 620), (204, 204), (204, 204), (204, 204), (2, 204)]
    total = {bits: sum(packed_bytes(s, bits) for s in shapes) for bits in (8, 5, 4, 1)}
    codes = 208 * 640 + 3 * 208 * 224 + 8 * 224
    assert total == {bits: codes * bits // 8 for bits in total}


@pytest.mark.parametrize(
    ("codes", "bits", "grid", "message"),
    [
        (np.zeros(4), 8, "symmetric", "takes a matrix of codes, got shape"),
        (np.zeros((0, 4)), 8, "symmetric", "at least one row and one column"),
        (np.array([[0, -128]]), 8, "symmetric", "code -128 at row 0, column 1 is not one of the 8-bit"),
        (np.array([[7], [8]]), 4, "twos_complement", "code 8 at row 1, column 0 .*-8 to 7 in steps of 1"),
        (np.array([[3, 2]]), 4, "odd", "code 2 at row 0, column 1 .*-15 to 15 in steps of 2"),
        (np.array([[0]]), 1, "binary", "code 0"),
        (np.array([[1.5]]), 8, "symmetric", r"code 1\.5"),
        (np.ones((1, 1)), 8, "odd", "the grid 'odd' has 1 to 7 bits, got 8"),
        (np.ones((1, 1)), 8, "twos_complement", "has 2 to 7 bits, got 8"),
        (np.ones((1, 1)), 1, "twos_complement", "has 2 to 7 bits, got 1"),
        (np.ones((1, 1)), 2, "binary", "has 1 to 1 bits, got 2"),
        (np.ones((1, 1)), 9, "symmetric", "bits must be an integer from 1 to 8, got 9"),
        (np.ones((1, 1)), 8, "cubic", "unknown grid 'cubic'"),
    ],
)
def test_what_cannot_be_packed_is_refused(codes, bits, grid, message):
    with pytest.raises(ValueError, match=message):
        pack(codes, bits, grid)


def test_bytes_of_another_shape_are_refused():
    data = pack(np.ones((8, 32), np.int8), 4, "odd")
    with pytest.raises(ValueError, match=r"4-bit codes of shape \(8, 33\) fill 256 bytes, got 128"):
        unpack(data, (8, 33), 4, "odd")
    with pytest.raises(ValueError, match="got 127"):
        unpack(data[:-1], (8, 32), 4, "odd")
