"""The embedded corpus: synthetic speech made on the spot, so that everything runs without a download.

It is written as an ordinary corpus with a manifest: 16-bit FLAC at 16 kHz, clean (noise, levels and rooms are
added by mixing). Each voice belongs to one split. A voice is an English accent of espeak-ng with its own
pitch, vocal tract length, formants, spectral tilt, breath and tempo. It says the keyword, confusables, other
words and sentences, each rendering with a tempo and pitch of its own, and some voices read continuous speech
(label SPEECH).

Everything is drawn from (seed, number of the voice), and each voice is spoken in a process of its own
(espeak_process.py): the same recipe gives the same bytes, with any number of workers.
Results on it are results on synthetic speech, and to be labelled so.
"""

import contextlib
import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import soxr
from tqdm.auto import tqdm

from kwsbench.data.audio import SAMPLE_RATE, write_flac
from kwsbench.data.corpora import MANIFEST, SPEECH, Corpus, open_corpus
from kwsbench.data.texts import CONFUSABLES, KEYWORD, WORDS, sentence
from kwsbench.files import locked, write_text

LAYOUT_VERSION = 1  # part of the content address: raise it when the same recipe would give other bytes
COLUMNS = (
    "path", "label", "speaker", "split", "seconds", "sample_rate", "start_seconds", "end_seconds", "text"
)  # fmt: skip
# Of every six voices four train; "train" first so that the smallest recipes have all three.
SPLIT_OF_VOICE = ("train", "validation", "test", "train", "train", "train")
# Files in the data of espeak-ng. (The voice name en-gb itself does not load.)
ACCENTS = (
    "en", "en-US", "en-GB-x-rp", "en-GB-scotland", "en-GB-x-gbclan", "en-GB-x-gbcwmd", "en-029", "en-US-nyc"
)  # fmt: skip
MARGIN_SECONDS = 0.05  # kept around the word
SPAN_FRAME_SECONDS = 0.005
SPAN_BELOW_PEAK_DB = 40.0


class SynthUnavailable(RuntimeError):
    """The text-to-speech library is not installed here."""


@dataclass(frozen=True)
class SynthRecipe:
    """What to say, and how much of it. Renderings are per voice; minutes are per split."""

    keyword: str = KEYWORD
    confusables: tuple[str, ...] = CONFUSABLES
    words: tuple[str, ...] = WORDS
    n_voices: int = 240
    keyword_renderings: int = 6
    confusable_renderings: int = 8
    word_renderings: int = 5
    sentence_renderings: int = 1
    train_minutes: float = 20.0
    validation_minutes: float = 15.0
    test_minutes: float = 60.0
    file_seconds: float = 90.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z' ]*", self.keyword):
            raise ValueError(f"keyword must be letters and spaces, got {self.keyword!r}")
        if self.n_voices < 3:
            raise ValueError(f"n_voices must be at least 3, one per split, got {self.n_voices}")
        for name in ("confusables", "words"):
            holding = [text for text in getattr(self, name) if self.keyword.lower() in text.lower()]
            if holding:
                raise ValueError(f"{name} must not contain the keyword {self.keyword!r}, got {holding[0]!r}")
        for name, value in asdict(self).items():
            if name.endswith(("renderings", "minutes")) and not value >= 0:
                raise ValueError(f"{name} must be >= 0, got {value}")
        if self.keyword_renderings < 1 or not self.file_seconds >= 1:
            raise ValueError(
                "keyword_renderings and file_seconds must be at least 1, "
                f"got {self.keyword_renderings} and {self.file_seconds}"
            )

    def minutes(self, split: str) -> float:
        """Continuous speech of a split, in minutes."""
        return {
            "train": self.train_minutes,
            "validation": self.validation_minutes,
            "test": self.test_minutes,
        }[split]


RECIPES = MappingProxyType(
    {
        "smoke": SynthRecipe(
            n_voices=30,
            keyword_renderings=4,
            confusable_renderings=4,
            word_renderings=2,
            train_minutes=2.0,
            validation_minutes=1.0,
            test_minutes=2.0,
            file_seconds=30.0,
        ),
        "default": SynthRecipe(),
        "full": SynthRecipe(
            n_voices=1200,
            keyword_renderings=10,
            confusable_renderings=12,
            word_renderings=10,
            sentence_renderings=3,
            train_minutes=600.0,
            validation_minutes=300.0,
            test_minutes=1200.0,
        ),
    }
)


