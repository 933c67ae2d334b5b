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
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

import kwsbench
from kwsbench.data.contents import GONE, content_rows

WHERE = "root"


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

    Contents are read once: their hashes are kept in ``root`` (see data.contents), where there is such a folder.

    Raises OSError for a file that cannot be read.
    """
    folder = (data if data.is_dir() else data.parent).resolve()
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    rows = content_rows(folder, files, root if root.is_dir() else None)
    unread = [path for path, row in rows.items() if row == GONE]
    if unread:
        raise OSError(f"{folder / unread[0]} cannot be read (of {len(unread)} such files): give it back, or remove it")
    named = data.name if data.is_file() else ""
    return _sha256(canonical([named, [[path, row[0], row[2]] for path, row in sorted(rows.items())]]).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
