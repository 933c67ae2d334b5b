"""Mixed widths for a microcontroller: the best of {2, 4, 8} bits per tensor under limits on FLASH and RAM.

Task and limits follow Rusci et al. (arXiv 2008.05124); where they search by reinforcement learning, here the choice is
exact. Each tensor alone is put on few bits, everything else at eight, and the loss on validation data is noted
(:func:`sensitivities`). Rises are taken to add up, which is the approximation; the sum is then minimized by
integer programming (HiGHS), where every tensor takes one width and

    FLASH   packed bytes of all weights, and the most that the constants beside them can take
    RAM     at every operation the bytes that are remembered or alive, at their widths

by the rules of ``resources/convolutional.py`` and ``export/convolutional.py``: a lowered program needs exactly that
RAM, and at most that FLASH.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch.nn import functional as F

from kwsbench.export.pack import packed_bytes
from kwsbench.models.convolutional import ConvNet
from kwsbench.models.layers import Add, Conv, Network, Output, Pool, looked_at, shapes
from kwsbench.quantizers import QUANTIZERS
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.convolutional import ConvPlan, QuantizedConvNet, activated, weighted

WIDTHS = (2, 4, 8)
CHANNEL_BYTES = 9  # at most: int32 bias and multiplier, one byte of shift
INPUT = "input"

# {tensor: {bits: loss}}; tensors named as QuantizedConvNet.widths names them.
Losses = Mapping[str, Mapping[int, float]]


class ImpossibleBudget(ValueError):
    """Limits below the smallest that can be reached, which the message names."""


@dataclass(frozen=True)
class Buffer:
    """Values of a layer's output that are kept somewhere, at its bits and ``extra_bits``; those of ``input`` have no
    width to choose, all of their bits are extra."""

    tensor: str
    values: int
    extra_bits: int = 0

    def bytes(self, bits: int) -> int:
        """Its size at a width of the tensor."""
        return -(-self.values * (bits + self.extra_bits) // 8)


@dataclass(frozen=True)
class Limits:
    """Bytes of FLASH and RAM. ``moments``: what is in RAM at each operation, streaming or for whole clips."""

    flash_bytes: int
    ram_bytes: int
    moments: tuple[tuple[Buffer, ...], ...]


@dataclass(frozen=True)
class Allocation:
    """A width for every tensor, the rise of the loss that the table predicts, and the bytes that it takes with weights
    by a ``method``."""

    widths: dict[str, int]
    method: str
    rise: float
    flash_bytes: int
    ram_bytes: int

    def plan(self, per_channel: bool = False, rounding: str = "single") -> ConvPlan:
        """As a plan of stage 1."""
        names = {name.rpartition(".")[0] for name in self.widths}
        weights = [n for n in names if f"{n}.weight" in self.widths]
        return ConvPlan(
            WeightPlan(self.method, 8, per_channel),
            8,
            tuple((n, WeightPlan(self.method, self.widths[f"{n}.weight"], per_channel)) for n in sorted(weights)),
            tuple((n, self.widths[f"{n}.output"]) for n in sorted(names) if f"{n}.output" in self.widths),
            rounding,
        )


def sensitivities(
    net: ConvNet,
    calibration: torch.Tensor,
    clips: torch.Tensor,
    labels: torch.Tensor,
    method: str = "lsq",
    per_channel: bool = False,
    widths: Sequence[int] = WIDTHS,
) -> dict[str, dict[int, float]]:
    """Cross-entropy on ``clips`` with one tensor alone at each of ``widths`` and the others at eight bits, after
    calibration and without training."""

    @torch.no_grad()
    def loss(plan: ConvPlan) -> float:
        model = QuantizedConvNet(net, plan)
        model.calibrate(calibration)
        return float(F.cross_entropy(model.eval()(clips).double(), labels))

    wide = WeightPlan(method, 8, per_channel)
    at_eight = loss(ConvPlan(wide))

    def row(plans: dict[int, ConvPlan]) -> dict[int, float]:
        return {bits: at_eight if bits == 8 else loss(plan) for bits, plan in plans.items()}

    found = {}
    for name in weighted(net.network):
        plans = {b: ConvPlan(wide, 8, ((name, WeightPlan(method, b, per_channel)),)) for b in widths}
        found[f"{name}.weight"] = row(plans)
    for name in activated(net.network):
        found[f"{name}.output"] = row({b: ConvPlan(wide, 8, (), ((name, b),)) for b in widths})
    return found


def choose(network: Network, losses: Losses, limits: Limits, method: str = "lsq") -> Allocation:
    """The widths of least summed loss within the limits.

    Raises:
        ImpossibleBudget: no widths are narrow enough (the smallest FLASH and RAM are named).
        ValueError: the table lacks a tensor, or has one that the network does not (named).
    """
    names = [f"{n}.weight" for n in weighted(network)] + [f"{n}.output" for n in activated(network)]
    if set(names) != set(losses):
        wrong = sorted(set(names) ^ set(losses))
        raise ValueError(f"the table of losses must have one row per tensor; {wrong[0]} is missing or unknown")
    options = [(name, bits) for name in names for bits in sorted(losses[name])]
    narrowest = {name: min(losses[name]) for name in names}
    flash, ram = flash_bytes(network, narrowest, method), ram_bytes(limits.moments, narrowest)
    if limits.flash_bytes < flash or limits.ram_bytes < ram:
        raise ImpossibleBudget(
            f"{limits.flash_bytes} bytes of FLASH and {limits.ram_bytes} of RAM cannot be met: the smallest within "
            f"reach are {flash} of FLASH and {ram} of RAM"
        )
    least = {name: min(losses[name].values()) for name in names}
    cost = np.array([losses[name][bits] - least[name] for name, bits in options])
    one_each = np.array([[name == other for other, _ in options] for name in names], np.float64)
    sizes = weight_bytes(network, {bits for _, bits in options}, method)
    beside = flash_bytes(network, narrowest, method) - sum(sizes[n, b] for n, b in narrowest.items() if (n, b) in sizes)
    rows = [np.array([sizes.get(option, 0) for option in options], np.float64)]
    room = [limits.flash_bytes - beside]
    for moment in limits.moments:
        row = np.zeros(len(options))
        for buffer in moment:
            row += [buffer.bytes(b) if n == f"{buffer.tensor}.output" else 0 for n, b in options]
        rows.append(row)
        room.append(limits.ram_bytes - sum(b.bytes(0) for b in moment if b.tensor == INPUT))
    # Bytes are whole: half of one more admits nothing, and keeps the solver's tolerance away from the limit.
    within = LinearConstraint(np.array(rows), ub=np.array(room) + 0.5)
    solved = milp(
        cost / max(float(cost.max()), 1e-12),
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), within],
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        raise RuntimeError(f"the solver found nothing although the narrowest widths fit: {solved.message}")
    widths = {name: bits for (name, bits), taken in zip(options, solved.x) if taken > 0.5}
    best = {name: losses[name][max(losses[name])] for name in names}
    return Allocation(
        widths,
        method,
        float(sum(losses[name][bits] - best[name] for name, bits in widths.items())),
        flash_bytes(network, widths, method),
        ram_bytes(limits.moments, widths),
    )


def weight_bytes(network: Network, widths: set[int], method: str) -> dict[tuple[str, int], int]:
    """Packed bytes of every weight (``NAME.weight``, bits)."""
    found = {}
    for bits in widths:
        grid = QUANTIZERS[method](torch.eye(2), bits).grid  # type: ignore[call-arg]
        for layer in network.layers:
            if isinstance(layer, Conv | Output):
                k = layer.weights // layer.outputs if isinstance(layer, Conv) else layer.inputs
                # A depthwise matrix is packed on its side.
                turned = isinstance(layer, Conv) and layer.depthwise
                shape = (k, layer.outputs) if turned else (layer.outputs, k)
                found[f"{layer.name}.weight", bits] = packed_bytes(shape, bits, grid)
    return found


def flash_bytes(network: Network, widths: Mapping[str, int], method: str) -> int:
    """Bytes of FLASH, at most."""
    sizes = weight_bytes(network, set(widths.values()), method)
    weights = sum(sizes[f"{name}.weight", widths[f"{name}.weight"]] for name in weighted(network))
    beside = 0 if network.front.kind == "raw" else 8 * network.front.bins + 4
    for layer in network.layers:
        beside += CHANNEL_BYTES * (1 if isinstance(layer, Add | Pool) else layer.outputs)
    return weights + beside


def ram_bytes(moments: Sequence[Sequence[Buffer]], widths: Mapping[str, int]) -> int:
    """Bytes of RAM at the fullest moment."""

    def size(buffer: Buffer) -> int:
        return buffer.bytes(0 if buffer.tensor == INPUT else widths[f"{buffer.tensor}.output"])

    return max(sum(map(size, moment)) for moment in moments)


def streaming_moments(network: Network) -> tuple[tuple[Buffer, ...], ...]:
    """RAM of a stream: everything that is remembered, and what is alive while one frame runs through."""
    sizes, before, kept = shapes(network), INPUT, []
    for layer in network.layers:
        _, frequencies, channels = sizes[before]
        if isinstance(layer, Conv) and layer.kernel[0] > 1:
            kept.append(Buffer(before, (layer.kernel[0] - 1) * frequencies * channels, _fixed_bits(network, before)))
        elif isinstance(layer, Pool) and layer.frames > 1:
            # Sums over the frequencies.
            extra = (frequencies - 1).bit_length() + _fixed_bits(network, before)
            kept.append(Buffer(before, (layer.frames - 1) * channels, extra))
        before = layer.name
    per_frame = {name: frequencies * channels for name, (_, frequencies, channels) in sizes.items()}
    return tuple((*kept, *alive) for alive in _alive(network, per_frame))


def whole_moments(network: Network, samples: int = 16000) -> tuple[tuple[Buffer, ...], ...]:
    """RAM of a clip that is computed operation by operation for its last logits: what is alive at each."""
    totals, first = looked_at(network, network.front.frames(samples))
    values = {
        name: (totals[name] - first[name]) * frequencies * channels
        for name, (_, frequencies, channels) in shapes(network).items()
    }
    return tuple(map(tuple, _alive(network, values)))


def _alive(network: Network, values: Mapping[str, int]) -> list[list[Buffer]]:
    """At each operation its output and all that it or a later one reads; logits are not counted."""
    names = [INPUT, *(layer.name for layer in network.layers)]
    last_read = {name: i + 1 for i, name in enumerate(names)}
    for i, layer in enumerate(network.layers):
        if isinstance(layer, Add):
            last_read[layer.source] = max(last_read[layer.source], i + 1)
    return [
        [
            Buffer(name, values[name], _fixed_bits(network, name))
            for name in names[: at + 1]
            if (name == names[at] or last_read[name] >= at) and name != names[-1]
        ]
        for at in range(1, len(names))
    ]


def _fixed_bits(network: Network, tensor: str) -> int:
    if tensor != INPUT:
        return 0
    return 16 if network.front.kind == "raw" else 8
