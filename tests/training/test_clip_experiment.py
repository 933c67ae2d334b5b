"""Experiments on clips: every artifact is made once, resumed, remade where broken; integers are what they seem."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from kwsbench.data.clips import clip_task
from kwsbench.integer import convolution_run
from kwsbench.metrics.compare import design_effect, wilson_interval
from kwsbench.models.convolutional import ConvNet
from kwsbench.models.handmade import BCResNet
from kwsbench.models.space import network_of
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.convolutional import ConvPlan, QuantizedConvNet
from kwsbench.quantizers.learned import CollapsedWidth, LearnedConvNet
from kwsbench.resources.convolutional import needs
from kwsbench.training import clip_experiment
from kwsbench.training.checkpoints import OtherModelError
from kwsbench.training.clip_experiment import (
    ARTIFACT_VERSION,
    PROFILES,
    BroadcastNetwork,
    BudgetPlan,
    ClipExperiment,
    ClipSpec,
    ClipSystem,
    LearnedPlan,
    open_clips,
)
from kwsbench.training.clips import ClipSampling
from kwsbench.training.loop import watching
from tests.data.clip_tools import write_clips

TINY = replace(
    PROFILES["tiny"],
    sampling=ClipSampling(batch=8, rounds=1),
    float_stage=replace(PROFILES["tiny"].float_stage, steps=60, learning_rate=1e-2),
    stage_one=replace(PROFILES["tiny"].stage_one, steps=24, learning_rate=1e-2),
)
LABELS = clip_task("high,low").labels
MEL = network_of("lfbe10 w8 3e1s h8", LABELS)
RAW = network_of("raw w8 3e2 h8", LABELS)
FOUR = ConvPlan(WeightPlan("linear", 4), 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def experiment(data, tmp_path_factory):
    return open_clips(tmp_path_factory.mktemp("runs"), str(data), "high,low", TINY, progress=False)


def system(kind, network=MEL, seed=0):
    return ClipSystem(network, kind, seed, None if kind in ("float", "control") else FOUR)


@pytest.mark.parametrize("network", [MEL, RAW], ids=["lfbe", "raw"])
@pytest.mark.parametrize("kind", ["post_training", "stage_two"])
def test_an_integer_system_is_scored_by_its_program_and_equals_its_emulation(experiment, network, kind):
    mine = system(kind, network)
    assert experiment.equality(mine)["different"] == 0 < experiment.equality(mine)["compared"]
    model, program = experiment.model(mine), experiment.program(mine)
    assert isinstance(model, QuantizedConvNet) and model.integer
    x, _ = experiment.sampler(network.front, 0).evaluation("test")
    with torch.no_grad():
        emulated = model(torch.from_numpy(x))
    np.testing.assert_allclose(experiment.logits(mine, "test"), emulated.numpy(), rtol=1e-6)
    whole = convolution_run.run(program, x[3], "reference")[-1]
    np.testing.assert_array_equal(whole, experiment.logits(mine, "test")[3])


@pytest.mark.parametrize("learner", ["width", "diffq"])
def test_learned_widths_move_freeze_and_run_as_integers(experiment, learner):
    plan = LearnedPlan(learner, 4.0, 4.0, force=100.0)
    mine = ClipSystem(MEL, "stage_two", 0, plan)
    record = experiment.widths(mine)
    assert len(record.moved()) > 3 and (record.bits[0] > record.bits[-1]).any()
    assert np.isfinite(record.loss_penalty).all()
    model = experiment.model(mine)
    frozen = experiment.model(replace(mine, kind="stage_one"))
    assert isinstance(model, QuantizedConvNet) and model.integer and not isinstance(model, LearnedConvNet)
    assert isinstance(frozen, QuantizedConvNet) and frozen.widths() == model.widths()
    assert min(model.widths().values()) < 7
    assert experiment.equality(mine)["different"] == 0
    again = ClipExperiment(experiment.spec, experiment.root, progress=False)
    assert again.model(mine).widths() == model.widths()
    assert again.widths(mine).tensors == record.tensors


def test_mixed_widths_keep_to_limits_on_flash_and_ram(experiment):
    plan = BudgetPlan(0.4)
    mine = ClipSystem(MEL, "stage_two", 0, plan)
    widths = experiment.model(mine).widths()
    assert set(widths.values()) <= {2, 4, 8} and len(set(widths.values())) > 1
    found, limits = needs(experiment.program(mine)), plan.limits(MEL)
    assert found.flash_bytes <= limits.flash_bytes and found.ram_streaming_bytes <= limits.ram_bytes
    assert experiment.equality(mine)["different"] == 0
    narrow, wide = BudgetPlan(0).limits(MEL), BudgetPlan(1).limits(MEL)
    assert narrow.flash_bytes < limits.flash_bytes < wide.flash_bytes
    with pytest.raises(ValueError, match=r"share of 0\.\.1; got 2"):
        BudgetPlan(2)


def test_a_budget_that_nothing_meets_is_refused_with_the_least(experiment):
    system = ClipSystem(MEL, "stage_one", 0, LearnedPlan("width", 1.5, None))
    with pytest.raises(ValueError, match="cannot be reached: at the narrowest widths they take"):
        experiment.model(system)


def test_widths_that_collapse_are_named(experiment, monkeypatch):
    monkeypatch.setattr(LearnedConvNet, "collapsed", lambda self, x=None: ["head.weight"])
    with pytest.raises(CollapsedWidth, match=r"head\.weight"):
        experiment.model(ClipSystem(MEL, "stage_one", 0, LearnedPlan("width", 3.0, 3.0)))


def test_bc_resnet_is_trained_in_float(data, tmp_path):
    short = replace(TINY, float_stage=replace(TINY.float_stage, steps=2))
    experiment = open_clips(tmp_path, str(data), "high,low", short, progress=False)
    network = BroadcastNetwork(LABELS)
    mine = ClipSystem(network, "float")
    assert experiment.logits(mine, "test").shape == (16, 4)
    again = ClipExperiment(experiment.spec, tmp_path, progress=False)
    assert again.has_model(mine) and isinstance(again.model(mine), BCResNet)
    with pytest.raises(ValueError, match="float only"):
        ClipSystem(network, "stage_one", 0, FOUR)


def test_tones_are_told_apart(experiment):
    found = experiment.accuracy([system("float")], "test")
    right = experiment.correct(system("float"), "test")
    assert found["accuracy"] == right.mean() > 0.6
    speakers = experiment.speakers("test")
    silent = [word == "_silence_" for word in experiment.clips("test").words]
    assert len(set(speakers[~np.array(silent)])) == 1 and len(set(speakers)) == 1 + sum(silent)
    effective = len(right) / design_effect(right, speakers)
    assert found["n_effective"] == effective
    assert (found["low"], found["high"]) == wilson_interval(right.mean() * effective, effective)
    assert found["n"] == len(experiment.clips("test")) == len(experiment.logits(system("float"), "test"))


def test_what_was_made_is_not_made_again(experiment, data):
    mine = system("stage_two")
    logits = experiment.logits(mine, "test")
    told = []
    again = ClipExperiment(experiment.spec, experiment.root, progress=False)
    assert again.has_model(mine)
    with watching(lambda *args: told.append(args)):
        np.testing.assert_array_equal(again.logits(mine, "test"), logits)
        assert again.history(mine) == experiment.history(mine)
        assert isinstance(again.model(mine), QuantizedConvNet) and again.model(mine).integer
    assert not told


def test_later_stages_start_from_the_earlier(experiment):
    assert experiment.parent(system("stage_two")) == system("stage_one")
    assert experiment.parent(system("stage_one")) == experiment.parent(system("control")) == system("float")
    steps = {kind: experiment.history(system(kind))["step"][-1] + 1 for kind in ("control", "stage_one", "stage_two")}
    assert steps["control"] == steps["stage_one"] + steps["stage_two"]
    assert isinstance(experiment.model(system("control")), ConvNet)


def test_widths_of_a_fixed_plan_stay(experiment):
    record = experiment.widths(system("stage_one"))
    assert record.moved() == () and set(np.unique(record.bits)) == {4.0}
    assert set(record.of("weight")) == {"stem.weight", "cell1_depthwise.weight", "cell1_project.weight",
                                        "head.weight", "output.weight"}  # fmt: skip
    assert record.steps[-1] == TINY.stage_one.steps
    assert experiment.widths(system("stage_two")).steps.tolist() == record.steps.tolist()
    with pytest.raises(ValueError, match="recorded in stage 1"):
        experiment.widths(system("float"))


def test_a_damaged_count_of_equal_values_is_made_again(experiment, capsys):
    mine = system("stage_two")
    counts = experiment.equality(mine)
    (file,) = experiment.folder(mine).glob("equality-*.json")
    file.write_text('{"compared": 12')
    assert experiment.equality(mine) == counts
    assert "cannot be read" in capsys.readouterr().err
    assert file.with_name(file.name + ".corrupt").read_text() == '{"compared": 12'


def test_identities_tell_what_matters(experiment):
    one = experiment.identity(system("stage_two"))
    assert one == experiment.identity(replace(system("stage_two"), name="found"))
    others = [
        system("stage_two", RAW),
        system("stage_two", seed=1),
        replace(system("stage_two"), plan=replace(FOUR, activation_bits=5)),
        system("stage_one"),
    ]
    folders = {experiment.folder(s) for s in (system("stage_two"), *others)}
    assert len(folders) == 5
    assert one["version"] == ARTIFACT_VERSION
    longer = replace(TINY, float_stage=replace(TINY.float_stage, label_smoothing=0.2))
    other = ClipExperiment(replace(experiment.spec, profile=longer), experiment.root, progress=False)
    assert other.folder(system("float")) != experiment.folder(system("float"))
    json.dumps(one)


def test_widths_chosen_on_validation_clips_are_others_when_those_change(experiment, monkeypatch):
    mixed = replace(system("stage_two"), plan=BudgetPlan())
    before = {s: experiment.folder(s) for s in (mixed, system("stage_two"))}
    monkeypatch.setattr(clip_experiment, "set_hash", lambda corpus, task, split, kept: f"{split}, changed")
    fresh = ClipExperiment(experiment.spec, experiment.root, progress=False)
    fresh._hashes["train"] = experiment.clips_hash("train")
    assert fresh.folder(system("stage_two")) == before[system("stage_two")]
    assert fresh.folder(mixed) != before[mixed]


def test_interrupted_training_goes_on_to_the_same_model(experiment, data, tmp_path):
    spec = replace(
        experiment.spec,
        profile=replace(TINY, float_stage=replace(TINY.float_stage, checkpoint_every=20)),
    )

    class Stop(Exception):
        pass

    def stop(stage, done, history):
        if done > 40:
            raise Stop

    whole, broken = (ClipExperiment(spec, tmp_path / name, progress=False) for name in ("whole", "broken"))
    with pytest.raises(Stop), watching(stop):
        broken.model(system("float"))
    assert (broken.folder(system("float")) / "checkpoint.safetensors").is_file()
    for a, b in zip(whole.model(system("float")).parameters(), broken.model(system("float")).parameters()):
        assert torch.equal(a, b)


def test_a_broken_model_is_made_again_and_its_scores_too(data, tmp_path, capsys):
    experiment = open_clips(tmp_path, str(data), "high,low", TINY, progress=False)
    logits = experiment.logits(system("float"), "test")
    file = experiment.folder(system("float")) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    again = ClipExperiment(experiment.spec, tmp_path, progress=False)
    again.model(system("float"))
    assert "made again" in capsys.readouterr().err
    assert not list(file.parent.glob("logits-*"))
    np.testing.assert_array_equal(again.logits(system("float"), "test"), logits)


def test_a_model_of_another_network_is_refused(experiment, data, tmp_path):
    experiment.model(system("float"))
    other = ClipExperiment(experiment.spec, tmp_path, progress=False)
    folder = other.folder(system("float", RAW))
    folder.mkdir(parents=True)
    model = experiment.folder(system("float")) / "model.safetensors"
    (folder / "model.safetensors").write_bytes(model.read_bytes())
    with pytest.raises(OtherModelError, match="another network"):
        other.model(system("float", RAW))


def test_another_spelling_of_the_same_layers_is_the_same_model(data, tmp_path):
    experiment = open_clips(tmp_path, str(data), "high,low", TINY, progress=False)
    plain, spelt = (
        ClipSystem(network_of(text, experiment.spec.task.labels), "float")
        for text in ("lfbe10 w8 3e1s h8", "lfbe10 w8 3e1s skip h8")
    )
    experiment.model(plain)
    again = ClipExperiment(experiment.spec, tmp_path, progress=False)
    assert experiment.folder(plain) == again.folder(spelt)
    for ours, theirs in zip(experiment.model(plain).parameters(), again.model(spelt).parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_keyword_has_frr_and_fdr_at_the_threshold_of_validation(data, tmp_path):
    experiment = open_clips(tmp_path, str(data), "high", TINY, progress=False)
    mine = ClipSystem(network_of("lfbe10 w8 3e1s h8", clip_task("high").labels), "float")
    point = experiment.point(mine)
    positive = experiment.clips("test").labels == 1
    logits = experiment.logits(mine, "test")
    score = (logits[:, 1] - logits[:, 0]).astype(np.float32)
    validation = experiment.logits(mine, "validation")
    among = (validation[:, 1] - validation[:, 0])[experiment.clips("validation").labels == 1].astype(np.float32)
    assert point.threshold == among.min(), "5% of six are none"
    assert point.misses == np.sum(score[positive] < point.threshold) and point.n_positives == 6
    words = np.array([not word.startswith("_") for word in experiment.clips("test").words])
    assert point.false_accepts == np.sum(score[~positive & words] >= point.threshold)
    assert point.n_negative_clips == 24


def test_several_classes_have_no_threshold(experiment):
    with pytest.raises(ValueError, match="several classes"):
        experiment.point(system("float"))


def test_float_systems_have_no_program(experiment):
    with pytest.raises(ValueError, match="no integer program"):
        experiment.program(system("stage_one"))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"kind": "stage_three"}, "unknown system"),
        ({"kind": "float", "plan": FOUR}, "has no plan"),
        ({"kind": "stage_one"}, "needs a plan"),
        ({"kind": "stage_one", "plan": FOUR.exact()}, "that of stage 1"),
        ({"kind": "post_training", "plan": LearnedPlan("width", 3.0, 3.0)}, "learned in training"),
    ],
)
def test_systems_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ClipSystem(MEL, **wrong)


def test_a_corpus_without_validation_is_refused_before_work(data, tmp_path):
    rows = (data / "manifest.csv").read_text().splitlines()
    manifest = data / "few.csv"
    manifest.write_text("\n".join(row for row in rows if "validation" not in row) + "\n")
    with pytest.raises(ValueError, match="no clip in validation"):
        open_clips(tmp_path / "runs", str(manifest), "high,low", TINY)
    assert list((tmp_path / "runs").iterdir()) == []


def test_unknown_profiles_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="unknown profile 'large'"):
        open_clips(tmp_path, str(data), "high,low", "large")


def test_profiles_and_specs_are_plain_values():
    for profile in PROFILES.values():
        spec = ClipSpec("somewhere", clip_task("twelve"), profile)
        assert json.loads(json.dumps(asdict(spec)))["profile"]["name"] == profile.name
        assert profile.control_stage.steps == profile.stage_one.steps + profile.stage_two.steps
    assert PROFILES["full"].float_stage.momentum == 0.9 and not PROFILES["full"].illustrative
