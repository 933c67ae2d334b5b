"""Feature banks: what is in them, labels against the audio, workers, interruption, the cache, bad input."""

from dataclasses import replace

import numpy as np
import pytest

from kwsbench.data import batches
from kwsbench.data.audio import SAMPLE_RATE, write_flac
from kwsbench.data.batches import FeatureBank, LabelRule, build_bank
from kwsbench.data.contents import HASHES
from kwsbench.data.corpora import NOISE, SPEECH, Clip, Corpus, open_corpus
from kwsbench.data.mixing import PARTIAL, Mixer, MixRecipe, training_recipe
from kwsbench.features.lfbe import LfbeConfig, lfbe
from kwsbench.files import LOCKS

LFBE = LfbeConfig()
RULE = LabelRule()
NEAR = MixRecipe(far_field=0.0, snr_db=(30, 40), noises=("coloured",))


def make_corpus(root, n_words=6):
    """Words are bursts of noise at 0.2-0.6 s of 0.9 s: 'go', 'stop', 'left'; one speech clip; one of noise."""
    rng = np.random.default_rng(0)
    clips = []

    def add(path, label, audio, *span):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_flac(root / path, audio.astype(np.float32))
        clips.append(Clip(path, label, f"s{len(clips)}", "train", len(audio) / SAMPLE_RATE, *span))

    for label in ("go", "stop", "left"):
        for i in range(n_words):
            audio = np.zeros(14400)
            audio[3200:9600] = 0.1 * rng.standard_normal(6400)
            add(f"{label}/{i}.flac", label, audio, 0.2, 0.6)
    add("speech/0.flac", SPEECH, 0.1 * rng.standard_normal(5 * SAMPLE_RATE))
    add("noise/0.flac", NOISE, 0.1 * rng.standard_normal(SAMPLE_RATE))
    return Corpus(root, tuple(sorted(clips, key=lambda clip: clip.path)), (), ())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("words"))


def bank_of(corpus, recipe=NEAR, **options):
    options = {"rounds": 2, "progress": False} | options
    return build_bank(corpus, "train", ("go", "stop"), recipe, LFBE, RULE, 3, **options)


def assert_same(first, second):
    for name in batches.ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert getattr(first, name).dtype == getattr(second, name).dtype
    for name in (*batches.TEXTS, "frame_seconds", "window_seconds", "source_hash"):
        assert getattr(first, name) == getattr(second, name)


def test_a_bank_holds_the_features_of_each_mixture(corpus):
    bank = bank_of(corpus)
    mixer = Mixer(corpus, NEAR, 3, ("go", "stop"))
    clips = [clip for clip in corpus.clips if clip.label != NOISE]
    assert bank.clip_paths == tuple(clip.path for clip in clips for _ in range(2))
    assert len(bank) == 2 * 19 and bank.features.dtype == np.float32
    assert bank.offsets[0] == 0 and bank.offsets[-1] == len(bank.features) == len(bank.labels)
    for i, (clip, round) in enumerate((clip, round) for clip in clips for round in range(2)):
        mixture = mixer.mix(clip, round)
        np.testing.assert_array_equal(bank.segment(i), lfbe(mixture.audio, LFBE))
        assert bank.clip_labels[i] == clip.label
        assert bank.word_end_seconds[i] == pytest.approx(mixture.end_seconds)
    assert bank.seconds == pytest.approx(len(bank.features) * 0.03)
    assert "12 go, 12 stop" in bank.summary()


def expected_labels(n_frames, end_seconds, keyword, rule):
    """Frame by frame, in words: a frame is heard at its last sample."""
    labels = []
    for i in range(n_frames):
        after_ms = ((i * 480 + 400) / 16000 - end_seconds) * 1000
        if not keyword:
            labels.append(0)
        elif rule.positive_from_ms <= after_ms <= rule.positive_to_ms:
            labels.append(keyword)
        else:
            labels.append(-1 if -rule.ignore_before_ms <= after_ms <= rule.ignore_after_ms else 0)
    return labels


def test_labels_follow_the_rule(corpus):
    bank = bank_of(corpus, random_phase=True)
    for i, label in enumerate(bank.clip_labels):
        keyword = {"go": 1, "stop": 2}.get(label, 0)
        got = bank.segment_labels(i)
        assert got.tolist() == expected_labels(len(got), float(bank.word_end_seconds[i]), keyword, RULE)
        # 180 ms of positives are six frames of 30 ms.
        assert np.count_nonzero(got == keyword) == (6 if keyword else len(got))


