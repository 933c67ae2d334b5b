"""Full disks and folders that take no files: on small file systems of their own, where the system lets us mount one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_tools import outputs, statuses, write_notebook

from kwsbench.sweeps.pool import LocalPool
from kwsbench.sweeps.spec import Overrides, read_sweep
from kwsbench.sweeps.sweep import SweepStopped, run_sweep


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "kwsbench-test", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, timeout=30)
    except OSError:
        pytest.skip("no command mount")
    if done.returncode:
        pytest.skip("mounting needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=30)


def plan(folder: Path, disk: Path):
    (folder / "s.yaml").write_text("notebooks: [n.ipynb]\nprofile: smoke\ngrid: {x: [1, 2, 3]}\n")
    return read_sweep(folder / "s.yaml", Overrides(disk / "out", folder / "root"))


def test_a_full_disk_stops_the_sweep_and_it_goes_on_when_there_is_room(tmp_path, small_disk):
    ballast = small_disk / "ballast"
    write_notebook(
        tmp_path / "n.ipynb",
        f"x: int = 0\nballast: str = {str(ballast)!r}",
        "open('log', 'a').write(f'{x} ')\nprint('x is', x)",
        "if x == 2 and not __import__('os').path.exists('room'):\n"
        "    with open(ballast, 'wb', buffering=0) as file:\n"
        "        while file.write(bytes(4096)): pass\n",
    )
    with pytest.raises(SweepStopped, match=r"no file can be written to .*Make room and start the same command again"):
        run_sweep(plan(tmp_path, small_disk), LocalPool(1, 1))
    assert (tmp_path / "log").read_text() == "1 2 ", "the third run was not begun"
    first = {n: s for n, s in statuses(small_disk / "out").items() if s["state"] == "passed"}
    assert len(first) == 1

    ballast.unlink()
    (tmp_path / "room").touch()
    done = run_sweep(plan(tmp_path, small_disk), LocalPool(1, 1))
    assert [s.state for s in done] == ["passed"] * 3
    assert (tmp_path / "log").read_text() == "1 2 2 3 ", "the finished run was not repeated"
    assert [outputs(small_disk / "out" / "runs" / s.name) for s in done] == ["x is 1\n", "x is 2\n", "x is 3\n"]
    for name, status in first.items():
        assert statuses(small_disk / "out")[name] == status


def test_a_folder_that_is_read_only_is_refused_before_anything_runs(tmp_path, small_disk):
    write_notebook(tmp_path / "n.ipynb", "x: int = 0", "open('log', 'a').write(f'{x} ')")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=30)
    with pytest.raises(ValueError, match=r"cannot write to .*Read-only file system.*choose another output folder"):
        plan(tmp_path, small_disk)
    assert not (tmp_path / "log").exists()


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_stops_the_sweep(tmp_path, small_disk):
    write_notebook(tmp_path / "n.ipynb", "x: int = 0", "open('log', 'a').write(f'{x} ')")
    rendered = []

    def render() -> None:  # called between runs, when no file is open for writing
        rendered.append(1)
        if len(rendered) == 1:
            subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=30)

    with pytest.raises(SweepStopped, match="no file can be written"):
        run_sweep(plan(tmp_path, small_disk), LocalPool(1, 1), render=render)
    assert (tmp_path / "log").read_text() == "1 "
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True, timeout=30)
    assert [s.state for s in run_sweep(plan(tmp_path, small_disk), LocalPool(1, 1))] == ["passed"] * 3
    assert (tmp_path / "log").read_text() == "1 2 3 "


def test_a_sweep_needs_no_torch_of_its_own():
    code = (
        "import sys, kwsbench.sweeps.sweep, kwsbench.sweeps.job, kwsbench.sweeps.spec, kwsbench.sweeps.runs, "
        "kwsbench.sweeps.pool, kwsbench.reports.page; assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
