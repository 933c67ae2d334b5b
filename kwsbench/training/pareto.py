"""Accuracy against weights, operations and bytes: networks and bit widths side by side, over seeds.

    networks (found, hand-made, raw and MFCC) x quantizations (float, fixed, trained, budgeted) x seeds -> one table

Every choice is made on validation; the test clips are read once per system. A row is a network under a quantization:
accuracy is the mean over seeds with lowest and highest, its 95% interval Wilson's on as many clips as the test set
has (clips are the same for every seed, so seeds do not narrow it). The difference is paired with the float network of
the same seeds, clip by clip (metrics/paired.py). Bytes of integer systems are those of resources/convolutional.py: what
a device stores, and what a stream needs at a time; of float systems four per parameter and per value (modelled). The
front is that of flash bytes and accuracy on validation, so that being on it was not chosen by the test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from kwsbench.arithmetic.codebook import check_bits
from kwsbench.files import write_json, write_text
from kwsbench.integer.lower import LoweringError
from kwsbench.metrics.compare import spread
from kwsbench.metrics.paired import AccuracyDifference, accuracy_difference
from kwsbench.metrics.pareto import front_of
from kwsbench.models.handmade import BCResNet, ds_cnn, feedforward
from kwsbench.models.layers import Network
from kwsbench.models.space import cost, network_of
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.convolutional import ConvPlan
from kwsbench.quantizers.learned import CollapsedWidth
from kwsbench.resources.convolutional import needs
from kwsbench.training.clip_experiment import (
    INTEGER,
    BroadcastNetwork,
    BudgetPlan,
    ClipExperiment,
    ClipSystem,
    LearnedPlan,
)
from kwsbench.training.result import spread_cell

AnyNetwork = Network | BroadcastNetwork

FLOAT_BYTES = 4
FIXED_METHOD = "lsq"
FIGURES = ("accuracy", "validation_accuracy", "frr", "fdr", "bits_per_weight", "bits_per_activation", "flash_bytes",
           "ram_streaming_bytes", "ram_whole_bytes")  # fmt: skip


@dataclass(frozen=True)
class Quantization:
    """A column of the comparison: its name in the table, what kind of system it is, its plan."""

    name: str
    kind: str
    plan: ConvPlan | LearnedPlan | BudgetPlan | None = None


def fixed(bits: int, method: str = FIXED_METHOD) -> Quantization:
    """Weights and activations at one width, trained in both stages."""
    return Quantization(_bits(bits), "stage_two", ConvPlan(WeightPlan(method, bits), bits))


def learned(learner: str, bits: float) -> Quantization:
    """Widths learned in stage 1 under a budget of ``bits`` per weight and per value of activations."""
    name = {"width": "trained width", "diffq": "DiffQ"}[learner]
    return Quantization(f"{name}, budget {bits:g} bits", "stage_two", LearnedPlan(learner, bits, bits))


def untrained(bits: int) -> Quantization:
    """Weights and activations at one width, on grids of least squared error (8-bit weights: up to the largest)."""
    return Quantization(f"{_bits(bits)}, not trained", "post_training", ConvPlan(WeightPlan("linear", bits), bits))


def _bits(bits: int) -> str:
    return f"{check_bits(bits)} bit{'s' if bits > 1 else ''}"


FLOAT = Quantization("float", "float")
CONTROL = Quantization("float, equal steps", "control")
MIXED = Quantization("mixed 2/4/8 in limits", "stage_two", BudgetPlan())

WAYS = ("float", "control", "untrained", "fixed", "width", "diffq", "mixed")
BITS = {"tiny": (4,), "smoke": (8, 3, 2), "default": (8, 4, 3, 2, 1), "full": (8, 4, 3, 2, 1)}
UNTRAINED_BITS = (8, 4)
# Mean bits that the learned widths may take: beside a fixed width of as many.
BUDGET_BITS = {"tiny": 5.0}
USUAL_BUDGET_BITS = 3.0
# Raw audio and MFCC, in "default" at about equal operations; small ones to show the path.
NETWORKS = {
    "tiny": {"MFCC": "mfcc10 w8 3e2s 3e1 h16", "raw": "raw w8 3e2s h16"},
    "smoke": {"MFCC": "mfcc10 w16 5e2s 5e2 3e1 h32", "raw": "raw w16 5e2s 5e2 h32"},
    "default": {"MFCC": "mfcc10 w32 7e2s 7e2 5e2 5e1 h64", "raw": "raw w28 7e2s 7e2 5e2 5e1 h64"},
}


def networks_of(
    profile: str, labels: tuple[str, ...], notations: Sequence[str] = (), names: Sequence[str] = ()
) -> dict[str, AnyNetwork]:
    """Networks by name: those of ``notations`` as "found", then the profile's and, but for "tiny", those made by hand.

    ``names``: only these of the menu.

    Raises:
        NotationError: a notation does not parse.
        ValueError: a name that is not on the menu.
    """
    menu: dict[str, AnyNetwork] = {
        name: network_of(text, labels) for name, text in NETWORKS.get(profile, NETWORKS["default"]).items()
    }
    if profile != "tiny":
        menu |= {
            "DS-CNN": ds_cnn(labels),
            "feedforward 250K": feedforward(labels),
            "BC-ResNet-1": BroadcastNetwork(labels),
        }
    unknown = [name for name in names if name not in menu]
    if unknown:
        raise ValueError(f"no network {unknown[0]!r} on the menu: {', '.join(menu)}")
    found: dict[str, AnyNetwork] = {
        f"found {i}" if len(notations) > 1 else "found": network_of(text, labels)
        for i, text in enumerate(notations, start=1)
    }
    return found | {name: network for name, network in menu.items() if not names or name in names}


def quantizations_of(profile: str, bits: Sequence[int] = (), ways: Sequence[str] = ()) -> list[Quantization]:
    """The columns of a profile; ``bits``: other fixed widths; ``ways``: only these of ``WAYS``, float always.

    Raises:
        ValueError: an unknown way.
    """
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise ValueError(f"no quantization {unknown[0]!r}; there are {', '.join(WAYS)}")
    budget = BUDGET_BITS.get(profile, USUAL_BUDGET_BITS)
    columns = {
        "float": [FLOAT],
        "control": [CONTROL],
        "untrained": [untrained(b) for b in UNTRAINED_BITS],
        "fixed": [fixed(b) for b in (bits or BITS.get(profile, BITS["default"]))],
        "width": [learned("width", budget)],
        "diffq": [learned("diffq", budget)],
        "mixed": [MIXED],
    }
    return [q for way in WAYS if not ways or way in ("float", *ways) for q in columns[way]]


def serves(network: AnyNetwork, quantization: Quantization) -> bool:
    """Whether a network can be quantized so: BC-ResNet is there in float only."""
    return isinstance(network, Network) or quantization.plan is None


def run_pareto(
    experiment: ClipExperiment,
    networks: Mapping[str, AnyNetwork],
    quantizations: Sequence[Quantization],
    seeds: Sequence[int],
    out: Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Train and measure what is not there yet; write ``pareto.json`` and ``pareto.md`` into ``out``.

    Without ``out`` nothing is written. The files are written anew after every system, so a killed run shows what it had
    and goes on from there.

    A system that does not train (a width collapsed, a loss was not finite) or does not lower is listed with its reason,
    and the others go on.

    Raises:
        ValueError: no network, no seed, no float column in the first place, or a budget that no widths meet.
    """
    if not networks or not seeds or not quantizations or quantizations[0] != FLOAT:
        raise ValueError("a table needs a network, a seed and the float column first: the others are compared with it")
    for quantization in quantizations:
        for network in networks.values():
            if isinstance(quantization.plan, LearnedPlan) and isinstance(network, Network):
                quantization.plan.check(network)
    result: dict[str, Any] = {"command": command, "setup": setup(experiment, networks, seeds), "rows": []}
    result["failed"] = []
    systems = [
        (name, q, seed)
        for seed in seeds
        for name, network in networks.items()
        for q in quantizations
        if serves(network, q)
    ]
    known: dict[tuple, AccuracyDifference] = {}
    for name, quantization, seed in tqdm(systems, desc="systems", disable=not experiment.progress):
        try:
            result["rows"].append(measure(experiment, name, networks[name], quantization, seed))
        except (CollapsedWidth, LoweringError, FloatingPointError) as error:
            failed = {"network": name, "quantization": quantization.name, "seed": seed, "why": str(error)}
            result["failed"].append(failed)
        result["summary"] = summarise(experiment, networks, quantizations, result["rows"], known)
        if out:
            write_json(out / "pareto.json", result)
            write_text(out / "pareto.md", markdown(result))
    return result


