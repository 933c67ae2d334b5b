"""An independent C program, written from docs/arithmetic.md, against the package: requantization on random and
tie-heavy values, the constants of folding, every layer of whole programs.

Needs a C compiler with 128-bit integers (gcc or clang on a 64-bit machine); without one the module is skipped.
"""

import ctypes

import numpy as np
import pytest
import torch

from kwsbench.arithmetic import fixedpoint, folding
from kwsbench.integer import run
from kwsbench.integer.kernels import npu, scalar
from kwsbench.integer.lower import lower
from kwsbench.integer.program import Dense, OutputDense, UnfoldedDense
from kwsbench.models.feedforward import Spotter, SpotterConfig
from kwsbench.quantizers import QUANTIZERS
from kwsbench.quantizers.attach import QuantizedSpotter, WeightPlan, stage_two_plan

MODES = {"single": 0, "double": 1, "double_up": 2}


def accumulators(seed, count):
    """int32 accumulators with multipliers and shifts: a third anywhere, a third near the int8 range, a third on ties
    of the single rounding or one beside them, powers of two as multipliers (where ties are dense) among them."""
    rng = np.random.default_rng(seed)
    m = rng.integers(2**30, 2**31, count)
    m[::4] = 2**30
    m[1::8] = 2**30 + 2 ** rng.integers(0, 30, len(m[1::8]))
    s = rng.integers(1, 63, count)
    acc = rng.integers(-(2**31), 2**31, count)
    near = np.arange(count) % 3 > 0
    target = rng.integers(-260, 261, count) / 2  # half-integers: the ties
    nearest = np.round(target * 2.0**s / m + np.where(np.arange(count) % 3 == 2, rng.integers(-1, 2, count), 0))
    acc = np.where(near, np.clip(nearest, -(2.0**31), 2.0**31 - 1).astype(np.int64), acc)
    return acc, m, s


@pytest.mark.parametrize("rounding", MODES)
def test_requantization_equals_c(c, call, rounding):
    acc, m, s = accumulators(MODES[rounding], 60_000)
    want = np.empty_like(acc)
    call(c.requantize_many, len(acc), acc, m, s, ctypes.c_int(MODES[rounding]), want)
    assert np.array_equal(fixedpoint.REQUANTIZE[rounding](acc, m, s), want)
    in_torch = fixedpoint.REQUANTIZE[rounding](*(torch.from_numpy(v) for v in (acc, m, s)))
    assert np.array_equal(in_torch.numpy(), want)
    mode = scalar.ROUNDINGS[rounding]
    assert [scalar.requantize(*v, mode) for v in zip(acc[:6000], m[:6000], s[:6000])] == want[:6000].tolist()
    # The data holds ties of the single rounding, many of them inside the int8 range.
    ties = (acc.astype(object) * m.astype(object)) % (1 << s.astype(object)) == (1 << (s.astype(object) - 1))
    assert np.sum(ties.astype(bool) & (np.abs(want) < 128)) > 1000


def test_unfolded_requantization_equals_c(c, call):
    rng = np.random.default_rng(3)
    n = 60_000
    acc, a, b = rng.integers(-(2**24), 2**24, n), rng.integers(-127, 128, n), rng.integers(-127, 128, n)
    m1, s = rng.integers(2**14, 2**15, n), rng.integers(1, 47, n)
    m1[::3] = 2**14
    m2 = rng.integers(0, 2**45, n) >> rng.integers(0, 45, n)
    # Every sixth is a tie: an odd multiple of half a unit.
    tie = np.arange(n) % 6 == 0
    acc, b, s = np.where(tie, 1, acc), np.where(tie, 0, b), np.where(tie, 15, s)
    a = np.where(tie, rng.integers(-63, 64, n) * 2 + 1, a)
    want = np.empty(n, np.int64)
    call(c.unfolded_many, n, acc, a, b, m1, m2, s, want)
    wide = -(2**63), 2**63 - 1
    assert np.array_equal(fixedpoint.requantize_unfolded(acc, a, b, m1, m2, s, *wide), want)
    in_torch = fixedpoint.requantize_unfolded(*(torch.from_numpy(v) for v in (acc, a, b, m1, m2, s)), *wide)
    assert np.array_equal(in_torch.numpy(), want)
    in_numba = [scalar.requantize_unfolded(*v) for v in zip(*(v[:6000] for v in (acc, a, b, m1, m2, s)))]
    assert in_numba == want[:6000].tolist()


def test_folded_constants_equal_c(c, call):
    rng = np.random.default_rng(4)
    n = 5000
    g, o = rng.normal(size=n), rng.normal(size=n)
    # Offsets on ties of the bias: an odd number of half units, exact because every scale is a power of two there.
    g[:1000], o[:1000] = 0.5, (rng.integers(-500, 500, 1000) * 2 + 1) * 2.0**-8
    for step, s_x, s_y in ((2.0**-3, 2.0**-3, 0.031), (0.0123, 0.0456, 0.789)):
        m, s, bias = (np.empty(n, np.int64) for _ in range(3))
        call(c.fold, n, g, o, np.full(n, step), s_x, s_y, bias, m, s)
        got = folding.fold(g, o, np.array([step]), s_x, s_y, "symmetric", 2**23)
        assert np.array_equal(got.multiplier, m)
        assert np.array_equal(got.shift, s)
        assert np.array_equal(got.bias, bias)
        assert np.array_equal(got.row_factor, np.sign(g))


