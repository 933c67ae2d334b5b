"""Run an integer program over frames, whole or streamed; the ring holds int8. No torch.

``step(program, frames, ring, backend)`` is the one code path; a whole file is a step from a fresh ring.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kwsbench.integer import reference
from kwsbench.integer.kernels import neon, npu
from kwsbench.integer.program import Layer, Program

Backend = Callable[[np.ndarray, Layer], np.ndarray]


def run_reference_layer(x: np.ndarray, layer: Layer) -> np.ndarray:
    """One layer by the NumPy reference."""
    return reference.OPERATIONS[layer.kind](x, layer)  # type: ignore[operator]


BACKENDS: dict[str, Backend] = {
    "reference": run_reference_layer,
    "neon": neon.lanes,
    "neon_sdot": neon.sdot,
    "npu": npu.acc32,
}


def fresh_ring(program: Program) -> np.ndarray:
    """int8 zeros ``[stacked_frames - 1, n_mels]``: the mean frame."""
    return np.zeros((program.stacked_frames - 1, program.n_mels), np.int8)


def stack(program: Program, frames: np.ndarray, ring: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel frames float32 ``[T, M]`` -> int8 windows ``[T, stacked_frames * M]`` and the next ring.

    Raises:
        ValueError: frames of another width, or not finite.
    """
    frames = np.asarray(frames, np.float32)
    if frames.ndim != 2 or frames.shape[1] != program.n_mels:
        raise ValueError(f"this program takes frames of {program.n_mels} mel bands, got shape {frames.shape}")
    if not np.all(np.isfinite(frames)):
        raise ValueError("the frames hold NaN or infinite values: check the audio before the features")
    if len(frames) == 0:
        return np.empty((0, program.stacked_frames * program.n_mels), np.int8), ring
    history = np.concatenate([ring, reference.quantize_input(frames, program.input)])
    windows = np.lib.stride_tricks.sliding_window_view(history, program.stacked_frames, axis=0)
    windows = windows.transpose(0, 2, 1).reshape(len(frames), -1)
    return np.ascontiguousarray(windows), history[len(history) - program.stacked_frames + 1 :]


def trace(program: Program, windows: np.ndarray, backend: str = "reference") -> list[np.ndarray]:
    """Every layer's output for int8 windows ``[T, K]``: int8 arrays, the last one int32."""
    outputs = []
    for layer in program.layers:
        windows = backend_of(backend)(windows, layer)
        outputs.append(windows)
    return outputs


def step(
    program: Program, frames: np.ndarray, ring: np.ndarray, backend: str = "neon"
) -> tuple[np.ndarray, np.ndarray]:
    """Frames float32 ``[T, M]`` and the ring -> raw int32 outputs ``[T, K + 1]`` and the next ring."""
    x, ring = stack(program, frames, ring)
    for layer in program.layers:
        x = backend_of(backend)(x, layer)
    return x, ring


def run(program: Program, frames: np.ndarray, backend: str = "neon") -> np.ndarray:
    """A whole file: frames float32 ``[T, M]`` -> logits float64 ``[T, K + 1]``."""
    acc, _ = step(program, frames, fresh_ring(program), backend)
    return logits(program, acc)


def logits(program: Program, acc: np.ndarray) -> np.ndarray:
    """Raw int32 outputs ``[T, K + 1]`` -> real logits float64."""
    return acc * program.layers[-1].scale  # type: ignore[union-attr]


def backend_of(name: str) -> Backend:
    """The kernel of a name. Raises ValueError for an unknown one."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of {sorted(BACKENDS)}")
    return BACKENDS[name]