def setup(experiment: ClipExperiment, networks: Mapping[str, AnyNetwork], seeds: Sequence[int]) -> dict[str, Any]:
    """What the figures were measured on, and what was left out of it."""
    spec, p = experiment.spec, experiment.spec.profile
    splits = {split: experiment.clips(split) for split in ("train", "validation", "test")}
    said = Counter(speaker for speaker in splits["test"].speakers if speaker)
    return {
        "task": spec.task.name,
        "labels": list(spec.task.labels),
        "corpus": experiment.corpus.fingerprint(),
        "profile": p.name,
        "illustrative": p.illustrative,
        "seeds": list(seeds),
        "steps": {stage.name: stage.steps for stage in (p.float_stage, p.stage_one, p.stage_two)},
        "device": experiment.device,
        "clips": {split: clips.counts() for split, clips in splits.items()},
        "speakers": len(said),
        "most_of_one_speaker": max(said.values(), default=0),
        "left_out": {split: list(clips.skipped) for split, clips in splits.items() if clips.skipped},
        "notes": list(dict.fromkeys([*experiment.corpus.notes, *(n for c in splits.values() for n in c.notes)])),
        "operating_frr": spec.frr,
        "networks": {name: network.to_json() for name, network in networks.items()},
    }


def system_of(network: AnyNetwork, name: str, quantization: Quantization, seed: int) -> ClipSystem:
    """The system of a cell of the table."""
    return ClipSystem(network, quantization.kind, seed, quantization.plan, name)


