"""Quantized transducers: stage 1 is the float model with other matrices, stage 2 the integer program."""

import numpy as np
import pytest
import torch

from kwsbench.integer import listen as integer_listen
from kwsbench.integer.lower import LoweringError
from kwsbench.integer.lower_recognizer import lower_recognizer
from kwsbench.integer.packed import Packed
from kwsbench.models.bifocal import BifocalConfig
from kwsbench.models.conformer import ConformerConfig
from kwsbench.models.decoding import listen, listen_start, recognise
from kwsbench.models.recurrent import LstmEncoderConfig
from kwsbench.models.transducer import Transducer, TransducerConfig
from kwsbench.quantizers import QUANTIZERS
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.recognizer import (
    ONE_SCALE,
    IntegerRecognizer,
    RecognizerPlan,
    SoftRecognizer,
    coverage,
    matrices,
    matrix_bytes,
)

SMALL = LstmEncoderConfig(n_mels=8, stack=2, hidden=12, layers=2)
ENCODERS = {
    "lstm": SMALL,
    "deep": LstmEncoderConfig(n_mels=8, stack=1, hidden=9, layers=3, reduce_after=2, reduction=3),
    "flat": LstmEncoderConfig(n_mels=8, stack=3, hidden=8, layers=1, reduction=1),
    "conformer": ConformerConfig(n_mels=8, stack=3, width=16, blocks=2, heads=2, kernel=3, left_context=4),
}
EIGHT = RecognizerPlan(WeightPlan("linear", 8))
BIFOCAL = BifocalConfig(SMALL, SMALL, switch_at=3)
METHODS = ("linear", "general", "tanh", "lsq")


def transducer(encoder="lstm", seed=0):
    config = ENCODERS.get(encoder, encoder)
    model = Transducer(TransducerConfig(7, config, embedding=6, prediction=10, joint=11), seed)
    model.set_normalisation(np.linspace(-1, 1, 8), np.linspace(1, 2, 8))
    return model.eval()


def recordings(count=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(50 + 7 * i, 8, generator=rng) for i in range(count)]


def integer(encoder="lstm", plan=EIGHT, seed=0):
    return IntegerRecognizer(SoftRecognizer(transducer(encoder, seed), plan), recordings()).eval()


def batch():
    frames = torch.stack([x[:50] for x in recordings()])
    return frames, torch.tensor([[1, 2, 3], [4, 5, 6], [6, 6, 1], [2, 2, 2]])


@pytest.mark.parametrize("encoder", [*ENCODERS, BIFOCAL], ids=[*ENCODERS, "bifocal"])
@pytest.mark.parametrize("method", METHODS)
def test_stage_one_is_the_float_model_with_quantized_matrices(encoder, method):
    model = transducer(encoder)
    soft = SoftRecognizer(model, RecognizerPlan(WeightPlan(method, 3))).eval()
    plain = soft.as_float()
    assert torch.allclose(soft(*batch()), plain(*batch()), atol=1e-5)
    for name, module in plain.named_modules():
        if name in matrices(model):
            distinct = [len(row.unique()) for row in module.weight]
            assert max(distinct) <= 8, name
    rest = [k for k in model.state_dict() if k.removesuffix(".weight") not in matrices(model)]
    assert all(torch.equal(model.state_dict()[k], plain.state_dict()[k]) for k in rest)


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_eight_bits_change_little(encoder):
    """A bound from the widths: int8 everywhere costs about a hundredth of the logits' spread."""
    logits = transducer(encoder)(*batch())
    quantized = integer(encoder)(*batch())
    assert quantized.dtype == torch.float64
    assert (quantized - logits).std() < 0.08 * logits.std()
    assert (quantized - logits).abs().max() > 0


