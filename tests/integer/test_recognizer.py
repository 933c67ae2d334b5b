"""Recognizers on disk, their bytes, and what is refused."""

import json
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kwsbench.arithmetic import gates
from kwsbench.export import recognizer as export
from kwsbench.export.pack import unpack
from kwsbench.integer.drawn import draw_recognizer
from kwsbench.integer.recognizer import Recognizer, load_recognizer
from kwsbench.resources.recognizer import matrix_table, part_table

SIZES = {"n_mels": 5, "stack": 2, "embedding": 6, "prediction": 7, "joint": 9, "symbols": 5}


def assert_same(a, b):
    assert type(a) is type(b)
    if is_dataclass(a):
        for f in fields(a):
            assert_same(getattr(a, f.name), getattr(b, f.name))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b


@pytest.fixture
def recognizer() -> Recognizer:
    return draw_recognizer((8, 11), bits=[8, 5, 4, 2, 1, 3, 6, 7, 8, 1], seed=3, **SIZES)


def test_a_recognizer_survives_the_disk(recognizer, tmp_path):
    path = tmp_path / "new" / "recognizer.safetensors"
    recognizer.save(path)
    assert_same(load_recognizer(path), recognizer)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary is left


def test_damaged_and_foreign_files_are_refused(recognizer, tmp_path):
    path = tmp_path / "r.safetensors"
    with pytest.raises(FileNotFoundError, match="no recognizer at"):
        load_recognizer(path)
    recognizer.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="write it again"):
        load_recognizer(path)
    path.write_bytes(whole)
    tensors = load_file(path)
    header = {"format": "kwsbench-program-1"}
    save_file(tensors, path, metadata={"kwsbench": json.dumps(header)})
    with pytest.raises(ValueError, match="not a kwsbench recognizer"):
        load_recognizer(path)
    header = {"format": "kwsbench-recognizer-1"}
    save_file(tensors, path, metadata={"kwsbench": json.dumps(header)})
    with pytest.raises(ValueError, match=r"damaged .*lower the model again"):
        load_recognizer(path)


def test_a_missing_tensor_is_named(recognizer, tmp_path):
    path = tmp_path / "r.safetensors"
    recognizer.save(path)
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as f:
        metadata = f.metadata()
    tensors = load_file(path)
    del tensors["encoder.1.state.codes"]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"encoder\.1\.state\.codes.*lower the model again"):
        load_recognizer(path)


def test_sizes_that_do_not_fit_are_refused(recognizer):
    with pytest.raises(ValueError, match=r"encoder\.layers\.0\.input has the shape \(32, 10\), expected \(32, 15\)"):
        replace(recognizer, stack=3)
    with pytest.raises(ValueError, match=r"reduce_after must lie in 1\.\.1, got 2"):
        replace(recognizer, reduce_after=2)
    with pytest.raises(ValueError, match="5 symbols and a joint of 9"):
        replace(recognizer, output=replace(recognizer.output, codes=recognizer.output.codes[:, :8]))
    with pytest.raises(ValueError, match="10 matrices, got 2 widths"):
        draw_recognizer((8, 11), bits=[8, 8])


def test_predicted_bytes_are_written_bytes_and_hold_everything(recognizer):
    parts, predicted = export.recognizer_parts(recognizer), export.recognizer_bytes(recognizer)
    assert {k: len(v) for k, v in parts.items()} == predicted
    assert tuple(parts) == export.PARTS
    at = 0
    for matrix, row in zip(recognizer.matrices, matrix_table(recognizer)):
        data = parts["matrices"][at : at + row["packed_bytes"]]
        assert np.array_equal(unpack(data, matrix.codes.shape, matrix.bits, matrix.grid), matrix.codes)
        at += len(data)
    assert at == len(parts["matrices"])
    curves = np.frombuffer(parts["curves"], "<i2").reshape(2, gates.ENTRIES)
    assert np.array_equal(curves, [gates.SIGMOID, gates.TANH])
    total = part_table(recognizer)[-1]
    assert total["packed_bytes"] == sum(map(len, parts.values()))
    assert total["float32_bytes"] > 4 * sum(m.codes.size for m in recognizer.matrices)


@pytest.mark.parametrize(
    "values, size",
    [
        ([7, 7, 7], 2 + 1),
        ([-128, 127], 2 + 2),
        ([128, 0], 2 + 4),
        ([2**31, -(2**31), 5], 2 + 15),
        ([-(2**51), 2**50], 2 + 14),
        ([0], 3),
        ([-(2**63), 2**63 - 1], 2 + 16),
    ],
)
def test_constants_take_the_fewest_bytes_and_return(values, size):
    array = np.array(values, np.int64)
    data = export.pack_constants(array)
    assert len(data) == size == export.constants_bytes(array)
    assert export.unpack_constants(data, len(array)).tolist() == values
    with pytest.raises(ValueError, match="bytes, got"):
        export.unpack_constants(data + b"x", len(array))
