"""Download of public corpora: resumable, checked, unpacked safely.

`fetch("speech-commands", folder)` brings Speech Commands v0.02 (CC BY 4.0, Warden 2018, arXiv 1804.03209), with
`-v0.01` the earlier version that many published figures are of,
`fetch("librispeech-dev-clean", folder)` a set of LibriSpeech (CC BY 4.0, Panayotov et al. 2015, openslr.org/12) to
`folder/LibriSpeech/dev-clean`. An archive is kept as `<name>.part` while it grows; a cut connection is resumed by an
HTTP Range request, in the same run or the next. Only an archive with the published SHA-256 gets its name, and only that
is unpacked.
"""

import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from tqdm.auto import tqdm

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0
ATTEMPTS = 8  # in a row without a single new byte
UNPACKED_MARK = ".complete"


class FetchError(RuntimeError):
    """A download that could not be completed or did not hold what was published."""


@dataclass(frozen=True)
class Archive:
    """A tar.gz on the web: its published SHA-256 and size, its size unpacked (about), where to unpack it.

    ``inside``: the one folder of the archive that becomes ``folder``; what lies beside it is left out. "": all of it.
    """

    url: str
    sha256: str
    size_bytes: int
    unpacked_bytes: int
    folder: str
    inside: str = ""


# Checksum and size as in the checksum list of tensorflow-datasets; torchaudio publishes the same SHA-256.
SPEECH_COMMANDS = Archive(
    url="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    sha256="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    size_bytes=2_428_923_189,
    unpacked_bytes=3_800_000_000,
    folder="speech_commands_v0.02",
)
# SHA-256 as in torchaudio, size as the server tells it.
SPEECH_COMMANDS_FIRST = Archive(
    url="http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz",
    sha256="743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
    size_bytes=1_489_096_277,
    unpacked_bytes=2_300_000_000,
    folder="speech_commands_v0.01",
)


