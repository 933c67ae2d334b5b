"""The live explorers without a browser: a control moves, the same figure changes, mistakes are told."""

from __future__ import annotations

import numpy as np
import pytest

from kwsbench.reports.explore import monitor
from kwsbench.reports.explore.artifacts import Shelf
from kwsbench.training.background import Progress

pytest.importorskip("ipywidgets")
widgets = pytest.importorskip("kwsbench.reports.explore.widgets")


def ys(figure):
    return [None if t.y is None else np.array(t.y, float).tolist() for t in figure.data]


def test_every_quantizer_control_changes_the_same_figure(tmp_path):
    explorer = widgets.QuantizerExplorer(Shelf(tmp_path))
    figure = explorer.figure
    for control, value in (
        (explorer.bits, 2),
        (explorer.clip, 0.3),
        (explorer.method, "linear"),
        (explorer.per_channel, True),
        (explorer.layer, "Laplace"),
    ):
        before = ys(figure)
        control.value = value
        assert ys(figure) != before, control.description
    assert explorer.figure is figure and explorer.view.state.bits == 2


def test_another_source_sets_the_controls_to_what_was_trained(shelf):
    explorer = widgets.QuantizerExplorer(shelf)
    assert explorer.source.value == "stage 2, 5-bit tanh" and explorer.bits.value == 5
    explorer.source.value = "synthetic weights"
    assert explorer.layer.value == "Gaussian" and explorer.view.name == "Gaussian weights"
    explorer.source.value = "stage 1, 5-bit tanh"
    assert explorer.layer.options == tuple(f"layer{i}" for i in range(5)) and explorer.bits.value == 5


def test_the_annealing_explorer_follows_its_slider(shelf):
    explorer = widgets.AnnealingExplorer(widgets.annealing.Annealings(shelf))
    figure, record = explorer.figure, explorer.annealings.records["stage 1, 2-bit general"]
    last = len(record.step) - 1
    assert (explorer.snapshot.index, explorer.play.value, explorer.play.max) == (last, last, last)
    assert [label for label, _ in explorer.snapshot.options] == [f"{int(s):,}" for s in record.step]
    explorer.snapshot.set_state({"index": 3})  # as the page says it, by hand or while it plays
    np.testing.assert_array_equal(figure.data[1].x, record.layers["layer0"].levels[3])
    explorer.layer.value = "layer4"
    assert explorer.view.state.snapshot == 3 and explorer.figure is figure
    np.testing.assert_array_equal(figure.data[1].x, record.layers["layer4"].levels[3])
    assert explorer.status.value == explorer.view.told() and "layer4" in explorer.status.value
    assert (explorer.link.source, explorer.link.target) == ((explorer.play, "value"), (explorer.snapshot, "index"))


def test_another_stage_brings_its_own_snapshots_and_layers(shelf):
    annealings = widgets.annealing.Annealings(shelf)
    (name, record) = next(iter(annealings.records.items()))
    arrays = {k: v if k == "steps" else v[::3] for k, v in record.arrays().items() if not k.startswith("layer4")}
    annealings.records["thinner"] = type(record).from_arrays(arrays)
    explorer = widgets.AnnealingExplorer(annealings)
    explorer.layer.value = "layer4"
    explorer.system.value = "thinner"
    assert explorer.layer.value == "layer0" and explorer.layer.options == tuple(f"layer{i}" for i in range(4))
    assert explorer.play.max == len(explorer.snapshot.options) - 1 == len(record.step[::3]) - 1
    assert explorer.view.state == widgets.annealing.AnnealingState("thinner", "layer0", explorer.play.max)
    explorer.system.value = name
    assert explorer.play.max == explorer.view.state.snapshot == len(record.step) - 1


def test_the_det_explorer_follows_sliders_and_clicks(study):
    explorer = widgets.DetExplorer(study)
    lowest = explorer.threshold.min  # everything fires there, whatever the models learned
    drawn = lambda: [np.array(v).tolist() for t in explorer.figure.data for v in (t.x, t.y)]  # noqa: E731
    for control, value in ((explorer.threshold, lowest), (explorer.smoothing, 5), (explorer.refractory, 0.3)):
        before = drawn()
        control.value = value
        assert drawn() != before, control.description
    curve = explorer.figure.data[widgets.det.MAX_SYSTEMS]
    explorer._clicked(0, curve, type("P", (), {"point_inds": [3]})(), None)
    assert explorer.inspected.value == "float"
    assert explorer.view.point.threshold == pytest.approx(float(curve.customdata[3][0]), abs=1e-6)
    assert f"{explorer.view.point.misses} of" in explorer.table.value


def test_mistakes_are_listed_and_played(study):
    explorer = widgets.DetExplorer(study)
    explorer.threshold.value = explorer.threshold.min
    explorer.kind.value = "false accepts"
    assert len(explorer.mistakes.options) == len(explorer.view.false_accepts) > 0
    explorer.mistakes.value = 0
    explorer.play.click()
    (player,) = explorer.player.children
    assert player.value[:4] == b"RIFF" and "as the test set heard it" in explorer.status.value


