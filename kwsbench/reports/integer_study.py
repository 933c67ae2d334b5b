"""What notebooks count about an integer program: rows for tables. NumPy and the kernels only, no torch.

Windows are int8 ``[T, stacked_frames * n_mels]``, as the ring gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from kwsbench.arithmetic.fixedpoint import REQUANTIZE
from kwsbench.data.batches import FeatureBank
from kwsbench.integer import reference, run
from kwsbench.integer.kernels.finish import bias_of
from kwsbench.integer.kernels.npu import ACCUMULATORS, layer_outputs
from kwsbench.integer.program import Dense, Program

ACCUMULATOR_LIMIT = 2**31
GEMM_LIMIT = 2**24
PRODUCT_LIMIT = 2**53
TOTAL = "total"


def some_segments(bank: FeatureBank, most: int, most_frames: int) -> FeatureBank:
    """A bank of at most ``most`` segments, spread evenly over ``bank``, each cut to its first ``most_frames``.

    Raises:
        ValueError: a limit is not positive.
    """
    if most < 1 or most_frames < 1:
        raise ValueError(f"a bank needs at least one segment of one frame, got limits {most} and {most_frames}")
    kept = np.unique(np.linspace(0, len(bank) - 1, min(most, len(bank))).round().astype(np.int64))
    lengths = np.minimum(np.diff(bank.offsets)[kept], most_frames)
    frames = np.concatenate([bank.offsets[i] + np.arange(n) for i, n in zip(kept, lengths, strict=True)])
    return replace(
        bank,
        features=bank.features[frames],
        labels=bank.labels[frames],
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        clip_paths=tuple(bank.clip_paths[i] for i in kept),
        clip_labels=tuple(bank.clip_labels[i] for i in kept),
        word_end_seconds=bank.word_end_seconds[kept],
    )


def some_windows(program: Program, bank: FeatureBank, most: int) -> np.ndarray:
    """At most ``most`` int8 windows, spread evenly over all segments of a bank, each from a fresh ring."""
    total = int(bank.offsets[-1])
    wanted = np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(np.int64))
    parts = []
    for i, (a, b) in enumerate(pairwise(bank.offsets.tolist())):
        inside = wanted[(wanted >= a) & (wanted < b)] - a
        if len(inside):
            parts.append(run.stack(program, bank.segment(i), run.fresh_ring(program))[0][inside])
    return np.concatenate(parts)


def rung_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A ladder's rows (training.ladder, as dictionaries) summed over layers: one row per rung, from one to the next.

    ``first_layer`` is the first in which they differ (None: they never do), ``sqnr_db`` that of the last layer.
    """
    table: list[dict[str, Any]] = []
    for upper, lower in dict.fromkeys((row["upper"], row["lower"]) for row in rows):
        mine = [row for row in rows if (row["upper"], row["lower"]) == (upper, lower)]
        different = sum(row["different"] for row in mine)
        compared = sum(row["compared"] for row in mine)
        table.append(
            {
                "rung": f"{upper} → {lower}",
                "lower": lower,
                "compared": compared,
                "different": different,
                "different_percent": 100 * different / compared,
                "first_layer": next((row["layer"] for row in mine if row["different"]), None),
                "sqnr_db": mine[-1]["sqnr_db"],
            }
        )
    return table


def proof_rows(program: Program, windows: np.ndarray) -> list[dict[str, Any]]:
    """Per layer: the bounds that were proven, what is left to their limits, and the largest value met on ``windows``.

    ``int32_share_percent``: the proven bound of the accumulator as a share of 2^31; ``float32_share_percent``: of
    sum |c| max|x| as a share of 2^24; ``product_share_percent``: of the 53-bit products (unfolded layers, else None).
    """
    rows = []
    x = windows
    for layer in program.layers:
        acc = reference.accumulate(x, layer.codes) + bias_of(layer)
        proof = layer.proof
        rows.append(
            {
                "layer": layer.name,
                "largest_input": proof.max_abs_input,
                "largest_accumulator_proven": proof.max_abs_accumulator,
                "largest_accumulator_met": int(np.abs(acc).max()),
                "int32_share_percent": 100 * proof.max_abs_accumulator / ACCUMULATOR_LIMIT,
                "float32_share_percent": 100 * proof.max_abs_gemm / GEMM_LIMIT,
                "product_share_percent": 100 * proof.max_abs_product / PRODUCT_LIMIT if proof.max_abs_product else None,
            }
        )
        x = run.run_reference_layer(x, layer)
    return rows