def _librispeech(name: str, size_bytes: int, sha256: str) -> Archive:
    """A set of LibriSpeech, beside the others; its FLAC files gain nothing from the archive's compression."""
    folder = f"LibriSpeech/{name}"
    url = f"https://www.openslr.org/resources/12/{name}.tar.gz"
    return Archive(url, sha256, size_bytes, size_bytes * 21 // 20, folder, inside=folder)


# SHA-256 as in torchaudio (openslr.org/12 itself publishes MD5), sizes as in Kaldi's and ESPnet's download scripts.
LIBRISPEECH = (
    _librispeech("dev-clean", 337_926_286, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    _librispeech("test-clean", 346_663_984, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    _librispeech("train-clean-100", 6_387_309_499, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    _librispeech("train-clean-360", 23_049_477_885, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
)
ARCHIVES = MappingProxyType(
    {"speech-commands": SPEECH_COMMANDS, "speech-commands-v0.01": SPEECH_COMMANDS_FIRST}
    | {f"librispeech-{archive.folder.rpartition('/')[2]}": archive for archive in LIBRISPEECH}
)


def fetch(archive: str | Archive, directory: str | Path, progress: bool = True) -> Path:
    """Download, check and unpack below `directory`; return the corpus folder. What is there already is kept.

    Raises ValueError for an unknown name, OSError where it cannot be written or does not fit, FetchError
    otherwise.
    """
    if isinstance(archive, str):
        if archive not in ARCHIVES:
            raise ValueError(f"unknown corpus {archive!r}: one of {', '.join(ARCHIVES)}")
        archive = ARCHIVES[archive]
    directory = Path(directory)
    folder = directory / archive.folder
    if (folder / UNPACKED_MARK).is_file():
        return folder
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / archive.url.rsplit("/", 1)[-1]
    _check_space(directory, archive, file)
    download(archive, file, progress=progress)
    unpack(file, folder, archive.inside, progress=progress)
    return folder


def download(
    archive: Archive,
    file: str | Path,
    progress: bool = True,
    attempts: int = ATTEMPTS,
    wait_seconds: float = 1.0,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Path:
    """Bring the archive to `file`, going on where an earlier run or a cut connection left off.

    Gives up after `attempts` requests in a row that brought nothing, waiting twice as long after each. A file
    whose SHA-256 is not the published one is removed, and FetchError says so.
    """
    file = Path(file)
    if file.is_file() and _sha256(file, progress) == archive.sha256:
        return file
    part = file.with_name(file.name + ".part")
    failures = 0
    with tqdm(total=archive.size_bytes, unit="B", unit_scale=True, desc=file.name, disable=not progress) as bar:
        while _size(part) < archive.size_bytes:
            before = _size(part)
            bar.n = before
            try:
                _request(archive, part, bar, timeout_seconds)
                reason = f"the connection closed after {_size(part)} of {archive.size_bytes} bytes"
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in (408, 416, 429):
                    raise FetchError(f"{archive.url}: HTTP {error.code} {error.reason}") from None
                if error.code == 416:  # what is here is no part of what is there
                    part.unlink(missing_ok=True)
                reason = f"HTTP {error.code} {error.reason}"
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            failures = 0 if _size(part) > before else failures + 1
            if failures >= attempts:
                raise FetchError(
                    f"{archive.url}: {reason}; gave up after {attempts} attempts without progress. "
                    f"{_size(part)} bytes are kept in {part}: run the same command to go on"
                )
            if failures:
                time.sleep(wait_seconds * 2 ** (failures - 1))
        bar.n = _size(part)
        bar.refresh()
    found = _sha256(part, progress)
    if found != archive.sha256:
        part.unlink()
        raise FetchError(
            f"{archive.url}: SHA-256 is {found}, published is {archive.sha256}; the download was removed. "
            "Run the same command to try again; if it happens twice, do not trust the file or the connection"
        )
    os.replace(part, file)
    return file


def unpack(file: str | Path, folder: str | Path, inside: str = "", progress: bool = True) -> None:
    """Unpack a tar.gz, or what it holds in its folder `inside`, into `folder`, which appears only when complete.

    Files and folders only: links, devices, absolute names and names that lead outside are refused with
    FetchError before anything of theirs is written.
    """
    file, folder = Path(file), Path(folder)
    if folder.exists() and not (folder / UNPACKED_MARK).is_file():
        raise FileExistsError(f"{folder} exists and was not unpacked by this command: move it away, or use it as it is")
    unfinished = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with (
            tarfile.open(file, "r|gz") as tar,
            tqdm(unit=" files", desc="unpack", disable=not progress) as bar,
        ):
            for member in tar:
                _unpack_member(tar, member, unfinished, PurePosixPath(inside))
                bar.update()
        if not any(unfinished.iterdir()):
            raise FetchError(f"{file} cannot be unpacked: it holds nothing{' in ' + inside if inside else ''}")
        (unfinished / UNPACKED_MARK).write_text(f"{file.name}\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FetchError(f"{file} cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path, inside: PurePosixPath) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in member.name:
        raise FetchError(f"refused: the archive holds {member.name!r}, which leads outside the folder")
    if not (member.isreg() or member.isdir()):
        raise FetchError(f"refused: {member.name!r} in the archive is neither a file nor a folder")
    if not name.is_relative_to(inside):
        return
    path = root.joinpath(*name.relative_to(inside).parts)
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    if source is None:
        raise FetchError(f"refused: {member.name!r} in the archive has no content")
    with source, open(path, "xb") as target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def _request(archive: Archive, part: Path, bar: tqdm, timeout_seconds: float) -> None:
    """One request: append what comes to `part`. A server that ignores the range starts it anew."""
    have = _size(part)
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
        resumed = answer.status == 206
        if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise http.client.HTTPException(f"asked for bytes from {have}, got {answer.headers.get('Content-Range')!r}")
        if not resumed:
            bar.n = 0
        with open(part, "ab" if resumed else "wb") as target:
            for chunk in _chunks(answer):
                target.write(chunk)
                bar.update(len(chunk))
                if target.tell() > archive.size_bytes:
                    target.truncate(0)
                    raise FetchError(
                        f"{archive.url} sends more than the published {archive.size_bytes} bytes; "
                        "the download was removed"
                    )


def _chunks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """Read as it comes (read1), so that what arrived before a cut is kept."""
    while chunk := answer.read1(CHUNK_BYTES):
        yield chunk


def _check_space(directory: Path, archive: Archive, file: Path) -> None:
    here = max(_size(file), _size(file.with_name(file.name + ".part")))
    needed = archive.size_bytes - here + archive.unpacked_bytes
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(f"{needed / 1e9:.1f} GB are needed in {directory}, {free / 1e9:.1f} GB are free")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sha256(path: Path, progress: bool) -> str:
    digest = hashlib.sha256()
    with (
        open(path, "rb") as file,
        tqdm(total=_size(path), unit="B", unit_scale=True, desc="checksum", disable=not progress) as bar,
    ):
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
