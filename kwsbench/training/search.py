"""Differentiable search of architectures: ProxylessNAS (arXiv 1812.00332), as its first authors and the sibling of the
third paper (2012.10138) run it.

    warm-up    weights on training batches, each through one path drawn uniformly
    search     weights on training batches, each through one path drawn from the probabilities p = softmax(alpha);
               after every few of them one step of alpha on a *validation* batch

    The step of alpha: every cell takes one candidate drawn from p, by gates g (1 of that one, else 0); it gives
    sum_j g_j o_j, so dCE/dg_j = <dCE/d output, o_j> for candidates taken or not. With E[ops] exact over all paths,

        d loss / d alpha_i = r sum_j (dCE/dg_j) p_j ([i = j] - p_i) + CE dr/d alpha_i
        r = (log E[ops] / log target)^beta

    by Adam without momentum (betas 0, 0.999).

All candidates of a cell, as in the sibling's runs, and not two drawn ones (the first authors' way to save memory on
ImageNet): what is not taken costs a pass forward without memory. Measured after warm-up on 6 cells of 10 candidates,
the gradient of all has 7 times the signal-to-noise ratio (power) of that of two, for 3.6 times the time of a step that
only comes after several steps of the weights.

What the published cost term does not do: the target only scales the loss, and Adam does not see scales. With a fixed
beta a search ends wherever beta drives it. With ``beta_rate`` above 0 (ours) beta follows the expectation,
``beta + beta_rate log(E[ops] / target)``, below 0 too: the target is met from both sides, and accuracy decides where
operations are spent. (The sum over steps of that, an integral, overshoots: beta then swings, and E[ops] with it.)

As published, batchnorm uses the statistics of the batch in both kinds of steps. Steps depend on (seed, step) alone: a
search goes on from its checkpoint to the same bits.

Cost of a search, for comparison at equal cost: multiply-accumulates of all passes, a backward counted as two forwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from kwsbench.training.checkpoints import (
    CheckpointError,
    read_tensors,
    restore_training,
    training_tensors,
    write_tensors,
)
from kwsbench.training.loop import Sampler, StageConfig, deferred_interrupt, learning_rate, make_optimizer, tell
from kwsbench.training.search_record import SearchRecord
from kwsbench.training.supernet import Choices, CostTable, Space, Supernet, cost_table, most_probable

BETAS = (0.0, 0.999)  # of Adam on the architecture
# Of the sibling: 44,300 steps, one of the architecture after each 5, at a rate of 4e-3.
TRAVEL = 44_300 / 5 * 4e-3
FASTEST = 0.1
BACKWARD = 2  # passes forward that a pass backward costs


Clips = tuple[np.ndarray, np.ndarray]  # x float32 [N, T, bins], labels int64 [N]


class Batches(Sampler, Protocol):
    """What weights are trained on (``training.clips.ClipSampler``)."""

    mean: np.ndarray
    std: np.ndarray


def check_held_out(clips: Clips | None) -> Clips:
    """The clips. Raises ValueError where there are none."""
    if clips is None or not len(clips[0]):
        raise ValueError(
            "a search needs validation data: clips that no weights were trained on decide it; give a corpus with a "
            "validation split"
        )
    return clips


class HeldOut:
    """Batches of clips that are not trained on, each without repetition, drawn by (seed, step)."""

    def __init__(self, clips: Clips | None, batch: int, seed: int, device: torch.device | str = "cpu"):
        x, labels = check_held_out(clips)
        self.x = torch.from_numpy(np.asarray(x, np.float32)).to(device)
        self.labels = torch.from_numpy(np.asarray(labels, np.int64)).to(device)
        self.size, self.seed = min(batch, len(self.x)), seed

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips and labels of a step."""
        rows = np.random.default_rng([self.seed, 6, step]).permutation(len(self.x))[: self.size]
        chosen = torch.from_numpy(rows).to(self.x.device)
        return self.x[chosen], self.labels[chosen]


