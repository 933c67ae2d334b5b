"""Streaming recognizers: any chunks give the same; both searches by their rules; bad input with its message."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsbench.integer import listen
from kwsbench.integer.drawn import draw_recognizer
from kwsbench.integer.kernels.matvec import has_blocks
from kwsbench.integer.packed import Packed

SMALL = {"n_mels": 5, "stack": 3, "embedding": 6, "prediction": 7, "joint": 9, "symbols": 5, "grid": "odd"}
ENGINES = {"reference": listen.Reference, "rows": lambda recognizer: Packed(recognizer, blocks=False)}
if has_blocks():
    ENGINES["blocks"] = lambda recognizer: Packed(recognizer, blocks=True)


def frames(count, seed=0, n_mels=5):
    return np.random.default_rng(seed).normal(size=(count, n_mels)).astype(np.float32) * 3


def recognizer(seed, hidden=(8, 11, 6), **changes):
    return draw_recognizer(hidden, bits=5, seed=seed, **{**SMALL, **changes})


RUNNING = {name: make(recognizer(1)) for name, make in ENGINES.items()}


@given(cuts=st.lists(st.integers(0, 20), min_size=1, max_size=20), name=st.sampled_from(sorted(ENGINES)))
@settings(max_examples=40)
def test_streamed_equals_whole_for_every_chunking(cuts, name):
    engine, x = RUNNING[name], frames(sum(cuts))
    whole = listen.listen(engine, x, listen.start(engine))
    state, at = listen.start(engine), 0
    for cut in cuts:
        state = listen.listen(engine, x[at : at + cut], state)
        at += cut
    for field, value in vars(whole).items():
        got = getattr(state, field)
        assert np.array_equal(got, value), field
        assert not isinstance(value, np.ndarray) or got.dtype == value.dtype
    assert whole.frames == sum(cuts) // 6


@pytest.mark.parametrize("name", ENGINES)
def test_labels_are_emitted_and_a_call_changes_no_state(name):
    emitted = set()
    for seed in range(6):
        engine = ENGINES[name](recognizer(seed))
        before = listen.start(engine)
        copies = {k: np.copy(v) for k, v in vars(before).items()}
        after = listen.listen(engine, frames(120, seed), before)
        assert all(np.array_equal(v, copies[k]) for k, v in vars(before).items())
        assert len(after.labels) == len(after.emitted_at)
        assert list(after.emitted_at) == sorted(after.emitted_at)
        assert max(np.bincount(after.emitted_at), default=0) <= 4
        emitted |= set(after.labels)
    assert len(emitted) >= 3
    assert 0 not in emitted


@pytest.mark.parametrize("name", ENGINES)
def test_of_equal_scores_the_first_symbol_wins_and_the_cap_holds(name):
    made = recognizer(0)
    level = np.zeros_like(made.output.codes)
    level[:] = made.output.codes[:1]  # every symbol scores alike
    for bias, label in (([0, 0, 0, 0, 0], None), ([-1, 5, 5, 4, 5], 1), ([5, 5, 5, 5, 5], None)):
        output = replace(made.output, codes=level, bias=np.array(bias, np.int32))
        engine = ENGINES[name](replace(made, output=output, labels_per_frame=2))
        state = listen.listen(engine, frames(60), listen.start(engine))
        assert state.frames == 10
        assert state.labels == (() if label is None else (label,) * 20)
        assert state.emitted_at == (() if label is None else tuple(np.repeat(range(10), 2)))


def found(state):
    """Labels and scores, best first."""
    return [(h.labels, h.score) for h in state.hypotheses]


@given(
    cuts=st.lists(st.integers(0, 20), min_size=1, max_size=12),
    name=st.sampled_from(sorted(ENGINES)),
    width=st.sampled_from([2, 5]),
)
@settings(max_examples=40, deadline=None)
def test_a_streamed_beam_equals_the_whole_one_for_every_chunking(cuts, name, width):
    engine, x = RUNNING[name], frames(sum(cuts))
    whole = listen.listen(engine, x, listen.start(engine, width))
    state, at = listen.start(engine, width), 0
    for cut in cuts:
        state = listen.listen(engine, x[at : at + cut], state)
        at += cut
    assert found(state) == found(whole)
    assert state.labels == whole.labels == whole.hypotheses[0].labels
    assert state.frames == whole.frames == sum(cuts) // 6
    for a, b in zip(state.hypotheses, whole.hypotheses, strict=True):
        assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a.prediction, b.prediction))
    assert np.array_equal(state.prediction_c, whole.hypotheses[0].prediction[1])


@pytest.mark.parametrize("width", [1, 2, 4, 16])
def test_engines_find_the_same_to_the_bit(width):
    for seed in range(4):
        made, x = recognizer(seed), frames(120, seed)
        first, *others = [listen.listen(e, x, listen.start(e, width)) for m in ENGINES.values() for e in [m(made)]]
        for other in others:
            assert other.labels == first.labels and found(other) == found(first)
        scores = [score for _, score in found(first)]
        assert (len(scores) == 0) if width == 1 else (1 < len(scores) <= width)
        assert scores == sorted(scores, reverse=True) and len({h.labels for h in first.hypotheses}) == len(scores)


@pytest.mark.parametrize("name", ENGINES)
def test_a_beam_of_one_is_greedy_search(name):
    """``start`` with width 1 is the greedy search itself; the beam's own algorithm comes to the same."""
    emitted, full = 0, False
    for seed in range(8):
        engine, x = ENGINES[name](recognizer(seed)), frames(120, seed)
        greedy = listen.listen(engine, x, listen.start(engine))
        assert greedy.labels == listen.transcribe(engine, x, 1) == listen.transcribe(engine, x)
        begin = replace(listen.start(engine, 2), width=1)
        encoded, begin = listen.encode(engine, x, begin)
        beam = listen.beam_search(engine, encoded, begin)
        assert beam.labels == greedy.labels and len(beam.hypotheses) == 1
        assert np.array_equal(beam.prediction_h, greedy.prediction_h)
        assert np.array_equal(beam.prediction_c, greedy.prediction_c)
        emitted += len(greedy.labels)
        full |= max(np.bincount(greedy.emitted_at), default=0) == 4
    assert emitted > 20 and full


