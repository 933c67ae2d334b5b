"""Each check of the doctor: what it says on a machine where all is well, and in every bad case."""

from __future__ import annotations

import builtins
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kwsbench import doctor
from kwsbench.doctor import Finding, Setting
from kwsbench.integer import run

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def here(tmp_path):
    return Setting(tmp_path / "runs")


def versions(monkeypatch, **changed):
    """Installed versions as they are, but for some; None: not installed."""
    real = importlib.metadata.version

    def version(name):
        value = changed.get(name.replace("-", "_"), "real")
        if value is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name) if value == "real" else value

    monkeypatch.setattr(doctor.metadata, "version", version)


def refuse_writing(monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


# ------------------------------------------------------------------------------------------ the whole


def test_nothing_that_the_tests_need_is_missing_here(here):
    findings = doctor.examine(here)
    assert [f.check for f in findings] == [name for name, _, _ in doctor.CHECKS]
    assert [f for f in findings if f.state == "missing"] == []
    assert not here.root.exists()  # looking leaves nothing behind
    assert list(here.root.parent.iterdir()) == []


def test_every_finding_has_a_reason_and_every_bad_one_a_single_command(here):
    for finding in doctor.examine(here):
        assert finding.found and finding.why
        assert finding.state == "ok" or finding.fix
        assert "\n" not in finding.fix and "&&" not in finding.fix and ";" not in finding.fix


def test_a_crash_is_a_finding(here, monkeypatch):
    def crash(setting):
        raise ZeroDivisionError("of a check")

    def absent(setting):
        raise ModuleNotFoundError("No module named 'plotly'", name="plotly")

    monkeypatch.setattr(doctor, "CHECKS", (("a", crash, True), ("b", crash, False), ("c", absent, True)))
    a, b, c = doctor.examine(here)
    assert (a.state, b.state, c.state) == ("missing", "note", "missing")
    assert a.found == "could not be checked: ZeroDivisionError: of a check"
    assert c.found == "plotly is not installed" and "pip install" in c.fix


def test_the_table_ends_with_what_is_missing_and_says_how_to_mend_it():
    good = Finding("alpha", "ok", "fine", "because")
    bad = Finding("beta", "missing", "not there", "it is needed", "apt install beta")
    note = Finding("gamma", "note", "odd", "it may matter", "unset ODD")
    text = doctor.as_text([bad, good, note])
    assert text.index("alpha") < text.index("gamma") < text.index("beta")
    assert "because" not in text
    assert "why: it is needed\n" in text and "fix: apt install beta\n" in text
    assert text.endswith("1 of 3 checks found something needed missing")
    assert doctor.as_text([good, note]).endswith("all that is needed is there (2 checks, 1 with a note)")
    assert json.loads(doctor.as_json([bad]))[0] == {
        "check": "beta",
        "state": "missing",
        "found": "not there",
        "why": "it is needed",
        "fix": "apt install beta",
    }


def test_an_unknown_state_is_refused():
    with pytest.raises(ValueError, match=r"a finding is one of .* got 'bad'"):
        Finding("a", "bad", "", "")


@pytest.mark.parametrize("state, status", [("ok", 0), ("note", 0), ("missing", 1)])
def test_the_command_ends_with_1_only_if_something_needed_is_missing(monkeypatch, state, status):
    from typer.testing import CliRunner

    from kwsbench.cli import app

    monkeypatch.setattr(doctor, "examine", lambda setting: [Finding("x", state, "f", "w", "c")])
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == status
    assert json.loads(result.stdout)[0]["state"] == state


# ---------------------------------------------------------------------------------------- environment


def test_an_old_python(here, monkeypatch):
    monkeypatch.setattr(sys, "version_info", namedtuple("V", "major minor")(3, 9))
    found = doctor.check_python(here)
    assert found.state == "missing" and "3.11" in found.why and "PYTHON=" in found.fix


def test_packages_absent_or_too_old(here, monkeypatch):
    versions(monkeypatch, papermill=None, plotly="5.24.1")
    found = doctor.check_packages(here)
    assert found.state == "missing"
    assert found.found == "absent: papermill; too old: plotly 5.24.1 (needs 6.0)"
    assert str(doctor._PROJECT) in found.fix


def test_packages_of_other_versions_than_pinned_are_a_note(here, monkeypatch):
    versions(monkeypatch, scipy="1.99.0")
    found = doctor.check_packages(here)
    assert found.state == "note" and "scipy 1.99.0 (pinned " in found.found


def test_another_build_of_the_pinned_version_is_fine(here, monkeypatch):
    versions(monkeypatch, torch=importlib.metadata.version("torch").partition("+")[0] + "+rocm9")
    assert doctor.check_packages(here).state == "ok"


def test_without_constraints_nothing_is_compared(here, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_PROJECT", tmp_path)
    found = doctor.check_packages(here)
    assert found.state == "ok" and "no constraints.txt" in found.found
    assert doctor._pip_project("[synth]").endswith("-m pip install 'kwsbench[synth]'")


def register_kernel(monkeypatch, folder: Path, command: str) -> None:
    folder = folder / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": [command, "-m", "ipykernel_launcher"], "display_name": "x", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(folder.parents[1]))


def test_a_kernel_of_another_python(here, monkeypatch, tmp_path):
    register_kernel(monkeypatch, tmp_path / "jupyter", "/opt/other/bin/python")
    found = doctor.check_kernel(here)
    assert found.state == "missing" and "for /opt/other/bin/python, not for" in found.found
    # It stands outside this environment and hides the environment's own: installing again would not help.
    assert found.fix.endswith("-m jupyter kernelspec remove -f python3")


@pytest.mark.parametrize("command", ["python", sys.executable, f"{sys.prefix}/bin/python3"])
def test_kernels_that_are_this_python(here, monkeypatch, tmp_path, command):
    register_kernel(monkeypatch, tmp_path / "jupyter", command)
    assert doctor.check_kernel(here).state == "ok"


def test_no_kernel_at_all(here, monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    monkeypatch.setattr(KernelSpecManager, "find_kernel_specs", lambda self: {})
    found = doctor.check_kernel(here)
    assert found.state == "missing" and "ipykernel install --sys-prefix" in found.fix


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"anywidget": None}, "anywidget is not installed"),
        ({"plotly": "5.24.1"}, "plotly 5.24.1 is older than 6"),
        ({"ipywidgets": "9.0.0"}, "do not pair (8 goes with 3)"),
        ({"anywidget": "0.99.0"}, "the Python side needs 0.99"),
    ],
)
def test_widget_packages_that_do_not_fit(here, monkeypatch, changed, says):
    versions(monkeypatch, **changed)
    found = doctor.check_widgets(here)
    assert found.state == "missing" and says in found.found