@pytest.mark.parametrize("rows", [False, True])
def test_unfolded_constants_equal_c(c, call, rows):
    for seed in range(200):
        rng = np.random.default_rng(seed)
        g, o = rng.normal(size=7), rng.normal(size=7) * rng.choice([0.0, 0.1, 10.0])
        step = rng.uniform(0.001, 0.1, 7 if rows else 1)
        s_x, s_y = rng.uniform(0.01, 1, 2).tolist()
        a, b, layer = np.empty(7, np.int64), np.empty(7, np.int64), np.empty(3, np.int64)
        call(c.unfold, 7, g * step if rows else g, o, 1.0 if rows else float(step[0]), s_x, s_y, a, b, layer)
        got = folding.unfold(g, o, step, s_x, s_y)
        assert [got.m1, got.m2, got.shift] == layer.tolist()
        assert np.array_equal(got.gain_codes, a)
        assert np.array_equal(got.offset_codes, b)
        assert 2**14 <= got.m1 < 2**15


def c_layer(c, call, x, layer):
    """One layer of a program in C."""
    shape = len(x), len(layer.codes), layer.codes.shape[1]
    if isinstance(layer, OutputDense):
        y = np.empty(shape[:2], np.int32)
        call(c.output_dense, *shape, x, layer.codes, layer.bias, y)
        return y
    y, lo = np.empty(shape[:2], np.int8), ctypes.c_int(0 if layer.relu else -128)
    if isinstance(layer, Dense):
        mode = ctypes.c_int(MODES[layer.rounding])
        assert call(c.dense, *shape, x, layer.codes, layer.bias, layer.multiplier, layer.shift, mode, lo, y) == 0
    else:
        assert isinstance(layer, UnfoldedDense)
        constants = layer.m1, layer.m2, ctypes.c_int(layer.shift), lo
        call(c.unfolded_dense, *shape, x, layer.codes, layer.gain_codes, layer.offset_codes, *constants, y)
    return y


CONFIG = SpotterConfig(("yes", "no"), n_mels=6, stacked_frames=4, hidden=(17, 24))
FORMS = [("unfolded", "single"), ("folded", "single"), ("folded", "double"), ("folded", "double_up")]


@pytest.mark.parametrize("form, rounding", FORMS)
@pytest.mark.parametrize("method, bits", [(m, b) for m in sorted(QUANTIZERS) for b in (1, 2, 5, 8)])
def test_whole_programs_equal_c(c, call, method, bits, form, rounding):
    generator = torch.Generator().manual_seed(bits)
    model = Spotter(CONFIG, bits)
    for norm in model.norms:
        for p in (norm.gain, norm.gamma, norm.beta, norm.mean):
            p.data.normal_(generator=generator)
        norm.var.uniform_(0.5, 2.0, generator=generator)
        # A table of centroids cannot change sign.
        if method in ("general", "general_hard", "general_slow", "s8b") and form == "folded":
            norm.gain.data.abs_()
            norm.gamma.data.abs_()
    for dense in model.dense:
        dense.bias.data.normal_(generator=generator)
    model.set_normalisation(torch.randn(6, generator=generator), torch.rand(6, generator=generator) + 0.5)
    quantized = QuantizedSpotter(model, stage_two_plan(WeightPlan(method, bits, bits == 5), form, rounding)).eval()
    quantized.calibrate(torch.randn(256, 4, 6, generator=generator))
    program = lower(quantized)
    frames = np.random.default_rng(bits).normal(size=(200, 6)).astype(np.float32) * 2
    # Frames that quantize to ties: mean + (q + 1/2) scale / inverse_std, as float32 has it.
    scale = np.float32(program.input.scale)
    ties = program.input.mean + (np.arange(-8, 8, dtype=np.float32)[:, None] + np.float32(0.5)) * scale / np.float32(
        program.input.inverse_std
    )
    frames = np.concatenate([frames, ties.astype(np.float32)])
    x = np.empty((len(frames), 24), np.int8)
    call(c.windows, len(frames), 4, 6, frames, program.input.mean, program.input.inverse_std, scale, x)
    mine, _ = run.stack(program, frames, run.fresh_ring(program))
    assert np.array_equal(mine, x)
    backends = ["reference", "neon", "neon_sdot"] + (["npu"] if bits in npu.NPU_BITS else [])
    traces = {name: run.trace(program, x, name) for name in backends}
    for i, layer in enumerate(program.layers):
        x = c_layer(c, call, x, layer)
        for name in backends:
            assert np.array_equal(traces[name][i], x), (layer.name, name)
        assert len(np.unique(x)) > 3
