"""Downloads against a local server that cuts connections, forgets ranges and serves wrong bytes."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from kwsbench.data import fetch as module
from kwsbench.data.fetch import ARCHIVES, Archive, FetchError, download, fetch, unpack

NOISE = np.random.default_rng(0).bytes(300_000)  # does not compress: the archive stays large enough to be cut


def tar_gz(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o4777
    return info


GOOD = tar_gz(
    [
        (member("./", tarfile.DIRTYPE), b""),
        (member("./yes/aaaa_nohash_0.wav"), NOISE),
        (member("./testing_list.txt"), b"yes/aaaa_nohash_0.wav\n"),
    ]
)


class Server:
    """A file on loopback. `plan` names a behaviour of `Handler` for each request; the last one repeats."""

    def __init__(self, content: bytes, plan: list[str]):
        self.content, self.plan = content, plan
        self.ranges: list[str | None] = []

    def next_behaviour(self, asked: str | None) -> str:
        self.ranges.append(asked)
        return self.plan[min(len(self.ranges), len(self.plan)) - 1]


class Handler(BaseHTTPRequestHandler):
    state: Server
    released: threading.Event

    def log_message(self, *args):
        pass

    def do_GET(self):
        state = self.state
        asked = self.headers.get("Range")
        behaviour = state.next_behaviour(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and behaviour != "no ranges" else 0
        if behaviour.isdigit():
            self.send_error(int(behaviour))
            return
        content = state.content
        if behaviour == "corrupt":
            content = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
        if behaviour == "too long":
            content += b"more"
        self.send_response(206 if asked and behaviour != "no ranges" else 200)
        self.send_header("Content-Length", str(len(content) - start))
        said = start + 7 if behaviour == "wrong range" else start
        if asked and behaviour != "no ranges":
            self.send_header("Content-Range", f"bytes {said}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if behaviour == "stall":
            self.wfile.write(content[start : start + 50_000])
            self.wfile.flush()
            self.released.wait(10)
        elif behaviour == "cut":
            self.wfile.write(content[start : start + 70_000])
        else:
            self.wfile.write(content[start:])
        self.close_connection = True


@contextmanager
def served(content: bytes, *plan: str, published: bytes = GOOD) -> Iterator[tuple[Archive, Server]]:
    state, released = Server(content, list(plan)), threading.Event()
    handler = type("Bound", (Handler,), {"state": state, "released": released})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/corpus.tar.gz"
        yield Archive(url, hashlib.sha256(published).hexdigest(), len(published), 400_000, "corpus"), state
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def quick(archive: Archive, file: Path, attempts: int = 4, timeout_seconds: float = 5.0) -> Path:
    return download(
        archive, file, progress=False, attempts=attempts, wait_seconds=0.001, timeout_seconds=timeout_seconds
    )


def test_a_whole_download(tmp_path):
    with served(GOOD, "whole") as (archive, state):
        assert quick(archive, tmp_path / "a.tar.gz").read_bytes() == GOOD
        assert state.ranges == [None]
        quick(archive, tmp_path / "a.tar.gz")  # it is there: nothing is asked
        assert state.ranges == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_cut_connections_are_resumed_where_they_broke(tmp_path):
    with served(GOOD, "cut") as (archive, state):
        assert quick(archive, tmp_path / "a.tar.gz").read_bytes() == GOOD
    assert state.ranges == [None, "bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-"]


def test_a_later_run_goes_on(tmp_path):
    with served(GOOD, "cut", "500") as (archive, state):
        with pytest.raises(FetchError, match=r"HTTP 500 .*gave up after 2 attempts .*70000 bytes are kept"):
            quick(archive, tmp_path / "a.tar.gz", attempts=2)
        assert not (tmp_path / "a.tar.gz").exists()
    with served(GOOD, "whole") as (archive, state):
        assert quick(archive, tmp_path / "a.tar.gz").read_bytes() == GOOD
        assert state.ranges == ["bytes=70000-"]


@pytest.mark.parametrize("plan", [("500", "503", "429", "whole"), ("cut", "no ranges"), ("cut", "416", "whole")])
def test_what_a_server_may_do_and_still_be_right(tmp_path, plan):
    with served(GOOD, *plan) as (archive, state):
        assert quick(archive, tmp_path / "a.tar.gz").read_bytes() == GOOD
        assert len(state.ranges) == len(plan)


def test_a_wrong_range_is_not_appended(tmp_path):
    with served(GOOD, "cut", "wrong range", "whole") as (archive, _):
        assert quick(archive, tmp_path / "a.tar.gz").read_bytes() == GOOD


def test_a_stalled_connection_is_given_up_and_resumed(tmp_path):
    with served(GOOD, "stall", "whole") as (archive, state):
        assert quick(archive, tmp_path / "a.tar.gz", timeout_seconds=0.2).read_bytes() == GOOD
        assert state.ranges[1] == "bytes=50000-"


@pytest.mark.parametrize("plan", [("corrupt",), ("cut", "corrupt"), ("whole of another",)])
def test_corrupt_bytes_are_refused_and_removed(tmp_path, plan):
    content = GOOD if plan[0] != "whole of another" else b"x" * len(GOOD)
    if plan == ("cut", "corrupt"):
        content = b"y" + GOOD[1:]
    with served(content, *plan) as (archive, _):
        with pytest.raises(FetchError, match=r"SHA-256 is [0-9a-f]{64}, published is [0-9a-f]{64}; .*removed"):
            quick(archive, tmp_path / "a.tar.gz")
    assert not list(tmp_path.iterdir())
    with served(GOOD, "whole") as (archive, state):
        assert quick(archive, tmp_path / "a.tar.gz").read_bytes() == GOOD
        assert state.ranges == [None]


def test_a_longer_file_is_refused_and_removed(tmp_path):
    with served(GOOD, "too long") as (archive, _):
        with pytest.raises(FetchError, match="sends more than the published"):
            quick(archive, tmp_path / "a.tar.gz")
    assert not (tmp_path / "a.tar.gz").exists()
    assert (tmp_path / "a.tar.gz.part").stat().st_size == 0


def test_absent_files_and_servers(tmp_path):
    with served(GOOD, "404") as (archive, state):
        with pytest.raises(FetchError, match="HTTP 404"):
            quick(archive, tmp_path / "a.tar.gz")
        assert len(state.ranges) == 1
    with pytest.raises(FetchError, match="gave up after 4 attempts"):
        quick(archive, tmp_path / "a.tar.gz")  # the server is gone


def test_fetch_downloads_checks_and_unpacks_once(tmp_path):
    with served(GOOD, "cut") as (archive, state):
        folder = fetch(archive, tmp_path, progress=False)
        requests = len(state.ranges)
        assert fetch(archive, tmp_path, progress=False) == folder == tmp_path / "corpus"
        assert len(state.ranges) == requests
    assert (folder / "yes" / "aaaa_nohash_0.wav").read_bytes() == NOISE
    assert (folder / "testing_list.txt").read_text() == "yes/aaaa_nohash_0.wav\n"
    assert (folder / "yes" / "aaaa_nohash_0.wav").stat().st_mode & 0o6111 == 0  # no set-user-id, not executable


def test_the_published_archive_is_the_one_asked_for():
    archive = ARCHIVES["speech-commands"]
    assert archive.url.endswith("speech_commands_v0.02.tar.gz")
    assert archive.size_bytes == 2428923189 and len(bytes.fromhex(archive.sha256)) == 32
    first = ARCHIVES["speech-commands-v0.01"]
    assert first.url.endswith("speech_commands_v0.01.tar.gz") and len(bytes.fromhex(first.sha256)) == 32
    assert first.folder != archive.folder and first.size_bytes == 1489096277
    with pytest.raises(
        ValueError, match=r"unknown corpus 'speech': one of speech-commands, speech-commands-v0\.01, lib"
    ):
        fetch("speech", ".")


@pytest.mark.parametrize("name", [name for name in ARCHIVES if name.startswith("librispeech-")])
def test_librispeech_sets_come_from_their_page_and_lie_beside_each_other(name):
    archive = ARCHIVES[name]
    what = name.removeprefix("librispeech-")
    assert archive.url == f"https://www.openslr.org/resources/12/{what}.tar.gz"
    assert archive.folder == archive.inside == f"LibriSpeech/{what}"
    assert len(bytes.fromhex(archive.sha256)) == 32 and archive.unpacked_bytes > archive.size_bytes > 3e8


LIBRISPEECH = tar_gz(
    [
        (member("LibriSpeech", tarfile.DIRTYPE), b""),
        (member("LibriSpeech/LICENSE.TXT"), b"CC BY 4.0\n"),
        (member("LibriSpeech/dev-clean/84/121123/84-121123.trans.txt"), b"84-121123-0000 GO\n"),
        (member("LibriSpeech/dev-clean/84/121123/84-121123-0000.flac"), NOISE),
    ]
)


def test_a_set_is_resumed_and_unpacked_into_its_own_folder_beside_others(tmp_path):
    other = tmp_path / "LibriSpeech" / "test-clean" / "1"
    other.mkdir(parents=True)
    with served(LIBRISPEECH, "cut", "whole", published=LIBRISPEECH) as (archive, state):
        archive = replace(archive, folder="LibriSpeech/dev-clean", inside="LibriSpeech/dev-clean")
        folder = fetch(archive, tmp_path, progress=False)
        assert state.ranges == [None, "bytes=70000-"]
        assert fetch(archive, tmp_path, progress=False) == folder == tmp_path / "LibriSpeech" / "dev-clean"
        assert len(state.ranges) == 2
    assert (folder / "84/121123/84-121123-0000.flac").read_bytes() == NOISE
    assert sorted(p.name for p in folder.parent.iterdir()) == ["dev-clean", "test-clean"]
    assert sorted(p.name for p in folder.iterdir()) == [".complete", "84"]


def test_an_archive_without_the_folder_that_is_wanted_is_refused(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(LIBRISPEECH)
    with pytest.raises(FetchError, match="holds nothing in LibriSpeech/train-clean-100"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "corpus", "LibriSpeech/train-clean-100", progress=False)
    assert not (tmp_path / "corpus").exists()


def test_a_full_disk_is_noticed_before_the_download(tmp_path):
    with served(GOOD, "whole") as (archive, state):
        huge = Archive(archive.url, archive.sha256, archive.size_bytes, 10**18, archive.folder)
        with pytest.raises(OSError, match=r"GB are needed in .* GB are free"):
            fetch(huge, tmp_path, progress=False)
        assert not state.ranges


def test_an_unwritable_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        fetch(ARCHIVES["speech-commands"], tmp_path / "file" / "below", progress=False)


EVIL = {
    "leads outside": [
        member("../outside.wav"),
        member("yes/../../outside.wav"),
        member("/tmp/outside.wav"),
        member("C:/outside.wav"),
        member("..\\outside.wav"),
    ],
    "neither a file nor a folder": [
        member("link", tarfile.SYMTYPE, "/etc"),
        member("link", tarfile.SYMTYPE, "yes"),
        member("hard", tarfile.LNKTYPE, "../outside.wav"),
        member("fifo", tarfile.FIFOTYPE),
        member("device", tarfile.CHRTYPE),
    ],
}


@pytest.mark.parametrize("message,info", [(message, info) for message, infos in EVIL.items() for info in infos])
def test_archives_that_reach_outside_are_refused(tmp_path, message, info):
    (tmp_path / "in").mkdir()
    content = b"" if info.type != tarfile.REGTYPE else b"evil"
    (tmp_path / "evil.tar.gz").write_bytes(tar_gz([(member("yes/a.wav"), b"good"), (info, content)]))
    with pytest.raises(FetchError, match=f"refused: .*{message}"):
        unpack(tmp_path / "evil.tar.gz", tmp_path / "in" / "corpus", progress=False)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["evil.tar.gz", "in"]


def test_a_name_that_comes_twice_is_refused(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(tar_gz([(member("a.wav"), b"one"), (member("a.wav"), b"two")]))
    with pytest.raises(FileExistsError):
        unpack(tmp_path / "a.tar.gz", tmp_path / "corpus", progress=False)
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("content", [GOOD[: len(GOOD) // 2], b"not a tar at all" * 100, b""])
def test_a_broken_archive_leaves_nothing(tmp_path, content):
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(FetchError, match="cannot be unpacked"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "corpus", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_a_folder_of_the_user_is_not_replaced(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(GOOD)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine.wav").write_text("precious")
    with pytest.raises(FileExistsError, match="was not unpacked by this command"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "corpus", progress=False)
    assert (tmp_path / "corpus" / "mine.wav").read_text() == "precious"


def test_an_interrupted_unpacking_starts_anew(tmp_path, monkeypatch):
    (tmp_path / "a.tar.gz").write_bytes(GOOD)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_unpack_member", interrupted)
        with pytest.raises(KeyboardInterrupt):
            unpack(tmp_path / "a.tar.gz", tmp_path / "corpus", progress=False)
    assert not (tmp_path / "corpus").exists()
    unpack(tmp_path / "a.tar.gz", tmp_path / "corpus", progress=False)
    assert (tmp_path / "corpus" / "yes" / "aaaa_nohash_0.wav").read_bytes() == NOISE
