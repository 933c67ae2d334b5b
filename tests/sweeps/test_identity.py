"""What makes a run another run, and what does not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest
from sweep_tools import write_notebook

from kwsbench.data import contents
from kwsbench.data.synth import profile_recipe
from kwsbench.sweeps import identity
from kwsbench.sweeps.identity import address, corpus_sha256, embedded_sha256, environment, notebook_sha256
from kwsbench.sweeps.spec import Overrides, read_sweep

AROUND = {"code_sha256": "c", "environment": {"python": "3"}}


def name_of(folder: Path, **overrides) -> str:
    (folder / "s.yaml").write_text("notebooks: [n.ipynb]\nparameters: {x: 1}\n")
    (run,) = read_sweep(folder / "s.yaml", Overrides(folder / "out", overrides.get("root", folder / "root"))).runs
    return run.name


def test_code_cells_and_parameters_count_prose_outputs_and_root_do_not(tmp_path):
    path = write_notebook(tmp_path / "n.ipynb", 'x: int = 0\nroot: str = "."', "print(x)")
    before = name_of(tmp_path)
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source = "# Another title"
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]
    notebook.metadata["kernelspec"] = {"name": "other", "display_name": "other"}
    nbformat.write(notebook, path)
    assert name_of(tmp_path) == before
    assert name_of(tmp_path, root=tmp_path / "another") == before
    notebook.cells[2].source = "print(x + 1)"
    nbformat.write(notebook, path)
    assert name_of(tmp_path) != before


def test_every_part_of_an_address_counts():
    base = address("n", {"x": 1, "root": "r"}, None, AROUND)["address"]
    assert address("n", {"root": "other", "x": 1}, None, AROUND)["address"] == base
    others = [
        address("m", {"x": 1}, None, AROUND),
        address("n", {"x": "1"}, None, AROUND),
        address("n", {"x": 1}, "data", AROUND),
        address("n", {"x": 1}, None, AROUND | {"code_sha256": "d"}),
        address("n", {"x": 1}, None, AROUND | {"environment": {"python": "4"}}),
    ]
    assert len({base, *(o["address"] for o in others)}) == 6
    assert set(others[2]) == {"address", "notebook_sha256", "data_sha256", "code_sha256", "environment"}
    with pytest.raises(ValueError):
        address("n", {"x": float("nan")}, None, AROUND)


def test_the_content_of_a_corpus_counts_and_not_its_place(tmp_path):
    def address_of(folder: str) -> str:
        data = corpus_sha256(tmp_path / folder, tmp_path / "root")
        return address("n", {"data": folder}, data, AROUND)["address"]

    for folder in ("a", "b"):
        (tmp_path / folder / "yes").mkdir(parents=True)
        (tmp_path / folder / "yes" / "1.wav").write_bytes(b"content")
    assert address_of("a") == address_of("b")
    (tmp_path / "b" / "yes" / "1.wav").write_bytes(b"CONTENT")
    assert address_of("a") != address_of("b")
    (tmp_path / "b" / "yes" / "1.wav").write_bytes(b"content")
    assert address_of("a") == address_of("b")
    (tmp_path / "b" / "yes" / "1.wav").rename(tmp_path / "b" / "yes" / "2.wav")
    assert address_of("a") != address_of("b")


def test_files_are_read_once_and_where_nothing_can_be_kept_again(tmp_path, monkeypatch):
    data, root = tmp_path / "data", tmp_path / "root"
    for folder in (data, root):
        folder.mkdir()
    (data / "1.wav").write_bytes(b"one")
    (data / "2.wav").write_bytes(b"two")

    def settle():
        for path in data.iterdir():
            os.utime(path, ns=(10**18, 10**18))

    settle()
    read = []
    digest = contents.hashlib.file_digest
    monkeypatch.setattr(contents.hashlib, "file_digest", lambda f, n: read.append(Path(f.name).name) or digest(f, n))
    first = corpus_sha256(data, root)
    assert sorted(read) == ["1.wav", "2.wav"]
    assert corpus_sha256(data, root) == first and len(read) == 2
    assert corpus_sha256(data, tmp_path / "nowhere") == first and len(read) == 4
    assert not (tmp_path / "nowhere").exists(), "naming a run makes no folder"
    (data / "2.wav").write_bytes(b"TWO")
    assert corpus_sha256(data, root) != first and read[4:] == ["2.wav"]
    (data / "2.wav").write_bytes(b"two")
    settle()
    for broken in ("{", "[]", '{"1.wav": 3}', '{"1.wav": [1, "x", 2]}'):
        (kept,) = root.glob("contents-*.json")
        kept.write_text(broken)
        assert corpus_sha256(data, root) == first, "a damaged file of hashes is made again"
        assert set(json.loads(kept.read_text())) == {"1.wav", "2.wav"}


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    for name in ("1.wav", "2.wav"):
        (tmp_path / name).write_bytes(b"one")
    opened = Path.open

    def refuse(path, *args):
        if path.name == "2.wav":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args)

    monkeypatch.setattr(contents.Path, "open", refuse)
    with pytest.raises(OSError, match=r"2\.wav cannot be read"):
        corpus_sha256(tmp_path, tmp_path / "root")


def test_the_embedded_corpus_is_its_recipe():
    one = embedded_sha256("smoke", "computer")
    assert one == embedded_sha256("smoke", "computer")
    assert len({one, embedded_sha256("default", "computer"), embedded_sha256("smoke", "marvin")}) == 3
    assert embedded_sha256("full", "computer") == embedded_sha256("default", "computer")
    assert profile_recipe("smoke", "marvin").keyword == "marvin"


def test_a_changed_source_of_the_package_is_other_code(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("x = 1")
    monkeypatch.setattr(identity.kwsbench, "__file__", str(tmp_path / "__init__.py"))
    one = identity.code_sha256()
    (tmp_path / "b.py").write_text("")
    two = identity.code_sha256()
    (tmp_path / "a.py").write_text("x = 2")
    assert len({one, two, identity.code_sha256()}) == 3


def test_the_environment_names_what_is_installed():
    found = environment()
    assert {"python", "machine", "numpy", "torch", "papermill"} <= set(found)
    assert "distributed" not in found and "ruff" not in found, "extras do not change results"


def test_outputs_do_not_change_the_hash_of_a_notebook():
    one = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")])
    two = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("hi"), nbformat.v4.new_code_cell("x = 1")])
    assert notebook_sha256(one) == notebook_sha256(two)
