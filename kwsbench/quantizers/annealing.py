"""What the General Quantizer does while it anneals: snapshots over the steps of a stage, and findings made of them.

A snapshot is taken before a training step, with the sharpness of that step; the last one after the stage. Levels are
on w~ = w / scale (snapped to ``step * int8``, ascending), centroids z in the companded space. A weight is *undecided*
where the softmax gives its nearest centroid less than ``SURE``: there the soft weight still follows the weight,
elsewhere it sits on a level and its gradient is next to nothing. The *gap* is ``||w_soft - w_hard|| / ||w_hard||``:
what the stage will meet at once when the hard phase begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from kwsbench.metrics.scores import write_npz
from kwsbench.quantizers.general import GeneralWeight
from kwsbench.quantizers.usage import entropy_bits
from kwsbench.quantizers.weight import HARD_SHARE

SNAPSHOTS = 40
SURE = 0.95

# Below this share of an even share a level does nothing: at 2 bits 4 of 1000 weights would change if it were gone.
DEAD_SHARE = 0.01
# With fewer weights than this per level, that share is less than one weight, and a level without any is chance. Above
# 64 levels the outermost ones of any good table are next to empty: they are there to keep large weights from clipping.
ENOUGH_PER_LEVEL = 100
MOST_LEVELS_JUDGED = 64
# A layer is effectively hard when fewer weights than this are undecided (at SHARPNESS a = 59: late in the schedule).
FROZEN_SHARE = 0.05
# In the first 0.6 of the soft phase the learning rate (a cosine) is still above half of its peak: weights that cannot
# move then do not profit from the rest.
EARLY = 0.6
# Noise of -20 dB of the weights that arrives in one step: as much as rounding to 4 bits.
LARGEST_GAP = 0.1
# int8 merges a few close levels of any table; a tenth of them is a quarter of the table's last bit.
FEWEST_DISTINCT = 0.9


@dataclass(frozen=True, eq=False)
class LayerAnnealing:
    """One layer over S snapshots, L = 2^b centroids."""

    levels: np.ndarray  # [S, L], on w~
    z: np.ndarray  # [S, L], companded, ascending
    usage: np.ndarray  # [S, L], share of the layer's weights in each cell
    mu: np.ndarray  # [S]
    scale: np.ndarray  # [S, 1] or [S, N]
    sharpness: np.ndarray  # [S], inf where hard
    entropy_bits: np.ndarray  # [S]
    distinct: np.ndarray  # [S], different int8 codes
    undecided: np.ndarray  # [S], share of weights
    gap: np.ndarray  # [S]
    changed: np.ndarray  # [S], share of weights in another cell than a snapshot before; 0 at the first
    weights: np.ndarray  # [S], their number, the same throughout

    @property
    def movement(self) -> np.ndarray:
        """Largest way of a centroid since the snapshot before, in mean spacings ``[S - 1]``."""
        spacing = np.ptp(self.z[:-1], axis=1) / max(1, self.z.shape[1] - 1)
        return np.abs(np.diff(self.z, axis=0)).max(1) / np.maximum(spacing, 1e-12)


@dataclass(frozen=True, eq=False)
class AnnealingRecord:
    """All layers of a stage of ``steps`` steps; ``step`` and ``learning_rate`` are ``[S]``."""

    steps: int
    step: np.ndarray
    learning_rate: np.ndarray
    layers: dict[str, LayerAnnealing]

    def arrays(self) -> dict[str, np.ndarray]:
        """As named arrays, for a file: ``steps``, ``step``, ``learning_rate``, ``<layer>.<field>``."""
        named = {"steps": np.array(self.steps), "step": self.step, "learning_rate": self.learning_rate}
        for name, layer in self.layers.items():
            named |= {f"{name}.{f.name}": getattr(layer, f.name) for f in fields(layer)}
        return named

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> AnnealingRecord:
        """What :meth:`arrays` gave. Raises KeyError where something is missing."""
        names = list(dict.fromkeys(key.rpartition(".")[0] for key in arrays if "." in key))
        layers = {n: LayerAnnealing(**{f.name: arrays[f"{n}.{f.name}"] for f in fields(LayerAnnealing)}) for n in names}
        return cls(int(arrays["steps"]), arrays["step"], arrays["learning_rate"], layers)

    def save(self, path: str | Path) -> None:
        """Write an npz to a temporary name, then rename."""
        write_npz(path, **self.arrays())

    @classmethod
    def load(cls, path: str | Path) -> AnnealingRecord:
        """Read what :meth:`save` wrote. Raises FileNotFoundError, or ValueError for any other file."""
        path = Path(path)
        try:
            with path.open("rb") as file, np.load(file) as archive:
                return cls.from_arrays({name: archive[name] for name in archive.files})
        except FileNotFoundError:
            raise
        except Exception as error:  # zip, npz and field errors come in many types
            raise ValueError(f"{path} is truncated or no annealing record ({error}); train the system again") from error


class AnnealingWatch:
    """Takes the snapshots of one stage; it only looks. What it holds so far goes into a checkpoint and back."""

    def __init__(self, quantizers: Mapping[str, GeneralWeight], steps: int):
        self.quantizers, self.steps = dict(quantizers), steps
        self._due = snapshot_steps(steps)
        self._rows: list[dict[str, np.ndarray]] = []
        self._cells: dict[str, torch.Tensor] = {}

    def due(self, step: int) -> bool:
        return step in self._due

    @torch.no_grad()
    def observe(self, step: int, learning_rate: float) -> None:
        """A snapshot before step ``step``; the quantizers' sharpness is that of the step already."""
        row = {"step": np.array(step), "learning_rate": np.array(learning_rate)}
        for name, quantizer in self.quantizers.items():
            cells = quantizer.cells().cpu().to(torch.uint8)
            before = self._cells.get(name)
            changed = 0.0 if before is None else float((cells != before).double().mean())
            self._cells[name] = cells
            values = _snapshot(quantizer, cells) | {"changed": np.array(changed)}
            row |= {f"{name}.{key}": value for key, value in values.items()}
        self._rows.append(row)

    def record(self) -> AnnealingRecord:
        """The snapshots so far."""
        stacked = {key: np.stack([row[key] for row in self._rows]) for key in self._rows[0]}
        return AnnealingRecord.from_arrays(stacked | {"steps": np.array(self.steps)})

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that goes on from a checkpoint."""
        if not self._rows:
            return {}
        arrays = {f"annealing.{key}": torch.as_tensor(value) for key, value in self.record().arrays().items()}
        return arrays | {f"cells.{name}": cells for name, cells in self._cells.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what :meth:`tensors` gave; from nothing where the checkpoint holds none."""
        held = {k.removeprefix("annealing."): v.numpy() for k, v in tensors.items() if k.startswith("annealing.")}
        held.pop("steps", None)
        count = len(held["step"]) if held else 0
        self._rows = [{key: value[i] for key, value in held.items()} for i in range(count)]
        self._cells = {k.removeprefix("cells."): v for k, v in tensors.items() if k.startswith("cells.")}


