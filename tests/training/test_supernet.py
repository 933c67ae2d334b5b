"""The over-parameterised network: a path computes what its network computes, and costs are sums over cells."""

import itertools

import numpy as np
import pytest
import torch

from kwsbench.models.layers import Conv, Output, shapes
from kwsbench.models.space import Space, cost
from kwsbench.training.supernet import (
    CostTable,
    Supernet,
    cost_table,
    most_probable,
    most_probable_within,
)
from tests.training.search_tools import BINS, FRAMES, TinySpace, rhythm

SPACE = TinySpace(((0, 1, 5), (3, 1), (0, 5)))
PATHS = list(itertools.product(range(3), range(2), range(2)))


def clips(count=3, seed=0, dtype=torch.float32):
    return torch.randn(count, FRAMES, BINS, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def multiplications(network):
    """Counted output by output."""
    total = 0
    sizes = shapes(network)
    for layer in network.layers:
        frames, bins, channels = sizes[layer.name]
        if isinstance(layer, Conv):
            inputs = 1 if layer.depthwise else layer.inputs
            total += frames * bins * channels * inputs * layer.kernel[0] * layer.kernel[1]
        elif isinstance(layer, Output):
            total += layer.inputs * layer.outputs
    return total


def one_hot(path, counts):
    return [torch.eye(n, dtype=torch.float64)[k] for k, n in zip(path, counts)]


def test_expected_operations_are_those_of_the_network_where_nothing_is_open():
    table = cost_table(SPACE)
    for path in PATHS:
        counted = multiplications(SPACE.network(path))
        assert table.of(path) == counted
        assert float(table.expected(one_hot(path, (3, 2, 2)))) == counted
    assert table.least == min(table.of(p) for p in PATHS) and table.most == max(table.of(p) for p in PATHS)


def test_expected_operations_are_the_expectation_over_all_paths():
    table, rng = cost_table(SPACE), np.random.default_rng(0)
    p = [rng.dirichlet(np.ones(n)) for n in (3, 2, 2)]
    exact = sum(table.of(path) * np.prod([q[k] for q, k in zip(p, path)]) for path in PATHS)
    assert float(table.expected([torch.from_numpy(q) for q in p])) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_its_network(path):
    net = Supernet(SPACE, seed=3)
    net.set_normalisation(np.full(BINS, 0.3), np.full(BINS, 1.7))
    alone = net.extract(path)
    x = clips()
    for training in (True, False):
        net.train(training), alone.train(training)
        assert torch.equal(net(x, path), alone(x))
    assert alone.network == SPACE.network(path)


@pytest.mark.parametrize("path", PATHS)
def test_a_candidate_alone_is_the_candidate_within_its_path(path):
    net = Supernet(SPACE, seed=3).eval()
    _, between = net.trace(clips(), path)
    assert len(between) == 4
    for cell, choice in enumerate(path):
        assert torch.equal(net.candidate(cell, choice, between[cell]), between[cell + 1])


@pytest.mark.parametrize("front", ["mfcc10", "raw", "sinc"])
def test_paths_of_the_notation_are_their_networks(front):
    space = Space(("a", "b"), front, width=8, head=8, cells=3, strided=(0, 2), kernels=(3, 5), expansions=(1, 2))
    net, table, rng = Supernet(space, seed=1).eval(), cost_table(space), np.random.default_rng(0)
    frames = (16000, 1) if front != "mfcc10" else (49, 10)
    x = torch.randn(2, *frames, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        path = tuple(int(rng.integers(n)) for n in net.counts)
        assert torch.equal(net(x, path), net.extract(path)(x))
        assert table.of(path) == cost(space.network(path)).macs_per_clip
        _, between = net.trace(x, path)
        for cell, choice in enumerate(path):
            torch.testing.assert_close(net.candidate(cell, choice, between[cell]), between[cell + 1])


def test_candidates_share_nothing_and_stem_and_head_are_shared():
    net = Supernet(SPACE, seed=0)
    a, b = net.extract((1, 0, 1)), net.extract((2, 0, 1))
    assert torch.equal(a.convs["stem"].weight, b.convs["stem"].weight)
    assert torch.equal(a.convs["cell2_project"].weight, b.convs["cell2_project"].weight)
    assert not torch.equal(a.convs["cell1_project"].weight, b.convs["cell1_project"].weight)
    assert torch.equal(Supernet(SPACE, seed=0)(clips(), (2, 1, 1)), net(clips(), (2, 1, 1)))


def test_weights_of_other_paths_get_no_gradient():
    net = Supernet(SPACE).train()
    net(clips(), (1, 0, 0)).sum().backward()
    touched = {name for name, p in net.named_parameters() if p.grad is not None}
    assert {n.split("@")[1][0] for n in touched if "cell1" in n} == {"1"}
    assert not any("cell3" in n for n in touched)


def test_the_most_probable_network_within_a_limit_against_all_networks():
    table, rng = cost_table(SPACE), np.random.default_rng(1)
    for _ in range(10):
        p = [rng.dirichlet(np.ones(n)) for n in (3, 2, 2)]
        assert most_probable(p) == max(PATHS, key=lambda path: np.prod([q[k] for q, k in zip(p, path)]))
        limit = rng.uniform(table.least, table.most)
        within = [path for path in PATHS if table.of(path) <= limit]
        best = max(within, key=lambda path: np.prod([q[k] for q, k in zip(p, path)]))
        assert most_probable_within(p, table, limit) == best


def test_targets_out_of_reach_are_refused_with_the_range():
    table = CostTable(100, ((0, 50), (10, 20)))
    for target in (109, 171):
        with pytest.raises(ValueError, match="from 110 to 170"):
            table.check(target)
    with pytest.raises(ValueError, match="from 110 to 170"):
        most_probable_within([np.ones(2) / 2] * 2, table, 109)
    table.check(110), table.check(170)


def test_the_task_needs_the_wide_kernel():
    x, labels = rhythm(4000, 0)
    signs = np.sign(x.mean(2))
    matches = np.stack([signs[:, s] == signs[:, s + 4] for s in (1, 2, 8, 9)], 1)
    assert np.mean(matches.all(1) == labels) > 0.99
    near = np.abs(np.corrcoef((x[:, 1:] * x[:, :-1]).mean((1, 2)), labels)[0, 1])
    assert near < 0.05
