"""The ladder float -> fake-quant -> emulation -> reference -> kernel: where do two neighbours first differ?

    float         the float model, real values
    fake-quant    quantized weights, float affine, activations rounded to int8 (what most simulations compute)
    emulation     the training forward: integer values in torch
    reference     the integer program in NumPy
    kernel        the integer program in Numba (NEON lanes, SDOT, NPU)

From emulation downwards every value must be equal; above, differences are expected and measured: fake-quant rounds
another float expression than the 8-bit gain and offset codes, float does not round at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from kwsbench.arithmetic import fixedpoint
from kwsbench.data.batches import FeatureBank
from kwsbench.integer import run
from kwsbench.integer.program import Program
from kwsbench.models.feedforward import Spotter
from kwsbench.models.streaming import stack_frames
from kwsbench.quantizers.attach import QuantizedSpotter

CHUNK_WINDOWS = 4096


@dataclass(frozen=True)
class Comparison:
    """One layer between two rungs, over all windows of a bank."""

    upper: str
    lower: str
    layer: str
    compared: int
    different: int
    largest: int | float  # largest absolute difference, in units of the layer's output
    sqnr_db: float  # of the lower rung, the upper one being the signal

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def compare_exact(
    model: QuantizedSpotter,
    program: Program,
    bank: FeatureBank,
    backends: tuple[str, ...] = ("reference", "neon_sdot"),
) -> list[Comparison]:
    """Emulation against the first backend, then each backend against the next, on every window and layer."""
    rungs = ("emulation", *backends)
    tallies = _tallies(rungs, program)
    for windows in int8_windows(program, bank):
        outputs = [emulated(model, windows)] + [run.trace(program, windows, b) for b in backends]
        _add(tallies, rungs, program, outputs)
    return [t.finish() for t in tallies.values()]


def ladder(
    model: Spotter, quantized: QuantizedSpotter, program: Program, bank: FeatureBank, kernel: str = "neon"
) -> list[Comparison]:
    """All rungs. The float model's outputs are put into units of the quantized layers to be comparable."""
    rungs = ("float", "fake-quant", "emulation", "reference", kernel)
    tallies = _tallies(rungs, program)
    for frames, windows in _paired_windows(model, program, bank):
        outputs = [
            float_outputs(model, quantized, frames),
            fake_quant(quantized, windows),
            emulated(quantized, windows),
            run.trace(program, windows, "reference"),
            run.trace(program, windows, kernel),
        ]
        _add(tallies, rungs, program, outputs)
    return [t.finish() for t in tallies.values()]


def first_divergent(rows: list[Comparison], upper: str, lower: str) -> str | None:
    """Name of the first layer in which two rungs differ, None if they never do."""
    for row in rows:
        if (row.upper, row.lower) == (upper, lower) and row.different:
            return row.layer
    return None


def int8_windows(program: Program, bank: FeatureBank) -> Iterator[np.ndarray]:
    """The int8 windows of all segments in order, each from a fresh ring, in chunks ``[<= 4096, K]``."""
    segments = (run.stack(program, bank.segment(i), run.fresh_ring(program))[:1] for i in range(len(bank)))
    return (windows for (windows,) in _chunks(segments))


@torch.no_grad()
def emulated(model: QuantizedSpotter, windows: np.ndarray) -> list[np.ndarray]:
    """Every layer's integers by the training forward, for int8 windows ``[T, K]``."""
    taps: list[torch.Tensor] = []
    model.logits(_tensor(model, windows), taps)
    return [t.cpu().numpy() for t in taps]


@torch.no_grad()
def fake_quant(model: QuantizedSpotter, windows: np.ndarray) -> list[np.ndarray]:
    """Every layer by the usual simulation: float32 affine of quantized values, then rounded to int8."""
    x, s_x, outputs = _tensor(model, windows), float(model.input_scale), []
    for i in range(len(model.norms)):
        g, offset = model.gain_and_offset(i)
        s_y = model.output_scale(i)
        z = F.linear(x * s_x, model.weight(i)) * g + offset
        x, s_x = fixedpoint.saturate(fixedpoint.round_half_up(z / s_y), 0, 127), s_y
        outputs.append(x.cpu().numpy())
    unit = s_x * model.quantizer(-1).step()
    z = F.linear(x * s_x, model.weight(len(model.norms)), model.biases[-1])
    outputs.append(fixedpoint.round_half_up(z / unit).cpu().numpy())
    return outputs


