"""What a training step costs under a quantizer, relative to a float step on the same batches.

Both are timed in one process, a block of float steps right before each block of quantized ones, over several rounds:
what else the machine does falls on both. A step is a whole one: batch, forward, backward, optimizer; stage 1 in the
middle of its soft phase, stage 2 while ranges still move.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kwsbench.models.feedforward import Spotter
from kwsbench.quantizers.attach import QuantizedSpotter, WeightPlan, stage_one_plan, stage_two_plan
from kwsbench.quantizers.weight import HARD_SHARE
from kwsbench.training.experiment import Profile
from kwsbench.training.loop import StageConfig, make_optimizer, prepare, training_step
from kwsbench.training.sampler import WindowSampler
from kwsbench.training.stages import calibration_windows

ROUNDS = 5
STEPS = 4  # of a block


def step_costs(
    model: Spotter, plans: Sequence[WeightPlan], profile: Profile, sampler: WindowSampler, rounds: int = ROUNDS
) -> list[dict[str, Any]]:
    """One row per plan and stage: median, lowest and highest ratio over ``rounds``, and the float step in ms."""
    calibration = calibration_windows(sampler)
    reference = _Timed(copy.deepcopy(model), profile.control_stage, sampler)
    rows = []
    for plan in plans:
        one = QuantizedSpotter(model, stage_one_plan(plan)).to(sampler.features.device)
        two = copy.deepcopy(one).eval()
        two.calibrate(calibration)
        two.replan(stage_two_plan(plan))
        for kind, quantized, stage in (("stage_one", one, profile.stage_one), ("stage_two", two, profile.stage_two)):
            timed = _Timed(quantized, stage, sampler)
            pairs = np.array([(reference.seconds(), timed.seconds()) for _ in range(rounds)])
            ratios = pairs[:, 1] / pairs[:, 0]
            rows.append(
                {
                    "kind": kind,
                    "method": plan.method,
                    "bits": plan.bits,
                    "per_row": plan.per_channel,
                    "ratio": float(np.median(ratios)),
                    "lowest": float(ratios.min()),
                    "highest": float(ratios.max()),
                    "rounds": rounds,
                    "float_step_ms": 1000 * float(np.median(pairs[:, 0])),
                }
            )
    return rows


class _Timed:
    """A model in the middle of a stage, ready to take blocks of steps."""

    def __init__(self, model: nn.Module, stage: StageConfig, sampler: WindowSampler):
        self.model, self.stage, self.sampler = model.train(), stage, sampler
        self.optimizer = make_optimizer(model, stage)
        self.step = int(HARD_SHARE / 2 * stage.steps)
        prepare(model, stage, self.step)
        self.seconds()  # first steps allocate

    def seconds(self) -> float:
        """Seconds per step of one block."""
        _finish(self.sampler.features.device)
        start = time.perf_counter()
        for _ in range(STEPS):
            training_step(self.model, self.optimizer, self.sampler, self.stage, self.step)
        _finish(self.sampler.features.device)
        return (time.perf_counter() - start) / STEPS


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
