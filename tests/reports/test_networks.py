"""Figures of searches, networks, widths and fronts: what they say is what came in."""

import numpy as np
import pytest

from kwsbench.models.layers import Add, Conv, Front, Network, Output, Pool
from kwsbench.reports.networks import network_drawing, pareto_figure, search_slider, widths_over_training


@pytest.fixture
def network():
    layers = (
        Conv("stem", 1, 8, (40, 1), (20, 1)),
        Conv("cell1_expand", 8, 16),
        Conv("cell1_depthwise", 16, 16, (7, 1), depthwise=True),
        Conv("cell1_project", 16, 8, relu=False),
        Add("cell1_add", "stem"),
        Pool("pool", 50),
        Output("output", 8, 2),
    )
    return Network(Front("raw"), ("_other_", "happy"), layers, "raw w8 7e2")


def test_the_slider_has_a_position_per_snapshot_and_leaves_out_what_a_cell_lacks():
    p = np.array([[[0.5, 0.5], [1.0, np.nan]], [[0.25, 0.75], [1.0, np.nan]]])
    fig = search_slider(p, ["3e1", "skip"], [0, 1200], ["start", "end"])
    positions = fig.layout.sliders[0].steps
    assert [s.label for s in positions] == ["0", "1,200"]
    assert positions[0].args[0]["z"][0] == [[50, 50], [100, None]]
    assert [list(row) for row in fig.data[0].z] == [[25, 75], [100, None]]
    assert fig.layout.annotations[0].text == "end"
    with pytest.raises(ValueError, match="1 steps, 2 notes"):
        search_slider(p, ["3e1", "skip"], [0], ["start", "end"])


def test_a_drawing_has_a_box_per_block_and_an_arc_per_addition(network):
    fig = network_drawing(network, {"cell1": "7e2"})
    boxes = [t for t in fig.data if t.type == "bar"]
    assert [b.y[0] for b in boxes] == [8, 16, 8, 2]
    assert list(fig.layout.xaxis.ticktext) == ["stem", "7e2", "pool", "output"]
    assert [a.text for a in fig.layout.annotations] == ["800", "800", "800", "800"]
    assert sum(t.type == "scatter" for t in fig.data) == 1
    assert "cell1_depthwise: 7x1 depthwise -&gt; 800 x 1 x 16" in boxes[1].hovertemplate.replace("->", "-&gt;")
    assert "raw w8 7e2" in fig.layout.meta["alt"]


def test_widths_are_rows_and_steps_columns():
    fig = widths_over_training([0, 10], {"a": [8, 4], "b": [8, 2.5]})
    assert [list(r) for r in fig.data[0].z] == [[8, 4], [8, 2.5]] and list(fig.data[0].y) == ["a", "b"]
    with pytest.raises(ValueError, match="nothing to draw"):
        widths_over_training([], {})
    with pytest.raises(ValueError, match="2 steps, but 1 widths of 'b'"):
        widths_over_training([0, 10], {"a": [8, 4], "b": [8]})


@pytest.mark.parametrize(
    "values", [(1.03, 1.22), (0.43, 3.59), (7, 107), (1.08, 2.43), (20, 21), (1, 1), (0.001, 0.0011), (5e3, 9.9e4)]
)
def test_a_logarithmic_axis_is_read_by_three_to_seven_round_numbers(values):
    points = [{"name": "a", "x": x, "y": 1, "low": 0, "high": 2} for x in values]
    axis = pareto_figure({"all": points}, "x", "y").layout.xaxis
    assert 3 <= len(axis.tickvals) <= 7 and axis.tickvals[0] > 0
    assert list(axis.tickvals) == sorted(axis.tickvals) and [float(t) for t in axis.ticktext] == list(axis.tickvals)
    assert axis.tickvals[0] <= 1.5 * min(values) and axis.tickvals[-1] >= max(values) / 1.8


def test_a_front_of_one_point_has_no_place_in_the_legend():
    points = [{"name": n, "x": x, "y": y, "low": y, "high": y} for n, x, y in (("a", 10, 80), ("b", 20, 90))]
    shown = [pareto_figure({"all": p}, "x", "y").data[0].showlegend for p in (points, points[:1])]
    assert shown == [True, False]


def test_groups_are_told_apart_beyond_a_round_of_colours():
    points = [{"name": "a", "x": 1, "y": 1, "low": 0, "high": 2}]
    marks = pareto_figure({str(i): points for i in range(42)}, "x", "y").data[1:]
    assert len({(m.marker.color, m.marker.symbol) for m in marks}) == 42


def test_the_front_connects_what_nothing_beats():
    points = [{"name": n, "x": x, "y": y, "low": y - 1, "high": y + 2} for n, x, y in (("a", 10, 90), ("b", 20, 80))]
    fig = pareto_figure({"8 bits": points[:1], "2 bits": points[1:]}, "flash (kB)", "accuracy (%)")
    assert (list(fig.data[0].x), list(fig.data[0].y)) == ([10], [90])
    assert list(fig.data[1].error_y.array) == [2] and list(fig.data[1].error_y.arrayminus) == [1]
    elsewhere = [p | {"on_front": p["name"] == "b"} for p in points]
    assert list(pareto_figure({"all": elsewhere}, "flash (kB)", "accuracy (%)").data[0].x) == [20]
    with pytest.raises(ValueError, match="positive x"):
        pareto_figure({"none": []}, "x", "y")
