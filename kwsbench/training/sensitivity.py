"""Which matrix of a recognizer needs how many bits: measured one by one, and a mix proposed under a budget of bytes.

    proposal = propose_mix(recognition, "lstm", seed=0, budget=0.4);  print(proposal.text())

Each matrix in turn is quantized to few bits after training, all others to 8, and the loss and the errors on
*validation* are compared with all at 8. The proposal starts with all at 8 and goes down step by step, one matrix to a
lower width at a time: always the step that costs least loss per byte saved, until the bytes are within the budget. The
matrix that minds least per byte goes to one bit first, as the paper (arXiv 2210.09188) has layers at 1 bit.

Matrices are taken as independent, which they are not: what the mix does together is measured once more, and what
training with it reaches is another matter. Everything is a function of the float model and the validation data.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kwsbench.files import write_json
from kwsbench.metrics.wer import WordErrors, total_errors, word_errors
from kwsbench.models.transducer import Transducer
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.recognizer import RecognizerPlan, SoftRecognizer, matrix_bytes
from kwsbench.training.artifacts import kept
from kwsbench.training.recognition import Recognition, RecognitionSystem
from kwsbench.training.transducer import Batch, UtteranceSampler, batch_loss, greedy_together

BASE_BITS = 8
WIDTHS = (4, 2, 1)
METHOD = "general"
BATCH = 32


@dataclass(frozen=True)
class Effect:
    """What one matrix at ``bits`` does to the validation data, all others at 8: in nats per label and in WER."""

    matrix: str
    bits: int
    bytes: int
    loss_increase: float
    wer_increase: float


@dataclass(frozen=True)
class Proposal:
    """The effects, the widths proposed, their bytes against those at 8 bits, and loss and WER of all at 8 bits and of
    the mix, both without training."""

    effects: tuple[Effect, ...]
    bits: dict[str, int]
    bytes: int
    base_bytes: int
    budget: float
    base_loss: float
    base_wer: float
    loss: float
    wer: float

    @property
    def plan(self) -> RecognizerPlan:
        """As a plan: the most frequent width for all, the others as exceptions by name."""
        return as_plan(self.bits)

    def text(self) -> str:
        """The plan for a person, one line per exception: ``encoder.layers.0.input = 4``."""
        plan = self.plan
        return "\n".join([f"* = {plan.weights.bits}", *(f"{glob} = {w.bits}" for glob, w in plan.exceptions)])

    def markdown(self, encoder: str) -> list[str]:
        """The table of effects and the proposal, as lines of Markdown."""
        widths = sorted({effect.bits for effect in self.effects}, reverse=True)
        lines = [
            f"## Sensitivity, {encoder}",
            "",
            f"Validation, without training; one matrix at few bits, the others at {BASE_BITS}. Increase of the loss "
            f"(nats per label) and of WER (points) over all at {BASE_BITS} bits: {self.base_loss:.4f}, "
            f"{100 * self.base_wer:.1f}%. The mix has {self.bytes:,} bytes of matrices of {self.base_bytes:,} "
            f"(budget {self.budget:g}); without training it has loss {self.loss:.4f}, WER {100 * self.wer:.1f}%.",
            "",
            "| matrix | " + " | ".join(f"{b} bit: loss, WER" for b in widths) + " | in the mix |",
            "|---" * (len(widths) + 2) + "|",
        ]
        for matrix, bits in self.bits.items():
            mine = {effect.bits: effect for effect in self.effects if effect.matrix == matrix}
            cells = [f"{mine[b].loss_increase:+.4f}, {100 * mine[b].wer_increase:+.1f}" for b in widths]
            lines.append(f"| `{matrix}` | " + " | ".join(cells) + f" | {bits} |")
        return lines

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Proposal:
        """What :meth:`to_json` gave. Raises ValueError for something else."""
        try:
            return Proposal(**{**values, "effects": tuple(Effect(**effect) for effect in values["effects"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no proposal of widths: {error!r}") from None


def propose_mix(
    recognition: Recognition, encoder: str, seed: int, budget: float, widths: Sequence[int] = WIDTHS
) -> Proposal:
    """The proposal for the float model of an encoder and seed, kept beside it."""
    system = RecognitionSystem("float", seed, encoder)
    bank = recognition.bank("validation")
    settings = json.dumps([bank.source_hash, budget, list(widths), METHOD, BATCH])
    name = f"sensitivity-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.json"

    def make(file: Path) -> None:
        model = recognition.model(system)
        assert isinstance(model, Transducer)
        proposal = propose(model, recognition.sampler(encoder, seed, "validation"), budget, widths)
        write_json(file, proposal.to_json(), sort_keys=False)

    return kept(
        recognition.folder(system) / name,
        f"sensitivity of {encoder}, seed {seed}",
        lambda file: Proposal.from_json(json.loads(file.read_text())),
        make,
    )


def propose(model: Transducer, validation: UtteranceSampler, budget: float, widths: Sequence[int] = WIDTHS) -> Proposal:
    """The proposal for a float model; ``validation`` gives utterances with their labels.

    Raises:
        ValueError: the budget is not a share, or below what the fewest bits need.
    """
    model = model.eval()
    every = (BASE_BITS, *sorted(widths, reverse=True))
    soft = {bits: SoftRecognizer(model, RecognizerPlan(plan_of(bits))) for bits in every}
    weights = {bits: quantized.as_float().state_dict() for bits, quantized in soft.items()}
    sizes = {bits: matrix_bytes(quantized) for bits, quantized in soft.items()}
    names = list(sizes[BASE_BITS])
    probe = Transducer(model.config).to(model.mean.device)

    def measured(chosen: Mapping[str, int]) -> tuple[float, float]:
        values = weights[BASE_BITS] | {f"{n}.weight": weights[b][f"{n}.weight"] for n, b in chosen.items()}
        probe.load_state_dict(values)
        return validation_loss(probe, validation), validation_errors(probe, validation).rate

    base_loss, base_wer = measured({})
    effects = []
    for name in names:
        for bits in every[1:]:
            loss, wer = measured({name: bits})
            effects.append(Effect(name, bits, sizes[bits][name], loss - base_loss, wer - base_wer))
    costs = {(effect.matrix, effect.bits): effect.loss_increase for effect in effects}
    by_matrix = {name: {bits: sizes[bits][name] for bits in every} for name in names}
    chosen = choose_widths(by_matrix, costs, budget)
    loss, wer = measured(chosen)
    total = sum(by_matrix[name][bits] for name, bits in chosen.items())
    base = sum(by_matrix[name][BASE_BITS] for name in names)
    return Proposal(tuple(effects), chosen, total, base, budget, base_loss, base_wer, loss, wer)


def choose_widths(
    sizes: Mapping[str, Mapping[int, int]], costs: Mapping[tuple[str, int], float], budget: float
) -> dict[str, int]:
    """Bits of every matrix, within ``budget`` of the bytes at the most bits; see the module docstring.

    Args:
        sizes: bytes by matrix and width.
        costs: loss increase of (matrix, width), of every width but the greatest. Fewer bits count as costing at least
            what more bits do: a loss that falls is noise.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget is a share of the bytes, above 0 and at most 1, got {budget}")
    widths = {name: sorted(by_width, reverse=True) for name, by_width in sizes.items()}
    worst = {(name, w[0]): 0.0 for name, w in widths.items()}
    for name, w in widths.items():
        for before, bits in itertools.pairwise(w):
            worst[name, bits] = max(worst[name, before], costs[name, bits], 0.0)
    most = sum(sizes[name][w[0]] for name, w in widths.items())
    least = sum(sizes[name][w[-1]] for name, w in widths.items())
    if least > budget * most:
        raise ValueError(f"{budget * most:.0f} bytes are allowed, all at the fewest bits take {least}")
    first = min(sizes, key=lambda name: (worst[name, widths[name][-1]] / sizes[name][widths[name][0]], name))
    chosen = {name: w[-1] if name == first else w[0] for name, w in widths.items()}
    while sum(sizes[name][bits] for name, bits in chosen.items()) > budget * most:
        steps = []
        for name, bits in chosen.items():
            for lower in widths[name][widths[name].index(bits) + 1 :]:
                saved = sizes[name][bits] - sizes[name][lower]
                if saved > 0:
                    steps.append(((worst[name, lower] - worst[name, bits]) / saved, -lower, name))
        _, negative, name = min(steps)
        chosen[name] = -negative
    return chosen


