"""What a search leaves: its curves, probabilities and trials, as plain arrays and JSON values. No torch.

Two kinds of files: npz of a differentiable search (:class:`SearchRecord`), JSON of trials (:class:`Trials`: random
search, Optuna).

Cost of a search: multiply-accumulates of all its passes (a backward counts as two forwards), validation included, and
the clips that went through training. Equal cost means equal multiply-accumulates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kwsbench.metrics.scores import read_npz, write_npz

FORMAT = "kwsbench-search-1"


@dataclass(frozen=True)
class SearchRecord:
    """A differentiable search, record by record.

    Attributes:
        notation: of the network the search ended with, the likeliest candidate of every cell.
        candidates: names of each cell's candidates.
        probabilities: of each cell, ``[records, candidates]``.
        curves: by name (``CURVES``), one value per record: ``step``; ``loss`` and ``error`` of the paths drawn since
            the last record, on training batches; ``validation_loss`` and ``validation_error`` of those on which the
            architecture was trained (NaN where there were none); ``expected_macs``; ``entropy`` (nats, mean over cells
            with a choice); ``beta``; ``macs`` and ``clips`` spent so far.
        settings: what it was started with, JSON values.
    """

    CURVES: ClassVar[tuple[str, ...]] = (
        "step",
        "loss",
        "error",
        "validation_loss",
        "validation_error",
        "expected_macs",
        "entropy",
        "beta",
        "macs",
        "clips",
    )

    notation: str
    candidates: tuple[tuple[str, ...], ...]
    probabilities: tuple[np.ndarray, ...]
    curves: dict[str, np.ndarray]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> tuple[np.ndarray, ...]:
        """The probabilities at the end, ``[candidates]`` of each cell."""
        return tuple(p[-1] for p in self.probabilities)

    @property
    def macs(self) -> float:
        """Multiply-accumulates that the search took."""
        return float(self.curves["macs"][-1])

    def choices(self) -> tuple[str, ...]:
        """Every choice that some cell has, in the order they first appear; stride (``7e2s``) is none, it belongs to the
        cell."""
        return tuple(dict.fromkeys(_choice(name) for names in self.candidates for name in names))

    def grid(self, records: int = 40) -> tuple[np.ndarray, np.ndarray]:
        """``(step [S], probabilities [S, cells, choices])``, NaN where a cell lacks a choice; at most so many records,
        evenly spread, the last among them."""
        count = len(self.curves["step"])
        kept = np.unique(np.linspace(0, count - 1, min(records, count)).round().astype(int))
        choices = self.choices()
        grid = np.full((len(kept), len(self.candidates), len(choices)), np.nan)
        for cell, (names, p) in enumerate(zip(self.candidates, self.probabilities, strict=True)):
            grid[:, cell, [choices.index(_choice(name)) for name in names]] = p[kept]
        return self.curves["step"][kept].astype(int), grid

    def notes(self, steps: Sequence[int]) -> list[str]:
        """One line per record at ``steps``: expected operations, entropy, error on validation."""
        at = np.searchsorted(self.curves["step"], np.asarray(steps))
        lines = []
        for i in at:
            error = self.curves["validation_error"][i]
            lines.append(
                f"E[ops] {self.curves['expected_macs'][i] / 1e6:.2f}M, entropy {self.curves['entropy'][i]:.2f} nats"
                + ("" if np.isnan(error) else f", sampled paths right on validation {100 * (1 - error):.1f}%")
            )
        return lines

    def cell_rows(self) -> list[dict[str, Any]]:
        """One row per cell: what it chose, how surely, and the runner-up."""
        rows = []
        for cell, (names, p) in enumerate(zip(self.candidates, self.last, strict=True), 1):
            order = np.argsort(-p, kind="stable")
            second = order[1] if len(order) > 1 else None
            rows.append(
                {
                    "cell": cell,
                    "choice": names[order[0]],
                    "probability": float(p[order[0]]),
                    "second": None if second is None else names[second],
                    "second_probability": None if second is None else float(p[second]),
                    "candidates": len(names),
                }
            )
        return rows

    def save(self, path: Path) -> None:
        """Write ``path`` (npz)."""
        header = {
            "format": FORMAT,
            "notation": self.notation,
            "candidates": self.candidates,
            "settings": self.settings,
        }
        arrays = {f"curve_{k}": v for k, v in self.curves.items()}
        arrays |= {f"cell_{i}": p for i, p in enumerate(self.probabilities)}
        write_npz(path, header=np.array(json.dumps(header, sort_keys=True)), **arrays)

    @staticmethod
    def load(path: Path) -> SearchRecord:
        """What :meth:`save` wrote. Raises ValueError for something else, FileNotFoundError."""
        curves = [f"curve_{k}" for k in SearchRecord.CURVES]
        found = read_npz(path, ("header", *curves))
        try:
            header = json.loads(str(found["header"]))
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}")
            cells = tuple(f"cell_{i}" for i in range(len(header["candidates"])))
            return SearchRecord(
                notation=header["notation"],
                candidates=tuple(map(tuple, header["candidates"])),
                probabilities=tuple(read_npz(path, cells)[cell] for cell in cells),
                curves={k: found[f"curve_{k}"] for k in SearchRecord.CURVES},
                settings=header["settings"],
            )
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is no record of a search ({error}); delete it and search again") from error


def _choice(name: str) -> str:
    return name.removesuffix("s")


@dataclass(frozen=True)
class Trial:
    """One network that a search tried.

    ``bits``: widths by part of the network, empty in float. ``steps`` 0: it was not trained, because it breaks a limit
    (``excess`` above 1: by what factor, at most) or is one of the trials before it.
    """

    number: int
    notation: str
    macs: int  # of the network, per second of audio
    weights: int
    weight_bytes: int
    bits: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    loss: float | None = None  # on validation
    accuracy: float | None = None
    excess: float = 1.0
    spent_macs: float = 0.0
    spent_clips: int = 0
    failure: str = ""  # why its training ended without a model

    @property
    def trained(self) -> bool:
        return self.accuracy is not None


def trial_of(values: dict[str, Any]) -> Trial:
    """A trial from its JSON values. Raises ValueError for something else."""
    try:
        return Trial(**values)
    except TypeError as error:
        raise ValueError(f"this is no trial of a search: {error}") from None


@dataclass(frozen=True)
class Trials:
    """All trials of one search, in order."""

    strategy: str
    trials: tuple[Trial, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Trial:
        """The most accurate on validation, of equals the one with less loss, then the earlier.

        Raises:
            ValueError: none was trained.
        """
        trained = [t for t in self.trials if t.accuracy is not None and t.loss is not None]
        if not trained:
            raise ValueError(f"{self.strategy}: none of {len(self.trials)} trials was trained; widen its limits")
        return min(trained, key=lambda t: (-(t.accuracy or 0), t.loss, t.number))

    @property
    def macs(self) -> float:
        """Multiply-accumulates that all trials took."""
        return sum(t.spent_macs for t in self.trials)

    def rows(self) -> list[dict[str, Any]]:
        """One row per trained trial, with the best accuracy so far."""
        rows, best = [], 0.0
        for trial in self.trials:
            if trial.accuracy is None:
                continue
            best = max(best, trial.accuracy)
            rows.append(asdict(trial) | {"best_so_far": best})
        return rows

    def to_json(self) -> dict[str, Any]:
        return {"strategy": self.strategy, "trials": [asdict(t) for t in self.trials], "settings": self.settings}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Trials:
        """What :meth:`to_json` gave. Raises ValueError for something else."""
        try:
            return Trials(values["strategy"], tuple(trial_of(t) for t in values["trials"]), values["settings"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no trials of a search: {error!r}") from None
