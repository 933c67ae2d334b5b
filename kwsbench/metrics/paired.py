"""Two spotters on the same clips: the difference of their FDR at one FRR, and how sure it is.

For each seed both systems are read at one FRR: each at its own largest threshold that misses no more positives than
that. The interval is a paired bootstrap over clips: positives and negative clips are drawn with replacement, the
same ones for both systems and for all seeds, so that what makes a clip hard for everybody falls out of the
difference. Thresholds are set anew in every draw. The seeds are those that were trained: the interval does not
say how other seeds would have come out.

Clips of one speaker are alike. With ``groups``, speakers are drawn instead, each with all its clips (a cluster
bootstrap), and where the clips of a speaker differ together the interval is wider.

Accuracy over several classes is compared likewise (:func:`accuracy_difference`), there with seeds drawn with
replacement too: with a few seeds that says a little of others, with one seed nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Maxima = tuple[np.ndarray, np.ndarray]  # of positives, of negative clips (metrics.det.clip_maxima)


@dataclass(frozen=True)
class FdrDifference:
    """FDR of a system minus that of a baseline: mean over seeds, its interval, and the value of each seed."""

    mean: float
    low: float
    high: float
    per_seed: tuple[float, ...]

    @property
    def outcome(self) -> str:
        """``wins`` or ``loses`` where the whole interval lies on one side of 0, else ``ties``."""
        return "wins" if self.high < 0 else "loses" if self.low > 0 else "ties"


def fdr_at(positives: np.ndarray, negatives: np.ndarray, frr: float) -> float:
    """FDR at the largest threshold that misses at most ``frr`` of the positives; 0 where nothing is accepted."""
    allowed = int(np.floor(frr * len(positives) + 1e-9))
    threshold = np.partition(positives, allowed)[allowed]
    false, true = int(np.count_nonzero(negatives >= threshold)), int(np.count_nonzero(positives >= threshold))
    return false / max(1, false + true)


def fdr_difference(
    ours: Sequence[Maxima],
    theirs: Sequence[Maxima],
    frr: Sequence[float],
    seed: int = 0,
    draws: int = 2000,
    confidence: float = 0.95,
    groups: Maxima | None = None,
) -> FdrDifference:
    """FDR of ``ours`` minus ``theirs``, one pair of clip maxima per training seed, at ``frr`` [seeds].

    ``groups``: numbers of the speakers of the positives and of the negative clips (compare.speaker_groups, of both
    together); without it, or where all is of one speaker, clips are drawn.

    Raises:
        ValueError: no seed, systems on different clips, other groups than clips, ``frr`` outside [0, 1), or fewer than
            100 draws.
    """
    if not ours or not len(ours) == len(theirs) == len(frr):
        raise ValueError(f"one pair and one FRR per seed are expected, got {len(ours)}, {len(theirs)} and {len(frr)}")
    sizes = {(len(p), len(n)) for p, n in (*ours, *theirs)}
    if len(sizes) > 1:
        raise ValueError(f"a paired comparison needs the same clips, got {sorted(sizes)} positives and negatives")
    if any(not 0 <= rate < 1 for rate in frr):
        raise ValueError(f"frr is a share from 0 to below 1, got {list(frr)}")
    if draws < 100:
        raise ValueError(f"a bootstrap needs at least 100 draws, got {draws}")
    n_positives, n_negatives = sizes.pop()
    if groups is not None and (len(groups[0]), len(groups[1])) != (n_positives, n_negatives):
        raise ValueError(
            f"a speaker for each of {n_positives} positives and {n_negatives} negatives is expected, got "
            f"{len(groups[0])} and {len(groups[1])}"
        )
    rng = np.random.default_rng(seed)

    def differences(p: np.ndarray, n: np.ndarray) -> list[float]:
        return [
            fdr_at(a[0][p], a[1][n], rate) - fdr_at(b[0][p], b[1][n], rate)
            for a, b, rate in zip(ours, theirs, frr, strict=True)
        ]

    def drawn() -> tuple[np.ndarray, np.ndarray]:
        if groups is None or len(np.unique(np.concatenate(groups))) < 2:
            return rng.integers(n_positives, size=n_positives), rng.integers(n_negatives, size=n_negatives)
        while True:
            times = _times(np.concatenate(groups), rng)
            p, n = (np.repeat(np.arange(len(t)), t) for t in (times[:n_positives], times[n_positives:]))
            if len(p):  # the FRR of no positive is nothing
                return p, n

    per_seed = differences(np.arange(n_positives), np.arange(n_negatives))
    means = [np.mean(differences(*drawn())) for _ in range(draws)]
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return FdrDifference(float(np.mean(per_seed)), float(low), float(high), tuple(per_seed))


def _times(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each clip [N] is there when as many groups as there are are drawn with replacement."""
    _, index = np.unique(groups, return_inverse=True)
    k = int(index.max()) + 1
    return np.bincount(rng.integers(k, size=k), minlength=k)[index]


@dataclass(frozen=True)
class AccuracyDifference:
    """Accuracy of a system minus that of a baseline: mean over seeds, its interval, and the value of each seed."""

    mean: float
    low: float
    high: float
    per_seed: tuple[float, ...]

    @property
    def outcome(self) -> str:
        """``wins`` or ``loses`` where the whole interval lies on one side of 0, else ``ties``."""
        return "wins" if self.low > 0 else "loses" if self.high < 0 else "ties"


def accuracy_difference(
    ours: np.ndarray,
    theirs: np.ndarray,
    seed: int = 0,
    draws: int = 2000,
    confidence: float = 0.95,
    groups: np.ndarray | None = None,
) -> AccuracyDifference:
    """Accuracy of ``ours`` minus ``theirs``, bool [seeds, clips] each: whether a clip was told right.

    ``groups`` [clips]: numbers of the speakers (compare.speaker_groups); without it, or where all is of one speaker,
    clips are drawn.

    Raises:
        ValueError: other shapes, nothing to compare, other groups than clips, or fewer than 100 draws.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape or ours.ndim != 2 or not ours.size:
        raise ValueError(f"one row per seed and one column per clip are expected, got {ours.shape} and {theirs.shape}")
    better, rng = ours - theirs, np.random.default_rng(seed)
    seeds, clips = better.shape
    if groups is not None and len(groups) != clips:
        raise ValueError(f"a speaker for each of {clips} clips is expected, got {len(groups)}")
    if groups is None or len(np.unique(groups)) < 2:
        groups = np.arange(clips)
    if draws < 100:
        raise ValueError(f"a bootstrap needs at least 100 draws, got {draws}")
    means = []
    for _ in range(draws):
        mean, times = better[rng.integers(seeds, size=seeds)].mean(0), _times(groups, rng)
        means.append(mean @ times / times.sum())
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return AccuracyDifference(float(better.mean()), float(low), float(high), tuple(better.mean(1).tolist()))
