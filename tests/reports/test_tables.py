import html
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kwsbench.metrics.det import OperatingPoint
from kwsbench.reports.tables import format_value, html_table, markdown_table, operating_rows

ROWS = [
    {"layer": "layer0", "total_bytes": 83200, "snr_db": 12.3456, "used": True},
    {"layer": "a<b>|c", "total_bytes": None, "snr_db": float("nan"), "used": False},
]


class Reader(HTMLParser):
    """Cells of a table as a browser reads them, row by row; and every tag seen."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.cell = [], set(), None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.cell = ""
        elif tag == "br" and self.cell is not None:
            self.cell += " / "

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


def test_a_table_as_a_browser_reads_it():
    table = Reader(html_table(ROWS, basis={"total_bytes": "measured"}, caption="Bytes & bits"))
    assert table.rows == [
        ["layer", "total / bytes, measured", "snr / dB", "used"],
        ["layer0", "83,200", "12.3", "yes"],
        ["a<b>|c", "–", "–", "no"],
    ]
    assert table.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td", "br", "small"}
    assert "Bytes &amp; bits" in html_table(ROWS, caption="Bytes & bits")


def test_numbers_stand_to_the_right_and_titles_choose_columns():
    text = html_table(ROWS, titles={"total_bytes": "size", "layer": "name"})
    assert Reader(text).rows[0] == ["size / bytes", "name"]
    assert text.count('class="number"') == 3


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_name_becomes_markup(key, value):
    table = Reader(html_table([{f"k{key}": value}]))
    assert table.tags <= {"table", "thead", "tbody", "tr", "th", "td", "br", "small"}
    if "\r" not in value and "\0" not in value:
        assert table.rows[1] == [value]


def test_markdown_is_read_back_as_it_was_meant():
    text = markdown_table(ROWS, basis={"snr_db": "modelled"})
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    table = Reader(rendered)
    assert table.rows[0] == ["layer", "total (bytes)", "snr (dB, modelled)", "used"]
    assert table.rows[2] == ["a<b>|c", "–", "–", "no"]
    assert "text-align:right" in rendered


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20))
def test_a_markdown_cell_stays_one_cell(value):
    table = Reader(MarkdownIt("commonmark").enable("table").render(markdown_table([{"a": value, "b": 1}])))
    assert table.tags <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert len(table.rows[1]) == 2 and table.rows[1][1] == "1"
    assert table.rows[1][0] == " ".join(value.split())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.int64(12345), "12,345"),
        (np.float32(0.1), "0.1"),
        (np.bool_(True), "yes"),
        (-0.00012345, "-0.000123"),
        (999.96, "1,000"),
        (1e9, "1,000,000,000"),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
    ],
)
def test_values_are_short_and_plain(value, text):
    assert format_value(value) == text


def point(**changes):
    fields = {
        "keyword": "key", "system": "float", "threshold": 1.25,
        "frr": 0.05, "misses": 5, "n_positives": 100, "frr_low95": 0.0215, "frr_high95": 0.1118,
        "fdr": 0.1, "true_accepts": 95, "false_accepts": 10, "n_negative_clips": 900,
        "fa_per_hour": 2.5, "events": 5, "hours": 2.0,
        "fa_per_hour_low95": 0.8, "fa_per_hour_high95": 5.8, "fa_per_hour_upper95": 5.26,
        "fa_per_hour_speech": 4.0, "speech_events": 2, "speech_hours": 0.5,
    }  # fmt: skip
    return OperatingPoint(**(fields | changes))


def test_every_rate_stands_beside_its_counts():
    row = operating_rows({"float": point()})[0]
    assert row == {
        "system": "float",
        "threshold": "1.250",
        "FRR": "5.0% (5 of 100; 2.1% to 11.2%)",
        "FDR": "10.0% (10 of 105 accepted; 900 negative clips)",
        "FA/h": "2.5 (5 in 2 h; at most 5.26)",
        "FA/h, speech": "4 (2 in 0.5 h)",
    }
    silent = operating_rows({"x": point(fdr=math.nan, speech_hours=0.0, fa_per_hour_speech=math.nan)})[0]
    assert silent["FA/h, speech"] == "–" and silent["FDR"].startswith("– (")


def test_a_table_without_rows_is_refused():
    for make in (html_table, markdown_table):
        with pytest.raises(ValueError, match="at least one row"):
            make([])
    assert html.unescape("&ndash;") == format_value(None)
