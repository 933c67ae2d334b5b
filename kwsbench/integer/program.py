"""An integer program: the frozen operations of a quantized spotter, as plain arrays. No torch.

``InputQuantizer -> ring of stacked int8 frames -> dense layers -> raw int32 output``. The reference
(integer.reference) and the kernels (integer.kernels) run it; resources and exports read it. The equations
and every rounding are written in docs/arithmetic.md.

Saved as one safetensors file: tensors plus a JSON header in its metadata.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kwsbench.integer.storage import put_together, read_file, take_apart, write_file

FORMAT = "kwsbench-program-1"

# How the int8 codes of a weight relate to its bits, and what a packed byte stores:
#   symmetric        8-bit -127..127
#   twos_complement  b bits -2^(b-1)..2^(b-1)-1
#   odd              b bits, odd codes -(2^b-1)..2^b-1, stored packed as q = (c - 1) / 2
#   binary           1-bit -1, +1
GRIDS = ("symmetric", "twos_complement", "odd", "binary", "table")


@dataclass(frozen=True)
class Proof:
    """What the lowering proved about one layer: none of these bounds can be exceeded by any input."""

    max_abs_input: int  # 128 for the first layer, 127 after a ReLU
    max_abs_accumulator: int  # |b| + sum |c| max|x|, worst row; < 2^31
    max_abs_gemm: int  # sum |c| max|x|, worst row; < 2^24, so float32 GEMM emulates it exactly
    max_abs_product: int = 0  # unfolded only: max |acc A m1|, |B m2|; < 2^53


@dataclass(frozen=True, eq=False)
class Dense:
    """``y = clamp((sum c x + bias) m >> s, lo, 127)`` with per-channel bias, multiplier and shift."""

    kind: ClassVar[str] = "dense"
    name: str
    codes: np.ndarray  # int8 [N, K]
    weight_bits: int
    grid: str
    bias: np.ndarray  # int32 [N]
    multiplier: np.ndarray  # int32 [N]
    shift: np.ndarray  # int32 [N]
    output_scale: float  # real value of one output unit
    relu: bool
    rounding: str
    proof: Proof


@dataclass(frozen=True, eq=False)
class UnfoldedDense:
    """``y = clamp((acc A m1 + B m2 + 2^(S-1)) >> S, lo, 127)``, acc = sum c x; A, B are 8-bit codes."""

    kind: ClassVar[str] = "unfolded_dense"
    name: str
    codes: np.ndarray  # int8 [N, K]
    weight_bits: int
    grid: str
    gain_codes: np.ndarray  # int8 [N]: gain * gamma / sqrt(var + eps) (and the row's weight step)
    offset_codes: np.ndarray  # int8 [N]: gain * beta + g * (bias - mean)
    m1: int
    m2: int
    shift: int
    output_scale: float
    relu: bool
    proof: Proof


@dataclass(frozen=True, eq=False)
class OutputDense:
    """``acc = sum c x + bias``, raw int32; ``logit = acc * scale`` per channel for the score."""

    kind: ClassVar[str] = "output_dense"
    name: str
    codes: np.ndarray  # int8 [N, K]
    weight_bits: int
    grid: str
    bias: np.ndarray  # int32 [N]
    scale: np.ndarray  # float64 [N]
    proof: Proof


Layer = Dense | UnfoldedDense | OutputDense
LAYERS: dict[str, type] = {cls.kind: cls for cls in (Dense, UnfoldedDense, OutputDense)}


@dataclass(frozen=True, eq=False)
class InputQuantizer:
    """Log-mel frame -> int8: ``clamp(round_half_up((x - mean) * inverse_std / scale))``, all in float32."""

    mean: np.ndarray  # float32 [M]
    inverse_std: np.ndarray  # float32 [M]
    scale: float  # a float32 value


@dataclass(frozen=True, eq=False)
class Program:
    """A whole spotter. ``stacked_frames`` frames of ``n_mels`` int8 values, oldest first, feed layer 0."""

    keywords: tuple[str, ...]  # output 0 is "none of them", output k is keywords[k-1]
    n_mels: int
    stacked_frames: int
    frame_seconds: float
    input: InputQuantizer
    layers: tuple[Layer, ...]
    metadata: dict[str, Any] = field(default_factory=dict)  # features, plan, seed, data hash ...

    def save(self, path: str | Path) -> None:
        """Write to a temporary name, then rename."""
        tensors: dict[str, np.ndarray] = {
            "input.mean": self.input.mean,
            "input.inverse_std": self.input.inverse_std,
        }
        headers = [{"kind": layer.kind, **take_apart(layer, str(i), tensors)} for i, layer in enumerate(self.layers)]
        meta = {
            "format": FORMAT,
            "keywords": list(self.keywords),
            "n_mels": self.n_mels,
            "stacked_frames": self.stacked_frames,
            "frame_seconds": self.frame_seconds,
            "input_scale": self.input.scale,
            "layers": headers,
            "metadata": self.metadata,
        }
        write_file(path, tensors, meta)


def load_program(path: str | Path) -> Program:
    """Read a program.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, or is not a kwsbench program.
    """
    meta, tensors = read_file(path, FORMAT, "program")
    layers = [put_together(LAYERS[h["kind"]], h, str(i), tensors) for i, h in enumerate(meta["layers"])]
    return Program(
        keywords=tuple(meta["keywords"]),
        n_mels=meta["n_mels"],
        stacked_frames=meta["stacked_frames"],
        frame_seconds=meta["frame_seconds"],
        input=InputQuantizer(tensors["input.mean"], tensors["input.inverse_std"], meta["input_scale"]),
        layers=tuple(layers),
        metadata=meta["metadata"],
    )
