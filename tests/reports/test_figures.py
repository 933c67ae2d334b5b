"""Figures: what they show is what was measured, they are small, and names cannot become markup."""

import json

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from kwsbench.metrics.det import det_curve, evaluate, operating_point
from kwsbench.metrics.events import DetectorConfig
from kwsbench.metrics.scores import Scores
from kwsbench.reports import figures, style
from kwsbench.reports.blocks import packed

CONFIG = DetectorConfig()


def make_scores(separation=4.0, seed=0, positives=200, clips=600, speech=2, name="float"):
    rng = np.random.default_rng(seed)
    labels = ["key"] * positives + ["cat"] * clips + ["_speech_"] * speech
    lengths = [20] * (positives + clips) + [2000] * speech
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = rng.normal(-3, 1, offsets[-1])
    values[offsets[:positives] + 10] = rng.normal(separation, 1.5, positives)
    return Scores(
        values, offsets, tuple(labels), tuple(map(str, offsets[1:])), np.full(len(labels), np.nan), 0.03, name
    )


SCORES = make_scores()
CURVE = det_curve(SCORES, "key", CONFIG)


def plain(fig):
    """The figure as a notebook or page receives it."""
    return json.loads(fig.to_json())


def shown(values):
    return np.asarray(values, np.float64)


@pytest.mark.parametrize("axes", list(figures.DET_AXES))
def test_a_det_curve_is_small_and_lies_on_measured_points(axes):
    fig = figures.det_figure({"float": CURVE, "worse": det_curve(make_scores(1.0, 1), "key", CONFIG)}, axes)
    for trace in fig.data:
        assert 10 < len(trace.x) <= 200
        assert np.all(np.isfinite(shown(trace.x))) and np.all(np.isfinite(shown(trace.y)))
    assert len(fig.to_json()) < 20_000
    threshold, misses, events, clips = shown(fig.data[0].customdata).T
    at = _rows(fig)
    assert np.max(np.abs(CURVE.thresholds[at] - threshold)) <= 1 / 2048 + 1e-6, "three decimals"
    np.testing.assert_array_equal(misses, CURVE.misses[at])
    np.testing.assert_array_equal(events, CURVE.false_accepts[at])
    np.testing.assert_array_equal(clips, CURVE.clip_false_accepts[at])
    assert str(CURVE.n_positives) in fig.data[0].hovertemplate
    assert fig.layout.xaxis.title.text and fig.layout.yaxis.title.text == figures.FRR_TITLE


@pytest.mark.parametrize("axes", list(figures.DET_AXES))
def test_a_thinned_det_curve_looks_like_the_whole_one(axes):
    """Every measured point within the window lies within a pixel of the drawn line."""
    fig = figures.det_figure({"a": CURVE}, axes)
    (x_axis, y_axis), trace = figures.DET_AXES[axes]([CURVE]), fig.data[0]
    drawn, whole = [], []
    for axis, shown_values, values in (
        (x_axis, trace.x, x_axis.of_curve(CURVE)),
        (y_axis, trace.y, y_axis.of_curve(CURVE)),
    ):
        low, high = axis.window
        drawn.append((shown(shown_values).clip(low, high) - low) / (high - low))
        whole.append((axis.place(values).clip(low, high) - low) / (high - low))
    line, points = np.column_stack(drawn), np.column_stack(whole)
    assert len(line) < len(points) / 2
    assert max(_distance(p, line) for p in points) < 1.2 * figures.DET_TOLERANCE


def _distance(point, line):
    """From a point to the nearest place on a polyline."""
    a, b = line[:-1], line[1:]
    along = ((point - a) * (b - a)).sum(1) / np.maximum(((b - a) ** 2).sum(1), 1e-30)
    return np.hypot(*(point - (a + along.clip(0, 1)[:, None] * (b - a))).T).min()


