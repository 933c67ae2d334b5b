"""A recognizer of spoken command sequences, from a corpus of single words to its WER: one call.

    run = train_commands(open_corpus(folder), ("left", "right"), COMMAND_PROFILES["smoke"], seed=0, cache_dir=folder)
    run.recognised.total.text();  wer_interval(run.recognised.errors)

Banks of features are cached under ``cache_dir`` by the hash of their sources; interrupted training goes on there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

from kwsbench.data.corpora import Corpus
from kwsbench.data.mixing import MixRecipe
from kwsbench.data.sequences import SequenceRecipe, command_sequences
from kwsbench.data.transcribed import TranscribedCorpus, Vocabulary
from kwsbench.data.utterances import FEATURES, MIX, UtteranceBank, build_utterances
from kwsbench.features.lfbe import LfbeConfig
from kwsbench.files import locked
from kwsbench.models.bifocal import BifocalConfig
from kwsbench.models.conformer import ConformerConfig
from kwsbench.models.recurrent import LstmEncoderConfig
from kwsbench.models.transducer import Transducer, TransducerConfig
from kwsbench.training.transducer import (
    Recognised,
    TransducerTraining,
    UtteranceSampler,
    recognise_bank,
    train_transducer,
)


@dataclass(frozen=True)
class CommandProfile:
    """How much data and training; ``encoder`` may be any encoder's configuration."""

    training: TransducerTraining
    encoder: LstmEncoderConfig | ConformerConfig | BifocalConfig = field(default_factory=LstmEncoderConfig)
    sequences: tuple[int, int, int] = (1600, 120, 250)  # train, validation, test
    word_count: tuple[int, int] = (1, 4)
    mix: MixRecipe = MIX
    features: LfbeConfig = FEATURES

    def recipe(self, words: tuple[str, ...]) -> SequenceRecipe:
        """The sequences of some words, sorted."""
        return SequenceRecipe(tuple(sorted(words)), *self.sequences, word_count=self.word_count)


# Smoke: about two minutes of one core for either encoder. Illustrative, as one seed and few speakers are.
COMMAND_PROFILES = MappingProxyType(
    {
        "smoke": CommandProfile(
            TransducerTraining("float", steps=1500, learning_rate=3e-3), LstmEncoderConfig(hidden=128, layers=2)
        ),
        "smoke-conformer": CommandProfile(
            TransducerTraining("float", steps=1500, learning_rate=2e-3), ConformerConfig(blocks=2)
        ),
    }
)


@dataclass(frozen=True, eq=False)
class CommandRun:
    """A trained model with all that it takes to go on from it; ``recognised`` is of the test split, greedily."""

    model: Transducer
    vocabulary: Vocabulary
    sequences: TranscribedCorpus
    banks: dict[str, UtteranceBank]
    sampler: UtteranceSampler
    history: dict[str, list[float]]
    recognised: Recognised


def train_commands(
    corpus: Corpus,
    words: tuple[str, ...],
    profile: CommandProfile,
    seed: int,
    cache_dir: str | Path,
    data_seed: int = 0,
    progress: bool = True,
) -> CommandRun:
    """Draw sequences, make features, train a float transducer on words, and recognise the test split.

    ``seed`` is that of weights and batches, ``data_seed`` that of sequences and mixtures: seeds of one ``data_seed``
    are scored on the same test.

    Raises:
        ValueError: as :func:`command_sequences` and :func:`build_utterances`.
        FloatingPointError: training diverged.
    """
    sequences = command_sequences(corpus, profile.recipe(words), data_seed)
    banks = {
        split: build_utterances(
            sequences, split, profile.mix, profile.features, data_seed, cache_dir=cache_dir, progress=progress
        )
        for split in ("train", "validation", "test")
    }
    # From the recipe, not the draw: a word that was never drawn still is one.
    vocabulary = Vocabulary(tuple(sorted(words)))
    model = Transducer(TransducerConfig(vocabulary.size, profile.encoder), seed)
    sampler = UtteranceSampler(banks["train"], vocabulary, model, seed)
    model.set_normalisation(sampler.mean, sampler.std)
    source = json.dumps([model.config.to_json(), asdict(profile.training), seed, banks["train"].source_hash])
    address = hashlib.sha256(source.encode()).hexdigest()[:16]
    checkpoint = Path(cache_dir) / f"{profile.training.name}-{address}.checkpoint.safetensors"
    with locked(checkpoint.with_suffix(""), f"training {profile.training.name}"):
        history = train_transducer(model, sampler, profile.training, checkpoint, progress)
        checkpoint.unlink(missing_ok=True)
    recognised = recognise_bank(model, banks["test"], vocabulary, profile.features)
    return CommandRun(model, vocabulary, sequences, banks, sampler, history, recognised)
