"""Figures of centroids: every slider position carries its own arrays, nothing is lost on the way, bad input is told."""

from __future__ import annotations

import numpy as np
import pytest

from kwsbench.reports import centroids

X = np.linspace(-1, 1, 201)
STEPS = [0, 500, 1000]
SHARPNESS = (2.0, 10.0, 80.0)
RESPONSES = [0.5 * np.tanh(a * X) for a in SHARPNESS]
LEVELS = np.array([[-0.3, 0.3], [-0.4, 0.45], [-0.5, 0.5]])
USAGE = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
NOTES = [f"sharpness {a:g} <hard & fast>" for a in SHARPNESS]


def slider(**changed):
    given = {"x": X, "responses": RESPONSES, "levels": LEVELS, "usage": USAGE, "steps": STEPS, "notes": NOTES}
    return centroids.annealing_slider(**(given | changed))


def test_every_position_of_the_slider_carries_its_snapshot():
    fig = slider()
    (control,) = fig.layout.sliders
    assert [step.label for step in control.steps] == ["0", "500", "1,000"] and control.active == 2
    for s, step in enumerate(control.steps):
        data, layout = step.args
        assert step.method == "update" and len(data["x"]) == len(fig.data) == 2
        along = np.linspace(-1, 1, 20001)
        drawn = np.interp(along, data["x"][0], data["y"][0])
        away = [np.hypot((along - x) / 2, drawn - y).min() for x, y in zip(X, RESPONSES[s])]
        assert len(data["x"][0]) < 60 and max(away) < 0.003, "the thinned curve lies on the whole one"
        np.testing.assert_allclose(data["x"][1], LEVELS[s])
        np.testing.assert_allclose(data["y"][1], LEVELS[s])
        np.testing.assert_allclose(data["marker.size"][1], centroids.marker_sizes(USAGE[s]), atol=0.05)
        assert layout == {"annotations[0].text": f"sharpness {SHARPNESS[s]:g} &lt;hard &amp; fast&gt;"}


def test_paper_shows_the_last_position():
    fig = slider()
    data, layout = fig.layout.sliders[0].steps[-1].args
    for i, trace in enumerate(fig.data):
        np.testing.assert_array_equal(trace.x, data["x"][i])
        np.testing.assert_array_equal(trace.y, data["y"][i])
    assert list(fig.data[1].marker.size) == data["marker.size"][1]
    assert fig.layout.annotations[0].text == layout["annotations[0].text"]
    assert fig.layout.meta["alt"] == "A quantizer while it anneals: 3 snapshots from step 0 to 1000, 2 levels."


def test_no_level_leaves_the_plot_at_any_position():
    low, high = slider(levels=10 * LEVELS).layout.yaxis.range
    assert low < -5 and high > 5
    assert slider().layout.yaxis.range[1] < 0.7, "small levels fill it"


@pytest.mark.parametrize("name", ["responses", "levels", "usage", "steps", "notes"])
def test_one_of_everything_per_snapshot(name):
    given = {"responses": RESPONSES, "levels": LEVELS, "usage": USAGE, "steps": STEPS, "notes": NOTES}
    with pytest.raises(ValueError, match=r"one of everything per snapshot, got \[2, 3\] of them"):
        slider(**{name: given[name][:2]})


def test_no_snapshot_is_no_slider():
    with pytest.raises(ValueError, match=r"got \[0\] of them"):
        slider(responses=[], levels=LEVELS[:0], usage=USAGE[:0], steps=[], notes=[])


def test_areas_are_in_proportion_to_shares_and_no_level_vanishes():
    sizes = centroids.marker_sizes(np.array([1.0, 0.25, 0.01, 0.0]))
    np.testing.assert_allclose(sizes[:3] ** 2 / sizes[0] ** 2, [1, 0.25, 0.01])
    assert 2 <= sizes[3] < sizes[2]


@pytest.mark.parametrize("count", [1, 2, 16, 17, 256])
def test_an_even_choice_of_paths_keeps_the_outermost(count):
    chosen = centroids.drawn_levels(count)
    assert len(chosen) == min(count, centroids.PATHS) and {0, count - 1} <= {*chosen.tolist()}
    assert np.ptp(np.diff(chosen)) <= 1 if count > 1 else True


@pytest.mark.parametrize("count, told", [(2, "2 levels over 1,000 steps"), (64, "16 of 64 levels over 1,000 steps")])
def test_paths_are_those_of_the_levels(count, told):
    levels = np.cumsum(np.ones((3, count)), axis=1) + np.arange(3)[:, None]
    fig = centroids.centroid_paths(np.array(STEPS), levels, 800, "Mine")
    assert fig.layout.meta["alt"] == f"Mine: {told}."
    for trace, j in zip(fig.data, centroids.drawn_levels(count), strict=True):
        assert trace.name == f"level {j}" and list(trace.x) == STEPS and list(trace.y) == levels[:, j].tolist()
    assert fig.layout.shapes[0].x0 == fig.layout.annotations[0].x == 800


@pytest.mark.parametrize("hard_from, anchor", [(0, "left"), (800, "right")])
def test_a_note_near_the_edge_does_not_stretch_the_axis(hard_from, anchor):
    fig = centroids.centroid_paths(np.array(STEPS), LEVELS, hard_from)
    assert fig.layout.annotations[0].xanchor == anchor and tuple(fig.layout.xaxis.range) == (0, 1010)


def test_levels_lie_on_a_common_scale():
    fig = centroids.spacing_figure({"a <b>": np.array([-3, -1, 1, 3]), "c": np.array([-0.5, 0.1])})
    np.testing.assert_allclose(fig.data[0].x, [-1, -0.3333, 0.3333, 1])
    np.testing.assert_allclose(fig.data[1].x, [-1, 0.2])
    assert fig.data[0].y == ("a &lt;b&gt;",) * 4 and fig.layout.meta["alt"] == "Where the levels lie: a <b>, c."
    with pytest.raises(ValueError, match="needs at least one codebook"):
        centroids.spacing_figure({})
    with pytest.raises(ValueError, match="'zero' has no level but 0"):
        centroids.spacing_figure({"zero": np.zeros(2)})


def test_what_a_matrix_minds_keeps_its_figure_where_the_axis_ends():
    fig = centroids.sensitivity_figure(["a", "b"], {"4 bits": [0.2, -0.01], "2 bits": [1.0, 0.0005]}, "loss")
    assert fig.layout.xaxis.type == "log" and list(fig.data[0].x) == [0.2, 0.001]
    assert list(fig.data[0].customdata) == [0.2, -0.01], "the pointer tells what was measured"
    assert list(fig.data[1].x) == [1.0, 0.001] and list(fig.data[1].y) == ["a", "b"]
    assert fig.layout.meta["alt"] == "What each matrix minds: 2 matrices at 4 bits, 2 bits."


@pytest.mark.parametrize(
    "matrices, increases, message",
    [
        (["a"], {"4 bits": [0.0], "2 bits": [-1.0]}, "no matrix minds at all: every increase is 0 or below"),
        (["a", "b"], {"4 bits": [0.1]}, "2 matrices, but 1 values of '4 bits'"),
        ([], {}, "needs at least one matrix and one width"),
        (["a"], {"4 bits": [float("nan")]}, "no increase of '4 bits' at 'a'"),
    ],
)
def test_bad_sensitivities_are_refused(matrices, increases, message):
    with pytest.raises(ValueError, match=message):
        centroids.sensitivity_figure(matrices, increases, "loss")
