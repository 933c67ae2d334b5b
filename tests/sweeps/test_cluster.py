"""The same sweep on a Dask cluster of worker processes: results, dying workers, and clusters that cannot serve."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_tools import environment, outputs, write_notebook

from kwsbench.files import PARTIAL
from kwsbench.sweeps import cluster
from kwsbench.sweeps.cluster import ClusterError, ClusterPool
from kwsbench.sweeps.spec import Overrides, read_sweep
from kwsbench.sweeps.sweep import run_sweep

LOG = "import os\nwith open('log', 'a') as f: print(x, os.getppid(), file=f, flush=True)\n"


def start(*words: str, ready: str) -> tuple[subprocess.Popen, str]:
    """A Dask process, and the line in which it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment() | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"},
    )
    for line in process.stdout:
        if ready in line:
            return process, line
    raise AssertionError(f"no {ready!r}")


def stop(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate(timeout=30)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    words = ("dask_scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard", "--no-show")
    process, line = start(*words, ready="Scheduler at:")
    try:
        yield line.split()[-1]
    finally:
        stop(process)


def worker(scheduler: str, folder: Path) -> subprocess.Popen:
    return start(
        *("dask_worker", scheduler, "--nthreads", "1", "--no-nanny", "--no-dashboard"),
        *("--local-directory", str(folder)),
        ready="Registered to:",
    )[0]


def plan(folder: Path, *cells: str, grid: str = "[1, 2]"):
    write_notebook(folder / "n.ipynb", "x: int = 0", LOG, *cells)
    (folder / "s.yaml").write_text(f"notebooks: [n.ipynb]\nprofile: smoke\ngrid: {{x: {grid}}}\n")
    return read_sweep(folder / "s.yaml", Overrides(folder / "out", folder / "root"))


def ran(folder: Path) -> list[str]:
    path = folder / "log"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def test_the_same_runs_on_a_cluster_each_once(tmp_path, scheduler):
    sweep = plan(tmp_path, "print(os.environ['OMP_NUM_THREADS'])")
    one = worker(scheduler, tmp_path)
    try:
        pool = ClusterPool(scheduler, sweep.out, threads=2)
        assert pool.slots == 1 and "1 Dask workers" in pool.where
        done = run_sweep(sweep, pool)
    finally:
        stop(one)
    assert [s.state for s in done] == ["passed"] * 2 and sorted(ran(tmp_path)) == ["1", "2"]
    assert [outputs(sweep.out / "runs" / s.name) for s in done] == ["2\n"] * 2
    assert not [p for p in sweep.out.iterdir() if PARTIAL.search(p.name)], "the token is gone"


def test_a_worker_that_dies_takes_its_job_along_and_another_does_it(tmp_path, scheduler):
    sweep = plan(tmp_path, "import time\nif not os.path.exists('go'): time.sleep(120)", grid="[1]")
    workers = [worker(scheduler, tmp_path / "1")]
    pool = ClusterPool(scheduler, sweep.out)
    wait = pool.wait

    def watched(seconds: float):
        if len(workers) == 1 and ran(tmp_path):
            (tmp_path / "go").touch()
            workers[0].kill()
            workers.append(worker(scheduler, tmp_path / "2"))
        return wait(seconds)

    pool.wait = watched
    try:
        (status,) = run_sweep(sweep, pool)
    finally:
        for process in workers:
            stop(process)
    assert status.state == "passed" and status.attempts == 2 and ran(tmp_path) == ["1", "1"]
    job = int((tmp_path / "log").read_text().split()[1])
    assert not Path(f"/proc/{job}").exists(), "the job of the dead worker is gone"


@pytest.mark.slow
def test_workers_that_die_again_and_again_fail_the_run(tmp_path, scheduler):
    sweep = plan(tmp_path, "import time\ntime.sleep(120)", grid="[1]")
    workers = [worker(scheduler, tmp_path / "0")]
    pool = ClusterPool(scheduler, sweep.out)
    wait = pool.wait

    def watched(seconds: float):
        if len(ran(tmp_path)) == len(workers) and len(workers) < 3:
            workers[-1].kill()
            workers.append(worker(scheduler, tmp_path / str(len(workers))))
        return wait(seconds)

    pool.wait = watched
    try:
        (status,) = run_sweep(sweep, pool)
    finally:
        for process in workers:
            stop(process)
    assert status.state == "failed" and "its Dask workers died" in status.failure.message
    assert ran(tmp_path) == ["1", "1"], "once more than the scheduler allows failures"


def test_stopping_a_sweep_stops_its_jobs_on_the_workers(tmp_path, scheduler):
    sweep = plan(tmp_path, "import time\ntime.sleep(120)", grid="[1]")
    one = worker(scheduler, tmp_path / "1")
    try:
        pool = ClusterPool(scheduler, sweep.out)
        wait = pool.wait

        def interrupted(seconds: float):
            if ran(tmp_path):
                raise KeyboardInterrupt
            return wait(seconds)

        pool.wait = interrupted
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep, pool)
        (status,) = [json.loads(p.read_text()) for p in sweep.out.glob("runs/*/status.json")]
        assert status["state"] == "interrupted"
        job = int((tmp_path / "log").read_text().split()[1])
        until = time.monotonic() + 20
        while Path(f"/proc/{job}").exists() and time.monotonic() < until:
            time.sleep(0.1)
        assert not Path(f"/proc/{job}").exists()
    finally:
        stop(one)


# ------------------------------------------------------------------ clusters that cannot serve


def test_no_scheduler_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9'.*`dask scheduler`"):
        ClusterPool("tcp://127.0.0.1:9", tmp_path)
    with pytest.raises(ClusterError, match="no Dask scheduler answers at 'nonsense'"):
        ClusterPool("nonsense", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_scheduler_without_workers(tmp_path, scheduler):
    with pytest.raises(ClusterError, match="has no workers; start some with `dask worker tcp://"):
        ClusterPool(scheduler, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match=r"pip install 'kwsbench\[cluster\]'"):
        ClusterPool("tcp://127.0.0.1:9", tmp_path)


def test_workers_that_see_other_files_or_run_another_version(tmp_path, scheduler, monkeypatch):
    one = worker(scheduler, tmp_path / "1")
    try:
        here = cluster.surroundings()
        monkeypatch.setattr(cluster, "surroundings", lambda: here | {"code_sha256": "other"})
        with pytest.raises(ClusterError, match="has another version of kwsbench's code"):
            ClusterPool(scheduler, tmp_path)
        other = here | {"environment": here["environment"] | {"numpy": "0.1"}}
        monkeypatch.setattr(cluster, "surroundings", lambda: other)
        with pytest.raises(ClusterError, match=r"has numpy .*, here it is 0.1; install the same versions"):
            ClusterPool(scheduler, tmp_path)
        monkeypatch.setattr(cluster, "surroundings", lambda: here)
        check = ClusterPool._check
        monkeypatch.setattr(ClusterPool, "_check", lambda pool: pool.token.unlink() or check(pool))
        with pytest.raises(ClusterError, match=r"does not see .*\(a shared file system\)"):
            ClusterPool(scheduler, tmp_path)
        monkeypatch.setattr(cluster, "look", int)  # fails on the worker
        with pytest.raises(ClusterError, match="a worker cannot run kwsbench"):
            ClusterPool(scheduler, tmp_path)
    finally:
        stop(one)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_a_worker_starts_nothing_for_a_sweep_that_is_gone(tmp_path):
    assert json.loads(cluster.work("{}", str(tmp_path / "token"), 1, 10.0)) == {"code": 130, "late": False}