def test_labels_lie_where_the_word_ends_in_the_audio(corpus):
    # Independent of any clock: the word is loud, so the last loud frame ends within a window of the word's end.
    bank = bank_of(corpus, random_phase=True, rounds=4)
    for i, label in enumerate(bank.clip_labels):
        if label == "go":
            level = bank.segment(i).mean(axis=1)
            last_loud = np.flatnonzero(level > level.max() - 1.0)[-1]
            first_positive = np.flatnonzero(bank.segment_labels(i) == 1)[0]
            assert 0 <= last_loud - first_positive <= 2


def test_random_phase_moves_the_framing_by_hops(corpus):
    still, moved = bank_of(corpus, rounds=12), bank_of(corpus, rounds=12, random_phase=True)
    hops = (still.word_end_seconds - moved.word_end_seconds) / 0.01
    assert set(np.round(hops).astype(int)) == {0, 1, 2}
    np.testing.assert_allclose(hops, np.round(hops), atol=1e-3)
    counts = np.bincount(np.round(hops).astype(int))
    assert counts.min() > len(still) / 3 - 4 * np.sqrt(len(still) * 2 / 9)


def test_partial_keywords_are_negatives(corpus):
    bank = bank_of(corpus, replace(NEAR, partial=1.0))
    assert set(bank.clip_labels) == {PARTIAL, "left", SPEECH}
    assert not bank.labels.any()


def test_continuous_speech_stays_one_segment(corpus):
    bank = bank_of(corpus)
    lengths = np.diff(bank.offsets)[[label == SPEECH for label in bank.clip_labels]]
    assert len(lengths) == 2 and np.all(lengths * 0.03 > 6.2)


def test_workers_do_not_change_the_result(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "SHARD_SECONDS", 25.0)
    recipe = training_recipe(MixRecipe(n_rooms=2, far_field=0.5))
    one = bank_of(corpus, recipe, random_phase=True, cache_dir=tmp_path / "one")
    two = bank_of(corpus, recipe, random_phase=True, cache_dir=tmp_path / "two", workers=2)
    assert_same(one, two)


def test_shards_do_not_change_the_result(corpus, monkeypatch):
    whole = bank_of(corpus)
    monkeypatch.setattr(batches, "SHARD_SECONDS", 1.0)
    assert_same(bank_of(corpus), whole)


