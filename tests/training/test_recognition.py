"""Recognition experiments: every artifact is made once, resumed, remade where it is broken; bad data is counted."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from kwsbench.data.audio import SAMPLE_RATE, write_flac
from kwsbench.data.sequences import usual_words
from kwsbench.integer.listen import transcribe
from kwsbench.integer.packed import Packed
from kwsbench.models.transducer import Transducer
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.recognizer import IntegerRecognizer, RecognizerPlan, SoftRecognizer
from kwsbench.training.checkpoints import CheckpointError, OtherModelError
from kwsbench.training.loop import watching
from kwsbench.training.recognition import (
    LIBRISPEECH,
    PROFILES,
    RecognitionSpec,
    RecognitionSystem,
    open_recognition,
)
from kwsbench.training.recognizers import load_recognizer, save_recognizer
from kwsbench.training.transducer import Recognised, recognise_bank, recognise_together
from tests.training.recognition_tools import FOUR, RUN, TINY, WORDS, write_tones


@pytest.fixture(scope="module")
def words_root(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def recognition(words_root, tmp_path_factory):
    return open_recognition(tmp_path_factory.mktemp("runs"), "commands", str(words_root), WORDS, TINY, progress=False)


@pytest.mark.parametrize("encoder", ["lstm", "conformer"])
def test_every_kind_of_system_trains_and_recognises(recognition, encoder):
    rates = {}
    for kind, plan in (
        ("float", None), ("control", None), ("stage_one", FOUR), ("stage_two", FOUR), ("post_training", FOUR),
    ):  # fmt: skip
        system = RecognitionSystem(kind, 0, encoder, plan)
        model = recognition.model(system)
        expected = {"stage_one": SoftRecognizer, "stage_two": IntegerRecognizer, "post_training": IntegerRecognizer}
        assert type(model) is expected.get(kind, Transducer)
        rates[kind] = recognition.recognised(system, "test").total.rate
        assert recognition.recognised(system, "test").total.words == sum(
            len(u.words) for u in recognition.corpus.select("test")
        )
    history = recognition.history(RecognitionSystem("float", 0, encoder))
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    # So small an LSTM takes more steps until it emits anything.
    assert encoder == "lstm" or (rates["float"] < 0.5 and rates["stage_two"] < 0.6), rates
    size = {k: recognition.packed_bytes(RecognitionSystem(k, 0, encoder, p))
            for k, p in (("float", None), ("stage_two", FOUR))}  # fmt: skip
    assert 2.5 < size["float"] / size["stage_two"] < 8


def test_finished_work_is_read_and_other_settings_are_other_folders(recognition, words_root, monkeypatch):
    system = RecognitionSystem("float", 0, "lstm")
    before = recognition.model(system).state_dict()
    heard = recognition.recognised(system, "test")
    again = open_recognition(recognition.root, "commands", str(words_root), WORDS, TINY, progress=False)
    monkeypatch.setattr("kwsbench.training.recognition.train_transducer", lambda *a, **k: pytest.fail("trained twice"))
    monkeypatch.setattr("kwsbench.training.recognition.recognise_together", lambda *a: pytest.fail("decoded twice"))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), again.model(system).state_dict().values()))
    assert again.recognised(system, "test").hypotheses == heard.hypotheses
    others = [replace(system, seed=1), replace(system, encoder="conformer"), replace(system, kind="control")]
    plans = [FOUR, RecognizerPlan(FOUR.weights, (("*.recurrent", WeightPlan("general", 1)),))]
    others += [RecognitionSystem("stage_one", 0, "lstm", plan) for plan in plans]
    folders = {recognition.folder(s) for s in [system, *others]}
    assert len(folders) == len(others) + 1
    slower = replace(TINY, conformer_rate=RUN.learning_rate / 2)
    slow = open_recognition(recognition.root, "commands", str(words_root), WORDS, slower, progress=False)
    assert slow.folder(system) == recognition.folder(system)  # an LSTM has nothing to do with it
    assert slow.folder(replace(system, encoder="conformer")) not in folders
    longer = replace(TINY, float_stage=replace(RUN, steps=101))
    other = open_recognition(recognition.root, "commands", str(words_root), WORDS, longer, progress=False)
    assert other.folder(system) not in folders and not other.has_model(system)


def test_broken_files_are_set_aside_and_made_again(words_root, tmp_path, capsys):
    short = replace(TINY, float_stage=replace(RUN, steps=3))
    recognition = open_recognition(tmp_path, "commands", str(words_root), WORDS, short, progress=False)
    system = RecognitionSystem("float", 0, "lstm")
    first = recognition.recognised(system, "test")
    folder = recognition.folder(system)
    (kept,) = folder.glob("recognised-test-*.json")
    kept.write_text('{"names": []}')
    assert (
        recognition.recognised(system, "test") == first or recognition.recognised(system, "test").names == first.names
    )
    assert "was set aside" in capsys.readouterr().err
    model = folder / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-50])
    again = open_recognition(tmp_path, "commands", str(words_root), WORDS, short, progress=False)
    assert again.recognised(system, "validation").names
    assert (folder / "model.safetensors.corrupt").is_file() and model.is_file()


def test_an_interrupted_training_goes_on_to_the_same_bits_and_its_watcher_is_told(words_root, tmp_path):
    short = replace(TINY, float_stage=replace(RUN, steps=24, checkpoint_every=8))
    system = RecognitionSystem("float", 0, "conformer")
    runs = [open_recognition(tmp_path / n, "commands", str(words_root), WORDS, short, progress=False) for n in "ab"]
    seen = []

    def stop(config, steps_done, history):
        seen.append((config.name, steps_done, len(history["loss"])))
        if steps_done == 21:
            raise KeyboardInterrupt

    with watching(stop), pytest.raises(KeyboardInterrupt):
        runs[0].model(system)
    assert seen == [("float", 1, 1), ("float", 21, 2)]
    assert not runs[0].has_model(system) and (runs[0].folder(system) / "checkpoint.safetensors").is_file()
    models = [run.model(system).state_dict() for run in runs]
    assert all(torch.equal(a, b) for a, b in zip(*(m.values() for m in models)))
    assert runs[0].history(system) == runs[1].history(system)
    assert not (runs[0].folder(system) / "checkpoint.safetensors").exists()


def test_together_is_as_one_by_one(recognition):
    for system in (RecognitionSystem("float"), RecognitionSystem("stage_two", 0, "lstm", FOUR)):
        args = recognition.model(system), recognition.bank("test"), recognition.vocabulary, TINY.features
        single, together = recognise_bank(*args), recognise_together(*args, batch=7)
        assert single.hypotheses == together.hypotheses and any(single.hypotheses)
        assert np.array_equal(single.delay_seconds, together.delay_seconds, equal_nan=True)


def test_a_beam_is_asked_for_by_its_width_and_kept_beside_the_greedy_search(recognition, monkeypatch):
    system = RecognitionSystem("stage_two", 0, "lstm", FOUR)
    greedy, wide = recognition.recognised(system, "test"), recognition.recognised(system, "test", width=3)
    engine, bank = Packed(recognition.program(system)), recognition.bank("test")
    heard = [recognition.vocabulary.decode(transcribe(engine, bank.utterance(i), width=3)) for i in range(len(bank))]
    assert list(wide.hypotheses) == heard
    monkeypatch.setattr("kwsbench.training.recognition.recognise_bank", lambda *a: pytest.fail("decoded twice"))
    assert recognition.recognised(system, "test", width=3).hypotheses == wide.hypotheses
    assert recognition.recognised(system, "test").hypotheses == greedy.hypotheses
    with pytest.raises(ValueError, match="width of at least 1, got 0"):
        recognition.recognised(system, "test", width=0)


def test_hypotheses_survive_json(recognition):
    heard = recognition.recognised(RecognitionSystem("float"), "test")
    heard = replace(heard, delay_seconds=(float("nan"), *heard.delay_seconds[1:]))
    back = Recognised.from_json(json.loads(json.dumps(heard.to_json(), allow_nan=False)))
    assert back.errors == heard.errors and back.hypotheses == heard.hypotheses
    assert np.isnan(back.delay_seconds[0]) and back.delay_seconds[1:] == heard.delay_seconds[1:]
    with pytest.raises(ValueError, match="these are no hypotheses"):
        Recognised.from_json({"names": []})
    with pytest.raises(ValueError, match="columns of one length"):
        Recognised.from_json({**heard.to_json(), "names": []})


def test_recognizers_of_all_stages_are_saved_with_their_vocabulary(recognition, tmp_path):
    path = tmp_path / "model.safetensors"
    for kind, plan in (("float", None), ("stage_one", FOUR), ("stage_two", FOUR)):
        model = recognition.model(RecognitionSystem(kind, 0, "conformer", plan))
        save_recognizer(path, model, recognition.vocabulary, {"note": 1})
        loaded, vocabulary = load_recognizer(path, expect=model.config)
        assert type(loaded) is type(model) and vocabulary == recognition.vocabulary and not loaded.training
        frames, labels = torch.randn(2, 40, 8), torch.ones(2, 3, dtype=torch.long)
        with torch.no_grad():
            assert torch.equal(loaded(frames, labels), model(frames, labels))
    with pytest.raises(OtherModelError, match="recognizer of another shape"):
        load_recognizer(path, expect=replace(model.config, joint=99))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_recognizer(path)


def test_bad_requests_are_named(words_root, tmp_path):
    with pytest.raises(ValueError, match="unknown task 'dictation'; choose one of commands, sentences, librispeech"):
        open_recognition(tmp_path, "dictation", str(words_root))
    with pytest.raises(ValueError, match="needs a folder of recordings, got data=''"):
        open_recognition(tmp_path, "librispeech")
    with pytest.raises(ValueError, match="'sentences' makes its own data"):
        open_recognition(tmp_path, "sentences", str(words_root))
    with pytest.raises(ValueError, match="words are chosen for the task 'commands' only"):
        RecognitionSpec("sentences", "", TINY, ("go",))
    with pytest.raises(ValueError, match="unknown profile 'huge'"):
        open_recognition(tmp_path, "commands", str(words_root), profile="huge")
    with pytest.raises(ValueError, match="no clip of the keyword 'middle'"):
        open_recognition(tmp_path, "commands", str(words_root), ("low", "middle"), TINY)
    with pytest.raises(ValueError, match="0 words with at least 15 clips"):
        open_recognition(tmp_path, "commands", str(words_root), (), TINY)
    for wrong in ({"kind": "stage_three"}, {"kind": "float", "encoder": "gru"}):
        with pytest.raises(ValueError, match="unknown"):
            RecognitionSystem(**wrong)
    with pytest.raises(ValueError, match="stage_one system needs a plan"):
        RecognitionSystem("stage_one")
    with pytest.raises(ValueError, match="float system has no plan"):
        RecognitionSystem("float", plan=FOUR)
    assert {"smoke", "default", "full"} == set(LIBRISPEECH) < set(PROFILES)


def test_usual_words_are_those_recorded_often_enough(recognition, words_root):
    from kwsbench.data.corpora import open_corpus

    corpus = open_corpus(words_root)
    assert usual_words(corpus, least=2) == ("high", "low")
    assert usual_words(corpus, least=2, most=2) == ("high", "low")
    with pytest.raises(ValueError, match="name the words to recognise"):
        usual_words(corpus, least=2, most=2) and usual_words(corpus, least=3)


@pytest.fixture
def librispeech_root(tmp_path):
    """Three sets of one speaker each; a missing transcript, an empty file, no audio, an unknown letter, a long text."""
    rng = np.random.default_rng(0)
    root = tmp_path / "LibriSpeech"
    for folder, speaker in (("train-clean-100", 1), ("dev-clean", 2), ("test-clean", 3)):
        chapter = root / folder / str(speaker) / "10"
        chapter.mkdir(parents=True)
        for n in range(6):
            audio = (0.1 * rng.standard_normal(12000)).astype(np.float32)
            write_flac(chapter / f"{speaker}-10-{n:04d}.flac", audio)
        texts = ["IT'S NOISE", "NOISE IS IT", "ISN'T IT", "ON NOISE", "SO IT IS", "IS IT"]
        if speaker == 1:
            texts[2] = "TO BE OR NOT TO BE SAID IN SO LITTLE TIME " * 8
            soundfile.write(chapter / "1-10-0003.flac", np.zeros(0, np.float32), SAMPLE_RATE)
        if speaker == 3:
            texts[1] = "QUIZ IT"
        lines = [f"{speaker}-10-{n:04d} {text}\n" for n, text in enumerate(texts)]
        (chapter / f"{speaker}-10.trans.txt").write_text("".join(lines[:5]))
    return root


def test_a_librispeech_folder_takes_the_path_of_the_full_profile(librispeech_root, tmp_path):
    full = LIBRISPEECH["full"]
    shrunk = replace(
        full,
        float_stage=replace(full.float_stage, steps=21, batch=4, mask_bands=1),
        stage_one=replace(full.stage_one, steps=3, batch=4, mask_bands=1),
        stage_two=replace(full.stage_two, steps=2, batch=4, mask_bands=1),
        lstm=TINY.lstm,
        conformer=TINY.conformer,
        features=TINY.features,
        embedding=8,
        prediction=12,
        joint=16,
    )
    recognition = open_recognition(
        tmp_path / "runs", "librispeech", str(librispeech_root), profile=shrunk, progress=False
    )
    assert recognition.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert recognition.vocabulary.separator == "" and {" ", "'", "i"} <= set(recognition.vocabulary.symbols)
    left_out = recognition.left_out()
    assert "train-clean-100/1/10/1-10-0005.flac: no transcript: no line in 1-10.trans.txt" in left_out["corpus"]
    assert any("1-10-0003" in item for item in left_out["corpus"])  # empty audio
    assert [item for item in left_out["training"] if "labels, at most" in item and "1-10-0002" in item]
    for encoder in ("lstm", "conformer"):
        history = recognition.history(RecognitionSystem("float", 0, encoder))
        assert history["loss"][-1] < history["loss"][0]
    heard = recognition.recognised(RecognitionSystem("stage_two", 0, "lstm", FOUR), "test")
    assert heard.total.words == 11 and heard.speakers == ("3",) * 5  # with the words that hold unknown letters


def test_embedded_sentences_need_no_recordings(tmp_path):
    pytest.importorskip("espeakng_loader")
    few = replace(TINY, sentences=replace(TINY.sentences, n_voices=3, per_voice=3), float_stage=replace(RUN, steps=2))
    recognition = open_recognition(tmp_path, "sentences", profile=few, progress=False)
    assert recognition.vocabulary.separator == " "
    heard = recognition.recognised(RecognitionSystem("float"), "validation")
    assert heard.total.words == sum(len(u.words) for u in recognition.corpus.select("validation")) > 3
    assert recognition.left_out()["corpus"] == []


@pytest.mark.slow
@pytest.mark.speech
@pytest.mark.parametrize("encoder", ["lstm", "conformer"])
def test_recorded_commands_are_recognised(speech_root, tmp_path, encoder):
    recognition = open_recognition(tmp_path, "commands", str(speech_root), profile="smoke", progress=False)
    heard = recognition.recognised(RecognitionSystem("float", 0, encoder), "test")
    assert heard.total.rate < 0.75, heard.total.text()
