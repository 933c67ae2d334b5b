"""A convolutional network that learns its own widths in stage 1, and ends in a plan of whole ones.

    model = LearnedConvNet(net, "width", Budget(weight_kb=30, activation_kb=20))
    model.calibrate(x); train(model, ...)      its penalty pulls at the widths
    fixed = model.freeze()                     a QuantizedConvNet in stage 1, whose forward is equal

``width`` learns steps and ranges (quantizers/width.py), ``diffq`` the amount of noise (quantizers/diffq.py). What sizes
cost is said by a ``Budget``, as in the first of these papers, or a ``Pressure``, as in the second; both serve either.
A kB is 1000 bytes; sizes are those of the numbers alone: every weight once, and every value of activations that a
second of a stream makes. A budget is approached by a penalty, not met to the byte: ``widths`` tells what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from kwsbench.models.convolutional import ConvNet
from kwsbench.models.layers import Network
from kwsbench.quantizers.activation import ActivationQuantizer
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.convolutional import ConvPlan, QuantizedConvNet, activated, elements, signs, weighted
from kwsbench.quantizers.diffq import DiffqActivation, DiffqWeight
from kwsbench.quantizers.weight import WeightQuantizer
from kwsbench.quantizers.width import TrainedWidthActivation, TrainedWidthWeight

BITS_PER_KB = 8000.0
LEARNERS: dict[str, tuple[type, type]] = {
    "width": (TrainedWidthWeight, TrainedWidthActivation),
    "diffq": (DiffqWeight, DiffqActivation),
}
FROZEN_METHOD = "lsq"


class CollapsedWidth(ValueError):
    """Tensors that have come down to one code, which carries zero bits; the message names them."""


@dataclass(frozen=True)
class Budget:
    """Penalty ``force relu(kB / limit - 1)^2`` for weights, and for activations; no limit, no penalty.

    The paper's ``l relu(kB - limit)^2`` with ``l = force / limit^2``, so that one force suits networks of all sizes.
    """

    weight_kb: float | None
    activation_kb: float | None = None
    force: float = 10.0

    def __post_init__(self) -> None:
        for name, kb in (("weight_kb", self.weight_kb), ("activation_kb", self.activation_kb)):
            if kb is not None and not kb > 0:
                raise ValueError(f"{name} must be positive, got {kb!r}")

    def penalty(self, weight_kb: torch.Tensor, activation_kb: torch.Tensor) -> torch.Tensor:
        """A scalar."""
        pairs = (weight_kb, self.weight_kb), (activation_kb, self.activation_kb)
        terms = [torch.relu(kb / limit - 1) ** 2 for kb, limit in pairs if limit is not None]
        return self.force * torch.stack(terms).sum() if terms else weight_kb * 0

    def check(self, network: Network) -> None:
        """Raises ValueError where the narrowest widths are too wide for it (what they reach is named)."""
        smallest = smallest_kb(network)
        for name, kb in (("weight", self.weight_kb), ("activation", self.activation_kb)):
            if kb is not None and kb < smallest[name]:
                raise ValueError(
                    f"{kb:g} kB for the {name}s cannot be reached: at the narrowest widths they take "
                    f"{smallest[name]:.3f} kB"
                )


@dataclass(frozen=True)
class Pressure:
    """Penalty ``weight_cost MB`` of weights plus ``activation_cost MB`` of activations: linear, without a target."""

    weight_cost: float
    activation_cost: float = 0.0

    def penalty(self, weight_kb: torch.Tensor, activation_kb: torch.Tensor) -> torch.Tensor:
        """A scalar."""
        return (self.weight_cost * weight_kb + self.activation_cost * activation_kb) / 1000

    def check(self, network: Network) -> None:
        """Any pressure can be borne."""


class LearnedConvNet(QuantizedConvNet):
    """Stage 1 with learned widths. ``plan`` holds the widths to start from."""

    def __init__(self, model: ConvNet, learner: str, sizes: Budget | Pressure, bits: int = 8, rounding: str = "single"):
        """``learner`` of ``LEARNERS``; ``bits``: the first width of all tensors.

        Raises:
            ValueError: an unknown learner, a first width outside 2..8, or a budget below the smallest sizes.
        """
        if learner not in LEARNERS:
            raise ValueError(f"unknown learner {learner!r}; choose one of {sorted(LEARNERS)}")
        sizes.check(model.network)
        self.learner, self.sizes = learner, sizes
        super().__init__(model, ConvPlan(WeightPlan(FROZEN_METHOD, bits), bits, rounding=rounding))

    def make_weight(self, layer: str, weight: torch.Tensor) -> WeightQuantizer:
        return self._seeded(LEARNERS[self.learner][0](weight, self.plan.weights.bits), layer, 0)

    def make_activation(self, layer: str, signed: bool, relu: bool) -> ActivationQuantizer:
        return self._seeded(LEARNERS[self.learner][1](self.plan.activation_bits, signed, relu), layer, 1)

    def _seeded(self, quantizer: Any, layer: str, which: int) -> Any:
        if hasattr(quantizer, "width"):
            quantizer.width.seed = 2 * list(self.before).index(layer) + which
        return quantizer

    def replan(self, plan: ConvPlan) -> None:
        """Raises ValueError: a plan has whole widths, see :meth:`freeze`."""
        raise ValueError("learned widths are frozen first: model.freeze().replan(plan)")

    def anneal(self, step: int, steps: int, every: int = 1) -> None:
        super().anneal(step, steps, every)
        for quantizer in self.activations.values():
            if isinstance(quantizer, DiffqActivation):
                quantizer.anneal(step, steps)

    def penalty(self) -> torch.Tensor:
        """What the sizes cost, a scalar."""
        return self.sizes.penalty(*self.kilobytes())

    def kilobytes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """kB of weights and of activations at this moment, with their gradient: scalars."""
        counts = elements(self.network)
        weights = [counts[f"{name}.weight"] * q.counted_bits() for name, q in self.weights.items()]
        values = [counts[f"{name}.output"] * q.counted_bits() for name, q in self.activations.items()]
        return torch.stack(weights).sum() / BITS_PER_KB, torch.stack(values).sum() / BITS_PER_KB

    @torch.no_grad()
    def soft_widths(self) -> dict[str, float]:
        """:meth:`widths` before they are rounded, for a record over training."""
        return {f"{name}.weight": float(q.soft_bits()) for name, q in self.weights.items()} | {
            f"{name}.output": float(q.soft_bits()) for name, q in self.activations.items()
        }

    @torch.no_grad()
    def collapsed(self, x: torch.Tensor | None = None) -> list[str]:
        """Tensors that have come down to one code: weights, and on clips ``x`` [B, T, bins] outputs as well."""
        found = [f"{name}.weight" for name, q in self.weights.items() if q.collapsed()]
        if x is not None:
            training, taps = self.training, dict[str, torch.Tensor]()
            self.eval().step(x, self.fresh(len(x)), taps)
            self.train(training)
            found += [f"{name}.output" for name in self.activations if bool(taps[name].min() == taps[name].max())]
        return found

    def frozen_plan(self) -> ConvPlan:
        """The widths of this moment as a plan of stage 1."""
        return replace(
            self.plan,
            weight_exceptions=tuple((name, WeightPlan(FROZEN_METHOD, q.bits)) for name, q in self.weights.items()),
            activation_exceptions=tuple((name, q.bits) for name, q in self.activations.items()),
        )

    @torch.no_grad()
    def freeze(self, x: torch.Tensor | None = None) -> QuantizedConvNet:
        """The same model at whole widths, in stage 1: an evaluation before and one after are equal, value by value.

        Steps go on training from there, widths stay. ``x``: clips on which outputs are looked at, too.

        Raises:
            CollapsedWidth: a tensor has come down to one code (all are named).
        """
        lost = self.collapsed(x)
        if lost:
            raise CollapsedWidth(
                f"collapsed to a single code, which is 0 bits: {', '.join(lost)}. Raise the budget, or lower its force"
            )
        fixed = QuantizedConvNet(ConvNet(self.network), self.frozen_plan())
        for name, quantizer in self.weights.items():
            fixed.weights[name] = quantizer.frozen()
        for name, quantizer in self.activations.items():
            fixed.activations[name] = quantizer.frozen()
        fixed.norms.load_state_dict(self.norms.state_dict())
        fixed.bias.copy_(self.bias)
        for buffer in ("mean", "inverse_std", "input_scale"):
            getattr(fixed, buffer).copy_(getattr(self, buffer))
        return fixed.to(self.mean.device).train(self.training)


def smallest_kb(network: Network) -> dict[str, float]:
    """kB of ``weight`` and ``activation`` at the narrowest learned widths: 2 bits, and 1 where nothing is negative."""
    counts, negative = elements(network), signs(network)
    return {
        "weight": sum(counts[f"{name}.weight"] * 2 for name in weighted(network)) / BITS_PER_KB,
        "activation": sum(counts[f"{name}.output"] * (1 + negative[name]) for name in activated(network)) / BITS_PER_KB,
    }


def budget_of_mean_bits(
    network: Network, weights: float | None, activations: float | None = None, force: float = 10.0
) -> Budget:
    """The budget of so many bits per weight and per value of activations."""
    counts: Mapping[str, float] = elements(network)
    total = {suffix: sum(n for name, n in counts.items() if name.endswith(suffix)) for suffix in (".weight", ".output")}
    return Budget(
        None if weights is None else weights * total[".weight"] / BITS_PER_KB,
        None if activations is None else activations * total[".output"] / BITS_PER_KB,
        force,
    )
