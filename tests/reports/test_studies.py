"""What the notebooks count: corpora, integer programs and resources, by brute force and by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kwsbench.data.batches import FeatureBank, LabelRule
from kwsbench.data.corpora import NOISE, SPEECH, Clip, Corpus
from kwsbench.data.rooms import Room
from kwsbench.features.lfbe import LfbeConfig
from kwsbench.integer import run
from kwsbench.integer.program import Dense, InputQuantizer, OutputDense, Program, Proof, UnfoldedDense
from kwsbench.reports import corpus_study, integer_study, resource_study

RNG = np.random.default_rng(0)


def clip(path, label, speaker, split, seconds=1.0):
    return Clip(path, label, speaker, split, seconds)


CORPUS = Corpus(
    Path("."),
    (
        clip("a", "go", "s1", "train"),
        clip("b", "go", "s1", "train"),
        clip("c", "go", "", "train"),
        clip("d", "no", "s2", "train", 2.0),
        clip("e", SPEECH, "s3", "train", 3600.0),
        clip("f", NOISE, "n", "train", 1800.0),
        clip("g", "go", "s4", "test"),
    ),
)


def test_splits_are_counted_by_kind():
    train, validation, test, everything = corpus_study.split_rows(CORPUS, "go")
    assert train == {
        "split": "train",
        "keyword_clips": 3,
        "keyword_speakers": 1,
        "other_clips": 1,
        "other_labels": 1,
        "speakers": 3,
        "word_hours": 5 / 3600,
        "speech_hours": 1.0,
        "noise_hours": 0.5,
    }
    assert validation["keyword_clips"] == validation["speech_hours"] == 0 and test["keyword_clips"] == 1
    assert everything["split"] == "all" and everything["keyword_clips"] == 4 and everything["speakers"] == 4


def test_label_spans_cover_the_frames_they_name():
    config = LfbeConfig()
    ends = config.frame_end_seconds(np.arange(80))
    labels = LabelRule().labels(ends, 1.5, 1)
    (name, (start, end)), (inner, (first, last)) = [(n, (a, b)) for a, b, n in corpus_study.label_spans(labels, ends)]
    assert (name, inner) == ("ignored", "positive")
    assert start < first < 1.5 < last < end
    assert end - start == pytest.approx(np.sum(labels != 0) * config.frame_seconds)
    assert last - first == pytest.approx(np.sum(labels > 0) * config.frame_seconds)
    assert corpus_study.label_spans(np.zeros(5), ends[:5]) == []
    assert corpus_study.label_spans(np.array([1, 0]), ends[:2]) == [
        (0.0, ends[0], "ignored"),
        (0.0, ends[0], "positive"),
    ]


def test_clips_are_taken_evenly():
    assert corpus_study.evenly(CORPUS.clips, 3) == [CORPUS.clips[0], CORPUS.clips[3], CORPUS.clips[6]]
    assert corpus_study.evenly(CORPUS.clips, 100) == list(CORPUS.clips) and corpus_study.evenly([], 3) == []


def test_streamed_features_are_compared_value_by_value(monkeypatch):
    audio = RNG.normal(0, 0.1, 8000).astype(np.float32)
    rows = corpus_study.streamed_feature_rows(audio, LfbeConfig(), [1, 333, 20000])
    assert [(r["values"], r["different"], r["largest_difference"]) for r in rows] == [(16 * 20, 0, 0.0)] * 3
    honest = corpus_study.lfbe
    monkeypatch.setattr(corpus_study, "lfbe", lambda audio, config: honest(audio, config) + np.float32(0.5))
    assert corpus_study.streamed_feature_rows(audio, LfbeConfig(), [100])[0]["different"] == 320


def test_rooms_are_measured_again():
    seconds = np.arange(16000) / 16000
    decays = [RNG.normal(size=16000) * 10 ** (-3 * seconds / rt60) for rt60 in (0.5, 0.25)]
    place = np.zeros(3)
    rooms = [
        Room(np.ones(3), place, np.array([3.0, 4.0, 0.0]), 0.5, decays[0], 0),
        Room(np.ones(3), place, place, 0.25, decays[1], 0),
    ]
    short, long = corpus_study.room_rows(rooms)
    assert (short["drawn_seconds"], long["drawn_seconds"]) == (0.25, 0.5) and long["distance_m"] == 5
    assert abs(short["error_percent"]) < 6 and abs(long["error_percent"]) < 6


def test_provenance_says_what_is_synthetic_and_what_illustrative():
    assert "**synthetic**" in corpus_study.provenance("", "default", True)
    assert "**illustrative**" in corpus_study.provenance("", "default", True)
    real = corpus_study.provenance("my/clips", "full", False)
    assert "`my/clips`" in real and "synthetic" not in real and "illustrative" not in real


# ------------------------------------------------------------------------------------------ integers


def bank_of(lengths, n_mels=4):
    total = sum(lengths)
    return FeatureBank(
        RNG.normal(0, 2, (total, n_mels)).astype(np.float32),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.arange(total) % 100,
        tuple(f"{i}" for i in range(len(lengths))),
        tuple("w" for _ in lengths),
        np.arange(len(lengths), dtype=np.float32),
        0.03,
        0.025,
        ("w",),
        (),
        "hash",
    )


def program_of(folded: bool, bits: int = 5, hidden: int = 8) -> Program:
    n = 2**bits - 1
    odd = lambda *shape: (2 * RNG.integers(0, n + 1, shape) - n).astype(np.int8)  # noqa: E731
    first: Dense | UnfoldedDense
    if folded:
        first = Dense(
            "layer0", odd(hidden, 12), bits, "odd", RNG.integers(-500, 500, hidden).astype(np.int32),
            np.full(hidden, 2**30, np.int32), np.full(hidden, 36, np.int32), 0.1, True, "single", Proof(128, 1, 1),
        )  # fmt: skip
    else:
        codes = RNG.integers(-127, 128, hidden).astype(np.int8)
        first = UnfoldedDense(
            "layer0", odd(hidden, 12), bits, "odd", codes, codes, 20000, 300000, 26, 0.1, True, Proof(128, 1, 1, 5)
        )
    last = OutputDense("layer1", odd(2, hidden), bits, "odd", np.array([7, -7], np.int32), np.ones(2), Proof(127, 1, 1))
    quantizer = InputQuantizer(np.zeros(4, np.float32), np.ones(4, np.float32), 0.05)
    return Program(("w",), 4, 3, 0.03, quantizer, (first, last))


def test_some_segments_are_cut_from_their_start():
    bank = bank_of([5, 50, 7, 9, 30])
    small = integer_study.some_segments(bank, 3, 10)
    assert small.clip_paths == ("0", "2", "4") and np.diff(small.offsets).tolist() == [5, 7, 10]
    np.testing.assert_array_equal(small.segment(2), bank.segment(4)[:10])
    np.testing.assert_array_equal(small.segment_labels(1), bank.segment_labels(2))
    assert small.word_end_seconds.tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match="limits 0 and 10"):
        integer_study.some_segments(bank, 0, 10)


def test_some_windows_are_those_of_whole_segments():
    bank, program = bank_of([5, 50, 7]), program_of(True)
    whole = np.concatenate([run.stack(program, bank.segment(i), run.fresh_ring(program))[0] for i in range(3)])
    np.testing.assert_array_equal(integer_study.some_windows(program, bank, 10**6), whole)
    few = integer_study.some_windows(program, bank, 4)
    np.testing.assert_array_equal(few, whole[[0, 20, 41, 61]])


@pytest.mark.parametrize("folded", [True, False])
def test_proofs_stand_beside_what_was_met(folded):
    program = program_of(folded)
    windows = integer_study.some_windows(program, bank_of([40]), 40)
    first, last = integer_study.proof_rows(program, windows)
    acc = windows.astype(np.int64) @ program.layers[0].codes.astype(np.int64).T + (
        program.layers[0].bias if folded else 0
    )
    assert first["largest_accumulator_met"] == np.abs(acc).max()
    assert first["product_share_percent"] == (None if folded else 100 * 5 / 2**53)
    assert last["largest_accumulator_met"] == np.abs(run.trace(program, windows)[-1]).max()


def test_rounding_modes_are_compared_with_single_rounding():
    program = program_of(True)
    windows = integer_study.some_windows(program, bank_of([400]), 400)
    rows = integer_study.rounding_rows(program, windows)
    by = {(r["rounding"], r["layer"]): r for r in rows}
    assert all(r["different"] == r["alone"] == r["largest"] == 0 for r in rows if r["rounding"] == "single")
    single = run.trace(program, windows)
    for mode in ("double", "double_up"):
        other = run.trace(integer_study.with_rounding(program, mode), windows)
        assert by[mode, "layer0"]["alone"] == by[mode, "layer0"]["different"] == np.sum(other[0] != single[0]) > 0
        assert by[mode, "layer0"]["largest"] == 1 and by[mode, "layer1"]["alone"] == 0
        assert by[mode, "layer1"]["different"] == np.sum(other[1] != single[1])
        assert by[mode, "total"]["different"] == by[mode, "layer0"]["different"] + by[mode, "layer1"]["different"]
    with pytest.raises(ValueError, match="no folded layer"):
        integer_study.with_rounding(program_of(False), "double")
    with pytest.raises(ValueError, match="rounding must be one of"):
        integer_study.with_rounding(program, "up")


@pytest.mark.parametrize("bits", [1, 5])
def test_overflows_of_narrow_accumulators_are_counted(bits):
    program = program_of(False, bits, hidden=300)
    program = replace(
        program, layers=(replace(program.layers[0], gain_codes=np.full(300, 127, np.int8)), program.layers[1])
    )
    windows = integer_study.some_windows(program, bank_of([30]), 30)
    rows = integer_study.accumulator_rows(program, windows)
    by = {(r["accumulator"], r["layer"]): r for r in rows}
    assert by["acc32", "total"]["overflows"] == by["acc32", "total"]["wrong"] == 0
    exact = run.trace(program, windows)[-1]
    outside = int(np.sum((exact < -32768) | (exact > 32767)))
    assert by["acc16", "layer1"]["overflows"] == by["acc16", "layer1"]["wrong"] == outside
    assert (outside > 0) == (bits == 5)
    for name in ("acc16", "sat16"):
        parts = [by[name, layer] for layer in ("layer0", "layer1")]
        assert by[name, "total"]["wrong"] == sum(r["wrong"] for r in parts)
        assert by[name, "total"]["wrong_percent"] == pytest.approx(100 * sum(r["wrong"] for r in parts) / (30 * 302))


def test_streams_are_compared_in_chunks(monkeypatch):
    program, frames = program_of(False), bank_of([61]).features
    rows = integer_study.streaming_rows(program, frames, [1, 7, 61, 100])
    assert [(r["outputs"], r["different"], r["ring_values_different"]) for r in rows] == [(122, 0, 0)] * 4
    honest = run.step

    def forgetful(program, frames, ring, backend):
        acc, _ = honest(program, frames, ring, backend)
        return acc, run.fresh_ring(program)

    monkeypatch.setattr(run, "step", forgetful)
    assert integer_study.streaming_rows(program, frames, [7])[0]["different"] > 0


def test_rungs_sum_their_layers():
    row = {"upper": "a", "lower": "b", "layer": "layer0", "compared": 10, "different": 0, "sqnr_db": np.inf}
    rows = [row, row | {"layer": "layer1", "different": 5, "sqnr_db": 3.0}, row | {"upper": "b", "lower": "c"}]
    assert integer_study.rung_rows(rows) == [
        {"rung": "a → b", "lower": "b", "compared": 20, "different": 5, "different_percent": 25.0,
         "first_layer": "layer1", "sqnr_db": 3.0},
        {"rung": "b → c", "lower": "c", "compared": 10, "different": 0, "different_percent": 0.0,
         "first_layer": None, "sqnr_db": np.inf},
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------- resources


def test_memory_of_every_system_carries_its_labels():
    programs = {bits: program_of(False, bits) for bits in (5, 4, 1)}
    rows = {row["system"]: row for row in resource_study.memory_rows(programs)}
    assert list(rows) == [
        "float32", "8-bit containers", "packed, 5-bit", "packed, 4-bit", "packed, 1-bit", "NPU, 5-bit", "NPU, 1-bit"
    ]  # fmt: skip
    weights = 8 * 12 + 2 * 8
    assert rows["float32"]["weights_bytes"] == 4 * weights and rows["NPU, 1-bit"]["weights_bytes"] == weights // 8
    containers = rows["8-bit containers"]
    assert containers["weights_bytes"] == 2 * 8 * 32  # two layers, each padded to 8 x 32
    assert containers["constants_bytes"] == 2 * 8 + 2 * 4 + 2 * 4 * 4 and containers["ring_bytes"] == 2 * 4
    for row in rows.values():
        assert row["total_bytes"] == sum(row[f"{part}_bytes"] for part in resource_study.PARTS)
        assert row["total_times_smaller"] == rows["float32"]["total_bytes"] / row["total_bytes"]
    assert [rows[s]["weights_basis"] for s in ("float32", "packed, 5-bit", "NPU, 5-bit")] == [
        "modelled", "measured", "projected"
    ]  # fmt: skip
    assert containers["total_basis"] == "modelled" and (rows["float32"]["width"], containers["width"]) == (None, 8)
    with pytest.raises(ValueError, match="at least one program"):
        resource_study.memory_rows({})


def test_cost_compares_widths_with_float():
    rows = resource_study.cost_rows({bits: program_of(False, bits) for bits in (5, 1)})
    assert [row["system"] for row in rows] == ["float32", "5-bit", "1-bit"]
    float32, five, one = rows
    assert five["lanes_times_fewer"] == float32["lanes"] / five["lanes"] and float32["sdot"] is None
    assert one["lanes"] <= five["lanes"] < float32["lanes"] and one["sdot"] == five["sdot"]
    assert {row["macs"] for row in rows} == {8 * 12 + 2 * 8}
