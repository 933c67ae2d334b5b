"""What a run is addressed by: everything its result depends on, as one SHA-256.

- the sources of the notebook's code cells (outputs, metadata and prose do not count),
- every parameter but ``root`` (where artifacts are kept changes no result), with the content of the corpus in the place
  of its path,
- the sources of this package,
- the environment: python, machine, versions of the direct dependencies.

Not counted: files that a notebook reads by other ways than ``data``, the number of threads, and which processor or GPU
computes (a torch build for CUDA has a version of its own). Changing prose, even a title, makes no new run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

import kwsbench
from kwsbench.files import locked, write_json

WHERE = "root"
HASHES = "corpus-hashes"


def surroundings() -> dict[str, Any]:
    """The parts of an identity that all runs of one call share: the code, and the environment."""
    return {"code_sha256": code_sha256(), "environment": environment()}


def address(
    notebook_sha256: str, parameters: Mapping[str, Any], data_sha256: str | None, around: Mapping[str, Any]
) -> dict[str, Any]:
    """The identity of a run (see RunStatus.identity): its parts, and ``address``, the hash of all of them.

    Args:
        around: see `surroundings`.

    Raises ValueError for a parameter that JSON does not have (NaN).
    """
    given = {k: v for k, v in parameters.items() if k != WHERE}
    if data_sha256 is not None:
        given["data"] = data_sha256
    parts = {"notebook_sha256": notebook_sha256, "data_sha256": data_sha256, **around}
    return {"address": _sha256(canonical(parts | {"parameters": given}).encode()), **parts}


def canonical(value: Any) -> str:
    """JSON with one spelling for one value. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def notebook_sha256(notebook: NotebookNode) -> str:
    """Hash of the sources of the code cells, in order."""
    return _sha256(canonical([cell.source for cell in notebook.cells if cell.cell_type == "code"]).encode())


def code_sha256() -> str:
    """Hash of the package's Python sources: paths and contents, as they lie on disk now."""
    root = Path(kwsbench.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()} {_sha256(path.read_bytes())}\n".encode())
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """Python, machine, and the versions of the direct dependencies that are installed."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for requirement in importlib.metadata.requires("kwsbench") or ():
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        if "extra ==" not in requirement:
            found[name] = importlib.metadata.version(name)
    return found


def embedded_sha256(profile: str, keyword: str) -> str:
    """Stands for the content of the embedded corpus: the address of its recipe. ``keyword``: a word, or a task of
    several (see data.clips.clip_task).

    Raises ValueError for a word that it cannot say, PackageNotFoundError without the synthesizer.
    """
    from kwsbench.data.clips import clip_task, synthetic_recipe
    from kwsbench.data.synth import content_address

    return f"synth-{content_address(synthetic_recipe(clip_task(keyword), profile))}"


def corpus_sha256(data: Path, root: Path) -> str:
    """Hash over path, size and content of every file of a corpus: a folder, or the folder of a CSV manifest.

    Contents are read once: their hashes are kept in ``root`` by path, size and time of the last change. A file that
    changes without either is not noticed.

    Raises OSError for a file that cannot be read.
    """
    folder = (data if data.is_dir() else data.parent).resolve()
    kept = root / f"{HASHES}-{_sha256(str(folder).encode())[:12]}.json"
    known = _known(kept)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        rows = dict(pool.map(lambda path: _row(path, folder, known), files))
    if rows != known and root.is_dir():
        with locked(kept.with_suffix("")):
            write_json(kept, rows)
    named = data.name if data.is_file() else ""
    return _sha256(canonical([named, [[path, row[0], row[2]] for path, row in sorted(rows.items())]]).encode())


def _row(path: Path, folder: Path, known: Mapping[str, list]) -> tuple[str, list]:
    name, stat = path.relative_to(folder).as_posix(), path.stat()
    before = known.get(name)
    if before and before[:2] == [stat.st_size, stat.st_mtime_ns]:
        return name, before
    with path.open("rb") as file:
        return name, [stat.st_size, stat.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()]


def _known(kept: Path) -> dict[str, list]:
    """What was hashed before; a file of hashes that is damaged counts as none."""
    try:
        rows = json.loads(kept.read_text(encoding="utf-8"))
        return {name: [int(size), int(time), str(digest)] for name, (size, time, digest) in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
