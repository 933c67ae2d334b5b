"""Lower a stage-2 model to an integer program. The only bridge from torch; proves that nothing overflows.

Codes, multipliers and biases come from the same functions that the training forward used
(``QuantizedSpotter.constants``, ``arithmetic.folding``), so a program computes what was trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kwsbench.arithmetic import folding
from kwsbench.integer.program import Dense, InputQuantizer, Layer, OutputDense, Program, Proof, UnfoldedDense
from kwsbench.quantizers.attach import QuantizedSpotter

GEMM_LIMIT = 2**24  # integer-valued float32 is exact below
PRODUCT_LIMIT = 2**53


class LoweringError(ValueError):
    """The model cannot become an integer program; the message names the layer and the bound."""


def lower(model: QuantizedSpotter, frame_seconds: float = 0.03, metadata: dict[str, Any] | None = None) -> Program:
    """Integer program of a stage-2 model.

    Raises:
        LoweringError: the model is not in stage 2, or a proof fails.
    """
    if not model.integer:
        raise LoweringError("only a stage-2 model lowers to integers; this plan leaves batchnorm in float")
    s_x = float(model.input_scale)
    layers: list[Layer] = []
    for i in range(len(model.norms)):
        largest_input = 128 if i == 0 else 127
        layers.append(_hidden(model, i, s_x, largest_input))
        s_x = model.output_scale(i)
    layers.append(_output(model, s_x, 127 if layers else 128))
    return Program(
        keywords=model.config.keywords,
        n_mels=model.config.n_mels,
        stacked_frames=model.config.stacked_frames,
        frame_seconds=frame_seconds,
        input=InputQuantizer(_array(model.mean), _array(model.inverse_std), float(model.input_scale)),
        layers=tuple(layers),
        metadata={"plan": model.plan.to_json(), **(metadata or {})},
    )


def prove(
    name: str,
    codes: np.ndarray,
    bias: np.ndarray,
    max_abs_input: int,
    max_abs_product: int = 0,
    gemm_limit: int = GEMM_LIMIT,
) -> Proof:
    """Bounds of one layer over all possible inputs; ``gemm_limit``: that of the arithmetic that emulates it.

    Raises:
        LoweringError: the int32 accumulator, the emulation or a 53-bit product could overflow.
    """
    gemm = np.abs(codes.astype(np.int64)).sum(axis=1) * max_abs_input
    accumulator = gemm + np.abs(bias.astype(np.int64))
    if accumulator.max() >= 2**31:
        row = int(accumulator.argmax())
        raise LoweringError(f"{name}: row {row} can reach {accumulator.max()}, beyond int32")
    if gemm.max() >= gemm_limit:
        row = int(gemm.argmax())
        raise LoweringError(
            f"{name}: row {row} can reach {gemm.max()}, beyond the 2^24 that float32 emulates exactly: use fewer "
            "inputs or fewer bits"
        )
    if max_abs_product >= PRODUCT_LIMIT:
        raise LoweringError(f"{name}: a product can reach {max_abs_product}, beyond 2^53: calibrate the ranges again")
    return Proof(max_abs_input, int(accumulator.max()), int(gemm.max()), int(max_abs_product))


def _hidden(model: QuantizedSpotter, i: int, s_x: float, largest_input: int) -> Layer:
    quantizer = model.quantizer(i)
    constants = model.constants(i, s_x)
    name = f"layer{i}"
    if isinstance(constants, folding.Folded):
        factor = model.mean.new_tensor(constants.row_factor)
        codes = _array(model.folded_codes(i, factor)).astype(np.int8)
        if quantizer.grid == "table" and len(np.unique(codes)) > 2**quantizer.bits:
            raise LoweringError(
                f"{name}: rows of negative gain turn the signs of a table that is not symmetric, which then has "
                f"{len(np.unique(codes))} codes instead of {2**quantizer.bits}: use batchnorm 'unfolded'"
            )
        return Dense(
            name=name,
            codes=codes,
            weight_bits=quantizer.bits,
            grid=quantizer.grid,
            bias=constants.bias.astype(np.int32),
            multiplier=constants.multiplier.astype(np.int32),
            shift=constants.shift.astype(np.int32),
            output_scale=model.output_scale(i),
            relu=True,
            rounding=model.plan.rounding,
            proof=prove(name, codes, constants.bias, largest_input),
        )
    codes = _array(quantizer.codes()).astype(np.int8)
    gemm = np.abs(codes.astype(np.int64)).sum(axis=1) * largest_input
    product = max(
        int(np.max(gemm * np.abs(constants.gain_codes))) * constants.m1,
        int(np.max(np.abs(constants.offset_codes))) * constants.m2,
    )
    return UnfoldedDense(
        name=name,
        codes=codes,
        weight_bits=quantizer.bits,
        grid=quantizer.grid,
        gain_codes=constants.gain_codes.astype(np.int8),
        offset_codes=constants.offset_codes.astype(np.int8),
        m1=constants.m1,
        m2=constants.m2,
        shift=constants.shift,
        output_scale=model.output_scale(i),
        relu=True,
        proof=prove(name, codes, np.zeros(len(codes), np.int64), largest_input, product),
    )


def _output(model: QuantizedSpotter, s_x: float, largest_input: int) -> OutputDense:
    quantizer = model.quantizer(-1)
    name = f"layer{len(model.norms)}"
    codes = _array(quantizer.codes()).astype(np.int8)
    unit = _array(s_x * quantizer.step())
    bias = folding.output_bias(
        _array(model.biases[-1]).astype(np.float64),
        s_x * _array(quantizer.step()).astype(np.float64),
        model.plan.batchnorm == "unfolded",
    )
    return OutputDense(
        name=name,
        codes=codes,
        weight_bits=quantizer.bits,
        grid=quantizer.grid,
        bias=bias.astype(np.int32),
        scale=np.broadcast_to(unit.astype(np.float64), (len(codes),)).copy(),
        proof=prove(name, codes, bias, largest_input),
    )


def _array(t: Any) -> np.ndarray:
    return t.detach().cpu().numpy()
