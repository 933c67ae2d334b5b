"""LSTM layers (Hochreiter and Schmidhuber 1997) in plain matrices, and a streaming encoder of them.

    [i f g o] = W x + b + U h        W: ``input``, U: ``recurrent``, each an ``nn.Linear``
    c' = sigmoid(f) c + sigmoid(i) tanh(g),    h' = sigmoid(o) tanh(c')

Gates stand in the order of ``torch.nn.LSTM``. One bias, not two: its ``bias_ih`` and ``bias_hh`` are one number. The
two matrices are modules of their own, so that whatever replaces an ``nn.Linear`` (a quantized one) can replace each.

Exactness. ``step`` works frame by frame: each frame passes through the same calls with the same shapes however the
stream was cut, so every chunking gives the same bits. ``forward`` is for training: it multiplies all frames by W in one
product, whose sums a BLAS may order differently; it agrees with ``step`` to float rounding, not bit for bit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

LstmState = tuple[torch.Tensor, torch.Tensor]


class LstmLayer(nn.Module):
    """One LSTM layer, ``inputs`` -> ``hidden``; state ``(h, c)``, each ``[B, hidden]``."""

    def __init__(self, inputs: int, hidden: int, generator: torch.Generator):
        super().__init__()
        self.hidden = hidden
        self.input = linear(inputs, 4 * hidden, generator)
        self.recurrent = linear(hidden, 4 * hidden, generator, bias=False)
        with torch.no_grad():
            # A forget gate that starts open (Jozefowicz et al. 2015): gradients reach back from the first step.
            self.input.bias[hidden : 2 * hidden] = 1.0

    def fresh(self, batch: int = 1) -> LstmState:
        """The state before the first frame: zeros."""
        zeros = self.input.weight.new_zeros(batch, self.hidden)
        return zeros, zeros

    def frame(self, x: torch.Tensor, state: LstmState) -> LstmState:
        """One frame ``[B, inputs]`` -> the next state; its ``h`` is the output."""
        return self.update(self.input(x), state)

    def update(self, driven: torch.Tensor, state: LstmState) -> LstmState:
        """The next state from ``W x + b`` ``[B, 4 hidden]`` and the state."""
        h, c = state
        i, f, g, o = (driven + self.recurrent(h)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def step(self, x: torch.Tensor, state: LstmState) -> tuple[torch.Tensor, LstmState]:
        """Frames ``[B, T, inputs]``, any T -> outputs ``[B, T, hidden]`` and the next state; exact over chunks."""
        outputs = []
        for t in range(x.shape[1]):
            # A copy: where in memory a frame lies must not matter to a matrix product.
            state = self.frame(x[:, t].clone(), state)
            outputs.append(state[0])
        return stacked(outputs, x, self.hidden), state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole sequences ``[B, T, inputs]`` from the fresh state -> ``[B, T, hidden]``, for training."""
        state, outputs = self.fresh(len(x)), []
        for driven in self.input(x).unbind(1):
            state = self.update(driven, state)
            outputs.append(state[0])
        return stacked(outputs, x, self.hidden)


@dataclass(frozen=True)
class LstmEncoderConfig:
    """Layers of ``hidden``; ``stack`` log-mel frames make one input, and after the layer ``reduce_after`` (1: after the
    first) ``reduction`` outputs make one input of the next."""

    n_mels: int = 32
    stack: int = 3
    hidden: int = 160
    layers: int = 3
    reduce_after: int = 1
    reduction: int = 2

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1:
            raise ValueError(f"all sizes of an encoder must be at least 1, got {self}")
        if self.reduction > 1 and not self.reduce_after < self.layers:
            raise ValueError(
                f"time is reduced between layers: reduce_after must lie below layers, got {self.reduce_after} and "
                f"{self.layers}; reduction=1 leaves it out"
            )


