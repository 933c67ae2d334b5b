"""Matrix times vector on packed weights, and what a recurrent recognizer computes with it, in Numba.

Two sets of kernels, over the two layouts of layout.py:

- ``blocks``: 512-bit vectors with the dot-product instruction of AVX-512 VNNI (VPDPBUSD: four products of unsigned and
  signed bytes added to an int32, exactly) and the byte permutation of VBMI (VPERMB) for tables. All widths, 8 bits
  among them, are one generated loop, so their times compare.
- ``rows``: plain loops that a compiler vectorises, for every other machine.

Fields of a byte that stand above bit 0 are not shifted down: they are multiplied where they stand, into an accumulator
of their own, which is shifted once at the end (exact: it is a multiple of its field's place). Bound: ``255 128 K <
2^31`` for up to ``MAX_WIDTH`` columns.

Everything that Numba compiles stands in this file: its cache on disk is renewed when the file of the cached function
changes, not when a function that it calls does.
"""

from __future__ import annotations

import numpy as np
from llvmlite import binding, ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kwsbench.arithmetic import gates as arithmetic
from kwsbench.integer.kernels.layout import COLUMNS, GROUPS, PARTS, ROWS

NEEDED = ("avx512f", "avx512bw", "avx512vnni", "avx512vbmi")

MAX_WIDTH = 65_000
# Where all matrices together take more than NEAR bytes, weights are asked for AHEAD bytes before they are needed.
# Measured: it helps where they leave the second-level cache and other work holds the machine; where they do not, it
# costs 8 bits most.
AHEAD, NEAR = 8192, 2**20

# Columns of a matrix's description, int64: where it begins, where its table does, bits, rows, columns, `c = SCALE u +
# BASE`, whether it lies in `blocks`, whether it has a table.
OFFSET, TABLE, BITS, COUNT, WIDTH, SCALE, BASE, BLOCKED, HAS_TABLE = range(9)
FIELDS = 9

# Columns of a gate's description: its matrices, the first row of its constants, the first value of its state.
INPUT, STATE, ROW, PLACE = range(4)


def _curve_table(table: np.ndarray) -> np.ndarray:
    """An entry and its difference to the next in one int32: the entry in the upper half. One load per argument."""
    values = table.astype(np.int32)
    return (values[:-1] << 16) | (np.diff(values) & 0xFFFF)


SIGMOID, TANH = _curve_table(arithmetic.SIGMOID), _curve_table(arithmetic.TANH)


def has_blocks() -> bool:
    """Whether Numba compiles for a processor with the instructions of ``blocks``."""
    name, chosen = (getattr(config, option, None) for option in ("CPU_NAME", "CPU_FEATURES"))
    if name is not None or chosen is not None:
        return all(f"+{needed}" in (chosen or "") for needed in NEEDED)
    features = binding.get_host_cpu_features()
    return all(features.get(name, False) for name in NEEDED)


_BYTE, _INT, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BYTES, _LANES, _WORDS = ir.VectorType(_BYTE, 64), ir.VectorType(_INT, 16), ir.VectorType(ir.IntType(16), 32)


def _every(value, kind):
    return ir.Constant(kind, [value] * kind.count)


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _load(builder, address, kind, align):
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def _prefetch(builder, address):
    """Fetch a line into the second-level cache; an address beyond all memory does nothing."""
    numbers = [ir.Constant(_INT, v) for v in (0, 2, 1)]  # to read, near, data
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), builder.inttoptr(address, _BYTE.as_pointer()), *numbers)


def _plus(builder, address, constant):
    return builder.add(address, ir.Constant(_LONG, constant))


def _repeated(builder, value):
    """An int32 in all 16 lanes."""
    nothing = ir.Constant(_LANES, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(nothing, value, ir.Constant(_INT, 0)), nothing, _every(0, _LANES)
    )


def _shifted(builder, vector, left):
    """Bytes moved by bits, in 16-bit lanes: bits of a neighbour come in, and are masked or ignored later."""
    if left == 0:
        return vector
    words, count = builder.bitcast(vector, _WORDS), _every(abs(left), _WORDS)
    return builder.bitcast(builder.shl(words, count) if left > 0 else builder.lshr(words, count), _BYTES)


def _dot(builder, accumulator, u, x):
    return _call(builder, "llvm.x86.avx512.vpdpbusd.512", _LANES, accumulator, builder.bitcast(u, _LANES), x)


def _zeroed(builder, before):
    """Room for a sum, set to zero in the block of code ``before`` the loop that adds to it."""
    slot = cgutils.alloca_once(builder, _LANES)
    with builder.goto_block(before):
        builder.store(_every(0, _LANES), slot)
    return slot