def with_rounding(program: Program, rounding: str) -> Program:
    """The same program with its folded layers in another rounding mode of ``fixedpoint.REQUANTIZE``.

    Raises:
        ValueError: an unknown mode, or a program without folded layers (no other kind has modes).
    """
    if rounding not in REQUANTIZE:
        raise ValueError(f"rounding must be one of {sorted(REQUANTIZE)}, got {rounding!r}")
    if not any(isinstance(layer, Dense) for layer in program.layers):
        raise ValueError("this program has no folded layer, and only those have a rounding mode: lower it folded")
    layers = tuple(replace(n, rounding=rounding) if isinstance(n, Dense) else n for n in program.layers)
    return replace(program, layers=layers)


def rounding_rows(program: Program, windows: np.ndarray) -> list[dict[str, Any]]:
    """Per mode and layer of a folded program: outputs that differ from mode ``single``, and by how much at most.

    ``alone`` feeds every mode the same inputs (those of ``single``); ``different`` lets differences travel on. Each
    mode closes with a row ``total``, whose ``largest`` leaves out the int32 outputs of the last layer.
    """
    single = run.trace(with_rounding(program, "single"), windows)
    inputs = [windows, *single[:-1]]
    rows: list[dict[str, Any]] = []
    for mode in REQUANTIZE:
        other = with_rounding(program, mode)
        outputs = run.trace(other, windows)
        for layer, x, mine, theirs in zip(other.layers, inputs, single, outputs, strict=True):
            gap = np.abs(theirs.astype(np.int64) - mine)
            rows.append(
                {
                    "rounding": mode,
                    "layer": layer.name,
                    "outputs": int(mine.size),
                    "alone": int(np.count_nonzero(run.run_reference_layer(x, layer) != mine)),
                    "different": int(np.count_nonzero(gap)),
                    "largest": int(gap.max(initial=0)),
                }
            )
        mine_rows = rows[-len(program.layers) :]
        rows.append(
            {"rounding": mode, "layer": TOTAL}
            | {key: sum(row[key] for row in mine_rows) for key in ("outputs", "alone", "different")}
            | {"largest": max(row["largest"] for row in mine_rows[:-1])}
        )
    return rows


def accumulator_rows(program: Program, windows: np.ndarray) -> list[dict[str, Any]]:
    """Per accumulator of the accelerator's model and layer: overflows, and outputs that are wrong because of them.

    Every layer gets the exact inputs. ``overflows`` are final sums beyond int16 (acc16) or additions that
    saturated (sat16); ``wrong`` are outputs that differ from the exact ones. Each accumulator closes with a
    row ``total``.
    """
    rows: list[dict[str, Any]] = []
    for name in ACCUMULATORS:
        x = windows
        for layer in program.layers:
            exact = run.run_reference_layer(x, layer)
            outputs, overflows = layer_outputs(x, layer, name)
            wrong = int(np.count_nonzero(outputs != exact))
            rows.append(
                {
                    "accumulator": name,
                    "layer": layer.name,
                    "outputs": int(exact.size),
                    "overflows": overflows,
                    "wrong": wrong,
                    "wrong_percent": 100 * wrong / exact.size,
                }
            )
            x = exact
        sums = {key: sum(row[key] for row in rows[-len(program.layers) :]) for key in ("outputs", "overflows", "wrong")}
        total = {"accumulator": name, "layer": TOTAL} | sums
        rows.append(total | {"wrong_percent": 100 * sums["wrong"] / sums["outputs"]})
    return rows


def streaming_rows(
    program: Program, frames: np.ndarray, chunks: Sequence[int], backend: str = "neon_sdot"
) -> list[dict[str, Any]]:
    """Per chunk size in frames: outputs compared with the whole file's, and how many differ (0 is the claim)."""
    whole, last = run.step(program, frames, run.fresh_ring(program), backend)
    rows = []
    for size in chunks:
        ring, outputs = run.fresh_ring(program), []
        for at in range(0, len(frames), size):
            part, ring = run.step(program, frames[at : at + size], ring, backend)
            outputs.append(part)
        streamed = np.concatenate(outputs)
        rows.append(
            {
                "chunk_frames": size,
                "outputs": int(whole.size),
                "different": int(np.count_nonzero(streamed != whole)),
                "ring_values_different": int(np.count_nonzero(ring != last)),
            }
        )
    return rows
