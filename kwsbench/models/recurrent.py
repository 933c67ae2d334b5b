"""LSTM layers in plain matrices (Hochreiter and Schmidhuber 1997; gate order and biases as in ``torch.nn.LSTM``).

    [i f g o] = W x + b + U h        W: ``input``, U: ``recurrent``, each an ``nn.Linear``
    c' = sigmoid(f) c + sigmoid(i) tanh(g),    h' = sigmoid(o) tanh(c')

One bias, not two: ``torch.nn.LSTM`` adds ``bias_ih`` and ``bias_hh``, which are one number. The two matrices are
modules of their own, so that whatever replaces an ``nn.Linear`` (a quantized one) can replace each of them.

Exactness. ``step`` works frame by frame: each frame passes through the same calls with the same shapes however the
stream was cut, so every chunking gives the same bits. ``forward`` is for training: it multiplies all frames by W in one
product, whose sums a BLAS may order differently; it agrees with ``step`` to float rounding, not bit for bit.
"""

from __future__ import annotations

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
