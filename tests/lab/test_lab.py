"""JupyterLab as `kwsbench lab` starts it, in a browser: every slider by keyboard and by mouse, nothing off-site."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from kwsbench import lab
from kwsbench.lab import HOST, free_port, serving

sys.path.insert(0, str(Path(__file__).parent))
from pages import Page

SLIDERS = [
    *("width (bits)", "range (× largest)"),
    "training step",
    *("threshold (log odds)", "smoothing (frames)", "refractory time (s)"),
    *(f"layer{i} (bits)" for i in range(5)),
    *("channels (w)", "head (h)", "cells", "weights (bits)", "activations (bits)"),
    "width (bits)",
]
# Which plot of the page a slider moves.
PLOT_OF = [0, 0, 1, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 5]


@pytest.fixture(scope="module")
def explore(browser, server):
    page = Page(browser, server, "99_explore.ipynb")
    page.run_all()
    page.drawn(5)
    return page


def changes(page, plot, act) -> bool:
    """Whether the data or title of a plot changes after an action."""
    before = page.plots()[plot]
    act()
    page.until(lambda: page.plots()[plot] != before, f"plot {plot} to change", 30)
    return True


@pytest.mark.browser
def test_every_slider_moves_its_figure_by_keyboard_and_by_mouse(explore):
    assert [name for name, _ in explore.sliders()] == SLIDERS
    for (name, handle), plot in zip(explore.sliders(), PLOT_OF, strict=True):
        at_its_end = name.startswith(("width", "layer", "training", "weights", "activations"))
        key = "\ue012" if at_its_end else "\ue014"  # left, right
        assert changes(explore, plot, lambda h=handle, k=key: explore.by_keyboard(h, k)), name
        pixels = -30 if name.startswith(("training", "weights", "activations")) else 30
        assert changes(explore, plot, lambda h=handle, p=pixels: explore.by_mouse(h, p)), name
    assert explore.errors() == []


@pytest.mark.browser
def test_the_annealing_plays_to_its_end(explore):
    """The play button moves the slider, and the slider the figure: from soft to hard, a step at a time."""
    handle = dict(explore.sliders())["training step"]
    changes(explore, 1, lambda: explore.by_keyboard(handle, "\ue011"))  # home
    explore.until(lambda: explore.plots()[1]["title"].startswith("Step 0 of"), "the first snapshot")
    play, _ = explore.select(".jp-NotebookPanel .widget-play button:not([style*='none'])")
    play.click()
    seen = set()

    def at_the_end():
        seen.add(explore.plots()[1]["title"].split(",")[0])
        return "Step 20 of 20, hard" in explore.plots()[1]["title"]

    explore.until(at_the_end, "the last snapshot")
    assert seen - {"Step 0 of 20", "Step 20 of 20"}, "it passes through the snapshots between"


@pytest.mark.browser
def test_a_mistake_is_played_from_the_page(explore):
    button = next(b for b in explore.select(".jp-NotebookPanel button") if b.text.strip() == "play the mixture")
    threshold = dict(explore.sliders())["threshold (log odds)"]
    changes(explore, 2, lambda: explore.by_keyboard(threshold, "\ue011"))  # home: everything fires
    lists = [s for s in explore.select(".jp-NotebookPanel .widget-select select")]
    choose = "arguments[0].scrollIntoView({block: 'center'})"
    explore.browser.execute_script(choose, button)
    next(b for b in explore.select(".jp-NotebookPanel button") if b.text.strip() == "false accepts").click()
    explore.until(lambda: lists[-1].find_elements("tag name", "option"), "a list of mistakes")
    lists[-1].find_elements("tag name", "option")[0].click()
    explore.until(button.is_enabled, "the button")
    button.click()
    seconds = "const a = document.querySelector('.jp-NotebookPanel audio'); return a && a.duration"
    assert 0.5 < explore.until(lambda: explore.browser.execute_script(seconds), "sound") < 10


@pytest.mark.browser
def test_a_notation_is_typed_and_a_mistake_is_pointed_at(explore):
    (field,) = explore.select(".jp-NotebookPanel .kwsbench-notation input")
    message = lambda: explore.text(".jp-NotebookPanel .kwsbench-problem pre")  # noqa: E731
    explore.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
    field.clear()
    field.send_keys("raw w8 3e1s 5q h8")
    explore.until(lambda: "not '5q'" in message(), "the message")
    *_, text, caret = message().split("\n")
    assert text[caret.index("^")] == "q"
    field.send_keys("\ue003" * 4 + "e2 h8")  # four characters back, then what was meant
    explore.until(lambda: "raw w8 3e1s 5e2 h8" in explore.plots()[4]["title"] and not message(), "the network")
    assert explore.errors() == []


@pytest.mark.browser
def test_the_console_is_clean_and_nothing_left_the_machine(explore):
    assert explore.console_errors() == []
    assert explore.strangers() == []


@pytest.mark.browser
def test_without_runs_the_quantizer_moves_at_once(browser, notebooks, tmp_path):
    page_source = (notebooks / "empty.ipynb").read_text()
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "empty.ipynb").write_text(page_source)
    with serving(folder, tmp_path / "runs") as server:
        page = Page(browser, server, "empty.ipynb")
        page.run_all()
        page.drawn(1)
        (_, handle), *_ = page.sliders()
        assert changes(page, 0, lambda: page.by_keyboard(handle))
        assert "kwsbench run --profile smoke" in page.text(".jp-NotebookPanel")
        assert page.errors() == [] and page.console_errors() == [] and page.strangers() == []


@pytest.mark.slow
@pytest.mark.browser
def test_training_is_started_stopped_and_resumed_from_the_page(explore):
    def button(name):
        return next(b for b in explore.select(".jp-NotebookPanel button") if b.text.strip() == name)

    explore.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button("stop"))
    button("train / resume").click()
    points = lambda: sum(len(t["y"]) for t in explore.plots()[5]["data"])  # noqa: E731
    explore.until(lambda: points() > 4, "a loss curve", 240)
    button("stop").click()
    explore.until(lambda: "stopped at" in explore.text(".jp-NotebookPanel"), "a checkpoint", 120)
    button("train / resume").click()
    explore.until(lambda: "finished." in explore.text(".jp-NotebookPanel"), "the end", 400)
    assert explore.errors() == [] and explore.console_errors() == []


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("stem", ["01_quantizers", "02_data_and_features", "03_stage_one", "04_stage_two",
                                  "05_integer_inference", "06_resources"])  # fmt: skip
def test_every_other_notebook_runs_in_the_page(browser, server, stem):
    page = Page(browser, server, f"{stem}.ipynb")
    page.run_all(240)
    page.drawn(2)
    assert page.errors() == [] and page.console_errors() == [] and page.strangers() == []


def test_a_stranger_without_the_token_gets_nothing(server):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"http://{HOST}:{server.port}/api/contents", timeout=10)
    assert server.token in server.address() and f"//{HOST}:" in server.address()
    command = Path(f"/proc/{server.process.pid}/cmdline")
    if command.is_file():
        assert server.token not in command.read_text(), "everyone can read a command line"


def test_a_taken_port_and_a_missing_folder_are_refused_before_anything_starts(server, tmp_path):
    with pytest.raises(OSError, match=f"port {server.port} is taken on 127.0.0.1; choose another one with --port"):
        free_port(server.port)
    with pytest.raises(FileNotFoundError, match="no folder of notebooks"), serving(tmp_path / "none", tmp_path):
        pass


def test_a_server_that_ends_at_once_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"JupyterLab ended at once \(exit status 3\)"), serving(tmp_path, tmp_path):
        pass
    assert time.monotonic() - start < lab.START_SECONDS
