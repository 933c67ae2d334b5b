"""Training a transducer: batches are functions of the step, resume is bit for bit, it learns, bad data is named."""

import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from kwsbench.data.transcribed import Vocabulary, character_vocabulary
from kwsbench.data.utterances import UtteranceBank
from kwsbench.features.lfbe import LfbeConfig
from kwsbench.models.conformer import ConformerConfig
from kwsbench.models.transducer import LstmEncoderConfig, Transducer, TransducerConfig
from kwsbench.training.checkpoints import CheckpointError
from kwsbench.training.transducer import (
    TransducerTraining,
    UtteranceSampler,
    batch_loss,
    recognise_bank,
    train_transducer,
)

WORDS = Vocabulary(("go", "left", "stop"))
LSTM = LstmEncoderConfig(n_mels=6, stack=2, hidden=24, layers=2, reduction=2)
CONFORMER = ConformerConfig(n_mels=6, stack=4, width=16, blocks=1, heads=2, kernel=3, left_context=4)
FEATURES = LfbeConfig(n_mels=6, keep_every=1)
RUN = TransducerTraining("test", steps=12, learning_rate=5e-3, batch=8, warmup_steps=4, mask_bands=1, mask_frames=3,
                         checkpoint_every=5)  # fmt: skip


def bank(count=60, seed=0, words=WORDS.symbols, least=1, most=4):
    """Word k lifts the bands 2k and 2k + 1 for 6 to 9 frames; noise and some frames of silence around."""
    rng = np.random.default_rng(seed)
    blocks, texts, ends = [], [], []
    for _ in range(count):
        # No word twice in a row: whether one or two were said would take longer to learn.
        steps = rng.integers(1, len(words), size=rng.integers(least, most + 1))
        said = (rng.integers(len(words)) + np.cumsum(steps)) % len(words)
        pieces = [rng.normal(0, 0.3, (rng.integers(2, 5), 6))]
        for k in said:
            loud = rng.normal(0, 0.3, (rng.integers(6, 10), 6))
            loud[:, 2 * k : 2 * k + 2] += 3
            pieces += [loud, rng.normal(0, 0.3, (rng.integers(8, 12), 6))]
        ends.append(sum(map(len, pieces[:-1])) * FEATURES.frame_seconds)
        pieces.append(rng.normal(0, 0.3, (16, 6)))
        blocks.append(np.concatenate(pieces).astype(np.float32))
        texts.append(" ".join(words[k] for k in said))
    names = tuple(f"u{i}" for i in range(count))
    offsets = np.concatenate([[0], np.cumsum([len(b) for b in blocks])])
    speakers = tuple(f"s{i % 7}" for i in range(count))
    return UtteranceBank(np.concatenate(blocks), offsets, np.array(ends), names, tuple(texts), speakers, (), f"b{seed}")


def transducer(encoder=LSTM, seed=0, symbols=4):
    return Transducer(TransducerConfig(symbols, encoder, 8, 12, 16), seed)


def setup(encoder=LSTM, seed=0, count=60):
    model = transducer(encoder, seed)
    sampler = UtteranceSampler(bank(count), WORDS, model, seed)
    model.set_normalisation(sampler.mean, sampler.std)
    return model, sampler


def test_a_batch_depends_on_seed_and_step_alone():
    _, first = setup()
    _, second = setup()
    second.batch(3, RUN)
    a, b = first.batch(7, RUN), second.batch(7, RUN)
    assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))
    assert not torch.equal(a.frames[:, :8], first.batch(8, RUN).frames[:, :8])
    assert not torch.equal(a.frames[:, :8], setup(seed=1)[1].batch(7, RUN).frames[:, :8])


def test_a_batch_holds_utterances_with_their_labels_and_lengths():
    data = bank()
    _, sampler = setup()
    plain = replace(RUN, mask_bands=0, mask_frames=0)
    seen = set()
    for step in range(60):
        batch = sampler.batch(step, plain)
        for frames, labels, encoded, count in zip(*vars(batch).values()):
            texts = WORDS.decode(labels[:count].tolist())
            (i,) = (i for i in range(len(data)) if torch.equal(torch.from_numpy(data.utterance(i)[:20]), frames[:20]))
            seen.add(i)
            assert texts == data.texts[i] and not labels[count:].any()
            assert encoded == len(data.utterance(i)) // 4 and not frames[len(data.utterance(i)) :].any()
    assert len(seen) == 60  # the shortest and the longest as well


def test_masks_set_bands_and_frames_to_the_mean():
    _, sampler = setup()
    masked, plain = (sampler.batch(5, replace(RUN, mask_bands=b, mask_frames=f, masks=1)) for b, f in ((3, 9), (0, 0)))
    changed = masked.frames != plain.frames
    assert changed.any() and not changed.all()
    means = torch.from_numpy(sampler.mean).expand_as(masked.frames)
    assert torch.equal(masked.frames[changed], means[changed])


def test_what_cannot_be_trained_on_is_left_out_and_listed():
    data = bank(8)
    texts = list(data.texts)
    texts[1] = "go home now"
    texts[2] = "stop " * 200
    offsets = data.offsets.copy()
    offsets[4] = offsets[3] + 3  # utterance 3 has three frames, the next one more
    changed = replace(data, texts=tuple(texts), offsets=offsets)
    sampler = UtteranceSampler(changed, WORDS, transducer(), 0)
    frames = len(data.utterance(2)) // 4
    assert sampler.skipped == (
        "u1: not among the 3 symbols of the vocabulary: 'home', 'now'",
        f"u2: 200 labels, at most {4 * frames} can be emitted over {frames} frames",
        "u3: audio shorter than one encoder frame",
    )
    assert sorted(sampler.labels) == [0, 4, 5, 6, 7]
    assert len(sampler.batch(0, RUN).frames) == 5


