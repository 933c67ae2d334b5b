"""The over-parameterised network of a search space: every candidate of every cell with weights of its own.

A *path* says which candidate each cell takes, by number. The network of a path is an ordinary
:class:`~kwsbench.models.layers.Network` and runs through the same loop as any other; only its weights are looked up
here, so that a path computes what the finished network computes, bit for bit (:meth:`Supernet.extract`).

What a path costs is a sum over cells, because a cell's candidates take and give tensors of one shape: with
probabilities instead of a choice the sum is an expectation, ``E[ops] = base + sum_cells p . ops`` (:class:`CostTable`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp
from torch import nn
from torch.nn import functional as F

from kwsbench.models.convolutional import ConvNet, FloatOperations, FreeConv, SincConv, last_frame
from kwsbench.models.layers import Add, Conv, Layer, Network, Output
from kwsbench.models.recurrent import linear
from kwsbench.models.space import Space, layer_macs

Choices = tuple[int, ...]
CELL = re.compile(r"cell(\d+)(?!\d)")


@dataclass(frozen=True)
class CostTable:
    """Multiply-accumulates per second of audio of every network of a space: ``base`` and what each candidate adds."""

    base: int
    cells: tuple[tuple[int, ...], ...]

    def of(self, path: Sequence[int]) -> int:
        """Of one network."""
        return self.base + sum(cell[choice] for cell, choice in zip(self.cells, path, strict=True))

    def expected(self, probabilities: Sequence[torch.Tensor]) -> torch.Tensor:
        """Expectation over independent choices with these probabilities, differentiable: a float64 scalar.

        Costs are integers below 2^53: probabilities of 0 and 1 give :meth:`of` exactly.
        """
        total = probabilities[0].new_tensor(self.base, dtype=torch.float64)
        for p, macs in zip(probabilities, self.cells, strict=True):
            total = total + (p.double() * p.new_tensor(macs, dtype=torch.float64)).sum()
        return total

    @property
    def least(self) -> int:
        return self.base + sum(map(min, self.cells))

    @property
    def most(self) -> int:
        return self.base + sum(map(max, self.cells))

    def check(self, target_macs: float) -> None:
        """Raises ValueError for a target that no network of the space meets, and names those that can be met."""
        if not self.least <= target_macs <= self.most:
            raise ValueError(
                f"no network of this space takes {target_macs:,.0f} operations (multiply-accumulates per second of "
                f"audio): they take from {self.least:,} to {self.most:,}; choose a target between, or another width"
            )


def cost_table(space: Space) -> CostTable:
    """Counted layer by layer on built networks, one per candidate."""
    counts = [len(names) for names in space.candidates]
    cells: list[list[int]] = [[0] * n for n in counts]
    for k in range(max(counts)):
        path = tuple(min(k, n - 1) for n in counts)
        macs = layer_macs(_network(space, path))
        parts = [sum(macs[layer.name] for layer in part) for part in _parts(space, path)]
        for cell, (choice, part) in enumerate(zip(path, parts[1:-1], strict=True)):
            cells[cell][choice] = part
    return CostTable(parts[0] + parts[-1], tuple(map(tuple, cells)))


def most_probable(probabilities: Sequence[np.ndarray]) -> Choices:
    """The likeliest candidate of every cell; of equals the first."""
    return tuple(int(np.argmax(p)) for p in probabilities)


def most_probable_within(probabilities: Sequence[np.ndarray], table: CostTable, limit_macs: float) -> Choices:
    """Of all networks within ``limit_macs`` the one with the greatest product of probabilities, exactly (an integer
    program).

    Raises:
        ValueError: the limit is below the least that a network of the space takes (named).
    """
    if limit_macs < table.least:
        table.check(limit_macs)
    counts = [len(p) for p in probabilities]
    gain = np.log(np.maximum(np.concatenate([np.asarray(p, np.float64) for p in probabilities]), 1e-30))
    one_each = np.repeat(np.eye(len(counts)), counts, axis=1)
    macs = np.concatenate([np.asarray(c, np.float64) for c in table.cells])[None]
    limits = [LinearConstraint(one_each, 1, 1), LinearConstraint(macs, -np.inf, limit_macs - table.base)]
    solved = milp(-gain, integrality=np.ones(len(gain)), bounds=(0, 1), constraints=limits)
    if solved.x is None:
        raise RuntimeError(f"no network found within {limit_macs:,.0f} operations: {solved.message}")
    path, start = [], 0
    for count in counts:
        path.append(int(np.argmax(solved.x[start : start + count])))
        start += count
    return tuple(path)


class Supernet(nn.Module):
    """All networks of a space at once, in float.

    Attributes:
        counts: number of candidates of each cell.
    """

    mean: torch.Tensor
    inverse_std: torch.Tensor

    def __init__(self, space: Space, seed: int = 0):
        super().__init__()
        self.space = space
        self.counts = tuple(len(names) for names in space.candidates)
        generator = torch.Generator().manual_seed(seed)
        self.convs: Any = nn.ModuleDict()
        for k in range(max(self.counts)):
            path = tuple(min(k, count - 1) for count in self.counts)
            for part, layers in enumerate(self.parts(path)):
                for layer in layers:
                    key = _key(part, path, layer)
                    if isinstance(layer, Conv) and key not in self.convs:
                        self.convs[key] = SincConv(layer) if layer.filters == "sinc" else FreeConv(layer, generator)
        network = self.network(path)
        output = network.layers[-1]
        assert isinstance(output, Output)
        self.output = linear(output.inputs, output.outputs, generator)
        self.register_buffer("mean", torch.zeros(network.front.bins))
        self.register_buffer("inverse_std", torch.ones(network.front.bins))

    def set_normalisation(self, mean: Any, std: Any) -> None:
        """Mean and standard deviation of the training frames, ``[bins]``."""
        self.mean.copy_(torch.as_tensor(mean, dtype=self.mean.dtype))
        self.inverse_std.copy_(1 / torch.as_tensor(std, dtype=self.mean.dtype))

    def forward(self, x: torch.Tensor, path: Choices) -> torch.Tensor:
        """Whole clips ``[B, T, bins]`` -> logits ``[B, labels]`` of the last frame, through one candidate per cell."""
        return self.trace(x, path)[0]

    def trace(self, x: torch.Tensor, path: Choices) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The logits, and what lies between cells, ``[B, C, T, F]``: what enters the first, then what each gives."""
        operations = _PathOperations(self, path)
        network = self.network(path)
        logits = last_frame(network, operations, ((x - self.mean) * self.inverse_std)[:, None])
        return logits, operations.between

    def candidate(self, cell: int, choice: int, x: torch.Tensor) -> torch.Tensor:
        """What one candidate of one cell gives for ``x``, whole clips of ``[B, C, T, F]``."""
        path = tuple(choice if i == cell else 0 for i in range(len(self.counts)))
        operations = _PathOperations(self, path)
        y = x
        for layer in self.parts(path)[cell + 1]:
            if isinstance(layer, Conv):
                kernel, stride = layer.kernel[0], layer.stride[0]
                y = operations.conv(layer, F.pad(y[:, :, : y.shape[2] // stride * stride], (0, 0, kernel - stride, 0)))
            elif isinstance(layer, Add):
                y = operations.add(layer, y, x)
        return y

    def network(self, path: Choices) -> Network:
        """The network of a path."""
        return _network(self.space, path)

    def parts(self, path: Choices) -> list[tuple[Layer, ...]]:
        """Layers of a path's network: the stem, each cell (none where it skips), the head."""
        return _parts(self.space, path)

    def extract(self, path: Choices) -> ConvNet:
        """The network of a path with its weights from here, as a network of its own."""
        model = ConvNet(self.network(path))
        found = _PathOperations(self, path).modules
        for name, conv in found.items():
            model.convs[name].load_state_dict(conv.state_dict())
        model.output.load_state_dict(self.output.state_dict())
        model.mean.copy_(self.mean)
        model.inverse_std.copy_(self.inverse_std)
        return model.train(self.training)


class _PathOperations(FloatOperations):
    """Layers of one path, on the supernet's parameters; ``between`` collects what lies between the cells."""

    def __init__(self, net: Supernet, path: Choices):
        self.modules: dict[str, nn.Module] = {}
        parts = net.parts(path)
        # What ends with a layer: the stem, or a cell and all skips behind it.
        self.ends: dict[str, int] = {}
        last = parts[0][-1].name
        for layers in parts[:-1]:
            last = layers[-1].name if layers else last
            self.ends[last] = self.ends.get(last, 0) + 1
        for part, layers in enumerate(parts):
            for layer in layers:
                if isinstance(layer, Conv):
                    self.modules[layer.name] = net.convs[_key(part, path, layer)]
        super().__init__(cast(ConvNet, SimpleNamespace(convs=self.modules, output=net.output)))
        self.between: list[torch.Tensor] = []

    def conv(self, layer: Conv, x: torch.Tensor) -> torch.Tensor:
        return self._noted(layer, super().conv(layer, x))

    def add(self, layer: Add, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return self._noted(layer, super().add(layer, x, source))

    def _noted(self, layer: Layer, y: torch.Tensor) -> torch.Tensor:
        self.between += [y] * self.ends.get(layer.name, 0)
        return y


def _key(part: int, path: Choices, layer: Layer) -> str:
    """Name of a layer's parameters: those of cells belong to the candidate (no dots: torch keeps them for itself)."""
    cell = part - 1
    name = layer.name.replace(".", "-")
    return f"{name}@{path[cell]}" if 0 <= cell < len(path) else name


@functools.lru_cache(65536)
def _network(space: Space, path: Choices) -> Network:
    return space.network(path)


@functools.lru_cache(65536)
def _parts(space: Space, path: Choices) -> list[tuple[Layer, ...]]:
    """By the names of layers: ``cell3.expand`` belongs to the third cell; what lies before all of them is the stem."""
    groups: list[list[Layer]] = [[] for _ in range(len(path) + 2)]
    stem = _stem(space)
    for i, layer in enumerate(_network(space, path).layers):
        found = CELL.match(layer.name)
        groups[int(found[1]) if found else 0 if i < stem else len(path) + 1].append(layer)
    return [tuple(group) for group in groups]


@functools.lru_cache(256)
def _stem(space: Space) -> int:
    """How many layers come before the cells."""
    for k in range(max(map(len, space.candidates))):
        layers = _network(space, tuple(min(k, len(names) - 1) for names in space.candidates)).layers
        cells = [i for i, layer in enumerate(layers) if CELL.match(layer.name)]
        if cells:
            return cells[0]
    raise ValueError(f"no network of {space} has a layer called cell1.something: there is nothing to choose")
