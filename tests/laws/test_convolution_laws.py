"""Integer convolutional networks: reference = Numba = plain Python = C; streamed = whole; extremes, instructions."""

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsbench.arithmetic import residual
from kwsbench.integer import convolution_reference as reference
from kwsbench.integer import convolution_run as run
from kwsbench.integer.convolution import Add, Conv, Pool
from kwsbench.integer.drawn_convolutional import draw_convolutional
from kwsbench.integer.kernels import convolution as kernels
from kwsbench.integer.program import Proof
from kwsbench.models import layers
from kwsbench.models.layers import Front, Network, Output, same_padding

LABELS = ("_other_", "yes", "no")


def spectral(bins=9, channels=7, frames=4):
    """Frequencies with padding on both, one and no side, strides along both axes, residuals, a mean over several."""
    first = same_padding(bins, 5, 2)
    stack = (
        layers.Conv("stem", 1, channels, (3, 5), (1, 2), first),
        layers.Conv("grow", channels, 2 * channels),
        layers.Conv("deep", 2 * channels, 2 * channels, (3, 3), (1, 1), (1, 1), depthwise=True),
        layers.Conv("shrink", 2 * channels, channels, relu=False),
        layers.Add("sum", "stem"),
        layers.Conv("wide", channels, 5, (4, 3), (2, 2), (0, 1)),
        layers.Conv("back", 5, 6, (2, 1), (1, 1), (1, 0), relu=False),
        layers.Add("twice", "back"),
        layers.Pool("mean", frames),
        Output("out", 6, 3),
    )
    return Network(Front("mfcc", bins, 640, 320), LABELS, stack)


def waveform(taps=16, frames=5):
    """Samples of 16 bits, one frequency, strides of several sizes, kernels as long as their stride and longer."""
    stack = (
        layers.Conv("stem", 1, 6, (taps, 1), (4, 1)),
        layers.Conv("deep", 6, 6, (5, 1), (5, 1), depthwise=True),
        layers.Conv("mix", 6, 9, (1, 1), relu=False),
        layers.Conv("grow", 9, 12),
        layers.Conv("slow", 12, 12, (3, 1), depthwise=True),
        layers.Conv("shrink", 12, 9, relu=False),
        layers.Add("sum", "mix"),
        layers.Conv("two", 9, 4, (3, 1), (2, 1)),
        layers.Pool("mean", frames),
        Output("out", 4, 3),
    )
    return Network(Front("raw"), LABELS, stack)


NETWORKS = {"spectral": spectral, "waveform": waveform}
GRIDS = [("odd", b) for b in range(1, 8)] + [("twos_complement", 3), ("symmetric", 8), ("table", 4)]
DRAWN = {"spectral": 60, "waveform": 1600}  # frames from which scales are drawn


def program_of(name, **options):
    return draw_convolutional(NETWORKS[name](), frames=DRAWN[name], **options)


def recording(program, frames, seed=0):
    """float32 ``[T, bins]`` that reaches both ends of the input's codes, and lies on ties of its rounding."""
    rng = np.random.default_rng(seed)
    raw = program.front["kind"] == "raw"
    x = rng.normal(size=(frames, program.front["bins"])) * (0.3 if raw else 1.5)
    halves = (rng.integers(-100, 100, x.shape) + 0.5) * program.input.scale
    pick = rng.integers(0, 8, x.shape)
    x = np.where(pick == 0, halves, np.where(pick == 1, 9.0 * rng.choice([-1, 1], x.shape), x))
    return x.astype(np.float32)


MODES = {"single": 0, "double": 1, "double_up": 2}
WHOLE = {"spectral": 23, "waveform": 403}  # frames, no multiple of any stride


