"""A notebook in JupyterLab in a headless Chromium: open it, run it, move its sliders, read its plots."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from kwsbench.lab import Server

LOCAL = ("127.0.0.1", "localhost")
# What Chromium's console tells that is no defect of ours; each with its reason.
CONSOLE_NOISE = (
    "Failed to load resource: the server responded with a status of 404",  # JupyterLab asks for things that may be
    "Canvas2D: Multiple readback operations",  # Chromium's advice to Plotly
)
PLOTS = """
const wanted = (a) => {
  if (a === undefined || a === null) return [];
  return Array.from(a, (v) => (typeof v === 'object' && v !== null && v.length !== undefined) ? Array.from(v) : v);
};
return [...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .js-plotly-plot')].map((gd) => ({
  title: (gd.layout.title || {}).text || '',
  data: gd.data.map((t) => ({name: t.name, x: wanted(t.x), y: wanted(t.y)})),
}));
"""


class Page:
    """An open notebook."""

    def __init__(self, browser: Any, server: Server, name: str, width: int = 1440, height: int = 1000):
        self.browser = browser
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(server.address(name) + "&reset")  # else the notebooks opened before come along
        self.until(lambda: self.select(".jp-NotebookPanel .jp-CodeCell"), "the notebook")

    def until(self, true: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """Wait for something to be true; its value."""
        deadline = time.monotonic() + seconds
        while True:
            value = true()
            if value:
                return value
            assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
            time.sleep(0.05)

    def select(self, css: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def run_all(self, seconds: float = 180) -> None:
        """Run all cells by the menu, and wait until every prompt has a number."""
        self.until(lambda: "| Idle" in self.text("#jp-main-statusbar"), "the kernel")
        for _ in range(5):  # the menu opens a moment before the notebook listens to it
            self.command("Run All Cells")
            try:
                self.until(lambda: any(set(p) & set("*123456789") for p in self.prompts()), "the first cell", 3)
                break
            except AssertionError:
                continue
        self.until(lambda: all(p.isdigit() for p in self.prompts()), "all cells to have run", seconds)

    def text(self, css: str) -> str:
        return self.browser.execute_script("return (document.querySelector(arguments[0]) || {}).innerText || ''", css)

    def prompts(self) -> list[str]:
        """What stands in the brackets before each code cell: a number once it has run."""
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)"
        css = ".jp-NotebookPanel .jp-CodeCell .jp-InputArea-prompt"
        return [p.strip("[]: ") for p in self.browser.execute_script(script, css)]

    def command(self, label: str) -> None:
        """An entry of the Run menu."""
        next(m for m in self.select(".lm-MenuBar-item") if m.text == "Run").click()
        labels = self.until(lambda: [e for e in self.select(".lm-Menu-itemLabel") if e.text == label], label)
        labels[0].click()

    def errors(self) -> list[str]:
        """Error outputs of cells."""
        return [e.text for e in self.select('.jp-NotebookPanel [data-mime-type="application/vnd.jupyter.stderr"]')
                if "Traceback" in e.text]  # fmt: skip

    def plots(self) -> list[dict[str, Any]]:
        """Title and data of every plot, in order."""
        return self.browser.execute_script(PLOTS)

    def sliders(self) -> list[tuple[str, Any]]:
        """Description and handle of every slider, in order."""
        boxes = self.select(".jp-NotebookPanel .widget-slider")
        label, handle = ".widget-label", ".noUi-handle"
        return [(b.find_element(By.CSS_SELECTOR, label).text, b.find_element(By.CSS_SELECTOR, handle)) for b in boxes]

    def drawn(self, count: int) -> None:
        """Wait until so many plots hold data."""
        self.until(lambda: sum(any(t["x"] for t in p["data"]) for p in self.plots()) >= count, f"{count} plots")

    def by_keyboard(self, handle: Any, key: str = Keys.ARROW_RIGHT) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", handle)
        assert self.browser.switch_to.active_element == handle, "a slider takes the keyboard's focus"
        ActionChains(self.browser).send_keys(key).perform()

    def by_mouse(self, handle: Any, pixels: int) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
        ActionChains(self.browser).click_and_hold(handle).move_by_offset(pixels, 0).release().perform()

    def console_errors(self) -> list[str]:
        """What the console calls severe since the page was opened."""
        entries = [e["message"] for e in self.browser.get_log("browser") if e["level"] == "SEVERE"]
        return [m for m in entries if not any(noise in m for noise in CONSOLE_NOISE)]

    def strangers(self) -> list[str]:
        """Requests and sockets that went to another machine."""
        asked = []
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                asked.append(message["params"]["url"])
        assert asked, "the network is logged"
        return [u for u in asked if urlsplit(u).scheme not in ("data", "blob") and urlsplit(u).hostname not in LOCAL]
