"""Run an integer convolutional network, whole or streamed; all that is remembered is int8 or int16. No torch.

``step(program, x, state, backend)`` is the one code path; a whole recording is a step from the fresh state, and every
chunking gives the same integers (docs/arithmetic.md, section 14). ``x`` is float32 ``[T, bins]`` features, or samples
``[T]`` (full scale +-1, or int16) where the program hears raw audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from kwsbench.integer import convolution_reference as reference
from kwsbench.integer.convolution import Add, Conv, Convolutional, Operation, Pool, shapes
from kwsbench.integer.kernels import convolution as kernels
from kwsbench.integer.program import OutputDense
from kwsbench.integer.reference import quantize_input

State = tuple[np.ndarray, ...]  # one array per operation, oldest frame first; empty where nothing is remembered


class Backend(Protocol):
    """The arithmetic of every operation; see convolution_reference."""

    def conv(self, buffer: np.ndarray, operation: Conv) -> np.ndarray: ...
    def add(self, x: np.ndarray, source: np.ndarray, operation: Add) -> np.ndarray: ...
    def pool(self, buffer: np.ndarray, operation: Pool) -> np.ndarray: ...
    def output(self, x: np.ndarray, operation: OutputDense) -> np.ndarray: ...


BACKENDS = ("numba", "reference")
_MODULES: dict[str, Any] = {"reference": reference, "numba": kernels}


def fresh(program: Convolutional) -> State:
    """The state before the first frame: zeros."""
    kinds, state = [np.dtype(f"int{program.input_bits}")] + [np.dtype(np.int8)] * len(program.operations), []
    for operation, kind, (frequencies, channels) in zip(program.operations, kinds, shapes(program)):
        if isinstance(operation, Conv):
            state.append(np.zeros((operation.codes.shape[1] - operation.stride[0], frequencies, channels), kind))
        elif isinstance(operation, Pool):
            nothing = np.zeros((operation.frames - 1, frequencies, channels), np.int8)
            state.append(reference.frequency_sums(nothing))
        else:
            state.append(np.zeros(0, np.int8))
    return tuple(state)


def quantize(program: Convolutional, x: np.ndarray) -> np.ndarray:
    """What is heard -> integer codes ``[T, bins, 1]``, int8, or int16 for samples.

    Raises:
        ValueError: another width than the program's, values that are not finite, or integers that are not int16.
    """
    x, bins = np.asarray(x), program.front["bins"]
    if program.front["kind"] == "raw":
        if np.issubdtype(x.dtype, np.integer) and x.dtype != np.int16:
            raise ValueError(f"samples are int16, or floats of full scale +-1; got {x.dtype}: convert them first")
        x = x[:, None] if x.ndim == 1 else x
        x = x / np.float32(2**15) if x.dtype == np.int16 else x
    x = np.asarray(x, np.float32)
    if x.ndim != 2 or x.shape[1] != bins:
        raise ValueError(
            f"this program takes {program.front['kind']} input of {bins} value(s) per frame, got shape {x.shape}"
        )
    if not np.all(np.isfinite(x)):
        raise ValueError("the input holds NaN or infinite values: check the audio before the features")
    return quantize_input(x, program.input, program.input_bits)[:, :, None]


def step(program: Convolutional, x: np.ndarray, state: State, backend: str = "numba") -> tuple[np.ndarray, State]:
    """Any number of frames and the state -> raw int32 outputs ``[T', labels]`` and the next state.

    Raises:
        ValueError: another width than the program's, values that are not finite, or an unknown backend.
    """
    outputs, state = _operate(program, quantize(program, x), state, backend_of(backend))
    return outputs[-1], state


def run(program: Convolutional, x: np.ndarray, backend: str = "numba") -> np.ndarray:
    """A whole recording -> logits float64 ``[T', labels]``, after every frame of the last layer."""
    acc, _ = step(program, x, fresh(program), backend)
    return logits(program, acc)


def trace(program: Convolutional, x: np.ndarray, backend: str = "reference") -> list[np.ndarray]:
    """Every operation's output for a whole recording: int8 ``[T', F', C]``, the last one int32 ``[T', labels]``."""
    return _operate(program, quantize(program, x), fresh(program), backend_of(backend))[0]


def logits(program: Convolutional, acc: np.ndarray) -> np.ndarray:
    """Raw int32 outputs ``[T', labels]`` -> real logits float64."""
    return acc * program.operations[-1].scale  # type: ignore[union-attr]


def backend_of(name: str) -> Backend:
    """The arithmetic of a name. Raises ValueError for an unknown one."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of {list(BACKENDS)}")
    return _MODULES[name]  # type: ignore[no-any-return]


def _operate(
    program: Convolutional, x: np.ndarray, state: Sequence[np.ndarray], backend: Backend
) -> tuple[list[np.ndarray], State]:
    """Codes ``[T, bins, 1]`` through all operations: every output, and the next state."""
    outputs: list[np.ndarray] = []
    after = []
    for operation, kept in zip(program.operations, state, strict=True):
        x, kept = _one(operation, x, kept, outputs, backend)
        outputs.append(x)
        after.append(kept)
    return outputs, tuple(after)


def _one(
    operation: Operation, x: np.ndarray, kept: np.ndarray, outputs: list[np.ndarray], backend: Backend
) -> tuple[np.ndarray, np.ndarray]:
    """One operation's output, and what it remembers."""
    if isinstance(operation, Conv):
        buffer = np.concatenate([kept, x])
        y = backend.conv(buffer, operation)
        return y, buffer[len(y) * operation.stride[0] :].copy()
    if isinstance(operation, Pool):
        buffer = np.concatenate([kept, reference.frequency_sums(x)])
        return backend.pool(buffer, operation), buffer[len(x) :].copy()
    if isinstance(operation, Add):
        return backend.add(x, outputs[operation.source], operation), kept
    return backend.output(x, operation), kept