@dataclass(frozen=True, eq=False)
class LstmEncoderState:
    """All that the encoder remembers: frames not yet joined, outputs not yet reduced, one ``(h, c)`` per layer."""

    pending: torch.Tensor  # [B, < stack, n_mels]
    unreduced: torch.Tensor  # [B, < reduction, hidden]
    layers: tuple[LstmState, ...]


class LstmEncoder(nn.Module):
    """Streaming LSTM encoder: normalised log-mel frames ``[B, T, n_mels]`` -> ``[B, T // frames_joined, width]``."""

    def __init__(self, config: LstmEncoderConfig, generator: torch.Generator):
        super().__init__()
        self.config = config
        sizes = [config.n_mels * config.stack] + [config.hidden] * (config.layers - 1)
        if config.reduction > 1:
            sizes[config.reduce_after] *= config.reduction
        self.layers: Any = nn.ModuleList(LstmLayer(size, config.hidden, generator) for size in sizes)

    @property
    def width(self) -> int:
        """Size of an encoder frame."""
        return self.config.hidden

    @property
    def frames_joined(self) -> int:
        """Log-mel frames per encoder frame."""
        return self.config.stack * self.config.reduction

    def fresh(self, batch: int = 1) -> LstmEncoderState:
        """The state before the first frame."""
        c, like = self.config, next(self.parameters())
        return LstmEncoderState(
            like.new_zeros(batch, 0, c.n_mels),
            like.new_zeros(batch, 0, c.hidden),
            tuple(layer.fresh(batch) for layer in self.layers),
        )

    def step(self, x: torch.Tensor, state: LstmEncoderState) -> tuple[torch.Tensor, LstmEncoderState]:
        """Frames ``[B, T, n_mels]``, any T -> the encoder frames they complete, and the next state."""
        x, pending = join_frames(x, state.pending, self.config.stack)
        unreduced, states = state.unreduced, []
        for number, (layer, layer_state) in enumerate(zip(self.layers, state.layers)):
            if self.config.reduction > 1 and number == self.config.reduce_after:
                x, unreduced = join_frames(x, unreduced, self.config.reduction)
            x, layer_state = layer.step(x, layer_state)
            states.append(layer_state)
        return x, LstmEncoderState(pending, unreduced, tuple(states))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole recordings from the fresh state, for training. Padding at the end does not reach back."""
        fresh = self.fresh(len(x))
        x, _ = join_frames(x, fresh.pending, self.config.stack)
        for number, layer in enumerate(self.layers):
            if self.config.reduction > 1 and number == self.config.reduce_after:
                x, _ = join_frames(x, fresh.unreduced, self.config.reduction)
            x = layer(x)
        return x


def stacked(frames: list[torch.Tensor], like: torch.Tensor, width: int) -> torch.Tensor:
    """Frames ``[B, width]`` in a row, ``[B, T, width]``; none: an empty tensor for the batch of ``like``."""
    return torch.stack(frames, 1) if frames else like.new_empty(len(like), 0, width)


def join_frames(x: torch.Tensor, pending: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every ``count`` frames become one, oldest first.

    ``x`` ``[B, T, M]`` and ``pending`` ``[B, p, M]`` (those left over before, p < count) -> ``[B, (p + T) // count,
    count * M]`` and the frames left over now. No arithmetic, hence exact over chunks.
    """
    frames = torch.cat([pending, x], dim=1)
    whole = frames.shape[1] // count
    joined = frames[:, : whole * count].reshape(len(x), whole, count * x.shape[2])
    return joined, frames[:, whole * count :]


def linear(inputs: int, outputs: int, generator: torch.Generator, bias: bool = True) -> nn.Linear:
    """A dense layer drawn from an explicit generator: normal, variance 1/inputs (signals keep theirs), bias zero.

    PyTorch's own has a third of that variance; transducers then stay long where they know the labels' number only.
    """
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.normal_(std=inputs**-0.5, generator=generator)
        if bias:
            layer.bias.zero_()
    return layer
