"""Files that other processes may read or write at the same time: whole or not there, and made by one process.

A file is written under a name of its own (process, thread and a random part) beside its target and then renamed,
so that a reader never sees half of it and two writers never share a temporary. A lock is held on an open file
(``flock``): it ends with the process that holds it, however that process ends, so a killed run leaves none behind.
What a killed process leaves are temporaries, ``.<name>.<owner>.partial``; the next holder of the folder's lock
removes those whose process is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

PARTIAL = re.compile(r"\.partial(\.[A-Za-z0-9]+)?$")
OWNER = re.compile(r"\.(?P<host>[^.]+)-(?P<pid>\d+)-[0-9a-f]{8}\.partial")
LOCKS = ".locks"


@contextlib.contextmanager
def replacing(path: str | Path, suffix: str = "") -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and is gone when it does not.

    ``suffix``: an ending that a library insists on, for example ``".npz"``.

    Raises:
        OSError: the folder cannot be made or written (a full disk, a read-only folder); ``path`` is then as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path, suffix)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def partial_path(path: Path, suffix: str = "") -> Path:
    """A new temporary's path beside ``path``, named by its owner: `remove_leftovers` removes it when that is gone."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial{suffix}")


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file: whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file: whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: Any, sort_keys: bool = True) -> None:
    """Write a JSON file: whole or not at all. NaN and infinities are refused (ValueError): JSON has none."""
    write_text(path, json.dumps(value, indent=1, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def locked(folder: str | Path, what: str = "", timeout_seconds: float = -1) -> Iterator[None]:
    """Hold the lock of a folder, which need not exist; wait for whoever has it, and say so.

    ``what`` names the work in the message. On entry the temporaries of processes that are gone are removed.
    The lock may be taken again by the thread that holds it. It lies beside the folder, in ``.locks``: the folder may
    be removed while it is held.

    Raises:
        TimeoutError: another process still has it after ``timeout_seconds`` (negative: wait for ever).
        PermissionError: the folder cannot be written.
    """
    folder = Path(folder)
    locks = folder.parent / LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / folder.name, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if timeout_seconds != 0:
            print(f"waiting for another process: {what or folder.name}", file=sys.stderr, flush=True)
        try:
            lock.acquire(timeout=timeout_seconds, poll_interval=0.1)
        except Timeout:
            raise TimeoutError(f"another process works in {folder} ({what or 'locked'})") from None
    try:
        remove_leftovers(folder)
        yield
    finally:
        lock.release()


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove temporaries in ``folder`` whose process on this machine is gone; returns what was removed."""
    removed = []
    for path in folder.iterdir() if folder.is_dir() else ():
        owner = OWNER.search(path.name)
        if owner and PARTIAL.search(path.name) and owner["host"] == _host() and not _alive(int(owner["pid"])):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def set_aside(path: Path, why: Exception) -> Path:
    """Rename a file that cannot be read to ``<name>.corrupt``, so that it can be made again, and say so."""
    aside = path.with_name(path.name + ".corrupt")
    os.replace(path, aside)
    print(f"{path} cannot be read ({why}); it was set aside as {aside.name} and is made again", file=sys.stderr)
    return aside


def check_writable(folder: str | Path) -> None:
    """Create a folder and prove that it takes a file.

    Raises:
        PermissionError: it cannot be created or written (named, before any work starts).
    """
    folder = Path(folder)
    probe = folder / f".write-test.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"cannot write to {folder} ({error.strerror}); choose another output folder") from error


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname()) or "host"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
