"""A Conformer encoder as plain arrays, and its NumPy reference (docs/arithmetic.md, section 10). No torch.

    int8 frames -> join -> linear -> blocks -> int8
    block:  x += FF(x) / 2;   x += attention(x);   x += convolution(x);   x += FF(x) / 2;   layer norm

Matrices take int8 inputs, each by a scale of its own, multiply integers and give ``acc * unit + bias`` in float32; the
caches (keys, values, inputs of the depthwise filter) are int8. All else is float32, by the equations of
models/conformer.py: bit-exactness ends at each matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kwsbench.arithmetic.fixedpoint import round_half_up, saturate
from kwsbench.integer.program import InputQuantizer
from kwsbench.integer.recognizer import Matrix
from kwsbench.integer.reference import accumulate

EPSILON = np.float32(1e-5)  # of layer norms


@dataclass(frozen=True, eq=False)
class Linear:
    """``acc * unit + bias``; ``scale``: real value of one unit of the int8 input, ``unit``: of one of ``acc``."""

    matrix: Matrix
    scale: float  # a float32 value
    unit: np.ndarray  # float32 [N]
    bias: np.ndarray  # float32 [N]


@dataclass(frozen=True, eq=False)
class Norm:
    """Layer norm: float32 ``[width]`` each."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, eq=False)
class FeedForward:
    """Norm, expansion, swish, back; the factor 1/2 is the block's."""

    norm: Norm
    up: Linear
    down: Linear


@dataclass(frozen=True, eq=False)
class Attention:
    """Self-attention over the present frame and the cached ones, by heads."""

    norm: Norm
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    distance: np.ndarray  # float32 [heads, left_context + 1], 0 the present frame
    key_scale: float  # of the caches, float32 values
    value_scale: float


@dataclass(frozen=True, eq=False)
class Convolution:
    """Norm, pointwise with gate, causal depthwise filter, norm, swish, pointwise."""

    norm: Norm
    gated: Linear
    depthwise: np.ndarray  # float32 [kernel, width], oldest tap first
    bias: np.ndarray  # float32 [width]
    inner_norm: Norm
    output: Linear
    history_scale: float


@dataclass(frozen=True, eq=False)
class Block:
    """One Conformer block: half a feedforward module at both ends, attention and convolution between."""

    first: FeedForward
    attention: Attention
    convolution: Convolution
    second: FeedForward
    norm: Norm


@dataclass(frozen=True, eq=False)
class Conformer:
    """A whole encoder; ``output_scale``: real value of one unit of its int8 output."""

    n_mels: int
    stack: int
    input: InputQuantizer
    first: Linear
    blocks: tuple[Block, ...]
    output_scale: float

    @property
    def width(self) -> int:
        """Size of an encoder frame."""
        return len(self.first.bias)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """All matrices in order of the data, ten to a block after the first."""
        inner = [linear for block in self.blocks for linear in block_linears(block)]
        return (self.first, *inner)


@dataclass(frozen=True, eq=False)
class ConformerState:
    """Caches int8, oldest first, and how many of the attention's places are filled; never changed once they stand
    here."""

    keys: np.ndarray  # [blocks, left_context, width]
    values: np.ndarray
    history: np.ndarray  # [blocks, kernel - 1, width]
    seen: int


def block_linears(block: Block) -> tuple[Linear, ...]:
    """The matrices of a block in order of the data."""
    a, c = block.attention, block.convolution
    first, second = ((f.up, f.down) for f in (block.first, block.second))
    return (*first, a.query, a.key, a.value, a.output, c.gated, c.output, *second)


def fresh(conformer: Conformer) -> ConformerState:
    """The state before the first frame."""
    block, count, width = conformer.blocks[0], len(conformer.blocks), conformer.width
    left, past = block.attention.distance.shape[1] - 1, len(block.convolution.depthwise) - 1
    caches = np.zeros((count, left, width), np.int8)
    return ConformerState(caches, caches, np.zeros((count, past, width), np.int8), 0)


