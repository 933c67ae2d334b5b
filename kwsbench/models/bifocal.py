"""A bifocal pair of encoders (after Bifocal RNN-T, arXiv 2108.01704): a small one for the beginning, a large one after.

    log-mel frames -> small LSTM encoder, up to the switch -> linear to the large one's width -> joiner
                   -> large LSTM encoder, from the switch on ----------------------------------> joiner

The small encoder hears the beginning (in the paper the wake word), the large one, from its fresh state, all that
follows. Prediction network and joiner are shared and go on across the switch. Only the encoder in charge computes.

Ours (choice): both join frames alike, so that encoder frames keep their rate, and the switch lies between encoder
frames, where nothing waits to be joined. It stands at ``switch_at`` of the module when a stream or a batch begins
(in training ``before_step`` may draw it), and ``switch_now`` moves it in a running stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from kwsbench.models.recurrent import LstmEncoder, LstmEncoderConfig, LstmEncoderState, linear


@dataclass(frozen=True)
class BifocalConfig:
    """Two encoders that join equally many log-mel frames; the small one has the first ``switch_at`` encoder frames."""

    small: LstmEncoderConfig = field(default_factory=lambda: LstmEncoderConfig(hidden=64, layers=2))
    large: LstmEncoderConfig = field(default_factory=LstmEncoderConfig)
    switch_at: int = 12

    def __post_init__(self) -> None:
        for name in ("n_mels", "stack", "reduction"):
            ours, theirs = getattr(self.small, name), getattr(self.large, name)
            if ours != theirs:
                raise ValueError(f"both encoders need the same {name}, got {ours} and {theirs}")
        if self.switch_at < 0:
            raise ValueError(f"switch_at counts encoder frames from 0 on, got {self.switch_at}")

    @property
    def n_mels(self) -> int:
        return self.large.n_mels


@dataclass(frozen=True, eq=False)
class BifocalState:
    """Both encoders' states, the log-mel frames heard, and the encoder frame at which the large one takes over."""

    small: LstmEncoderState
    large: LstmEncoderState
    heard: int
    switch_at: int


class BifocalEncoder(nn.Module):
    """Streaming encoder: normalised log-mel frames ``[B, T, n_mels]`` -> ``[B, T // frames_joined, width]``."""

    def __init__(self, config: BifocalConfig, generator: torch.Generator):
        super().__init__()
        self.config = config
        self.switch_at = config.switch_at
        self.small = LstmEncoder(config.small, generator)
        self.large = LstmEncoder(config.large, generator)
        self.widen = linear(self.small.width, self.large.width, generator)

    @property
    def width(self) -> int:
        """Size of an encoder frame."""
        return self.large.width

    @property
    def frames_joined(self) -> int:
        """Log-mel frames per encoder frame."""
        return self.large.frames_joined

    def fresh(self, batch: int = 1) -> BifocalState:
        """The state before the first frame, with the switch where it stands now."""
        return BifocalState(self.small.fresh(batch), self.large.fresh(batch), 0, self.switch_at)

    def switch_now(self, state: BifocalState) -> BifocalState:
        """The large encoder takes over at the next encoder frame to begin; later calls change nothing."""
        return replace(state, switch_at=min(state.switch_at, -(-state.heard // self.frames_joined)))

    def step(self, x: torch.Tensor, state: BifocalState) -> tuple[torch.Tensor, BifocalState]:
        """Frames ``[B, T, n_mels]``, any T -> the encoder frames they complete, and the next state."""
        left = max(state.switch_at * self.frames_joined - state.heard, 0)
        narrow, small = self.small.step(x[:, :left], state.small)
        # Frame by frame: one shape of product, however the stream is cut.
        first = [self.widen(narrow[:, t].clone())[:, None] for t in range(narrow.shape[1])]
        second, large = self.large.step(x[:, left:], state.large)
        return torch.cat([*first, second], dim=1), replace(
            state, small=small, large=large, heard=state.heard + x.shape[1]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole recordings from the fresh state, for training. Padding at the end does not reach back."""
        at = self.switch_at * self.frames_joined
        return torch.cat([self.widen(self.small(x[:, :at])), self.large(x[:, at:])], dim=1)
