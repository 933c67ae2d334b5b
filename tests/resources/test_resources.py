"""Memory and cost of small programs, worked out by hand."""

import numpy as np
import pytest

from kwsbench.export.pack import code_range, pack
from kwsbench.integer.program import Dense, InputQuantizer, OutputDense, Program, Proof, UnfoldedDense
from kwsbench.resources.cost import COST_BASIS, cost_table, lanes_instructions
from kwsbench.resources.memory import (
    MEMORY_BASIS,
    SYSTEMS,
    memory_parts,
    memory_summary,
    memory_table,
)

LABELS = {"measured", "modelled", "projected"}


def layer_codes(rng, shape, bits, grid):
    low, high, step = code_range(bits, grid)
    codes = rng.choice(np.arange(low, high + 1, step), shape).astype(np.int8)
    codes[0, 0], codes[0, -1] = high, low
    return codes


def dense(rng, name, shape, bits, grid, first=False, rounding="single"):
    n = shape[0]
    return Dense(
        name=name,
        codes=layer_codes(rng, shape, bits, grid),
        weight_bits=bits,
        grid=grid,
        bias=np.zeros(n, np.int32),
        multiplier=np.full(n, 2**30, np.int32),
        shift=np.full(n, 31, np.int32),
        output_scale=0.1,
        relu=True,
        rounding=rounding,
        proof=Proof(128 if first else 127, 1, 1),
    )


def output(rng, name, shape, bits, grid):
    n = shape[0]
    codes = layer_codes(rng, shape, bits, grid)
    return OutputDense(name, codes, bits, grid, np.zeros(n, np.int32), np.ones(n), Proof(127, 1, 1))


def program_of(*layers, n_mels=20, stacked_frames=31):
    return Program(
        keywords=("marvin",),
        n_mels=n_mels,
        stacked_frames=stacked_frames,
        frame_seconds=0.03,
        input=InputQuantizer(np.zeros(n_mels, np.float32), np.ones(n_mels, np.float32), 0.05),
        layers=layers,
    )


def small(bits=5, grid="odd"):
    rng = np.random.default_rng(0)
    return program_of(
        dense(rng, "layer0", (10, 620), bits, grid, first=True),
        dense(rng, "layer1", (12, 10), bits, grid),
        output(rng, "layer2", (2, 12), 8, "symmetric"),
    )


def test_bytes_by_layer_by_hand():
    rows = memory_table(small())
    first, second, last, total = rows
    assert (first["macs"], second["macs"], last["macs"], total["macs"]) == (6200, 120, 24, 6344)
    # Padded: 16 x 640, 16 x 32, 8 x 32.
    assert [r["weights_container_bytes"] for r in rows] == [10240, 512, 256, 11008]
    assert [r["weights_packed_bytes"] for r in rows] == [6400, 320, 256, 6976]
    # Three int32 per hidden channel, one per output.
    assert [r["constants_bytes"] for r in rows] == [120, 144, 8, 272]
    # Outputs; in all, the largest pair: max(20 + 10, 10 + 12, 12 + 8).
    assert [r["activations_bytes"] for r in rows] == [10, 12, 8, 30]
    assert first["float32_bytes"] == 4 * 6200 + 40


def test_packed_bytes_are_those_that_pack_writes():
    program = small(4, "twos_complement")
    for row, layer in zip(memory_table(program), program.layers, strict=False):
        assert row["weights_packed_bytes"] == len(pack(layer.codes, layer.weight_bits, layer.grid))


def test_the_unfolded_form_stores_two_bytes_per_channel():
    rng = np.random.default_rng(1)
    codes = layer_codes(rng, (10, 40), 1, "binary")
    layer = UnfoldedDense(
        "layer0", codes, 1, "binary", np.ones(10, np.int8), np.ones(10, np.int8), 2**14, 3, 20, 0.1, True,
        Proof(128, 1, 1),
    )  # fmt: skip
    program = program_of(layer, output(rng, "layer1", (2, 10), 8, "symmetric"), n_mels=4, stacked_frames=10)
    assert memory_table(program)[0]["constants_bytes"] == 20
    assert memory_table(program)[0]["weights_packed_bytes"] == 16 * 64 // 8
    # 4 blocks, unfolded finish; a 1-bit code lets 255 products into a lane.
    row = cost_table(program)[0]
    assert row["lane_products"] == 255
    assert row["lanes_instructions"] == 2 * (25 * 4 + 8 * 1 + 6 + 27)


