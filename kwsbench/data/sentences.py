"""Transcribed sentences of the embedded synthesizer: recognition without any recording.

    spoken_sentences(RECIPES["default"], folder) -> TranscribedCorpus

Requests to a house of a small closed grammar (texts.requests), said by the voices of synth.py; each voice belongs to
one split, so the splits share no speaker. They do share sentences: what is tested is other voices, not other texts. It
is synthetic speech of one synthesizer, to be labelled so. The corpus lies below ``folder`` as the embedded corpus does,
named by its content, made once, resumed at the next voice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from kwsbench.data.synth import SynthRecipe, synthesize
from kwsbench.data.texts import KEYWORD, REQUESTS
from kwsbench.data.transcribed import TranscribedCorpus, open_transcribed_manifest


@dataclass(frozen=True)
class SentenceRecipe:
    """``per_voice`` different sentences by each of ``n_voices`` voices (two thirds train, one sixth each test and
    validation)."""

    n_voices: int = 90
    per_voice: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.per_voice <= len(REQUESTS):
            raise ValueError(f"per_voice must be 1..{len(REQUESTS)}, the sentences there are, got {self.per_voice}")


RECIPES = MappingProxyType(
    {
        "tiny": SentenceRecipe(n_voices=12, per_voice=8),
        "smoke": SentenceRecipe(n_voices=36, per_voice=25),
        "default": SentenceRecipe(),
        "full": SentenceRecipe(n_voices=360, per_voice=40),
    }
)


def spoken_sentences(
    recipe: SentenceRecipe, out_dir: str | Path, workers: int = 2, progress: bool = True
) -> TranscribedCorpus:
    """Make the corpus below ``out_dir``, or open it where it is already there.

    Raises:
        SynthUnavailable: the synthesizer is not installed.
        ValueError: fewer than 3 voices.
    """
    # The synthesizer's "words" are whatever a voice says by itself. Its keyword is said once and left out here.
    synth = SynthRecipe(
        keyword=KEYWORD,
        confusables=(),
        words=REQUESTS,
        n_voices=recipe.n_voices,
        keyword_renderings=1,
        confusable_renderings=0,
        word_renderings=recipe.per_voice,
        sentence_renderings=0,
        train_minutes=0.0,
        validation_minutes=0.0,
        test_minutes=0.0,
        seed=recipe.seed,
    )
    root = synthesize(synth, out_dir, workers, progress).root
    return open_transcribed_manifest(root, REQUESTS)