def test_the_figures_of_many_systems_on_a_large_corpus_fit_a_page():
    """Five widths, float and control over thousands of clips on three pairs of axes: 100 kB with text and tables."""
    curves = {
        f"system {i}": det_curve(make_scores(3 - 0.2 * i, i, positives=2000, clips=6000), "key", CONFIG)
        for i in range(7)
    }
    drawn = [plain(figures.det_figure(curves, axes)) for axes in ("linear", "log", "probit")]
    assert len(packed(drawn)) < 60_000


def test_linear_log_and_fdr_axes_show_the_rates():
    at = _rows(figures.det_figure({"a": CURVE}, "linear"))
    fig = figures.det_figure({"a": CURVE}, "linear")
    np.testing.assert_allclose(shown(fig.data[0].x), CURVE.fa_per_hour[at], rtol=2.5e-4)
    np.testing.assert_allclose(shown(fig.data[0].y), 100 * CURVE.frr[at], rtol=2.5e-4)
    fig = figures.det_figure({"a": CURVE}, "log")
    at = _rows(fig)
    expected = np.log10(np.maximum(CURVE.fa_per_hour[at], 0.5 / CURVE.negative_hours))
    np.testing.assert_allclose(shown(fig.data[0].x), expected, rtol=2.5e-4, atol=1e-6)
    fig = figures.det_figure({"a": CURVE}, "fdr")
    at = _rows(fig)
    np.testing.assert_allclose(shown(fig.data[0].x), 100 * np.nan_to_num(CURVE.fdr[at]), rtol=2.5e-4)


def _rows(fig):
    """Points of CURVE that a figure shows, by all of their counts and the threshold nearest to the one told."""
    counts = np.column_stack([CURVE.misses, CURVE.false_accepts, CURVE.clip_false_accepts])
    rows = []
    for threshold, *told in shown(fig.data[0].customdata):
        same = np.flatnonzero((counts == told).all(axis=1))
        rows.append(same[np.argmin(np.abs(CURVE.thresholds[same] - threshold))])
    return np.array(rows)


def test_probit_axes_place_shares_at_their_normal_deviates():
    fig = figures.det_figure({"a": CURVE}, "probit")
    at = _rows(fig)
    for values, share, n in (
        (fig.data[0].x, CURVE.clip_far, CURVE.n_negative_clips),
        (fig.data[0].y, CURVE.frr, CURVE.n_positives),
    ):
        expected = norm.ppf(np.clip(share[at], 0.5 / n, 1 - 0.5 / n))
        np.testing.assert_allclose(shown(values), expected, rtol=2.5e-4, atol=1e-6)
    for axis, n in ((fig.layout.xaxis, CURVE.n_negative_clips), (fig.layout.yaxis, CURVE.n_positives)):
        assert axis.ticktext[0] == f"<{figures._short(100 / n)}"
        assert axis.tickvals[0] == pytest.approx(norm.ppf(0.5 / n))
        named = [float(t) / 100 for t in axis.ticktext[1:]]
        np.testing.assert_allclose(axis.tickvals[1:], norm.ppf(named))
        assert {"5", "20"} <= set(axis.ticktext)


def test_no_false_accept_lies_on_a_marked_floor_of_the_log_axis():
    fig = figures.det_figure({"a": CURVE}, "log")
    floor = np.log10(0.5 / CURVE.negative_hours)
    assert shown(fig.data[0].x).min() == pytest.approx(floor, abs=2.5e-4)
    assert fig.layout.xaxis.tickvals[0] == pytest.approx(floor)
    assert fig.layout.xaxis.ticktext[0] == f"<{figures._short(1 / CURVE.negative_hours)}"
    assert np.all(np.diff(fig.layout.xaxis.tickvals) > 0)
    assert fig.layout.xaxis.range[0] < floor


