"""The report as a reader meets it: pages in a real browser, and hostile names and contents."""

from __future__ import annotations

import json
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kwsbench.reports import markdown
from kwsbench.reports.blocks import unpacked
from kwsbench.reports.notebooks import plan_run, run_notebook
from kwsbench.reports.page import load_statuses, render_page, shown, write_report
from kwsbench.reports.status import Failure, RunStatus
from tests.reports.pages import open_page, requests

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'`${}"

GOOD = [
    "# Transfer curves of $\\tanh(P)$\n\nThe level is\n\n"
    "$$W_q = s\\,\\frac{2 \\lfloor n(\\tanh P + 1)/2 + \\frac12 \\rfloor - n}{n}$$\n\n"
    "with $n < 2^b$.\n\n| bits | SQNR / dB |\n|--:|--:|\n| 5 | 24.6 |\n\n## First part",
    """
import numpy as np, plotly.graph_objects as go
from plotly.subplots import make_subplots
from kwsbench.reports.show import publish, show, show_table
x = np.linspace(-3, 3, 200)
figure = go.Figure([go.Scatter(x=x, y=np.round(np.tanh(x) * b) / b, name=f"{b} bits") for b in bits])
figure.update_layout(title="Transfer curve", xaxis_title="trained value", yaxis_title="level")
show(figure, "Steps of the quantizer, $2^b$ of them.")
heat = go.Figure(go.Heatmap(z=np.arange(200.0).reshape(10, 20)))
heat.update_layout(meta={"alt": "Ten mel bands rising"})
show(heat, "Bands.")
panels = make_subplots(1, 3)
for i in range(3):
    panels.add_trace(go.Bar(y=[1, 2, i], name=f"panel {i}", marker_color="#222222"), 1, i + 1)
show(panels, "Panels.")
show(go.Figure(go.Scattergl(y=[1.0, float("nan"), 2.0])), "Many points.")
cells = "".join(f"<td>{i}.25</td>" for i in range(14))
show_table(f"<table><thead><tr><th>layer</th></tr></thead><tr>{cells}</tr></table>", "Table of $x^2$.")
publish(sqnr_db=24.6, levels=31)
""",
    "print('working')",
    "## Conclusion\n\nDone.",
]


def save_notebook(path: Path, cells: list[str], parameters: str = "bits: list[int] = [8, 5]  # widths") -> Path:
    nb = new_notebook(cells=[new_code_cell(parameters, metadata={"tags": ["parameters"]})])
    for cell in cells:
        nb.cells.append(new_markdown_cell(cell) if cell.startswith("#") else new_code_cell(cell))
    nbformat.write(nb, path)
    return path


def run(folder: Path, out: Path, name: str, cells: list[str], **given) -> RunStatus:
    return run_notebook(plan_run(save_notebook(folder / name, cells), given), out, 60, "smoke")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report of a good run, a failing one and one with a hostile name, title, error and output."""
    folder = tmp_path_factory.mktemp("report")
    out = folder / "reports"
    assert run(folder, out, "01_good.ipynb", GOOD, bits=[5, 4]).state == "passed"
    assert run(folder, out, "02_fails.ipynb", ["# A failing run", "x = {}\nx['missing']"]).state == "failed"
    hostile = f"""
