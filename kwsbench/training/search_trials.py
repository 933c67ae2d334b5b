"""Search by trials: networks are drawn, each is trained for its share of one budget, validation decides.

    random_search     networks drawn uniformly among those whose operations lie just below the target: the baseline
    optuna_search     Bayesian (a tree-structured Parzen estimator, by Optuna) over the network *and* the bits of
                      weights and activations by part of the network, within limits of operations and bytes

The budget is in multiply-accumulates of all passes (a backward counts as two forwards, validation included), so that a
search of any kind can be given what another one took (``SearchRecord.macs``); small networks get more steps for their
share. Test clips are never seen. What breaks a limit is counted, not trained, and costs nothing.

Every trial is a function of (settings, seed, number, and in Optuna's case the outcomes of those before); with a folder
its outcome is kept there, so that an interrupted search goes on, to the same bits. Trials of the random search are
independent. Many searches at once: each is a run of notebook 09 in a sweep, here or on Dask (docs/search.md); runs
share their artifacts' root, and each artifact is made by one of them.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from torch.nn import functional as F
from tqdm.auto import tqdm

from kwsbench.files import locked, write_json
from kwsbench.models.convolutional import ConvNet
from kwsbench.models.layers import Conv, Network, Output
from kwsbench.models.space import Space, cost
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.convolutional import ConvPlan, QuantizedConvNet, weighted
from kwsbench.training.artifacts import kept, usable_checkpoint
from kwsbench.training.loop import StageConfig, train
from kwsbench.training.search import BACKWARD, Batches, Clips, check_held_out
from kwsbench.training.search_record import Trial, Trials, trial_of
from kwsbench.training.supernet import Choices, CostTable, cost_table

DRAWS = 200_000  # at most, to find networks near a target
ASKS = 100  # suggestions per trained trial, at most
EVALUATION_BATCH = 256
CALIBRATION_BATCHES = 2
JOURNAL = "optuna.log"


@dataclass(frozen=True)
class TrialConfig:
    """Trials: how many, what all of them together may take, and how each is trained (``stage``, whose steps follow from
    the budget).

    ``target_macs``: per clip, not to be exceeded; the random search draws networks within ``tolerance`` below it.
    """

    stage: StageConfig
    trials: int
    budget_macs: float
    target_macs: float
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if self.trials < 1 or self.budget_macs <= 0 or not 0 < self.tolerance <= 1:
            raise ValueError(f"trials, budget and tolerance (a share) must be positive, got {self}")


@dataclass(frozen=True)
class BitSpace:
    """Bits to choose from, by part of a network: all layers whose names match the part's glob.

    ``limit_bytes``: of all weights at their widths; ``method``: of ``QUANTIZERS``; ``stage``: the quantized one (stage
    1), which takes ``share`` of a trial's steps.
    """

    parts: tuple[tuple[str, tuple[str, ...]], ...]
    stage: StageConfig
    limit_bytes: float
    weights: tuple[int, ...] = (2, 4, 8)
    activations: tuple[int, ...] = (4, 8)
    method: str = "lsq"
    share: float = 0.3

    def __post_init__(self) -> None:
        if not self.parts or not self.weights or not self.activations or not 0 < self.share < 1:
            raise ValueError(f"bits to search need parts, widths, and a share between 0 and 1, got {self}")

    @property
    def names(self) -> dict[str, tuple[int, ...]]:
        """What there is to choose, and from what."""
        return {
            f"{part}.{what}": widths
            for part, _ in self.parts
            for what, widths in (("weights", self.weights), ("activations", self.activations))
        }

    def plan(self, network: Network, bits: Mapping[str, int]) -> ConvPlan:
        """The plan that a choice of bits is for a network (parts that it lacks are left out)."""
        names = [layer.name for layer in network.layers]
        weights, activations = [], []
        for part, globs in self.parts:
            for glob in globs:
                if _matches(glob, weighted(network)):
                    weights.append((glob, WeightPlan(self.method, bits[f"{part}.weights"])))
                if _matches(glob, names[:-1]):
                    activations.append((glob, bits[f"{part}.activations"]))
        return ConvPlan(WeightPlan(self.method, 8), 8, tuple(weights), tuple(activations))


def halves(space: Space) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Parts of a space's networks for :class:`BitSpace`: stem, first and second half of the cells, head and output."""
    cells = [f"cell{i}_*" for i in range(1, len(space.candidates) + 1)]
    middle = (len(cells) + 1) // 2
    parts = (
        ("stem", ("stem*",)),
        ("early", tuple(cells[:middle])),
        ("late", tuple(cells[middle:])),
        ("head", ("head", "pool", "output")),
    )
    return tuple(part for part in parts if part[1])