def profile_recipe(profile: str, keyword: str) -> SynthRecipe:
    """The embedded corpus of a profile of training: `full` is for recordings and has no larger one.

    Raises ValueError for a keyword that cannot be said, or that other words contain.
    """
    return replace(RECIPES["smoke" if profile == "smoke" else "default"], keyword=keyword)


@dataclass(frozen=True)
class Voice:
    """One speaker: an accent and the lines of a voice file that make it its own."""

    number: int
    accent: str
    settings: tuple[str, ...]
    rate_wpm: float

    @property
    def name(self) -> str:
        return f"v{self.number:04d}"

    @property
    def split(self) -> str:
        return SPLIT_OF_VOICE[self.number % len(SPLIT_OF_VOICE)]


@dataclass(frozen=True)
class Utterance:
    """One thing to say. `pitch` and `range` are 0..99, with 50 the voice as it is."""

    text: str
    rate_wpm: int
    pitch: int
    range: int


def synthesize(recipe: SynthRecipe, out_dir: str | Path, workers: int = 2, progress: bool = True) -> Corpus:
    """Make the corpus of a recipe below `out_dir`, or open it where it is already there.

    The folder is named by the content of recipe, layout and library version. An interrupted run goes on at
    the next voice. Raises SynthUnavailable without the library, OSError where `out_dir` cannot be written.
    """
    library, data = find_library()
    root = Path(out_dir) / f"synth-{content_address(recipe)}"
    if not (root / MANIFEST).is_file():
        with locked(root, "the embedded corpus"):
            _speak(recipe, root, library, data, workers, progress)
    return open_corpus(root, [recipe.keyword])


def _speak(recipe: SynthRecipe, root: Path, library: str, data: str, workers: int, progress: bool) -> None:
    if not (root / MANIFEST).is_file():  # another process may have made it meanwhile
        root.mkdir(parents=True, exist_ok=True)
        voices = [draw_voice(number, recipe.seed) for number in range(recipe.n_voices)]
        rows: list[dict] = []
        with ThreadPoolExecutor(workers) as pool, _cancelled_on_error(pool):
            jobs = [pool.submit(_make_voice, voice, recipe, root, library, data) for voice in voices]
            for job in tqdm(as_completed(jobs), total=len(jobs), desc="voices", disable=not progress):
                rows += job.result()
        write_text(root / "recipe.json", json.dumps(asdict(recipe), indent=1) + "\n")
        write_text(root / MANIFEST, _manifest(rows))


