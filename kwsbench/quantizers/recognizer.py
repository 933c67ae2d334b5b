"""Quantize a transducer by a plan: first its matrices, then everything, in the arithmetic of docs/arithmetic.md.

    soft = SoftRecognizer(model, RecognizerPlan(WeightPlan("general", 4)))  stage 1: weights quantized, the rest float
    whole = IntegerRecognizer(soft, frames)                                 stage 2: activations and state as well

A plan gives every matrix its method and width: one for all, and exceptions by the matrix' name (globs), so that depth
is chosen per module ("encoder.*"), per layer ("encoder.layers.0.*") or per kernel ("*.recurrent").

Stage 1 computes what the float model would with quantized matrices (any encoder). Stage 2 carries integer-valued
tensors. With an LSTM encoder its forward *is* the integer program, value by value; a Conformer's matrices and caches
are integers, the rest of it float (section 10). Both decode as a float transducer does (models.decoding).
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from kwsbench.arithmetic import fixedpoint
from kwsbench.arithmetic.gates import STATE_UNIT
from kwsbench.export.pack import packed_bytes
from kwsbench.models.conformer import ConformerEncoder, Kept
from kwsbench.models.recurrent import LstmEncoder, LstmEncoderConfig, LstmEncoderState, LstmState, join_frames
from kwsbench.models.transducer import BLANK, Transducer
from kwsbench.quantizers import HARD_SHARE, QUANTIZERS, WeightQuantizer
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.gates import GateTensors, gate_tensors, joint, lstm_sequence
from kwsbench.quantizers.gradients import straight_through

INPUT_PERCENTILE, INNER_PERCENTILE = 99.9, 99.99
# A label picks a row of one, the other's rows compete in the search: one scale for the whole matrix.
ONE_SCALE = ("prediction.embedding", "joiner.output")


@dataclass(frozen=True)
class RecognizerPlan:
    """``weights`` for every matrix but the ``exceptions``: (glob, plan) pairs, the first that matches decides."""

    weights: WeightPlan
    exceptions: tuple[tuple[str, WeightPlan], ...] = ()

    def of(self, name: str) -> WeightPlan:
        """The plan of a matrix."""
        found = next((plan for glob, plan in self.exceptions if fnmatch.fnmatchcase(name, glob)), self.weights)
        return WeightPlan(found.method, found.bits) if name in ONE_SCALE else found

    def check(self, names: Sequence[str]) -> None:
        """Raises ValueError for an exception that matches no matrix: a misspelt plan would quantize nothing."""
        for glob, _ in self.exceptions:
            if not fnmatch.filter(names, glob):
                raise ValueError(f"no matrix matches {glob!r}; the matrices are {', '.join(names)}")

    def to_json(self) -> dict[str, Any]:
        return {"weights": vars(self.weights), "exceptions": [[glob, vars(plan)] for glob, plan in self.exceptions]}

    @staticmethod
    def from_json(values: dict[str, Any]) -> RecognizerPlan:
        exceptions = tuple((glob, WeightPlan(**plan)) for glob, plan in values["exceptions"])
        return RecognizerPlan(WeightPlan(**values["weights"]), exceptions)


def matrices(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Shapes ``(N, K)`` of all matrices that a plan can name, in order of the data."""
    return {name: (len(m.weight), m.weight.shape[1]) for name, m in _matrix_modules(model)}


def coverage(model: nn.Module, plan: RecognizerPlan) -> list[dict[str, Any]]:
    """One row per matrix (name, shape, method, bits) and one for all that stays outside of them (``bits`` 32).

    Raises:
        ValueError: an exception of the plan matches nothing.
    """
    shapes = matrices(model)
    plan.check(list(shapes))
    rows = [
        {"component": name, "shape": shape, "method": plan.of(name).method, "bits": plan.of(name).bits}
        for name, shape in shapes.items()
    ]
    inside = {f"{name}.weight" for name in shapes}
    rest = sum(p.numel() for name, p in model.named_parameters() if name not in inside)
    return [*rows, {"component": "biases and norms", "shape": (rest,), "method": "float", "bits": 32}]


