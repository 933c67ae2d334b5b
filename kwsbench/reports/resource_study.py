"""Resources of one network at several weight widths, side by side: rows for tables. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kwsbench.integer.kernels.npu import NPU_BITS
from kwsbench.integer.program import Program
from kwsbench.resources.cost import cost_table
from kwsbench.resources.memory import MEASURED, MODELLED, PROJECTED, memory_parts

PARTS = ("weights", "constants", "input tables", "ring", "activations")
CERTAINTY = (MEASURED, MODELLED, PROJECTED)


def memory_rows(programs: Mapping[int, Program]) -> list[dict[str, Any]]:
    """Bytes of one stream by system: float32, 8-bit containers, packed per width, accelerator per width it has.

    ``programs`` are the same network by weight width. ``weights_basis`` and ``total_basis`` are labels; that of a total
    is the label of its least certain part. ``*_times_smaller`` compares with float32.

    Raises:
        ValueError: no program.
    """
    if not programs:
        raise ValueError("a table of memory needs at least one program")
    first, rows = next(iter(programs)), []
    wanted = [("float32", first, "float32"), ("8-bit containers", first, "8-bit containers")]
    wanted += [(f"packed, {width} bit", width, "packed") for width in programs]
    wanted += [(f"accelerator, {width} bit", width, "NPU") for width in programs if width in NPU_BITS]
    for name, width, system in wanted:
        parts = {p["part"]: p for p in memory_parts(programs[width]) if p["system"] == system}
        row: dict[str, Any] = {"system": name}
        row |= {f"{part.replace(' ', '_')}_bytes": parts[part]["bytes"] for part in PARTS}
        row["total_bytes"] = sum(p["bytes"] for p in parts.values())
        row["weights_basis"] = parts["weights"]["basis"]
        row["total_basis"] = max((p["basis"] for p in parts.values()), key=CERTAINTY.index)
        rows.append(row)
    for row in rows:
        for part in ("weights", "total"):
            row[f"{part}_times_smaller"] = rows[0][f"{part}_bytes"] / row[f"{part}_bytes"]
    return rows


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
                "system": f"{width} bit",
                "lanes": total["lanes_instructions"],
                "lanes_times_fewer": total["lanes_times_fewer"],
                "sdot": total["sdot_instructions"],
                "sdot_times_fewer": total["sdot_times_fewer"],
                "macs": total["macs"],
                "macs_per_second": total["macs_per_second"],
            }
        )
    return rows