@pytest.mark.parametrize("absent", ["anywidget", "@jupyter-widgets/jupyterlab-manager"])
def test_front_end_files_that_are_absent(here, monkeypatch, tmp_path, absent):
    import jupyter_core.paths

    real = next(Path(p) for p in jupyter_core.paths.jupyter_path("labextensions") if (Path(p) / "anywidget").is_dir())
    for name in {"anywidget", "@jupyter-widgets/jupyterlab-manager"} - {absent}:
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(real / name / "package.json", tmp_path / name)
    monkeypatch.setattr(jupyter_core.paths, "jupyter_path", lambda *parts: [str(tmp_path)])
    found = doctor.check_widgets(here)
    assert found.state == "missing" and f"front-end files {absent} are absent" in found.found
    (tmp_path / absent).mkdir(parents=True)
    (tmp_path / absent / "package.json").write_text('{"version": "2.1.0"}')
    assert f"front end {absent} is 2.1.0" in doctor.check_widgets(here).found


def test_no_synthesizer_is_a_note(here, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = doctor.check_synth(here)
    assert found.state == "note" and "synth" in found.fix
    empty = namedtuple("Spec", "submodule_search_locations")([str(tmp_path)])
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: empty)
    assert "has no library" in doctor.check_synth(here).found


def test_sound_formats(here, monkeypatch):
    import soundfile

    known = soundfile.available_formats()
    monkeypatch.setattr(soundfile, "available_formats", lambda: {k: v for k, v in known.items() if k != "MP3"})
    found = doctor.check_sound(here)
    assert found.state == "note" and found.found.endswith("has no MP3: such files are skipped")
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": ""})
    assert doctor.check_sound(here).state == "missing"


