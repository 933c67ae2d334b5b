"""What convolutional networks need: by hand, by counting written bytes and real states, against the network's cost."""

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsbench.export.convolutional import (
    PARTS,
    constants_of,
    convolutional_bytes,
    convolutional_parts,
    pack_weights,
    unpack_weights,
)
from kwsbench.export.recognizer import unpack_constants
from kwsbench.integer import convolution_run as run
from kwsbench.integer.drawn_convolutional import draw_convolutional
from kwsbench.models.layers import Add, Conv, Front, Network, Output, Pool
from kwsbench.models.space import cost
from kwsbench.resources.convolutional import NEEDS_BASIS, OPERATION_BASIS, Needs, needs, network_of, operation_table

LABELS = ("_other_", "happy")
SPECTRAL = Network(
    Front("mfcc", 10, 640, 320),  # 49 frames a second, 50 in a long stream
    LABELS,
    (
        Conv("stem", 1, 8, (3, 4), (2, 2), (1, 1)),  # 24 x 5 x 8
        Conv("deep", 8, 8, (3, 3), (1, 1), (1, 1), depthwise=True),
        Conv("mix", 8, 8, relu=False),
        Add("sum", "stem"),
        Pool("mean", 20),
        Output("out", 8, 2),
    ),
)
RAW = Network(
    Front("raw"),
    LABELS,
    (
        Conv("stem", 1, 6, (40, 1), (20, 1)),  # 800 x 6
        Conv("deep", 6, 6, (16, 1), (16, 1), depthwise=True, relu=False),  # 50 x 6
        Conv("mix", 6, 6, relu=False),
        Add("sum", "deep"),
        Pool("mean", 50),
        Output("out", 6, 2),
    ),
)
WEIGHTS = {"stem": 8, "deep": 4, "mix": 2, "sum": 8, "mean": 8, "out": 3}
WIDTHS = {"stem": 4, "deep": 3, "mix": 5, "sum": 6, "mean": 8, "out": 8}


@pytest.fixture(scope="module")
def spectral():
    return draw_convolutional(SPECTRAL, weight_bits=WEIGHTS, activation_bits=WIDTHS)


@pytest.fixture(scope="module")
def raw():
    return draw_convolutional(RAW, weight_bits=WEIGHTS, activation_bits=WIDTHS, frames=3200)


def test_a_network_worked_out_by_hand(spectral):
    found = needs(spectral)
    macs = {"stem": 5 * 96, "deep": 5 * 72, "mix": 5 * 64}
    # The mean looks at 20 of 24 frames, the depthwise kernel at two more before them, the stem at 46 of 49.
    assert found.macs_per_clip == 22 * macs["stem"] + 20 * (macs["deep"] + macs["mix"]) + 16
    assert found.macs_per_second == 25 * (sum(macs.values()) + 16)
    assert found.weights == 96 + 72 + 64 + 16
    assert found.bits_per_weight == (96 * 8 + 72 * 4 + 64 * 2 + 16 * 3) / 248
    assert found.bits_per_activation == (40 * (4 + 3 + 5 + 6) + 8 * 8) / 168
    constants = len(convolutional_parts(spectral)["constants"])
    assert found.flash_unpadded_bytes == 96 + 36 + 16 + 6 + constants + 84
    assert found.flash_container_bytes == 248 + constants + 84
    # Kept: 2 frames of 10 at 8 bits, 2 of 40 at 4 bits, 19 sums of 8 over 5 frequencies at 6 + 3 bits.
    # At the addition there live the stem's frame, the one before and the sum: 20 + 25 + 30 bytes.
    assert found.ram_streaming_bytes == 20 + 40 + 171 + 75
    assert found.ram_streaming_container_bytes == 20 + 80 + 304 + 120
    assert found.ram_whole_bytes == 22 * 20 + 20 * (25 + 30)
    assert found.ram_whole_container_bytes == (22 + 20 + 20) * 40


def test_samples_take_two_bytes(raw):
    found = needs(raw)
    assert found.macs_per_clip == 800 * 240 + 50 * 96 + 50 * 36 + 12
    assert found.macs_per_second == 800 * 240 + 50 * (96 + 36 + 12)
    # Kept: 39 samples, 15 frames of 6 at 4 bits, 49 of 6 at 6 bits. Alive at the mixing: deep (18 bits), mix (30);
    # at the addition deep, mix and the sum (36 bits).
    assert found.ram_streaming_bytes == 78 + 45 + math.ceil(49 * 36 / 8) + (3 + 4 + 5)
    assert found.ram_streaming_container_bytes == 78 + 90 + 294 + 18
    assert found.ram_whole_bytes == 32000 + 800 * 3
    assert found.ram_whole_container_bytes == 32000 + 4800
    assert needs(raw, 8000).ram_whole_bytes == 16000 + 400 * 3


