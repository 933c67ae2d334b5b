"""Files that several processes write: whole or not there; locks that end with their holder."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kwsbench import files

HOLD = """
import sys, time
from kwsbench.files import locked, replacing
with locked(sys.argv[1]), replacing(sys.argv[1] + "/half.json") as temporary:
    temporary.write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""
APPEND = """
import sys
from pathlib import Path
from kwsbench.files import locked, write_text
folder = Path(sys.argv[1])
for _ in range(40):
    with locked(folder):
        counter = folder / "counter"
        write_text(counter, str(int(counter.read_text()) + 1))
"""


def hold(folder: Path) -> subprocess.Popen:
    """A process that holds the lock of ``folder`` and has a file half written."""
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_file_is_replaced_whole_and_its_temporary_is_gone(tmp_path):
    path = tmp_path / "deep" / "value.json"
    files.write_json(path, {"b": 1, "a": "ä"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ä", "b": 1}
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]


def test_a_failing_writer_leaves_what_was_there(tmp_path):
    path = tmp_path / "value.txt"
    files.write_text(path, "before")
    with pytest.raises(RuntimeError, match="in the middle"), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("in the middle")
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_an_error_that_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "value.txt"
    files.write_text(path, "before")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "after")
    monkeypatch.undo()
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_json_takes_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "value.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_the_suffix_ends_the_temporary_name(tmp_path):
    with files.replacing(tmp_path / "a.bin", ".npz") as temporary:
        assert temporary.name.endswith(".partial.npz") and temporary.parent == tmp_path
        temporary.write_bytes(b"x")
    assert (tmp_path / "a.bin").read_bytes() == b"x"


def test_writers_of_one_file_never_share_a_temporary(tmp_path):
    with files.replacing(tmp_path / "a") as one, files.replacing(tmp_path / "a") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"  # the outer block ends last


def test_processes_under_a_lock_lose_no_update(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "counter").write_text("0")
    running = [subprocess.Popen([sys.executable, "-c", APPEND, str(folder)], stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors.decode()
    assert (folder / "counter").read_text() == "120"


def test_a_lock_is_refused_after_its_timeout_and_ends_with_a_killed_holder(tmp_path, capsys):
    folder = tmp_path / "shared"
    holder = hold(folder)
    try:
        with pytest.raises(TimeoutError, match=r"another process works in .*shared \(the float model\)"):
            with files.locked(folder, "the float model", timeout_seconds=0.2):
                pass
        assert "waiting for another process: the float model" in capsys.readouterr().err
        assert files.remove_leftovers(folder) == [], "the temporary of a process that lives is left alone"
        assert len(list(folder.iterdir())) == 1
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with files.locked(folder, timeout_seconds=10):
        assert list(folder.iterdir()) == [], "what the killed process left half written is gone"


def test_a_lock_is_taken_again_by_its_own_thread_only(tmp_path):
    folder = tmp_path / "shared"
    refused = []

    def other():
        try:
            with files.locked(folder, timeout_seconds=0.2):
                pass
        except TimeoutError:
            refused.append(True)

    with files.locked(folder), files.locked(folder):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused == [True]
    with files.locked(folder, timeout_seconds=0):
        pass


def test_a_locked_folder_may_be_removed(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    with files.locked(folder):
        folder.rmdir()
        code = f"from kwsbench.files import locked\nwith locked({str(folder)!r}, timeout_seconds=0.2): pass"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert other.returncode != 0 and "TimeoutError: another process works in" in other.stderr


def test_an_unreadable_file_is_set_aside_and_told(tmp_path, capsys):
    path = tmp_path / "scores.npz"
    path.write_bytes(b"not an npz")
    aside = files.set_aside(path, ValueError("truncated"))
    assert aside.name == "scores.npz.corrupt" and aside.read_bytes() == b"not an npz" and not path.exists()
    assert "scores.npz cannot be read (truncated)" in capsys.readouterr().err


def test_a_folder_that_takes_no_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match=r"cannot write to .*file/out .*choose another output folder"):
        files.check_writable(tmp_path / "file" / "out")
    files.check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
