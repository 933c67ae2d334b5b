"""Which notebooks a command line names, and which command line makes a run again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kwsbench.reports.status import RunStatus

LEFT_OUT = ("root", "profile")  # where caches lie says nothing of a result; the profile has an option of its own


def find_notebooks(names: Sequence[str], folder: Path) -> list[Path]:
    """Notebooks by path, or by name in ``folder`` (with or without .ipynb). Where none is named: all that are numbered
    below 90 (99 explores).

    Raises:
        ValueError: there is no such notebook (the message lists those there are).
    """
    numbered = sorted(folder.glob("[0-8][0-9]_*.ipynb"))
    if not names and not numbered:
        raise ValueError(f"no notebooks NN_*.ipynb below 90 in {folder.resolve()}; name their folder with --notebooks")
    found = []
    for name in names:
        places = (Path(name), folder / name, folder / f"{name}.ipynb")
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            known = ", ".join(p.name for p in sorted(folder.glob("*.ipynb"))) or "none"
            raise ValueError(f"no notebook {name!r}, here or in {folder}; that folder has: {known}")
        found.append(path)
    return found or numbered


def run_command(status: RunStatus) -> str:
    """The command that runs the notebook with the same parameters.

    It names what was given, not what was left at its default: the code's hash beside it pins the defaults.
    """
    words = ["kwsbench", "run", status.notebook]
    profile = status.parameters.get("profile") or status.profile
    if profile:
        words += ["--profile", str(profile)]
    for name in status.given:
        if name not in LEFT_OUT and name in status.parameters:
            words += ["-p", f"{name}={parameter_text(status.parameters[name])}"]
    return shlex.join(words)


def parameter_text(value: Any) -> str:
    """A value as `parameters.parse_parameters` reads it from the command line.

    >>> [parameter_text(v) for v in ([8, 5], True, None, "a b", ["a,b"], 0.5)]
    ['8,5', 'true', 'none', 'a b', '["a,b"]', '0.5']
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        numbers = value and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        return ",".join(map(repr, value)) if numbers else json.dumps(list(value), ensure_ascii=False)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
