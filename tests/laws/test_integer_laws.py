"""kernel = reference = training emulation, value by value; streamed = whole; saved = loaded."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsbench.export.pack import code_range
from kwsbench.integer import run
from kwsbench.integer.kernels import neon, npu
from kwsbench.integer.lower import LoweringError, lower, prove
from kwsbench.integer.program import load_program
from kwsbench.models.feedforward import Spotter, SpotterConfig
from kwsbench.models.streaming import stack_frames
from kwsbench.quantizers import QUANTIZERS
from kwsbench.quantizers.attach import QuantizedSpotter, WeightPlan, stage_one_plan, stage_two_plan

SMALL = SpotterConfig(("yes", "no"), n_mels=8, stacked_frames=5, hidden=(24, 17, 24))


def random_model(plan, seed=0, config=SMALL, kill=None):
    """A calibrated stage-2 model with random statistics; negative gains too, where the grid can change sign."""
    generator = torch.Generator().manual_seed(seed)
    model = Spotter(config, seed)
    for norm in model.norms:
        for p in (norm.gain, norm.gamma, norm.beta, norm.mean):
            p.data.normal_(generator=generator)
        norm.var.uniform_(0.5, 2.0, generator=generator)
        if plan.weights.method in ("general", "general_hard", "general_slow", "s8b") and plan.batchnorm == "folded":
            norm.gain.data.abs_()
            norm.gamma.data.abs_()
    for dense in model.dense:
        dense.bias.data.normal_(generator=generator)
    if kill is not None:
        model.norms[0].gain.data[kill] = 0
    quantized = QuantizedSpotter(model, plan).eval()
    quantized.calibrate(torch.randn(256, config.stacked_frames, config.n_mels, generator=generator))
    return quantized


def frames(count, seed=1, n_mels=8, size=1.0):
    return np.random.default_rng(seed).normal(size=(count, n_mels)).astype(np.float32) * size


def emulate(model, x):
    """Integer outputs of every layer by the training forward, for float frames ``[T, M]``."""
    windows, _ = stack_frames(model.normalise(torch.from_numpy(x)[None]), model.fresh(1), model.config.stacked_frames)
    taps = []
    with torch.no_grad():
        logits = model.logits(windows[0], taps)
    return [t.numpy() for t in taps], logits.numpy()


EVERY = [
    (method, bits, form, rounding, per_channel)
    for method in QUANTIZERS
    for bits in range(1, 9)
    for form, rounding in (
        ("unfolded", "single"),
        ("folded", "single"),
        ("folded", "double"),
        ("folded", "double_up"),
    )
    for per_channel in (False, True)
]


@pytest.mark.parametrize("method, bits, form, rounding, per_channel", EVERY)
def test_emulation_reference_and_kernels_agree_on_every_value(method, bits, form, rounding, per_channel):
    model = random_model(stage_two_plan(WeightPlan(method, bits, per_channel), form, rounding))
    program = lower(model)
    x = frames(60, size=2.0)
    emulated, logits = emulate(model, x)
    windows, _ = run.stack(program, x, run.fresh_ring(program))
    backends = ["reference", "neon", "neon_sdot"] + (["npu"] if bits in npu.NPU_BITS else [])
    for backend in backends:
        traced = run.trace(program, windows, backend)
        for layer, mine, theirs in zip(program.layers, traced, emulated):
            assert np.array_equal(mine, theirs), (layer.name, backend)
    assert np.array_equal(run.logits(program, traced[-1]).astype(np.float32), logits)
    # The trace is not degenerate: hidden values vary and the outputs are not all alike.
    assert len(np.unique(emulated[0])) > 10
    assert len(np.unique(emulated[-1])) > 3


@pytest.mark.parametrize("form", ["folded", "unfolded"])
@pytest.mark.parametrize("method", sorted(QUANTIZERS))
def test_a_channel_with_no_gain_is_constant(method, form):
    model = random_model(stage_two_plan(WeightPlan(method, 4), form), kill=3)
    x = frames(40)
    emulated, _ = emulate(model, x)
    program = lower(model)
    windows, _ = run.stack(program, x, run.fresh_ring(program))
    for backend in ("reference", "neon"):
        traced = run.trace(program, windows, backend)
        assert np.array_equal(traced[0], emulated[0])
    assert len(np.unique(traced[0][:, 3])) == 1
    _g, offset = model.gain_and_offset(0)
    expected = float(offset[3].detach()) / model.output_scale(0)
    tolerance = 0.51 if form == "folded" else 1.5 + 0.51  # an 8-bit offset code is coarser
    assert abs(traced[0][0, 3] - min(max(expected, 0), 127)) <= tolerance


@pytest.mark.parametrize("form", ["folded", "unfolded"])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("method", sorted(QUANTIZERS))
def test_every_stored_code_lies_on_its_grid(method, bits, form):
    """Also the lowest code of two's complement in a row that folding negates."""
    model = random_model(stage_two_plan(WeightPlan(method, bits), form))
    with torch.no_grad():
        for quantizer in model.weights:
            if method == "linear":
                quantizer.log_step.sub_(2.0)  # many weights lie beyond the range, so the lowest code is used
    x = frames(20)
    emulated, _ = emulate(model, x)
    program = lower(model)
    for layer in program.layers:
        low, high, step = code_range(layer.weight_bits, layer.grid)
        assert low <= layer.codes.min() and layer.codes.max() <= high
        assert np.all((layer.codes.astype(int) - low) % step == 0)
    if method == "linear":
        assert min(layer.codes.min() for layer in program.layers) == low
    windows, _ = run.stack(program, x, run.fresh_ring(program))
    for mine, theirs in zip(run.trace(program, windows), emulated):
        assert np.array_equal(mine, theirs)


