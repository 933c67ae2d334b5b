"""Bytes of a recognizer as tables: by matrix, by part, beside float32. All *measured*: lengths of written bytes."""

from __future__ import annotations

from typing import Any

from kwsbench.export.pack import pack
from kwsbench.export.recognizer import PARTS, float32_bytes, recognizer_parts
from kwsbench.integer.recognizer import Recognizer


def matrix_table(recognizer: Recognizer) -> list[dict[str, Any]]:
    """One row per matrix: shape, bits, grid, packed bytes, the same in 8-bit containers, the same in float32."""
    return [
        {
            "matrix": m.name,
            "shape": f"{m.codes.shape[0]} x {m.codes.shape[1]}",
            "bits": m.bits,
            "grid": m.grid,
            "packed_bytes": len(pack(m.codes, m.bits, m.grid)),
            "container_bytes": len(pack(m.codes, 8, "symmetric")),
            "float32_bytes": 4 * m.codes.size,
        }
        for m in recognizer.matrices
    ]


def part_table(recognizer: Recognizer) -> list[dict[str, Any]]:
    """One row per part and a total: packed bytes and bytes of the same network in float32."""
    packed, in_float = {k: len(v) for k, v in recognizer_parts(recognizer).items()}, float32_bytes(recognizer)
    rows: list[dict[str, Any]] = [
        {"part": part, "packed_bytes": packed[part], "float32_bytes": in_float[part]} for part in PARTS
    ]
    total: dict[str, Any] = {
        "part": "total",
        "packed_bytes": sum(packed.values()),
        "float32_bytes": sum(in_float.values()),
    }
    return [
        row | {"times_smaller": row["float32_bytes"] / row["packed_bytes"] if row["float32_bytes"] else None}
        for row in (*rows, total)
    ]