def draw_networks(table: CostTable, target_macs: float, tolerance: float, count: int, seed: int) -> list[Choices]:
    """Distinct paths, uniform among those that take between ``(1 - tolerance) target`` and ``target`` operations; fewer
    than ``count`` where no more were met.

    Raises:
        ValueError: the space has none there (the nearest below is named), or reaches the target nowhere.
    """
    table.check(target_macs)
    rng = np.random.default_rng([seed, 8])
    columns = [rng.integers(len(cell), size=DRAWS) for cell in table.cells]
    macs = np.full(DRAWS, table.base)
    for cell, column in zip(table.cells, columns, strict=True):
        macs += np.asarray(cell)[column]
    fits = np.flatnonzero((macs >= (1 - tolerance) * target_macs) & (macs <= target_macs))
    paths: dict[Choices, None] = {}
    for row in fits:
        paths[tuple(int(column[row]) for column in columns)] = None
        if len(paths) == count:
            break
    if not paths:
        below = macs[macs <= target_macs]
        nearest = f"the nearest of {DRAWS:,} drawn takes {int(below.max()):,}" if len(below) else "none drawn is below"
        raise ValueError(
            f"no network takes between {(1 - tolerance) * target_macs:,.0f} and {target_macs:,.0f} operations "
            f"({nearest}); allow a greater tolerance than {tolerance:g}"
        )
    return list(paths)


