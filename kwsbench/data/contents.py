"""What is in files: SHA-256 by content, so that a recording that was replaced by one of the same length is noticed.

    content_rows(root, ["yes/a.wav", ...], cache_dir) -> {"yes/a.wav": [bytes, time of the last change in ns, SHA-256]}

With ``cache_dir`` a file is read once: its row is kept there, and holds as long as the file's size and time of the last
change do. A file that changes without either is not noticed. One that changed within two seconds of being read is not
kept: clocks of file systems are too coarse to tell a second change from the first.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kwsbench.files import locked, write_json

HASHES = "contents"
SETTLED_NS = 2_000_000_000
GONE = [-1, 0, ""]
Row = list  # [size in bytes, time of the last change in ns, SHA-256 as hex]


def content_rows(root: str | Path, paths: Iterable[str], cache_dir: str | Path | None = None) -> dict[str, Row]:
    """A row per path (posix, below ``root``), in the order of the paths; ``GONE`` for a file that cannot be read."""
    root = Path(root).resolve()
    kept = None if cache_dir is None else Path(cache_dir) / f"{HASHES}-{_sha256(str(root))[:12]}.json"
    known = _load(kept) if kept else {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        rows = dict(pool.map(lambda path: (path, _row(root / path, known.get(path))), paths))
    if kept:
        before = time.time_ns() - SETTLED_NS
        fresh = {p: row for p, row in rows.items() if known.get(p) != row and row != GONE and row[1] < before}
        if fresh:
            with locked(kept.with_suffix("")):
                write_json(kept, _load(kept) | fresh)
    return rows


def content_sha256(root: str | Path, paths: Iterable[str], cache_dir: str | Path | None = None) -> str:
    """One hash over the contents of files in the order of their paths; a file that is gone counts as such."""
    return _sha256("".join(f"{row[2] or '-'}\n" for row in content_rows(root, paths, cache_dir).values()))


def _row(path: Path, before: Row | None) -> Row:
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            if before and before[:2] == [stat.st_size, stat.st_mtime_ns]:
                return before
            return [stat.st_size, stat.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()]
    except OSError:
        return GONE


def _load(kept: Path) -> dict[str, Row]:
    """What was read before; a file of hashes that is damaged counts as none."""
    try:
        rows = json.loads(kept.read_text(encoding="utf-8"))
        return {path: [int(size), int(time), str(digest)] for path, (size, time, digest) in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