from IPython.display import HTML, Markdown, display
import plotly.graph_objects as go
from kwsbench.reports.show import publish, show, show_table
bad = {HOSTILE!r}
print(bad)
display(HTML(bad + "<p onclick='alert(3)' style='color:red'>kept</p><iframe src=//x.test></iframe>"))
display(Markdown(bad + " [link](javascript:alert(4)) $" + bad + "$ ![pixel](https://x.test/a.png)"))
show(go.Figure(go.Scatter(y=[1, 2], name=bad), layout={{"title": bad, "xaxis": {{"title": bad}}}}), bad)
show_table("<table><tr><td>" + bad + "</td></tr></table>", bad)
publish(**{{bad: bad}})
raise ValueError(bad)
"""
    name = "03 <img src=x onerror=alert(9)>.ipynb"
    assert run(folder, out, name, [f"# Title {HOSTILE}", hostile], bits=[1]).state == "failed"
    write_report(out)
    return out


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_plots_math_and_tables_are_drawn_offline_without_an_error(report, browser, width, scheme):
    open_page(browser, report / "01_good.html", width, scheme)
    seen = browser.execute_script(
        """
        const box = (e) => e.getBoundingClientRect();
        return {
          plots: document.querySelectorAll('.plot[data-drawn]').length,
          lines: document.querySelectorAll('.plot .scatterlayer .trace').length,
          heat: document.querySelectorAll('.plot .heatmaplayer image').length,
          bars: document.querySelectorAll('.plot .barlayer .trace').length,
          math: [...document.querySelectorAll('math')].map((m) => [box(m).width, box(m).height]),
          fractions: document.querySelectorAll('math mfrac').length,
          labels: [...document.querySelectorAll('[role=img]')].map((e) => e.getAttribute('aria-label')),
          page: document.documentElement.scrollWidth,
          open: document.querySelectorAll('details.code[open]').length,
          code: document.querySelectorAll('details.code').length,
          strip: document.querySelector('.strip').innerText,
          figures: document.querySelector('.figures').innerText,
          paper: getComputedStyle(document.body).backgroundColor,
          ink: getComputedStyle(document.querySelector('.plot .xtick text')).fill,
        }
        """
    )
    assert (seen["plots"], seen["lines"], seen["heat"], seen["bars"]) == (4, 3, 1, 3)
    assert len(seen["math"]) == 5 and all(w > 5 and h > 5 for w, h in seen["math"])
    assert seen["fractions"] == 2
    assert seen["labels"][:2] == [
        "Transfer curve. trained value on the x axis. level on the y axis. 2 traces (scatter). shown: 5 bits, 4 bits",
        "Ten mel bands rising",
    ]
    assert seen["page"] <= width, "the page itself never scrolls sideways"
    assert seen["code"] == 3 and seen["open"] == 0
    assert "bits\n5, 4" in seen["strip"] and "sqnr db\n24.6" in seen["figures"]
    bright = {
        "light": ("rgb(255, 255, 255)", "rgb(27, 31, 36)"),
        "dark": ("rgb(20, 23, 27)", "rgb(228, 232, 236)"),
    }
    assert (seen["paper"], seen["ink"]) == bright[scheme]
    assert browser.get_log("browser") == []
    asked = requests(browser)
    assert len(asked) >= 4 and all(u.startswith(("file:", "data:", "blob:")) for u in asked), asked


@pytest.mark.browser
def test_plots_follow_the_reader_from_light_to_dark_and_from_wide_to_narrow(report, browser):
    open_page(browser, report / "01_good.html")
    ink = "return getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    width = "return document.querySelector('.plot .main-svg').getBoundingClientRect().width"
    assert browser.execute_script(ink) == "rgb(27, 31, 36)" and browser.execute_script(width) > 600
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if browser.execute_script(ink) == "rgb(228, 232, 236)" and browser.execute_script(width) < 391:
            break
        time.sleep(0.05)
    assert browser.execute_script(ink) == "rgb(228, 232, 236)" and browser.execute_script(width) < 391


@pytest.mark.browser
def test_the_index_shows_status_key_figures_and_links_and_the_keyboard_reaches_them(report, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, report / "index.html", width=390)
    text = browser.find_element(By.TAG_NAME, "body").text
    for expected in (
        "1 of 3 runs passed",
        "illustrative",
        "24.6",
        "✓ passed",
        "✗ failed",
        "KeyError: 'missing'",
    ):
        assert expected in text
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the content"
    browser.switch_to.active_element.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.current_url.endswith("/01_good.html")
    browser.get((report / "02_fails.html").as_uri())
    body = browser.find_element(By.TAG_NAME, "body").text
    assert "x['missing']" in body and "KeyError: 'missing'" in body
    summary = browser.find_element(By.CSS_SELECTOR, "details.code summary")
    summary.send_keys(Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, "details.code").get_attribute("open") is not None
    assert browser.get_log("browser") == []


@pytest.mark.browser
@pytest.mark.parametrize("page", ["index.html", "03_img_src_x_onerror_alert_9.html"])
def test_hostile_names_titles_outputs_and_errors_stay_text(report, browser, page):
    open_page(browser, report / page)
    found = browser.execute_script(
        """
        return [
          document.querySelectorAll('img:not([src^="data:"]), iframe, [onerror], [onclick], p[style]').length,
          document.querySelectorAll('script:not([src]):not([type="application/json"])').length,
          document.querySelectorAll('a[href^="javascript"]').length,
          document.body.innerText.includes('<script>alert(2)</script>'),
        ]
        """
    )
    assert found == [0, 0, 0, True]
    assert browser.get_log("browser") == [], "no dialog, no blocked script, nothing asked for"
    assert all(u.startswith(("file:", "data:", "blob:")) for u in requests(browser))


def test_the_report_lies_beside_one_copy_of_plotly_and_names_no_other_site(report):
    import plotly

    installed = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    assert (report / "plotly.min.js").read_bytes() == installed.read_bytes()
    assert sorted(p.name for p in report.iterdir() if not p.name.startswith(("0", "_", "."))) == [
        "index.html",
        "index.js",
        "page.css",
        "page.js",
        "plotly.min.js",
        "runs",
    ]

    class Sources(HTMLParser):
        def handle_starttag(self, tag, attrs):
            for name, value in attrs:
                if name in ("src", "srcset") or (name == "href" and tag == "link"):
                    assert not (value or "").startswith(("http", "//")), (tag, value)

    for page in report.glob("*.html"):
        Sources().feed(page.read_text())
    assert json.loads((report / "runs/01_good/status.json").read_text())["state"] == "passed"


def test_a_report_is_written_anew_from_its_runs_alone(report, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(report / "runs", copy / "runs")
    write_report(copy)
    assert (copy / "01_good.html").read_bytes() == (report / "01_good.html").read_bytes()
    assert [s.name for s in load_statuses(copy)] == [s.name for s in load_statuses(report)]


def status_of(**changes) -> RunStatus:
    fields = dict(
        name="n",
        notebook="n.ipynb",
        title="T",
        state="passed",
        profile="",
        parameters={},
        given=(),
        started_utc="now",
    )
    return RunStatus(**{**fields, **changes})


def page_of(*outputs, **changes) -> str:
    cell = new_code_cell("code()", outputs=list(outputs))
    return render_page(new_notebook(cells=[cell]), status_of(**changes))


def display_output(**data):
    return new_output("display_data", data={k.replace("__", "/"): v for k, v in data.items()})


def test_a_run_that_never_started_still_has_a_page():
    page = render_page(new_notebook(), status_of(state="failed", failure=Failure("DeadKernelError", "gone", "trace")))
    assert "DeadKernelError" in page and "gone" in page and "plotly.min.js" not in page


def test_terminal_output_reads_as_the_terminal_showed_it():
    stream = new_output("stream", name="stderr", text="10%\r50%\r100%\n\x1b[31mred\x1b[0m\n")
    more = new_output("stream", name="stdout", text="<last>\n")
    page = page_of(stream, more)
    assert "100%\nred\n&lt;last&gt;\n" in page and "50%" not in page
    assert "Printed output (3 lines)" in page


def test_progress_bars_leave_nothing_behind():
    bar = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "float: 0%| | 0/120"}
    page = page_of(new_output("display_data", data=bar), new_output("stream", name="stdout", text="trained"))
    assert "trained" in page and "0/120" not in page


def test_pictures_become_data_of_the_page():
    png = "iVBORw0KGgo=\n"
    page = page_of(display_output(image__png=png, text__plain="x"))
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in page
    svg = new_output("display_data", data={"image/svg+xml": "<svg onload='alert(1)'/>"})
    page = page_of(svg)
    assert "data:image/svg+xml;base64,PHN2Zy" in page and "<svg" not in page


def test_a_caption_without_a_figure_is_text_and_latex_output_is_math():
    caption = new_output(
        "display_data", data={"text/markdown": "*lost $x$*"}, metadata={"kwsbench": {"role": "caption"}}
    )
    latex = new_output("display_data", data={"text/latex": r"$\displaystyle a^2$"})
    page = page_of(caption, latex)
    assert "lost <span" in page and page.count("<math") == 2 and "<msup>" in page


def test_a_figure_cannot_close_the_script_that_carries_it():
    figure = {"data": [{"type": "scatter", "y": [1, float("inf")], "name": "</script><b>"}], "layout": {}}
    page = page_of(new_output("display_data", data={"application/vnd.plotly.v1+json": figure}))
    block = page.split('class="figure-data">')[1].split("</script>")[0]
    assert unpacked(block)[0]["data"][0] == {"type": "scatter", "y": [1, None], "name": "</script><b>"}


@pytest.mark.parametrize(
    "latex, inside",
    [
        (r"a < b", "&lt;"),
        (r"\frac{1}{2}", "<mfrac>"),
        (r"\alpha", "α"),
        (r"x + 1", "+"),
        (r"\text{<b>}", "&lt;"),
    ],
)
def test_math_is_escaped_after_its_entities_are_resolved(latex, inside):
    out = markdown.math_to_mathml(latex, display=False)
    assert out.startswith("<math") and inside in out and "&amp;#x" not in out and "<b>" not in out


def test_math_that_cannot_be_read_is_shown_as_source():
    out = markdown.math_to_mathml(r"a_b_c", display=True)
    assert out.startswith("<code") and "a_b_c" in out


def test_prices_are_not_math_and_raw_html_is_text():
    out = markdown.markdown_to_html("costs 5$ or 6$ <b>x</b>")
    assert "<math" not in out and "&lt;b&gt;" in out


@pytest.mark.parametrize(
    "dirty, clean",
    [
        ('<td class="number" onclick="x()">1</td>', '<td class="number">1</td>'),
        ("<p>a<script>alert(1)</script>b", "<p>ab</p>"),
        ("<b><i>x</b>", "<b><i>x</i></b>"),
        ("</table>x", "x"),
        ('<a href="javascript:x">t</a>', "<a>t</a>"),
        ('<th title="&quot;>">&amp;&lt;</th>', '<th title="&quot;&gt;">&amp;&lt;</th>'),
        ("a<br>b", "a<br>b"),
    ],
)
def test_only_the_tags_of_tables_and_text_are_kept(dirty, clean):
    assert markdown.clean_html(dirty) == clean


@pytest.mark.parametrize(
    "value, text",
    [
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        ([8, 5], "8, 5"),
        ("", "(empty)"),
        ([], "(empty)"),
        (None, "None"),
        ("x", "x"),
    ],
)
def test_values_are_shown_for_reading(value, text):
    assert shown(value) == text
