"""A convolutional network as data: what it hears, and its layers in order. No torch.

Tensors are ``[time, frequency, channels]``. Everything is causal in time, so that a network streams: with kernel k and
stride s (k >= s) output frame j ends at input frame (j + 1) s - 1, and what lies before the first frame is zero; T
frames in, ``T // s`` out. Along frequency ``padding`` zeros are put below and above. A one-dimensional network is one
with a single frequency.

``models/space.py`` writes such networks by a notation, ``models/convolutional.py`` builds them, ``resources``
counts them, ``quantizers/convolutional.py`` quantizes them; all by these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Conv:
    """Convolution without bias, batchnorm, then ReLU6 (``relu``) or nothing.

    Weights ``[outputs, inputs, time, frequency]``, ``[outputs, 1, time, frequency]`` where ``depthwise`` (then
    inputs == outputs).

    ``filters``: "free", or "sinc" (band-passes of two trained frequencies each, on raw audio only).
    """

    kind: ClassVar[str] = "conv"
    name: str
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)  # (time, frequency)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)  # zeros below and above along frequency
    depthwise: bool = False
    relu: bool = True
    filters: str = "free"

    def __post_init__(self) -> None:
        if min(self.inputs, self.outputs, *self.kernel, *self.stride) < 1 or min(self.padding) < 0:
            raise ValueError(f"{self.name}: all sizes must be at least 1, padding at least 0, got {self}")
        if self.kernel[0] < self.stride[0]:
            raise ValueError(
                f"{self.name}: a stride of {self.stride[0]} frames would skip past a kernel of {self.kernel[0]}"
            )
        if self.depthwise and self.inputs != self.outputs:
            raise ValueError(
                f"{self.name}: depthwise needs as many outputs as inputs, got {self.inputs}, {self.outputs}"
            )
        if self.filters not in ("free", "sinc"):
            raise ValueError(f"{self.name}: filters must be free or sinc, got {self.filters!r}")

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.outputs * (1 if self.depthwise else self.inputs) * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class Add:
    """Adds the output of the earlier layer ``source`` (same shape; no stride in time lies between them)."""

    kind: ClassVar[str] = "add"
    name: str
    source: str


@dataclass(frozen=True)
class Pool:
    """Mean over all frequencies and the last ``frames`` frames, after each frame: ``[T, F, C] -> [T, 1, C]``. Frames
    before the first count as zeros, as a stream's fresh memory does."""

    kind: ClassVar[str] = "pool"
    name: str
    frames: int


@dataclass(frozen=True)
class Output:
    """Linear layer with bias to one logit per label: ``[T, 1, inputs] -> [T, labels]``; always the last."""

    kind: ClassVar[str] = "output"
    name: str
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.inputs * self.outputs


Layer = Conv | Add | Pool | Output

FRONTS = ("raw", "mfcc", "lfbe")