@pytest.mark.parametrize("encoder", ["lstm", "deep", "flat"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("bits", "per_channel"), [(8, True), (5, False), (4, True), (2, False), (1, True)])
def test_the_program_computes_what_training_computed(encoder, method, bits, per_channel):
    model = integer(encoder, RecognizerPlan(WeightPlan(method, bits, per_channel)))
    program = lower_recognizer(model)
    engine = integer_listen.Reference(program)
    heard = 0
    for frames in recordings():
        ours = listen(model, frames, listen_start(model))
        theirs = integer_listen.listen(engine, frames.numpy(), integer_listen.start(engine))
        for part, states in ((0, theirs.h), (1, theirs.c)):
            emulated = np.concatenate([state[part][0].numpy() for state in ours.encoder.layers])
            assert np.array_equal(emulated, states)
        assert np.array_equal(ours.search.prediction[1][0].numpy(), theirs.prediction_c)
        assert ours.search.labels == theirs.labels and ours.search.emitted_at == theirs.emitted_at
        encoded, _ = integer_listen.encode(engine, frames.numpy(), integer_listen.start(engine))
        heard += len(encoded)
        state = integer_listen.start(engine)
        acc = np.stack([engine.scores(frame, state.prediction_h) for frame in encoded])
        logits = model(frames[None], torch.zeros(1, 0, dtype=torch.int64))[0, :, 0]
        assert np.array_equal(acc * program.output.scale, logits.detach().numpy())
    assert heard > 20


@pytest.mark.parametrize("encoder", ["lstm", "deep", "flat"])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize(("method", "bits"), [("linear", 8), ("general", 4), ("tanh", 2)])
def test_a_beam_on_the_program_is_the_beam_of_training(encoder, method, bits, width):
    sharp = transducer(encoder)
    with torch.no_grad():  # so that labels are emitted
        for layer in (sharp.joiner.encoder, sharp.joiner.prediction, sharp.joiner.output):
            layer.weight.mul_(4)
    model = IntegerRecognizer(SoftRecognizer(sharp, RecognizerPlan(WeightPlan(method, bits))), recordings()).eval()
    program = lower_recognizer(model)
    engines = integer_listen.Reference(program), Packed(program)
    heard = 0
    for frames in recordings():
        ours = listen(model, frames, listen_start(model, width), width).search
        for engine in engines:
            theirs = integer_listen.listen(engine, frames.numpy(), integer_listen.start(engine, width))
            assert [h.labels for h in theirs.hypotheses] == [h.labels for h in ours.hypotheses]
            scores = [h.score for h in theirs.hypotheses], [h.score for h in ours.hypotheses]
            np.testing.assert_allclose(*scores, rtol=0, atol=1e-6)
            assert theirs.frames == ours.frames
            assert theirs.labels == recognise(model, frames, width)
            for a, b in zip(theirs.hypotheses, ours.hypotheses, strict=True):
                assert np.array_equal(a.prediction[1], b.prediction[1][0].numpy())
        heard += len(ours.labels)
    assert heard > 5


@pytest.mark.parametrize("encoder", list(ENCODERS))
@pytest.mark.parametrize("chunk", [1, 2, 5, 13])
def test_streamed_is_whole(encoder, chunk):
    model = integer(encoder, RecognizerPlan(WeightPlan("general", 4)))
    frames = model.normalise(torch.stack([x[:50] for x in recordings()]))
    state, pieces = model.encoder.fresh(4), []
    for start in range(0, 50, chunk):
        y, state = model.encoder.step(frames[:, start : start + chunk], state)
        pieces.append(y)
    whole = model.encoder.step(frames, model.encoder.fresh(4))[0]
    assert torch.equal(torch.cat(pieces, 1), whole)
    # A Conformer's training forward does several frames in one float product: a code may differ by one.
    assert (model.encoder(frames) - whole).abs().max() <= (1 if encoder == "conformer" else 0)


def test_a_conformers_caches_and_inputs_are_int8():
    model = integer("conformer")
    frames = model.normalise(recordings()[0][None])
    _, state = model.encoder.step(frames, model.encoder.fresh())
    places = dict(model.encoder.places())
    assert len(places) == 1 + 2 * (2 + 4 + 2 + 2) + 2 * 3
    for number, block in enumerate(state.blocks):
        for kept, place in (
            (block.keys, "attention.kept_key"),
            (block.values, "attention.kept_value"),
            (block.history, "convolution.kept"),
        ):
            codes = kept / places[f"encoder.blocks.{number}.{place}"].scale
            assert torch.allclose(codes, codes.round(), atol=1e-3) and codes.abs().max() <= 127.01
            assert codes.abs().max() > 20


@pytest.mark.parametrize("encoder", ["lstm", "conformer"])
def test_every_parameter_gets_a_gradient_once_and_evaluation_does_not_lag_behind(encoder):
    model = integer(encoder, RecognizerPlan(WeightPlan("general", 3)))
    before = model(*batch()).detach()
    model.train()
    logits = model(*batch())
    assert torch.equal(logits.detach(), before)
    logits.log_softmax(-1)[..., 1].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    after = model.eval()(*batch()).detach()
    assert not torch.equal(after, before)
    assert torch.equal(model.train()(*batch()).detach(), after)


@pytest.mark.parametrize("encoder", ["lstm", "conformer"])
def test_a_state_dict_brings_everything_back(encoder):
    plan = RecognizerPlan(WeightPlan("general", 2), (("joiner.*", WeightPlan("linear", 8)),))
    soft = SoftRecognizer(transducer(encoder), plan)
    first = IntegerRecognizer(soft, recordings()).eval()
    second = IntegerRecognizer(SoftRecognizer(transducer(encoder, seed=5), plan))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*batch()), second.eval()(*batch()))
    again = SoftRecognizer(transducer(encoder, seed=5), plan)
    again.load_state_dict(soft.state_dict())
    assert torch.equal(soft.eval()(*batch()), again.eval()(*batch()))