def test_an_interrupted_build_goes_on_where_it_stopped(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "SHARD_SECONDS", 12.0)
    loaded = []
    load = Mixer.load

    def interrupted(self, clip):
        if len(loaded) == 9:
            raise KeyboardInterrupt
        loaded.append(clip.path)
        return load(self, clip)

    monkeypatch.setattr(Mixer, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bank_of(corpus, cache_dir=tmp_path)
    shards = list(tmp_path.glob("bank-*/shard-*.npz"))
    assert len(shards) >= 2 and not list(tmp_path.glob("**/*.tmp"))

    again = []
    monkeypatch.setattr(Mixer, "load", lambda self, clip: again.append(clip.path) or load(self, clip))
    resumed = bank_of(corpus, cache_dir=tmp_path)
    # Each clip in a finished shard was loaded once in all.
    assert len(again) < 19 and set(again) | set(loaded) == set(resumed.clip_paths)
    assert_same(resumed, bank_of(corpus))
    kept = [path.name for path in tmp_path.iterdir() if path.name != LOCKS and not path.name.startswith(HASHES)]
    assert kept == [f"bank-train-{resumed.source_hash[:16]}.npz"]


def test_the_cache_is_by_all_that_goes_in(corpus, tmp_path, monkeypatch):
    first = bank_of(corpus, cache_dir=tmp_path)
    others = [
        bank_of(corpus, replace(NEAR, tail_seconds=0.6)),
        bank_of(corpus, rounds=3),
        bank_of(corpus, random_phase=True),
        bank_of(corpus, clips=lambda clip: clip.label != "left"),
        build_bank(corpus, "train", ("stop", "go"), NEAR, LFBE, RULE, 3, rounds=2, progress=False),
        build_bank(corpus, "train", ("go", "stop"), NEAR, LFBE, RULE, 4, rounds=2, progress=False),
        build_bank(corpus, "train", ("go", "stop"), NEAR, replace(LFBE, n_mels=21), RULE, 3, rounds=2, progress=False),
        build_bank(corpus, "train", ("go", "stop"), NEAR, LFBE, LabelRule(0), 3, rounds=2, progress=False),
    ]
    assert len({first.source_hash, *(other.source_hash for other in others)}) == 1 + len(others)
    monkeypatch.setattr(Mixer, "load", None)
    assert_same(bank_of(corpus, cache_dir=tmp_path), first)


@pytest.mark.parametrize("label", ["go", NOISE])
def test_a_file_of_other_content_and_the_same_size_makes_another_bank(tmp_path, label):
    corpus = make_corpus(tmp_path / "words", 1)
    before = bank_of(corpus).source_hash
    file = corpus.root / corpus.select(label)[0].path
    file.write_bytes(b"\0" * file.stat().st_size)  # skipped when it is read, but another corpus all the same
    assert bank_of(corpus).source_hash != before


def test_unreadable_clips_are_skipped_and_listed(tmp_path):
    corpus = make_corpus(tmp_path, 2)
    path = corpus.root / "left" / "0.flac"
    path.write_bytes(path.read_bytes()[:2000])
    bank = bank_of(corpus)
    assert len(bank.skipped) == 1 and bank.skipped[0].startswith("left/0.flac: ")
    assert "left/0.flac" not in bank.clip_paths and len(bank) == 2 * 6
    assert "1 files skipped" in bank.summary()


def test_unreadable_noise_is_listed_once_whatever_the_workers(tmp_path, monkeypatch):
    corpus = make_corpus(tmp_path, 3)
    (corpus.root / "noise" / "0.flac").write_bytes(b"no audio")
    monkeypatch.setattr(batches, "SHARD_SECONDS", 12.0)
    recipe = replace(NEAR, noises=("recorded", "coloured"))
    one, two = bank_of(corpus, recipe), bank_of(corpus, recipe, workers=2)
    assert [line.partition(":")[0] for line in one.skipped] == ["noise/0.flac"]
    assert_same(one, two)


def test_nothing_readable_is_an_error(tmp_path):
    corpus = make_corpus(tmp_path, 1)
    for clip in corpus.clips:
        (corpus.root / clip.path).write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the clips can be read; the first: go/0\.flac"):
        bank_of(corpus)


def test_bad_requests(corpus):
    with pytest.raises(ValueError, match="no clips to mix in split 'test'"):
        build_bank(corpus, "test", ("go",), NEAR, LFBE, RULE, 0)
    with pytest.raises(ValueError, match="no clips of right among the 19 of split 'train'"):
        build_bank(corpus, "train", ("go", "right"), NEAR, LFBE, RULE, 0)
    with pytest.raises(ValueError, match="rounds and workers must be at least 1, got 0 and 1"):
        bank_of(corpus, rounds=0)
    with pytest.raises(ValueError, match=r"a label rule needs .*positive_from_ms=200"):
        LabelRule(positive_from_ms=200)


def test_save_and_load(corpus, tmp_path):
    bank = bank_of(corpus)
    bank.save(tmp_path / "bank.npz")
    assert_same(FeatureBank.load(tmp_path / "bank.npz"), bank)
    assert [path.name for path in tmp_path.iterdir()] == ["bank.npz"]


def test_a_damaged_bank_is_named(corpus, tmp_path):
    path = tmp_path / "bank.npz"
    bank_of(corpus).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(
        ValueError, match=r"bank\.npz is not a feature bank, or is damaged .*; remove it and build again"
    ):
        FeatureBank.load(path)
    with pytest.raises(FileNotFoundError):
        FeatureBank.load(tmp_path / "none.npz")


def test_progress_goes_to_stderr_or_nowhere(corpus, capfd):
    bank_of(corpus, progress=True)
    shown = capfd.readouterr()
    assert "mixing train" in shown.err and shown.out == ""
    bank_of(corpus)
    assert capfd.readouterr().err == ""


@pytest.mark.speech
def test_real_keywords_have_their_positives(speech_root, tmp_path):
    corpus = open_corpus(speech_root, ("happy",))
    bank = build_bank(
        corpus,
        "validation",
        ("happy",),
        MixRecipe(n_rooms=2),
        LFBE,
        RULE,
        0,
        cache_dir=tmp_path,
        clips=lambda clip: clip.label in ("happy", "bed") and clip.path[-6] in "02",
        progress=False,
    )
    assert not bank.skipped and len(bank) > 50
    for i, label in enumerate(bank.clip_labels):
        assert np.count_nonzero(bank.segment_labels(i) == 1) == (6 if label == "happy" else 0)
