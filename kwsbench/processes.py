"""Processes that end with the process that started them, however that one ends.

A sweep starts jobs, a job starts a kernel, a kernel starts workers: each holds on to its parent, so killing any of
them (``kill -9``, a full memory, a closed terminal) takes along what it had started, and leaves nothing that computes,
keeps a lock or writes. On Linux the system does it at once (``PR_SET_PDEATHSIG``, prctl(2)); elsewhere a thread looks
twice a second. The signal comes when the *thread* that started the child ends, so that thread has to outlive it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
LOOK_SECONDS = 0.5


def die_with_parent(parent_pid: int) -> None:
    """Kill this process as soon as its parent has ended; at once when it already has.

    Args:
        parent_pid: what the parent says its process id is, so that a parent that ended before this call is noticed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent_pid,), daemon=True, name="parent watch").start()
    if os.getppid() != parent_pid:
        _end()


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(LOOK_SECONDS)
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
