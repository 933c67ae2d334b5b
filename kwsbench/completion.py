"""What the shell offers after <TAB>: profiles, methods, keywords, runs, notebooks, sweeps.

Asked at every key press, so nothing here imports more than the standard library. The fixed lists repeat tables of rooms
that load torch; a test holds them equal.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

PROFILES = ("smoke", "default", "full")
METHODS = ("linear", "tanh", "dorefa")
BATCHNORM = ("unfolded", "folded")
SPLITS = ("train", "validation", "test")
MANIFEST_ROWS = 100_000  # read at most, so that an answer takes no longer than a blink


def profiles(incomplete: str) -> list[str]:
    """Names of profiles."""
    return _starting(PROFILES, incomplete)


def methods(incomplete: str) -> list[str]:
    """Names of the package's quantizers."""
    return _starting(METHODS, incomplete)


def batchnorm_forms(incomplete: str) -> list[str]:
    """Forms of quantized batchnorm."""
    return _starting(BATCHNORM, incomplete)


def keywords(ctx: Any, incomplete: str) -> list[str]:
    """Words of the corpus that the line names so far (``--data``, an argument, or KWSBENCH_SPEECH)."""
    # An argument before an option that still lacks its value is not parsed yet: it is among the words left over.
    given = ctx.params.get("data") or next(iter(ctx.args), "") or os.environ.get("KWSBENCH_SPEECH", "")
    try:
        return sorted({w for w in _words(Path(given)) if w.startswith(incomplete)}) if given else []
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def runs(ctx: Any, incomplete: str) -> list[str]:
    """Folders of finished or begun runs, as paths: below the folder that is typed, else below ``reports``."""
    folder = incomplete.rpartition("/")[0] or "/"
    typed = Path(folder) if "/" in incomplete else Path(str(ctx.params.get("out") or "reports"))
    holders = (typed, typed / "runs", typed.parent if typed.name == "runs" else typed)
    found = {str(status.parent) for folder in holders for status in folder.glob("*/status.json")}
    return sorted(path for path in found if path.startswith(incomplete)) or sorted(found if not incomplete else [])


def run_names(ctx: Any, incomplete: str) -> list[str]:
    """Names of the runs below the folder that the line names (``--out``, else ``reports``)."""
    folder = Path(str(ctx.params.get("out") or "reports")) / "runs"
    return _starting(sorted(status.parent.name for status in folder.glob("*/status.json")), incomplete)


def notebooks(incomplete: str) -> list[str]:
    """Notebooks in the folder that is typed, else in ``notebooks`` and here."""
    return _files(incomplete, "ipynb", "notebooks")


def sweeps(incomplete: str) -> list[str]:
    """YAML files in the folder that is typed, else in ``sweeps`` and here."""
    return sorted({*_files(incomplete, "yaml", "sweeps"), *_files(incomplete, "yml", "sweeps")})


def _starting(names: Any, incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _files(incomplete: str, ending: str, usual: str) -> list[str]:
    folder = incomplete.rpartition("/")[0]
    folders = [Path(folder or "/")] if "/" in incomplete else [Path(), Path(usual)]
    found = [str(path) for f in folders for path in f.glob(f"*.{ending}")]
    return sorted(path for path in found if path.startswith(incomplete))


def _words(corpus: Path) -> Iterator[str]:
    manifest = corpus if corpus.suffix.lower() == ".csv" else corpus / "manifest.csv"
    if manifest.is_file():
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            words = {row.get("label") or "" for row in islice(csv.DictReader(file), MANIFEST_ROWS)}
    else:
        folder = corpus / "train" if (corpus / "train").is_dir() else corpus
        words = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    return (word for word in words if word and not word.startswith(("_", ".")))