def test_operating_points_stand_with_their_intervals():
    point = evaluate(SCORES, "key", operating_point(CURVE), CONFIG)
    fig = figures.det_figure({"a": CURVE}, "linear", {"a": point})
    trace = fig.data[1]
    assert (trace.x[0], trace.y[0]) == (pytest.approx(point.fa_per_hour), pytest.approx(100 * point.frr))
    assert trace.y[0] + trace.error_y.array[0] == pytest.approx(100 * point.frr_high95)
    assert trace.y[0] - trace.error_y.arrayminus[0] == pytest.approx(100 * point.frr_low95)
    assert trace.x[0] + trace.error_x.array[0] == pytest.approx(point.fa_per_hour_high95)
    for axes in figures.DET_AXES:
        bars = figures.det_figure({"a": CURVE}, axes, {"a": point}).data[1]
        for bar in (bars.error_x, bars.error_y):
            assert bar.array[0] >= 0 and bar.arrayminus[0] >= 0


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="unknown DET axes 'polar'; choose one of"):
        figures.det_figure({"a": CURVE}, "polar")
    with pytest.raises(ValueError, match="at least one curve"):
        figures.det_figure({})
    only_speech = det_curve(make_scores(clips=0), "key", CONFIG)
    for axes in ("probit", "fdr"):
        with pytest.raises(ValueError, match="'float' has no negative clips: use the axes"):
            figures.det_figure({"a": only_speech}, axes)
    assert len(figures.det_figure({"a": only_speech}, "log").data) == 1
    with pytest.raises(ValueError, match="2 labels, but 1 values of 'b'"):
        figures.bars(["x", "y"], {"b": [1]}, "y")
    with pytest.raises(ValueError, match="2 x values, but 3 values of 'm'"):
        figures.sqnr_figure([1, 2], {"m": [1, 2, 3]})
    with pytest.raises(ValueError, match="at least 400 samples, got 10"):
        figures.spectrogram(np.zeros(10), 16000)
    with pytest.raises(ValueError, match="codes and counts must match"):
        figures.codebook_usage(np.arange(3), np.zeros(3))
    with pytest.raises(ValueError, match="needs weights"):
        figures.weight_histogram(np.empty(0), np.ones(3), np.ones(2))


def test_names_are_text_and_not_markup():
    name = "<b>a</b> & <a href='x'>b</a>"
    fig = figures.det_figure({name: CURVE})
    assert fig.data[0].name == "&lt;b&gt;a&lt;/b&gt; &amp; &lt;a href='x'&gt;b&lt;/a&gt;"
    assert figures.bars([name], {name: [1]}, "y").data[0].x[0] == style.text(name)


def test_a_transfer_curve_keeps_its_steps():
    x = np.linspace(-1.5, 1.5, 3001)
    y = np.clip(np.floor(x * 4 + 0.5), -4, 3) / 4
    trace = figures.transfer_figure(x, {"3-bit": y}).data[0]
    assert len(trace.x) == 16  # both ends of 8 levels
    np.testing.assert_allclose(np.interp(x, shown(trace.x), shown(trace.y)), y, atol=1e-6)
    assert len(figures.transfer_figure(x, {"8-bit": np.floor(x * 90) / 90}).data[0].x) < 600


def test_a_histogram_counts_all_weights_and_carries_none():
    rng = np.random.default_rng(0)
    before, after = rng.normal(0, 0.1, 250_000), np.clip(rng.normal(0, 0.2, 250_000), -0.3, 0.3)
    fig = figures.weight_histogram(before, after, np.arange(-15, 16, 2) * 0.02)
    assert shown(fig.data[0].y).sum() == pytest.approx(100, rel=1e-5)
    assert shown(fig.data[1].y)[:-1].sum() == pytest.approx(100, rel=1e-5)
    drawn = shown(fig.data[2].x)[::3]
    np.testing.assert_allclose(drawn, np.arange(-15, 16, 2) * 0.02, rtol=1e-6)
    assert len(fig.to_json()) < 8_000
    assert len(figures.weight_histogram(np.zeros(5), np.zeros(5), np.zeros(2)).data) == 3


