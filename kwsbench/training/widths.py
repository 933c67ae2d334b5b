"""What happens to the widths of a network's tensors while they are trained: a record of a stage.

One row per snapshot (about a hundred over the stage), one column per tensor (``NAME.weight``, ``NAME.output``), in
bits, as the model had them before that step; the last row is how the stage ended. It goes through checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kwsbench.metrics.scores import read_npz, write_npz

SNAPSHOTS = 100
NAMES = ("steps", "tensors", "bits", "loss_penalty")


@dataclass(frozen=True, eq=False)
class WidthRecord:
    """``steps`` int64 [S]; ``tensors``: names [T]; ``bits`` float64 [S, T]; ``loss_penalty`` float64 [S]: the model's
    penalty then, NaN where it has none."""

    steps: np.ndarray
    tensors: tuple[str, ...]
    bits: np.ndarray
    loss_penalty: np.ndarray

    def of(self, suffix: str) -> dict[str, np.ndarray]:
        """Widths over the snapshots of the tensors whose names end in ``suffix`` (``weight``, ``output``)."""
        ending = f".{suffix}"
        return {name: self.bits[:, i] for i, name in enumerate(self.tensors) if name.endswith(ending)}

    def moved(self) -> tuple[str, ...]:
        """Tensors whose width was not the same throughout."""
        return tuple(name for i, name in enumerate(self.tensors) if np.ptp(self.bits[:, i]) > 0)

    def save(self, path: str | Path) -> None:
        """Write an npz: whole or not at all."""
        write_npz(path, **{name: np.asarray(getattr(self, name)) for name in NAMES})

    @classmethod
    def load(cls, path: str | Path) -> WidthRecord:
        """Read what :meth:`save` wrote. Raises FileNotFoundError, or ValueError for any other file."""
        arrays = read_npz(path, NAMES)
        return cls(arrays["steps"], tuple(arrays["tensors"].tolist()), arrays["bits"], arrays["loss_penalty"])


class WidthWatch:
    """Takes the snapshots of one stage; it only looks."""

    def __init__(
        self, widths: Callable[[], Mapping[str, float]], penalty: Callable[[], torch.Tensor | None], steps: int
    ):
        self.widths, self.penalty = widths, penalty
        self._due = frozenset(np.linspace(0, steps - 1, min(SNAPSHOTS, steps)).astype(int).tolist())
        self._rows: list[np.ndarray] = []  # step, penalty, bits of every tensor

    def due(self, step: int) -> bool:
        """Whether a snapshot is taken before a step."""
        return step in self._due

    @torch.no_grad()
    def observe(self, step: int, learning_rate: float) -> None:
        """A snapshot before step ``step``."""
        added = self.penalty()
        penalty = np.nan if added is None else float(added)
        self._rows.append(np.array([step, penalty, *self.widths().values()], np.float64))

    def record(self) -> WidthRecord:
        """The snapshots so far."""
        names = tuple(self.widths())
        rows = np.array(self._rows).reshape(len(self._rows), 2 + len(names))
        return WidthRecord(rows[:, 0].astype(np.int64), names, rows[:, 2:], rows[:, 1])

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that goes on from a checkpoint."""
        return {"widths.rows": torch.as_tensor(np.array(self._rows))} if self._rows else {}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what :meth:`tensors` gave."""
        self._rows = list(tensors["widths.rows"].numpy()) if "widths.rows" in tensors else []
