"""Transcribed recordings: LibriSpeech folders and manifests, what is left out and why, vocabularies, audio as cut."""

import numpy as np
import pytest

from kwsbench.data.audio import SAMPLE_RATE, write_flac
from kwsbench.data.synth import SynthRecipe, find_library, synthesize
from kwsbench.data.transcribed import (
    Part,
    UnknownSymbolError,
    Utterance,
    Vocabulary,
    character_vocabulary,
    open_librispeech,
    open_transcribed_manifest,
    plain_text,
    read_utterance,
    word_vocabulary,
)


def tone(seconds, hz=440):
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)


def chapter(root, folder, speaker, number, lines, seconds=0.5):
    """A chapter in LibriSpeech's layout; `lines`: {utterance number: text}."""
    path = root / folder / str(speaker) / str(number)
    path.mkdir(parents=True)
    stem = f"{speaker}-{number}"
    for n in lines:
        write_flac(path / f"{stem}-{n:04d}.flac", tone(seconds))
    text = "".join(f"{stem}-{n:04d} {line}\n" for n, line in lines.items())
    (path / f"{stem}.trans.txt").write_text(text)
    return path


@pytest.fixture
def librispeech(tmp_path):
    chapter(tmp_path, "train-clean-100", 19, 198, {0: "NORTHANGER ABBEY", 1: "THIS LITTLE WORK WAS FINISHED"})
    chapter(tmp_path, "train-other-500", 20, 205, {0: "IT'S LATE"})
    chapter(tmp_path, "dev-clean", 84, 121123, {0: "GO DO YOU HEAR"})
    chapter(tmp_path, "test-clean", 61, 70968, {0: "HE BEGAN A CONFUSED COMPLAINT"})
    (tmp_path / "READERS.TXT").write_text("about the readers")
    return tmp_path


def test_sets_become_splits_and_files_utterances(librispeech):
    corpus = open_librispeech(librispeech)
    assert [(u.name, u.speaker, u.split, u.text) for u in corpus.utterances] == [
        ("dev-clean/84/121123/84-121123-0000.flac", "84", "validation", "go do you hear"),
        ("test-clean/61/70968/61-70968-0000.flac", "61", "test", "he began a confused complaint"),
        ("train-clean-100/19/198/19-198-0000.flac", "19", "train", "northanger abbey"),
        ("train-clean-100/19/198/19-198-0001.flac", "19", "train", "this little work was finished"),
        ("train-other-500/20/205/20-205-0000.flac", "20", "train", "it's late"),
    ]
    assert corpus.skipped == () and corpus.notes == ()
    assert all(u.seconds == pytest.approx(0.5) for u in corpus.utterances)
    assert "train: 3 utterances, 2 known speakers, 9 words (9 different)" in corpus.summary()
    assert corpus.fingerprint() == open_librispeech(librispeech).fingerprint()


def test_what_cannot_be_used_is_skipped_counted_and_named(librispeech):
    path = chapter(librispeech, "train-clean-100", 26, 495, {n: "WORDS" for n in range(5)})
    lines = ["26-495-0000 WORDS", "26-495-0001 ", "26-495-0003 WORDS", "26-495-0004 WORDS", "26-495-0009 WORDS"]
    (path / "26-495.trans.txt").write_text("\n".join(lines))
    (path / "26-495-0003.flac").write_bytes(b"")
    (path / "26-495-0004.flac").write_bytes(b"no flac at all")
    bare = chapter(librispeech, "train-clean-100", 27, 1, {0: "WORDS"})
    (bare / "27-1.trans.txt").unlink()
    write_flac(chapter(librispeech, "train-clean-100", 28, 1, {0: "WORDS"}) / "28-1-0000.flac", tone(3))
    corpus = open_librispeech(librispeech, longest_seconds=2.0)
    reasons = {item.path.rsplit("/", 1)[1]: item.reason for item in corpus.skipped}
    assert reasons.pop("26-495-0004.flac").startswith("unreadable header")
    assert reasons == {
        "26-495-0001.flac": "empty transcript",
        "26-495-0002.flac": "no transcript: no line in 26-495.trans.txt",
        "26-495-0003.flac": "empty file (0 bytes)",
        "26-495-0009.flac": "a transcript without a recording",
        "27-1-0000.flac": "no transcript: no file 27-1.trans.txt",
        "28-1-0000.flac": "3.0 s is longer than 2 s",
    }
    assert len(corpus.utterances) == 6 and "7 skipped" in corpus.summary()


