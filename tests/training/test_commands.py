"""From a folder of words to a WER in one call: tones as words are learnt, and runs share what they can."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kwsbench.data.audio import SAMPLE_RATE, write_flac
from kwsbench.data.corpora import SPLITS, Clip, Corpus, open_corpus
from kwsbench.data.transcribed import character_vocabulary, open_librispeech
from kwsbench.data.utterances import build_utterances
from kwsbench.features.lfbe import LfbeConfig
from kwsbench.models.conformer import ConformerConfig
from kwsbench.models.transducer import Transducer, TransducerConfig
from kwsbench.training.commands import COMMAND_PROFILES, CommandProfile, train_commands
from kwsbench.training.transducer import TransducerTraining, UtteranceSampler, recognise_bank, train_transducer

TINY = CommandProfile(
    TransducerTraining("float", steps=120, learning_rate=1e-2, batch=8, warmup_steps=5, mask_bands=1, mask_frames=3),
    ConformerConfig(n_mels=8, stack=6, width=16, blocks=1, heads=2, kernel=3, left_context=4),
    sequences=(60, 4, 20),
    word_count=(1, 2),
    features=LfbeConfig(n_mels=8, keep_every=1),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("tones")
    clips = []
    for label, hz in (("high", 3000), ("low", 400)):
        (root / label).mkdir()
        for split in SPLITS:
            for s in range(2):
                path = f"{label}/{split}{s}.flac"
                seconds = np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
                write_flac(root / path, (0.2 * np.sin(2 * np.pi * hz * (1 + 0.05 * s) * seconds)).astype(np.float32))
                clips.append(Clip(path, label, f"{split}{s}", split, 0.25, 0.0, 0.25))
    return Corpus(root, tuple(sorted(clips, key=lambda clip: clip.path)))


def test_one_call_goes_from_words_to_their_error_rate(corpus, tmp_path):
    run = train_commands(corpus, ("low", "high"), TINY, 0, tmp_path, progress=False)
    assert run.vocabulary.symbols == ("high", "low")
    assert run.recognised.total.words == sum(len(u.words) for u in run.sequences.select("test"))
    assert run.recognised.total.rate < 0.4, run.recognised.total.text()
    assert sorted(p.name.split("-")[1] for p in tmp_path.glob("utterances-*.npz")) == ["test", "train", "validation"]
    assert not list(tmp_path.glob("*.checkpoint.safetensors"))

    short = replace(TINY, training=replace(TINY.training, steps=3))
    first, same, other = (
        train_commands(corpus, ("low", "high"), short, s, tmp_path, progress=False) for s in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), same.model.state_dict().values()))
    assert first.history != other.history
    assert first.recognised.texts == other.recognised.texts == run.recognised.texts


@pytest.mark.slow
@pytest.mark.speech
@pytest.mark.parametrize("profile", ["smoke", "smoke-conformer"])
def test_recorded_commands_are_recognised(speech_root, tmp_path, profile):
    words = ("bed", "cat", "down", "go", "happy", "left", "no", "off", "on", "right", "stop", "up", "yes")
    run = train_commands(open_corpus(speech_root), words, COMMAND_PROFILES[profile], 0, tmp_path, progress=False)
    assert run.recognised.total.rate < 0.7, run.recognised.total.text()


def test_a_librispeech_shaped_folder_trains_by_characters(tmp_path):
    rng = np.random.default_rng(0)
    for folder, speaker in (("train-clean-100", 1), ("dev-clean", 2), ("test-clean", 3)):
        chapter = tmp_path / "LibriSpeech" / folder / str(speaker) / "10"
        chapter.mkdir(parents=True)
        for n in range(4):
            write_flac(chapter / f"{speaker}-10-{n:04d}.flac", (0.1 * rng.standard_normal(12000)).astype(np.float32))
        lines = [f"{speaker}-10-{n:04d} IT'S NOISE {'Z' * n}\n" for n in range(4)]
        (chapter / f"{speaker}-10.trans.txt").write_text("".join(lines[: 3 if speaker == 1 else 4]))
    corpus = open_librispeech(tmp_path / "LibriSpeech")
    assert [item.reason for item in corpus.skipped] == ["no transcript: no line in 1-10.trans.txt"]
    banks = {s: build_utterances(corpus, s, features=TINY.features, progress=False) for s in ("train", "test")}
    letters = character_vocabulary(corpus.texts("train"))
    model = Transducer(TransducerConfig(letters.size, TINY.encoder, 8, 16, 16), 0)
    sampler = UtteranceSampler(banks["train"], letters, model, 0)
    history = train_transducer(model, sampler, replace(TINY.training, steps=21), progress=False)
    assert len(sampler.labels) == 3 and history["loss"][-1] < history["loss"][0]
    recognised = recognise_bank(model, banks["test"], letters, TINY.features, width=2)
    assert recognised.total.words == 2 + 3 * 3 and recognised.speakers == ("3",) * 4
