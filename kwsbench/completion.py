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
METHODS = ("linear", "tanh", "dorefa", "general", "general_hard", "general_slow", "lsq", "cosine", "s8b")
BATCHNORM = ("unfolded", "folded")
KINDS = ("float", "control", "stage_one", "stage_two", "post_training")
TASKS = ("commands", "sentences", "librispeech")
ENCODERS = ("lstm", "conformer")
CLIP_PROFILES = ("tiny", "smoke", "default", "full")
STRATEGIES = ("proxyless", "random", "optuna")
FRONTS = ("mfcc10", "mfcc20", "lfbe40", "raw", "sinc")
STATES = ("passed", "failed", "timed out", "interrupted", "running")
MANIFEST_ROWS = 100_000  # read at most, so that an answer takes no longer than a blink


def profiles(incomplete: str) -> list[str]:
    """Names of profiles."""
    return _starting(PROFILES, incomplete)


def methods(incomplete: str) -> list[str]:
    """Names of the package's quantizers."""
    return _starting(METHODS, incomplete)


def kinds(incomplete: str) -> list[str]:
    """Kinds of systems."""
    return _starting(KINDS, incomplete)


def tasks(incomplete: str) -> list[str]:
    """Tasks of recognition."""
    return _starting(TASKS, incomplete)


def encoders(incomplete: str) -> list[str]:
    """Encoders, after those that the word already lists."""
    return _listing(ENCODERS, incomplete)


def clip_profiles(incomplete: str) -> list[str]:
    """Names of profiles of networks on clips."""
    return _starting(CLIP_PROFILES, incomplete)


def strategies(incomplete: str) -> list[str]:
    """Strategies of search, after those that the word already lists."""
    return _listing(STRATEGIES, incomplete)


def fronts(incomplete: str) -> list[str]:
    """Front ends that a search may start from; others are written likewise."""
    return _starting(FRONTS, incomplete)


def clip_tasks(ctx: Any, incomplete: str) -> list[str]:
    """Twelve classes, or a word of the corpus."""
    return [*_starting(("twelve",), incomplete), *keywords(ctx, incomplete)]


def states(incomplete: str) -> list[str]:
    """States of runs."""
    return _starting(STATES, incomplete)


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
    """Folders of reports and sweeps, and of runs: below the folder that is typed, else ``reports``, ``sweeps``."""
    folder = incomplete.rpartition("/")[0] or "/"
    bases = [Path(folder)] if "/" in incomplete else [Path("reports"), Path("sweeps")]
    found = {str(holder.parent) for base in bases for holder in (*base.glob("runs"), *base.glob("*/runs"))}
    found |= {str(s.parent) for base in bases for s in (*base.glob("*/status.json"), *base.glob("runs/*/status.json"))}
    return _starting(sorted(found), incomplete)


def run_names(ctx: Any, incomplete: str) -> list[str]:
    """Names of the runs below the folder that the line names (``--folder``, else ``sweeps``)."""
    folder = Path(str(ctx.params.get("folder") or "sweeps"))
    found = {status.parent.name for at in ("runs/*", "*/runs/*") for status in folder.glob(f"{at}/status.json")}
    return _starting(sorted(found), incomplete)


def notebooks(incomplete: str) -> list[str]:
    """Notebooks in the folder that is typed, else in ``notebooks`` and here."""
    return _files(incomplete, "ipynb", "notebooks")


def sweeps(incomplete: str) -> list[str]:
    """YAML files in the folder that is typed, else in ``notebooks`` and here."""
    return sorted({*_files(incomplete, "yaml", "notebooks"), *_files(incomplete, "yml", "notebooks")})


def _starting(names: Any, incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _listing(names: tuple[str, ...], incomplete: str) -> list[str]:
    done, comma, last = incomplete.rpartition(",")
    return [f"{done}{comma}{name}" for name in _starting(names, last) if name not in done.split(",")]


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
