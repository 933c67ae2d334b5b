"""Plans, coverage, and what the two stages do to a model."""

import pytest
import torch

from kwsbench.models.feedforward import EPSILON, Spotter, SpotterConfig
from kwsbench.quantizers.attach import (
    Plan,
    QuantizedSpotter,
    WeightPlan,
    coverage,
    stage_one_plan,
    stage_two_plan,
)

CONFIG = SpotterConfig(("yes",), n_mels=6, stacked_frames=4, hidden=(16, 16))


def test_coverage_lists_every_component_of_the_model():
    rows = coverage(CONFIG, stage_two_plan(WeightPlan("tanh", 5)))
    names = {r["component"] for r in rows}
    assert {
        "input",
        "layer0.weight",
        "layer0.bias",
        "layer0.gain",
        "layer0.batchnorm",
        "layer1.output",
    } <= names
    assert {"layer2.weight", "layer2.bias", "layer2.output"} <= names
    assert not any(r["treatment"] == "float" for r in rows)
    # Nothing trained is missing from the table: weights and biases of 3 layers, gain and batchnorm (gamma, beta,
    # mean, var) of 2.
    trained = sum(p.numel() for p in Spotter(CONFIG).parameters())
    statistics = 2 * 16 * 2
    listed = sum(torch.Size(r["shape"]).numel() for r in rows if not r["component"].endswith(("input", "output")))
    assert listed == trained + statistics


def test_what_stays_in_float_must_be_said():
    plan = Plan(WeightPlan("tanh", 5), batchnorm="float")
    with pytest.raises(ValueError, match=r"left in float: input, layer0\.bias, layer0\.gain.*may_stay_float"):
        coverage(CONFIG, plan)
    with pytest.raises(ValueError, match="left in float"):
        QuantizedSpotter(Spotter(CONFIG), plan)
    assert coverage(CONFIG, stage_one_plan(WeightPlan("tanh", 5)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: WeightPlan("log", 4), "unknown quantizer 'log'; choose one of"),
        (lambda: WeightPlan("tanh", 9), "bits must be an integer from 1 to 8, got 9"),
        (lambda: stage_two_plan(WeightPlan("tanh", 4), "fused"), "batchnorm must be one of"),
        (lambda: stage_two_plan(WeightPlan("tanh", 4), rounding="even"), "rounding must be one of"),
        (
            lambda: coverage(CONFIG, stage_two_plan(WeightPlan("tanh", 4), layer_weights={7: WeightPlan("tanh", 1)})),
            r"the plan names layer 7; this model has layers 0\.\.2",
        ),
    ],
)
def test_impossible_plans_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_plans_survive_json():
    plan = stage_two_plan(WeightPlan("tanh", 4, True), "folded", "double", {1: WeightPlan("linear", 8)})
    assert Plan.from_json(plan.to_json()) == plan


def test_mixed_widths_quantize_each_layer_as_planned():
    plan = stage_two_plan(WeightPlan("tanh", 5), layer_weights={1: WeightPlan("tanh", 1), 2: WeightPlan("linear", 8)})
    model = QuantizedSpotter(Spotter(CONFIG), plan)
    assert [(q.method, q.bits) for q in model.weights] == [("tanh", 5), ("tanh", 1), ("linear", 8)]


def test_at_eight_bits_everywhere_the_model_stays_close_to_float():
    torch.manual_seed(0)
    model = Spotter(CONFIG).eval()
    windows = torch.randn(512, 4, 6)
    for form in ("folded", "unfolded"):
        quantized = QuantizedSpotter(model, stage_two_plan(WeightPlan("linear", 8), form)).eval()
        quantized.calibrate(windows, input_percentile=100)
        with torch.no_grad():
            error = (quantized(windows) - model(windows)).abs().max()
            assert error < 0.08 * model(windows).abs().max()


@pytest.mark.parametrize("form", ["folded", "unfolded"])
def test_gradients_reach_every_parameter_in_stage_two(form):
    torch.manual_seed(0)
    model = QuantizedSpotter(Spotter(CONFIG), stage_two_plan(WeightPlan("tanh", 4), form))
    windows = torch.randn(256, 4, 6)
    model.calibrate(windows)
    torch.nn.functional.cross_entropy(model(windows), torch.randint(0, 2, (256,))).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("form", ["folded", "unfolded"])
