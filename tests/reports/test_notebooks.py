"""The project's notebooks: how they are built, and what they publish and show after a smoke run of all of them."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

from kwsbench.reports.notebooks import notebook_title, read_notebook, run_all
from kwsbench.reports.page import render_page, write_report
from kwsbench.reports.parameters import declared_parameters
from kwsbench.reports.show import PLOTLY_MIME
from kwsbench.reports.status import RunStatus
from tests.reports.pages import assert_quiet, open_page, wait

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [
    "01_quantizers",
    "02_data_and_features",
    "03_stage_one",
    "04_stage_two",
    "05_integer_inference",
    "06_resources",
    "08_general_quantizer",
    "09_architecture_search",
    "10_trained_bit_widths",
    "99_explore",
]
LINES_OF_A_CELL = 25
PAGE_BYTES = 100_000
UNITS = "%.*|dB|dBFS|s|kHz|kB|nats|nats/label|bits|thousands|millions|full scale 1|from 0"
UNIT = re.compile(rf"\((?:.*, )?({UNITS})\)$|per hour|^kilobytes|^bits$")
DIMENSIONLESS = {
    "code", "label", "layer", "number of clips", "std(P)", "system", "trained tensor (w or P)", "trained tensor P",
    "training step", "weight", "weights", "d quantized / d trained", "quantized weight / largest level",
    "(quantized - latent) / largest level", "range / largest weight", "trained value / range",
    "d(weight) / d(trained)", "mu (strength of companding)", "weight before / scale", "weight after / scale",
    "level / scale", "level / largest level", "codebook", "matrix", "cell", "choice (kernel e expansion)",
    "block, from sound to label", "channels",
}  # fmt: skip


@pytest.fixture(params=PATHS, ids=lambda p: p.stem)
def notebook(request):
    return read_notebook(request.param)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebooks_are_there():
    assert [p.stem for p in PATHS] == NAMES


def test_outputs_are_stripped_and_ids_stand(notebook):
    nbformat.validate(notebook)
    assert [cell.id for cell in notebook.cells] == [str(i) for i in range(len(notebook.cells))]
    for cell in code_cells(notebook):
        assert not cell.outputs and cell.execution_count is None
        assert "papermill" not in cell.metadata


def test_each_asks_one_question_and_ends_with_a_conclusion(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and "?" in notebook_title(notebook, "")
    headings = re.findall(r"^(#+) (.*)", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M)
    assert [text for marks, text in headings if marks == "#"] == [notebook_title(notebook, "")]
    assert headings[-1] == ("##", "Conclusion")
    assert "publish(" in code_cells(notebook)[-1].source


def test_parameters_are_typed_commented_and_shared_ones_mean_the_same(notebook):
    declared = {p.name: p for p in declared_parameters(notebook, "this notebook")}
    assert all(p.comment and p.annotation for p in declared.values())
    assert declared["profile"].default == "default"
    if "data" in declared:
        assert (declared["data"].default, declared["root"].default) == ("", "../runs")
        assert declared["keyword"].default == "computer"


def test_cells_are_thin_and_call_the_package(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= LINES_OF_A_CELL, cell.source[:80]
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.While | ast.Try), (
                f"this belongs into the package: {ast.unparse(node)[:80]}"
            )
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "torch" not in ast.unparse(node)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("show", "show_table"):
                assert len(node.args) == 2, "every figure and table has a caption"


def test_conclusions_hold_no_typed_in_result(notebook):
    """Numbers of a conclusion are computed; only names of things (a notebook, 95% intervals) are written out."""
    texts = [c.source for c in code_cells(notebook) if "Markdown(" in c.source]
    literals = [
        node.value
        for source in texts
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    typed = [text for text in literals if re.search(r"(?<![.\d])(?!95%)\d+(\.\d+)? ?(%|dB|kB|times|ms|points)", text)]
    assert typed == []


# --------------------------------------------------------------------------------- executed, one root


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """All, in order, with one root: models are trained once."""
    out = tmp_path_factory.mktemp("report")
    statuses = run_all(PATHS, out, "smoke", {"root": str(tmp_path_factory.mktemp("root"))}, timeout_seconds=900)
    assert {s.name: s.failure for s in statuses} == dict.fromkeys(NAMES)
    return out


class Executed:
    """One executed notebook: key figures, figures, captions, tables and displayed text."""

    def __init__(self, out: Path, name: str):
        self.status = RunStatus.load(out / "runs" / name / "status.json")
        self.notebook = nbformat.read(out / "runs" / name / "notebook.ipynb", as_version=4)
        outputs = [o for c in code_cells(self.notebook) for o in c.outputs]
        assert all(o.output_type in ("display_data", "stream") for o in outputs), "nothing fails or is left lying about"
        shown = [o for o in outputs if o.output_type == "display_data"]
        captions = [o.metadata.get("kwsbench", {}).get("role") == "caption" for o in shown]
        self.key = self.status.key_figures
        self.figures = [o.data[PLOTLY_MIME] for o in shown if PLOTLY_MIME in o.data]
        self.tables = [o.data["text/html"] for o in shown if o.data.get("text/plain") == "[table]"]
        self.sounds = [o for o in shown if o.metadata.get("kwsbench", {}).get("role") == "audio"]
        self.captions = [o.data["text/plain"] for o, is_caption in zip(shown, captions) if is_caption]
        self.text = "\n".join(
            o.data["text/markdown"] for o, caption in zip(shown, captions) if "text/markdown" in o.data and not caption
        )

    def figure(self, title: str):
        found = [f for f in self.figures if title in f["layout"]["title"]["text"]]
        assert len(found) == 1, [f["layout"]["title"]["text"] for f in self.figures]
        return found[0]

    def traces(self, title: str) -> list[str]:
        return [t["name"] for t in self.figure(title)["data"] if t.get("name")]


def values(array):
    if isinstance(array, dict):
        return np.frombuffer(__import__("base64").b64decode(array["bdata"]), array["dtype"])
    return np.asarray(array, np.float64)


@pytest.fixture
def run(report):
    return lambda name: Executed(report, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_and_table_is_captioned_and_every_page_renders(run, name):
    e = run(name)
    assert e.figures and e.tables and e.key
    assert len(e.captions) == len(e.figures) + len(e.tables) + len(e.sounds)
    assert all(len(caption) > 20 for caption in e.captions)
    for figure in e.figures:
        assert figure["layout"]["meta"]["alt"] and figure["layout"]["title"]["text"]
        for key, axis in figure["layout"].items():
            if key.startswith(("xaxis", "yaxis")) and not axis.get("matches"):  # a shared axis is titled once
                title = axis.get("title", {}).get("text", "")
                assert UNIT.search(title) or title in DIMENSIONLESS, (figure["layout"]["title"]["text"], key, title)
    assert all(math.isfinite(v) for v in e.key.values() if isinstance(v, float))
    page = render_page(e.notebook, e.status)
    assert "bad-math" not in page and page.count('class="plot"') == len(e.figures)
    if name != NAMES[0]:
        assert "**synthetic**" in e.text and "**illustrative**" in e.text


def test_pages_are_small_and_the_command_prints_their_sizes(report, capsys, tmp_path):
    from kwsbench.cli import app

    with pytest.raises(SystemExit) as stopped:
        app(["report", str(report), "--out", str(tmp_path / "shared")])
    assert stopped.value.code == 0
    printed = re.findall(r"^ *([\d.]+) kB {2}(\S+)$", capsys.readouterr().out, re.M)
    assert {name for _, name in printed} == {"index.html", *(f"{name}.html" for name in NAMES)}
    for size, name in printed:
        assert float(size) <= PAGE_BYTES / 1000, name
        assert (tmp_path / "shared" / name).stat().st_size == pytest.approx(1000 * float(size), abs=51)


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_every_plot_and_formula_is_drawn_and_sound_loads(report, browser, name):
    """Each page once: half of them narrow and dark."""
    write_report(report)
    e = Executed(report, name)
    width, scheme = (390, "dark") if int(name[1]) % 2 else (1440, "light")
    open_page(browser, report / f"{name}.html", width, scheme)
    seen = browser.execute_script(
        """
        const box = (e) => e.getBoundingClientRect();
        return {
          plots: [...document.querySelectorAll('.plot[data-drawn] .main-svg')].map((e) => e.closest('.plot')).length,
          empty: [...document.querySelectorAll('.plot')].filter((p) => !p.querySelector('.trace, image')).length,
          math: [...document.querySelectorAll('math')].filter((m) => box(m).width < 2 || box(m).height < 2).length,
          alt: [...document.querySelectorAll('.plot, img, audio')].filter((e) =>
            !(e.getAttribute('aria-label') || e.alt || '').trim()).length,
          page: document.documentElement.scrollWidth,
          drawn: document.querySelectorAll('.plot[data-drawn]').length,
        }
        """
    )
    assert seen["drawn"] == len(e.figures) and seen["plots"] >= len(e.figures)
    assert (seen["empty"], seen["math"], seen["alt"]) == (0, 0, 0)
    assert seen["page"] <= width
    for i in range(len(e.sounds)):
        wait(browser, f"document.querySelectorAll('audio')[{i}].readyState >= 1")
        assert browser.execute_script(f"return document.querySelectorAll('audio')[{i}].duration") > 0.3
    if name in (NAMES[1], NAMES[3]):
        assert len(e.sounds) >= 2
    assert_quiet(browser)


def test_01_measures_what_theory_says(run):
    """Best clip of a Gaussian on the odd grid: 19.4 dB at 4 bits, 24.6 dB at 5 bits."""
    e = run(NAMES[0])
    assert e.key["sqnr_db_tanh_at_4_bits"] == pytest.approx(19.4, abs=0.15)
    assert e.key["sqnr_db_tanh_at_5_bits"] == pytest.approx(24.6, abs=0.15)
    assert e.key["sqnr_db_tanh_at_1_bits"] == pytest.approx(-10 * math.log10(1 - 2 / math.pi), abs=0.15)
    assert [e.key[f"lane_products_at_{w}"] for w in ("8_bits", "5_bits_odd", "4_bits_odd")] == [2, 8, 17]
    assert e.traces("Three quantizers at 3 bits") == ["linear", "tanh", "dorefa"]
    gradient = e.figure("Gradient of the quantized weight")["data"][1]
    assert values(gradient["y"]).max() == pytest.approx(1, abs=1e-4)
    counts = values(e.figure("std(P) = 0.8")["data"][0]["y"])
    assert len(counts) == 8 and counts.sum() == pytest.approx(100, abs=1e-3)


def test_02_describes_the_corpus_and_its_checks_hold(run):
    e = run(NAMES[1])
    assert (e.key["speakers"], e.key["keyword_clips"], e.key["test_positives"]) == (30, 120, 20)
    assert e.key["files_skipped"] == 0 and e.key["streamed_largest_difference"] == 0
    assert 0 <= e.key["rt60_largest_error_percent"] < 5
    heat = e.figure("LFBE of the mixture")
    bands, *_ = heat["data"][0]["z"]["shape"].split(",")
    assert bands == "20"
    names = [a["text"] for a in heat["layout"]["annotations"]]
    assert names == ["ignored", "positive"]
    snr = values(e.figure("Signal-to-noise ratio")["data"][0]["x"])
    assert 5 <= snr.min() and snr.max() <= 25


def test_03_shows_weights_on_their_levels(run):
    e = run(NAMES[2])
    assert 3.5 < e.key["mean_entropy_bits_at_5_bits"] <= 5 and 0.9 < e.key["mean_entropy_bits_at_1_bits"] <= 1
    assert all(0 <= e.key[f"fdr_percent_{s}"] <= 100 for s in ("float", "control", "at_5_bits", "at_1_bits"))
    assert e.traces("Weights of layer1, 5-bit") == ["float model", "after stage 1", "32 levels"]
    for trace in e.figure("Weights of layer1, 1-bit")["data"][:1]:
        assert values(trace["y"]).sum() == pytest.approx(100, abs=0.1)
    assert e.traces("From there on")[0] == "float, equal steps"
    assert f"{e.key['fdr_percent_float']:.1f}% for float" in e.text


def test_04_compares_every_system_at_one_frr(run):
    e = run(NAMES[3])
    assert e.key["components_left_in_float"] == 0
    main = {"float", "float, equal steps", "stage 2, 5-bit tanh", "stage 2, 1-bit tanh"}
    for scale in ("linear axes", "logarithmic FA/h", "normal-deviate axes"):
        names = e.traces(f"Float and stage 2: {scale}")
        assert main <= set(names) and sum("operating point" in n for n in names) == 4
    coverage, points, matched = e.tables
    assert coverage.count("layer") == 23 and "raw int32" in coverage
    assert points.count("<tr>") == matched.count("<tr>") == 1 + 2 + 3 * 2
    (bars,) = [f for f in e.figures if f["layout"]["title"]["text"].startswith("FDR at FRR")]
    assert [t["name"] for t in bars["data"]] == ["post training", "stage one", "stage two"]
    stage_two = values(bars["data"][2]["y"])
    assert stage_two == pytest.approx(
        [e.key["fdr_percent_stage_two_5_bits"], e.key["fdr_percent_stage_two_1_bits"]], abs=0.01
    )
    assert f"{e.key['fdr_percent_float']:.1f}%" in e.text


def test_05_finds_no_difference_below_the_emulation(run):
    e = run(NAMES[4])
    assert e.key["values_compared_below_emulation"] > 1e7
    assert e.key["values_different_below_emulation"] == 0 and e.key["streamed_values_different"] == 0
    assert 0 < e.key["largest_int32_share_percent"] < 1
    assert 0 < e.key["fake_quant_differs_percent_at_5_bits"] < 50, "the usual simulation is not what runs"
    assert 0 <= e.key["sat16_wrong_percent_at_1_bits"] <= e.key["sat16_wrong_percent_at_5_bits"] < 100
    assert e.traces("Noise of each rung by layer") == ["float to fake-quant", "fake-quant to emulation"]
    ladder = e.tables[0]
    assert ladder.count("emulation → reference") == ladder.count("reference → neon") == 4
    assert "**0** differ" in e.text


def test_08_runs_centroids_in_integers_and_proposes_a_mix(run):
    e = run("08_general_quantizer")
    slider = e.figure("from soft to hard")["layout"]["sliders"][0]
    assert 10 < len(slider["steps"]) <= 24 and slider["steps"][-1]["label"] == "60"
    levels = values(slider["steps"][-1]["args"][0]["y"][1])
    assert len(levels) == 4 and np.all(np.diff(levels) > 0)
    assert e.traces("Levels at 2 bits") == ["linear", "tanh", "general, even", "general, trained"]
    mix = values(e.figure("The proposed mix")["data"][0]["y"])
    assert set(mix) <= {1, 2, 4, 8} and min(mix) == 1 and len(mix) == 10
    assert 0.1 < e.key["bytes_of_8_bits_lstm_mix"] < 0.45
    assert 0 <= e.key["wer_percent_lstm_mix"] <= 200 and 0 < e.key["step_time_of_8_bits_at_4_bits"]
    assert all(0 <= e.key[f"fdr_percent_{m}_at_2_bits"] <= 100 for m in ("general", "tanh", "linear"))
    layers, spotter, _, steps, waits = e.tables
    assert layers.count("<tr>") == 1 + 5 and spotter.count("stage 2, 2-bit") == 3
    assert steps.count("<tr>") == 1 + 3 and waits.count("stage 2") == 4
    assert "comparisons came out as predicted" in e.text


def test_09_searches_meets_its_target_and_runs_what_it_found(run):
    e = run("09_architecture_search")
    assert re.fullmatch(r"mfcc10 w16 ((\d+e\d+s?|skip) ){3}h32", e.key["found"])
    assert e.key["networks_in_the_space"] == 6 * 7 * 7 and 0.8 < e.key["expected_of_target"] < 1.2
    assert 0 <= e.key["entropy_at_the_end_nats"] < np.log(7) and e.key["values_different"] == 0
    slider = e.figure("A search while it decides")["layout"]["sliders"][0]
    first = [v for row in slider["steps"][0]["args"][0]["z"][0] for v in row if v is not None]
    assert sorted(set(first)) == [14.3, 16.7]  # all candidates alike: a seventh, a sixth where there is a stride
    expected = values(e.figure("Expected operations")["data"][0]["y"])
    assert expected[0] == pytest.approx(expected[1], rel=0.01) and len(expected) > 5
    found = e.key["found"].split()[2:-1]
    blocks = e.figure("The found network")["layout"]["xaxis"]["ticktext"]
    assert blocks == ["stem", *(cell for cell in found if cell != "skip"), "head", "pool", "output"]
    spent = [float(x) for x in re.findall(r"([\d.]+)</td></tr>", e.tables[1])]
    assert len(spent) == 3 and max(spent) <= 1.001 * spent[0], "the baselines spend no more than the search"
    assert e.tables[2].count("<tr>") == 1 + 5 and e.tables[3].count("<tr>") == 1 + 3 and "At equal cost" in e.text


def test_10_widths_move_and_programs_are_exact(run):
    e = run("10_trained_bit_widths")
    assert e.key["values_different"] == 0
    for learner in ("width", "diffq"):
        assert e.key[f"tensors_moved_{learner}"] > 5
        assert 2 <= e.key[f"bits_per_weight_{learner}"] < 8 and 1 <= e.key[f"bits_per_activation_{learner}"] < 8
    way = e.figure("On the way to the budget")["data"]
    assert all(values(line["y"])[-1] < values(line["y"])[0] for line in way)
    maps = [e.figure(title)["data"][0] for title in ("Trained step and range", "Pseudo-noise (DiffQ)")]
    assert [len(m["z"]) for m in maps] == [len(m["y"]) for m in maps] and len(maps[0]["y"]) == 24
    assert e.tables[1].count("<tr>") == 1 + 4 + 2 + 2  # float, control, two not trained; two fixed; two learned
    assert e.tables[4].count("streamed") == 3 and "values of all layers" in e.text


def test_06_labels_every_number(run):
    e = run(NAMES[5])
    assert e.key["parameters"] == 247_602
    weights = 200 * 620 + 3 * 200 * 200 + 2 * 200
    float32 = 4 * (weights + 802 + 40 + 30 * 20 + 400)  # biases, input tables, ring, activations
    assert e.key["kilobytes_float32_modelled"] == pytest.approx(float32 / 1000, abs=0.06)
    sizes = [
        e.key[f"kilobytes_{n}_modelled"] for n in ("8_bit_containers", "packed_5_bit", "packed_4_bit", "packed_1_bit")
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0] / 7
    assert e.key["kilobytes_NPU_1_bit_projected"] < e.key["kilobytes_packed_1_bit_modelled"]
    fewer = [e.key[f"neon_times_fewer_modelled_at_{w}_bits"] for w in (8, 5, 4, 1)]
    assert fewer == sorted(fewer) and fewer[0] > 1
    assert e.key["macs_per_second_modelled"] == round(weights / 0.03)
    memory, layers, cost, accuracy = e.tables
    assert {"measured", "modelled", "projected"} <= set(re.findall(r">(\w+)<", memory))
    assert cost.count("modelled") == 6 and layers.count("measured") == 3
    assert re.findall(r"<td>(float32|packed, \d-bit)</td>", accuracy) == ["float32", "packed, 5-bit", "packed, 1-bit"]