def test_every_number_says_how_it_is_known(spectral):
    assert list(NEEDS_BASIS) == [f.name for f in fields(Needs)]
    rows = operation_table(spectral)
    assert set(OPERATION_BASIS) < set(rows[0])
    assert set(OPERATION_BASIS.values()) | set(NEEDS_BASIS.values()) == {"measured", "modelled"}
    found, total = needs(spectral), rows[-1]
    assert total["operation"] == "total"
    assert [total[k] for k in ("weights", "macs_per_clip", "macs_per_second")] == [
        found.weights,
        found.macs_per_clip,
        found.macs_per_second,
    ]
    assert total["packed_bytes"] + total["constants_bytes"] + 84 == found.flash_bytes
    assert [row["output"] for row in rows[:-1]] == ["22 x 5 x 8"] + ["20 x 5 x 8"] * 3 + ["1 x 1 x 8", "1 x 1 x 2"]
    assert [row["activation_bits"] for row in rows[:-1]] == [4, 3, 5, 6, 8, 32]


@pytest.mark.parametrize("grid, bits", [("odd", 1), ("odd", 5), ("twos_complement", 3), ("symmetric", 8), ("table", 2)])
def test_written_bytes_are_the_predicted_ones_and_hold_everything(grid, bits):
    for network in (SPECTRAL, RAW):
        program = draw_convolutional(network, weight_bits=bits, grid=grid, frames=640)
        parts = convolutional_parts(program)
        assert tuple(parts) == PARTS
        assert {k: len(v) for k, v in parts.items()} == convolutional_bytes(program)
        assert needs(program).flash_bytes == sum(map(len, parts.values()))
        at = place = 0
        for operation in program.operations:
            data = pack_weights(operation)
            assert parts["weights"][at : at + len(data)] == data
            at += len(data)
            if data:
                assert np.array_equal(unpack_weights(data, operation), operation.codes)
            for values in constants_of(operation):
                assert unpack_constants(*_constants(parts["constants"], place, len(values))).tolist() == values.tolist()
                place += len(_constants(parts["constants"], place, len(values))[0])
        assert (at, place) == (len(parts["weights"]), len(parts["constants"]))
        assert len(parts["input"]) == (0 if network is RAW else 84)
        unpadded = sum(math.ceil(o.codes.size * o.weight_bits / 8) for o in program.operations if hasattr(o, "codes"))
        assert unpadded <= at


def _constants(data, place, rows):
    size = 2 + data[place + 1] * (rows if data[place] else 1)
    return data[place : place + size], rows


def test_a_real_stream_remembers_as_much(spectral, raw):
    """Sample by sample: the largest state of every operation, in containers, is the counted one."""
    for program, count in ((spectral, 12), (raw, 700)):
        x = np.random.default_rng(0).normal(size=(count, program.front["bins"])).astype(np.float32)
        state = run.fresh(program)
        largest = np.zeros(len(state), int)
        for t in range(count):
            _, state = run.step(program, x[t : t + 1], state)
            largest = np.maximum(largest, [s.nbytes for s in state])
        rows = operation_table(program)[:-1]
        assert [row["state_container_bytes"] for row in rows] == largest.tolist()


def test_real_tensors_of_a_clip_are_the_counted_ones(spectral):
    """The addition's tensors, which all three live at once, from a run over a second of frames."""
    x = np.random.default_rng(0).normal(size=(49, 10)).astype(np.float32)
    outputs = run.trace(spectral, x)
    assert needs(spectral).ram_whole_container_bytes == sum(
        outputs[i][first:].nbytes for i, first in ((0, 2), (2, 4), (3, 4))
    )


@pytest.mark.parametrize("network", [SPECTRAL, RAW])
def test_the_network_comes_back_from_its_program(network):
    assert network_of(draw_convolutional(network, frames=640)) == network


@st.composite
def chains(draw):
    """One-dimensional networks with additions to any earlier output of the same rate."""
    layers, names = [Conv("stem", 1, 4, (8, 1), (draw(st.integers(1, 8)), 1))], ["stem"]
    for i in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["mix", "deep", "add", "slow"]))
        if kind == "add":
            layers.append(Add(f"l{i}", draw(st.sampled_from(names))))
        elif kind == "slow":
            layers.append(Conv(f"l{i}", 4, 4, (3, 1), (2, 1)))
            names = []
        else:
            layers.append(Conv(f"l{i}", 4, 4, (draw(st.integers(1, 4)), 1), depthwise=kind == "deep", relu=False))
        names.append(layers[-1].name)
    return Network(Front("raw"), LABELS, (*layers, Pool("mean", draw(st.integers(1, 9))), Output("out", 4, 2)))


@given(network=chains())
@settings(max_examples=30)
def test_at_eight_bits_they_are_the_costs_of_the_network(network):
    found, expected = needs(draw_convolutional(network, frames=300)), cost(network)
    assert found.weights == expected.weights
    assert found.macs_per_clip == expected.macs_per_clip
    assert found.macs_per_second == pytest.approx(expected.macs_per_second, rel=1e-12)
    assert found.ram_streaming_bytes == found.ram_streaming_container_bytes == expected.peak_bytes_streaming
    assert found.ram_whole_bytes == found.ram_whole_container_bytes == expected.peak_bytes_whole
    assert found.bits_per_weight == found.bits_per_activation == 8
