"""Batches of clips: the same for seed and step, in the task's shares, one sound for every front end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kwsbench.data.clips import Augmentation, augment, clip_task, task_clips
from kwsbench.data.corpora import SPLITS, open_corpus
from kwsbench.features.lfbe import LfbeConfig, lfbe
from kwsbench.features.mfcc import MfccConfig, mfcc
from kwsbench.models.layers import Front
from kwsbench.training.clips import AUGMENT_SEED, ClipSampler, ClipSampling, ClipStage, heard
from kwsbench.training.loop import StageConfig, make_optimizer, train
from tests.data.clip_tools import write_clips

LFBE = Front("lfbe", 8, 640, 320)
RAW = Front("raw")
FEW = ClipSampling(batch=32, rounds=2)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    corpus = open_corpus(write_clips(tmp_path_factory.mktemp("tones")))
    return {split: task_clips(corpus, clip_task("high,low"), split) for split in SPLITS}


@pytest.fixture(scope="module")
def samplers(sets):
    return {front.kind: ClipSampler(sets, front, FEW, seed=0) for front in (RAW, LFBE)}


@pytest.mark.parametrize("kind", ["raw", "lfbe"])
def test_a_batch_is_a_function_of_seed_and_step(sets, samplers, kind):
    sampler = samplers[kind]
    x, labels = sampler.batch(3)
    assert x.dtype == torch.float32 and labels.dtype == torch.int64
    assert x.shape == (32, sampler.front.frames(16000), sampler.front.bins)
    again = ClipSampler(sets, sampler.front, FEW, seed=0).batch(3)
    torch.testing.assert_close((x, labels), again, rtol=0, atol=0)
    assert not torch.equal(x, sampler.batch(4)[0])
    assert not torch.equal(x, ClipSampler(sets, sampler.front, FEW, seed=1).batch(3)[0])


def test_front_ends_hear_the_same_augmented_sound(samplers):
    (raw, labels), (features, same) = (samplers[kind].batch(5) for kind in ("raw", "lfbe"))
    assert torch.equal(labels, same)
    config = LfbeConfig(8, window_samples=640, hop_samples=320, n_fft=1024, keep_every=1)
    for sound, frames in zip(raw, features):
        np.testing.assert_array_equal(frames.numpy(), lfbe(sound[:, 0].numpy(), config))


def test_mfcc_are_those_of_the_features_room(sets):
    clips = sets["test"].audio[:3]
    found = heard(Front("mfcc", 10, 640, 320), clips)
    assert found.shape == (3, 49, 10)
    for sound, frames in zip(clips, found):
        np.testing.assert_array_equal(frames, mfcc((sound / 32768).astype(np.float32), MfccConfig()))


def test_raw_samples_are_int16_exactly(samplers):
    samples = samplers["raw"].batch(0)[0].numpy() * 32768
    assert np.array_equal(samples, samples.astype(np.int16))
    assert samplers["raw"].mean == 0 and samplers["raw"].std == 1


def test_rounds_are_those_of_the_corpus(sets, samplers):
    clips, how = sets["train"], FEW.augmentation
    possible = {
        augment(clips, np.array([row]), np.array([round]), AUGMENT_SEED, how).tobytes()
        for row in range(len(clips))
        for round in range(2)
    }
    drawn = (samplers["raw"].batch(9)[0].numpy() * 32768).astype(np.int16)
    assert all(sound.tobytes() in possible for sound in drawn)


def test_classes_come_in_the_shares_of_the_task(sets):
    labels = torch.cat([ClipSampler(sets, RAW, ClipSampling(batch=50), 0).batch(i)[1] for i in range(30)])
    shares = np.bincount(labels.numpy(), minlength=4) / len(labels)
    np.testing.assert_allclose(shares, np.array([0.1, 0.1, 0.5, 0.5]) / 1.2, atol=0.03)


def test_a_keyword_has_its_share(tmp_path):
    corpus = open_corpus(write_clips(tmp_path))
    sets = {"train": task_clips(corpus, clip_task("high"), "train")}
    sampler = ClipSampler(sets, RAW, ClipSampling(batch=50, positive_share=0.4), 0)
    drawn = torch.cat([sampler.batch(i)[1] for i in range(20)]).float().mean()
    assert abs(drawn - 0.4) < 0.05


def test_evaluation_is_every_clip_in_order_as_it_stands(sets, samplers):
    clips = sets["test"]
    x, labels = samplers["raw"].evaluation("test")
    np.testing.assert_array_equal((x[:, :, 0] * 32768).astype(np.int16), clips.audio)
    assert labels.tolist() == clips.labels.tolist()
    features, same = samplers["lfbe"].evaluation("test")
    np.testing.assert_array_equal(features, heard(LFBE, clips.audio))
    assert same.tolist() == labels.tolist()


def test_another_seed_shares_the_features(sets, samplers):
    other = samplers["lfbe"].with_seed(1)
    assert other.rounds is samplers["lfbe"].rounds and other.seed == 1 and samplers["lfbe"].seed == 0
    assert torch.equal(other.batch(2)[0], ClipSampler(sets, LFBE, FEW, seed=1).batch(2)[0])


def test_normalisation_is_that_of_the_training_features(sets, samplers):
    clips = sets["train"]
    rows = np.arange(len(clips))
    frames = heard(LFBE, augment(clips, rows, 0 * rows, AUGMENT_SEED, FEW.augmentation)).reshape(-1, 8)
    np.testing.assert_allclose(samplers["lfbe"].mean, frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(samplers["lfbe"].std, frames.std(0), rtol=1e-4)


def test_features_are_computed_once_and_again_where_damaged(sets, samplers, tmp_path):
    first = ClipSampler(sets, LFBE, FEW, 0, tmp_path)
    files = sorted(tmp_path.glob("features-*.npz"))
    assert len(files) == FEW.rounds
    assert torch.equal(first.batch(1)[0], samplers["lfbe"].batch(1)[0])
    times = [file.stat().st_mtime_ns for file in files]
    ClipSampler(sets, LFBE, FEW, 1, tmp_path)
    assert times == [file.stat().st_mtime_ns for file in files]
    files[0].write_bytes(b"damaged")
    assert torch.equal(ClipSampler(sets, LFBE, FEW, 0, tmp_path).batch(1)[0], first.batch(1)[0])
    other = replace(FEW, rounds=1, augmentation=Augmentation(volume=0.05))
    ClipSampler(sets, LFBE, other, 0, tmp_path)
    assert len(list(tmp_path.glob("features-*.npz"))) == 3


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"rounds": 0}, {"positive_share": 1.0}])
def test_sampling_beyond_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        ClipSampling(**wrong)


class Mean(nn.Module):
    """Logits from the mean frame."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        return self.linear(x.mean(1))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_loop_trains_on_clips_and_goes_on_from_a_checkpoint(samplers, tmp_path, momentum):
    sampler = samplers["lfbe"]
    stage = ClipStage("float", 30, 0.01, warmup_steps=2, checkpoint_every=10, label_smoothing=0.1, momentum=momentum)

    def trained(checkpoint):
        torch.manual_seed(0)
        model = Mean()
        return model, train(model, sampler, stage, checkpoint, progress=False)

    model, history = trained(None)
    assert history["loss"][-1] < history["loss"][0]
    file = tmp_path / "checkpoint.safetensors"
    trained(file)  # leaves its last checkpoint, of step 20
    again, _ = trained(file)
    for a, b in zip(model.parameters(), again.parameters()):
        assert torch.equal(a, b)


def test_labels_are_smoothed_and_momentum_is_nesterovs():
    stage = ClipStage("float", 10, 0.2, label_smoothing=0.1, momentum=0.9, weight_decay=4e-5)
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    p = F.log_softmax(logits, 1)[0]
    torch.testing.assert_close(stage.loss(logits, labels), -(0.9 * p[0] + 0.1 * p.mean()))
    optimizer = make_optimizer(Mean(), stage)
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["nesterov"]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [4e-5, 0.0]
    assert isinstance(make_optimizer(Mean(), StageConfig("float", 1, 0.1)), torch.optim.AdamW)
