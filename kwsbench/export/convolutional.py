"""The bytes that a device stores for an integer convolutional network, part by part, and how many they are.

Weights: packed codes (pack.py), a convolution's as the matrix ``[outputs, time * frequency * inputs]``, a depthwise
one's as ``[time * frequency, channels]``, so that channels lie side by side as kernels read them, and less is padding.
Constants: biases, multipliers and shifts of every operation, each in the fewest bytes (``recognizer.pack_constants``).
Input: mean and inverse deviation per bin, float32, and the scale; samples need none. Predicted bytes are written bytes.

Parts: ``weights``, ``constants``, ``input``.
"""

from __future__ import annotations

import numpy as np

from kwsbench.export.pack import pack, packed_bytes, unpack
from kwsbench.export.recognizer import constants_bytes, pack_constants
from kwsbench.integer.convolution import Add, Conv, Convolutional, Operation, Pool
from kwsbench.integer.program import OutputDense

PARTS = ("weights", "constants", "input")


def convolutional_parts(program: Convolutional) -> dict[str, bytes]:
    """The bytes of every part, in the order of ``PARTS``."""
    heard = program.input
    tables = [] if program.front["kind"] == "raw" else [heard.mean, heard.inverse_std, np.array(heard.scale)]
    return {
        "weights": b"".join(map(pack_weights, program.operations)),
        "constants": b"".join(pack_constants(v) for o in program.operations for v in constants_of(o)),
        "input": b"".join(v.astype("<f4").tobytes() for v in tables),
    }


def convolutional_bytes(program: Convolutional) -> dict[str, int]:
    """How many bytes :func:`convolutional_parts` writes, from shapes and widths."""
    weighted = [o for o in program.operations if isinstance(o, Conv | OutputDense)]
    return {
        "weights": sum(packed_bytes(weight_matrix(o).shape, o.weight_bits, o.grid) for o in weighted),
        "constants": sum(constants_bytes(v) for o in program.operations for v in constants_of(o)),
        "input": 0 if program.front["kind"] == "raw" else 8 * program.front["bins"] + 4,
    }


def pack_weights(operation: Operation) -> bytes:
    """The codes of one operation; nothing where it has none."""
    if not isinstance(operation, Conv | OutputDense):
        return b""
    return pack(weight_matrix(operation), operation.weight_bits, operation.grid)


def unpack_weights(data: bytes, operation: Conv | OutputDense) -> np.ndarray:
    """The codes that :func:`pack_weights` wrote for an operation of this shape.

    Raises:
        ValueError: the number of bytes does not belong to it.
    """
    matrix = unpack(data, weight_matrix(operation).shape, operation.weight_bits, operation.grid)
    if isinstance(operation, Conv) and operation.depthwise:
        matrix = matrix.T
    return np.ascontiguousarray(matrix).reshape(operation.codes.shape)


def weight_matrix(operation: Conv | OutputDense) -> np.ndarray:
    """int8 matrix that is packed (module docstring)."""
    matrix = operation.codes.reshape(len(operation.codes), -1)
    return matrix.T if isinstance(operation, Conv) and operation.depthwise else matrix


def constants_of(operation: Operation) -> list[np.ndarray]:
    """The integers of an operation beside its weights, each array packed by itself."""
    if isinstance(operation, Conv):
        return [operation.bias, operation.multiplier, operation.shift]
    if isinstance(operation, Add):
        return [np.array([v]) for v in (operation.multiplier, operation.source_multiplier, operation.shift)]
    if isinstance(operation, Pool):
        return [np.array([v]) for v in (operation.multiplier, operation.shift)]
    return [operation.bias]