def test_a_speaker_in_two_splits_is_an_error(librispeech):
    chapter(librispeech, "test-other", 19, 7, {0: "AGAIN"})
    with pytest.raises(ValueError, match=r"1 speaker\(s\) are shared between splits .* 19 \(test\+train\)"):
        open_librispeech(librispeech)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: root / "train-clean-100", "holds no folder train-.* give the folder above the sets"),
        (lambda root: root / "nowhere", "no folder .*nowhere"),
    ],
)
def test_another_folder_is_named_with_the_remedy(librispeech, spoil, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_librispeech(spoil(librispeech))


def test_broken_transcripts_are_named(librispeech):
    path = librispeech / "dev-clean/84/121123/84-121123.trans.txt"
    path.write_bytes(b"84-121123-0000 \xff\xfe\n")
    with pytest.raises(ValueError, match=r"84-121123.trans.txt is not UTF-8 text"):
        open_librispeech(librispeech)
    path.write_text("84-121123-0000 ONE\n84-121123-0000 TWO\n")
    with pytest.raises(ValueError, match="line 2: 84-121123-0000 has two transcripts"):
        open_librispeech(librispeech)


def test_nothing_usable_is_an_error_with_an_example(tmp_path):
    chapter(tmp_path, "dev-clean", 84, 1, {0: ""})
    with pytest.raises(ValueError, match=r"no usable utterance in .*, 1 skipped; the first: .*0000.flac \(empty"):
        open_librispeech(tmp_path)


def manifest(tmp_path, rows, header="path,label,speaker,split,text"):
    for row in rows:
        path = tmp_path / row.split(",")[0]
        path.parent.mkdir(exist_ok=True)
        write_flac(path, tone(0.4))
    (tmp_path / "manifest.csv").write_text("\n".join([header, *rows]) + "\n")
    return tmp_path


def test_a_manifest_with_texts(tmp_path):
    root = manifest(
        tmp_path,
        [
            "a/1.flac,_speech_,a,train,Anna sang; then she slept.",
            "a/2.flac,word,a,train,word",
            "b/1.flac,_speech_,b,validation,",
            "c/1.flac,_speech_,c,test,It\u2019s raining",
            "n/1.flac,_noise_,,train,",
        ],
    )
    corpus = open_transcribed_manifest(root)
    assert [(u.name, u.text) for u in corpus.utterances] == [
        ("a/1.flac", "anna sang then she slept"),
        ("c/1.flac", "it's raining"),
    ]
    assert [(item.path, item.reason) for item in corpus.skipped] == [("b/1.flac", "empty transcript")]
    assert [clip.path for clip in corpus.noise] == ["n/1.flac"]
    assert len(open_transcribed_manifest(root, ("word",)).utterances) == 1
    with pytest.raises(ValueError, match="has a label among other"):
        open_transcribed_manifest(root, ("other",))


def test_a_manifest_without_texts_is_refused(tmp_path):
    root = manifest(tmp_path, ["a/1.flac,_speech_,a,train"], "path,label,speaker,split")
    with pytest.raises(ValueError, match="no column text"):
        open_transcribed_manifest(root)
    with pytest.raises(FileNotFoundError, match="no manifest at"):
        open_transcribed_manifest(tmp_path / "a")


def test_the_embedded_corpus_has_sentences(tmp_path):
    try:
        find_library()
    except RuntimeError as error:
        pytest.skip(str(error))
    recipe = SynthRecipe(
        n_voices=3, keyword_renderings=1, confusable_renderings=0, word_renderings=0, sentence_renderings=2,
        train_minutes=0.2, validation_minutes=0.2, test_minutes=0.2, file_seconds=12.0,
    )  # fmt: skip
    corpus = open_transcribed_manifest(synthesize(recipe, tmp_path, progress=False).root, longest_seconds=10.0)
    assert {u.split for u in corpus.utterances} == {"train", "validation", "test"}
    assert len(corpus.utterances) == 6 and all(len(u.words) >= 3 for u in corpus.utterances)
    assert len(corpus.skipped) == 3  # one file of continuous speech per voice
    assert set(character_vocabulary(u.text for u in corpus.utterances).symbols) <= set("abcdefghijklmnopqrstuvwxyz' ")


def test_parts_are_cut_faded_scaled_and_set_apart(tmp_path):
    audio = tone(1.0)
    write_flac(tmp_path / "a.flac", audio)
    written = np.round(audio * 32768) / 32768
    parts = (Part("a.flac"), Part("a.flac", 0.25, 0.5, gap_seconds=0.1, gain=2.0))
    heard = read_utterance(tmp_path, Utterance("x", "a a", "s", "train", 1.35, parts))
    assert len(heard) == round(1.35 * SAMPLE_RATE) and heard.dtype == np.float32
    np.testing.assert_allclose(heard[:16000], written, atol=1 / 32768)
    assert not heard[16000:17600].any()
    np.testing.assert_allclose(heard[17680:-80], 2 * written[4080:7920], atol=2 / 32768)
    assert abs(heard[17600]) < 1e-6 and np.abs(heard[17600:17680]).max() < np.abs(heard[17680:17900]).max()


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("It's  HALF-past\tnine.", "it's half past nine"),
        ("'quoted' rock \u2019n\u2019 roll", "quoted rock n roll"),
        ("Caf\u0065\u0301, d\u00e9j\u00e0 vu!", "caf\u00e9 d\u00e9j\u00e0 vu"),
        ("snake_case -- 7", "snake case 7"),
        (" ... ", ""),
    ],
)
def test_plain_text(raw, plain):
    assert plain_text(raw) == plain
    assert plain_text(plain) == plain


