"""The integer LSTM cell: curves against the true ones, NumPy = torch, exact in float64, edges, refused constants."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from kwsbench.arithmetic import gates

Z = np.arange(-(2**15), 2**15, dtype=np.int64)
CURVES = {"sigmoid": (gates.SIGMOID, lambda x: 1 / (1 + np.exp(-x))), "tanh": (gates.TANH, np.tanh)}


@pytest.mark.parametrize("name", CURVES)
def test_curves_lie_within_five_units_of_the_true_ones(name):
    table, true = CURVES[name]
    got = gates.curve(Z, table.astype(np.int64))
    assert np.max(np.abs(got - true(Z / 2.0**12) * 2.0**15)) < 5
    assert np.all(np.diff(got) >= 0)


@pytest.mark.parametrize("name", CURVES)
def test_no_entry_of_a_table_lies_near_a_tie(name):
    """So every libm makes the same table."""
    _, true = CURVES[name]
    exact = true((np.arange(gates.ENTRIES) - 256) / 32.0) * 2.0**15
    assert np.min(np.abs(exact - np.floor(exact) - 0.5)) > 1e-6


def drawn(count=3000, seed=0):
    """Accumulators, constants and cell states: ordinary ones, extreme ones, and ties of the shift."""
    rng = np.random.default_rng(seed)
    x_unit, h_unit = 2.0 ** rng.uniform(-16, -6, count), 2.0 ** rng.uniform(-16, -6, count)
    k = gates.gate_constants(x_unit, h_unit, rng.normal(size=count) * 2)
    size = 2.0 ** rng.uniform(4, 24, (2, count))
    acc_x, acc_h = (rng.uniform(-1, 1, (2, count)) * size).astype(np.int64)
    acc_x[:9], acc_h[:9] = 2**24 - 1, -(2**24) + 1
    bias, half = k.bias.copy(), (1 << k.shift) >> 1
    bias[::5] = (half * (2 * rng.integers(-100, 100, count) + 1))[::5]  # odd multiples of one half
    acc_x[::5] = acc_h[::5] = 0
    return acc_x, acc_h, gates.GateConstants(k.input_multiplier, k.state_multiplier, bias, k.shift)


def exact_preactivation(acc_x, acc_h, k):
    values = zip(acc_x, acc_h, k.input_multiplier, k.state_multiplier, k.bias, k.shift)
    total = [Fraction(int(x) * int(m) + int(h) * int(n) + int(b), 2 ** int(s)) for x, h, m, n, b, s in values]
    return np.array([max(-(2**15), min(2**15 - 1, (2 * t + 1) // 2)) for t in total])


def test_preactivations_are_exact_in_numpy_torch_and_float64():
    acc_x, acc_h, k = drawn()
    want = exact_preactivation(acc_x, acc_h, k)
    constants = k.input_multiplier, k.state_multiplier, k.bias, k.shift
    assert np.array_equal(gates.preactivation(acc_x, acc_h, *constants), want)
    tensors = [torch.from_numpy(v) for v in (acc_x, acc_h, *constants)]
    assert np.array_equal(gates.preactivation(*tensors).numpy(), want)
    total = acc_x * k.input_multiplier.astype(float) + acc_h * k.state_multiplier.astype(float) + k.bias
    in_float = np.clip(np.floor(total / 2.0**k.shift + 0.5), -(2**15), 2**15 - 1)
    assert np.array_equal(in_float, want)
    assert {-(2**15), 2**15 - 1} <= set(want.tolist())


def test_cells_are_equal_in_numpy_and_torch_and_saturate():
    rng = np.random.default_rng(1)
    z = rng.integers(-(2**15), 2**15, (500, 4 * 7))
    c = rng.integers(-(2**15), 2**15, (500, 7))
    z[:3], c[:2], c[2] = 2**15 - 1, 2**15 - 1, -(2**15)
    z[3], c[3] = -(2**15), -(2**15)
    tables = gates.SIGMOID.astype(np.int64), gates.TANH.astype(np.int64)
    h, after = gates.lstm(z, c, *tables)
    in_torch = gates.lstm(*(torch.from_numpy(v) for v in (z, c, *tables)))
    assert np.array_equal(in_torch[0].numpy(), h)
    assert np.array_equal(in_torch[1].numpy(), after)
    assert np.all(after[:2] == 2**15 - 1)  # 16 and one more stays 16
    assert np.all(h[:2] == 127)
    assert np.all(h[3] == 0)  # everything shut
    i, f, g, o = (z[:, 7 * k : 7 * k + 7] / 2.0**12 for k in range(4))
    float_c = np.clip(c / 2.0**11 / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i)), -16, 16)
    assert np.max(np.abs(after / 2.0**11 - float_c)) < 3e-3
    assert np.max(np.abs(h / 2.0**7 - np.tanh(float_c) / (1 + np.exp(-o)))) < 1.1 * 2.0**-7


def test_the_joiners_curve_in_numpy_and_torch():
    table = gates.TANH.astype(np.int64)
    got = gates.squash(Z, table)
    assert np.array_equal(gates.squash(torch.from_numpy(Z), torch.from_numpy(table)).numpy(), got)
    assert got.min() == -128
    assert got.max() == 127
    assert np.max(np.abs(got[256:-256] / 2.0**7 - np.tanh(Z[256:-256] / 2.0**12))) < 1.01 * 2.0**-7


@pytest.mark.parametrize(
    "x_unit, h_unit, bias, message",
    [
        (np.nan, 0.01, 0.0, "row 0 of a gate has units nan"),
        (0.01, 0.01, np.inf, "bias inf"),
        (0.0, 0.0, 0.0, "not above 0"),
        (1e-14, 1e-14, 0.0, "check its weights' scales"),
        (1e9, 0.01, 0.0, "check its weights' scales"),
        (1e-9, 1e-9, 50.0, "exceeds 51 bits"),
    ],
)
def test_constants_that_do_not_fit_are_refused(x_unit, h_unit, bias, message):
    with pytest.raises(ValueError, match=message):
        gates.gate_constants(np.array([x_unit]), np.array([h_unit]), np.array([bias]))
