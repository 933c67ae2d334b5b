"""Finished runs handed on: a folder of their own, one file, two of them side by side."""

from __future__ import annotations

import re

import numpy as np
import pytest
from nbformat.v4 import new_output

from kwsbench.reports.page import load_statuses
from kwsbench.reports.sharing import page_id, render_single, share_folder, single_file
from kwsbench.reports.show import wav_bytes
from tests.reports.made_runs import made_run, plot, record


def sound():
    import base64

    data = base64.b64encode(wav_bytes(np.sin(np.arange(1600) / 5), 16000)).decode()
    html = f'<audio controls src="data:audio/wav;base64,{data}"></audio>'
    return new_output("display_data", data={"text/html": html}, metadata={"kwsbench": {"role": "audio", "label": "L"}})


@pytest.fixture
def two(tmp_path):
    return tuple(
        made_run(tmp_path / "report", name, outputs=[*plot(), sound()], systems=[record("s")]) for name in ("a", "b")
    )


def test_a_folder_holds_the_runs_it_shows(two, tmp_path):
    out = tmp_path / "shared"
    index = share_folder(two, out, two)
    assert index == out / "index.html" and [s.name for s in load_statuses(out)] == ["a", "b"]
    assert {p.name for p in out.iterdir()} >= {"a.html", "b.html", "comparison.html", "audio", "plotly.min.js"}
    assert 'href="comparison.html"' in index.read_text()
    assert (out / "runs/a/notebook.ipynb").read_bytes() == (two[0] / "notebook.ipynb").read_bytes()
    (sound_file,) = (out / "audio").iterdir()
    assert sound_file.read_bytes()[:4] == b"RIFF"
    share_folder(two, out, two)  # the same again is no error


def test_runs_of_one_name_are_told_apart(two, tmp_path):
    other = made_run(tmp_path / "other", "a", figures={"fdr_percent": 50.0})
    out = tmp_path / "shared"
    share_folder([two[0], other], out, (two[0], other))
    assert [s.name for s in load_statuses(out)] == ["a", "a-2"]
    assert "fdr percent" in (out / "comparison.html").read_text()
    assert 'href="a-2.html"' in (out / "comparison.html").read_text()


def test_a_folder_of_other_runs_is_refused(two, tmp_path):
    made_run(tmp_path / "shared", "mine")
    with pytest.raises(ValueError, match=r"holds other runs \(mine\); choose another folder"):
        share_folder(two, tmp_path / "shared")
    assert not (tmp_path / "shared/runs/a").exists()


def test_a_report_is_rendered_in_its_own_place(two, tmp_path):
    share_folder(two, tmp_path / "report")
    assert (tmp_path / "report/a.html").exists()


def test_one_file_names_nothing_outside_itself(two, tmp_path):
    path = single_file(two, tmp_path / "new" / "all.html", two)
    text = path.read_text()
    markup = re.sub(r"<script.*?</script>|<style>.*?</style>", "", text, flags=re.S)
    assert not re.search(r'(src|href)="(?!#|data:)', markup)
    ids = re.findall(r'\bid="([^"]+)"', markup)
    assert len(ids) == len(set(ids)) and {"index", "comparison", "page-a", "page-b"} <= set(ids)
    links = set(re.findall(r'href="#([^"]+)"', markup))
    assert links <= {*ids}, links - {*ids}
    assert markup.count("data:audio/wav;base64,") == 2
    assert "unsafe-inline'; img" in text and "script-src 'sha256-" in text


def test_nothing_in_a_run_ends_a_script_of_the_one_file(tmp_path):
    bad = "</script><script>alert(1)</script>"
    folder = made_run(tmp_path, "a", title=f"T {bad}", figures={bad: bad}, parameters={"keyword": bad})
    text = render_single([folder])
    assert "<script>alert(1)" not in text
    assert text.count("<script>") == text.count("'sha256-")


def test_names_of_runs_become_ids_that_differ():
    assert page_id("a-1.b") == "page-a-1.b"
    assert page_id("a b") != page_id("a_b") and re.fullmatch(r"[A-Za-z0-9._-]+", page_id("ä <b>"))
