"""What quantization does to weights, in numbers: response curves, error, codes used. Rows for tables and figures.

SQNR is relative to what is quantized, ``10 log10(sum w^2 / sum (w - w_q)^2)``. Entropy is that of the codes in bits: at
most the width, and less where codes are used unevenly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kwsbench.arithmetic.codebook import Codebook, integer_codebook
from kwsbench.quantizers import CODEBOOKS, QUANTIZERS, WeightQuantizer, centroids
from kwsbench.quantizers.linear import LinearWeight
from kwsbench.quantizers.scales import max_abs_scale, mean_abs_scale, mse_scale, sqnr_db


@dataclass(frozen=True, eq=False)
class Response:
    """A quantizer over its trained tensor ``x`` [n], in units of the largest level.

    ``output`` is the quantized weight, ``latent`` the float weight behind it (what a gradient sees), ``gradient`` the
    derivative of the output that training uses. ``output - latent`` is the rounding error.
    """

    x: np.ndarray
    output: np.ndarray
    latent: np.ndarray
    gradient: np.ndarray


def response(method: str, bits: int, x: np.ndarray) -> Response:
    """The response of ``QUANTIZERS[method]`` with its range set to [-1, 1], by its own forward and backward."""
    values = torch.as_tensor(np.asarray(x), dtype=torch.float32)[None]
    # Made from weights of at most 1, so that the range is 1; then its trained matrix takes every x. A linear grid
    # may clip such weights: x is in units of its own largest level.
    quantizer = QUANTIZERS[method](values.clamp(-1, 1), bits)  # type: ignore[call-arg]
    (trained,) = (p for p in quantizer.parameters() if p.ndim == 2)
    assert quantizer.codebook.codes is not None
    largest = float(quantizer.codebook.codes[-1])
    unit = quantizer.step().item() * largest if isinstance(quantizer, LinearWeight) else 1.0
    with torch.no_grad():
        trained.copy_(values * unit)
    codes = quantizer.codes()
    codes.sum().backward()
    assert trained.grad is not None
    latent = quantizer.latent() / (quantizer.step()[:, None] * largest)
    return Response(
        np.asarray(x, np.float64),
        codes[0].detach().double().numpy() / largest,
        latent[0].detach().double().numpy(),
        trained.grad[0].double().numpy() * unit / largest,
    )


def code_counts(codebook: Codebook, x: np.ndarray) -> np.ndarray:
    """How many values of ``x`` take each level: int64 ``[L]``."""
    return np.bincount(codebook.encode(np.asarray(x)).ravel(), minlength=len(codebook.levels))


def entropy_bits(counts: np.ndarray) -> float:
    """Entropy of a distribution given by counts, in bits.

    Raises:
        ValueError: nothing was counted.

    >>> entropy_bits(np.array([1, 1, 2, 0]))
    1.5
    """
    counts = np.asarray(counts, np.float64)
    if counts.sum() <= 0:
        raise ValueError("the entropy of nothing is undefined: every count is 0")
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def rounded_sqnr_db(weights: np.ndarray, codebook: Codebook, scale: np.ndarray) -> float:
    """SQNR of ``weights`` [N, K] on ``scale * codebook``; ``scale`` is ``[1]`` or ``[N]``."""
    scale = scale[:, None]
    return sqnr_db(weights, scale * codebook.quantize(weights / scale))


def best_scale(weights: np.ndarray, codebook: Codebook, per_channel: bool) -> np.ndarray:
    """The scale of least squared error: a closed form for two levels, else a search."""
    if len(codebook.levels) == 2:
        return mean_abs_scale(weights, per_channel) / codebook.levels[-1]
    return mse_scale(weights, codebook, per_channel)


def sqnr_rows(weights: np.ndarray, bits: Sequence[int], methods: Sequence[str] = ("linear", "tanh")) -> list[dict]:
    """SQNR in dB of fixed weights [N, K]: one row per width, one column per grid and rule.

    Rules: max-abs or best scale (least squared error); one scale for the tensor, or one per row.
    """
    rows = []
    for width in bits:
        row: dict[str, Any] = {"width": width}
        for method in methods:
            book = CODEBOOKS[method](width)
            largest = float(np.max(np.abs(book.levels)))
            for where, per_row in (("", False), (" per row", True)):
                widest = max_abs_scale(weights, largest, per_row)
                row[f"{method}, max-abs{where}_db"] = rounded_sqnr_db(weights, book, widest)
                row[f"{method}, best{where}_db"] = rounded_sqnr_db(weights, book, best_scale(weights, book, per_row))
        rows.append(row)
    return rows


def spread_rows(bits: Sequence[int], stds: Sequence[float], normal: np.ndarray) -> dict[int, list[dict[str, float]]]:
    """What the spread of the latent tensor P does to the tanh grid, per width: std(P), SQNR of tanh(P) relative to
    itself, and the entropy of its codes. ``normal`` are standard normal values."""
    rows: dict[int, list[dict[str, float]]] = {}
    for width in bits:
        book = CODEBOOKS["tanh"](width)
        rows[width] = []
        for std in stds:
            squashed = np.tanh(std * normal)
            rows[width].append(
                {
                    "std": float(std),
                    "sqnr_db": sqnr_db(squashed, book.quantize(squashed)),
                    "entropy_bits": entropy_bits(code_counts(book, squashed)),
                }
            )
    return rows


def companding_rows(weights: np.ndarray, bits: int, mus: Sequence[float]) -> list[dict[str, float]]:
    """What even spacing in the companded space does to fixed weights [N, K], at the scale of least squared error: SQNR
    in dB and the number of different int8 codes, one row per mu. mu -> 0 is linear spacing.

    A weight takes its nearest level, as a trained table may part its cells anywhere.
    """
    rows = []
    even = np.linspace(-1, 1, 2**bits)
    for mu in mus:
        codes, step = centroids.snap(centroids.expand(even, mu))
        book = integer_codebook(np.unique(codes), step)
        scale = best_scale(weights, book, False)
        rows.append({"mu": float(mu), "sqnr_db": rounded_sqnr_db(weights, book, scale), "distinct": len(book.levels)})
    return rows


def layer_rows(quantizers: Mapping[str, WeightQuantizer], float_weights: Mapping[str, np.ndarray]) -> list[dict]:
    """One row per layer: codes used of those there are, their entropy, SQNR, and the spread of the trained tensor.

    ``sqnr_db`` compares the quantized weights with the trained float weights behind them (None at 1 bit, where only
    their sign counts and their scale is free); ``sqnr_to_float_db`` with the weights of the float model, and so
    includes how far training moved them. ``std_latent`` is the standard deviation of the trained matrix: P itself for
    the tanh quantizer.
    """
    rows = []
    for name, quantizer in quantizers.items():
        quantized = _array(quantizer.quantized())
        counts = layer_counts(quantizer)
        (trained,) = (p for p in quantizer.parameters() if p.ndim == 2)
        rows.append(
            {
                "layer": name,
                "width": quantizer.bits,
                "codes": len(counts),
                "codes_used": int(np.count_nonzero(counts)),
                "entropy_bits": entropy_bits(counts),
                "sqnr_db": None if quantizer.bits == 1 else sqnr_db(_array(quantizer.latent()), quantized),
                "sqnr_to_float_db": sqnr_db(float_weights[name], quantized),
                "std_latent": float(trained.detach().std()),
            }
        )
    return rows


def layer_counts(quantizer: WeightQuantizer) -> np.ndarray:
    """How many weights of a layer take each code of its codebook: int64 ``[L]``."""
    codes = _array(quantizer.codes()).astype(np.int64).ravel()
    book = quantizer.codebook
    assert book.codes is not None
    return np.bincount(np.searchsorted(book.codes, codes), minlength=len(book.codes))


def _array(t: torch.Tensor) -> np.ndarray:
    return t.detach().cpu().double().numpy()
