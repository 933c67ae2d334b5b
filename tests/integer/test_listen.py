"""Streaming recognizers: any chunks give the same; search by its rules; bad input with its message."""

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


def test_bad_frames_are_refused():
    engine = RUNNING["reference"]
    with pytest.raises(ValueError, match=r"5 mel bands, got shape \(3, 4\)"):
        listen.transcribe(engine, np.zeros((3, 4), np.float32))
    bad = frames(9)
    bad[4, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        listen.transcribe(engine, bad)
