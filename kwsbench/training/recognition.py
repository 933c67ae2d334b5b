"""Recognition as an experiment: transcribed utterances, a profile; every model and hypothesis is made once.

    utterances -> feature banks -> float -> stage 1 -> stage 2 -> hypotheses -> word errors

Tasks: ``commands`` (single words of any corpus strung together), ``sentences`` (the embedded synthesizer, no
recordings), ``librispeech`` (its folders, by characters). Artifacts lie under ``root`` in folders named by a hash of
all they depend on, as in experiment.py. Every choice is made on validation; the test split is recognised once per
system, greedily (or by a beam, where one is asked for), and the hypotheses are kept.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kwsbench.beam import check_width
from kwsbench.data.corpora import open_corpus
from kwsbench.data.mixing import MixRecipe
from kwsbench.data.sentences import RECIPES as SENTENCES
from kwsbench.data.sentences import SentenceRecipe, spoken_sentences
from kwsbench.data.sequences import SequenceRecipe, command_sequences, usual_words
from kwsbench.data.transcribed import (
    TranscribedCorpus,
    Vocabulary,
    character_vocabulary,
    open_librispeech,
    word_vocabulary,
)
from kwsbench.data.utterances import FEATURES, MIX, UtteranceBank, build_utterances
from kwsbench.export.recognizer import recognizer_parts
from kwsbench.features.lfbe import LfbeConfig
from kwsbench.files import check_writable, write_json
from kwsbench.integer.listen import transcribe
from kwsbench.integer.lower import LoweringError
from kwsbench.integer.lower_recognizer import lower_recognizer
from kwsbench.integer.packed import Packed
from kwsbench.integer.recognizer import Recognizer
from kwsbench.integer.recognizer import load_recognizer as load_program
from kwsbench.models.conformer import ConformerConfig
from kwsbench.models.recurrent import LstmEncoderConfig
from kwsbench.models.transducer import Transducer, TransducerConfig
from kwsbench.quantizers import SOURCES
from kwsbench.quantizers.recognizer import IntegerRecognizer, RecognizerPlan, SoftRecognizer
from kwsbench.training.artifacts import kept, kept_json, usable_checkpoint
from kwsbench.training.recognizers import Model, load_recognizer, save_recognizer
from kwsbench.training.transducer import (
    Recognised,
    TransducerTraining,
    UtteranceSampler,
    recognise_bank,
    recognise_together,
    train_transducer,
)

EncoderConfig = LstmEncoderConfig | ConformerConfig

TASKS = ("commands", "sentences", "librispeech")
ENCODERS = ("lstm", "conformer")
KINDS = ("float", "control", "stage_one", "stage_two", "post_training")
QUANTIZED = ("stage_one", "stage_two", "post_training")
# Part of every artifact's identity: raise it when the same settings would train or compute something else.
ARTIFACT_VERSION = 2
DATA_SEED = {"train": 1, "validation": 2, "test": 3}  # of the mixtures: every system and seed meets the same audio
CALIBRATION_UTTERANCES = 64


@dataclass(frozen=True)
class RecognitionProfile:
    """How much data and training. ``sequences``: train, validation, test of the task ``commands``; ``rounds``: how
    often each training utterance is mixed; ``conformer_rate``: learning rate of a float Conformer, if not that of
    ``float_stage``; ``embedding``, ``prediction``, ``joint``: sizes of the transducer behind the encoder."""

    name: str
    float_stage: TransducerTraining
    stage_one: TransducerTraining
    stage_two: TransducerTraining
    lstm: LstmEncoderConfig = LstmEncoderConfig(hidden=128, layers=2)
    conformer: ConformerConfig = ConformerConfig(blocks=2)
    sequences: tuple[int, int, int] = (4000, 300, 600)
    word_count: tuple[int, int] = (1, 4)
    sentences: SentenceRecipe = SENTENCES["default"]
    rounds: int = 1
    features: LfbeConfig = FEATURES
    train_mix: MixRecipe = replace(MIX, speed=(0.9, 1.1))
    eval_mix: MixRecipe = MIX
    seeds: tuple[int, ...] = (0,)
    embedding: int = 48
    prediction: int = 96
    joint: int = 128
    conformer_rate: float | None = None
    illustrative: bool = True

    @property
    def control_stage(self) -> TransducerTraining:
        """As many steps as stages 1 and 2 together, at stage 1's rate."""
        return replace(self.stage_one, name="control", steps=self.stage_one.steps + self.stage_two.steps)

    def encoder(self, name: str) -> EncoderConfig:
        """The configuration of an encoder of ``ENCODERS``."""
        encoders: dict[str, EncoderConfig] = {"lstm": self.lstm, "conformer": self.conformer}
        return encoders[name]

    def first_stage(self, encoder: str) -> TransducerTraining:
        """The float stage of an encoder."""
        if encoder == "conformer" and self.conformer_rate is not None:
            return replace(self.float_stage, learning_rate=self.conformer_rate)
        return self.float_stage


