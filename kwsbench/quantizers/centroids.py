"""Levels that are no even grid: Lloyd-Max centroids of given weights, and their place on ``step * int8``. NumPy."""

from __future__ import annotations

import numpy as np

LLOYD_ROUNDS = 60


def compand(v: np.ndarray, mu: float) -> np.ndarray:
    """The mu-law ``sgn(v) ln(1 + mu |v|) / ln(1 + mu)``; mu = 0 is the identity."""
    return np.sign(v) * np.log1p(mu * np.abs(v)) / np.log1p(mu) if mu else np.asarray(v, np.float64)


def expand(y: np.ndarray, mu: float) -> np.ndarray:
    """Its inverse, ``sgn(y) ((1 + mu)^|y| - 1) / mu``."""
    return np.sign(y) * np.expm1(np.abs(y) * np.log1p(mu)) / mu if mu else np.asarray(y, np.float64)


def lloyd(values: np.ndarray, levels: int, mu: float = 0.0) -> np.ndarray:
    """Centroids float64 ``[levels]``, ascending, of values [n].

    Even between the outer quantiles at first, then moved to the mean of their cells ``LLOYD_ROUNDS`` times. Cells part
    halfway between centroids in the space companded by ``mu``.

    With mu = 0 it is the Lloyd-Max quantizer of the values (S. Lloyd 1982, J. Max 1960), as far as the rounds lead.
    A cell that runs empty keeps its centroid.
    """
    values = np.sort(np.asarray(values, np.float64).ravel())
    tail = 0.25 / levels
    low, high = np.quantile(values, (tail, 1 - tail))
    centroids = np.linspace(low, high, levels)
    totals = np.concatenate([[0.0], np.cumsum(values)])
    for _ in range(LLOYD_ROUNDS):
        z = compand(centroids, mu)
        edges = np.searchsorted(values, expand((z[1:] + z[:-1]) / 2, mu))
        edges = np.concatenate([[0], edges, [len(values)]])
        counts = np.diff(edges)
        means = np.diff(totals[edges]) / np.maximum(counts, 1)
        centroids = np.sort(np.where(counts > 0, means, centroids))
    return centroids


def snap(levels: np.ndarray) -> tuple[np.ndarray, float]:
    """Sorted levels as ``step * codes``, codes int16 in -127..127: exactly where a step does it, else the level of
    largest magnitude gets 127 and the others the nearest code (half up)."""
    peak = float(np.max(np.abs(levels)))
    if peak == 0:
        return np.zeros(len(levels), np.int16), 1.0
    steps = peak / np.arange(1, 128)
    codes = np.floor(levels / steps[:, None] + 0.5)
    errors = np.max(np.abs(codes * steps[:, None] - levels), axis=1)
    exact = np.flatnonzero(errors <= 1e-6 * peak)
    best = int(exact[0]) if len(exact) else 126
    return np.clip(codes[best], -127, 127).astype(np.int16), float(steps[best])
