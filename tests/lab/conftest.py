"""Cached artifacts of a tiny experiment, the notebooks, and a JupyterLab that serves them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kwsbench.data.synth import RECIPES, synthesize
from kwsbench.lab import serving
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.training.experiment import PROFILES, System, open_experiment

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    recipe = replace(
        RECIPES["smoke"], n_voices=12, train_minutes=0.5, validation_minutes=0.25, test_minutes=0.5, file_seconds=15.0
    )
    return synthesize(recipe, tmp_path_factory.mktemp("corpus"), workers=1, progress=False).root


@pytest.fixture(scope="session")
def runs(corpus, tmp_path_factory) -> Path:
    """A root with float and stage 2, trained for a moment and scored, and a stage 1 that annealed."""
    e = open_experiment(tmp_path_factory.mktemp("runs"), str(corpus), "computer", "smoke", progress=False, workers=1)
    p = PROFILES["smoke"]
    stages = {n: replace(getattr(p, n), steps=s) for n, s in (("float_stage", 60), ("stage_one", 20), ("stage_two", 9))}
    e.spec = replace(e.spec, profile=replace(p, name="tiny", **stages))
    e.remember()
    for system in (System("float"), System("stage_two", 0, WeightPlan("tanh", 5))):
        e.point(system)
    e.model(System("stage_one", 0, WeightPlan("general", 2)))
    return e.root


@pytest.fixture(scope="session")
def notebooks(corpus, runs, tmp_path_factory) -> Path:
    """Copies of the notebooks, set to the smoke profile, the tiny corpus and the runs."""
    folder = tmp_path_factory.mktemp("lab") / "notebooks"
    folder.mkdir()
    for path in NOTEBOOKS.glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        for old, new in (
            ('profile: str = \\"default\\"', 'profile: str = \\"smoke\\"'),
            ('data: str = \\"\\"', f'data: str = \\"{corpus}\\"'),
            ('root: str = \\"../runs\\"', f'root: str = \\"{runs}\\"'),
        ):
            text = text.replace(old, new)
        (folder / path.name).write_text(text, encoding="utf-8")
    shutil.copy(NOTEBOOKS / "99_explore.ipynb", folder / "empty.ipynb")
    return folder


@pytest.fixture(scope="session")
def server(notebooks, tmp_path_factory):
    with serving(notebooks, tmp_path_factory.mktemp("empty")) as running:
        yield running
