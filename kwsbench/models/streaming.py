"""Streaming over stacked frames: one code path for chunks and whole files.

A feedforward spotter has no memory of its own; all state is a ring of the last ``stacked_frames - 1`` frames.
``step(x, state)`` takes any number of new frames and returns one window per frame; a whole file is a step from
the fresh state. A fresh ring is zero, which after normalisation is the mean frame.
"""

from __future__ import annotations

import torch


def fresh_ring(batch: int, stacked_frames: int, n_mels: int, like: torch.Tensor) -> torch.Tensor:
    """Zeros ``[batch, stacked_frames - 1, n_mels]`` of the dtype and device of ``like``."""
    return torch.zeros(batch, stacked_frames - 1, n_mels, dtype=like.dtype, device=like.device)


def stack_frames(x: torch.Tensor, ring: torch.Tensor, stacked_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """New frames ``[B, T, M]`` and the ring -> windows ``[B, T, stacked_frames * M]`` and the next ring.

    Window t ends at new frame t; inside a window time runs oldest first, mel fastest. No frames, no windows.
    """
    if x.shape[1] == 0:
        return x.new_empty(len(x), 0, stacked_frames * x.shape[2]), ring
    frames = torch.cat([ring, x], dim=1)
    windows = frames.unfold(1, stacked_frames, 1)  # [B, T, M, stacked_frames]
    keep = stacked_frames - 1
    return windows.transpose(2, 3).flatten(2), frames[:, frames.shape[1] - keep :]