def test_codebook_usage_tells_its_entropy():
    fig = figures.codebook_usage(np.array([-3, -1, 1, 3]), np.array([1, 1, 2, 0]))
    np.testing.assert_allclose(shown(fig.data[0].y), [25, 25, 50, 0])
    assert fig.layout.annotations[0].text == "3 of 4 codes used; entropy 1.50 of 2.00 bits"
    assert "entropy 1.50" in fig.layout.meta["alt"]


def test_training_curves_are_means_of_neighbours():
    step = np.arange(1000)
    fig = figures.training_figure({"a": {"step": step, "loss": step + 1.0, "error": np.full(1000, 0.25)}})
    loss, error = fig.data
    assert len(loss.x) == 143, "sevens"
    assert (loss.x[0], loss.y[0], loss.x[-1], loss.y[-1]) == (3, 4, 996.5, 997.5)
    assert set(error.y.tolist()) == {25.0}
    assert fig.layout.yaxis.type == "log"


def test_bars_carry_intervals_and_gaps():
    fig = figures.bars(["8", "2"], {"qat": [5.0, None]}, "FDR (%)", intervals={"qat": [(4, 7), (0, 0)]})
    bar = fig.data[0]
    assert bar.y == (5.0, None)
    assert (bar.error_y.array[0], bar.error_y.arrayminus[0]) == (2.0, 1.0)


def test_a_histogram_of_values_counts_what_is_finite():
    fig = figures.histogram({"SNR": [0.0, 1.0, 1.0, 4.0, np.nan]}, "SNR (dB)", bins=4)
    (bar,) = fig.data
    assert bar.x.tolist() == [0.5, 1.5, 2.5, 3.5] and bar.y.tolist() == [25, 50, 0, 25]
    assert fig.layout.xaxis.title.text == "SNR (dB)" and not fig.layout.showlegend
    both = figures.histogram({"a": [0.0], "b": [10.0]}, "x", bins=2)
    assert both.data[0].x.tolist() == both.data[1].x.tolist() == [2.5, 7.5], "groups share their bins"
    with pytest.raises(ValueError, match="needs values; empty: b"):
        figures.histogram({"a": [1.0], "b": [np.inf]}, "x")


def test_a_waveform_keeps_its_extremes():
    rng = np.random.default_rng(1)
    audio = rng.uniform(-0.1, 0.1, 48_001).astype(np.float32)
    audio[30_000], audio[17] = 0.9, -0.8
    top, bottom = figures.waveform(audio, 16000, spans=[(0.1, 0.2, "word")]).data
    assert (top.y.max(), bottom.y.min()) == (np.float32(0.9), np.float32(-0.8))
    assert len(top.y) == len(bottom.y) <= figures.MAX_FRAMES and bottom.fill == "tonexty"
    assert top.x0 + top.dx * np.argmax(top.y) == pytest.approx(30_000 / 16_000, abs=0.01)


def test_the_names_of_nested_spans_stand_above_each_other():
    spans = [(0.1, 0.9, "outer"), (0.3, 0.4, "inner"), (0.92, 0.95, "after")]
    notes = figures.waveform(np.zeros(16000, np.float32), 16000, spans=spans).layout.annotations
    assert [note.yshift for note in notes] == [0, 15, 0]


def test_heat_maps_put_energy_where_it_is():
    features = np.zeros((1000, 20), np.float32)
    features[600:700, 7] = 5
    trace = figures.feature_heatmap(features, 0.03).data[0]
    z = shown(trace.z)
    assert z.shape[0] == 20 and z.shape[1] <= figures.MAX_COLUMNS
    seconds = trace.x0 + trace.dx * np.arange(z.shape[1])
    assert set(np.argwhere(z > 0)[:, 0]) == {7}
    hot = seconds[z[7] > 2.5]
    assert hot.min() == pytest.approx(18, abs=0.1) and hot.max() == pytest.approx(21, abs=0.1)

    t = np.arange(32_000) / 16_000
    trace = figures.spectrogram(np.sin(2 * np.pi * 3000 * t), 16000).data[0]
    z = shown(trace.z)
    peak_khz = trace.y0 + trace.dy * z.mean(axis=1).argmax()
    assert peak_khz == pytest.approx(3.0, abs=0.13)
    assert trace.x0 + trace.dx * (z.shape[1] - 1) == pytest.approx(2.0, abs=0.03)


