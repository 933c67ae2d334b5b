import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kwsbench.models.convolutional import ConvNet, FloatOperations, SincConv, convolve, last_frame, walk
from kwsbench.models.feedforward import EPSILON
from kwsbench.models.layers import Add, Conv, Front, Network, Output, Pool, looked_at, same_padding

LABELS = ("_other_", "yes", "no")
SPECTRAL = Network(
    Front("mfcc", 10, 640, 320),
    LABELS,
    (
        Conv("stem", 1, 8, (5, 3), (1, 2), same_padding(10, 3, 2)),
        Conv("a_expand", 8, 16),
        Conv("a_depthwise", 16, 16, (5, 5), (2, 2), same_padding(5, 5, 2), depthwise=True),
        Conv("a_project", 16, 8, relu=False),
        Conv("b_depthwise", 8, 8, (3, 3), (1, 1), same_padding(3, 3, 1), depthwise=True),
        Conv("b_project", 8, 8, relu=False),
        Add("b_add", "a_project"),
        Conv("head", 8, 12),
        Pool("pool", 6),
        Output("output", 12, 3),
    ),
)
RAW = Network(
    Front("raw"),
    LABELS,
    (
        Conv("sinc", 1, 6, (11, 1), (2, 1), filters="sinc"),
        Conv("stride", 6, 6, (5, 1), (5, 1), depthwise=True),
        Conv("first", 6, 7, (3, 1)),
        Conv("second", 7, 7, (4, 1), relu=False),
        Add("add", "first"),
        Pool("pool", 4),
        Output("output", 7, 3),
    ),
)


def made(network, seed=0):
    """A network in evaluation whose batchnorms are not the identity."""
    model = ConvNet(network, seed).double().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    for conv in model.convs.values():
        for value in (conv.norm.gamma, conv.norm.beta, conv.norm.mean):
            value.data.normal_(generator=generator)
        conv.norm.var.uniform_(0.5, 2, generator=generator)
    model.output.bias.data.normal_(generator=generator)
    return model


def heard(network, frames, batch=2, seed=3):
    x = torch.randn(batch, frames, network.front.bins, generator=torch.Generator().manual_seed(seed))
    return x.double()


