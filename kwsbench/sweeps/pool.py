"""Where jobs run: a pool takes orders and says which have ended. This one is the machine at hand; see also `cluster`.

A job is a process in a group of its own, whose kernel and workers end with it (kwsbench.processes). Each has its share
of the cores: without that, every one starts as many threads as there are cores, and they stand in each other's way.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Protocol

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# A run has its own deadline; this much later its job is stopped from outside, and after `STOP_SECONDS` killed.
GRACE_SECONDS = 30.0
STOP_SECONDS = 8.0
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Ended:
    """A job that is over."""

    name: str
    code: int  # exit status; negative: the signal that killed it
    late: bool = False  # it was stopped after its deadline
    why: str = ""
    hopeless: bool = False  # it was tried elsewhere already, and is not to be tried again


class Pool(Protocol):
    """Where jobs run."""

    slots: int
    where: str

    def submit(self, name: str, order: str, timeout_seconds: float) -> None: ...

    def wait(self, seconds: float) -> list[Ended]:
        """The jobs that ended since the last call; waits for one, at most so long."""

    def stop(self) -> None:
        """Stop every job, and return when none is left."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs() -> int:
    """Half the cores: a job is a notebook with its kernel, and holds a model and a bank of features in memory."""
    return max(1, cores() // 2)


@dataclass
class Child:
    """A job's process on this machine."""

    order: str
    threads: int
    timeout_seconds: float
    process: subprocess.Popen = field(init=False)
    late: bool = False

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kwsbench.sweeps.job", str(os.getpid())],
            stdin=subprocess.PIPE,
            env=os.environ | {name: str(self.threads) for name in THREAD_VARIABLES},
            process_group=0,  # Ctrl-C reaches the sweep only, which then stops its jobs in order
        )
        self.deadline = time.monotonic() + self.timeout_seconds + GRACE_SECONDS
        self.kill_at = float("inf")
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(self.order.encode())
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once: its exit status says so

    def poll(self) -> int | None:
        """Its exit status, None while it runs; looks after the deadline."""
        code = self.process.poll()
        now = time.monotonic()
        if code is None and now > self.deadline:
            self.late = True
            self.ask_to_stop()
        if code is None and now > self.kill_at:
            self.kill()
        return code

    def ask_to_stop(self) -> None:
        """SIGTERM: the run is saved as interrupted. What does not follow is killed some seconds later."""
        if self.kill_at == float("inf"):
            self.kill_at = time.monotonic() + STOP_SECONDS
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def finish(self) -> int:
        """Stop it and wait until it is gone."""
        self.ask_to_stop()
        try:
            return self.process.wait(timeout=max(0.0, self.kill_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def _signal(self, number: int) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)


class LocalPool:
    """Jobs on this machine."""

    def __init__(self, jobs: int, threads: int | None = None) -> None:
        self.slots = jobs
        self.threads = threads or max(1, cores() // jobs)
        self.where = f"{jobs} at once on this machine, {self.threads} threads each"
        self._children: dict[str, Child] = {}

    def submit(self, name: str, order: str, timeout_seconds: float) -> None:
        self._children[name] = Child(order, self.threads, timeout_seconds)

    def wait(self, seconds: float) -> list[Ended]:
        until = time.monotonic() + seconds
        while True:
            ended = []
            for name, child in list(self._children.items()):
                code = child.poll()
                if code is not None:
                    del self._children[name]
                    ended.append(Ended(name, code, child.late, meaning(code)))
            if ended or time.monotonic() >= until:
                return ended
            time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        for child in self._children.values():
            child.ask_to_stop()
        for child in self._children.values():
            child.finish()
        self._children.clear()


def meaning(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"its process ended with status {code}"
    try:
        return f"its process was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process was killed by signal {-code}"
