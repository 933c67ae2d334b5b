"""Lower a stage-2 convolutional network to an integer program, with proofs that nothing overflows.

Codes and constants come from the functions that the training forward used (``QuantizedConvNet``), so the program
computes what was trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kwsbench.integer import convolution as program
from kwsbench.integer.lower import LoweringError, prove
from kwsbench.integer.program import InputQuantizer, OutputDense
from kwsbench.models.layers import Add, Conv, Layer, Output, Pool, shapes
from kwsbench.quantizers.convolutional import QuantizedConvNet

FLOAT32_EXACT = 2**24


@torch.no_grad()
def lower_convolutional(model: QuantizedConvNet, metadata: dict[str, Any] | None = None) -> program.Convolutional:
    """Integer program of a stage-2 model.

    Raises:
        LoweringError: the model is not in stage 2, or a proof fails (layer and bound named).
    """
    if not model.integer:
        raise LoweringError("only a stage-2 model lowers to integers; this one computes in float: replan it")
    network = model.network
    index = {layer.name: i for i, layer in enumerate(network.layers)}
    bins = network.front.bins
    samples = model.hears_samples
    return program.Convolutional(
        labels=network.labels,
        front=dict(vars(network.front)),
        input=InputQuantizer(
            np.zeros(bins, np.float32) if samples else _array(model.mean),
            np.ones(bins, np.float32) if samples else _array(model.inverse_std),
            float(model.input_scale),
        ),
        input_bits=16 if samples else 8,
        operations=tuple(_operation(model, layer, index) for layer in network.layers),
        metadata={"plan": model.plan.to_json(), "notation": network.notation, **(metadata or {})},
    )


def _operation(model: QuantizedConvNet, layer: Layer, index: dict[str, int]) -> program.Operation:
    if isinstance(layer, Conv):
        return _conv(model, layer)
    if isinstance(layer, Output):
        return _output(model, layer)
    activation = model.activation(layer.name)
    low, high = activation.limits()
    scale = model.unit(layer.name)
    if isinstance(layer, Add):
        k = model.add_constants(layer)
        constants = k.multiplier, k.source_multiplier, k.shift
        return program.Add(layer.name, index[layer.source], *constants, low, high, activation.bits, scale)
    assert isinstance(layer, Pool)
    values = layer.frames * shapes(model.network)[model.before[layer.name]][1]
    if values * model.largest_input(layer.name) >= FLOAT32_EXACT:
        raise LoweringError(
            f"{layer.name}: a sum of {values} values can reach {values * model.largest_input(layer.name)}, beyond the "
            "2^24 that float32 emulates exactly: use fewer frames or fewer bits"
        )
    pair = model.pool_constants(layer)
    return program.Pool(layer.name, layer.frames, *pair, low, high, activation.bits, scale, model.plan.rounding)


def _conv(model: QuantizedConvNet, layer: Conv) -> program.Conv:
    name, quantizer = layer.name, model.quantizer(layer.name)
    constants = model.constants(name)
    matrix = _codes(quantizer.turned(model.mean.new_tensor(constants.row_factor)))
    if quantizer.grid == "table" and len(np.unique(matrix)) > 2**quantizer.bits:
        raise LoweringError(
            f"{name}: rows of negative gain turn the signs of a table that is not symmetric, which then has "
            f"{len(np.unique(matrix))} codes instead of {2**quantizer.bits}: give this layer another method"
        )
    activation = model.activation(name)
    low, high = activation.limits()
    largest = model.largest_input(name)
    # Training takes float64 where float32 is not exact: only int32 is a limit.
    proof = prove(name, matrix, constants.bias, largest, gemm_limit=2**31)
    return program.Conv(
        name=name,
        codes=matrix.reshape(len(matrix), *layer.kernel, -1),
        weight_bits=quantizer.bits,
        grid=quantizer.grid,
        depthwise=layer.depthwise,
        stride=layer.stride,
        padding=layer.padding,
        bias=constants.bias.astype(np.int32),
        multiplier=constants.multiplier.astype(np.int32),
        shift=constants.shift.astype(np.int32),
        low=low,
        high=high,
        activation_bits=activation.bits,
        output_scale=model.unit(name),
        rounding=model.plan.rounding,
        proof=proof,
    )


def _output(model: QuantizedConvNet, layer: Output) -> OutputDense:
    quantizer = model.quantizer(layer.name)
    codes = _codes(quantizer.codes())
    unit, bias = model.output_constants()
    return OutputDense(
        name=layer.name,
        codes=codes,
        weight_bits=quantizer.bits,
        grid=quantizer.grid,
        bias=bias.astype(np.int32),
        scale=np.broadcast_to(_array(unit).astype(np.float64), (len(codes),)).copy(),
        proof=prove(layer.name, codes, bias, model.largest_input(layer.name)),
    )


def _codes(codes: torch.Tensor) -> np.ndarray:
    return _array(codes).astype(np.int8)


def _array(t: torch.Tensor) -> np.ndarray:
    return t.detach().cpu().numpy()