@dataclass(frozen=True)
class Finding:
    """Something wrong with an annealing: ``kind`` is "dead centroid", "too fast", "too slow" or "collapse"."""

    kind: str
    layer: str
    message: str


def snapshot_steps(steps: int) -> frozenset[int]:
    """``SNAPSHOTS`` steps evenly over a stage, and the last soft and the first hard one. The end is not among them."""
    hard = int(np.ceil(HARD_SHARE * steps))
    even = np.linspace(0, steps, SNAPSHOTS + 1)[:-1].astype(int)
    return frozenset(int(s) for s in (*even, max(0, hard - 1), min(hard, steps - 1)))


def findings(record: AnnealingRecord) -> list[Finding]:
    """What went wrong, per layer; nothing for a good run."""
    found = []
    for name, layer in record.layers.items():
        found += _dead(name, layer) + _collapsed(name, layer) + _too_fast(name, layer, record) + _too_slow(name, layer)
    return found


def _dead(name: str, layer: LayerAnnealing) -> list[Finding]:
    count = layer.usage.shape[1]
    if layer.weights[-1] < ENOUGH_PER_LEVEL * count or count > MOST_LEVELS_JUDGED:
        return []
    dead = np.flatnonzero(layer.usage[-1] < DEAD_SHARE / count)
    return [
        Finding(
            "dead centroid",
            name,
            f"centroid {j} of {count} (level {layer.levels[-1, j]:.3g} of the largest weight) serves "
            f"{layer.usage[-1, j]:.2%} of the weights, an even share would be {1 / count:.1%}: start it among the "
            "weights, or take a bit less",
        )
        for j in dead
    ]


