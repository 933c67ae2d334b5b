"""Work of a spotter per step: multiply-accumulates, and a model of NEON instructions.

MACs are counted from shapes, one per weight and step. Instructions are *modelled*: counted on paper for the
kernel below, never run. The model knows no loop, address or prefetch instructions, no caches and no
pipeline; counted instructions of compiled code show smaller ratios to float than these. Use it to
compare widths, not to promise milliseconds.

The kernel takes a panel of 8 rows, N padded to 8 and K to 32, with C = K / 16 blocks of 16 inputs:

- ``lanes`` (Armv8.0, no dot product). An int16 lane takes P = floor(32767 / (max|c| max|x|)) products before
  SADALP must widen it; a block adds two to each of the 8 lanes: one SADALP serves B = floor(P / 2) blocks::

      C loads of x + 8 C loads of c + 16 C SMULL/SMLAL + 8 ceil(C / B) SADALP + 6 ADDP + finish

- ``sdot`` (Armv8.2): ``C + 8 C loads + 8 C SDOT + 6 ADDP + finish``
- ``float32``: ``4 C + 32 C loads + 32 C FMLA + 6 FADDP + finish`` (batchnorm folded; vectors of 4)

``finish`` for 8 channels is the number of loads, arithmetic, narrowing and store instructions in
``FINISH_INSTRUCTIONS``. Fewer bits pay here only through a larger P; the weights stay in 8-bit containers.
"""

from __future__ import annotations

from typing import Any

from kwsbench.export.pack import padded_shape
from kwsbench.integer.kernels.neon import lane_products
from kwsbench.integer.program import Dense, Layer, Program
from kwsbench.resources.memory import MODELLED

# For 8 channels. Dense, single rounding, per 4: 3 loads, 2 SXTL, ADD, 2 SMULL, 2 SRSHL, 2 SQXTN = 12;
# then 2 SQXTN to int16, 1 to int8, SMAX, store. double_up: 3 loads, ADD, SQRDMULH, SRSHL per 4; double has
# 3 more to round away from zero. Unfolded, per 4: 3 loads, 2 SMULL, 2 ADD, 2 SRSHL, 2 SQXTN.
FINISH_INSTRUCTIONS = {
    "single": 2 * 12 + 5,
    "double": 2 * 9 + 5,
    "double_up": 2 * 6 + 5,
    "unfolded_dense": 2 * 11 + 5,
    "output_dense": 6,  # per 4: load the bias, ADD, store
    "float32": 8,  # per 4: load the bias, FADD, FMAX, store
}

# How each column of cost_table is known.
COST_BASIS = dict.fromkeys(
    (
        "macs",
        "macs_per_second",
        "lane_products",
        "lanes_instructions",
        "sdot_instructions",
        "float32_instructions",
        "lanes_times_fewer",
        "sdot_times_fewer",
    ),
    MODELLED,
)


def cost_table(program: Program) -> list[dict[str, Any]]:
    """One row per layer and a row of totals, per step; ``*_times_fewer`` compares with float32.

    ``macs_per_second`` is at one step per ``frame_seconds``.
    """
    rows = [_row(layer, program.frame_seconds) for layer in program.layers]
    total: dict[str, Any] = {"layer": "total", "weight_bits": None, "lane_products": None}
    for key in (
        "macs",
        "macs_per_second",
        "lanes_instructions",
        "sdot_instructions",
        "float32_instructions",
    ):
        total[key] = sum(row[key] for row in rows)
    return [_with_ratios(row) for row in (*rows, total)]


def lanes_instructions(shape: tuple[int, int], products: int, finish: int) -> int:
    """Modelled instructions of one layer without dot product; ``products`` per int16 lane, at least 2."""
    if products < 2:
        raise ValueError(f"a block adds two products to a lane, but only {products} fit")
    panels, blocks = _blocks(shape)
    widenings = -(-blocks // (products // 2))
    return panels * (9 * blocks + 16 * blocks + 8 * widenings + 6 + finish)


def sdot_instructions(shape: tuple[int, int], finish: int) -> int:
    """Modelled instructions of one layer with SDOT."""
    panels, blocks = _blocks(shape)
    return panels * (9 * blocks + 8 * blocks + 6 + finish)


def float32_instructions(shape: tuple[int, int]) -> int:
    """Modelled instructions of one layer in float32."""
    panels, blocks = _blocks(shape)
    return panels * (36 * blocks + 32 * blocks + 6 + FINISH_INSTRUCTIONS["float32"])


def _blocks(shape: tuple[int, int]) -> tuple[int, int]:
    n, k = padded_shape(shape)
    return n // 8, k // 16


def _row(layer: Layer, frame_seconds: float) -> dict[str, Any]:
    n, k = layer.codes.shape
    products = lane_products(layer.codes, layer.proof.max_abs_input)
    finish = FINISH_INSTRUCTIONS[layer.rounding if isinstance(layer, Dense) else layer.kind]
    return {
        "layer": layer.name,
        "weight_bits": layer.weight_bits,
        "macs": n * k,
        "macs_per_second": n * k / frame_seconds,
        "lane_products": products,
        "lanes_instructions": lanes_instructions((n, k), products, finish),
        "sdot_instructions": sdot_instructions((n, k), finish),
        "float32_instructions": float32_instructions((n, k)),
    }


def _with_ratios(row: dict[str, Any]) -> dict[str, Any]:
    float32 = row["float32_instructions"]
    return row | {
        "lanes_times_fewer": float32 / row["lanes_instructions"],
        "sdot_times_fewer": float32 / row["sdot_instructions"],
    }
