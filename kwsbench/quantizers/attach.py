"""Attach quantizers to a float spotter by a plan; the quantized model's forward *is* the integer arithmetic.

Stage 1 quantizes the dense weights and leaves the rest in float. Stage 2 quantizes everything: inputs,
activations, bias, gain and batchnorm. Its forward carries integer-valued float32 tensors: a float32 GEMM of
integer values (exact, proven at lowering), the bias and the requantization in int64 by
``arithmetic.fixedpoint``, and straight-through gradients of the float expression. Nothing is rounded here that the
integer program does not round, and the other way round; tests compare them value by value.

A plan names the treatment of every component. ``coverage`` lists them; a component left in float is an error
unless the plan says so.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kwsbench.arithmetic import fixedpoint, folding
from kwsbench.arithmetic.codebook import check_bits
from kwsbench.export.pack import code_range
from kwsbench.models.feedforward import EPSILON, ChannelNorm, Spotter, SpotterConfig
from kwsbench.models.streaming import fresh_ring, stack_frames
from kwsbench.quantizers import HARD_SHARE, QUANTIZERS, WeightQuantizer
from kwsbench.quantizers.gradients import straight_through
from kwsbench.quantizers.model import QuantizedModel

RANGE_MOMENTUM = 0.01  # an EMA of 0.99 of the largest activation
BATCHNORM_FORMS = ("float", "folded", "unfolded")


@dataclass(frozen=True)
class WeightPlan:
    """How dense weights are quantized: a method of ``QUANTIZERS``, bits, one scale or one per row."""

    method: str
    bits: int
    per_channel: bool = False

    def __post_init__(self) -> None:
        if self.method not in QUANTIZERS:
            raise ValueError(
                f"unknown quantizer {self.method!r}; choose one of {sorted(QUANTIZERS)}, or import the file that "
                "registers it"
            )
        check_bits(self.bits)


@dataclass(frozen=True)
class Plan:
    """Treatment of every component of the spotter.

    ``weights`` holds for all dense layers, ``layer_weights`` {layer index: WeightPlan} for exceptions. ``batchnorm``
    covers bias, gain and batchnorm together: "folded" (int32 bias, multiplier and shift), "unfolded" (8-bit codes) or
    "float". Inputs and activations are int8 or float, with the batchnorm. ``may_stay_float`` are the component
    names (globs) that are allowed to.
    """

    weights: WeightPlan | None
    layer_weights: Mapping[int, WeightPlan] = field(default_factory=dict)
    batchnorm: str = "unfolded"
    rounding: str = "single"
    may_stay_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batchnorm not in BATCHNORM_FORMS:
            raise ValueError(f"batchnorm must be one of {BATCHNORM_FORMS}, got {self.batchnorm!r}")
        if self.rounding not in fixedpoint.REQUANTIZE:
            raise ValueError(f"rounding must be one of {sorted(fixedpoint.REQUANTIZE)}, got {self.rounding!r}")

    def weights_of(self, layer: int) -> WeightPlan | None:
        return self.layer_weights.get(layer, self.weights)

    def to_json(self) -> dict[str, Any]:
        return {
            "weights": None if self.weights is None else vars(self.weights),
            "layer_weights": {str(k): vars(v) for k, v in self.layer_weights.items()},
            "batchnorm": self.batchnorm,
            "rounding": self.rounding,
            "may_stay_float": list(self.may_stay_float),
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> Plan:
        return Plan(
            None if values["weights"] is None else WeightPlan(**values["weights"]),
            {int(k): WeightPlan(**v) for k, v in values["layer_weights"].items()},
            values["batchnorm"],
            values["rounding"],
            tuple(values["may_stay_float"]),
        )


def stage_one_plan(weights: WeightPlan, layer_weights: Mapping[int, WeightPlan] | None = None) -> Plan:
    """Dense weights quantized; everything else may stay in float."""
    rest = ("*.bias", "*.gain", "*.batchnorm", "input", "*.output")
    return Plan(weights, dict(layer_weights or {}), batchnorm="float", may_stay_float=rest)


def stage_two_plan(
    weights: WeightPlan,
    batchnorm: str = "unfolded",
    rounding: str = "single",
    layer_weights: Mapping[int, WeightPlan] | None = None,
) -> Plan:
    """Everything quantized; nothing may stay in float."""
    return Plan(weights, dict(layer_weights or {}), batchnorm, rounding)


def coverage(config: SpotterConfig, plan: Plan) -> list[dict[str, Any]]:
    """One row per component: name, shape, treatment, bits, grid.

    Raises:
        ValueError: components would stay in float without the plan saying so (all are named), or the plan
            names a layer that does not exist.
    """
    layers = len(config.sizes) - 1
    unknown = [i for i in plan.layer_weights if not 0 <= i < layers]
    if unknown:
        raise ValueError(f"the plan names layer {unknown[0]}; this model has layers 0..{layers - 1}")
    rest = plan.batchnorm != "float"
    codes_or_int32 = {"unfolded": 8, "folded": 32, "float": 32}[plan.batchnorm]
    rows: list[dict[str, Any]] = [
        _row(
            "input",
            (config.stacked_frames, config.n_mels),
            "linear int8" if rest else "float",
            8 if rest else 32,
        )
    ]
    for i, (k, n) in enumerate(zip(config.sizes[:-1], config.sizes[1:])):
        w = plan.weights_of(i)
        rows.append(
            _row(f"layer{i}.weight", (n, k), "float", 32)
            if w is None
            else _row(f"layer{i}.weight", (n, k), f"{w.method}, per {'row' if w.per_channel else 'tensor'}", w.bits)
        )
        last = i == layers - 1
        how = {
            "float": "float",
            "folded": "int32 bias" if last else "folded: multiplier, shift, int32 bias",
            "unfolded": "linear int8 code B",
        }[plan.batchnorm]
        rows.append(_row(f"layer{i}.bias", (n,), how, codes_or_int32))
        if not last:
            gain = {"float": "float", "folded": how, "unfolded": "linear int8 code A"}[plan.batchnorm]
            both = {"float": "float", "folded": how, "unfolded": "linear int8 codes A and B"}[plan.batchnorm]
            rows.append(_row(f"layer{i}.gain", (n,), gain, codes_or_int32))
            rows.append(_row(f"layer{i}.batchnorm", (n, 4), both, codes_or_int32))
            rows.append(_row(f"layer{i}.output", (n,), "linear int8" if rest else "float", 8 if rest else 32))
        else:
            rows.append(_row(f"layer{i}.output", (n,), "raw int32" if rest else "float", 32))
    left = [
        r["component"]
        for r in rows
        if r["treatment"] == "float" and not any(fnmatch.fnmatch(r["component"], p) for p in plan.may_stay_float)
    ]
    if left:
        raise ValueError(f"left in float: {', '.join(left)}. Quantize them in the plan, or list them in may_stay_float")
    return rows


def _row(component: str, shape: tuple[int, ...], treatment: str, bits: int) -> dict[str, Any]:
    return {"component": component, "shape": shape, "treatment": treatment, "bits": bits}


class QuantizedSpotter(QuantizedModel):
    """A spotter under a plan. ``step`` streams as :class:`Spotter` does; in stage 2 the ring holds int8 values.

    Attributes:
        resting: while True, a training forward of stage 1 has float weights (:meth:`anneal`).
        observing: while True, a forward moves batchnorm statistics and activation ranges (stage 2).
        input_scale: float32 ``[1]``; output_ranges: float32 ``[L - 1]``, the real value of code 127.
    """

    mean: torch.Tensor
    inverse_std: torch.Tensor
    input_scale: torch.Tensor
    output_ranges: torch.Tensor

    def __init__(self, model: Spotter, plan: Plan):
        super().__init__()
        coverage(model.config, plan)
        self.config, self.plan = model.config, plan
        self.observing = self.resting = False
        self.weights = nn.ModuleList()
        self.biases = nn.ParameterList()
        for i, dense in enumerate(model.dense):
            assert isinstance(dense, nn.Linear)
            w = plan.weights_of(i)
            if w is None:
                raise ValueError(f"layer {i} has no weight quantizer; a quantized spotter quantizes every layer")
            quantizer = QUANTIZERS[w.method](dense.weight, w.bits, w.per_channel)  # type: ignore[call-arg]
            _check_grid(quantizer)
            self.weights.append(quantizer)
            self.biases.append(nn.Parameter(dense.bias.detach().clone()))
        self.norms = nn.ModuleList(ChannelNorm(n) for n in model.config.hidden)
        self.norms.load_state_dict(model.norms.state_dict())
        self.register_buffer("mean", model.mean.clone())
        self.register_buffer("inverse_std", model.inverse_std.clone())
        self.register_buffer("input_scale", torch.tensor([4 / 127]))
        self.register_buffer("output_ranges", torch.full((len(self.norms),), 4.0))

    @property
    def integer(self) -> bool:
        """Whether the forward is the integer arithmetic (stage 2)."""
        return self.plan.batchnorm != "float"

    def replan(self, plan: Plan) -> None:
        """Keep the weights, change the treatment of the rest (stage 1 -> stage 2)."""
        coverage(self.config, plan)
        for i in range(len(self.weights)):
            w, quantizer = plan.weights_of(i), self.quantizer(i)
            if w is None or (w.method, w.bits, w.per_channel) != (
                quantizer.method,
                quantizer.bits,
                quantizer.per_channel,
            ):
                raise ValueError(f"the new plan changes the weights of layer {i}: start stage 1 again instead")
        self.plan = plan

    @torch.no_grad()
    def calibrate(self, windows: torch.Tensor, input_percentile: float = 99.9) -> None:
        """Set the input scale and activation ranges from raw windows ``[B, stacked_frames, n_mels]``."""
        x = (windows - self.mean) * self.inverse_std
        magnitude = x.abs().flatten()
        rank = max(1, int(input_percentile / 100 * magnitude.numel()))
        self.input_scale.fill_(float(magnitude.kthvalue(rank).values.clamp_min(1e-3)) / 127)
        x = x.flatten(1)
        for i in range(len(self.norms)):
            a = F.linear(x, self.weight(i), self.biases[i])
            x = F.relu(self._affine(self.norm(i), a))
            self.output_ranges[i] = x.max().clamp_min(1e-3)

    def anneal(self, step: int, steps: int, every: int = 1) -> None:
        """Told before each training step of ``steps``; ``every`` = T: the weights of stage 1 are quantized at each T-th
        step and float in between, until ``HARD_SHARE`` of the steps. At ``step == steps`` everything is hard."""
        self.resting = not self.integer and step < HARD_SHARE * steps and step % every != 0
        for quantizer in self.weights:
            assert isinstance(quantizer, WeightQuantizer)
            quantizer.anneal(steps if self.integer else step, steps)

    def penalty(self) -> torch.Tensor | None:
        """Mean of what regularizing quantizers add to the loss; None without any, and in stage 2."""
        terms = [t for q in self.weights if isinstance(q, WeightQuantizer) and (t := q.penalty()) is not None]
        return torch.stack(terms).mean() if terms and not self.integer else None

    def weight(self, layer: int) -> torch.Tensor:
        """Quantized weights of a layer, ``step * codes`` (soft while they anneal), float32 ``[N, K]``."""
        quantizer = self.quantizer(layer)
        return quantizer.latent() if self.resting and self.training else quantizer.quantized()

    def quantizer(self, layer: int) -> WeightQuantizer:
        """The weight quantizer of a layer."""
        quantizer = self.weights[layer]
        assert isinstance(quantizer, WeightQuantizer)
        return quantizer

    @torch.no_grad()
    def as_float(self) -> Spotter:
        """The float spotter that stage 1 computes, its quantized weights made once: equal outputs, much sooner.

        Raises:
            ValueError: a stage-2 model, which is not a float spotter.
        """
        if self.integer:
            raise ValueError("a stage-2 model computes in integers: run its program instead")
        spotter = Spotter(self.config).to(self.mean.device)
        for i, dense in enumerate(spotter.dense):
            assert isinstance(dense, nn.Linear)
            dense.weight.copy_(self.weight(i))
            dense.bias.copy_(self.biases[i])
        spotter.norms.load_state_dict(self.norms.state_dict())
        spotter.mean.copy_(self.mean)
        spotter.inverse_std.copy_(self.inverse_std)
        return spotter.eval()

    def norm(self, layer: int) -> ChannelNorm:
        """Batchnorm and gain of a hidden layer."""
        norm = self.norms[layer]
        assert isinstance(norm, ChannelNorm)
        return norm

    def fresh(self, batch: int = 1) -> torch.Tensor:
        """State before the first frame: ``[batch, stacked_frames - 1, n_mels]``."""
        return fresh_ring(batch, self.config.stacked_frames, self.config.n_mels, self.mean)

    def normalise(self, frames: torch.Tensor) -> torch.Tensor:
        """Log-mel frames -> what the ring holds: normalised floats, or int8 values in stage 2."""
        x = (frames - self.mean) * self.inverse_std
        if not self.integer:
            return x
        scaled = x / self.input_scale
        exact = fixedpoint.saturate(fixedpoint.round_half_up(scaled.detach()), -128, 127)
        return straight_through(scaled.clamp(-128, 127), exact)

    def step(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """New frames ``[B, T, n_mels]`` -> logits ``[B, T, K + 1]`` and the next state."""
        windows, state = stack_frames(self.normalise(x), state, self.config.stacked_frames)
        return self.logits(windows), state

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Raw log-mel windows ``[B, stacked_frames, n_mels]`` -> logits ``[B, K + 1]``."""
        return self.logits(self.normalise(windows).flatten(1))

    def logits(self, x: torch.Tensor, taps: list[torch.Tensor] | None = None) -> torch.Tensor:
        """Stacked frames ``[..., K]`` -> logits. ``taps`` collects each layer's output as the program has it:
        int8 values after hidden layers, the int32 accumulator of the last (stage 2)."""
        if not self.integer:
            for i, norm in enumerate(self.norms):
                x = F.relu(norm(F.linear(x, self.weight(i), self.biases[i])))
            return F.linear(x, self.weight(len(self.norms)), self.biases[-1])
        s_x = float(self.input_scale)
        for i in range(len(self.norms)):
            x, s_x = self._hidden(i, x, s_x)
            if taps is not None:
                taps.append(x.detach())
        return self._output(x, s_x, taps)

    def gain_and_offset(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``g`` and the offset ``o`` of a hidden layer, float32 ``[N]``, from the running statistics."""
        norm = self.norm(layer)
        g = norm.gain * norm.gamma / torch.sqrt(norm.var + EPSILON)
        return g, norm.gain * norm.beta + g * (self.biases[layer] - norm.mean)

    def folded_codes(self, layer: int, row_factor: torch.Tensor) -> torch.Tensor:
        """Codes with each row's sign (or zero) applied."""
        return self.quantizer(layer).turned(row_factor)

    def constants(self, layer: int, s_x: float) -> folding.Folded | folding.Unfolded:
        """Integer constants of a hidden layer from the current parameters."""
        g, offset = (t.detach().cpu().double().numpy() for t in self.gain_and_offset(layer))
        step = self.quantizer(layer).step().detach().cpu().double().numpy()
        s_y = self.output_scale(layer)
        if self.plan.batchnorm == "unfolded":
            return folding.unfold(g, offset, step, s_x, s_y)
        quantizer = self.quantizer(layer)
        bound = (
            int(np.max(np.abs(quantizer.codebook.levels / quantizer.codebook.step))) * 128 * self.config.sizes[layer]
        )
        return folding.fold(g, offset, step, s_x, s_y, quantizer.grid, bound)

    def output_scale(self, layer: int) -> float:
        """Real value of one unit of a hidden layer's output."""
        return float(self.output_ranges[layer]) / 127

    def _hidden(self, layer: int, x: torch.Tensor, s_x: float) -> tuple[torch.Tensor, float]:
        quantizer = self.quantizer(layer)
        step = quantizer.step()
        acc = F.linear(x, quantizer.codes())
        if self.observing:
            self._observe(layer, acc.detach() * (step.detach() * s_x) + self.biases[layer])
        constants = self.constants(layer, s_x)
        s_y = self.output_scale(layer)
        g, offset = self.gain_and_offset(layer)
        if isinstance(constants, folding.Folded):
            factor = _tensor(constants.row_factor, x).to(x.dtype)
            acc = F.linear(x, self.folded_codes(layer, factor))
            exact = fixedpoint.requantize(
                _to_int(acc) + _tensor(constants.bias, x),
                _tensor(constants.multiplier, x),
                _tensor(constants.shift, x),
                0,
                127,
                self.plan.rounding,
            )
            z = acc * (step * s_x * g.abs()) + offset
        else:
            exact = fixedpoint.requantize_unfolded(
                _to_int(acc),
                _tensor(constants.gain_codes, x),
                _tensor(constants.offset_codes, x),
                constants.m1,
                constants.m2,
                constants.shift,
                0,
                127,
            )
            z = acc * (step * s_x * g) + offset
        return straight_through((z / s_y).clamp(0, 127), exact), s_y

    def _output(self, x: torch.Tensor, s_x: float, taps: list[torch.Tensor] | None) -> torch.Tensor:
        quantizer = self.quantizer(-1)
        unit = s_x * quantizer.step()
        bias = folding.output_bias(
            self.biases[-1].detach().cpu().double().numpy(),
            s_x * quantizer.step().detach().cpu().double().numpy(),
            self.plan.batchnorm == "unfolded",
        )
        acc = F.linear(x, quantizer.codes())
        exact = _to_int(acc) + _tensor(bias, x)
        if taps is not None:
            taps.append(exact)
        return straight_through(acc * unit + self.biases[-1], exact.double() * unit.detach().double())

    @torch.no_grad()
    def _observe(self, layer: int, a: torch.Tensor) -> None:
        """Batchnorm statistics and the output range follow the dense layer's outputs, as in float training."""
        norm = self.norm(layer)
        norm.observe(a)
        peak = self._affine(norm, a).max().clamp_min(1e-3)
        self.output_ranges[layer].lerp_(peak, RANGE_MOMENTUM)

    def _affine(self, norm: ChannelNorm, a: torch.Tensor) -> torch.Tensor:
        g = norm.gain * norm.gamma / torch.sqrt(norm.var + EPSILON)
        return norm.gain * norm.beta + g * (a - norm.mean)


def _check_grid(quantizer: WeightQuantizer) -> None:
    """A quantizer from outside is refused before training, not at lowering.

    Raises:
        ValueError: its codebook has no integer codes, or codes off the grid that it names.
    """
    method, bits = quantizer.method, quantizer.bits
    if quantizer.codebook.codes is None:
        raise ValueError(f"{method}: its codebook has no integer codes; make it with integer_codebook(codes, step)")
    low, high, step = code_range(bits, quantizer.grid)
    off = [int(c) for c in quantizer.codebook.codes if not low <= c <= high or (c - low) % step]
    if off:
        raise ValueError(
            f"{method}: code {off[0]} does not lie on its grid {quantizer.grid!r}, which has at {bits} bits the codes "
            f"{low}, {low + step}, ... {high}"
        )


def _to_int(acc: torch.Tensor) -> torch.Tensor:
    return acc.detach().to(torch.int64)


def _tensor(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(values, device=like.device)
