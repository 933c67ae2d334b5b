"""Bytes of a spotter: what is stored, what is needed while it runs, and how each number is known.

Every number carries a label:

- *measured*: the length of really written bytes (export.pack) or the size of an array that exists.
- *modelled*: worked out from shapes, by the rule given here; nothing of that kind was written.
- *projected*: what a device that is not here would need, by its published model.

Counted for one stream: weights; per-channel constants (bias, multiplier, shift, or the 8-bit codes of the
unfolded form); the input's mean and inverse deviation per mel band; the ring of past frames; activations.
Not counted: machine code, the front end that makes log-mel frames, stack and operating system.

Systems compared:

- ``float32``: the same network with batchnorm folded into weights and one bias per channel, 4 bytes each.
- ``8-bit containers``: one byte per code in the panels that the kernels read, padding included.
- ``packed``: codes at their own width (export.pack), padding included. Widths of 2, 3, 6 and 7 bits are
  expanded to containers when loaded: packed is then their size in storage, not in working memory.
- ``NPU``: codes at their own width without padding, expanded on the fly; all else as in the program.

Activations: the largest sum of what one layer reads and writes; the first layer reads the ring and one new
frame, the last one writes 4-byte integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kwsbench.export.pack import pack
from kwsbench.integer.program import Layer, OutputDense, Program
from kwsbench.integer.run import fresh_ring

MEASURED = "measured"
MODELLED = "modelled"
PROJECTED = "projected"

# How each column of memory_table is known.
MEMORY_BASIS = {
    "macs": MODELLED,
    "weights_container_bytes": MEASURED,
    "weights_packed_bytes": MEASURED,
    "constants_bytes": MEASURED,
    "activations_bytes": MODELLED,
    "float32_bytes": MODELLED,
}
SYSTEMS = ("float32", "8-bit containers", "packed", "NPU")


def memory_table(program: Program) -> list[dict[str, Any]]:
    """One row per layer and a row of totals; how each column is known: ``MEMORY_BASIS``.

    ``macs`` per step; ``activations_bytes`` the layer's output; ``float32_bytes`` its weights and biases in
    float. The total of the activations is the largest pair that lives at once (module docstring), not a sum.
    """
    rows = []
    for layer in program.layers:
        n, k = layer.codes.shape
        rows.append(
            {
                "layer": layer.name,
                "shape": f"{n} x {k}",
                "weight_bits": layer.weight_bits,
                "grid": layer.grid,
                "macs": n * k,
                "weights_container_bytes": _container_bytes(layer),
                "weights_packed_bytes": _packed_bytes(layer),
                "constants_bytes": _constants_bytes(layer),
                "activations_bytes": _output_bytes(layer),
                "float32_bytes": 4 * n * k + 4 * n,
            }
        )
    total: dict[str, Any] = {"layer": "total", "shape": "", "weight_bits": None, "grid": ""}
    for key in MEMORY_BASIS:
        total[key] = sum(row[key] for row in rows)
    total["activations_bytes"] = _activations_bytes(program, 1)
    return [*rows, total]


def memory_parts(program: Program) -> list[dict[str, Any]]:
    """Every number on its own row: ``system``, ``part``, ``bytes`` and ``basis``."""
    layers = program.layers
    weights = sum(layer.codes.size for layer in layers)
    channels = sum(len(layer.codes) for layer in layers)
    constants = sum(_constants_bytes(layer) for layer in layers)
    tables = program.input.mean.nbytes + program.input.inverse_std.nbytes
    ring = fresh_ring(program)
    activations = _activations_bytes(program, 1)
    bits = sum(layer.codes.size * layer.weight_bits for layer in layers)
    shared = [
        ("constants", constants, MEASURED),
        ("input tables", tables, MEASURED),
        ("ring", ring.nbytes, MEASURED),
        ("activations", activations, MODELLED),
    ]
    parts = {
        "float32": [
            ("weights", 4 * weights, MODELLED),
            ("constants", 4 * channels, MODELLED),
            ("input tables", 8 * program.n_mels, MODELLED),
            ("ring", 4 * ring.size, MODELLED),
            ("activations", _activations_bytes(program, 4), MODELLED),
        ],
        "8-bit containers": [("weights", sum(map(_container_bytes, layers)), MEASURED), *shared],
        "packed": [("weights", sum(map(_packed_bytes, layers)), MEASURED), *shared],
        "NPU": [
            ("weights", -(-bits // 8), PROJECTED),
            *((part, size, PROJECTED) for part, size, _ in shared),
        ],
    }
    return [
        {"system": system, "part": part, "bytes": size, "basis": basis}
        for system in SYSTEMS
        for part, size, basis in parts[system]
    ]


def memory_summary(program: Program) -> list[dict[str, Any]]:
    """One row per system: weights and total bytes, how many times smaller than float32, and the basis.

    The basis of a total is that of its least certain part.
    """
    parts = memory_parts(program)
    rows: list[dict[str, Any]] = []
    for system in SYSTEMS:
        own = [p for p in parts if p["system"] == system]
        certainty = [MEASURED, MODELLED, PROJECTED]
        rows.append(
            {
                "system": system,
                "weights_bytes": own[0]["bytes"],
                "weights_basis": own[0]["basis"],
                "total_bytes": sum(p["bytes"] for p in own),
                "total_basis": max((p["basis"] for p in own), key=certainty.index),
            }
        )
    for row in rows:
        row["weights_times_smaller"] = rows[0]["weights_bytes"] / row["weights_bytes"]
        row["total_times_smaller"] = rows[0]["total_bytes"] / row["total_bytes"]
    return rows


def _container_bytes(layer: Layer) -> int:
    # Codes of every grid fit -127..127.
    return len(pack(layer.codes, 8, "symmetric"))


def _packed_bytes(layer: Layer) -> int:
    return len(pack(layer.codes, layer.weight_bits, layer.grid))


def _constants_bytes(layer: Layer) -> int:
    """Size of the per-channel arrays; the float scale of the last layer serves the host only."""
    names = {
        "dense": ("bias", "multiplier", "shift"),
        "unfolded_dense": ("gain_codes", "offset_codes"),
        "output_dense": ("bias",),
    }[layer.kind]
    arrays: list[np.ndarray] = [getattr(layer, name) for name in names]
    return sum(a.nbytes for a in arrays)


def _output_bytes(layer: Layer) -> int:
    return len(layer.codes) * (4 if isinstance(layer, OutputDense) else 1)


def _activations_bytes(program: Program, bytes_per_value: int) -> int:
    """Largest input plus output of a layer, with ``bytes_per_value`` per hidden value."""
    largest = 0
    reads = program.n_mels * bytes_per_value
    for layer in program.layers:
        writes = len(layer.codes) * (4 if isinstance(layer, OutputDense) else bytes_per_value)
        largest = max(largest, reads + writes)
        reads = writes
    return largest
