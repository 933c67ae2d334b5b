"""The DET explorer counts as metrics.det does, names its mistakes, and plays what the test set heard."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from kwsbench.features.lfbe import lfbe
from kwsbench.metrics.events import DetectorConfig
from kwsbench.metrics.scores import Scores
from kwsbench.reports.explore import det
from kwsbench.reports.show import wav_bytes


@pytest.fixture(scope="module")
def detections(study):
    return det.Detections(study)


@pytest.fixture(scope="module")
def view(detections):
    return detections.view(replace(detections.start(), threshold=0.0))


def test_it_starts_where_validation_put_the_threshold(detections, study):
    state = detections.start()
    assert state.systems == ("float", "stage 2, 5-bit tanh") and state.inspected == "stage 2, 5-bit tanh"
    assert state.threshold == study.experiment.threshold(study.systems["stage 2, 5-bit tanh"])
    assert detections.view(state).point == study.experiment.point(study.systems["stage 2, 5-bit tanh"])


@pytest.mark.parametrize("threshold", [-3.0, 0.0, 2.5])
@pytest.mark.parametrize("smoothing", [1, 4])
def test_the_lists_hold_exactly_what_was_counted(detections, threshold, smoothing):
    state = replace(detections.start(), threshold=threshold, smoothing_frames=smoothing, refractory_seconds=0.5)
    v = detections.view(state)
    assert len(v.misses) == min(v.point.misses, det.MAX_ERRORS)
    assert len(v.false_accepts) == min(v.point.events, det.MAX_ERRORS)
    assert all(m.score < threshold for m in v.misses) and all(m.score >= threshold for m in v.false_accepts)
    assert [m.score for m in v.misses] == sorted(m.score for m in v.misses)


def test_mistakes_are_where_a_plain_reading_finds_them():
    values = np.array([0, 5, 0, 0, -1, -2, 0, 3, 0, 4], np.float32)
    scores = Scores(values, [0, 4, 6, 10], ("yes", "yes", "no"), ("a", "b", "c"), [0.1, 0.1, np.nan], 0.5, "s")
    detector = DetectorConfig(1, 1.0)  # deaf for two frames
    (miss,) = det.misses(scores, "yes", 2.0, detector)
    assert (miss.path, miss.score, miss.seconds) == ("b", -1.0, 0.5)
    found = det.false_accepts(scores, "yes", 2.0, detector)
    assert [(m.path, m.score, m.seconds) for m in found] == [("c", 4.0, 2.0), ("c", 3.0, 1.0)]
    assert found[0].text() == "+4.00 at 2.00 s, no: c"


def test_what_is_played_is_what_was_scored(detections, study, view):
    bank = study.experiment.bank("test")
    mistake = next(m for m in (*view.misses, *view.false_accepts) if len(bank.segment(m.segment)) < 100)
    audio = detections.audio(mistake)
    np.testing.assert_array_equal(lfbe(audio, study.experiment.spec.features), bank.segment(mistake.segment))
    read, rate = soundfile.read(io.BytesIO(wav_bytes(audio, 16000)))
    assert rate == 16000 and np.abs(read - audio).max() < 1e-4


def test_of_a_long_recording_only_the_surroundings_are_played(detections, study):
    speech = next(c for c in study.experiment.corpus.select("_speech_", "test"))
    mistake = det.Mistake(0, speech.path, "_speech_", 1.0, 3.0)
    audio, whole = detections.audio(mistake), detections.mixer.mix(speech).audio
    np.testing.assert_array_equal(audio, whole[16000 : 4 * 16000])


def test_bands_hold_the_curves_and_the_cross_its_counts(view):
    content = det.content(view)
    n = det.MAX_SYSTEMS
    for band, curve in zip(content.traces[:2], content.traces[n : n + 2], strict=True):
        half = len(band["x"]) // 2
        assert np.all(band["y"][:half] >= curve["y"]) and np.all(band["y"][half:][::-1] <= curve["y"])
    assert [t["visible"] for t in content.traces[: 2 * n]] == [True, True, *[False] * (n - 2)] * 2
    cross, p = content.traces[-1], view.point
    assert cross["y"] == [100 * p.frr]
    assert cross["error_y.arrayminus"][0] == pytest.approx(100 * (p.frr - p.frr_low95))
    assert f"({p.misses} of {p.n_positives})" in content.layout["title.text"]


def test_curves_are_computed_once_per_setting(detections, view, monkeypatch):
    detections.view(view.state)

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(det, "det_curve", never)
    assert detections.view(replace(view.state, threshold=1.0)).curves.keys() == view.curves.keys()
    with pytest.raises(AssertionError, match="computed again"):
        detections.view(replace(view.state, smoothing_frames=9))


def test_updated_in_place_it_is_what_would_be_drawn_anew(detections, view):
    other = detections.view(det.DetState(("float",), "float", 1.0, 3, 0.4))
    fig = det.draw(view)
    det.apply(fig, det.content(other))
    assert fig.data[det.MAX_SYSTEMS + 1].visible is False
    shown = [t for t in fig.data if t.visible is not False]
    fresh = [t for t in det.draw(other).data if t.visible is not False]
    assert [t.to_plotly_json() for t in shown[1:2]] and str(shown) == str(fresh)


def test_a_bad_choice_is_refused():
    with pytest.raises(ValueError, match="'b' is inspected but not overlaid: a"):
        det.DetState(("a",), "b", 0.0)
    with pytest.raises(ValueError, match="at most 6 systems are overlaid, got 7"):
        det.DetState(tuple("abcdefg"), "a", 0.0)
