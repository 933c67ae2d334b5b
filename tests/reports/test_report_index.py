"""The index, the comparison, sound, print and the single file, in a real browser."""

from __future__ import annotations

import base64
import re
import shutil
import zlib

import numpy as np
import pytest
from nbformat.v4 import new_output

from kwsbench.reports.page import write_report
from kwsbench.reports.sharing import share_folder, single_file
from kwsbench.reports.show import wav_bytes
from tests.reports.made_runs import CAPTION, failed, made_run, plot, record, table
from tests.reports.pages import assert_quiet, look, open_page, printed, wait

HOSTILE = "<img src=x onerror=alert(1)>"
ROWS = "return [...document.querySelectorAll('table.runs tbody tr:not([hidden])')].map((r) => r.dataset.run)"


def sound(seconds: float = 0.5) -> list:
    samples = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(16000 * seconds)) / 16000)
    data = base64.b64encode(wav_bytes(samples, 16000)).decode()
    html = f'<audio controls src="data:audio/wav;base64,{data}"></audio>'
    told = {"kwsbench": {"role": "audio", "label": "a tone"}}
    return [
        new_output("display_data", data={"text/html": html}, metadata=told),
        new_output("display_data", data={"text/markdown": "*A tone.*", "text/plain": "A tone."}, metadata=CAPTION),
    ]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Twelve runs of one notebook: ten passed, one failed, one timed out."""
    out = tmp_path_factory.mktemp("sweep")
    sizes = {8: 250_000, 5: 160_000, 2: 70_000, 1: 36_000}
    rates = {8: 0.04, 5: 0.05, 2: 0.12, 1: 0.25}
    number = 0
    for bits, size in sizes.items():
        for seed in (0, 1, 2):
            parameters = {"bits": bits, "seed": seed, "keyword": "computer"}
            name = f"04-{number:02d}"
            number += 1
            if (bits, seed) == (5, 1):
                made_run(out, name, parameters=parameters, **failed(message=HOSTILE))
            elif (bits, seed) == (2, 2):
                made_run(out, name, parameters=parameters, **failed("Timeout", "stopped after 9 s", "timed out"))
            else:
                fdr = rates[bits] + 0.01 * seed
                systems = [
                    record("float", "float", 0.03, 985_000, seed),
                    record(f"stage 2, {bits}-bit", "stage_two", fdr, size, seed, "layer0: weights and constants"),
                ]
                made_run(
                    out,
                    name,
                    parameters=parameters,
                    figures={"fdr_percent": round(100 * fdr, 1)},
                    systems=systems,
                    outputs=[*plot(), *sound(), *table("Layers", [["layer", "SQNR"], ["layer0", str(bits)]])],
                    seconds=number,
                )
    write_report(out)
    return out


@pytest.fixture(scope="module")
def alone(sweep, tmp_path_factory):
    """Two runs as one file, by itself in an empty folder."""
    made = single_file([sweep / "runs/04-00", sweep / "runs/04-11"], tmp_path_factory.mktemp("made") / "two.html",
                       (sweep / "runs/04-00", sweep / "runs/04-11"))  # fmt: skip
    return shutil.move(made, tmp_path_factory.mktemp("alone") / "two.html")


def find(browser, css):
    from selenium.webdriver.common.by import By

    return browser.find_element(By.CSS_SELECTOR, css)


def head(browser, title):
    from selenium.webdriver.common.by import By

    return next(b for b in browser.find_elements(By.CSS_SELECTOR, ".runs th button") if b.text.startswith(title))


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_index_of_a_sweep_is_drawn_and_fits(sweep, browser, width, scheme):
    open_page(browser, sweep / "index.html", width, scheme)
    seen = browser.execute_script(
        """
        const label = (e) => e.getAttribute('aria-label');
        return {
          plots: document.querySelectorAll('.plot[data-drawn]').length,
          curves: document.querySelectorAll('#overlay-plot .scatterlayer .trace').length,
          labels: [...document.querySelectorAll('.plot')].map(label),
          page: document.documentElement.scrollWidth,
          front: document.querySelector('#pareto-plot').dataset.front,
          text: document.body.innerText,
          names: [...document.querySelectorAll('#pareto-plot .textpoint text')].map((t) => t.textContent),
          titles: [...document.querySelectorAll('.plot .xtitle, .plot .ytitle')].map((t) => t.textContent),
        }
        """
    )
    assert (seen["plots"], seen["curves"]) == (2, 6)
    assert seen["page"] <= width
    # By brute force: of 985, 250, 160, 70 and 36 kB with 3, 4, 5, 12 and 25% each is smaller or better than all others.
    assert seen["front"] == "stage 2, 1-bit|stage 2, 2-bit|stage 2, 5-bit|stage 2, 8-bit|float"
    assert {"float", "stage 2, 1-bit", "stage 2, 8-bit"} <= set(seen["names"])
    assert all(re.search(r"\(.*%\)|\(kB\)|per hour", title) for title in seen["titles"])
    assert "DET curves of" in seen["labels"][0] and "5 of 13" in seen["labels"][1]
    assert "10 of 12 runs passed, 1 failed, 1 timed out" in seen["text"] and HOSTILE in seen["text"]
    assert_quiet(browser)


@pytest.mark.browser
def test_columns_are_sorted_by_keyboard_and_missing_values_stand_last(sweep, browser):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, sweep / "index.html")
    button = head(browser, "fdr percent")
    button.send_keys(Keys.ENTER)
    rising = browser.execute_script(ROWS)
    heads = "return [...document.querySelectorAll('.runs th')].map((h) => h.getAttribute('aria-sort')).filter(Boolean)"
    assert browser.execute_script(heads) == ["ascending"]
    rates = "return [...document.querySelectorAll('.runs tbody tr')].map((r) => r.cells[4].textContent.trim())"
    values = browser.execute_script(rates)
    assert len(set(rising)) == 12 and values[10:] == ["–", "–"]
    assert [float(v) for v in values[:10]] == sorted(float(v) for v in values[:10])
    button.send_keys(Keys.SPACE)
    assert browser.execute_script(heads) == ["descending"]
    assert browser.execute_script(rates) == [*values[9::-1], "–", "–"]
    head(browser, "run").click()
    assert browser.execute_script(heads) == ["ascending"]
    assert browser.execute_script(ROWS)[0] == "04-09", "1 bit, seed 0"
    assert_quiet(browser)


@pytest.mark.browser
@pytest.mark.parametrize(
    "typed, left",
    [
        ("bits=8", ["04-00", "04-01", "04-02"]),
        ("bits=8 seed=1", ["04-01"]),
        ("FAILED", ["04-04"]),
        ("stopped", ["04-08"]),
        ("bits=", [f"04-{i:02d}" for i in (9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2)]),
        ("nothing=1", []),
    ],
)
def test_rows_are_filtered_by_words_and_by_parameters(sweep, browser, typed, left):
    open_page(browser, sweep / "index.html")
    find(browser, "#filter").send_keys(typed)
    assert browser.execute_script(ROWS) == left
    assert find(browser, "#filter-count").text == f"{len(left)} of 12 runs"
    boxes = "return [...document.querySelectorAll('#overlay-runs input')].map((b) => b.value)"
    assert browser.execute_script(boxes) == [name for name in left if name not in ("04-04", "04-08")]
    assert_quiet(browser)


@pytest.mark.browser
def test_curves_are_chosen_by_keyboard(sweep, browser):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, sweep / "index.html")
    names = "return document.querySelector('#overlay-plot').data.map((t) => t.name)"
    assert len(browser.execute_script(names)) == 6
    for css in ("#overlay-systems label:nth-child(1) input", "#overlay-runs label:nth-child(2) input"):
        find(browser, css).send_keys(Keys.SPACE)
    wait(browser, "document.querySelector('#overlay-plot').data.length === 2")
    assert browser.execute_script(names) == ["stage 2, 1-bit; bits 1, seed 0", "stage 2, 1-bit; bits 1, seed 2"]
    find(browser, "#overlay-axis").send_keys("false d")
    wait(browser, "document.querySelector('#overlay-plot .xtitle').textContent.startsWith('false discovery')")
    assert_quiet(browser)


@pytest.mark.browser
def test_two_runs_are_chosen_and_set_side_by_side_in_the_index(sweep, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    open_page(browser, sweep / "index.html", 390)
    Select(find(browser, "#run-a")).select_by_value("04-00")
    Select(find(browser, "#run-b")).select_by_value("04-11")
    told = find(browser, "#difference-told")
    tables = [[cell.text for cell in t.find_elements(By.CSS_SELECTOR, "tbody > tr > *")]
              for t in told.find_elements(By.TAG_NAME, "table")]  # fmt: skip
    parameters, figures, systems = tables
    assert parameters == ["bits", "8", "1", "seed", "0", "2"]
    assert figures == ["fdr percent", "4", "27", "23", "6.75"]
    assert systems[0].startswith("float") and systems[5] == "float"
    assert systems[6] == "stage 2, 8-bit | stage 2, 1-bit"
    assert systems[-1] == "first divergent: layer0: weights and constants"
    Select(find(browser, "#run-b")).select_by_value("04-00")
    assert "no layer differs (5 digests)" in told.text
    assert_quiet(browser)


@pytest.mark.browser
def test_sound_plays(sweep, browser):
    open_page(browser, sweep / "04-00.html")
    wait(browser, "document.querySelector('audio').readyState >= 1")
    assert browser.execute_script("return document.querySelector('audio').duration") == pytest.approx(0.5, abs=0.01)
    assert browser.execute_script("return document.querySelector('audio').getAttribute('aria-label')") == "a tone"
    find(browser, "h1").click()  # browsers let a page play only to someone who is there
    played = browser.execute_async_script(
        """
        const done = arguments[arguments.length - 1], player = document.querySelector('audio');
        player.muted = true;
        player.addEventListener('ended', () => done('ended'));
        player.play().catch((error) => done(String(error)));
        """
    )
    assert played == "ended"
    assert_quiet(browser)


@pytest.mark.browser
def test_the_comparison_of_two_runs_is_linked_from_their_index(sweep, browser, tmp_path):
    from selenium.webdriver.common.by import By

    folders = (sweep / "runs/04-00", sweep / "runs/04-11")
    share_folder(folders, tmp_path / "two", folders)
    open_page(browser, tmp_path / "two/index.html", 390, "dark")
    browser.find_element(By.LINK_TEXT, "The two runs side by side").click()
    assert browser.current_url.endswith("comparison.html")
    text = find(browser, "body").text
    for expected in ("first divergent: layer0: weights and constants", "1 of 1 cells differ", "bits", "fdr percent"):
        assert expected in text
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    browser.find_element(By.LINK_TEXT, "04-11").click()
    assert browser.current_url.endswith("04-11.html")
    assert_quiet(browser)


@pytest.mark.browser
@pytest.mark.parametrize("scheme, width", [("light", 1440), ("dark", 390)])
def test_one_file_alone_holds_everything(alone, browser, scheme, width):
    from selenium.webdriver.common.by import By

    assert [p.name for p in alone.parent.iterdir()] == ["two.html"]
    open_page(browser, alone, width, scheme)
    visible = "return [...document.querySelectorAll('section.page')].filter((p) => p.clientHeight).map((p) => p.id)"
    assert browser.execute_script(visible) == ["index"]
    assert browser.execute_script("return document.querySelectorAll('#index .plot[data-drawn]').length") == 2
    find(browser, "#index th a, #index article a").click()
    wait(browser, "document.querySelector('section.page:not([hidden]) .plot[data-drawn]')")
    (page,) = browser.execute_script(visible)
    assert page in ("page-04-00", "page-04-11")
    wait(browser, f"document.querySelector('#{page} audio').readyState >= 1")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert find(browser, ".skip").get_attribute("href").endswith(f"#{page}--main")
    find(browser, f"#{page} nav a").click()
    wait(browser, "!document.getElementById('index').hidden")
    browser.find_element(By.LINK_TEXT, "The two runs side by side").click()
    wait(browser, "!document.getElementById('comparison').hidden")
    assert "first divergent" in find(browser, "#comparison").text
    assert_quiet(browser)


@pytest.mark.browser
def test_paper_is_light_and_holds_every_figure_and_table(sweep, browser):
    open_page(browser, sweep / "04-00.html", 1440, "dark")
    document = printed(browser)
    pages = len(re.findall(rb"/Type\s*/Page\b", document))
    assert 1 <= pages <= 2
    drawn = b"".join(_streams(document))
    assert b".1059 .1216 .1412 rg" in drawn, "text has the ink of light paper, rgb(27, 31, 36)"
    assert b".8941 .9098 .9255 rg" not in drawn, "and not that of a dark screen"
    assert b".1216 .4667 .7059 RG" in drawn, "the curve is on paper, in Plotly's first colour"
    wait(browser, "getComputedStyle(document.querySelector('.plot .xtick text')).fill === 'rgb(228, 232, 236)'")
    assert browser.execute_script("return document.querySelectorAll('details[open]').length") == 0
    assert_quiet(browser)


def _streams(document: bytes):
    """The deflated content streams of a PDF."""
    for body in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", document, re.S):
        try:
            yield zlib.decompress(body)
        except zlib.error:
            continue


@pytest.mark.browser
def test_the_keyboard_skips_to_the_content_and_reaches_tables(sweep, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, sweep / "index.html", 390)
    find(browser, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the content"
    style = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid", "focus is visible"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "main"
    region = find(browser, ".group .scroll")
    region.send_keys(Keys.ARROW_RIGHT * 5)
    wait(browser, "document.querySelector('.group .scroll').scrollLeft > 0")
    for control in browser.find_elements(By.CSS_SELECTOR, "input, select, button"):
        name = control.accessible_name
        assert name.strip(), control.get_attribute("outerHTML")
    look(browser, 1440, "light")
