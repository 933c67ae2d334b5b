"""What notebook 08 counts: rows for tables of annealing, of neighbouring quantizers, of recognizers and of waiting.

Plain values in (annealing records, the JSON of ``training.neighbours`` and ``training.wer_table``, integer
recognizers), rows out, as in the other studies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kwsbench.arithmetic.codebook import check_bits
from kwsbench.features.lfbe import LfbeConfig
from kwsbench.integer.packed import Packed
from kwsbench.integer.recognizer import Recognizer
from kwsbench.integer.replay import FrameStream, frame_chunks, replay, summarise

CHUNK_SECONDS = 0.06
LAYERS = 5  # of the spotter
EFFORTS = ("tiny", "smoke", "default", "full")
ENCODERS = ("lstm", "conformer")


def check_parameters(shown_layer: int, recognizers: str, encoders: Sequence[str], bits: Sequence[int]) -> None:
    """Refuse what notebook 08 would only meet after its first trainings.

    Raises:
        ValueError: the parameter and what it may be.
    """
    if not 0 <= shown_layer < LAYERS:
        raise ValueError(f"shown_layer is 0 to {LAYERS - 1}, got {shown_layer}")
    if recognizers and recognizers not in EFFORTS:
        raise ValueError(f"recognizers is one of {', '.join(EFFORTS)}, or empty; got {recognizers!r}")
    unknown = [encoder for encoder in encoders if encoder not in ENCODERS]
    if unknown or not encoders:
        raise ValueError(f"encoders are some of {', '.join(ENCODERS)}, got {list(encoders)}")
    for width in bits:
        check_bits(width)


def annealing_rows(layers: Mapping[str, Any], findings: Sequence[Any]) -> list[dict[str, Any]]:
    """One row per layer of an ``AnnealingRecord`` at its last snapshot, with what was found there."""
    return [
        {
            "layer": name,
            "levels": layer.levels.shape[1],
            "distinct codes": int(layer.distinct[-1]),
            "least used (%)": 100 * float(layer.usage[-1].min()),
            "entropy_bits": float(layer.entropy_bits[-1]),
            "mu": float(layer.mu[-1]),
            "finding": "; ".join(f.kind for f in findings if f.layer == name) or "none",
        }
        for name, layer in layers.items()
    ]


def snapshot_notes(layer: Any, at: Sequence[int], bits: int) -> list[str]:
    """What stands above the slider at each of the snapshots ``at`` of a ``LayerAnnealing``."""
    sharp = ["hard" if np.isinf(a) else f"sharpness {a:.3g}" for a in layer.sharpness]
    return [f"{sharp[s]}, mu {layer.mu[s]:.2f}, entropy {layer.entropy_bits[s]:.2f} of {bits} bits" for s in at]


def annealing_shares(layer: Any) -> dict[str, list[float]]:
    """Three curves over the snapshots, in percent, that tell an annealing that is too fast or too slow."""
    curves = {
        "between two levels": layer.undecided,
        "gap soft to hard": layer.gap,
        "changed since the last snapshot": layer.changed,
    }
    return {name: (100 * values).round(2).tolist() for name, values in curves.items()}


def neighbour_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per float and stage-2 system of ``neighbours.json``."""
    costs = {(c["method"], c["bits"]): c["ratio"] for c in result.get("step_costs", ()) if c["kind"] == "stage_one"}
    return [
        {
            "system": row["system"],
            "frr_percent": 100 * row["frr"],
            "fdr_percent": 100 * row["fdr"],
            "fdr at 5% frr_percent": 100 * row["fdr_at_5"],
            "sqnr to float_db": row.get("sqnr_to_float_db"),
            "entropy_bits": row.get("entropy_bits"),
            "weight_bytes": row.get("weight_bytes"),
            "step cost, of float": costs.get((row["method"], row["bits"])),
        }
        for row in result["rows"]
        if row["kind"] in ("float", "control", "stage_two")
    ]


def wer_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per encoder and system of ``recognition.json``."""
    return [
        {
            "encoder": row["encoder"],
            "system": row["system"],
            "wer_percent": 100 * row["wer"]["mean"],
            "low_percent": 100 * row["interval"]["low"],
            "high_percent": 100 * row["interval"]["high"],
            "packed_bytes": round(row["bytes"]["mean"]),
            "of 8 bits": row["of_8_bit"]["mean"],
            "of float": row["of_float"]["mean"],
        }
        for row in result["summary"]
    ]


def sensitivity_groups(proposal: Any) -> dict[str, list[float]]:
    """Loss increases of a ``training.sensitivity.Proposal`` by width, in the order of its matrices."""
    effects = {(e.matrix, e.bits): e.loss_increase for e in proposal.effects}
    widths = sorted({bits for _, bits in effects}, reverse=True)
    return {f"{width}-bit": [effects[name, width] for name in proposal.bits] for width in widths}


def waiting_rows(
    programs: Mapping[str, Recognizer], bank: Any, features: LfbeConfig, count: int = 30
) -> list[dict[str, Any]]:
    """User-perceived latency of integer recognizers over the first utterances of an ``UtteranceBank``, replayed in
    chunks of ``CHUNK_SECONDS``: see integer.replay."""
    rows = []
    for name, program in programs.items():
        engine = Packed(program)
        heard = [
            replay(
                FrameStream(engine),
                frame_chunks(bank.utterance(i), features, CHUNK_SECONDS),
                float(bank.speech_end_seconds[i]),
            )
            for i in range(min(len(bank), count))
        ]
        rows.append({"system": name} | summarise(heard))
    return rows


def spotter_conclusion(result: Mapping[str, Any], widths: Sequence[int]) -> str:
    """FDR at 5% FRR of every method by width, and how the prediction fared, in words."""
    at = {(r["bits"], r["method"]): 100 * r["fdr_at_5"] for r in result["rows"] if r["kind"] == "stage_two"}
    told = [
        f"{width} bit{'s'[: width > 1]}: "
        + ", ".join(f"{method} {fdr:.1f}%" for (bits, method), fdr in at.items() if bits == width)
        for width in widths
    ]
    v = result["verdict"]
    return (
        f"FDR at 5% FRR with {'; '.join(told)}. {v['held']} of {v['of']} comparisons came out as predicted (one seed; "
        "a tie is no proof of equality)."
    )


def recognizer_conclusion(result: Mapping[str, Any]) -> str:
    """WER of every quantized system beside its bytes, in words."""
    rows = [row for row in wer_rows(result) if row["system"].startswith("stage 2")]
    return "; ".join(
        f"{r['encoder']}, {r['system']}: {r['wer_percent']:.1f}% at {r['of 8 bits']:.2f} of the 8-bit bytes"
        for r in rows
    )
