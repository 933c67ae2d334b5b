"""Replays on a simulated clock: worked by hand, on a fake clock; and of an engine over audio and over its frames."""

import itertools

import numpy as np
import pytest

from kwsbench.features.lfbe import LfbeConfig, lfbe
from kwsbench.integer import listen, replay
from kwsbench.integer.drawn import draw_recognizer

FEATURES = LfbeConfig(n_mels=20, keep_every=1)


class Scripted:
    """Emits a label at the chunks named."""

    def __init__(self, at):
        self.at, self.heard, self.labels = at, 0, ()

    def push(self, piece):
        if self.heard in self.at:
            self.labels += (1,)
        self.heard += 1
        return self.labels


def chunks(count, seconds=0.1):
    return [((k + 1) * seconds, np.zeros(0)) for k in range(count)]


def clock_of(compute_seconds):
    """A clock that gives each chunk its time."""
    ticks = itertools.chain.from_iterable((0.0, t) for t in compute_seconds)
    return lambda: next(ticks)


def test_a_chunk_waits_for_the_one_before_it():
    got = replay.replay(Scripted({2}), chunks(4), 0.25, clock=clock_of([0.05, 0.15, 0.02, 0.01]))
    # There at 0.1: done 0.15. There at 0.2: done 0.35. There at 0.3, but begun at 0.35: done 0.37. There at 0.4: 0.41.
    assert got.done_seconds == pytest.approx([0.15, 0.35, 0.37, 0.41])
    assert got.last_label_chunk == 2
    assert got.latency_seconds == pytest.approx(0.37 - 0.25)


def test_a_slower_machine_is_projected_by_its_factor():
    times = [0.05, 0.15, 0.02, 0.01]
    got = replay.replay(Scripted({3}), chunks(4), 0.25, times_slower=2.0, clock=clock_of(times))
    assert got.done_seconds == pytest.approx([0.2, 0.5, 0.54, 0.56])
    assert got.compute_seconds == pytest.approx(2 * np.array(times))


def test_an_endpoint_counts_where_it_is_later():
    def at(labels, endpoint):
        made = replay.replay(Scripted(labels), chunks(6), 0.25, endpoint_seconds=endpoint, clock=clock_of([0.01] * 6))
        return made.latency_seconds

    assert at({0}, None) == pytest.approx(0.11 - 0.25)  # before the end of speech
    assert at({0}, 0.1) == pytest.approx(0.41 - 0.25)
    assert at({4}, 0.1) == pytest.approx(0.51 - 0.25)
    assert at({0}, 5.0) == pytest.approx(0.61 - 0.25)  # the recording ends first
    assert at(set(), 0.1) is None


def test_summary_counts_and_shares():
    three = [replay.replay(Scripted({k}), chunks(4), 0.25, clock=clock_of([0.01] * 4)) for k in (1, 2, 3)]
    none = replay.replay(Scripted(set()), chunks(4), 0.25, clock=clock_of([0.03] * 4))
    got = replay.summarise([*three, none])
    assert got["recordings"] == 4
    assert got["without_labels"] == 1
    assert got["latency_median_ms"] == pytest.approx(1e3 * (0.31 - 0.25))
    assert got["latency_95_ms"] == pytest.approx(1e3 * np.percentile([-0.04, 0.06, 0.16], 95))
    assert got["compute_share"] == pytest.approx((3 * 0.04 + 0.12) / 1.6)
    assert got["longest_chunk_ms"] == pytest.approx(30)
    assert replay.summarise([])["latency_median_ms"] is None


@pytest.mark.parametrize("chunk_seconds", [0.03, 0.06, 0.047])
def test_audio_and_its_frames_give_what_the_whole_recording_gives(chunk_seconds):
    recognizer = draw_recognizer((12, 9), bits=4, n_mels=20, symbols=6, seed=2)
    engine = listen.Reference(recognizer)
    audio = (np.random.default_rng(0).normal(size=16_000) * 0.1).astype(np.float32)
    audio[::3000] = 0.9
    frames = lfbe(audio, FEATURES)
    whole = listen.listen(engine, frames, listen.start(engine))
    pieces = replay.audio_chunks(audio, 16_000, chunk_seconds)
    assert pieces[-1][0] == 1.0
    heard = replay.replay(replay.AudioStream(engine, FEATURES), pieces, 0.9)
    cut = replay.frame_chunks(frames, FEATURES, chunk_seconds)
    framed = replay.replay(replay.FrameStream(engine), cut, 0.9)
    assert heard.labels == framed.labels == whole.labels
    assert len(whole.labels) > 0
    assert heard.last_label_chunk == framed.last_label_chunk
    # No frame is there before its last sample has been heard.
    first = np.cumsum([0, *(len(piece) for _, piece in cut)])
    for (arrives, piece), begin in zip(cut, first):
        ends = FEATURES.frame_end_seconds(np.arange(begin, begin + len(piece)))
        assert np.all(ends <= arrives + 1e-6)
    assert np.all(np.diff(heard.done_seconds) > 0)
    assert np.all(heard.compute_seconds > 0)


def test_nothing_to_replay_is_refused():
    with pytest.raises(ValueError, match="chunks and times_slower above 0, got 0 and 1"):
        replay.replay(Scripted(set()), [], 0.0)
    with pytest.raises(ValueError, match="got 4 and 0"):
        replay.replay(Scripted(set()), chunks(4), 0.0, times_slower=0)
    assert replay.frame_chunks(np.zeros((0, 20), np.float32), FEATURES, 0.03) == []
