"""A recognizer of given sizes with drawn codes: for timing and for tests, where nothing needs to be understood.

Scales are such that gates spread over their curves, as those of a trained model do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kwsbench.arithmetic.gates import STATE_UNIT, gate_constants
from kwsbench.integer.listen import encode, start
from kwsbench.integer.packed import Packed
from kwsbench.integer.program import InputQuantizer, OutputDense, Proof
from kwsbench.integer.recognizer import Gates, Matrix, Recognizer


def draw_recognizer(
    encoder: Sequence[int],
    *,
    bits: int | Sequence[int] = 8,
    grid: str = "table",
    n_mels: int = 32,
    stack: int = 3,
    reduce_after: int = 1,
    reduction: int = 2,
    embedding: int = 48,
    prediction: int = 96,
    joint: int = 128,
    symbols: int = 12,
    labels_per_frame: int = 4,
    seed: int = 0,
) -> Recognizer:
    """A recognizer with LSTM layers of the sizes ``encoder``.

    ``bits``: of all matrices, or one per matrix in the order of ``Recognizer.matrices``. ``grid``: of those below
    8 bits (1 bit: ``binary`` in place of ``odd`` and ``twos_complement``); 8 bits are always ``symmetric``.

    Raises:
        ValueError: another number of widths than there are matrices.
    """
    rng = np.random.default_rng(seed)
    count = 2 * len(encoder) + 6
    widths = [bits] * count if isinstance(bits, int) else list(bits)
    if len(widths) != count:
        raise ValueError(f"this recognizer has {count} matrices, got {len(widths)} widths")
    take = iter(widths)

    def matrix(name: str, rows: int, columns: int) -> Matrix:
        width = next(take)
        kind = "symmetric" if width == 8 else "binary" if width == 1 and grid != "table" else grid
        return Matrix(name, draw_codes(rng, (rows, columns), width, kind), width, kind)

    def gates(
        input_name: str, state_name: str, rows: int, columns: int, state_columns: int, input_unit: float
    ) -> Gates:
        pair = matrix(input_name, rows, columns), matrix(state_name, rows, state_columns)
        bias = rng.normal(size=rows)
        # Real weights of variance 1/columns: the step that makes them so.
        x_step, h_step = (_step(m.codes) for m in pair)
        constants = gate_constants(np.array([input_unit * x_step]), np.array([STATE_UNIT * h_step]), bias)
        sums = [int(np.abs(m.codes.astype(np.int64)).sum(axis=1).max()) for m in pair]
        values = constants.input_multiplier, constants.state_multiplier, constants.bias, constants.shift
        return Gates(*pair, *values, 128 * sums[0], 128 * sums[1])

    layers, columns, input_unit = [], n_mels * stack, 0.03
    for i, hidden in enumerate(encoder):
        if reduction > 1 and i == reduce_after:
            columns *= reduction
        names = f"encoder.layers.{i}.input", f"encoder.layers.{i}.recurrent"
        layers.append(gates(*names, 4 * hidden, columns, hidden, input_unit))
        columns, input_unit = hidden, STATE_UNIT
    table = matrix("prediction.embedding", symbols, embedding)
    names = "prediction.layer.input", "prediction.layer.recurrent"
    network = gates(*names, 4 * prediction, embedding, prediction, 0.01)
    joiner = gates("joiner.encoder", "joiner.prediction", joint, columns, prediction, STATE_UNIT)
    last = matrix("joiner.output", symbols, joint)
    recognizer = Recognizer(
        n_mels=n_mels,
        stack=stack,
        reduce_after=reduce_after,
        reduction=reduction,
        labels_per_frame=labels_per_frame,
        frame_seconds=0.01,
        input=InputQuantizer(rng.normal(size=n_mels).astype(np.float32), np.full(n_mels, 0.5, np.float32), 0.03125),
        encoder=tuple(layers),
        embedding=table,
        prediction=network,
        joint=joiner,
        output=_output(last, np.zeros(symbols, np.int32)),
        metadata={"vocabulary": [f"word{k}" for k in range(1, symbols)], "drawn": seed},
    )
    return replace(recognizer, output=_output(last, _balanced(rng, recognizer)))


def draw_codes(rng: np.random.Generator, shape: tuple[int, int], bits: int, grid: str) -> np.ndarray:
    """Codes int8 of a grid, drawn evenly; a table is drawn first, -127 and 127 always in it."""
    if grid == "table":
        inner = rng.choice(np.arange(-126, 127), size=min(2**bits, 255) - 2, replace=False)
        table = np.concatenate([[-127, 127], inner]).astype(np.int8)
        return table[rng.integers(0, len(table), size=shape, dtype=np.uint8)]
    q = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), size=shape)
    if grid in ("odd", "binary"):
        return (2 * q + 1).astype(np.int8)
    return (np.maximum(q, 1 - 2 ** (bits - 1)) if grid == "symmetric" else q).astype(np.int8)


def _output(matrix: Matrix, bias: np.ndarray) -> OutputDense:
    largest = 128 * int(np.abs(matrix.codes.astype(np.int64)).sum(axis=1).max())
    proof = Proof(128, largest + int(np.abs(bias).max()), largest)
    scale = np.full(len(bias), _step(matrix.codes) * STATE_UNIT)
    return OutputDense(matrix.name, matrix.codes, matrix.bits, matrix.grid, bias, scale, proof)


def _balanced(rng: np.random.Generator, recognizer: Recognizer) -> np.ndarray:
    """Biases int32 of the output that let the blank win at about seven of ten states, and the others share the rest."""
    engine, count = Packed(recognizer), 48
    frames = rng.normal(size=(count * recognizer.frames_joined, recognizer.n_mels)) * 2
    begin = start(engine)
    encoded, _ = encode(engine, frames.astype(np.float32), begin)
    h, c, acc = begin.prediction_h, begin.prediction_c, []
    for frame in encoded:
        acc.append(engine.scores(frame, h))
        engine.predict(int(rng.integers(1, len(recognizer.embedding.codes))), h, c)
    bias = -np.mean(acc, axis=0)
    balanced = np.array(acc) + bias
    bias[0] += np.quantile(balanced[:, 1:].max(axis=1) - balanced[:, 0], 0.7)
    return np.round(bias).astype(np.int32)


def _step(codes: np.ndarray) -> float:
    return float(1 / np.sqrt(codes.shape[1] * max(np.mean(np.square(codes, dtype=np.float64)), 1e-9)))
