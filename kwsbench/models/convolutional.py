"""Convolutional networks in float, and the one loop that runs a :class:`~kwsbench.models.layers.Network`.

    x [B, T, bins] -> normalise -> [B, 1, T, bins] -> layers ([B, C, T, F] each) -> logits [B, T', labels]

What a layer computes is supplied from outside (:class:`Operations`): float here, fake-quantized or exact integers in
``quantizers/convolutional.py``. The loop only knows what each layer remembers: a convolution of kernel k and stride s
its last inputs (k - s to k - 1 frames), a pool over W frames its last W - 1. A fresh memory is zeros, after the
normalisation; a whole file is a step from the fresh state. Every chunking sees the same inputs and the same frames;
float sums may be ordered differently for another length, so outputs agree to rounding, integers bit for bit.

``last_frame`` is the same loop for whole clips, and for training: no state, and of every layer only the frames that the
last frame of logits looks at. Tensors are channels-last in memory: depthwise convolutions are several times faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kwsbench.features.mel import hz_to_mel, mel_to_hz
from kwsbench.models.feedforward import EPSILON, MOMENTUM
from kwsbench.models.layers import (
    Add,
    Conv,
    Layer,
    Network,
    Output,
    Pool,
    looked_at,
    looks_back_to,
    shapes,
    window_frames,
)
from kwsbench.models.recurrent import linear

# Inputs that a layer still needs, by its name: [B, C, frames, F].
State = dict[str, torch.Tensor]

SAMPLE_RATE = 16000
SINC_LOWEST_HZ = 30.0  # where the first band of a fresh sinc layer begins
SINC_NARROWEST_HZ = 50.0


class Operations(Protocol):
    """What the layers of a network compute."""

    def conv(self, layer: Conv, x: torch.Tensor) -> torch.Tensor:
        """``x`` begins with the frames that the first output looks back on; frequency is not padded yet."""

    def add(self, layer: Add, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """The sum of two tensors of one shape."""

    def pool(self, layer: Pool, x: torch.Tensor) -> torch.Tensor:
        """``x`` begins with ``frames - 1`` earlier frames -> ``[B, C, T, 1]``; see :func:`window_sums`."""

    def output(self, layer: Output, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, C]`` -> logits ``[B, T, labels]``."""


def fresh_state(network: Network, batch: int, like: torch.Tensor) -> State:
    """Zeros: the state before the first frame, of the dtype and device of ``like``."""
    return {
        name: like.new_zeros(batch, channels, frames, bins)
        for name, (frames, bins, channels) in _remembered(network).items()
    }


