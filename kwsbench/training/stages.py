"""The two stages of the paper (arXiv 2207.06920), their start and their control, as functions of models.

    float -> stage 1 (weights quantized, the rest in float) -> stage 2 (everything quantized)
          -> control (float, as many extra steps as both stages together)
          -> post-training (everything quantized, no training: the first baseline)

The paper does not publish its schedule; ours (docs/methods.md) trains stage 2 at about a tenth of the rate of stage
1 and freezes batchnorm statistics and activation ranges for the last fifth of its steps.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from kwsbench.models.feedforward import Spotter, SpotterConfig
from kwsbench.quantizers.annealing import AnnealingRecord, AnnealingWatch
from kwsbench.quantizers.attach import Plan, QuantizedSpotter
from kwsbench.quantizers.general import GeneralWeight
from kwsbench.training.loop import StageConfig, train
from kwsbench.training.sampler import WindowSampler

CALIBRATION_WINDOWS = 8192

History = dict[str, list[float]]


def train_float(
    config: SpotterConfig,
    sampler: WindowSampler,
    stage: StageConfig,
    seed: int,
    checkpoint: Path | None,
    progress: bool,
) -> tuple[Spotter, History]:
    """A float spotter from scratch; input normalisation from the training bank."""
    model = Spotter(config, seed)
    model.set_normalisation(sampler.mean, sampler.std)
    model.to(sampler.features.device)
    return model, train(model, sampler, stage, checkpoint, progress)


def train_control(
    model: Spotter, sampler: WindowSampler, stage: StageConfig, checkpoint: Path | None, progress: bool
) -> tuple[Spotter, History]:
    """The float model trained on for as many steps as quantization-aware training takes: what time alone buys."""
    model = copy.deepcopy(model)
    return model, train(model, sampler, stage, checkpoint, progress)


def train_stage_one(
    model: Spotter,
    plan: Plan,
    sampler: WindowSampler,
    stage: StageConfig,
    checkpoint: Path | None,
    progress: bool,
) -> tuple[QuantizedSpotter, History, AnnealingRecord | None]:
    """Stage 1: dense weights through the quantizers of ``plan`` (``stage_one_plan``), the rest in float.

    The record is there where a quantizer anneals its centroids.
    """
    quantized = QuantizedSpotter(model, plan).to(sampler.features.device)
    annealed = {f"layer{i}": q for i, q in enumerate(quantized.weights) if isinstance(q, GeneralWeight)}
    watch = AnnealingWatch(annealed, stage.steps) if annealed else None
    history = train(quantized, sampler, stage, checkpoint, progress, watch)
    return quantized, history, None if watch is None else watch.record()


def train_stage_two(
    model: QuantizedSpotter,
    plan: Plan,
    sampler: WindowSampler,
    stage: StageConfig,
    checkpoint: Path | None,
    progress: bool,
) -> tuple[QuantizedSpotter, History]:
    """Stage 2: linear quantization of everything else, starting from calibrated ranges."""
    model = copy.deepcopy(model)
    model.eval()
    model.calibrate(calibration_windows(sampler))
    model.replan(plan)
    return model, train(model, sampler, stage, checkpoint, progress)


def post_training(model: Spotter, plan: Plan, sampler: WindowSampler) -> QuantizedSpotter:
    """Everything quantized without training: linear weights at the step they start from, calibrated ranges."""
    quantized = QuantizedSpotter(model, plan).to(sampler.features.device)
    quantized.eval()
    quantized.calibrate(calibration_windows(sampler))
    return quantized


def calibration_windows(sampler: WindowSampler) -> torch.Tensor:
    """Training windows, a quarter of them positive, drawn by the sampler's seed: ``[B, stacked_frames, n_mels]``."""
    rng = np.random.default_rng([sampler.seed, 3])
    negatives = np.concatenate([sampler.word_negatives, sampler.speech_negatives])
    ends = np.concatenate(
        [
            rng.choice(sampler.positives, CALIBRATION_WINDOWS // 4),
            rng.choice(negatives, CALIBRATION_WINDOWS * 3 // 4),
        ]
    )
    return sampler.windows(ends)
