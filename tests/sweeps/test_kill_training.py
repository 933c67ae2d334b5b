"""kill -9 in the middle of training, then the same call again: the same model, bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sweep_tools import environment

from kwsbench.data.synth import RECIPES, synthesize

TRAIN = """
import sys
from dataclasses import replace
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.training.experiment import PROFILES, System, open_experiment

def short(stage, steps):
    return replace(stage, steps=steps, checkpoint_every=10)

experiment = open_experiment(sys.argv[1], sys.argv[2], "computer", "smoke", progress=False, workers=2)
smoke = PROFILES["smoke"]
experiment.spec = replace(experiment.spec, profile=replace(
    smoke, name="tiny", float_stage=short(smoke.float_stage, 120), stage_one=short(smoke.stage_one, 60)
))
experiment.point(System("stage_one", 0, WeightPlan("tanh", 5)))
"""


def train(root: Path, corpus: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", TRAIN, str(root), str(corpus)], env=environment())


def models(root: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in root.glob("*/model.safetensors")}


def await_checkpoints(root: Path, count: int, process: subprocess.Popen) -> bool:
    """Wait for new checkpoints; False when the process ends before."""
    times = {p: p.stat().st_mtime_ns for p in root.glob("*/checkpoint.safetensors")}
    seen, give_up = 0, time.monotonic() + 600
    while process.poll() is None and time.monotonic() < give_up:
        for path in root.glob("*/checkpoint.safetensors"):
            try:
                at = path.stat().st_mtime_ns
            except FileNotFoundError:  # its stage has ended
                continue
            seen += times.get(path) != at
            times[path] = at
        if seen >= count:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
def test_training_that_is_killed_again_and_again_ends_in_the_same_bits(tmp_path):
    recipe = replace(
        RECIPES["smoke"], n_voices=12, train_minutes=0.5, validation_minutes=0.25, test_minutes=0.5, file_seconds=15.0
    )
    corpus = synthesize(recipe, tmp_path / "corpus", workers=1, progress=False).root
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert train(undisturbed, corpus).wait(timeout=600) == 0
    rng, kills = random.Random(7), 0
    while (process := train(killed, corpus)) and kills < 4:
        # Each start gets to write a few checkpoints, and a random while more.
        if not await_checkpoints(killed, rng.randint(1, 4), process):
            break
        time.sleep(rng.random() * 0.2)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert process.wait(timeout=600) == 0
    assert kills >= 2
    assert len(models(killed)) == 2 and models(killed) == models(undisturbed)
    for name in ("history.json", "config.json"):
        assert {p.parent.name: p.read_text() for p in killed.glob(f"*/{name}")} == {
            p.parent.name: p.read_text() for p in undisturbed.glob(f"*/{name}")
        }
    scores = sorted(p.name for p in undisturbed.glob("*/scores-*"))
    assert scores and sorted(p.name for p in killed.glob("*/scores-*")) == scores
