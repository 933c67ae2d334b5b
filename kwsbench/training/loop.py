"""The training loop: one stage of a model on a sampler, resumable to the same bits.

Each step draws its batch from (seed, step) alone, so a run resumed from a checkpoint sees what an
uninterrupted one would. A checkpoint holds model, optimizer, hard-negative pool and history in one file; on
interruption (Ctrl-C, the kernel's stop button) the step in hand is finished and the checkpoint written before
KeyboardInterrupt goes on.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from kwsbench.quantizers.model import QuantizedModel
from kwsbench.training.checkpoints import (
    CheckpointError,
    read_tensors,
    restore_training,
    training_tensors,
    write_tensors,
)
from kwsbench.training.sampler import WindowSampler

# (stage, steps done, history so far); see `watching`
Watcher = Callable[["StageConfig", int, dict[str, list[float]]], None]
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


class Sampler(Protocol):
    """Where batches come from. ``hard``: the pool of hard negatives, of a :class:`WindowSampler` that mines."""

    seed: int
    hard: np.ndarray

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of a step, a pure function of seed and step."""


class Watch(Protocol):
    """Takes snapshots of a stage, which go through its checkpoints."""

    def due(self, step: int) -> bool:
        """Whether a snapshot is taken before a step."""

    def observe(self, step: int, learning_rate: float) -> None:
        """A snapshot before ``step``."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that goes on from a checkpoint."""

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what ``tensors`` gave."""


@dataclass(frozen=True)
class StageConfig:
    """One stage of training.

    ``observe_share``: in stage 2, batchnorm statistics and ranges move during this first share of steps, then freeze.
    ``quantize_every``: in stage 1 the weights pass their quantizers at every T-th step and are float in between, until
    annealing ends. ``penalty_weight``: of the penalty of regularizing quantizers at the end; it rises linearly from 0.
    ``mine_every``: steps between minings of hard negatives (0: never).
    """

    name: str
    steps: int
    learning_rate: float
    warmup_steps: int = 50
    final_rate: float = 0.01  # of the learning rate, reached by a cosine
    weight_decay: float = 0.0
    observe_share: float = 0.8
    quantize_every: int = 1
    penalty_weight: float = 1.0
    mine_every: int = 250
    mine_candidates: int = 40000
    mine_keep: int = 4000
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0 or self.quantize_every < 1:
            raise ValueError(f"stage {self.name!r} needs steps, quantize_every >= 1 and a positive rate, got {self}")

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What training makes small: cross entropy."""
        return F.cross_entropy(logits, labels)

    def optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        """AdamW over groups of parameters with their weight decay."""
        return torch.optim.AdamW(groups, lr=self.learning_rate, foreach=True)