def in_c(c, call, program, codes):
    """Every operation over a whole recording of codes ``[T, bins, 1]``, in C."""
    outputs, x = [], codes
    for operation in program.operations:
        if isinstance(operation, Conv):
            n, k_t, k_f, _ = operation.codes.shape
            sizes = *x.shape, n, k_t, k_f, *operation.stride, *operation.padding, operation.depthwise
            high = (x.shape[1] + sum(operation.padding) - k_f) // operation.stride[1] + 1
            y = np.empty((len(x) // operation.stride[0], high, n), np.int8)
            constants = operation.bias, operation.multiplier, operation.shift
            mode = ctypes.c_int(MODES[operation.rounding])
            given_ = np.array(sizes, np.int64), x.astype(np.int16), operation.codes, *constants, mode
            assert call(c.conv, *given_, operation.low, operation.high, y) == 0
        elif isinstance(operation, Add):
            y = np.empty_like(x)
            constants = operation.multiplier, operation.source_multiplier, operation.shift
            call(c.add, x.size, x, outputs[operation.source], *constants, operation.low, operation.high, y)
        elif isinstance(operation, Pool):
            y = np.empty((len(x), 1, x.shape[2]), np.int8)
            constants = operation.multiplier, operation.shift, ctypes.c_int(MODES[operation.rounding])
            call(c.pool, *x.shape, operation.frames, x, *constants, operation.low, operation.high, y)
        else:
            y = np.empty((len(x), len(operation.codes)), np.int32)
            call(c.output_dense, *y.shape, x.shape[2], x, operation.codes, operation.bias, y)
        outputs.append(y)
        x = y
    return outputs


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("grid, bits", GRIDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_programs_equal_c(c, call, name, grid, bits, rounding):
    """Every operation of both engines; widths of activations differ from layer to layer."""
    widths = {layer.name: (bits + i) % 8 + 1 for i, layer in enumerate(NETWORKS[name]().layers)}
    program = program_of(name, weight_bits=bits, activation_bits=widths, grid=grid, rounding=rounding, seed=bits)
    x = recording(program, WHOLE[name], bits)
    codes = run.quantize(program, x)
    outputs = in_c(c, call, program, codes)
    for backend in run.BACKENDS:
        for operation, mine, theirs in zip(program.operations, run.trace(program, x, backend), outputs, strict=True):
            assert mine.dtype == theirs.dtype
            assert np.array_equal(mine, theirs), (operation.name, backend)
    for operation, y in zip(program.operations[:-1], outputs):
        assert operation.low <= y.min() and y.max() <= operation.high
        assert len(np.unique(y)) >= min(2, operation.activation_bits)
    assert len(np.unique(outputs[-1])) > 2


@st.composite
def networks(draw):
    """Any layers in any order: strides and kernels of all sizes, additions of everything that fits."""
    raw = draw(st.booleans())
    shape, rate, stack, seen = (1 if raw else draw(st.integers(1, 8)), 1), 1, [], []
    front = Front("raw") if raw else Front("lfbe", shape[0], 400, 160)
    for i in range(draw(st.integers(1, 7))):
        fits = [name for name, other in seen if other == (shape, rate)]
        if fits and draw(st.booleans()):
            stack.append(layers.Add(f"l{i}", draw(st.sampled_from(fits))))
        else:
            frequencies, channels = shape
            padding = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            kernel = draw(st.integers(1, 5)), draw(st.integers(1, frequencies + sum(padding)))
            stride = draw(st.integers(1, min(kernel[0], 2 if rate < 8 else 1))), draw(st.integers(1, 3))
            depthwise = draw(st.booleans())
            outputs = channels if depthwise else draw(st.integers(1, 6))
            form = kernel, stride, padding, depthwise, draw(st.booleans())
            stack.append(layers.Conv(f"l{i}", channels, outputs, *form))
            shape = (frequencies + sum(padding) - kernel[1]) // stride[1] + 1, outputs
            rate *= stride[0]
        seen.append((f"l{i}", (shape, rate)))
    ends = layers.Pool("mean", draw(st.integers(1, 9))), Output("out", shape[1], 3)
    return Network(front, LABELS, (*stack, *ends))


@given(network=networks(), data=st.data())
@settings(max_examples=25)
def test_any_network_equals_c_whole_and_in_two_pieces(c, call, network, data):
    bits = {layer.name: data.draw(st.integers(1, 8)) for layer in network.layers}
    widths = {layer.name: data.draw(st.integers(1, 8)) for layer in network.layers}
    program = draw_convolutional(network, weight_bits=bits, activation_bits=widths, frames=96)
    x = recording(program, data.draw(st.integers(0, 60)))
    outputs = in_c(c, call, program, run.quantize(program, x))
    cut = data.draw(st.integers(0, len(x)))
    for backend in run.BACKENDS:
        assert all(map(np.array_equal, run.trace(program, x, backend), outputs))
        first, state = run.step(program, x[:cut], run.fresh(program), backend)
        second, _ = run.step(program, x[cut:], state, backend)
        assert np.array_equal(np.concatenate([first, second]), outputs[-1])


def test_constants_equal_c(c, call):
    rng = np.random.default_rng(5)
    scales = 2.0 ** rng.uniform(-9, 5, (3000, 3))
    scales[:500] = 2.0 ** rng.integers(-8, 4, (500, 3))
    scales[500:600, 0] = scales[500:600, 2] * (1 - 2.0**-25)  # a fraction that rounds up to 2^20
    for s_x, s_source, s_y in scales.tolist():
        want = np.empty(3, np.int64)
        call(c.add_constants, s_x, s_source, s_y, want)
        k = residual.add_constants(s_x, s_source, s_y)
        assert [k.multiplier, k.source_multiplier, k.shift] == want.tolist()
        frames, frequencies = rng.integers(1, 99, 2).tolist()
        call(c.pool_constants, s_x, s_y, frames, frequencies, want)
        assert list(residual.pool_constants(s_x, s_y, frames, frequencies)) == want[:2].tolist()


def half_up(value, shift):
    below, rest = divmod(value, 2**shift)
    return below + (2 * rest >= 2**shift)


def in_python(program, codes):
    """The equations of docs/arithmetic.md with Python's integers, one output at a time (rounding ``single``)."""
    outputs, x = [], codes.tolist()
    for operation in program.operations:
        if isinstance(operation, Conv):
            x = [_python_conv_frame(operation, x, j) for j in range(len(x) // operation.stride[0])]
        elif isinstance(operation, Add):
            k = operation.multiplier, operation.source_multiplier, operation.shift, operation.low, operation.high
            pairs = zip(x, outputs[operation.source])
            x = [[[_add(a, b, *k) for a, b in zip(*r)] for r in zip(*frames)] for frames in pairs]
        elif isinstance(operation, Pool):
            means = []
            for t in range(len(x)):
                past = [row for u in range(max(0, t - operation.frames + 1), t + 1) for row in x[u]]
                sums = [sum(column) for column in zip(*past)]
                means.append([[_clamp(half_up(v * operation.multiplier, operation.shift), operation) for v in sums]])
            x = means
        else:
            rows, bias = operation.codes.tolist(), operation.bias.tolist()
            x = [[b + sum(p * q for p, q in zip(row, t[0])) for row, b in zip(rows, bias)] for t in x]
        outputs.append(x)
    return outputs


def _add(a, b, m, m_source, shift, low, high):
    return min(max(half_up(a * m + b * m_source, shift), low), high)


def _clamp(v, operation):
    return min(max(v, operation.low), operation.high)


def _python_conv_frame(operation, x, j):
    n_out, k_t, k_f, _ = operation.codes.shape
    (s_t, s_f), below = operation.stride, operation.padding[0]
    frequencies, codes, frame = len(x[0]), operation.codes.tolist(), []
    for g in range((frequencies + sum(operation.padding) - k_f) // s_f + 1):
        row = []
        for n in range(n_out):
            acc = int(operation.bias[n])
            for a in range(k_t):
                for e in range(k_f):
                    t, f = (j + 1) * s_t - k_t + a, g * s_f - below + e
                    if t >= 0 and 0 <= f < frequencies:
                        heard = [x[t][f][n]] if operation.depthwise else x[t][f]
                        acc += sum(p * q for p, q in zip(codes[n][a][e], heard, strict=True))
            row.append(_clamp(half_up(acc * int(operation.multiplier[n]), int(operation.shift[n])), operation))
        frame.append(row)
    return frame


@pytest.mark.parametrize("name, frames", [("spectral", 9), ("waveform", 130)])
def test_both_engines_equal_plain_python(name, frames):
    program = program_of(name, weight_bits=4, activation_bits=5, seed=3)
    x = recording(program, frames, 3)
    want = in_python(program, run.quantize(program, x))
    for backend in run.BACKENDS:
        assert [y.tolist() for y in run.trace(program, x, backend)] == want


def drawn_conv(rng, inputs, outputs, kernel, stride, padding, depthwise=False, codes=None):
    shape = (outputs, *kernel, 1 if depthwise else inputs)
    codes = rng.integers(-127, 128, shape).astype(np.int8) if codes is None else np.full(shape, codes, np.int8)
    constants = np.zeros(outputs, np.int32), np.full(outputs, 2**30, np.int32), np.full(outputs, 40, np.int32)
    rest = -128, 127, 8, 1.0, "single", Proof(128, 0, 0)
    return Conv("c", codes, 8, "symmetric", depthwise, stride, padding, *constants, *rest)


@given(
    channels=st.integers(1, 9),
    outputs=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 6), st.integers(1, 5)),
    skip=st.integers(0, 5),
    frequency_stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(0, 15), st.integers(1, 7)),
    depthwise=st.booleans(),
    samples=st.booleans(),
)
@settings(max_examples=150)
def test_sums_equal_torchs_convolution_in_float64(
    channels, outputs, kernel, skip, frequency_stride, padding, size, depthwise, samples
):
    frames, frequencies = size[0], max(size[1], kernel[1] - sum(padding))
    rng = np.random.default_rng(frames + 100 * channels)
    outputs, stride = channels if depthwise else outputs, (max(1, kernel[0] - skip), frequency_stride)
    operation = drawn_conv(rng, channels, outputs, kernel, stride, padding, depthwise)
    kind = np.int16 if samples else np.int8
    edge = np.iinfo(kind)
    x = rng.integers(edge.min, edge.max + 1, (frames, frequencies, channels)).astype(kind)
    buffer = np.concatenate([np.zeros((kernel[0] - stride[0], frequencies, channels), kind), x])
    planes = torch.nn.functional.pad(torch.tensor(buffer, dtype=torch.float64).permute(2, 0, 1)[None], padding)
    weight = torch.tensor(operation.codes, dtype=torch.float64).permute(0, 3, 1, 2)
    if frames >= stride[0]:
        y = torch.nn.functional.conv2d(planes, weight, stride=stride, groups=channels if depthwise else 1)
        want = y[0].permute(1, 2, 0).numpy().astype(np.int64)
    else:  # torch refuses an empty result
        want = np.zeros((0, (frequencies + sum(padding) - kernel[1]) // frequency_stride + 1, outputs), np.int64)
    assert np.array_equal(reference.conv_sums(buffer, operation), want)
    assert np.array_equal(kernels.conv_sums(buffer, operation), want)
    assert len(want) == frames // stride[0]


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize(
    "x, code", [(-128, -127), (-128, 127), (127, 127), (-32768, -127), (32767, 127), (-32768, 127)]
)
def test_the_ends_of_all_ranges_meet_at_once(x, code, depthwise):
    """The largest sums that the proofs allow, near the ends of int32 for samples."""
    channels = 1 if abs(x) > 128 else 64
    kernel = (500, 1) if abs(x) > 128 else (11, 5)
    operation = drawn_conv(None, channels, channels, kernel, (1, 1), (0, 0), depthwise, code)
    kind = np.int16 if abs(x) > 128 else np.int8
    buffer = np.full((kernel[0] + 2, kernel[1], channels), x, kind)
    want = x * code * kernel[0] * kernel[1] * (1 if depthwise else channels)
    assert abs(want) < 2**31 and (abs(x) <= 128 or abs(want) > 2**30.8)
    for engine in (reference, kernels):
        acc = engine.conv_sums(buffer, operation)
        assert acc.shape == (3, 1, channels) and np.all(acc == want)
    assert np.array_equal(reference.conv(buffer, operation), kernels.conv(buffer, operation))


@pytest.mark.parametrize("x", [-128, 127])
def test_a_mean_of_extreme_codes_is_that_code(x):
    m, s = residual.pool_constants(0.3, 0.3, 50, 20)
    pool = Pool("p", 50, m, s, -128, 127, 8, 0.3, "single")
    sums = reference.frequency_sums(np.full((60, 20, 3), x, np.int8))
    assert sums.dtype == np.int16 and np.all(sums == 20 * x)
    for engine in (reference, kernels):
        assert np.all(engine.pool(sums, pool) == x)


def test_frequency_sums_hold_the_most_frequencies():
    x = np.full((2, residual.POOL_FREQUENCIES, 1), -128, np.int8)
    assert reference.frequency_sums(x).tolist() == [[-(2**15)]] * 2


@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize("rounding, stored", [("single", "single"), ("double", "gemmlowp"), ("double_up", "rndnu")])
def test_requantization_equals_the_instructions(rounding, stored, relu):
    """40,000 accumulators as biases of as many channels: results of real instructions (tests/golden)."""
    with np.load(Path(__file__).parents[1] / "golden" / "neon_insn_golden.npz") as golden:
        acc, m, s = (golden[f"rq__{k}"].astype(np.int32) for k in "ams")
        want = golden[f"rq_{stored}_relu{relu}__y"]
    empty = drawn_conv(None, 1, len(acc), (1, 1), (1, 1), (0, 0), codes=0)
    constants = {"bias": acc, "multiplier": m, "shift": s + 31, "rounding": rounding}
    operation = replace(empty, **constants, low=0 if relu else -128)
    for engine in (reference, kernels):
        assert np.array_equal(engine.conv(np.zeros((1, 1, 1), np.int8), operation)[0, 0], want)


PROGRAMS = {name: program_of(name, weight_bits=3, activation_bits=6, seed=9) for name in NETWORKS}
RECORDINGS = {name: recording(program, 700, 4) for name, program in PROGRAMS.items()}


@given(
    name=st.sampled_from(sorted(NETWORKS)),
    backend=st.sampled_from(sorted(run.BACKENDS)),
    cuts=st.lists(st.one_of(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=16),
)
@settings(max_examples=80)
def test_streamed_equals_whole_for_every_chunking(name, backend, cuts):
    """Empty chunks and single samples among them; the states at the end are the same, too."""
    program, x = PROGRAMS[name], RECORDINGS[name][: sum(cuts)]
    whole, end = run.step(program, x, run.fresh(program), backend)
    state, parts, start = run.fresh(program), [], 0
    for cut in cuts:
        y, state = run.step(program, x[start : start + cut], state, backend)
        parts.append(y)
        start += cut
    assert np.array_equal(np.concatenate(parts), whole)
    for operation, mine, theirs, first in zip(program.operations, state, end, run.fresh(program), strict=True):
        assert mine.dtype == theirs.dtype == first.dtype and mine.dtype in (np.int8, np.int16)
        assert np.array_equal(mine, theirs)
        if isinstance(operation, Conv):
            assert len(first) <= len(mine) < operation.codes.shape[1] or operation.codes.shape[1] == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_sample_by_sample_and_two_engines_in_turn(name):
    """A stream may change engines between any two frames."""
    program, x = PROGRAMS[name], RECORDINGS[name][:170]
    state, parts = run.fresh(program), []
    for t in range(len(x)):
        y, state = run.step(program, x[t : t + 1], state, ("numba", "reference")[t % 2])
        parts.append(y)
    whole = run.step(program, x, run.fresh(program))[0]
    assert len(whole) >= 4
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("name", NETWORKS)
def test_silence_before_a_recording_changes_nothing(name):
    """A fresh state is zeros after normalisation: a stride's worth of mean frames in front only shifts the outputs."""
    program = PROGRAMS[name]
    x = RECORDINGS[name][:200]
    calm = replace(program.operations[-2], frames=1), program.operations[-1]
    program = replace(program, operations=(*program.operations[:-2], *calm))
    strides = int(np.prod([o.stride[0] for o in program.operations if isinstance(o, Conv)]))
    silence = np.tile(program.input.mean, (strides, 1))
    biased = [replace(o, bias=np.zeros_like(o.bias)) if isinstance(o, Conv) else o for o in program.operations]
    program = replace(program, operations=tuple(biased))
    late = run.run(program, np.concatenate([silence, x]))
    assert np.array_equal(late[1:], run.run(program, x))
