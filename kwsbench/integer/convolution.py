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

from kwsbench.arithmetic.residual import POOL_FREQUENCIES, POOLED
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

    def __post_init__(self) -> None:
        """Raises ValueError where the sizes of neighbours do not fit each other."""
        if self.input_bits not in (8, 16):
            raise ValueError(f"an input has 8 or 16 bits, got {self.input_bits}")
        if not self.operations or (self.input_bits == 16 and self.operations[0].kind != Conv.kind):
            raise ValueError("samples of 16 bits are read by a convolution: make it the first operation")
        bins = self.front["bins"]
        if not self.input.mean.shape == self.input.inverse_std.shape == (bins,):
            raise ValueError(
                f"{bins} bins, but {self.input.mean.shape} means and {self.input.inverse_std.shape} scales"
            )
        shapes(self)

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
        ValueError: the file is truncated, incomplete, or holds something else.
    """
    header, tensors = read_file(path, FORMAT, "convolutional program")
    try:
        operations = [
            put_together(OPERATIONS[h["kind"]], h, str(i), tensors) for i, h in enumerate(header["operations"])
        ]
        return Convolutional(
            labels=tuple(header["labels"]),
            front=header["front"],
            input=put_together(InputQuantizer, header["input"], "input", tensors),
            input_bits=header["input_bits"],
            operations=tuple(operations),
            metadata=header["metadata"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); lower the model again") from error


def shapes(program: Convolutional) -> list[tuple[int, int]]:
    """``(frequencies, channels)`` of the input and of every operation's output, in order.

    Raises:
        ValueError: operations that do not fit each other (named).
    """
    found, strides = [(int(program.front["bins"]), 1)], [1]  # strides: of time, since the input
    for i, operation in enumerate(program.operations):
        (f, c), stride = found[-1], strides[-1]
        if isinstance(operation, Conv):
            f, c, stride = *_conv_shape(operation, f, c), stride * operation.stride[0]
        elif isinstance(operation, Add):
            j = operation.source
            if not 0 <= j < i or (found[j + 1], strides[j + 1]) != ((f, c), stride):
                raise ValueError(f"{operation.name} adds operation {j}, which is not an earlier one of its own shape")
        elif isinstance(operation, Pool):
            if f > POOL_FREQUENCIES or not 1 <= f * operation.frames <= POOLED:
                raise ValueError(
                    f"{operation.name} averages {operation.frames} frames of {f} frequencies: at most "
                    f"{POOL_FREQUENCIES} frequencies and {POOLED} values"
                )
            f = 1
        elif (f, c) != (1, operation.codes.shape[1]) or len(operation.codes) != len(program.labels):
            raise ValueError(
                f"{operation.name} maps {operation.codes.shape[1]} channels to {len(operation.codes)} of "
                f"{len(program.labels)} labels, but {f} x {c} come in"
            )
        else:
            c = len(operation.codes)
        found.append((f, c))
        strides.append(stride)
    kinds = [operation.kind for operation in program.operations]
    if kinds.count(OutputDense.kind) != 1 or kinds[-1] != OutputDense.kind:
        raise ValueError(f"a program has one {OutputDense.kind}, its last operation, got {kinds}")
    return found


def _conv_shape(operation: Conv, frequencies: int, channels: int) -> tuple[int, int]:
    n, k_t, k_f, c = operation.codes.shape
    expected = 1 if operation.depthwise else channels
    if c != expected or (operation.depthwise and n != channels):
        raise ValueError(f"{operation.name} has codes {operation.codes.shape}, but {channels} channels come in")
    if any(len(v) != n for v in (operation.bias, operation.multiplier, operation.shift)):
        raise ValueError(f"{operation.name} needs a bias, multiplier and shift for each of its {n} outputs")
    if not 1 <= operation.stride[0] <= k_t or operation.stride[1] < 1 or min(operation.padding) < 0:
        raise ValueError(
            f"{operation.name}: stride {operation.stride}, kernel {(k_t, k_f)}, padding {operation.padding}"
        )
    last = frequencies + sum(operation.padding) - k_f
    if last < 0:
        raise ValueError(f"{operation.name} has a kernel over {k_f} frequencies, but {frequencies} come in")
    return last // operation.stride[1] + 1, n
