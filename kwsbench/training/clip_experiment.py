"""Networks on one-second clips as an experiment: a corpus, a task, a profile; every model and score is made once.

    clips -> float -> stage 1 -> stage 2 -> integer program -> logits -> accuracy, FRR and FDR

Artifacts lie under ``root`` in folders named by a hash of all they depend on (clips, network, stages, plan, seed,
parents), as in experiment.py. Every choice is made on validation. The test clips are scored once per system and the
logits kept; those of integer systems come from the integer program on its Numba kernels, not from training's emulation,
and ``equality`` counts the values of every layer in which the two agree.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kwsbench.data.clips import ClipSet, ClipTask, check_task, clip_task, set_hash, synthetic_recipe, task_clips
from kwsbench.data.corpora import SPLITS, Corpus, open_corpus
from kwsbench.data.synth import synthesize
from kwsbench.files import check_writable, write_json
from kwsbench.integer import convolution_run
from kwsbench.integer.convolution import Convolutional, load_convolutional
from kwsbench.integer.lower_convolutional import lower_convolutional
from kwsbench.metrics.compare import design_effect, speaker_groups, wilson_interval
from kwsbench.metrics.det import OperatingPoint, det_curve, evaluate, operating_point
from kwsbench.metrics.events import DetectorConfig
from kwsbench.metrics.scores import Scores, keyword_scores, read_npz, write_npz
from kwsbench.models.convolutional import ConvNet
from kwsbench.models.handmade import BCResNet
from kwsbench.models.layers import Front, Network
from kwsbench.quantizers import budget
from kwsbench.quantizers.convolutional import CALIBRATION, ConvPlan, QuantizedConvNet, activated, elements, weighted
from kwsbench.quantizers.learned import LEARNERS, LearnedConvNet, budget_of_mean_bits, smallest_kb
from kwsbench.training.artifacts import kept, kept_json, usable_checkpoint
from kwsbench.training.checkpoints import CheckpointError, OtherModelError, read_tensors, write_tensors
from kwsbench.training.clips import AUGMENT_SEED, FEATURES_VERSION, ClipSampler, ClipSampling, ClipStage
from kwsbench.training.loop import train
from kwsbench.training.widths import WidthRecord, WidthWatch

KINDS = ("float", "control", "stage_one", "stage_two", "post_training")
QUANTIZED = ("stage_one", "stage_two", "post_training")
INTEGER = ("stage_two", "post_training")
# Part of every artifact's identity: raise it when the same settings would train or compute something else.
ARTIFACT_VERSION = 2
CALIBRATION_BATCHES = 4
SENSITIVITY_CLIPS = 256  # of validation, on which mixed widths are chosen
EQUALITY_CLIPS = 128  # whose every layer is compared, spread over the test set
EVALUATION_BATCH = 64
WIDTHS = "widths.npz"  # in the folder of a stage 1

Model = ConvNet | BCResNet | QuantizedConvNet
History = dict[str, list[float]]


@dataclass(frozen=True)
class ClipProfile:
    """How much training: the stages, how batches are drawn, seeds."""

    name: str
    float_stage: ClipStage
    stage_one: ClipStage
    stage_two: ClipStage
    sampling: ClipSampling = ClipSampling()
    seeds: tuple[int, ...] = (0,)
    illustrative: bool = True

    @property
    def control_stage(self) -> ClipStage:
        """As many steps as stages 1 and 2 together, at stage 1's rate."""
        return replace(self.stage_one, name="control", steps=self.stage_one.steps + self.stage_two.steps)


