"""The same jobs on a Dask cluster: ``kwsbench sweep SPEC.yaml --scheduler tcp://host:port``.

Needed: `distributed` here (the extra ``cluster``), this version of kwsbench with the same dependencies on every worker,
and a file system that all see at the same paths (the notebooks, the corpus, ``out`` and ``root``). All that is checked
before the first run. What travels are texts (an order and its outcome, as JSON), no objects of ours.

A worker starts each job as a process, as the local pool does, with the lock of its folder. When a worker dies its jobs
end with it, and Dask gives them to another worker, as often as its setting ``distributed.scheduler.allowed-failures``
says (3 times); after that the run has failed. While the sweep runs, a file ``.sweep.*`` lies in ``out``: workers
stop the sweep's jobs when it is gone.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from kwsbench.files import partial_path, remove_leftovers
from kwsbench.sweeps.identity import surroundings
from kwsbench.sweeps.job import INTERRUPTED
from kwsbench.sweeps.pool import Child, Ended, meaning

CONNECT_SECONDS = 10
LOOK_SECONDS = 0.1
TOKEN_SECONDS = 0.5


class ClusterError(RuntimeError):
    """The cluster cannot serve: what is missing, and what to do."""


class ClusterPool:
    """Jobs on the workers of a Dask scheduler.

    Args:
        address: of the scheduler, such as ``tcp://10.0.0.7:8786``.
        jobs: at most so many at once; None: as many as the workers have threads.
        threads: of each job; None: 1.

    Raises ClusterError.
    """

    def __init__(self, address: str, out: Path, jobs: int | None = None, threads: int | None = None) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise ClusterError("--scheduler needs the library distributed: pip install 'kwsbench[cluster]'") from None
        try:
            self.client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {address!r} ({_short(error)}); start one with `dask scheduler`, workers "
                "with `dask worker ADDRESS`, and give the address that the scheduler prints"
            ) from error
        self.address, self.out, self.threads = address, out, threads or 1
        self._futures: dict[str, Any] = {}
        remove_leftovers(out)
        self.token = partial_path(out / ".sweep")
        try:
            self.token.write_text("workers stop the jobs of a sweep when this file is gone\n", encoding="utf-8")
            workers = self._check()
        except BaseException:
            self.stop()
            raise
        self.slots = jobs or sum(workers.values())
        self.where = f"{self.slots} at once on {len(workers)} Dask workers, {self.threads} threads each"

    def _check(self) -> dict[str, int]:
        """Threads of each worker that can serve; raises ClusterError unless all can."""
        workers = {name: info["nthreads"] for name, info in self.client.scheduler_info(n_workers=-1)["workers"].items()}
        if not workers:
            raise ClusterError(
                f"the scheduler {self.address} has no workers; start some with `dask worker {self.address}`"
            )
        try:
            looked = {n: json.loads(text) for n, text in self.client.run(look, str(self.token)).items()}
        except Exception as error:  # whatever a worker raises comes through here
            raise ClusterError(
                f"a worker cannot run kwsbench ({_short(error)}); start the workers in the environment in which "
                "kwsbench is installed, in the same version"
            ) from error
        blind = [name for name, found in looked.items() if not found["sees"]]
        if blind:
            raise ClusterError(
                f"worker {blind[0]} does not see {self.out}: every worker needs this folder, the notebooks, the corpus "
                "and the artifacts at the same paths (a shared file system)"
            )
        here = surroundings()
        for name, found in looked.items():
            for part, ours in here["environment"].items():
                theirs = found["environment"].get(part)
                if theirs != ours:
                    raise ClusterError(
                        f"worker {name} has {part} {theirs}, here it is {ours}; install the same versions"
                    )
            if found["code_sha256"] != here["code_sha256"]:
                raise ClusterError(f"worker {name} has another version of kwsbench's code; install the same")
        return workers

    def submit(self, name: str, order: str, timeout_seconds: float) -> None:
        self._futures[name] = self.client.submit(
            work,
            order,
            str(self.token),
            self.threads,
            timeout_seconds,
            key=f"kwsbench-{name}-{time.time_ns()}",
            pure=False,
        )

    def wait(self, seconds: float) -> list[Ended]:
        until = time.monotonic() + seconds
        while True:
            if self.client.status not in ("running", "connecting"):
                raise ClusterError("the scheduler is gone; start the same command again to go on")
            ended = [self._ended(name) for name, future in list(self._futures.items()) if future.done()]
            if ended or time.monotonic() >= until:
                return ended
            time.sleep(LOOK_SECONDS)

    def _ended(self, name: str) -> Ended:
        future = self._futures.pop(name)
        if future.status == "finished":
            said = json.loads(future.result())
            return Ended(name, said["code"], said["late"], meaning(said["code"]))
        if future.status == "error":
            error = future.exception()
            # Dask has tried it on several workers already.
            why = (
                f"its Dask workers died ({_short(error)})" if type(error).__name__ == "KilledWorker" else _short(error)
            )
            return Ended(name, 1, why=why, hopeless=True)
        return Ended(name, 1, why=f"Dask lost it ({future.status})")

    def stop(self) -> None:
        """Cancel what waits, stop what runs, and close the connection."""
        self.token.unlink(missing_ok=True)
        try:
            waiting = [future for future in self._futures.values() if not future.done()]
            if waiting and self.client.status == "running":
                _wait_done(waiting)
                self.client.cancel(waiting, force=True)
        finally:
            self._futures.clear()
            self.client.close(timeout=CONNECT_SECONDS)


def look(token: str) -> str:
    """On a worker: what it sees and what it has installed, as JSON."""
    return json.dumps({"sees": os.path.exists(token), **surroundings()})


def work(order: str, token: str, threads: int, timeout_seconds: float) -> str:
    """On a worker: a job as a process, until it ends or the sweep is gone; how it ended, as JSON."""
    if not os.path.exists(token):
        return json.dumps({"code": INTERRUPTED, "late": False})
    child = Child(order, threads, timeout_seconds)
    try:
        look_at = time.monotonic()
        while (code := child.poll()) is None:
            if time.monotonic() > look_at:
                look_at = time.monotonic() + TOKEN_SECONDS
                if not os.path.exists(token):
                    child.ask_to_stop()
            time.sleep(LOOK_SECONDS)
        return json.dumps({"code": code, "late": child.late})
    finally:
        child.finish()


def _wait_done(futures: list[Any], seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not all(future.done() for future in futures):
        time.sleep(LOOK_SECONDS)


def _short(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
