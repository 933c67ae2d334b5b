"""The kernel of a batch run: ipykernel, which ends with the process that started it.

``python -m kwsbench.reports.kernel -f CONNECTION_FILE``. jupyter_client puts a kernel into a session of its own, so
that killing a run's process group misses it; ipykernel itself notices within a second that its parent is gone, and not
at all while it computes outside of Python.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kwsbench.processes import die_with_parent


def main() -> None:
    """Hold on to the parent, then become ipykernel."""
    parent = os.environ.get("JPY_PARENT_PID")  # set by jupyter_client
    if parent:
        die_with_parent(int(parent))
    # `python -m` put the working folder first; ipykernel adds it again once it has imported its own modules.
    if sys.path[0] == "" or Path(sys.path[0]) == Path.cwd():
        del sys.path[0]
    from ipykernel import kernelapp

    kernelapp.launch_new_instance()


if __name__ == "__main__":
    main()
