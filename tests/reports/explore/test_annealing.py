"""The annealing explorer shows what was recorded: the right snapshot, the formula's curve, findings in words."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from kwsbench.quantizers.annealing import AnnealingRecord, LayerAnnealing, snapshot_steps
from kwsbench.reports.explore import annealing, open_shelf, views
from kwsbench.reports.explore.annealing import Annealings, AnnealingState
from kwsbench.reports.explore.artifacts import Shelf
from kwsbench.training.experiment import ANNEALING

STEPS = np.array([0, 40, 79, 80, 100])
SHARPNESS = np.array([2.0, 15.0, 96.0, np.inf, np.inf])


def expanded(z, mu):
    return np.sign(z) * ((1 + mu) ** np.abs(z) - 1) / mu


def made_layer(levels: int = 4, seed: int = 0) -> LayerAnnealing:
    """Centroids that wander, on codes of a 127th of the largest; usage and the rest made up."""
    rng = np.random.default_rng(seed)
    z = np.sort(np.linspace(-0.7, 0.7, levels) + rng.normal(0, 0.3 / levels, (len(STEPS), levels)), axis=1)
    mu = np.array([2.0, 1.9, 1.8, 1.7, 1.7])
    usage = rng.dirichlet(np.ones(levels), len(STEPS))
    exact = expanded(z, mu[:, None])
    step = np.abs(exact).max(1, keepdims=True) / 127
    return LayerAnnealing(
        levels=np.round(exact / step) * step,
        z=z,
        usage=usage,
        mu=mu,
        scale=np.full((len(STEPS), 1), 0.3),
        sharpness=SHARPNESS,
        entropy_bits=-(usage * np.log2(usage)).sum(1),
        distinct=np.full(len(STEPS), float(levels)),
        undecided=np.array([1.0, 0.3, 0.1, 0.0, 0.0]),
        gap=np.array([0.4, 0.2, 0.02, 0.0, 0.0]),
        changed=np.array([0.0, 0.2, 0.1, 0.01, 0.0]),
        weights=np.full(len(STEPS), 5000.0),
    )


def made(**layers: LayerAnnealing) -> Annealings:
    found = Annealings(Shelf(root=None))  # type: ignore[arg-type]
    found.records["mine"] = AnnealingRecord(100, STEPS, np.array([1.0, 0.8, 0.3, 0.3, 0.1]), layers)
    return found


ANNEALED = made(layer0=made_layer(), layer1=made_layer(32, 1))


def test_records_are_found_without_opening_a_model(shelf, experiment, monkeypatch):
    monkeypatch.setattr(type(experiment), "model", lambda *_: pytest.fail("a model was opened"))
    found = Annealings(shelf)
    assert list(found.records) == ["stage 1, 2-bit general"] and found.left_out == ()
    state = found.start()
    assert state == AnnealingState("stage 1, 2-bit general", "layer0", len(snapshot_steps(20)))
    v = found.view(state)
    assert (v.steps, v.hard_from, v.step[-1], v.bits) == (20, 16, 20, 2)
    assert v.layer.sharpness[-1] == np.inf and v.x[0] < v.layer.levels.min()


def test_the_last_snapshot_is_the_model_that_was_kept(shelf, study, experiment):
    found = Annealings(shelf)
    v = found.view(replace(found.start(), layer="layer2"))
    q = study.experiment.model(study.systems["stage 1, 2-bit general"]).quantizer(2)
    np.testing.assert_allclose(v.layer.levels[-1], q.codebook.levels, rtol=1e-6)
    codes = q.codes().detach().numpy()
    counts = [np.mean(codes == c) for c in q.codebook.codes]
    np.testing.assert_allclose(annealing.content(v).traces[2]["y"], 100 * np.array(counts))


def test_a_damaged_record_is_left_out_and_named(experiment, study, tmp_path):
    system = study.systems["stage 1, 2-bit general"]
    folder = study.experiment.folder(system)
    copy = replace(study, experiment=replace(study.experiment, root=tmp_path, _models={}))
    copy.experiment.__dict__["_banks"] = study.experiment._banks
    there = copy.experiment.folder(system)
    shutil.copytree(folder, there)
    (there / ANNEALING).write_bytes((folder / ANNEALING).read_bytes()[:300])
    found = Annealings(Shelf(tmp_path, {"x": copy}))
    assert found.records == {} and "no annealing record" in found.left_out[0] and system.label in found.left_out[0]
    with pytest.raises(ValueError, match="no cached system has a record of its annealing"):
        found.start()


@pytest.mark.parametrize("s", [0, 1, 2])
def test_the_soft_curve_is_the_formula(s):
    """softmax over the two centroids around a companded weight, distances in mean spacings."""
    v = ANNEALED.view(AnnealingState("mine", "layer0", s))
    z, mu, a = v.layer.z[s], v.layer.mu[s], SHARPNESS[s]
    y = np.sign(v.x) * np.log1p(mu * np.abs(v.x)) / np.log1p(mu)
    left = np.clip(np.searchsorted(z, y, side="right") - 1, 0, 2)
    share = np.exp(-a * np.abs(y[:, None] - np.stack([z[left], z[left + 1]], 1)) / ((z[-1] - z[0]) / 3))
    share /= share.sum(1, keepdims=True)
    expected = (share * expanded(np.stack([z[left], z[left + 1]], 1), mu)).sum(1)
    np.testing.assert_allclose(v.response, expected, atol=2e-5)


@pytest.mark.parametrize("layer", ["layer0", "layer1"])
def test_a_hard_curve_has_the_levels_and_no_others(layer):
    v = ANNEALED.view(AnnealingState("mine", layer, 3))
    levels = v.layer.levels[3]
    assert np.abs(v.response[:, None] - levels).min(1).max() < 1e-6 * np.abs(levels).max() + 1e-7
    assert np.all(np.diff(v.response) >= 0) and len(np.unique(v.response.round(6))) == len(levels)


def test_every_panel_shows_its_snapshot():
    v = ANNEALED.view(AnnealingState("mine", "layer1", 1))
    layer, c = v.layer, annealing.content(v)
    by_name = dict(zip([t.name for t in annealing.draw(v).data], c.traces, strict=True))
    np.testing.assert_array_equal(by_name["levels"]["x"], layer.levels[1])
    np.testing.assert_array_equal(by_name["levels"]["y"], layer.levels[1])
    np.testing.assert_allclose(by_name["weights on the level"]["y"], 100 * layer.usage[1])
    assert by_name["even share"]["y"] == [100 / 32] * 2
    np.testing.assert_allclose(by_name["entropy, of the width"]["y"], 100 * layer.entropy_bits / 5)
    np.testing.assert_array_equal(by_name["weights between two levels"]["y"], 100 * layer.undecided)
    np.testing.assert_array_equal(by_name["gap to hard, of the norm"]["y"], 100 * layer.gap)
    # 16 of 32 paths, with a gap after each; the marks lie on them.
    paths = np.reshape(by_name["paths"]["y"], (16, len(STEPS) + 1))
    assert np.isnan(paths[:, -1]).all() and {*paths[:, 1]} == {*by_name["levels now"]["y"]} <= {*layer.levels[1]}
    np.testing.assert_array_equal(paths[[0, -1], :-1], layer.levels[:, [0, -1]].T)
    assert by_name["levels now"]["x"] == [40] * 16
    assert [(m["x0"], m["line"].get("dash")) for m in c.layout["shapes"]] == 2 * [(40, None), (80, "dot")]


def test_the_title_says_where_it_is():
    soft, hard = (annealing.content(ANNEALED.view(AnnealingState("mine", "layer0", s))) for s in (1, 4))
    entropy = ANNEALED.records["mine"].layers["layer0"].entropy_bits
    assert soft.layout["title.text"] == (
        f"Step 40 of 100, sharpness 15, mu 1.90: layer0 of mine<br><b>entropy {entropy[1]:.2f} of 2 bits, "
        "4 of 4 levels distinct, nothing found</b>"
    )
    assert hard.layout["title.text"].startswith("Step 100 of 100, hard, mu 1.70: layer0 of mine")
    assert soft.alt.startswith("Step 40 of 100") and "<" not in soft.alt


def test_findings_are_told_in_words_for_their_layer_alone():
    bad = replace(made_layer(), undecided=np.array([0.01, 0.0, 0.0, 0.0, 0.0]), gap=np.full(5, 0.3))
    found = made(layer0=made_layer(), layer1=bad)
    v = found.view(AnnealingState("mine", "layer1", 0))
    assert "found: too fast, too slow" in annealing.content(v).layout["title.text"]
    assert v.told().startswith("layer1, too fast: at step 0 of 100 only 1.0% of the weights were still free")
    assert "layer1, too slow: when the hard phase begins the weights jump by 30% of their norm" in v.told()
    assert found.view(AnnealingState("mine", "layer0", 0)).told() == "layer0: nothing found."
    assert [row["found"] for row in annealing.rows(found, "mine")] == ["nothing", "too fast, too slow"]


def test_updated_in_place_it_is_what_would_be_drawn_anew():
    start, other = (ANNEALED.view(AnnealingState("mine", *s)) for s in (("layer0", 4), ("layer1", 1)))
    fig = annealing.draw(start)
    annealing.apply(fig, annealing.content(other))
    assert fig.to_json() == annealing.draw(other).to_json() != annealing.draw(start).to_json()


def test_axes_stay_where_they_are_while_levels_move():
    layouts = [annealing.content(ANNEALED.view(AnnealingState("mine", "layer0", s))).layout for s in range(5)]
    for axis in ("xaxis.range", "yaxis.range", "yaxis2.range", "yaxis3.range", "xaxis3.range", "xaxis4.range"):
        assert len({tuple(layout[axis]) for layout in layouts}) == 1, axis


def test_the_figure_with_a_slider_has_a_position_per_snapshot():
    v = ANNEALED.view(AnnealingState("mine", "layer0", 4))
    (slider,) = annealing.slider(v).layout.sliders
    assert [s.label for s in slider.steps] == ["0", "40", "79", "80", "100"] and slider.active == 4
    notes = [s.args[1]["annotations[0].text"] for s in slider.steps]
    assert notes[1].startswith("sharpness 15, mu 1.90, entropy") and notes[3].startswith("hard, mu 1.70")


@pytest.mark.parametrize(
    "state, message",
    [
        (("other", "layer0", 0), "no system 'other' has a record; choose one of mine"),
        (("mine", "layer9", 0), "no layer 'layer9' has a record; choose one of layer0, layer1"),
        (("mine", "layer0", 5), "mine has the snapshots 0 to 4, got 5"),
        (("mine", "layer0", -1), "mine has the snapshots 0 to 4, got -1"),
    ],
)
def test_a_state_without_a_record_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        ANNEALED.view(AnnealingState(*state))


def test_it_opens_on_a_table_whose_levels_can_be_told_apart():
    found = made(layer0=made_layer(64))
    assert found.start().system == "mine", "where there is none, the first"
    found.records["narrow"] = ANNEALED.records["mine"]
    assert found.start() == AnnealingState("narrow", "layer0", 4)


@pytest.fixture
def shown(monkeypatch):
    """What a view displayed: figures and tables with their captions, Markdown."""
    seen: list[tuple] = []
    for name in ("show", "show_table"):
        monkeypatch.setattr(views, name, lambda *args: seen.append(args))
    monkeypatch.setattr(views, "display", lambda thing: seen.append((thing.data,)))
    return seen


def test_in_batch_it_is_two_figures_and_a_table(shelf, shown):
    v = views.annealing_explorer(shelf, live=False)
    (moving, caption), (paths, _), (table, _) = shown
    assert len(moving.layout.sliders[0].steps) == len(v.step)
    assert f"{len(v.step)} snapshots of 20 steps" in caption and v.told() in caption
    assert len(paths.data) == 4 and paths.layout.shapes[0].x0 == v.hard_from == 16
    assert all(f"layer{i}" in table for i in range(5))


def test_without_a_record_one_sentence_says_how_to_get_one(shown, tmp_path):
    assert views.annealing_explorer(open_shelf(tmp_path), live=True) is None
    ((text,),) = shown
    assert "kwsbench train stage_one --method general --bits 2" in text