def _profile(
    name: str, steps: tuple[int, int, int], masks: int = 0, batch: int = 16, rate: float = 3e-3, **rest: Any
) -> RecognitionProfile:
    float_stage = TransducerTraining("float", steps[0], learning_rate=rate, batch=batch, masks=masks)
    # A later stage starts from a trained model: it warms up shortly and is not to forget.
    later = replace(float_stage, warmup_steps=20, weight_decay=0.0)
    return RecognitionProfile(
        name,
        float_stage,
        replace(later, name="stage 1", steps=steps[1], learning_rate=1e-3),
        replace(later, name="stage 2", steps=steps[2], learning_rate=2e-4),
        **rest,
    )


PROFILES = {
    # Learns next to nothing: shows the path in half a minute.
    "tiny": _profile("tiny", (60, 20, 10), sequences=(200, 40, 40), word_count=(1, 2), sentences=SENTENCES["tiny"]),
    # So short a training wants rates of its own: an LSTM emits nothing for long at 3e-3, a Conformer is better below.
    "smoke": _profile("smoke", (1000, 60, 30), rate=5e-3, conformer_rate=2e-3, sequences=(1200, 120, 120),
                      word_count=(1, 2), sentences=SENTENCES["smoke"]),
    "default": _profile("default", (1200, 160, 60), sequences=(3000, 300, 400)),
    "full": _profile("full", (2500, 400, 150), sequences=(5000, 400, 1000), sentences=SENTENCES["full"],
                     seeds=(0, 1, 2), illustrative=False),
}  # fmt: skip
# Characters of read sentences need more of everything; ``full`` is for a GPU and train-clean-100.
_LARGE = {"embedding": 64, "prediction": 320, "joint": 320}
LIBRISPEECH = {
    "smoke": _profile("smoke", (300, 60, 30)),
    "default": _profile("default", (20_000, 4000, 2000), masks=1, lstm=LstmEncoderConfig(hidden=320, layers=3),
                        conformer=ConformerConfig(width=144, blocks=6, left_context=32), **_LARGE),
    "full": _profile("full", (100_000, 20_000, 10_000), masks=2, batch=32, seeds=(0, 1, 2), illustrative=False,
                     lstm=LstmEncoderConfig(hidden=640, layers=5),
                     conformer=ConformerConfig(width=256, blocks=12, left_context=48), **_LARGE),
}  # fmt: skip


@dataclass(frozen=True)
class RecognitionSpec:
    """Everything a result depends on, except the code version. ``words``: of the task ``commands``."""

    task: str
    data: str
    profile: RecognitionProfile
    words: tuple[str, ...] = ()
    data_seed: int = 0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; choose one of {', '.join(TASKS)}")
        if bool(self.data) == (self.task == "sentences"):
            wants = "makes its own data" if self.data else "needs a folder of recordings"
            raise ValueError(f"the task {self.task!r} {wants}, got data={self.data!r}")
        if self.words and self.task != "commands":
            raise ValueError(f"words are chosen for the task 'commands' only, got {self.words} for {self.task!r}")


@dataclass(frozen=True)
class RecognitionSystem:
    """One model of the comparison; ``plan`` where weights are quantized."""

    kind: str
    seed: int = 0
    encoder: str = "lstm"
    plan: RecognizerPlan | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown system {self.kind!r}; choose one of {KINDS}")
        if self.encoder not in ENCODERS:
            raise ValueError(f"unknown encoder {self.encoder!r}; choose one of {ENCODERS}")
        if (self.plan is None) != (self.kind not in QUANTIZED):
            raise ValueError(f"a {self.kind} system {'needs a' if self.plan is None else 'has no'} plan of widths")

    @property
    def label(self) -> str:
        """Name in tables and legends, without seed and encoder."""
        if self.plan is None:
            return {"float": "float", "control": "float, equal steps"}[self.kind]
        stage = {"stage_one": "stage 1", "stage_two": "stage 2", "post_training": "post-training"}[self.kind]
        plans = {w.bits: w.method for w in (self.plan.weights, *(w for _, w in self.plan.exceptions))}
        widths = "/".join(map(str, sorted(plans, reverse=True)))
        return f"{stage}, {'mixed ' if len(plans) > 1 else ''}{widths}-bit {plans[min(plans)]}"