def _profile(name: str, steps: tuple[int, int, int], rate: float, sampling: ClipSampling, **rest: Any) -> ClipProfile:
    a, b, c = steps
    return ClipProfile(
        name,
        ClipStage("float", a, learning_rate=rate, weight_decay=1e-2, label_smoothing=0.1, warmup_steps=min(50, a // 4)),
        ClipStage("stage 1", b, learning_rate=3e-3, label_smoothing=0.1, warmup_steps=min(50, b // 4)),
        ClipStage("stage 2", c, learning_rate=3e-4, label_smoothing=0.1, warmup_steps=min(20, c // 4)),
        sampling,
        **rest,
    )


# Rates of the float stage: 300 steps on 1,136 clips of commands led to 47, 62 and 67% on validation (MFCC) and to 18,
# 34 and 47% (raw) at 3e-3, 1e-2 and 2e-2; a longer training wants less.
PROFILES = {
    "tiny": _profile("tiny", (24, 10, 6), 2e-2, ClipSampling(batch=16, rounds=1)),
    "smoke": _profile("smoke", (300, 100, 40), 2e-2, ClipSampling(batch=32, rounds=2)),
    "default": _profile("default", (1600, 300, 100), 1e-2, ClipSampling(batch=64, rounds=6), seeds=(0, 1, 2)),
    # The sibling's recipe (arXiv 2012.10138, its code): SGD, batch 100, 120 epochs of the 36,923 training clips that
    # Speech Commands v0.02 has of twelve classes; the later stages are ours.
    "full": replace(
        _profile("full", (44_400, 14_800, 7_400), 1e-2, ClipSampling(batch=100, rounds=16), seeds=(0, 1, 2),
                 illustrative=False),
        float_stage=ClipStage("float", 44_400, learning_rate=0.2, weight_decay=4e-5, label_smoothing=0.1, momentum=0.9,
                              warmup_steps=400, final_rate=0.0),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ClipSpec:
    """Everything a result depends on, except the code version. ``frr``: operating point of a keyword, on validation."""

    data: str
    task: ClipTask
    profile: ClipProfile
    frr: float = 0.05


@dataclass(frozen=True)
class LearnedPlan:
    """Widths that stage 1 learns (``learner``: "width" or "diffq"), all from ``start_bits`` on, under a budget of so
    many bits per weight and per value of activations in the mean; None: no budget."""

    learner: str
    weight_bits: float | None
    activation_bits: float | None
    start_bits: int = 8
    force: float = 10.0

    def __post_init__(self) -> None:
        if self.learner not in LEARNERS:
            raise ValueError(f"unknown learner {self.learner!r}; choose one of {sorted(LEARNERS)}")
        for what, bits in (("weight", self.weight_bits), ("activation", self.activation_bits)):
            if bits is not None and not 1 <= bits <= 8:
                raise ValueError(f"learned widths have a budget of 1 to 8 bits per {what} in the mean, got {bits:g}")

    def check(self, network: Network) -> None:
        """Raises ValueError for a budget that no widths of this network meet; the least is named, in bits."""
        try:
            budget_of_mean_bits(network, self.weight_bits, self.activation_bits, self.force).check(network)
        except ValueError as error:
            counts, least = elements(network), smallest_kb(network)
            values = {kind: sum(n for name, n in counts.items() if name.endswith(end))
                      for kind, end in (("weight", ".weight"), ("activation", ".output"))}  # fmt: skip
            told = ", ".join(f"{8000 * least[kind] / values[kind]:.2f} per {kind}" for kind in values)
            raise ValueError(
                f"a budget of {self.weight_bits} bits per weight and {self.activation_bits} per activation cannot be "
                f"reached by {network.notation or 'this network'}: the narrowest widths take {told}"
            ) from error

    def model(self, net: ConvNet) -> LearnedConvNet:
        """The network under this plan. Raises ValueError for a budget that no widths meet (the least is named)."""
        sizes = budget_of_mean_bits(net.network, self.weight_bits, self.activation_bits, self.force)
        return LearnedConvNet(net, self.learner, sizes, self.start_bits)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for identities."""
        return asdict(self)


@dataclass(frozen=True)
class BudgetPlan:
    """Every tensor at 2, 4 or 8 bits, as ``quantizers/budget.py`` chooses on validation clips, under limits of FLASH
    and of a stream's RAM that lie ``share`` of the way from what 2 bits throughout take to what 8 bits take."""

    share: float = 1 / 3
    method: str = "lsq"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"limits lie between 2 and 8 bits throughout, a share of 0..1; got {self.share}")

    def limits(self, network: Network) -> budget.Limits:
        """The limits of a network."""
        moments = budget.streaming_moments(network)
        tensors = [f"{n}.weight" for n in weighted(network)] + [f"{n}.output" for n in activated(network)]
        flash, ram = [], []
        for bits in (min(budget.WIDTHS), max(budget.WIDTHS)):
            widths = dict.fromkeys(tensors, bits)
            flash.append(budget.flash_bytes(network, widths, self.method))
            ram.append(budget.ram_bytes(moments, widths))
        between = [math.ceil(low + self.share * (high - low)) for low, high in (flash, ram)]
        return budget.Limits(between[0], between[1], moments)

    def choose(self, net: ConvNet, calibration: torch.Tensor, clips: torch.Tensor, labels: torch.Tensor) -> ConvPlan:
        """The widths for a float network."""
        losses = budget.sensitivities(net, calibration, clips, labels, self.method)
        return budget.choose(net.network, losses, self.limits(net.network), self.method).plan()

    def to_json(self) -> dict[str, Any]:
        """Plain values, for identities."""
        return {"budget": asdict(self), "clips": SENSITIVITY_CLIPS}


@dataclass(frozen=True)
class BroadcastNetwork:
    """BC-ResNet of ``models/handmade.py``, in float only: what stands for a :class:`Network` of it."""

    labels: tuple[str, ...]
    width: int = 8
    notation = ""
    front = BCResNet.front

    def to_json(self) -> dict[str, Any]:
        """Plain values, as those of a network."""
        return {"front": vars(self.front), "labels": list(self.labels), "bc_resnet": self.width, "notation": ""}


@dataclass(frozen=True)
class ClipSystem:
    """One model of the comparison. ``name`` is the network's in tables and changes nothing."""

    network: Network | BroadcastNetwork
    kind: str
    seed: int = 0
    plan: ConvPlan | LearnedPlan | BudgetPlan | None = None
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown system {self.kind!r}; choose one of {KINDS}")
        if (self.plan is None) != (self.kind not in QUANTIZED):
            raise ValueError(f"a {self.kind} system {'needs a' if self.plan is None else 'has no'} plan of widths")
        if self.plan is not None and not isinstance(self.network, Network):
            raise ValueError(f"{self.title} is there in float only")
        if isinstance(self.plan, ConvPlan) and self.plan.arithmetic != "float":
            raise ValueError("a system's plan is that of stage 1; stage 2 makes it exact by itself")
        if isinstance(self.plan, LearnedPlan) and self.kind == "post_training":
            raise ValueError("widths are learned in training: a post_training system has a plan of whole ones")

    @property
    def title(self) -> str:
        """The network's name."""
        return self.name or self.network.notation or "a network"


def open_clips(
    root: str | Path,
    data: str = "",
    task: str = "",
    profile: str | ClipProfile = "default",
    progress: bool = True,
    workers: int = 2,
) -> ClipExperiment:
    """An experiment on the clips of a corpus (``data``: a folder) or, with ``data=""``, of the embedded one.

    ``task``: see :func:`~kwsbench.data.clips.clip_task`; empty: "twelve", and "computer" on the embedded corpus.

    Raises:
        ValueError, FileNotFoundError: an unknown profile or task, or a corpus that cannot serve.
        PermissionError: ``root`` cannot be written.
    """
    if isinstance(profile, str):
        if profile not in PROFILES:
            raise ValueError(f"unknown profile {profile!r}; choose one of {sorted(PROFILES)}")
        profile = PROFILES[profile]
    root = Path(root)
    check_writable(root)
    chosen = clip_task(task or ("twelve" if data else "computer"))
    if not data:
        size = "smoke" if profile.name == "tiny" else profile.name
        data = str(synthesize(synthetic_recipe(chosen, size), root / "corpora", workers, progress).root)
    experiment = ClipExperiment(ClipSpec(data, chosen, profile), root, progress)
    check_task(experiment.corpus, chosen)  # bad corpora are refused before any work
    return experiment


@dataclass
class ClipExperiment:
    """The artifacts of a spec under ``root``; everything is made when it is first asked for."""

    spec: ClipSpec
    root: Path
    progress: bool = True
    device: str = "auto"
    _sets: dict[str, ClipSet] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)
    _models: dict[ClipSystem, Model] = field(default_factory=dict)
    _samplers: dict[Front, ClipSampler] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        check_writable(self.root)
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    # ------------------------------------------------------------------ data

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus."""
        return open_corpus(self.spec.data)

    def clips(self, split: str) -> ClipSet:
        """The clips of a split."""
        if split not in self._sets:
            self._sets[split] = task_clips(self.corpus, self.spec.task, split, self.root / "clips")
        return self._sets[split]

    def clips_hash(self, split: str) -> str:
        """What the clips of a split are made of, without decoding them."""
        if split not in self._hashes:
            self._hashes[split] = set_hash(self.corpus, self.spec.task, split, self.root / "clips")
        return self._hashes[split]

    def sampler(self, front: Front, seed: int) -> ClipSampler:
        """Training batches as a front end hears them."""
        if front not in self._samplers:
            self._samplers.clear()  # each holds the features of its rounds; front ends take their turns
            sets = {split: self.clips(split) for split in SPLITS}
            self._samplers[front] = ClipSampler(
                sets, front, self.spec.profile.sampling, seed, self.root / "clips", self.device, self.progress
            )
        return self._samplers[front].with_seed(seed)

    # ---------------------------------------------------------------- models

    def model(self, system: ClipSystem) -> Model:
        """The trained (or post-training quantized) model, from disk if it was made before.

        Raises:
            CollapsedWidth: a learned width came down to nothing (the tensor is named).
        """
        if system not in self._models:
            self._models[system] = kept(
                self.folder(system) / "model.safetensors",
                self._title(system),
                lambda file: self._load(system, file),
                lambda file: self._train(system, file),
            )
        return self._models[system]

    def has_model(self, system: ClipSystem) -> bool:
        """Whether the model of a system is on disk already: asking for it then costs no training."""
        return (self.folder(system) / "model.safetensors").is_file()

    def history(self, system: ClipSystem) -> History:
        """Loss and error over the steps of a system's own stage."""
        self.model(system)
        return json.loads((self.folder(system) / "history.json").read_text())

    def widths(self, system: ClipSystem) -> WidthRecord:
        """Widths of all tensors over the steps of a stage 1 (of a stage 2: those of the stage 1 behind it)."""
        system = replace(system, kind="stage_one") if system.kind == "stage_two" else system
        if system.kind != "stage_one":
            raise ValueError(f"widths are recorded in stage 1, and {self._title(system)} has none")
        self.model(system)
        return WidthRecord.load(self.folder(system) / WIDTHS)

    def _train(self, system: ClipSystem, file: Path) -> None:
        folder = file.parent
        folder.mkdir(parents=True, exist_ok=True)
        # What an earlier model left behind, one that was deleted to be trained again, would be stale.
        stale = (folder / "program.safetensors", folder / WIDTHS)
        for old in (*folder.glob("logits-*"), *folder.glob("equality-*"), *stale):
            old.unlink(missing_ok=True)
        write_json(folder / "config.json", self.identity(system))
        checkpoint = usable_checkpoint(folder / "checkpoint.safetensors")
        model, history, record = self._make(system, checkpoint)
        write_json(folder / "history.json", history)
        if record is not None:
            record.save(folder / WIDTHS)
        plan = model.plan.to_json() if isinstance(model, QuantizedConvNet) else None
        header = {"network": system.network.to_json(), "plan": plan, "system": system.title, "seed": system.seed}
        write_tensors(file, model.eval().state_dict(), header)
        checkpoint.unlink(missing_ok=True)

    def _load(self, system: ClipSystem, file: Path) -> Model:
        tensors, header = read_tensors(file)
        wanted = json.loads(json.dumps(system.network.to_json()))
        # Another spelling of the same layers is the same network.
        if dict(header.get("network") or {}, notation="") != dict(wanted, notation=""):
            raise OtherModelError(f"{file} holds another network than {system.title}")
        model: Model = _built(system)
        if header["plan"] is not None:
            assert isinstance(model, ConvNet)
            model = QuantizedConvNet(model, ConvPlan.from_json(header["plan"]))
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{file} does not fit its own header: {error}") from error
        return model.to(self.device).eval()

    def _make(self, system: ClipSystem, checkpoint: Path) -> tuple[Model, History, WidthRecord | None]:
        p, sampler = self.spec.profile, self.sampler(system.network.front, system.seed)
        if system.kind == "float":
            net = _built(system)
            net.set_normalisation(sampler.mean, sampler.std)
            net.to(self.device)
            return net, train(net, sampler, p.float_stage, checkpoint, self.progress), None
        start = copy.deepcopy(self.model(self.parent(system)))
        if system.kind == "control":
            return start, train(start, sampler, p.control_stage, checkpoint, self.progress), None
        if system.kind == "stage_two":
            assert isinstance(start, QuantizedConvNet)
            start.replan(start.plan.exact())
            return start, train(start, sampler, p.stage_two, checkpoint, self.progress), None
        assert isinstance(start, ConvNet) and system.plan is not None
        plan, clips = system.plan, torch.cat([sampler.batch(i)[0] for i in range(CALIBRATION_BATCHES)])
        model: QuantizedConvNet
        if isinstance(plan, LearnedPlan):
            model = plan.model(start)
        else:
            fixed = plan.choose(start, clips, *self._spread(sampler)) if isinstance(plan, BudgetPlan) else plan
            model = QuantizedConvNet(start, fixed)
        model.to(self.device).calibrate(clips)
        if system.kind == "post_training":
            model.replan(model.plan.exact())
            return model, {"step": [], "loss": [], "error": []}, None
        widths = model.soft_widths if isinstance(model, LearnedConvNet) else model.widths
        watch = WidthWatch(widths, model.penalty, p.stage_one.steps)
        history = train(model, sampler, p.stage_one, checkpoint, self.progress, watch)
        return (model.freeze(clips) if isinstance(model, LearnedConvNet) else model), history, watch.record()

    def _spread(self, sampler: ClipSampler) -> tuple[torch.Tensor, torch.Tensor]:
        """Some validation clips, spread over all."""
        x, labels = sampler.evaluation("validation")
        rows = np.unique(np.linspace(0, len(x) - 1, min(SENSITIVITY_CLIPS, len(x))).astype(int))
        return torch.from_numpy(x[rows]).to(self.device), torch.from_numpy(labels[rows]).to(self.device)

    def parent(self, system: ClipSystem) -> ClipSystem:
        """The system that this one starts from."""
        if system.kind == "stage_two":
            return replace(system, kind="stage_one")
        return replace(system, kind="float", plan=None)

    # ------------------------------------------------------------ identities

    def identity(self, system: ClipSystem) -> dict[str, Any]:
        """All that the model of a system depends on, as JSON values."""
        p = self.spec.profile
        own: dict[str, Any] = {}
        if system.kind != "post_training":
            stages = {"float": p.float_stage, "control": p.control_stage, "stage_one": p.stage_one}
            own["stage"] = asdict(stages.get(system.kind, p.stage_two))
        if system.kind in ("stage_one", "post_training"):
            own["calibration"] = [CALIBRATION_BATCHES, CALIBRATION]
        if system.plan is not None:
            own["plan"] = system.plan.to_json()
        if isinstance(system.plan, BudgetPlan) and system.kind in ("stage_one", "post_training"):
            own["chosen on"] = self.clips_hash("validation")  # its widths are those that cost least there
        base: dict[str, Any] = {"kind": system.kind, "seed": system.seed, "own": own, "version": ARTIFACT_VERSION}
        # Sums and transcendental functions differ by an ulp between devices: a model lives on the kind that made it.
        base["device"] = torch.device(self.device).type
        if system.kind == "float":
            network = system.network.to_json()
            network.pop("notation")  # another spelling of the same layers
            base |= {"network": network, "clips": self.clips_hash("train"), "sampling": asdict(p.sampling)}
            base["heard"] = [FEATURES_VERSION, AUGMENT_SEED]
        else:
            base["parent"] = self.identity(self.parent(system))
        return base

    def folder(self, system: ClipSystem) -> Path:
        """Folder of a system's artifacts, named by kind and content hash."""
        text = json.dumps(self.identity(system), sort_keys=True)
        return self.root / f"clip-{system.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _title(self, system: ClipSystem) -> str:
        return f"{system.title}, {system.kind}, seed {system.seed}"

    # ------------------------------------------------------------ evaluation

    def program(self, system: ClipSystem) -> Convolutional:
        """The integer program of a stage-2 or post-training system."""

        def make(file: Path) -> None:
            model = self.model(system)
            if not isinstance(model, QuantizedConvNet) or not model.integer:
                raise ValueError(f"{self._title(system)} has parts in float and so no integer program: take stage_two")
            metadata = {"network": system.network.notation, "system": system.title, "seed": system.seed,
                        "clips": self.clips_hash("train")}  # fmt: skip
            lower_convolutional(model, metadata).save(file)

        return kept(self.folder(system) / "program.safetensors", self._title(system), load_convolutional, make)

    def logits(self, system: ClipSystem, split: str) -> np.ndarray:
        """Logits float64 ``[N, labels]`` of a split's clips in order, from the integer program where there is one."""
        clips = self.clips(split)
        file = self.folder(system) / f"logits-{split}-{clips.source_hash[:12]}.npz"

        def make(file: Path) -> None:
            x, _ = self.sampler(system.network.front, system.seed).evaluation(split)
            if system.kind in INTEGER:
                program = self.program(system)
                found = np.stack([convolution_run.run(program, clip)[-1] for clip in x])
            else:
                found = self._float_logits(self.model(system), x)
            write_npz(file, logits=found)

        return kept(file, self._title(system), lambda path: read_npz(path, ("logits",))["logits"], make)

    @torch.no_grad()
    def _float_logits(self, model: Model, x: np.ndarray) -> np.ndarray:
        parts = [
            model(torch.from_numpy(x[at : at + EVALUATION_BATCH]).to(self.device)).double().cpu().numpy()
            for at in range(0, len(x), EVALUATION_BATCH)
        ]
        return np.concatenate(parts)

    def correct(self, system: ClipSystem, split: str) -> np.ndarray:
        """Whether each clip of a split is told right, bool [N]."""
        return self.logits(system, split).argmax(1) == self.clips(split).labels

    def speakers(self, split: str) -> np.ndarray:
        """The number of the speaker of each clip of a split [N]; where it is unknown, one of its own."""
        return speaker_groups(self.clips(split).speakers)

    def accuracy(self, systems: Sequence[ClipSystem], split: str) -> dict[str, Any]:
        """``accuracy`` in the mean of systems that differ in their seed, and its 95% interval ``low`` and ``high``.

        The interval is Wilson's, on ``n_effective``: as many independent clips as the ``n`` of these speakers are worth
        (metrics.compare.design_effect).
        """
        right = np.mean([self.correct(system, split) for system in systems], axis=0)
        n, mean = len(right), float(right.mean())
        effective = n / design_effect(right, self.speakers(split))
        low, high = wilson_interval(mean * effective, effective)
        return {"accuracy": mean, "low": low, "high": high, "n": n, "n_effective": effective}

    def scores(self, system: ClipSystem, split: str) -> Scores:
        """The score of the keyword, one per clip.

        Raises:
            ValueError: the task has several classes.
        """
        if not self.spec.task.keyword:
            raise ValueError(f"scores of a keyword: the task {self.spec.task.name!r} has several classes")
        clips = self.clips(split)
        values = keyword_scores(self.logits(system, split))[:, 0]
        nowhere = np.full(len(clips), np.nan, np.float32)
        return Scores(values, np.arange(len(clips) + 1), clips.words, clips.paths, nowhere, 1.0, system.title)

    def point(self, system: ClipSystem) -> OperatingPoint:
        """FRR and FDR of a keyword on test, at the threshold that validation chose."""
        keyword, once = self.spec.task.keyword, DetectorConfig()
        curve = det_curve(self.scores(system, "validation"), keyword, once)
        return evaluate(self.scores(system, "test"), keyword, operating_point(curve, self.spec.frr), once)

    def equality(self, system: ClipSystem) -> dict[str, int]:
        """Values of all layers, of up to ``EQUALITY_CLIPS`` test clips, that program and emulation give (``compared``),
        and those that are not the same (``different``)."""

        def make() -> dict[str, int]:
            model, program = self.model(system), self.program(system)
            assert isinstance(model, QuantizedConvNet)
            x, _ = self.sampler(system.network.front, system.seed).evaluation("test")
            rows = np.unique(np.linspace(0, len(x) - 1, min(EQUALITY_CLIPS, len(x))).astype(int))
            counts = [_compared(model, program, x[row], self.device) for row in rows]
            compared, different = (sum(c[i] for c in counts) for i in (0, 1))
            return {"clips": len(rows), "compared": compared, "different": different}

        file = self.folder(system) / f"equality-test-{self.clips('test').source_hash[:12]}.json"
        return kept_json(file, self._title(system), make)


def _built(system: ClipSystem) -> ConvNet | BCResNet:
    network = system.network
    if isinstance(network, Network):
        return ConvNet(network, system.seed)
    return BCResNet(network.labels, system.seed, network.width)


@torch.no_grad()
def _compared(model: QuantizedConvNet, program: Convolutional, x: np.ndarray, device: str) -> tuple[int, int]:
    """Values of one clip that were compared, and how many differ."""
    taps: dict[str, torch.Tensor] = {}
    model.step(torch.from_numpy(x)[None].to(device), model.fresh(1), taps)
    outputs = convolution_run.trace(program, x, "numba")
    different = 0
    for operation, found in zip(program.operations, outputs, strict=True):
        wanted = taps[operation.name][0].cpu().numpy().astype(np.int64)
        different += int(np.count_nonzero(wanted.reshape(found.shape) != found))
    return sum(found.size for found in outputs), different