@given(cuts=st.lists(st.integers(1, 30), min_size=1, max_size=20), backend=st.sampled_from(sorted(run.BACKENDS)))
@settings(max_examples=40, deadline=None)
def test_streamed_equals_whole_for_every_chunking(cuts, backend):
    program = PROGRAM
    x = frames(sum(cuts), seed=2)
    whole, end = run.step(program, x, run.fresh_ring(program), backend)
    ring, parts, start = run.fresh_ring(program), [], 0
    for cut in cuts:
        y, ring = run.step(program, x[start : start + cut], ring, backend)
        assert ring.dtype == np.int8
        parts.append(y)
        start += cut
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(ring, end)


PROGRAM = lower(random_model(stage_two_plan(WeightPlan("tanh", 5))))


def test_a_program_survives_the_disk(tmp_path):
    for form in ("folded", "unfolded"):
        program = lower(random_model(stage_two_plan(WeightPlan("tanh", 4, True), form)), metadata={"seed": 3})
        program.save(tmp_path / "p.safetensors")
        loaded = load_program(tmp_path / "p.safetensors")
        assert loaded.metadata["seed"] == 3
        assert loaded.keywords == ("yes", "no")
        x = frames(30)
        assert np.array_equal(run.run(program, x), run.run(loaded, x))
    assert list(tmp_path.iterdir()) == [tmp_path / "p.safetensors"]


def test_truncated_and_foreign_programs_are_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    PROGRAM.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"truncated or not a safetensors file"):
        load_program(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"truncated or not a safetensors file"):
        load_program(path)
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="not a kwsbench program"):
        load_program(path)
    with pytest.raises(FileNotFoundError, match="no program at"):
        load_program(tmp_path / "none")


def test_proofs_bound_the_worst_case_and_are_reached():
    """The bound is attained by the input that takes each code's sign: it is tight, not merely safe."""
    assert [layer.proof.max_abs_input for layer in PROGRAM.layers] == [128, 127, 127, 127]
    for layer in PROGRAM.layers:
        worst = np.where(layer.codes > 0, layer.proof.max_abs_input, -layer.proof.max_abs_input)
        row = np.abs(layer.codes.astype(np.int64)).sum(1).argmax()
        assert int(np.sum(worst[row] * layer.codes[row].astype(np.int64))) == layer.proof.max_abs_gemm
        assert layer.proof.max_abs_gemm < 2**24
        assert layer.proof.max_abs_accumulator < 2**31


@pytest.mark.parametrize("beta", [0.0, 1e5])
def test_the_proof_of_an_unfolded_layer_bounds_both_products(beta):
    model = random_model(stage_two_plan(WeightPlan("tanh", 5)))
    with torch.no_grad():
        model.norms[0].beta.fill_(beta)
    layer = lower(model).layers[0]
    acc = np.abs(layer.codes.astype(np.int64)).sum(1) * 128
    gain = int(np.max(acc * np.abs(layer.gain_codes.astype(np.int64)))) * layer.m1
    offset = int(np.max(np.abs(layer.offset_codes.astype(np.int64)))) * layer.m2
    assert layer.proof.max_abs_product == max(gain, offset)
    assert (offset > gain) == (beta > 0)