def open_recognition(
    root: str | Path,
    task: str = "commands",
    data: str = "",
    words: tuple[str, ...] = (),
    profile: str | RecognitionProfile = "default",
    progress: bool = True,
    workers: int = 2,
) -> Recognition:
    """An experiment of a task on ``data`` (a folder of words, or LibriSpeech's), opened and checked.

    ``words``: those to recognise in the task ``commands``; without, all that are recorded often enough.

    Raises:
        ValueError, FileNotFoundError: an unknown task or profile, or a corpus that cannot serve.
        PermissionError: ``root`` cannot be written.
    """
    if isinstance(profile, str):
        profiles = LIBRISPEECH if task == "librispeech" else PROFILES
        if profile not in profiles:
            raise ValueError(f"unknown profile {profile!r}; choose one of {sorted(profiles)}")
        profile = profiles[profile]
    spec = RecognitionSpec(task, data, profile, tuple(sorted(words)))
    if task == "commands" and not words:
        spec = replace(spec, words=usual_words(open_corpus(data)))
    recognition = Recognition(spec, Path(root), progress, workers)
    recognition.corpus  # noqa: B018 (opened now: bad corpora are refused before any work)
    return recognition


@dataclass
class Recognition:
    """The artifacts of a spec under ``root``; everything is made when it is first asked for."""

    spec: RecognitionSpec
    root: Path
    progress: bool = True
    workers: int = 2
    device: str = "auto"
    _models: dict[RecognitionSystem, Model] = field(default_factory=dict)
    _banks: dict[str, UtteranceBank] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        check_writable(self.root)
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    # ------------------------------------------------------------------ data

    @cached_property
    def corpus(self) -> TranscribedCorpus:
        """The utterances of all splits, speakers disjoint."""
        spec, p = self.spec, self.spec.profile
        if spec.task == "librispeech":
            return open_librispeech(spec.data)
        if spec.task == "sentences":
            return spoken_sentences(p.sentences, self.root / "corpora", self.workers, self.progress)
        recipe = SequenceRecipe(spec.words, *p.sequences, word_count=p.word_count)
        return command_sequences(open_corpus(spec.data), recipe, spec.data_seed)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Words, but characters of LibriSpeech; from the training texts (commands: the words that were asked for)."""
        if self.spec.task == "commands":
            return Vocabulary(self.spec.words)
        texts = self.corpus.texts("train")
        return character_vocabulary(texts) if self.spec.task == "librispeech" else word_vocabulary(texts)

    def bank(self, split: str) -> UtteranceBank:
        """Features of a split."""
        if split not in self._banks:
            p, training = self.spec.profile, split == "train"
            self._banks[split] = build_utterances(
                self.corpus,
                split,
                p.train_mix if training else p.eval_mix,
                p.features,
                DATA_SEED[split] + 10 * self.spec.data_seed,
                rounds=p.rounds if training else 1,
                cache_dir=self.root / "banks",
                progress=self.progress,
            )
        return self._banks[split]

    def sampler(self, encoder: str, seed: int, split: str = "train") -> UtteranceSampler:
        """Batches of a split's utterances that can be trained on, for an encoder and a seed."""
        shape = Transducer(self.model_config(encoder))
        return UtteranceSampler(self.bank(split), self.vocabulary, shape, seed, self.device)

    def left_out(self) -> dict[str, list[str]]:
        """What was not used, with the reason: when the corpus was opened, of each split's audio, and in training."""
        lists = {"corpus": [f"{item.path}: {item.reason}" for item in self.corpus.skipped]}
        for split in ("train", "validation", "test"):
            lists[split] = list(self.bank(split).skipped)
        lists["training"] = list(self.sampler(ENCODERS[0], 0).skipped)
        return lists

    # ---------------------------------------------------------------- models

    def model_config(self, encoder: str) -> TransducerConfig:
        """The shape of the transducer with an encoder."""
        p = self.spec.profile
        return TransducerConfig(self.vocabulary.size, p.encoder(encoder), p.embedding, p.prediction, p.joint)

    def model(self, system: RecognitionSystem) -> Model:
        """The trained (or post-training quantized) model, from disk if it was made before."""
        if system not in self._models:
            self._models[system] = kept(
                self.folder(system) / "model.safetensors",
                self._title(system),
                lambda file: load_recognizer(file, self.model_config(system.encoder))[0].to(self.device),
                lambda file: self._train(system, file),
            )
        return self._models[system]

    def has_model(self, system: RecognitionSystem) -> bool:
        """Whether the model of a system is on disk already: asking for it then costs no training."""
        return (self.folder(system) / "model.safetensors").is_file()

    def history(self, system: RecognitionSystem) -> dict[str, list[float]]:
        """Loss over the steps of a system's own stage."""
        self.model(system)
        return json.loads((self.folder(system) / "history.json").read_text())

    def _train(self, system: RecognitionSystem, file: Path) -> None:
        folder = file.parent
        folder.mkdir(parents=True, exist_ok=True)
        # What an earlier model left behind, one that was deleted to be trained again, would be stale.
        for old in (*folder.glob("recognised-*"), *folder.glob("equality-*"), folder / "program.safetensors"):
            old.unlink(missing_ok=True)
        write_json(folder / "config.json", self.identity(system))
        checkpoint = usable_checkpoint(folder / "checkpoint.safetensors")
        model, history = self._make(system, checkpoint)
        write_json(folder / "history.json", history)
        save_recognizer(file, model.eval(), self.vocabulary, {"system": system.label, "seed": system.seed})
        checkpoint.unlink(missing_ok=True)

    def _make(self, system: RecognitionSystem, checkpoint: Path) -> tuple[Model, dict[str, list[float]]]:
        p, sampler = self.spec.profile, self.sampler(system.encoder, system.seed)

        def train(model: Model, stage: TransducerTraining, **rest: Callable) -> tuple[Model, dict[str, list[float]]]:
            model.to(self.device)
            return model, train_transducer(model, sampler, stage, checkpoint, self.progress, **rest)

        if system.kind == "float":
            model = Transducer(self.model_config(system.encoder), system.seed)
            model.set_normalisation(sampler.mean, sampler.std)
            return train(model, p.first_stage(system.encoder))
        start = copy.deepcopy(self.model(self.parent(system)))
        if system.kind == "control":
            return train(start, p.control_stage)
        if system.kind == "stage_two":
            assert isinstance(start, SoftRecognizer)
            return train(self._integer(start, sampler), p.stage_two)
        assert isinstance(start, Transducer) and system.plan is not None
        soft = SoftRecognizer(start, system.plan).to(self.device)
        if system.kind == "stage_one":
            return train(soft, p.stage_one, before_step=soft.anneal, penalty=soft.penalty)
        return self._integer(soft, sampler), {"step": [], "loss": []}

    def _integer(self, soft: SoftRecognizer, sampler: UtteranceSampler) -> IntegerRecognizer:
        """Everything quantized; the scales from training utterances, drawn by the sampler's seed."""
        among = np.sort(np.fromiter(sampler.labels, np.int64))
        rng = np.random.default_rng([sampler.seed, 3])
        chosen = rng.choice(among, min(CALIBRATION_UTTERANCES, len(among)), replace=False)
        frames = [torch.from_numpy(sampler.bank.utterance(i)) for i in chosen]
        return IntegerRecognizer(soft.eval(), frames).to(self.device)

    def parent(self, system: RecognitionSystem) -> RecognitionSystem:
        """The system that this one starts from."""
        if system.kind == "stage_two":
            return replace(system, kind="stage_one")
        return replace(system, kind="float", plan=None)

    # ------------------------------------------------------------ identities

    def identity(self, system: RecognitionSystem) -> dict[str, Any]:
        """All that the model of a system depends on, as JSON values."""
        p = self.spec.profile
        owns: dict[str, dict[str, Any]] = {
            "float": {
                "stage": asdict(p.first_stage(system.encoder)),
                "model": self.model_config(system.encoder).to_json(),
            },
            "control": {"stage": asdict(p.control_stage)},
            "stage_one": {"stage": asdict(p.stage_one)},
            "stage_two": {"stage": asdict(p.stage_two), "calibration": CALIBRATION_UTTERANCES},
            "post_training": {"calibration": CALIBRATION_UTTERANCES},
        }
        own = owns[system.kind]
        if system.plan is not None:
            methods = {system.plan.weights.method, *(w.method for _, w in system.plan.exceptions)}
            own["plan"] = system.plan.to_json()
            own["sources"] = {method: SOURCES[method] for method in sorted(methods) if method in SOURCES}
        base: dict[str, Any] = {"kind": system.kind, "seed": system.seed, "own": own, "version": ARTIFACT_VERSION}
        # tanh and exp differ by an ulp between devices: a model lives on the kind of device that made it.
        base["device"] = torch.device(self.device).type
        if system.kind == "float":
            base |= {"bank": self.bank("train").source_hash, "vocabulary": self.vocabulary.to_json()}
        else:
            base["parent"] = self.identity(self.parent(system))
        return base

    def folder(self, system: RecognitionSystem) -> Path:
        """Folder of a system's artifacts, named by encoder, kind and content hash."""
        text = json.dumps(self.identity(system), sort_keys=True)
        return self.root / f"{system.encoder}-{system.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _title(self, system: RecognitionSystem) -> str:
        return f"{system.encoder}, {system.label}, seed {system.seed}"

    # ------------------------------------------------------------ evaluation

    def recognised(self, system: RecognitionSystem, split: str, width: int = 1) -> Recognised:
        """What a system made of a split, searched greedily or by a beam of ``width`` (utterance by utterance: slower).

        Raises:
            ValueError: width below 1.
        """
        check_width(width)
        bank, features = self.bank(split), self.spec.profile.features

        def make(file: Path) -> None:
            model = self.model(system)
            listener: Any = model.as_float() if isinstance(model, SoftRecognizer) else model
            if width == 1:
                heard = recognise_together(listener, bank, self.vocabulary, features)
            else:
                heard = recognise_bank(listener, bank, self.vocabulary, features, width)
            write_json(file, heard.to_json())

        beam = f"-beam-{width}" if width > 1 else ""
        file = self.folder(system) / f"recognised-{split}-{bank.source_hash[:12]}{beam}.json"
        return kept(file, self._title(system), lambda path: Recognised.from_json(json.loads(path.read_text())), make)

    def has_program(self, system: RecognitionSystem) -> bool:
        """Whether a system is an integer program: everything quantized, LSTM encoder."""
        return system.kind in ("stage_two", "post_training") and system.encoder == "lstm"

    def program(self, system: RecognitionSystem) -> Recognizer:
        """The integer program of a system, see :meth:`has_program`.

        Raises:
            LoweringError: the system has a float remainder, or a bound cannot be proven.
        """

        def make(file: Path) -> None:
            model = self.model(system)
            if not isinstance(model, IntegerRecognizer):
                raise LoweringError(f"{self._title(system)} is not quantized whole: it has no integer program")
            features = self.spec.profile.features
            metadata = {
                "features": asdict(features),
                "vocabulary": self.vocabulary.to_json(),
                "system": system.label,
                "seed": system.seed,
            }
            lower_recognizer(model, features.frame_seconds, metadata).save(file)

        return kept(self.folder(system) / "program.safetensors", self._title(system), load_program, make)

    def program_equality(self, system: RecognitionSystem, split: str = "test") -> dict[str, int]:
        """Utterances that the program recognises on its packed kernels (``compared``), and those where it gives other
        labels than training's own arithmetic (``different``)."""
        bank = self.bank(split)

        def make() -> dict[str, int]:
            engine = Packed(self.program(system))
            heard = [self.vocabulary.decode(transcribe(engine, bank.utterance(i))) for i in range(len(bank))]
            trained = self.recognised(system, split).hypotheses
            return {"compared": len(heard), "different": sum(a != b for a, b in zip(heard, trained, strict=True))}

        file = self.folder(system) / f"equality-{split}-{bank.source_hash[:12]}.json"
        return kept_json(file, self._title(system), make)

    def packed_bytes(self, system: RecognitionSystem) -> int:
        """Bytes that a device stores; of the float systems, four for every parameter."""
        if self.has_program(system):
            return sum(map(len, recognizer_parts(self.program(system)).values()))
        model = self.model(system)
        if not isinstance(model, Transducer):
            return sum(model.packed_bytes().values())
        return 4 * sum(parameter.numel() for parameter in model.parameters())