def _group_terms(builder, vectors, bits, group, table):
    """What meets the inputs of a group: pairs of bytes to multiply and how far their sum stands too high, with its
    key."""
    # Enough sums at once to hide the latency of the dot product, few enough to stay in registers.
    copies = {1: 8, 2: 2, 3: 1}[len(PARTS[bits])]
    terms, index, low = [], None, 0
    for part in PARTS[bits]:
        fields = 8 // part
        vector, place = vectors[part][group // fields], part * (group % fields)
        if table is None:
            u = vector if part == 8 else builder.and_(vector, _every((2**part - 1) << place, _BYTES))
            terms.append(((part, place, group // fields % copies), u, place - low))
        else:
            piece = _shifted(builder, vector, low - place)
            if index is not None:
                below, above = (_every(mask, _BYTES) for mask in (2**low - 1, 256 - 2**low))
                piece = builder.or_(builder.and_(index, below), builder.and_(piece, above))
            index = piece
        low += part
    if table is not None:  # the table repeats: bits of an index above its own do not matter
        name = "llvm.x86.avx512.vpermi2var.qi.512" if bits == 7 else "llvm.x86.avx512.permvar.qi.512"
        arguments = (table[0], index, table[1]) if bits == 7 else (table[0], index)
        terms.append(((0, 0, group), _call(builder, name, _BYTES, *arguments), 0))
    return terms


def _panels(builder, bits, has_table, far, out, weights, table_address, x, panels, blocks, scale, offset):
    """All panels of a matrix: int32 results to ``out``."""
    table = None
    if has_table:
        table = [_load(builder, _plus(builder, table_address, 64 * i), _BYTES, 1) for i in range(2 if bits == 7 else 1)]
    size = 64 * bits
    with cgutils.for_range(builder, panels) as panel:
        start = builder.add(weights, builder.mul(panel.index, builder.mul(blocks, ir.Constant(_LONG, size))))
        slots: dict = {}
        before = builder.block
        with cgutils.for_range(builder, blocks) as block:
            at = builder.add(start, builder.mul(block.index, ir.Constant(_LONG, size)))
            inputs = builder.add(x, builder.mul(block.index, ir.Constant(_LONG, COLUMNS)))
            with builder.if_then(far):
                for line in range(bits):
                    _prefetch(builder, _plus(builder, at, AHEAD + 64 * line))
            vectors, place = {}, 0
            for part in PARTS[bits]:
                vectors[part] = [_load(builder, _plus(builder, at, place + 64 * v), _BYTES, 64) for v in range(part)]
                place += 64 * part
            for group in range(GROUPS):
                four = _repeated(builder, _load(builder, _plus(builder, inputs, 4 * group), _INT, 1))
                for key, u, height in _group_terms(builder, vectors, bits, group, table):
                    if key not in slots:
                        slots[key] = height, _zeroed(builder, before)
                    slot = slots[key][1]
                    builder.store(_dot(builder, builder.load(slot), u, four), slot)
        total = _every(0, _LANES)
        for height, slot in slots.values():
            value = builder.load(slot)
            shift = builder.ashr if height > 0 else builder.shl
            total = builder.add(total, shift(value, _every(abs(height), _LANES)) if height else value)
        total = builder.add(builder.mul(total, _repeated(builder, scale)), _repeated(builder, offset))
        target = builder.add(out, builder.mul(panel.index, ir.Constant(_LONG, 4 * ROWS)))
        builder.store(total, builder.inttoptr(target, _LANES.as_pointer())).align = 1


def _block_function(module, kinds):
    """The function that multiplies by a matrix of any width, once in a module and never inlined: it compiles slowly."""
    name = "kwsbench_multiply_blocks"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    kind, far, out, weights, table, x, *rest = function.args
    far = builder.trunc(far, ir.IntType(1))
    after = function.append_basic_block("after")
    choice = builder.switch(kind, after)
    for bits in range(1, 9):
        for has_table in (False, True) if 1 < bits < 8 else (False,):
            case = function.append_basic_block(f"bits{bits}{'table' * has_table}")
            choice.add_case(ir.Constant(_LONG, bits + 8 * has_table), case)
            builder.position_at_end(case)
            _panels(builder, bits, has_table, far, out, weights, table, x, *rest)
            builder.branch(after)
    builder.position_at_end(after)
    builder.ret_void()
    return function


@intrinsic
def _multiply_blocks(typingctx, kind, far, out, weights, table, x, panels, blocks, scale, offset):
    """Addresses as int64; ``kind`` is the width, 8 more with a table; ``far``: fetch ahead; ``offset`` already times
    the sum of ``x``."""
    long = types.int64
    signature = types.void(*[long] * 8, types.int32, types.int32)

    def generate(context, builder, signature, arguments):
        if has_blocks():  # elsewhere nobody calls it: descriptions say `rows`
            builder.call(_block_function(builder.module, [a.type for a in arguments]), arguments)
        return context.get_dummy_value()

    return signature, generate


def _part_loop(part):
    """Adds one part of a matrix times ``x`` to ``out``: rows of ``n`` bytes, ``stride`` apart, from ``at`` on."""
    fields, mask = 8 // part, np.int32(2**part - 1)

    def loop(arena, at, stride, rows, n, low, x, out):
        for r in range(rows):
            row, total = arena[at + r * stride : at + r * stride + n], np.int32(0)
            for f in range(fields):
                shift, inputs = np.int32(part * f), x[f * n : f * n + n]
                for i in range(n):
                    total += ((np.int32(row[i]) >> shift) & mask) * np.int32(inputs[i])
            out[r] += np.int32(total << low)

    return njit(loop)


_part1, _part2, _part4, _part8 = (_part_loop(part) for part in (1, 2, 4, 8))


@njit
def _next_part(left):
    return 8 if left == 8 else 4 if left >= 4 else 2 if left >= 2 else 1


@njit
def _multiply_rows(m, arena, x, total, out):
    bits, rows, padded = m[BITS], m[COUNT], (m[WIDTH] + 31) // 32 * 32
    scale, offset = np.int32(m[SCALE]), np.int32(np.int32(m[BASE]) * total)
    out[:rows] = 0
    low, at, stride = 0, m[OFFSET], padded * bits // 8
    while low < bits:
        part = _next_part(bits - low)
        n = padded * part // 8
        if part == 8:
            _part8(arena, at, stride, rows, n, low, x, out)
        elif part == 4:
            _part4(arena, at, stride, rows, n, low, x, out)
        elif part == 2:
            _part2(arena, at, stride, rows, n, low, x, out)
        else:
            _part1(arena, at, stride, rows, n, low, x, out)
        at += n
        low += part
    for r in range(rows):
        out[r] = np.int32(scale * out[r] + offset)


@njit
def _decode_row(m, arena, row, x):
    """One row of the layout ``rows`` as codes, int8 [columns]."""
    bits, padded = m[BITS], (m[WIDTH] + 31) // 32 * 32
    for k in range(m[WIDTH]):
        u, low, at = np.int64(0), 0, m[OFFSET] + row * (padded * bits // 8)
        while low < bits:
            part = _next_part(bits - low)
            n = padded * part // 8
            u |= ((np.int64(arena[at + k % n]) >> (part * (k // n))) & ((1 << part) - 1)) << low
            at += n
            low += part
        if m[HAS_TABLE]:
            u = np.int64(arena[m[TABLE] + u])
        x[k] = np.int8(m[SCALE] * u + m[BASE])


@njit
def _multiply(m, arena, x, out):
    """``out[:N] = C x``: description ``m``, ``x`` int8 with zeros up to a multiple of 32, ``out`` up to one of 16."""
    total = np.int32(0)
    for k in range(m[WIDTH]):
        total += np.int32(x[k])
    if m[BLOCKED]:
        base, panels, blocks = np.int64(arena.ctypes.data), (m[COUNT] + 15) // 16, (m[WIDTH] + 31) // 32
        addresses = np.int64(out.ctypes.data), base + m[OFFSET], base + m[TABLE], np.int64(x.ctypes.data)
        kind, far, scale = m[BITS] + 8 * m[HAS_TABLE], np.int64(arena.size > NEAR), np.int32(m[SCALE])
        offset = np.int32(np.int32(m[BASE]) * total)
        _multiply_blocks(kind, far, *addresses, panels, blocks, scale, offset)  # type: ignore[call-arg]
    else:
        _multiply_rows(m, arena, x, total, out)


@njit
def _curve(z, table):
    """Section 8, one argument, int32."""
    entry = table[np.uint32(z + np.int32(2**15)) >> np.uint32(7)]
    difference = np.int32(entry << np.int32(16)) >> np.int32(16)
    return np.int32((entry >> np.int32(16)) + ((difference * (z & np.int32(127)) + np.int32(64)) >> np.int32(7)))


@njit
def _clamp(v, low, high):
    return min(max(v, low), high)


@njit
def _preactivations(acc_x, acc_h, m_x, m_h, bias, shift, z):
    """``z`` int32 from the accumulators; ``bias`` holds half a unit of its shift."""
    for n in range(len(z)):
        total = np.int64(acc_x[n]) * np.int64(m_x[n]) + np.int64(acc_h[n]) * np.int64(m_h[n]) + bias[n]
        z[n] = np.int32(_clamp(total >> np.int64(shift[n]), np.int64(-(2**15)), np.int64(2**15 - 1)))


@njit
def _bend(z, table):
    for n in range(len(z)):
        z[n] = _curve(z[n], table)


@njit
def _cells(z, h, c):
    """The next state of cells, in place, from gates i f g o; ``z`` is used up."""
    hidden = len(h)
    i, f, g, o = z[:hidden], z[hidden : 2 * hidden], z[2 * hidden : 3 * hidden], z[3 * hidden : 4 * hidden]
    _bend(z[: 2 * hidden], SIGMOID)
    _bend(g, TANH)
    _bend(o, SIGMOID)
    for n in range(hidden):
        cell = np.int64(16) * np.int64(f[n]) * np.int64(c[n]) + np.int64(i[n]) * np.int64(g[n]) + np.int64(2**18)
        cell = _clamp(cell >> np.int64(19), np.int64(-(2**15)), np.int64(2**15 - 1))
        c[n] = np.int16(cell)
        g[n] = np.int32(_clamp(np.int64(2) * cell, np.int64(-(2**15)), np.int64(2**15 - 1)))
    _bend(g, TANH)
    for n in range(hidden):
        bent = (o[n] * g[n] + np.int32(2**22)) >> np.int32(23)
        h[n] = np.int8(_clamp(bent, np.int32(-128), np.int32(127)))


@njit
def _fill(padded, x, width):
    """``x`` and zeros up to a multiple of 32."""
    padded[:width] = x[:width]
    padded[width : (width + 31) // 32 * 32] = np.int8(0)


@njit
def _gate(gate, matrices, arena, multipliers, bias, shift, x, h, inputs, rows):
    """Gates ``z`` of one layer, in a row of the room ``rows``."""
    first, second = matrices[gate[INPUT]], matrices[gate[STATE]]
    _fill(inputs[0], x, first[WIDTH])
    _fill(inputs[1], h, second[WIDTH])
    _multiply(first, arena, inputs[0], rows[0])
    _multiply(second, arena, inputs[1], rows[1])
    count, begin = first[COUNT], gate[ROW]
    end = begin + count
    z = rows[2, :count]
    m_x, m_h = multipliers[0, begin:end], multipliers[1, begin:end]
    _preactivations(rows[0, :count], rows[1, :count], m_x, m_h, bias[begin:end], shift[begin:end], z)
    return z


@njit(cache=True)
def lstm_layers(gates, matrices, arena, multipliers, bias, shift, x, h, c, inputs, rows):
    """LSTM layers one after the other on one frame ``x``; their states lie in ``h``, ``c`` and are updated in place.

    ``multipliers`` int32 [2, all rows], ``bias`` int64 with half a unit of ``shift`` int8 added; ``inputs`` int8 [2, .]
    and ``rows`` int32 [3, .]: room to work in.
    """
    for n in range(len(gates)):
        gate = gates[n]
        begin, end = gate[PLACE], gate[PLACE] + matrices[gate[STATE], WIDTH]
        z = _gate(gate, matrices, arena, multipliers, bias, shift, x, h[begin:end], inputs, rows)
        _cells(z, h[begin:end], c[begin:end])
        x = h[begin:end]


@njit(cache=True)
def joiner_scores(gate, last, matrices, arena, multipliers, bias, shift, output_bias, e, p, inputs, rows, out):
    """int32 accumulators of the symbols from the ``h`` of encoder (``e``) and prediction network (``p``)."""
    z = _gate(gate, matrices, arena, multipliers, bias, shift, e, p, inputs, rows)
    y = inputs[0]
    for n in range(len(z)):
        bent = (_curve(z[n], TANH) + np.int32(128)) >> np.int32(8)
        y[n] = np.int8(_clamp(bent, np.int32(-128), np.int32(127)))
    _fill(y, y, len(z))
    _multiply(matrices[last], arena, y, rows[0])
    for n in range(len(out)):
        out[n] = np.int32(rows[0, n] + output_bias[n])


@njit(cache=True)
def multiply(m, arena, x, out):
    """``out[:N] = C x`` for one matrix; see ``_multiply``."""
    _multiply(m, arena, x, out)


@njit(cache=True)
def decode_row(m, arena, row, x):
    """Codes of one row of a matrix in the layout ``rows``: int8 [columns]."""
    _decode_row(m, arena, row, x)
