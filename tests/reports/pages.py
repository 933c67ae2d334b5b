"""A reader's browser on pages of a report: width, light or dark, what was asked for, what the console says."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

LOCAL = ("file:", "data:", "blob:")


def open_page(browser, path: Path, width: int = 1440, scheme: str = "light", fragment: str = "") -> None:
    """Open a page and wait until its plots are drawn."""
    look(browser, width, scheme)
    browser.get("about:blank")  # first: the page before it may still complain
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(path.as_uri() + fragment)
    wait(browser, "!document.querySelectorAll('section.page:not([hidden]) .plot:not([data-drawn])').length")
    wait(browser, "[...document.querySelectorAll('.plot')].every((p) => p.dataset.drawn || !p.clientWidth)")


def look(browser, width: int, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def wait(browser, condition: str, seconds: float = 20) -> None:
    """Until a JavaScript condition holds; fail when it does not."""
    deadline = time.monotonic() + seconds
    while not browser.execute_script(f"return Boolean({condition})"):
        assert time.monotonic() < deadline, f"never came true: {condition}"
        time.sleep(0.05)


def requests(browser) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def assert_quiet(browser) -> None:
    """No error and no warning on the console, nothing asked for but files."""
    assert browser.get_log("browser") == []
    asked = requests(browser)
    assert asked and all(url.startswith((*LOCAL, "about:")) for url in asked), asked


def printed(browser) -> bytes:
    """The page as a PDF on A4."""
    options = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": False}
    return base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", options)["data"])
