"""The lowered program of a convolutional network equals the training emulation: every layer, every value."""

import numpy as np
import pytest
import torch

from kwsbench.integer import convolution_run
from kwsbench.integer.convolution import load_convolutional
from kwsbench.integer.lower import LoweringError, prove
from kwsbench.integer.lower_convolutional import lower_convolutional
from kwsbench.models.convolutional import ConvNet
from kwsbench.models.layers import Conv, Front, Network, Output, Pool
from kwsbench.quantizers import convolutional, fused
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.convolutional import ConvPlan, QuantizedConvNet, mean_bits
from kwsbench.resources.convolutional import needs
from tests.quantizers.conv_nets import RAW, SPECTRAL, heard, made

NETWORKS = {"spectral": SPECTRAL, "raw": RAW}
MIXED = ConvPlan(
    WeightPlan("linear", 4, True),
    4,
    (("*_depthwise", WeightPlan("tanh", 8, True)), ("b_*", WeightPlan("lsq", 2)), ("output", WeightPlan("linear", 1))),
    (("stem", 2), ("a_project", 8), ("b_add", 1)),
)
MIXED_RAW = ConvPlan(
    WeightPlan("tanh", 5),
    8,
    (("stride", WeightPlan("linear", 8)), ("first", WeightPlan("general", 3, True)), ("last", WeightPlan("linear", 2))),
    (("first", 4), ("add", 2), ("last", 1)),
)


def quantized(network, plan, seed=0):
    model = QuantizedConvNet(made(network, seed), plan)
    model.calibrate(heard(network, batch=16))
    model.replan(plan.exact())
    return model.eval()


def zero_gain(model, layer, channel):
    with torch.no_grad():
        model.norms[layer].gamma[channel] = 0


def positive_gains(model, layer):
    with torch.no_grad():
        model.norms[layer].gamma.abs_()


@torch.no_grad()
def emulated(model, x, chunks):
    """Outputs of every layer by name, joined over chunks of so many frames."""
    state, found = model.fresh(len(x)), {}
    for part in torch.split(x, chunks, dim=1):
        taps = {}
        _, state = model.step(part, state, taps)
        for name, values in taps.items():
            found.setdefault(name, []).append(values)
    return {name: torch.cat(parts, dim=1).numpy() for name, parts in found.items()}


def assert_equal_everywhere(model, x, chunks, backend):
    program = lower_convolutional(model)
    ours = emulated(model, x, chunks)
    for b, clip in enumerate(x.numpy()):
        theirs = convolution_run.trace(program, clip, backend)
        assert [o.name for o in program.operations] == list(ours)
        for operation, values in zip(program.operations, theirs, strict=True):
            mine = ours[operation.name][b]
            assert mine.shape == values.shape, operation.name
            assert np.array_equal(mine, values), operation.name


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("chunks", [60, [1, 2, 7, 50]])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_width_everywhere(name, bits, chunks, backend):
    network = NETWORKS[name]
    model = quantized(network, ConvPlan(WeightPlan("linear", bits, bits == 4), bits))
    assert_equal_everywhere(model, heard(network, seed=9), chunks, backend)


@pytest.mark.parametrize("rounding", ["single", "double", "double_up"])
@pytest.mark.parametrize("name, plan", [("spectral", MIXED), ("raw", MIXED_RAW)])
def test_mixed_widths_and_methods_with_a_channel_of_no_gain(name, plan, rounding):
    network = NETWORKS[name]
    plan = ConvPlan.from_json({**plan.to_json(), "rounding": rounding})
    model = quantized(network, plan)
    for layer in ("b_project", "head") if name == "spectral" else ("last",):
        zero_gain(model, layer, 2)
    if name == "raw":
        positive_gains(model, "first")  # a table of codes that is not symmetric
    for chunks in (60, [1] * 60):
        assert_equal_everywhere(model, heard(network, seed=9), chunks, "numba")


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_clips_score_as_the_stream_of_the_program_ends(name):
    network = NETWORKS[name]
    model = quantized(network, ConvPlan(WeightPlan("linear", 8), 8))
    x = heard(network, seed=9)
    program = lower_convolutional(model)
    with torch.no_grad():
        logits = model(x).numpy()
    for b, clip in enumerate(x.numpy()):
        # The emulation hands on float32; the program's logits are float64.
        assert np.array_equal(logits[b], convolution_run.run(program, clip)[-1].astype(np.float32))


@pytest.mark.parametrize("name, plan", [("spectral", MIXED), ("raw", MIXED_RAW)])
def test_what_other_devices_compute_is_equal_too(name, plan, monkeypatch):
    """Float64 sums, and torch's own operations in place of the loops."""
    model, x = quantized(NETWORKS[name], plan), heard(NETWORKS[name], seed=9)
    with torch.no_grad():
        mine, theirs = {}, {}
        model.step(x, model.fresh(len(x)), mine)
        monkeypatch.setattr(convolutional, "EXACT_IN_FLOAT32", 0)
        monkeypatch.setattr(fused, "requantized", fused.plain_requantized)
        model.step(x, model.fresh(len(x)), theirs)
    assert all(torch.equal(mine[layer], theirs[layer]) for layer in mine)


