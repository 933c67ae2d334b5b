"""Scales: how large one unit of a quantized tensor is. NumPy, float64; used before and after training.

A scale maps a tensor to the domain of a unit codebook: ``x / scale``. Per tensor it has shape ``[1]``, per
output channel (row) ``[N]``. The zero tensor gets scale 1, so that its codes are defined.
"""

from __future__ import annotations

import numpy as np

from kwsbench.arithmetic.codebook import Codebook


def max_abs_scale(x: np.ndarray, largest_code: float, per_channel: bool) -> np.ndarray:
    """``max|x| / largest_code``: the simplest post-training rule. ``x`` is ``[N, K]``."""
    return _positive(np.max(np.abs(_rows(x, per_channel)), axis=1) / largest_code)


def mean_abs_scale(x: np.ndarray, per_channel: bool) -> np.ndarray:
    """``mean|x|``: the least-squares scale of a {-1, +1} codebook."""
    return _positive(np.mean(np.abs(_rows(x, per_channel)), axis=1))


def mse_scale(x: np.ndarray, codebook: Codebook, per_channel: bool, points: int = 60) -> np.ndarray:
    """Scale of least squared error of ``scale * codebook(x / scale)``, by a grid of ``points`` refined once."""
    rows = _rows(x, per_channel).astype(np.float64)
    peak = _positive(np.max(np.abs(rows), axis=1) / np.max(np.abs(codebook.levels)))
    best = _grid_minimum(rows, codebook, peak, np.linspace(0.02, 1.05, points))
    return _grid_minimum(rows, codebook, best, np.linspace(0.97, 1.03, 13))


def sqnr_db(x: np.ndarray, quantized: np.ndarray) -> float:
    """Signal to quantization noise, ``10 log10(sum x^2 / sum (x - q)^2)``; inf where they are equal."""
    noise = float(np.sum((np.asarray(x, np.float64) - quantized) ** 2))
    signal = float(np.sum(np.asarray(x, np.float64) ** 2))
    return float("inf") if noise == 0 else 10 * np.log10(signal / noise)


def _grid_minimum(rows: np.ndarray, codebook: Codebook, start: np.ndarray, factors: np.ndarray) -> np.ndarray:
    errors = np.empty((len(factors), len(rows)))
    for i, factor in enumerate(factors):
        scale = (start * factor)[:, None]
        errors[i] = np.sum((rows - scale * codebook.quantize(rows / scale)) ** 2, axis=1)
    return start * factors[np.argmin(errors, axis=0)]


def _rows(x: np.ndarray, per_channel: bool) -> np.ndarray:
    x = np.asarray(x)
    return x if per_channel else x.reshape(1, -1)


def _positive(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 0, scale, 1.0)
