"""Architecture search on the clips of an experiment: three strategies at one cost, each a kept artifact.

    proxyless   differentiable (search.py); its operations are the budget of the two others
    random      networks drawn near the target, each trained for its share (search_trials.py): the baseline
    optuna      Bayesian, over network and bits of weights and activations under a limit of bytes

Weights see training clips, architectures validation clips, and nobody test clips. What is found is a notation, for
``kwsbench pareto --network``; of a differentiable search the most probable network that keeps to the target.
Artifacts lie under the experiment's root in folders named by a hash of clips, space, settings and seed; an
interrupted search goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from kwsbench.files import write_json, write_text
from kwsbench.models.space import Space, cost, front_of, network_of, scaled
from kwsbench.quantizers.convolutional import CALIBRATION
from kwsbench.training.artifacts import kept, usable_checkpoint
from kwsbench.training.clip_experiment import ClipExperiment
from kwsbench.training.clips import ClipSampler, ClipStage
from kwsbench.training.search import SearchConfig, search
from kwsbench.training.search_record import SearchRecord, Trials
from kwsbench.training.search_trials import (
    BitSpace,
    TrialConfig,
    draw_networks,
    halves,
    optuna_search,
    random_search,
)
from kwsbench.training.supernet import CostTable, cost_table, most_probable_within

STRATEGIES = ("proxyless", "random", "optuna")
# Part of every artifact's identity: raise it when the same settings would search otherwise.
ARTIFACT_VERSION = 2
TOLERANCES = (0.1, 0.3, 0.9)


@dataclass(frozen=True)
class SearchProfile:
    """How large a space and how long a search. ``target_macs``, where none is said: 0 is halfway, on a logarithmic
    scale, between the least and the most operations of the space; ``mean_bits``: the limit of bytes of ``optuna``, by
    the weights of the largest network."""

    name: str
    multiplier: float
    cells: int
    kernels: tuple[int, ...]
    expansions: tuple[int, ...]
    warmup: ClipStage
    stage: ClipStage
    trials: int
    strided: tuple[int, ...] = (0,)
    beta_rate: float = 10.0
    target_macs: float = 0.0
    mean_bits: float = 4.0


def _profile(
    name: str, multiplier: float, cells: int, expansions: tuple[int, ...], steps: tuple[int, int], trials: int
) -> SearchProfile:
    warmup, search = steps
    stage = ClipStage("search", search, learning_rate=1e-2, weight_decay=1e-2, label_smoothing=0.1,
                      warmup_steps=min(20, search // 4))  # fmt: skip
    kernels = (3, 5) if name == "tiny" else (3, 5, 7)
    before = replace(stage, name="warm-up", steps=warmup)
    return SearchProfile(name, multiplier, cells, kernels, expansions, before, stage, trials)


SEARCHES = {
    "tiny": _profile("tiny", 0.1, 2, (1, 2), (4, 10), trials=2),
    "smoke": _profile("smoke", 0.2, 3, (1, 2), (60, 180), trials=3),
    "default": _profile("default", 0.35, 5, (1, 2, 3, 4), (300, 1200), trials=6),
    # The sibling's (arXiv 2012.10138, its code): 40 + 120 epochs of Speech Commands v0.02 at batch 100.
    "full": SearchProfile(
        "full", 1.0, 12, (3, 5, 7), (1, 2, 3, 4, 5, 6),
        ClipStage("warm-up", 14_800, learning_rate=0.05, weight_decay=4e-5, label_smoothing=0.1, momentum=0.9,
                  warmup_steps=0, final_rate=0.0),
        ClipStage("search", 44_400, learning_rate=0.2, weight_decay=4e-5, label_smoothing=0.1, momentum=0.9,
                  warmup_steps=0, final_rate=0.0),
        trials=12, target_macs=20e6,
    ),
}  # fmt: skip


@dataclass
class ClipSearch:
    """Searches of one space on the clips of an experiment."""

    experiment: ClipExperiment
    profile: SearchProfile
    front: str = "mfcc10"
    target_macs: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown front end, or a target that no network of the space meets."""
        front_of(self.front)
        if not self.target_macs:
            halfway = round((self.table.least * self.table.most) ** 0.5)
            self.target_macs = float(self.profile.target_macs or halfway)
        self.table.check(self.target_macs)

    @cached_property
    def space(self) -> Space:
        """Which networks there are."""
        p = self.profile
        return Space(
            self.experiment.spec.task.labels,
            self.front,
            scaled(72, p.multiplier),
            scaled(144, p.multiplier),
            p.cells,
            p.strided,
            p.kernels,
            p.expansions,
        )

    @cached_property
    def table(self) -> CostTable:
        """Their operations."""
        return cost_table(self.space)

    @property
    def training(self) -> ClipSampler:
        """Batches of training clips."""
        return self.experiment.sampler(front_of(self.front), self.seed)

    @cached_property
    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        """All clips that decide."""
        return self.training.evaluation("validation")

    def folder(self, strategy: str) -> Path:
        """Where a strategy's artifacts lie."""
        p = self.profile
        identity = {
            "strategy": strategy,
            "space": repr(self.space),
            "profile": asdict(p) | {"name": None},
            "target_macs": self.target_macs,
            "clips": [self.experiment.clips_hash(split) for split in ("train", "validation")],
            "sampling": asdict(self.experiment.spec.profile.sampling),
            "seed": self.seed,
            "device": self.experiment.device,
            "version": ARTIFACT_VERSION,
        }
        if strategy == "optuna":
            identity["quantized"] = [asdict(self.experiment.spec.profile.stage_one), CALIBRATION]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return self.experiment.root / f"search-{strategy}-{digest}"

    def record(self) -> SearchRecord:
        """The differentiable search."""
        p, file = self.profile, self.folder("proxyless") / "record.npz"

        def make(file: Path) -> None:
            checkpoint = usable_checkpoint(file.with_name("checkpoint.safetensors"))
            config = SearchConfig(p.warmup, p.stage, self.target_macs, beta_rate=p.beta_rate)
            _, record = search(
                self.space, self.training, self.validation, config, self.seed, checkpoint, self.experiment.progress
            )
            record.save(file)
            checkpoint.unlink(missing_ok=True)

        return kept(file, f"differentiable search, seed {self.seed}", SearchRecord.load, make)

    def trials(self, strategy: str) -> Trials:
        """``random`` or ``optuna``, for as many operations as the differentiable search took."""
        p, file = self.profile, self.folder(strategy) / "trials.json"

        def make(file: Path) -> None:
            config = TrialConfig(p.stage, p.trials, self.record().macs, self.target_macs, self.tolerance)
            clips, folder, told = self.validation, file.parent, self.experiment.progress
            if strategy == "random":
                found = random_search(self.space, self.training, clips, config, self.seed, folder, told)
            else:
                quantized = self.experiment.spec.profile.stage_one  # that of every table: a low rate, AdamW
                bits = BitSpace(halves(self.space), quantized, self.limit_bytes)
                found = optuna_search(self.space, self.training, clips, config, bits, self.seed, folder, told)
            write_json(file, found.to_json())

        return kept(
            file,
            f"{strategy} search, seed {self.seed}",
            lambda path: Trials.from_json(json.loads(path.read_text())),
            make,
        )

    @cached_property
    def tolerance(self) -> float:
        """How far below the target, as a share, the random search draws: a tenth, or more where the space has fewer
        networks there than are trained."""
        for share in TOLERANCES[:-1]:
            with contextlib.suppress(ValueError):
                if len(draw_networks(self.table, self.target_macs, share, self.profile.trials, self.seed)) == (
                    self.profile.trials
                ):
                    return share
        return TOLERANCES[-1]

    @property
    def limit_bytes(self) -> float:
        """Bytes of weights that ``optuna`` may use: ``mean_bits`` for each of the largest network's."""
        largest = self.space.network(tuple(int(np.argmax(cell)) for cell in self.table.cells))
        return cost(largest).weights * self.profile.mean_bits / 8

    def found(self, strategy: str) -> str:
        """The notation that a strategy found."""
        if strategy == "proxyless":
            path = most_probable_within(self.record().last, self.table, self.target_macs)
            return self.space.network(path).notation
        return self.trials(strategy).best.notation


