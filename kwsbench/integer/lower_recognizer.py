"""Lower a stage-2 LSTM recognizer to its integer program: as lower.py does for spotters, and proves the same bounds.

Codes and scales are those of the training forward, constants come from ``arithmetic.gates`` with the same arguments,
so a program computes what was trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kwsbench.arithmetic.gates import STATE_UNIT, gate_constants
from kwsbench.integer.lower import GEMM_LIMIT, LoweringError, prove
from kwsbench.integer.program import InputQuantizer, OutputDense
from kwsbench.integer.recognizer import Gates, Matrix, Recognizer
from kwsbench.models.recurrent import LstmEncoderConfig
from kwsbench.quantizers.recognizer import IntegerRecognizer

LARGEST_INPUT = 128  # of a log-mel input or an h; codes of an embedding stop at 127


def lower_recognizer(
    model: IntegerRecognizer, frame_seconds: float = 0.01, metadata: dict[str, Any] | None = None
) -> Recognizer:
    """The integer program of a recognizer with an LSTM encoder; ``frame_seconds`` of a log-mel frame.

    Raises:
        LoweringError: another encoder (its float remainder has no program of this kind), or a proof fails.
    """
    config = model.config.encoder
    if not isinstance(config, LstmEncoderConfig):
        raise LoweringError(f"only LSTM encoders lower to integers whole; this one is a {type(config).__name__}")
    scale = float(model.input_scale)
    encoder = []
    for number in range(config.layers):
        encoder.append(_gates(model, *_lstm(f"encoder.layers.{number}"), scale))
        scale = STATE_UNIT
    return Recognizer(
        n_mels=config.n_mels,
        stack=config.stack,
        reduce_after=config.reduce_after,
        reduction=config.reduction,
        labels_per_frame=model.config.labels_per_frame,
        frame_seconds=frame_seconds,
        input=InputQuantizer(_array(model.mean), _array(model.inverse_std), float(model.input_scale)),
        encoder=tuple(encoder),
        embedding=_matrix(model, "prediction.embedding"),
        prediction=_gates(model, *_lstm("prediction.layer"), float(_step(model, "prediction.embedding")[0])),
        joint=_gates(model, "joiner.encoder", "joiner.prediction", STATE_UNIT),
        output=_output(model),
        metadata={"plan": model.plan.to_json(), **(metadata or {})},
    )


def _lstm(name: str) -> tuple[str, str]:
    return f"{name}.input", f"{name}.recurrent"


def _gates(model: IntegerRecognizer, input: str, state: str, input_scale: float) -> Gates:
    """Two matrices and the bias of the first; ``input_scale`` is the real value of one unit of the input."""
    bias = _array(model.body.get_submodule(input).bias)
    constants = gate_constants(_step(model, input) * input_scale, _step(model, state) * STATE_UNIT, bias)
    matrices = _matrix(model, input), _matrix(model, state)
    bounds = []
    for matrix in matrices:
        reach = np.abs(matrix.codes.astype(np.int64)).sum(axis=1) * LARGEST_INPUT
        if reach.max() >= GEMM_LIMIT:
            raise LoweringError(
                f"{matrix.name}: row {int(reach.argmax())} can reach {reach.max()}, beyond the 2^24 that gates "
                "allow: use fewer inputs or fewer bits"
            )
        bounds.append(int(reach.max()))
    return Gates(
        *matrices,
        constants.input_multiplier,
        constants.state_multiplier,
        constants.bias,
        constants.shift,
        *bounds,
    )


def _output(model: IntegerRecognizer) -> OutputDense:
    matrix = _matrix(model, "joiner.output")
    bias = _array(model.joiner.output_bias()).astype(np.int64)
    return OutputDense(
        name=matrix.name,
        codes=matrix.codes,
        weight_bits=matrix.bits,
        grid=matrix.grid,
        bias=bias.astype(np.int32),
        scale=np.full(len(matrix.codes), float(model.joiner.output_unit())),
        proof=prove(matrix.name, matrix.codes, bias, LARGEST_INPUT),
    )


def _matrix(model: IntegerRecognizer, name: str) -> Matrix:
    quantizer = model.quantizer(name)
    return Matrix(name, _array(quantizer.codes()).astype(np.int8), quantizer.bits, quantizer.grid)


def _step(model: IntegerRecognizer, name: str) -> np.ndarray:
    """Real value of one code unit, float64 ``[1]`` or ``[N]``."""
    return _array(model.quantizer(name).step()).astype(np.float64)


def _array(t: Any) -> np.ndarray:
    return t.detach().cpu().numpy()
