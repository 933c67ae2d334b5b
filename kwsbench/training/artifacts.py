"""Artifacts: files that are made once, by one process at a time, and made again where they cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kwsbench.files import locked, set_aside, write_json
from kwsbench.training.checkpoints import CheckpointError, OtherModelError, read_tensors

T = TypeVar("T")


def kept(file: Path, what: str, load: Callable[[Path], T], make: Callable[[Path], None]) -> T:
    """What ``load`` reads from ``file``; ``make`` writes it first, under the lock of its folder, if it is not there.

    ``what`` names it to a process that waits. A file that cannot be read (ValueError) is set aside as
    ``<name>.corrupt`` and made again, with a line that says so.

    Raises:
        OtherModelError: the file is whole and holds another model: somebody put it there, so it is not moved.
    """
    if file.is_file():
        try:
            return load(file)
        except OtherModelError:
            raise
        except ValueError as error:
            set_aside(file, error)
    with locked(file.parent, what):
        if not file.is_file():  # another process may have made it meanwhile
            make(file)
    return load(file)


def kept_json(file: Path, what: str, make: Callable[[], Any]) -> Any:
    """Like :func:`kept`, of plain values: what ``make`` returns is written as JSON."""
    return kept(file, what, lambda path: json.loads(path.read_text()), lambda path: write_json(path, make()))


def usable_checkpoint(path: Path) -> Path:
    """``path``, where training may go on from; a file there that cannot be read was set aside first."""
    if path.is_file():
        try:
            read_tensors(path)
        except CheckpointError as error:
            set_aside(path, error)
    return path
