"""Integer programs of convolutional networks: files, sizes, samples, bad inputs."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from kwsbench.integer import convolution_run as run
from kwsbench.integer.convolution import load_convolutional, shapes
from kwsbench.integer.drawn_convolutional import draw_convolutional
from kwsbench.models.layers import Add, Conv, Front, Network, Output, Pool

STACK = (
    Conv("stem", 1, 4, (3, 3), (2, 2), (1, 1)),
    Conv("deep", 4, 4, (3, 2), (1, 1), depthwise=True, relu=False),
    Conv("mix", 4, 4, relu=False),
    Add("sum", "deep"),
    Pool("mean", 3),
    Output("out", 4, 2),
)
SPECTRAL = Network(Front("lfbe", 6, 400, 160), ("_other_", "happy"), STACK)
RAW = Network(
    Front("raw"),
    ("_other_", "happy"),
    (Conv("stem", 1, 4, (6, 1), (4, 1)), Pool("mean", 5), Output("out", 4, 2)),
)
BITS = {"stem": 8, "deep": 3, "mix": 2, "sum": 8, "mean": 8, "out": 5}


@pytest.fixture(scope="module")
def program():
    return draw_convolutional(SPECTRAL, weight_bits=BITS, activation_bits=6)


@pytest.fixture(scope="module")
def raw():
    return draw_convolutional(RAW, activation_bits=4, frames=400)


def frames(program, count, seed=0):
    shape = count, program.front["bins"]
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_shapes_follow_the_network(program, raw):
    assert shapes(program) == [(6, 1), (3, 4), (2, 4), (2, 4), (2, 4), (1, 4), (1, 2)]
    assert shapes(raw) == [(1, 1), (1, 4), (1, 4), (1, 2)]
    for one, count in ((program, 21), (raw, 43)):
        found = run.trace(one, frames(one, count))
        assert [y.shape[1:] for y in found[:-1]] == shapes(one)[1:-1]
        assert found[-1].dtype == np.int32 and all(y.dtype == np.int8 for y in found[:-1])


def test_a_saved_program_computes_the_same(program, raw, tmp_path):
    for one in (program, raw):
        path = tmp_path / "p.safetensors"
        one.save(path)
        loaded = load_convolutional(path)
        x = frames(one, 50)
        assert np.array_equal(run.run(loaded, x), run.run(one, x))
        assert [type(o) for o in loaded.operations] == [type(o) for o in one.operations]
        for mine, theirs in zip(loaded.operations, one.operations):
            for key, value in vars(theirs).items():
                assert np.array_equal(getattr(mine, key), value)
                assert type(getattr(mine, key)) is type(value)
        assert (loaded.labels, loaded.front, loaded.metadata) == (one.labels, one.front, one.metadata)
        assert not list(tmp_path.glob("*.tmp*"))


def test_files_that_are_no_program_are_refused(program, tmp_path):
    with pytest.raises(FileNotFoundError, match="no convolutional program at"):
        load_convolutional(tmp_path / "none")
    path = tmp_path / "p.safetensors"
    program.save(path)
    data = path.read_bytes()
    with safe_open(str(path), framework="numpy") as f:
        metadata = f.metadata()
    tensors = load_file(path)
    for size in (0, 5, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="is truncated"):
            load_convolutional(path)
    save_file(tensors, path, metadata={"kwsbench": '{"format": "kwsbench-program-1"}'})
    with pytest.raises(ValueError, match="is not a kwsbench convolutional program"):
        load_convolutional(path)
    short = {k: v for k, v in tensors.items() if k != "1.shift"}
    save_file(short, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"damaged .*1\.shift.*lower the model again"):
        load_convolutional(path)
    save_file(tensors | {"1.codes": np.zeros((4, 3, 2, 2), np.int8)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"damaged .*deep has codes"):
        load_convolutional(path)


def changed(program, index, **values):
    operations = list(program.operations)
    operations[index] = replace(operations[index], **values)
    return replace(program, operations=tuple(operations))


@pytest.mark.parametrize(
    "index, values, message",
    [
        (0, {"codes": np.zeros((4, 3, 9, 1), np.int8)}, "stem has a kernel over 9 frequencies, but 6 come in"),
        (0, {"stride": (4, 1)}, r"stem: stride \(4, 1\), kernel \(3, 3\)"),
        (0, {"shift": np.ones(3, np.int32)}, "stem needs a bias, multiplier and shift for each of its 4 outputs"),
        (1, {"depthwise": False}, r"deep has codes \(4, 3, 2, 1\), but 4 channels come in"),
        (3, {"source": 0}, "sum adds operation 0, which is not an earlier one of its own shape"),
        (3, {"source": 3}, "sum adds operation 3"),
        (4, {"frames": 0}, "mean averages 0 frames of 2 frequencies"),
        (4, {"frames": 2**23}, "at most 256 frequencies and 16777215 values"),
        (5, {"codes": np.zeros((2, 5), np.int8)}, "out maps 5 channels to 2 of 2 labels, but 1 x 4 come in"),
        (5, {"codes": np.zeros((3, 4), np.int8)}, "out maps 4 channels to 3 of 2 labels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(program, index, values, message):
    with pytest.raises(ValueError, match=message):
        changed(program, index, **values)


def test_programs_that_hang_in_the_air_are_refused(program, raw):
    with pytest.raises(ValueError, match="one output_dense, its last operation, got"):
        replace(program, operations=program.operations[:-1])
    with pytest.raises(ValueError, match="an input has 8 or 16 bits, got 12"):
        replace(program, input_bits=12)
    with pytest.raises(ValueError, match="read by a convolution"):
        replace(raw, operations=raw.operations[1:])
    with pytest.raises(ValueError, match=r"6 bins, but \(1,\) means"):
        replace(program, input=raw.input)


def test_an_addition_across_a_stride_in_time_is_refused(program):
    wide = np.zeros((4, 2, 1, 4), np.int8)
    late = replace(program.operations[2], name="late", codes=wide, stride=(2, 1))
    with pytest.raises(ValueError, match="sum adds operation 1, which is not an earlier one of its own shape"):
        replace(program, operations=(*program.operations[:3], late, *program.operations[3:]))


@pytest.mark.parametrize("shape", [(5, 7), (6,), (2, 5, 6), ()])
def test_inputs_of_another_width_are_refused(program, shape):
    with pytest.raises(ValueError, match=r"takes lfbe input of 6 value\(s\) per frame, got shape"):
        run.run(program, np.zeros(shape, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_refused(program, raw, bad):
    for one in (program, raw):
        x = frames(one, 8)
        x[3] = bad
        with pytest.raises(ValueError, match="NaN or infinite values: check the audio"):
            run.step(one, x, run.fresh(one))


def test_an_unknown_backend_is_named(program):
    with pytest.raises(ValueError, match=r"unknown backend 'cuda'; choose one of \['numba', 'reference'\]"):
        run.run(program, frames(program, 3), "cuda")


def test_samples_of_16_bits_are_their_own_codes(raw):
    """As int16, as float at full scale +-1, one per row: the same codes, all 65,536 of them."""
    samples = np.arange(-(2**15), 2**15).astype(np.int16)
    as_float = samples.astype(np.float32) / 2**15
    for x in (samples, as_float, as_float[:, None], as_float.astype(np.float64)):
        codes = run.quantize(raw, x)
        assert codes.dtype == np.int16
        assert np.array_equal(codes[:, 0, 0], samples)
    assert run.quantize(raw, np.array([1.0, 2.0, -3.0]))[:, 0, 0].tolist() == [32767, 32767, -32768]
    halves = (samples[1:-1] + np.float32(0.5)) / np.float32(2**15)
    assert np.array_equal(run.quantize(raw, halves)[:, 0, 0], samples[1:-1] + 1)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_samples_of_other_integers_are_refused(raw, kind):
    with pytest.raises(ValueError, match=f"samples are int16, or floats of full scale .*got {np.dtype(kind)}"):
        run.run(raw, np.zeros(4000, kind))


def test_a_fresh_state_is_as_short_as_can_be(program, raw):
    assert [s.shape for s in run.fresh(program)] == [(1, 6, 1), (2, 3, 4), (0, 2, 4), (0,), (2, 4), (0,)]
    assert [s.dtype for s in run.fresh(program)] == [np.int8] * 4 + [np.int16, np.int8]
    assert [(s.shape, s.dtype) for s in run.fresh(raw)[:2]] == [((2, 1, 1), np.int16), ((4, 4), np.int8)]


def test_a_step_leaves_its_state_alone(program):
    x, state = frames(program, 9), run.fresh(program)
    _, after = run.step(program, x[:4], state)
    before = [s.copy() for s in after]
    run.step(program, x[4:], after)
    assert all(np.array_equal(a, b) for a, b in zip(after, before))
    assert not any(s.any() for s in state)


def test_logits_are_accumulators_in_real_units(program):
    x = frames(program, 12)
    acc, _ = run.step(program, x, run.fresh(program))
    assert np.array_equal(run.run(program, x), acc * program.operations[-1].scale)
    assert run.run(program, x[:0]).shape == (0, 2)