def _collapsed(name: str, layer: LayerAnnealing) -> list[Finding]:
    count = layer.usage.shape[1]
    possible, distinct = min(count, 255), int(layer.distinct[-1])
    if layer.weights[-1] < ENOUGH_PER_LEVEL * count or distinct >= FEWEST_DISTINCT * possible:
        return []
    return [
        Finding(
            "collapse",
            name,
            f"{distinct} different levels are left of {possible} ({int(layer.distinct[0])} at the start): centroids "
            "ran together and share int8 codes. Take fewer bits, or a lower learning rate",
        )
    ]


def _too_fast(name: str, layer: LayerAnnealing, record: AnnealingRecord) -> list[Finding]:
    soft = np.isfinite(layer.sharpness)
    early = soft & (record.step < EARLY * HARD_SHARE * record.steps)
    frozen = np.flatnonzero(early & (layer.undecided < FROZEN_SHARE))
    if not len(frozen):
        return []
    at = int(frozen[0])
    rate = record.learning_rate[at:].max() / record.learning_rate.max()
    moved = layer.changed[at + 1 :].sum()
    return [
        Finding(
            "too fast",
            name,
            f"at step {record.step[at]} of {record.steps} only {layer.undecided[at]:.1%} of the weights were still "
            f"free between two levels (sharpness {layer.sharpness[at]:.3g}), with the learning rate at {rate:.0%} of "
            f"its peak; from there on a weight changed its level {moved:.2g} times on average. Begin softer or sharpen "
            "more slowly",
        )
    ]


def _too_slow(name: str, layer: LayerAnnealing) -> list[Finding]:
    soft = np.flatnonzero(np.isfinite(layer.sharpness))
    if not len(soft) or layer.gap[soft[-1]] <= LARGEST_GAP:
        return []
    at = int(soft[-1])
    return [
        Finding(
            "too slow",
            name,
            f"when the hard phase begins the weights jump by {layer.gap[at]:.0%} of their norm (sharpness "
            f"{layer.sharpness[at]:.3g}, {layer.undecided[at]:.0%} of them between two levels), and the loss with "
            "them: end sharper",
        )
    ]


def _snapshot(quantizer: GeneralWeight, cells: torch.Tensor) -> dict[str, np.ndarray]:
    _, codes, step = quantizer.table()
    counts = np.bincount(cells.numpy().ravel(), minlength=len(codes))
    hard = quantizer.step()[:, None] * quantizer.codes()
    undecided = gap = 0.0
    if quantizer.sharpness is not None:
        undecided = quantizer.undecided(quantizer.sharpness, SURE)
        norm = float(torch.linalg.vector_norm(hard))
        gap = float(torch.linalg.vector_norm(quantizer.softened(quantizer.sharpness) - hard)) / max(norm, 1e-12)
    values = {
        "levels": codes * step,
        "z": quantizer.centroids.sort().values.cpu().double().numpy(),
        "usage": counts / counts.sum(),
        "mu": float(quantizer.mu),
        "scale": torch.exp(quantizer.log_scale).cpu().double().numpy(),
        "sharpness": np.inf if quantizer.sharpness is None else quantizer.sharpness,
        "entropy_bits": entropy_bits(counts),
        "distinct": len(np.unique(codes)),
        "undecided": undecided,
        "gap": gap,
        "weights": counts.sum(),
    }
    return {key: np.asarray(value, np.float64) for key, value in values.items()}


@torch.no_grad()
def response_at(layer: LayerAnnealing, snapshot: int, x: np.ndarray) -> np.ndarray:
    """What a weight w~ became in the forward of a snapshot, soft or hard: float64, as ``x`` [n]."""
    quantizer = GeneralWeight(torch.as_tensor(np.asarray(x), dtype=torch.float32)[None], 1)
    quantizer.centroids = torch.nn.Parameter(torch.as_tensor(layer.z[snapshot], dtype=torch.float32))
    quantizer.log_scale.zero_()
    quantizer.log_mu.fill_(float(np.log(layer.mu[snapshot])))
    sharpness = float(layer.sharpness[snapshot])
    if np.isfinite(sharpness):
        return quantizer.softened(sharpness)[0].double().numpy()
    return (quantizer.step()[:, None] * quantizer.codes())[0].double().numpy()