def test_vocabularies_encode_and_decode():
    words = word_vocabulary(["stop the car", "the end"])
    assert words.symbols == ("car", "end", "stop", "the") and words.size == 5
    assert words.encode("the car").tolist() == [4, 1] and words.decode([4, 1]) == "the car"
    assert words.encode("").tolist() == [] and words.decode([]) == ""
    letters = character_vocabulary(["ab ba"])
    assert letters.symbols == (" ", "a", "b") and letters.encode("b a").tolist() == [3, 1, 2]
    assert letters.decode(letters.encode("ba ab")) == "ba ab"
    assert Vocabulary.from_json(words.to_json()) == words


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Vocabulary(("go",)).encode("go stop now"), UnknownSymbolError, "1 symbols .*: 'now', 'stop'"),
        (lambda: Vocabulary(("a",), "").encode("abcde"), UnknownSymbolError, "'b', 'c', 'd' and 1 more"),
        (lambda: Vocabulary(("go",)).decode([0]), ValueError, r"labels are 1\.\.1, got 0"),
        (lambda: Vocabulary(("go",)).decode([2]), ValueError, r"labels are 1\.\.1, got 2"),
        (lambda: Vocabulary(("go", "go")), ValueError, "distinct symbols"),
        (lambda: word_vocabulary([]), ValueError, "distinct symbols"),
        (lambda: Vocabulary(("go on",)), ValueError, "'go on' is not one word"),
        (lambda: Vocabulary(("go",), ""), ValueError, "'go' is not one character"),
        (lambda: Vocabulary(("go",), "-"), ValueError, "separator must be"),
    ],
)
def test_bad_vocabularies_and_labels_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