def test_offsets_beyond_53_bits_are_refused():
    model = random_model(stage_two_plan(WeightPlan("tanh", 5)))
    with torch.no_grad():
        model.norms[0].beta.fill_(1e12)
    with pytest.raises(LoweringError, match=r"layer0: a product can reach \d+, beyond 2\^53"):
        lower(model)


@pytest.mark.parametrize("form", ["folded", "unfolded"])
def test_without_relu_a_layer_keeps_its_negative_outputs(form):
    program = lower(random_model(stage_two_plan(WeightPlan("tanh", 5), form)))
    windows, _ = run.stack(program, frames(60, size=2.0), run.fresh_ring(program))
    layer = program.layers[0]
    with_relu = run.run_reference_layer(windows, layer)
    without = run.run_reference_layer(windows, replace(layer, relu=False))
    assert without.min() < -50
    assert np.array_equal(np.maximum(without, 0), with_relu)
    for backend in run.BACKENDS.values():
        assert np.array_equal(backend(windows, replace(layer, relu=False)), without)


def test_a_model_without_hidden_layers_is_proven_for_its_whole_input():
    """Its only layer meets -128. 16 products -16 * -128 in one int16 lane would wrap: one product fewer fits."""
    config = SpotterConfig(n_mels=8, stacked_frames=20, hidden=())
    model = QuantizedSpotter(Spotter(config), stage_two_plan(WeightPlan("linear", 5)))
    model.calibrate(torch.randn(50, 20, 8))
    with torch.no_grad():
        model.weights[0].weight.fill_(-10)
    program = lower(model)
    layer = program.layers[0]
    assert layer.proof.max_abs_input == 128
    x = np.full((20, 8), -50, np.float32)
    for backend in ("reference", "neon", "neon_sdot", "npu"):
        acc, _ = run.step(program, x, run.fresh_ring(program), backend)
        assert np.array_equal(acc[-1] - layer.bias, [layer.proof.max_abs_gemm] * 2) and acc[-1, 0] > 0, backend


def test_no_frames_give_no_outputs_and_leave_the_ring():
    _, ring = run.step(PROGRAM, frames(9), run.fresh_ring(PROGRAM))
    for backend in run.BACKENDS:
        y, after = run.step(PROGRAM, frames(0), ring, backend)
        assert y.shape == (0, 3)
        assert np.array_equal(after, ring)
    assert run.run(PROGRAM, frames(0)).shape == (0, 3)


@pytest.mark.parametrize("form", ["folded", "unfolded"])
@pytest.mark.parametrize("where, name", [("gamma", "gain"), ("beta", "offset")])
def test_parameters_that_are_not_finite_are_refused(form, where, name):
    model = random_model(stage_two_plan(WeightPlan("tanh", 5), form))
    with torch.no_grad():
        getattr(model.norms[1], where)[4] = float("nan")
    with pytest.raises(ValueError, match=f"the {name} of channel 4 is nan"):
        lower(model)
    with pytest.raises(ValueError, match=f"the {name} of channel 4 is nan"):
        emulate(model, frames(3))


def test_overflows_are_refused_by_name():
    codes = np.full((2, 1200), 127, np.int8)
    with pytest.raises(LoweringError, match=r"layer9: row 0 can reach \d+, beyond the 2\^24"):
        prove("layer9", codes, np.zeros(2, np.int64), 128)
    with pytest.raises(LoweringError, match="beyond int32"):
        prove("layer9", codes[:, :10], np.array([0, 2**31]), 128)
    with pytest.raises(LoweringError, match=r"beyond 2\^53"):
        prove("layer9", codes[:, :10], np.zeros(2, np.int64), 128, 2**53)


def test_stage_one_models_do_not_lower():
    model = QuantizedSpotter(Spotter(SMALL), stage_one_plan(WeightPlan("tanh", 5)))
    with pytest.raises(LoweringError, match="only a stage-2 model"):
        lower(model)


def test_a_lane_schedule_that_is_too_long_wraps():
    """The proven schedule is exact; one product more is not. So the kernel models the instruction, not the sum."""
    x = np.full((1, 160), 127, np.int8)
    codes = np.full((1, 160), 31, np.int8)
    zero, out = np.zeros(1, np.int32), np.empty((1, 1), np.int32)
    safe = neon.lane_products(codes, 127)
    assert safe == 8
    neon.accumulate_lanes(x, codes, zero, safe, out)
    assert out[0, 0] == 160 * 127 * 31
    neon.accumulate_lanes(x, codes, zero, safe + 1, out)
    assert out[0, 0] != 160 * 127 * 31


