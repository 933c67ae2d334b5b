"""Systems with a width per layer: named, refused where they make no sense, and no change to the others' identity."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kwsbench.quantizers.attach import WeightPlan
from kwsbench.training.experiment import PROFILES, Experiment, ExperimentSpec, System

PLAN = WeightPlan("tanh", 8)


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "bank", lambda self, split: SimpleNamespace(source_hash="0" * 64))
    return Experiment(ExperimentSpec("data", ("yes",), PROFILES["smoke"]), tmp_path, progress=False)


def test_the_label_names_every_width():
    system = System("post_training", 0, PLAN, None, (8, 5, 4, 2, 1))
    assert system.label == "post-training, 8/5/4/2/1-bit tanh"


def test_only_systems_with_widths_have_them_in_their_identity(experiment):
    plain, mixed = System("post_training", 0, PLAN), System("post_training", 0, PLAN, None, (8, 5, 4, 2, 1))
    assert experiment.identity(plain)["own"].keys() == {"weights", "batchnorm", "rounding"}
    assert experiment.identity(mixed)["own"]["layer_bits"] == [8, 5, 4, 2, 1]
    assert experiment.folder(plain) != experiment.folder(mixed)


def test_bad_widths_are_refused(experiment):
    with pytest.raises(ValueError, match="only post_training systems take a width per layer, got one for stage_two"):
        System("stage_two", 0, PLAN, None, (8,) * 5)
    with pytest.raises(ValueError, match="bits must be an integer from 1 to 8, got 9"):
        System("post_training", 0, PLAN, None, (9,) * 5)
    with pytest.raises(ValueError, match="this model has 5 layers, got 2 widths"):
        experiment.folder(System("post_training", 0, PLAN, None, (8, 8)))
