"""A sweep's specification, SPEC.yaml, and the plan that follows from it: which notebook runs with which parameters.

::

    name: widths                    # default: the file's name
    notebooks: [04_stage_two.ipynb] # paths written here are relative to this file
    profile: smoke                  # smoke, default or full
    data: ""                        # corpus folder; empty: the embedded corpus
    root: ../runs                   # artifacts; default: runs, where the command is called
    out: ../sweeps/widths           # the sweep's folder; default: sweeps/<name>, where the command is called
    parameters: {keyword: computer} # the same in every run
    grid: {bits: [[8], [5]]}        # every combination of these values ...
    list: [{bits: [2, 1]}]          # ... and each of these
    seeds: [0, 1, 2]                # the parameter `seed`: each combination with each seed
    jobs: 2                         # runs at once
    threads: 1                      # threads of each; default: the cores divided by the jobs
    timeout_minutes: 20             # for one run; default: by profile

A parameter goes to each notebook that declares it; runs that turn out the same are one run. The declared type decides
what a value is (see reports.parameters.typed_value). Five parameters mean the same in every notebook and are checked
here: ``profile``, ``data``, ``root``, ``keyword`` and ``seed``; ``bits`` holds widths of 1 to 8.

The whole file is checked before anything runs, and all its problems are said at once.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import itertools
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nbformat

from kwsbench.arithmetic.codebook import check_bits
from kwsbench.data.clips import clip_task
from kwsbench.data.corpora import open_corpus
from kwsbench.data.synth import find_library
from kwsbench.files import check_writable
from kwsbench.reports.notebooks import PROFILES, notebook_title, read_notebook
from kwsbench.reports.parameters import (
    Parameter,
    Text,
    Written,
    declared_parameters,
    plain,
    typed_value,
    validate_parameters,
)
from kwsbench.sweeps.identity import address, canonical, corpus_sha256, embedded_sha256, notebook_sha256, surroundings
from kwsbench.sweeps.written import read_yaml

MAX_RUNS = 10_000
KEYS = {
    "name": "str",
    "notebooks": "list[str]",
    "profile": "Literal['smoke', 'default', 'full']",
    "data": "str",
    "root": "str",
    "out": "str",
    "seeds": "list[int]",
    "jobs": "int",
    "threads": "int",
    "timeout_minutes": "float",
}
COMBINING = ("parameters", "grid", "list")
# Parameters of notebooks that a key of the specification gives.
OWN_KEY = {"profile": "profile", "data": "data", "root": "root"}


@dataclass(frozen=True)
class Run:
    """One run of the plan."""

    name: str  # <notebook stem>-<12 hex digits of its address>
    notebook: Path
    title: str
    source: str  # the notebook as it was checked
    parameters: dict[str, Any]
    given: dict[str, Any]
    identity: dict[str, Any]

    @property
    def label(self) -> str:
        """Notebook and parameters in one line, without those that say where things are."""
        shown = {k: v for k, v in self.given.items() if k not in OWN_KEY}
        return " ".join(
            [self.notebook.stem, *(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in shown.items())]
        )


@dataclass(frozen=True)
class Sweep:
    """A plan that was found valid."""

    name: str
    out: Path
    root: Path
    profile: str
    jobs: int | None  # None: not said
    threads: int | None
    timeout_seconds: float
    runs: tuple[Run, ...]

    def describe(self) -> str:
        """The plan for a person."""
        lines = [
            f"sweep {self.name}: {len(self.runs)} runs, profile {self.profile}, "
            f"at most {self.timeout_seconds / 60:g} minutes each",
            f"  results in {self.out}, artifacts in {self.root}",
        ]
        return "\n".join([*lines, *(f"  {run.name}  {run.label}" for run in self.runs)])


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the file; None: nothing."""

    out: Path | None = None
    root: Path | None = None
    jobs: int | None = None
    threads: int | None = None
    timeout_minutes: float | None = None


