"""kill -9 at random moments of a sweep, then the same command again: nothing lost, nothing repeated, the same table.

What is executed is counted from outside: each notebook appends a line to a log when it begins and when it ends.
``KWSBENCH_FIGURES=path`` writes what was counted as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from sweep_tools import command, environment, kwsbench, statuses, write_notebook, write_spec

from kwsbench.files import PARTIAL
from kwsbench.sweeps.identity import surroundings

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the process tree in /proc")

VICTIMS = ("sweep", "tree", "job", "kernel")
LOG = """
import os, time
def log(*words):
    line = " ".join(map(str, words)) + "\\n"
    with open("log", "ab", buffering=0) as file:
        file.write(line.encode())
"""
ALONE = (
    LOG + 'log("begin", "alone", x)\ntime.sleep(0.2)',
    'from kwsbench.reports.show import publish\npublish(result=x * x)\nlog("end", "alone", x)',
)
SHARED = (
    LOG + 'log("begin", "shared", x, seed)',
    """
import json
from pathlib import Path
from kwsbench.files import locked, write_json
stage = Path(root) / f"stage-{seed}"
with locked(stage):
    if not (stage / "value.json").is_file():
        log("stage", seed)
        time.sleep(0.3)
        write_json(stage / "value.json", {"value": 100 + seed})
value = json.loads((stage / "value.json").read_text())["value"]
""",
    'from kwsbench.reports.show import publish\npublish(result=value * x)\nlog("end", "shared", x, seed)',
)


def make_sweep(folder: Path, xs: int, seeds: int) -> tuple[Path, dict[tuple, int]]:
    """A specification over two notebooks, and the result of each run by notebook, x and seed."""
    write_notebook(folder / "alone.ipynb", "x: int = 0", *ALONE)
    write_notebook(folder / "shared.ipynb", 'x: int = 0\nseed: int = 0\nroot: str = "."', *SHARED)
    spec = write_spec(
        folder / "spec.yaml",
        notebooks=["alone.ipynb", "shared.ipynb"],
        profile="smoke",
        grid={"x": list(range(1, xs + 1))},
        seeds=list(range(seeds)),
        root="root",
        out="out",
        jobs=2,
        timeout_minutes=5,
    )
    results: dict[tuple, int] = {("alone.ipynb", x, None): x * x for x in range(1, xs + 1)}
    for x in range(1, xs + 1):
        results |= {("shared.ipynb", x, seed): (100 + seed) * x for seed in range(seeds)}
    return spec, results


@dataclass
class Count:
    """What all trials together came to."""

    trials: int = 0
    victims: Counter = field(default_factory=Counter)
    finished_before_kill: int = 0
    begun_and_killed: int = 0  # runs that had to be begun again
    lost: int = 0
    repeated: int = 0
    unreadable: int = 0
    temporaries_left: int = 0
    tables_that_differ: int = 0
    stages_made_again: int = 0
    survivors: int = 0  # processes that outlived the sweep that had started them

    def flawless(self) -> bool:
        flaws = (self.lost, self.repeated, self.unreadable, self.temporaries_left, self.tables_that_differ)
        return not any((*flaws, self.stages_made_again, self.survivors))


def trial(folder: Path, rng: random.Random, victim: str, xs: int, seeds: int, count: Count) -> str:
    """One kill and one resumption; returns the final table."""
    spec, results = make_sweep(folder, xs, seeds)
    out = folder / "out"
    victim, before, begun_before = kill_once(spec, out, rng, victim, len(results), count)
    count.trials += 1
    count.victims[victim] += 1
    count.finished_before_kill += len(before)
    stages = {p: p.stat().st_mtime_ns for p in folder.glob("root/*/value.json")}

    resumed = kwsbench("sweep", spec, timeout=240)
    assert resumed.returncode == 0, resumed.stderr
    after = statuses(out)
    count.lost += sum(after.get(name, {}).get("state") != "passed" for name in before)
    count.repeated += sum(finished(out).get(name) != seen for name, seen in before.items())
    count.stages_made_again += sum(p.stat().st_mtime_ns != at for p, at in stages.items())
    begun, ended = executions(folder, "begin"), executions(folder, "end")
    assert set(begun) == set(ended) and len(begun) == len(results), "every run was executed to its end"
    count.begun_and_killed += sum(n - 1 for n in begun.values())
    done = {run_key(after[name]) for name in before}
    count.repeated += sum(begun[key] != begun_before[key] for key in done)
    count.unreadable += sum(not readable(path) for path in folder.rglob("*") if path.is_file())
    count.temporaries_left += sum(bool(PARTIAL.search(p.name)) for p in folder.rglob("*"))
    columns = "run,state,notebook,x,seed,result,code"
    table = kwsbench("runs", "list", out, "--json", "--columns", columns)
    assert table.returncode == 0, table.stderr
    rows = {(r["notebook"], r["x"], r["seed"]): r["result"] for r in json.loads(table.stdout)}
    count.tables_that_differ += rows != results
    return table.stdout


def kill_once(
    spec: Path, out: Path, rng: random.Random, victim: str, runs: int, count: Count
) -> tuple[str, dict[str, tuple], Counter]:
    """Start the sweep, kill the victim at a random moment, and wait until what is to end has ended.

    Returns the victim, the runs that had finished then, and how often each had been begun.
    """
    log = open(spec.parent / "sweep.txt", "wb")
    sweep = subprocess.Popen(
        command("sweep", spec), stdout=log, stderr=log, env=environment(), start_new_session=True, cwd=spec.parent
    )
    try:
        after_runs, moment = rng.randrange(runs), rng.random() * 3.0
        give_up = time.monotonic() + 200
        while len(finished(out)) < after_runs and sweep.poll() is None:
            assert time.monotonic() < give_up, "the sweep hangs"
            time.sleep(0.02)
        time.sleep(moment)
        while not (chosen := targets(sweep.pid, victim, rng)) and sweep.poll() is None:
            assert time.monotonic() < give_up, f"no {victim} to kill"
            time.sleep(0.02)
        if sweep.poll() is not None:  # over before the moment came: a kill after the end
            return "none", finished(out), executions(spec.parent, "begin")
        family = descendants(sweep.pid)
        for pid in chosen:
            kill(pid)
        if victim in ("sweep", "tree"):
            sweep.wait(timeout=30)
            count.survivors += len(still_alive(family, seconds=15))
        seen = finished(out), executions(spec.parent, "begin")
        if victim in ("job", "kernel"):
            assert sweep.wait(timeout=240) == 0, (spec.parent / "sweep.txt").read_text()
    finally:
        if sweep.poll() is None:
            sweep.kill()
            sweep.wait()
        log.close()
    return victim, *seen


def finished(out: Path) -> dict[str, tuple]:
    """The runs that have passed: the bytes of their status, and when their files were last written."""
    found = {}
    for path in out.glob("runs/*/status.json"):
        raw = path.read_bytes()
        if json.loads(raw)["state"] == "passed":
            times = tuple(sorted((p.name, p.stat().st_mtime_ns) for p in path.parent.iterdir()))
            found[path.parent.name] = (raw, times)
    return found


def run_key(status: dict) -> str:
    p = status["parameters"]
    return " ".join(str(part) for part in (status["notebook"].split(".")[0], p["x"], p.get("seed")) if part is not None)


def executions(folder: Path, word: str) -> Counter:
    lines = (folder / "log").read_text().splitlines() if (folder / "log").is_file() else []
    return Counter(line.removeprefix(word + " ") for line in lines if line.startswith(word + " "))


def readable(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".ipynb":
            nbformat.validate(nbformat.read(path, as_version=4))
    except Exception as error:
        print(path, error)
        return False
    return True


# ------------------------------------------------------------------ processes


def parents() -> dict[int, tuple[int, str]]:
    """Every process: its parent and its command line. Zombies are left out."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (OSError, ValueError):
                continue
            if state != "Z":
                found[int(folder.name)] = (int(parent), words)
    return found


