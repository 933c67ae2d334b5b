"""Features of many utterances, mixed as a device would hear them: what a recognizer trains on and is scored on.

    build_utterances(corpus, "train", mix, features, seed) -> UtteranceBank

Each utterance goes through the mixer (mixing.py: silence before and after, noise, level, room) and the filter bank. The
end of speech is the end of the last 20 ms frame within 30 dB of the loud ones (the rule that measures levels), in the
dry audio: an estimate from energy, from which delays are counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from kwsbench.data.audio import SAMPLE_RATE, AudioError
from kwsbench.data.contents import content_sha256
from kwsbench.data.corpora import SPEECH, Clip, Corpus
from kwsbench.data.mixing import Mixer, MixRecipe, Source
from kwsbench.data.transcribed import TranscribedCorpus, Utterance, read_utterance
from kwsbench.features.lfbe import LfbeConfig, lfbe
from kwsbench.files import locked, replacing, set_aside

BANK_VERSION = 1
ARRAYS = ("features", "offsets", "speech_end_seconds")
TEXTS = ("names", "texts", "speakers", "skipped")
# Every 10 ms frame, 32 bands: the encoder joins frames itself.
FEATURES = LfbeConfig(n_mels=32, keep_every=1)
MIX = MixRecipe(snr_db=(10.0, 30.0), level_dbfs=(-30.0, -20.0), far_field=0.0, lead_seconds=0.2, tail_seconds=0.5)


@dataclass(frozen=True, eq=False)
class UtteranceBank:
    """Frames of many utterances; utterance ``i`` is the frames ``offsets[i] .. offsets[i + 1] - 1``.

    ``features`` float32 [total, n_mels]; ``offsets`` int64 [n + 1]; ``speech_end_seconds`` float64 [n] from the first
    sample; ``names``, ``texts``, ``speakers`` per utterance. ``skipped``: what could not be read, with the reason;
    ``source_hash``: hash of all that the bank was made from.
    """

    features: np.ndarray
    offsets: np.ndarray
    speech_end_seconds: np.ndarray
    names: tuple[str, ...]
    texts: tuple[str, ...]
    speakers: tuple[str, ...]
    skipped: tuple[str, ...]
    source_hash: str

    def __len__(self) -> int:
        return len(self.names)

    def utterance(self, i: int) -> np.ndarray:
        """Features float32 [frames, n_mels] of utterance ``i``."""
        return self.features[self.offsets[i] : self.offsets[i + 1]]

    def save(self, path: str | Path) -> None:
        """Write an npz file: whole or not at all."""
        columns = {name: getattr(self, name) for name in ARRAYS}
        columns |= {name: np.array(getattr(self, name), np.str_) for name in TEXTS}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **columns, source_hash=np.array(self.source_hash))

    @classmethod
    def load(cls, path: str | Path) -> UtteranceBank:
        """Read what :meth:`save` wrote. Raises ValueError for another or a damaged file."""
        try:
            with open(path, "rb") as stream, np.load(stream) as file:
                values: dict[str, Any] = {name: file[name] for name in ARRAYS}
                values |= {name: tuple(file[name].tolist()) for name in TEXTS}
                return cls(**values, source_hash=str(file["source_hash"]))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{path} is not a bank of utterances, or is damaged ({error}); build again") from error


def build_utterances(
    corpus: TranscribedCorpus,
    split: str,
    mix: MixRecipe = MIX,
    features: LfbeConfig = FEATURES,
    seed: int = 0,
    *,
    rounds: int = 1,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> UtteranceBank:
    """Mix every utterance of a split ``rounds`` times and take its features; float32, n_mels * 4 bytes a frame.

    ``cache_dir`` keeps the bank under the hash of its sources. What cannot be read is skipped and listed.

    Raises:
        ValueError: ``rounds`` below 1, no utterance in the split, or none that can be read.
    """
    chosen = corpus.select(split)
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if not chosen:
        raise ValueError(f"no utterances in split {split!r} of {corpus.root}")
    noise = (clip.path for clip in corpus.noise if clip.split == split)
    heard = sorted({part.path for u in chosen for part in u.parts}.union(noise))
    source = {
        "version": BANK_VERSION,
        "corpus": corpus.fingerprint(),
        "contents": content_sha256(corpus.root, heard, cache_dir),
        "split": split,
        "mix": asdict(mix),
        "features": asdict(features),
        "seed": seed,
        "rounds": rounds,
    }
    source_hash = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
    if cache_dir is None:
        return _build(corpus, split, mix, features, seed, rounds, None, source_hash, progress)
    path = Path(cache_dir) / f"utterances-{split}-{source_hash[:16]}.npz"
    with locked(path.with_suffix(""), f"mixing {split}"):
        if path.exists():
            try:
                return UtteranceBank.load(path)
            except ValueError as error:
                set_aside(path, error)
        bank = _build(corpus, split, mix, features, seed, rounds, Path(cache_dir), source_hash, progress)
        bank.save(path)
        return bank


def speech_end_seconds(audio: np.ndarray) -> float:
    """When speech ends in dry audio [samples]: the end of the last 20 ms frame within 30 dB of the 95th percentile of
    frame power; all of it where that finds nothing."""
    frame = SAMPLE_RATE // 50
    whole = len(audio) // frame
    powers = np.square(audio[: whole * frame], dtype=np.float64).reshape(whole, frame).mean(axis=1)
    loud = np.flatnonzero(powers >= 1e-3 * np.percentile(powers, 95)) if whole else np.zeros(0)
    return float((loud[-1] + 1) * frame / SAMPLE_RATE) if len(loud) else len(audio) / SAMPLE_RATE


def _build(
    corpus: TranscribedCorpus,
    split: str,
    mix: MixRecipe,
    features: LfbeConfig,
    seed: int,
    rounds: int,
    cache_dir: Path | None,
    source_hash: str,
    progress: bool,
) -> UtteranceBank:
    mixer = Mixer(Corpus(corpus.root, corpus.noise), mix, seed, cache_dir=cache_dir)
    blocks, names, texts, speakers, ends = [], [], [], [], []
    skipped: dict[str, str] = {}
    for utterance, audio in _readable(corpus, split, skipped, progress):
        clip = Clip(utterance.name, SPEECH, utterance.speaker, split, len(audio) / SAMPLE_RATE)
        source = Source(clip, audio, 0.0, speech_end_seconds(audio))
        for round in range(rounds):
            mixture = mixer.mix_source(source, round)
            blocks.append(lfbe(mixture.audio, features))
            names.append(utterance.name)
            texts.append(utterance.text)
            speakers.append(utterance.speaker)
            ends.append(mixture.end_seconds)
    if not blocks:
        raise ValueError(f"none of the utterances of {split} can be read; the first: {next(iter(skipped.items()))}")
    lengths = [len(block) for block in blocks]
    return UtteranceBank(
        np.concatenate(blocks),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.array(ends),
        tuple(names),
        tuple(texts),
        tuple(speakers),
        tuple(f"{name}: {why}" for name, why in sorted((skipped | mixer.unreadable).items())),
        source_hash,
    )


def _readable(
    corpus: TranscribedCorpus, split: str, skipped: dict[str, str], progress: bool
) -> Iterator[tuple[Utterance, np.ndarray]]:
    """Utterances with their audio; the others go to ``skipped``."""
    with contextlib.closing(
        tqdm(corpus.select(split), desc=f"mixing {split}", unit="utterance", disable=not progress, mininterval=1.0)
    ) as bar:
        for utterance in bar:
            try:
                yield utterance, read_utterance(corpus.root, utterance)
            except AudioError as error:
                skipped[utterance.name] = error.reason
