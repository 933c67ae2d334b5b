"""The training monitor's arithmetic: what a background job says of itself -> curves, percent, time left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from kwsbench.quantizers.attach import WeightPlan
from kwsbench.reports.explore.artifacts import Study
from kwsbench.reports.explore.panels import Content, apply, skeleton
from kwsbench.reports.style import series
from kwsbench.training.background import Progress
from kwsbench.training.experiment import System

STAGES = ("float", "stage 1", "stage 2")
KINDS = {"float": "float", "stage 1": "stage_one", "stage 2": "stage_two"}
LOSS_TICKS = [digit * 10.0**decade for decade in range(-5, 2) for digit in (1, 3)]

History = Mapping[str, Sequence[float]]


def system_of(stage: str, method: str, bits: int, seed: int = 0) -> System:
    """The system that a stage of ``STAGES`` trains."""
    return System(KINDS[stage], seed, None if stage == "float" else WeightPlan(method, bits))


def histories(study: Study) -> dict[str, History]:
    """Histories of the cached systems of a study that were trained, at most one per stage: of the last of each."""
    found: dict[str, History] = {}
    for name, system in study.systems.items():
        if system.kind in KINDS.values():
            found[name] = study.experiment.history(system)
    return found


def draw(history: Mapping[str, History]) -> go.Figure:
    """Loss and error of the three stages, empty where a stage has none."""
    fig = skeleton(1, 2, ("Loss", "Wrong windows"), (("step", "loss"), ("step", "share (%)")), height=360)
    for column in (1, 2):
        for i, stage in enumerate(STAGES):
            style = series(i)
            fig.add_scatter(
                name=stage,
                legendgroup=stage,
                showlegend=column == 1,
                mode="lines",
                line={"color": style.colour, "width": 2, "dash": style.dash},
                row=1,
                col=column,
            )
    labels = [f"{tick:.5f}".rstrip("0").rstrip(".") for tick in LOSS_TICKS]
    fig.update_yaxes(type="log", tickvals=LOSS_TICKS, ticktext=labels, row=1, col=1)
    fig.update_yaxes(rangemode="tozero", row=1, col=2)
    fig.update_layout(showlegend=True, legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.28})
    apply(fig, content(history))
    return fig


def content(history: Mapping[str, History], title: str = "Training") -> Content:
    """The data of the panels, by stage name."""
    empty: History = {"step": [], "loss": [], "error": []}
    rows = [history.get(stage, empty) for stage in STAGES]
    loss = [{"x": np.asarray(h["step"], float), "y": np.asarray(h["loss"], float)} for h in rows]
    error = [{"x": np.asarray(h["step"], float), "y": 100 * np.asarray(h["error"], float)} for h in rows]
    empty_axes = {
        "yaxis.range": [-2.5, 0.3],
        "yaxis2.range": [0, 50],
        "xaxis.range": [0, 100],
        "xaxis2.range": [0, 100],
    }
    axes = {name.split(".")[0] + ".autorange": True for name in empty_axes} if history else empty_axes
    return Content((*loss, *error), {"title.text": title, **axes}, alt=f"{title}: loss and error over the steps.")


def told(progress: Progress | None, running: bool) -> str:
    """One line on a job for a person."""
    if progress is None:
        return "starting ..." if running else "not started"
    if progress.state in ("preparing", "training") and not running:
        return f"{progress.system}: its process ended without a word; **train** goes on from its last checkpoint"
    if progress.state == "preparing":
        return f"{progress.system}: preparing audio and features ..."
    if progress.state == "training":
        left = "" if progress.seconds_left is None else f", about {_duration(progress.seconds_left)} left"
        steps = f"step {progress.steps_done:,} of {progress.steps_total:,}"
        return f"{progress.system}: {progress.stage}, {progress.percent:.0f}%, {steps}{left}"
    return {
        "stopped": f"{progress.system}: stopped at {progress.percent:.0f}%; **train** goes on from there",
        "finished": f"{progress.system}: finished. Run the cells above again to explore it",
        "failed": f"{progress.system}: failed: {progress.message}",
    }[progress.state]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