def walk(network: Network, operations: Operations, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
    """Run new frames ``[B, 1, T, bins]``, already normalised, any T: logits ``[B, T', labels]`` of the frames they
    complete, and the next state."""
    following: State = {}

    def take(layer: Layer, before: str, x: torch.Tensor) -> torch.Tensor:
        if layer.name not in state:
            return x
        kernel, stride = window_frames(layer)
        x = torch.cat([state[layer.name], x], dim=2)
        outputs = max(0, (x.shape[2] - kernel) // stride + 1)
        following[layer.name] = x[:, :, outputs * stride :].detach()
        return x[:, :, : (outputs - 1) * stride + kernel] if outputs else x[:, :, :0]

    return _run(network, operations, x, take), following


def last_frame(network: Network, operations: Operations, x: torch.Tensor) -> torch.Tensor:
    """Logits ``[B, labels]`` of the last frame of whole clips ``[B, 1, T, bins]``, already normalised.

    Raises:
        ValueError: the clips are too short for a single frame.
    """
    totals, first = looked_at(network, x.shape[2])

    def take(layer: Layer, before: str, x: torch.Tensor) -> torch.Tensor:
        # x holds the frames of `before` from first[before] on.
        if not totals[layer.name]:
            return x[:, :, :0]
        start = looks_back_to(layer, first[layer.name])
        x = x[:, :, max(start, 0) - first[before] :]
        return F.pad(x, (0, 0, -start, 0)) if start < 0 else x

    logits = _run(network, operations, x[:, :, first["input"] :], take)
    if not logits.shape[1]:
        raise ValueError(f"clips of {x.shape[2]} frames are too short: the network gives no frame of logits for them")
    return logits[:, -1]


def window_sums(x: torch.Tensor, frames: int) -> torch.Tensor:
    """Sums over all frequencies and ``frames`` frames in a row: ``[B, C, T, F]`` -> ``[B, C, T - frames + 1, 1]``."""
    if x.shape[2] == frames:
        return x.sum((2, 3), keepdim=True)
    return x.sum(3, keepdim=True).unfold(2, frames, 1).sum(-1)


def convolve(layer: Conv, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The convolution alone: ``x`` as :meth:`Operations.conv` gets it, weight ``[N, C or 1, time, frequency]``."""
    if layer.inputs == 1 and x.shape[3] == layer.kernel[1] == 1 and not any(layer.padding):
        # Raw audio: one matrix product, two to three times faster than the convolution of a single channel.
        windows = x[:, 0, :, 0].unfold(1, layer.kernel[0], layer.stride[0])
        return (windows @ weight[:, 0, :, 0].t()).transpose(1, 2)[..., None]
    low, high = layer.padding
    if low != high:
        x, low = F.pad(x, (low, high)), 0
    groups = layer.inputs if layer.depthwise else 1
    y = F.conv2d(x, weight, stride=layer.stride, padding=(0, low), groups=groups)
    # Behind a single channel, whose layout is either, PyTorch chooses the slow one.
    return y.contiguous(memory_format=torch.channels_last)


def _run(
    network: Network,
    operations: Operations,
    x: torch.Tensor,
    take: Callable[[Layer, str, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    # take(layer, before, x) makes what the layer computes on from the output x of the layer `before`.
    sources = {layer.source for layer in network.layers if isinstance(layer, Add)}
    kept, before, found = {"input": x}, "input", shapes(network)
    for layer in network.layers:
        x = take(layer, before, x)
        _, bins, channels = found[layer.name]
        if not x.shape[2]:
            # Not a single frame: no operation is asked for none.
            x = x.new_zeros(len(x), channels, 0, bins)
        elif isinstance(layer, Conv):
            x = operations.conv(layer, x)
        elif isinstance(layer, Pool):
            x = operations.pool(layer, x)
        elif isinstance(layer, Add):
            x = operations.add(layer, x, take(layer, layer.source, kept[layer.source]))
        else:
            return operations.output(layer, x.squeeze(3).transpose(1, 2))
        before = layer.name
        if before in sources:
            kept[before] = x
    return x.squeeze(3).transpose(1, 2)


def _remembered(network: Network) -> dict[str, tuple[int, int, int]]:
    # Frames, frequencies and channels of what each layer with a memory starts from.
    found, before, remembered = shapes(network), "input", {}
    for layer in network.layers:
        kernel, stride = window_frames(layer)
        if kernel > 1:
            remembered[layer.name] = (kernel - stride, *found[before][1:])
        before = layer.name
    return remembered


class BatchNorm(nn.Module):
    """``gamma (a - mean) / sqrt(var + eps) + beta`` per channel of ``[B, C, T, F]``."""

    mean: torch.Tensor
    var: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """In training mode by the batch's own statistics, and the running ones move."""
        return F.batch_norm(a, self.mean, self.var, self.gamma, self.beta, self.training, MOMENTUM, EPSILON)

    def observe(self, a: torch.Tensor) -> None:
        """Move the running statistics towards those of the pre-activations ``a``."""
        with torch.no_grad():
            self.mean.lerp_(a.mean((0, 2, 3)), MOMENTUM)
            self.var.lerp_(a.var((0, 2, 3)), MOMENTUM)


class FreeConv(nn.Module):
    """Weights and batchnorm of one convolution."""

    def __init__(self, layer: Conv, generator: torch.Generator):
        super().__init__()
        fan_in = layer.weights // layer.outputs
        weight = torch.empty(layer.outputs, 1 if layer.depthwise else layer.inputs, *layer.kernel)
        weight.normal_(std=((2 if layer.relu else 1) / fan_in) ** 0.5, generator=generator)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.norm = BatchNorm(layer.outputs)


class SincConv(nn.Module):
    """Band-pass filters of two trained frequencies each (Ravanelli and Bengio, arXiv 1808.00158), and batchnorm.

    Each band runs from ``f1 = |low|`` to ``f2 = f1 + narrowest + |band|``, at most half the sample rate. With times n
    counted from the kernel's centre

        w[n] = (2 f2 sinc(2 f2 n) - 2 f1 sinc(2 f1 n)) hamming[n] / (2 (f2 - f1)),    f in units of the sample rate

    A fresh layer spreads its bands evenly on the mel scale. Anything that reads ``weight`` sees ordinary weights.
    """

    hamming: torch.Tensor
    times: torch.Tensor

    def __init__(self, layer: Conv):
        super().__init__()
        if layer.inputs != 1 or layer.kernel[1] != 1 or layer.kernel[0] < 2:
            raise ValueError(f"{layer.name}: sinc filters hear raw audio over time alone, got {layer}")
        mel = np.linspace(hz_to_mel(SINC_LOWEST_HZ), hz_to_mel(SAMPLE_RATE / 2), layer.outputs + 1)
        edges = torch.from_numpy(mel_to_hz(mel))
        self.low_hz = nn.Parameter(edges[:-1].float())
        self.band_hz = nn.Parameter((edges.diff() - SINC_NARROWEST_HZ).clamp(min=0).float())
        taps = layer.kernel[0]
        self.register_buffer("times", torch.arange(taps) - (taps - 1) / 2, persistent=False)
        self.register_buffer("hamming", torch.hamming_window(taps, periodic=False), persistent=False)
        self.norm = BatchNorm(layer.outputs)

    def edges_hz(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each band begins and ends, ``[outputs]`` each."""
        low = self.low_hz.abs().clamp(max=SAMPLE_RATE / 2 - SINC_NARROWEST_HZ)
        return low, (low + SINC_NARROWEST_HZ + self.band_hz.abs()).clamp(max=SAMPLE_RATE / 2)

    @property
    def weight(self) -> torch.Tensor:
        """The filters, ``[outputs, 1, time, 1]``."""
        low, high = (f[:, None] / SAMPLE_RATE for f in self.edges_hz())
        passed = 2 * high * torch.sinc(2 * high * self.times) - 2 * low * torch.sinc(2 * low * self.times)
        return (passed * self.hamming / (2 * (high - low)))[:, None, :, None]


class FloatOperations:
    """Layers as trained in float, on the parameters of a :class:`ConvNet`."""

    def __init__(self, model: ConvNet):
        self.model = model

    def conv(self, layer: Conv, x: torch.Tensor) -> torch.Tensor:
        conv = self.model.convs[layer.name]
        y = conv.norm(convolve(layer, x, conv.weight))
        return F.relu6(y) if layer.relu else y

    def add(self, layer: Add, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return x + source

    def pool(self, layer: Pool, x: torch.Tensor) -> torch.Tensor:
        return window_sums(x, layer.frames) / (layer.frames * x.shape[3])

    def output(self, layer: Output, x: torch.Tensor) -> torch.Tensor:
        return self.model.output(x)


class ConvNet(nn.Module):
    """A network in float. ``forward`` scores whole clips; ``step`` streams."""

    mean: torch.Tensor
    inverse_std: torch.Tensor

    def __init__(self, network: Network, seed: int = 0):
        super().__init__()
        self.network = network
        generator = torch.Generator().manual_seed(seed)
        self.convs: Any = nn.ModuleDict()
        for layer in network.layers:
            if isinstance(layer, Conv):
                self.convs[layer.name] = SincConv(layer) if layer.filters == "sinc" else FreeConv(layer, generator)
        output = network.layers[-1]
        assert isinstance(output, Output)
        self.output = linear(output.inputs, output.outputs, generator)
        self.register_buffer("mean", torch.zeros(network.front.bins))
        self.register_buffer("inverse_std", torch.ones(network.front.bins))

    def set_normalisation(self, mean: Any, std: Any) -> None:
        """Mean and standard deviation of the training frames, ``[bins]``."""
        self.mean.copy_(torch.as_tensor(mean, dtype=self.mean.dtype))
        self.inverse_std.copy_(1 / torch.as_tensor(std, dtype=self.mean.dtype))

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """Frames ``[B, T, bins]`` -> ``[B, 1, T, bins]``, zero mean and unit variance per bin."""
        return ((x - self.mean) * self.inverse_std)[:, None]

    def fresh(self, batch: int = 1) -> State:
        """State before the first frame."""
        return fresh_state(self.network, batch, self.mean)

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """New frames ``[B, T, bins]`` -> logits ``[B, T', labels]`` and the next state."""
        return walk(self.network, FloatOperations(self), self.normalise(x), state)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole clips ``[B, T, bins]`` -> logits ``[B, labels]`` of the last frame."""
        return last_frame(self.network, FloatOperations(self), self.normalise(x))
