"""Artifacts between processes: made once, never half read, made again when they were damaged; what a run records."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kwsbench.data.synth import RECIPES, synthesize
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.resources.memory import memory_summary
from kwsbench.training.checkpoints import OtherModelError
from kwsbench.training.experiment import PROFILES, Experiment, System, open_experiment
from kwsbench.training.record import CURVE_POINTS, curve_record, layer_digests, system_record

SMOKE = PROFILES["smoke"]
TINY = replace(
    SMOKE,
    float_stage=replace(SMOKE.float_stage, steps=40),
    stage_one=replace(SMOKE.stage_one, steps=10),
    stage_two=replace(SMOKE.stage_two, steps=10),
)
TWO = System("stage_two", 0, WeightPlan("tanh", 2))
FLOAT = System("float")

TRAIN = """
import sys
from dataclasses import replace
import kwsbench.training.stages as stages
from tests_sharing import TINY, TWO, open_tiny
for name in ("train_float", "train_stage_one", "train_stage_two"):
    def counted(*args, _name=name, _function=getattr(stages, name)):
        print("trained", _name, flush=True)
        return _function(*args)
    setattr(stages, name, counted)
experiment = open_tiny(sys.argv[1], sys.argv[2])
experiment.point(TWO)
print("digest", experiment.folder(TWO).name)
"""


def open_tiny(root: str | Path, corpus: str | Path) -> Experiment:
    experiment = open_experiment(root, str(corpus), "computer", "smoke", progress=False, workers=1)
    experiment.spec = replace(experiment.spec, profile=TINY)
    return experiment


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    recipe = replace(
        RECIPES["smoke"], n_voices=12, train_minutes=0.5, validation_minutes=0.25, test_minutes=0.5, file_seconds=15.0
    )
    return synthesize(recipe, tmp_path_factory.mktemp("corpus"), workers=1, progress=False).root


@pytest.fixture(scope="module")
def experiment(corpus, tmp_path_factory) -> Experiment:
    experiment = open_tiny(tmp_path_factory.mktemp("runs"), corpus)
    experiment.point(TWO)
    return experiment


def again(experiment: Experiment) -> Experiment:
    """The same experiment with nothing in memory."""
    return Experiment(experiment.spec, experiment.root, progress=False, workers=1)


def test_two_processes_on_one_root_train_each_stage_once(corpus, tmp_path):
    (tmp_path / "tests_sharing.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "train.py").write_text(
        f"if __name__ == '__main__':\n    {TRAIN.strip().replace(chr(10), chr(10) + '    ')}"
    )
    command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "runs"), str(corpus)]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = []
    for job in jobs:
        out, errors = job.communicate(timeout=200)
        assert job.returncode == 0, errors
        outputs.append(out.splitlines())
    trained = sorted(line for lines in outputs for line in lines if line.startswith("trained"))
    assert trained == ["trained train_float", "trained train_stage_one", "trained train_stage_two"]
    assert outputs[0][-1] == outputs[1][-1]
    left = [p.name for p in (tmp_path / "runs").rglob("*") if "partial" in p.name or p.name == "checkpoint.safetensors"]
    assert left == []


@pytest.mark.parametrize("name", ["model.safetensors", "program.safetensors", "scores-test-*.npz"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "scribbled"])
def test_a_damaged_artifact_is_set_aside_and_made_again(experiment, name, damage, capsys):
    (file,) = experiment.folder(TWO).glob(name)
    whole, before = file.read_bytes(), experiment.point(TWO)
    damaged = {"truncated": whole[: len(whole) // 2], "emptied": b"", "scribbled": b"\x00" * 64 + whole[64:]}[damage]
    file.write_bytes(damaged)
    fresh = again(experiment)
    if name.startswith("model"):
        fresh.model(TWO)
    assert fresh.point(TWO) == before
    if name.startswith("program"):
        fresh.program(TWO)
    assert file.read_bytes() == whole if not name.startswith("scores") else file.is_file()
    aside = file.with_name(file.name + ".corrupt")
    assert aside.read_bytes() == damaged
    assert f"{file.name} cannot be read" in capsys.readouterr().err
    aside.unlink()


def test_a_damaged_bank_is_set_aside_and_made_again(experiment, capsys):
    (file,) = (experiment.root / "banks").glob("bank-test-*.npz")
    whole = np.load(file)["features"]
    file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(again(experiment).bank("test").features, whole)
    assert "cannot be read" in capsys.readouterr().err
    assert file.with_name(file.name + ".corrupt").stat().st_size == 1000


def test_a_damaged_checkpoint_costs_the_stage_and_no_more(experiment, tmp_path, capsys):
    fresh = Experiment(experiment.spec, tmp_path, progress=False, workers=1)
    fresh._banks.update({split: experiment.bank(split) for split in ("train", "validation", "test")})
    folder = fresh.folder(FLOAT)
    folder.mkdir()
    (folder / "checkpoint.safetensors").write_bytes(b"half")
    fresh.model(FLOAT)
    assert "checkpoint.safetensors cannot be read" in capsys.readouterr().err
    same = (experiment.folder(FLOAT) / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == same


def test_another_model_in_the_folder_is_refused_and_stays(experiment, tmp_path):
    other = Experiment(replace(experiment.spec, hidden=(8,)), tmp_path, progress=False, workers=1)
    folder = other.folder(FLOAT)
    folder.mkdir()
    model = (experiment.folder(FLOAT) / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(model)
    with pytest.raises(OtherModelError, match="checkpoint of another model"):
        other.model(FLOAT)
    assert (folder / "model.safetensors").read_bytes() == model


# ------------------------------------------------------------------------------------------- records


def test_the_record_of_a_system_is_json_and_agrees_with_its_sources(experiment):
    program = experiment.program(TWO)
    record = system_record(experiment, TWO)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    packed = next(row for row in memory_summary(program) if row["system"] == "packed")
    assert (record["bytes"], record["bytes_basis"]) == (packed["total_bytes"], packed["total_basis"])
    assert record["point"]["misses"] == experiment.point(TWO).misses
    assert (record["bits"], record["method"], record["seed"]) == (2, "tanh", 0)
    names = [row["layer"] for row in record["layers"]]
    assert names[:2] == ["features", "int8 windows"] and len(names) == 2 + 2 * len(program.layers)

    whole = system_record(experiment, FLOAT, program)
    float32 = next(row for row in memory_summary(program) if row["system"] == "float32")
    assert whole["bytes"] == float32["total_bytes"] and whole["layers"] == [] and whole["bits"] is None
    assert system_record(experiment, FLOAT)["bytes"] is None
    assert system_record(experiment, System("stage_one", 0, TWO.weights), program)["bytes"] is None


def test_digests_part_at_the_first_layer_that_was_changed(experiment):
    program = experiment.program(TWO)
    changed_codes = program.layers[2].codes.copy()
    changed_codes[0, 0] = -changed_codes[0, 0]
    layers = list(program.layers)
    layers[2] = replace(layers[2], codes=changed_codes)

    before = layer_digests(program, experiment)
    after = layer_digests(replace(program, layers=tuple(layers)), experiment)
    first = next(i for i, (a, b) in enumerate(zip(before, after)) if a != b)
    assert before[first]["layer"] == f"{program.layers[2].name}: weights and constants"


def test_a_thinned_curve_keeps_points_of_the_curve_and_its_ends(experiment):
    curve = experiment.curve(TWO)
    thin = curve_record(curve)
    assert 2 <= len(thin["frr"]) <= CURVE_POINTS
    points = {(float(f"{a:.5g}"), float(f"{b:.5g}")) for a, b in zip(curve.frr, curve.fa_per_hour)}
    pairs = list(zip(thin["frr"], thin["fa_per_hour"]))
    assert set(pairs) <= points
    assert pairs[0] == (float(f"{curve.frr[0]:.5g}"), float(f"{curve.fa_per_hour[0]:.5g}"))
    assert pairs[-1] == (float(f"{curve.frr[-1]:.5g}"), float(f"{curve.fa_per_hour[-1]:.5g}"))
    assert all(0 <= v <= 1 for v in thin["fdr"] if v is not None)
