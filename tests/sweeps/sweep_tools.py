"""Small notebooks and specifications for the tests of sweeps: no torch, a kernel's start and a few lines each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


def write_notebook(path: Path, parameters: str, *cells: str, title: str = "Tiny") -> Path:
    """A notebook with a title, a parameters cell and code cells."""
    notebook = new_notebook(cells=[new_markdown_cell(f"# {title}\n\ntext")])
    notebook.cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook.cells.extend(new_code_cell(source) for source in cells)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # otherwise random: the same notebook is the same file
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def write_spec(path: Path, **keys: Any) -> Path:
    """A specification from plain values (JSON is YAML)."""
    path.write_text(json.dumps(keys, indent=1))
    return path


def kwsbench(*words: str | Path, timeout: float = 300, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment())


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "kwsbench.cli", *map(str, words)]


def environment() -> dict[str, str]:
    """Of child processes: this checkout first."""
    checkout = Path(__file__).resolve().parents[2]
    return os.environ | {"PYTHONPATH": str(checkout)}


def statuses(out: Path) -> dict[str, dict[str, Any]]:
    """The status of every run, by name."""
    return {p.parent.name: json.loads(p.read_text()) for p in sorted((out / "runs").glob("*/status.json"))}


def outputs(folder: Path) -> str:
    """What the executed notebook of a run printed."""
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    return "".join(o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs)


def injected(folder: Path) -> str:
    """The source of the cell with which papermill set the parameters."""
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    (cell,) = [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
    return cell.source
