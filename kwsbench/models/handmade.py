"""Networks made by hand, to hold the found ones against. All causal in time, as everything here.

``ds_cnn``: the DS-CNN of MLPerf Tiny (github.com/mlcommons/tiny; Zhang et al., arXiv 1711.07128): 49 x 10 MFCC, a 10x4
convolution of stride 2x2 to 64 channels, four depthwise 3x3 + pointwise pairs, mean, dense. Published: 38.6 kB, which
are 22,604 weights and biases of 8 bits and twice the 8,000 activations of a layer; 2.66M multiply-accumulates. Ours has
24 frames behind the stride, they have 25 (padding on both sides): 4% fewer operations. Besides: no dropout, ReLU6 for
ReLU, windows of 40 ms for their 30.

``feedforward``: the 250K spotter of ``models/feedforward.py`` as a convolution over its 31 x 20 window, then 1x1;
ReLU6 for ReLU, no gain.

``BCResNet``: BC-ResNet (Kim et al., arXiv 2106.04140; github.com/Qualcomm-AI-research/bcresnet). Float only. Published
for width 8 (BC-ResNet-1): 9,232 parameters, 3.6M operations, with 40 log-mel energies of 30 ms each 10 ms. Ours has the
same parameters, and 2.41M multiply-accumulates: of convolutions and the output layer alone (what else the published
figure counts it does not tell), for 98 frames of a second, as our front end gives, where theirs has 101. Convolutions
are causal in place of centred, hence zeros before the clip and none behind it; no dropout.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kwsbench.models.convolutional import BatchNorm, State
from kwsbench.models.layers import Conv, Front, Layer, Network, Output, Pool, same_padding
from kwsbench.models.recurrent import linear
from kwsbench.models.space import SAMPLE_RATE, front_of

SUB_BANDS = 5  # of subspectral normalisation
BC_STAGES = ((2, 1.0), (2, 1.5), (4, 2.0), (4, 2.5))  # blocks, and channels by the width
BC_STRIDED = (1, 2)  # stages that halve the frequencies

# Past inputs of a layer, by name, joined before the new ones.
Recall = Callable[[str, torch.Tensor], torch.Tensor]


def ds_cnn(labels: tuple[str, ...], front: str = "mfcc10", channels: int = 64, blocks: int = 4) -> Network:
    """DS-CNN; see the module docstring."""
    heard = front_of(front)
    layers: list[Layer] = [Conv("stem", 1, channels, (10, 4), (2, 2), same_padding(heard.bins, 4, 2))]
    for number in range(1, blocks + 1):
        layers.append(Conv(f"block{number}_depthwise", channels, channels, (3, 3), padding=(1, 1), depthwise=True))
        layers.append(Conv(f"block{number}_pointwise", channels, channels))
    pool = Pool("pool", heard.frames(SAMPLE_RATE) // 2)
    return Network(heard, labels, (*layers, pool, Output("output", channels, len(labels))))


def feedforward(labels: tuple[str, ...], hidden: tuple[int, ...] = (200, 200, 200, 200)) -> Network:
    """The 250K spotter; see the module docstring."""
    layers: list[Layer] = [Conv("dense1", 1, hidden[0], (31, 20))]
    for number, (inputs, outputs) in enumerate(itertools.pairwise(hidden), start=2):
        layers.append(Conv(f"dense{number}", inputs, outputs))
    return Network(Front("lfbe", 20, 400, 480), labels, (*layers, Output("output", hidden[-1], len(labels))))


class SubSpectralNorm(nn.Module):
    """Batchnorm of each channel in each of ``SUB_BANDS`` equal bands of frequencies (arXiv 2103.13620)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = BatchNorm(channels * SUB_BANDS)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        # Behind a permutation channels are last in memory; batchnorm then has one of its own per band and channel.
        b, c, t, f = a.shape
        banded = a.permute(0, 2, 3, 1).reshape(b, t, SUB_BANDS, f // SUB_BANDS, c).transpose(2, 3)
        banded = self.norm(banded.reshape(b, t, f // SUB_BANDS, -1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (
            banded.reshape(b, t, f // SUB_BANDS, SUB_BANDS, c).transpose(2, 3).reshape(b, t, f, c).permute(0, 3, 1, 2)
        )


class BroadcastBlock(nn.Module):
    """``y = relu(x + f2 + f1(mean over frequency of f2))``; where channels change, without ``x``.

    f2: (1x1, norm, ReLU where channels change,) depthwise over 3 frequencies, subspectral norm. f1: depthwise over 3
    frames ``dilation`` apart, norm, swish, 1x1; its single frequency is added to all of f2's.
    """

    def __init__(self, inputs: int, outputs: int, bins: int, dilation: int, stride: int, generator: torch.Generator):
        super().__init__()
        self.bins, self.dilation, self.stride = bins, dilation, stride
        self.change = drawn(outputs, inputs, 1, 1, generator) if inputs != outputs else None
        self.change_norm = BatchNorm(outputs) if inputs != outputs else None
        self.over_frequency = drawn(outputs, 1, 1, 3, generator)
        self.sub_norm = SubSpectralNorm(outputs)
        self.over_time = drawn(outputs, 1, 3, 1, generator)
        self.norm = BatchNorm(outputs)
        self.mix = drawn(outputs, outputs, 1, 1, generator)

    @property
    def looks_back(self) -> int:
        """Past frames that it needs."""
        return 2 * self.dilation

    @property
    def macs_per_frame(self) -> int:
        """Multiply-accumulates of one frame."""
        change = self.bins * self.change.numel() if self.change is not None else 0
        over_frequency = self.bins // self.stride * self.over_frequency.numel()
        return change + over_frequency + self.over_time.numel() + self.mix.numel()

    def forward(self, x: torch.Tensor, recall: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        y = x
        if self.change is not None and self.change_norm is not None:
            y = F.relu(self.change_norm(F.conv2d(y, self.change)))
        groups = len(self.over_time)
        wide = self.sub_norm(F.conv2d(y, self.over_frequency, stride=(1, self.stride), padding=(0, 1), groups=groups))
        mean = recall(wide.mean(3, keepdim=True))
        narrow = F.silu(self.norm(F.conv2d(mean, self.over_time, dilation=(self.dilation, 1), groups=groups)))
        y = wide + F.conv2d(narrow, self.mix)
        return F.relu(y if self.change is not None else y + x)


class BCResNet(nn.Module):
    """BC-ResNet in float. ``forward`` scores whole clips; ``step`` streams, as :class:`~.convolutional.ConvNet`."""

    mean: torch.Tensor
    inverse_std: torch.Tensor
    front = Front("lfbe", 40, 480, 160)

    def __init__(self, labels: tuple[str, ...], seed: int = 0, width: int = 8):
        super().__init__()
        self.labels = labels
        self.frames = self.front.frames(SAMPLE_RATE)
        generator = torch.Generator().manual_seed(seed)
        self.stem = drawn(2 * width, 1, 5, 5, generator)
        self.stem_norm = BatchNorm(2 * width)
        self.blocks: Any = nn.ModuleList()
        channels, bins = 2 * width, self.front.bins // 2
        for stage, (count, times) in enumerate(BC_STAGES):
            for number in range(count):
                stride = 2 if stage in BC_STRIDED and number == 0 else 1
                self.blocks.append(BroadcastBlock(channels, int(times * width), bins, 2**stage, stride, generator))
                channels, bins = int(times * width), bins // stride
        self.last = drawn(channels, 1, 5, 5, generator)
        self.head = drawn(4 * width, channels, 1, 1, generator)
        self.head_norm = BatchNorm(4 * width)
        self.output = linear(4 * width, len(labels), generator)
        self.register_buffer("mean", torch.zeros(self.front.bins))
        self.register_buffer("inverse_std", torch.ones(self.front.bins))

    @property
    def weights(self) -> int:
        """Number of weights, of convolutions and the output layer."""
        return sum(p.numel() for p in self.parameters() if p.dim() > 1)

    @property
    def macs_per_clip(self) -> int:
        """Multiply-accumulates for the last logits of one second."""
        stem = self.front.bins // 2 * self.stem.numel()
        blocks = sum(block.macs_per_frame for block in self.blocks)
        return self.frames * (stem + blocks + self.last.numel() + self.head.numel()) + self.output.weight.numel()

    def set_normalisation(self, mean: Any, std: Any) -> None:
        """Mean and standard deviation of the training frames, ``[bins]``."""
        self.mean.copy_(torch.as_tensor(mean, dtype=self.mean.dtype))
        self.inverse_std.copy_(1 / torch.as_tensor(std, dtype=self.mean.dtype))

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """Frames ``[B, T, bins]`` -> ``[B, 1, T, bins]``, zero mean and unit variance per bin."""
        return ((x - self.mean) * self.inverse_std)[:, None]

    def fresh(self, batch: int = 1) -> State:
        """State before the first frame."""
        sizes = {"stem": (1, 4, 40), "last": (len(self.last), 4, 5), "pool": (len(self.head), self.frames - 1, 1)}
        for number, block in enumerate(self.blocks):
            sizes[f"block{number}"] = (len(block.mix), block.looks_back, 1)
        return {name: self.mean.new_zeros(batch, *size) for name, size in sizes.items()}

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """New frames ``[B, T, bins]`` -> logits ``[B, T, labels]`` and the next state."""
        if not x.shape[1]:
            return x.new_empty(len(x), 0, len(self.labels)), state
        following: State = {}

        def recall(name: str, new: torch.Tensor) -> torch.Tensor:
            joined = torch.cat([state[name], new], dim=2)
            following[name] = joined[:, :, new.shape[2] :].detach()
            return joined

        y = recall("pool", self._before_pool(self.normalise(x), recall))
        return self.output(y.squeeze(3).unfold(2, self.frames, 1).mean(3).transpose(1, 2)), following

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole clips ``[B, T, bins]`` -> logits ``[B, labels]`` of the last frame."""
        looks_back = {name: past.shape[2] for name, past in self.fresh(1).items()}
        y = self._before_pool(self.normalise(x), lambda name, new: F.pad(new, (0, 0, looks_back[name], 0)))
        return self.output(y[:, :, -self.frames :].sum((2, 3)) / self.frames)

    def _before_pool(self, x: torch.Tensor, recall: Recall) -> torch.Tensor:
        x = F.relu(self.stem_norm(F.conv2d(recall("stem", x), self.stem, stride=(1, 2), padding=(0, 2))))
        x = x.contiguous(memory_format=torch.channels_last)  # depthwise convolutions are faster so
        for number, block in enumerate(self.blocks):
            x = block(x, lambda new, number=number: recall(f"block{number}", new))
        x = F.conv2d(recall("last", x), self.last, groups=len(self.last))
        return F.relu(self.head_norm(F.conv2d(x, self.head)))


def drawn(outputs: int, inputs: int, time: int, frequency: int, generator: torch.Generator) -> nn.Parameter:
    """Weights of a convolution by He's initialisation."""
    weight = torch.empty(outputs, inputs, time, frequency)
    return nn.Parameter(weight.normal_(std=(2 / (inputs * time * frequency)) ** 0.5, generator=generator))