def find_library() -> tuple[str, str]:
    """Paths of the espeak-ng library and its data. Raises SynthUnavailable, naming the remedy."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise SynthUnavailable(
            "the embedded corpus needs the text-to-speech library espeak-ng: pip install 'kwsbench[synth]' "
            "(GPL-3.0; wheels exist for Linux, macOS and Windows). "
            "Without it, bring recordings: see data/README.md"
        )
    import espeakng_loader  # only paths: the library itself is loaded by espeak_process.py

    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def content_address(recipe: SynthRecipe) -> str:
    """First 12 hex digits of SHA-256 over the recipe, the layout's version and the library's version."""
    library_version = importlib.metadata.version("espeakng-loader")
    content = json.dumps([asdict(recipe), LAYOUT_VERSION, library_version], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def draw_voice(number: int, seed: int) -> Voice:
    """The voice of a number: pitch 75..260 Hz, a vocal tract loosely in step with it, a timbre of its own."""
    rng = np.random.default_rng([seed, number, 0])
    pitch_hz = 75 * (260 / 75) ** rng.random()
    # Shorter vocal tracts go with higher voices: formants move by about +-10%, with a spread of their own.
    tract = 0.92 + 0.16 * math.log(pitch_hz / 75) / math.log(260 / 75) + rng.normal(0, 0.03)
    settings = [f"pitch {pitch_hz:.0f} {pitch_hz * rng.uniform(1.2, 1.7):.0f}"]
    for formant in range(1, 9):
        frequency = 100 * tract * (1 + rng.normal(0, 0.02))
        settings.append(f"formant {formant} {frequency:.0f} {rng.integers(80, 121)} {rng.integers(85, 136)}")
    low, middle, high = rng.integers(140, 200), rng.integers(100, 170), rng.integers(60, 150)
    settings += [
        f"formant 0 100 {rng.integers(70, 131)} 100",
        f"tone 600 {low} 1200 {middle} 2000 {high}",
        f"flutter {rng.integers(1, 9)}",
        f"roughness {rng.integers(0, 4)}",
        f"voicing {rng.integers(75, 111)}",
        f"consonants {rng.integers(70, 131)} {rng.integers(70, 131)}",
        f"speed {rng.integers(92, 109)}",
        f"intonation {rng.integers(1, 4)}",
    ]
    if rng.random() < 0.5:
        breath = " ".join(str(rng.integers(0, 6)) for _ in range(8))
        settings.append(f"breath {breath}")
    accent = ACCENTS[rng.integers(len(ACCENTS))]
    return Voice(number, accent, tuple(settings), rate_wpm=rng.uniform(140, 195))


def speak(voice: Voice, utterances: list[Utterance], seed: int, library: str, data: str) -> list[np.ndarray]:
    """Say the utterances in a fresh process: float32 [samples] each, 16 kHz. Raises RuntimeError."""
    language = (Path(data) / "lang" / "gmw" / voice.accent).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        voice_file = Path(folder) / voice.name
        voice_file.write_text("\n".join((language, *voice.settings, "")), encoding="utf-8")
        request = {
            "library": library,
            "data": data,
            "voice_file": str(voice_file),
            "seed": seed,
            "utterances": [asdict(utterance) for utterance in utterances],
        }
        script = Path(__file__).with_name("espeak_process.py")
        # -I -S: nothing of the caller's environment, and a quick start.
        process = subprocess.run(
            [sys.executable, "-I", "-S", str(script)], input=json.dumps(request).encode(), capture_output=True
        )
    if process.returncode != 0:
        words = process.stderr.decode(errors="replace").strip() or f"exit status {process.returncode}"
        raise RuntimeError(f"voice {voice.name} could not be spoken: {words}")
    return list(_waves(process.stdout))


def speech_span(audio: np.ndarray) -> tuple[int, int]:
    """First and last sample (exclusive) of the frames within 40 dB of the loudest; clean audio [samples]."""
    frame = round(SPAN_FRAME_SECONDS * SAMPLE_RATE)
    padded = np.pad(audio, (0, -len(audio) % frame)).astype(np.float64)
    energy = (padded.reshape(-1, frame) ** 2).mean(axis=1)
    if not energy.max(initial=0.0) > 0:
        raise ValueError(f"no sound in {len(audio)} samples")
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-SPAN_BELOW_PEAK_DB / 10))
    return int(loud[0]) * frame, min(int(loud[-1] + 1) * frame, len(audio))


def _make_voice(voice: Voice, recipe: SynthRecipe, root: Path, library: str, data: str) -> list[dict]:
    """Speak and write everything of one voice; its rows are written last and mark it as done."""
    folder = root / voice.name
    done = folder / "rows.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng([recipe.seed, voice.number, 1])
    labels, utterances = _plan_clips(voice, recipe, rng)
    files = [_plan_file(voice, recipe, seconds, rng) for seconds in _continuous_seconds(voice, recipe)]
    texts = utterances + [utterance for planned in files for utterance in planned]
    waves = speak(voice, texts, recipe.seed + voice.number, library, data)

    rows = []
    for number, (label, utterance, wave) in enumerate(zip(labels, utterances, waves)):
        audio, start, end = _trim(wave)
        slug = re.sub("[^a-z]+", "-", (label if label != SPEECH else "sentence").lower())
        word = (start, end) if label != SPEECH else None
        rows.append(_write(root, voice, f"{number:03d}-{slug}", label, audio, utterance.text, word))
    spoken = iter(waves[len(utterances) :])
    for number, (planned, seconds) in enumerate(zip(files, _continuous_seconds(voice, recipe))):
        audio, text = _join(planned, [next(spoken) for _ in planned], seconds, rng)
        rows.append(_write(root, voice, f"continuous-{number:03d}", SPEECH, audio, text, None))
    write_text(done, json.dumps(rows))
    return rows


def _plan_clips(voice: Voice, recipe: SynthRecipe, rng: np.random.Generator) -> tuple[list[str], list[Utterance]]:
    """Labels and utterances of the short clips; confusables and words are drawn without repetition."""
    said = [(recipe.keyword, recipe.keyword)] * recipe.keyword_renderings
    for texts, count in (
        (recipe.confusables, recipe.confusable_renderings),
        (recipe.words, recipe.word_renderings),
    ):
        said += [(texts[i], texts[i]) for i in rng.permutation(len(texts))[:count]]
    said += [(SPEECH, sentence(rng, recipe.keyword)) for _ in range(recipe.sentence_renderings)]
    return [label for label, _ in said], [_render(voice, text, rng) for _, text in said]


def _plan_file(voice: Voice, recipe: SynthRecipe, seconds: float, rng: np.random.Generator) -> list[Utterance]:
    """Sentences for a file of continuous speech: by their number of words more than enough for its length."""
    wanted_words = 1.6 * seconds * voice.rate_wpm / 60
    planned: list[Utterance] = []
    while sum(len(utterance.text.split()) for utterance in planned) < wanted_words:
        planned.append(_render(voice, sentence(rng, recipe.keyword), rng))
    return planned


def _render(voice: Voice, text: str, rng: np.random.Generator) -> Utterance:
    """No two renderings alike: tempo +-15%, pitch and its range around the voice's own."""
    return Utterance(
        text,
        rate_wpm=round(voice.rate_wpm * rng.uniform(0.85, 1.15)),
        pitch=int(rng.integers(38, 63)),
        range=int(rng.integers(30, 71)),
    )


