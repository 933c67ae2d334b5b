"""One experiment: a corpus, a keyword, a profile; every model and score is an artifact that is made once.

    corpus -> feature banks -> float -> stage 1 -> stage 2 -> program -> scores -> operating points

Artifacts live under ``root`` in folders named by a hash of everything they depend on (data, recipes, stage, seed,
parents), so notebooks and commands share them, finished work is not repeated, and a changed setting is another folder.
Thresholds are chosen on validation scores; the test split is scored once per system and cached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from kwsbench.arithmetic.codebook import check_bits
from kwsbench.arithmetic.fixedpoint import REQUANTIZE
from kwsbench.data.batches import FeatureBank, LabelRule, bank_path, build_bank
from kwsbench.data.corpora import NOISE, Corpus, open_corpus
from kwsbench.data.mixing import MixRecipe, training_recipe
from kwsbench.data.synth import profile_recipe, synthesize
from kwsbench.features.lfbe import LfbeConfig
from kwsbench.files import check_writable, locked, set_aside, write_json
from kwsbench.integer import run as integer_run
from kwsbench.integer.lower import lower
from kwsbench.integer.program import Program, load_program
from kwsbench.metrics.det import DetCurve, OperatingPoint, det_curve, evaluate, operating_point
from kwsbench.metrics.events import DetectorConfig
from kwsbench.metrics.scores import Scores, keyword_scores
from kwsbench.models.feedforward import Spotter, SpotterConfig
from kwsbench.quantizers import SOURCES
from kwsbench.quantizers.annealing import AnnealingRecord
from kwsbench.quantizers.attach import QuantizedSpotter, WeightPlan, stage_one_plan, stage_two_plan
from kwsbench.training import stages
from kwsbench.training.checkpoints import CheckpointError, OtherModelError, load_model, read_tensors, save_model
from kwsbench.training.loop import StageConfig
from kwsbench.training.sampler import SamplerConfig, WindowSampler

T = TypeVar("T")

KINDS = ("float", "control", "stage_one", "stage_two", "post_training")
# Part of every artifact's identity: raise it when the same settings would train or compute something else.
ARTIFACT_VERSION = 3
SPECS = "experiments"  # folder under ``root``: the specs of all experiments that were opened there
ANNEALING = "annealing.npz"  # in the folder of a stage 1 whose centroids anneal
# Seeds of the evaluation mixtures: fixed, so that every system and every training seed meets the same audio.
MIX_SEED = {"train": 1, "validation": 2, "test": 3}


@dataclass(frozen=True)
class Profile:
    """How much work: steps per stage, training mixtures, seeds and widths of the default sweep.

    ``mixtures`` is about how many mixtures the training bank holds: a small corpus is mixed in several rounds (8 at
    most), a large one once, so that memory stays bounded by the corpus.
    """

    name: str
    float_stage: StageConfig
    stage_one: StageConfig
    stage_two: StageConfig
    mixtures: int = 20000
    seeds: tuple[int, ...] = (0,)
    bits: tuple[int, ...] = (8, 5, 4, 2, 1)
    sampler: SamplerConfig = SamplerConfig()
    illustrative: bool = True

    @property
    def control_stage(self) -> StageConfig:
        """As many steps as stages 1 and 2 together, at stage 1's rate."""
        return replace(self.stage_one, name="control", steps=self.stage_one.steps + self.stage_two.steps)