def measure(
    experiment: ClipExperiment, name: str, network: AnyNetwork, quantization: Quantization, seed: int
) -> dict[str, Any]:
    """One network, quantization and seed."""
    system = system_of(network, name, quantization, seed)
    row: dict[str, Any] = {
        "network": name,
        "notation": network.notation,
        "front": network.front.kind,
        "quantization": quantization.name,
        "kind": quantization.kind,
        "seed": seed,
        **experiment.accuracy([system], "test"),
        "validation_accuracy": experiment.accuracy([system], "validation")["accuracy"],
        **sizes(experiment, system),
    }
    if experiment.spec.task.keyword:
        row |= experiment.point(system).as_row() | {"system": system.title}
    if system.kind in INTEGER:
        row |= experiment.equality(system)
    return row


def sizes(experiment: ClipExperiment, system: ClipSystem) -> dict[str, Any]:
    """Weights, operations, bytes and mean widths of a system."""
    if not isinstance(system.network, Network):
        module = BCResNet(system.network.labels, 0, system.network.width)
        parameters = sum(p.numel() for p in module.parameters())
        return {
            "weights": module.weights,
            "parameters": parameters,
            "macs_per_clip": module.macs_per_clip,
            "flash_bytes": FLOAT_BYTES * parameters,
            "bits_per_weight": 32.0,
            "bits_per_activation": 32.0,
        }
    counted = cost(system.network)
    found = {
        "weights": counted.weights,
        "parameters": counted.parameters,
        "macs_per_clip": counted.macs_per_clip,
    }
    if system.kind in INTEGER:
        return found | asdict(needs(experiment.program(system)))
    return found | {
        "flash_bytes": FLOAT_BYTES * counted.parameters,
        "ram_streaming_bytes": FLOAT_BYTES * counted.peak_values_streaming,
        "ram_whole_bytes": FLOAT_BYTES * counted.peak_values_whole,
        "bits_per_weight": 32.0,
        "bits_per_activation": 32.0,
    }


def summarise(
    experiment: ClipExperiment,
    networks: Mapping[str, AnyNetwork],
    quantizations: Sequence[Quantization],
    rows: Sequence[Mapping[str, Any]],
    known: dict[tuple, AccuracyDifference],
) -> list[dict[str, Any]]:
    """One entry per network and quantization over the seeds that are there, and whether it is on the front.

    ``known``: differences by network, quantization and seeds; those that are missing are added.
    """
    table = []
    for name, network in networks.items():
        for quantization in quantizations:
            mine = [r for r in rows if (r["network"], r["quantization"]) == (name, quantization.name)]
            if not mine:
                continue
            entry = {key: mine[0][key] for key in ("network", "notation", "front", "quantization", "kind")}
            entry |= {key: mine[0][key] for key in ("weights", "parameters", "macs_per_clip")}
            entry["seeds"] = [r["seed"] for r in mine]
            for figure in FIGURES:
                values = [r[figure] for r in mine if r.get(figure) is not None]
                if values:
                    s = spread(values)
                    entry[figure] = {"mean": s.mean, "lowest": s.least, "highest": s.largest}
            systems = [system_of(network, name, quantization, seed) for seed in entry["seeds"]]
            found = experiment.accuracy(systems, "test")
            entry |= {key: found[key] for key in ("low", "high", "n", "n_effective")}
            entry |= {key: sum(r.get(key, 0) for r in mine) for key in ("compared", "different")}
            if quantization != FLOAT:
                key = (name, quantization.name, *entry["seeds"])
                if key not in known:
                    floats = [system_of(network, name, FLOAT, seed) for seed in entry["seeds"]]
                    ours, theirs = (
                        np.stack([experiment.correct(s, "test") for s in those]) for those in (systems, floats)
                    )
                    known[key] = accuracy_difference(ours, theirs, groups=experiment.speakers("test"))
                difference = known[key]
                entry["difference"] = asdict(difference) | {"outcome": difference.outcome}
                entry["difference"]["per_seed"] = list(difference.per_seed)
            table.append(entry)
    on = set(front_of([(e["flash_bytes"]["mean"], e["validation_accuracy"]["mean"]) for e in table]))
    for i, entry in enumerate(table):
        entry["on_front"] = i in on
    return table


