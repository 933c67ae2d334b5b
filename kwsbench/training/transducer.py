"""Training and scoring a transducer on transcribed utterances: batches by (seed, step), a resumable loop, WER.

    sampler = UtteranceSampler(bank, vocabulary, config, seed)
    history = train_transducer(model, sampler, TransducerTraining("float", steps=1500), checkpoint)
    recognised = recognise_bank(model, test_bank, vocabulary, width=4);  recognised.total.text()

The loop knows nothing of quantizers. It trains any module whose ``model(frames, labels)`` gives logits; what is to
happen before each step (annealing, observing ranges) comes in as ``before_step``. Schedule, interruption and
checkpoints are those of loop.py. Masking follows SpecAugment (arXiv 1904.08779), without its time warping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from kwsbench.data.transcribed import UnknownSymbolError, Vocabulary
from kwsbench.data.utterances import UtteranceBank
from kwsbench.features.lfbe import LfbeConfig
from kwsbench.metrics.wer import WordErrors, total_errors, word_errors
from kwsbench.models.decoding import Greedy, listen, listen_start
from kwsbench.models.transducer import Transducer, TransducerConfig
from kwsbench.training.checkpoints import (
    CheckpointError,
    OtherModelError,
    read_tensors,
    restore_training,
    training_tensors,
    write_tensors,
)
from kwsbench.training.loop import StageConfig, deferred_interrupt, learning_rate
from kwsbench.training.transducer_loss import transducer_loss

LENGTH_POOL = 32  # a batch is drawn from this many batches of utterances of about one length


@dataclass(frozen=True)
class TransducerTraining:
    """One run of training. ``mask_bands``, ``mask_frames``: widest masks (log-mel frames), each drawn ``masks`` times
    per utterance; 0 switches them off. ``clip_norm``: gradients of a greater norm are scaled down to it."""

    name: str
    steps: int
    learning_rate: float = 2e-3
    batch: int = 16
    warmup_steps: int = 100
    final_rate: float = 0.02  # of the learning rate, reached by a cosine
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    masks: int = 2
    mask_bands: int = 5
    mask_frames: int = 12
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.checkpoint_every) < 1 or min(self.learning_rate, self.clip_norm) <= 0:
            raise ValueError(
                f"training {self.name!r} needs steps, batch, checkpoint_every >= 1 and positive learning_rate and "
                f"clip_norm, got {self}"
            )
        if min(self.masks, self.mask_bands, self.mask_frames, self.warmup_steps) < 0 or self.weight_decay < 0:
            raise ValueError(f"masks, warm-up and weight decay must not be negative, got {self}")


@dataclass(frozen=True)
class Batch:
    """``frames`` float32 [B, T, n_mels], ``labels`` int64 [B, U], both padded with zeros, and of each item the encoder
    frames and labels it has, int64 [B]."""

    frames: torch.Tensor
    labels: torch.Tensor
    encoded_counts: torch.Tensor
    label_counts: torch.Tensor


class UtteranceSampler:
    """Batches of utterances of about one length, each a pure function of (seed, step), for models shaped as ``model``.

    Utterances that cannot be trained on are left out and listed in ``skipped``: words outside the vocabulary, audio
    shorter than one encoder frame, more labels than decoding could ever emit over the frames. ``mean``, ``std``
    ``[n_mels]`` are those of all frames.

    Raises:
        ValueError: the bank's bands are not the model's, or no utterance is left.
    """

    def __init__(self, bank: UtteranceBank, vocabulary: Vocabulary, model: Transducer, seed: int, device: str = "cpu"):
        n_mels = model.config.encoder.n_mels
        if bank.features.shape[1] != n_mels:
            raise ValueError(f"the bank has {bank.features.shape[1]} bands, the model {n_mels}: make them equal")
        if vocabulary.size != model.config.symbols:
            raise ValueError(
                f"the vocabulary has {vocabulary.size} labels with the blank, the model {model.config.symbols}"
            )
        self.bank, self.seed, self.device = bank, seed, device
        self.frames_joined = model.encoder.frames_joined
        self.mean = bank.features.mean(axis=0, dtype=np.float64).astype(np.float32)
        std = [bank.features[:, m].std(dtype=np.float64) for m in range(n_mels)]
        self.std = np.maximum(std, 1e-3).astype(np.float32)
        self.labels: dict[int, np.ndarray] = {}
        skipped = []
        for i, (name, text) in enumerate(zip(bank.names, bank.texts)):
            encoded = (bank.offsets[i + 1] - bank.offsets[i]) // self.frames_joined
            try:
                labels = vocabulary.encode(text)
            except UnknownSymbolError as error:
                skipped.append(f"{name}: {error}")
                continue
            if not encoded:
                skipped.append(f"{name}: audio shorter than one encoder frame")
            elif len(labels) > encoded * model.config.labels_per_frame:
                most = encoded * model.config.labels_per_frame
                skipped.append(f"{name}: {len(labels)} labels, at most {most} can be emitted over {encoded} frames")
            else:
                self.labels[i] = labels
        self.skipped = tuple(skipped)
        if not self.labels:
            first = f"; the first: {skipped[0]}" if skipped else ""
            raise ValueError(f"no utterance can be trained on, {len(skipped)} skipped{first}")
        lengths = np.diff(bank.offsets)
        self.by_length = np.array(sorted(self.labels, key=lambda i: (lengths[i], i)))

    def batch(self, step: int, config: TransducerTraining) -> Batch:
        """The batch of a step; the same for the same seed and step."""
        rng = np.random.default_rng([self.seed, 2, step])
        size = min(config.batch, len(self.by_length))
        pool = min(LENGTH_POOL * size, len(self.by_length))
        # Pools may stick out at both ends, so that the shortest and longest are drawn as often as the others.
        start = int(rng.integers(1 - pool, len(self.by_length)))
        near = self.by_length[max(start, 0) : start + pool]
        chosen = rng.choice(near, size, replace=len(near) < size)
        frames = [_masked(self.bank.utterance(i), self.mean, config, rng) for i in chosen]
        labels = [self.labels[i] for i in chosen]
        return Batch(
            _padded(frames).to(self.device),
            _padded(labels).to(self.device),
            torch.tensor([len(x) // self.frames_joined for x in frames], device=self.device),
            torch.tensor([len(x) for x in labels], device=self.device),
        )


def train_transducer(
    model: nn.Module,
    sampler: UtteranceSampler,
    config: TransducerTraining,
    checkpoint: Path | None = None,
    progress: bool = True,
    before_step: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Train ``model`` in place; returns the history ``{"step": [...], "loss": [...]}``, the loss in nats per label.

    ``checkpoint`` is a file for the state in between: an interrupted run goes on from it to the same bits. The caller
    removes it once the finished model is saved. ``before_step(step, steps)`` is called before each step.

    Raises:
        FloatingPointError: the loss or a gradient is not finite (step and run named).
        CheckpointError: the checkpoint belongs to another run or model.
    """
    schedule = StageConfig(
        config.name, config.steps, config.learning_rate, config.warmup_steps, final_rate=config.final_rate
    )
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, foreach=True)
    history: dict[str, list[float]] = {"step": [], "loss": []}
    first = 0
    if checkpoint is not None and checkpoint.is_file():
        first = _restore(checkpoint, model, optimizer, sampler, config, history)
    model.train()
    bar = tqdm(total=config.steps, initial=first, desc=config.name, disable=not progress, mininterval=1.0)
    try:
        with deferred_interrupt() as interrupted:
            for step in range(first, config.steps):
                if before_step is not None:
                    before_step(step, config.steps)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(schedule, step)
                loss = batch_loss(model, sampler.batch(step, config))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                value = float(loss.detach())
                # Before the step: a gradient that is not finite would spoil every parameter.
                if not (math.isfinite(value) and math.isfinite(float(norm))):
                    raise FloatingPointError(
                        f"the loss of {config.name!r} is {value}, its gradient's norm {float(norm)} at step {step}: "
                        f"lower the learning rate ({config.learning_rate})"
                    )
                optimizer.step()
                if step % 20 == 0 or step == config.steps - 1:
                    history["step"].append(step)
                    history["loss"].append(value)
                    bar.set_postfix(loss=f"{value:.3f}", refresh=False)
                bar.update()
                # Asked once: no interrupt is raised without its checkpoint, a later one waits for the next step.
                stop = interrupted()
                due = (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps
                if checkpoint is not None and (due or stop):
                    _save(checkpoint, model, optimizer, sampler, config, history, step + 1)
                if stop:
                    raise KeyboardInterrupt
    finally:
        bar.close()
    model.eval()
    return history


def batch_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Transducer loss of a batch in nats per label (in all, where the batch has none)."""
    losses = transducer_loss(model(batch.frames, batch.labels), batch.labels, batch.encoded_counts, batch.label_counts)
    return losses.sum() / batch.label_counts.sum().clamp(min=1)


@dataclass(frozen=True)
class Recognised:
    """What a model made of the utterances of a bank, in their order.

    ``delay_seconds``: from the end of speech until the last label was emitted, counted in audio (no time for
    computing); NaN where nothing was recognised, and in beam search.
    """

    names: tuple[str, ...]
    speakers: tuple[str, ...]
    texts: tuple[str, ...]
    hypotheses: tuple[str, ...]
    errors: tuple[WordErrors, ...]
    delay_seconds: tuple[float, ...]

    @property
    def total(self) -> WordErrors:
        """Errors over all utterances."""
        return total_errors(self.errors)

    def by_speaker(self) -> list[WordErrors]:
        """Errors added up by speaker, for intervals over speakers."""
        return [
            total_errors([e for s, e in zip(self.speakers, self.errors) if s == speaker])
            for speaker in sorted(set(self.speakers))
        ]


def recognise_bank(
    model: Transducer, bank: UtteranceBank, vocabulary: Vocabulary, features: LfbeConfig, width: int = 1
) -> Recognised:
    """Recognise every utterance as a stream of its own. Words outside the vocabulary count as errors: they were said.

    ``width`` 1 searches greedily, more by beam. ``features``: how the bank's features were made.
    """
    model.eval()
    device = model.mean.device
    hypotheses, delays = [], []
    for i in range(len(bank)):
        frames = torch.from_numpy(bank.utterance(i)).to(device)
        search = listen(model, frames, listen_start(model, width), width).search
        hypotheses.append(vocabulary.decode(search.labels))
        delays.append(math.nan)
        if isinstance(search, Greedy) and search.labels:
            heard = (search.emitted_at[-1] + 1) * model.encoder.frames_joined - 1
            delays[-1] = float(features.frame_end_seconds(np.array(heard))) - float(bank.speech_end_seconds[i])
    errors = [word_errors(text.split(), heard.split()) for text, heard in zip(bank.texts, hypotheses)]
    return Recognised(bank.names, bank.speakers, bank.texts, tuple(hypotheses), tuple(errors), tuple(delays))


def save_transducer(
    path: str | Path, model: Transducer, vocabulary: Vocabulary, extra: dict[str, Any] | None = None
) -> None:
    """Save a float transducer with its vocabulary, as data."""
    header = {"transducer": model.config.to_json(), "vocabulary": vocabulary.to_json(), "extra": extra or {}}
    write_tensors(Path(path), model.state_dict(), header)


def load_transducer(path: str | Path, expect: TransducerConfig | None = None) -> tuple[Transducer, Vocabulary]:
    """What :func:`save_transducer` wrote, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: truncated, something else than a transducer, or of another shape than ``expect``.
    """
    tensors, header = read_tensors(Path(path))
    if "transducer" not in header or "vocabulary" not in header:
        raise CheckpointError(f"{path} holds no transducer (it holds {', '.join(sorted(header)) or 'nothing'})")
    config = TransducerConfig.from_json(header["transducer"])
    if expect is not None and config != expect:
        raise OtherModelError(f"{path} is a transducer of another shape: it has {config}, this run expects {expect}")
    model = Transducer(config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own header: {error}") from error
    return model.eval(), Vocabulary.from_json(header["vocabulary"])


def _masked(frames: np.ndarray, mean: np.ndarray, config: TransducerTraining, rng: np.random.Generator) -> np.ndarray:
    """A copy with bands and stretches of time set to the mean."""
    frames = frames.copy()
    for _ in range(config.masks):
        bands = int(rng.integers(config.mask_bands + 1))
        at = int(rng.integers(frames.shape[1] - bands + 1)) if bands <= frames.shape[1] else 0
        frames[:, at : at + bands] = mean[at : at + bands]
        stretch = int(rng.integers(min(config.mask_frames, len(frames)) + 1))
        at = int(rng.integers(len(frames) - stretch + 1))
        frames[at : at + stretch] = mean
    return frames


def _padded(items: Sequence[np.ndarray]) -> torch.Tensor:
    """Items ``[n, ...]`` in a row, zeros behind the shorter ones."""
    longest = max(len(x) for x in items)
    out = np.zeros((len(items), longest, *items[0].shape[1:]), items[0].dtype)
    for row, item in zip(out, items):
        row[: len(item)] = item
    return torch.from_numpy(out)


def _save(path, model, optimizer, sampler, config, history, step) -> None:
    tensors = training_tensors(model, optimizer)
    header = {"training": asdict(config), "step": step, "history": history, "source": _source(sampler)}
    write_tensors(path, tensors, header)


def _restore(path, model, optimizer, sampler, config, history) -> int:
    tensors, header = read_tensors(path)
    if header.get("training") != asdict(config) or header.get("source") != _source(sampler):
        raise CheckpointError(f"{path} belongs to another run, seed or data; delete it or give this run its own folder")
    restore_training(path, tensors, model, optimizer)
    for k in history:
        history[k] = header["history"][k]
    return int(header["step"])


def _source(sampler: UtteranceSampler) -> dict[str, Any]:
    return {"seed": sampler.seed, "bank": sampler.bank.source_hash, "utterances": len(sampler.labels)}
