"""A Conformer encoder as arrays: equal to the torch one it was lowered from, and on packed weights."""

import numpy as np
import pytest
import torch

from kwsbench.integer import conformer as plain
from kwsbench.integer.kernels.matvec import has_blocks
from kwsbench.integer.lower import LoweringError
from kwsbench.integer.lower_conformer import lower_conformer
from kwsbench.integer.packed_conformer import PackedConformer
from kwsbench.integer.reference import accumulate, quantize_input
from kwsbench.models.conformer import ConformerConfig
from kwsbench.models.recurrent import LstmEncoderConfig
from kwsbench.models.transducer import Transducer, TransducerConfig
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.recognizer import IntegerRecognizer, RecognizerPlan, SoftRecognizer

ENCODER = ConformerConfig(n_mels=8, stack=3, width=20, blocks=2, heads=4, expansion=2, kernel=4, left_context=5)
MIXED = RecognizerPlan(
    WeightPlan("general", 4), (("*.up", WeightPlan("linear", 8)), ("*.gated", WeightPlan("tanh", 1)))
)


def recordings(count=3, frames=60):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(frames, 8, generator=generator) * 2 for _ in range(count)]


def quantized(encoder=ENCODER, plan=MIXED):
    model = Transducer(TransducerConfig(7, encoder, 8, 12, 10), 1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.encoder.parameters():
            if p.ndim == 1 or len(p) == 4:  # norms, biases, distances and filters that do something
                p += 0.2 * torch.randn(p.shape, generator=generator)
    return IntegerRecognizer(SoftRecognizer(model, plan), recordings()).eval()


@pytest.fixture(scope="module")
def model():
    return quantized()


def joined(encoder, x):
    """int8 ``[T', stack * n_mels]``."""
    ints = quantize_input(x.numpy(), encoder.input)
    return ints[: len(ints) // encoder.stack * encoder.stack].reshape(-1, encoder.stack * encoder.n_mels)


def run(frame, state, inputs):
    out = []
    for x in inputs:
        y, state = frame(x, state)
        out.append(y)
    return np.array(out), state


def assert_close(got, want):
    """Equal, or some codes beside each other: a value on a rounding edge moves what follows it by a unit or two."""
    assert got.dtype == np.int8
    difference = np.abs(got.astype(int) - want.astype(int))
    assert np.max(difference) <= 3
    assert np.mean(difference) < 0.3


def test_the_reference_gives_what_torch_gives(model):
    encoder = lower_conformer(model)
    for x in recordings():
        with torch.no_grad():
            want, _ = model.encoder.step(model.normalise(x[None]), model.encoder.fresh(1))
        got, state = run(lambda v, s: plain.frame(encoder, v, s), plain.fresh(encoder), joined(encoder, x))
        assert_close(got, want[0].numpy())
        assert len(np.unique(got)) > 50
        assert state.seen == 5


@pytest.mark.parametrize("blocks", [False] + [True] * has_blocks())
def test_packed_weights_give_what_the_reference_gives(model, blocks):
    encoder = lower_conformer(model)
    packed = PackedConformer(encoder, blocks)
    inputs = joined(encoder, recordings()[0])
    want, end = run(lambda v, s: plain.frame(encoder, v, s), plain.fresh(encoder), inputs)
    first = plain.fresh(encoder)
    got, state = run(packed.frame, first, inputs)
    assert_close(got, want)
    for name in ("keys", "values", "history"):
        assert_close(getattr(state, name), getattr(end, name))
        assert not np.any(getattr(first, name))  # a frame changes no state that it was given
    assert state.seen == end.seen
    rows, count = sum(len(linear.bias) for linear in encoder.linears), len(encoder.linears)
    assert packed.held_bytes["constants"] == 8 * rows + 12 * count
    floats = 2 * (
        6 * 2 * 20 + 4 * 6 + 4 * 20 + 20 + 3
    )  # of two blocks: norms, distances, filters, their biases, scales
    assert packed.held_bytes["float"] == 4 * floats


def test_a_matrix_is_exact_given_its_int8_input(model):
    encoder = lower_conformer(model)
    layer = encoder.blocks[0].attention.query
    x = np.random.default_rng(0).normal(size=20).astype(np.float32)
    ints = plain.to_int8(x, layer.scale)
    acc = accumulate(ints[None], layer.matrix.codes)[0]
    assert np.array_equal(acc, layer.matrix.codes.astype(np.int64) @ ints.astype(np.int64))
    assert np.array_equal(plain.linear(x, layer), acc.astype(np.float32) * layer.unit + layer.bias)


def test_another_encoder_is_refused():
    model = quantized(LstmEncoderConfig(n_mels=8, hidden=6, layers=2), RecognizerPlan(WeightPlan("linear", 8)))
    with pytest.raises(LoweringError, match="IntegerLstmEncoder, not a Conformer"):
        lower_conformer(model)
