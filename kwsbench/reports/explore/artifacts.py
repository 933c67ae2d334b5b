"""What is cached under a root: the experiments that were opened there, and the systems of each that are trained.

Nothing is made here. An experiment whose corpus or features are gone is left out, with the reason.
"""

from __future__ import annotations

import json
import os
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from kwsbench.quantizers.attach import WeightPlan
from kwsbench.reports.corpus_study import provenance
from kwsbench.training.experiment import SPECS, Experiment, ExperimentSpec, System

DEFAULT_ROOT = "../runs"
HOW_TO_GET_RUNS = (
    "Nothing is trained here yet. `kwsbench run --profile smoke` makes runs in about a minute, and so does the "
    "**train** button of the training monitor below."
)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Study:
    """An experiment and its systems on disk. ``systems`` by name, float first."""

    label: str
    experiment: Experiment
    systems: dict[str, System]

    @property
    def keyword(self) -> str:
        return self.experiment.spec.keywords[0]

    def provenance(self) -> str:
        """One Markdown sentence on what its figures were measured on."""
        spec = self.experiment.spec
        embedded = Path(spec.data).resolve().is_relative_to(self.experiment.root.resolve())
        return provenance("" if embedded else spec.data, spec.profile.name, spec.profile.illustrative)


@dataclass(frozen=True)
class Shelf:
    """All studies under a root by label, those with most systems first; what was left out, and why."""

    root: Path
    studies: dict[str, Study] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def systems(self) -> dict[str, tuple[Study, str]]:
        """Study and name of every cached system, by what it is called here: with its study where there are several."""
        return {
            name if len(self.studies) == 1 else f"{name} ({study.label})": (study, name)
            for study in self.studies.values()
            for name in study.systems
        }

    def describe(self) -> str:
        """Markdown for the top of the notebook."""
        if not self.studies:
            return "\n\n".join([HOW_TO_GET_RUNS, *self.left_out])
        rows = [f"- **{name}**: {'; '.join(study.systems)}" for name, study in self.studies.items()]
        return "\n".join(["Cached systems:", "", *rows, "", *self.left_out])


def resolve_root(root: str) -> Path:
    """The root of a notebook; in its place, if it is the default, the one that ``kwsbench lab --root`` was given."""
    given = os.environ.get("KWSBENCH_ROOT")
    return Path(given if given and root == DEFAULT_ROOT else root)


def open_shelf(root: str | Path) -> Shelf:
    """What is cached under ``root``, which need not exist."""
    root = Path(root)
    studies, left_out = [], []
    candidates = [] if not root.is_dir() else _cached_systems(root)
    for path in sorted((root / SPECS).glob("*.json")):
        try:
            experiment = Experiment(spec_from_json(path, root), root, progress=False)
            if not Path(experiment.spec.data).is_dir():
                raise FileNotFoundError(f"its corpus {experiment.spec.data} is gone")
            gone = [split for split in ("train", "validation", "test") if not experiment.has_bank(split)]
            if gone:
                raise FileNotFoundError(f"no features of {', '.join(gone)} yet")
        except (ValueError, TypeError, KeyError, OSError) as error:
            left_out.append(f"Left out: experiment `{path.name}`: {error}.")
            continue
        mine = [s for s, folder in candidates if experiment.folder(s) == folder]
        if mine:
            studies.append(Study(_label(experiment), experiment, _named(mine)))
    studies.sort(key=lambda study: -len(study.systems))
    named: dict[str, Study] = {}
    for study in studies:
        label = study.label if study.label not in named else f"{study.label} ({len(named) + 1})"
        named[label] = study
    return Shelf(root, named, tuple(left_out))


def spec_from_json(path: Path, root: Path) -> ExperimentSpec:
    """The spec that ``Experiment.remember`` wrote.

    Raises:
        ValueError, KeyError, TypeError: a damaged file, or one of another version.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    spec = _built(ExperimentSpec, values)
    return _built(ExperimentSpec, values | {"data": str(root / spec.data)})  # an absolute path replaces the root


def _built(kind: Any, value: Any) -> Any:
    """A value of a (nested) dataclass or tuple type from what JSON made of it."""
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = {f.name for f in fields(kind)}
        if set(value) != names:
            raise ValueError(f"{kind} has other fields now: {sorted(set(value) ^ names)}")
        return kind(**{name: _built(hints[name], value[name]) for name in value})  # type: ignore[operator]
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return tuple(_built(inner, v) for v in value)
    return value


def _cached_systems(root: Path) -> list[tuple[System, Path]]:
    """Every trained system under a root as its identity says, with its folder."""
    found = []
    for path in sorted(root.glob("*-*/config.json")):
        if not (path.parent / "model.safetensors").is_file():
            continue
        try:
            identity = json.loads(path.read_text(encoding="utf-8"))
            own = identity["own"]
            plan = own.get("weights")
            weights = None if plan is None else WeightPlan(plan["method"], plan["bits"], plan["per_channel"])
            layer_bits = tuple(own["layer_bits"]) if "layer_bits" in own else None
            first = {"stage_one": identity, "stage_two": identity.get("parent")}.get(identity["kind"])
            every = 1 if first is None else first["own"]["stage"]["quantize_every"]
            systems = [System(identity["kind"], identity["seed"], weights, None, layer_bits, every)]
            if "batchnorm" in own:
                systems.append(replace(systems[0], batchnorm=own["batchnorm"]))
        except (ValueError, KeyError, TypeError):
            continue  # not ours, or of a version before
        found += [(system, path.parent) for system in systems]
    return found


def _named(systems: list[System]) -> dict[str, System]:
    """By label, float first and then from wide to narrow; with the seed where there are several."""
    order = ("float", "control", "stage_two", "stage_one", "post_training")
    several = len({s.seed for s in systems}) > 1
    # The experiment's own batchnorm is the shorter name of the same folder.
    systems = [s for s in systems if s.batchnorm is None or _without_batchnorm(s) not in systems]
    systems = sorted(
        systems, key=lambda s: (order.index(s.kind), s.seed, -(s.weights.bits if s.weights else 32), s.label)
    )
    return {f"{s.label}, seed {s.seed}" if several else s.label: s for s in systems}


def _without_batchnorm(system: System) -> System:
    return replace(system, batchnorm=None)


def _label(experiment: Experiment) -> str:
    spec = experiment.spec
    return f"{', '.join(spec.keywords)}: {Path(spec.data).name}, profile {spec.profile.name}"
