"""Search by trials: what is drawn, what it may cost, resume to the same outcomes, and what is refused."""

import itertools
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from kwsbench.models.space import Space
from kwsbench.training import loop, search_trials
from kwsbench.training.search_record import Trial, Trials, trial_of
from kwsbench.training.search_trials import (
    BitSpace,
    TrialConfig,
    draw_networks,
    halves,
    optuna_search,
    random_search,
    startup,
    validation_score,
    weight_bytes,
)
from kwsbench.training.supernet import CostTable, cost_table
from tests.training.search_tools import BINS, FRAMES, Rhythm, TinySpace, rhythm, stage

SPACE = TinySpace()
TABLE = cost_table(SPACE)
HELD_OUT = rhythm(40, 9)
# About 9 steps of the largest network each.
SHORT = TrialConfig(stage("float", 1), 3, 3 * 3 * 32 * 10 * TABLE.most, TABLE.most, tolerance=0.5)
BITS = BitSpace(halves(SPACE), stage("stage 1", 1, learning_rate=1e-3, momentum=0.0), limit_bytes=130)


def without_order(trials):
    return json.dumps(trials.to_json(), sort_keys=True)


def test_drawn_networks_lie_near_the_target_and_are_distinct():
    table = CostTable(1000, tuple((0, 100, 250, 700) for _ in range(6)))
    paths = draw_networks(table, 3000, 0.05, 40, seed=1)
    assert len(set(paths)) == 40
    assert all(2850 <= table.of(path) <= 3000 for path in paths)
    assert paths == draw_networks(table, 3000, 0.05, 40, seed=1) != draw_networks(table, 3000, 0.05, 40, seed=2)


def test_drawn_networks_are_uniform_among_those_that_fit(monkeypatch):
    monkeypatch.setattr(search_trials, "DRAWS", 2000)
    table = CostTable(0, ((0, 1, 5), (0, 2, 4), (0, 3)))
    fitting = {p for p in itertools.product(range(3), range(3), range(2)) if 3 <= table.of(p) <= 6}
    assert set(draw_networks(table, 6, 0.5, 100, 0)) == fitting
    firsts = [draw_networks(table, 6, 0.5, 1, seed)[0] for seed in range(300)]
    counts = np.array([firsts.count(p) for p in fitting])
    expected = 300 / len(fitting)
    assert ((counts - expected) ** 2 / expected).sum() < 2.5 * len(fitting)


def test_no_network_near_the_target_is_refused_with_the_nearest():
    table = CostTable(100, ((0, 50), (0, 200)))
    with pytest.raises(ValueError, match="takes 150"):
        draw_networks(table, 290, 0.1, 3, 0)
    with pytest.raises(ValueError, match="from 100 to 350"):
        draw_networks(table, 400, 0.1, 3, 0)


def test_all_trials_together_take_the_budget_and_no_more():
    found = random_search(SPACE, Rhythm(), HELD_OUT, SHORT, progress=False)
    assert len(found.trials) == 3 and all(t.trained for t in found.trials)
    assert 0.8 * SHORT.budget_macs < found.macs <= SHORT.budget_macs
    for trial in found.trials:
        assert trial.spent_macs == trial.macs * (3 * 32 * trial.steps + 40)
        assert trial.spent_clips == 32 * trial.steps and 0.5 * TABLE.most <= trial.macs <= TABLE.most
    # A smaller network gets more steps for the same share.
    small, large = (f(found.trials, key=lambda t: t.macs) for f in (min, max))
    assert small.macs == large.macs or small.steps > large.steps


def test_the_best_is_that_of_the_highest_accuracy_then_of_the_least_loss():
    rows = [(0.5, 1.0), (0.8, 0.9), (0.8, 0.7), (0.8, 0.7), (None, None)]
    trials = [Trial(i, f"n{i}", 10, 5, 20, loss=loss, accuracy=a) for i, (a, loss) in enumerate(rows)]
    found = Trials("random", tuple(trials))
    assert found.best.number == 2
    assert [row["best_so_far"] for row in found.rows()] == [0.5, 0.8, 0.8, 0.8]
    with pytest.raises(ValueError, match="none of 1 trials was trained"):
        _ = Trials("random", tuple(trials[4:])).best


