import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, logsumexp

from kwsbench.metrics.scores import CONTINUOUS_SPEECH, Scores, keyword_scores


def make_scores(**changes):
    fields = {
        "values": np.array([0.5, -1.0, 2.0, 0.25, 0.0], np.float32),
        "offsets": np.array([0, 2, 2, 5]),
        "labels": ("marvin", "cat", CONTINUOUS_SPEECH),
        "paths": ("a/1.wav", "b/größe.wav", "c.flac"),
        "word_end_seconds": np.array([0.5, np.nan, np.nan]),
        "frame_seconds": 0.03,
        "system": "float",
    }
    return Scores(**(fields | changes))


def test_the_reserved_label_is_the_one_of_the_corpora():
    corpora = pytest.importorskip("kwsbench.data.corpora")
    assert corpora.SPEECH == CONTINUOUS_SPEECH


def test_segments_are_views_of_the_values():
    scores = make_scores()
    assert len(scores) == 3
    assert [scores.segment(i).tolist() for i in range(3)] == [[0.5, -1.0], [], [2.0, 0.25, 0.0]]


def test_saved_scores_come_back_bit_for_bit(tmp_path):
    scores = make_scores()
    scores.save(tmp_path / "new" / "s.npz")
    loaded = Scores.load(tmp_path / "new" / "s.npz")
    assert loaded.values.dtype == np.float32 and loaded.values.tobytes() == scores.values.tobytes()
    assert loaded.word_end_seconds.tobytes() == scores.word_end_seconds.tobytes()
    assert loaded.offsets.tolist() == [0, 2, 2, 5]
    assert (loaded.labels, loaded.paths, loaded.system) == (scores.labels, scores.paths, "float")
    assert loaded.frame_seconds == 0.03
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["s.npz"]


def test_scores_without_segments_can_be_saved(tmp_path):
    empty = make_scores(values=np.empty(0), offsets=np.array([0]), labels=(), paths=(), word_end_seconds=np.empty(0))
    empty.save(tmp_path / "s.npz")
    assert len(Scores.load(tmp_path / "s.npz")) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=r"1 of 5 scores of 'float' are NaN or infinite, the first at frame 3"):
        make_scores(values=np.array([0, 0, 0, bad, 0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros((5, 1))}, "one-dimensional"),
        ({"offsets": np.array([0, 2, 5])}, "3 segments need 4 offsets"),
        ({"offsets": np.array([0, 2, 2, 4])}, "from 0 to the 5 frames"),
        ({"offsets": np.array([0, 3, 2, 5])}, "from 0 to the 5 frames"),
        ({"paths": ("a",)}, "3 labels, but 1 paths"),
        ({"word_end_seconds": np.zeros(2)}, "2 word ends"),
        ({"frame_seconds": 0.0}, "frame_seconds must be positive, got 0.0"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_scores(**changes)


def test_a_missing_truncated_or_foreign_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        Scores.load(tmp_path / "absent.npz")
    path = tmp_path / "s.npz"
    make_scores().save(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="truncated or not an npz"):
        Scores.load(path)
    path.write_bytes(b"\x80\x04not a pickle that anyone should read")
    with pytest.raises(ValueError, match="truncated or not an npz"):
        Scores.load(path)
    np.savez(path, values=np.zeros(3))
    with pytest.raises(ValueError, match="holds something else"):
        Scores.load(path)


def test_with_one_keyword_the_score_is_the_difference_of_the_logits():
    logits = np.random.default_rng(0).normal(0, 5, (7, 4, 2)).astype(np.float32)
    assert keyword_scores(logits).shape == (7, 4, 1)
    np.testing.assert_array_equal(keyword_scores(logits)[..., 0], logits[..., 1] - logits[..., 0])


@given(arrays(np.float32, (3, 4), elements=st.floats(-200, 200, width=32)))
def test_the_score_is_the_logit_of_the_softmax_posterior(logits):
    scores = keyword_scores(logits)
    assert scores.dtype == np.float32
    for k in (1, 2, 3):
        others = logsumexp(np.delete(logits.astype(np.float64), k, axis=1), axis=1)
        np.testing.assert_allclose(scores[:, k - 1], logits[:, k] - others, rtol=1e-6, atol=1e-6)
    posterior = np.exp(log_softmax(logits.astype(np.float64), axis=1))[:, 1:]
    np.testing.assert_allclose(1 / (1 + np.exp(-scores.astype(np.float64))), posterior, rtol=1e-4, atol=1e-12)


def test_large_logits_do_not_overflow_and_integers_are_taken():
    assert keyword_scores(np.array([2_000_000_000, -2_000_000_000], np.int32)).tolist() == [-4e9]
    assert np.all(np.isfinite(keyword_scores(np.array([[1e30, -1e30, 0.0]]))))


@pytest.mark.parametrize("logits", [np.float64(1.0), np.zeros((4, 1))])
def test_fewer_than_two_outputs_are_refused(logits):
    with pytest.raises(ValueError, match="at least two outputs"):
        keyword_scores(logits)
