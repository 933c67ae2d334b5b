"""JupyterLab on this machine only: loopback, a random token, no request to others, none of the user's settings changed.

News, update checks and the extension manager are off: by settings overrides (``overrides.json``) in a folder of our
own, where the layout of the workspace goes too. The user's own settings (theme, shortcuts) are read as always.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kwsbench.processes import die_with_parent

HOST = "127.0.0.1"
FIRST_PORT = 8888
PORTS_TRIED = 50
START_SECONDS = 120.0
STOP_SECONDS = 10.0
NOTEBOOK = "99_explore.ipynb"

OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/extensionmanager-extension:plugin": {"enabled": False},
    # Every cell stays in the page: a widget out of view keeps its place and its plot.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
}


@dataclass(frozen=True)
class Server:
    """A JupyterLab that answers. ``ready_seconds``: from its start to its first answer."""

    process: subprocess.Popen
    port: int
    token: str
    ready_seconds: float

    def address(self, notebook: str = NOTEBOOK) -> str:
        """Where to open a notebook, with the token."""
        return f"http://{HOST}:{self.port}/lab/tree/{notebook}?token={self.token}"


@contextmanager
def serving(
    notebooks: Path, root: Path, port: int = 0, overrides: Mapping[str, Mapping[str, Any]] = OVERRIDES
) -> Iterator[Server]:
    """Run JupyterLab on a folder of notebooks while the block lasts; explorers look for artifacts under ``root``.

    ``port`` 0: the first free one from ``FIRST_PORT``.

    Raises:
        FileNotFoundError: no such folder.
        OSError: the port is taken, or none is free.
        RuntimeError: the server ended, or did not answer within ``START_SECONDS``.
    """
    if not notebooks.is_dir():
        raise FileNotFoundError(f"no folder of notebooks {notebooks.resolve()}; run this in the checkout")
    port, token = free_port(port), secrets.token_hex(24)
    with tempfile.TemporaryDirectory(prefix="kwsbench-lab-") as own:
        settings = Path(own) / "settings"
        settings.mkdir()
        (settings / "overrides.json").write_text(json.dumps(overrides))
        start = time.monotonic()
        process = subprocess.Popen(
            _command(notebooks, port, Path(own)),
            # In the environment: everyone on this machine can read a command line.
            env={**os.environ, "JUPYTER_TOKEN": token, "KWSBENCH_ROOT": str(root.resolve())},
            start_new_session=True,  # Ctrl-C comes to us, and the server is then told to end
            preexec_fn=functools.partial(die_with_parent, os.getpid()),  # and if we are killed, it ends too
        )
        try:
            _wait(process, port, token, start + START_SECONDS)
            yield Server(process, port, token, time.monotonic() - start)
        finally:
            _end(process)


def lab(notebooks: Path, root: Path, port: int = 0, open_browser: bool = True) -> None:
    """Serve until Ctrl-C; see :func:`serving`. Prints the address and how long it took."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with serving(notebooks, root, port) as server:
        print(f"JupyterLab answers after {server.ready_seconds:.1f} s. Open (Ctrl-C here ends it):")
        print(f"    {server.address()}", flush=True)
        if open_browser:
            webbrowser.open(server.address())
        try:
            server.process.wait()
        except KeyboardInterrupt:
            print("ending JupyterLab and its kernels")


def free_port(wanted: int = 0) -> int:
    """``wanted`` if it is free, or the first free one from ``FIRST_PORT``.

    Raises:
        OSError: it is taken, or none is free.
    """
    for port in [wanted] if wanted else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
                return port
            except OSError:
                continue
    tried = f"port {wanted} is" if wanted else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1} are all"
    raise OSError(f"{tried} taken on {HOST}; choose another one with --port")


def _command(notebooks: Path, port: int, own: Path) -> list[str]:
    options = {
        "ServerApp.ip": HOST,
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.open_browser": False,
        "ServerApp.root_dir": notebooks.resolve(),
        "ServerApp.log_level": "ERROR",
        "LabApp.app_settings_dir": own / "settings",
        "LabApp.workspaces_dir": own / "workspaces",
        "LabApp.extension_manager": "readonly",
        "LabApp.news_url": "None",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "KernelManager.transport_encryption": "auto",  # other users of this machine could read a kernel's sockets
    }
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options["ServerApp.allow_root"] = True  # a container; loopback and the token guard it as anyone
    return [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]


def _wait(process: subprocess.Popen, port: int, token: str, deadline: float) -> None:
    request = urllib.request.Request(f"http://{HOST}:{port}/api/status", headers={"Authorization": f"token {token}"})
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"JupyterLab ended at once (exit status {process.returncode}); its message is above")
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise RuntimeError(f"JupyterLab did not answer within {START_SECONDS:g} s") from None
            time.sleep(0.05)


def _end(process: subprocess.Popen) -> None:
    """End the server and its kernels."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
