"""An integer program of a convolutional network, as plain arrays. No torch.

``InputQuantizer -> operations in order -> raw int32 outputs``, after every frame of the last layer. Tensors are
``[time, frequency, channels]`` integers; time is causal, as ``models/layers.py`` tells, and every operation that looks
back keeps its past inputs as integers. Equations and roundings: docs/arithmetic.md, sections 11 to 14.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kwsbench.integer.program import InputQuantizer, OutputDense, Proof
from kwsbench.integer.storage import put_together, read_file, take_apart, write_file

FORMAT = "kwsbench-convolution-1"


@dataclass(frozen=True, eq=False)
class Conv:
    """``y = clamp((sum c x + bias) m >> s, low, high)``; outputs ``T // stride`` frames of T."""

    kind: ClassVar[str] = "conv"
    name: str
    codes: np.ndarray  # int8 [N, time, frequency, C], depthwise [N, time, frequency, 1]
    weight_bits: int
    grid: str
    depthwise: bool
    stride: tuple[int, int]
    padding: tuple[int, int]  # zeros below and above along frequency
    bias: np.ndarray  # int32 [N]
    multiplier: np.ndarray  # int32 [N]
    shift: np.ndarray  # int32 [N]
    low: int
    high: int
    activation_bits: int  # of the outputs, whose codes lie in low..high
    output_scale: float  # real value of one output unit
    rounding: str
    proof: Proof


@dataclass(frozen=True, eq=False)
class Add:
    """``y = clamp((x m + x' m' + 2^(s-1)) >> s, low, high)``, x' the output of operation ``source``."""

    kind: ClassVar[str] = "add"
    name: str
    source: int  # index of an earlier operation
    multiplier: int
    source_multiplier: int
    shift: int
    low: int
    high: int
    activation_bits: int
    output_scale: float


@dataclass(frozen=True, eq=False)
class Pool:
    """``y = clamp(sum m >> s, low, high)``, the sum over all frequencies and the last ``frames`` frames."""

    kind: ClassVar[str] = "pool"
    name: str
    frames: int
    multiplier: int
    shift: int
    low: int
    high: int
    activation_bits: int
    output_scale: float
    rounding: str


Operation = Conv | Add | Pool | OutputDense
OPERATIONS: dict[str, type] = {cls.kind: cls for cls in (Conv, Add, Pool, OutputDense)}


@dataclass(frozen=True, eq=False)
class Convolutional:
    """A whole network. ``front``: the fields of ``models.layers.Front``; ``input_bits``: 8, or 16 for samples."""

    labels: tuple[str, ...]
    front: dict[str, Any]
    input: InputQuantizer
    input_bits: int
    operations: tuple[Operation, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write to a temporary name, then rename."""
        tensors: dict[str, np.ndarray] = {}
        header = {
            "format": FORMAT,
            "labels": list(self.labels),
            "front": self.front,
            "input": take_apart(self.input, "input", tensors),
            "input_bits": self.input_bits,
            "operations": [{"kind": o.kind, **take_apart(o, str(i), tensors)} for i, o in enumerate(self.operations)],
            "metadata": self.metadata,
        }
        write_file(path, tensors, header)


def load_convolutional(path: str | Path) -> Convolutional:
    """Read a program.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, or holds something else.
    """
    header, tensors = read_file(path, FORMAT, "convolutional program")
    operations = [put_together(OPERATIONS[h["kind"]], h, str(i), tensors) for i, h in enumerate(header["operations"])]
    return Convolutional(
        labels=tuple(header["labels"]),
        front=header["front"],
        input=put_together(InputQuantizer, header["input"], "input", tensors),
        input_bits=header["input_bits"],
        operations=tuple(operations),
        metadata=header["metadata"],
    )
