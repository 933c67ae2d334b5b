"""The codebook: what every quantizer of at most 8 bits reduces to.

Sorted levels, the thresholds between them, and one tie side: a value on a threshold takes the upper level
(half up). Quantizers differ only in how they make one; the training forward, the emulation, the lowering
and the exports only read it. A codebook is written for a *normalised* tensor (weights divided by their
scale); the scale, per tensor or per row, stays outside.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np


def check_bits(bits: int) -> int:
    """``bits`` if it is an integer from 1 to 8, else ValueError."""
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not 1 <= bits <= 8:
        raise ValueError(f"bits must be an integer from 1 to 8, got {bits!r}")
    return int(bits)


@dataclass(frozen=True, eq=False)
class Codebook:
    """Levels ``[L]`` (float64, increasing, L <= 256) and thresholds ``[L-1]`` (float64, increasing).

    ``codes`` (int16 ``[L]``) and ``step`` are set where ``levels == step * codes``: such a codebook runs in
    integer arithmetic as it is.
    """

    levels: np.ndarray
    thresholds: np.ndarray
    codes: np.ndarray | None = None
    step: float | None = None

    def __post_init__(self) -> None:
        levels, thresholds = self.levels, self.thresholds
        if not 2 <= len(levels) <= 256:
            raise ValueError(f"a codebook has 2 to 256 levels, got {len(levels)}")
        if len(thresholds) != len(levels) - 1:
            raise ValueError(f"{len(levels)} levels need {len(levels) - 1} thresholds, got {len(thresholds)}")
        if np.any(np.diff(levels) < 0) or np.any(np.diff(thresholds) < 0):
            raise ValueError("levels and thresholds must be sorted")
        if np.any(thresholds < levels[:-1]) or np.any(thresholds > levels[1:]):
            raise ValueError("each threshold must lie between its two levels")

    @property
    def bits(self) -> int:
        """Bits of an index into the levels."""
        return int(np.ceil(np.log2(len(self.levels))))

    def encode(self, x: Any) -> Any:
        """Index of the level of each value of ``x`` (int64, same shape). Compares in float64: exact."""
        if type(x).__module__.startswith("torch"):
            torch = sys.modules["torch"]
            # NaN would silently take the last level; training checks its loss and parameters instead.
            bounds = torch.as_tensor(self.thresholds, device=x.device)
            return torch.bucketize(x.detach().double(), bounds, right=True)
        return np.searchsorted(self.thresholds, np.asarray(x, np.float64), side="right")

    def decode(self, index: Any) -> Any:
        """Levels (float64) of indices."""
        return _take(self.levels, index)

    def quantize(self, x: Any) -> Any:
        """``decode(encode(x))``: the nearest level as the thresholds see it (float64)."""
        return self.decode(self.encode(x))

    def encode_codes(self, x: Any) -> Any:
        """Integer codes ``c`` with ``level == step * c`` (int64); needs an integer codebook."""
        if self.codes is None:
            raise ValueError("this codebook has no integer codes: lower it with integer_form first")
        return _take(self.codes.astype(np.int64), self.encode(x))


def midpoint_codebook(levels: np.ndarray) -> Codebook:
    """Codebook of any sorted levels with thresholds halfway between neighbours."""
    levels = np.asarray(levels, np.float64)
    return Codebook(levels, (levels[1:] + levels[:-1]) / 2)


def integer_codebook(codes: np.ndarray, step: float) -> Codebook:
    """Codebook of ``step * codes`` with thresholds halfway, computed as ``step * (c_i + c_i+1) / 2``."""
    codes = np.asarray(codes, np.int16)
    middles = (codes[1:].astype(np.float64) + codes[:-1]) / 2
    return Codebook(codes * float(step), middles * float(step), codes, float(step))


class NotIntegerLevels(ValueError):
    """The levels are not ``step * int8``; ``step`` and ``error`` name the nearest form."""

    def __init__(self, step: float, error: float):
        super().__init__(
            f"the codebook's levels are not step * int8: the nearest step is {step:.6g} with a largest "
            f"error of {error:.3g}; snap the levels to that step first"
        )
        self.step, self.error = step, error


def integer_form(codebook: Codebook, tolerance: float = 1e-9) -> tuple[float, np.ndarray]:
    """``(step, codes)`` with int8 codes such that ``levels == step * codes``.

    Raises:
        NotIntegerLevels: no step reproduces the levels to ``tolerance`` times the largest one.
    """
    if codebook.codes is not None and codebook.step is not None:
        return codebook.step, codebook.codes.astype(np.int8)
    levels = codebook.levels
    peak = float(np.max(np.abs(levels)))
    if peak == 0:
        raise NotIntegerLevels(0.0, 0.0)
    # The largest level takes each possible code in turn; the step follows.
    steps = peak / np.arange(1, 128)
    codes = np.floor(levels / steps[:, None] + 0.5)
    errors = np.max(np.abs(codes * steps[:, None] - levels), axis=1)
    exact = np.flatnonzero(errors <= tolerance * peak)
    if len(exact) == 0:
        best = int(np.argmin(errors))
        raise NotIntegerLevels(float(steps[best]), float(errors[best]))
    return float(steps[exact[0]]), codes[exact[0]].astype(np.int8)


def _take(table: np.ndarray, index: Any) -> Any:
    if type(index).__module__.startswith("torch"):
        torch = sys.modules["torch"]
        return torch.as_tensor(table, device=index.device)[index]
    return table[index]
