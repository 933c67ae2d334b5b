"""What a run keeps of one system, as plain JSON values: enough to overlay, rank and compare runs without their models.

A record::

    {"system": "stage 2, 2-bit tanh", "kind": "stage_two", "keyword": "computer", "seed": 0,
     "bits": 2, "method": "tanh",                     # null for float systems; bits also for mixed widths
     "bytes": 71234, "bytes_basis": "measured",       # one stream: packed weights, constants, ring, activations
     "point": {...},                                  # metrics.det.OperatingPoint at the validation threshold, on test
     "curve": {"frr": [...], "fa_per_hour": [...], "fdr": [...], "negative_hours": 0.4, "n_positives": 219},
     "layers": [{"layer": "features", "sha256": "..."}, ...]}   # integer systems only, in the order of computation

``layers`` are digests of what goes through a fixed set of test windows: the float features, the int8 windows, then
each layer's codes and constants, and its outputs. The first entry that differs between two records is where their
programs part.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any

import numpy as np

from kwsbench.integer import run
from kwsbench.integer.program import Program
from kwsbench.metrics.det import DetCurve
from kwsbench.resources.memory import MEASURED, MODELLED, PROJECTED, memory_parts
from kwsbench.training.experiment import Experiment, System

CURVE_POINTS = 60
DIGEST_SEGMENTS = 16
CERTAINTY = (MEASURED, MODELLED, PROJECTED)


def system_record(experiment: Experiment, system: System, reference: Program | None = None) -> dict[str, Any]:
    """The record of a system on the test split.

    Args:
        reference: any integer program of the same network; a float system's bytes are counted on it as float32.
            Without it they are None, as those of stage 1 always are.
    """
    keyword = experiment.spec.keywords[0]
    integer = system.kind in ("stage_two", "post_training")
    program = experiment.program(system) if integer else None
    # Stage 1 is neither: its weights are codes, the rest is float, and nothing of that kind is ever stored.
    size, basis = _bytes(program, reference if system.weights is None else None)
    return {
        "system": system.label,
        "kind": system.kind,
        "keyword": keyword,
        "seed": system.seed,
        "bits": system.weights.bits if system.weights and system.layer_bits is None else None,
        "method": system.weights.method if system.weights else None,
        "bytes": size,
        "bytes_basis": basis,
        "point": experiment.point(system).as_row(),
        "curve": curve_record(experiment.curve(system)),
        "layers": layer_digests(program, experiment) if program is not None else [],
    }


def curve_record(curve: DetCurve) -> dict[str, Any]:
    """A DET curve in at most ``CURVE_POINTS`` points of its own: its ends, and points even in FRR and in log FA/h."""
    events = np.log(np.maximum(curve.false_accepts, 0.5))
    path = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(curve.frr) * 5, np.diff(events) / 5))])
    kept = np.unique(np.searchsorted(path, np.linspace(0, path[-1], CURVE_POINTS)).clip(0, len(path) - 1))
    fdr = [None if np.isnan(v) else float(f"{v:.5g}") for v in curve.fdr[kept]]
    return {
        "frr": [float(f"{v:.5g}") for v in curve.frr[kept]],
        "fa_per_hour": [float(f"{v:.5g}") for v in curve.fa_per_hour[kept]],
        "fdr": fdr,
        "negative_hours": float(f"{curve.negative_hours:.5g}"),
        "n_positives": curve.n_positives,
        "n_negative_clips": curve.n_negative_clips,
    }


def layer_digests(program: Program, experiment: Experiment) -> list[dict[str, str]]:
    """SHA-256 (16 hex digits) of each step of a program on the first test segments, in the order of computation."""
    bank = experiment.bank("test")
    frames = [bank.segment(i) for i in range(min(DIGEST_SEGMENTS, len(bank)))]
    windows = np.concatenate([run.stack(program, f, run.fresh_ring(program))[0] for f in frames])
    rows = [("features", _digest(*frames)), ("int8 windows", _digest(windows))]
    for layer, outputs in zip(program.layers, run.trace(program, windows, "neon_sdot"), strict=True):
        parts = [getattr(layer, f.name) for f in fields(layer)]
        arrays = [part for part in parts if isinstance(part, np.ndarray)]
        rows.append((f"{layer.name}: weights and constants", _digest(*arrays)))
        rows.append((f"{layer.name}: outputs", _digest(outputs)))
    return [{"layer": name, "sha256": digest} for name, digest in rows]


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _bytes(program: Program | None, reference: Program | None) -> tuple[int | None, str | None]:
    counted, system = (program, "packed") if program is not None else (reference, "float32")
    if counted is None:
        return None, None
    parts = [p for p in memory_parts(counted) if p["system"] == system]
    return sum(p["bytes"] for p in parts), max((p["basis"] for p in parts), key=CERTAINTY.index)
