"""A streaming RNN-T, or recurrent neural network transducer (Graves 2012, arXiv 1211.3711), in float.

    log-mel frames -> encoder ------------------------> \\
    labels so far  -> prediction network (embedding, LSTM) -> joiner: tanh(A e + B p + b) -> linear -> logits

At each encoder frame the joiner gives one score per symbol; symbol 0 is the blank, which moves on to the next frame,
any other is emitted and moves the prediction network. What the symbols are (words, characters) is data: a model only
knows how many there are.

An encoder is any module with ``config``, ``width``, ``frames_joined``, ``fresh(batch)``, ``step(x, state)`` and
``forward(x)``: see ``ENCODERS``. ``step`` takes any number of log-mel frames
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

from kwsbench.models.bifocal import BifocalConfig, BifocalEncoder
from kwsbench.models.conformer import ConformerConfig, ConformerEncoder
from kwsbench.models.recurrent import LstmEncoder, LstmEncoderConfig, LstmLayer, LstmState, linear

BLANK = 0
ENCODERS: dict[str, tuple[Any, Any]] = {
    "lstm": (LstmEncoderConfig, LstmEncoder),
    "conformer": (ConformerConfig, ConformerEncoder),
    "bifocal": (BifocalConfig, BifocalEncoder),
}


@dataclass(frozen=True)
class TransducerConfig:
    """``symbols`` counts the blank; ``labels_per_frame`` is the most that decoding emits at one encoder frame."""

    symbols: int
    encoder: LstmEncoderConfig | ConformerConfig | BifocalConfig = field(default_factory=LstmEncoderConfig)
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
        kind = next(kind for kind, (config, _) in ENCODERS.items() if type(self.encoder) is config)
        return {**asdict(self), "encoder": {"kind": kind, **asdict(self.encoder)}}

    @staticmethod
    def from_json(values: dict[str, Any]) -> TransducerConfig:
        encoder = dict(values["encoder"])
        kind = encoder.pop("kind")
        if kind not in ENCODERS:
            raise ValueError(f"unknown encoder {kind!r}: one of {', '.join(ENCODERS)}")
        if kind == "bifocal":
            encoder |= {name: LstmEncoderConfig(**encoder[name]) for name in ("small", "large")}
        return TransducerConfig(**{**values, "encoder": ENCODERS[kind][0](**encoder)})


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
        make = next(make for kind, make in ENCODERS.values() if type(config.encoder) is kind)
        self.encoder: Any = make(config.encoder, generator)
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
