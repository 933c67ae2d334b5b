"""Train one system in a process of its own, watched through a small file and stopped by SIGINT.

    start(job) -> Popen          `kwsbench train ...`, in a session of its own: it outlives the notebook
    read_progress(job)           what it last wrote: stage, step, history, state
    is_running(job), stop(job)   whoever asks, also after the notebook was closed and opened again

The progress file, ``<root>/training/<name>.json``, is replaced as a whole each time; the process holds the lock of that
name while it lives, so a file that a killed process left behind is not taken for a running one. Training itself
is that of training.experiment: stopping finishes the step in hand and writes the checkpoint, starting the same job
again goes on from there, to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kwsbench.files import locked, write_json
from kwsbench.training.experiment import Experiment, Profile, System, open_experiment
from kwsbench.training.loop import StageConfig, watching

FOLDER = "training"
LOCK_SECONDS = 5.0  # is_running holds the lock for a moment: a start at that moment waits


@dataclass(frozen=True)
class Job:
    """A system to train, and the experiment it belongs to (see training.experiment.open_experiment)."""

    root: str
    system: System
    data: str = ""
    keyword: str = "computer"
    profile: str = "default"

    @property
    def name(self) -> str:
        """Folder name, the same for the same job."""
        text = json.dumps([self.data, self.keyword, self.profile, repr(self.system)])
        return f"{self.system.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @property
    def progress_file(self) -> Path:
        return Path(self.root) / FOLDER / f"{self.name}.json"

    @property
    def log_file(self) -> Path:
        return Path(self.root) / FOLDER / f"{self.name}.log"

    def arguments(self) -> list[str]:
        """The command that trains it."""
        weights, system = self.system.weights, self.system
        command = [sys.executable, "-m", "kwsbench.cli", "train", system.kind, "--seed", str(system.seed)]
        if weights is not None:
            command += ["--method", weights.method, "--bits", str(weights.bits)]
            command += ["--per-row"] if weights.per_channel else []
        command += ["--data", self.data] if self.data else []
        return [*command, "--keyword", self.keyword, "--profile", self.profile, "--root", self.root]


@dataclass(frozen=True)
class Progress:
    """What a job last said of itself.

    ``state``: "preparing" (audio, features), "training", "stopped", "finished" or "failed". ``history`` holds one
    history (``step``, ``loss``, ``error``) per stage that this process trained; ``steps_done`` of ``steps_total`` count
    every stage from the float model on.
    """

    state: str
    system: str
    pid: int
    stage: str = ""
    steps_done: int = 0
    steps_total: int = 0
    seconds_left: float | None = None
    history: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    message: str = ""

    @property
    def percent(self) -> float:
        return 100 * self.steps_done / self.steps_total if self.steps_total else 0.0


def train_job(job: Job, experiment: Experiment | None = None) -> None:
    """Train the system of a job, and what it starts from, and keep its progress file.

    Raises:
        TimeoutError: another process trains this job.
        KeyboardInterrupt: after SIGINT, once the checkpoint is written.
    """
    with locked(job.progress_file.with_suffix(""), job.system.label, LOCK_SECONDS):
        report = _Report(job)
        try:
            report.write("preparing")
            experiment = experiment or open_experiment(job.root, job.data, job.keyword, job.profile)
            report.plan(experiment)
            with watching(report.watch):
                experiment.model(job.system)
        except KeyboardInterrupt:
            report.write("stopped")
            raise
        except BaseException as error:
            report.write("failed", f"{type(error).__name__}: {error}")
            raise
        report.steps_done = report.steps_total
        report.write("finished")


def start(job: Job) -> subprocess.Popen:
    """Start or resume a job in the background; its printed output goes to ``job.log_file``.

    Raises:
        RuntimeError: it is running already.
    """
    if is_running(job):
        raise RuntimeError(f"{job.system.label} is being trained already; stop it, or wait")
    job.log_file.parent.mkdir(parents=True, exist_ok=True)
    with job.log_file.open("ab") as log:
        # A session of its own: the notebook's interrupt button stops a cell, not the training.
        return subprocess.Popen(
            job.arguments(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def is_running(job: Job) -> bool:
    """Whether some process trains this job now."""
    folder = job.progress_file.with_suffix("")
    if not folder.parent.is_dir():
        return False
    try:
        with locked(folder, timeout_seconds=0):
            return False
    except TimeoutError:
        return True


def stop(job: Job) -> bool:
    """Ask the process that trains this job to write its checkpoint and end; False if there is none."""
    progress = read_progress(job)
    if progress is None or not is_running(job):
        return False
    os.kill(progress.pid, signal.SIGINT)
    return True


def read_progress(job: Job) -> Progress | None:
    """The last progress of a job; None before its first."""
    try:
        return Progress(**json.loads(job.progress_file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def stage_steps(profile: Profile, system: System) -> dict[str, int]:
    """Steps of each stage that leads to a system, by the stage's name."""
    stages: dict[str, tuple[StageConfig, ...]] = {
        "float": (profile.float_stage,),
        "control": (profile.float_stage, profile.control_stage),
        "stage_one": (profile.float_stage, profile.stage_one),
        "stage_two": (profile.float_stage, profile.stage_one, profile.stage_two),
        "post_training": (profile.float_stage,),
    }
    return {stage.name: stage.steps for stage in stages[system.kind]}


class _Report:
    """Keeps the progress file of a job; a disk that refuses it does not stop the training."""

    def __init__(self, job: Job):
        self.job = job
        self.stages: dict[str, int] = {}
        self.stage = ""
        self.steps_done = self.steps_total = self.steps_before = 0
        self.history: dict[str, dict[str, list[float]]] = {}
        self.began = time.monotonic()

    def plan(self, experiment: Experiment) -> None:
        """What there is to do, and what was done before."""
        self.stages = stage_steps(experiment.spec.profile, self.job.system)
        self.steps_total = sum(self.stages.values())
        system: System | None = self.job.system
        while system is not None and not experiment.has_model(system):
            system = None if system.kind == "float" else experiment.parent(system)
        self.steps_done = 0 if system is None else sum(stage_steps(experiment.spec.profile, system).values())
        self.steps_before = -1

    def watch(self, stage: StageConfig, steps: int, history: dict[str, list[float]]) -> None:
        """Told by training.loop at every recorded loss."""
        names = list(self.stages)
        before = sum(self.stages[name] for name in names[: names.index(stage.name)])
        self.stage, self.steps_done, self.history[stage.name] = stage.name, before + steps, history
        if self.steps_before < 0:  # the first steps of this process: the clock of the time left starts here
            self.steps_before, self.began = self.steps_done, time.monotonic()
        self.write("training")

    def write(self, state: str, message: str = "") -> None:
        values: dict[str, Any] = {
            "state": state,
            "system": self.job.system.label,
            "pid": os.getpid(),
            "stage": self.stage,
            "steps_done": self.steps_done,
            "steps_total": self.steps_total,
            "seconds_left": self._seconds_left() if state == "training" else None,
            "history": self.history,
            "message": message,
        }
        try:
            write_json(self.job.progress_file, values)
        except OSError as error:
            print(f"cannot write {self.job.progress_file}: {error}", file=sys.stderr)

    def _seconds_left(self) -> float | None:
        done = self.steps_done - self.steps_before
        if done <= 0:
            return None
        return round((time.monotonic() - self.began) / done * (self.steps_total - self.steps_done), 1)
