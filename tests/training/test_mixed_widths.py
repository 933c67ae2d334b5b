"""Systems with a width per layer or a quantization frequency: named, refused where they make no sense, no change to the
others' identity, and exact in integers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kwsbench.integer import run
from kwsbench.integer.lower import lower
from kwsbench.models.feedforward import Spotter, SpotterConfig
from kwsbench.quantizers.attach import QuantizedSpotter, WeightPlan, stage_one_plan, stage_two_plan
from kwsbench.training.experiment import PROFILES, Experiment, ExperimentSpec, System

PLAN = WeightPlan("tanh", 8)
MIXED = (8, 4, 2, 1, 8)
# What these systems were kept under before layers had widths of their own in training: artifacts must be found again.
FOLDERS = {
    System("float", 1): "float-788105813dbd81cb",
    System("control"): "control-826bd16dccea93b4",
    System("stage_one", 0, PLAN): "stage_one-f5d02167b4acc0b6",
    System("stage_two", 0, PLAN): "stage_two-69e5e7acd9ba1809",
    System("stage_two", 2, WeightPlan("general", 2, True), "folded"): "stage_two-33e3ef9a514fda15",
    System("post_training", 0, PLAN): "post_training-a8f9d33bd7249f5a",
    System("post_training", 0, PLAN, None, (8, 5, 4, 2, 1)): "post_training-b609353653fc5d60",
}


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "bank", lambda self, split: SimpleNamespace(source_hash="0" * 64))
    spec = ExperimentSpec("data", ("yes",), PROFILES["smoke"])
    return Experiment(spec, tmp_path, progress=False, device="cpu")


@pytest.mark.parametrize("system, folder", FOLDERS.items(), ids=list(FOLDERS.values()))
def test_what_was_trained_before_is_found_again(experiment, system, folder):
    assert experiment.folder(system).name == folder


def test_the_label_names_every_width_and_the_frequency():
    assert System("post_training", 0, PLAN, None, MIXED).label == "post-training, 8/4/2/1/8-bit tanh"
    assert System("stage_two", 0, PLAN, None, MIXED, 5).label == "stage 2, 8/4/2/1/8-bit tanh, every 5 steps"


def test_only_systems_with_widths_have_them_in_their_identity(experiment):
    plain, mixed = System("post_training", 0, PLAN), System("post_training", 0, PLAN, None, MIXED)
    assert experiment.identity(plain)["own"].keys() == {"weights", "batchnorm", "rounding"}
    assert experiment.identity(mixed)["own"]["layer_bits"] == list(MIXED)
    assert experiment.folder(plain) != experiment.folder(mixed)


def test_stage_two_starts_from_the_stage_one_of_its_widths_and_frequency(experiment):
    system = System("stage_two", 1, PLAN, "folded", MIXED, 5)
    parent = experiment.parent(system)
    assert parent == System("stage_one", 1, PLAN, None, MIXED, 5)
    assert experiment.parent(parent) == System("float", 1)
    assert experiment.identity(parent)["own"]["stage"]["quantize_every"] == 5
    assert experiment.identity(system)["parent"] == experiment.identity(parent)
    folders = {experiment.folder(System("stage_two", 0, PLAN, None, None, t)) for t in (1, 2, 5)}
    assert len(folders) == 3


def test_bad_widths_are_refused(experiment):
    with pytest.raises(ValueError, match="a control system has no weight plan, so no width per layer either"):
        System("control", 0, None, None, (8,) * 5)
    with pytest.raises(ValueError, match="bits must be an integer from 1 to 8, got 9"):
        System("post_training", 0, PLAN, None, (9,) * 5)
    with pytest.raises(ValueError, match="this model has 5 layers, got 2 widths"):
        experiment.folder(System("stage_one", 0, PLAN, None, (8, 8)))


@pytest.mark.parametrize("kind, every", [("stage_one", 0), ("post_training", 2)])
def test_bad_frequencies_are_refused(kind, every):
    with pytest.raises(ValueError, match=f"steps from 1, for stage_one and stage_two alone; got {every} for {kind}"):
        System(kind, 0, PLAN, quantize_every=every)


@pytest.mark.parametrize("method", ["general", "linear"])
def test_a_mixed_plan_runs_exactly_in_integers(method):
    system = System("stage_two", 0, WeightPlan(method, 4), None, MIXED)
    spotter = Spotter(SpotterConfig(("word",), 6, 5, (24, 24, 24, 24)), seed=3)
    windows = torch.randn(256, 5, 6, generator=torch.Generator().manual_seed(0))
    model = QuantizedSpotter(spotter, stage_one_plan(system.weights, system.layer_weights)).eval()
    model.calibrate(windows)
    model.replan(stage_two_plan(system.weights, layer_weights=system.layer_weights))
    program = lower(model, 0.03, {})
    assert tuple(layer.weight_bits for layer in program.layers) == MIXED
    frames = windows[:40, 0].numpy()
    stacked, _ = run.stack(program, frames, run.fresh_ring(program))
    taps: list[torch.Tensor] = []
    with torch.no_grad():
        model.logits(torch.as_tensor(stacked).float(), taps)
    for backend in ("reference", "neon_sdot", "neon"):
        for tap, output in zip(taps, run.trace(program, stacked, backend), strict=True):
            assert np.array_equal(tap.numpy(), output)