@dataclass(frozen=True)
class Front:
    """What the network hears. ``raw``: samples at 16 kHz, one per frame, full scale +-1, one frequency, taken as int16
    by integer programs. ``mfcc``, ``lfbe``: ``bins`` values per frame of ``window_samples`` each ``hop_samples``."""

    kind: str
    bins: int = 1
    window_samples: int = 1
    hop_samples: int = 1

    def __post_init__(self) -> None:
        if self.kind not in FRONTS:
            raise ValueError(f"a front end is one of {FRONTS}, got {self.kind!r}")
        if self.kind == "raw" and (self.bins, self.window_samples, self.hop_samples) != (1, 1, 1):
            raise ValueError(f"raw audio has one value per sample, got {self}")
        if min(self.bins, self.window_samples, self.hop_samples) < 1:
            raise ValueError(f"all sizes of a front end must be at least 1, got {self}")

    def frames(self, samples: int) -> int:
        """How many frames ``samples`` samples give."""
        return max(0, (samples - self.window_samples) // self.hop_samples + 1)


@dataclass(frozen=True)
class Network:
    """A front end, labels, and layers in order; ``notation`` is how a person writes it, where there is one."""

    front: Front
    labels: tuple[str, ...]
    layers: tuple[Layer, ...]
    notation: str = ""

    def __post_init__(self) -> None:
        shapes(self, 16000)

    def to_json(self) -> dict:
        """Plain values, for files and identities."""
        return {
            "front": vars(self.front),
            "labels": list(self.labels),
            "layers": [{"kind": layer.kind, **vars(layer)} for layer in self.layers],
            "notation": self.notation,
        }


def shapes(network: Network, samples: int = 16000) -> dict[str, tuple[int, int, int]]:
    """``(frames, frequencies, channels)`` of ``input`` and of every layer's output, for that much audio.

    Raises:
        ValueError: layers that do not fit each other (named).
    """
    names = [layer.name for layer in network.layers]
    if not names or len(set(names)) != len(names) or "input" in names or "." in "".join(names):
        raise ValueError(f"layers need names of their own, none of them 'input' and none with a dot, got {names}")
    if [layer.kind for layer in network.layers].count("output") != 1 or network.layers[-1].kind != "output":
        raise ValueError("a network has one output layer, its last")
    t, f, c = network.front.frames(samples), network.front.bins, 1
    found = {"input": (t, f, c)}
    for layer in network.layers:
        if isinstance(layer, Conv):
            if layer.inputs != c:
                raise ValueError(f"{layer.name} takes {layer.inputs} channels, but {c} come in")
            high = f + sum(layer.padding) - layer.kernel[1]
            if high < 0:
                raise ValueError(f"{layer.name}: a kernel over {layer.kernel[1]} frequencies, but only {f} come in")
            t, f, c = t // layer.stride[0], high // layer.stride[1] + 1, layer.outputs
        elif isinstance(layer, Add):
            if found.get(layer.source) != (t, f, c):
                raise ValueError(
                    f"{layer.name}: {layer.source} has the shape {found.get(layer.source)}, not {(t, f, c)}"
                )
        elif isinstance(layer, Pool):
            if layer.frames < 1:
                raise ValueError(f"{layer.name}: a mean over {layer.frames} frames")
            f = 1
        else:
            if (f, c) != (1, layer.inputs) or layer.outputs != len(network.labels):
                raise ValueError(
                    f"{layer.name} maps {layer.inputs} channels to {layer.outputs} of {len(network.labels)} labels, "
                    f"but {f} x {c} come in: pool first"
                )
            f, c = 1, layer.outputs
        found[layer.name] = (t, f, c)
    return found


def window_frames(layer: Layer) -> tuple[int, int]:
    """How many input frames one output looks at, and how many lie from one output to the next."""
    if isinstance(layer, Conv):
        return layer.kernel[0], layer.stride[0]
    return (layer.frames if isinstance(layer, Pool) else 1), 1


def looks_back_to(layer: Layer, frame: int) -> int:
    """The first input frame that output ``frame`` looks at; negative where it lies before the first."""
    kernel, stride = window_frames(layer)
    return (frame + 1) * stride - kernel


def looked_at(network: Network, frames: int) -> tuple[dict[str, int], dict[str, int]]:
    """For the last frame of logits of ``frames`` input frames, by layer and for ``input``: how many frames there are,
    and the first that is looked at."""
    names = ["input", *(layer.name for layer in network.layers)]
    totals = {"input": frames}
    for before, layer in zip(names, network.layers):
        totals[layer.name] = totals[before] // window_frames(layer)[1]
    first = dict(totals)
    first[names[-1]] = max(0, totals[names[-1]] - 1)
    for before, layer in zip(reversed(names[:-1]), reversed(network.layers)):
        start = max(0, looks_back_to(layer, first[layer.name]))
        for read in (before, layer.source) if isinstance(layer, Add) else (before,):
            first[read] = min(first[read], start)
    return totals, first


def same_padding(frequencies: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros below and above that give ``ceil(frequencies / stride)`` outputs, the odd one above."""
    missing = max(0, (-(-frequencies // stride) - 1) * stride + kernel - frequencies)
    return missing // 2, missing - missing // 2