def by_hand(model, x):
    """The network in NumPy, output frame by output frame, from the definition in models/layers.py."""
    values = {"input": ((x - model.mean) * model.inverse_std)[:, :, :, None].numpy()}  # [B, T, F, C]
    y = values["input"]
    for layer in model.network.layers:
        if isinstance(layer, Conv):
            conv = model.convs[layer.name]
            w = conv.weight.detach().numpy()  # [N, C, kt, kf]
            (kt, kf), (s, sf) = layer.kernel, layer.stride
            padded = np.pad(y, ((0, 0), (kt, 0), layer.padding, (0, 0)))
            columns = range((padded.shape[2] - kf) // sf + 1)
            out = np.zeros((len(y), y.shape[1] // s, len(columns), layer.outputs))
            for j in range(out.shape[1]):
                end = (j + 1) * s - 1 + kt  # in the padded frames
                for f in columns:
                    patch = padded[:, end - kt + 1 : end + 1, f * sf : f * sf + kf]
                    spelled = "btfc,cxtf->bc" if layer.depthwise else "btfc,nctf->bn"
                    out[:, j, f] = np.einsum(spelled, patch, w)
            norm = conv.norm
            gamma, beta, mean, var = (v.detach().numpy() for v in (norm.gamma, norm.beta, norm.mean, norm.var))
            y = gamma * (out - mean) / np.sqrt(var + EPSILON) + beta
            y = np.clip(y, 0, 6) if layer.relu else y
        elif isinstance(layer, Add):
            y = y + values[layer.source]
        elif isinstance(layer, Pool):
            padded = np.pad(y, ((0, 0), (layer.frames - 1, 0), (0, 0), (0, 0)))
            y = np.stack([padded[:, t : t + layer.frames].mean((1, 2)) for t in range(y.shape[1])], 1)[:, :, None]
        else:
            y = y[:, :, 0] @ model.output.weight.detach().numpy().T + model.output.bias.detach().numpy()
        values[layer.name] = y
    return y


@pytest.mark.parametrize("network, frames", [(SPECTRAL, 23), (RAW, 97)])
def test_step_and_forward_are_the_equations(network, frames):
    model, x = made(network), heard(network, frames)
    model.set_normalisation(np.linspace(-1, 1, network.front.bins), np.linspace(0.5, 2, network.front.bins))
    expected = by_hand(model, x)
    with torch.no_grad():
        logits, _ = model.step(x, model.fresh(2))
        assert np.abs(logits.numpy() - expected).max() < 1e-12
        assert np.abs(model(x).numpy() - expected[:, -1]).max() < 1e-12


@pytest.mark.parametrize("network, frames", [(SPECTRAL, 23), (RAW, 97)])
@given(cuts=st.lists(st.integers(0, 97), max_size=8))
@settings(max_examples=25, deadline=None)
def test_every_chunking_gives_the_logits_and_the_state_of_the_whole(network, frames, cuts):
    model, x = made(network), heard(network, frames)
    edges = [0, *sorted(min(c, frames) for c in cuts), frames]
    with torch.no_grad():
        whole, end = model.step(x, model.fresh(2))
        state, parts = model.fresh(2), []
        for start, stop in itertools.pairwise(edges):
            y, state = model.step(x[:, start:stop], state)
            parts.append(y)
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    assert state.keys() == end.keys()
    assert all(torch.allclose(state[name], end[name], rtol=0, atol=1e-12) for name in end)


class Rounded(FloatOperations):
    """Layers whose values are small whole numbers, as of an integer program: sums in any order are exact."""

    def conv(self, layer, x):
        weight = (self.model.convs[layer.name].weight.detach() * 9).round()
        return (convolve(layer, x, weight) / 16).round().clamp(0 if layer.relu else -128, 127)

    def pool(self, layer, x):
        return super().pool(layer, x).round()


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 50])
def test_whole_numbers_stream_bit_for_bit_with_operations_of_the_callers_own(chunk):
    model, operations = made(SPECTRAL), Rounded(made(SPECTRAL))
    x = (heard(SPECTRAL, 23) * 40).round()[:, None]
    whole, _ = walk(SPECTRAL, operations, x, model.fresh(2))
    state, parts = model.fresh(2), []
    for start in range(0, 23, chunk):
        y, state = walk(SPECTRAL, operations, x[:, :, start : start + chunk], state)
        parts.append(y)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(last_frame(SPECTRAL, operations, x), whole[:, -1])


def test_a_stride_leaves_frames_that_do_not_fill_it_for_later():
    model = made(SPECTRAL)
    first, state = model.step(heard(SPECTRAL, 1), model.fresh(2))
    second, state = model.step(heard(SPECTRAL, 1), state)
    assert (first.shape, second.shape) == ((2, 0, 3), (2, 1, 3))


def test_no_frames_leave_the_state_and_clips_without_a_frame_of_logits_are_refused():
    model = made(SPECTRAL)
    _, state = model.step(heard(SPECTRAL, 5), model.fresh(2))
    y, after = model.step(heard(SPECTRAL, 0), state)
    assert y.shape == (2, 0, 3)
    assert all(torch.equal(after[name], state[name]) for name in state)
    with pytest.raises(ValueError, match="clips of 1 frames are too short"):
        model(heard(SPECTRAL, 1))


def test_training_normalises_by_the_batch_and_moves_the_running_statistics():
    model = ConvNet(SPECTRAL).train()
    before = model.convs["head"].norm.mean.clone()
    F.cross_entropy(model(heard(SPECTRAL, 23, batch=4).float()), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not torch.equal(model.convs["head"].norm.mean, before)


def test_observing_moves_the_statistics_as_training_does():
    norm, other = ConvNet(SPECTRAL).convs["stem"].norm, ConvNet(SPECTRAL).convs["stem"].norm
    a = torch.randn(3, 8, 5, 4)
    norm.train()(a)
    other.observe(a)
    assert torch.allclose(norm.mean, other.mean) and torch.allclose(norm.var, other.var)


def test_a_network_is_drawn_from_its_seed_alone():
    first = ConvNet(SPECTRAL, 5).state_dict()
    torch.rand(7)
    assert all(torch.equal(value, first[name]) for name, value in ConvNet(SPECTRAL, 5).state_dict().items())
    assert not torch.equal(ConvNet(SPECTRAL, 6).convs["head"].weight, ConvNet(SPECTRAL, 5).convs["head"].weight)


def test_a_pool_whose_values_go_on_to_more_layers_looks_at_every_frame():
    layers = (
        Conv("stem", 1, 4, (3, 1)),
        Pool("pool", 3),
        Conv("after", 4, 4, (3, 1)),
        Output("output", 4, 3),
    )
    network = Network(Front("raw"), LABELS, layers)
    model, x = made(network), heard(network, 9)
    assert np.abs(model(x).detach().numpy() - by_hand(model, x)[:, -1]).max() < 1e-12


def test_fresh_sinc_filters_pass_their_band():
    layer = Conv("sinc", 1, 8, (251, 1), (16, 1), filters="sinc")
    sinc = SincConv(layer)
    low, high = (edge.detach().numpy() for edge in sinc.edges_hz())
    response = np.abs(np.fft.rfft(sinc.weight.detach().numpy()[:, 0, :, 0], 16000))  # one bin per Hz
    assert np.allclose(low[1:], high[:-1], atol=1) and high[-1] == 8000
    for n in range(8):
        middle = round(float(np.sqrt(low[n] * high[n])))
        outside = np.r_[response[n, : max(0, int(low[n]) - 150)], response[n, int(high[n]) + 150 :]]
        assert response[n, middle] > 2 * outside.max(initial=0)


def test_sinc_filters_are_the_papers_equation_and_train():
    sinc = SincConv(Conv("sinc", 1, 3, (33, 1), (1, 1), filters="sinc"))
    low, high = (edge.detach().double().numpy() / 16000 for edge in sinc.edges_hz())
    n = np.arange(33) - 16
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(33) / 32)
    for k in range(3):
        ideal = (np.sin(2 * np.pi * high[k] * n) - np.sin(2 * np.pi * low[k] * n)) / np.where(n, np.pi * n, 1)
        ideal[16] = 2 * (high[k] - low[k])
        expected = ideal * window / (2 * (high[k] - low[k]))
        assert np.allclose(sinc.weight[k, 0, :, 0].detach().numpy(), expected, atol=1e-5)
    sinc.weight.square().sum().backward()
    assert sinc.low_hz.grad.abs().sum() > 0 and sinc.band_hz.grad.abs().sum() > 0


@pytest.mark.parametrize("inputs, kernel", [(2, (9, 1)), (1, (9, 3)), (1, (1, 1))])
def test_sinc_filters_hear_raw_audio_only(inputs, kernel):
    with pytest.raises(ValueError, match=r"sinc: sinc filters hear raw audio over time alone"):
        SincConv(Conv("sinc", inputs, 4, kernel, filters="sinc"))


def test_tensors_are_channels_last_in_memory():
    shapes = []

    class Watching(FloatOperations):
        def conv(self, layer, x):
            y = super().conv(layer, x)
            shapes.append(y.is_contiguous(memory_format=torch.channels_last))
            return y

    model = ConvNet(SPECTRAL)
    last_frame(SPECTRAL, Watching(model), torch.randn(2, 1, 23, 10))
    assert shapes and all(shapes)


@given(frames=st.integers(2, 40))
@settings(max_examples=25, deadline=None)
def test_a_clip_looks_at_the_frames_its_last_logits_need_and_no_more(frames):
    """A frame earlier than the first that is looked at changes nothing, that one does."""
    _, first = looked_at(SPECTRAL, frames)
    model, x = made(SPECTRAL), heard(SPECTRAL, frames)
    logits, at = model(x), first["input"]
    assert torch.allclose(logits, model.step(x, model.fresh(2))[0][:, -1], rtol=0, atol=1e-12)
    changed = x.clone()
    changed[:, :at] += 1
    assert torch.equal(model(changed), logits)
    changed[:, at] += 1
    assert not torch.equal(model(changed), logits)
    assert (frames >= 24) == (at > 0)