def test_an_interrupted_random_search_goes_on_to_the_same_outcome(tmp_path, monkeypatch):
    whole = random_search(SPACE, Rhythm(), HELD_OUT, SHORT, progress=False)
    calls = []

    def interrupt(config, steps, history):
        calls.append(steps)
        if len(calls) == 3:  # in the middle of the second trial
            os.kill(os.getpid(), signal.SIGINT)

    with loop.watching(interrupt), pytest.raises(KeyboardInterrupt):
        random_search(SPACE, Rhythm(), HELD_OUT, SHORT, folder=tmp_path, progress=False)
    trained = []
    real = search_trials.train
    monkeypatch.setattr(search_trials, "train", lambda *a, **k: trained.append(0) or real(*a, **k))
    again = random_search(SPACE, Rhythm(), HELD_OUT, SHORT, folder=tmp_path, progress=False)
    assert len(trained) == 2 and without_order(again) == without_order(whole)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("at", [2, 5])  # calls of the watcher: float stage of a trial, quantized stage
def test_an_interrupted_optuna_search_goes_on_to_the_same_outcome(tmp_path, at):
    config = replace(SHORT, trials=2)
    whole = optuna_search(SPACE, Rhythm(), HELD_OUT, config, BITS, seed=3, progress=False)
    calls = []

    def interrupt(stage, steps, history):
        calls.append(stage.name)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)

    with loop.watching(interrupt), pytest.raises(KeyboardInterrupt):
        optuna_search(SPACE, Rhythm(), HELD_OUT, config, BITS, seed=3, folder=tmp_path, progress=False)
    assert (tmp_path / "optuna.log").is_file()
    again = optuna_search(SPACE, Rhythm(), HELD_OUT, config, BITS, seed=3, folder=tmp_path, progress=False)
    assert without_order(again) == without_order(whole)
    assert not list(tmp_path.glob("*.safetensors"))


def test_optuna_trains_only_what_keeps_the_limits():
    found = optuna_search(SPACE, Rhythm(), HELD_OUT, replace(SHORT, target_macs=2500), BITS, progress=False)
    trained = [t for t in found.trials if t.steps]
    assert len(trained) == 3 and len({(t.notation, *t.bits.values()) for t in trained}) == 3
    for trial in found.trials:
        fits = trial.macs <= 2500 and trial.weight_bytes <= BITS.limit_bytes
        assert trial.trained == fits and (trial.excess <= 1) == fits
        assert fits or (trial.steps, trial.spent_macs, trial.accuracy) == (0, 0.0, None)
        assert set(trial.bits) == set(BITS.names)
    assert found.macs <= SHORT.budget_macs


def test_optuna_without_bits_searches_networks_alone():
    found = optuna_search(SPACE, Rhythm(), HELD_OUT, SHORT, progress=False)
    assert all(t.bits == {} and t.weight_bytes == 4 * t.weights for t in found.trials)
    assert found.best.trained


def test_bytes_are_those_of_every_layer_at_its_width():
    network = SPACE.network((2, 1))
    bits = {name: 8 for name in BITS.names} | {"early.weights": 2, "late.weights": 4}
    # stem 6 x 4, first cell 6 x 5 + 6 x 6 at 2 bits, second 6 + 36 at 4, head 36, output 12.
    assert weight_bytes(network, BITS.plan(network, bits)) == 24 + (8 + 9) + (3 + 18) + 36 + 12


