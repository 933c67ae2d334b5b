"""The quantizer explorer's numbers against NumPy written out here, and its figure in place."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kwsbench.quantizers import QUANTIZERS
from kwsbench.reports.explore import quantizer
from kwsbench.reports.explore.artifacts import Shelf
from kwsbench.reports.explore.quantizer import QuantizerState, synthetic


def test_uniform_rounding_is_what_the_view_says():
    w = quantizer.Weights("w", np.random.default_rng(1).normal(size=(3, 50)))
    v = quantizer.view(w, QuantizerState("linear", 3, False, 0.5))
    step = 0.5 * np.abs(w.values).max() / 4  # levels -4..3; the range is that of the largest magnitude
    codes = np.clip(np.floor(w.values / step + 0.5), -4, 3)
    noise = np.sum((w.values - step * codes) ** 2)
    assert v.sqnr_db == pytest.approx(10 * math.log10(np.sum(w.values**2) / noise), abs=1e-9)
    counts = np.array([np.sum(codes == c) for c in range(-4, 4)])
    np.testing.assert_allclose(v.usage_percent, 100 * counts / 150)
    share = counts[counts > 0] / 150
    assert v.entropy_bits == pytest.approx(-np.sum(share * np.log2(share)))
    assert v.clipped_percent == pytest.approx(100 * np.mean(np.abs(w.values) > 4 * step))
    assert v.codes_used == np.count_nonzero(counts)
    np.testing.assert_allclose(v.levels, step * np.arange(-4, 4))


def test_a_scale_per_row_wins_where_rows_differ_in_size():
    w = synthetic("rows of unequal size")
    one, rows = (quantizer.view(w, QuantizerState("linear", 4, per, 0.8)).sqnr_db for per in (False, True))
    assert rows > one + 1


@pytest.mark.parametrize("method", QUANTIZERS)
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_every_method_has_a_view(method, bits):
    v = quantizer.view(synthetic("Laplace"), QuantizerState(method, bits, False, 0.5))
    assert v.before_percent.sum() == pytest.approx(100) and v.after_percent.sum() == pytest.approx(100)
    assert np.count_nonzero(v.after_percent) <= len(v.codes) == (2 if bits == 1 else 4 if bits == 2 else len(v.codes))
    assert v.response.output.max() <= 1 + 1e-9 and np.all(np.diff(v.response.output) >= 0)
    fig = quantizer.draw(v)
    assert [len(t.x) for t in fig.data][:3] == [len(quantizer.X)] * 3
    assert fig.layout.meta["alt"].startswith("Laplace weights on")


def test_the_curves_pass_through_the_chosen_point_and_have_one_peak():
    w = synthetic()
    v = quantizer.view(w, QuantizerState("tanh", 4, False, 0.6))
    best = quantizer.RANGES[v.sqnr_by_range.argmax()]
    peak = np.abs(w.values).max()
    # A Gaussian on 16 odd levels is clipped best at about 2.6 standard deviations (Max 1960: outer level 2.4).
    assert best * peak / w.values.std() == pytest.approx(2.6, abs=0.3)
    assert v.sqnr_by_bits.argmin() == 0 and v.sqnr_by_bits[3] == pytest.approx(v.sqnr_db, abs=0.3)
    sampled = np.interp(0.6, quantizer.RANGES, v.sqnr_by_range)
    assert sampled == pytest.approx(v.sqnr_db, abs=0.3)


def test_a_trained_layer_is_shown_as_it_was_trained(shelf, study):
    w = quantizer.weights_of(shelf, "stage 2, 5-bit tanh", "layer1")
    assert (w.trained.method, w.trained.bits, w.trained.per_channel) == ("tanh", 5, False)
    q = study.experiment.model(study.systems["stage 2, 5-bit tanh"]).quantizer(1)
    v = quantizer.view(w, w.trained)
    codes = q.codes().detach().numpy()
    counts = [np.sum(codes == c) for c in v.codes]
    np.testing.assert_allclose(v.usage_percent, 100 * np.array(counts) / codes.size, atol=0.05)


def test_float_weights_are_the_models_own(shelf, study):
    w = quantizer.weights_of(shelf, "float", "layer4")
    model = study.experiment.model(study.systems["float"])
    np.testing.assert_array_equal(w.values, model.dense[4].weight.detach().numpy())
    assert w.trained is None and w.values.shape == (2, 200)


def test_without_runs_there_are_synthetic_weights(tmp_path):
    shelf = Shelf(tmp_path)
    assert quantizer.sources(shelf) == {"synthetic weights": ["Gaussian", "Laplace", "rows of unequal size"]}
    assert quantizer.weights_of(shelf, "synthetic weights", "Laplace").values.std() == pytest.approx(0.05)
    with pytest.raises(ValueError, match="nothing is cached under the name 'float'; there is synthetic weights"):
        quantizer.weights_of(shelf, "float", "layer0")


def test_a_figure_keeps_its_traces_when_its_state_changes():
    w = synthetic()
    fig = quantizer.draw(quantizer.view(w, QuantizerState("tanh", 4)))
    traces = [(t.type, t.name, t.xaxis) for t in fig.data]
    before = [np.array(t.y) for t in fig.data]
    quantizer.apply(fig, quantizer.content(quantizer.view(w, QuantizerState("linear", 2, False, 0.3))))
    assert [(t.type, t.name, t.xaxis) for t in fig.data] == traces
    same = [t.name for a, t in zip(before, fig.data, strict=True) if np.array_equal(a, t.y)]
    assert same == ["before"], "the float weights are what they were, all else moves"
    fresh = quantizer.draw(quantizer.view(w, QuantizerState("linear", 2, False, 0.3)))
    assert fig.to_json() == fresh.to_json(), "updated in place it is what would be drawn anew"


def test_zero_weights_have_a_view():
    v = quantizer.view(quantizer.Weights("zero", np.zeros((2, 3))), QuantizerState("linear", 4))
    assert v.sqnr_db == 0 and v.clipped_percent == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": "cubic"}, "unknown quantizer 'cubic'"),
        ({"bits": 9}, "bits must be an integer from 1 to 8, got 9"),
        ({"clip": 0.0}, "the range is a positive share of the largest weight, got 0.0"),
    ],
)
def test_a_bad_state_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(QuantizerState(), **change)


def test_unknown_synthetic_weights_are_refused():
    with pytest.raises(ValueError, match="unknown weights 'Cauchy'; choose one of Gaussian"):
        synthetic("Cauchy")