def markdown(result: Mapping[str, Any]) -> str:
    """The table as Markdown, with its definitions and counts."""
    s, summary = result["setup"], result["summary"]
    keyword = "fdr" in summary[0]
    counts = {split: sum(clips.values()) for split, clips in s["clips"].items()}
    lines = [
        f"# {s['task']}: accuracy against weights, operations and bytes",
        "",
        *([f"`{result['command']}`", ""] if result["command"] else []),
        f"Profile {s['profile']}, seeds {', '.join(map(str, s['seeds']))}, steps "
        + ", ".join(f"{name} {steps:,}" for name, steps in s["steps"].items())
        + f". Clips: {counts['train']:,} train, {counts['validation']:,} validation, {counts['test']:,} test ("
        + ", ".join(f"{count} {label}" for label, count in s["clips"]["test"].items())
        + f"), by {s['speakers']} known speakers, of whom one says {s['most_of_one_speaker']}; one test clip is "
        f"{100 / counts['test']:.2f}%.",
        "",
        "Accuracy on test, mean (lowest-highest) over seeds; interval: 95%, Wilson, of the mean on as many "
        "independent clips as those of these speakers are worth. Difference: from the float network of the same "
        "seeds, paired by clip, 95% bootstrap over speakers and seeds. MACs of one clip, without the front end. FLASH "
        "and RAM (streaming) in kB of 1000 bytes, at their widths; of float systems 4 bytes per parameter and value. "
        "Bits: mean per weight and per activation. Front: no other row has fewer FLASH bytes and more accuracy on "
        "validation. Equal: values of all layers that the integer program and training's emulation agree on. Learned "
        "widths have a budget of that many bits per weight and per value of activations in the mean; mixed: limits on "
        "FLASH and RAM lie a third of the way from 2 bits throughout to 8.",
        "",
        "| network | quantization | accuracy | interval | difference | weights | MACs | FLASH kB | RAM kB | "
        "bits w / a | " + ("FRR | FDR | " if keyword else "") + "front | equal |",
        "|---" * (14 if keyword else 12) + "|",
    ]
    for row in summary:
        difference = row.get("difference")
        told = "-" if difference is None else _points(difference)
        cells = [
            row["network"],
            row["quantization"],
            spread_cell(row["accuracy"], True),
            f"{100 * row['low']:.1f}-{100 * row['high']:.1f}%",
            told,
            f"{row['weights']:,}",
            f"{row['macs_per_clip'] / 1e6:.2f} M",
            f"{row['flash_bytes']['mean'] / 1000:.1f}",
            f"{row['ram_streaming_bytes']['mean'] / 1000:.1f}" if "ram_streaming_bytes" in row else "-",
            f"{row['bits_per_weight']['mean']:.3g} / {row['bits_per_activation']['mean']:.3g}",
        ]
        if keyword:
            cells += [spread_cell(row[name], True) if name in row else "-" for name in ("frr", "fdr")]
        equal = f"{row['compared'] - row['different']:,} of {row['compared']:,}" if row["compared"] else "-"
        lines.append("| " + " | ".join([*cells, "yes" if row["on_front"] else "", equal]) + " |")
    named = [f"- {name}: `{n['notation']}`" for name, n in s["networks"].items() if n["notation"]]
    lines += ["", "Networks:", "", *named] if named else []
    lines += ["", *(f"Note: {note}." for note in s["notes"])]
    lines += [f"Failed: {f['network']}, {f['quantization']}, seed {f['seed']}: {f['why']}" for f in result["failed"]]
    if s["left_out"]:
        lost = {split: len(files) for split, files in s["left_out"].items()}
        lines += ["", f"Files that could not be read: {lost}; the JSON lists them."]
    if s["illustrative"]:
        lines += ["", "Illustrative: short trainings, to show the path, not to rank methods."]
    return "\n".join(lines).rstrip() + "\n"


def _points(difference: Mapping[str, Any]) -> str:
    mean, low, high = (round(100 * difference[key], 1) + 0.0 for key in ("mean", "low", "high"))  # no -0.0
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
