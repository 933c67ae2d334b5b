"""How sure is a figure: intervals for rates and spreads over seeds.

- :func:`wilson_interval` for proportions of independent clips (FRR, FDR): Wilson 1927, eq. as in Brown, Cai
  and DasGupta 2001. Never leaves [0, 1] and is right at 0 of n.
- :func:`design_effect`: clips of one speaker are not independent; ``n / design_effect`` independent ones would say as
  much as the ``n`` there are (Kish 1965). A proportion over it goes into the same Wilson interval. Where few speakers
  say most it is itself uncertain and the interval somewhat narrow (simulated in tests/metrics/test_compare.py).
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


def wilson_interval(count: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Wilson score interval of the proportion ``count / n``; both may be effective numbers.

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


def speaker_groups(speakers: Sequence[str]) -> np.ndarray:
    """A number per clip [N], the same for clips of one speaker; a clip of an unknown speaker (``""``) has its own."""
    names: dict[str, int] = {}
    return np.array([names.setdefault(s or f"\0{i}", len(names)) for i, s in enumerate(speakers)], np.int64)


def design_effect(values: np.ndarray, groups: np.ndarray) -> float:
    """How many times the variance of the mean of ``values`` [N] grows because clips of a group are alike, at least 1.

    The variance between totals of groups over that between clips, both with their n - 1 (the ratio estimator of survey
    sampling: Kish 1965). 1 where every clip is its own group, or values or groups do not differ.

    Raises:
        ValueError: no value, or not a group for each.
    """
    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    if not len(values) or values.shape != groups.shape:
        raise ValueError(f"a group for each value is expected, got {values.shape} and {groups.shape}")
    away = values - values.mean()
    _, index = np.unique(groups, return_inverse=True)
    totals = np.bincount(index, away)
    n, k, alone = len(values), len(totals), float(away @ away)
    if k < 2 or not alone > 1e-12 * n:
        return 1.0
    return max(1.0, float(totals @ totals) * k / (k - 1) / (alone * n / (n - 1)))


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
