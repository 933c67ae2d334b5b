"""The whole path on a small synthetic corpus: audio -> features -> stages -> program -> scores -> table."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kwsbench.cli import app, main
from kwsbench.data.audio import write_wav
from kwsbench.data.synth import RECIPES, synthesize
from kwsbench.integer import run
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.training import experiment as module
from kwsbench.training import ladder as ladder_module
from kwsbench.training.experiment import PROFILES, System, make_scores, open_experiment
from kwsbench.training.ladder import compare_exact, first_divergent, ladder
from kwsbench.training.result import markdown, run_result

TINY = replace(
    PROFILES["smoke"],
    name="tiny",
    float_stage=replace(PROFILES["smoke"].float_stage, steps=60),
    stage_one=replace(PROFILES["smoke"].stage_one, steps=20),
    stage_two=replace(PROFILES["smoke"].stage_two, steps=10),
)
FIVE = WeightPlan("tanh", 5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    recipe = replace(
        RECIPES["smoke"], n_voices=12, train_minutes=0.5, validation_minutes=0.25, test_minutes=0.5, file_seconds=15.0
    )
    return synthesize(recipe, tmp_path_factory.mktemp("corpus"), workers=1, progress=False).root


@pytest.fixture(scope="module")
def experiment(corpus, tmp_path_factory):
    e = open_experiment(tmp_path_factory.mktemp("runs"), str(corpus), "computer", "smoke", progress=False, workers=1)
    e.spec = replace(e.spec, profile=TINY)
    return e


def test_the_whole_path_gives_an_honest_table(experiment, tmp_path):
    result = run_result(experiment, [0], [5, 1], tmp_path)
    systems = [r["system"] for r in result["rows"]]
    assert systems[:2] == ["float", "float, equal steps"]
    assert len(systems) == 2 + 4 * 2
    positives = len(experiment.corpus.select("computer", "test"))
    for row in result["rows"]:
        assert row["n_positives"] == positives
        assert row["frr"] == row["misses"] / positives
        accepted = row["true_accepts"] + row["false_accepts"]
        assert row["fdr"] == (row["false_accepts"] / accepted if accepted else None)
        assert row["fa_per_hour"] == pytest.approx(row["events"] / row["hours"])
        if row["kind"] in ("stage_two", "post_training"):
            frames = len(experiment.bank("test").features)
            assert row["compared"] == 2 * frames * (4 * 200 + 2)
            assert row["different"] == 0
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["summary"] == result["summary"]
    text = (tmp_path / "result.md").read_text()
    assert text == markdown(result)
    assert "stage 2, 1-bit tanh" in text and "Illustrative" in text


def test_thresholds_come_from_validation_and_test_is_only_read(experiment):
    system = System("stage_two", 0, FIVE)
    curve = experiment.curve(system, "validation")
    threshold = experiment.threshold(system)
    at = int(np.flatnonzero(curve.thresholds == threshold)[0])
    assert curve.frr[at] <= 0.05
    assert np.all(curve.frr[at + 1 :] > 0.05)
    assert experiment.point(system).threshold == threshold


def test_artifacts_are_made_once_and_found_again(experiment, monkeypatch):
    system = System("stage_one", 0, FIVE)
    first = experiment.model(system)
    other = replace_experiment(experiment)

    def explode(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(module.stages, "train_float", explode)
    monkeypatch.setattr(module.stages, "train_stage_one", explode)
    again = other.model(system)
    assert torch.equal(first.weights[0].latent_weight, again.weights[0].latent_weight)
    # Another setting is another artifact.
    changed = replace_experiment(experiment)
    changed.spec = replace(experiment.spec, profile=replace(TINY, stage_one=replace(TINY.stage_one, steps=21)))
    assert changed.folder(system) != experiment.folder(system)
    assert changed.folder(System("float")) == experiment.folder(System("float"))


def test_what_is_on_disk_is_known_without_training(experiment):
    system = System("stage_two", 0, WeightPlan("tanh", 7))
    assert experiment.has_model(System("float")) and not experiment.has_model(system)


def test_how_centroids_annealed_is_kept_beside_the_model(experiment):
    record = experiment.annealing(System("stage_one", 0, WeightPlan("general", 2)))
    assert record.steps == TINY.stage_one.steps and list(record.layers) == [f"layer{i}" for i in range(5)]
    assert record.layers["layer0"].levels.shape == (TINY.stage_one.steps + 1, 4)
    assert experiment.annealing(System("stage_one", 0, FIVE)) is None


def test_a_model_trained_again_takes_nothing_from_the_deleted_one(experiment):
    system = System("post_training", 0, WeightPlan("linear", 6))
    experiment.point(system)
    folder = experiment.folder(system)
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert any(name.startswith("scores-") for name in before)
    (folder / "model.safetensors").unlink()
    other = replace_experiment(experiment)
    other.model(system)
    names = {p.name for p in folder.iterdir()}
    assert names == {"config.json", "history.json", "model.safetensors"}


def replace_experiment(e):
    return module.Experiment(e.spec, e.root, progress=False, workers=1)


def test_scores_streamed_in_chunks_equal_the_cached_ones(experiment):
    system = System("stage_two", 0, FIVE)
    scores = experiment.scores(system, "test")
    program, bank = experiment.program(system), experiment.bank("test")
    assert scores.paths == bank.clip_paths
    for i in (0, 5, len(bank) - 1):
        ring, outputs = run.fresh_ring(program), []
        for start in range(0, len(bank.segment(i)), 11):
            acc, ring = run.step(program, bank.segment(i)[start : start + 11], ring, "neon")
            outputs.append(run.logits(program, acc))
        logits = np.concatenate(outputs)
        assert np.array_equal(make_scores(bank, margin(logits, bank, i), "x").segment(i), scores.segment(i))


def margin(logits, bank, i):
    """With one keyword the score is the difference of the two logits; placed at segment i of the whole bank."""
    values = np.zeros(len(bank.features))
    values[bank.offsets[i] : bank.offsets[i + 1]] = logits[:, 1] - logits[:, 0]
    return values


def test_the_ladder_differs_only_above_the_emulation(experiment):
    float_model, quantized = experiment.model(System("float")), experiment.model(System("stage_two", 0, FIVE))
    program, bank = experiment.program(System("stage_two", 0, FIVE)), experiment.bank("validation")
    rows = ladder(float_model, quantized, program, bank)
    assert first_divergent(rows, "float", "fake-quant") == "layer0"
    assert first_divergent(rows, "fake-quant", "emulation") is not None
    assert first_divergent(rows, "emulation", "reference") is None
    assert first_divergent(rows, "reference", "neon") is None
    assert all(r.compared > 0 for r in rows)
    fake = [r for r in rows if (r.upper, r.lower) == ("fake-quant", "emulation") and r.layer == "layer0"]
    assert fake[0].largest <= 2  # the same sums, another rounding of gain and offset


def test_windows_are_those_of_every_segment_whatever_the_chunks(experiment, monkeypatch):
    program, bank = experiment.program(System("stage_two", 0, FIVE)), experiment.bank("test")
    segments = [run.stack(program, bank.segment(i), run.fresh_ring(program))[0] for i in range(len(bank))]
    for size in (17, 100, 10**9):
        monkeypatch.setattr(ladder_module, "CHUNK_WINDOWS", size)
        chunks = list(ladder_module.int8_windows(program, bank))
        assert all(0 < len(c) <= size for c in chunks)
        np.testing.assert_array_equal(np.concatenate(chunks), np.concatenate(segments))


def test_a_damaged_program_is_caught_by_the_comparison(experiment):
    """The equality check can fail: one weight off by one step shows up, in the layer where it sits."""
    system = System("stage_two", 0, FIVE)
    model, program = experiment.model(system), experiment.program(system)
    layer = program.layers[1]
    codes = layer.codes.copy()
    codes[7] = -codes[7]
    broken = replace(program, layers=(program.layers[0], replace(layer, codes=codes), *program.layers[2:]))
    rows = compare_exact(model, broken, experiment.bank("validation"), ("reference",))
    assert first_divergent(rows, "emulation", "reference") == "layer1"


# ------------------------------------------------------------------------------------------------ bad input


def run_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["kwsbench", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code, capsys.readouterr().err


def result(data, out, *more):
    return ["result", "--data", data, "--keyword", "computer", "--out", out / "r", "--root", out / "runs", *more]


def test_a_missing_corpus_is_refused(monkeypatch, capsys, tmp_path):
    code, err = run_main(monkeypatch, capsys, *result(tmp_path / "nowhere", tmp_path))
    assert code == 2 and "nowhere" in err


def test_an_empty_corpus_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    code, err = run_main(monkeypatch, capsys, *result(tmp_path / "empty", tmp_path))
    assert code == 2 and "empty" in err


def test_an_absent_keyword_is_refused_before_any_work(monkeypatch, capsys, tmp_path, corpus):
    arguments = result(corpus, tmp_path)
    arguments[arguments.index("computer")] = "zebra"
    code, err = run_main(monkeypatch, capsys, *arguments)
    assert code == 2 and "zebra" in err
    assert not list((tmp_path / "runs").glob("*"))


def test_a_speaker_in_two_splits_is_refused(monkeypatch, capsys, tmp_path):
    lines = ["path,label,speaker,split,seconds"]
    for i, split in enumerate(("train", "validation", "test")):
        write_wav(tmp_path / f"{i}.wav", np.zeros(1600, np.float32))
        lines.append(f"{i}.wav,computer,anna,{split},0.1")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    code, err = run_main(monkeypatch, capsys, *result(tmp_path, tmp_path))
    assert code == 2 and "anna" in err


@pytest.mark.parametrize("bits", ["9", "0", "4,12"])
def test_bits_outside_1_to_8_are_refused(monkeypatch, capsys, tmp_path, corpus, bits):
    code, err = run_main(monkeypatch, capsys, *result(corpus, tmp_path, "--bits", bits))
    assert code == 2 and "bits must be an integer from 1 to 8, got" in err


def test_widths_that_are_no_numbers_are_refused(monkeypatch, capsys, tmp_path, corpus):
    code, err = run_main(monkeypatch, capsys, *result(corpus, tmp_path, "--bits", "8;5"))
    assert code == 2 and "--bits takes comma-separated integers, got '8;5'" in err


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--batchnorm", "float", "--batchnorm must be unfolded or folded, got 'float'"),
        ("--seeds", "-1", "--seeds takes integers from 0, got '-1'"),
        ("--seeds", "0,1,0", "--seeds names an integer twice, got '0,1,0'"),
        ("--bits", "5,5", "--bits names an integer twice, got '5,5'"),
    ],
)
def test_other_senseless_options_are_refused_before_any_work(
    monkeypatch, capsys, tmp_path, corpus, option, value, message
):
    code, err = run_main(monkeypatch, capsys, *result(corpus, tmp_path, option, value))
    assert code == 2 and message in err
    assert not (tmp_path / "runs").exists()


def test_an_unwritable_output_is_refused(monkeypatch, capsys, tmp_path, corpus):
    (tmp_path / "file").write_text("not a folder")
    code, err = run_main(monkeypatch, capsys, *result(corpus, tmp_path / "file"))
    assert code == 2 and "cannot write to" in err and "choose another output folder" in err


def test_a_misspelt_batchnorm_is_refused_before_any_work(tmp_path, corpus):
    with pytest.raises(ValueError, match="batchnorm must be unfolded or folded, got 'fused'"):
        open_experiment(tmp_path, str(corpus), batchnorm="fused")


def test_an_unknown_profile_is_refused(monkeypatch, capsys, tmp_path, corpus):
    code, err = run_main(monkeypatch, capsys, *result(corpus, tmp_path, "--profile", "huge"))
    assert code == 2 and "unknown profile 'huge'; choose one of" in err


def test_a_checkpoint_of_another_model_is_refused(experiment):
    experiment.model(System("float"))
    folder = experiment.folder(System("float"))
    changed = replace_experiment(experiment)
    changed.spec = replace(experiment.spec, hidden=(8,))
    other = changed.folder(System("float"))
    other.mkdir()
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="checkpoint of another model"):
        changed.model(System("float"))


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["kwsbench", "data", "check", "."])

    def defect(*_):
        raise KeyError("internal")

    monkeypatch.setattr("kwsbench.data.corpora.open_corpus", defect)
    with pytest.raises(KeyError, match="internal"):
        main()


def test_every_command_has_help_with_an_example():
    for command in (["data", "fetch"], ["data", "synth"], ["data", "check"], ["report"], ["result"]):
        shown = CliRunner().invoke(app, [*command, "--help"])
        assert shown.exit_code == 0 and f"kwsbench {' '.join(command)}" in " ".join(shown.output.split())


@pytest.mark.parametrize("bad", ["kind", "plan"])
def test_impossible_systems_are_refused(bad):
    with pytest.raises(ValueError, match="unknown system" if bad == "kind" else "weight plan"):
        System("binary") if bad == "kind" else System("float", 0, FIVE)


@pytest.mark.speech
def test_real_recordings_walk_the_same_path(speech_root: Path, tmp_path):
    """The development recordings open, mix and score; a smoke run learns something."""
    e = open_experiment(tmp_path, str(speech_root), "happy", "smoke", progress=False, workers=1)
    e.spec = replace(e.spec, profile=TINY)
    validation = e.bank("validation")
    assert validation.clip_labels.count("happy") == len(e.corpus.select("happy", "validation"))
    assert validation.skipped == ()
    assert np.isfinite(validation.features).all()
