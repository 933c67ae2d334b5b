"""What notebooks tell about a corpus and its mixtures: rows for tables, spans for figures. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kwsbench.data.corpora import NOISE, SPEECH, SPLITS, Clip, Corpus
from kwsbench.data.mixing import Mixer
from kwsbench.data.rooms import Room, rt60_by_schroeder
from kwsbench.features.lfbe import LfbeConfig, LfbeStream, lfbe


def provenance(data: str, profile: str, illustrative: bool) -> str:
    """One Markdown sentence on what a run's figures were measured on; ``data`` is empty for the embedded corpus."""
    heard = f"recordings in `{data}`" if data else "**synthetic** speech (the embedded corpus)"
    weight = ": **illustrative**, one short run that shows the path and ranks nothing" if illustrative else ""
    return f"Measured on {heard}, profile `{profile}`{weight}."


def split_rows(corpus: Corpus, keyword: str) -> list[dict[str, Any]]:
    """One row per split and a row of totals: clips and known speakers of the keyword, other words, hours by kind."""
    rows = [_split_row(corpus, keyword, split) for split in SPLITS]
    return [*rows, _split_row(corpus, keyword, None)]


def _split_row(corpus: Corpus, keyword: str, split: str | None) -> dict[str, Any]:
    clips = corpus.select(split=split)
    mine = [c for c in clips if c.label == keyword]
    others = [c for c in clips if c.label not in (keyword, SPEECH, NOISE)]
    return {
        "split": split or "all",
        "keyword_clips": len(mine),
        "keyword_speakers": len({c.speaker for c in mine if c.speaker}),
        "other_clips": len(others),
        "other_labels": len({c.label for c in others}),
        "speakers": len({c.speaker for c in clips if c.speaker and c.label != NOISE}),
        "word_hours": sum(c.seconds for c in (*mine, *others)) / 3600,
        "speech_hours": corpus.hours(SPEECH, split),
        "noise_hours": corpus.hours(NOISE, split),
    }


def label_spans(labels: np.ndarray, frame_end_seconds: np.ndarray) -> list[tuple[float, float, str]]:
    """Where frame labels are not negative, as (start, end, name): a stretch "ignored", and within it "positive".

    A frame's label holds from the end of the frame before to its own.
    """
    spans = []
    for name, chosen in (("ignored", np.asarray(labels) != 0), ("positive", np.asarray(labels) > 0)):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
        for a, b in edges.reshape(-1, 2).tolist():
            before = frame_end_seconds[a - 1] if a else 0.0
            spans.append((float(before), float(frame_end_seconds[b - 1]), name))
    return spans


def mixture_rows(mixer: Mixer, clips: Iterable[Clip]) -> list[dict[str, Any]]:
    """What was drawn for each clip's mixture: SNR, level, room (-1: none), kind of noise."""
    rows = []
    for clip in clips:
        m = mixer.mix(clip)
        rows.append({"snr_db": m.snr_db, "level_dbfs": m.level_dbfs, "room": m.room, "noise": m.noise})
    return rows


def evenly(clips: Sequence[Clip], most: int) -> list[Clip]:
    """At most ``most`` clips, spread evenly over the list."""
    if not clips:
        return []
    at = np.unique(np.linspace(0, len(clips) - 1, min(most, len(clips))).round().astype(int))
    return [clips[i] for i in at]


def streamed_feature_rows(audio: np.ndarray, config: LfbeConfig, chunks: Sequence[int]) -> list[dict[str, Any]]:
    """Per chunk size in samples: features compared with the whole file's, how many differ, the largest difference."""
    whole = lfbe(audio, config)
    rows = []
    for size in chunks:
        stream = LfbeStream(config)
        parts = [stream.push(audio[at : at + size]) for at in range(0, len(audio), size)]
        streamed = np.concatenate(parts)
        rows.append(
            {
                "chunk_samples": size,
                "values": int(whole.size),
                "different": int(np.count_nonzero(streamed != whole)),
                "largest_difference": float(np.max(np.abs(streamed - whole), initial=0)),
            }
        )
    return rows


def room_rows(rooms: Sequence[Room]) -> list[dict[str, Any]]:
    """Rooms by drawn RT60, and what Schroeder's integration measures on the response that is used."""
    rows = []
    for room in sorted(rooms, key=lambda r: r.rt60_seconds):
        measured = rt60_by_schroeder(room.rir)
        rows.append(
            {
                "drawn_seconds": room.rt60_seconds,
                "measured_seconds": measured,
                "error_percent": 100 * (measured / room.rt60_seconds - 1),
                "size": " x ".join(f"{v:.2f}" for v in room.size_m),
                "distance_m": float(np.linalg.norm(room.talker_m - room.mic_m)),
            }
        )
    return rows