def test_scores_are_drawn_over_time_with_the_threshold():
    fig = figures.score_figure({"float": SCORES.segment(0)}, 0.03, threshold=1.25)
    at = np.round(shown(fig.data[0].x) / 0.03).astype(int)
    np.testing.assert_allclose(shown(fig.data[0].y), SCORES.segment(0)[at])
    drawn = np.interp(np.arange(20), at, shown(fig.data[0].y))
    assert np.max(np.abs(drawn - SCORES.segment(0))) < 0.01 * np.ptp(SCORES.segment(0))
    assert shown(fig.data[0].x)[-1] == pytest.approx(19 * 0.03)
    assert fig.layout.shapes[0].y0 == 1.25 and fig.layout.annotations[0].text == "threshold 1.25"


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=200), st.integers(2, 50))
def test_thinning_keeps_the_ends_and_the_number(points, most):
    x, y = np.array(points).T
    kept = figures.thin(x, y, most)
    assert 1 <= len(kept) <= max(most, 1)
    assert np.all(np.diff(kept) > 0)
    assert (x[kept[0]], y[kept[0]]) == (x[0], y[0]) and kept[-1] == len(x) - 1


def test_thinning_follows_a_curve_closely():
    x = np.linspace(0, 1, 20_000)
    y = np.exp(-20 * x)
    kept = figures.thin(x, y, 300)
    assert np.max(np.abs(np.interp(x, x[kept], y[kept]) - y)) < 2e-4


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=60), st.floats(0, 0.3))
def test_corners_leave_out_only_what_lies_near_the_line(points, tolerance):
    x, y = np.array(points).T
    kept = figures.corners(x, y, tolerance)
    assert kept[0] == 0 and kept[-1] == len(x) - 1 and np.all(np.diff(kept) > 0)
    scaled = np.column_stack([(v - v.min()) / (np.ptp(v) or 1) for v in (x, y)])
    if len(kept) > 1:
        assert max(_distance(p, scaled[kept]) for p in scaled) <= tolerance + 1e-9


def test_corners_of_steps_and_straight_lines():
    steps = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2.0])
    assert figures.corners(np.arange(9.0), steps, 0.001).tolist() == [0, 3, 4, 6, 7, 8]
    assert figures.corners(np.arange(100.0), np.arange(100.0), 0.001).tolist() == [0, 99]
    assert figures.corners(np.array([1.0]), np.array([2.0]), 0.1).tolist() == [0]


def _contrast(colour, paper):
    def luminance(c):
        rgb = np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    high, low = sorted((luminance(colour), luminance(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_and_ink_read_on_white_and_on_dark_paper():
    for paper in ("#ffffff", "#14171b"):
        assert _contrast(style.INK, paper) > 3.9
        assert all(_contrast(c, paper) >= 3 for c in style.PALETTE[:3])
        assert all(_contrast(c, paper) >= 2 for c in style.PALETTE)
    assert len({(s.colour, s.dash) for s in map(style.series, range(42))}) == 42


def test_every_figure_is_transparent_fluid_and_described():
    fig = plain(figures.sqnr_figure([1, 2], {"linear": [4, 9]}, title="SQNR"))
    layout = fig["layout"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == style.CLEAR
    assert layout["autosize"] is True and "width" not in layout
    assert layout["meta"]["alt"] == "SQNR"
    assert layout["yaxis"]["title"]["text"] == "SQNR (dB)"


def test_matplotlib_shares_the_look():
    with mpl.rc_context(style.matplotlib_style()):
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(style.PALETTE)
        assert mpl.rcParams["image.cmap"] == "cividis"
