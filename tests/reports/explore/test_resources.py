"""The resource explorer: bytes as packed, noise as modelled, points as measured by the integer kernel."""

from __future__ import annotations

import numpy as np
import pytest

from kwsbench.quantizers.attach import WeightPlan
from kwsbench.reports.explore import resources
from kwsbench.reports.explore.resources import Resources, ResourceState
from kwsbench.resources.memory import memory_parts
from kwsbench.training.experiment import System

MIXED = (5, 4, 2, 1, 8)


@pytest.fixture(scope="module")
def found(study):
    r = Resources(study)
    r.read_measured()
    return r


def test_predicted_bytes_are_the_bytes_that_are_written(found, study):
    measured = found.evaluate(ResourceState("tanh", MIXED))
    view = found.view(ResourceState("tanh", MIXED))
    assert view.total_bytes == measured.bytes
    program = study.experiment.program(found.system(view.state))
    assert tuple(layer.weight_bits for layer in program.layers) == MIXED
    packed = [p["bytes"] for p in memory_parts(program) if p["system"] == "packed"]
    assert view.layer_bytes.sum() == packed[0]
    assert view.macs == 200 * 620 + 3 * 200 * 200 + 2 * 200
    assert measured.name == "post-training, 5/4/2/1/8-bit tanh" and measured in view.measured
    assert measured.point == study.experiment.point(found.system(view.state))


def test_one_width_for_all_layers_is_the_system_that_others_have(found):
    assert found.system(ResourceState("linear", (8,) * 5)) == System("post_training", 0, WeightPlan("linear", 8))
    assert found.system(ResourceState("tanh", MIXED)).layer_bits == MIXED


def test_what_is_scored_already_is_there_at_once(found):
    assert {"stage 2, 5-bit tanh", "post-training, 8-bit linear"} <= set(found.measured)
    assert found.measured["stage 2, 5-bit tanh"].seconds == 0


def test_noise_adds_over_layers_and_falls_with_bits(found):
    view = found.view(ResourceState("tanh", (8, 8, 8, 8, 2)))
    assert view.sqnr_db < view.layer_sqnr_db.min()
    assert 10 ** (-view.sqnr_db / 10) == pytest.approx(np.sum(10 ** (-view.layer_sqnr_db / 10)))
    by_bits = [found.view(ResourceState("tanh", (b,) * 5)).sqnr_db for b in range(1, 9)]
    assert np.all(np.diff(by_bits) > 2)


def test_the_figure_follows_in_place(found):
    fig = resources.draw(found.view(ResourceState("tanh", (5,) * 5)))
    before = list(fig.data[0].y)
    resources.apply(fig, resources.content(found.view(ResourceState("tanh", (5, 5, 5, 5, 1)))))
    assert [a == b for a, b in zip(before, fig.data[0].y, strict=True)] == [True] * 4 + [False]
    assert list(fig.data[0].customdata) == [5, 5, 5, 5, 1]


def test_bad_widths_are_refused(found):
    with pytest.raises(ValueError, match="bits must be an integer from 1 to 8, got 0"):
        ResourceState("tanh", (0,) * 5)
    with pytest.raises(ValueError, match="this model has 5 layers, got 2 widths"):
        found.view(ResourceState("tanh", (4, 4)))
    with pytest.raises(ValueError, match="unknown quantizer 'x'"):
        ResourceState("x", (4,))
