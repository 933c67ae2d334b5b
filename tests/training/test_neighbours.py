"""The General Quantizer beside its neighbours: the table on a small synthetic corpus, its parts restated by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from kwsbench.cli import app
from kwsbench.data.corpora import open_corpus
from kwsbench.data.synth import RECIPES, synthesize
from kwsbench.metrics.det import clip_maxima, fdr_at_frr
from kwsbench.metrics.paired import fdr_difference
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.training import experiment as module
from kwsbench.training.experiment import PROFILES, System, open_experiment
from kwsbench.training.neighbours import (
    MENUS,
    ablations_of,
    chosen,
    command,
    compare,
    equal_size_plans,
    run_neighbours,
    systems_of,
    verdict,
)
from kwsbench.training.neighbours_text import markdown
from kwsbench.training.step_cost import step_costs

SMOKE = PROFILES["smoke"]
TINY = replace(
    SMOKE,
    float_stage=replace(SMOKE.float_stage, steps=40),
    stage_one=replace(SMOKE.stage_one, steps=10),
    stage_two=replace(SMOKE.stage_two, steps=10),
)
MENU = {"general": (2,), "linear": (2,)}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    recipe = replace(
        RECIPES["smoke"], n_voices=12, train_minutes=0.5, validation_minutes=0.25, test_minutes=0.5, file_seconds=15.0
    )
    corpus = synthesize(recipe, tmp_path_factory.mktemp("corpus"), workers=1, progress=False).root
    e = open_experiment(tmp_path_factory.mktemp("runs"), str(corpus), "computer", "smoke", progress=False, workers=1)
    e.spec = replace(e.spec, profile=TINY)
    return e


@pytest.fixture(scope="module")
def result(experiment, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    ablations = [a for a in ablations_of(experiment, 0) if a.what in ("base", "scale per row")]
    made = run_neighbours(experiment, systems_of(0, MENU), ablations, out)
    assert json.loads((out / "neighbours.json").read_text()) == made
    assert (out / "neighbours.md").read_text() == markdown(made)
    return made


def test_each_system_has_its_row_of_figures(experiment, result):
    rows = {r["system"]: r for r in result["rows"]}
    assert list(rows) == [s.label for s in systems_of(0, MENU)]
    assert rows["float"]["total_bytes"] > 10 * rows["stage 2, 2-bit general"]["total_bytes"]
    system = System("stage_two", 0, WeightPlan("general", 2))
    row, model = rows[system.label], experiment.model(system)
    assert row["different"] == 0 and row["compared"] > 0
    assert row["weight_bytes"] == 66068  # 2 bits of 8 rows x 32 columns of padding, 5 tables of 4 bytes
    assert row["final_loss"] == pytest.approx(np.mean(experiment.history(system)["loss"][-5:]))
    codes = [model.quantizer(i).codes().detach().numpy() for i in range(5)]
    assert row["levels_used"] == [len(np.unique(c)) for c in codes]
    signal = noise = latent = 0.0
    for i, dense in enumerate(experiment.model(System("float")).dense):
        w, q = dense.weight.detach().double().numpy(), model.quantizer(i).quantized().detach().double().numpy()
        behind = model.quantizer(i).latent().detach().double().numpy()
        signal, noise = signal + (w**2).sum(), noise + ((w - q) ** 2).sum()
        latent += ((behind - q) ** 2).sum()
    assert row["sqnr_to_float_db"] == pytest.approx(10 * np.log10(signal / noise))
    energy = sum((model.quantizer(i).latent().detach().double().numpy() ** 2).sum() for i in range(5))
    assert row["sqnr_to_latent_db"] == pytest.approx(10 * np.log10(energy / latent))


def test_the_comparison_reads_both_curves_at_one_frr(experiment, result):
    (row,) = [r for r in result["comparisons"] if r["at"] == "operating FRR"]
    assert (row["bits"], row["rival"], row["seeds"]) == (2, "linear", [0])  # tanh is not there
    fdr = [fdr_at_frr(experiment.curve(System("stage_two", 0, WeightPlan(m, 2))), 0.05) for m in MENU]
    assert row["mean"] == pytest.approx(fdr[0] - fdr[1])
    assert row["low"] <= row["mean"] <= row["high"]
    assert result["verdict"]["of"] == 1


def test_intervals_draw_the_speakers_of_the_clips(experiment, result):
    (row,) = [r for r in result["comparisons"] if r["at"] == "operating FRR"]
    speaker = {clip.path: clip.speaker for clip in open_corpus(experiment.spec.data).select(split="test")}
    scores = experiment.scores(System("float"), "test")
    of_label = list(zip(scores.labels, [speaker[path] for path in scores.paths], strict=True))
    groups = (
        [who for label, who in of_label if label == "computer"],
        [who for label, who in of_label if label != "computer" and not label.startswith("_")],
    )
    assert len(set(groups[1])) < len(groups[1]), "several clips of a voice"
    ours, theirs = (
        clip_maxima(
            experiment.scores(System("stage_two", 0, WeightPlan(m, 2)), "test"), "computer", experiment.spec.detector
        )
        for m in MENU
    )
    by_name = {who: number for number, who in enumerate(dict.fromkeys(who for _, who in of_label))}
    expected = fdr_difference([ours], [theirs], [0.05], groups=tuple(np.array([by_name[w] for w in g]) for g in groups))
    assert [row["low"], row["high"]] == pytest.approx([expected.low, expected.high])
    clips = fdr_difference([ours], [theirs], [0.05])
    assert [row["low"], row["high"]] != pytest.approx([clips.low, clips.high])


def test_ablations_are_compared_with_their_base(experiment, result):
    base, rows = result["ablations"]
    assert (base["what"], rows["what"]) == ("base", "scale per row")
    assert "difference" not in base and base["summary"]["system"] == "stage 2, 2-bit general"
    fdr = [e["rows"][0]["fdr_at_5"] for e in (rows, base)]
    assert rows["difference"]["mean"] == pytest.approx(fdr[0] - fdr[1])


def test_the_page_says_what_the_figures_say(result):
    text = markdown(result)
    assert text.count("| stage 2, 2-bit general |") == 2 and "Illustrative" in text
    held = result["verdict"]["held"] == result["verdict"]["of"]
    assert ("it held: 1 of 1" in text) == held and ("it did not hold: 0 of 1" in text) == (not held)
    assert "--methods general,linear --bits 2 --ablations`" in text
    assert "| base | stage 2, 2-bit general |" in text
    stage_one = text[text.index("## Stage 1") : text.index("## General against")]
    assert "bytes" not in stage_one and "| entropy |" in stage_one


def test_findings_are_counted_by_system_and_kind(result):
    changed = json.loads(json.dumps(result))
    (row,) = (r for r in changed["rows"] if r["system"] == "stage 1, 2-bit general")
    row["findings"] = [
        {"kind": "too fast", "layer": "layer1", "message": "frozen early"},
        {"kind": "too fast", "layer": "layer3", "message": "frozen too"},
        {"kind": "collapse", "layer": "layer3", "message": "ran together"},
    ]
    lines = markdown(changed).splitlines()
    assert "| stage 1, 2-bit general | too fast | 2 | 5 | seed 0, layer1: frozen early |" in lines
    assert "| stage 1, 2-bit general | collapse | 1 | 5 | seed 0, layer3: ran together |" in lines
    row["findings"] = []
    assert "Nothing: no dead centroid" in markdown(changed)


def test_a_second_run_trains_nothing_and_gives_the_same_rows(experiment, result, tmp_path, monkeypatch):
    def explode(*_, **__):
        raise AssertionError("trained again")

    for name in ("train_float", "train_control", "train_stage_one", "train_stage_two"):
        monkeypatch.setattr(module.stages, name, explode)
    monkeypatch.setattr("kwsbench.training.neighbours.step_costs", lambda *_: result["step_costs"])
    other = module.Experiment(experiment.spec, experiment.root, progress=False, workers=1)
    systems = [s for s in systems_of(0, MENUS["full"]) if other.has_model(s)]
    again = run_neighbours(other, systems, [], tmp_path)
    assert {r["system"] for r in again["rows"]} == {r["system"] for r in result["rows"]}
    rows = {r["system"]: r for r in result["rows"]}
    assert all(r["fdr"] == rows[r["system"]]["fdr"] for r in again["rows"])
    assert again["comparisons"] == result["comparisons"]


def test_a_step_costs_more_than_nothing_in_every_stage(experiment):
    rows = step_costs(
        experiment.model(System("float")), [WeightPlan("general", 2)], TINY, experiment.sampler(0), rounds=3
    )
    assert [(r["kind"], r["method"], r["bits"]) for r in rows] == [
        ("stage_one", "general", 2),
        ("stage_two", "general", 2),
    ]
    assert all(0 < r["lowest"] <= r["ratio"] <= r["highest"] and r["float_step_ms"] > 0 for r in rows)


# ------------------------------------------------------------------------------------------- without any training


def test_the_menu_is_the_profiles_or_what_is_named():
    assert chosen("smoke") == MENUS["smoke"] and set(chosen("full")["lsq"]) == {8, 4, 2, 1}
    assert chosen("full", ["tanh"]) == {"tanh": (8, 5, 4, 3, 2, 1)}
    assert chosen("default", ["general", "s8b"], [3]) == {"general": (3,), "s8b": (3,)}
    with pytest.raises(ValueError, match="unknown quantizer 'tahn'"):
        chosen("full", ["tahn"])


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_mixed_plans_are_as_large_as_the_uniform_one(bits):
    sizes = (124000, 40000, 40000, 40000, 400)
    plans = equal_size_plans(sizes, bits)
    assert len(plans) == len(set(plans)) >= 2
    for plan in plans:
        assert len(set(plan)) > 1 and all(1 <= b <= 8 for b in plan)
        assert sum(n * b for n, b in zip(sizes, plan)) == pytest.approx(bits * sum(sizes), rel=0.02)


def test_widths_and_shapes_that_cannot_be_mixed_have_no_plans():
    assert equal_size_plans((124000, 40000, 40000, 40000, 400), 1) == []
    assert equal_size_plans((1000, 400), 4) == []
    assert all(p[0] == 2 for p in equal_size_plans((10**6, 10, 10, 10), 2))  # a bit of the first layer weighs too much


def fake(bits, rival, outcome, at="operating FRR"):
    return {"bits": bits, "rival": rival, "outcome": outcome, "at": at}


def test_the_prediction_is_judged_by_the_outcomes_at_the_operating_frr():
    rows = [fake(2, "tanh", "wins"), fake(3, "linear", "ties"), fake(4, "tanh", "ties"), fake(8, "tanh", "loses")]
    judged = verdict([*rows, fake(8, "tanh", "ties", "float's FRR")])
    assert (judged["held"], judged["of"]) == (2, 4)
    assert [r["expected"] for r in judged["rows"]] == ["wins", "wins", "ties", "ties"]


def test_nothing_is_compared_without_a_rival_or_a_common_seed(experiment):
    general, tanh = (System("stage_two", seed, WeightPlan(m, 2)) for seed, m in enumerate(("general", "tanh")))
    assert compare(experiment, [general]) == compare(experiment, [general, tanh]) == []


def test_the_command_makes_the_same_systems_again(experiment):
    full = [s for seed in (0, 2) for s in systems_of(seed, chosen("smoke"))]
    profile = replace(experiment.spec, profile=SMOKE)
    e = module.Experiment(profile, experiment.root, progress=False, workers=1)
    corpus = "kwsbench neighbours --data <corpus> --keyword computer "
    assert command(e, full, []) == corpus + "--profile smoke --seeds 0,2"
    assert command(e, full[1:], []) == corpus + "--profile smoke --seeds 0,2 --finished"
    assert command(e, systems_of(1, {"lsq": (4, 2)}), ablations_of(e, 1)) == (
        corpus + "--profile smoke --seeds 1 --methods lsq --bits 4,2 --ablations"
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (["--methods", "tahn"], "unknown quantizer 'tahn'"),
        (["--bits", "9"], "bits must be an integer from 1 to 8, got 9"),
        (["--seeds", "-1"], "--seeds takes integers from 0, got '-1'"),
        (["--profile", "huge"], "unknown profile 'huge'"),
    ],
)
def test_senseless_options_are_refused_before_any_work(options, message, tmp_path):
    arguments = ["neighbours", "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), *options]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code != 0 and message in str(outcome.exception)
    assert not (tmp_path / "runs" / "corpora").exists()


def test_a_root_without_models_has_nothing_finished(experiment, tmp_path):
    with pytest.raises(ValueError, match="there is no system to measure"):
        run_neighbours(experiment, [], [], tmp_path / "out")