def run_search(
    searches: Sequence[ClipSearch], strategies: Sequence[str], out: Path, command: str = ""
) -> dict[str, Any]:
    """Search with each strategy and seed what was not searched yet; write ``search.json`` and ``search.md`` into
    ``out``, anew after each.

    Raises:
        ValueError: nothing to search, or an unknown strategy.
    """
    unknown = [s for s in strategies if s not in STRATEGIES]
    if unknown or not strategies or not searches:
        raise ValueError(f"strategies are some of {', '.join(STRATEGIES)}, got {', '.join(strategies) or 'none'}")
    out.mkdir(parents=True, exist_ok=True)
    first = searches[0]
    result: dict[str, Any] = {
        "command": command,
        "task": first.experiment.spec.task.name,
        "profile": first.profile.name,
        "front": first.front,
        "target_macs": first.target_macs,
        "space": {"networks": first.space.size, "least_macs": first.table.least, "most_macs": first.table.most},
        "rows": [],
    }
    work = [(one, strategy) for one in searches for strategy in strategies]
    for one, strategy in tqdm(work, desc="searches", disable=not first.experiment.progress):
        result["rows"].append(_row(one, strategy))
        write_json(out / "search.json", result)
        write_text(out / "search.md", markdown(result))
    return result


def _row(one: ClipSearch, strategy: str) -> dict[str, Any]:
    notation = one.found(strategy)
    counted = cost(network_of(notation, one.space.labels))
    row: dict[str, Any] = {
        "strategy": strategy,
        "seed": one.seed,
        "notation": notation,
        "weights": counted.weights,
        "macs_per_clip": counted.macs_per_clip,
    }
    if strategy == "proxyless":
        record = one.record()
        return row | {
            "spent_macs": record.macs,
            "most_probable": record.notation,
            "cells": record.cell_rows(),
            "entropy": float(record.curves["entropy"][-1]),
        }
    trials = one.trials(strategy)
    best = trials.best
    return row | {
        "spent_macs": trials.macs,
        "validation_accuracy": best.accuracy,
        "bits": best.bits,
        "networks_trained": sum(t.steps > 0 for t in trials.trials),
    }


