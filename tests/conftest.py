"""Fixtures that several packages' tests share: real recordings, a headless browser, one thread per worker."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# NumPy and torch read these when they load, which is after this file: the test workers share the cores.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# The first example may compile a Numba loop, and other work may hold the machine: no time limit per example.
settings.register_profile("kwsbench", deadline=None)
settings.load_profile("kwsbench")

CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


@pytest.fixture(scope="session")
def speech_root() -> Path:
    """Real recordings in the Speech Commands layout, from KWSBENCH_SPEECH or beside the checkout."""
    named = os.environ.get("KWSBENCH_SPEECH")
    root = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "speech"
    if not root.is_dir():
        if named:
            pytest.fail(f"KWSBENCH_SPEECH={named} is not a folder")
        pytest.skip("no recordings: set KWSBENCH_SPEECH to a folder in the Speech Commands layout")
    return root


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium (selenium driver) with a fresh profile, its console and network logged.

    Without Chromium the test is skipped, except under CI, where it fails.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        reason = "no chromium and chromedriver on PATH (Debian: apt install chromium chromium-driver)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in CHROMIUM_FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium-profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=chromedriver))
    try:
        yield driver
    finally:
        driver.quit()
