"""Quantize a convolutional network by a plan: weights and activations at their widths, first in float, then exactly.

    model = QuantizedConvNet(net, ConvPlan(WeightPlan("linear", 4), activation_bits=4))
    model.calibrate(x)                         ranges of activations, batchnorm statistics
    model.replan(model.plan.exact())           stage 2

Stage 1 (``arithmetic`` "float"): weights through a method of ``QUANTIZERS`` on their matrices ``[N, K]`` (K: time,
frequency, channel), activations fake-quantized with trained steps, batchnorm by the batch's statistics. Stage 2
("integer"): the forward *is* the integer program of docs/arithmetic.md, sections 11 to 14, value by value, with
straight-through gradients of the float expression; batchnorm by running statistics, which move while ``observing``.
Tensors then carry integer codes as float32. Convolutions of int8 codes are exact in float32, being proven below 2^24;
those of 16-bit samples, and all that do not run on a CPU (whose libraries may transform and round), take float64.

Nothing stays in float in stage 2. Band-pass filters of two frequencies ("sinc") are quantized as the weights that they
make, and from then on trained as free ones.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kwsbench.arithmetic import fixedpoint, folding, residual
from kwsbench.models.convolutional import (
    SAMPLE_RATE,
    BatchNorm,
    ConvNet,
    Operations,
    State,
    convolve,
    fresh_state,
    last_frame,
    walk,
    window_sums,
)
from kwsbench.models.feedforward import EPSILON, MOMENTUM
from kwsbench.models.layers import Add, Conv, Network, Output, Pool, shapes
from kwsbench.quantizers import HARD_SHARE, QUANTIZERS, WeightQuantizer, fused
from kwsbench.quantizers.activation import ActivationQuantizer, LinearActivation
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.gradients import straight_through
from kwsbench.quantizers.model import QuantizedModel

ARITHMETICS = ("float", "integer")
EXACT_IN_FLOAT32 = 2**24
SAMPLE_UNIT = 2.0**-15
SAMPLE_LIMIT = 2**15
INPUT_PERCENTILE = 99.9
CALIBRATION = 2  # part of the identity of what is calibrated: raise it when the same clips would give other ranges


@dataclass(frozen=True)
class ConvPlan:
    """Widths of every layer. Exceptions are (glob on layer names, plan or bits) pairs; the first that matches decides.

    ``activation_bits`` are those of the outputs of convolutions, additions and means. ``arithmetic``: "float" is
    stage 1, "integer" stage 2.
    """

    weights: WeightPlan
    activation_bits: int = 8
    weight_exceptions: tuple[tuple[str, WeightPlan], ...] = ()
    activation_exceptions: tuple[tuple[str, int], ...] = ()
    rounding: str = "single"
    arithmetic: str = "float"

    def __post_init__(self) -> None:
        for bits in (self.activation_bits, *(b for _, b in self.activation_exceptions)):
            residual.activation_range(bits, True)
        if self.rounding not in fixedpoint.REQUANTIZE:
            raise ValueError(f"rounding must be one of {sorted(fixedpoint.REQUANTIZE)}, got {self.rounding!r}")
        if self.arithmetic not in ARITHMETICS:
            raise ValueError(f"arithmetic must be one of {ARITHMETICS}, got {self.arithmetic!r}")

    def weights_of(self, layer: str) -> WeightPlan:
        """How the weights of a layer are quantized."""
        return next((p for glob, p in self.weight_exceptions if fnmatch.fnmatchcase(layer, glob)), self.weights)

    def activation_bits_of(self, layer: str) -> int:
        """Width of a layer's output."""
        found = (bits for glob, bits in self.activation_exceptions if fnmatch.fnmatchcase(layer, glob))
        return next(found, self.activation_bits)

    def check(self, network: Network) -> None:
        """Raises ValueError for an exception that matches nothing: a misspelt plan would quantize nothing."""
        for what, exceptions, names in (
            ("weights", self.weight_exceptions, weighted(network)),
            ("output", self.activation_exceptions, activated(network)),
        ):
            for glob, _ in exceptions:
                if not any(fnmatch.fnmatchcase(name, glob) for name in names):
                    raise ValueError(f"no layer with {what} matches {glob!r}; there are {', '.join(names)}")

    def exact(self) -> ConvPlan:
        """The same widths in stage 2."""
        return replace(self, arithmetic="integer")

    def to_json(self) -> dict[str, Any]:
        return {
            "weights": vars(self.weights),
            "activation_bits": self.activation_bits,
            "weight_exceptions": [[glob, vars(p)] for glob, p in self.weight_exceptions],
            "activation_exceptions": [[glob, bits] for glob, bits in self.activation_exceptions],
            "rounding": self.rounding,
            "arithmetic": self.arithmetic,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> ConvPlan:
        return ConvPlan(
            WeightPlan(**values["weights"]),
            values["activation_bits"],
            tuple((glob, WeightPlan(**p)) for glob, p in values["weight_exceptions"]),
            tuple((glob, bits) for glob, bits in values["activation_exceptions"]),
            values["rounding"],
            values["arithmetic"],
        )


def weighted(network: Network) -> list[str]:
    """Names of the layers that have weights."""
    return [layer.name for layer in network.layers if isinstance(layer, Conv | Output)]


def activated(network: Network) -> list[str]:
    """Names of the layers whose output is quantized: all but the last."""
    return [layer.name for layer in network.layers[:-1]]


def signs(network: Network) -> dict[str, bool]:
    """Whether values can be negative: of ``input`` and of every layer's output but the last."""
    found, before = {"input": True}, "input"
    for layer in network.layers[:-1]:
        if isinstance(layer, Conv):
            found[layer.name] = not layer.relu
        else:
            found[layer.name] = found[before] or (isinstance(layer, Add) and found[layer.source])
        before = layer.name
    return found


def coverage(network: Network, plan: ConvPlan) -> list[dict[str, Any]]:
    """One row per component: name, shape, treatment, bits (32 for what stage 1 leaves in float).

    Raises:
        ValueError: an exception of the plan matches nothing.
    """
    plan.check(network)
    exact, sizes = plan.arithmetic == "integer", shapes(network)
    samples = network.front.kind == "raw"
    rows: list[dict[str, Any]] = []

    def row(component: str, shape: tuple[int, ...], treatment: str, bits: int) -> None:
        rows.append({"component": component, "shape": shape, "treatment": treatment, "bits": bits})

    row("input", sizes["input"][1:], "samples" if samples else "linear", 16 if samples else 8)
    for layer in network.layers:
        if isinstance(layer, Conv | Output):
            w = plan.weights_of(layer.name)
            shape = (layer.outputs, layer.weights // layer.outputs if isinstance(layer, Conv) else layer.inputs)
            row(f"{layer.name}.weight", shape, f"{w.method}, per {'row' if w.per_channel else 'tensor'}", w.bits)
        if isinstance(layer, Conv):
            folded = "folded: multiplier, shift, int32 bias" if exact else "float"
            row(f"{layer.name}.batchnorm", (layer.outputs, 4), folded, 32)
        if isinstance(layer, Output):
            row(f"{layer.name}.bias", (layer.outputs,), "int32 bias" if exact else "float", 32)
        else:
            row(f"{layer.name}.output", sizes[layer.name][1:], "linear", plan.activation_bits_of(layer.name))
    return rows


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """Weights ``[N, C, time, frequency]`` as ``[N, K]``, K in the order time, frequency, channel."""
    return weight.permute(0, 2, 3, 1).flatten(1)


class QuantizedConvNet(QuantizedModel):
    """A convolutional network under a plan. ``forward`` scores whole clips, ``step`` streams, as :class:`ConvNet` does;
    in stage 2 the state holds integer codes.

    Attributes:
        resting: while True, a training forward of stage 1 has float weights (:meth:`anneal`).
        weights, activations, norms: by layer name; bias: that of the output.
        input_scale: float32 ``[1]``, real value of one unit of the quantized input before normalisation's own scale.
    """

    mean: torch.Tensor
    inverse_std: torch.Tensor
    input_scale: torch.Tensor

    def __init__(self, model: ConvNet, plan: ConvPlan):
        """Raises ValueError for a plan that names layers which do not exist."""
        super().__init__()
        coverage(model.network, plan)
        self.network, self.plan = model.network, plan
        self.observing = self.resting = False
        names = ["input", *(layer.name for layer in model.network.layers)]
        self.before = dict(zip(names[1:], names))  # the layer whose output each reads
        signed = signs(self.network)
        self.weights: Any = nn.ModuleDict()
        self.activations: Any = nn.ModuleDict()
        self.norms: Any = nn.ModuleDict()
        for layer in self.network.layers:
            if isinstance(layer, Conv):
                conv = model.convs[layer.name]
                self.weights[layer.name] = self.make_weight(layer.name, as_matrix(conv.weight.detach()))
                self.norms[layer.name] = BatchNorm(layer.outputs)
                self.norms[layer.name].load_state_dict(conv.norm.state_dict())
            elif isinstance(layer, Output):
                self.weights[layer.name] = self.make_weight(layer.name, model.output.weight.detach())
            if not isinstance(layer, Output):
                relu = isinstance(layer, Conv) and layer.relu
                self.activations[layer.name] = self.make_activation(layer.name, signed[layer.name], relu)
        self.bias = nn.Parameter(model.output.bias.detach().clone())
        self.register_buffer("mean", model.mean.clone())
        self.register_buffer("inverse_std", model.inverse_std.clone())
        if self.hears_samples and bool(self.mean.any()):
            raise ValueError(f"raw audio is quantized as it is: its mean must be 0, got {float(self.mean)}")
        self.register_buffer("input_scale", torch.tensor([SAMPLE_UNIT if self.hears_samples else 4 / 127]))
        self.to(self.mean.device)

    def make_weight(self, layer: str, weight: torch.Tensor) -> WeightQuantizer:
        """The quantizer of a layer's matrix ``[N, K]``."""
        w = self.plan.weights_of(layer)
        return QUANTIZERS[w.method](weight, w.bits, w.per_channel)  # type: ignore[call-arg]

    def make_activation(self, layer: str, signed: bool, relu: bool) -> ActivationQuantizer:
        """The quantizer of a layer's output."""
        return LinearActivation(self.plan.activation_bits_of(layer), signed, relu)

    @property
    def integer(self) -> bool:
        """Whether the forward is the integer arithmetic (stage 2)."""
        return self.plan.arithmetic == "integer"

    @property
    def hears_samples(self) -> bool:
        """Whether the input is raw audio, of 16 bits."""
        return self.network.front.kind == "raw"

    def replan(self, plan: ConvPlan) -> None:
        """Keep widths and weights, change the arithmetic or the rounding (stage 1 -> stage 2).

        Raises:
            ValueError: the new plan has other widths (the first layer that differs is named).
        """
        coverage(self.network, plan)
        for name in weighted(self.network):
            if plan.weights_of(name) != self.plan.weights_of(name):
                raise ValueError(f"the new plan changes the weights of {name}: make a new model instead")
        for name in activated(self.network):
            if plan.activation_bits_of(name) != self.plan.activation_bits_of(name):
                raise ValueError(f"the new plan changes the output of {name}: make a new model instead")
        self.plan = plan

    @torch.no_grad()
    def calibrate(self, x: torch.Tensor, input_percentile: float = INPUT_PERCENTILE) -> None:
        """Set the scales of input and activations, and batchnorm's running statistics, from clips ``[B, T, bins]``:
        layer by layer, each on what the quantized layers before it give.

        Raises:
            ValueError: in stage 2, whose ranges come from stage 1.
        """
        if self.integer:
            raise ValueError("calibrate in stage 1: stage 2 goes on from its ranges")
        if not self.hears_samples:
            magnitude = ((x - self.mean) * self.inverse_std).abs().flatten()
            rank = max(1, int(input_percentile / 100 * magnitude.numel()))
            self.input_scale.fill_(float(magnitude.kthvalue(rank).values.clamp_min(1e-3)) / 127)
        training = self.training
        last_frame(self.network, _Calibrating(self.eval()), self.normalise(x))
        self.train(training)

    def anneal(self, step: int, steps: int, every: int = 1) -> None:
        """Told before each training step of ``steps``; ``every`` = T: the weights of stage 1 are quantized at each T-th
        step and float in between, until ``HARD_SHARE`` of the steps. At ``step == steps`` everything is hard."""
        self.resting = not self.integer and step < HARD_SHARE * steps and step % every != 0
        for quantizer in self.weights.values():
            quantizer.anneal(steps if self.integer else step, steps)

    def penalty(self) -> torch.Tensor | None:
        """Mean of what regularizing quantizers add to the loss; None without any, and in stage 2."""
        terms = [t for q in self.weights.values() if (t := q.penalty()) is not None]
        return torch.stack(terms).mean() if terms and not self.integer else None

    def widths(self) -> dict[str, int]:
        """Bits of every weight (``NAME.weight``) and every output (``NAME.output``) at this moment."""
        return {f"{name}.weight": q.bits for name, q in self.weights.items()} | {
            f"{name}.output": q.bits for name, q in self.activations.items()
        }

    def quantizer(self, layer: str) -> WeightQuantizer:
        """The weight quantizer of a layer."""
        return self.weights[layer]  # type: ignore[no-any-return]

    def weight(self, layer: str) -> torch.Tensor:
        """Quantized weights as the next forward of stage 1 has them, float32 ``[N, K]``."""
        quantizer = self.quantizer(layer)
        return quantizer.latent() if self.resting and self.training else quantizer.quantized()

    def activation(self, layer: str) -> ActivationQuantizer:
        """The quantizer of a layer's output."""
        return self.activations[layer]  # type: ignore[no-any-return]

    def input_unit(self) -> torch.Tensor:
        """Real (normalised) value of one unit of the input, a scalar."""
        return (self.input_scale * self.inverse_std).squeeze() if self.hears_samples else self.input_scale.squeeze()

    def scale(self, layer: str) -> torch.Tensor:
        """Real value of one unit of a layer's output or of ``input``, a scalar."""
        return self.input_unit() if layer == "input" else self.activation(layer).step()

    def unit(self, layer: str) -> float:
        """:meth:`scale` as a plain number."""
        return float(self.scale(layer).detach())

    def largest_input(self, layer: str) -> int:
        """``max |x|`` over the codes that a layer reads."""
        before = self.before[layer]
        if before == "input":
            return SAMPLE_LIMIT if self.hears_samples else 128
        low, high = self.activation(before).limits()
        return max(-low, high)

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """Frames ``[B, T, bins]`` -> ``[B, 1, T, bins]``: codes as floats, in stage 1 their real values."""
        if not self.hears_samples:
            x = (x - self.mean) * self.inverse_std
        limit = SAMPLE_LIMIT if self.hears_samples else 128
        codes = fixedpoint.saturate(fixedpoint.round_half_up(x / self.input_scale), -limit, limit - 1)
        return (codes if self.integer else codes * self.input_unit())[:, None]

    def fresh(self, batch: int = 1) -> State:
        """State before the first frame."""
        return fresh_state(self.network, batch, self.mean)

    def operations(self, taps: dict[str, torch.Tensor] | None = None) -> Operations:
        """What the layers compute at this stage; ``taps`` collects their outputs."""
        return _Exact(self, taps) if self.integer else _Fake(self, taps)

    def step(
        self, x: torch.Tensor, state: State, taps: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, State]:
        """New frames ``[B, T, bins]`` -> logits ``[B, T', labels]`` and the next state.

        ``taps`` collects each layer's output ``[B, T, F, C]`` by its name; in stage 2 as the program has it, codes, and
        the int32 accumulators of the last layer ``[B, T, labels]``.
        """
        return walk(self.network, self.operations(taps), self.normalise(x), state)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole clips ``[B, T, bins]`` -> logits ``[B, labels]`` of the last frame."""
        return last_frame(self.network, self.operations(), self.normalise(x))

    def gain_and_offset(self, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """``g`` and the offset ``o`` of a convolution, float32 ``[N]``, from the running statistics."""
        norm = self.norms[layer]
        g = norm.gamma / torch.sqrt(norm.var + EPSILON)
        return g, norm.beta - g * norm.mean

    def constants(self, layer: str) -> folding.Folded:
        """Integer constants of a convolution from the current parameters.

        Raises:
            ValueError: a channel that its grid cannot express, or parameters that are not finite (layer named).
        """
        quantizer = self.quantizer(layer)
        g, offset, step = (_double(t) for t in (*self.gain_and_offset(layer), quantizer.step()))
        codes = np.abs(quantizer.codebook.levels / quantizer.codebook.step).max()
        inputs = _shape(self.network, layer)[1]
        s_x, s_y = self.unit(self.before[layer]), self.unit(layer)
        bound = int(codes) * self.largest_input(layer) * inputs
        try:
            return folding.fold(g, offset, step, s_x, s_y, quantizer.grid, bound)
        except ValueError as error:
            raise ValueError(f"{layer}: {error}") from error

    def pool_constants(self, layer: Pool) -> tuple[int, int]:
        """Multiplier and shift of a mean."""
        before = self.before[layer.name]
        frequencies = shapes(self.network)[before][1]
        return residual.pool_constants(self.unit(before), self.unit(layer.name), layer.frames, frequencies)

    def add_constants(self, layer: Add) -> residual.AddConstants:
        """Multipliers and shift of an addition."""
        units = self.unit(self.before[layer.name]), self.unit(layer.source), self.unit(layer.name)
        return residual.add_constants(*units)

    def output_constants(self) -> tuple[torch.Tensor, np.ndarray]:
        """Real value of a unit of each logit's accumulator, float32 ``[1]`` or ``[N]``, and the int64 bias."""
        name = self.network.layers[-1].name
        unit = self.scale(self.before[name]) * self.quantizer(name).step()
        bias = folding.output_bias(_double(self.bias), _double(unit), False)
        return unit, bias


class _Fake:
    """Stage 1: real values."""

    def __init__(self, model: QuantizedConvNet, taps: dict[str, torch.Tensor] | None = None):
        self.model, self.taps = model, taps

    def conv(self, layer: Conv, x: torch.Tensor) -> torch.Tensor:
        norm = self.model.norms[layer.name]
        a = convolve(layer, x, _kernel(layer, self.model.weight(layer.name)))
        training = self.model.training
        z = F.batch_norm(a, norm.mean, norm.var, norm.gamma, norm.beta, training, MOMENTUM, EPSILON)
        return self.quantized(layer.name, z)

    def add(self, layer: Add, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return self.quantized(layer.name, x + source)

    def pool(self, layer: Pool, x: torch.Tensor) -> torch.Tensor:
        return self.quantized(layer.name, window_sums(x, layer.frames) / (layer.frames * x.shape[3]))

    def output(self, layer: Output, x: torch.Tensor) -> torch.Tensor:
        logits = F.linear(x, self.model.weight(layer.name), self.model.bias)
        return _tapped(self.taps, layer.name, logits, logits)

    def quantized(self, name: str, z: torch.Tensor) -> torch.Tensor:
        y = self.model.activation(name)(z)
        return _tapped(self.taps, name, y, y.permute(0, 2, 3, 1))


class _Calibrating(_Fake):
    """Stage 1 that sets ranges and statistics before it uses them."""

    def conv(self, layer: Conv, x: torch.Tensor) -> torch.Tensor:
        norm = self.model.norms[layer.name]
        a = convolve(layer, x, _kernel(layer, self.model.weight(layer.name)))
        z = F.batch_norm(a, norm.mean, norm.var, norm.gamma, norm.beta, True, 1.0, EPSILON)
        return self.quantized(layer.name, z)

    def quantized(self, name: str, z: torch.Tensor) -> torch.Tensor:
        self.model.activation(name).calibrate(z)
        return super().quantized(name, z)


class _Exact:
    """Stage 2: codes as floats."""

    def __init__(self, model: QuantizedConvNet, taps: dict[str, torch.Tensor] | None = None):
        self.model, self.taps = model, taps

    def conv(self, layer: Conv, x: torch.Tensor) -> torch.Tensor:
        model, name = self.model, layer.name
        quantizer = model.quantizer(name)
        codes = quantizer.turned(torch.where(model.norms[name].gamma.detach() < 0, -1.0, 1.0))
        bound = codes.detach().abs().sum(1).max() * model.largest_input(name)
        if x.device.type != "cpu" or bound >= EXACT_IN_FLOAT32:
            x, codes = x.double(), codes.double()
        acc = convolve(layer, x, _kernel(layer, codes))
        s_x, s_y = model.scale(model.before[name]), model.scale(name)
        if model.observing:
            self._observe(layer, acc.detach(), s_x.detach())
        constants = model.constants(name)
        if not constants.row_factor.all():
            # Channels that count as constant have no weights, whatever their sign.
            acc = acc * torch.as_tensor(constants.row_factor != 0, device=acc.device)[:, None, None]
        g, offset = model.gain_and_offset(name)
        unit = quantizer.step() * s_x * g.abs() / s_y
        low, high = model.activation(name).limits()
        highest = model.activation(name).highest_code()
        y = fused.requantized(acc, unit, offset / s_y, constants, low, high, model.plan.rounding, highest)
        return self._out(name, y)

    def add(self, layer: Add, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        model, name = self.model, layer.name
        low, high = model.activation(name).limits()
        exact = residual.add(
            x.detach().to(torch.int32), source.detach().to(torch.int32), model.add_constants(layer), low, high
        )
        s_y = model.scale(name)
        z = x * (model.scale(model.before[name]) / s_y) + source * (model.scale(layer.source) / s_y)
        return self._out(name, straight_through(z.clamp(low, high), exact))

    def pool(self, layer: Pool, x: torch.Tensor) -> torch.Tensor:
        model, name = self.model, layer.name
        # Exact: integers far below 2^24 in all but absurdly long means, which lowering refuses.
        sums = window_sums(x, layer.frames)
        multiplier, shift = model.pool_constants(layer)
        low, high = model.activation(name).limits()
        whole = sums.detach().to(torch.int64)
        exact = fixedpoint.requantize(whole, multiplier, shift, low, high, model.plan.rounding)
        z = sums * (model.scale(model.before[name]) / (layer.frames * x.shape[3] * model.scale(name)))
        return self._out(name, straight_through(z.clamp(low, high), exact))

    def output(self, layer: Output, x: torch.Tensor) -> torch.Tensor:
        model = self.model
        unit, bias = model.output_constants()
        acc = F.linear(x, model.quantizer(layer.name).codes())
        exact = acc.detach().to(torch.int64) + torch.as_tensor(bias, device=x.device)
        logits = straight_through(acc * unit + model.bias, exact.double() * unit.detach().double())
        return _tapped(self.taps, layer.name, logits, exact)

    def _out(self, name: str, y: torch.Tensor) -> torch.Tensor:
        return _tapped(self.taps, name, y, y.permute(0, 2, 3, 1))

    def _observe(self, layer: Conv, acc: torch.Tensor, s_x: torch.Tensor) -> None:
        """Batchnorm's running statistics follow the batch, as in float training."""
        norm = self.model.norms[layer.name]
        unit = self.model.quantizer(layer.name).step().detach() * s_x * torch.where(norm.gamma.detach() < 0, -1.0, 1.0)
        mean, var = fused.moments(acc)
        norm.mean.lerp_(mean * unit, MOMENTUM)
        norm.var.lerp_(var * unit**2, MOMENTUM)


def elements(network: Network) -> dict[str, float]:
    """How many numbers each quantized tensor has: weights (``NAME.weight``), values per second of a stream
    (``NAME.output``); keys and order as :meth:`QuantizedConvNet.widths` has them."""
    sizes, rate = shapes(network), SAMPLE_RATE / network.front.hop_samples
    found: dict[str, float] = {f"{name}.weight": float(np.prod(_shape(network, name))) for name in weighted(network)}
    for layer in network.layers[:-1]:
        rate /= layer.stride[0] if isinstance(layer, Conv) else 1
        found[f"{layer.name}.output"] = rate * float(np.prod(sizes[layer.name][1:]))
    return found


def mean_bits(network: Network, widths: Mapping[str, float]) -> dict[str, float]:
    """Mean width per weight and per value of activations: ``weights``, ``activations``.

    ``widths`` as :meth:`QuantizedConvNet.widths` has them.
    """
    counts = elements(network)
    found = {}
    for what, suffix in (("weights", ".weight"), ("activations", ".output")):
        mine = {name: count for name, count in counts.items() if name.endswith(suffix)}
        found[what] = sum(count * widths[name] for name, count in mine.items()) / sum(mine.values())
    return found


def _shape(network: Network, name: str) -> tuple[int, int]:
    """``(N, K)`` of a layer's weights."""
    (layer,) = (x for x in network.layers if x.name == name)
    assert isinstance(layer, Conv | Output)
    return layer.outputs, layer.weights // layer.outputs if isinstance(layer, Conv) else layer.inputs


def _kernel(layer: Conv, matrix: torch.Tensor) -> torch.Tensor:
    """The matrix as convolutions take it, ``[N, C, time, frequency]``, channels last in memory."""
    return matrix.unflatten(1, (*layer.kernel, -1)).permute(0, 3, 1, 2)


def _tapped(taps: dict[str, torch.Tensor] | None, name: str, y: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    if taps is not None:
        taps[name] = shown.detach()
    return y


def _double(t: torch.Tensor) -> np.ndarray:
    return t.detach().cpu().double().numpy()
