"""Spoken command sequences: recorded single words of one speaker strung together, from any corpus of words.

    command_sequences(open_corpus(folder), SequenceRecipe(words=(...)), seed) -> TranscribedCorpus

Speech Commands and its like hold single words; a sequence such as "left stop up" tests recognition of continuous
speech of a small vocabulary without a transcribed corpus. It is easier than speech: words are spoken one by one,
without the ways words change each other's sounds. Say so beside every figure.

A sequence takes its words from one known speaker and one split, hence the splits share no speaker (the corpus is
checked when it is opened, and the sequences once more). How one is drawn: a word, uniformly, so that rare words occur;
a speaker who said it, in proportion to how often; the number of words; the other words, uniformly over those of the
speaker; a clip of each, no clip twice as long as there is another; the order. Words are cut to their span (spans.py)
and a margin, brought to equal power give or take ``level_spread_db``, and set ``gap_seconds`` apart. Noise, level and
room are added when features are made (utterances.py).

Every sequence is drawn from (seed, split, its number): more sequences keep the first ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kwsbench.data.audio import SAMPLE_RATE, AudioError, read_audio
from kwsbench.data.corpora import NOISE, SPEECH, SPLITS, Clip, Corpus, Skipped, check_keywords
from kwsbench.data.spans import word_span
from kwsbench.data.transcribed import Part, TranscribedCorpus, Utterance, check_disjoint

WORD_POWER_DBFS = -26.0


@dataclass(frozen=True)
class SequenceRecipe:
    """Which words, how many sequences of how many words, and how they are put together; pairs are (least, most).

    ``distinct_words``: the fewest different words of a speaker who takes part.
    """

    words: tuple[str, ...]
    train_sequences: int = 2000
    validation_sequences: int = 200
    test_sequences: int = 300
    word_count: tuple[int, int] = (2, 6)
    distinct_words: int = 2
    gap_seconds: tuple[float, float] = (0.05, 0.4)
    margin_seconds: float = 0.05
    level_spread_db: float = 3.0

    def __post_init__(self) -> None:
        if len(set(self.words)) != len(self.words) or len(self.words) < self.distinct_words:
            raise ValueError(
                f"a sequence needs at least {self.distinct_words} distinct words to draw from, got {self.words}"
            )
        reserved = [word for word in self.words if word in (NOISE, SPEECH) or word != word.strip() or not word]
        if reserved:
            raise ValueError(f"{reserved[0]!r} is not a word")
        if not 1 <= self.word_count[0] <= self.word_count[1] or self.distinct_words < 1:
            raise ValueError(f"word_count must be (least, most) from 1 on, got {self.word_count}")
        if not 0 <= self.gap_seconds[0] <= self.gap_seconds[1] or min(self.margin_seconds, self.level_spread_db) < 0:
            raise ValueError(f"gaps, margin and level spread must not be negative, got {self}")
        if min(self.sequences(split) for split in SPLITS) < 1:
            raise ValueError(f"every split needs at least one sequence, got {self}")

    def sequences(self, split: str) -> int:
        """How many sequences of a split."""
        return {
            "train": self.train_sequences,
            "validation": self.validation_sequences,
            "test": self.test_sequences,
        }[split]


def usual_words(corpus: Corpus, least: int = 15, most: int = 20) -> tuple[str, ...]:
    """The words with at least ``least`` clips of known speakers in every split, at most the ``most`` most recorded of
    them, sorted.

    Raises:
        ValueError: fewer than two such words.
    """
    counts = Counter((clip.label, clip.split) for clip in corpus.clips if clip.speaker)
    labels = {clip.label for clip in corpus.clips if clip.label not in (NOISE, SPEECH) and clip.label.strip()}
    rarest = {label: min(counts[label, split] for split in SPLITS) for label in labels}
    usual = sorted((label for label in labels if rarest[label] >= least), key=lambda label: (-rarest[label], label))
    if len(usual) < 2:
        raise ValueError(
            f"{corpus.root} has {len(usual)} words with at least {least} clips of known speakers in every split, two "
            "are needed; name the words to recognise"
        )
    return tuple(sorted(usual[:most]))


def command_sequences(corpus: Corpus, recipe: SequenceRecipe, seed: int) -> TranscribedCorpus:
    """Draw the sequences of all splits; decodes the clips they use once, to find their words.

    A clip that cannot be decoded or is silent is skipped and listed, and so are the sequences that drew it and what
    the corpus itself skipped. Clips of unknown speakers are left out, which the notes say.

    Raises:
        ValueError: a word is absent from the corpus or a split; no speaker of a split said enough different words;
            none of the drawn clips can be used; speakers shared between splits.
    """
    check_keywords(corpus, recipe.words)
    wanted = [clip for clip in corpus.clips if clip.label in recipe.words]
    unknown = Counter(clip.label for clip in wanted if not clip.speaker)
    drawn: list[tuple[str, str, list[Clip], np.ndarray]] = []
    notes = [f"{n} clips of {word!r} left out: their speakers are unknown" for word, n in sorted(unknown.items())]
    for number, split in enumerate(SPLITS):
        speakers = _speakers([clip for clip in wanted if clip.split == split and clip.speaker], recipe)
        if not speakers:
            raise ValueError(
                f"no speaker of the {split} split of {corpus.root} said {recipe.distinct_words} different words of "
                f"{', '.join(recipe.words)}; take more words, or distinct_words={recipe.distinct_words - 1}"
            )
        absent = [w for w in recipe.words if not any(w in words for words in speakers.values())]
        if absent:
            notes.append(f"{split} has no sequence with {', '.join(absent)}: nobody said them beside other words")
        for index in range(recipe.sequences(split)):
            rng = np.random.default_rng([seed, number, index])
            clips = _draw(speakers, [w for w in recipe.words if w not in absent], recipe, rng)
            gaps = rng.uniform(*recipe.gap_seconds, len(clips))
            levels = rng.uniform(-recipe.level_spread_db, recipe.level_spread_db, len(clips))
            drawn.append((f"{split}-{index:06d}", split, clips, np.stack([gaps, levels])))
    spans, unusable = _spans(corpus.root, [clip for _, _, clips, _ in drawn for clip in clips])
    skipped = [*corpus.skipped, *unusable]
    utterances = []
    for name, split, clips, chances in drawn:
        bad = [clip.path for clip in clips if clip.path not in spans]
        if bad:
            skipped.append(Skipped(name, f"its clip {bad[0]} cannot be used"))
        else:
            utterances.append(_utterance(name, split, clips, chances, spans, recipe))
    if not utterances:
        raise ValueError(f"none of the drawn clips can be used; the first: {unusable[0].path} ({unusable[0].reason})")
    check_disjoint(corpus.root, utterances)
    return TranscribedCorpus(corpus.root, tuple(utterances), corpus.select(NOISE), tuple(skipped), tuple(notes))


def _speakers(clips: list[Clip], recipe: SequenceRecipe) -> dict[str, dict[str, list[Clip]]]:
    """{speaker: {word: clips}} of those who said enough different words."""
    speakers: dict[str, dict[str, list[Clip]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        speakers[clip.speaker][clip.label].append(clip)
    return {name: words for name, words in sorted(speakers.items()) if len(words) >= recipe.distinct_words}


def _draw(
    speakers: dict[str, dict[str, list[Clip]]], words: list[str], recipe: SequenceRecipe, rng: np.random.Generator
) -> list[Clip]:
    """The clips of one sequence, in order; see the module docstring."""
    word = words[rng.integers(len(words))]
    names = [name for name, said in speakers.items() if word in said]
    counts = np.array([len(speakers[name][word]) for name in names], np.float64)
    said = speakers[names[rng.choice(len(names), p=counts / counts.sum())]]
    length = int(rng.integers(recipe.word_count[0], recipe.word_count[1] + 1))
    choice = sorted(said)
    sequence = [word, *(choice[rng.integers(len(choice))] for _ in range(length - 1))]
    decks: dict[str, list[Clip]] = {}
    clips = []
    for w in sequence:
        if not decks.get(w):
            decks[w] = [said[w][i] for i in rng.permutation(len(said[w]))]
        clips.append(decks[w].pop())
    return [clips[i] for i in rng.permutation(length)]


def _spans(root: Path, clips: list[Clip]) -> tuple[dict[str, tuple[float, float, float, float]], list[Skipped]]:
    """{path: (start, end, length in seconds, gain to -26 dBFS over the word)} of every clip once, and the unusable."""
    spans: dict[str, tuple[float, float, float, float]] = {}
    skipped: list[Skipped] = []
    for clip in sorted(set(clips), key=lambda clip: clip.path):
        try:
            audio = read_audio(root / clip.path)
        except AudioError as error:
            skipped.append(Skipped(clip.path, error.reason))
            continue
        start, end = clip.start_seconds, clip.end_seconds
        if start is None or end is None:
            start, end = word_span(audio)
        word = audio[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
        power = float(np.mean(np.square(word, dtype=np.float64))) if len(word) else 0.0
        if not power > 0:
            skipped.append(Skipped(clip.path, "silence: no word found"))
            continue
        gain = 10 ** (WORD_POWER_DBFS / 20) / power**0.5
        spans[clip.path] = (start, end, len(audio) / SAMPLE_RATE, gain)
    return spans, skipped


def _utterance(
    name: str,
    split: str,
    clips: list[Clip],
    chances: np.ndarray,
    spans: dict[str, tuple[float, float, float, float]],
    recipe: SequenceRecipe,
) -> Utterance:
    """The sequence of some clips; ``chances`` [2, words]: gaps in seconds, levels in dB."""
    parts, seconds = [], 0.0
    for k, (clip, gap, level_db) in enumerate(zip(clips, *chances.tolist())):
        start, end, length, gain = spans[clip.path]
        start, end = max(0.0, start - recipe.margin_seconds), min(length, end + recipe.margin_seconds)
        gap = gap if k else 0.0
        parts.append(Part(clip.path, start, end, gap, gain * 10 ** (level_db / 20)))
        seconds += gap + end - start
    text = " ".join(clip.label for clip in clips)
    return Utterance(name, text, clips[0].speaker, split, seconds, tuple(parts))
