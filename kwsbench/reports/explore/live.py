"""Whether somebody sits in front of the notebook: live widgets for them, static figures for a batch run."""

from __future__ import annotations

import os

from IPython import get_ipython

MODES = ("auto", "yes", "no")


def is_live(mode: str = "auto") -> bool:
    """Whether explorers show widgets.

    ``auto``: where a kernel was started by JupyterLab's server (``JPY_SESSION_NAME``) or by VS Code (``VSCODE_*``) and
    its client can answer questions, which papermill and nbconvert cannot. ``KWSBENCH_LIVE=0`` in the environment is a
    no to every mode: batch runs set it.

    Raises:
        ValueError: another mode.
    """
    if mode not in MODES:
        raise ValueError(f"live must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "no" or os.environ.get("KWSBENCH_LIVE") == "0":
        return False
    if mode == "yes":
        return True
    front_end = "JPY_SESSION_NAME" in os.environ or any(name.startswith("VSCODE_") for name in os.environ)
    kernel = getattr(get_ipython(), "kernel", None)
    return front_end and kernel is not None and bool(getattr(kernel, "_allow_stdin", True))
