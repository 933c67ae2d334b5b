"""Frozen dataclasses of arrays and plain values in one safetensors file: tensors, and a JSON header in its metadata.

An array's name is its path of fields, ``encoder.0.input.codes``; all else stands in the header, which names its format.
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kwsbench.files import replacing


def take_apart(value: Any, path: str, tensors: dict[str, np.ndarray]) -> Any:
    """The part of a value that JSON holds; its arrays go to ``tensors``, named from ``path`` on."""
    if is_dataclass(value):
        parts = {f.name: (getattr(value, f.name), _below(path, f.name)) for f in fields(value)}
        for below, where in parts.values():
            if isinstance(below, np.ndarray):
                tensors[where] = np.ascontiguousarray(below)
        return {k: take_apart(v, p, tensors) for k, (v, p) in parts.items() if not isinstance(v, np.ndarray)}
    if isinstance(value, tuple):
        return [take_apart(v, _below(path, str(i)), tensors) for i, v in enumerate(value)]
    return value


def put_together(kind: Any, header: Any, path: str, tensors: dict[str, np.ndarray]) -> Any:
    """What :func:`take_apart` took apart, of the type ``kind``.

    Raises:
        KeyError: a field or a tensor is missing.
    """
    if is_dataclass(kind):
        values = {}
        for name, hint in get_type_hints(kind).items():
            if name not in {f.name for f in fields(kind)}:
                continue
            where = _below(path, name)
            values[name] = tensors[where] if hint is np.ndarray else put_together(hint, header[name], where, tensors)
        return kind(**values)  # type: ignore[operator]
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return tuple(put_together(inner, h, _below(path, str(i)), tensors) for i, h in enumerate(header))
    return header


def write_file(path: str | Path, tensors: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    """Write to a temporary name, then rename."""
    with replacing(path) as temporary:
        save_file(tensors, str(temporary), metadata={"kwsbench": json.dumps(header, sort_keys=True)})


def read_file(path: str | Path, expected: str, what: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and tensors of a file of the format ``expected``; ``what`` names its kind in messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        with safe_open(str(path), framework="numpy") as f:
            header = json.loads((f.metadata() or {}).get("kwsbench", "null"))
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}); write it again") from error
    if not isinstance(header, dict) or header.get("format") != expected:
        raise ValueError(f"{path} is not a kwsbench {what} (expected format {expected})")
    return header, tensors


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
