"""A tiny experiment, trained once, and the shelf it stands on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kwsbench.data.synth import RECIPES, synthesize
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.reports.explore.artifacts import open_shelf
from kwsbench.training.experiment import PROFILES, Experiment, System, open_experiment


def short(profile, steps):
    a, b, c = steps
    return replace(
        profile,
        name="tiny",
        float_stage=replace(profile.float_stage, steps=a),
        stage_one=replace(profile.stage_one, steps=b),
        stage_two=replace(profile.stage_two, steps=c),
    )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    recipe = replace(
        RECIPES["smoke"], n_voices=12, train_minutes=0.5, validation_minutes=0.25, test_minutes=0.5, file_seconds=15.0
    )
    return synthesize(recipe, tmp_path_factory.mktemp("corpus"), workers=1, progress=False).root


@pytest.fixture(scope="session")
def experiment(corpus, tmp_path_factory) -> Experiment:
    """Float, stage 1 and stage 2 at 5 bits, and post-training at 8 bits: trained, scored; a stage 1 that annealed."""
    e = open_experiment(tmp_path_factory.mktemp("runs"), str(corpus), "computer", "smoke", progress=False, workers=1)
    e.spec = replace(e.spec, profile=short(PROFILES["smoke"], (60, 20, 10)))
    e.remember()
    plan = WeightPlan("tanh", 5)
    for system in (System("float"), System("stage_two", 0, plan), System("post_training", 0, WeightPlan("linear", 8))):
        e.point(system)
    e.model(System("stage_one", 0, WeightPlan("general", 2)))
    return e


@pytest.fixture(scope="session")
def shelf(experiment):
    return open_shelf(experiment.root)


@pytest.fixture(scope="session")
def study(shelf):
    (only,) = shelf.studies.values()
    return only
