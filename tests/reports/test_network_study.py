"""What notebooks 09 and 10 count, by hand and by brute force."""

import numpy as np
import pytest

from kwsbench.integer.convolution import Conv
from kwsbench.integer.drawn_convolutional import draw_convolutional
from kwsbench.models.space import cost, network_of
from kwsbench.reports import general_study
from kwsbench.reports import network_study as study
from kwsbench.training import recognition
from kwsbench.training.widths import WidthRecord

LABELS = ("_other_", "happy", "cat")


def entry(name, quantization, accuracy, flash):
    return {
        "network": name,
        "quantization": quantization,
        "accuracy": {"mean": accuracy},
        "low": accuracy - 0.1,
        "high": accuracy + 0.05,
        "macs_per_clip": 2_500_000,
        "flash_bytes": {"mean": flash},
        "bits_per_weight": {"mean": 4.0},
        "bits_per_activation": {"mean": 5.0},
        "on_front": True,
    }


def test_networks_are_told_with_their_costs_and_cells():
    net = network_of("mfcc10 w8 7e2s skip 3e1 h16", LABELS)
    (row,) = study.candidate_rows({"it": net})
    c = cost(net)
    assert (row["weights"], row["MMACs per clip"]) == (c.weights, c.macs_per_clip / 1e6)
    assert study.cell_labels(net) == {"cell1": "7e2s", "cell3": "3e1"}


def test_points_and_rows_of_a_front_are_in_percent_kilobytes_and_millions():
    summary = [entry("MFCC", "8 bits", 0.9, 20_000), entry("raw", "8 bits", 0.8, 10_000)]
    points = study.pareto_points(summary, "flash_bytes")
    assert list(points) == ["8 bits"]
    drawn = {"name": "MFCC, 8 bits", "x": 20.0, "y": 90.0, "low": 80.0, "high": 95.0}
    assert points["8 bits"][0] == drawn | {"on_front": True}
    assert study.pareto_points(summary, "macs_per_clip")["8 bits"][1]["x"] == 2.5
    assert list(study.pareto_points(summary, "macs_per_clip", "network")) == ["MFCC", "raw"]
    row = study.pareto_rows(summary)[0]
    assert (row["accuracy_percent"], row["95% interval"], row["on the front"]) == (90.0, "80.0 to 95.0", "yes")
    assert row["from float (points)"] is None


@pytest.mark.parametrize("notation", ["mfcc10 w8 3e2s 3e1 h16", "raw w8 3e2s h16"])
def test_streams_and_kernels_are_compared_value_by_value(notation, monkeypatch):
    raw = notation.startswith("raw")
    program = draw_convolutional(network_of(notation, LABELS), frames=4000 if raw else 64, seed=1)
    rng = np.random.default_rng(0)
    shape = (2, 4000, 1) if raw else (2, 30, 10)
    clips = (rng.normal(size=shape) * (0.1 if raw else 1)).astype(np.float32)
    rows = study.streaming_rows(program, clips)
    assert [row["different"] for row in rows] == [0, 0, 0, 0] and all(row["outputs"] > 0 for row in rows)

    # A stream that forgets is found out: the first convolution's memory is emptied between two pieces.
    honest = study.convolution_run.step

    def forgetful(p, x, state, backend):
        first = next(i for i, o in enumerate(p.operations) if isinstance(o, Conv))
        emptied = tuple(np.zeros_like(s) if i == first else s for i, s in enumerate(state))
        return honest(p, x, emptied, backend)

    monkeypatch.setattr(study.convolution_run, "step", forgetful)
    assert sum(row["different"] for row in study.streaming_rows(program, clips)[:3]) > 0


def test_widths_are_told_first_and_last_and_in_the_mean():
    record = WidthRecord(
        np.array([0, 10]), ("stem.weight", "stem.output"), np.array([[8.0, 8.0], [3.0, 5.0]]), np.array([1.0, 0.0])
    )
    expected = {"weights, first": 8.0, "weights, last": 3.0, "outputs, first": 8.0, "outputs, last": 5.0}
    assert study.width_rows(record) == [{"layer": "stem"} | expected]
    assert study.mean_widths(record) == [8.0, 4.0]
    assert study.key("trained width, 3 bits") == "trained_width_3_bits"


def test_conclusions_name_what_was_found_and_how_sure_it_is():
    summary = [entry("proxyless", "float", 0.9, 20_000), entry("random", "float", 0.92, 20_000)]
    found = {"proxyless": "mfcc10 w8 3e1 h16", "random": "mfcc10 w8 3e2 h16"}
    clips = np.arange(200)
    alike = study.search_differences({"proxyless": clips % 10 > 0, "random": clips % 10 > 1}, clips)
    assert alike["random"].mean == pytest.approx(0.1)
    told = study.search_conclusion({"summary": summary}, found, alike)
    assert "against random +10.0 points (95% +" in told and "speaks for these networks" in told
    same = study.search_differences({"proxyless": clips % 10 > 0, "random": clips % 10 < 9}, clips)
    assert "no difference is shown" in study.search_conclusion({"summary": summary}, found, same)
    assert "At equal cost" not in study.search_conclusion({"summary": summary}, {"proxyless": "x"}, {})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shown_layer": 5}, "shown_layer is 0 to 4, got 5"),
        ({"recognizers": "huge"}, "recognizers is one of tiny, smoke, default, full"),
        ({"encoders": ["gru"]}, "encoders are some of lstm, conformer"),
        ({"bits": [9]}, "9"),
    ],
)
def test_parameters_of_notebook_08_are_refused_before_any_work(changes, message):
    good = {"shown_layer": 1, "recognizers": "", "encoders": ["lstm"], "bits": [4, 1]}
    general_study.check_parameters(**good)
    with pytest.raises(ValueError, match=message):
        general_study.check_parameters(**good | changes)
    assert general_study.ENCODERS == recognition.ENCODERS and set(general_study.EFFORTS) == set(recognition.PROFILES)