def random_search(
    space: Space,
    training: Batches,
    validation: Clips | None,
    config: TrialConfig,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> Trials:
    """The baseline: see the module docstring. ``folder`` keeps the outcome of each trial.

    Raises:
        ValueError: no validation data, no network near the target, a budget of less than a step.
    """
    validation = check_held_out(validation)
    table = cost_table(space)
    paths = draw_networks(table, config.target_macs, config.tolerance, config.trials, seed)
    settings = _settings("random", space, training, config, seed)
    trials = []
    for number, path in enumerate(tqdm(paths, desc="random search", disable=not progress)):
        trial = _described(number, space.network(path), None, {}, config)
        trials.append(_kept(folder, trial, space.network(path), training, validation, config, seed, settings))
    return Trials("random", tuple(trials), settings)


def optuna_search(
    space: Space,
    training: Batches,
    validation: Clips | None,
    config: TrialConfig,
    bits: BitSpace | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> Trials:
    """Bayesian search over networks, and over widths where ``bits`` says from which. ``folder`` keeps Optuna's journal
    (``optuna.log``), from which an interrupted search goes on.

    Raises:
        ValueError: no validation data; limits that nothing meets (the least that can be reached is named).
    """
    validation = check_held_out(validation)
    table = cost_table(space)
    table.check(config.target_macs)
    if bits is not None:
        _check_bytes(space, bits)
    settings = _settings("optuna", space, training, config, seed)
    settings["bits"] = None if bits is None else json.loads(json.dumps(asdict(bits)))
    settings["startup"] = startup(config.trials)
    with contextlib.nullcontext() if folder is None else locked(folder, "search by Optuna"):
        study = _study(folder, settings)
        trials = [Trial(**t.user_attrs["outcome"]) for t in study.get_trials(states=[TrialState.COMPLETE])]
        bar = tqdm(total=config.trials, initial=sum(t.steps > 0 for t in trials), desc="optuna", disable=not progress)
        while sum(t.steps > 0 for t in trials) < config.trials and len(trials) < ASKS * config.trials:
            # Each suggestion from a seed of its own: whatever was interrupted before does not matter.
            entropy = np.random.SeedSequence([seed, 9, len(trials)])
            study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=settings["startup"], seed=int(entropy.generate_state(1)[0])
            )
            suggested = study.ask()
            path = tuple(
                names.index(suggested.suggest_categorical(f"cell{i}", names))
                for i, names in enumerate(space.candidates, 1)
            )
            widths: dict[str, int] = {}
            if bits is not None:
                widths = {name: suggested.suggest_categorical(name, few) for name, few in bits.names.items()}
            trial = _described(len(trials), space.network(path), bits, widths, config)
            suggested.set_constraint("limits", trial.excess - 1)
            same = next((t for t in trials if t.steps and (t.notation, t.bits) == (trial.notation, trial.bits)), None)
            if same is not None:  # it would be trained to the same bits
                trial = replace(same, number=trial.number, steps=0, spent_macs=0.0, spent_clips=0)
            elif trial.excess <= 1:
                checkpoint = None if folder is None else folder / f"{study.study_name}.safetensors"
                trial = _trained(trial, space.network(path), bits, training, validation, config, seed, checkpoint)
                bar.update()
            suggested.set_user_attr("outcome", asdict(trial))
            study.tell(suggested, trial.accuracy or 0.0)
            trials.append(trial)
        bar.close()
    return Trials("optuna", tuple(trials), settings)


def startup(trials: int) -> int:
    """How many suggestions Optuna draws at random before its estimator guides: its own ten would be all of a short
    search.

    >>> [startup(trials) for trials in (2, 6, 12, 100)]
    [1, 2, 4, 10]
    """
    return min(10, max(1, trials // 3))


def weight_bytes(network: Network, plan: ConvPlan) -> int:
    """Bytes of all weights at their widths, each layer filled up to a whole byte."""
    return sum(
        -(-layer.weights * plan.weights_of(layer.name).bits // 8)
        for layer in network.layers
        if isinstance(layer, Conv | Output)
    )


@torch.no_grad()
def validation_score(model: torch.nn.Module, clips: Clips, device: torch.device | str = "cpu") -> tuple[float, float]:
    """Cross-entropy (nats per clip) and accuracy of a model on clips, in evaluation mode."""
    model.eval()
    loss, right = 0.0, 0
    for start in range(0, len(clips[0]), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        x = torch.from_numpy(np.asarray(clips[0][part], np.float32)).to(device)
        labels = torch.from_numpy(np.asarray(clips[1][part], np.int64)).to(device)
        logits = model(x)
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(1) == labels).sum())
    return loss / len(clips[0]), right / len(clips[0])


def _described(
    number: int, network: Network, bits: BitSpace | None, widths: dict[str, int], config: TrialConfig
) -> Trial:
    """A trial before it is trained."""
    counted = cost(network)
    if bits is None:
        size = 4 * counted.weights
        excess = counted.macs_per_clip / config.target_macs
    else:
        size = weight_bytes(network, bits.plan(network, widths))
        excess = max(counted.macs_per_clip / config.target_macs, size / bits.limit_bytes)
    return Trial(number, network.notation, counted.macs_per_clip, counted.weights, size, widths, excess=excess)


def _trained(
    trial: Trial,
    network: Network,
    bits: BitSpace | None,
    training: Batches,
    validation: Clips,
    config: TrialConfig,
    seed: int,
    checkpoint: Path | None,
) -> Trial:
    """The same, trained for its share of the budget and scored on validation."""
    x, _ = training.batch(0)
    per_step = (1 + BACKWARD) * len(x) * trial.macs
    scoring = len(validation[0]) * trial.macs
    steps = int((config.budget_macs / config.trials - scoring) // per_step)
    if steps < 2:
        raise ValueError(
            f"a budget of {config.budget_macs:,.0f} multiply-accumulates for {config.trials} trials is {max(0, steps)} "
            f"steps of {network.notation!r}: allow more, or fewer trials"
        )
    files = (None, None) if checkpoint is None else (checkpoint, checkpoint.with_suffix(".quantized.safetensors"))
    spent = replace(trial, steps=steps, spent_macs=float(steps * per_step + scoring), spent_clips=steps * len(x))
    try:
        model = _model(spent, network, bits, training, config, seed, *files)
        loss, accuracy = validation_score(model, validation, x.device)
        done = replace(spent, loss=loss, accuracy=accuracy)
    except FloatingPointError as error:  # one network that does not train is a result, not the end of the search
        done = replace(spent, failure=str(error))
    for file in files:
        if file is not None:
            file.unlink(missing_ok=True)
    return done


def _model(
    trial: Trial,
    network: Network,
    bits: BitSpace | None,
    training: Batches,
    config: TrialConfig,
    seed: int,
    float_file: Path | None,
    quantized_file: Path | None,
) -> ConvNet | QuantizedConvNet:
    """The trained model of a trial; the files are for the state in between."""
    device = training.batch(0)[0].device
    model = ConvNet(network, seed)
    model.set_normalisation(training.mean, training.std)
    model.to(device)
    quantized_steps = 0 if bits is None else max(1, int(bits.share * trial.steps))
    # An interrupted quantized stage needs no float one again: its checkpoint holds the whole model.
    if quantized_file is None or not quantized_file.is_file():
        stage = replace(config.stage, steps=trial.steps - quantized_steps)
        train(model, training, stage, float_file and usable_checkpoint(float_file), progress=False)
    if bits is None:
        return model
    quantized = QuantizedConvNet(model, bits.plan(network, trial.bits)).to(device)
    quantized.calibrate(torch.cat([training.batch(i)[0] for i in range(CALIBRATION_BATCHES)]))
    stage = replace(bits.stage, steps=quantized_steps)
    train(quantized, training, stage, quantized_file and usable_checkpoint(quantized_file), progress=False)
    return quantized


def _kept(
    folder: Path | None,
    trial: Trial,
    network: Network,
    training: Batches,
    validation: Clips,
    config: TrialConfig,
    seed: int,
    settings: Mapping[str, Any],
) -> Trial:
    """A float trial, from the folder if it is there."""
    if folder is None:
        return _trained(trial, network, None, training, validation, config, seed, None)
    file = folder / f"random-{_digest(settings)}" / f"{trial.number}.json"

    def make(file: Path) -> None:
        done = _trained(trial, network, None, training, validation, config, seed, file.with_suffix(".safetensors"))
        write_json(file, asdict(done))

    return kept(file, f"trial {trial.number}, {trial.notation}", lambda f: trial_of(json.loads(f.read_text())), make)


def _settings(strategy: str, space: Space, training: Batches, config: TrialConfig, seed: int) -> dict[str, Any]:
    """All that the trials depend on but the clips, which the caller's folder stands for."""
    values = {"strategy": strategy, "space": repr(space), "config": asdict(config), "seed": [seed, training.seed]}
    return json.loads(json.dumps(values))


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _study(folder: Path | None, settings: Mapping[str, Any]) -> optuna.Study:
    """The study of these settings; trials that an interruption left open are closed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage: BaseStorage = InMemoryStorage()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.create_study(
        storage=storage, study_name=f"optuna-{_digest(settings)}", direction="maximize", load_if_exists=True
    )
    for trial in study.get_trials(states=[TrialState.RUNNING, TrialState.WAITING]):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _check_bytes(space: Space, bits: BitSpace) -> None:
    """Raises ValueError where nothing is small enough."""
    fewest = {name: min(few) for name, few in bits.names.items()}
    counts = [len(names) for names in space.candidates]
    # A candidate's weights do not depend on the other cells: the smallest of each cell make the smallest network.
    smallest = []
    for cell, count in enumerate(counts):
        paths = [tuple(k if i == cell else 0 for i in range(len(counts))) for k in range(count)]
        sizes = [weight_bytes(space.network(p), bits.plan(space.network(p), fewest)) for p in paths]
        smallest.append(int(np.argmin(sizes)))
    network = space.network(tuple(smallest))
    least = weight_bytes(network, bits.plan(network, fewest))
    if least > bits.limit_bytes:
        raise ValueError(
            f"no network of this space fits into {bits.limit_bytes:,.0f} bytes: the smallest, {network.notation!r} at "
            f"the fewest bits, takes {least:,}"
        )


def _matches(glob: str, names: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in names)