def test_a_bad_choice_is_told_not_lost(study):
    explorer = widgets.DetExplorer(study)
    explorer.systems.value = ()
    assert "choose one to 6 systems" in explorer.status.value


def test_widths_move_bytes_and_the_button_measures(study):
    explorer = widgets.ResourceExplorer(study)
    bytes_before = explorer.view.total_bytes
    explorer.bits[0].value = 1
    assert explorer.view.total_bytes < bytes_before
    measured = len(explorer.view.measured)
    explorer.bits[1].value = 3
    explorer.measure.click()
    assert len(explorer.view.measured) == measured + 1 and not explorer.measure.disabled
    assert "measured on the whole test split in" in explorer.status.value
    explorer.resources.study.experiment.workers = 1


def test_every_picker_writes_the_notation(tmp_path):
    explorer = widgets.NetworkExplorer(tmp_path)
    figure, first, second = explorer.figure, *explorer.rows[:2]
    for control, value, written in (
        (explorer.front, "raw", "raw w32 7e2s 7e2 skip 5e1 h64"),
        (explorer.channels, 24, "raw w24 7e2s 7e2 skip 5e1 h64"),
        (explorer.head, 80, "raw w24 7e2s 7e2 skip 5e1 h80"),
        (explorer.cells, 5, "raw w24 7e2s 7e2 skip 5e1 5e1 h80"),
        (explorer.cells, 2, "raw w24 7e2s 7e2 h80"),
        (first.kernel, 3, "raw w24 3e2s 7e2 h80"),
        (first.expansion, 6, "raw w24 3e6s 7e2 h80"),
        (second.strided, True, "raw w24 3e6s 7e2s h80"),
        (second.kernel, 0, "raw w24 3e6s skip h80"),
    ):
        before = figure.to_json()
        control.value = value
        assert explorer.field.value == explorer.view.network.notation == written
        assert widgets.parse(written) == explorer.description and explorer.status.value == ""
        assert figure.to_json() != before and written in explorer.command.value
    assert explorer.figure is figure
    assert second.expansion.disabled and len(explorer.row_box.children) == 2


def test_the_field_moves_the_pickers_beyond_what_they_offer(tmp_path):
    explorer = widgets.NetworkExplorer(tmp_path)
    explorer.field.value = "mfcc13 w130 11e7s skip h5"
    assert (explorer.front.value, explorer.channels.value, explorer.head.value) == ("mfcc13", 130, 5)
    assert explorer.rows[0].cell == explorer.description.cells[0] == widgets.Cell(11, 7, True)
    assert explorer.view.network.notation == explorer.field.value
    explorer.channels.value = 8
    assert explorer.field.value == "mfcc13 w8 11e7s skip h5"


def test_a_mistyped_notation_leaves_the_last_network(tmp_path):
    explorer = widgets.NetworkExplorer(tmp_path)
    view, figure = explorer.view, explorer.figure.to_json()
    explorer.field.value = "mfcc10 w32 7e2s 7q h64"
    assert "not &#x27;7q&#x27;" in explorer.status.value and "^</pre>" in explorer.status.value
    explorer.weight_bits.value = 3
    assert explorer.view is view and explorer.figure.to_json() == figure
    explorer.head.value = 72  # a picker goes on from what is shown
    assert explorer.status.value == "" and explorer.field.value == "mfcc10 w32 7e2s 7e2 skip 5e1 h72"
    explorer.field.value = "mfcc10 w32 1e2 h72"
    explorer.rows[0].strided.value = True
    assert "with stride a kernel of 2" in explorer.status.value and explorer.view.name == "mfcc10 w32 1e2 h72"


def test_networks_by_name_are_shown_until_something_is_written(tmp_path):
    explorer = widgets.NetworkExplorer(tmp_path)
    explorer.chosen.value = "DS-CNN"
    assert explorer.view.name == "DS-CNN" and "22,016" in explorer.table.value
    explorer.activation_bits.value = 4
    assert explorer.view.name == "DS-CNN" and explorer.view.needs.bits_per_activation == 4
    explorer.field.value += " "
    assert explorer.chosen.value == "" and explorer.view.name == widgets.network.START
    explorer.chosen.value = "raw"
    assert explorer.field.value == explorer.menu["raw"].notation == explorer.view.name
    explorer.cells.value += 1
    assert explorer.chosen.value == "" and explorer.view.name == f"{explorer.menu['raw'].notation[:-4]} 5e1 h64"


def test_the_monitor_says_what_a_job_says(tmp_path):
    explorer = widgets.TrainingMonitor(str(tmp_path))
    assert explorer.status.value == "not started" and explorer.stop.disabled and not explorer.train.disabled
    history = {"step": [0, 20], "loss": [0.7, 0.5], "error": [0.5, 0.2]}
    progress = Progress("training", "float", 1, "float", 30, 120, 42.0, {"float": history})
    assert monitor.told(progress, True) == "float: float, 25%, step 30 of 120, about 42 s left"
    assert "ended without a word" in monitor.told(progress, False)
    assert "disk" in monitor.told(Progress("failed", "float", 1, message="OSError: disk"), False)
    fig = monitor.draw({"float": history})
    assert list(fig.data[0].y) == [0.7, 0.5] and list(fig.data[3].y) == [50, 20]
