"""A small corpus of words that are tones, in every split, with background noise: for tests of clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kwsbench.data.audio import SAMPLE_RATE, write_flac
from kwsbench.data.corpora import NOISE, SPLITS

WORDS = {"high": 3000, "low": 400, "middle": 1100, "other": 700, "more": 1900}
PER_SPLIT = {"train": 12, "validation": 6, "test": 6}


def tone(hz: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A tone near ``hz`` with a little noise, float32."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * hz * rng.uniform(0.95, 1.05) * t) + 0.002 * rng.standard_normal(len(t))).astype(
        np.float32
    )


def write_clips(root: Path, words=WORDS, noise: bool = True) -> Path:
    """Words of 0.8 s with a manifest, by a speaker of each split; background noise of 3 s per split."""
    rng, rows = np.random.default_rng(0), ["path,label,speaker,split"]

    def add(path: str, label: str, split: str, audio: np.ndarray) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_flac(root / path, audio)
        rows.append(f"{path},{label},{'' if label == NOISE else split},{split}")

    for split in SPLITS:
        for word, hz in words.items():
            for i in range(PER_SPLIT[split]):
                add(f"{word}/{split}{i}.flac", word, split, tone(hz, 0.8, rng))
        if noise:
            add(f"noise/{split}.flac", NOISE, split, (0.1 * rng.standard_normal(3 * SAMPLE_RATE)).astype(np.float32))
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root
