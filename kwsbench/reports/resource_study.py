"""Resources of one network at several weight widths, side by side: rows for tables. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kwsbench.integer.kernels.npu import NPU_BITS
from kwsbench.integer.program import Program
from kwsbench.resources.cost import cost_table
from kwsbench.resources.memory import MEASURED, MODELLED, PROJECTED, memory_parts

PARTS = ("weights", "constants", "ring", "activations")
CERTAINTY = (MEASURED, MODELLED, PROJECTED)


def memory_rows(programs: Mapping[int, Program]) -> list[dict[str, Any]]:
    """Bytes of one stream by system: float32, 8-bit containers, packed below 8 bits, accelerator (NPU) if it has them.

    ``programs`` are the same network by weight width; ``width`` is None for float32 and 8 for containers, which hold
    any width. ``constants_bytes`` include the input's tables. ``weights_basis`` and ``total_basis`` are labels; that of
    a total is the label of its least certain part. ``*_times_smaller`` compares with float32.

    Raises:
        ValueError: no program.
    """
    if not programs:
        raise ValueError("a table of memory needs at least one program")
    first = next(iter(programs.values()))
    rows = [
        _memory_row("float32", None, first, "float32"),
        _memory_row("8-bit containers", 8, first, "8-bit containers"),
    ]
    rows += [_memory_row(f"packed, {w}-bit", w, program, "packed") for w, program in programs.items() if w != 8]
    rows += [_memory_row(f"NPU, {w}-bit", w, program, "NPU") for w, program in programs.items() if w in NPU_BITS]
    for row in rows:
        for part in ("weights", "total"):
            row[f"{part}_times_smaller"] = rows[0][f"{part}_bytes"] / row[f"{part}_bytes"]
    return rows


def _memory_row(name: str, width: int | None, program: Program, system: str) -> dict[str, Any]:
    parts = {p["part"]: p for p in memory_parts(program) if p["system"] == system}
    return {
        "system": name,
        "width": width,
        "weights_bytes": parts["weights"]["bytes"],
        "weights_basis": parts["weights"]["basis"],
        "constants_bytes": parts["constants"]["bytes"] + parts["input tables"]["bytes"],
        "ring_bytes": parts["ring"]["bytes"],
        "activations_bytes": parts["activations"]["bytes"],
        "total_bytes": sum(p["bytes"] for p in parts.values()),
        "total_basis": max((p["basis"] for p in parts.values()), key=CERTAINTY.index),
    }


def cost_rows(programs: Mapping[int, Program]) -> list[dict[str, Any]]:
    """Modelled instructions per step of whole networks: float32 first, then one row per width.

    ``lanes`` is the kernel without dot product (Armv8.0), ``sdot`` the one with it (Armv8.2).
    """
    rows: list[dict[str, Any]] = []
    for width, program in programs.items():
        total = cost_table(program)[-1]
        if not rows:
            float32 = total["float32_instructions"]
            rows.append({"system": "float32", "lanes": float32, "lanes_times_fewer": 1.0})
            rows[0] |= {"sdot": None, "sdot_times_fewer": None, "macs": total["macs"]}
            rows[0]["macs_per_second"] = total["macs_per_second"]
        rows.append(
            {
                "system": f"{width}-bit",
                "lanes": total["lanes_instructions"],
                "lanes_times_fewer": total["lanes_times_fewer"],
                "sdot": total["sdot_instructions"],
                "sdot_times_fewer": total["sdot_times_fewer"],
                "macs": total["macs"],
                "macs_per_second": total["macs_per_second"],
            }
        )
    return rows
