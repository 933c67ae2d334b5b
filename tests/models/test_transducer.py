"""The transducer: streamed = whole to the bit, LSTM cells = torch's, causality, shapes, bad configurations."""

import json

import pytest
import torch

from kwsbench.models.bifocal import BifocalConfig
from kwsbench.models.conformer import ConformerConfig, ConformerEncoder
from kwsbench.models.recurrent import LstmLayer, join_frames
from kwsbench.models.transducer import LstmEncoderConfig, Transducer, TransducerConfig

LSTM = LstmEncoderConfig(n_mels=5, stack=2, hidden=12, layers=3, reduce_after=2, reduction=3)
PLAIN = LstmEncoderConfig(n_mels=5, stack=1, hidden=12, layers=1, reduction=1)
CONFORMER = ConformerConfig(n_mels=5, stack=3, width=16, blocks=2, heads=4, kernel=4, left_context=5)
NARROW = ConformerConfig(n_mels=5, stack=2, width=8, blocks=1, heads=2, kernel=1, left_context=0)
BIFOCAL = BifocalConfig(LstmEncoderConfig(5, 2, 6, 2, 1, 3), LSTM, switch_at=4)
ENCODERS = pytest.mark.parametrize(
    "encoder", [LSTM, PLAIN, CONFORMER, NARROW, BIFOCAL], ids=["lstm", "plain", "conformer", "narrow", "bifocal"]
)


def transducer(encoder, seed=0):
    model = Transducer(TransducerConfig(7, encoder, embedding=6, prediction=10, joint=9), seed).eval()
    model.set_normalisation(torch.linspace(-1, 1, 5), torch.linspace(0.5, 2, 5))
    return model


def frames(count, batch=1, seed=1):
    return torch.randn(batch, count, 5, generator=torch.Generator().manual_seed(seed))


def streamed(encoder, x, chunk):
    state, outputs = encoder.fresh(len(x)), []
    for at in range(0, x.shape[1], chunk):
        y, state = encoder.step(x[:, at : at + chunk], state)
        outputs.append(y)
    return torch.cat(outputs, 1)


