"""Processes end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = (
    "from kwsbench.processes import die_with_parent; import time; die_with_parent({parent}); print('up', flush=True); "
)
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}.replace("PARENT", str(os.getpid()))], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.parametrize("platform", ["this", "one without prctl"])
def test_a_child_ends_when_its_parent_is_killed(platform):
    child = CHILD.format(parent="PARENT") + "time.sleep(60)"
    if platform != "this":
        child = "import sys; sys.platform = 'other'; " + child
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(child=child)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.communicate(timeout=30)
    until = time.monotonic() + 20
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)


def test_a_parent_that_is_gone_already_is_noticed():
    code = CHILD.format(parent=2**22 + 1)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == -signal.SIGKILL and "up" not in run.stdout


def test_a_parent_that_lives_is_left_alone():
    code = CHILD.format(parent=os.getpid())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and run.stdout == "up\n"
