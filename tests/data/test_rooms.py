"""Rooms: RT60 by Schroeder decay (ours and pyroomacoustics'), timing, disjoint splits, the cache."""

import numpy as np
import pytest
from pyroomacoustics.experimental import measure_rt60

from kwsbench.data.corpora import SPLITS
from kwsbench.data.rooms import SAMPLE_RATE, apply_room, room_bank, rt60_by_schroeder

RANGE = (0.25, 0.8)


@pytest.fixture(scope="module")
def rooms():
    return {split: room_bank(7, split, 6, RANGE) for split in SPLITS}


@pytest.mark.parametrize("rt60_seconds", [0.2, 0.5, 1.1])
def test_schroeder_measures_an_ideal_decay(rt60_seconds):
    seconds = np.arange(int(1.2 * rt60_seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal(len(seconds))
    rir = noise * 10 ** (-3 * seconds / rt60_seconds)
    assert rt60_by_schroeder(rir) == pytest.approx(rt60_seconds, rel=0.05)
    assert rt60_by_schroeder(rir) == pytest.approx(measure_rt60(rir, SAMPLE_RATE, decay_db=20), rel=0.02)


def test_schroeder_needs_a_decay():
    with pytest.raises(ValueError, match="no decay from -5 to -25 dB"):
        rt60_by_schroeder(np.array([1.0, 0, 0]))


def test_rooms_have_the_rt60_they_were_drawn_for(rooms):
    for bank in rooms.values():
        for room in bank:
            assert RANGE[0] <= room.rt60_seconds <= RANGE[1]
            assert rt60_by_schroeder(room.rir) == pytest.approx(room.rt60_seconds, rel=0.03)
            measured = measure_rt60(room.rir.astype(np.float64), SAMPLE_RATE, decay_db=20)
            assert measured == pytest.approx(room.rt60_seconds, rel=0.05)
            # The 25 dB below the fitted part: a straight decay, within what rooms of boxes allow.
            lower = measure_rt60(room.rir.astype(np.float64), SAMPLE_RATE, decay_db=30)
            assert lower == pytest.approx(room.rt60_seconds, rel=0.25)


def test_rt60_covers_its_range(rooms):
    for bank in rooms.values():
        steps = (np.array([room.rt60_seconds for room in bank]) - RANGE[0]) / (RANGE[1] - RANGE[0])
        np.testing.assert_array_equal(np.floor(steps * len(bank)), np.arange(len(bank)))


def test_the_direct_sound_is_first_and_in_place(rooms):
    for bank in rooms.values():
        for room in bank:
            assert room.rir[room.direct_sample] == pytest.approx(1)
            # Before it only the ringing of the fractional delay, 4 samples or more ahead below -6 dB.
            assert np.abs(room.rir[: room.direct_sample - 4]).max() < 0.5
            click = np.zeros(2000, np.float32)
            click[700] = 1
            heard = apply_room(click, room)
            assert heard.shape == click.shape and heard.dtype == np.float32
            assert heard[700] == pytest.approx(1, abs=1e-4)
            assert np.abs(heard[: 700 - room.direct_sample]).max() < 1e-5


def test_the_direct_sound_arrives_when_the_distance_says():
    # Independent of the trimmed response: the library's own, 343 m/s and half its delay filter.
    import pyroomacoustics as pra

    room = room_bank(3, "train", 1, (0.3, 0.3))[0]
    box = pra.ShoeBox(room.size_m, fs=SAMPLE_RATE, max_order=0)
    box.add_source(room.talker_m)
    box.add_microphone(room.mic_m)
    box.compute_rir()
    direct = box.rir[0][0]
    peak = int(np.argmax(np.abs(direct)))
    near = room.rir[room.direct_sample - 8 : room.direct_sample + 9]
    # The first echo is later than 8 samples here or adds to the same sign; the peaks coincide.
    assert int(np.argmax(np.abs(near))) == 8
    assert peak == pytest.approx(np.linalg.norm(room.talker_m - room.mic_m) / 343 * SAMPLE_RATE + 40, abs=1)


def test_splits_share_no_room_by_construction(rooms):
    for number, split in enumerate(SPLITS):
        for room in rooms[split]:
            assert round(room.size_m[0] * 100) % 3 == number
            assert np.all(room.talker_m < room.size_m) and np.all(room.mic_m < room.size_m)
            assert np.linalg.norm(room.talker_m - room.mic_m) >= 0.7


def test_the_seed_decides_and_the_cache_returns_the_same(rooms, tmp_path):
    fresh = room_bank(7, "test", 6, RANGE, tmp_path / "new")
    (file,) = (tmp_path / "new").iterdir()
    written = file.stat().st_mtime_ns
    cached = room_bank(7, "test", 6, RANGE, tmp_path / "new")
    assert file.stat().st_mtime_ns == written
    for room, again, once_more in zip(rooms["test"], fresh, cached):
        np.testing.assert_array_equal(room.rir, again.rir)
        np.testing.assert_array_equal(room.rir, once_more.rir)
        assert (room.rt60_seconds, room.direct_sample) == (once_more.rt60_seconds, once_more.direct_sample)
    other = room_bank(8, "test", 6, RANGE, tmp_path / "new")
    assert not np.array_equal(other[0].size_m, fresh[0].size_m)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "dev", 1, RANGE), "split must be one of train, validation, test, got 'dev'"),
        ((0, "train", 0, RANGE), "n_rooms must be at least 1, got 0"),
        ((0, "train", 1, (0.8, 0.2)), r"range within 0.1..2 s, got 0.8..0.2"),
        ((0, "train", 1, (0.0, 0.2)), r"got 0.0..0.2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        room_bank(*arguments)