def test_every_number_is_labelled_and_the_parts_sum_to_the_totals():
    program = small()
    parts = memory_parts(program)
    assert {p["basis"] for p in parts} == LABELS
    assert {p["basis"] for p in parts if p["system"] == "NPU"} == {"projected"}
    by = {(p["system"], p["part"]): p["bytes"] for p in parts}
    assert by["8-bit containers", "weights"] == 11008 and by["packed", "weights"] == 6976
    assert by["float32", "weights"] == 4 * 6344 and by["float32", "constants"] == 4 * 24
    assert by["packed", "ring"] == 30 * 20 and by["float32", "ring"] == 4 * 600
    assert by["packed", "input tables"] == by["float32", "input tables"] == 160
    assert by["packed", "activations"] == 30 and by["float32", "activations"] == 120
    assert by["NPU", "weights"] == (6320 * 5 + 24 * 8 + 7) // 8
    summary = memory_summary(program)
    assert [row["system"] for row in summary] == list(SYSTEMS)
    for row in summary:
        own = [p["bytes"] for p in parts if p["system"] == row["system"]]
        assert row["total_bytes"] == sum(own) and len(own) == 5
        assert row["total_times_smaller"] == pytest.approx(summary[0]["total_bytes"] / sum(own))
    assert [r["total_basis"] for r in summary] == ["modelled", "modelled", "modelled", "projected"]
    assert [r["weights_basis"] for r in summary] == ["modelled", "measured", "measured", "projected"]


def test_labels_cover_the_columns_that_hold_numbers():
    for rows, basis in ((memory_table(small()), MEMORY_BASIS), (cost_table(small()), COST_BASIS)):
        numbers = {k for k, v in rows[0].items() if isinstance(v, int | float) and k != "weight_bits"}
        assert numbers == set(basis)
        assert set(basis.values()) <= LABELS


@pytest.mark.parametrize(
    ("bits", "grid", "first", "later"),
    [
        (8, "symmetric", 2, 2),
        (5, "odd", 8, 8),
        (5, "twos_complement", 15, 16),
        (4, "odd", 17, 17),
        (4, "twos_complement", 31, 32),
        (1, "binary", 255, 258),
    ],
)
def test_products_that_fit_an_int16_lane(bits, grid, first, later):
    rng = np.random.default_rng(2)
    layers = [dense(rng, f"layer{i}", (8, 8), bits, grid, first=i == 0) for i in range(2)]
    rows = cost_table(program_of(*layers, output(rng, "layer2", (2, 8), 8, "symmetric")))
    assert (rows[0]["lane_products"], rows[1]["lane_products"]) == (first, later)


def test_cost_by_hand():
    rows = cost_table(small())
    # 16 x 640: 2 panels of 40 blocks. 5-bit odd: 8 products, so a SADALP per 4 blocks.
    assert rows[0]["lanes_instructions"] == 2 * (25 * 40 + 8 * 10 + 6 + 29)
    assert rows[0]["sdot_instructions"] == 2 * (17 * 40 + 6 + 29)
    assert rows[0]["float32_instructions"] == 2 * (68 * 40 + 6 + 8)
    assert rows[2]["lanes_instructions"] == 25 * 2 + 8 * 2 + 6 + 6
    assert rows[0]["macs_per_second"] == pytest.approx(6200 / 0.03)
    total = rows[-1]
    assert total["lanes_instructions"] == sum(r["lanes_instructions"] for r in rows[:-1])
    assert total["lanes_times_fewer"] == total["float32_instructions"] / total["lanes_instructions"]


def test_fewer_bits_need_fewer_instructions_and_bytes():
    costs = [cost_table(small(b, g))[-1]["lanes_instructions"] for b, g in ((8, "symmetric"), (5, "odd"), (4, "odd"))]
    sizes = [memory_summary(small(b, g))[2]["weights_bytes"] for b, g in ((8, "symmetric"), (5, "odd"), (4, "odd"))]
    assert costs[0] > costs[1] > costs[2]
    assert sizes[0] > sizes[1] > sizes[2]


def test_the_rounding_mode_changes_the_finish_only():
    rng = np.random.default_rng(3)
    costs = {}
    for mode in ("single", "double", "double_up"):
        layers = (
            dense(rng, "layer0", (8, 32), 8, "symmetric", True, mode),
            output(rng, "out", (2, 8), 8, "symmetric"),
        )
        costs[mode] = cost_table(program_of(*layers))[0]["lanes_instructions"]
    assert costs["single"] - costs["double_up"] == 12
    assert costs["double"] - costs["double_up"] == 6


def test_a_lane_that_takes_one_product_is_refused():
    with pytest.raises(ValueError, match="only 1 fit"):
        lanes_instructions((8, 32), 1, 29)