@pytest.mark.parametrize(
    "largest, first_layer, later",
    [(127, 2, 2), (31, 8, 8), (16, 15, 16), (15, 17, 17), (8, 31, 32)],
)
def test_lane_products_match_the_published_table(largest, first_layer, later):
    codes = np.array([[largest]], np.int8)
    assert neon.lane_products(codes, 128) == first_layer
    assert neon.lane_products(codes, 127) == later


def brute_npu(x, codes, bias, accumulator):
    total, overflows = int(bias), 0
    if accumulator == "sat16":
        clipped = min(max(total, -32768), 32767)
        overflows += clipped != total
        total = clipped
    for a, c in zip(x.tolist(), codes.tolist()):
        total += a * c
        if accumulator == "sat16":
            clipped = min(max(total, -32768), 32767)
            overflows += clipped != total
            total = clipped
    if accumulator == "acc16":
        wrapped = (total + 2**15) % 2**16 - 2**15
        overflows += wrapped != total
        total = wrapped
    return total, overflows


@pytest.mark.parametrize("accumulator", sorted(npu.ACCUMULATORS))
@pytest.mark.parametrize("bits", npu.NPU_BITS)
def test_npu_accumulators_against_brute_force(accumulator, bits):
    rng = np.random.default_rng(0)
    codes = rng.choice(np.arange(-(2**bits) + 1, 2**bits, 2), (5, 300)).astype(np.int8)
    x = rng.integers(-128, 128, (7, 300)).astype(np.int8)
    x[0] = 127 * np.sign(codes[0])  # drives row 0 out of int16
    bias = rng.integers(-40000, 40000, 5).astype(np.int32)
    stream, table = npu.weight_stream(codes, bits, "odd" if bits > 1 else "binary")
    acc = np.empty((7, 5), np.int32)
    overflows = npu.accumulate(x, stream, bits, table, bias, npu.ACCUMULATORS[accumulator], acc)
    wanted = [[brute_npu(x[t], codes[n], bias[n], accumulator) for n in range(5)] for t in range(7)]
    assert acc.tolist() == [[w[0] for w in row] for row in wanted]
    assert overflows == sum(w[1] for row in wanted for w in row)
    assert (overflows > 0) == (accumulator != "acc32")


def test_npu_decodes_any_table():
    rng = np.random.default_rng(0)
    levels = np.sort(rng.choice(np.arange(-127, 128), 32, replace=False))
    codes, x = rng.choice(levels, (5, 33)).astype(np.int8), rng.integers(-128, 128, (7, 33)).astype(np.int8)
    stream, table = npu.weight_stream(codes, 5, "table")
    acc = np.empty((7, 5), np.int32)
    npu.accumulate(x, stream, 5, table, np.zeros(5, np.int32), npu.ACC32, acc)
    assert np.array_equal(acc, x.astype(int) @ codes.astype(int).T)


def test_a_table_does_not_change_sign_in_folding():
    model = random_model(stage_two_plan(WeightPlan("general", 2), "folded"))
    with torch.no_grad():
        model.norms[0].gain[0].neg_()
    with pytest.raises(LoweringError, match=r"layer0: rows of negative gain .* use batchnorm 'unfolded'"):
        lower(model)


def test_npu_refuses_other_widths_and_codes_off_the_grid():
    with pytest.raises(ValueError, match=r"weights of \(1, 5\) bits, got 4"):
        npu.weight_stream(np.ones((1, 4), np.int8), 4, "odd")
    with pytest.raises(ValueError, match="off the 5-bit odd grid"):
        npu.weight_stream(np.full((1, 4), 2, np.int8), 5, "odd")
    with pytest.raises(ValueError, match="accumulator must be one of"):
        npu.layer_outputs(np.zeros((1, 4), np.int8), PROGRAM.layers[0], "acc8")


def test_frames_of_another_width_or_nan_are_refused():
    with pytest.raises(ValueError, match=r"frames of 8 mel bands, got shape \(5, 20\)"):
        run.run(PROGRAM, np.zeros((5, 20), np.float32))
    bad = frames(4)
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        run.run(PROGRAM, bad)
    with pytest.raises(ValueError, match=r"unknown backend 'gpu'; choose one of"):
        run.run(PROGRAM, frames(4), "gpu")