def test_nothing_to_train_on_and_other_shapes_are_errors():
    with pytest.raises(ValueError, match=r"no utterance can be trained on, 5 skipped; the first: u0: not among"):
        UtteranceSampler(bank(5), Vocabulary(("a", "b", "c")), transducer(), 0)
    with pytest.raises(ValueError, match="the bank has 6 bands, the model 32"):
        UtteranceSampler(bank(5), WORDS, transducer(LstmEncoderConfig()), 0)
    with pytest.raises(ValueError, match="the vocabulary has 4 labels with the blank, the model 9"):
        UtteranceSampler(bank(5), WORDS, transducer(symbols=9), 0)


def test_padding_does_not_change_the_loss():
    """A batch's loss is that of its utterances one by one."""
    model, sampler = setup()
    model.double()
    batch = sampler.batch(2, RUN)
    batch = replace(batch, frames=batch.frames.double())
    total = sum(
        batch_loss(model, type(batch)(*(x[b : b + 1] for x in vars(batch).values()))).item()
        * int(batch.label_counts[b])
        for b in range(len(batch.frames))
    )
    assert batch_loss(model, batch).item() == pytest.approx(total / int(batch.label_counts.sum()), rel=1e-10)


@pytest.mark.parametrize("encoder", [LSTM, CONFORMER], ids=["lstm", "conformer"])
def test_it_learns_words_that_differ(encoder):
    model, sampler = setup(encoder, count=500)  # few sequences would be learnt by heart
    run = replace(RUN, steps=200, learning_rate=1e-2, batch=16)
    history = train_transducer(model, sampler, run, progress=False)
    assert history["step"][-1] == 199 and history["loss"][-1] < 0.3 * history["loss"][0]
    unseen = bank(40, seed=9)
    found = recognise_bank(model, unseen, WORDS, FEATURES)
    assert found.total.words == sum(len(t.split()) for t in unseen.texts)
    assert found.total.rate < 0.2, found.total.text()
    assert recognise_bank(model, unseen, WORDS, FEATURES, width=3).total.rate < 0.2
    assert len(found.by_speaker()) == 7 and sum(e.words for e in found.by_speaker()) == found.total.words
    # The last label comes while or after the last word is spoken, within the silence that follows.
    delays = np.array(found.delay_seconds)
    assert np.isfinite(delays).mean() > 0.9 and -0.1 < np.nanmedian(delays) < 0.25


def test_resuming_gives_the_same_bits(tmp_path):
    whole, sampler = setup()
    expected = train_transducer(whole, sampler, RUN, progress=False)

    cut, sampler = setup()
    path = tmp_path / "state.safetensors"

    def interrupt(step, steps):
        assert steps == 12
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_transducer(cut, sampler, RUN, path, progress=False, before_step=interrupt)
    resumed, sampler = setup(seed=0)
    steps = []
    history = train_transducer(
        resumed, sampler, RUN, path, progress=False, before_step=lambda step, _: steps.append(step)
    )
    assert steps == [7, 8, 9, 10, 11] and history == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    model, sampler = setup()
    train_transducer(model, sampler, RUN, path, progress=False)
    assert path.is_file()  # written at steps 5 and 10
    for other in (replace(RUN, learning_rate=1e-3), replace(RUN, name="other")):
        with pytest.raises(CheckpointError, match="belongs to another run"):
            train_transducer(model, sampler, other, path, progress=False)
    sampler.seed = 1
    with pytest.raises(CheckpointError, match="belongs to another run, seed or data"):
        train_transducer(model, sampler, RUN, path, progress=False)
    sampler.seed = 0
    with pytest.raises(CheckpointError, match="a checkpoint of another model"):
        train_transducer(transducer(CONFORMER), sampler, RUN, path, progress=False)


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights():
    model, sampler = setup()

    def break_it(step, _):
        if step == 3:
            with torch.no_grad():
                model.joiner.output.bias[1] = math.inf

    with pytest.raises(FloatingPointError, match=r"the loss of 'test' is nan, .* at step 3: lower the learning rate"):
        train_transducer(model, sampler, RUN, progress=False, before_step=break_it)
    assert all(torch.isfinite(p).all() for n, p in model.named_parameters() if n != "joiner.output.bias")


def test_unknown_words_are_errors_when_scored():
    model, _ = setup()
    data = replace(bank(4), texts=("go home",) * 4)
    found = recognise_bank(model, data, WORDS, FEATURES)
    assert found.total.words == 8 and found.total.errors >= 4


def test_characters_train_as_well_as_words():
    letters = character_vocabulary(["go left", "stop"])
    model = transducer(symbols=letters.size)
    sampler = UtteranceSampler(bank(20), letters, model, 0)
    assert not sampler.skipped
    assert torch.isfinite(batch_loss(model, sampler.batch(0, RUN)))


@pytest.mark.parametrize(
    "changes",
    [{"steps": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"clip_norm": 0.0}, {"masks": -1}],
)
def test_bad_settings_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(RUN, **changes)
