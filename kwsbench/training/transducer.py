"""Training and scoring a transducer on transcribed utterances: batches by (seed, step), a resumable loop, WER.

    sampler = UtteranceSampler(bank, vocabulary, config, seed)
    history = train_transducer(model, sampler, TransducerTraining("float", steps=1500), checkpoint)
    recognised = recognise_bank(model, test_bank, vocabulary, width=4);  recognised.total.text()

The loop knows nothing of quantizers. It trains any module whose ``model(frames, labels)`` gives logits; what is to
happen before each step (annealing, observing ranges) comes in as ``before_step``, what a regularizing quantizer adds to
the loss as ``penalty``. Schedule, interruption, watchers and checkpoints are those of loop.py. Masking follows
SpecAugment (arXiv 1904.08779), without its time warping.
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
from kwsbench.models.transducer import BLANK, Transducer
from kwsbench.training.checkpoints import (
    CheckpointError,
    read_tensors,
    restore_training,
    training_tensors,
    write_tensors,
)
from kwsbench.training.loop import StageConfig, deferred_interrupt, learning_rate, tell
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
        self.bank, self.vocabulary, self.seed, self.device = bank, vocabulary, seed, device
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
        return self.collate(chosen, [_masked(self.bank.utterance(i), self.mean, config, rng) for i in chosen])

    def collate(self, chosen: Sequence[int] | np.ndarray, frames: Sequence[np.ndarray] | None = None) -> Batch:
        """Utterances by number, padded to the longest; ``frames``: theirs, where they were changed."""
        frames = [self.bank.utterance(i) for i in chosen] if frames is None else frames
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
    penalty: Callable[[], torch.Tensor | None] | None = None,
) -> dict[str, list[float]]:
    """Train ``model`` in place; returns the history ``{"step": [...], "loss": [...]}``, the loss in nats per label.

    ``checkpoint`` is a file for the state in between: an interrupted run goes on from it to the same bits. The caller
    removes it once the finished model is saved. ``before_step(step, steps)`` is called before each step. What
    ``penalty()`` gives is added to the loss, by a weight that rises from 0 to 1 over the steps.

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
                added = penalty() if penalty is not None else None
                if added is not None:
                    loss = loss + step / config.steps * added
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
                    tell(schedule, step + 1, history)
                bar.update()
                # Asked once: no interrupt is raised without its checkpoint, a later one waits for the next step.
                stop = interrupted()
                due = (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps
                if checkpoint is not None and (due or stop):
                    _save(checkpoint, model, optimizer, sampler, config, history, step + 1)
                if stop:
                    tell(schedule, step + 1, history)
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

    def to_json(self) -> dict[str, Any]:
        """Without the errors, which follow from the texts; a delay that is NaN becomes null."""
        delays = [None if math.isnan(delay) else delay for delay in self.delay_seconds]
        columns = {name: list(getattr(self, name)) for name in ("names", "speakers", "texts", "hypotheses")}
        return {**columns, "delay_seconds": delays}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Recognised:
        """What :meth:`to_json` gave. Raises ValueError where columns are missing or not of one length."""
        try:
            names, speakers, texts, hypotheses = (
                tuple(map(str, values[name])) for name in ("names", "speakers", "texts", "hypotheses")
            )
            delays = tuple(math.nan if delay is None else float(delay) for delay in values["delay_seconds"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no hypotheses: {error!r}") from None
        if len({len(column) for column in (names, speakers, texts, hypotheses, delays)}) != 1:
            raise ValueError("hypotheses need columns of one length")
        return Recognised(names, speakers, texts, hypotheses, _errors(texts, hypotheses), delays)


def recognise_bank(
    model: Transducer, bank: UtteranceBank, vocabulary: Vocabulary, features: LfbeConfig, width: int = 1
) -> Recognised:
    """Recognise every utterance as a stream of its own. Words outside the vocabulary count as errors: they were said.

    ``width`` 1 searches greedily, more by beam. ``features``: how the bank's features were made.
    """
    model.eval()
    device = model.mean.device
    found, emitted_at = [], []
    for i in range(len(bank)):
        frames = torch.from_numpy(bank.utterance(i)).to(device)
        search = listen(model, frames, listen_start(model, width), width).search
        found.append(search.labels)
        emitted_at.append(search.emitted_at if isinstance(search, Greedy) else ())
    return _recognised(model, bank, vocabulary, features, found, emitted_at)


def recognise_together(
    model: Transducer, bank: UtteranceBank, vocabulary: Vocabulary, features: LfbeConfig, batch: int = 64
) -> Recognised:
    """As :func:`recognise_bank` by greedy search, ``batch`` utterances of about one length at once: many times faster.

    Integer LSTM recognizers give the same; others the same to float rounding.
    """
    model.eval()
    lengths = np.diff(bank.offsets)
    found: list[tuple[int, ...]] = [()] * len(bank)
    emitted_at: list[tuple[int, ...]] = [()] * len(bank)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(bank), batch):
        chosen = order[start : start + batch]
        frames = _padded([bank.utterance(i) for i in chosen]).to(model.mean.device)
        counts = torch.as_tensor(lengths[chosen] // model.encoder.frames_joined, device=frames.device)
        for i, (labels, times) in zip(chosen, greedy_together(model, frames, counts), strict=True):
            found[i], emitted_at[i] = labels, times
    return _recognised(model, bank, vocabulary, features, found, emitted_at)


@torch.no_grad()
def greedy_together(
    model: Transducer, frames: torch.Tensor, encoded_counts: torch.Tensor
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Greedy search of padded utterances ``[B, T, n_mels]`` side by side: labels of each, and the encoder frames they
    were emitted at. ``encoded_counts`` [B]: encoder frames of each.

    Raises:
        FloatingPointError: a logit is NaN (the frame is named).
    """
    found: list[tuple[list[int], list[int]]] = [([], []) for _ in range(len(frames))]
    longest = int(encoded_counts.max()) if len(frames) else 0
    if longest:
        projected = model.joiner.encoder(model.encoder(model.normalise(frames)))
        state = model.prediction.fresh(len(frames))
        predicted = model.joiner.prediction(state[0])
    for t in range(longest):
        active = t < encoded_counts
        for _ in range(model.config.labels_per_frame):
            logits = model.joiner.join(projected[:, t], predicted)
            if not torch.isfinite(logits[active]).all():
                raise FloatingPointError(f"logits at encoder frame {t} are not finite")
            best = logits.argmax(-1)
            active = active & (best != BLANK)
            if not active.any():
                break
            for i in active.nonzero()[:, 0].tolist():
                found[i][0].append(int(best[i]))
                found[i][1].append(t)
            (h, c), (old_h, old_c) = model.prediction.emit(best, state), state
            state = torch.where(active[:, None], h, old_h), torch.where(active[:, None], c, old_c)
            predicted = model.joiner.prediction(state[0])
    return [(tuple(labels), tuple(times)) for labels, times in found]


def _recognised(
    model: Transducer,
    bank: UtteranceBank,
    vocabulary: Vocabulary,
    features: LfbeConfig,
    found: Sequence[tuple[int, ...]],
    emitted_at: Sequence[tuple[int, ...]],
) -> Recognised:
    """Labels to texts, errors and delays."""
    hypotheses = tuple(vocabulary.decode(labels) for labels in found)
    delays = []
    for times, end_seconds in zip(emitted_at, bank.speech_end_seconds, strict=True):
        heard = (times[-1] + 1) * model.encoder.frames_joined - 1 if times else -1
        delays.append(float(features.frame_end_seconds(np.array(heard)) - end_seconds) if times else math.nan)
    errors = _errors(bank.texts, hypotheses)
    return Recognised(bank.names, bank.speakers, bank.texts, hypotheses, errors, tuple(delays))


def _errors(texts: Sequence[str], hypotheses: Sequence[str]) -> tuple[WordErrors, ...]:
    return tuple(word_errors(text.split(), heard.split()) for text, heard in zip(texts, hypotheses, strict=True))


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
