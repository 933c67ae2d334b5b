"""Do the runs of a plan that are not done yet, each once, and survive what happens meanwhile.

| state of a run          | on this call                                                       |
|-------------------------|--------------------------------------------------------------------|
| never begun             | runs                                                               |
| passed                  | is done; never repeated                                            |
| running, interrupted    | runs again, unless another process holds its lock: then it is waited for |
| failed, timed out       | is kept; runs again with ``retry_failed``                          |
| failed, its kernel or job died | runs again, until it has died ``MAX_DEATHS`` times          |
| failed, no space left   | runs again                                                         |

A failed run keeps what it executed and does not stop the others. Only what would fail every run stops the sweep: a
disk that takes no more files, and a package that was edited while the sweep ran. The folder may be shared by several
sweeps at the same time: a run has one lock, held by the process that executes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from kwsbench.files import locked, remove_leftovers, write_text
from kwsbench.reports.notebooks import DEAD_KERNEL
from kwsbench.reports.status import Failure, RunStatus
from kwsbench.sweeps.job import BUSY, CHANGED, FINAL, INTERRUPTED, LOG, NO_PLACE, UNWRITABLE, Order, known_status
from kwsbench.sweeps.pool import Ended, Pool
from kwsbench.sweeps.spec import Run, Sweep

MAX_DEATHS = 3
DEAD_JOB = "DeadJobError"
LOOK_SECONDS = 0.25
OTHERS_SECONDS = 1.0  # between two looks at runs that other processes execute
LOG_TAIL_CHARACTERS = 2000
SHOWN = 8


class SweepStopped(RuntimeError):
    """Nothing more can be run now; what is finished is kept, and the same command goes on."""


def summary(sweep: Sweep, statuses: Sequence[RunStatus]) -> str:
    """How a sweep ended, and what to do about what failed."""
    states = Counter(status.state for status in statuses)
    text = f"{len(statuses)} runs: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    bad = [status for status in statuses if status.state != "passed"]
    if not bad:
        return text
    lines = [f"  {s.name} {s.state}{f': {_why(s.failure)}' if s.failure else ''}" for s in bad[:SHOWN]]
    more = [f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    hint = f"what they did is kept in {sweep.out / 'runs'}; --retry-failed repeats them"
    return "\n".join([text, *lines, *more, hint])


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


@dataclass
class Progress:
    """How far a sweep is, and how long the rest may take."""

    sweep: Sweep
    slots: int
    states: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def line(self, run: Run, status: RunStatus, remark: str = "") -> str:
        """What is said of a run that has ended."""
        total = len(self.sweep.runs)
        why = f": {_why(status.failure)}" if status.failure else ""
        left = self.left_seconds()
        eta = f", {in_words(left)} left" if left else ""
        took = f"{status.seconds:.1f} s"
        return (
            f"[{len(self.states):{len(str(total))}}/{total}] {status.state:9} {run.label}  ({remark or took}{why}){eta}"
        )

    def left_seconds(self) -> float | None:
        """From what runs of the same notebook took in this call, or else of any; None before the first has ended."""
        every = [s for taken in self.seconds.values() for s in taken]
        if not every:
            return None
        todo = [run for run in self.sweep.runs if run.name not in self.states]
        work = 0.0
        for run in todo:
            taken = self.seconds.get(run.notebook.stem) or every
            work += sum(taken) / len(taken)
        return work / max(1, min(self.slots, len(todo)))


def run_sweep(
    sweep: Sweep,
    pool: Pool,
    retry_failed: bool = False,
    render: Callable[[], object] = lambda: None,
) -> tuple[RunStatus, ...]:
    """Every run of the plan with its status, in the plan's order. See the table above.

    ``render`` is called after runs, not more often than a tenth of the time it takes, and at the end.

    Raises:
        SweepStopped: see there.
        KeyboardInterrupt: jobs were stopped; their runs say `interrupted`.
    """
    work = _Work(sweep, pool, retry_failed, _Renderer(render))
    try:
        work.do()
    except KeyboardInterrupt:
        say("stopping; what is finished is kept, the same command goes on with the rest")
        raise
    finally:
        pool.stop()
        work.renderer.finish()
    return tuple(work.done[run.name] for run in sweep.runs)


class _Work:
    def __init__(self, sweep: Sweep, pool: Pool, retry_failed: bool, renderer: _Renderer) -> None:
        self.sweep, self.pool, self.renderer = sweep, pool, renderer
        self.runs = {run.name: run for run in sweep.runs}
        self.progress = Progress(sweep, pool.slots)
        self.done: dict[str, RunStatus] = {}
        self.queue: deque[str] = deque()
        self.begun: set[str] = set()
        self.elsewhere: dict[str, float] = {}  # runs of other processes, and when to look again
        self.seen: dict[str, int] = {}  # attempts when the run was ordered
        remove_leftovers(sweep.out)
        for run in sweep.runs:
            status, _ = self._status(run.name)
            self.seen[run.name] = status.attempts if status else 0
            again = retry_failed and status is not None and status.state != "passed"
            if status is None or again or _unfinished(status):
                self.queue.append(run.name)
            else:
                self.done[run.name] = status
                self.progress.states[run.name] = status.state
        self._announce(retry_failed)

    def do(self) -> None:
        while self.queue or self.begun or self.elsewhere:
            while self.queue and len(self.begun) < self.pool.slots:
                self._begin(self.queue.popleft())
            for ended in self.pool.wait(LOOK_SECONDS if self.begun else OTHERS_SECONDS):
                self.begun.remove(ended.name)
                self._ended(ended)
            for name in [n for n, at in self.elsewhere.items() if time.monotonic() >= at]:
                self._look(name)

    def _announce(self, retry_failed: bool) -> None:
        kept = Counter(status.state for status in self.done.values())
        parts = [f"{len(self.queue)} to do"]
        if kept["passed"]:
            parts.append(f"{kept['passed']} done before")
        failed = kept["failed"] + kept["timed out"]
        if failed:
            parts.append(f"{failed} failed before and kept (--retry-failed repeats them)")
        say(f"sweep {self.sweep.name}: {len(self.runs)} runs, {', '.join(parts)}; {self.pool.where}")

    def _status(self, name: str) -> tuple[RunStatus | None, bool]:
        """What is known of a run, and whether another process has it now."""
        folder = self.sweep.out / "runs" / name
        try:
            with locked(folder, timeout_seconds=0):
                return known_status(folder), False
        except TimeoutError:  # what its owner writes is not to be touched
            with suppress(ValueError, FileNotFoundError):
                return RunStatus.load(folder / "status.json"), True
            return None, True

    def _begin(self, name: str) -> None:
        run, sweep = self.runs[name], self.sweep
        try:
            source = keep_source(sweep, run)
        except OSError as error:
            raise _stopped(error, sweep.out) from error
        order = Order(
            out=str(sweep.out),
            name=name,
            notebook=str(run.notebook.absolute()),
            source=str(source),
            title=run.title,
            profile=sweep.profile,
            parameters=run.parameters,
            given=run.given,
            identity=run.identity,
            timeout_seconds=sweep.timeout_seconds,
            seen_attempts=self.seen[name],
        )
        self.pool.submit(name, order.dumps(), sweep.timeout_seconds)
        self.begun.add(name)

    def _ended(self, ended: Ended) -> None:
        if ended.code == BUSY:
            self.elsewhere[ended.name] = time.monotonic() + OTHERS_SECONDS
            say(f"waiting for another process: {self.runs[ended.name].label}")
            return
        if ended.code == UNWRITABLE:
            raise SweepStopped(_no_place(self.sweep.out))
        if ended.code == CHANGED:
            raise SweepStopped(
                "kwsbench was edited while the sweep ran, and a run is addressed by its code. "
                "What is finished is kept; start the same command again to run with the code as it is now"
            )
        status = self._settled(ended)
        if status.failure and _out_of_space(status.failure):
            raise SweepStopped(_no_place(self.sweep.out))
        if _unfinished(status):
            why = status.failure.message if status.failure else ended.why
            say(f"again: {self.runs[ended.name].label} ({_first_line(why)})")
            self.seen[ended.name] = status.attempts
            self.queue.append(ended.name)
        else:
            self._finish(ended.name, status)

    def _settled(self, ended: Ended) -> RunStatus:
        """The status that a job left; written here when it could not."""
        folder = self.sweep.out / "runs" / ended.name
        try:
            with locked(folder, timeout_seconds=5):
                status = known_status(folder) or self._never_begun(ended.name)
                idle = status.attempts == self.seen[ended.name]  # it ended before it wrote that it began
                unsaid = idle or status.state not in FINAL
                if (
                    status.state == "passed"
                    or not unsaid
                    or (ended.code == INTERRUPTED and not ended.late and not idle)
                ):
                    return status
                if ended.late:
                    why = Failure("Timeout", f"stopped after {self.sweep.timeout_seconds:g} s", "")
                    status = replace(status, state="timed out", failure=why)
                else:
                    deaths = MAX_DEATHS if ended.hopeless else status.deaths + 1
                    why = Failure(DEAD_JOB, ended.why, _tail(folder / LOG))
                    status = replace(status, state="failed", failure=why, deaths=deaths)
                status = replace(status, attempts=status.attempts + idle)
                status.save(folder / "status.json")
                return status
        except OSError as error:
            raise _stopped(error, self.sweep.out) from error

    def _never_begun(self, name: str) -> RunStatus:
        run = self.runs[name]
        return RunStatus(
            name,
            run.notebook.name,
            run.title,
            "interrupted",
            self.sweep.profile,
            run.parameters,
            tuple(run.given),
            "",
            identity=run.identity,
            attempts=0,
        )

    def _look(self, name: str) -> None:
        """At a run that another process had: still at it, finished, or to be done here after all."""
        status, busy = self._status(name)
        if busy:
            self.elsewhere[name] = time.monotonic() + OTHERS_SECONDS
            return
        del self.elsewhere[name]
        if status is not None and status.attempts != self.seen[name] and not _unfinished(status):
            self._finish(name, status, "by another process")
        else:
            self.seen[name] = status.attempts if status else 0
            self.queue.append(name)

    def _finish(self, name: str, status: RunStatus, remark: str = "") -> None:
        run = self.runs[name]
        self.done[name] = status
        self.progress.states[name] = status.state
        if not remark:
            self.progress.seconds[run.notebook.stem].append(status.seconds)
        say(self.progress.line(run, status, remark))
        self.renderer.due()


class _Renderer:
    """Renders now and then: a page per run grows with the sweep, and must not take the time of the runs."""

    def __init__(self, render: Callable[[], object]) -> None:
        self.render = render
        self.next = 0.0
        self.pending = False

    def due(self) -> None:
        self.pending = True
        if time.monotonic() >= self.next:
            self._render()

    def finish(self) -> None:
        if self.pending:
            self._render()

    def _render(self) -> None:
        begin = time.monotonic()
        try:
            self.render()
        except Exception as error:  # the pages can be made again from the runs, which go on
            say(f"the pages could not be written ({type(error).__name__}: {error}); the runs are not touched")
        self.pending = False
        self.next = time.monotonic() + 10 * (time.monotonic() - begin)


def keep_source(sweep: Sweep, run: Run) -> Path:
    """The notebook as it was checked, in ``sources/``: editing the file while the sweep runs changes nothing in it."""
    digest = hashlib.sha256(run.source.encode()).hexdigest()[:12]
    path = sweep.out / "sources" / f"{run.notebook.stem}-{digest}.ipynb"
    if not path.is_file():
        write_text(path, run.source)
    return path


def _unfinished(status: RunStatus) -> bool:
    if status.state not in FINAL:
        return True
    if status.failure is None or status.state != "failed":
        return False
    died = status.failure.kind in (DEAD_KERNEL, DEAD_JOB) and status.deaths < MAX_DEATHS
    return died or _out_of_space(status.failure)


def _out_of_space(failure: Failure) -> bool:
    """Whether the disk is to blame, in the words of the system: libraries wrap its error in kinds of their own."""
    return any(os.strerror(number) in failure.message for number in (errno.ENOSPC, errno.EDQUOT))


def _stopped(error: OSError, out: Path) -> Exception:
    return SweepStopped(_no_place(out)) if error.errno in NO_PLACE else error


def _no_place(out: Path) -> str:
    return (
        f"no file can be written to {out} or to where artifacts are kept (a full disk?); what is finished is kept. "
        "Make room and start the same command again"
    )


def _tail(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:]
    except OSError:
        return ""


def _why(failure: Failure) -> str:
    return f"{failure.kind}: {_first_line(failure.message)}"


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 160 else line[:157] + "..."


def in_words(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