@dataclass
class _Draft:
    """A specification while it is being checked."""

    path: Path
    keys: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Written] = field(default_factory=dict)
    grid: dict[str, list[Written]] = field(default_factory=dict)
    combinations: list[dict[str, Written]] = field(default_factory=list)
    notebooks: dict[Path, nbformat.NotebookNode] = field(default_factory=dict)
    declared: dict[Path, dict[str, Parameter]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def say(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def read_sweep(path: str | Path, overrides: Overrides = Overrides(), dry: bool = False) -> Sweep:
    """Read and check a specification; with ``dry`` no folder is made.

    Raises ValueError that lists every problem, FileNotFoundError when there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no specification {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    draft = _Draft(path)
    _read_keys(draft, read_yaml(text, str(path)))
    _read_notebooks(draft)
    _check_names(draft)
    settings = _settings(draft, overrides, dry)
    values = _combinations(draft, settings) if not draft.problems else {}
    hashes = _check_domain(draft, values, settings) if not draft.problems else {}
    if draft.problems:
        raise ValueError(f"{path}: nothing was run, {len(draft.problems)} to mend:\n  " + "\n  ".join(draft.problems))
    runs = _unique(_runs(draft, values, hashes))
    return replace(settings, runs=tuple(spread(runs)))


def spread(runs: Iterable[Run]) -> list[Run]:
    """The runs in an order in which neighbours differ in seed, keyword or notebook where they can.

    Runs that share these share their float model: begun together, all but one would wait for it.
    """
    groups: dict[tuple, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.parameters.get("seed"), run.parameters.get("keyword")].append(run)
    rounds = itertools.zip_longest(*groups.values())
    return [run for row in rounds for run in row if run is not None]


# ------------------------------------------------------------------ what the file says


def _read_keys(draft: _Draft, tree: Written) -> None:
    if not isinstance(tree, dict):
        draft.say("a specification is a mapping of keys to values, such as `notebooks: [04_stage_two.ipynb]`")
        return
    known = [*KEYS, *COMBINING]
    for key, written in tree.items():
        if key in KEYS:
            _take(draft, key, written)
        elif key not in COMBINING:
            draft.say(f"no key {key!r}; {_nearest(key, known)}")
    draft.parameters = _mapping(draft, "parameters", tree.get("parameters", {}))
    for name, values in _mapping(draft, "grid", tree.get("grid", {})).items():
        if isinstance(values, list) and values:
            draft.grid[name] = values
        else:
            draft.say(f"grid.{name} must be a list of values that is not empty, got {plain(values)!r}")
    listed = tree.get("list", [])
    if not isinstance(listed, list):
        draft.say(f"list must be a list of mappings, got {plain(listed)!r}")
        return
    for number, entry in enumerate(listed, 1):
        draft.combinations.append(_mapping(draft, f"list[{number}]", entry))


def _take(draft: _Draft, key: str, written: Written) -> None:
    try:
        draft.keys[key] = typed_value(written, KEYS[key])
    except ValueError as error:
        draft.say(f"{key} {error}")


def _mapping(draft: _Draft, where: str, written: Written) -> dict[str, Written]:
    if isinstance(written, dict):
        return written
    if not (isinstance(written, Text) and not written.text and not written.quoted):  # a key with nothing below it
        draft.say(f"{where} must be a mapping of parameters to values, got {plain(written)!r}")
    return {}


def _read_notebooks(draft: _Draft) -> None:
    names = draft.keys.get("notebooks", [])
    if not names and not any(p.startswith("notebooks ") for p in draft.problems):
        draft.say("no notebooks; write for example `notebooks: [04_stage_two.ipynb]`")
    for name in names:
        path = draft.path.parent / name
        if path in draft.notebooks:
            draft.say(f"the notebook {name} is named twice")
            continue
        try:
            notebook = read_notebook(path)
            declared = {p.name: p for p in declared_parameters(notebook, name)}
        except (OSError, ValueError) as error:
            draft.say(str(error))
            continue
        draft.notebooks[path], draft.declared[path] = notebook, declared


def _uses(draft: _Draft) -> Iterator[tuple[str, str, Written]]:
    """Where a parameter is named, its name, and what is written for it."""
    for name, written in draft.parameters.items():
        yield f"parameters.{name}", name, written
    for name, values in draft.grid.items():
        for written in values:
            yield f"grid.{name}", name, written
    for number, entry in enumerate(draft.combinations, 1):
        for name, written in entry.items():
            yield f"list[{number}].{name}", name, written


def _check_names(draft: _Draft) -> None:
    everywhere = {name: p for declared in draft.declared.values() for name, p in declared.items()}
    complete = len(draft.declared) == len(draft.keys.get("notebooks", []))
    for where, name, written in _uses(draft):
        if name in OWN_KEY:
            draft.say(f"{where}: give it as the key {OWN_KEY[name]!r} of the specification")
        elif name == "seed" and "seeds" in draft.keys:
            draft.say(f"{where}: the seed is given by `seeds` too")
        elif not where.startswith("parameters") and name in draft.parameters:
            draft.say(f"{where}: it is in `parameters` too, the same in every run")
        elif name not in everywhere and complete:
            draft.say(f"{where}: no notebook declares {name!r}; {_nearest(name, everywhere)}")
        for declared in draft.declared.values():
            if name in declared and name not in OWN_KEY:
                try:
                    typed_value(written, declared[name].annotation)
                except ValueError as error:
                    draft.say(f"{where} {error}")
    if complete:
        for key, name in (("seeds", "seed"), ("data", "data")):
            if draft.keys.get(key) and name not in everywhere:
                draft.say(f"{key}: no notebook declares the parameter {name!r}")
    if draft.keys.get("seeds") == []:
        draft.say("seeds must name a seed; leave the key out for the notebooks' own")


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'none'}"


# ------------------------------------------------------------------ settings


def _settings(draft: _Draft, overrides: Overrides, dry: bool) -> Sweep:
    keys = draft.keys
    name = keys.get("name", draft.path.stem)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        draft.say(f"name must be letters, digits, '.', '_' and '-', got {name!r}")
        name = "sweep"
    profile = keys.get("profile", "default")

    def folder(said: Path | None, key: str, default: Path) -> Path:
        written = draft.path.parent / keys[key] if keys.get(key) else default
        return Path(os.path.abspath(said if said is not None else written))

    def number(said: Any, key: str) -> Any:
        value = keys.get(key) if said is None else said
        if value is not None and not value > 0:
            draft.say(f"{key} must be greater than 0, got {value}")
        return value

    minutes = number(overrides.timeout_minutes, "timeout_minutes")
    sweep = Sweep(
        name,
        folder(overrides.out, "out", Path("sweeps") / name),
        folder(overrides.root, "root", Path("runs")),
        profile,
        number(overrides.jobs, "jobs"),
        number(overrides.threads, "threads"),
        minutes * 60 if minutes else PROFILES[profile],
        (),
    )
    if keys.get("data"):
        data = (draft.path.parent / keys["data"]).resolve()
        if sweep.root.resolve().is_relative_to(data) or sweep.out.resolve().is_relative_to(data):
            draft.say(f"root and out must lie outside of the corpus {data}: its content is part of every run's address")
    for place in () if dry or draft.problems else (sweep.out, sweep.root):
        try:
            check_writable(place)
        except PermissionError as error:
            draft.say(str(error))
    return sweep


# ------------------------------------------------------------------ runs


def _combinations(draft: _Draft, settings: Sweep) -> dict[Path, list[dict[str, Any]]]:
    """What is given to each notebook, run by run."""
    seeds = draft.keys.get("seeds") or [None]
    size = math.prod(map(len, draft.grid.values())) if draft.grid else 0
    total = (max(1, size + len(draft.combinations))) * len(seeds) * len(draft.notebooks)
    if total > MAX_RUNS:
        draft.say(f"{total} runs are more than {MAX_RUNS}; split the sweep")
        return {}
    grid: list[dict[str, Written]] = []
    if draft.grid or not draft.combinations:
        grid = [dict(zip(draft.grid, row)) for row in itertools.product(*draft.grid.values())]
    values: dict[Path, list[dict[str, Any]]] = {}
    for path, declared in draft.declared.items():
        shared: dict[str, Any] = {"profile": settings.profile, "root": _relative(settings.root, path)}
        if draft.keys.get("data"):
            shared["data"] = _relative(draft.path.parent / draft.keys["data"], path)
        shared = {name: value for name, value in shared.items() if name in declared}
        rows = values[path] = []
        for combination, seed in itertools.product([*grid, *draft.combinations], seeds):
            written = draft.parameters | combination
            row = {n: typed_value(w, declared[n].annotation) for n, w in written.items() if n in declared}
            if seed is not None and "seed" in declared:
                row["seed"] = seed
            rows.append(shared | row)
        for row in rows:
            try:
                validate_parameters(list(declared.values()), row, path.name)
            except ValueError as error:
                draft.say(str(error))
    return values


def _relative(target: Path, notebook: Path) -> str:
    """The path as a kernel in the notebook's folder sees it: the same words on any machine with this tree."""
    return os.path.relpath(target, notebook.parent)


def _check_domain(draft: _Draft, values: Mapping[Path, list[dict[str, Any]]], settings: Sweep) -> dict[str, str]:
    """What costs little is checked now: widths, seeds, the corpus and its keyword. Returns the hashes of corpora."""
    hashes: dict[str, str] = {}
    for path, rows in values.items():
        declared = draft.declared[path]
        for row in rows:
            parameters = {name: row.get(name, p.default) for name, p in declared.items()}
            bits = parameters.get("bits", [])
            try:
                for width in bits if isinstance(bits, list) else [bits]:
                    check_bits(width)
            except ValueError as error:
                draft.say(f"bits: {error}")
            seed = parameters.get("seed", 0)
            if isinstance(seed, int) and seed < 0:
                draft.say(f"seed must be 0 or greater, got {seed}")
            if "data" in parameters:
                key = _corpus_key(parameters)
                if key not in hashes:
                    hashes[key] = _corpus_hash(draft, settings, parameters)
    return hashes


def _corpus_key(parameters: Mapping[str, Any]) -> str:
    return canonical([parameters["data"], parameters.get("keyword"), parameters.get("profile")])


def _corpus_hash(draft: _Draft, settings: Sweep, parameters: Mapping[str, Any]) -> str:
    keyword = parameters.get("keyword")
    try:
        if draft.keys.get("data"):
            data = draft.path.parent / draft.keys["data"]
            # A notebook on clips takes a task of several words for its keyword.
            open_corpus(data, clip_task(keyword).words if isinstance(keyword, str) else ())
            return corpus_sha256(data, settings.root)
        if parameters["data"]:
            raise ValueError(f"the default of `data` is {parameters['data']!r}; give the corpus as the key `data`")
        find_library()
        return embedded_sha256(settings.profile, keyword or "computer")
    except (ValueError, OSError, RuntimeError, importlib.metadata.PackageNotFoundError) as error:
        draft.say(f"data: {error}")
        return ""


def _runs(draft: _Draft, values: Mapping[Path, list[dict[str, Any]]], hashes: Mapping[str, str]) -> Iterator[Run]:
    around = surroundings()
    for path, rows in values.items():
        notebook, declared = draft.notebooks[path], list(draft.declared[path].values())
        code = notebook_sha256(notebook)
        title = notebook_title(notebook, path.stem)
        source = nbformat.writes(notebook, version=4)
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem).strip("._") or "run"
        for row in rows:
            parameters = validate_parameters(declared, row, path.name)
            data = hashes[_corpus_key(parameters)] if "data" in parameters else None
            identity = address(code, parameters, data, around)
            yield Run(f"{stem}-{identity['address'][:12]}", path, title, source, parameters, row, identity)


def _unique(runs: Iterable[Run]) -> list[Run]:
    """Runs of the same address are one run: a notebook that does not declare a parameter of the grid."""
    return list({run.name: run for run in runs}.values())