def descendants(pid: int) -> dict[int, str]:
    table = parents()
    found, level = {}, [pid]
    while level:
        level = [child for child, (parent, _) in table.items() if parent in level]
        found |= {child: table[child][1] for child in level}
    return found


def targets(pid: int, victim: str, rng: random.Random) -> list[int]:
    """Process ids to kill, outermost first."""
    if victim == "sweep":
        return [pid]
    family = descendants(pid)
    if victim == "tree":
        return [pid, *family]
    module = {"job": "kwsbench.sweeps.job", "kernel": "kwsbench.reports.kernel"}[victim]
    matching = sorted(p for p, words in family.items() if module in words)
    return [rng.choice(matching)] if matching else []


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def still_alive(family: dict[int, str], seconds: float) -> list[str]:
    """Of these processes those that have not ended after some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        table = parents()
        left = [words for pid, words in family.items() if pid in table and table[pid][1] == words]
        if not left:
            return []
        time.sleep(0.05)
    print("outlived their sweep:", left)
    return left


# ------------------------------------------------------------------ tests


@pytest.mark.parametrize("victim", ["tree", "kernel"])
def test_a_killed_sweep_goes_on(tmp_path, victim):
    count = Count()
    trial(tmp_path, random.Random(victim), victim, xs=1, seeds=2, count=count)
    assert count.flawless(), count


@pytest.mark.slow
def test_fifty_kills_lose_nothing_and_repeat_nothing(tmp_path):
    rng, count, began = random.Random(20240607), Count(), time.monotonic()
    around = surroundings()
    spec, results = make_sweep(tmp_path / "undisturbed", xs=4, seeds=2)
    assert len(results) == 12
    assert kwsbench("sweep", spec, timeout=240).returncode == 0
    columns = "run,state,notebook,x,seed,result,code"
    undisturbed = kwsbench("runs", "list", tmp_path / "undisturbed" / "out", "--json", "--columns", columns).stdout
    number = 0
    while count.trials - count.victims["none"] < 50:
        number += 1
        assert number < 70, "too many sweeps were over before their moment"
        victim = VICTIMS[number % len(VICTIMS)]
        table = trial(tmp_path / str(number), rng, victim, xs=4, seeds=2, count=count)
        assert surroundings() == around, (
            "the package or its environment was changed meanwhile: runs have other addresses"
        )
        count.tables_that_differ += table != undisturbed
        shutil.rmtree(tmp_path / str(number))  # each has a plotly.min.js
        print(f"{number}: {victim}, finished so far {count.finished_before_kill}, {count.flawless()}", flush=True)
    figures = vars(count) | {
        "victims": dict(count.victims),
        "runs_per_sweep": 12,
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(figures, indent=1))
    if os.environ.get("KWSBENCH_FIGURES"):
        Path(os.environ["KWSBENCH_FIGURES"]).write_text(json.dumps(figures, indent=1) + "\n")
    assert count.flawless(), figures
