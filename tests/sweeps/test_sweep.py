"""Which runs are done, done again, waited for or kept: first with a pool that only writes what a job would write, then
with jobs and kernels."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sweep_tools import command, environment, injected, kwsbench, outputs, statuses, write_notebook

from kwsbench.files import locked, write_json
from kwsbench.reports.notebooks import DEAD_KERNEL
from kwsbench.reports.status import Failure, RunStatus
from kwsbench.sweeps.job import BUSY, CHANGED, INTERRUPTED, UNWRITABLE, Order
from kwsbench.sweeps.pool import Ended, LocalPool
from kwsbench.sweeps.spec import Overrides, Sweep, read_sweep
from kwsbench.sweeps.sweep import DEAD_JOB, MAX_DEATHS, Progress, SweepStopped, in_words, run_sweep, summary


def plan(folder: Path, text: str = "grid: {x: [1, 2, 3]}\n", jobs: int = 1) -> Sweep:
    if not (folder / "n.ipynb").exists():
        write_notebook(folder / "n.ipynb", "x: int = 0", "print(x)")
    (folder / "s.yaml").write_text(f"notebooks: [n.ipynb]\nprofile: smoke\njobs: {jobs}\n{text}")
    return read_sweep(folder / "s.yaml", Overrides(folder / "out", folder / "root"))


def finish(order: Order, state: str = "passed", kind: str = "", message: str = "", deaths: int = 0) -> int:
    """What a job leaves behind."""
    folder = Path(order.out) / "runs" / order.name
    before = RunStatus.load(folder / "status.json") if (folder / "status.json").is_file() else None
    status = RunStatus(
        order.name,
        "n.ipynb",
        order.title,
        state,
        order.profile,
        order.parameters,
        tuple(order.given),
        "",
        seconds=2.0,
        failure=Failure(kind, message, "") if kind else None,
        identity=order.identity,
        attempts=(before.attempts if before else 0) + 1,
        deaths=(before.deaths if before else 0) + deaths,
    )
    write_json(folder / "metrics.json", {"figures": {}, "systems": []})
    (folder / "notebook.ipynb").write_text("{}")
    status.save(folder / "status.json")
    return 0


class Scripted:
    """A pool whose jobs do what a script says, in turn: a function of the order that returns how the job ended."""

    slots, where = 2, "nowhere"

    def __init__(self, *script: Callable[[Order], int | Ended]) -> None:
        self.script, self.ended, self.orders, self.stopped = list(script), [], [], 0

    def submit(self, name: str, order: str, timeout_seconds: float) -> None:
        self.orders.append(Order(**json.loads(order)))
        act = self.script.pop(0) if self.script else finish
        code = act(self.orders[-1])
        self.ended.append(code if isinstance(code, Ended) else Ended(name, code, why=f"status {code}"))

    def wait(self, seconds: float) -> list[Ended]:
        ended, self.ended = self.ended, []
        return ended

    def stop(self) -> None:
        self.stopped += 1


def names(pool: Scripted) -> list[int]:
    return [order.parameters["x"] for order in pool.orders]


def test_everything_is_run_once_and_never_again(tmp_path):
    sweep, pool, rendered = plan(tmp_path), Scripted(), []
    done = run_sweep(sweep, pool, render=lambda: rendered.append(1))
    assert names(pool) == [1, 2, 3] and [s.state for s in done] == ["passed"] * 3 and rendered
    assert [s.parameters["x"] for s in done] == [1, 2, 3] and pool.stopped == 1
    again = Scripted()
    assert run_sweep(plan(tmp_path), again) == done and not again.orders


def test_failures_are_kept_and_repeated_only_when_asked(tmp_path, capsys):
    bad = (
        lambda o: finish(o, "failed", "ValueError", "no\nmore"),
        lambda o: finish(o, "timed out", "Timeout", "stopped after 300 s"),
    )
    done = run_sweep(plan(tmp_path), Scripted(*bad))
    assert [s.state for s in done] == ["failed", "timed out", "passed"]
    said = summary(plan(tmp_path), done)
    assert "1 failed, 1 passed, 1 timed out" in said and "ValueError: no\n" in said and "--retry-failed" in said
    kept = Scripted()
    assert run_sweep(plan(tmp_path), kept) == done and not kept.orders
    assert "2 failed before and kept (--retry-failed repeats them)" in capsys.readouterr().err
    retried = Scripted()
    done = run_sweep(plan(tmp_path), retried, retry_failed=True)
    assert names(retried) == [1, 2] and [s.state for s in done] == ["passed"] * 3
    assert [s.attempts for s in done] == [2, 2, 1]
    assert summary(plan(tmp_path), done) == "3 runs: 3 passed"


@pytest.mark.parametrize("state", ["running", "interrupted"])
def test_what_was_interrupted_is_done_again(tmp_path, state):
    def leave(order: Order) -> int:
        finish(order, state)
        raise KeyboardInterrupt

    pool = Scripted(finish, leave)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan(tmp_path), pool)
    assert pool.stopped == 1
    again = Scripted()
    done = run_sweep(plan(tmp_path), again)
    assert names(again) == [2, 3]
    assert done[1].attempts == 2


def test_a_kernel_that_dies_is_started_again_and_given_up_after_three_times(tmp_path):
    def dies(order: Order) -> int:
        return (
            finish(order, "failed", DEAD_KERNEL, "Kernel died", deaths=1)
            if order.parameters["x"] == 1
            else finish(order)
        )

    pool = Scripted(*[dies] * 9)
    done = run_sweep(plan(tmp_path), pool)
    assert names(pool).count(1) == MAX_DEATHS and [s.state for s in done] == ["failed", "passed", "passed"]
    kept = Scripted()
    run_sweep(plan(tmp_path), kept)
    assert not kept.orders, "it is a failure like any other now"


def test_a_job_that_is_killed_is_started_again_and_says_what_it_printed(tmp_path):
    def killed(order: Order) -> int:
        if order.parameters["x"] != 1:
            return finish(order)
        finish(order, "running")
        (Path(order.out) / "runs" / order.name / "job.log").write_text("out of memory\n")
        return -9

    pool = Scripted(*[killed] * 9)
    done = run_sweep(plan(tmp_path), pool)
    assert names(pool).count(1) == MAX_DEATHS
    failure = done[0].failure
    assert done[0].state == "failed" and done[0].deaths == MAX_DEATHS and done[0].attempts == MAX_DEATHS
    assert failure.kind == DEAD_JOB and failure.message == "status -9" and failure.traceback == "out of memory\n"


def test_a_job_that_never_wrote_anything(tmp_path):
    done = run_sweep(plan(tmp_path, "grid: {x: [1]}\n"), Scripted(lambda o: 1, lambda o: 1, lambda o: 1))
    assert done[0].state == "failed" and done[0].failure.message == "status 1" and done[0].parameters == {"x": 1}


def test_what_other_workers_gave_up_is_not_tried_again(tmp_path):
    pool = Scripted(lambda o: Ended(o.name, 1, why="its Dask workers died", hopeless=True))
    (status,) = run_sweep(plan(tmp_path, "grid: {x: [1]}\n"), pool)
    assert len(pool.orders) == 1 and status.state == "failed" and status.failure.message == "its Dask workers died"


def test_a_job_stopped_after_its_deadline_has_timed_out(tmp_path):
    def late(order: Order) -> Ended:
        finish(order, "interrupted")
        return Ended(order.name, INTERRUPTED, late=True)

    (status,) = run_sweep(plan(tmp_path, "grid: {x: [1]}\n"), Scripted(late))
    assert status.state == "timed out" and status.failure.message == "stopped after 300 s"


def test_a_job_that_passed_and_then_hung_has_passed(tmp_path):
    def late(order: Order) -> Ended:
        finish(order)
        return Ended(order.name, INTERRUPTED, late=True)

    (status,) = run_sweep(plan(tmp_path, "grid: {x: [1]}\n"), Scripted(late))
    assert status.state == "passed"


@pytest.mark.parametrize(
    "act, says",
    [
        (lambda o: UNWRITABLE, "no file can be written to .*Make room and start the same command again"),
        (
            lambda o: finish(o, "failed", "SafetensorError", "I/O error: No space left on device"),
            "no file can be written",
        ),
        (lambda o: CHANGED, "kwsbench was edited while the sweep ran"),
    ],
)
def test_what_would_fail_every_run_stops_the_sweep(tmp_path, act, says):
    pool = Scripted(finish, act)
    with pytest.raises(SweepStopped, match=says):
        run_sweep(plan(tmp_path), pool)
    assert pool.stopped == 1
    again = Scripted()
    done = run_sweep(plan(tmp_path), again)
    assert [s.state for s in done] == ["passed"] * 3
    assert 1 not in names(again) and 2 in names(again), "what was finished is kept, the rest runs"


def test_runs_of_another_process_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("kwsbench.sweeps.sweep.OTHERS_SECONDS", 0.05)
    sweep = plan(tmp_path)
    orders = {}

    def busy(order: Order) -> int:
        orders[order.name] = order
        finish(order)  # the other process does it in the meantime
        return BUSY

    pool = Scripted(finish, busy, finish)
    done = run_sweep(sweep, pool)
    assert names(pool) == [1, 2, 3] and [s.attempts for s in done] == [1, 1, 1]


def test_a_run_that_another_process_left_unfinished_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr("kwsbench.sweeps.sweep.OTHERS_SECONDS", 0.05)
    pool = Scripted(lambda o: finish(o, "running") or BUSY)
    (status,) = run_sweep(plan(tmp_path, "grid: {x: [1]}\n"), pool)
    assert len(pool.orders) == 2 and status.state == "passed" and status.attempts == 2


@pytest.mark.parametrize("name", ["status.json", "metrics.json", "notebook.ipynb"])
@pytest.mark.parametrize("content", ["{", "", None])
def test_a_damaged_run_is_set_aside_and_made_again(tmp_path, capsys, name, content):
    sweep = plan(tmp_path)
    run_sweep(sweep, Scripted())
    folder = sweep.out / "runs" / sweep.runs[1].name
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    again = Scripted()
    done = run_sweep(sweep, again)
    assert names(again) == [2] and [s.state for s in done] == ["passed"] * 3
    if content is not None:
        assert (folder / f"{name}.corrupt").read_text() == content
        assert "set aside" in capsys.readouterr().err


def test_pages_that_cannot_be_written_do_not_stop_the_runs(tmp_path, capsys):
    def broken() -> None:
        raise OSError("no template")

    done = run_sweep(plan(tmp_path), Scripted(), render=broken)
    assert [s.state for s in done] == ["passed"] * 3
    assert "the pages could not be written (OSError: no template)" in capsys.readouterr().err


def test_pages_are_not_written_all_the_time(tmp_path):
    rendered = []
    run_sweep(
        plan(tmp_path, "grid: {x: [1, 2, 3, 4, 5, 6, 7, 8]}\n"),
        Scripted(),
        render=lambda: (rendered.append(1), time.sleep(0.2)),
    )
    assert len(rendered) == 2, "after the first run and at the end: the rest took less than ten times its time"


def test_the_time_left_comes_from_runs_of_the_same_notebook(tmp_path):
    sweep = plan(tmp_path, "grid: {x: [1, 2, 3, 4, 5]}\n")
    other = replace(sweep.runs[0], name="other", notebook=Path("slow.ipynb"))
    progress = Progress(replace(sweep, runs=(*sweep.runs, other)), slots=2)
    assert progress.left_seconds() is None
    progress.states[sweep.runs[0].name] = "passed"
    progress.seconds["n"] += [10.0]
    assert progress.left_seconds() == (4 * 10 + 10) / 2
    progress.seconds["slow"] += [100.0]
    assert progress.left_seconds() == (4 * 10 + 100) / 2
    assert [in_words(s) for s in (0.2, 50, 600, 9000)] == ["about 1 s", "about 50 s", "about 10 min", "about 2.5 h"]


# ------------------------------------------------------------------ with jobs and kernels

LOG = 'with open("log", "a") as f: print("ran", x, file=f)\n'


def ran(folder: Path) -> list[str]:
    return sorted((folder / "log").read_text().split("\n")[:-1])


def test_a_sweep_from_the_command_line(tmp_path):
    write_notebook(
        tmp_path / "a.ipynb",
        'word: str = ""\nseed: int = 0',
        "import os\nfrom kwsbench.reports.show import publish\n"
        "print(repr(word), os.environ['OMP_NUM_THREADS'], os.environ['NUMBA_NUM_THREADS'])\npublish(double=seed * 2)",
    )
    write_notebook(tmp_path / "b.ipynb", "seed: int = 0", "print('before')", "raise ValueError('no <b>')")
    (tmp_path / "s.yaml").write_text(
        "notebooks: [a.ipynb, b.ipynb]\nprofile: smoke\ngrid: {word: [007, no]}\nseeds: [7]\njobs: 2\nthreads: 3\n"
        "out: out\nroot: root\n"
    )
    done = kwsbench("sweep", tmp_path / "s.yaml")
    assert done.returncode == 1, done.stderr
    assert "3 runs: 1 failed, 2 passed" in done.stdout and "ValueError: no <b>" in done.stderr
    out = tmp_path / "out"
    by_word = {s["parameters"].get("word"): (name, s) for name, s in statuses(out).items()}
    for word in ("007", "no"):
        name, status = by_word[word]
        assert status["state"] == "passed" and status["key_figures"] == {"double": 14} and status["attempts"] == 1
        assert f'word = "{word}"' in injected(out / "runs" / name), "papermill itself would make a number of 007"
        assert outputs(out / "runs" / name) == f"{word!r} 3 3\n"
        assert name == f"a-{status['identity']['address'][:12]}"
        assert (out / f"{name}.html").is_file()
    name, status = by_word[None]
    assert status["state"] == "failed" and outputs(out / "runs" / name) == "before\n"
    assert "no &lt;b&gt;" in (out / f"{name}.html").read_text()
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")}
    again = kwsbench("sweep", tmp_path / "s.yaml")
    assert again.returncode == 1 and "0 to do, 2 done before, 1 failed before and kept" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")} == before


def test_the_validated_notebook_is_what_runs_though_it_is_edited_meanwhile(tmp_path):
    path = tmp_path / "n.ipynb"
    write_notebook(path, "x: int = 0", LOG + "open('n.ipynb', 'w').write('edited')\nprint('as checked')")
    sweep = plan(tmp_path, "grid: {x: [1, 2]}\n")
    done = run_sweep(sweep, LocalPool(1, 1))
    assert path.read_text() == "edited"
    assert [s.state for s in done] == ["passed", "passed"] and ran(tmp_path) == ["ran 1", "ran 2"]
    assert all(outputs(sweep.out / "runs" / s.name) == "as checked\n" for s in done)

    write_notebook(path, "x: int = 0", LOG + "print('another')")
    other = plan(tmp_path, "grid: {x: [1]}\n")
    (status,) = run_sweep(other, LocalPool(1, 1))
    assert status.name not in {s.name for s in done} and len(statuses(sweep.out)) == 3, "old runs stay"
    assert ran(tmp_path) == ["ran 1", "ran 1", "ran 2"]


def test_a_package_edited_meanwhile_stops_the_sweep(tmp_path):
    sweep = plan(tmp_path, "grid: {x: [1]}\n")
    (run,) = sweep.runs
    old = replace(sweep, runs=(replace(run, identity=run.identity | {"code_sha256": "0" * 64}),))
    with pytest.raises(SweepStopped, match="edited while the sweep ran"):
        run_sweep(old, LocalPool(1, 1))
    assert not statuses(sweep.out)


def test_kernels_that_die_once_die_always_or_hang(tmp_path):
    write_notebook(
        tmp_path / "n.ipynb",
        "x: int = 0",
        LOG + "import os, signal, pathlib",
        "if x == 1 and not pathlib.Path('once').exists():\n"
        "    pathlib.Path('once').touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if x == 2:\n    os.write(2, b'last words')\n    os._exit(3)\n"
        "if x == 3:\n    os.kill(os.getpid(), signal.SIGSTOP)\n",
    )
    sweep = replace(plan(tmp_path), timeout_seconds=12.0)
    once, always, hangs = run_sweep(sweep, LocalPool(2, 1))
    assert once.state == "passed" and once.attempts == 2 and once.deaths == 1
    assert always.state == "failed" and always.failure.kind == DEAD_KERNEL and always.attempts == MAX_DEATHS
    assert "last words" in (sweep.out / "runs" / always.name / "job.log").read_text()
    assert hangs.state == "timed out" and hangs.failure.message == "stopped after 12 s" and hangs.attempts == 1
    assert ran(tmp_path) == ["ran 1"] * 2 + ["ran 2"] * 3 + ["ran 3"]


def test_a_job_that_hangs_is_stopped_from_outside(tmp_path, monkeypatch):
    monkeypatch.setattr("kwsbench.sweeps.pool.GRACE_SECONDS", 0.0)
    monkeypatch.setattr("kwsbench.sweeps.pool.STOP_SECONDS", 1.0)
    write_notebook(tmp_path / "n.ipynb", "x: int = 0", "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)")
    sweep = replace(plan(tmp_path, "grid: {x: [1]}\n"), timeout_seconds=6.0)
    (status,) = run_sweep(sweep, LocalPool(1, 1))
    assert status.state == "timed out" and status.failure.message == "stopped after 6 s"


def test_two_sweeps_into_one_folder_at_the_same_time(tmp_path):
    write_notebook(
        tmp_path / "n.ipynb",
        "x: int = 0",
        LOG + "import time\nfrom kwsbench.reports.show import publish\ntime.sleep(1)\npublish(square=x * x)",
    )
    (tmp_path / "s.yaml").write_text(
        "notebooks: [n.ipynb]\nprofile: smoke\ngrid: {x: [1, 2, 3]}\nout: out\nroot: root\n"
    )
    both = [
        subprocess.Popen(
            command("sweep", tmp_path / "s.yaml", "--jobs", "1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all("3 runs: 3 passed" in out for out, _ in said)
    assert ran(tmp_path) == ["ran 1", "ran 2", "ran 3"], "no run twice"
    assert any("by another process" in err or "waiting for another" in err for _, err in said)
    found = statuses(tmp_path / "out")
    assert {(s["parameters"]["x"], s["key_figures"]["square"], s["attempts"]) for s in found.values()} == {
        (1, 1, 1),
        (2, 4, 1),
        (3, 9, 1),
    }
    index = (tmp_path / "out" / "index.html").read_text()
    assert all(name in index for name in found)


def test_ctrl_c_stops_the_jobs_and_the_same_command_goes_on(tmp_path):
    write_notebook(
        tmp_path / "n.ipynb",
        "x: int = 0",
        LOG + "import os, time\nprint('started', flush=True)",
        "if not os.path.exists('go'): time.sleep(200)",
    )
    (tmp_path / "s.yaml").write_text("notebooks: [n.ipynb]\nprofile: smoke\ngrid: {x: [1]}\nout: out\nroot: root\n")
    sweep = subprocess.Popen(
        command("sweep", tmp_path / "s.yaml"), stderr=subprocess.PIPE, text=True, env=environment()
    )
    until = time.monotonic() + 60
    while not (tmp_path / "log").exists() and time.monotonic() < until:
        time.sleep(0.05)
    sweep.send_signal(signal.SIGINT)
    _, said = sweep.communicate(timeout=60)
    assert sweep.returncode == 130 and "what is finished is kept, the same command goes on" in said
    ((name, status),) = statuses(tmp_path / "out").items()
    assert status["state"] == "interrupted"
    assert outputs(tmp_path / "out" / "runs" / name) == "started\n", "what was executed is kept"
    with locked(tmp_path / "out" / "runs" / name, timeout_seconds=0):
        pass
    (tmp_path / "go").touch()
    again = kwsbench("sweep", tmp_path / "s.yaml")
    assert again.returncode == 0, again.stderr
    ((_, status),) = statuses(tmp_path / "out").items()
    assert status["state"] == "passed" and status["attempts"] == 2 and status["deaths"] == 0
