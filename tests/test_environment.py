"""One source of dependencies, one list of versions, and make's words where the interpreter will not do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "constraints.txt").read_text().splitlines()


def run_make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """make without the settings that the make which runs the tests hands down."""
    quiet = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "DATA", "PYTHON")}
    return subprocess.run(["make", *words], cwd=folder, env=quiet, capture_output=True, text=True, timeout=60)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_are_plain_pins_without_addresses_or_local_versions():
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in LINES)
    names = [line.partition("==")[0] for line in LINES]
    assert names == sorted(set(names))


def test_every_dependency_of_the_project_is_pinned():
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    pinned = {normal(line.partition("==")[0]) for line in LINES}
    wanted = {normal(re.split(r"[<>=!~\[; ]", r)[0]) for r in [*PROJECT["dependencies"], *extras, "setuptools"]}
    assert wanted <= pinned, f"add to constraints.txt: {sorted(wanted - pinned)}"


def test_conda_installs_the_package_itself_and_repeats_no_dependency():
    listed = re.findall(r"^\s*- (?!pip:)(.+)$", (ROOT / "environment.yml").read_text(), re.M)
    assert listed == [
        "conda-forge",
        "python=3.11",
        "pip",
        "--constraint constraints.txt",
        "-e .[synth,test,check]",
    ]


def test_no_installing_file_names_an_address():
    for name in ("Makefile", "constraints.txt", "environment.yml", "pyproject.toml", ".ci/run"):
        assert not re.search(r"https?://|index-url|find-links", (ROOT / name).read_text()), name


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize(
    "script, says",
    [
        ("exit 1", "needs python >= 3.11"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "apt install python3-venv"),
    ],
)
def test_make_says_what_is_missing_of_python(tmp_path, script, says):
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    fake = folder / "python-fake"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    run = run_make(folder, "report", "PYTHON=./python-fake")
    assert run.returncode != 0 and says in run.stderr
    assert not (folder / ".venv").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_result_asks_for_recordings(tmp_path, monkeypatch):
    monkeypatch.delenv("KWSBENCH_SPEECH", raising=False)
    stamp = tmp_path / ".venv" / "stamp-base"
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    stamp.parent.mkdir()
    stamp.touch()
    run = run_make(tmp_path, "result")
    assert run.returncode != 0 and "which recordings? make result DATA=" in run.stderr
    # Named by the environment, they are found: the run gets as far as the (absent) program.
    monkeypatch.setenv("KWSBENCH_SPEECH", "some where")
    assert '--data "some where"' in run_make(tmp_path, "result").stdout
