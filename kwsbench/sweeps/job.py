"""One run of a sweep, in a process of its own: ``python -m kwsbench.sweeps.job PARENT_PID``, its order on stdin.

The process holds the lock of the run's folder as long as it lives, ends with its parent, and says how it went in the
folder's ``status.json``; its exit status only says whether it could do that. What it and its kernel print goes to
``job.log`` in the folder, which stays only if something was printed.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from kwsbench.files import locked, set_aside
from kwsbench.processes import die_with_parent
from kwsbench.reports.status import RunStatus

# Exit statuses; others are a defect, or a signal.
DONE = 0
BUSY = 75  # another process works on this run
UNWRITABLE = 74  # the folder takes no files: a full disk, a folder that became read-only
CHANGED = 76  # the package is no longer what the run is addressed by
INTERRUPTED = 130

NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
FINAL = ("passed", "failed", "timed out")
LOG = "job.log"


@dataclass(frozen=True)
class Order:
    """What a job is told, as JSON."""

    out: str
    name: str
    notebook: str
    source: str
    title: str
    profile: str
    parameters: dict[str, Any]
    given: dict[str, Any]
    identity: dict[str, Any]
    timeout_seconds: float
    seen_attempts: int  # how often it had been begun when it was ordered: if it was meanwhile, the result is taken

    def dumps(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)


def main() -> int:
    """Do what the order says; returns the exit status."""
    die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    # jsonschema, under nbformat, would build a grammar of web addresses: half of the time that a job takes to start.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    order = Order(**json.loads(sys.stdin.read()))
    try:
        return perform(order)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        print(f"{order.name}: {error}", file=sys.stderr)
        return UNWRITABLE


def perform(order: Order) -> int:
    """Run it unless another process does or did; returns the exit status.

    Raises OSError when the folder cannot be written, KeyboardInterrupt when it is told to stop.
    """
    from kwsbench.reports.notebooks import Planned, run_notebook
    from kwsbench.sweeps.identity import code_sha256

    folder = Path(order.out) / "runs" / order.name
    try:
        with locked(folder, order.name, timeout_seconds=0):
            before = known_status(folder)
            attempts, deaths = (before.attempts, before.deaths) if before else (0, 0)
            if before and before.state in FINAL and (before.state == "passed" or attempts != order.seen_attempts):
                return DONE
            if code_sha256() != order.identity["code_sha256"]:
                return CHANGED
            folder.mkdir(parents=True, exist_ok=True)
            _log_into(folder / LOG)
            planned = Planned(
                Path(order.notebook),
                order.name,
                order.title,
                order.parameters,
                order.given,
                Path(order.source),
                order.identity,
            )
            try:
                run_notebook(
                    planned,
                    Path(order.out),
                    order.timeout_seconds,
                    order.profile,
                    attempts=attempts + 1,
                    deaths=deaths,
                )
            finally:
                _drop_empty(folder / LOG)
    except TimeoutError:
        return BUSY
    return DONE


def known_status(folder: Path) -> RunStatus | None:
    """The RunStatus of a folder, or None: never begun, or damaged, and then set aside and made again.

    A run that says `passed` without all its files counts as damaged.
    """
    path = folder / "status.json"
    if not path.is_file():
        return None
    try:
        status = RunStatus.load(path)
    except ValueError as error:
        set_aside(path, error)
        return None
    if status.state == "passed":
        for file in (folder / "metrics.json", folder / "notebook.ipynb"):
            try:
                json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                set_aside(file if file.is_file() else path, error)
                path.unlink(missing_ok=True)
                return None
    return status


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _log_into(path: Path) -> None:
    """Send what this process and its children print into a file: a kernel that dies often says why there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _drop_empty(path: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if path.is_file() and path.stat().st_size == 0:
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