@dataclass(frozen=True)
class SearchConfig:
    """A search. ``warmup`` and ``stage``: steps and learning rates of the weights, before and beside the architecture's
    steps, which come after every ``architecture_every`` steps of the weights.

    ``target_macs``: per clip. ``beta``, ``beta_rate``: see the module docstring; a rate of 0 is as published.
    ``architecture_rate``: of Adam on the architecture; 0: such that all its steps together are as far as the sibling's
    (``TRAVEL``), a step at most ``FASTEST``. ``record_every``: steps between records.
    """

    warmup: StageConfig
    stage: StageConfig
    target_macs: float
    beta: float = 0.6
    beta_rate: float = 0.0
    architecture_rate: float = 0.0
    architecture_every: int = 5
    record_every: int = 20

    def __post_init__(self) -> None:
        if self.architecture_every < 1 or self.record_every < 1:
            raise ValueError(f"architecture_every and record_every are at least 1, got {self}")
        if self.beta_rate < 0 or self.architecture_rate < 0:
            raise ValueError(f"beta_rate and architecture_rate must not be negative, got {self}")

    @property
    def steps(self) -> int:
        """Steps of the weights, warm-up included."""
        return self.warmup.steps + self.stage.steps

    @property
    def rate(self) -> float:
        """Adam's rate on the architecture."""
        steps = max(1, self.stage.steps // self.architecture_every)
        return self.architecture_rate or min(FASTEST, TRAVEL / steps)

    def beta_at(self, expected_macs: float) -> float:
        """The exponent of the cost factor."""
        return self.beta + self.beta_rate * math.log(expected_macs / self.target_macs)

    def at(self, step: int) -> tuple[StageConfig, int]:
        """The stage that ``step`` falls in, and its number there."""
        return (self.warmup, step) if step < self.warmup.steps else (self.stage, step - self.warmup.steps)


class Architecture(nn.Module):
    """The architecture parameters: one float64 vector ``alpha`` per cell, at first zeros (all candidates alike)."""

    def __init__(self, counts: Sequence[int]):
        super().__init__()
        self.alpha = nn.ParameterList(nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in counts)

    def probabilities(self) -> list[torch.Tensor]:
        """Softmax of each cell."""
        return [F.softmax(a, 0) for a in self.alpha]

    def values(self) -> list[np.ndarray]:
        """The probabilities as arrays."""
        return [p.detach().cpu().numpy() for p in self.probabilities()]

    def draw(self, rng: np.random.Generator) -> Choices:
        """A path by the probabilities."""
        return tuple(int(rng.choice(len(p), p=p)) for p in self.values())


def uniform_path(counts: Sequence[int], rng: np.random.Generator) -> Choices:
    """A path with all candidates alike."""
    return tuple(int(rng.integers(n)) for n in counts)


def gate_gradients(
    net: Supernet, x: torch.Tensor, labels: torch.Tensor, path: Choices
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Cross-entropy through a path, the logits, and its derivative by the gates of all candidates: float64
    ``[candidates]`` of each cell."""
    logits, between = net.trace(x, path)
    loss = F.cross_entropy(logits, labels)
    gates = []
    with torch.no_grad():
        for cell, slope in enumerate(torch.autograd.grad(loss, between[1:])):
            outputs = (
                between[cell + 1] if k == path[cell] else net.candidate(cell, k, between[cell])
                for k in range(net.counts[cell])
            )
            gates.append(torch.stack([(slope * o).sum(dtype=torch.float64) for o in outputs]).cpu())
    return loss.detach(), logits.detach(), gates


def alpha_gradients(alpha: Sequence[torch.Tensor], gates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``sum_j (dCE/dg_j) p_j ([i = j] - p_i)`` of each cell."""
    p = [F.softmax(a.detach(), 0) for a in alpha]
    return [q * (g - (q * g).sum()) for q, g in zip(p, gates, strict=True)]


@torch.no_grad()
def expected_macs(table: CostTable, architecture: Architecture) -> float:
    """E[ops] of the architecture as it is."""
    return float(table.expected(architecture.probabilities()))


def cost_factor(table: CostTable, architecture: Architecture, target_macs: float, beta: float) -> torch.Tensor:
    """``(log E[ops] / log target)^beta``, differentiable."""
    return (table.expected(architecture.probabilities()).log() / math.log(target_macs)) ** beta


def architecture_step(
    net: Supernet,
    architecture: Architecture,
    optimizer: torch.optim.Optimizer,
    table: CostTable,
    config: SearchConfig,
    batch: tuple[torch.Tensor, torch.Tensor],
    rng: np.random.Generator,
) -> tuple[float, float, int]:
    """One step of the architecture: loss and error of the path taken on the batch, and multiply-accumulates spent per
    clip."""
    x, labels = batch
    path = architecture.draw(rng)
    loss, logits, gates = gate_gradients(net, x, labels, path)
    beta = config.beta_at(expected_macs(table, architecture))
    factor = cost_factor(table, architecture, config.target_macs, beta)
    optimizer.zero_grad(set_to_none=True)
    (loss.double().cpu() * factor).backward()
    alpha = list(architecture.alpha)
    for a, gradient in zip(alpha, alpha_gradients(alpha, gates), strict=True):
        assert a.grad is not None
        a.grad += factor.detach() * gradient
    optimizer.step()
    others = sum(sum(macs) - macs[k] for macs, k in zip(table.cells, path, strict=True))
    error = float((logits.argmax(1) != labels).float().mean())
    return float(loss), error, (1 + BACKWARD) * table.of(path) + others


def search(
    space: Space,
    training: Batches,
    validation: Clips | None,
    config: SearchConfig,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> tuple[Supernet, SearchRecord]:
    """Search a space; what was found is in the record (``best``, ``best_within``).

    ``checkpoint`` is a file for the state in between; the caller removes it once the record is saved. Whoever is
    ``loop.watching`` is told of every record: a history of the record's curves, and of each candidate's probability as
    ``"cell/candidate"``.

    Raises:
        ValueError: no validation data; a target outside of what the space can reach (which is named).
        FloatingPointError: the loss is not finite.
        CheckpointError: the checkpoint belongs to another search.
        KeyboardInterrupt: after SIGINT, once the checkpoint is written.
    """
    table = cost_table(space)
    table.check(config.target_macs)
    x, _ = training.batch(0)
    held_out = HeldOut(validation, len(x), seed, x.device)
    state = _State(space, training, table, config, seed)
    first = 0
    if checkpoint is not None and checkpoint.is_file():
        first = state.restore(checkpoint)
    bar = tqdm(total=config.steps, initial=first, desc=config.at(first)[0].name, disable=not progress, mininterval=1.0)
    try:
        with deferred_interrupt() as interrupted:
            for step in range(first, config.steps):
                state.step(step, training, held_out)
                stage, within = config.at(step)
                if step % config.record_every == 0 or step == config.steps - 1:
                    state.note(step)
                    bar.set_description(stage.name, refresh=False)
                    bar.set_postfix(state.told(), refresh=False)
                    tell(stage, within + 1, state.history)
                bar.update()
                # Asked once, as in training.loop: no interrupt without its checkpoint.
                stop = interrupted()
                due = (step + 1) % config.stage.checkpoint_every == 0 and step + 1 < config.steps
                if checkpoint is not None and (due or stop):
                    state.save(checkpoint, step + 1)
                if stop:
                    tell(stage, within + 1, state.history)
                    raise KeyboardInterrupt
    finally:
        bar.close()
    return state.net.eval(), state.record()


class _State:
    """A search in the middle: what its checkpoint holds."""

    def __init__(self, space: Space, training: Batches, table: CostTable, config: SearchConfig, seed: int):
        self.space, self.table, self.config, self.seed = space, table, config, seed
        self.net = Supernet(space, seed)
        self.net.set_normalisation(training.mean, training.std)
        self.net.to(training.batch(0)[0].device).train()
        self.architecture = Architecture(self.net.counts)
        self.weights = make_optimizer(self.net, config.stage)
        self.alphas = torch.optim.Adam(self.architecture.parameters(), lr=config.rate, betas=BETAS)
        self.identity = {"space": repr(space), "config": asdict(config), "seed": [seed, training.seed]}
        self.history: dict[str, list[float]] = {key: [] for key in SearchRecord.CURVES}
        self.history |= {f"{i}/{name}": [] for i, names in enumerate(space.candidates, 1) for name in names}
        # Since the last record: sums of loss and error, and how many; of the weights' and the architecture's steps.
        self.recent = torch.zeros(2, 3, dtype=torch.float64)
        self.spent = torch.zeros(2, dtype=torch.float64)  # multiply-accumulates, clips

    def step(self, step: int, training: Batches, validation: HeldOut) -> None:
        """One step of the weights, and one of the architecture where it is due."""
        config = self.config
        stage, within = config.at(step)
        rng = np.random.default_rng([self.seed, 5, step])
        warm = stage is config.warmup
        path = uniform_path(self.net.counts, rng) if warm else self.architecture.draw(rng)
        for group in self.weights.param_groups:
            group["lr"] = learning_rate(stage, within)
        x, labels = training.batch(step)
        logits = self.net(x, path)
        loss = stage.loss(logits, labels)
        # Weights of paths not taken keep no gradient: neither momentum nor decay moves them.
        self.weights.zero_grad(set_to_none=True)
        loss.backward()
        self.weights.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss of stage {stage.name!r} is {value} at step {within}: lower the learning rate "
                f"({stage.learning_rate})"
            )
        self._count(0, value, float((logits.argmax(1) != labels).float().mean()), len(x), 3 * self.table.of(path))
        if not warm and (within + 1) % config.architecture_every == 0:
            batch = validation.batch((within + 1) // config.architecture_every - 1)
            told = architecture_step(self.net, self.architecture, self.alphas, self.table, config, batch, rng)
            self._count(1, told[0], told[1], len(batch[0]), told[2])

    def _count(self, kind: int, loss: float, error: float, clips: int, macs: int) -> None:
        self.recent[kind] += torch.tensor([loss, error, 1.0], dtype=torch.float64)
        self.spent += torch.tensor([clips * macs, clips], dtype=torch.float64)

    def note(self, step: int) -> None:
        """One record, of everything since the last."""
        probabilities = self.architecture.values()
        means = (self.recent[:, :2] / self.recent[:, 2:]).tolist()
        self.recent.zero_()
        expected = expected_macs(self.table, self.architecture)
        values = {
            "step": step,
            "loss": means[0][0],
            "error": means[0][1],
            "validation_loss": means[1][0],
            "validation_error": means[1][1],
            "expected_macs": expected,
            "entropy": entropy(probabilities),
            "beta": self.config.beta_at(expected),
            "macs": float(self.spent[0]),
            "clips": float(self.spent[1]),
        }
        for i, (names, p) in enumerate(zip(self.space.candidates, probabilities, strict=True), 1):
            values |= {f"{i}/{name}": float(v) for name, v in zip(names, p, strict=True)}
        for key, value in values.items():
            self.history[key].append(value)

    def told(self) -> dict[str, str]:
        """What the progress line shows."""
        h = self.history
        return {
            "loss": f"{h['loss'][-1]:.3f}",
            "E[ops]": f"{h['expected_macs'][-1] / 1e6:.2f}M",
            "entropy": f"{h['entropy'][-1]:.2f}",
        }

    def record(self) -> SearchRecord:
        """What the search left so far."""
        candidates = self.space.candidates
        columns = {key: np.array(values, np.float64) for key, values in self.history.items()}
        probabilities = tuple(
            np.stack([columns[f"{i}/{name}"] for name in names], 1) for i, names in enumerate(candidates, 1)
        )
        path = most_probable([p[-1] for p in probabilities])
        curves = {key: columns[key] for key in SearchRecord.CURVES}
        return SearchRecord(self.net.network(path).notation, candidates, probabilities, curves, self.identity)

    def save(self, path: Path, step: int) -> None:
        """Everything at the end of a step, in one file."""
        tensors = training_tensors(self.net, self.weights)
        tensors |= {f"a.{k}": v for k, v in training_tensors(self.architecture, self.alphas).items()}
        tensors |= {f"history.{k}": torch.tensor(v, dtype=torch.float64) for k, v in self.history.items()}
        tensors |= {"recent": self.recent, "spent": self.spent}
        write_tensors(path, tensors, {"search": self.identity, "step": step})

    def restore(self, path: Path) -> int:
        """Put back what :meth:`save` wrote; the step to go on with."""
        tensors, header = read_tensors(path)
        if header.get("search") != json.loads(json.dumps(self.identity)):
            raise CheckpointError(f"{path} belongs to another search; delete it or give this one its own folder")
        restore_training(path, tensors, self.net, self.weights)
        inner = {k.removeprefix("a."): v for k, v in tensors.items() if k.startswith("a.")}
        restore_training(path, inner, self.architecture, self.alphas)
        self.history = {key: tensors[f"history.{key}"].tolist() for key in self.history}
        self.recent, self.spent = tensors["recent"], tensors["spent"]
        return int(header["step"])


def entropy(probabilities: Sequence[np.ndarray]) -> float:
    """Nats, the mean over cells that have a choice; 0 where none has."""
    each = [float(-(p * np.log(np.maximum(p, 1e-300))).sum()) for p in probabilities if len(p) > 1]
    return float(np.mean(each)) if each else 0.0