def all_alignments(engine, encoded, per_frame):
    """{labels: log-probability over all ways to deal them to frames}, from the accumulators and their unit alone."""
    scale = engine.recognizer.output.scale
    symbols = range(1, len(scale))

    def rows(labels):
        """Log-probabilities [frames, symbols] after some labels."""
        begin = listen.start(engine)
        h, c = begin.prediction_h.copy(), begin.prediction_c.copy()
        for label in labels:
            engine.predict(label, h, c)
        logits = np.array([engine.scores(frame, h) for frame in encoded]) * scale
        return logits - np.logaddexp.reduce(logits, axis=1)[:, None]

    logs = {k: rows(k) for n in range(per_frame * len(encoded) + 1) for k in itertools.product(symbols, repeat=n)}
    scores = {}
    for labels in logs:
        for dealt in itertools.product(range(per_frame + 1), repeat=len(encoded)):
            if sum(dealt) == len(labels):
                total, u = 0.0, 0
                for t, n in enumerate(dealt):
                    for label in (*labels[u : u + n], 0):
                        total += logs[labels[:u]][t, label]
                        u += label != 0
                scores[labels] = np.logaddexp(scores.get(labels, -np.inf), total)
    return scores


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("seed", range(3))
def test_without_pruning_scores_are_those_of_all_alignments(name, seed):
    made = recognizer(seed, hidden=(6, 5), symbols=3, labels_per_frame=2)
    engine, x = ENGINES[name](made), frames(18, seed)
    encoded, _ = listen.encode(engine, x, listen.start(engine))
    expected = all_alignments(engine, encoded, per_frame=2)
    state = listen.listen(engine, x, listen.start(engine, 10_000))
    assert len(state.hypotheses) == len(expected) == 2**7 - 1
    for labels, score in found(state):
        np.testing.assert_allclose(score, expected[labels], atol=1e-9, err_msg=str(labels))
    assert state.labels == max(expected, key=expected.__getitem__) == listen.transcribe(engine, x, 10_000)


def test_a_wider_beam_finds_what_greedy_misses():
    """Two alignments of one label sequence can outweigh the single best one."""
    better = 0
    for seed in range(20):
        engine = listen.Reference(recognizer(seed, hidden=(6, 5), symbols=3, labels_per_frame=1))
        x = frames(18, seed)
        encoded, _ = listen.encode(engine, x, listen.start(engine))
        expected = all_alignments(engine, encoded, per_frame=1)
        wide, greedy = listen.transcribe(engine, x, 100), listen.transcribe(engine, x)
        assert expected[wide] == max(expected.values())
        better += expected[wide] > expected[greedy]
    assert better >= 2


def test_log_probabilities_are_those_of_the_logits_however_far_apart():
    output = recognizer(0).output
    acc = np.array([[0, 5, -7, 3, 3], [2**31 - 1, -(2**31), 0, 2**31 - 2, 1]], np.int32)
    logs = listen.log_probabilities(acc, output)
    assert logs.dtype == np.float64 and np.all(np.isfinite(logs))
    logits = acc.astype(np.float64) * output.scale
    np.testing.assert_allclose(logs, logits - np.logaddexp.reduce(logits, axis=1)[:, None], rtol=1e-12, atol=1e-8)
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1)
    assert np.array_equal(listen.log_probabilities(acc[0], output), logs[0])


def test_a_beam_changes_no_state_it_was_given():
    engine = RUNNING["reference"]
    before = listen.listen(engine, frames(30), listen.start(engine, 3))
    kept = [(h.prediction[0].copy(), h.prediction[1].copy()) for h in before.hypotheses]
    once, again = (found(listen.listen(engine, frames(60, 1), before)) for _ in range(2))
    assert once == again
    for h, arrays in zip(before.hypotheses, kept, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(h.prediction, arrays))


@pytest.mark.parametrize("width", [0, -3])
def test_a_width_below_one_is_refused(width):
    with pytest.raises(ValueError, match=f"width of at least 1, got {width}"):
        listen.start(RUNNING["reference"], width)
    with pytest.raises(ValueError, match=f"width of at least 1, got {width}"):
        listen.transcribe(RUNNING["reference"], frames(12), width)


def test_bad_frames_are_refused():
    engine = RUNNING["reference"]
    with pytest.raises(ValueError, match=r"5 mel bands, got shape \(3, 4\)"):
        listen.transcribe(engine, np.zeros((3, 4), np.float32))
    bad = frames(9)
    bad[4, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        listen.transcribe(engine, bad)
