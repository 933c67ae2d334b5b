"""A clip as a device would hear it: at a distance, in noise, at some level.

    Mixer(corpus, recipe, seed).mix(clip, round) -> Mixture

Layout: silence (lead), the clip, silence (tail), noise over everything. All times are seconds from the first
sample of the mixture. The end of the word is that of the direct sound (rooms.py).

Levels. Speech power is the mean square of the speech, reverberation included, over the word's span; in
continuous speech over its active 20 ms frames (within 30 dB of the 95th percentile). Noise power is the mean
square over the whole mixture. ``snr_db`` is their ratio, ``level_dbfs`` the speech power relative to 1.0 (the
power of a full-scale square wave). The noise a recording brought along counts as speech. A mixture that would
exceed +-1 is scaled down as a whole to 0.999: the SNR holds, ``level_dbfs`` reports the level it got.

Chance. Every draw comes from (seed, round, SHA-256 of ``clip.path``): a mixture is the same in any order and
in any process. Splits share nothing: recorded noise and babble come from the clip's own split, rooms are
disjoint.

Kinds of noise: ``recorded`` (the split's noise clips), ``babble`` (4-7 voices out of the split's other clips,
keywords never among them), ``coloured`` and ``tonal`` (noise.py). A kind that the split cannot give falls
away.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import soxr

from kwsbench.data.audio import SAMPLE_RATE, AudioError, read_audio
from kwsbench.data.corpora import NOISE, SPEECH, SPLITS, Clip, Corpus
from kwsbench.data.noise import coloured_noise, cut_loop, seamless, tonal_noise, unit_power
from kwsbench.data.rooms import Room, apply_room, room_bank
from kwsbench.data.spans import word_span

__all__ = ["PARTIAL", "MixRecipe", "Mixer", "Mixture", "Source", "training_recipe", "word_span"]

PARTIAL = "_partial_"
KINDS = ("recorded", "coloured", "babble", "tonal")
PEAK = 0.999
FADE_SAMPLES = 80
EXTRA_LEAD_SECONDS = 0.1
BABBLE_LINES = 24
BABBLE_SECONDS = 6.0


@dataclass(frozen=True)
class MixRecipe:
    """Ranges to draw from, all uniform; pairs are (lowest, highest).

    ``far_field`` is the probability of a room, of ``n_rooms`` per split. ``lead_seconds`` is the least lead,
    up to 0.1 s is added. ``speed`` resamples a clip (1.1: faster and higher). ``partial`` is the probability
    that a keyword's clip is cut after 40-60% of the word and becomes a negative with the label ``PARTIAL``,
    so that a model learns to wait for the rest: for training only, see :func:`training_recipe`.
    """

    snr_db: tuple[float, float] = (5.0, 25.0)
    level_dbfs: tuple[float, float] = (-35.0, -15.0)
    far_field: float = 0.3
    rt60_seconds: tuple[float, float] = (0.25, 0.8)
    n_rooms: int = 24
    lead_seconds: float = 0.7
    tail_seconds: float = 0.7
    noises: tuple[str, ...] = KINDS
    speed: tuple[float, float] = (1.0, 1.0)
    partial: float = 0.0

    def __post_init__(self) -> None:
        for name in ("snr_db", "level_dbfs", "rt60_seconds", "speed"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name} must be (lowest, highest), got {(low, high)}")
        for name in ("far_field", "partial"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, 0..1, got {getattr(self, name)}")
        if not (0.5 <= self.speed[0] and self.speed[1] <= 2):
            raise ValueError(f"speed must lie within 0.5..2, got {self.speed}")
        if min(self.lead_seconds, self.tail_seconds) < 0:
            raise ValueError(f"lead and tail must not be negative, got {self.lead_seconds} and {self.tail_seconds} s")
        unknown = set(self.noises) - set(KINDS)
        if unknown or not self.noises:
            raise ValueError(f"noises must be some of {', '.join(KINDS)}; got {self.noises}")


def training_recipe(recipe: MixRecipe) -> MixRecipe:
    """``recipe`` with what only training may see: speed 0.9-1.1 and one keyword in ten cut short."""
    return replace(recipe, speed=(0.9, 1.1), partial=0.1)


@dataclass(frozen=True, eq=False)
class Source:
    """A decoded clip: ``audio`` float32 [n] and the word's span in it, in seconds."""

    clip: Clip
    audio: np.ndarray
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, eq=False)
class Mixture:
    """``audio`` float32 [n] at 16 kHz, |audio| <= 1; the word's span in it (all of the clip for continuous
    speech); what was drawn. ``room`` is the index of the split's room, -1 for none; ``noise`` its kind."""

    audio: np.ndarray
    label: str
    start_seconds: float
    end_seconds: float
    snr_db: float
    level_dbfs: float
    room: int
    noise: str


