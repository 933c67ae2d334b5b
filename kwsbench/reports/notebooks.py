"""Run notebooks with papermill, one folder per run, ``runs/<name>/``: the executed ``notebook.ipynb``, ``status.json``
and ``metrics.json`` (key figures, and a record of every system that was measured).

Parameters are validated before anything runs. A run always has a deadline. A run that fails keeps what it
executed and its traceback, and does not stop the others. The kernel is a process of this very interpreter,
whatever kernels happen to be installed, works in the notebook's folder, as it does in JupyterLab, and ends with the
process that started it. While it executes, the notebook is saved after every cell under a temporary name.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from markdown_it import MarkdownIt
from nbclient.exceptions import CellTimeoutError
from papermill.exceptions import PapermillExecutionError
from traitlets import default

import kwsbench
from kwsbench.files import check_writable, replacing, write_json
from kwsbench.reports.parameters import declared_parameters, validate_parameters
from kwsbench.reports.show import KEY_FIGURES_MIME, SYSTEMS_MIME
from kwsbench.reports.status import Failure, RunStatus

# Profile -> seconds that one notebook may take.
PROFILES = {"smoke": 300.0, "default": 1200.0, "full": 86400.0}

# The kind of a failure whose kernel is gone, as nbclient calls it.
DEAD_KERNEL = "DeadKernelError"

ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


@dataclass(frozen=True)
class Planned:
    """A notebook with parameters that were found valid."""

    path: Path
    name: str
    title: str
    parameters: dict[str, Any]
    given: dict[str, Any]
    source: Path | None = None  # the copy that is executed; None: the file at `path` itself
    identity: dict[str, Any] = field(default_factory=dict)  # see RunStatus


class _ThisInterpreter(KernelSpecManager):
    """Knows one kernel: ipykernel under the running interpreter."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            # Quiet: at shutdown ipykernel now and then logs its own interrupt as an error.
            argv=[
                *(sys.executable, "-m", "kwsbench.reports.kernel", "-f", "{connection_file}"),
                "--IPKernelApp.log_level=CRITICAL",
            ],
            display_name="kwsbench",
            language="python",
            env={"PYTHONUNBUFFERED": "1", "PLOTLY_RENDERER": "plotly_mimetype", "KWSBENCH_LIVE": "0"},
            metadata={"supported_encryption": "curve"},
        )


class _Kernel(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _only_this_interpreter(self) -> KernelSpecManager:
        return _ThisInterpreter(parent=self)

    @default("transport_encryption")
    def _sealed(self) -> str:
        return "auto"  # other users of this machine could read the kernel's sockets


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Raises FileNotFoundError, or ValueError when the file is no notebook."""
    if not path.is_file():
        raise FileNotFoundError(f"no notebook {path}")
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many kinds
        raise ValueError(f"{path} is not a notebook: {error}") from error


def notebook_title(notebook: nbformat.NotebookNode, fallback: str) -> str:
    """The first level-one heading, as its Markdown inline source."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            tokens = MarkdownIt("commonmark").parse(cell.source)
            for heading, inline in itertools.pairwise(tokens):
                if heading.type == "heading_open" and heading.tag == "h1":
                    return inline.content
    return fallback


def plan_run(path: Path, given: Mapping[str, Any], name: str | None = None) -> Planned:
    """Check a notebook and what is given for its parameters, without running anything.

    Raises FileNotFoundError or ValueError.
    """
    notebook = read_notebook(path)
    declared = declared_parameters(notebook, path.name)
    values = validate_parameters(declared, given, path.name)
    run_name = re.sub(r"[^A-Za-z0-9._-]+", "_", name or path.stem).strip("._") or "run"
    return Planned(path, run_name, notebook_title(notebook, path.stem), values, dict(given))


def run_notebook(
    planned: Planned,
    out_dir: Path,
    timeout_seconds: float,
    profile: str = "",
    progress: bool = False,
    attempts: int = 1,
    deaths: int = 0,
) -> RunStatus:
    """Execute a planned notebook into ``out_dir/runs/<name>`` and say how it went.

    The status is written last, so a run that says `passed` has all its files. ``attempts`` counts this one;
    ``deaths`` are those before it.

    Raises KeyboardInterrupt (the status then says `interrupted`) and OSError when the folder cannot be written.
    """
    folder = out_dir / "runs" / planned.name
    status = RunStatus(
        name=planned.name,
        notebook=planned.path.name,
        title=planned.title,
        state="running",
        profile=profile,
        parameters=planned.parameters,
        given=tuple(planned.given),
        started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"kwsbench": kwsbench.__version__, "python": platform.python_version()},
        notebook_sha256=hashlib.sha256((planned.source or planned.path).read_bytes()).hexdigest(),
        identity=planned.identity,
        attempts=attempts,
        deaths=deaths,
    )
    status.save(folder / "status.json")
    start = time.monotonic()
    interrupt: BaseException | None = None
    kept = folder / "notebook.ipynb"
    kept.unlink(missing_ok=True)  # of an earlier attempt
    with contextlib.suppress(FileNotFoundError), replacing(kept, ".ipynb") as partial:  # nothing was executed
        try:
            _execute(planned, partial, start + timeout_seconds, progress)
            state, failure = "passed", None
        except BaseException as error:  # a dead kernel, a full disk, Ctrl-C: what was executed is kept
            state, failure = _why(error, timeout_seconds)
            interrupt = None if isinstance(error, Exception) else error
        if not _readable(partial):  # half saved, on a full disk
            partial.unlink(missing_ok=True)
    figures, systems = _published(kept) if kept.exists() else ({}, [])
    status = replace(
        status,
        state=state,
        seconds=round(time.monotonic() - start, 2),
        failure=failure,
        key_figures=figures,
        deaths=deaths + (failure is not None and failure.kind == DEAD_KERNEL),
    )
    write_json(folder / "metrics.json", {"figures": status.key_figures, "systems": systems}, sort_keys=False)
    status.save(folder / "status.json")
    if interrupt is not None:
        raise interrupt
    return status


