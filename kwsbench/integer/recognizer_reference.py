"""The NumPy reference of an integer recognizer, one short function per operation (docs/arithmetic.md, sections 8, 9).

Vectors without a batch: int8 ``x`` [K], state int8 ``h`` and int16 ``c`` [H].
"""

from __future__ import annotations

import numpy as np

from kwsbench.arithmetic import gates as arithmetic
from kwsbench.integer.program import OutputDense
from kwsbench.integer.recognizer import Gates, Matrix
from kwsbench.integer.reference import accumulate, output_dense

SIGMOID, TANH = arithmetic.SIGMOID.astype(np.int64), arithmetic.TANH.astype(np.int64)


def gates(x: np.ndarray, h: np.ndarray, layer: Gates) -> np.ndarray:
    """``z``, int64 [N], unit 2^-12."""
    acc_x, acc_h = accumulate(x[None], layer.input.codes)[0], accumulate(h[None], layer.state.codes)[0]
    constants = layer.input_multiplier, layer.state_multiplier, layer.bias, layer.shift
    return arithmetic.preactivation(acc_x, acc_h, *constants)


def lstm(x: np.ndarray, h: np.ndarray, c: np.ndarray, layer: Gates) -> tuple[np.ndarray, np.ndarray]:
    """One frame of an LSTM layer: the next ``h`` and ``c``."""
    next_h, next_c = arithmetic.lstm(gates(x, h, layer), c.astype(np.int64), SIGMOID, TANH)
    return next_h.astype(np.int8), next_c.astype(np.int16)


def embedding_row(label: int, matrix: Matrix) -> np.ndarray:
    """The ``x`` of a label, int8 [K]."""
    return matrix.codes[label]


def joint(encoded: np.ndarray, predicted: np.ndarray, layer: Gates) -> np.ndarray:
    """The joiner's hidden values, int8 [N], unit 2^-7."""
    return arithmetic.squash(gates(encoded, predicted, layer), TANH).astype(np.int8)


def output(y: np.ndarray, layer: OutputDense) -> np.ndarray:
    """int32 accumulators [symbols]."""
    return output_dense(y[None], layer)[0]
