"""Lower the Conformer encoder of a stage-2 recognizer to plain arrays (integer/conformer.py): as lower_recognizer.py
does for LSTM layers, with the float remainder as float32 arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from kwsbench.integer import conformer as plain
from kwsbench.integer.lower import GEMM_LIMIT, LoweringError
from kwsbench.integer.program import InputQuantizer
from kwsbench.integer.recognizer import Matrix
from kwsbench.quantizers.recognizer import IntegerConformer, IntegerLinear, IntegerRecognizer

LARGEST_INPUT = 127


def lower_conformer(model: IntegerRecognizer) -> plain.Conformer:
    """The encoder of a recognizer in evaluation.

    Raises:
        LoweringError: another encoder, or a matrix whose sums a float32 product cannot hold exactly.
    """
    encoder = model.encoder
    if not isinstance(encoder, IntegerConformer):
        raise LoweringError(f"this recognizer's encoder is a {type(encoder).__name__}, not a Conformer")
    shell = encoder.shell
    return plain.Conformer(
        n_mels=encoder.config.n_mels,
        stack=encoder.config.stack,
        input=InputQuantizer(_array(model.mean), _array(model.inverse_std), float(model.input_scale)),
        first=_linear(shell.input),
        blocks=tuple(_block(block) for block in shell.blocks),
        output_scale=float(encoder.scale),
    )


def _block(block: Any) -> plain.Block:
    a, c = block.attention, block.convolution
    attention = plain.Attention(
        _norm(a.norm),
        _linear(a.query),
        _linear(a.key),
        _linear(a.value),
        _linear(a.output),
        _array(a.distance),
        float(a.kept_key.scale),
        float(a.kept_value.scale),
    )
    convolution = plain.Convolution(
        _norm(c.norm),
        _linear(c.gated),
        _array(c.depthwise),
        _array(c.bias),
        _norm(c.inner_norm),
        _linear(c.output),
        float(c.kept.scale),
    )
    forwards = [plain.FeedForward(_norm(f.norm), _linear(f.up), _linear(f.down)) for f in (block.first, block.second)]
    return plain.Block(forwards[0], attention, convolution, forwards[1], _norm(block.norm))


def _norm(norm: nn.LayerNorm) -> plain.Norm:
    return plain.Norm(_array(norm.weight), _array(norm.bias))


def _linear(layer: Any) -> plain.Linear:
    assert isinstance(layer, IntegerLinear)
    quantizer = layer.owner.quantizer(layer.name)
    codes = _array(quantizer.codes()).astype(np.int8)
    reach = int((np.abs(codes.astype(np.int64)).sum(axis=1) * LARGEST_INPUT).max())
    if reach >= GEMM_LIMIT:
        raise LoweringError(f"{layer.name}: a row can reach {reach}, beyond 2^24: use fewer inputs or fewer bits")
    unit = _array(layer.scale * layer.unit(layer.name, len(codes)))
    bias = np.zeros(len(codes), np.float32) if layer.bias is None else _array(layer.bias)
    return plain.Linear(Matrix(layer.name, codes, quantizer.bits, quantizer.grid), float(layer.scale), unit, bias)


def _array(t: Any) -> np.ndarray:
    return t.detach().cpu().numpy()
