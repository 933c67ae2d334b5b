"""Recognizers on disk, float or quantized, with their vocabulary: one safetensors file and its header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kwsbench.data.transcribed import Vocabulary
from kwsbench.models.transducer import Transducer, TransducerConfig
from kwsbench.quantizers.recognizer import IntegerRecognizer, RecognizerPlan, SoftRecognizer
from kwsbench.training.checkpoints import CheckpointError, OtherModelError, read_tensors, write_tensors

Model = Transducer | SoftRecognizer | IntegerRecognizer


def save_recognizer(
    path: str | Path, model: Model, vocabulary: Vocabulary, extra: dict[str, Any] | None = None
) -> None:
    """Save a float or quantized recognizer with its vocabulary, as data."""
    header = {
        "transducer": model.config.to_json(),
        "vocabulary": vocabulary.to_json(),
        "plan": None if isinstance(model, Transducer) else model.plan.to_json(),
        "integer": isinstance(model, IntegerRecognizer),
        "extra": extra or {},
    }
    write_tensors(Path(path), model.state_dict(), header)


def load_recognizer(path: str | Path, expect: TransducerConfig | None = None) -> tuple[Model, Vocabulary]:
    """What :func:`save_recognizer` wrote, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: truncated, something else than a recognizer, or of another shape than ``expect``.
    """
    tensors, header = read_tensors(Path(path))
    if "transducer" not in header or "integer" not in header:
        raise CheckpointError(f"{path} holds no recognizer (it holds {', '.join(sorted(header)) or 'nothing'})")
    config = TransducerConfig.from_json(header["transducer"])
    if expect is not None and config != expect:
        raise OtherModelError(f"{path} is a recognizer of another shape: it has {config}, this run expects {expect}")
    model: Model = Transducer(config)
    if header["plan"] is not None:
        soft = SoftRecognizer(Transducer(config), RecognizerPlan.from_json(header["plan"]))
        model = IntegerRecognizer(soft) if header["integer"] else soft
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own header: {error}") from error
    return model.eval(), Vocabulary.from_json(header["vocabulary"])
