"""Models on disk: one safetensors file of tensors, its JSON header in the metadata. Data, never pickles.

``save_model`` writes to a temporary name and renames. ``load_model`` returns the float or the quantized spotter that
was saved and refuses files of another kind, another shape, or truncated ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kwsbench.files import replacing
from kwsbench.models.feedforward import Spotter, SpotterConfig
from kwsbench.quantizers.attach import Plan, QuantizedSpotter

FORMAT = "kwsbench-checkpoint-1"


class CheckpointError(ValueError):
    """The file is truncated, or holds something else than was asked for."""


class OtherModelError(CheckpointError):
    """The file is whole, and holds a model of another shape."""


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    """Atomic safetensors file with a JSON header."""
    contiguous = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    meta = json.dumps({"format": FORMAT, **header}, sort_keys=True)
    with replacing(path) as temporary:
        save_file(contiguous, str(temporary), metadata={"kwsbench": meta})


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header of a file written by :func:`write_tensors`.

    Raises:
        FileNotFoundError: there is no file.
        CheckpointError: the file is truncated or of another format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(str(path), framework="pt") as f:
            header = json.loads((f.metadata() or {}).get("kwsbench", "null"))
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}); delete it and train again"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a kwsbench checkpoint (expected format {FORMAT})")
    return tensors, header


def training_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Model and optimizer as named tensors, for :func:`write_tensors` in the middle of training."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
    return tensors


def restore_training(
    path: Path, tensors: dict[str, torch.Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Put back what :func:`training_tensors` gave; ``path`` names the file in errors.

    Raises:
        CheckpointError: the tensors are those of another model.
    """
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is a checkpoint of another model: {error}") from error
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def save_model(path: str | Path, model: Spotter | QuantizedSpotter, extra: dict[str, Any] | None = None) -> None:
    """Save a float or quantized spotter."""
    header: dict[str, Any] = {"config": model.config.to_json(), "plan": None, "extra": extra or {}}
    if isinstance(model, QuantizedSpotter):
        header["plan"] = model.plan.to_json()
    write_tensors(Path(path), model.state_dict(), header)


def load_model(path: str | Path, expect: SpotterConfig | None = None) -> Spotter | QuantizedSpotter:
    """Load what :func:`save_model` wrote, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: truncated, another format, or a model of another shape than ``expect``.
    """
    path = Path(path)
    tensors, header = read_tensors(path)
    if "config" not in header:
        raise CheckpointError(f"{path} holds training state, not a model")
    config = SpotterConfig.from_json(header["config"])
    if expect is not None and config != expect:
        raise OtherModelError(f"{path} is a checkpoint of another model: it has {config}, this run expects {expect}")
    float_model = Spotter(config)
    model: Spotter | QuantizedSpotter = float_model
    if header["plan"] is not None:
        model = QuantizedSpotter(float_model, Plan.from_json(header["plan"]))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own header: {error}") from error
    return model.eval()