def _why(error: BaseException, timeout_seconds: float) -> tuple[str, Failure | None]:
    if isinstance(error, CellTimeoutError):
        return "timed out", Failure("Timeout", f"stopped after {timeout_seconds:g} s", "")
    if isinstance(error, PapermillExecutionError):
        return "failed", Failure(error.ename, _plain(error.evalue), _plain("\n".join(error.traceback)))
    if isinstance(error, Exception):
        trace = "".join(traceback.format_exception(error))
        # jupyter_client has no kind of its own for a kernel that dies, or is mute, before its first reply.
        kind = DEAD_KERNEL if isinstance(error, RuntimeError) else type(error).__name__
        return "failed", Failure(kind, _plain(str(error)), _plain(trace))
    return "interrupted", None


def _readable(path: Path) -> bool:
    try:
        read_notebook(path)
    except (OSError, ValueError):
        return False
    return True


def _plain(text: str) -> str:
    """Without terminal colours, and without halves of surrogate pairs, which no file takes."""
    return ANSI.sub("", text).encode("utf-8", "replace").decode("utf-8")


def run_all(
    paths: Sequence[Path],
    out_dir: Path,
    profile: str,
    parameters: Mapping[str, Any],
    timeout_seconds: float | None = None,
    after_each: Callable[[RunStatus], None] = lambda status: None,
) -> tuple[RunStatus, ...]:
    """Run notebooks in order. `parameters`, and `profile` itself, go to each notebook that declares them.

    Everything is validated before the first run. Raises ValueError (also for a parameter that no notebook
    declares) or OSError (`out_dir` cannot be written).
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}; got {profile!r}")
    if not paths:
        raise ValueError("no notebooks to run")
    declared = {p: declared_parameters(read_notebook(p), p.name) for p in paths}
    everywhere = [d for ds in declared.values() for d in ds]
    validate_parameters(everywhere, parameters, "the notebooks")
    shared = {"profile": profile, **parameters}
    plans = []
    for path in paths:
        names = {d.name for d in declared[path]}
        plans.append(plan_run(path, {n: v for n, v in shared.items() if n in names}))
    if len({p.name for p in plans}) < len(plans):
        raise ValueError(f"two notebooks share a run name: {sorted(p.name for p in plans)}")
    check_writable(out_dir)

    done = []
    for number, plan in enumerate(plans, 1):
        print(f"[{number}/{len(plans)}] {plan.name} ...", file=sys.stderr, flush=True)
        status = run_notebook(
            plan, out_dir, timeout_seconds or PROFILES[profile], profile, progress=sys.stderr.isatty()
        )
        why = f": {status.failure.kind}: {status.failure.message}" if status.failure else ""
        print(
            f"[{number}/{len(plans)}] {plan.name} {status.state} ({status.seconds:.1f} s){why}",
            file=sys.stderr,
            flush=True,
        )
        done.append(status)
        after_each(status)
    return tuple(done)


def _execute(planned: Planned, output: Path, deadline: float, progress: bool) -> None:
    def literal(path: Path) -> str:
        return str(path).replace("{", "{{").replace("}", "}}")  # papermill formats paths with the parameters

    papermill.execute_notebook(
        literal(planned.source or planned.path),
        literal(output),
        parameters=planned.given,
        kernel_name="python3",
        language="python",
        progress_bar=progress,
        kernel_manager_class=_Kernel,
        resources={"metadata": {"path": str(planned.path.resolve().parent)}},
        # A deadline for the whole run, not for each cell.
        timeout_func=lambda cell: max(1, math.ceil(deadline - time.monotonic())),
    )


def _published(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The key figures and the systems that the executed notebook published; a later figure of the same name wins."""
    found: dict[str, Any] = {}
    systems: list[dict[str, Any]] = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            found.update({row["name"]: row["value"] for row in data.get(KEY_FIGURES_MIME, {}).get("figures", [])})
            systems += data.get(SYSTEMS_MIME, {}).get("systems", [])
    return found, systems
