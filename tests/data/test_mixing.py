"""Mixing, by physics: the SNR, the level and the word's end of the mixture are those that were drawn."""

from dataclasses import replace

import numpy as np
import pytest

from kwsbench.data.audio import SAMPLE_RATE, write_flac
from kwsbench.data.corpora import NOISE, SPEECH, SPLITS, Clip, Corpus, open_corpus
from kwsbench.data.mixing import (
    PARTIAL,
    Mixer,
    MixRecipe,
    Source,
    active_power,
    clip_rng,
    training_recipe,
)
from kwsbench.data.rooms import room_bank

# Quiet, so that no mixture has to be scaled down where a test takes it apart.
NEAR = MixRecipe(far_field=0.0, n_rooms=3, level_dbfs=(-50.0, -35.0))
FAR = replace(NEAR, far_field=1.0)
RECIPES = pytest.mark.parametrize("recipe", [NEAR, FAR], ids=["near", "far"])
NOISE_HZ = {"train": 500, "validation": 1500, "test": 2500}


def tone(hz, seconds, scale=0.2):
    return scale * np.sin(2 * np.pi * hz * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Per split: two of 'go' (3.5 kHz, at 0.2-0.5 s of 0.8 s), six others (300 Hz), speech, a noise tone."""
    root = tmp_path_factory.mktemp("corpus")
    clips = []

    def add(path, label, split, audio, start=None, end=None):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_flac(root / path, audio.astype(np.float32))
        clips.append(Clip(path, label, f"{split}-{len(clips)}", split, len(audio) / SAMPLE_RATE, start, end))

    for split in SPLITS:
        for i in range(2):
            word = np.zeros(int(0.8 * SAMPLE_RATE))
            word[int(0.2 * SAMPLE_RATE) : int(0.5 * SAMPLE_RATE)] = tone(3500, 0.3)
            add(f"go/{split}{i}.flac", "go", split, word, 0.2, 0.5)
        for i in range(6):
            add(f"stop/{split}{i}.flac", "stop", split, tone(300 + 10 * i, 0.6), 0.0, 0.6)
        speech = np.concatenate([tone(400, 1.0), np.zeros(SAMPLE_RATE), tone(400, 1.0)])
        add(f"speech/{split}.flac", SPEECH, split, speech)
        add(f"noise/{split}.flac", NOISE, split, tone(NOISE_HZ[split], 2.0))
    return Corpus(root, tuple(sorted(clips, key=lambda clip: clip.path)), (), ())


def silent(source: Source) -> Source:
    return replace(source, audio=np.zeros_like(source.audio))


def parts(mixer, clip, round=0):
    """(mixture, its speech, its noise): a silent clip of the same path draws the same noise, as loud."""
    source = mixer.load(clip)
    mixture = mixer.mix_source(source, round)
    assert np.abs(mixture.audio).max() < 0.99, "scaled down: the parts cannot be told apart by subtraction"
    noise = mixer.mix_source(silent(source), round).audio.astype(np.float64)
    return mixture, mixture.audio - noise, noise


def power_db(signal):
    return 10 * np.log10(np.mean(np.square(signal, dtype=np.float64)))


def peak_hz(signal):
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal))))
    return np.argmax(spectrum) * SAMPLE_RATE / len(signal)


@RECIPES
@pytest.mark.parametrize("kind", ["recorded", "coloured", "babble", "tonal"])
def test_snr_and_level_are_those_drawn(corpus, recipe, kind):
    mixer = Mixer(corpus, replace(recipe, noises=(kind,)), 1, ("go",))
    for round in range(4):
        for clip in corpus.select("go", "train") + corpus.select("stop", "test"):
            mixture, speech, noise = parts(mixer, clip, round)
            span = slice(*(round_samples(t) for t in (mixture.start_seconds, mixture.end_seconds)))
            assert mixture.noise == kind
            assert power_db(speech[span]) == pytest.approx(mixture.level_dbfs, abs=0.05)
            assert power_db(speech[span]) - power_db(noise) == pytest.approx(mixture.snr_db, abs=0.1)
            assert recipe.snr_db[0] <= mixture.snr_db <= recipe.snr_db[1]
            assert recipe.level_dbfs[0] <= mixture.level_dbfs <= recipe.level_dbfs[1]
            assert (mixture.room >= 0) == (recipe is FAR)


def round_samples(seconds):
    return round(seconds * SAMPLE_RATE)


def test_continuous_speech_is_measured_where_it_is_active(corpus):
    mixer = Mixer(corpus, NEAR, 1)
    (clip,) = corpus.select(SPEECH, "train")
    mixture, speech, noise = parts(mixer, clip)
    # Two seconds of tone around one of silence: the tone's power counts, not the mean over three seconds.
    start = round_samples(mixture.start_seconds)
    word = speech[start + 1600 : start + 14400]
    assert power_db(word) == pytest.approx(mixture.level_dbfs, abs=0.1)
    assert power_db(word) - power_db(noise) == pytest.approx(mixture.snr_db, abs=0.15)
    assert mixture.end_seconds - mixture.start_seconds == pytest.approx(3.0)
    assert 10 * np.log10(active_power(np.concatenate([np.ones(3200), np.zeros(32000)]))) == 0


@RECIPES
def test_the_word_ends_where_it_says(corpus, recipe):
    # One click as the word's last sample: nothing loud comes before it.
    clip = corpus.select("go", "train")[0]
    mixer = Mixer(corpus, replace(recipe, snr_db=(60, 60), noises=("coloured",)), 0)
    audio = np.zeros(12800, np.float32)
    audio[8000] = 0.5
    for round in range(12):
        mixture = mixer.mix_source(Source(clip, audio, 0.2, 8001 / SAMPLE_RATE), round)
        loud = np.flatnonzero(np.abs(mixture.audio) > 0.2 * np.abs(mixture.audio).max())
        assert loud[0] == pytest.approx(mixture.end_seconds * SAMPLE_RATE - 1, abs=12 if recipe is FAR else 0.1)


def test_layout(corpus):
    clip = corpus.select("go", "train")[0]
    mixer = Mixer(corpus, replace(NEAR, lead_seconds=0.5, tail_seconds=0.25), 0)
    leads = []
    for round in range(20):
        mixture = mixer.mix(clip, round)
        leads.append(mixture.start_seconds - 0.2)
        assert mixture.end_seconds - mixture.start_seconds == pytest.approx(0.3)
        assert len(mixture.audio) / SAMPLE_RATE == pytest.approx(leads[-1] + 0.8 + 0.25, abs=1e-3)
    assert min(leads) >= 0.4999 and max(leads) <= 0.6 and max(leads) - min(leads) > 0.05


def test_too_loud_is_scaled_never_wrapped_or_cut(corpus):
    clip = corpus.select("go", "train")[0]
    quiet = Mixer(corpus, replace(NEAR, snr_db=(0, 0), level_dbfs=(-40, -40), noises=("coloured",)), 0)
    loud = Mixer(corpus, replace(NEAR, snr_db=(0, 0), level_dbfs=(3, 3), noises=("coloured",)), 0)
    for round in range(5):
        small, large = quiet.mix(clip, round), loud.mix(clip, round)
        peak = np.abs(large.audio).max()
        assert peak == pytest.approx(0.999, abs=1e-6)
        np.testing.assert_allclose(large.audio, small.audio * (peak / np.abs(small.audio).max()), atol=1e-5)
        assert large.level_dbfs == pytest.approx(
            small.level_dbfs + power_db(large.audio) - power_db(small.audio), abs=1e-3
        )
        assert large.snr_db == 0


def test_splits_hear_only_their_own_noise(corpus):
    mixer = Mixer(corpus, replace(NEAR, noises=("recorded",)), 0)
    for split in SPLITS:
        for clip in corpus.select("stop", split):
            _, _, noise = parts(mixer, clip)
            assert peak_hz(noise) == pytest.approx(NOISE_HZ[split], abs=5)


def test_splits_use_only_their_own_rooms(corpus):
    # The response is what a click turns into; it must be one of the split's rooms.
    mixer = Mixer(corpus, replace(FAR, snr_db=(90, 90), noises=("coloured",), tail_seconds=1.0), 4)
    for split in SPLITS:
        rooms = room_bank(4, split, FAR.n_rooms, FAR.rt60_seconds)
        clip = corpus.select("go", split)[0]
        audio = np.zeros(8000, np.float32)
        audio[4000] = 0.5
        mixture = mixer.mix_source(Source(clip, audio, 0.0, 0.5))
        at = round_samples(mixture.start_seconds) + 4000
        room = rooms[mixture.room]
        heard = mixture.audio[at - room.direct_sample :][: len(room.rir)]
        expected = room.rir[: len(heard)]
        assert np.corrcoef(heard, expected)[0, 1] > 0.99


def test_babble_holds_no_keyword(corpus):
    mixer = Mixer(corpus, replace(NEAR, noises=("babble",)), 0, ("go",))
    for round in range(6):
        _, _, noise = parts(mixer, corpus.select("stop", "train")[0], round)
        power = np.abs(np.fft.rfft(noise)) ** 2
        hz = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
        assert power[(hz > 250) & (hz < 450)].sum() > 0.95 * power.sum()
        assert power[(hz > 3000) & (hz < 4000)].sum() < 1e-4 * power.sum()


def test_kinds_that_a_split_cannot_give_fall_away(corpus):
    bare = Corpus(corpus.root, corpus.select("go", "train"), (), ())
    mixer = Mixer(bare, NEAR, 0, ("go",))
    kinds = {mixer.mix(bare.clips[0], round).noise for round in range(30)}
    assert kinds == {"coloured", "tonal"}
    with pytest.raises(ValueError, match=r"train split has no clips for.*add 'coloured'"):
        Mixer(bare, replace(NEAR, noises=("recorded", "babble")), 0, ("go",)).mix(bare.clips[0])


def mix_all(corpus, recipe, paths):
    mixer = Mixer(corpus, recipe, 5, ("go",))
    clips = {clip.path: clip for clip in corpus.clips}
    return {path: mixer.mix(clips[path], 1).audio for path in paths}


def test_the_same_in_any_order_and_any_company(corpus):
    recipe = replace(training_recipe(MixRecipe(n_rooms=2)), far_field=0.5)
    paths = [clip.path for clip in corpus.clips if clip.label != NOISE]
    forward = mix_all(corpus, recipe, paths)
    backward = mix_all(corpus, recipe, paths[::-1])
    alone = mix_all(corpus, recipe, paths[5:6])
    for path in paths:
        np.testing.assert_array_equal(forward[path], backward[path])
    np.testing.assert_array_equal(forward[paths[5]], alone[paths[5]])


def test_round_seed_and_clip_each_change_the_mixture(corpus):
    first, second = corpus.select("go", "train")
    base = Mixer(corpus, NEAR, 0).mix(first, 0)
    others = [Mixer(corpus, NEAR, 0).mix(first, 1), Mixer(corpus, NEAR, 1).mix(first, 0)]
    others.append(Mixer(corpus, NEAR, 0).mix(second, 0))
    assert len({base.snr_db, *(other.snr_db for other in others)}) == 4


def test_streams_of_a_clip_are_independent(corpus):
    clip = corpus.clips[0]
    drawn = [clip_rng(clip, 0, 0, stream).random(4) for stream in (0, 1)]
    assert not np.any(drawn[0] == drawn[1])


def test_draws_are_uniform_over_their_ranges(corpus):
    mixer = Mixer(corpus, replace(MixRecipe(n_rooms=2), far_field=0.3, noises=("coloured", "tonal")), 0)
    source = mixer.load(corpus.select("go", "train")[0])
    mixtures = [mixer.mix_source(source, round) for round in range(300)]
    for values, (low, high) in (
        ([m.snr_db for m in mixtures], (5, 25)),
        ([m.level_dbfs for m in mixtures], (-35, -15)),
    ):
        np.testing.assert_allclose(
            np.quantile(values, [0.25, 0.5, 0.75]), low + (high - low) * np.array([0.25, 0.5, 0.75]), atol=2.0
        )
    # 300 draws at 0.3: three standard deviations are 0.08.
    assert np.mean([m.room >= 0 for m in mixtures]) == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_moves_pitch_and_span(corpus, speed):
    clip = corpus.select("go", "train")[0]
    mixer = Mixer(corpus, replace(NEAR, speed=(speed, speed), snr_db=(40, 40)), 0)
    mixture, speech, _ = parts(mixer, clip)
    span = slice(round_samples(mixture.start_seconds), round_samples(mixture.end_seconds))
    assert mixture.end_seconds - mixture.start_seconds == pytest.approx(0.3 / speed)
    assert peak_hz(speech[span]) == pytest.approx(3500 * speed, abs=10)
    # The tone is where the span says, and nowhere else.
    inside = np.sum(speech[span] ** 2)
    assert inside > 0.99 * np.sum(speech**2)


def test_a_partial_keyword_is_cut_and_relabelled(corpus):
    mixer = Mixer(corpus, replace(NEAR, partial=1.0, snr_db=(40, 40)), 0, ("go",))
    for clip in corpus.select("go", "train"):
        mixture, speech, _ = parts(mixer, clip)
        assert mixture.label == PARTIAL
        assert 0.4 * 0.3 <= mixture.end_seconds - mixture.start_seconds <= 0.6 * 0.3
        assert np.abs(speech[round_samples(mixture.end_seconds) + 2 :]).max() < 1e-5
    assert mixer.mix(corpus.select("stop", "train")[0]).label == "stop"
    rare = Mixer(corpus, replace(NEAR, partial=0.1), 0, ("go",))
    clip = corpus.select("go", "train")[0]
    cut = np.mean([rare.mix_source(rare.load(clip), round).label == PARTIAL for round in range(300)])
    assert cut == pytest.approx(0.1, abs=0.06)


def test_evaluation_recipes_neither_cut_nor_change_speed():
    assert (MixRecipe().partial, MixRecipe().speed) == (0.0, (1.0, 1.0))
    assert training_recipe(MixRecipe(snr_db=(0, 1))) == MixRecipe(snr_db=(0, 1), partial=0.1, speed=(0.9, 1.1))


def test_a_silent_clip_is_only_noise(corpus):
    mixer = Mixer(corpus, FAR, 0)
    mixture = mixer.mix_source(silent(mixer.load(corpus.select("go", "train")[0])))
    assert np.isfinite(mixture.audio).all() and np.any(mixture.audio)
    assert mixture.snr_db == mixture.level_dbfs == -np.inf


def test_noise_that_cannot_be_read_is_left_out_and_listed(corpus, tmp_path):
    good, bad = (replace(c, path=p) for c, p in zip(corpus.select(NOISE, "train") * 2, ("good.flac", "bad.flac")))
    write_flac(tmp_path / "good.flac", tone(500, 1.0).astype(np.float32))
    (tmp_path / "bad.flac").write_bytes((tmp_path / "good.flac").read_bytes()[:3000])
    write_flac(tmp_path / "go.flac", tone(3500, 0.5).astype(np.float32))
    clip = Clip("go.flac", "go", "a", "train", 0.5, 0.0, 0.5)
    mixer = Mixer(Corpus(tmp_path, (bad, clip, good), (), ()), replace(NEAR, noises=("recorded",)), 0)
    for round in range(8):
        assert mixer.mix(clip, round).noise == "recorded"
    assert list(mixer.unreadable) == ["bad.flac"]
    only_bad = Mixer(Corpus(tmp_path, (bad, clip), (), ()), replace(NEAR, noises=("recorded",)), 0)
    assert only_bad.mix(clip).noise == "coloured"


def test_noise_clips_are_not_mixed(corpus):
    with pytest.raises(ValueError, match="is background noise: it is mixed in, not mixed"):
        Mixer(corpus, NEAR, 0).mix(corpus.select(NOISE, "train")[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"snr_db": (20, 10)}, r"snr_db must be \(lowest, highest\), got \(20, 10\)"),
        ({"far_field": 1.5}, "far_field is a probability, 0..1, got 1.5"),
        ({"partial": -0.1}, "partial is a probability"),
        ({"speed": (0.1, 1.0)}, "speed must lie within 0.5..2"),
        ({"tail_seconds": -1.0}, "must not be negative"),
        ({"noises": ("hum",)}, "noises must be some of recorded, coloured, babble, tonal; got"),
        ({"noises": ()}, "noises must be some of"),
    ],
)
def test_bad_recipes(fields, message):
    with pytest.raises(ValueError, match=message):
        MixRecipe(**fields)


@pytest.mark.speech
def test_real_clips_mix_at_the_drawn_snr(speech_root):
    corpus = open_corpus(speech_root, ("happy",))
    mixer = Mixer(corpus, NEAR, 0, ("happy",))
    for clip in corpus.select("happy", "validation")[::20] + corpus.select(SPEECH, "validation")[:1]:
        mixture, speech, noise = parts(mixer, clip)
        span = speech[round_samples(mixture.start_seconds) : round_samples(mixture.end_seconds)]
        heard = 10 * np.log10(active_power(span)) if clip.label == SPEECH else power_db(span)
        assert heard - power_db(noise) == pytest.approx(mixture.snr_db, abs=0.1)
        assert heard == pytest.approx(mixture.level_dbfs, abs=0.1)