@ENCODERS
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_every_chunking_gives_the_same_bits(encoder, batch):
    model = transducer(encoder)
    x = frames(61, batch)
    whole, _ = model.encoder.step(x, model.encoder.fresh(batch))
    assert whole.shape == (batch, 61 // model.encoder.frames_joined, model.encoder.width)
    for chunk in (1, 2, 3, 5, 7, 30, 60):
        assert torch.equal(streamed(model.encoder, x, chunk), whole), chunk


@ENCODERS
@torch.no_grad()
def test_the_training_forward_agrees_to_rounding(encoder):
    model = transducer(encoder).double()
    x = frames(61, 2).double()
    whole, _ = model.encoder.step(x, model.encoder.fresh(2))
    torch.testing.assert_close(model.encoder(x), whole, atol=1e-12, rtol=0)


@ENCODERS
@torch.no_grad()
def test_no_frames_give_nothing_and_leave_the_state_alone(encoder):
    model = transducer(encoder)
    _, state = model.encoder.step(frames(17), model.encoder.fresh())
    y, same = model.encoder.step(frames(0), state)
    assert y.shape == (1, 0, model.encoder.width)
    after, expected = (model.encoder.step(frames(30, seed=2), s)[0] for s in (same, state))
    assert torch.equal(after, expected)


@ENCODERS
@torch.no_grad()
def test_nothing_is_heard_before_it_is_said(encoder):
    """A change of log-mel frame t moves no encoder frame that ended before t: padding cannot reach back."""
    model = transducer(encoder).double()
    x = frames(60).double()
    changed = x.clone()
    changed[:, 31] += 1
    first = 31 // model.encoder.frames_joined
    for run in (model.encoder, lambda x: model.encoder.step(x, model.encoder.fresh())[0]):
        same = (run(changed) == run(x)).all(-1)[0]
        assert same[:first].all() and not same[first]


def test_a_conformer_frame_hears_its_context_and_no_more():
    model = transducer(CONFORMER).double()
    x = frames(90).double()
    changed = x.clone()
    changed[:, 0] += 1
    with torch.no_grad():
        same = (model.encoder(changed) == model.encoder(x)).all(-1)[0]
    # Per block: 5 frames of attention after 3 of convolution. The first frame reaches 2 * (5 + 3) frames further.
    reach = CONFORMER.blocks * (CONFORMER.left_context + CONFORMER.kernel - 1)
    assert not same[: reach + 1].any() and same[reach + 1 :].all()


def test_the_lstm_is_that_of_torch():
    layer = LstmLayer(7, 9, torch.Generator().manual_seed(0)).double()
    peer = torch.nn.LSTM(7, 9, batch_first=True).double()
    with torch.no_grad():
        peer.weight_ih_l0.copy_(layer.input.weight)
        peer.weight_hh_l0.copy_(layer.recurrent.weight)
        peer.bias_ih_l0.copy_(layer.input.bias)
        peer.bias_hh_l0.zero_()
    x = torch.randn(3, 25, 7, dtype=torch.float64)
    expected, (h, c) = peer(x)
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)
    streamed, state = layer.step(x, layer.fresh(3))
    torch.testing.assert_close(streamed, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(state, (h[0], c[0]), atol=1e-12, rtol=0)
    ours = torch.autograd.grad(layer(x).square().sum(), layer.recurrent.weight)[0]
    theirs = torch.autograd.grad(peer(x)[0].square().sum(), peer.weight_hh_l0)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_whole_attention_is_the_paper_s_when_nothing_lies_outside():
    """With a context longer than the recording and no bias: scaled dot-product attention under a causal mask."""
    config = ConformerConfig(n_mels=5, width=16, heads=4, left_context=50)
    attention = ConformerEncoder(config, torch.Generator().manual_seed(0)).blocks[0].attention.double()
    x = torch.randn(2, 11, 16, dtype=torch.float64)
    normed = attention.norm(x)
    q, k, v = (
        p(normed).unflatten(2, (4, 4)).transpose(1, 2) for p in (attention.query, attention.key, attention.value)
    )
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    expected = attention.output(expected.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected, atol=1e-12, rtol=0)


def test_the_distance_bias_belongs_to_the_same_frame_streamed_and_whole():
    model = transducer(CONFORMER).double()
    with torch.no_grad():
        for block in model.encoder.blocks:
            block.attention.distance.normal_(generator=torch.Generator().manual_seed(4))
        x = frames(60).double()
        torch.testing.assert_close(model.encoder(x), streamed(model.encoder, x, 7), atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_bifocal_pair_is_its_two_encoders_before_and_after_the_switch():
    encoder = transducer(BIFOCAL).encoder.double()
    x = frames(61).double()
    at = 4 * encoder.frames_joined
    small, _ = encoder.small.step(x[:, :at], encoder.small.fresh())
    large, _ = encoder.large.step(x[:, at:], encoder.large.fresh())
    expected = torch.cat([encoder.widen(small), large], 1)
    torch.testing.assert_close(streamed(encoder, x, 5), expected, atol=1e-12, rtol=0)
    encoder.switch_at = 0
    assert torch.equal(streamed(encoder, x, 61), encoder.large.step(x, encoder.large.fresh())[0])
    encoder.switch_at = 1000
    state = encoder.fresh()
    first, state = encoder.step(x[:, : at - 3], state)
    state = encoder.switch_now(state)  # in the middle of encoder frame 3: the large one begins with frame 4
    second, state = encoder.step(x[:, at - 3 :], encoder.switch_now(state))
    torch.testing.assert_close(torch.cat([first, second], 1), expected, atol=1e-12, rtol=0)


def test_frames_are_joined_oldest_first_and_none_is_lost():
    x = torch.arange(14.0).reshape(1, 7, 2)
    joined, pending = join_frames(x[:, :2], x[:, :0], 3)
    assert joined.shape == (1, 0, 6) and torch.equal(pending, x[:, :2])
    joined, pending = join_frames(x[:, 2:], pending, 3)
    assert torch.equal(joined[0], torch.arange(12.0).reshape(2, 6)) and torch.equal(pending, x[:, 6:])


@ENCODERS
def test_logits_of_a_batch_are_those_of_each_pair(encoder):
    model = transducer(encoder).double()
    x, labels = frames(36, 2).double(), torch.tensor([[1, 4, 6], [2, 2, 5]])
    with torch.no_grad():
        logits = model(x, labels)
        encoded = model.encoder(model.normalise(x))
        assert logits.shape == (2, encoded.shape[1], 4, 7)
        state = model.prediction.fresh(2)
        for u in range(4):
            for t in range(encoded.shape[1]):
                alone = model.joiner(encoded[:, t : t + 1], state[0][:, None])[:, 0, 0]
                torch.testing.assert_close(logits[:, t, u], alone, atol=1e-12, rtol=0)
            if u < 3:
                state = model.prediction.emit(labels[:, u], state)


@ENCODERS
def test_every_parameter_learns(encoder):
    model = transducer(encoder)
    model(frames(36, 2), torch.tensor([[1, 4], [2, 2]])).square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias on keys would be one: it shifts all scores of a query alike. With no context nothing is to be weighed.
    unused = ("attention.query", "attention.key", "attention.distance", "attention.norm") if encoder is NARROW else ()
    assert [n for n in silent if not any(u in n for u in unused)] == []


def test_a_seed_makes_a_model_and_another_one_another():
    first, same, other = (transducer(CONFORMER, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), same.state_dict().values()))
    assert not torch.equal(first.encoder.input.weight, other.encoder.input.weight)


@ENCODERS
def test_a_configuration_survives_json(encoder):
    config = TransducerConfig(11, encoder, joint=5)
    assert TransducerConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LstmEncoderConfig(hidden=0), "at least 1"),
        (lambda: LstmEncoderConfig(layers=2, reduce_after=2), "reduce_after must lie below layers, got 2 and 2"),
        (lambda: ConformerConfig(width=10, heads=4), "multiple of heads, got 10 and 4"),
        (lambda: BifocalConfig(LSTM, PLAIN), "both encoders need the same stack, got 2 and 1"),
        (lambda: BifocalConfig(LSTM, LSTM, -1), "from 0 on, got -1"),
        (lambda: ConformerConfig(left_context=-1), "at least 1"),
        (lambda: TransducerConfig(1), "at least one symbol, got symbols=1"),
        (lambda: TransducerConfig(5, joint=0), "at least 1"),
        (lambda: TransducerConfig.from_json({"symbols": 3, "encoder": {"kind": "gru"}}), "unknown encoder 'gru'"),
    ],
)
def test_bad_configurations_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