def _continuous_seconds(voice: Voice, recipe: SynthRecipe) -> list[float]:
    """Lengths of this voice's files: the files of a split are dealt to its voices in turn."""
    total = 60 * recipe.minutes(voice.split)
    count = math.ceil(total / recipe.file_seconds)
    same_split = [n for n in range(recipe.n_voices) if SPLIT_OF_VOICE[n % len(SPLIT_OF_VOICE)] == voice.split]
    position = same_split.index(voice.number)
    return [total / count for _ in range(position, count, len(same_split))]


def _join(
    planned: list[Utterance], waves: list[np.ndarray], seconds: float, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """Whole sentences with pauses of 0.2 to 0.8 s, until the length is reached."""
    parts: list[np.ndarray] = []
    texts: list[str] = []
    length = 0
    for utterance, wave in zip(planned, waves):
        if length >= seconds * SAMPLE_RATE:
            break
        pause = np.zeros(int(rng.uniform(0.2, 0.8) * SAMPLE_RATE), dtype=np.float32)
        parts += [wave, pause]
        texts.append(utterance.text)
        length += len(wave) + len(pause)
    return np.concatenate(parts), " ".join(texts)


def _trim(wave: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Cut to the sound with a margin: (audio, start_seconds, end_seconds) of the sound in what is left."""
    first, last = speech_span(wave)
    margin = round(MARGIN_SECONDS * SAMPLE_RATE)
    audio = np.pad(wave, margin)[first : last + 2 * margin]
    return audio, margin / SAMPLE_RATE, (margin + last - first) / SAMPLE_RATE


def _write(
    root: Path,
    voice: Voice,
    name: str,
    label: str,
    audio: np.ndarray,
    text: str,
    word: tuple[float, float] | None,
) -> dict:
    """Write one recording and give its row of the manifest."""
    path = f"{voice.name}/{name}.flac"
    write_flac(root / path, audio)
    start, end = (f"{word[0]:.4f}", f"{word[1]:.4f}") if word else ("", "")
    seconds = f"{len(audio) / SAMPLE_RATE:.4f}"
    values = (path, label, voice.name, voice.split, seconds, str(SAMPLE_RATE), start, end, text)
    return dict(zip(COLUMNS, values))


def _waves(stream: bytes) -> Iterator[np.ndarray]:
    """Take the answer of espeak_process.py apart and bring it to 16 kHz."""
    (rate_hz,) = struct.unpack_from("<I", stream)
    at = 4
    while at < len(stream):
        (count,) = struct.unpack_from("<I", stream, at)
        samples = np.frombuffer(stream, dtype="<i2", count=count, offset=at + 4)
        at += 4 + 2 * count
        yield soxr.resample(samples.astype(np.float32) / 32768, rate_hz, SAMPLE_RATE)


def _manifest(rows: list[dict]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: row["path"]))
    return buffer.getvalue()


@contextlib.contextmanager
def _cancelled_on_error(pool: ThreadPoolExecutor) -> Iterator[None]:
    """On an error or Ctrl-C the voices not yet begun are dropped instead of being spoken to the end."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
