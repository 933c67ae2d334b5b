"""The bytes that a device stores for a recognizer, part by part, and how many they are.

Matrices: their packed codes, tables of centroids included (pack.py). Constants (biases, multipliers, shifts): one value
where all rows agree, else one per row; in the smallest number of whole bytes that holds them all, little-endian, two's
complement. Two bytes before them tell which: values (0: one, 1: one per row) and bytes of each. Curve tables: both,
int16. Input: mean and inverse deviation per mel band, float32, and the scale. Predicted bytes are written bytes.

Parts: ``matrices``, ``multipliers`` (with their shifts), ``biases``, ``curves``, ``input``.
"""

from __future__ import annotations

import numpy as np

from kwsbench.arithmetic.gates import SIGMOID, TANH
from kwsbench.export.pack import pack, packed_bytes
from kwsbench.integer.recognizer import Recognizer

PARTS = ("matrices", "multipliers", "biases", "curves", "input")


def recognizer_parts(recognizer: Recognizer) -> dict[str, bytes]:
    """The bytes of every part, in the order of ``PARTS``."""
    mean, inverse_std = (v.astype("<f4") for v in (recognizer.input.mean, recognizer.input.inverse_std))
    return {
        "matrices": b"".join(pack(m.codes, m.bits, m.grid) for m in recognizer.matrices),
        "multipliers": b"".join(map(pack_constants, _multipliers(recognizer))),
        "biases": b"".join(map(pack_constants, _biases(recognizer))),
        "curves": SIGMOID.astype("<i2").tobytes() + TANH.astype("<i2").tobytes(),
        "input": mean.tobytes() + inverse_std.tobytes() + np.array(recognizer.input.scale, "<f4").tobytes(),
    }


def recognizer_bytes(recognizer: Recognizer) -> dict[str, int]:
    """How many bytes :func:`recognizer_parts` writes, from shapes and widths."""
    return {
        "matrices": sum(packed_bytes(m.codes.shape, m.bits, m.grid) for m in recognizer.matrices),
        "multipliers": sum(map(constants_bytes, _multipliers(recognizer))),
        "biases": sum(map(constants_bytes, _biases(recognizer))),
        "curves": SIGMOID.nbytes + TANH.nbytes,
        "input": 8 * recognizer.n_mels + 4,
    }


def float32_bytes(recognizer: Recognizer) -> dict[str, int]:
    """The same network in float32: four bytes for every weight and bias, and the input's mean and deviation."""
    return {
        "matrices": 4 * sum(m.codes.size for m in recognizer.matrices),
        "multipliers": 0,
        "biases": 4 * sum(len(b) for b in _biases(recognizer)),
        "curves": 0,
        "input": 8 * recognizer.n_mels,
    }


def pack_constants(values: np.ndarray) -> bytes:
    """Integers ``[N]`` as the module docstring says."""
    each = bytes_of(values)
    stored = values.astype(np.int64)[: 1 if _alike(values) else None]
    wide = stored.astype("<i8").view(np.uint8).reshape(-1, 8)
    return bytes([not _alike(values), each]) + wide[:, :each].tobytes()


def unpack_constants(data: bytes, rows: int) -> np.ndarray:
    """int64 ``[rows]`` that :func:`pack_constants` wrote.

    Raises:
        ValueError: the bytes do not belong to so many rows.
    """
    each, count = data[1], rows if data[0] else 1
    if len(data) != 2 + each * count:
        raise ValueError(f"constants of {rows} rows, {each} bytes each, fill {2 + each * count} bytes, got {len(data)}")
    stored = np.frombuffer(data, np.uint8, offset=2).reshape(count, each)
    sign = np.where(stored[:, -1:] >= 128, 255, 0).astype(np.uint8)
    wide = np.concatenate([stored, np.repeat(sign, 8 - each, axis=1)], axis=1)
    return np.broadcast_to(np.ascontiguousarray(wide).view("<i8")[:, 0], rows).astype(np.int64)


def constants_bytes(values: np.ndarray) -> int:
    """How many bytes :func:`pack_constants` writes."""
    return 2 + bytes_of(values) * (1 if _alike(values) else len(values))


def bytes_of(values: np.ndarray) -> int:
    """The least number of bytes whose two's complement holds every value.

    >>> bytes_of(np.array([-128, 127])), bytes_of(np.array([128])), bytes_of(np.array([2**31]))
    (1, 2, 5)
    """
    low, high = int(values.min()), int(values.max())
    return max((v if v >= 0 else ~v).bit_length() for v in (low, high)) // 8 + 1


def _alike(values: np.ndarray) -> bool:
    return bool(np.all(values == values[0]))


def _multipliers(recognizer: Recognizer) -> list[np.ndarray]:
    gates = (*recognizer.encoder, recognizer.prediction, recognizer.joint)
    return [v for g in gates for v in (g.input_multiplier, g.state_multiplier, g.shift)]


def _biases(recognizer: Recognizer) -> list[np.ndarray]:
    gates = (*recognizer.encoder, recognizer.prediction, recognizer.joint)
    return [*(g.bias for g in gates), recognizer.output.bias]
