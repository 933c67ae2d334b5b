"""Audio files in and out: everything inside the workbench is mono float32 in [-1, 1] at 16 kHz.

A sample is the 16-bit integer divided by 32768, so reading what was written gives the same numbers back.
Other sample rates are resampled (soxr, high quality), several channels are averaged. A file that cannot be
trusted - unreadable, empty, cut short, holding NaN - raises AudioError with the reason; nothing is guessed or
padded.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from kwsbench.files import replacing

SAMPLE_RATE = 16000
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
OGG_PAGE_LONGEST_BYTES = 65307  # 27 + 255 + 255 * 255, RFC 3533
WAV_LENGTH_UNKNOWN = (0, 0xFFFFFFFF)  # what a writer into a pipe leaves in the size field


class AudioError(ValueError):
    """A file that cannot be used, and why."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class AudioHeader:
    """What a file says of itself, before anything is decoded."""

    seconds: float
    sample_rate: int
    channels: int


def probe(path: str | Path) -> AudioHeader:
    """Read the header only (tens of microseconds). Raises AudioError: missing, unreadable, zero-length."""
    try:
        if os.path.getsize(path) == 0:
            raise AudioError(path, "empty file (0 bytes)")
        info = soundfile.info(str(path))
    except FileNotFoundError:
        raise AudioError(path, "no such file") from None
    except soundfile.LibsndfileError as error:
        raise AudioError(path, f"unreadable header: {error.error_string}") from None
    if info.frames <= 0:
        raise AudioError(path, "zero-length audio (0 samples)")
    return AudioHeader(info.frames / info.samplerate, info.samplerate, info.channels)


def duration_seconds(path: str | Path) -> float:
    """Length of a file in seconds, from its header. Raises AudioError."""
    return probe(path).seconds


def read_audio(path: str | Path) -> np.ndarray:
    """Decode a whole file to float32 [samples], mono, 16 kHz, within [-1, 1].

    Raises AudioError: missing, unreadable, zero-length, truncated (fewer samples than the header says; for
    Ogg, no last page; an MP3 carries nothing to tell by), NaN or infinite samples.
    """
    header = probe(path)
    reason = truncation(path)
    if reason:
        raise AudioError(path, reason)
    try:
        channels, _ = soundfile.read(str(path), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(path, f"cannot be decoded: {error.error_string}") from None
    expected = round(header.seconds * header.sample_rate)
    if len(channels) < expected:
        raise AudioError(path, f"truncated: {len(channels)} of {expected} samples")
    if not np.isfinite(channels).all():
        raise AudioError(path, f"{np.count_nonzero(~np.isfinite(channels))} NaN or infinite samples")
    mono = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float32)
    if header.sample_rate != SAMPLE_RATE:
        mono = soxr.resample(mono, header.sample_rate, SAMPLE_RATE)
        if len(mono) == 0:
            raise AudioError(path, f"zero-length audio at {SAMPLE_RATE} Hz")
    return np.ascontiguousarray(np.clip(mono, -1.0, 1.0), dtype=np.float32)


def truncation(path: str | Path) -> str:
    """Why a WAV or Ogg file must have lost its end, or "" (libsndfile silently shortens both)."""
    with open(path, "rb") as file:
        magic = file.read(12)
        if magic[:4] in (b"RIFF", b"RF64") and magic[8:12] == b"WAVE":
            return _wav_truncation(file) if magic[:4] == b"RIFF" else ""
        if magic[:4] == b"OggS":
            return _ogg_truncation(file)
    return ""


def _wav_truncation(file: BinaryIO) -> str:
    """Walk the chunks to the samples and compare the size they claim with the bytes that are there."""
    while len(chunk := file.read(8)) == 8:
        claimed_bytes = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            start = file.tell()
            present_bytes = file.seek(0, os.SEEK_END) - start
            if claimed_bytes in WAV_LENGTH_UNKNOWN or claimed_bytes <= present_bytes:
                return ""
            return f"truncated: {present_bytes} of {claimed_bytes} bytes of samples"
        file.seek(claimed_bytes + claimed_bytes % 2, os.SEEK_CUR)
    return "truncated: no samples (data chunk) in the WAV file"


def _ogg_truncation(file: BinaryIO) -> str:
    """The last page must carry the end-of-stream flag."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - OGG_PAGE_LONGEST_BYTES))
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) < page + 27 or not tail[page + 5] & 4:
        return "truncated: the Ogg stream has no last page"
    body = page + 27 + tail[page + 26]  # after the header and its table of segment lengths
    if len(tail) < body + sum(tail[page + 27 : body]):
        return "truncated: the last page of the Ogg stream is cut"
    return ""


def write_flac(path: str | Path, audio: np.ndarray) -> None:
    """Write float [samples] at 16 kHz as 16-bit FLAC: to a temporary name first, then put in place."""
    _write(Path(path), audio, "FLAC")


def write_wav(path: str | Path, audio: np.ndarray) -> None:
    """Write float [samples] at 16 kHz as 16-bit WAV: to a temporary name first, then put in place."""
    _write(Path(path), audio, "WAV")


def _write(path: Path, audio: np.ndarray, container: str) -> None:
    if audio.ndim != 1 or len(audio) == 0:
        raise ValueError(f"audio must be a non-empty [samples] array, got shape {audio.shape} for {path}")
    if not np.isfinite(audio).all():
        raise ValueError(f"audio for {path} holds NaN or infinite samples")
    codes = np.clip(np.floor(audio.astype(np.float64) * 32768 + 0.5), -32768, 32767).astype(np.int16)
    with replacing(path) as temporary:
        try:
            soundfile.write(str(temporary), codes, SAMPLE_RATE, subtype="PCM_16", format=container)
        except soundfile.LibsndfileError as error:
            raise OSError(f"cannot write {path}: {error.error_string}") from None
