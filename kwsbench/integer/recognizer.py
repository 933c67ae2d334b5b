"""An integer recognizer: the frozen operations of a quantized LSTM transducer, as plain arrays. No torch.

    frames -> int8 -> join -> Gates (LSTM) -> reduce -> Gates ... -> h
    labels -> row of the embedding -> Gates (LSTM) -> h              -> Gates (joint) -> tanh -> OutputDense -> int32

The equations and every rounding are written in docs/arithmetic.md, sections 8 and 9. Labels are 0 (the blank), 1, 2, ...; what
they stand for is ``metadata["vocabulary"]``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kwsbench.integer.program import InputQuantizer, OutputDense


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
    """A whole recognizer. ``stack`` int8 frames feed encoder layer 0; before layer ``reduce_after`` (where ``reduction`` is
    more than 1) ``reduction`` outputs are joined."""

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
