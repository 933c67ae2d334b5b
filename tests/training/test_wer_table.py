"""The table of word error rates: counts add up, differences are paired, bad data is listed, and it is resumable."""

import json
from dataclasses import replace

import pytest

from kwsbench.metrics.wer import wer_interval
from kwsbench.training.recognition import RecognitionSystem, open_recognition
from kwsbench.training.wer_table import markdown, run_table, setup, summarise, systems_of
from tests.training.recognition_tools import FOUR, TINY, WORDS, write_tones

SHORT = replace(
    TINY,
    float_stage=replace(TINY.float_stage, steps=60),
    stage_one=replace(TINY.stage_one, steps=4),
    stage_two=replace(TINY.stage_two, steps=2),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    root = write_tones(folder / "tones")
    recognition = open_recognition(folder / "runs", "commands", str(root), WORDS, SHORT, progress=False)
    return recognition, folder / "out", run_table(recognition, ["conformer"], [0, 1], [1], folder / "out", "make it")


def test_rows_and_summary_agree_with_the_hypotheses(made):
    recognition, out, result = made
    labels = [s.label for s in systems_of("conformer", 0, [1], None)]
    assert labels == [
        "float", "float, equal steps", "stage 2, 8-bit linear", "post-training, 8-bit linear", "stage 2, 1-bit general"
    ]  # fmt: skip
    assert [r["system"] for r in result["summary"]][:5] == labels and len(result["summary"]) == 6
    assert result["summary"][5]["system"].startswith("stage 2, mixed ")
    assert [r["seed"] for r in result["rows"]] == [0] * 6 + [1] * 6
    words = sum(len(u.words) for u in recognition.corpus.select("test"))
    for row, entry in zip(result["rows"], result["summary"]):
        assert row["words"] == words and entry["words"] == 2 * words
        other = next(r for r in result["rows"] if r["system"] == row["system"] and r["seed"] == 1)
        assert entry["wer"]["mean"] == pytest.approx((row["wer"] + other["wer"]) / 2)
        assert entry["interval"]["low"] <= entry["wer"]["mean"] <= entry["interval"]["high"]
    float_row = result["rows"][0]
    heard = recognition.recognised(RecognitionSystem("float", 0, "conformer"), "test")
    interval = wer_interval(heard.by_speaker())
    assert (float_row["interval"]["low"], float_row["interval"]["high"]) == (interval.low, interval.high)
    # Most of so small a model are biases and norms, which stay in float.
    assert float_row["of_float"] == 1 and 1.5 < float_row["of_8_bit"] < 4
    base = result["summary"][2]
    assert base["difference"]["rate"] == base["difference"]["low"] == base["difference"]["high"] == 0
    assert base["of_8_bit"]["mean"] == 1
    mix = result["summary"][5]
    assert mix["of_8_bit"]["mean"] < result["summary"][2]["of_8_bit"]["mean"]
    assert json.loads((out / "recognition.json").read_text()) == json.loads(json.dumps(result))


def test_the_page_says_what_was_measured(made):
    _, out, result = made
    page = (out / "recognition.md").read_text()
    assert page == markdown(result) and "Made by `make it`" in page
    assert "Recorded single words of one speaker strung together" in page and "The splits share no speaker" in page
    assert page.count("\n| conformer |") == 6 and "## Sensitivity, conformer" in page
    assert "Left out: 0." in page and "Illustrative" in page


def test_a_second_call_trains_and_decodes_nothing(made, monkeypatch):
    recognition, out, result = made
    again = open_recognition(recognition.root, "commands", recognition.spec.data, WORDS, SHORT, progress=False)
    for name in ("train_transducer", "recognise_together"):
        monkeypatch.setattr(f"kwsbench.training.recognition.{name}", lambda *a, **k: pytest.fail("made twice"))
    assert run_table(again, ["conformer"], [0, 1], [1], out, "make it") == result


def test_half_a_table_has_no_differences_yet(made):
    _, _, result = made
    half = summarise(result["rows"][:2])
    assert [entry["difference"] for entry in half] == [None, None]
    assert "| - |" in markdown(result | {"summary": half})


def test_what_is_left_out_is_counted_and_listed(tmp_path):
    root = write_tones(tmp_path / "tones")
    (root / "low" / "train0.flac").write_bytes(b"")
    recognition = open_recognition(tmp_path / "runs", "commands", str(root), WORDS, SHORT, progress=False)
    found = setup(recognition, ["lstm"], [0], [4])
    assert found["left_out_count"] == len(found["left_out"]["corpus"]) > 0
    assert any("low/train0.flac" in item for item in found["left_out"]["corpus"])
    test = found["splits"]["test"]
    assert (test["utterances"], test["speakers"], test["unknown_words"]) == (20, 2, 0)
    page = markdown({"setup": found | {"command": ""}, "rows": [], "summary": [], "mixes": {}})
    assert f"Left out: {found['left_out_count']}." in page and "- corpus: " in page
    assert FOUR.weights.bits == 4