class SoftRecognizer(nn.Module):
    """Stage 1: a transducer whose matrices pass their quantizers; the rest is float.

    Attributes:
        body: the float model; what stands in its matrices is not used.
        resting: while True, a training forward has float weights (:meth:`anneal`).
    """

    def __init__(self, model: Transducer, plan: RecognizerPlan):
        super().__init__()
        coverage(model, plan)
        self.config, self.plan, self.shapes = model.config, plan, matrices(model)
        self.resting = False
        self.body = copy.deepcopy(model)
        quantizers = {}
        for name, module in _matrix_modules(self.body):
            w = plan.of(name)
            quantizers[_key(name)] = QUANTIZERS[w.method](module.weight, w.bits, w.per_channel)  # type: ignore[call-arg]
            # A buffer that no checkpoint holds: functional_call puts the quantized weight in its place.
            weight = module.weight.detach()
            del module.weight
            module.register_buffer("weight", weight, persistent=False)
        self.quantizers = nn.ModuleDict(quantizers)

    @property
    def encoder(self) -> Any:
        """The float model's encoder, for its sizes."""
        return self.body.encoder

    def quantizer(self, name: str) -> WeightQuantizer:
        """The quantizer of a matrix."""
        return self.quantizers[_key(name)]  # type: ignore[return-value]

    def weight(self, name: str) -> torch.Tensor:
        """A matrix as the next forward has it, ``[N, K]``."""
        quantizer = self.quantizer(name)
        return quantizer.latent() if self.resting and self.training else quantizer.quantized()

    def anneal(self, step: int, steps: int, every: int = 1) -> None:
        """Told before each training step; ``every`` = T: quantized at each T-th step, float in between, until
        ``HARD_SHARE`` of the steps. At ``step == steps`` everything is hard."""
        self.resting = step < HARD_SHARE * steps and step % every != 0
        for quantizer in self.quantizers.values():
            quantizer.anneal(step, steps)  # type: ignore[operator]

    def penalty(self) -> torch.Tensor | None:
        """Mean of what regularizing quantizers add to the loss; None without any."""
        terms = [t for q in self.quantizers.values() if (t := q.penalty()) is not None]  # type: ignore[operator]
        return torch.stack(terms).mean() if terms else None

    def forward(self, frames: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """As :meth:`Transducer.forward`."""
        weights = {f"{name}.weight": self.weight(name) for name in self.shapes}
        return functional_call(self.body, weights, (frames, labels))  # type: ignore[no-any-return]

    @torch.no_grad()
    def as_float(self) -> Transducer:
        """The float transducer with hard quantized matrices: what stage 1 computes, to decode with."""
        model = Transducer(self.config).to(self.body.mean.device)
        values = dict(self.body.state_dict())
        for name in self.shapes:
            quantizer = self.quantizer(name)
            values[f"{name}.weight"] = quantizer.step()[:, None] * quantizer.codes()
        model.load_state_dict(values)
        return model.eval()

    def packed_bytes(self) -> dict[str, int]:
        """Bytes of the packed matrices (tables included), and of the rest in float32."""
        rest = sum(p.numel() for p in self.body.parameters())
        return {"matrices": sum(matrix_bytes(self).values()), "rest": 4 * rest}


def matrix_bytes(model: SoftRecognizer | IntegerRecognizer) -> dict[str, int]:
    """Packed bytes of every matrix, as ``export.pack`` writes it."""
    found = {}
    for name, shape in model.shapes.items():
        quantizer = model.quantizer(name)
        found[name] = packed_bytes(shape, quantizer.bits, quantizer.grid)
    return found


class IntegerRecognizer(nn.Module):
    """Stage 2: inputs, matrices, activations and state quantized; made from stage 1 and frames to calibrate on.

    Attributes:
        encoder, prediction, joiner: the parts that decoding calls, as those of a Transducer; ``h`` are integer-valued.
        input_scale: float32 ``[1]``, of the int8 input.
    """

    mean: torch.Tensor
    inverse_std: torch.Tensor
    input_scale: torch.Tensor

    def __init__(self, soft: SoftRecognizer, frames: Sequence[torch.Tensor] = ()):
        """``frames``: log-mel utterances ``[T, n_mels]``; none: scales are read from a checkpoint later.

        Raises:
            ValueError: an encoder without integer form (a bifocal pair).
        """
        super().__init__()
        self.config, self.plan, self.shapes = soft.config, soft.plan, soft.shapes
        # Copies: the soft model may go on to other things.
        soft = copy.deepcopy(soft)
        soft.anneal(1, 1)
        before = soft.as_float()
        self.body, self.quantizers = soft.body, soft.quantizers
        self.register_buffer("input_scale", torch.tensor([4 / 127], device=soft.body.mean.device))
        self.register_buffer("mean", soft.body.mean.clone())
        self.register_buffer("inverse_std", soft.body.inverse_std.clone())
        kinds = {LstmEncoder: IntegerLstmEncoder, ConformerEncoder: IntegerConformer}
        kind = kinds.get(type(soft.body.encoder))
        if kind is None:
            raise ValueError(
                f"a {type(soft.body.encoder).__name__} has no integer form, only stage 1; stage 2 knows "
                f"{', '.join(k.__name__ for k in kinds)}"
            )
        self.encoder: Any = kind(self)
        self.prediction = IntegerPrediction(self)
        self.joiner = IntegerJoiner(self)
        if frames:
            self._calibrate(before, frames)

    def quantizer(self, name: str) -> WeightQuantizer:
        """The quantizer of a matrix."""
        return self.quantizers[_key(name)]  # type: ignore[return-value]

    def normalise(self, frames: torch.Tensor) -> torch.Tensor:
        """Log-mel frames -> int8 values, as ``integer.reference.quantize_input``."""
        scaled = (frames - self.mean) * self.inverse_std / self.input_scale
        exact = fixedpoint.saturate(fixedpoint.round_half_up(scaled.detach()), -128, 127)
        return straight_through(scaled.clamp(-128, 127), exact)

    def forward(self, frames: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """As :meth:`Transducer.forward`; the logits are int32 accumulators times their unit."""
        return self.joiner(self.encoder(self.normalise(frames)), self.prediction(labels))  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> IntegerRecognizer:
        """Codes and constants that evaluation made once are forgotten: training moves them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _Part):
                module.kept.clear()
        return self

    def packed_bytes(self) -> dict[str, int]:
        """Bytes of the packed matrices (tables included), and of biases, norms and filters in float32."""
        return {
            "matrices": sum(matrix_bytes(self).values()),
            "rest": 4 * sum(p.numel() for p in self.body.parameters()),
        }

    @torch.no_grad()
    def _calibrate(self, model: Transducer, frames: Sequence[torch.Tensor]) -> None:
        """Scales from what the float model of stage 1 sees: of its input, and of the places that ask for one."""
        places = dict(self.encoder.places())
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in places}
        hooks = []
        for name in places:
            module = model.get_submodule(name)
            after = isinstance(module, Kept)
            note = _noter(seen[name], after)
            hooks.append(module.register_forward_hook(note) if after else module.register_forward_pre_hook(note))
        inputs, encoded = [], []
        for x in frames:
            x = model.normalise(x.to(model.mean.device)[None])
            inputs.append(x.abs().flatten())
            encoded.append(model.encoder(x).abs().flatten())
        for hook in hooks:
            hook.remove()
        self.input_scale.fill_(_range(inputs, INPUT_PERCENTILE) / 127)
        for name, place in places.items():
            place.scale.fill_(_range(seen[name], INNER_PERCENTILE) / 127)
        self.encoder.calibrate_output(_range(encoded, INNER_PERCENTILE))


class _Part(nn.Module):
    """A part of an :class:`IntegerRecognizer`, whose ``quantizers`` and ``body`` it reads.

    The owner is not a submodule (it owns this one): parameters are listed once.
    """

    owner: IntegerRecognizer

    def __init__(self, owner: IntegerRecognizer):
        super().__init__()
        object.__setattr__(self, "owner", owner)
        self.kept: dict[str, Any] = {}

    def once(self, name: str, make: Any) -> Any:
        """``make()``, in evaluation only once."""
        if self.training:
            return make()
        if name not in self.kept:
            with torch.no_grad():
                self.kept[name] = make()
        return self.kept[name]

    def __deepcopy__(self, memo: dict) -> _Part:
        raise TypeError(
            "an IntegerRecognizer is copied by its state: make another from its stage 1 and load_state_dict"
        )

    def codes(self, name: str) -> torch.Tensor:
        """Integer codes of a matrix, float32 ``[N, K]``."""
        return self.once(f"{name} codes", self.owner.quantizer(name).codes)  # type: ignore[no-any-return]

    def unit(self, name: str, rows: int) -> torch.Tensor:
        """Real value of one code unit, float32 ``[rows]``."""
        return self.owner.quantizer(name).step().expand(rows)


class _Gates(_Part):
    """Two matrices into gates: the input one, the state one, and a float bias of the body."""

    def __init__(self, owner: IntegerRecognizer, input: str, state: str):
        super().__init__(owner)
        self.input, self.state = input, state
        self.rows = owner.shapes[input][0]

    @property
    def bias(self) -> torch.Tensor:
        """Float ``[N]``."""
        return self.owner.body.get_submodule(self.input).bias  # type: ignore[return-value]

    def constants(self, input_scale: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor, GateTensors]:
        """Real units of both accumulators, float32 ``[N]``, and the integer constants.

        Both are made from float64 products of the same float32 scales, as the lowering does.
        """

        def make() -> tuple[torch.Tensor, torch.Tensor, GateTensors]:
            steps = self.unit(self.input, self.rows), self.unit(self.state, self.rows)
            scale = torch.as_tensor(input_scale, device=steps[0].device)
            exact = gate_tensors(steps[0].double() * scale.double(), steps[1].double() * STATE_UNIT, self.bias)
            return steps[0] * scale, steps[1] * STATE_UNIT, exact

        return self.once("constants", make)  # type: ignore[no-any-return]


class IntegerLstm(_Gates):
    """One LSTM layer; inputs and ``h`` integer-valued float32, ``c`` integer-valued float64."""

    def __init__(self, owner: IntegerRecognizer, name: str):
        super().__init__(owner, f"{name}.input", f"{name}.recurrent")
        self.hidden = self.rows // 4

    def fresh(self, batch: int) -> LstmState:
        zeros = self.bias.new_zeros(batch, self.hidden)
        return zeros, zeros.double()

    def step(self, x: torch.Tensor, scale: torch.Tensor | float, state: LstmState) -> tuple[torch.Tensor, LstmState]:
        """Inputs ``[B, T, K]`` of unit ``scale``, any T -> ``h`` of each frame ``[B, T, H]`` and the next state."""
        if x.shape[1] == 0:
            return x.new_empty(len(x), 0, self.hidden), state
        input_unit, state_unit, constants = self.constants(scale)
        h, c = lstm_sequence(
            F.linear(x, self.codes(self.input)),
            self.codes(self.state),
            input_unit,
            state_unit,
            self.bias,
            constants,
            *state,
        )
        return h, (h[:, -1], c)


class IntegerLstmEncoder(_Part):
    """:class:`kwsbench.models.recurrent.LstmEncoder` in integers: the unit of its output is 2^-7."""

    config: LstmEncoderConfig

    def __init__(self, owner: IntegerRecognizer):
        super().__init__(owner)
        assert isinstance(owner.config.encoder, LstmEncoderConfig)
        self.config = owner.config.encoder
        names = [f"encoder.layers.{i}" for i in range(self.config.layers)]
        self.layers = nn.ModuleList(IntegerLstm(owner, name) for name in names)

    @property
    def width(self) -> int:
        return self.config.hidden  # type: ignore[no-any-return]

    @property
    def frames_joined(self) -> int:
        return self.config.stack * self.config.reduction  # type: ignore[no-any-return]

    @property
    def output_scale(self) -> float:
        """Real value of one unit of the output."""
        return STATE_UNIT

    def places(self) -> Iterator[tuple[str, IntegerLinear | IntegerKept]]:
        """Nothing is calibrated inside: units are fixed."""
        return iter(())

    def calibrate_output(self, peak: float) -> None:
        """Nothing to do."""

    def fresh(self, batch: int = 1) -> LstmEncoderState:
        c, like = self.config, self.owner.mean
        states = tuple(layer.fresh(batch) for layer in self.layers)  # type: ignore[operator]
        return LstmEncoderState(like.new_zeros(batch, 0, c.n_mels), like.new_zeros(batch, 0, c.hidden), states)

    def step(self, x: torch.Tensor, state: LstmEncoderState) -> tuple[torch.Tensor, LstmEncoderState]:
        """int8 values ``[B, T, n_mels]``, any T -> the encoder frames they complete, and the next state."""
        x, pending = join_frames(x, state.pending, self.config.stack)
        unreduced, states = state.unreduced, []
        scale: torch.Tensor | float = self.owner.input_scale
        for number, (layer, layer_state) in enumerate(zip(self.layers, state.layers)):
            if self.config.reduction > 1 and number == self.config.reduce_after:
                x, unreduced = join_frames(x, unreduced, self.config.reduction)
            x, layer_state = layer.step(x, scale, layer_state)  # type: ignore[operator]
            states.append(layer_state)
            scale = STATE_UNIT
        return x, LstmEncoderState(pending, unreduced, tuple(states))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole recordings: a step from the fresh state."""
        return self.step(x, self.fresh(len(x)))[0]


class IntegerPrediction(_Part):
    """:class:`kwsbench.models.transducer.Prediction` in integers: a label selects a row of codes."""

    def __init__(self, owner: IntegerRecognizer):
        super().__init__(owner)
        self.layer = IntegerLstm(owner, "prediction.layer")

    def fresh(self, batch: int = 1) -> LstmState:
        start = torch.full((batch,), BLANK, device=self.owner.mean.device)
        return self.emit(start, self.layer.fresh(batch))

    def emit(self, labels: torch.Tensor, state: LstmState) -> LstmState:
        """Labels ``[B]`` -> the next state."""
        return self._run(labels[:, None], state)[1]

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels ``[B, U]`` -> ``h`` ``[B, U + 1, prediction]``, the first before any label."""
        labels = torch.cat([labels.new_full((len(labels), 1), BLANK), labels], dim=1)
        return self._run(labels, self.layer.fresh(len(labels)))[0]

    def _run(self, labels: torch.Tensor, state: LstmState) -> tuple[torch.Tensor, LstmState]:
        rows = F.embedding(labels, self.codes("prediction.embedding"))
        return self.layer.step(rows, self.unit("prediction.embedding", 1), state)


class IntegerJoiner(_Gates):
    """:class:`kwsbench.models.transducer.Joiner` in integers. ``encoder`` and ``prediction`` give accumulators."""

    def __init__(self, owner: IntegerRecognizer):
        super().__init__(owner, "joiner.encoder", "joiner.prediction")

    def encoder(self, encoded: torch.Tensor) -> torch.Tensor:
        return F.linear(encoded, self.codes(self.input))

    def prediction(self, predicted: torch.Tensor) -> torch.Tensor:
        return F.linear(predicted, self.codes(self.state))

    def forward(self, encoded: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """``[B, T, width]`` and ``[B, U + 1, prediction]`` -> logits ``[B, T, U + 1, symbols]``."""
        return self.join(self.encoder(encoded)[:, :, None], self.prediction(predicted)[:, None])

    def join(self, encoded: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Both accumulators, broadcast against each other -> logits, float64."""
        y = joint(encoded, predicted, *self._joint_constants())
        acc = F.linear(y, self.codes("joiner.output"))
        unit = self.unit("joiner.output", 1) * STATE_UNIT
        bias = self.owner.body.joiner.output.bias
        exact = acc.detach().double() + self.output_bias()
        return straight_through((acc * unit + bias).double(), exact * self.output_unit())

    def output_unit(self) -> torch.Tensor:
        """Real value of one unit of the last accumulator, float64 ``[1]``."""
        return self.unit("joiner.output", 1).detach().double() * STATE_UNIT

    def output_bias(self) -> torch.Tensor:
        """Section 4, folded form: integer-valued float64 ``[symbols]``."""
        return fixedpoint.round_half_up(self.owner.body.joiner.output.bias.detach().double() / self.output_unit())  # type: ignore[no-any-return]

    def _joint_constants(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, GateTensors]:
        input_unit, state_unit, constants = self.constants(self.owner.encoder.output_scale)
        return input_unit, state_unit, self.bias, constants


class IntegerLinear(_Part):
    """A Conformer's ``nn.Linear``: int8 input by its own scale, integer product, float32 out (section 10)."""

    scale: torch.Tensor

    def __init__(self, owner: IntegerRecognizer, name: str, bias: nn.Parameter | None):
        super().__init__(owner)
        self.name, self.bias = name, bias
        self.register_buffer("scale", torch.tensor([4 / 127], device=owner.mean.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = self.codes(self.name)
        acc = F.linear(_to_int8(x, self.scale), codes)
        out = acc * (self.scale * self.unit(self.name, len(codes)))
        return out if self.bias is None else out + self.bias


class IntegerKept(nn.Module):
    """What a Conformer carries from frame to frame, on an int8 grid: real values in, ``scale * int8`` out."""

    scale: torch.Tensor

    def __init__(self, device: torch.device):
        super().__init__()
        self.register_buffer("scale", torch.tensor([4 / 127], device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _to_int8(x, self.scale) * self.scale


class IntegerConformer(_Part):
    """:class:`kwsbench.models.conformer.ConformerEncoder` with integer matrices and caches; gives int8 values."""

    scale: torch.Tensor
    shell: ConformerEncoder

    def __init__(self, owner: IntegerRecognizer):
        super().__init__(owner)
        self.config: Any = owner.config.encoder
        self.register_buffer("scale", torch.tensor([4 / 127], device=owner.mean.device))
        # The body's own encoder, its matrices and caches replaced; not a submodule here, as the body owns it.
        object.__setattr__(self, "shell", owner.body.encoder)
        for name, module in list(owner.body.encoder.named_modules()):
            if isinstance(module, nn.Linear):
                _replace(self.shell, name, IntegerLinear(owner, f"encoder.{name}", module.bias))
            elif isinstance(module, Kept):
                _replace(self.shell, name, IntegerKept(owner.mean.device))

    @property
    def width(self) -> int:
        return self.config.width  # type: ignore[no-any-return]

    @property
    def frames_joined(self) -> int:
        return self.config.stack  # type: ignore[no-any-return]

    @property
    def output_scale(self) -> torch.Tensor:
        """Real value of one unit of the output, float32 ``[1]``."""
        return self.scale

    def places(self) -> Iterator[tuple[str, IntegerLinear | IntegerKept]]:
        """Name in the float transducer and module of everything with a scale."""
        for name, module in self.shell.named_modules():
            if isinstance(module, IntegerLinear | IntegerKept):
                yield f"encoder.{name}", module

    def calibrate_output(self, peak: float) -> None:
        """The output's largest value."""
        self.scale.fill_(peak / 127)

    def fresh(self, batch: int = 1) -> Any:
        return self.shell.fresh(batch)

    def step(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """int8 values ``[B, T, n_mels]`` -> encoder frames (int8 values) and the next state."""
        y, state = self.shell.step(x * self.owner.input_scale, state)
        return _to_int8(y, self.scale), state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _to_int8(self.shell(x * self.owner.input_scale), self.scale)


def _to_int8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``clamp(round(x / scale), -127, 127)``, integer-valued, straight-through inside the range."""
    scaled = x / scale
    return straight_through(
        scaled.clamp(-127, 127), fixedpoint.saturate(fixedpoint.round_half_up(scaled.detach()), -127, 127)
    )


def _matrix_modules(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Embedding]]:
    """Modules with a matrix, the encoder's first, the joiner's output last."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            yield name, module


def _key(name: str) -> str:
    """A matrix' name as a key of a ModuleDict, which takes no dots."""
    return name.replace(".", "/")


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _noter(seen: list[torch.Tensor], after: bool) -> Any:
    """A hook that keeps the magnitudes of a module's input, or of its output."""
    if after:
        return lambda module, inputs, output: seen.append(output.detach().abs().flatten())
    return lambda module, inputs: seen.append(inputs[0].detach().abs().flatten())


def _range(values: list[torch.Tensor], percentile: float) -> float:
    """The magnitude that ``percentile`` of all values do not exceed, at least 1e-3."""
    together = torch.cat(values)
    rank = max(1, int(percentile / 100 * together.numel()))
    return float(together.kthvalue(rank).values.clamp_min(1e-3))