class Mixer:
    """Mixes the clips of a corpus. Decoded noise, voices and rooms are kept in memory once used.

    ``keywords``: labels that never go into babble, and that ``recipe.partial`` cuts. ``cache_dir``: where the
    rooms are kept between runs. ``unreadable`` lists noise and babble files that could not be read.
    """

    def __init__(
        self,
        corpus: Corpus,
        recipe: MixRecipe,
        seed: int,
        keywords: tuple[str, ...] = (),
        cache_dir: str | Path | None = None,
    ) -> None:
        self.corpus = corpus
        self.recipe = recipe
        self.seed = seed
        self.keywords = keywords
        self.unreadable: dict[str, str] = {}
        self._materials = {split: _Material(self, split, cache_dir) for split in SPLITS}

    def load(self, clip: Clip) -> Source:
        """Decode a clip and find its word. Raises AudioError; ValueError for a noise clip."""
        if clip.label == NOISE:
            raise ValueError(f"{clip.path} is background noise: it is mixed in, not mixed")
        audio = read_audio(self.corpus.root / clip.path)
        seconds = len(audio) / SAMPLE_RATE
        if clip.label == SPEECH:
            return Source(clip, audio, 0.0, seconds)
        if clip.start_seconds is None or clip.end_seconds is None:
            return Source(clip, audio, *word_span(audio))
        return Source(clip, audio, min(clip.start_seconds, seconds), min(clip.end_seconds, seconds))

    def mix(self, clip: Clip, round: int = 0) -> Mixture:
        """The mixture of a clip in a round; another round, another mixture."""
        return self.mix_source(self.load(clip), round)

    def mix_source(self, source: Source, round: int = 0) -> Mixture:
        """As :meth:`mix`, for a clip already decoded."""
        recipe, material = self.recipe, self._materials[source.clip.split]
        rng = clip_rng(source.clip, self.seed, round)
        snr_db, level_dbfs = rng.uniform(*recipe.snr_db), rng.uniform(*recipe.level_dbfs)
        far, speed = rng.random() < recipe.far_field, rng.uniform(*recipe.speed)
        room = int(rng.integers(recipe.n_rooms)) if far else -1
        lead = int((recipe.lead_seconds + EXTRA_LEAD_SECONDS * rng.random()) * SAMPLE_RATE)
        partial, share = rng.random() < recipe.partial, rng.uniform(0.4, 0.6)
        kind = material.kinds[rng.integers(len(material.kinds))]

        source = _at_speed(source, speed)
        label = source.clip.label
        if partial and label in self.keywords:
            source, label = _cut_short(source, share), PARTIAL
        start, end = (lead + t * SAMPLE_RATE for t in (source.start_seconds, source.end_seconds))
        speech = np.zeros(lead + len(source.audio) + int(recipe.tail_seconds * SAMPLE_RATE), np.float32)
        speech[lead : lead + len(source.audio)] = _faded(source.audio)
        if far:
            speech = apply_room(speech, material.rooms[room])
        span = speech[int(start) : max(int(end), int(start) + 1)]
        power = active_power(span) if label == SPEECH else _power(span)

        level = 10 ** (level_dbfs / 20)
        noise, kind = material.noise(kind, len(speech), rng)
        audio = noise * (level * 10 ** (-snr_db / 20))
        if power > 0:
            audio = audio + speech * (level / np.sqrt(power))
        peak = float(np.abs(audio).max())
        if peak > PEAK:
            audio, level_dbfs = audio * (PEAK / peak), level_dbfs + 20 * np.log10(PEAK / peak)
        return Mixture(
            audio.astype(np.float32),
            label,
            float(start / SAMPLE_RATE),
            float(end / SAMPLE_RATE),
            float(snr_db) if power > 0 else -np.inf,
            float(level_dbfs) if power > 0 else -np.inf,
            room,
            kind,
        )


def clip_rng(clip: Clip, seed: int, round: int, stream: int = 0) -> np.random.Generator:
    """The generator of a clip in a round. ``stream`` 0 is the mixture; others are independent of it."""
    words = np.frombuffer(hashlib.sha256(clip.path.encode()).digest()[:16], "<u4")
    return np.random.default_rng([seed, round, stream, *words.tolist()])


