"""A small causal Conformer encoder (arXiv 2005.08100) that streams frame by frame, in float.

    joined log-mel frames -> linear -> blocks -> encoder frames
    block:  x += FF(x) / 2;   x += attention(x);   x += convolution(x);   x += FF(x) / 2;   layer norm

As in the paper: two half-step feedforward modules (swish) around self-attention and the convolution module (pointwise,
gated linear unit, depthwise, norm, swish, pointwise), each module behind a layer norm.
Ours (choice), so that it streams: attention sees the present frame and ``left_context`` frames before it, nothing
later; the depthwise convolution is causal; layer norm stands in place of batchnorm inside the convolution module (no
statistics of padded batches); a trained bias per head and distance replaces the relative position encoding; frames
are joined instead of convolved and subsampled; no dropout.

State per block: keys and values of the last ``left_context`` frames, and the ``kernel - 1`` last inputs of the
convolution. The caches have their full size from the start, empty places are masked; so ``step`` does every frame by
calls of one shape, and every chunking gives the same bits (batch size and thread count held fixed). ``forward``, for
training, agrees with it to float rounding. All matrices are ``nn.Linear``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kwsbench.models.recurrent import join_frames, linear, stacked


@dataclass(frozen=True)
class ConformerConfig:
    """``stack`` log-mel frames make one frame of the encoder; ``left_context`` counts such frames."""

    n_mels: int = 32
    stack: int = 6
    width: int = 96
    blocks: int = 3
    heads: int = 4
    expansion: int = 4
    kernel: int = 7
    left_context: int = 16

    def __post_init__(self) -> None:
        if min(v for k, v in asdict(self).items() if k != "left_context") < 1 or self.left_context < 0:
            raise ValueError(f"all sizes of an encoder must be at least 1 (left_context 0), got {self}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")


@dataclass(frozen=True, eq=False)
class BlockState:
    """What one block remembers, oldest first: of the attention, and of the convolution (``history``)."""

    keys: torch.Tensor  # [B, left_context, width]
    values: torch.Tensor  # [B, left_context, width]
    history: torch.Tensor  # [B, kernel - 1, width]


@dataclass(frozen=True, eq=False)
class ConformerState:
    """All that the encoder remembers; ``frames`` counts encoder frames so far, up to ``left_context``."""

    pending: torch.Tensor  # [B, < stack, n_mels]
    blocks: tuple[BlockState, ...]
    frames: int


class Kept(nn.Identity):
    """Marks what a block carries to later frames: a quantized model puts its rounding here."""


class FeedForward(nn.Module):
    """Layer norm, expansion, swish, back: ``[..., width]`` -> ``[..., width]``."""

    def __init__(self, config: ConformerConfig, generator: torch.Generator):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.up = linear(config.width, config.expansion * config.width, generator)
        self.down = linear(config.expansion * config.width, config.width, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.up(self.norm(x))))


class Attention(nn.Module):
    """Self-attention over the present frame and ``left_context`` before it, behind a layer norm."""

    def __init__(self, config: ConformerConfig, generator: torch.Generator):
        super().__init__()
        self.heads, self.left_context = config.heads, config.left_context
        self.norm = nn.LayerNorm(config.width)
        self.query = linear(config.width, config.width, generator)
        self.key = linear(config.width, config.width, generator, bias=False)
        self.value = linear(config.width, config.width, generator)
        self.output = linear(config.width, config.width, generator)
        self.kept_key, self.kept_value = Kept(), Kept()
        # By head and distance into the past, 0 the present frame.
        self.distance = nn.Parameter(torch.zeros(config.heads, config.left_context + 1))

    def frame(
        self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One frame ``[B, width]``, ``seen`` of the cached places filled -> output and the next caches."""
        x = self.norm(x)
        keys = torch.cat([keys, self.kept_key(self.key(x))[:, None]], dim=1)
        values = torch.cat([values, self.kept_value(self.value(x))[:, None]], dim=1)
        query = self._by_head(self.query(x)[:, None])
        scores = query @ self._by_head(keys).transpose(2, 3) / math.sqrt(query.shape[-1])
        scores = scores + self.distance.flip(1)[:, None]
        empty = torch.arange(self.left_context + 1, device=x.device) < self.left_context - seen
        weights = scores.masked_fill(empty, -math.inf).softmax(-1)
        mixed = (weights @ self._by_head(values)).transpose(1, 2).flatten(1)
        return self.output(mixed), keys[:, 1:], values[:, 1:]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole sequences ``[B, T, width]``, each frame with its own past."""
        x = self.norm(x)
        projected = (self.query(x), self.kept_key(self.key(x)), self.kept_value(self.value(x)))
        query, key, value = (self._by_head(p) for p in projected)
        times = torch.arange(x.shape[1], device=x.device)
        back = times[:, None] - times[None]
        hidden = (back < 0) | (back > self.left_context)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        scores = scores + self.distance[:, back.clamp(0, self.left_context)]
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        return self.output((weights @ value).transpose(1, 2).flatten(2))

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, width]`` -> ``[B, heads, T, width / heads]``."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Convolution(nn.Module):
    """The convolution module: norm, pointwise with gate, causal depthwise, norm, swish, pointwise."""

    def __init__(self, config: ConformerConfig, generator: torch.Generator):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.gated = linear(config.width, 2 * config.width, generator)
        # Depthwise: one filter of `kernel` taps per channel, oldest tap first.
        self.depthwise = nn.Parameter(torch.empty(config.kernel, config.width))
        self.bias = nn.Parameter(torch.zeros(config.width))
        self.kept = Kept()
        self.inner_norm = nn.LayerNorm(config.width)
        self.output = linear(config.width, config.width, generator)
        with torch.no_grad():
            self.depthwise.uniform_(-(config.kernel**-0.5), config.kernel**-0.5, generator=generator)

    def frame(self, x: torch.Tensor, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One frame ``[B, width]`` and the inputs before it ``[B, kernel - 1, width]`` -> output, next history."""
        window = torch.cat([history, self.kept(F.glu(self.gated(self.norm(x))))[:, None]], dim=1)
        return self._after((window * self.depthwise).sum(1) + self.bias), window[:, 1:]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole sequences ``[B, T, width]``; zeros before the first frame."""
        x = F.pad(self.kept(F.glu(self.gated(self.norm(x)))), (0, 0, len(self.depthwise) - 1, 0))
        filters = self.depthwise.t()[:, None]
        return self._after(F.conv1d(x.transpose(1, 2), filters, self.bias, groups=len(filters)).transpose(1, 2))

    def _after(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(F.silu(self.inner_norm(x)))


class Block(nn.Module):
    """One Conformer block; see the module docstring."""

    def __init__(self, config: ConformerConfig, generator: torch.Generator):
        super().__init__()
        self.first = FeedForward(config, generator)
        self.attention = Attention(config, generator)
        self.convolution = Convolution(config, generator)
        self.second = FeedForward(config, generator)
        self.norm = nn.LayerNorm(config.width)

    def frame(self, x: torch.Tensor, state: BlockState, seen: int) -> tuple[torch.Tensor, BlockState]:
        """One frame ``[B, width]`` -> output and the next state."""
        x = x + 0.5 * self.first(x)
        attended, keys, values = self.attention.frame(x, state.keys, state.values, seen)
        x = x + attended
        convolved, history = self.convolution.frame(x, state.history)
        x = x + convolved
        return self.norm(x + 0.5 * self.second(x)), BlockState(keys, values, history)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 0.5 * self.first(x)
        x = x + self.attention(x)
        x = x + self.convolution(x)
        return self.norm(x + 0.5 * self.second(x))


class ConformerEncoder(nn.Module):
    """Streaming encoder: normalised log-mel frames ``[B, T, n_mels]`` -> ``[B, T // stack, width]``."""

    def __init__(self, config: ConformerConfig, generator: torch.Generator):
        super().__init__()
        self.config = config
        self.input = linear(config.n_mels * config.stack, config.width, generator)
        self.blocks: Any = nn.ModuleList(Block(config, generator) for _ in range(config.blocks))

    @property
    def width(self) -> int:
        """Size of an encoder frame."""
        return self.config.width

    @property
    def frames_joined(self) -> int:
        """Log-mel frames per encoder frame."""
        return self.config.stack

    def fresh(self, batch: int = 1) -> ConformerState:
        """The state before the first frame."""
        c, like = self.config, self.blocks[0].norm.weight
        cache = like.new_zeros(batch, c.left_context, c.width)
        block = BlockState(cache, cache, like.new_zeros(batch, c.kernel - 1, c.width))
        return ConformerState(like.new_zeros(batch, 0, c.n_mels), (block,) * c.blocks, 0)

    def step(self, x: torch.Tensor, state: ConformerState) -> tuple[torch.Tensor, ConformerState]:
        """Frames ``[B, T, n_mels]``, any T -> the encoder frames they complete, and the next state."""
        joined, pending = join_frames(x, state.pending, self.config.stack)
        blocks, seen = list(state.blocks), state.frames
        outputs = []
        for t in range(joined.shape[1]):
            # A copy: where in memory a frame lies must not matter to a matrix product.
            y = self.input(joined[:, t].clone())
            for number, block in enumerate(self.blocks):
                y, blocks[number] = block.frame(y, blocks[number], seen)
            seen = min(seen + 1, self.config.left_context)
            outputs.append(y)
        return stacked(outputs, joined, self.config.width), ConformerState(pending, tuple(blocks), seen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole recordings from the fresh state, for training. Padding at the end does not reach back."""
        joined, _ = join_frames(x, self.fresh(len(x)).pending, self.config.stack)
        y = self.input(joined)
        for block in self.blocks:
            y = block(y)
        return y
