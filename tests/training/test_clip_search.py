"""Searches on clips: one budget, kept outcomes, nobody sees the test, and what cannot be searched."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kwsbench.data.clips import set_hash
from kwsbench.models.space import cost, network_of
from kwsbench.training.clip_experiment import PROFILES, ClipExperiment, open_clips
from kwsbench.training.clip_search import SEARCHES, STRATEGIES, ClipSearch, markdown, run_search
from kwsbench.training.clips import ClipSampling
from kwsbench.training.loop import watching
from tests.data.clip_tools import write_clips

TINY = replace(PROFILES["tiny"], sampling=ClipSampling(batch=8, rounds=1))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    data = write_clips(tmp_path_factory.mktemp("tones"))
    return open_clips(tmp_path_factory.mktemp("runs"), str(data), "high,low", TINY, progress=False)


@pytest.fixture(scope="module")
def made(experiment, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, run_search([ClipSearch(experiment, SEARCHES["tiny"])], STRATEGIES, out, "kwsbench search")


def test_every_strategy_finds_a_network_of_the_space_within_the_target(experiment, made):
    one = ClipSearch(experiment, SEARCHES["tiny"])
    assert [row["strategy"] for row in made[1]["rows"]] == list(STRATEGIES)
    for row in made[1]["rows"]:
        one.space.path(row["notation"])
        counted = cost(network_of(row["notation"], one.space.labels))
        assert row["macs_per_clip"] == counted.macs_per_clip <= one.target_macs


def test_all_spend_about_the_same(made):
    budget, *others = (row["spent_macs"] for row in made[1]["rows"])
    assert all(0.6 * budget < spent <= budget for spent in others)


def test_optuna_chooses_bits_too(made):
    bits = made[1]["rows"][2]["bits"]
    assert {name.partition(".")[2] for name in bits} == {"weights", "activations"} and set(bits.values()) <= {2, 4, 8}


def test_the_test_clips_are_not_looked_at(experiment, made):
    hidden = set_hash(experiment.corpus, experiment.spec.task, "test")
    assert not list(experiment.root.glob("search-*/logits-*"))
    assert hidden not in (made[0] / "search.json").read_text()


def test_a_second_run_searches_nothing_and_says_the_same(experiment, made, tmp_path):
    again = ClipExperiment(experiment.spec, experiment.root, progress=False)
    told = []
    with watching(lambda *args: told.append(args)):
        result = run_search([ClipSearch(again, SEARCHES["tiny"])], STRATEGIES, tmp_path, "kwsbench search")
    assert not told and result == made[1]
    assert json.loads((tmp_path / "search.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "search.md").read_text() == markdown(result) and "| proxyless | 0 | `mfcc10 w8" in markdown(
        result
    )


def test_an_interrupted_search_goes_on_to_the_same_record(experiment, tmp_path):
    p = SEARCHES["tiny"]
    often = replace(p, warmup=replace(p.warmup, checkpoint_every=3), stage=replace(p.stage, checkpoint_every=3))

    class Stop(Exception):
        pass

    def stop(stage, done, history):
        if stage.name == "search":
            raise Stop

    whole = ClipSearch(ClipExperiment(experiment.spec, tmp_path / "whole", progress=False), often).record()
    broken = ClipSearch(ClipExperiment(experiment.spec, tmp_path / "broken", progress=False), often)
    with pytest.raises(Stop), watching(stop):
        broken.record()
    assert (broken.folder("proxyless") / "checkpoint.safetensors").is_file()
    assert [p.tolist() for p in broken.record().last] == [p.tolist() for p in whole.last]


def test_settings_decide_where_a_search_lies(experiment):
    p = SEARCHES["tiny"]
    one = ClipSearch(experiment, p)
    others = [
        ClipSearch(experiment, p, seed=1),
        ClipSearch(experiment, p, "raw"),
        ClipSearch(experiment, p, target_macs=one.target_macs + 1),
        ClipSearch(experiment, replace(p, trials=3)),
    ]
    folders = {search.folder("random") for search in (one, *others)} | {one.folder("proxyless")}
    assert len(folders) == 6
    assert one.folder("random") == ClipSearch(experiment, replace(p, name="other")).folder("random")


@pytest.mark.parametrize(
    "name, front, least, most, target",
    [
        ("tiny", "raw", 552_664, 570_464, 561_493),
        ("smoke", "lfbe40", 1_063_808, 3_202_688, 1_845_818),
        ("default", "raw", 1_782_792, 2_484_192, 2_104_471),
        ("default", "mfcc10", 433_632, 3_594_432, 1_248_463),
        ("full", "mfcc10", 1_922_976, 67_202_496, 20_000_000),
    ],
)
def test_profiles_have_targets_that_their_spaces_meet(experiment, name, front, least, most, target):
    """The numbers are part of what a kept search is known by."""
    one = ClipSearch(experiment, SEARCHES[name], front)
    assert (one.table.least, one.table.most, one.target_macs) == (least, most, target)
    assert one.limit_bytes > 0


def test_what_cannot_be_searched_is_refused(experiment, tmp_path):
    with pytest.raises(ValueError, match="no network of this space takes 5 operations"):
        ClipSearch(experiment, SEARCHES["tiny"], target_macs=5)
    with pytest.raises(ValueError, match="expected a front end"):
        ClipSearch(experiment, SEARCHES["tiny"], "mel")
    with pytest.raises(ValueError, match="strategies are some of"):
        run_search([ClipSearch(experiment, SEARCHES["tiny"])], ["evolution"], tmp_path)
