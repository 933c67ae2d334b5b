"""Spoken command sequences: one speaker each, disjoint splits, audible words in order, and banks of features."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kwsbench.data.audio import SAMPLE_RATE, read_audio, write_flac
from kwsbench.data.corpora import SPLITS, Clip, Corpus, open_corpus
from kwsbench.data.mixing import MixRecipe
from kwsbench.data.sequences import SequenceRecipe, command_sequences
from kwsbench.data.transcribed import read_utterance
from kwsbench.data.utterances import FEATURES, UtteranceBank, build_utterances, speech_end_seconds
from kwsbench.features.lfbe import lfbe

WORD_HZ = {"low": 400, "mid": 1300, "high": 3600}
RECIPE = SequenceRecipe(("high", "low", "mid"), train_sequences=30, validation_sequences=8, test_sequences=12)


def word(hz, seconds=0.3, level=0.2):
    """A tone with silence around it, as a clip holds a word."""
    audio = np.zeros(SAMPLE_RATE, np.float32)
    count = int(seconds * SAMPLE_RATE)
    audio[4000 : 4000 + count] = level * np.sin(2 * np.pi * hz * np.arange(count) / SAMPLE_RATE)
    return audio


def make_corpus(root, speakers=3, clips=2, words=tuple(WORD_HZ)):
    """Each speaker says each word; spans are stated. Levels differ by speaker."""
    rows = []
    for split in SPLITS:
        for s in range(speakers):
            for label in words:
                for n in range(clips):
                    path = f"{label}/{split}{s}_nohash_{n}.flac"
                    (root / label).mkdir(exist_ok=True)
                    write_flac(root / path, word(WORD_HZ[label], level=0.05 * (s + 1)))
                    rows.append(Clip(path, label, f"{split}{s}", split, 1.0, 0.25, 0.55))
    return Corpus(root, tuple(sorted(rows, key=lambda clip: clip.path)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("words"))


def test_sequences_are_of_one_speaker_of_their_split(corpus):
    sequences = command_sequences(corpus, RECIPE, seed=0)
    table = {clip.path: clip for clip in corpus.clips}
    assert Counter(u.split for u in sequences.utterances) == {"train": 30, "validation": 8, "test": 12}
    for u in sequences.utterances:
        clips = [table[p.path] for p in u.parts]
        assert {c.speaker for c in clips} == {u.speaker} and {c.split for c in clips} == {u.split}
        assert [c.label for c in clips] == u.words and 2 <= len(u.words) <= 6
        # No recording twice before the other one of that word.
        assert max(Counter(p.path for p in u.parts).values()) <= -(-max(Counter(u.words).values()) // 2)
    assert {len(u.words) for u in sequences.utterances} == {2, 3, 4, 5, 6}
    assert {w for u in sequences.utterances for w in u.words} == set(WORD_HZ)


def test_a_sequence_depends_on_seed_split_and_number_alone(corpus):
    first = command_sequences(corpus, RECIPE, seed=0)
    assert command_sequences(corpus, RECIPE, seed=0).fingerprint() == first.fingerprint()
    assert command_sequences(corpus, RECIPE, seed=1).fingerprint() != first.fingerprint()
    more = command_sequences(corpus, replace(RECIPE, train_sequences=45), seed=0)
    assert more.select("train")[:30] == first.select("train") and more.select("test") == first.select("test")


def test_the_words_are_heard_in_order_at_equal_levels_and_gaps_are_silent(corpus):
    recipe = replace(RECIPE, level_spread_db=0.0, gap_seconds=(0.2, 0.3))
    for u in command_sequences(corpus, recipe, seed=2).select("test"):
        audio = read_utterance(corpus.root, u)
        assert len(audio) == pytest.approx(u.seconds * SAMPLE_RATE, abs=len(u.parts) + 1)
        at, powers = 0, []
        for part, label in zip(u.parts, u.words):
            gap = round(part.gap_seconds * SAMPLE_RATE)
            assert not audio[at : at + gap].any()
            start = at + gap + round(0.05 * SAMPLE_RATE)  # the margin
            tone = audio[start : start + int(0.3 * SAMPLE_RATE)]
            powers.append(np.mean(tone.astype(np.float64) ** 2))
            peak_hz = np.argmax(np.abs(np.fft.rfft(tone))) * SAMPLE_RATE / len(tone)
            assert peak_hz == pytest.approx(WORD_HZ[label], abs=10)
            at = start + int(0.35 * SAMPLE_RATE)
        np.testing.assert_allclose(10 * np.log10(powers), -26, atol=0.2)


def test_rare_words_are_drawn_as_first_choice(tmp_path):
    """A word that one speaker in twenty says still is in about a third of the sequences of three words."""
    base = make_corpus(tmp_path, speakers=20, clips=1)
    rare = [c for c in base.clips if c.label != "high" or c.speaker.endswith("n0") or c.speaker[-2:] in ("t0",)]
    recipe = replace(RECIPE, train_sequences=200)
    sequences = command_sequences(Corpus(base.root, tuple(rare)), recipe, seed=0).select("train")
    assert sum("high" in u.words for u in sequences) > 50


def test_unusable_clips_are_listed_with_the_sequences_that_drew_them(tmp_path):
    base = make_corpus(tmp_path)
    write_flac(tmp_path / "low/train0_nohash_0.flac", np.zeros(SAMPLE_RATE, np.float32))
    (tmp_path / "mid/test1_nohash_1.flac").write_bytes(b"no audio")
    sequences = command_sequences(base, RECIPE, seed=0)
    reasons = {item.path: item.reason for item in sequences.skipped}
    assert reasons["low/train0_nohash_0.flac"] == "silence: no word found"
    assert reasons["mid/test1_nohash_1.flac"].startswith("unreadable header")
    dropped = [name for name, reason in reasons.items() if reason.startswith("its clip")]
    assert dropped and len(dropped) + len(sequences.utterances) == 50
    used = {p.path for u in sequences.utterances for p in u.parts}
    assert not used & set(reasons)


def test_clips_of_unknown_speakers_stay_out_and_are_noted(corpus):
    unknown = tuple(
        replace(c, speaker="") if c.label == "low" and c.path.endswith("_0.flac") else c for c in corpus.clips
    )
    sequences = command_sequences(replace(corpus, clips=unknown), RECIPE, seed=0)
    assert "9 clips of 'low' left out: their speakers are unknown" in sequences.notes
    assert not [p for u in sequences.utterances for p in u.parts if p.path.startswith("low") and "_0." in p.path]


def test_shared_speakers_are_an_error_even_in_a_hand_made_table(corpus):
    shared = tuple(replace(c, speaker="same") if c.speaker in ("train0", "test0") else c for c in corpus.clips)
    with pytest.raises(ValueError, match=r"shared between splits .* same \(test\+train\)"):
        command_sequences(replace(corpus, clips=shared), RECIPE, seed=0)


def test_absent_words_and_lonely_words_are_named(tmp_path, corpus):
    with pytest.raises(ValueError, match=r"no clip of the keyword 'lo' .* nearest: low"):
        command_sequences(corpus, replace(RECIPE, words=("lo", "mid")), seed=0)
    lonely = make_corpus(tmp_path)
    one_each = tuple(c for c in lonely.clips if c.label == list(WORD_HZ)[int(c.speaker[-1]) % 3])
    with pytest.raises(ValueError, match=r"no speaker of the train split .* said 2 different words"):
        command_sequences(replace(lonely, clips=one_each), RECIPE, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": ("a",)}, "at least 2 distinct words"),
        ({"words": ("a", "a")}, "distinct words"),
        ({"words": ("a", "_noise_")}, "'_noise_' is not a word"),
        ({"word_count": (3, 2)}, "word_count"),
        ({"gap_seconds": (-0.1, 0.2)}, "must not be negative"),
        ({"test_sequences": 0}, "at least one sequence"),
    ],
)
def test_bad_recipes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **changes)


QUIET = MixRecipe(snr_db=(60.0, 60.0), level_dbfs=(-26.0, -26.0), far_field=0.0, noises=("coloured",), tail_seconds=0.5)


def test_a_bank_holds_the_features_of_every_utterance(corpus, tmp_path):
    sequences = command_sequences(corpus, RECIPE, seed=0)
    bank = build_utterances(sequences, "test", QUIET, seed=3, rounds=2, cache_dir=tmp_path, progress=False)
    chosen = sequences.select("test")
    assert bank.names == tuple(u.name for u in chosen for _ in range(2)) and len(bank) == 24
    assert bank.texts == tuple(u.text for u in chosen for _ in range(2)) and bank.skipped == ()
    for i in range(0, 24, 2):
        assert not np.array_equal(bank.utterance(i)[:20], bank.utterance(i + 1)[:20])
        # The words stand out of the silence after them, up to the end of speech.
        loud = bank.utterance(i).max(axis=1)
        ends = FEATURES.frame_end_seconds(np.arange(len(loud)))
        last = ends[loud > loud.max() - 8].max()  # pre-emphasis sets the tones 4 nats apart, noise lies 14 below
        assert last == pytest.approx(bank.speech_end_seconds[i], abs=0.05)
    again = build_utterances(sequences, "test", QUIET, seed=3, rounds=2, cache_dir=tmp_path, progress=False)
    np.testing.assert_array_equal(again.features, bank.features)
    other = build_utterances(sequences, "test", QUIET, seed=4, rounds=2, progress=False)
    assert other.source_hash != bank.source_hash and not np.array_equal(other.features[:20], bank.features[:20])


def test_a_recording_of_other_content_and_the_same_size_makes_another_bank(tmp_path):
    sequences = command_sequences(make_corpus(tmp_path), RECIPE, seed=0)
    before = build_utterances(sequences, "test", QUIET, progress=False).source_hash
    file = sequences.root / sequences.select("test")[0].parts[0].path
    file.write_bytes(b"\0" * file.stat().st_size)  # skipped when it is read, but another corpus all the same
    assert build_utterances(sequences, "test", QUIET, progress=False).source_hash != before


def test_a_damaged_bank_is_set_aside_and_made_again(corpus, tmp_path, capsys):
    sequences = command_sequences(corpus, RECIPE, seed=0)
    bank = build_utterances(sequences, "validation", QUIET, cache_dir=tmp_path, progress=False)
    (path,) = tmp_path.glob("utterances-validation-*.npz")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is not a bank of utterances, or is damaged"):
        UtteranceBank.load(path)
    again = build_utterances(sequences, "validation", QUIET, cache_dir=tmp_path, progress=False)
    np.testing.assert_array_equal(again.features, bank.features)
    assert "set aside" in capsys.readouterr().err


def test_unreadable_utterances_are_skipped_and_listed(tmp_path):
    corpus = make_corpus(tmp_path)
    sequences = command_sequences(corpus, RECIPE, seed=0)
    victim = sequences.select("test")[0].parts[0].path
    (tmp_path / victim).unlink()
    bank = build_utterances(sequences, "test", QUIET, progress=False)
    hit = [u.name for u in sequences.select("test") if victim in [p.path for p in u.parts]]
    assert bank.skipped == tuple(f"{name}: no such file" for name in hit) and len(bank) == 12 - len(hit)
    for clip in corpus.clips:
        (tmp_path / clip.path).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="none of the utterances of test can be read"):
        build_utterances(sequences, "test", QUIET, progress=False)


def test_the_end_of_speech_is_that_of_the_last_loud_frame():
    audio = np.concatenate([np.zeros(3200), 0.3 * np.ones(4800), 0.001 * np.ones(8000)]).astype(np.float32)
    assert speech_end_seconds(audio) == pytest.approx(0.5)
    assert speech_end_seconds(np.zeros(100, np.float32)) == pytest.approx(100 / SAMPLE_RATE)


def test_bad_requests_are_named(corpus):
    sequences = command_sequences(corpus, RECIPE, seed=0)
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        build_utterances(sequences, "test", rounds=0)
    with pytest.raises(ValueError, match="no utterances in split 'dev'"):
        build_utterances(sequences, "dev")


@pytest.mark.speech
def test_recordings_give_sequences_of_disjoint_speakers(speech_root):
    corpus = open_corpus(speech_root)
    recipe = SequenceRecipe(("down", "left", "right", "up"), 20, 8, 8)
    sequences = command_sequences(corpus, recipe, seed=0)
    speakers = {split: {u.speaker for u in sequences.select(split)} for split in SPLITS}
    assert not speakers["train"] & speakers["test"] and not speakers["train"] & speakers["validation"]
    audio = read_utterance(corpus.root, sequences.utterances[0])
    assert np.isfinite(lfbe(audio, FEATURES)).all()
    assert len(audio) / SAMPLE_RATE == pytest.approx(sequences.utterances[0].seconds, abs=0.01)
    assert read_audio(corpus.root / sequences.utterances[0].parts[0].path).size