def test_after_training_observation_and_all_it_is_still_equal():
    """Every trained value has moved, statistics too."""
    model = quantized(SPECTRAL, MIXED)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    x, labels = heard(SPECTRAL, batch=16), torch.arange(16) % 3
    before = [p.detach().clone() for p in model.parameters()]
    model.train()
    for step in range(6):
        model.observing = step < 4
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert_equal_everywhere(model.eval(), heard(SPECTRAL, seed=9), 60, "numba")


def test_the_program_keeps_widths_codes_and_proofs_and_survives_its_file(tmp_path):
    model = quantized(RAW, MIXED_RAW)
    positive_gains(model, "first")
    program = lower_convolutional(model, {"seed": 3})
    program.save(tmp_path / "net.safetensors")
    back = load_convolutional(tmp_path / "net.safetensors")
    assert back.metadata["seed"] == 3 and ConvPlan.from_json(back.metadata["plan"]) == MIXED_RAW.exact()
    widths = model.widths()
    for operation in back.operations:
        if hasattr(operation, "codes"):
            assert operation.weight_bits == widths[f"{operation.name}.weight"]
            assert len(np.unique(operation.codes)) <= 2**operation.weight_bits
        if hasattr(operation, "activation_bits"):
            assert operation.activation_bits == widths[f"{operation.name}.output"]
            assert operation.high - operation.low < 2**operation.activation_bits
    first = back.operations[0]
    sums = np.abs(first.codes.astype(np.int64)).reshape(6, -1).sum(1) * 2**15
    assert first.proof.max_abs_gemm == sums.max() and first.proof.max_abs_input == 2**15
    assert first.proof.max_abs_accumulator == (sums + np.abs(first.bias.astype(np.int64))).max() < 2**31


@pytest.mark.parametrize("name, plan", [("spectral", MIXED), ("raw", MIXED_RAW)])
def test_mean_widths_are_those_of_the_program(name, plan):
    model = quantized(NETWORKS[name], plan)
    if name == "raw":
        positive_gains(model, "first")
    program = lower_convolutional(model)
    found, counted = mean_bits(model.network, model.widths()), needs(program)
    assert found["weights"] == pytest.approx(counted.bits_per_weight)
    assert found["activations"] == pytest.approx(counted.bits_per_activation)


def test_stage_one_does_not_lower():
    model = QuantizedConvNet(made(SPECTRAL), ConvPlan(WeightPlan("linear", 8)))
    with pytest.raises(LoweringError, match="only a stage-2 model lowers"):
        lower_convolutional(model)


def test_a_table_turned_by_negative_gains_is_refused():
    plan = ConvPlan(WeightPlan("linear", 8), 8, (("head", WeightPlan("general", 3)),))
    with pytest.raises(LoweringError, match=r"head: rows of negative gain.*give this layer another method"):
        lower_convolutional(quantized(SPECTRAL, plan))


def test_sums_that_could_overflow_are_refused():
    with pytest.raises(LoweringError, match="stem: row 1 can reach 2147483648, beyond int32"):
        prove("stem", np.array([[1, 0], [127, 127]]), np.array([0, 2**31 - 254 * 2**15]), 2**15, gemm_limit=2**31)
    bias = np.array([2**31 - 254 * 2**15 - 1])
    assert prove("stem", np.array([[127, 127]]), bias, 2**15, gemm_limit=2**31).max_abs_accumulator < 2**31
    wide = Network(Front("lfbe", 1, 400, 160), ("a", "b"), (Conv("only", 1, 1100), Output("output", 1100, 2)))
    model = quantized(wide, ConvPlan(WeightPlan("linear", 8), 8))
    with torch.no_grad():
        model.quantizer("output").weight.fill_(1)
    with pytest.raises(LoweringError, match=r"output: row 0 can reach 17741900, beyond the 2.24"):
        lower_convolutional(model)
    long = Network(
        Front("lfbe", 1, 400, 160), ("a", "b"), (Conv("only", 1, 2), Pool("pool", 140000), Output("output", 2, 2))
    )
    model = QuantizedConvNet(ConvNet(long), ConvPlan(WeightPlan("linear", 8)).exact())
    with pytest.raises(LoweringError, match=r"pool: a sum of 140000 values can reach 17780000, beyond the 2.24"):
        lower_convolutional(model)


def test_a_convolution_beyond_float32_is_exact_all_the_same():
    """Training takes float64 there; int32 holds the sums."""
    wide = Network(
        Front("lfbe", 40, 400, 160), ("a", "b"), (Conv("only", 1, 4, (27, 40)), Pool("pool", 4), Output("output", 4, 2))
    )
    model = quantized(wide, ConvPlan(WeightPlan("linear", 8), 8))
    with torch.no_grad():
        model.quantizer("only").weight.fill_(1)
    program = lower_convolutional(model)
    assert 2**24 < program.operations[0].proof.max_abs_gemm < 2**31
    x = 9 * np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    taps = {}
    model.eval().step(torch.from_numpy(x)[None], model.fresh(1), taps)
    for operation, found in zip(program.operations, convolution_run.trace(program, x, "numba"), strict=True):
        wanted = taps[operation.name][0].numpy().astype(np.int64).reshape(found.shape)
        assert np.array_equal(wanted, found), operation.name
