"""Training in the background: watched, stopped and resumed to the same bits."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace

import pytest

from kwsbench.data.synth import RECIPES, synthesize
from kwsbench.files import locked
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.training import background
from kwsbench.training.background import Job, is_running, read_progress, start, stop, train_job
from kwsbench.training.experiment import PROFILES, System, open_experiment

TWO = System("stage_two", 0, WeightPlan("tanh", 3))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    recipe = replace(
        RECIPES["smoke"], n_voices=12, train_minutes=0.5, validation_minutes=0.25, test_minutes=0.5, file_seconds=15.0
    )
    return synthesize(recipe, tmp_path_factory.mktemp("corpus"), workers=1, progress=False).root


def tiny(root, corpus):
    e = open_experiment(root, str(corpus), "computer", "smoke", progress=False, workers=1)
    p = PROFILES["smoke"]
    stages = {n: replace(getattr(p, n), steps=s, checkpoint_every=7) for n, s in
              (("float_stage", 45), ("stage_one", 25), ("stage_two", 25))}  # fmt: skip
    e.spec = replace(e.spec, profile=replace(p, name="tiny", **stages))
    return e


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    """The same system, trained in one go and without a watcher."""
    e = tiny(tmp_path_factory.mktemp("plain"), corpus)
    e.model(TWO)
    return e


def files(e):
    return {
        (system.kind, name): (e.folder(system) / name).read_bytes()
        for system in (System("float"), e.parent(TWO), TWO)
        for name in ("model.safetensors", "history.json")
    }


def test_stopped_in_every_stage_and_resumed_gives_the_bits_of_one_go(corpus, plain, tmp_path, monkeypatch):
    job = Job(str(tmp_path), TWO, str(corpus), profile="smoke")
    write, at, told = background._Report.write, [21, 66, 91], []

    def interrupting(self, state, message=""):
        write(self, state, message)
        told.append((state, self.steps_done))
        if state == "training" and at and self.steps_done >= at[0]:
            at.pop(0)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(background._Report, "write", interrupting)
    for stops_left in (2, 1, 0):
        with pytest.raises(KeyboardInterrupt):
            train_job(job, tiny(tmp_path, corpus))
        assert len(at) == stops_left
        progress = read_progress(job)
        assert progress.state == "stopped" and 0 < progress.percent < 100
    train_job(job, tiny(tmp_path, corpus))
    progress = read_progress(job)
    assert (progress.state, progress.steps_done, progress.steps_total, progress.percent) == ("finished", 95, 95, 100)
    assert files(tiny(tmp_path, corpus)) == files(plain)
    assert [done for state, done in told if state == "training"] == sorted(d for s, d in told if s == "training")


def test_progress_holds_the_history_of_what_was_trained(corpus, tmp_path):
    job = Job(str(tmp_path), System("float"), str(corpus), profile="smoke")
    e = tiny(tmp_path, corpus)
    train_job(job, e)
    progress = read_progress(job)
    assert progress.history == {"float": e.history(System("float"))}
    assert progress.pid == os.getpid() and progress.system == "float"
    train_job(job, tiny(tmp_path, corpus))
    assert read_progress(job).percent == 100, "trained before: nothing left to do"


def test_a_failure_is_told_and_raised(corpus, tmp_path, monkeypatch):
    job = Job(str(tmp_path), System("float"), str(corpus), profile="smoke")
    e = tiny(tmp_path, corpus)
    monkeypatch.setattr(type(e), "model", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        train_job(job, e)
    assert (read_progress(job).state, read_progress(job).message) == ("failed", "OSError: no space left")


def test_a_disk_that_refuses_the_progress_does_not_stop_the_training(corpus, plain, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(background, "write_json", full)
    e = tiny(tmp_path, corpus)
    train_job(Job(str(tmp_path), System("float"), str(corpus), profile="smoke"), e)
    assert e.has_model(System("float")) and "No space left" in capsys.readouterr().err


def test_one_process_per_job(tmp_path):
    job = Job(str(tmp_path), System("float"))
    assert not is_running(job) and not stop(job) and read_progress(job) is None
    job.progress_file.parent.mkdir(parents=True)
    job.progress_file.write_text(json.dumps({"state": "training"}))
    assert read_progress(job) is None, "half a file says nothing"
    with locked(job.progress_file.with_suffix("")):
        pass
    assert not is_running(job)


def test_the_command_says_what_the_job_says():
    job = Job("runs", System("stage_one", 3, WeightPlan("linear", 2, True)), "my corpus", "happy", "smoke")
    assert job.arguments()[1:] == [
        "-m", "kwsbench.cli", "train", "stage_one", "--seed", "3", "--method", "linear", "--bits", "2", "--per-row",
        "--data", "my corpus", "--keyword", "happy", "--profile", "smoke", "--root", "runs",
    ]  # fmt: skip
    assert Job("runs", System("float")).name != Job("runs", System("float"), profile="smoke").name


@pytest.mark.slow
def test_a_process_is_stopped_with_130_and_finishes_when_started_again(corpus, tmp_path):
    job = Job(str(tmp_path), System("float"), str(corpus), profile="smoke")
    process = start(job)

    def until(true):
        deadline = time.monotonic() + 120
        while not true() and process.poll() is None:
            assert time.monotonic() < deadline, job.log_file.read_text()
            time.sleep(0.02)

    until(lambda: (p := read_progress(job)) is not None and p.state == "training")
    with pytest.raises(RuntimeError, match="float is being trained already"):
        start(job)
    assert stop(job) and process.wait(60) == 130
    assert read_progress(job).state == "stopped" and not is_running(job)
    e = open_experiment(tmp_path, str(corpus), "computer", "smoke", progress=False)
    assert (e.folder(System("float")) / "checkpoint.safetensors").is_file() and not e.has_model(System("float"))
    process = start(job)
    assert process.wait(120) == 0, job.log_file.read_text()
    assert read_progress(job).state == "finished" and e.has_model(System("float"))
