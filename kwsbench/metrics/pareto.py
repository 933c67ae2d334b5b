"""Pareto fronts: what is worth its cost."""

from __future__ import annotations

from collections.abc import Sequence


def front_of(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, gain) that no other point beats: none costs less and gains as much, or costs as
    much and gains more. Equal points are all on the front or all off it.

    >>> front_of([(1.0, 0.5), (2.0, 0.9), (3.0, 0.8)])
    [0, 1]
    """
    return [
        i for i, (x, y) in enumerate(points) if not any((a <= x and b > y) or (a < x and b >= y) for a, b in points)
    ]
