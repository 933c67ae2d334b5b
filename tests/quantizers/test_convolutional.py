"""Plans of convolutional networks, what calibration and observation do, and the gradients of both stages."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kwsbench.models.convolutional import ConvNet, convolve
from kwsbench.models.layers import Add, Conv, Front, Network, Output, Pool
from kwsbench.quantizers.activation import LinearActivation
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.convolutional import (
    ConvPlan,
    QuantizedConvNet,
    activated,
    as_matrix,
    coverage,
    mean_bits,
    signs,
    weighted,
)
from tests.quantizers.conv_nets import RAW, SPECTRAL, heard, made

EIGHT = ConvPlan(WeightPlan("linear", 8))


def test_plans_survive_json_and_the_first_exception_decides():
    plan = ConvPlan(
        WeightPlan("tanh", 4, True),
        5,
        (("a_*", WeightPlan("linear", 8)), ("*_expand", WeightPlan("tanh", 1))),
        (("b_add", 2), ("b_*", 3)),
        "double",
        "integer",
    )
    assert ConvPlan.from_json(plan.to_json()) == plan
    assert plan.weights_of("a_expand") == WeightPlan("linear", 8) and plan.weights_of("head") == plan.weights
    assert [plan.activation_bits_of(n) for n in ("b_add", "b_project", "stem")] == [2, 3, 5]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ConvPlan(WeightPlan("linear", 4), 9), "activations have 1 to 8 bits, got 9"),
        (lambda: ConvPlan(WeightPlan("linear", 4), 4, (), (("stem", 0),)), "activations have 1 to 8 bits, got 0"),
        (lambda: ConvPlan(WeightPlan("linear", 4), rounding="even"), "rounding must be one of"),
        (lambda: ConvPlan(WeightPlan("linear", 4), arithmetic="half"), "arithmetic must be one of"),
        (
            lambda: coverage(SPECTRAL, ConvPlan(WeightPlan("linear", 4), 4, (("c_*", WeightPlan("tanh", 4)),))),
            r"no layer with weights matches 'c_\*'; there are stem, a_expand",
        ),
        (
            lambda: coverage(SPECTRAL, ConvPlan(WeightPlan("linear", 4), 4, (("pool", WeightPlan("tanh", 4)),))),
            "no layer with weights matches 'pool'",
        ),
        (
            lambda: coverage(SPECTRAL, ConvPlan(WeightPlan("linear", 4), 4, (), (("output", 4),))),
            "no layer with output matches 'output'",
        ),
    ],
)
def test_impossible_plans_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_another_plan_may_change_the_arithmetic_and_nothing_else():
    model = QuantizedConvNet(made(SPECTRAL), EIGHT)
    with pytest.raises(ValueError, match="changes the weights of a_expand: make a new model"):
        model.replan(ConvPlan(EIGHT.weights, 8, (("a_*", WeightPlan("linear", 4)),)))
    with pytest.raises(ValueError, match="changes the output of b_add"):
        model.replan(ConvPlan(EIGHT.weights, 8, (), (("b_add", 4),)))
    assert not model.integer
    model.replan(EIGHT.exact())
    assert model.integer
    with pytest.raises(ValueError, match="calibrate in stage 1"):
        model.calibrate(heard(SPECTRAL))


def test_coverage_lists_every_component_and_stage_two_leaves_none_in_float():
    rows = coverage(SPECTRAL, EIGHT)
    assert {r["component"] for r in rows if r["treatment"] == "float"} == {
        *(f"{layer.name}.batchnorm" for layer in SPECTRAL.layers if isinstance(layer, Conv)),
        "output.bias",
    }
    rows = coverage(SPECTRAL, EIGHT.exact())
    assert not any(r["treatment"] == "float" for r in rows)
    # Nothing trained is missing: weights, gamma and beta (and mean, var, which are not trained), the output's bias.
    listed = sum(
        np.prod(r["shape"]) for r in rows if r["component"].rpartition(".")[2] in ("weight", "bias", "batchnorm")
    )
    trained = sum(p.numel() for p in ConvNet(SPECTRAL).parameters())
    assert listed == trained + 2 * sum(layer.outputs for layer in SPECTRAL.layers if isinstance(layer, Conv))
    assert coverage(RAW, EIGHT)[0] == {"component": "input", "shape": (1, 1), "treatment": "samples", "bits": 16}


def test_only_what_can_be_negative_has_negative_codes():
    assert signs(SPECTRAL) == {
        "input": True, "stem": False, "a_expand": False, "a_depthwise": False, "a_project": True,
        "b_depthwise": False, "b_project": True, "b_add": True, "head": False, "pool": False,
    }  # fmt: skip
    assert [signs(RAW)[name] for name in ("first", "second", "add", "last", "pool")] == [False] * 3 + [True] * 2
    model = QuantizedConvNet(made(RAW), ConvPlan(WeightPlan("linear", 8), 4))
    assert model.activation("add").limits() == (0, 15) and model.activation("pool").limits() == (-8, 7)


@pytest.mark.parametrize("network", [SPECTRAL, RAW], ids=["spectral", "raw"])
def test_at_eight_bits_everywhere_both_stages_stay_close_to_float(network):
    net, x = made(network), heard(network, batch=16)
    model = QuantizedConvNet(net, EIGHT)
    model.calibrate(x)
    with torch.no_grad():
        reference = net.train()(x)  # by the batch's statistics, which calibration takes over
        error = (model.train()(x) - reference).abs().max()
        assert error < 0.05 * reference.abs().max()
        model.replan(EIGHT.exact())
        assert (model.eval()(x) - reference).abs().max() < 0.06 * reference.abs().max()


def test_fake_quantization_by_its_equations():
    """One convolution, restated: weights times step, batchnorm by the batch, ReLU6, rounding to codes of a step."""
    network = Network(Front("lfbe", 4, 400, 160), ("a", "b"), (Conv("c", 1, 3, (3, 4)), Output("o", 3, 2)))
    net, x = made(network), heard(network)
    model = QuantizedConvNet(net, ConvPlan(WeightPlan("lsq", 4), 3)).train()
    model.calibrate(x)
    taps = {}
    model.step(x, model.fresh(4), taps)
    q, norm = model.quantizer("c"), model.norms["c"]
    heard_codes = torch.floor((x - net.mean) * net.inverse_std / model.input_scale + 0.5).clamp(-128, 127)
    weight = q.step() * q.codebook.encode_codes(as_matrix(net.convs["c"].weight) / q.step())
    frames = F.pad(heard_codes * model.input_scale, (0, 0, 2, 0)).unfold(1, 3, 1)  # [B, T, F, 3]
    a = frames.transpose(2, 3).flatten(2).double() @ weight.T.double()
    mean, var = a.mean((0, 1)), a.var((0, 1), unbiased=False)
    z = norm.gamma * (a - mean) / torch.sqrt(var + 1e-5) + norm.beta
    step = 2.0 ** float(model.activation("c").log2_step.detach())
    expected = step * torch.floor(z.clamp(0, 6) / step + 0.5).clamp(max=7)
    assert torch.allclose(taps["c"][:, :, 0].double(), expected.detach(), atol=1e-5)
    assert len(taps["c"].unique()) > 4


def test_calibration_finds_steps_of_little_error():
    torch.manual_seed(0)
    z = torch.randn(20000).reshape(4, 5, 100, 10)
    for bits, published_db in ((4, 20.2), (2, 9.2)):  # a Gaussian on its best uniform grid, half a level off
        quantizer = LinearActivation(bits, signed=True)
        quantizer.calibrate(z)
        with torch.no_grad():
            error = ((quantizer(z) - z) ** 2).mean() / (z**2).mean()
        assert -10 * float(torch.log10(error)) > published_db - 1.7
    relu = LinearActivation(2, signed=False, relu=True)
    assert relu.limits() == (0, 3) and relu.step().item() == pytest.approx(2)
    relu.calibrate(z)
    assert relu.step().item() < 1  # nothing here comes near 6
    assert relu(z).min() == 0


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("relu", [True, False])
def test_the_calibrated_step_is_the_best_of_those_tried_on_all_values(bits, relu):
    torch.manual_seed(bits)
    z = torch.randn(30, 25, 5, 64) ** 3  # heavy tails, far more values than a sample would hold
    quantizer = LinearActivation(bits, signed=not relu, relu=relu)
    quantizer.calibrate(z)
    heard = (z.clamp(0, 6) if relu else z).double()
    low, high = int(quantizer.lowest), int(quantizer.highest)
    tried = float(heard.abs().max()) / max(high, -low) * 10.0 ** np.linspace(-1.3, 0.2, 48)
    errors = [((torch.floor(heard / d + 0.5).clamp(low, high) * d - heard) ** 2).mean().item() for d in tried]
    chosen = errors[int(np.abs(tried - quantizer.step().item()).argmin())]
    assert quantizer.step().item() == pytest.approx(tried[np.abs(tried - quantizer.step().item()).argmin()], rel=1e-5)
    assert chosen <= 1.001 * min(errors)


def test_rare_large_activations_keep_their_place():
    """What tells a keyword may be 50 values in 1,600,000: at 8 bits the range reaches them, wherever they stand."""
    torch.manual_seed(0)
    z = torch.rand(200, 25, 5, 64)
    z[7, 3, 2, :50] = 5.5
    quantizer = LinearActivation(8, signed=False, relu=True)
    quantizer.calibrate(z)
    reached = quantizer(z)[7, 3, 2, :50].detach().numpy()
    assert reached.min() >= 4.5 and reached.max() <= 5.6  # the rest ends at 1; least squares gives up a little of 5.5


def test_silence_calibrates_to_a_usable_step():
    for relu in (True, False):
        quantizer = LinearActivation(4, signed=not relu, relu=relu)
        quantizer.calibrate(torch.zeros(2, 3, 4, 5))
        assert 0 < quantizer.step().item() < 1e-3


def test_nothing_beyond_six_comes_out_of_a_relu6():
    quantizer = LinearActivation(4, signed=False, relu=True)
    with torch.no_grad():
        quantizer.log2_step.fill_(-0.5)
    assert quantizer.limits() == (0, 8)  # 6 / 0.707 = 8.49
    z = torch.linspace(-1, 9, 400).reshape(1, 1, 20, 20).requires_grad_()
    y = quantizer(z)
    y.sum().backward()
    inside = (z.detach() >= 0) & (z.detach() <= 6)
    assert torch.equal(z.grad, inside.float())
    # Beyond six the output does not follow the step.
    z64 = z.detach()[inside].double()
    d = quantizer.step().item()
    expected = (torch.floor(z64 / d + 0.5) - z64 / d).sum() * d * np.log(2)
    assert float(quantizer.log2_step.grad) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("network", [SPECTRAL, RAW], ids=["spectral", "raw"])
@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_reach_every_parameter(network, stage):
    model = QuantizedConvNet(made(network), ConvPlan(WeightPlan("tanh", 4), 4)).train()
    x = heard(network, batch=16)
    model.calibrate(x)
    if stage == 2:
        model.replan(model.plan.exact())
        model.observing = True
    F.cross_entropy(model(x), torch.arange(16) % 3).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().max() > 0, name


def test_the_straight_through_gradient_is_that_of_the_float_network():
    """At 8 bits, where the forwards nearly agree. Stage 2 against evaluation, whose statistics stand still."""
    net, x = made(SPECTRAL), heard(SPECTRAL, batch=128)
    model = QuantizedConvNet(net, EIGHT).eval()
    model.calibrate(x, input_percentile=100)
    for name, norm in model.norms.items():
        net.convs[name].norm.load_state_dict(norm.state_dict())
    net.eval()
    upstream = torch.tensor([1.0, -1.0, 0.5])
    (net(x) * upstream).sum().backward()
    for plan in (EIGHT, EIGHT.exact()):
        model.replan(plan)
        model.zero_grad()
        (model(x) * upstream).sum().backward()
        pairs = {n: (model.quantizer(n).weight.grad, as_matrix(net.convs[n].weight.grad)) for n in model.norms}
        pairs |= {"output": (model.quantizer("output").weight.grad, net.output.weight.grad)}
        pairs |= {"bias": (model.bias.grad, net.output.bias.grad)}
        for which in ("gamma", "beta"):
            pairs |= {
                f"{which} {n}": (getattr(norm, which).grad, getattr(net.convs[n].norm, which).grad)
                for n, norm in model.norms.items()
            }
        for name, (mine, theirs) in pairs.items():
            assert F.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.95, (name, plan.arithmetic)
            assert abs(float(mine.norm() / theirs.norm()) - 1) < 0.1, (name, plan.arithmetic)


def test_a_step_learns_alike_in_both_stages():
    model = QuantizedConvNet(made(SPECTRAL), ConvPlan(WeightPlan("linear", 8), 3)).eval()
    x = heard(SPECTRAL, batch=256)
    model.calibrate(x)
    upstream = torch.randn(256, 3, generator=torch.Generator().manual_seed(1))
    gradients = []
    for plan in (model.plan, model.plan.exact()):
        model.replan(plan)
        model.zero_grad()
        (model(x) * upstream).sum().backward()
        gradients.append(torch.stack([model.activation(n).log2_step.grad for n in activated(SPECTRAL)]))
    # A bias is a whole number of accumulator units in stage 2: here and there a code differs.
    assert F.cosine_similarity(*gradients, dim=0) > 0.9


def test_observing_moves_statistics_and_stopping_freezes_them():
    model = QuantizedConvNet(made(SPECTRAL), EIGHT)
    x = heard(SPECTRAL, batch=16)
    model.calibrate(x)
    model.replan(EIGHT.exact())
    before = {k: v.clone() for k, v in model.named_buffers()}
    model.train()(2 * x)
    assert all(torch.equal(before[k], v) for k, v in model.named_buffers())
    model.observing = True
    model.step(2 * x, model.fresh(16))
    moved = {k for k, v in model.named_buffers() if not torch.equal(before[k], v)}
    assert moved == {f"norms.{n}.{s}" for n in model.norms for s in ("mean", "var")}
    # By its equations, for the first layer: a weight of 0.05 for the batch's own statistics.
    q = model.quantizer("stem")
    a = convolve(
        SPECTRAL.layers[0],
        F.pad(model.normalise(2 * x), (0, 0, 4, 0)),
        q.codes().unflatten(1, (5, 3, 1)).permute(0, 3, 1, 2),
    ) * (q.step() * model.input_scale)
    for statistic, value in (("mean", a.mean((0, 2, 3))), ("var", a.var((0, 2, 3)))):
        old = before[f"norms.stem.{statistic}"]
        assert torch.allclose(
            getattr(model.norms["stem"], statistic), 0.95 * old + 0.05 * value.detach(), rtol=1e-4, atol=1e-5
        )


def test_raw_audio_enters_as_its_samples_whatever_the_normalisation():
    net = made(RAW)
    net.set_normalisation([0.0], [0.1])
    model = QuantizedConvNet(net, EIGHT)
    x = heard(RAW)
    assert torch.allclose(model.normalise(x), net.normalise(x))
    model.replan(EIGHT.exact())
    assert torch.equal(model.normalise(x)[:, 0], x * 2**15)
    net.set_normalisation([0.5], [0.1])
    with pytest.raises(ValueError, match=r"its mean must be 0, got 0\.5"):
        QuantizedConvNet(net, EIGHT)


def test_soft_methods_anneal_and_rest_as_in_a_spotter():
    model = QuantizedConvNet(made(SPECTRAL), ConvPlan(WeightPlan("general", 3))).train()
    model.anneal(1, 100, 4)
    assert model.resting and torch.equal(model.weight("head"), model.quantizer("head").latent())
    model.anneal(4, 100, 4)
    assert not model.resting and len(model.weight("head").unique()) > 8
    model.anneal(100, 100)
    assert len(model.weight("head").unique()) <= 8
    assert model.penalty() is None
    regularized = QuantizedConvNet(made(SPECTRAL), ConvPlan(WeightPlan("cosine", 3)))
    assert regularized.penalty() > 0
    regularized.replan(regularized.plan.exact())
    assert regularized.penalty() is None


def test_a_channel_that_cannot_be_expressed_names_its_layer():
    wide = Network(Front("lfbe", 1, 400, 160), ("a", "b"), (Conv("c", 1, 600), Conv("d", 600, 3), Output("o", 3, 2)))
    model = QuantizedConvNet(ConvNet(wide), ConvPlan(WeightPlan("tanh", 7)).exact())
    with torch.no_grad():
        model.norms["d"].gamma[1] = 0
    with pytest.raises(ValueError, match="d: channel 1 has a gain of zero"):
        model(heard(wide))


def test_mean_bits_weigh_by_weights_and_values():
    network = Network(
        Front("lfbe", 4, 400, 160),
        ("a", "b"),
        (Conv("c", 1, 3, (2, 4), (2, 1)), Add("s", "c"), Pool("p", 5), Output("o", 3, 2)),
    )
    assert weighted(network) == ["c", "o"] and activated(network) == ["c", "s", "p"]
    model = QuantizedConvNet(ConvNet(network), ConvPlan(WeightPlan("linear", 4), 8, (("o", WeightPlan("tanh", 1)),)))
    assert model.widths() == {"c.weight": 4, "o.weight": 1, "c.output": 8, "s.output": 8, "p.output": 8}
    widths = {"c.weight": 4, "o.weight": 1, "c.output": 8, "s.output": 2, "p.output": 5}
    found = mean_bits(network, widths)
    assert found["weights"] == pytest.approx((24 * 4 + 6 * 1) / 30)
    assert found["activations"] == pytest.approx((8 + 2 + 5) / 3)