def train(
    model: nn.Module,
    sampler: Sampler,
    config: StageConfig,
    checkpoint: Path | None = None,
    progress: bool = True,
    annealing: Watch | None = None,
) -> dict[str, list[float]]:
    """Train ``model`` in place; returns the history ``{"step": [...], "loss": [...], "error": [...]}``.

    ``checkpoint`` is a file for the state in between; the caller removes it once the finished model is saved.
    ``annealing`` takes its snapshots of the model on the way.

    Raises:
        FloatingPointError: the loss or a parameter is not finite (step and stage named).
        CheckpointError: the checkpoint belongs to another stage or model.
    """
    optimizer = make_optimizer(model, config)
    history: dict[str, list[float]] = {"step": [], "loss": [], "error": []}
    first = 0
    if checkpoint is not None and checkpoint.is_file():
        first = _restore(checkpoint, model, optimizer, sampler, config, history, annealing)
    else:
        sampler.hard = np.zeros(0, np.int64)
    model.train()
    bar = tqdm(total=config.steps, initial=first, desc=config.name, disable=not progress, mininterval=1.0)
    try:
        with deferred_interrupt() as interrupted:
            for step in range(first, config.steps):
                prepare(model, config, step)
                if annealing is not None and annealing.due(step):
                    annealing.observe(step, learning_rate(config, step))
                if config.mine_every and step and step % config.mine_every == 0:
                    assert isinstance(sampler, WindowSampler)
                    sampler.hard = _mine(model, sampler, config, step)
                loss, logits, labels = training_step(model, optimizer, sampler, config, step)
                if step % 20 == 0 or step == config.steps - 1:
                    value = float(loss.detach())
                    if not math.isfinite(value):
                        raise FloatingPointError(
                            f"the loss of stage {config.name!r} is {value} at step {step}: lower the learning rate "
                            f"({config.learning_rate})"
                        )
                    _check_finite(model, config, step)
                    history["step"].append(step)
                    history["loss"].append(value)
                    history["error"].append(float((logits.argmax(1) != labels).float().mean()))
                    bar.set_postfix(loss=f"{value:.4f}", refresh=False)
                    tell(config, step + 1, history)
                bar.update()
                # Asked once: no interrupt is raised without its checkpoint, a later one waits for the next step.
                stop = interrupted()
                due = (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps
                if checkpoint is not None and (due or stop):
                    _save(checkpoint, model, optimizer, sampler, config, history, annealing, step + 1)
                if stop:
                    tell(config, step + 1, history)
                    raise KeyboardInterrupt
    finally:
        bar.close()
        if isinstance(model, QuantizedModel):
            model.observing = False
            model.anneal(config.steps, config.steps)
    if annealing is not None:
        annealing.observe(config.steps, learning_rate(config, config.steps))
    model.eval()
    return history


def make_optimizer(model: nn.Module, config: StageConfig) -> torch.optim.Optimizer:
    """The optimizer of a stage, with weight decay on matrices only."""
    return config.optimizer(_groups(model, config.weight_decay))


def prepare(model: nn.Module, config: StageConfig, step: int) -> None:
    """Tell a quantized model which step of its stage comes next."""
    if isinstance(model, QuantizedModel):
        model.observing = model.integer and step < config.observe_share * config.steps
        model.anneal(step, config.steps, config.quantize_every)


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, sampler: Sampler, config: StageConfig, step: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step on the batch of ``step``: its loss, logits and labels."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    windows, labels = sampler.batch(step)
    logits = model(windows)
    loss = config.loss(logits, labels)
    penalty = model.penalty() if isinstance(model, QuantizedModel) else None
    if penalty is not None:
        loss = loss + config.penalty_weight * step / config.steps * penalty
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss, logits, labels


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Within the block ``watcher`` is told of every loss that is recorded, and of the step at which training stops.

    It only looks: it gets the history that training keeps, and must not change it.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def tell(config: StageConfig, steps_done: int, history: dict[str, list[float]]) -> None:
    """Tell the watcher, if there is one: for loops of training, here and elsewhere."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(config, steps_done, history)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Within the block SIGINT only sets a flag, which the yielded function tells. Main thread only; elsewhere
    signals do not arrive and the flag stays down."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return
    previous = signal.signal(signal.SIGINT, lambda *_: flag.set())
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def learning_rate(config: StageConfig, step: int) -> float:
    """Linear warm-up, then a cosine to ``final_rate``."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * cosine)


def _check_finite(model: nn.Module, config: StageConfig, step: int) -> None:
    """Integer codes hide NaN: a quantized model may have broken parameters and a finite loss."""
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            raise FloatingPointError(
                f"parameter {name} of stage {config.name!r} is not finite at step {step}: lower the learning rate "
                f"({config.learning_rate})"
            )


def _groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on matrices only, never on gains, biases, scales or batchnorm."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@torch.no_grad()
def _mine(model: nn.Module, sampler: WindowSampler, config: StageConfig, step: int) -> np.ndarray:
    """The ``mine_keep`` highest-scoring of some random negatives: the pool of hard negatives."""
    ends = sampler.candidates(step, config.mine_candidates)
    observing = getattr(model, "observing", False)
    model.eval()
    if isinstance(model, QuantizedModel):
        model.observing = False
    scores = []
    for i in range(0, len(ends), 4096):
        logits = model(sampler.windows(ends[i : i + 4096])).float()
        scores.append((logits[:, 1:].max(1).values - logits[:, 0]).cpu().numpy())
    model.train()
    if isinstance(model, QuantizedModel):
        model.observing = observing
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return ends[order[: config.mine_keep]]


def _save(path, model, optimizer, sampler, config, history, annealing, step) -> None:
    tensors = training_tensors(model, optimizer) | ({} if annealing is None else annealing.tensors())
    tensors["hard"] = torch.as_tensor(sampler.hard)
    write_tensors(path, tensors, {"stage": asdict(config), "step": step, "history": history, "seed": sampler.seed})


def _restore(path, model, optimizer, sampler, config, history, annealing) -> int:
    tensors, header = read_tensors(path)
    if header.get("stage") != asdict(config) or header.get("seed") != sampler.seed:
        raise CheckpointError(f"{path} belongs to another stage or seed; delete it or give this run its own folder")
    restore_training(path, tensors, model, optimizer)
    if annealing is not None:
        annealing.restore(tensors)
    sampler.hard = tensors["hard"].numpy()
    for k in history:
        history[k] = header["history"][k]
    return int(header["step"])