def active_power(speech: np.ndarray) -> float:
    """Mean square of ``speech`` over its 20 ms frames within 30 dB of the 95th percentile of frame power."""
    frame = SAMPLE_RATE // 50
    if len(speech) < frame:
        return _power(speech)
    powers = np.square(speech[: len(speech) // frame * frame], dtype=np.float64).reshape(-1, frame).mean(axis=1)
    return float(powers[powers >= 1e-3 * np.percentile(powers, 95)].mean())


class _Material:
    """What the mixtures of one split are made of, decoded when first used."""

    def __init__(self, mixer: Mixer, split: str, cache_dir: str | Path | None) -> None:
        self.mixer, self.split, self.cache_dir = mixer, split, cache_dir
        corpus, keywords = mixer.corpus, mixer.keywords
        self.noise_clips = corpus.select(label=NOISE, split=split)
        self.voice_clips = tuple(c for c in corpus.select(split=split) if c.label not in (NOISE, *keywords))
        self.loops: dict[str, np.ndarray | None] = {}

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        have = {"recorded": self.noise_clips, "babble": self.voice_clips, "coloured": True, "tonal": True}
        kinds = tuple(kind for kind in self.mixer.recipe.noises if have[kind])
        if not kinds:
            raise ValueError(
                f"the {self.split} split has no clips for noises={self.mixer.recipe.noises}; "
                "add 'coloured', which needs none"
            )
        return kinds

    @cached_property
    def rooms(self) -> tuple[Room, ...]:
        recipe = self.mixer.recipe
        return room_bank(self.mixer.seed, self.split, recipe.n_rooms, recipe.rt60_seconds, self.cache_dir)

    @cached_property
    def voices(self) -> list[np.ndarray]:
        """Voices for babble: one clip after the other, each at power 1, float32 [6 s]."""
        rng = np.random.default_rng([self.mixer.seed, SPLITS.index(self.split), BABBLE_LINES])
        wanted = int(BABBLE_SECONDS * SAMPLE_RATE)
        lines: list[np.ndarray] = []
        pieces: list[np.ndarray] = []
        order = rng.permutation(len(self.voice_clips))
        turn = 0
        while len(lines) < BABBLE_LINES and turn < BABBLE_LINES * 32:
            turn += 1
            audio = self._read(self.voice_clips[order[turn % len(order)]])
            if audio is not None and active_power(audio) > 0:
                pieces.append(audio / np.float32(np.sqrt(active_power(audio))))
            if sum(map(len, pieces)) >= wanted:
                lines.append(np.concatenate(pieces)[:wanted])
                pieces = []
        return lines or ([np.concatenate(pieces)] if pieces else [])

    def noise(self, kind: str, n_samples: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """Noise at mean power 1, float64 [n_samples], and its kind: coloured where no file can be read."""
        if kind == "recorded":
            for i in rng.permutation(len(self.noise_clips)):
                loop = self._loop(self.noise_clips[i])
                if loop is not None:
                    return unit_power(cut_loop(loop, n_samples, rng).astype(np.float64)), kind
        if kind == "babble" and self.voices:
            babble = np.zeros(n_samples)
            for i in rng.permutation(len(self.voices))[: rng.integers(4, 8)]:
                babble += cut_loop(self.voices[i], n_samples, rng)
            return unit_power(babble), kind
        if kind == "tonal":
            return tonal_noise(n_samples, rng), kind
        return coloured_noise(n_samples, rng.uniform(0, 2), rng), "coloured"

    def _loop(self, clip: Clip) -> np.ndarray | None:
        if clip.path not in self.loops:
            audio = self._read(clip)
            usable = audio is not None and len(audio) > 1 and _power(audio) > 0
            self.loops[clip.path] = seamless(audio) if audio is not None and usable else None
        return self.loops[clip.path]

    def _read(self, clip: Clip) -> np.ndarray | None:
        try:
            return read_audio(self.mixer.corpus.root / clip.path)
        except AudioError as error:
            self.mixer.unreadable[clip.path] = error.reason
            return None


def _power(signal: np.ndarray) -> float:
    return float(np.mean(np.square(signal, dtype=np.float64)))


def _faded(audio: np.ndarray) -> np.ndarray:
    """A copy with 5 ms ramps at both ends: a clip's own noise must not start with a click."""
    fade = min(FADE_SAMPLES, len(audio) // 2)
    ramp = (0.5 - 0.5 * np.cos(np.pi * np.arange(fade) / max(fade, 1))).astype(np.float32)
    audio = audio.copy()
    audio[:fade] *= ramp
    audio[len(audio) - fade :] *= ramp[::-1]
    return audio


def _at_speed(source: Source, speed: float) -> Source:
    if speed == 1.0:
        return source
    audio = soxr.resample(source.audio, SAMPLE_RATE * speed, SAMPLE_RATE, "MQ")
    return replace(
        source,
        audio=audio,
        start_seconds=source.start_seconds / speed,
        end_seconds=source.end_seconds / speed,
    )


def _cut_short(source: Source, share: float) -> Source:
    """The clip up to ``share`` of the word."""
    end = source.start_seconds + share * (source.end_seconds - source.start_seconds)
    return replace(source, audio=source.audio[: max(int(end * SAMPLE_RATE), 1)], end_seconds=end)
