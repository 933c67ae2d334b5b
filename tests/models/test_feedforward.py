import itertools

import pytest
import torch

from kwsbench.models.feedforward import EPSILON, Spotter, SpotterConfig, parameter_count


def test_the_default_spotter_has_250k_parameters_within_two_percent():
    model = Spotter(SpotterConfig(("happy",)))
    sizes = [620, 200, 200, 200, 200, 2]
    weights = sum(k * n for k, n in itertools.pairwise(sizes))
    biases = sum(sizes[1:])
    gain_gamma_beta = 3 * 4 * 200
    assert parameter_count(model) == weights + biases + gain_gamma_beta == 247_602
    assert abs(parameter_count(model) - 250_000) <= 0.02 * 250_000


def test_streamed_equals_whole_for_many_chunk_sizes():
    """Float GEMM may round differently for another batch, so to a tolerance; integer programs: bit for bit."""
    torch.manual_seed(0)
    model = Spotter(SpotterConfig(("a", "b"))).eval()
    x = torch.randn(2, 70, 20)
    whole, end = model.step(x, model.fresh(2))
    for chunk in (1, 2, 3, 7, 29, 30, 31, 64, 70):
        state, parts = model.fresh(2), []
        for start in range(0, 70, chunk):
            y, state = model.step(x[:, start : start + chunk], state)
            parts.append(y)
        assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
        assert torch.equal(state, end)


def test_no_frames_give_no_outputs_and_leave_the_state():
    model = Spotter(SpotterConfig(("a", "b"))).eval()
    state = torch.randn(2, 30, 20)
    y, after = model.step(torch.empty(2, 0, 20), state)
    assert y.shape == (2, 0, 3)
    assert torch.equal(after, state)


def test_training_windows_and_streaming_see_the_same_input():
    torch.manual_seed(0)
    model = Spotter(SpotterConfig()).eval()
    model.set_normalisation(torch.randn(20), torch.rand(20) + 0.5)
    x = torch.randn(1, 40, 20)
    streamed, _ = model.step(x, model.fresh(1))
    direct = model(torch.stack([x[0, t - 30 : t + 1] for t in range(30, 40)]))
    assert torch.allclose(streamed[0, 30:], direct, rtol=0, atol=1e-5)


def test_a_layer_is_gain_batchnorm_relu_by_its_equation():
    torch.manual_seed(0)
    model = Spotter(SpotterConfig(hidden=(5,))).eval()
    norm = model.norms[0]
    for p in (norm.gain, norm.gamma, norm.beta, norm.mean):
        p.data.normal_()
    norm.var.uniform_(0.5, 2)
    x = torch.randn(9, 620)
    a = model.dense[0](x)
    z = norm.gain * (norm.gamma * (a - norm.mean) / torch.sqrt(norm.var + EPSILON) + norm.beta)
    assert torch.allclose(model.logits(x), model.dense[1](z.relu()), atol=1e-5)


def test_the_seed_alone_decides_the_initial_weights():
    torch.manual_seed(5)
    first = Spotter(SpotterConfig(), seed=3)
    torch.manual_seed(6)
    second = Spotter(SpotterConfig(), seed=3)
    assert torch.equal(first.dense[2].weight, second.dense[2].weight)
    assert not torch.equal(first.dense[2].weight, Spotter(SpotterConfig(), seed=4).dense[2].weight)


@pytest.mark.parametrize("bad", [{"keywords": ()}, {"keywords": ("a", "a")}, {"hidden": (0,)}, {"n_mels": 0}])
def test_impossible_shapes_are_refused(bad):
    with pytest.raises(ValueError):
        SpotterConfig(**bad)
