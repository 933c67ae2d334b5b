"""The network explorer: counts are those of the space and of real programs, pickers and notation say the same."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsbench.export.convolutional import convolutional_bytes
from kwsbench.integer.drawn_convolutional import draw_convolutional
from kwsbench.models.space import Cell, Description, NotationError, cost, network_of, parse, write
from kwsbench.reports.explore import network, views
from kwsbench.reports.explore.artifacts import Shelf
from kwsbench.reports.explore.network import LABELS, NetworkState
from kwsbench.reports.explore.panels import redraw
from kwsbench.resources.convolutional import needs
from kwsbench.training.pareto import networks_of
from kwsbench.training.search_record import SearchRecord, Trial, Trials

NOTATIONS = (network.START, "lfbe40 w12 5e3 7e1s skip h16", "raw w12 3e2s 5e1 h24", "sinc w8 skip 7e2s h12")


@pytest.mark.parametrize("state", [*map(NetworkState, NOTATIONS), *(NetworkState(name=n) for n in network.menu())])
def test_blocks_sum_to_the_cost_of_the_space(state):
    v = network.view(state)
    counted = cost(v.network)
    *rows, total = v.rows
    for key, value in (
        ("weights", counted.weights),
        ("macs_per_clip", counted.macs_per_clip),
        ("activations", counted.activations),
    ):
        assert sum(row[key] for row in rows) == total[key] == value
    assert v.cost == counted and v.needs.macs_per_second == pytest.approx(counted.macs_per_second)
    # The space counts a byte per value, two of a sum over frequency: what containers of 8 bits take.
    assert v.needs.ram_streaming_container_bytes == counted.peak_bytes_streaming
    assert v.needs.ram_whole_container_bytes == counted.peak_bytes_whole
    assert sum(row["state_bytes"] for row in rows) < v.needs.ram_streaming_bytes


@pytest.mark.parametrize("weight_bits, activation_bits", [(8, 8), (3, 5), (1, 2), (5, 1)])
def test_bytes_are_those_of_a_program_with_real_codes(weight_bits, activation_bits):
    widths = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    v = network.view(NetworkState("mfcc10 w12 5e2s skip 3e1 h16", **widths))
    drawn = draw_convolutional(v.network, **widths)
    real = needs(drawn)
    assert v.packed_bytes == convolutional_bytes(drawn)["weights"]
    for name in ("macs_per_clip", "ram_streaming_bytes", "ram_whole_bytes", "bits_per_weight", "bits_per_activation"):
        assert getattr(v.needs, name) == getattr(real, name), name
    assert v.totals()["weights (kB)"] == pytest.approx(v.packed_bytes / 1000)


def test_narrower_is_smaller():
    sizes = [network.view(NetworkState(weight_bits=b, activation_bits=b)) for b in range(1, 9)]
    assert all(a.packed_bytes < b.packed_bytes for a, b in pairwise(sizes))
    assert all(a.needs.ram_streaming_bytes < b.needs.ram_streaming_bytes for a, b in pairwise(sizes))
    assert len({v.rows[-1]["weights"] for v in sizes}) == 1


def test_blocks_are_called_as_they_are_written():
    v = network.view(NetworkState("mfcc10 w8 7e2s skip 5e1 h8"))
    blocks = [row["block"] for row in v.rows]
    assert blocks == ["input", "stem", "cell1 (7e2s)", "cell3 (5e1)", "head", "pool", "output", "total"]
    assert list(network.draw(v).layout.xaxis.ticktext) == ["stem", "7e2s", "5e1", "head", "pool", "output"]
    assert v.rows[2]["output"] == "12 x 5 x 8"


# ------------------------------------------------------------ what cannot be shown


def test_a_mistake_is_pointed_at():
    with pytest.raises(NotationError) as caught:
        network.view(NetworkState("mfcc10 w32 7e2s 7<b>2 h64"))
    _, text, caret = str(caught.value).split("\n")
    assert text[caret.index("^")] == "<"
    shown = network.error_html(str(caught.value))
    assert shown.startswith("<pre") and "7&lt;b&gt;2" in shown and f"\n{caret}</pre>" in shown


@pytest.mark.parametrize(
    "state, message",
    [
        (NetworkState("mfcc50 w8 3e1 h8"), "mfcc has 10 to 40 bins, not 50"),
        (NetworkState("mfcc10 w8 3e1s 3e1s 3e1s 3e1s 3e1s h8"), "so many strides leave no frame"),
        (NetworkState("mfcc10 w9999 3e1 h8"), r"weights; at most 4,000,000 are counted at once: take fewer channels"),
        (NetworkState(name="LeNet"), "no network 'LeNet' on the menu: MFCC, raw, DS-CNN, feedforward 250K$"),
    ],
)
def test_what_cannot_be_built_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        network.view(state)


@pytest.mark.parametrize("widths", [{"weight_bits": 0}, {"activation_bits": 9}])
def test_bad_widths_are_refused(widths):
    with pytest.raises(ValueError, match="bits must be an integer from 1 to 8, got"):
        NetworkState(**widths)


# ------------------------------------------------------------ pickers


CELLS = st.builds(network.picked, st.sampled_from((0, *network.KERNELS)), st.integers(1, 9), st.booleans())


@settings(max_examples=50)
@given(st.sampled_from(network.FRONTS), st.integers(1, 99), st.lists(CELLS, min_size=1, max_size=6), st.integers(1, 20))
def test_what_pickers_say_is_what_the_notation_says(front, width, cells, count):
    said = network.resized(Description(front, width, tuple(cells), 16), count)
    assert parse(write(said)) == said and len(said.cells) == count
    kept = min(count, len(cells))
    assert said.cells[:kept] == tuple(cells[:kept])
    assert all(cell is None or not cell.strided for cell in said.cells[kept:]), "a repeated cell has no stride"


def test_pickers_offer_what_the_notation_says():
    assert network.offered((3, 5, 7), 5) == [3, 5, 7]
    assert network.offered((3, 5, 7), 4) == [3, 4, 5, 7]
    assert network.picked(0, 3, True) is None and network.picked(5, 3, True) == Cell(5, 3, True)
    with pytest.raises(ValueError, match="at least one cell, got 0"):
        network.resized(parse(network.START), 0)


# ------------------------------------------------------------ what is there by name


def test_the_command_names_what_is_shown():
    assert network.view(NetworkState()).command == f'kwsbench pareto --network "{network.START}"'
    v = network.view(NetworkState(name="feedforward 250K"))
    assert v.command == 'kwsbench pareto --menu "feedforward 250K"'
    assert networks_of("default", LABELS, names=["feedforward 250K"])["feedforward 250K"] == v.network
    assert "user-select: all" in network.command_html(v.command) and "&quot;feed" in network.command_html(v.command)


def test_what_searches_found_is_listed_and_damage_passed_over(tmp_path):
    record = SearchRecord(
        network.START,
        (("7e2s",),),
        (np.ones((1, 1)),),
        {name: np.zeros(1) for name in SearchRecord.CURVES},
    )
    (tmp_path / "search-proxyless-0123456789abcdef").mkdir()
    record.save(tmp_path / "search-proxyless-0123456789abcdef" / "record.npz")
    trials = Trials("random", (Trial(0, NOTATIONS[2], 1, 1, 1, steps=5, loss=1.0, accuracy=0.5),))
    for folder, written in (
        ("search-random-ffff456789abcdef", json.dumps(trials.to_json())),
        ("search-random-dddd456789abcdef", "{}"),
        ("search-optuna-eeee456789abcdef", json.dumps(trials.to_json())[:-9]),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "trials.json").write_text(written)
    (tmp_path / "search-optuna-unfinished").mkdir()
    assert network.found(tmp_path) == {
        f"proxyless 012345: {network.START}": network.START,
        f"random ffff45: {NOTATIONS[2]}": NOTATIONS[2],
    }
    assert network.found(tmp_path / "nowhere") == {}


# ------------------------------------------------------------ figures


def test_a_figure_becomes_what_would_be_drawn_anew():
    fig = network.draw(network.view(NetworkState()))
    traces = list(fig.data)
    redraw(fig, network.draw(network.view(NetworkState(network.START, weight_bits=2))))
    assert all(a is b for a, b in zip(traces, fig.data)), "another width leaves the boxes where they are"
    for state in (NetworkState("raw w8 3e1 9e2s h8"), NetworkState(name="DS-CNN"), NetworkState()):
        fresh = network.draw(network.view(state))
        redraw(fig, fresh)
        assert json.loads(fig.to_json()) == json.loads(fresh.to_json())
    assert fig.layout.meta["alt"].startswith(f"{network.START}: 20,864 weights in 22.5 kB, 1.89 million MACs")


def test_in_batch_a_figure_and_two_tables(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(views, "show", lambda *given: shown.append(given))
    monkeypatch.setattr(views, "show_table", lambda *given: shown.append(given))
    v = views.network_explorer(Shelf(tmp_path), live=False)
    (figure, first), (blocks, second), (totals, third) = shown
    assert json.loads(figure.to_json()) == json.loads(network.draw(v).to_json())
    assert f"12 labels. `{v.command}` trains it" in first and "weights at 8 and activations at 8 bits" in second
    assert "<td>cell1 (7e2s)</td>" in blocks and "per second" in totals and len(third) > 20
    assert network_of(v.name, LABELS) == v.network
