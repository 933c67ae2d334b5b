"""The table of networks and widths: what stands in it, that it is made once, and what cannot be made."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from kwsbench.data.clips import clip_task
from kwsbench.integer.lower import LoweringError
from kwsbench.metrics.compare import design_effect, wilson_interval
from kwsbench.metrics.paired import accuracy_difference
from kwsbench.models.space import NotationError, cost, network_of
from kwsbench.quantizers.learned import LearnedConvNet
from kwsbench.resources.convolutional import needs
from kwsbench.training import pareto
from kwsbench.training.clip_experiment import PROFILES, ClipSystem, open_clips
from kwsbench.training.clips import ClipSampling
from kwsbench.training.loop import watching
from kwsbench.training.pareto import (
    FLOAT,
    NETWORKS,
    fixed,
    learned,
    markdown,
    networks_of,
    quantizations_of,
    run_pareto,
    serves,
    sizes,
    system_of,
)
from tests.data.clip_tools import write_clips

TINY = replace(
    PROFILES["tiny"],
    sampling=ClipSampling(batch=8, rounds=1),
    float_stage=replace(PROFILES["tiny"].float_stage, steps=24, learning_rate=1e-2),
)
LABELS = clip_task("high,low").labels
COLUMNS = [FLOAT, fixed(3)]
MENU = {"mel": network_of("lfbe10 w8 3e1s h8", LABELS), "raw": network_of("raw w8 3e1s h8", LABELS)}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    data = write_clips(tmp_path_factory.mktemp("tones"))
    return open_clips(tmp_path_factory.mktemp("runs"), str(data), "high,low", TINY, progress=False)


@pytest.fixture(scope="module")
def made(experiment, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, run_pareto(experiment, MENU, COLUMNS, [0, 1], out, "kwsbench pareto")


def entry(result, network, quantization):
    (found,) = (e for e in result["summary"] if (e["network"], e["quantization"]) == (network, quantization.name))
    return found


def test_every_cell_is_there_with_its_seeds(made):
    out, result = made
    assert len(result["rows"]) == 2 * 2 * 2 and len(result["summary"]) == 2 * 2
    assert all(e["seeds"] == [0, 1] for e in result["summary"])
    assert json.loads((out / "pareto.json").read_text()) == json.loads(json.dumps(result))
    assert (out / "pareto.md").read_text() == markdown(result)


def test_accuracy_and_difference_are_those_of_the_clips(experiment, made):
    right = {
        q: np.stack([experiment.correct(system_of(MENU["mel"], "mel", q, seed), "test") for seed in (0, 1)])
        for q in (FLOAT, fixed(3))
    }
    found = entry(made[1], "mel", fixed(3))
    assert found["accuracy"]["mean"] == pytest.approx(right[fixed(3)].mean())
    speakers = experiment.speakers("test")
    n = found["n_effective"]
    assert n == found["n"] / design_effect(right[fixed(3)].mean(0), speakers) and found["n"] == len(speakers)
    assert (found["low"], found["high"]) == wilson_interval(right[fixed(3)].mean() * n, n)
    difference = accuracy_difference(right[fixed(3)], right[FLOAT], groups=speakers)
    assert (found["difference"]["low"], found["difference"]["outcome"]) == (difference.low, difference.outcome)
    assert "difference" not in entry(made[1], "mel", FLOAT)


def test_sizes_are_those_of_program_and_network(experiment, made):
    both = [needs(experiment.program(system_of(MENU["raw"], "raw", fixed(3), seed))) for seed in (0, 1)]
    found = entry(made[1], "raw", fixed(3))
    # Constants are stored in as many bytes as their values need: programs of two seeds may differ by a few.
    assert found["flash_bytes"]["mean"] == np.mean([n.flash_bytes for n in both])
    assert [r["flash_bytes"] for r in made[1]["rows"] if (r["network"], r["kind"]) == ("raw", "stage_two")] == [
        n.flash_bytes for n in both
    ]
    assert found["weights"] == both[0].weights
    assert found["macs_per_clip"] == both[0].macs_per_clip == cost(MENU["raw"]).macs_per_clip
    assert found["bits_per_weight"]["mean"] == 3 == found["bits_per_activation"]["mean"]
    assert entry(made[1], "raw", FLOAT)["flash_bytes"]["mean"] == 4 * cost(MENU["raw"]).parameters


def test_programs_equal_emulation_in_every_value(made):
    integer = [e for e in made[1]["summary"] if e["kind"] == "stage_two"]
    assert len(integer) == 2 and all(e["different"] == 0 < e["compared"] for e in integer)


def test_no_row_beats_the_front_on_validation(made):
    table = made[1]["summary"]
    points = [(e["flash_bytes"]["mean"], e["validation_accuracy"]["mean"]) for e in table]
    for e, (size, gain) in zip(table, points):
        beaten = any((a <= size and b > gain) or (a < size and b >= gain) for a, b in points)
        assert e["on_front"] == (not beaten)


def test_the_table_says_what_it_was_measured_on(made):
    text = markdown(made[1])
    assert "`kwsbench pareto`" in text and "seeds 0, 1" in text and "Illustrative" in text
    assert "16 test (2 _silence_, 2 _unknown_, 6 high, 6 low), by 1 known speakers, of whom one says 14;" in text
    assert "one test clip is 6.25%" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 4 and len({row.count("|") for row in rows}) == 1
    assert "- raw: `raw w8 3e1s h8`" in text


def test_a_second_run_trains_nothing_and_says_the_same(experiment, made, tmp_path):
    told = []
    with watching(lambda *args: told.append(args)):
        again = run_pareto(experiment, MENU, COLUMNS, [0, 1], tmp_path, "kwsbench pareto")
    assert not told and again == made[1]


def test_a_killed_run_leaves_what_it_had(experiment, made, tmp_path):
    class Stop(Exception):
        pass

    def stop(stage, done, history):
        raise Stop

    with pytest.raises(Stop), watching(stop):
        run_pareto(experiment, MENU, COLUMNS, [0, 2], tmp_path)
    left = json.loads((tmp_path / "pareto.json").read_text())
    assert [r["seed"] for r in left["rows"]] == [0] * 4 and len(left["summary"]) == 4


def test_a_keyword_has_frr_and_fdr(tmp_path):
    experiment = open_clips(tmp_path, str(write_clips(tmp_path / "data")), "high", TINY, progress=False)
    menu = {"mel": network_of("lfbe10 w8 3e1s h8", clip_task("high").labels)}
    result = run_pareto(experiment, menu, [FLOAT], [0], tmp_path / "out")
    point = experiment.point(system_of(menu["mel"], "mel", FLOAT, 0))
    assert result["summary"][0]["frr"]["mean"] == point.frr and "| FRR | FDR |" in markdown(result)


def test_menus_of_all_profiles_build(experiment):
    for profile in PROFILES:
        menu = networks_of(profile, LABELS, ["mfcc10 w8 3e1 h8"])
        by_hand = [] if profile == "tiny" else ["DS-CNN", "feedforward 250K", "BC-ResNet-1"]
        assert list(menu) == ["found", *NETWORKS.get(profile, NETWORKS["default"]), *by_hand]
        assert quantizations_of(profile)[0] == FLOAT
    assert list(networks_of("smoke", LABELS, ["raw w8 3e1 h8"], ["DS-CNN"])) == ["found", "DS-CNN"]
    assert list(networks_of("tiny", LABELS, ["raw w8 3e1 h8", "mfcc10 w8 3e1 h8"]))[:2] == ["found 1", "found 2"]
    assert [q.name for q in quantizations_of("tiny", [6], ["fixed"])] == ["float", "6 bits"]
    with pytest.raises(ValueError, match="no quantization 'learned'; there are float, control"):
        quantizations_of("tiny", ways=["learned"])
    assert [q.name for q in quantizations_of("tiny", [6])][2:7] == [
        "8 bits, not trained",
        "4 bits, not trained",
        "6 bits",
        "trained width, budget 5 bits",
        "DiffQ, budget 5 bits",
    ]


def test_raw_and_mfcc_of_the_table_have_about_equal_operations():
    menu = networks_of("default", clip_task("twelve").labels)
    macs = [cost(menu[name]).macs_per_clip for name in ("MFCC", "raw")]
    assert abs(macs[0] - macs[1]) < 0.1 * max(macs)


def test_bc_resnet_is_there_in_float_alone(experiment):
    network = networks_of("smoke", LABELS)["BC-ResNet-1"]
    assert [q.name for q in quantizations_of("smoke") if serves(network, q)] == ["float", "float, equal steps"]
    found = sizes(experiment, ClipSystem(network, "float"))
    assert found["flash_bytes"] == 4 * found["parameters"] and 8e3 < found["parameters"] < 1e4


def test_a_collapsed_width_is_told_and_the_table_goes_on(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(LearnedConvNet, "collapsed", lambda self, x=None: ["head.weight"])
    menu = {"mel": MENU["mel"]}
    result = run_pareto(experiment, menu, [FLOAT, learned("width", 3), fixed(3)], [0], tmp_path)
    assert [e["quantization"] for e in result["summary"]] == ["float", "3 bits"]
    assert "Failed: mel, trained width, budget 3 bits, seed 0: collapsed to a single code" in markdown(result)


@pytest.mark.parametrize("error", [LoweringError("head: row 0 can reach 2^31"), FloatingPointError("the loss is nan")])
def test_one_system_that_fails_does_not_end_the_table(experiment, tmp_path, monkeypatch, error):
    whole = pareto.measure

    def measure(experiment, name, network, quantization, seed):
        if quantization == fixed(3):
            raise error
        return whole(experiment, name, network, quantization, seed)

    monkeypatch.setattr(pareto, "measure", measure)
    result = run_pareto(experiment, {"mel": MENU["mel"]}, [FLOAT, fixed(3)], [0, 1], tmp_path)
    assert [e["quantization"] for e in result["summary"]] == ["float"] and len(result["rows"]) == 2
    assert f"Failed: mel, 3 bits, seed 1: {error}" in markdown(result)


def test_a_budget_that_no_widths_meet_is_refused_before_any_training(experiment, tmp_path):
    told = []
    with watching(lambda *args: told.append(args)), pytest.raises(ValueError) as refused:
        run_pareto(experiment, MENU, [FLOAT, learned("width", 1.2)], [7], tmp_path)
    assert not told
    assert "a budget of 1.2 bits per weight and 1.2 per activation cannot be reached" in str(refused.value)
    assert "the narrowest widths take 2.00 per weight" in str(refused.value)
    for bits in (0.0, 9.0):
        with pytest.raises(ValueError, match=rf"1 to 8 bits per weight in the mean, got {bits:g}"):
            learned("width", bits)
    with pytest.raises(ValueError, match="the float column first"):
        run_pareto(experiment, MENU, [fixed(3), FLOAT], [0], tmp_path)


def test_learned_widths_stand_in_the_table(experiment, tmp_path):
    menu = {"mel": MENU["mel"]}
    result = run_pareto(experiment, menu, [FLOAT, learned("width", 5), learned("diffq", 5)], [0], tmp_path)
    for row in result["summary"][1:]:
        assert row["different"] == 0 < row["compared"] and row["bits_per_weight"]["mean"] <= 8
    assert "DiffQ, budget 5 bits" in markdown(result)


def test_what_cannot_be_made_is_refused(experiment, tmp_path):
    with pytest.raises(NotationError, match="3x1"):
        networks_of("tiny", LABELS, ["raw w8 3x1 h8"])
    with pytest.raises(ValueError, match="no network 'LSTM' on the menu: MFCC, raw"):
        networks_of("tiny", LABELS, (), ["LSTM"])
    with pytest.raises(ValueError, match="the float column"):
        run_pareto(experiment, MENU, [fixed(4)], [0], tmp_path)
    with pytest.raises(ValueError, match="bits"):
        fixed(9)