def frame(conformer: Conformer, x: np.ndarray, state: ConformerState) -> tuple[np.ndarray, ConformerState]:
    """One joined frame int8 ``[stack * n_mels]`` -> encoder frame int8 ``[width]`` and the next state."""
    y = linear(x.astype(np.float32) * np.float32(conformer.input.scale), conformer.first)
    keys, values, history = state.keys.copy(), state.values.copy(), state.history.copy()
    for n, block in enumerate(conformer.blocks):
        y = y + np.float32(0.5) * feedforward(y, block.first)
        y = y + attention(y, block.attention, keys[n], values[n], state.seen)
        y = y + convolution(y, block.convolution, history[n])
        y = norm(y + np.float32(0.5) * feedforward(y, block.second), block.norm)
    seen = min(state.seen + 1, keys.shape[1])
    return to_int8(y, conformer.output_scale), ConformerState(keys, values, history, seen)


def to_int8(x: np.ndarray, scale: float) -> np.ndarray:
    """``clamp(round(x / scale), -127, 127)``, in float32."""
    return saturate(round_half_up(x / np.float32(scale)), -127, 127).astype(np.int8)


def linear(x: np.ndarray, layer: Linear) -> np.ndarray:
    """float32 ``[K]`` -> float32 ``[N]`` through integers."""
    acc = accumulate(to_int8(x, layer.scale)[None], layer.matrix.codes)[0]
    return acc.astype(np.float32) * layer.unit + layer.bias


def norm(x: np.ndarray, layer: Norm) -> np.ndarray:
    """Layer norm, float32."""
    centred = x - x.mean(dtype=np.float32)
    variance = np.square(centred).mean(dtype=np.float32)
    return centred / np.sqrt(variance + EPSILON) * layer.weight + layer.bias


def swish(x: np.ndarray) -> np.ndarray:
    """``x sigmoid(x)``."""
    return x * sigmoid(x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic function, float32."""
    return np.float32(1) / (np.float32(1) + np.exp(-x))


def feedforward(x: np.ndarray, layer: FeedForward) -> np.ndarray:
    """Norm, expansion, swish, back."""
    return linear(swish(linear(norm(x, layer.norm), layer.up)), layer.down)


def attention(x: np.ndarray, layer: Attention, keys: np.ndarray, values: np.ndarray, seen: int) -> np.ndarray:
    """Self-attention of the present frame; the caches int8 ``[left_context, width]`` are moved on in place."""
    heads, places = layer.distance.shape
    x = norm(x, layer.norm)
    every = []
    for cache, project, scale in ((keys, layer.key, layer.key_scale), (values, layer.value, layer.value_scale)):
        present = to_int8(linear(x, project), scale)
        together = np.concatenate([cache, present[None]])
        cache[:] = together[1:]
        every.append((together.astype(np.float32) * np.float32(scale)).reshape(places, heads, -1))
    query = linear(x, layer.query).reshape(heads, -1)
    scores = np.einsum("hd,phd->hp", query, every[0]) / np.float32(np.sqrt(query.shape[1])) + layer.distance[:, ::-1]
    scores[:, : places - 1 - seen] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return linear(np.einsum("hp,phd->hd", weights, every[1]).reshape(-1), layer.output)


def convolution(x: np.ndarray, layer: Convolution, history: np.ndarray) -> np.ndarray:
    """The convolution module; ``history`` int8 ``[kernel - 1, width]`` is moved on in place."""
    gated = linear(norm(x, layer.norm), layer.gated)
    half = len(gated) // 2
    present = to_int8(gated[:half] * sigmoid(gated[half:]), layer.history_scale)
    window = np.concatenate([history, present[None]])
    history[:] = window[1:]
    filtered = (window.astype(np.float32) * np.float32(layer.history_scale) * layer.depthwise).sum(axis=0) + layer.bias
    return linear(swish(norm(filtered, layer.inner_norm)), layer.output)
