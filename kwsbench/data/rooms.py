"""Far field: impulse responses of shoebox rooms, by the image-source method of pyroomacoustics.

    room_bank(seed, split, n_rooms, rt60_seconds) -> Room, Room, ...      apply_room(audio, room) -> audio

A room is 3-8 x 2.5-6 x 2.3-3.4 m with one talker and one microphone, at least 0.7 m apart. Its RT60 is drawn
(stratified over the range); Sabine's formula gives the absorption, and since that formula is only near, the
decay is then corrected by a slow exponential until the Schroeder slope meets the drawn value.

Splits never share a room, by construction: the length in whole centimetres is congruent to the split's
number modulo 3.

Time. ``rir[direct_sample]`` is the direct sound, scaled to 1; :func:`apply_room` puts it at the time of the
dry sample, so that the end of a word stays where it was. What the room adds comes after.

Responses stop at 3/4 of RT60 (45 dB down): the rest lies below any noise mixed in, and would cost the most.
Image sources of a long reverberation in a small room take up to half a second: the bank is cached on disk.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyroomacoustics as pra
from scipy.signal import fftconvolve

from kwsbench.data.audio import SAMPLE_RATE
from kwsbench.data.corpora import SPLITS
from kwsbench.files import replacing

ROOMS_VERSION = 1
DECAY_KEPT = 0.75
ORDER_KEPT = 0.7
LEAD_IN_SAMPLES = 20
SOUND_M_PER_S = 343.0


@dataclass(frozen=True, eq=False)
class Room:
    """One impulse response. ``size_m``, ``talker_m``, ``mic_m`` float64 [3]; ``rt60_seconds`` as drawn;
    ``rir`` float32 [n] at 16 kHz, whose direct sound is at ``direct_sample``."""

    size_m: np.ndarray
    talker_m: np.ndarray
    mic_m: np.ndarray
    rt60_seconds: float
    rir: np.ndarray
    direct_sample: int


def apply_room(audio: np.ndarray, room: Room) -> np.ndarray:
    """``audio`` (float32 [n]) heard in ``room``: float32 [n], direct sound in place, echoes past n cut."""
    heard = fftconvolve(audio, room.rir)
    return heard[room.direct_sample : room.direct_sample + len(audio)].astype(np.float32)


def rt60_by_schroeder(rir: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    """Seconds for 60 dB of decay, from the slope of the backward-integrated energy between -5 and -25 dB.

    Source: Schroeder, New method of measuring reverberation time, JASA 1965 (T20 of ISO 3382).
    """
    energy = np.cumsum(np.asarray(rir, np.float64)[::-1] ** 2)[::-1]
    decay_db = 10 * np.log10(np.maximum(energy / energy[0], 1e-12))
    part = np.flatnonzero((decay_db <= -5) & (decay_db >= -25))
    if len(part) < 2:
        raise ValueError("the response has no decay from -5 to -25 dB to measure")
    slope = np.polyfit(part / sample_rate, decay_db[part], 1)[0]
    return float(-60.0 / slope)


def draw_room(split: str, rt60_seconds: float, rng: np.random.Generator) -> Room:
    """A room of ``split`` with the given RT60; size and places from ``rng``."""
    length_cm = 3 * rng.integers(100, 266) + SPLITS.index(split)
    size_m = np.array([length_cm, rng.integers(250, 601), rng.integers(230, 341)]) / 100
    while True:
        talker_m, mic_m = (
            np.append(rng.uniform(0.4, size_m[:2] - 0.4), rng.uniform(low, high))
            for low, high in ((1.0, 1.8), (0.6, 1.6))
        )
        if np.linalg.norm(talker_m - mic_m) >= 0.7:
            break
    rir, direct = _impulse_response(size_m, talker_m, mic_m, rt60_seconds)
    return Room(size_m, talker_m, mic_m, rt60_seconds, rir, direct)


def room_bank(
    seed: int,
    split: str,
    n_rooms: int,
    rt60_seconds: tuple[float, float],
    cache_dir: str | Path | None = None,
) -> tuple[Room, ...]:
    """The rooms of a split, the same for the same arguments; kept as npz in ``cache_dir`` if one is given.

    Raises:
        ValueError: an unknown split, no room, or an RT60 range outside 0.1..2 s.
    """
    low, high = rt60_seconds
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if n_rooms < 1:
        raise ValueError(f"n_rooms must be at least 1, got {n_rooms}")
    if not 0.1 <= low <= high <= 2.0:
        raise ValueError(f"rt60_seconds must be a range within 0.1..2 s, got {low}..{high}")
    key = json.dumps([ROOMS_VERSION, seed, split, n_rooms, low, high])
    path = cache_dir and Path(cache_dir) / f"rooms-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if path and path.exists():
        return _load(path)
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    steps = (np.arange(n_rooms) + rng.random(n_rooms)) / n_rooms
    rooms = tuple(draw_room(split, float(low + (high - low) * step), rng) for step in steps)
    if path:
        _save(path, rooms)
    return rooms


def _impulse_response(
    size_m: np.ndarray, talker_m: np.ndarray, mic_m: np.ndarray, rt60_seconds: float
) -> tuple[np.ndarray, int]:
    absorption, order = pra.inverse_sabine(rt60_seconds, size_m)
    room = pra.ShoeBox(
        size_m, fs=SAMPLE_RATE, materials=pra.Material(absorption), max_order=int(np.ceil(order * ORDER_KEPT))
    )
    room.add_source(talker_m)
    room.add_microphone(mic_m)
    # The library splits the sum over image sources among threads, and the parts round differently.
    threads = pra.constants.get("num_threads")
    try:
        pra.constants.set("num_threads", 1)
        room.compute_rir()
    finally:
        pra.constants.set("num_threads", threads)
    delay = pra.constants.get("frac_delay_length") // 2
    direct = round(np.linalg.norm(talker_m - mic_m) / SOUND_M_PER_S * SAMPLE_RATE) + delay
    start = direct - LEAD_IN_SAMPLES
    rir = room.rir[0][0][start : direct + int(DECAY_KEPT * rt60_seconds * SAMPLE_RATE)]
    seconds = np.arange(len(rir)) / SAMPLE_RATE
    for _ in range(5):
        excess = 1 / rt60_seconds - 1 / rt60_by_schroeder(rir)
        rir = rir * np.exp(-3 * np.log(10) * excess * seconds)
    return (rir / rir[LEAD_IN_SAMPLES]).astype(np.float32), LEAD_IN_SAMPLES


def _save(path: Path, rooms: tuple[Room, ...]) -> None:
    with replacing(path, ".npz") as temporary:
        np.savez(
            temporary,
            size_m=[r.size_m for r in rooms],
            talker_m=[r.talker_m for r in rooms],
            mic_m=[r.mic_m for r in rooms],
            rt60_seconds=[r.rt60_seconds for r in rooms],
            direct_sample=[r.direct_sample for r in rooms],
            offsets=np.cumsum([0] + [len(r.rir) for r in rooms]),
            rir=np.concatenate([r.rir for r in rooms]),
        )


def _load(path: Path) -> tuple[Room, ...]:
    with np.load(path) as table:
        columns = (table[name] for name in ("size_m", "talker_m", "mic_m", "rt60_seconds", "direct_sample"))
        rirs = np.split(table["rir"], table["offsets"][1:-1])
        return tuple(
            Room(size, talker, mic, float(rt60), rir, int(direct))
            for size, talker, mic, rt60, direct, rir in zip(*columns, rirs)
        )