def markdown(result: dict[str, Any]) -> str:
    """What was found, as a table."""
    s = result["space"]
    lines = [
        f"# {result['task']}: networks found, {result['front']}",
        "",
        *([f"`{result['command']}`", ""] if result["command"] else []),
        f"Profile {result['profile']}; {s['networks']:,} networks of {s['least_macs'] / 1e6:.2f} to "
        f"{s['most_macs'] / 1e6:.2f} M operations per clip, target {result['target_macs'] / 1e6:.2f} M. All strategies "
        "spend what the differentiable one did. Accuracy is that of a short training on validation clips, which "
        "chose the network: to compare, train what was found with `kwsbench pareto --network`.",
        "",
        "| strategy | seed | found | MACs | weights | bits | trained | validation | spent, MACs |",
        "|---" * 9 + "|",
    ]
    for row in result["rows"]:
        bits = ", ".join(f"{name} {width}" for name, width in row.get("bits", {}).items())
        accuracy = row.get("validation_accuracy")
        cells = [
            row["strategy"],
            str(row["seed"]),
            f"`{row['notation']}`",
            f"{row['macs_per_clip'] / 1e6:.2f} M",
            f"{row['weights']:,}",
            bits or "-",
            str(row.get("networks_trained", "-")),
            "-" if accuracy is None else f"{100 * accuracy:.1f}%",
            f"{row['spent_macs']:.3g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
