"""Training: batches are functions of the step, resume is bit for bit, checkpoints refuse what they are not."""

import itertools
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from kwsbench.data.batches import FeatureBank
from kwsbench.data.corpora import SPEECH
from kwsbench.models.feedforward import Spotter, SpotterConfig
from kwsbench.quantizers.attach import QuantizedSpotter, WeightPlan, stage_one_plan, stage_two_plan
from kwsbench.training import loop, stages
from kwsbench.training.checkpoints import CheckpointError, load_model, read_tensors, save_model
from kwsbench.training.loop import StageConfig, learning_rate, train
from kwsbench.training.sampler import SamplerConfig, WindowSampler

CONFIG = SpotterConfig(("word",), n_mels=6, stacked_frames=5, hidden=(16, 16))
STAGE = StageConfig("test", steps=24, learning_rate=2e-3, warmup_steps=4, mine_every=8, mine_candidates=500,
                    mine_keep=50, checkpoint_every=7)  # fmt: skip


def bank(segments=30, frames=40, seed=0):
    """Noise; in keyword segments (every third) the bands rise towards the word's end, frames 20 to 24."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((segments, frames), np.int8)
    features = rng.normal(size=(segments, frames, 6)).astype(np.float32)
    for i in range(0, segments, 3):
        features[i, 16:25] += np.linspace(1, 4, 9)[:, None]
        labels[i, 12:20] = -1
        labels[i, 20:25] = 1
    names = ["word" if i % 3 == 0 else SPEECH if i % 3 == 1 else "other" for i in range(segments)]
    return FeatureBank(
        features=features.reshape(-1, 6),
        offsets=np.arange(segments + 1) * frames,
        labels=labels.reshape(-1),
        clip_paths=tuple(f"{i}.wav" for i in range(segments)),
        clip_labels=tuple(names),
        word_end_seconds=np.full(segments, 0.7, np.float32),
        frame_seconds=0.03,
        window_seconds=0.025,
        keywords=("word",),
        skipped=(),
        source_hash="test",
    )


def sampler(seed=0, **changes):
    return WindowSampler(bank(), CONFIG.stacked_frames, replace(SamplerConfig(batch=64), **changes), seed)


def test_a_batch_depends_on_seed_and_step_alone():
    first, second = sampler(), sampler()
    second.batch(3)
    a, b = first.batch(7), second.batch(7)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(a[0], first.batch(8)[0])
    assert not torch.equal(a[0], sampler(seed=1).batch(7)[0])


def test_batches_hold_the_promised_shares_and_never_ignored_frames():
    s = sampler(batch=200, positive_share=0.25)
    for step in range(5):
        windows, labels = s.batch(step)
        assert windows.shape == (200, 5, 6)
        assert int((labels == 1).sum()) == 50
        assert set(labels.tolist()) == {0, 1}


def test_windows_are_the_frames_up_to_their_end_and_the_mean_before_the_start():
    s = sampler()
    b = bank()
    window = s.windows(np.array([42]))[0]  # segment 1, frame 2
    assert torch.equal(window[2:], torch.from_numpy(b.features[40:43]))
    assert torch.equal(window[:2], torch.from_numpy(np.stack([s.mean, s.mean])))


def test_masks_replace_whole_runs_by_the_mean():
    s = sampler(mask_frames=2, mask_mels=2)
    plain = sampler(mask_frames=0, mask_mels=0)
    masked, clean = s.batch(0)[0], plain.batch(0)[0]
    changed = masked != clean
    assert 0 < changed.float().mean() < 0.7
    assert torch.all(masked[changed] == s.features[-1].expand_as(masked)[changed])


def test_masks_have_every_length_up_to_the_longest():
    clean = sampler(batch=2000, mask_frames=0, mask_mels=0).batch(0)[0]
    frames = sampler(batch=2000, mask_frames=2, mask_mels=0).batch(0)[0] != clean
    assert set(frames.any(2).sum(1).tolist()) == {0, 1, 2}
    mels = sampler(batch=2000, mask_frames=0, mask_mels=3).batch(0)[0] != clean
    assert set(mels.any(1).sum(1).tolist()) == {0, 1, 2, 3}


def test_candidates_are_distinct_negatives_of_every_kind():
    s = sampler()
    ends = s.candidates(8, 500)
    assert len(ends) == len(set(ends.tolist())) == 500
    assert np.all(s.labels[ends] == 0)
    assert np.isin(ends, s.word_negatives).any() and np.isin(ends, s.speech_negatives).any()
    assert len(s.candidates(8, 10**6)) == len(s.word_negatives) + len(s.speech_negatives)


def test_a_bank_without_positives_or_negatives_is_refused():
    b = bank()
    with pytest.raises(ValueError, match="no positive window"):
        WindowSampler(replace(b, labels=np.minimum(b.labels, 0)), 5, SamplerConfig(), 0)
    with pytest.raises(ValueError, match="no negative window"):
        WindowSampler(replace(b, labels=np.ones_like(b.labels)), 5, SamplerConfig(), 0)


def fresh(kind):
    model = Spotter(CONFIG, seed=1)
    if kind == "float":
        return model
    if kind == "stage 1":
        return QuantizedSpotter(model, stage_one_plan(WeightPlan("tanh", 3)))
    quantized = QuantizedSpotter(model, stage_two_plan(WeightPlan("tanh", 3)))
    quantized.calibrate(stages.calibration_windows(sampler()))
    return quantized


@pytest.mark.parametrize("kind", ["float", "stage 1", "stage 2"])
def test_mining_keeps_the_highest_scores_and_leaves_the_model_alone(kind):
    model, s = fresh(kind).train(), sampler()
    if kind == "stage 2":
        model.observing = True
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = loop._mine(model, s, STAGE, 8)
    assert model.training and getattr(model, "observing", False) == (kind == "stage 2")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    ends = s.candidates(8, STAGE.mine_candidates)
    model.eval()
    model.observing = False
    with torch.no_grad():
        logits = model(s.windows(ends))
    scores = dict(zip(ends.tolist(), (logits[:, 1] - logits[:, 0]).tolist()))
    rest = set(scores) - set(kept.tolist())
    assert len(kept) == STAGE.mine_keep
    assert min(scores[i] for i in kept.tolist()) >= max(scores[i] for i in rest)


def test_weight_decay_is_for_matrices_alone():
    model = fresh("stage 2")
    decayed, free = loop._groups(model, 0.01)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    matrices = {id(q.latent_weight) for q in model.weights}
    assert {id(p) for p in decayed["params"]} == matrices
    assert {id(p) for p in free["params"]} == {id(p) for p in model.parameters()} - matrices


def test_a_stage_starts_without_the_hard_negatives_of_the_one_before():
    used, unused = sampler(), sampler()
    used.hard = used.word_negatives[:5]
    a, b = fresh("float"), fresh("float")
    train(a, used, replace(STAGE, steps=6), None, progress=False)
    train(b, unused, replace(STAGE, steps=6), None, progress=False)
    assert torch.equal(a.dense[0].weight, b.dense[0].weight)


@pytest.mark.parametrize("kind", ["float", "stage 1", "stage 2"])
def test_resuming_gives_the_same_bits(tmp_path, kind, monkeypatch):
    whole = fresh(kind)
    history = train(whole, sampler(), STAGE, tmp_path / "a", progress=False)

    # Die right after the checkpoint of step 14, inside step 17.
    broken, count = fresh(kind), 0
    real = WindowSampler.batch

    def dying(self, step):
        nonlocal count
        count += 1
        if count > 17:
            raise RuntimeError("power cut")
        return real(self, step)

    monkeypatch.setattr(WindowSampler, "batch", dying)
    with pytest.raises(RuntimeError, match="power cut"):
        train(broken, sampler(), STAGE, tmp_path / "b", progress=False)
    monkeypatch.setattr(WindowSampler, "batch", real)
    assert read_tensors(tmp_path / "b")[1]["step"] == 14
    resumed = fresh(kind)
    again = train(resumed, sampler(), STAGE, tmp_path / "b", progress=False)
    assert again == history
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name


def test_the_record_of_an_annealing_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    plan = stage_one_plan(WeightPlan("general", 2))
    *_, whole = stages.train_stage_one(Spotter(CONFIG, seed=1), plan, sampler(), STAGE, None, False)
    real = WindowSampler.batch

    def dying(self, step):
        if step == 17:
            raise RuntimeError("power cut")
        return real(self, step)

    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="power cut"):
        m.setattr(WindowSampler, "batch", dying)
        stages.train_stage_one(Spotter(CONFIG, seed=1), plan, sampler(), STAGE, tmp_path / "c", False)
    assert read_tensors(tmp_path / "c")[1]["step"] == 14
    *_, again = stages.train_stage_one(Spotter(CONFIG, seed=1), plan, sampler(), STAGE, tmp_path / "c", False)
    ours, theirs = whole.arrays(), again.arrays()
    assert ours["step"].tolist() == list(range(STAGE.steps + 1))  # a short stage: a snapshot before each step
    assert list(whole.layers) == ["layer0", "layer1", "layer2"]
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)


def test_watching_an_annealing_changes_nothing_and_other_methods_have_no_record():
    plain = QuantizedSpotter(Spotter(CONFIG, seed=1), stage_one_plan(WeightPlan("general", 2)))
    train(plain, sampler(), STAGE, None, progress=False)
    plan = stage_one_plan(WeightPlan("general", 2))
    watched, _, record = stages.train_stage_one(Spotter(CONFIG, seed=1), plan, sampler(), STAGE, None, False)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), watched.state_dict().values()))
    assert record is not None and np.isinf(record.layers["layer0"].sharpness[-1])
    *_, none = stages.train_stage_one(
        Spotter(CONFIG, seed=1), stage_one_plan(WeightPlan("tanh", 2)), sampler(), STAGE, None, False
    )
    assert none is None


def test_an_interrupt_finishes_the_step_and_loses_nothing(tmp_path, monkeypatch):
    whole = fresh("float")
    train(whole, sampler(), STAGE, None, progress=False)
    real = WindowSampler.batch

    def interrupting(self, step):
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step)

    monkeypatch.setattr(WindowSampler, "batch", interrupting)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(fresh("float"), sampler(), STAGE, tmp_path / "c", progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(WindowSampler, "batch", real)
    assert read_tensors(tmp_path / "c")[1]["step"] == 11
    resumed = fresh("float")
    train(resumed, sampler(), STAGE, tmp_path / "c", progress=False)
    assert torch.equal(whole.dense[0].weight, resumed.dense[0].weight)


def test_an_interrupt_in_the_last_step_keeps_the_finished_stage(tmp_path, monkeypatch):
    whole = fresh("float")
    history = train(whole, sampler(), STAGE, None, progress=False)
    real = WindowSampler.batch

    def interrupting(self, step):
        if step == STAGE.steps - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step)

    monkeypatch.setattr(WindowSampler, "batch", interrupting)
    with pytest.raises(KeyboardInterrupt):
        train(fresh("float"), sampler(), STAGE, tmp_path / "c", progress=False)
    resumed = fresh("float")
    monkeypatch.setattr(WindowSampler, "batch", lambda *_: pytest.fail("there was no step left to do"))
    assert train(resumed, sampler(), STAGE, tmp_path / "c", progress=False) == history
    assert torch.equal(whole.dense[0].weight, resumed.dense[0].weight)


def test_a_checkpoint_of_another_stage_seed_or_model_is_refused(tmp_path):
    model = fresh("float")
    s = sampler()
    loop._save(tmp_path / "c", model, torch.optim.AdamW(model.parameters()), s, STAGE, {"step": []}, None, 5)
    with pytest.raises(CheckpointError, match="another stage or seed"):
        train(fresh("float"), s, replace(STAGE, steps=99), tmp_path / "c", progress=False)
    with pytest.raises(CheckpointError, match="another stage or seed"):
        train(fresh("float"), sampler(seed=9), STAGE, tmp_path / "c", progress=False)
    with pytest.raises(CheckpointError, match="another model"):
        train(Spotter(replace(CONFIG, hidden=(8,))), s, STAGE, tmp_path / "c", progress=False)


def test_the_stages_learn_and_the_later_ones_start_from_the_earlier():
    s = sampler()
    stage = replace(STAGE, steps=150)
    model, history = stages.train_float(CONFIG, s, stage, 0, None, False)
    assert np.mean(history["error"][-2:]) < 0.1
    one, *_ = stages.train_stage_one(model, stage_one_plan(WeightPlan("tanh", 2)), s, stage, None, False)
    two, history = stages.train_stage_two(one, stage_two_plan(WeightPlan("tanh", 2)), s, stage, None, False)
    assert np.mean(history["error"][-3:]) < 0.2  # 0.25: always answering "no"
    control, _ = stages.train_control(model, s, stage, None, False)
    assert not torch.equal(control.dense[0].weight, model.dense[0].weight)
    assert not one.integer and two.integer and not two.observing


def test_stages_leave_their_start_alone_and_calibrate():
    s, stage = sampler(), replace(STAGE, steps=3)
    model, _ = stages.train_float(CONFIG, s, stage, 0, None, False)
    assert torch.equal(model.mean, torch.from_numpy(s.mean))
    assert torch.allclose(model.inverse_std, 1 / torch.from_numpy(s.std))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stages.train_control(model, s, stage, None, False)
    one, *_ = stages.train_stage_one(model, stage_one_plan(WeightPlan("tanh", 4)), s, stage, None, False)
    baseline = stages.post_training(model, stage_two_plan(WeightPlan("linear", 8), "folded", "double"), s)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    before = {k: v.clone() for k, v in one.state_dict().items()}
    two, _ = stages.train_stage_two(one, stage_two_plan(WeightPlan("tanh", 4)), s, stage, None, False)
    assert all(torch.equal(v, before[k]) for k, v in one.state_dict().items())
    assert (baseline.plan.batchnorm, baseline.plan.rounding) == ("folded", "double")
    # Ranges: of the model itself for post-training, of stage 1 (then followed for 3 steps) for stage 2.
    for made, source in ((baseline, baseline), (two, one)):
        reference = QuantizedSpotter(model, source.plan)
        reference.load_state_dict(source.state_dict())
        reference.calibrate(stages.calibration_windows(s))
        assert torch.equal(made.input_scale, reference.input_scale)
        assert torch.allclose(made.output_ranges, reference.output_ranges, rtol=0.05)
        assert not torch.allclose(made.output_ranges, torch.tensor(4.0), rtol=0.05)


def test_frozen_statistics_do_not_move_in_the_last_fifth(monkeypatch):
    model, seen = fresh("stage 2"), []
    real = WindowSampler.batch

    def spying(self, step):
        seen.append(model.norms[0].mean.clone())
        return real(self, step)

    monkeypatch.setattr(WindowSampler, "batch", spying)
    train(model, sampler(), replace(STAGE, steps=20, mine_every=0), None, progress=False)
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert all(moved[:16]) and not any(moved[16:])


def test_a_loss_that_explodes_is_named():
    model = fresh("float")
    model.dense[0].weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss of stage 'test' is nan at step 0"):
        train(model, sampler(), STAGE, None, progress=False)


def test_broken_parameters_behind_a_finite_loss_are_named():
    """Codes are integers whatever stands behind them, so the loss alone would not tell."""
    model = fresh("stage 2")
    model.weights[1].latent_weight.data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"parameter weights\.1\.latent_weight of stage 'test' is not finite"):
        train(model, sampler(), STAGE, None, progress=False)


@pytest.mark.parametrize(
    "bad", [{"batch": 0}, {"mask_mels": -1}, {"positive_share": 1.1}, {"hard_share": -0.1}, {"speech_share": 0.8}]
)
def test_impossible_batches_are_refused(bad):
    with pytest.raises(ValueError, match=r"(a batch needs|shares lie)"):
        SamplerConfig(**bad)


@pytest.mark.parametrize("hard_share", [0.3, 0.5, 0.7])
def test_a_batch_has_its_size_whatever_the_shares(hard_share):
    s = sampler(batch=61, hard_share=hard_share, speech_share=1 - hard_share)
    s.hard = s.word_negatives[:20]
    windows, labels = s.batch(0)
    assert len(windows) == len(labels) == 61


def test_normalisation_is_mean_and_deviation_of_all_frames():
    s, features = sampler(), bank().features.astype(np.float64)
    assert np.allclose(s.mean, features.mean(0), rtol=1e-6, atol=1e-7)
    assert np.allclose(s.std, features.std(0), rtol=1e-6)


def test_the_learning_rate_warms_up_and_decays():
    rates = [learning_rate(STAGE, t) for t in range(STAGE.steps)]
    assert rates[0] == pytest.approx(STAGE.learning_rate / 4)
    assert max(rates) == pytest.approx(STAGE.learning_rate)
    assert rates[-1] < 0.05 * STAGE.learning_rate
    assert learning_rate(STAGE, STAGE.steps) == pytest.approx(STAGE.final_rate * STAGE.learning_rate)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


def test_models_survive_the_disk(tmp_path):
    for kind in ("float", "stage 1", "stage 2"):
        model = fresh(kind).eval()
        save_model(tmp_path / "m", model)
        loaded = load_model(tmp_path / "m", CONFIG)
        x = torch.randn(9, 5, 6)
        assert type(loaded) is type(model)
        assert torch.equal(model(x), loaded(x))


def test_wrong_truncated_and_missing_checkpoints_are_refused(tmp_path):
    path = tmp_path / "m"
    save_model(path, fresh("float"))
    other = replace(CONFIG, hidden=(8,))
    with pytest.raises(CheckpointError, match=r"checkpoint of another model: it has .*16, 16.* expects .*\(8,\)"):
        load_model(path, other)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(CheckpointError, match="truncated"):
        load_model(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_model(tmp_path / "nothing")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a kwsbench checkpoint"):
        load_model(path)