def test_the_straight_through_gradient_is_that_of_the_float_layer(form):
    """Against the float model at 8 bits, where the two forwards nearly agree; every parameter, negative gains too."""
    torch.manual_seed(1)
    model = Spotter(CONFIG).eval()
    for norm in model.norms:
        for p in (norm.gain, norm.gamma):
            p.data.uniform_(0.5, 1.5).mul_(torch.where(torch.rand(16) < 0.3, -1, 1))
        norm.beta.data.normal_().mul_(0.3)
        norm.mean.normal_().mul_(0.3)
    for dense in model.dense:
        dense.bias.data.normal_().mul_(0.3)
    windows = torch.randn(400, 4, 6)
    quantized = QuantizedSpotter(model, stage_two_plan(WeightPlan("linear", 8), form)).eval()
    quantized.calibrate(windows, input_percentile=100)
    upstream = torch.randn(400, 2)
    (quantized(windows) * upstream).sum().backward()
    (model(windows) * upstream).sum().backward()
    pairs = {f"weight {i}": (quantized.weights[i].weight, model.dense[i].weight) for i in range(3)}
    pairs |= {f"bias {i}": (quantized.biases[i], model.dense[i].bias) for i in range(3)}
    for name in ("gain", "gamma", "beta"):
        pairs |= {f"{name} {i}": (getattr(quantized.norms[i], name), getattr(model.norms[i], name)) for i in range(2)}
    for name, (mine, theirs) in pairs.items():
        assert torch.nn.functional.cosine_similarity(mine.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.97, name
        assert abs(float(mine.grad.norm() / theirs.grad.norm()) - 1) < 0.05, name


def test_observing_moves_statistics_and_ranges_and_freezing_stops_it():
    torch.manual_seed(0)
    model = QuantizedSpotter(Spotter(CONFIG), stage_two_plan(WeightPlan("tanh", 4)))
    windows = 3 * torch.randn(256, 4, 6)
    model.calibrate(windows)
    before = [b.clone() for b in (model.norms[0].mean, model.norms[0].var, model.output_ranges)]
    model(windows)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (model.norms[0].mean, model.norms[0].var, model.output_ranges))
    )
    model.observing = True
    model(windows)
    after = (model.norms[0].mean, model.norms[0].var, model.output_ranges)
    assert not any(torch.equal(a, b) for a, b in zip(before, after))


def test_what_observing_does_by_its_equations():
    """Batchnorm statistics follow the batch with weight 0.05, ranges the largest activation with weight 0.01."""
    torch.manual_seed(0)
    model = QuantizedSpotter(Spotter(CONFIG), stage_two_plan(WeightPlan("tanh", 4)))
    for p in (*model.norms[0].parameters(), *model.biases):
        p.data.normal_()
    windows = torch.randn(256, 4, 6)
    model.calibrate(windows)
    mean, var, limit = model.norms[0].mean.clone(), model.norms[0].var.clone(), model.output_ranges[0].clone()
    model.observing = True
    model(windows)
    with torch.no_grad():
        real = model.normalise(windows).flatten(1) * model.input_scale
        a = real @ model.weight(0).T + model.biases[0]
        norm = model.norms[0]
        assert torch.allclose(norm.mean, 0.95 * mean + 0.05 * a.mean(0), atol=1e-5)
        assert torch.allclose(norm.var, 0.95 * var + 0.05 * a.var(0), rtol=1e-4)
        z = norm.gain * (norm.gamma * (a - norm.mean) / torch.sqrt(norm.var + EPSILON) + norm.beta)
        assert torch.allclose(model.output_ranges[0], 0.99 * limit + 0.01 * z.max(), rtol=1e-5)


def test_calibration_takes_a_percentile_of_the_inputs_and_the_largest_activations():
    torch.manual_seed(0)
    float_model = Spotter(CONFIG).eval()
    float_model.set_normalisation(torch.randn(6), torch.rand(6) + 0.5)
    model = QuantizedSpotter(float_model, stage_two_plan(WeightPlan("linear", 8)))
    windows = torch.randn(300, 4, 6)
    x = float_model.normalise(windows)
    for percentile in (50.0, 99.0, 100.0):
        model.calibrate(windows, input_percentile=percentile)
        want = torch.quantile(x.abs(), percentile / 100)
        assert torch.isclose(127 * model.input_scale[0], want, rtol=0.01)
    with torch.no_grad():
        first = (x.flatten(1) @ model.weight(0).T + model.biases[0]).div((1 + EPSILON) ** 0.5)
    assert torch.isclose(model.output_ranges[0], first.max(), rtol=1e-5)


def test_changing_the_weights_between_stages_is_refused():
    model = QuantizedSpotter(Spotter(CONFIG), stage_one_plan(WeightPlan("tanh", 4)))
    with pytest.raises(ValueError, match="changes the weights of layer 0"):
        model.replan(stage_two_plan(WeightPlan("tanh", 5)))


def test_silent_calibration_windows_leave_usable_ranges():
    model = QuantizedSpotter(Spotter(CONFIG), stage_two_plan(WeightPlan("tanh", 4)))
    model.calibrate(torch.zeros(64, 4, 6))
    assert float(model.input_scale) > 0
    assert torch.isfinite(model(torch.randn(8, 4, 6))).all()


def test_stage_one_is_a_float_spotter_with_quantized_weights_bit_for_bit():
    model = Spotter(SpotterConfig(hidden=(24, 16)), seed=3)
    quantized = QuantizedSpotter(model, stage_one_plan(WeightPlan("tanh", 3))).eval()
    with torch.no_grad():
        quantized.norms[0].mean.normal_()
        quantized.norms[1].gamma.uniform_(0.5, 2)
        quantized.biases[0].normal_()
    quantized.mean.fill_(0.3)
    windows = torch.randn(50, 31, 20, generator=torch.Generator().manual_seed(0))
    plain = quantized.as_float()
    assert torch.equal(plain(windows), quantized(windows)) and not torch.equal(plain(windows), model(windows))
    assert len(torch.unique(plain.dense[0].weight)) <= 8
    quantized.replan(stage_two_plan(WeightPlan("tanh", 3)))
    with pytest.raises(ValueError, match="computes in integers"):
        quantized.as_float()