def test_annealing_ends_hard_and_rests_in_between():
    soft = SoftRecognizer(transducer(), RecognizerPlan(WeightPlan("general", 2))).train()
    name = "encoder.layers.0.input"

    def off_grid():
        codes = soft.weight(name) / soft.quantizer(name).step()[:, None]
        return float((codes - codes.round()).abs().max().detach())

    soft.anneal(0, 10)
    assert off_grid() > 1e-2
    soft.anneal(1, 10, every=2)
    assert torch.equal(soft.weight(name), soft.quantizer(name).latent())
    soft.anneal(9, 10)
    assert off_grid() < 1e-3
    assert soft.penalty() is None
    assert SoftRecognizer(transducer(), RecognizerPlan(WeightPlan("cosine", 2))).penalty() > 0


def test_a_plan_chooses_by_module_layer_and_kernel():
    plan = RecognizerPlan(
        WeightPlan("general", 4, per_channel=True),
        (
            ("encoder.layers.1.recurrent", WeightPlan("general", 1)),
            ("encoder.*", WeightPlan("linear", 8)),
            ("prediction.*", WeightPlan("general", 2)),
        ),
    )
    model = transducer()
    rows = {r["component"]: (r["method"], r["bits"]) for r in coverage(model, plan)}
    assert rows["encoder.layers.0.input"] == rows["encoder.layers.1.input"] == ("linear", 8)
    assert rows["encoder.layers.1.recurrent"] == ("general", 1)
    assert rows["prediction.embedding"] == rows["prediction.layer.recurrent"] == ("general", 2)
    assert rows["joiner.output"] == ("general", 4)
    assert rows["biases and norms"] == ("float", 32)
    assert plan.of("joiner.encoder").per_channel and not any(plan.of(name).per_channel for name in ONE_SCALE)
    assert RecognizerPlan.from_json(plan.to_json()) == plan
    soft = SoftRecognizer(model, plan)
    assert soft.quantizer("encoder.layers.1.recurrent").bits == 1
    assert sum(matrix_bytes(soft).values()) == soft.packed_bytes()["matrices"]
    uniform = SoftRecognizer(model, RecognizerPlan(WeightPlan("general", 4)))
    assert matrix_bytes(soft)["encoder.layers.1.recurrent"] < matrix_bytes(uniform)["encoder.layers.1.recurrent"]


def test_what_cannot_be_is_said():
    model = transducer()
    with pytest.raises(
        ValueError, match=r"no matrix matches 'encoder\.layer\.\*'; the matrices are encoder\.layers\.0"
    ):
        SoftRecognizer(model, RecognizerPlan(WeightPlan("linear", 8), (("encoder.layer.*", WeightPlan("linear", 4)),)))
    with pytest.raises(ValueError, match="a BifocalEncoder has no integer form"):
        IntegerRecognizer(SoftRecognizer(transducer(BIFOCAL), RecognizerPlan(WeightPlan("linear", 8))))
    with pytest.raises(LoweringError, match="only LSTM encoders lower to integers whole"):
        lower_recognizer(integer("conformer"))
    broken = integer()
    with torch.no_grad():
        broken.body.joiner.encoder.bias[2] = float("nan")
    with pytest.raises(ValueError, match=r"row 2 of a gate has units .* not finite"):
        broken.train()(*batch())


@pytest.mark.parametrize("method", sorted(QUANTIZERS))
def test_every_method_trains_and_lowers(method):
    model = integer("lstm", RecognizerPlan(WeightPlan(method, 4)))
    program = lower_recognizer(model)
    assert [m.name for m in program.matrices] == list(matrices(transducer()))
    assert all(m.bits == 4 for m in program.matrices)
