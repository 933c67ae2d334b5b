"""How sure is a figure: intervals for rates and spreads over seeds.

- :func:`wilson_interval` for proportions of independent clips (FRR, FDR): Wilson 1927, eq. as in Brown, Cai
  and DasGupta 2001. Never leaves [0, 1] and is right at 0 of n.
- :func:`poisson_interval` and :func:`poisson_upper` for events per hour: Garwood 1936, exact through the
  chi-square quantile. They assume independent events; false accepts of one long recording cluster, and the
  true interval is then wider.
- :func:`spread` over seeds: mean, least, largest and their number; with three seeds nothing finer is honest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv, ndtri


@dataclass(frozen=True)
class Spread:
    """Mean, least and largest of ``n`` runs."""

    mean: float
    least: float
    largest: float
    n: int

    def text(self, digits: int = 3, factor: float = 1.0) -> str:
        """For example ``"5.1 (4.8 to 5.6, n = 3)"``; values are multiplied by ``factor`` first."""
        mean, least, largest = (f"{v * factor:.{digits}g}" for v in (self.mean, self.least, self.largest))
        return f"{mean} ({least} to {largest}, n = {self.n})" if self.n > 1 else f"{mean} (n = 1)"


def spread(values: Sequence[float]) -> Spread:
    """Spread of the same figure over seeds. Raises ValueError when there is none, or one is NaN."""
    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise ValueError("a spread needs at least one value")
    if np.any(np.isnan(array)):
        raise ValueError(f"a value of the spread is NaN: {array.tolist()}")
    return Spread(float(array.mean()), float(array.min()), float(array.max()), array.size)


def wilson_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Wilson score interval of the proportion ``count / n``.

    Raises:
        ValueError: ``n`` is 0, ``count`` is outside 0..n, or ``confidence`` outside (0, 1).
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"a proportion needs 0 <= count <= n and n >= 1, got {count} of {n}")
    z = float(ndtri(0.5 + confidence / 2))
    p = count / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # The bounds at 0 of n and n of n are exactly 0 and 1; the subtraction may miss them by an ulp.
    low = 0.0 if count == 0 else float(centre - half)
    high = 1.0 if count == n else float(centre + half)
    return low, high


def poisson_interval(events: int, hours: float, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided exact interval of a rate per hour from ``events`` in ``hours``."""
    _check_confidence(confidence)
    _check_exposure(events, hours)
    tail = (1 - confidence) / 2
    low = 0.0 if events == 0 else float(gammaincinv(events, tail)) / hours
    return low, float(gammaincinv(events + 1, 1 - tail)) / hours


def poisson_upper(events: int, hours: float, confidence: float = 0.95) -> float:
    """One-sided exact upper bound of a rate per hour.

    With no event in T hours and 95% it is ``-ln(0.05) / T``: the rule of three, 3 / T.
    """
    _check_confidence(confidence)
    _check_exposure(events, hours)
    return float(gammaincinv(events + 1, confidence)) / hours


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")


def _check_exposure(events: int, hours: float) -> None:
    if events < 0 or not 0 < hours < np.inf:
        raise ValueError(f"a rate needs events >= 0 in hours > 0, got {events} in {hours}")