def _profile(name: str, steps: tuple[int, int, int], **rest: Any) -> Profile:
    a, b, c = steps
    return Profile(
        name,
        StageConfig("float", a, learning_rate=2e-3, weight_decay=1e-2, mine_every=max(50, a // 12)),
        StageConfig("stage 1", b, learning_rate=1e-3, mine_every=max(50, b // 6)),
        StageConfig("stage 2", c, learning_rate=1e-4, mine_every=max(50, c // 4)),
        **rest,
    )


PROFILES = {
    "smoke": _profile("smoke", (120, 60, 40), mixtures=2000, bits=(5, 1), sampler=SamplerConfig(batch=256)),
    "default": _profile("default", (1200, 500, 250), mixtures=8000, bits=(8, 5, 2, 1)),
    "full": _profile("full", (4000, 2000, 1000), mixtures=30000, seeds=(0, 1, 2), illustrative=False),
}


@dataclass(frozen=True)
class ExperimentSpec:
    """Everything a result depends on, except the code version."""

    data: str
    keywords: tuple[str, ...]
    profile: Profile
    train_mix: MixRecipe = training_recipe(MixRecipe())
    eval_mix: MixRecipe = MixRecipe()
    features: LfbeConfig = LfbeConfig()
    labels: LabelRule = LabelRule()
    detector: DetectorConfig = DetectorConfig()
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    stacked_frames: int = 31
    batchnorm: str = "unfolded"
    rounding: str = "single"
    frr: float = 0.05  # operating point, on validation

    def __post_init__(self) -> None:
        if self.batchnorm not in ("unfolded", "folded"):
            raise ValueError(f"batchnorm must be unfolded or folded, got {self.batchnorm!r}")
        if self.rounding not in REQUANTIZE:
            raise ValueError(f"rounding must be one of {sorted(REQUANTIZE)}, got {self.rounding!r}")
        if not 0 <= self.frr < 1:
            raise ValueError(f"frr must lie in [0, 1), got {self.frr}")

    @property
    def model(self) -> SpotterConfig:
        return SpotterConfig(self.keywords, self.features.n_mels, self.stacked_frames, self.hidden)


def open_experiment(
    root: str | Path,
    data: str = "",
    keyword: str = "computer",
    profile: str = "default",
    batchnorm: str = "unfolded",
    progress: bool = True,
    workers: int = 2,
) -> Experiment:
    """An experiment on recordings (``data``: a corpus folder) or, with ``data=""``, on the embedded synthetic corpus.

    Recordings are tested at SNR 10 to 30 dB (they bring noise of their own), synthetic speech at 5 to 25 dB.

    Raises:
        ValueError, FileNotFoundError: an unknown profile, or a corpus that cannot serve (see data.corpora).
        PermissionError: ``root`` cannot be written.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; choose one of {sorted(PROFILES)}")
    root = Path(root)
    check_writable(root)
    if data:
        train_mix = training_recipe(MixRecipe(snr_db=(5.0, 30.0)))
        eval_mix = MixRecipe(snr_db=(10.0, 30.0))
    else:
        recipe = profile_recipe(profile, keyword)
        data = str(synthesize(recipe, root / "corpora", workers, progress).root)
        train_mix, eval_mix = training_recipe(MixRecipe()), MixRecipe()
    spec = ExperimentSpec(
        data, (keyword,), PROFILES[profile], train_mix=train_mix, eval_mix=eval_mix, batchnorm=batchnorm
    )
    experiment = Experiment(spec, root, progress, workers)
    experiment.corpus  # noqa: B018 (opened now: bad corpora are refused before any work)
    experiment.remember()
    return experiment


@dataclass(frozen=True)
class System:
    """One model of the comparison."""

    kind: str
    seed: int = 0
    weights: WeightPlan | None = None
    batchnorm: str | None = None  # stage_two and post_training; None: the experiment's own
    layer_bits: tuple[int, ...] | None = None  # the width of each layer, instead of ``weights.bits``
    quantize_every: int = 1  # T of stage 1 (``training.loop.StageConfig``), and of the stage 1 behind a stage 2

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown system {self.kind!r}; choose one of {KINDS}")
        if (self.weights is None) != (self.kind in ("float", "control")):
            raise ValueError(f"a {self.kind} system {'needs' if self.weights is None else 'has no'} weight plan")
        if self.layer_bits is not None:
            if self.weights is None:
                raise ValueError(f"a {self.kind} system has no weight plan, so no width per layer either")
            for bits in self.layer_bits:
                check_bits(bits)
        if self.quantize_every < 1 or (self.quantize_every != 1 and self.kind not in ("stage_one", "stage_two")):
            raise ValueError(
                f"quantize_every is a number of steps from 1, for stage_one and stage_two alone; got "
                f"{self.quantize_every} for {self.kind}"
            )

    @property
    def label(self) -> str:
        """Name in tables and legends, without the seed."""
        if self.weights is None:
            return {"float": "float", "control": "float, equal steps"}[self.kind]
        w = self.weights
        form = "" if self.batchnorm is None else f", {self.batchnorm}"
        stage = {"stage_one": "stage 1", "stage_two": "stage 2", "post_training": "post-training"}[self.kind]
        width = w.bits if self.layer_bits is None else "/".join(map(str, self.layer_bits))
        rows = " per row" if w.per_channel else ""
        often = "" if self.quantize_every == 1 else f", every {self.quantize_every} steps"
        return f"{stage}, {width}-bit {w.method}{rows}{form}{often}"

    @property
    def layer_weights(self) -> dict[int, WeightPlan]:
        """The plan of each layer that has a width of its own."""
        return (
            {}
            if self.weights is None
            else {i: replace(self.weights, bits=b) for i, b in enumerate(self.layer_bits or ())}
        )


@dataclass
class Experiment:
    """The artifacts of a spec under ``root``; everything is made when it is first asked for."""

    spec: ExperimentSpec
    root: Path
    progress: bool = True
    workers: int = 2
    device: str = "auto"
    _models: dict[System, Spotter | QuantizedSpotter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        check_writable(self.root)
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def remember(self) -> None:
        """Leave the spec under ``root/experiments``: who finds artifacts there can tell what they were made of.

        A corpus under ``root`` is named relative to it, so that the folder may be moved as a whole.
        """
        spec, data, root = asdict(self.spec), Path(self.spec.data).resolve(), self.root.resolve()
        spec["data"] = data.relative_to(root).as_posix() if data.is_relative_to(root) else str(data)
        name = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
        path = self.root / SPECS / f"{name}.json"
        if not path.is_file():
            write_json(path, spec)

    # ------------------------------------------------------------------ data

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus, checked: the keywords are there in every split, no speaker is shared."""
        return open_corpus(self.spec.data, self.spec.keywords)

    @property
    def rounds(self) -> int:
        """How often each training clip is mixed."""
        clips = sum(clip.label != NOISE for clip in self.corpus.select(split="train"))
        return int(np.clip(round(self.spec.profile.mixtures / max(1, clips)), 1, 8))

    def bank(self, split: str) -> FeatureBank:
        """Features of a split; the training split in several rounds of mixing, the others in one."""
        if split not in self._banks:
            self._banks[split] = build_bank(
                self.corpus, split, workers=self.workers, progress=self.progress, **self._bank_settings(split)
            )
        return self._banks[split]

    def has_bank(self, split: str) -> bool:
        """Whether the features of a split are on disk already: asking for them then mixes nothing."""
        return bank_path(self.corpus, split, **self._bank_settings(split)).is_file()

    def _bank_settings(self, split: str) -> dict[str, Any]:
        training = split == "train"
        return {
            "keywords": self.spec.keywords,
            "recipe": self.spec.train_mix if training else self.spec.eval_mix,
            "features": self.spec.features,
            "rule": self.spec.labels,
            "seed": MIX_SEED[split],
            "rounds": self.rounds if training else 1,
            "random_phase": training,
            "cache_dir": self.root / "banks",
        }

    @cached_property
    def _banks(self) -> dict[str, FeatureBank]:
        return {}

    @cached_property
    def _samplers(self) -> dict[int, WindowSampler]:
        return {}

    def sampler(self, seed: int) -> WindowSampler:
        """Training windows for a seed."""
        if seed not in self._samplers:
            self._samplers.clear()  # each holds a copy of the features; seeds are worked on one after the other
            self._samplers[seed] = WindowSampler(
                self.bank("train"), self.spec.stacked_frames, self.spec.profile.sampler, seed, self.device
            )
        return self._samplers[seed]

    # ---------------------------------------------------------------- models

    def model(self, system: System) -> Spotter | QuantizedSpotter:
        """The trained (or post-training quantized) model, from disk if it was made before."""
        if system not in self._models:
            self._models[system] = self._kept(
                system,
                "model.safetensors",
                lambda file: load_model(file, self.spec.model).to(self.device),
                lambda file: self._train(system, file),
            )
        return self._models[system]

    def _kept(self, system: System, name: str, load: Callable[[Path], T], make: Callable[[Path], None]) -> T:
        """An artifact of a system from its file; made first, by one process at a time, if it is not there.

        A file that cannot be read is set aside as ``<name>.corrupt`` and made again, with a line that says so.
        """
        file = self.folder(system) / name
        if file.is_file():
            try:
                return load(file)
            except OtherModelError:
                raise  # somebody put it there: not ours to move
            except ValueError as error:
                set_aside(file, error)
        with locked(file.parent, f"{system.label}, seed {system.seed}"):
            if not file.is_file():  # another process may have made it meanwhile
                make(file)
        return load(file)

    def _train(self, system: System, file: Path) -> None:
        folder = file.parent
        folder.mkdir(parents=True, exist_ok=True)
        # What an earlier model left behind, one that was deleted to be trained again, would be stale.
        stale = (folder / "program.safetensors", folder / ANNEALING)
        for old in (*folder.glob("scores-*"), *folder.glob("equality-*"), *stale):
            old.unlink(missing_ok=True)
        write_json(folder / "config.json", self.identity(system))
        checkpoint = folder / "checkpoint.safetensors"
        if checkpoint.is_file():
            try:
                read_tensors(checkpoint)
            except CheckpointError as error:
                set_aside(checkpoint, error)
        model, history, annealing = self._make(system, checkpoint)
        write_json(folder / "history.json", history)
        if annealing is not None:
            annealing.save(folder / ANNEALING)
        save_model(file, model.eval(), {"system": system.label, "seed": system.seed})
        checkpoint.unlink(missing_ok=True)

    def has_model(self, system: System) -> bool:
        """Whether the model of a system is on disk already: asking for it then costs no training."""
        return (self.folder(system) / "model.safetensors").is_file()

    def history(self, system: System) -> dict[str, list[float]]:
        """Loss and error over the steps of a system's own stage."""
        self.model(system)
        return json.loads((self.folder(system) / "history.json").read_text())

    def annealing(self, system: System) -> AnnealingRecord | None:
        """How the centroids of a system's own stage annealed; None where nothing annealed, or nobody watched."""
        self.model(system)
        file = self.folder(system) / ANNEALING
        return AnnealingRecord.load(file) if file.is_file() else None

    def program(self, system: System) -> Program:
        """The integer program of a stage-2 or post-training system."""

        def make(file: Path) -> None:
            model = self.model(system)
            assert isinstance(model, QuantizedSpotter)
            metadata = {
                "features": asdict(self.spec.features),
                "system": system.label,
                "seed": system.seed,
                "data": self.bank("train").source_hash,
            }
            lower(model, self.spec.features.frame_seconds, metadata).save(file)

        return self._kept(system, "program.safetensors", load_program, make)

    def _make(
        self, system: System, checkpoint: Path
    ) -> tuple[Spotter | QuantizedSpotter, stages.History, AnnealingRecord | None]:
        p, sampler = self.spec.profile, self.sampler(system.seed)
        if system.kind == "float":
            made = stages.train_float(self.spec.model, sampler, p.float_stage, system.seed, checkpoint, self.progress)
            return *made, None
        start = self.model(self.parent(system))
        if system.kind == "control":
            assert isinstance(start, Spotter)
            return *stages.train_control(start, sampler, p.control_stage, checkpoint, self.progress), None
        assert system.weights is not None
        batchnorm = system.batchnorm or self.spec.batchnorm
        plan = stage_two_plan(system.weights, batchnorm, self.spec.rounding, system.layer_weights)
        if system.kind == "stage_two":
            assert isinstance(start, QuantizedSpotter)
            return *stages.train_stage_two(start, plan, sampler, p.stage_two, checkpoint, self.progress), None
        assert isinstance(start, Spotter)
        if system.kind == "stage_one":
            plan = stage_one_plan(system.weights, system.layer_weights)
            return stages.train_stage_one(start, plan, sampler, self._stage_one(system), checkpoint, self.progress)
        return stages.post_training(start, plan, sampler), {}, None

    def _stage_one(self, system: System) -> StageConfig:
        stage = self.spec.profile.stage_one
        return stage if system.quantize_every == 1 else replace(stage, quantize_every=system.quantize_every)

    def parent(self, system: System) -> System:
        """The system that this one starts from."""
        if system.kind == "stage_two":
            return replace(system, kind="stage_one", batchnorm=None)
        return System("float", system.seed)

    # ------------------------------------------------------------ identities

    def identity(self, system: System) -> dict[str, Any]:
        """All that the model of a system depends on, as JSON values."""
        p = self.spec.profile
        own: dict[str, Any] = {
            "float": {"stage": asdict(p.float_stage), "model": self.spec.model.to_json()},
            "control": {"stage": asdict(p.control_stage)},
            "stage_one": {"stage": asdict(self._stage_one(system))},
            "stage_two": {"stage": asdict(p.stage_two)},
            "post_training": {},
        }[system.kind]
        if system.weights is not None:
            own["weights"] = vars(system.weights) | (
                {"source": SOURCES[system.weights.method]} if system.weights.method in SOURCES else {}
            )
        if system.layer_bits is not None:
            layers = len(self.spec.model.sizes) - 1
            if len(system.layer_bits) != layers:
                raise ValueError(f"this model has {layers} layers, got {len(system.layer_bits)} widths")
            own["layer_bits"] = list(system.layer_bits)
        if system.kind in ("stage_two", "post_training"):
            own |= {"batchnorm": system.batchnorm or self.spec.batchnorm, "rounding": self.spec.rounding}
        base: dict[str, Any] = {"kind": system.kind, "seed": system.seed, "own": own, "version": ARTIFACT_VERSION}
        # tanh and exp differ by an ulp between devices: a model lives on the kind of device that made it.
        base["device"] = torch.device(self.device).type
        if system.kind == "float":
            base |= {"bank": self.bank("train").source_hash, "sampler": asdict(p.sampler)}
        else:
            base["parent"] = self.identity(self.parent(system))
        return base

    def folder(self, system: System) -> Path:
        """Folder of a system's artifacts, named by kind and content hash."""
        text = json.dumps(self.identity(system), sort_keys=True)
        return self.root / f"{system.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    # ------------------------------------------------------------ evaluation

    def scores(self, system: System, split: str, keyword: str | None = None, backend: str = "neon_sdot") -> Scores:
        """Frame scores of a split, streamed from a fresh state per segment; integer systems by their program."""
        bank = self.bank(split)
        keyword = keyword or self.spec.keywords[0]
        index = self.spec.keywords.index(keyword)
        name = hashlib.sha256(f"{bank.source_hash} {keyword} {backend}".encode()).hexdigest()[:12]

        def make(file: Path) -> None:
            logits = self._logits(system, bank, backend)
            make_scores(bank, keyword_scores(logits)[:, index], system.label).save(file)

        return self._kept(system, f"scores-{split}-{name}.npz", Scores.load, make)

    def _logits(self, system: System, bank: FeatureBank, backend: str) -> np.ndarray:
        model = self.model(system)
        if isinstance(model, QuantizedSpotter) and model.integer:
            program = self.program(system)
            return np.concatenate(
                [integer_run.run(program, bank.segment(i), backend) for i in range(len(bank.clip_paths))]
            )
        return float_logits(model, bank)

    def curve(self, system: System, split: str = "test", keyword: str | None = None) -> DetCurve:
        """DET curve of a system on a split."""
        keyword = keyword or self.spec.keywords[0]
        return det_curve(self.scores(system, split, keyword), keyword, self.spec.detector)

    def threshold(self, system: System, keyword: str | None = None) -> float:
        """The threshold chosen on validation: the largest with FRR at most ``spec.frr``."""
        return operating_point(self.curve(system, "validation", keyword), self.spec.frr)

    def point(self, system: System, keyword: str | None = None) -> OperatingPoint:
        """The validation threshold applied to the test split."""
        keyword = keyword or self.spec.keywords[0]
        return evaluate(
            self.scores(system, "test", keyword), keyword, self.threshold(system, keyword), self.spec.detector
        )


@torch.no_grad()
def float_logits(model: Spotter | QuantizedSpotter, bank: FeatureBank) -> np.ndarray:
    """Logits float64 ``[total, K + 1]`` of a torch model over every segment of a bank."""
    # Quantizing the weights anew for every segment would take most of the time.
    model = model.as_float() if isinstance(model, QuantizedSpotter) else model.eval()
    device = model.mean.device
    out = []
    for i in range(len(bank.clip_paths)):
        frames = torch.as_tensor(bank.segment(i), device=device)[None]
        y, _ = model.step(frames, model.fresh(1))
        out.append(y[0].double().cpu().numpy())
    return np.concatenate(out)


def make_scores(bank: FeatureBank, values: np.ndarray, system: str) -> Scores:
    """Scores of one keyword over the segments of a bank."""
    return Scores(
        values.astype(np.float32),
        bank.offsets,
        bank.clip_labels,
        bank.clip_paths,
        bank.word_end_seconds,
        bank.frame_seconds,
        system,
    )
