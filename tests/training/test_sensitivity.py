"""Sensitivity: the matrix that matters keeps its bits, the proposal fits its budget, and it is the same every time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kwsbench.data.transcribed import Vocabulary
from kwsbench.data.utterances import UtteranceBank
from kwsbench.models.transducer import Transducer, TransducerConfig
from kwsbench.quantizers.recognizer import SoftRecognizer, matrices, matrix_bytes
from kwsbench.training.recognition import RecognitionSystem, open_recognition
from kwsbench.training.sensitivity import Proposal, as_plan, choose_widths, propose, propose_mix, validation_loss
from kwsbench.training.transducer import UtteranceSampler, transducer_loss
from tests.training.recognition_tools import TINY, WORDS, write_tones

SIZES = {name: {8: 800, 4: 400, 2: 200, 1: 100} for name in ("a", "b", "c")}


def costs(**by_name):
    return {(name, bits): cost for name, row in by_name.items() for bits, cost in zip((4, 2, 1), row)}


def test_what_costs_least_goes_first():
    found = choose_widths(SIZES, costs(a=(0.1, 5, 50), b=(0, 0, 0), c=(0.1, 0.2, 9)), budget=0.5)
    assert found == {"a": 4, "b": 1, "c": 2} or sum(SIZES[n][b] for n, b in found.items()) <= 1200
    assert found["b"] == 1 and found["a"] >= found["c"]
    spared = choose_widths(SIZES, costs(a=(1, 2, 3), b=(1, 2, 3), c=(0, 0, 0)), budget=0.71)
    assert spared == {"a": 8, "b": 8, "c": 1}  # 1,700 of 2,400 bytes


def test_a_proposal_fits_its_budget_and_has_a_matrix_at_one_bit():
    rng = np.random.default_rng(0)
    for budget in (0.13, 0.2, 0.4, 0.7, 1.0):
        row = {name: tuple(np.sort(rng.exponential(size=3))) for name in SIZES}
        found = choose_widths(SIZES, costs(**row), budget)
        assert sum(SIZES[name][bits] for name, bits in found.items()) <= budget * 2400
        assert 1 in found.values() and found == choose_widths(dict(reversed(SIZES.items())), costs(**row), budget)


def test_noise_below_zero_buys_nothing_and_impossible_budgets_are_refused():
    lucky = choose_widths(SIZES, costs(a=(3, -5, -5), b=(0.1, 0.1, 0.1), c=(0.2, 0.2, 0.2)), budget=0.45)
    assert lucky["a"] > 1 and lucky["b"] == 1  # fewer bits of a cost 3 all the same
    with pytest.raises(ValueError, match="240 bytes are allowed, all at the fewest bits take 300"):
        choose_widths(SIZES, costs(a=(1, 1, 1), b=(1, 1, 1), c=(1, 1, 1)), budget=0.1)
    with pytest.raises(ValueError, match="budget is a share of the bytes"):
        choose_widths(SIZES, {}, budget=1.5)


def test_a_plan_names_the_exceptions():
    plan = as_plan({"x": 4, "y": 8, "z": 4, "w": 1})
    assert plan.weights.bits == 4 and [(glob, w.bits) for glob, w in plan.exceptions] == [("y", 8), ("w", 1)]
    assert [plan.of(name).bits for name in "xyzw"] == [4, 8, 4, 1]
    assert plan.of("y").method == "linear" and plan.of("w").method == "general"


def made(odd: str):
    """A model whose matrices hold two values each, which one bit renders, but for ``odd``; and utterances."""
    model = Transducer(TransducerConfig(3, TINY.lstm, 8, 12, 16), 0)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name in matrices(model):
            weight = model.get_submodule(name).weight
            if name == odd:
                weight.copy_(torch.from_numpy(rng.standard_t(1.5, size=tuple(weight.shape)).astype(np.float32)))
            else:
                weight.copy_(torch.where(weight < 0, -0.5, 0.5))
    lengths = rng.integers(30, 60, 20)
    bank = UtteranceBank(
        rng.normal(size=(lengths.sum(), 8)).astype(np.float32), np.concatenate([[0], np.cumsum(lengths)]),
        np.zeros(20), tuple(f"u{i}" for i in range(20)), ("low high", "high") * 10, ("s",) * 20, (), "bank",
    )  # fmt: skip
    return model, UtteranceSampler(bank, Vocabulary(WORDS), model, 0)


@pytest.mark.parametrize("odd", ["encoder.layers.1.recurrent", "joiner.output"])
def test_the_one_matrix_that_needs_its_bits_keeps_them(odd):
    model, sampler = made(odd)
    proposal = propose(model, sampler, budget=0.5, widths=(1,))
    # Two values at 8 bits are not quite those at one: the linear scale is one of a search.
    others = max(abs(e.loss_increase) for e in proposal.effects if e.matrix != odd)
    assert next(e.loss_increase for e in proposal.effects if e.matrix == odd) > max(0.3, 100 * others)
    assert proposal.bits[odd] == 8 and 1 in proposal.bits.values()
    assert proposal == propose(model, sampler, budget=0.5, widths=(1,))
    assert abs(proposal.loss - proposal.base_loss) < 0.01
    # The bytes are those of the model that the plan makes.
    assert proposal.bytes == sum(matrix_bytes(SoftRecognizer(model, proposal.plan)).values())
    assert f"{odd} = 8" in proposal.text() and f"| `{odd}` |" in "\n".join(proposal.markdown("lstm"))


def test_the_loss_is_that_of_every_utterance_once():
    model, sampler = made("joiner.output")
    total = 0.0
    for i in range(20):
        batch = sampler.collate([i])
        args = batch.labels, batch.encoded_counts, batch.label_counts
        with torch.no_grad():
            total += float(transducer_loss(model(batch.frames, batch.labels), *args).sum())
    assert validation_loss(model, sampler) == pytest.approx(total / 30, rel=1e-5)


def test_a_proposal_is_kept_beside_its_model(tmp_path, monkeypatch):
    few = replace(TINY, float_stage=replace(TINY.float_stage, steps=3))
    root = write_tones(tmp_path / "tones")
    recognition = open_recognition(tmp_path / "runs", "commands", str(root), WORDS, few, progress=False)
    first = propose_mix(recognition, "lstm", 0, budget=0.4)
    assert first.bytes <= 0.4 * first.base_bytes and 1 in first.bits.values()
    monkeypatch.setattr("kwsbench.training.sensitivity.propose", lambda *a: pytest.fail("measured twice"))
    assert propose_mix(recognition, "lstm", 0, budget=0.4) == first
    (kept,) = recognition.folder(RecognitionSystem("float")).glob("sensitivity-*.json")
    with pytest.raises(ValueError, match="this is no proposal of widths"):
        Proposal.from_json({"effects": []})
    assert kept.is_file()
