"""The C program of test_c_oracle.py against the integer recognizer: curves, constants, LSTM layers, whole recognizers,
for every engine (reference, packed kernels)."""

import ctypes

import numpy as np
import pytest

from kwsbench.arithmetic import gates
from kwsbench.integer import listen
from kwsbench.integer.drawn import draw_recognizer
from kwsbench.integer.kernels.matvec import has_blocks
from kwsbench.integer.packed import Packed
from kwsbench.integer.reference import quantize_input

GRIDS = [("odd", b) for b in range(1, 8)] + [("twos_complement", b) for b in range(2, 8)]
GRIDS += [("symmetric", b) for b in range(2, 9)] + [("table", b) for b in range(1, 8)]
ENGINES = {"reference": listen.Reference, "rows": lambda recognizer: Packed(recognizer, blocks=False)}
if has_blocks():
    ENGINES["blocks"] = lambda recognizer: Packed(recognizer, blocks=True)


@pytest.fixture(scope="module")
def curves(c, call):
    tables = np.empty((2, gates.ENTRIES), np.int64)
    call(c.make_curves, tables)
    return tables


def test_curve_tables_and_all_arguments_equal_c(c, call, curves):
    z = np.arange(-(2**15), 2**15, dtype=np.int64)
    for kind, table in enumerate((gates.SIGMOID, gates.TANH)):
        assert np.array_equal(table, curves[kind])
        want = np.empty_like(z)
        call(c.curve_many, len(z), kind, z, want)
        assert np.array_equal(gates.curve(z, table.astype(np.int64)), want)


def test_gate_constants_equal_c(c, call):
    rng = np.random.default_rng(0)
    x_unit, h_unit = (2.0 ** rng.uniform(-22, -2, 4000) for _ in range(2))
    x_unit[:500] = 2.0 ** rng.integers(-20, -3, 500) * (1 - 2.0**-26)  # a fraction that rounds up to 2^24
    h_unit[:250] = 0
    bias = rng.normal(size=4000) * 3
    bias[500:1000] = (rng.integers(-500, 500, 500) * 2 + 1) * 2.0**-30
    got = gates.gate_constants(x_unit, h_unit, bias)
    want = np.empty((4000, 4), np.int64)
    for i in range(4000):
        call(c.gate_row, float(x_unit[i]), float(h_unit[i]), float(bias[i]), want[i])
    for column, values in enumerate((got.input_multiplier, got.state_multiplier, got.bias, got.shift)):
        assert np.array_equal(values, want[:, column])
    assert np.any(got.input_multiplier[:500] == 2**23)


def c_constants(layer):
    return layer.input_multiplier, layer.state_multiplier, layer.bias, layer.shift


def c_encoder(c, call, recognizer, x):
    """Every layer over all joined frames int8 ``[T, K]`` -> the last layer's outputs."""
    for number, layer in enumerate(recognizer.encoder):
        if recognizer.reduction > 1 and number == recognizer.reduce_after:
            whole = len(x) // recognizer.reduction
            x = np.ascontiguousarray(x[: whole * recognizer.reduction].reshape(whole, -1))
        hidden = layer.state.codes.shape[1]
        h, cell, y = np.zeros(hidden, np.int8), np.zeros(hidden, np.int16), np.empty((len(x), hidden), np.int8)
        sizes = len(x), x.shape[1], hidden
        call(c.lstm_layer, *sizes, x, layer.input.codes, layer.state.codes, *c_constants(layer), h, cell, y)
        x = y
    return x


def c_search(c, call, recognizer, encoded):
    """Labels and frames of greedy search, with C's arithmetic."""
    layer, joint, output = recognizer.prediction, recognizer.joint, recognizer.output
    hidden = layer.state.codes.shape[1]
    h, cell = np.zeros(hidden, np.int8), np.zeros(hidden, np.int16)

    def predict(label):
        x, y = np.ascontiguousarray(recognizer.embedding.codes[label]), np.empty(hidden, np.int8)
        sizes = 1, len(x), hidden
        call(c.lstm_layer, *sizes, x, layer.input.codes, layer.state.codes, *c_constants(layer), h, cell, y)

    predict(0)
    found = []
    for t, frame in enumerate(encoded):
        for _ in range(recognizer.labels_per_frame):
            y = np.empty(len(joint.bias), np.int8)
            sizes = len(y), len(frame), hidden
            call(c.joint, *sizes, frame, h, joint.input.codes, joint.state.codes, *c_constants(joint), y)
            acc = np.empty(len(output.bias), np.int32)
            call(c.output_dense, 1, len(acc), len(y), y, output.codes, output.bias, acc)
            best = acc.tolist().index(max(acc.tolist()))
            if best == 0:
                break
            found.append((best, t))
            predict(best)
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("grid, bits", GRIDS)
def test_whole_recognizers_equal_c(c, call, curves, grid, bits, engine):
    """Odd sizes, with and without reduction, every engine: encoder frames, labels and their times."""
    assert ctypes.sizeof(ctypes.c_int64) == 8
    emitted = 0
    for seed, hidden, reduction in ((bits, (17, 9, 33), 2), (bits + 8, (37,), 1)):
        recognizer = draw_recognizer(
            hidden,
            bits=bits,
            grid=grid if bits < 8 else "symmetric",
            n_mels=7,
            stack=3,
            reduction=reduction,
            embedding=5,
            prediction=11,
            joint=19,
            symbols=6,
            labels_per_frame=3,
            seed=seed,
        )
        frames = np.random.default_rng(seed).normal(size=(121, 7)).astype(np.float32) * 3
        joined = np.ascontiguousarray(quantize_input(frames, recognizer.input)[:120].reshape(40, 21))
        want = c_encoder(c, call, recognizer, joined)
        running = ENGINES[engine](recognizer)
        encoded, state = listen.encode(running, frames, listen.start(running))
        assert np.array_equal(encoded, want)
        assert len(np.unique(want)) > 20
        state = listen.search(running, encoded, state)
        assert list(zip(state.labels, state.emitted_at)) == c_search(c, call, recognizer, want)
        emitted += len(state.labels)
    assert emitted > 0
