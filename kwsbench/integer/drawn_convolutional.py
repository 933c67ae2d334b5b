"""An integer program of a given network with drawn codes: for timing and tests, where nothing needs to be understood.

Scales follow what each operation makes of a drawn recording, so that codes spread over their range, as those of a
trained model do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from kwsbench.arithmetic.fixedpoint import quantize_multiplier
from kwsbench.arithmetic.residual import activation_range, add_constants, pool_constants, relu6_range
from kwsbench.integer import convolution_reference as reference
from kwsbench.integer.convolution import Add, Conv, Convolutional, Operation, Pool
from kwsbench.integer.drawn import draw_codes
from kwsbench.integer.program import InputQuantizer, OutputDense, Proof
from kwsbench.models import layers

SPREAD = 2.0  # deviations between zero and the highest code


def draw_convolutional(
    network: layers.Network,
    *,
    weight_bits: int | Mapping[str, int] = 8,
    activation_bits: int | Mapping[str, int] = 8,
    grid: str = "odd",
    rounding: str = "single",
    frames: int = 64,
    seed: int = 0,
) -> Convolutional:
    """A program of ``network`` with drawn codes and biases.

    ``weight_bits``, ``activation_bits``: of all layers, or by layer name. ``grid``: of weights below 8 bits (1 bit:
    ``binary``, unless a table); 8 bits are always ``symmetric``. ``frames``: of the drawn recording.
    """
    rng, bins = np.random.default_rng(seed), network.front.bins
    bits, unit = (16, 2.0**-15) if network.front.kind == "raw" else (8, 2.0**-5)
    half = 2 ** (bits - 1)
    x = np.clip(np.round(rng.normal(size=(frames, bins, 1)) * half / 4), -half, half - 1).astype(f"int{bits}")
    scale, peak = unit, half  # real value of one unit of x, and its largest magnitude
    operations: list[Operation] = []
    outputs: list[np.ndarray] = []
    for layer in network.layers:
        width = _width(weight_bits, layer.name)
        kind = "symmetric" if width == 8 else "binary" if width == 1 and grid != "table" else grid
        a_bits = _width(activation_bits, layer.name)
        operation: Operation
        if isinstance(layer, layers.Conv):
            codes = _codes(rng, layer, width, kind)
            operation = _conv(rng, layer, codes, width, kind, x, peak, a_bits, rounding)
            past = np.zeros((layer.kernel[0] - layer.stride[0], *x.shape[1:]), x.dtype)
            x = reference.conv(np.concatenate([past, x]), operation)
        elif isinstance(layer, layers.Add):
            source = [o.name for o in operations].index(layer.source)
            other = outputs[source]
            s_source = operations[source].output_scale  # type: ignore[union-attr]
            low, high = activation_range(a_bits, min(x.min(), other.min()) >= 0)
            s_y = SPREAD * _size(x * scale + other * s_source) / max(high, 1)
            k = add_constants(scale, s_source, s_y)
            constants = k.multiplier, k.source_multiplier, k.shift
            operation = Add(layer.name, source, *constants, low, high, a_bits, s_y)
            x = reference.add(x, other, operation)
        elif isinstance(layer, layers.Pool):
            low, high = activation_range(a_bits, x.min() >= 0)
            past = np.zeros((layer.frames - 1, *x.shape[1:]), x.dtype)
            sums = reference.frequency_sums(np.concatenate([past, x]))
            windows = np.lib.stride_tricks.sliding_window_view(sums, layer.frames, axis=0)
            means = windows.mean(axis=-1) / x.shape[1]
            s_y = scale * _size(means) / max(high, 1)
            pair = pool_constants(scale, s_y, layer.frames, x.shape[1])
            operation = Pool(layer.name, layer.frames, *pair, low, high, a_bits, s_y, rounding)
            x = reference.pool(sums, operation)
        else:
            codes = draw_codes(rng, (layer.outputs, layer.inputs), width, kind)
            bias = np.round(-(x[:, 0].astype(np.float64) @ codes.T).mean(axis=0)).astype(np.int32)
            proof = prove(codes, bias, peak)
            operation = OutputDense(layer.name, codes, width, kind, bias, np.full(len(codes), scale), proof)
            x = reference.output(x, operation)
        operations.append(operation)
        outputs.append(x)
        if not isinstance(operation, OutputDense):
            scale, peak = operation.output_scale, max(-operation.low, operation.high)
    heard = InputQuantizer(np.zeros(bins, np.float32), np.ones(bins, np.float32), unit)
    return Convolutional(network.labels, dict(vars(network.front)), heard, bits, tuple(operations), {"drawn": seed})


def prove(codes: np.ndarray, bias: np.ndarray, peak: int) -> Proof:
    """Bounds over all inputs of magnitude ``peak``; codes ``[N, ...]``."""
    sums = np.abs(codes.astype(np.int64)).reshape(len(codes), -1).sum(axis=1) * peak
    return Proof(peak, int((sums + np.abs(bias.astype(np.int64))).max()), int(sums.max()))


def _codes(rng: np.random.Generator, layer: layers.Conv, bits: int, grid: str) -> np.ndarray:
    shape = (layer.outputs, *layer.kernel, 1 if layer.depthwise else layer.inputs)
    return draw_codes(rng, (shape[0], int(np.prod(shape[1:]))), bits, grid).reshape(shape)


def _conv(
    rng: np.random.Generator,
    layer: layers.Conv,
    codes: np.ndarray,
    bits: int,
    grid: str,
    x: np.ndarray,
    peak: int,
    a_bits: int,
    rounding: str,
) -> Conv:
    n, nothing = len(codes), np.zeros(len(codes), np.int32)
    scale = SPREAD / activation_range(a_bits, True)[1]
    low, high = relu6_range(a_bits, scale) if layer.relu else activation_range(a_bits, False)
    shape = codes, bits, grid, layer.depthwise, layer.stride, layer.padding
    proof = prove(codes, nothing, peak)
    operation = Conv(layer.name, *shape, nothing, nothing, nothing, low, high, a_bits, scale, rounding, proof)
    past = np.zeros((layer.kernel[0] - layer.stride[0], *x.shape[1:]), x.dtype)
    deviation = np.maximum(reference.conv_sums(np.concatenate([past, x]), operation).std(axis=(0, 1)), 1.0)
    bias = np.round(rng.normal(size=n) * deviation / 2).astype(np.int32)
    multiplier, shift = quantize_multiplier(max(high, 1) / (SPREAD * deviation))
    return replace(
        operation,
        bias=bias,
        multiplier=multiplier.astype(np.int32),
        shift=shift.astype(np.int32),
        proof=prove(codes, bias, peak),
    )


def _size(values: np.ndarray) -> float:
    """Root of the mean square; 1 where nothing but zero came out."""
    return float(np.sqrt(np.mean(np.square(values)))) or 1.0


def _width(bits: int | Mapping[str, int], name: str) -> int:
    return bits if isinstance(bits, int) else bits[name]