@torch.no_grad()
def float_outputs(model: Spotter, quantized: QuantizedSpotter, frames: np.ndarray) -> list[np.ndarray]:
    """The float model's layer outputs in units of the quantized layers, for normalised windows ``[T, K]``."""
    x, outputs = torch.as_tensor(frames, device=model.mean.device), []
    model.eval()
    for i, (dense, norm) in enumerate(zip(model.dense, model.norms)):
        x = F.relu(norm(dense(x)))
        outputs.append((x / quantized.output_scale(i)).cpu().numpy())
    last = len(model.norms)
    unit = quantized.output_scale(last - 1) * quantized.quantizer(-1).step()
    outputs.append((model.dense[-1](x) / unit).cpu().numpy())
    return outputs


class _Tally:
    def __init__(self, upper: str, lower: str, layer: str):
        self.names = (upper, lower, layer)
        self.compared = self.different = 0
        self.largest = self.signal = self.noise = 0.0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        difference = np.abs(a.astype(np.float64) - b)
        self.compared += a.size
        self.different += int(np.count_nonzero(difference))
        self.largest = max(self.largest, float(difference.max(initial=0)))
        self.signal += float(np.sum(a.astype(np.float64) ** 2))
        self.noise += float(np.sum(difference**2))

    def finish(self) -> Comparison:
        sqnr = float("inf") if self.noise == 0 else 10 * float(np.log10(max(self.signal, 1e-30) / self.noise))
        return Comparison(*self.names, self.compared, self.different, self.largest, sqnr)


def _tallies(rungs: tuple[str, ...], program: Program) -> dict[tuple[str, str, str], _Tally]:
    keys = [(u, v, layer.name) for u, v in itertools.pairwise(rungs) for layer in program.layers]
    return {k: _Tally(*k) for k in keys}


def _add(tallies, rungs: tuple[str, ...], program: Program, outputs: list[list[np.ndarray]]) -> None:
    for j in range(len(rungs) - 1):
        for layer, a, b in zip(program.layers, outputs[j], outputs[j + 1]):
            tallies[rungs[j], rungs[j + 1], layer.name].add(a, b)


def _paired_windows(model: Spotter, program: Program, bank: FeatureBank) -> Iterator[tuple[np.ndarray, ...]]:
    """Normalised float windows and int8 windows of the same frames."""

    def segment(i: int) -> tuple[np.ndarray, np.ndarray]:
        frames = torch.as_tensor(bank.segment(i), device=model.mean.device)[None]
        real, _ = stack_frames(model.normalise(frames), model.fresh(1), program.stacked_frames)
        codes, _ = run.stack(program, bank.segment(i), run.fresh_ring(program))
        return real[0].cpu().numpy(), codes

    return _chunks(segment(i) for i in range(len(bank)))


def _chunks(segments: Iterable[tuple[np.ndarray, ...]]) -> Iterator[tuple[np.ndarray, ...]]:
    """Arrays of equal length per segment, joined over segments and cut into chunks of ``CHUNK_WINDOWS``.

    The emulation quantizes its weights in every call: a call per short segment would do little else.
    """
    held: list[tuple[np.ndarray, ...]] = []
    rows = 0
    for arrays in segments:
        held.append(arrays)
        rows += len(arrays[0])
        if rows >= CHUNK_WINDOWS:
            yield from _cut(held)
            held, rows = [], 0
    if rows:
        yield from _cut(held)


def _cut(held: list[tuple[np.ndarray, ...]]) -> Iterator[tuple[np.ndarray, ...]]:
    joined = [np.concatenate(parts) for parts in zip(*held, strict=True)]
    for start in range(0, len(joined[0]), CHUNK_WINDOWS):
        yield tuple(array[start : start + CHUNK_WINDOWS] for array in joined)


def _tensor(model: QuantizedSpotter, windows: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(windows, device=model.mean.device).to(model.mean.dtype)
