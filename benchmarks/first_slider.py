"""Seconds from `kwsbench lab` to the first moved slider, in a headless Chromium: once cold, once again.

    python benchmarks/first_slider.py [ROOT]

The clock starts with the process and stops when the data of the quantizer explorer's figure has changed after a key
press on its first slider. A person's own time (reading, choosing "Run All Cells") is not in it. Prints Markdown.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "lab")]

from conftest import CHROMIUM_FLAGS  # noqa: E402
from pages import Page  # noqa: E402
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402


def first_slider(root: str, driver: webdriver.Chrome) -> dict[str, float]:
    """Seconds after the start at which the server answered, the cells had run, the slider had moved."""
    with tempfile.TemporaryDirectory() as folder:
        notebooks = Path(folder) / "notebooks"
        notebooks.mkdir()
        shutil.copy(HERE.parent / "notebooks" / "99_explore.ipynb", notebooks)
        start = time.monotonic()
        command = ["-m", "kwsbench.cli", "lab", "--no-browser", "--root", root, "--notebooks", str(notebooks)]
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            found = next(m for line in process.stdout if (m := re.search(r"http://\S+", line)))
            seconds = {"JupyterLab answers": time.monotonic() - start}
            page = Page(driver, SimpleNamespace(address=lambda _: found.group()), "")  # type: ignore[arg-type]
            page.run_all(600)
            seconds["all cells ran"] = time.monotonic() - start
            page.drawn(1)
            before = page.plots()[0]
            page.by_keyboard(page.sliders()[0][1])
            page.until(lambda: page.plots()[0] != before, "the figure to change")
            seconds["first slider moved its figure"] = time.monotonic() - start
        finally:
            process.terminate()
            process.wait()
    return seconds


def main(root: str = "runs") -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in CHROMIUM_FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(executable_path=shutil.which("chromedriver") or "")
    print("| | JupyterLab answers (s) | all cells ran (s) | first slider moved its figure (s) |\n|---|---:|---:|---:|")
    for name in ("first time", "second time"):
        driver = webdriver.Chrome(options=options, service=service)
        try:
            row = first_slider(root, driver)
        finally:
            driver.quit()
        print(f"| {name} | {' | '.join(f'{v:.1f}' for v in row.values())} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
