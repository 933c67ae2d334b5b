"""Differentiable search: its gradients against enumeration, resume to the same bits, and what it refuses."""

import copy
import itertools
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kwsbench.models.convolutional import ConvNet
from kwsbench.training import loop
from kwsbench.training.checkpoints import CheckpointError
from kwsbench.training.search import (
    Architecture,
    HeldOut,
    SearchConfig,
    alpha_gradients,
    architecture_step,
    cost_factor,
    entropy,
    expected_macs,
    gate_gradients,
    search,
)
from kwsbench.training.search_record import SearchRecord
from kwsbench.training.search_trials import validation_score
from kwsbench.training.supernet import Supernet, cost_table, most_probable, most_probable_within
from tests.training.search_tools import BINS, FRAMES, Rhythm, TinySpace, rhythm, stage

SPACE = TinySpace()
TABLE = cost_table(SPACE)
SHORT = SearchConfig(
    stage("warm-up", 6), stage("search", 20), TABLE.most * 0.8, architecture_every=2, record_every=4,
    architecture_rate=0.05,
)  # fmt: skip


def batch(count=6, seed=0, dtype=torch.float64):
    x = torch.randn(count, FRAMES, BINS, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x, torch.arange(count) % 2


def double_net(space=SPACE, seed=1):
    """A supernet in float64 and evaluation mode."""
    return Supernet(space, seed).double().eval()


def loss_with_gates(net, x, labels, gates):
    """Cross-entropy where cell c gives sum_j g_j o_j over (candidate, gate) pairs; restated layer by layer."""
    y = ((x - net.mean) * net.inverse_std)[:, None]
    y = F.relu6(net.convs["stem"].norm(F.conv2d(y, net.convs["stem"].weight)))
    for cell, pairs in enumerate(gates):
        y = sum(g * net.candidate(cell, k, y) for k, g in pairs)
    y = F.relu6(net.convs["head"].norm(F.conv2d(y, net.convs["head"].weight)))
    return F.cross_entropy(net.output(y.mean((2, 3))), labels)


@pytest.mark.parametrize("path", [(1, 2), (0, 1), (2, 0), (0, 0)])
def test_gradients_by_the_gates_are_those_of_the_explicit_sum(path):
    net, (x, labels) = double_net(), batch()
    loss, _, found = gate_gradients(net, x, labels, path)
    gates = [torch.eye(3, dtype=torch.float64)[k].requires_grad_() for k in path]
    explicit = loss_with_gates(net, x, labels, [list(enumerate(g)) for g in gates])
    assert float(loss) == pytest.approx(float(explicit.detach()), rel=1e-12)
    for a, b in zip(found, torch.autograd.grad(explicit, gates), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def close_net(distance):
    """Two candidates per cell that differ by ``distance``."""
    space = TinySpace(((3, 3), (3, 3), (3, 3)))
    net = double_net(space)
    for name, conv in net.convs.items():
        if name.endswith("@1"):
            base = net.convs[name.replace("@1", "@0")].weight
            with torch.no_grad():
                conv.weight.copy_(base + distance * (conv.weight - base))
    return net


def exact_and_estimated(distance):
    """Gradient of the expected loss over all paths, and the expectation of its estimate over all draws."""
    net, (x, labels) = close_net(distance), batch()
    alpha = [torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    p = [F.softmax(a, 0) for a in alpha]
    expected, estimated = torch.zeros((), dtype=torch.float64), [torch.zeros(2, dtype=torch.float64) for _ in alpha]
    for path in itertools.product((0, 1), repeat=3):
        weight = math.prod(q[k] for q, k in zip(p, path))
        with torch.no_grad():
            loss = F.cross_entropy(net(x, path), labels)
        expected = expected + weight * loss
        _, _, gates = gate_gradients(net, x, labels, path)
        for total, gradient in zip(estimated, alpha_gradients(alpha, gates)):
            total += weight.detach() * gradient
    return torch.stack(torch.autograd.grad(expected, alpha)), torch.stack(estimated)


def test_the_estimated_gradient_is_that_of_the_expected_loss_over_all_paths(monkeypatch):
    """To second order in how far candidates lie apart: halving the distance quarters the relative error.
    With an activation that has no kinks, for those have no second order."""
    monkeypatch.setattr(F, "relu6", torch.tanh)
    errors = []
    for distance in (0.02, 0.01, 0.005):
        exact, estimated = exact_and_estimated(distance)
        errors.append(float((estimated - exact).norm() / exact.norm()))
    assert errors[0] < 0.01
    assert errors[2] < 0.35 * errors[1] < 0.35**2 * errors[0]


def test_the_gradient_is_that_of_the_gates_mean():
    """Exact where the loss is linear in what a cell gives: there sum_j p_j dCE/dg_j is the expected loss."""
    alpha = [torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True), torch.zeros(1).double()]
    gates = [torch.tensor([0.7, -0.4, 0.1], dtype=torch.float64), torch.ones(1).double()]
    found = alpha_gradients(alpha, gates)
    (wanted,) = torch.autograd.grad((F.softmax(alpha[0], 0) * gates[0]).sum(), alpha[:1])
    torch.testing.assert_close(found[0], wanted)
    assert float(found[1]) == 0


def test_a_step_goes_down_the_whole_loss():
    """What Adam is given is the gradient of the cost factor times the loss, both parts."""
    net, architecture = Supernet(SPACE).train(), Architecture((3, 3))
    data, config = batch(dtype=torch.float32), replace(SHORT, beta=2.0)
    path = architecture.draw(np.random.default_rng(4))
    loss, _, gates = gate_gradients(copy.deepcopy(net), *data, path)
    factor = cost_factor(TABLE, architecture, config.target_macs, 2.0)
    slopes = torch.autograd.grad(factor, list(architecture.alpha))
    wanted = [
        factor.detach() * g + loss.double() * slope
        for g, slope in zip(alpha_gradients(list(architecture.alpha), gates), slopes)
    ]
    optimizer = torch.optim.SGD(architecture.parameters(), lr=1.0)
    told = architecture_step(net, architecture, optimizer, TABLE, config, data, np.random.default_rng(4))
    for a, g in zip(architecture.alpha, wanted, strict=True):
        torch.testing.assert_close(a.detach(), -g, rtol=1e-12, atol=0)
    assert told[0] == float(loss)
    assert told[2] == 3 * TABLE.of(path) + sum(sum(cell) - cell[k] for cell, k in zip(TABLE.cells, path))


def test_gradient_of_the_cost_against_differences():
    architecture = Architecture((3, 3))
    with torch.no_grad():
        for i, a in enumerate(architecture.alpha):
            a.copy_(torch.tensor([0.2, -0.5, 0.9]) * (i + 1))
    target, expected = 1.7 * TABLE.least, expected_macs(TABLE, architecture)

    def factor():
        return cost_factor(TABLE, architecture, target, 0.6)

    def expectation():
        return TABLE.expected(architecture.probabilities())

    assert float(factor().detach()) == pytest.approx((math.log(expected) / math.log(target)) ** 0.6, rel=1e-14)
    for function in (factor, expectation):
        gradient = torch.autograd.grad(function(), list(architecture.alpha))
        for a, g in zip(architecture.alpha, gradient):
            for k in range(3):
                sides = []
                with torch.no_grad():
                    for move in (1e-5, -2e-5):
                        a[k] += move
                        sides.append(float(function()))
                    a[k] += 1e-5
                assert float(g[k]) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-6, abs=1e-12)


def test_paths_are_drawn_by_their_probabilities():
    architecture = Architecture((3, 1))
    with torch.no_grad():
        architecture.alpha[0].copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    rng = np.random.default_rng(0)
    paths = [architecture.draw(rng) for _ in range(4000)]
    shares = [np.mean([path[0] == k for path in paths]) for k in range(3)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.025)
    assert all(path[1] == 0 for path in paths)


def run(path=None, config=SHORT, seed=0, space=SPACE):
    return search(space, Rhythm(), rhythm(50, 9), config, seed, path, progress=False)


def same(first, second):
    assert first.notation == second.notation and first.settings == second.settings
    for key in SearchRecord.CURVES:
        np.testing.assert_array_equal(first.curves[key], second.curves[key], err_msg=key)
    for a, b in zip(first.probabilities, second.probabilities, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("at", [5, 13])
def test_an_interrupted_search_goes_on_to_the_same_bits(tmp_path, at):
    whole_net, whole = run()
    file = tmp_path / "search.safetensors"
    stopped = []

    def interrupt(config, steps, history):
        if history["step"][-1] >= at and not stopped:
            stopped.append(history["step"][-1])
            os.kill(os.getpid(), signal.SIGINT)

    with loop.watching(interrupt), pytest.raises(KeyboardInterrupt):
        run(file)
    assert stopped == [at + 3] and file.is_file()
    net, record = run(file)
    same(whole, record)
    for name, value in whole_net.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name


def test_a_watcher_hears_the_stages_and_every_probability():
    heard = []
    with loop.watching(lambda config, steps, h: heard.append((config.name, steps, {k: v[-1] for k, v in h.items()}))):
        _, record = run()
    assert [(name, steps) for name, steps, _ in heard] == [
        ("warm-up", 1), ("warm-up", 5), ("search", 3), ("search", 7), ("search", 11), ("search", 15), ("search", 19),
        ("search", 20),
    ]  # fmt: skip
    assert heard[-1][2]["2/skip"] == record.probabilities[1][-1][0]
    assert heard[-1][2]["macs"] == record.macs > 0
    assert np.isnan(heard[0][2]["validation_loss"]) and heard[-1][2]["validation_loss"] > 0


def test_warm_up_leaves_all_candidates_alike_and_the_search_does_not():
    _, record = run()
    warm = record.curves["step"] < SHORT.warmup.steps
    for p in record.probabilities:
        np.testing.assert_allclose(p.sum(1), 1)
        assert np.all(p[warm] == p[0, 0]) and np.ptp(p[-1]) > 0.01
    assert record.curves["entropy"][0] == pytest.approx(math.log(3))
    assert record.curves["entropy"][-1] == pytest.approx(entropy(record.last))


def test_macs_spent_are_those_of_every_pass():
    """With one candidate per cell every pass is known."""
    space = TinySpace(((5,), (1,)))
    table = cost_table(space)
    config = replace(SHORT, target_macs=table.of((0, 0)))
    _, record = run(config=config, space=space)
    trained, validated = 26 * 32, 10 * 32
    assert record.macs == 3 * table.of((0, 0)) * (trained + validated)  # no other candidate
    assert record.curves["clips"][-1] == trained + validated


@pytest.mark.parametrize("target", [TABLE.least + 10, TABLE.most - 10])
def test_beta_follows_the_target_only_if_asked(target):
    near = replace(SHORT, target_macs=target)
    _, fixed = run(config=near)
    _, followed = run(config=replace(near, beta_rate=10.0))
    assert np.all(fixed.curves["beta"] == 0.6)
    np.testing.assert_allclose(
        followed.curves["beta"], 0.6 + 10 * np.log(followed.curves["expected_macs"] / target), rtol=1e-12
    )
    misses = [abs(math.log(r.curves["expected_macs"][-1] / target)) for r in (fixed, followed)]
    assert misses[1] < 0.9 * misses[0]


def test_the_architecture_goes_as_far_in_few_steps_as_the_sibling_in_many():
    full = replace(SHORT, stage=stage("search", 44300), architecture_every=5, architecture_rate=0.0)
    assert full.rate == pytest.approx(4e-3)
    half = replace(full, stage=stage("search", 22150))
    assert half.rate == pytest.approx(8e-3)
    assert replace(full, stage=stage("search", 50)).rate == 0.1
    assert replace(full, architecture_rate=0.02).rate == 0.02


def test_no_validation_data_is_refused():
    nothing = (np.zeros((0, FRAMES, BINS), np.float32), np.zeros(0, np.int64))
    for validation in (None, nothing):
        with pytest.raises(ValueError, match="needs validation data"):
            search(SPACE, Rhythm(), validation, SHORT, progress=False)


def test_a_target_out_of_reach_is_refused_with_what_can_be_reached():
    for target in (TABLE.least - 1, TABLE.most + 1):
        with pytest.raises(ValueError, match=f"from {TABLE.least:,} to {TABLE.most:,}"):
            run(config=replace(SHORT, target_macs=target))


def test_a_checkpoint_of_another_search_is_refused(tmp_path):
    file = tmp_path / "search.safetensors"
    run(file)
    assert file.is_file()
    for changes in ({"seed": 1}, {"config": replace(SHORT, beta=0.5)}, {"space": TinySpace(((0, 3, 5), (0, 3, 5)))}):
        with pytest.raises(CheckpointError, match="belongs to another search"):
            run(file, **changes)


def test_a_loss_that_is_not_finite_stops_the_search():
    wild = replace(SHORT, warmup=stage("warm-up", 30, learning_rate=1e30, warmup_steps=0))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        run(config=wild)


def test_settings_that_make_no_sense_are_refused():
    for changes in ({"architecture_every": 0}, {"record_every": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            replace(SHORT, **changes)
    for changes in ({"beta_rate": -1.0}, {"architecture_rate": -1.0}):
        with pytest.raises(ValueError, match="must not be negative"):
            replace(SHORT, **changes)


def test_held_out_batches_depend_on_seed_and_step_and_repeat_nothing():
    x, labels = rhythm(30, 0)
    held = HeldOut((x, labels), 20, seed=4)
    (a, la), (b, _) = held.batch(2), held.batch(3)
    assert torch.equal(a, HeldOut((x, labels), 20, seed=4).batch(2)[0]) and not torch.equal(a, b)
    rows = [int(np.flatnonzero((x == clip.numpy()).all((1, 2)))[0]) for clip in a]
    assert len(set(rows)) == 20 and np.array_equal(labels[rows], la.numpy())
    assert len(HeldOut((x, labels), 200, 0).batch(0)[0]) == 30


def test_a_record_is_read_back_as_it_was_written(tmp_path):
    _, record = run()
    record.save(tmp_path / "search.npz")
    same(record, SearchRecord.load(tmp_path / "search.npz"))
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="truncated or not an npz"):
        SearchRecord.load(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError):
        SearchRecord.load(tmp_path / "none.npz")


def test_what_a_record_gives_to_figures_and_tables():
    space = TinySpace(((1, 5), (0, 1, 5)))
    _, record = run(config=replace(SHORT, target_macs=cost_table(space).most * 0.9), space=space)
    steps, grid = record.grid(3)
    assert steps.tolist() == [0, 16, 25] and grid.shape == (3, 2, 3)
    assert record.choices() == ("1", "5", "skip")
    assert np.isnan(grid[:, 0, 2]).all() and not np.isnan(grid[:, 1]).any()
    np.testing.assert_array_equal(grid[-1, 1, [2, 0, 1]], record.last[1])
    strided = replace(record, candidates=(("1s", "5s"), record.candidates[1]))
    assert strided.choices() == ("1", "5", "skip")
    np.testing.assert_array_equal(strided.grid(3)[1], grid)
    notes = record.notes(steps)
    assert "validation" not in notes[0] and "on validation" in notes[2] and "E[ops]" in notes[2]
    rows = record.cell_rows()
    assert [row["choice"] for row in rows] == record.notation.split()
    assert rows[1]["probability"] == record.last[1].max() and rows[0]["candidates"] == 2


@pytest.fixture(scope="module")
def brute_force():
    """Accuracy on validation of every network of the tiny space, each trained alone."""
    held_out, found = rhythm(300, 9), {}
    for path in itertools.product(range(3), repeat=2):
        model = ConvNet(SPACE.network(path))
        loop.train(model, Rhythm(), stage("float", 60), progress=False)
        found[path] = validation_score(model, held_out)[1]
    return found


def test_the_task_ranks_the_choices(brute_force):
    """By chance without a wide kernel, nearly always with one."""
    for path, accuracy in brute_force.items():
        assert (accuracy > 0.75) == (2 in path), (path, accuracy)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_search_finds_one_of_the_best_networks(brute_force, seed):
    limit = TABLE.of((0, 2))  # one wide kernel and nothing else
    config = SearchConfig(
        stage("warm-up", 60), stage("search", 120), limit, architecture_every=2, record_every=20, beta_rate=5.0
    )
    _, record = search(SPACE, Rhythm(seed), rhythm(300, 9), config, seed, progress=False)
    assert brute_force[most_probable(record.last)] > 0.9
    within = most_probable_within(record.last, TABLE, limit)
    affordable = [accuracy for path, accuracy in brute_force.items() if TABLE.of(path) <= limit]
    assert brute_force[within] > max(affordable) - 0.05
