import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kwsbench.models.convolutional import ConvNet
from kwsbench.models.feedforward import EPSILON, Spotter, SpotterConfig, parameter_count
from kwsbench.models.handmade import BCResNet, SubSpectralNorm, ds_cnn, feedforward
from kwsbench.models.layers import shapes
from kwsbench.models.space import cost

TWELVE = tuple(f"label{n}" for n in range(12))


def operations(model, frames, bins):
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model.eval()(torch.zeros(1, frames, bins))
    return flops.get_total_flops() / 2


def test_the_ds_cnn_of_mlperf_tiny():
    network = ds_cnn(TWELVE)
    found = shapes(network)
    assert (found["input"], found["stem"], found["pool"]) == ((49, 10, 1), (24, 5, 64), (24, 1, 64))
    counted = cost(network)
    # Weights 22,016; theirs also have a bias of every convolution and of the output.
    biases = 9 * 64 + 12
    published_bytes = counted.weights + biases + 2 * 25 * 5 * 64
    assert (counted.weights, published_bytes) == (22_016, 38_604)
    theirs = 25 * 5 * (10 * 4 * 64 + 4 * (9 * 64 + 64 * 64)) + 64 * 12
    assert theirs == 2_656_768
    assert counted.macs_per_clip == (theirs - 64 * 12) * 24 // 25 + 64 * 12
    assert operations(ConvNet(network), 49, 10) == counted.macs_per_clip


def test_the_feedforward_network_is_the_spotter():
    """With the spotter's weights, bias and gain put into the batchnorms, the same logits: below 6, where ReLU6 is
    ReLU."""
    torch.manual_seed(0)
    spotter = Spotter(SpotterConfig(("a", "b"))).double().eval()
    model = ConvNet(feedforward(("none", "a", "b"))).double().eval()
    with torch.no_grad():
        for number, (dense, norm) in enumerate(zip(spotter.dense, spotter.norms), start=1):
            for value in (norm.gain, norm.gamma, norm.beta, norm.mean):
                value.normal_(0.3, 0.1)
            conv = model.convs[f"dense{number}"]
            conv.weight.copy_(dense.weight.reshape(conv.weight.shape))
            conv.norm.mean.copy_(norm.mean - dense.bias)
            conv.norm.var.copy_(norm.var)
            conv.norm.gamma.copy_(norm.gain * norm.gamma)
            conv.norm.beta.copy_(norm.gain * norm.beta)
        model.output.load_state_dict(spotter.dense[-1].state_dict())
        x = torch.randn(2, 40, 20).double()
        expected, _ = spotter.step(x, spotter.fresh(2))
        found, _ = model.step(x, model.fresh(2))
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
        assert torch.allclose(model(x), expected[:, -1], rtol=0, atol=1e-12)


def test_the_feedforward_network_is_as_large_as_the_spotter():
    counted = cost(feedforward(("none", "keyword")))
    assert counted.parameters == parameter_count(Spotter(SpotterConfig())) - 2 * 800  # no bias, no gain
    assert counted.weights == counted.macs_per_clip == 244_400


def test_bc_resnet_1_has_the_published_size():
    model = BCResNet(TWELVE)
    assert parameter_count(model) == 9_232
    assert model.weights == sum(p.numel() for name, p in model.named_parameters() if not name.endswith(("a", "bias")))
    assert operations(model, 98, 40) == model.macs_per_clip == 98 * 24_572 + 32 * 12


@pytest.mark.parametrize("chunk", [1, 3, 40, 98])
def test_bc_resnet_streams(chunk):
    model = BCResNet(("no", "yes"), seed=1, width=2).double().eval()
    for name, value in model.state_dict().items():
        if name.endswith("norm.mean"):
            value.normal_()
    x = torch.randn(2, 110, 40).double()
    with torch.no_grad():
        whole, end = model.step(x, model.fresh(2))
        state, parts = model.fresh(2), []
        for start in range(0, 110, chunk):
            y, state = model.step(x[:, start : start + chunk], state)
            parts.append(y)
        assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
        assert all(torch.allclose(state[name], end[name], rtol=0, atol=1e-12) for name in end)
        assert torch.allclose(model(x), whole[:, -1], rtol=0, atol=1e-12)
        assert torch.allclose(model(x[:, :50]), whole[:, 49], rtol=0, atol=1e-12)
        nothing, same = model.step(x[:, :0], state)
    assert nothing.shape == (2, 0, 2) and same is state


def test_a_block_is_the_papers_equation():
    model = BCResNet(TWELVE).double().eval()
    changing, plain = model.blocks[2], model.blocks[3]
    x = torch.randn(1, 8, 9, 20).double()
    with torch.no_grad():
        y = changing(x, lambda new: F.pad(new, (0, 0, 4, 0)))
        z = plain(y, lambda new: F.pad(new, (0, 0, 4, 0)))
    assert y.shape == (1, 12, 9, 10)
    scale = 1 / np.sqrt(1 + EPSILON)
    with torch.no_grad():
        wide = scale * F.conv2d(F.pad(y, (1, 1)), plain.over_frequency, groups=12)
        mean = wide.mean(3)
        taps = plain.over_time[:, 0, :, 0]
        for t in range(9):
            past = [mean[:, :, t - 2 * back] if t >= 2 * back else 0 * mean[:, :, 0] for back in (2, 1, 0)]
            narrow = F.silu(scale * sum(tap * value for tap, value in zip(taps.T, past)))
            mixed = narrow @ plain.mix[:, :, 0, 0].T
            expected = F.relu(y[:, :, t] + wide[:, :, t] + mixed[:, :, None])
            assert torch.allclose(z[:, :, t], expected, rtol=0, atol=1e-12)


def test_subspectral_norm_normalises_each_band_by_itself():
    norm = SubSpectralNorm(3).train()
    a = torch.randn(4, 3, 7, 10) * torch.arange(1, 11)
    y = norm(a)
    for channel in range(3):
        for band in range(5):
            own = y[:, channel, :, 2 * band : 2 * band + 2]
            assert abs(own.mean()) < 1e-5 and abs(own.std(correction=0) - 1) < 1e-3


def test_bc_resnet_trains_from_its_seed_alone():
    model, same = BCResNet(TWELVE, seed=4), BCResNet(TWELVE, seed=4)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), same.parameters()))
    model.train().set_normalisation(np.zeros(40), np.ones(40))
    F.cross_entropy(model(torch.randn(3, 98, 40)), torch.tensor([0, 5, 11])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