def test_a_network_that_does_not_train_does_not_end_the_search(tmp_path):
    wild = replace(SHORT, trials=2, stage=stage("float", 1, learning_rate=1e30, warmup_steps=0))
    found = random_search(SPACE, Rhythm(), HELD_OUT, wild, folder=tmp_path, progress=False)
    assert all("lower the learning rate" in t.failure and not t.trained and t.spent_macs for t in found.trials)
    assert found == random_search(SPACE, Rhythm(), HELD_OUT, wild, folder=tmp_path, progress=False)


def test_parts_cover_every_layer_of_the_notation():
    space = Space(("a", "b"), width=8, head=8, cells=3, kernels=(3,), expansions=(2,))
    bits = BitSpace(halves(space), stage("stage 1", 1), 1e6)
    network = space.network((0, 0, 0))
    chosen = {name: few[0] for name, few in bits.names.items()}
    plan = bits.plan(network, chosen)
    for layer in network.layers:
        if layer.kind in ("conv", "output"):
            assert plan.weights_of(layer.name).bits == 2, layer.name
        if layer.kind != "output":
            assert plan.activation_bits_of(layer.name) == 4, layer.name
    # Parts that a network lacks are left out of its plan.
    bits.plan(space.network((0, 1, 1)), chosen).check(space.network((0, 1, 1)))


def test_limits_that_nothing_meets_are_refused():
    with pytest.raises(ValueError, match=r"the smallest, 'skip skip' at the fewest bits, takes 18"):
        optuna_search(SPACE, Rhythm(), HELD_OUT, SHORT, replace(BITS, limit_bytes=17), progress=False)
    with pytest.raises(ValueError, match=f"from {TABLE.least:,} to {TABLE.most:,}"):
        optuna_search(SPACE, Rhythm(), HELD_OUT, replace(SHORT, target_macs=1), progress=False)
    with pytest.raises(ValueError, match="allow more, or fewer trials"):
        random_search(SPACE, Rhythm(), HELD_OUT, replace(SHORT, budget_macs=1000), progress=False)
    nothing = (np.zeros((0, FRAMES, BINS), np.float32), np.zeros(0, np.int64))
    for strategy in (random_search, optuna_search):
        with pytest.raises(ValueError, match="needs validation data"):
            strategy(SPACE, Rhythm(), nothing, SHORT, progress=False)


def test_settings_that_make_no_sense_are_refused():
    for changes in ({"trials": 0}, {"budget_macs": 0.0}, {"tolerance": 1.5}):
        with pytest.raises(ValueError, match="must be positive"):
            replace(SHORT, **changes)
    with pytest.raises(ValueError, match="between 0 and 1"):
        replace(BITS, share=1.0)
    with pytest.raises(ValueError, match="no trial"):
        trial_of({"number": 1})
    with pytest.raises(ValueError, match="no trials"):
        Trials.from_json({})


def test_scores_on_validation_are_means_over_all_clips():
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return torch.stack([torch.zeros(len(x)), x[:, 0, 0]], 1)

    x = np.linspace(-1, 1, 601, dtype=np.float32)[:, None, None]
    labels = (x[:, 0, 0] > 0.25).astype(np.int64)
    loss, accuracy = validation_score(Fixed(), (x, labels))
    z = x[:, 0, 0].astype(np.float64)
    nats = np.where(labels == 1, np.log1p(np.exp(-z)), np.log1p(np.exp(z)))
    assert loss == pytest.approx(nats.mean(), rel=1e-6)
    assert accuracy == pytest.approx(np.mean((z > 0) == labels))


def test_trials_are_read_back_as_they_were_written():
    found = random_search(SPACE, Rhythm(), HELD_OUT, replace(SHORT, trials=2), progress=False)
    back = Trials.from_json(json.loads(json.dumps(found.to_json())))
    assert back == found


@pytest.mark.parametrize("trials, drawn", [(1, 1), (6, 2), (12, 4), (100, 10)])
def test_optuna_draws_at_random_only_at_first(trials, drawn):
    """Its own default of ten would leave a short search without any guided suggestion."""
    assert startup(trials) == drawn
