"""An integer recognizer: the frozen operations of a quantized LSTM transducer, as plain arrays. No torch.

    frames -> int8 -> join -> Gates (LSTM) -> reduce -> Gates ... -> h
    labels -> row of the embedding -> Gates (LSTM) -> h              -> Gates (joint) -> tanh -> OutputDense -> int32

The equations and every rounding are written in docs/arithmetic.md, sections 8 and 9. Labels are 0 (the blank),
1, 2, ...; what they stand for is ``metadata["vocabulary"]``. Saved as one safetensors file (integer/storage.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kwsbench.integer.program import InputQuantizer, OutputDense
from kwsbench.integer.storage import put_together, read_file, take_apart, write_file

FORMAT = "kwsbench-recognizer-1"


@dataclass(frozen=True, eq=False)
class Matrix:
    """Codes int8 ``[N, K]`` as they are packed: their width and grid (program.GRIDS)."""

    name: str
    codes: np.ndarray
    bits: int
    grid: str


@dataclass(frozen=True, eq=False)
class Gates:
    """``z = sat16((acc_x m_x + acc_h m_h + b + 2^(S-1)) >> S)``: two matrices, int64 constants ``[N]``, unit 2^-12.

    An LSTM layer has N = 4 H rows in the order i f g o; the joint has its own width.
    """

    input: Matrix
    state: Matrix
    input_multiplier: np.ndarray
    state_multiplier: np.ndarray
    bias: np.ndarray
    shift: np.ndarray
    max_abs_input_gemm: int  # sum |c_W| max|x|, worst row; < 2^24 (proven at lowering)
    max_abs_state_gemm: int  # sum |c_U| 128, worst row; < 2^24


@dataclass(frozen=True, eq=False)
class Recognizer:
    """A whole recognizer. ``stack`` int8 frames feed encoder layer 0; before layer ``reduce_after`` (where
    ``reduction`` is more than 1) ``reduction`` outputs are joined."""

    n_mels: int
    stack: int
    reduce_after: int
    reduction: int
    labels_per_frame: int
    frame_seconds: float  # of a log-mel frame
    input: InputQuantizer
    encoder: tuple[Gates, ...]
    embedding: Matrix  # [symbols, K]
    prediction: Gates
    joint: Gates  # input: the encoder's h, state: the prediction network's
    output: OutputDense
    metadata: dict[str, Any] = field(default_factory=dict)  # vocabulary, features, plan, seed, data hash ...

    def __post_init__(self) -> None:
        """Raises ValueError where the sizes of neighbours do not fit each other."""
        if not self.encoder or min(self.n_mels, self.stack, self.reduction, self.labels_per_frame) < 1:
            raise ValueError("a recognizer needs an encoder layer and sizes of at least 1")
        if self.reduction > 1 and not 1 <= self.reduce_after < len(self.encoder):
            raise ValueError(f"reduce_after must lie in 1..{len(self.encoder) - 1}, got {self.reduce_after}")
        width = self.n_mels * self.stack
        for number, layer in enumerate(self.encoder):
            if self.reduction > 1 and number == self.reduce_after:
                width *= self.reduction
            width = _lstm_width(layer, width)
        prediction = _lstm_width(self.prediction, self.embedding.codes.shape[1])
        joint = _rows(self.joint, width, prediction)
        symbols = len(self.embedding.codes)
        if self.output.codes.shape != (symbols, joint):
            raise ValueError(
                f"{self.output.name} has the shape {self.output.codes.shape}, but {symbols} symbols and a joint of "
                f"{joint} need {(symbols, joint)}"
            )

    def save(self, path: str | Path) -> None:
        """Write to a temporary name, then rename."""
        tensors: dict[str, np.ndarray] = {}
        header = take_apart(self, "", tensors)
        write_file(path, tensors, {"format": FORMAT, **header})

    @property
    def frames_joined(self) -> int:
        """Log-mel frames per encoder frame."""
        return self.stack * self.reduction

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """All weight matrices, in order of the data; the names are those of plans."""
        gates = (*self.encoder, self.prediction, self.joint)
        encoder, (prediction, joint) = gates[:-2], gates[-2:]
        last = Matrix(self.output.name, self.output.codes, self.output.weight_bits, self.output.grid)
        inner = [m for g in encoder for m in (g.input, g.state)]
        return (*inner, self.embedding, prediction.input, prediction.state, joint.input, joint.state, last)


def load_recognizer(path: str | Path) -> Recognizer:
    """Read a recognizer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, incomplete, or is not a kwsbench recognizer.
    """
    header, tensors = read_file(path, FORMAT, "recognizer")
    try:
        return put_together(Recognizer, header, "", tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); lower the model again") from error


def _lstm_width(layer: Gates, width: int) -> int:
    """Size of the ``h`` of an LSTM layer that reads ``width`` values."""
    hidden = layer.state.codes.shape[1]
    if _rows(layer, width, hidden) != 4 * hidden:
        raise ValueError(
            f"{layer.state.name} has {len(layer.state.codes)} rows, but {hidden} columns: 4 times as many expected"
        )
    return hidden


def _rows(layer: Gates, width: int, state_width: int) -> int:
    """Rows of a gate whose matrices must have these columns."""
    rows = len(layer.bias)
    for matrix, columns in ((layer.input, width), (layer.state, state_width)):
        if matrix.codes.shape != (rows, columns):
            raise ValueError(f"{matrix.name} has the shape {matrix.codes.shape}, expected {(rows, columns)}")
    return rows