def test_sound_that_changes_samples(here, monkeypatch):
    import soundfile

    monkeypatch.setattr(soundfile, "read", lambda file, dtype: (np.zeros(1600, np.int16), 16000))
    found = doctor.check_sound(here)
    assert found.state == "missing" and "changes samples" in found.found


# ------------------------------------------------------------------------------------------- machine


@pytest.fixture
def calm(monkeypatch):
    """Four cores, no quota, nothing set but the package's own spin count."""
    for name in (*doctor.THREAD_VARIABLES, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(doctor, "CGROUP", Path("/nonexistent"))
    return monkeypatch


def test_threads_that_fit(here, calm):
    assert doctor.check_threads(here).state == "ok"
    calm.setenv("OMP_NUM_THREADS", "2")
    assert doctor.check_threads(replace(here, jobs=2)).state == "ok"


@pytest.mark.parametrize(
    "variables, jobs, fix",
    [
        ({"OMP_NUM_THREADS": "16"}, 1, "export OMP_NUM_THREADS=4"),
        ({"OMP_NUM_THREADS": "4"}, 2, "export OMP_NUM_THREADS=2"),
        ({}, 9, "kwsbench sweep SPEC.yaml --jobs 4"),
        ({"GOMP_SPINCOUNT": "300000"}, 1, "export GOMP_SPINCOUNT=1000"),
        ({"GOMP_SPINCOUNT": "infinity"}, 1, "export GOMP_SPINCOUNT=1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, 1, "unset OMP_WAIT_POLICY"),
    ],
)
def test_threads_that_fight(here, calm, variables, jobs, fix):
    for name, value in variables.items():
        calm.setenv(name, value)
    found = doctor.check_threads(replace(here, jobs=jobs))
    assert found.state == "note" and found.fix == fix


@pytest.mark.parametrize(
    "files, cores",
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "\n"}, 4),
    ],
)
def test_the_quota_of_a_container_counts(calm, tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    calm.setattr(doctor, "CGROUP", tmp_path)
    assert doctor.usable_cores() == cores


def test_thread_pools_that_do_not_see_the_quota(here, calm, tmp_path):
    (tmp_path / "cpu.max").write_text("200000 100000")
    calm.setattr(doctor, "CGROUP", tmp_path)
    found = doctor.check_threads(here)
    assert found.state == "note" and found.fix == "export OMP_NUM_THREADS=2"
    calm.setenv("OMP_NUM_THREADS", "2")
    assert doctor.check_threads(here).state == "ok"


def test_gpu(here, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.check_gpu(here).state == "ok"
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/" + name)
    found = doctor.check_gpu(here)
    assert found.state == "note" and "does not see a GPU" in found.found and "torch==" in found.fix
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A card")
    memory = namedtuple("Properties", "total_memory")(24e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: memory)
    found = doctor.check_gpu(here)
    assert found.state == "ok" and found.found == "A card, 24 GB: training runs there"
    assert "another artifact" in found.why


def test_a_kernel_that_computes_something_else(here, monkeypatch):
    monkeypatch.setitem(run.BACKENDS, "neon", lambda x, layer: run.run_reference_layer(x, layer) + 1)
    found = doctor.check_kernels(here)
    assert found.state == "missing" and found.found == "other values than the reference: neon"


def test_the_small_program_tells_kernels_apart():
    """Its outputs vary, so a kernel that returned constants would be seen."""
    program = doctor._small_program()
    frames = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    assert len(np.unique(run.run(program, frames, "reference"))) > 40


def test_compiled_code_that_cannot_be_kept(here, monkeypatch):
    refuse_writing(monkeypatch)
    found = doctor.check_kernels(here)
    assert found.state == "note" and "compiles them anew" in found.found and "NUMBA_CACHE_DIR" in found.fix


@pytest.mark.parametrize("free_gb, state", [(0.5, "missing"), (5, "note"), (50, "ok")])
def test_room_on_the_disk(here, monkeypatch, free_gb, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free_gb * 1e9))
    found = doctor.check_disk(here)
    assert found.state == state and f"{free_gb:.1f} GB free for {here.root}" in found.found


def test_a_folder_that_cannot_be_written(here, monkeypatch):
    refuse_writing(monkeypatch)
    assert doctor.check_disk(here).state == "missing"
    assert doctor.check_locks(here).state == "missing"


def test_locks_that_are_refused_or_do_not_hold(here, monkeypatch):
    assert doctor.check_locks(here).state == "ok"
    monkeypatch.setattr(doctor.fcntl, "flock", lambda file, how: None)
    found = doctor.check_locks(here)
    assert found.state == "missing" and "does not shut out a second holder" in found.found

    def refuse(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(doctor.fcntl, "flock", refuse)
    assert "takes no locks (Operation not supported)" in doctor.check_locks(here).found


def test_text_that_is_not_utf8(here, monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    found = doctor.check_text(here)
    assert found.state == "note" and "file names ascii" in found.found and "PYTHONUTF8" in found.fix


def test_temporary_files(here, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1e7))
    assert doctor.check_temporary(here).state == "missing"

    def none():
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    found = doctor.check_temporary(here)
    assert found.state == "missing" and found.fix.startswith("export TMPDIR=")


def test_a_closed_loopback(here, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no interface")

    monkeypatch.setattr(socket, "create_server", refuse)
    found = doctor.check_loopback(here)
    assert found.state == "missing" and "no interface" in found.found


def test_recordings(here, monkeypatch, tmp_path):
    monkeypatch.setenv("KWSBENCH_SPEECH", str(tmp_path))
    assert doctor.check_recordings(here).state == "ok"
    monkeypatch.setenv("KWSBENCH_SPEECH", str(tmp_path / "absent"))
    found = doctor.check_recordings(here)
    assert found.state == "note" and found.fix == "unset KWSBENCH_SPEECH"


def test_browsers(here, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = doctor.check_browser(here)
    assert found.state == "note" and found.found == "no chromium and no chromedriver on PATH"
    monkeypatch.setattr(shutil, "which", lambda name: name)
    told = {"chromium": "Chromium 140.0.1 built", "chromedriver": "ChromeDriver 139.0.2"}
    monkeypatch.setattr(
        subprocess, "run", lambda c, **rest: subprocess.CompletedProcess(c, 0, stdout=told[c[0]], stderr="")
    )
    found = doctor.check_browser(here)
    assert found.state == "note" and "chromium 140 and chromedriver 139 do not match" in found.found


def test_cross_tools(here, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda name: None if "gcc" in name else name)
    found = doctor.check_cross(here)
    assert found.state == "note" and found.found == "no aarch64-linux-gnu-gcc on PATH"
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert doctor.check_cross(here).state == "ok"
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "its own compiler serves" in doctor.check_cross(here).found


def test_the_doctor_is_there_when_the_libraries_are_not(monkeypatch):
    """Looking needs nothing that may be missing: its own imports are the standard library's."""
    code = (
        "import sys, kwsbench.doctor\n"
        "heavy = {'numpy', 'torch', 'plotly', 'jupyter_client', 'soundfile'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] in ("soundfile", "jupyter_client", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    found = {f.check: f for f in doctor.examine(Setting())}
    assert found["sound"].state == "missing" and found["sound"].found == "soundfile is not installed"
    assert found["kernel"].state == "missing"
    assert found["gpu"].state == "note"
