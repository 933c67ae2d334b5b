"""A streaming RNN-T, or recurrent neural network transducer (Graves 2012, arXiv 1211.3711), in float.

    log-mel frames -> encoder ------------------------> \\
    labels so far  -> prediction network (embedding, LSTM) -> joiner: tanh(A e + B p + b) -> linear -> logits

At each encoder frame the joiner gives one score per symbol; symbol 0 is the blank, which moves on to the next frame,
any other is emitted and moves the prediction network. What the symbols are (words, characters) is data: a model only
knows how many there are.

An encoder is any module with ``config``, ``width``, ``frames_joined``, ``fresh(batch)``, ``step(x, state)`` and
``forward(x)``: ``LstmEncoder`` here, ``ConformerEncoder`` in conformer.py. ``step`` takes any number of log-mel frames
and gives the encoder frames they complete. A whole recording is a step from the fresh state, and every chunking of it
gives the same bits (batch size and thread count held fixed): all arithmetic is done frame by frame with the same
shapes. ``forward`` (training) does several frames in one product and agrees with it to float rounding only.
Frames that do not fill the last group at the end of a recording are not encoded: let silence follow the last word.

The paper trains on 61 phonemes with bidirectional encoders; the streaming LSTM, its sizes, frame joining and time
reduction between layers (as in arXiv 1811.06621) are our choice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from kwsbench.models.conformer import ConformerConfig, ConformerEncoder
from kwsbench.models.recurrent import LstmLayer, LstmState, join_frames, linear

BLANK = 0


@dataclass(frozen=True)
class LstmEncoderConfig:
    """Layers of ``hidden``; ``stack`` log-mel frames make one input, and after the layer ``reduce_after`` (1: after the
    first) ``reduction`` outputs make one input of the next."""

    n_mels: int = 32
    stack: int = 3
    hidden: int = 160
    layers: int = 3
    reduce_after: int = 1
    reduction: int = 2

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1:
            raise ValueError(f"all sizes of an encoder must be at least 1, got {self}")
        if self.reduction > 1 and not self.reduce_after < self.layers:
            raise ValueError(
                f"time is reduced between layers: reduce_after must lie below layers, got {self.reduce_after} and "
                f"{self.layers}; reduction=1 leaves it out"
            )


@dataclass(frozen=True)
class TransducerConfig:
    """``symbols`` counts the blank; ``labels_per_frame`` is the most that decoding emits at one encoder frame."""

    symbols: int
    encoder: LstmEncoderConfig | ConformerConfig = field(default_factory=LstmEncoderConfig)
    embedding: int = 48
    prediction: int = 96
    joint: int = 128
    labels_per_frame: int = 4

    def __post_init__(self) -> None:
        if self.symbols < 2:
            raise ValueError(f"a transducer needs the blank and at least one symbol, got symbols={self.symbols}")
        if min(self.embedding, self.prediction, self.joint, self.labels_per_frame) < 1:
            raise ValueError(f"all sizes must be at least 1, got {self}")

    def to_json(self) -> dict[str, Any]:
        kind = "conformer" if isinstance(self.encoder, ConformerConfig) else "lstm"
        return {**asdict(self), "encoder": {"kind": kind, **asdict(self.encoder)}}

    @staticmethod
    def from_json(values: dict[str, Any]) -> TransducerConfig:
        encoder = dict(values["encoder"])
        kinds = {"lstm": LstmEncoderConfig, "conformer": ConformerConfig}
        kind = encoder.pop("kind")
        if kind not in kinds:
            raise ValueError(f"unknown encoder {kind!r}: one of {', '.join(kinds)}")
        return TransducerConfig(**{**values, "encoder": kinds[kind](**encoder)})


@dataclass(frozen=True, eq=False)
class LstmEncoderState:
    """All that the encoder remembers: frames not yet joined, outputs not yet reduced, one ``(h, c)`` per layer."""

    pending: torch.Tensor  # [B, < stack, n_mels]
    unreduced: torch.Tensor  # [B, < reduction, hidden]
    layers: tuple[LstmState, ...]


class LstmEncoder(nn.Module):
    """Streaming LSTM encoder: normalised log-mel frames ``[B, T, n_mels]`` -> ``[B, T // frames_joined, width]``."""

    def __init__(self, config: LstmEncoderConfig, generator: torch.Generator):
        super().__init__()
        self.config = config
        sizes = [config.n_mels * config.stack] + [config.hidden] * (config.layers - 1)
        if config.reduction > 1:
            sizes[config.reduce_after] *= config.reduction
        self.layers: Any = nn.ModuleList(LstmLayer(size, config.hidden, generator) for size in sizes)

    @property
    def width(self) -> int:
        """Size of an encoder frame."""
        return self.config.hidden

    @property
    def frames_joined(self) -> int:
        """Log-mel frames per encoder frame."""
        return self.config.stack * self.config.reduction

    def fresh(self, batch: int = 1) -> LstmEncoderState:
        """The state before the first frame."""
        c, like = self.config, next(self.parameters())
        return LstmEncoderState(
            like.new_zeros(batch, 0, c.n_mels),
            like.new_zeros(batch, 0, c.hidden),
            tuple(layer.fresh(batch) for layer in self.layers),
        )

    def step(self, x: torch.Tensor, state: LstmEncoderState) -> tuple[torch.Tensor, LstmEncoderState]:
        """Frames ``[B, T, n_mels]``, any T -> the encoder frames they complete, and the next state."""
        x, pending = join_frames(x, state.pending, self.config.stack)
        unreduced, states = state.unreduced, []
        for number, (layer, layer_state) in enumerate(zip(self.layers, state.layers)):
            if self.config.reduction > 1 and number == self.config.reduce_after:
                x, unreduced = join_frames(x, unreduced, self.config.reduction)
            x, layer_state = layer.step(x, layer_state)
            states.append(layer_state)
        return x, LstmEncoderState(pending, unreduced, tuple(states))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole recordings from the fresh state, for training. Padding at the end does not reach back."""
        fresh = self.fresh(len(x))
        x, _ = join_frames(x, fresh.pending, self.config.stack)
        for number, layer in enumerate(self.layers):
            if self.config.reduction > 1 and number == self.config.reduce_after:
                x, _ = join_frames(x, fresh.unreduced, self.config.reduction)
            x = layer(x)
        return x


class Prediction(nn.Module):
    """The prediction network: what was emitted so far -> ``[B, prediction]``. The blank's row of the embedding stands
    for the beginning of the sequence."""

    def __init__(self, config: TransducerConfig, generator: torch.Generator):
        super().__init__()
        self.embedding = nn.Embedding(config.symbols, config.embedding)
        with torch.no_grad():
            self.embedding.weight.normal_(std=config.embedding**-0.5, generator=generator)
        self.layer = LstmLayer(config.embedding, config.prediction, generator)

    def fresh(self, batch: int = 1) -> LstmState:
        """The state after the beginning and before any label: its ``h`` is the first output."""
        start = torch.full((batch,), BLANK, device=self.embedding.weight.device)
        return self.emit(start, self.layer.fresh(batch))

    def emit(self, labels: torch.Tensor, state: LstmState) -> LstmState:
        """Labels ``[B]`` -> the next state; its ``h`` is the output."""
        return self.layer.frame(self.embedding(labels), state)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels ``[B, U]`` -> outputs ``[B, U + 1, prediction]``, the first before any label."""
        start = labels.new_full((len(labels), 1), BLANK)
        return self.layer(self.embedding(torch.cat([start, labels], dim=1)))


class Joiner(nn.Module):
    """``tanh(A e + B p + b)`` -> linear -> logits, for every pair of an encoder frame and a prediction."""

    def __init__(self, width: int, config: TransducerConfig, generator: torch.Generator):
        super().__init__()
        self.encoder = linear(width, config.joint, generator)
        self.prediction = linear(config.prediction, config.joint, generator, bias=False)
        self.output = linear(config.joint, config.symbols, generator)

    def forward(self, encoded: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """``[B, T, width]`` and ``[B, U + 1, prediction]`` -> logits ``[B, T, U + 1, symbols]``."""
        return self.join(self.encoder(encoded)[:, :, None], self.prediction(predicted)[:, None])

    def join(self, encoded: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Both sides already projected, ``[..., joint]``, broadcast against each other -> logits."""
        return self.output(torch.tanh(encoded + predicted))


class Transducer(nn.Module):
    """Encoder, prediction network and joiner, with the per-band normalisation of the features."""

    mean: torch.Tensor
    inverse_std: torch.Tensor

    def __init__(self, config: TransducerConfig, seed: int = 0):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        self.encoder: LstmEncoder | ConformerEncoder
        if isinstance(config.encoder, ConformerConfig):
            self.encoder = ConformerEncoder(config.encoder, generator)
        else:
            self.encoder = LstmEncoder(config.encoder, generator)
        self.prediction = Prediction(config, generator)
        self.joiner = Joiner(self.encoder.width, config, generator)
        self.register_buffer("mean", torch.zeros(config.encoder.n_mels))
        self.register_buffer("inverse_std", torch.ones(config.encoder.n_mels))

    def set_normalisation(self, mean: Any, std: Any) -> None:
        """Per-mel mean and standard deviation of the training frames, ``[n_mels]``."""
        self.mean.copy_(torch.as_tensor(mean, dtype=torch.float32))
        self.inverse_std.copy_(1 / torch.as_tensor(std, dtype=torch.float32))

    def normalise(self, frames: torch.Tensor) -> torch.Tensor:
        """Log-mel frames ``[..., n_mels]`` -> zero mean, unit variance per band."""
        return (frames - self.mean) * self.inverse_std

    def encoded_lengths(self, frames: torch.Tensor) -> torch.Tensor:
        """Numbers of log-mel frames -> numbers of encoder frames."""
        return frames // self.encoder.frames_joined

    def forward(self, frames: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Log-mel frames ``[B, T, n_mels]``, labels ``[B, U]`` (any padding) -> logits ``[B, T', U + 1, symbols]``."""
        return self.joiner(self.encoder(self.normalise(frames)), self.prediction(labels))