def as_plan(bits: Mapping[str, int]) -> RecognizerPlan:
    """A plan of widths by matrix: the most frequent one (of equals the greatest) for all, the others by name."""
    values = list(bits.values())
    usual = max(set(values), key=lambda b: (values.count(b), b))
    return RecognizerPlan(plan_of(usual), tuple((name, plan_of(b)) for name, b in bits.items() if b != usual))


def plan_of(bits: int) -> WeightPlan:
    """Of one matrix: linear at 8 bits, where nothing is to be gained, else centroids."""
    return WeightPlan("linear" if bits == BASE_BITS else METHOD, bits)


@torch.no_grad()
def validation_loss(model: Transducer, sampler: UtteranceSampler) -> float:
    """Nats per label over all utterances that have labels."""
    total, labels = 0.0, 0
    for batch, _ in _batches(sampler):
        count = int(batch.label_counts.sum())
        total += float(batch_loss(model, batch)) * max(count, 1)
        labels += count
    return total / max(labels, 1)


@torch.no_grad()
def validation_errors(model: Transducer, sampler: UtteranceSampler) -> WordErrors:
    """Word errors of greedy search over the same utterances."""
    errors = []
    for batch, texts in _batches(sampler):
        found = greedy_together(model, batch.frames, batch.encoded_counts)
        heard = [sampler.vocabulary.decode(labels) for labels, _ in found]
        errors += [word_errors(text.split(), h.split()) for text, h in zip(texts, heard, strict=True)]
    return total_errors(errors)


def _batches(sampler: UtteranceSampler) -> Iterator[tuple[Batch, list[str]]]:
    """All utterances with labels once, by length, with their texts."""
    for start in range(0, len(sampler.by_length), BATCH):
        chosen = sampler.by_length[start : start + BATCH]
        yield sampler.collate(chosen), [sampler.bank.texts[i] for i in chosen]
