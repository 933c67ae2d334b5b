"""A space of convolutional networks as data, a notation to read and paste, and what a network costs. No torch.

    mfcc10 w32 7e2s 7e2 skip 5e1 h64

front end, channels of stem and cells (w), cells, channels of the head (h): in this order, spaces between.

Front ends:

    mfcc10, lfbe40   10 MFCC, 40 log-mel energies, of 40 ms each 20 ms. Stem: a convolution over 11 frames x 5 bins,
                     stride 2 in time
    raw              samples. Stem: 64 taps every 16 samples, then two depthwise-separable convolutions of strides
                     5 and 4: 50 frames per second, one frequency
    sinc             as raw, but the first filters are sinc band-passes of 128 taps

Cells (MBConv):

    7e2              1x1 convolution to 2 x the channels with ReLU6 (none where e1), depthwise 7x7 (7x1 where there is
                     one frequency) with ReLU6, 1x1 convolution back without; then the cell's input is added
    7e2s             the same with stride 2 in time, and in frequency where there is one; nothing is added
    skip             an empty cell

Behind the cells a 1x1 convolution to the head's channels with ReLU6, the mean over one second, the output layer.

Source: supernet of arXiv 2012.10138 (its code: stem 5x11 stride (1, 2), read as frequency x time; 12 cells of 72
channels, the first with stride 2; kernel {3, 5, 7} x expansion {1..6}; head 144), :meth:`Space.of_multiplier`. Ours
(choice): time is causal, hence ``T // s`` frames where theirs has one more; the raw stems, whose shape that paper does
not tell; everything is named in ``models/layers.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn

from kwsbench.models.layers import (
    Add,
    Conv,
    Front,
    Layer,
    Network,
    Output,
    Pool,
    looked_at,
    same_padding,
    shapes,
    window_frames,
)

SAMPLE_RATE = 16000
WINDOW_SAMPLES, HOP_SAMPLES = 640, 320
BINS = {"mfcc": (10, 40), "lfbe": (10, 80)}  # fewest, most
STEM_KERNEL, STEM_STRIDE = (11, 5), (2, 1)  # (time, frequency)
RAW_TAPS, SINC_TAPS, RAW_STRIDE = 64, 128, 16
RAW_REDUCTIONS = ((10, 5), (8, 4))  # kernel and stride of the stem's further convolutions
BASE_WIDTH, BASE_HEAD = 72, 144


@dataclass(frozen=True)
class Cell:
    """One MBConv cell."""

    kernel: int
    expansion: int
    strided: bool = False

    def __post_init__(self) -> None:
        if min(self.kernel, self.expansion) < 1 or (self.strided and self.kernel < 2):
            raise ValueError(f"a cell needs kernel and expansion of 1 or more, with stride a kernel of 2: {self}")


@dataclass(frozen=True)
class Description:
    """A notation taken apart. ``front``: as written (``mfcc10``); a cell that is None is empty."""

    front: str
    width: int
    cells: tuple[Cell | None, ...]
    head: int


class NotationError(ValueError):
    """A notation that does not parse; the message points at the place."""

    def __init__(self, text: str, position: int, problem: str):
        super().__init__(f"{problem}\n    {text}\n    {' ' * position}^")
        self.position = position


def parse(text: str) -> Description:
    """Take a notation apart.

    Raises:
        NotationError: with the position of the first mistake.
    """
    text = re.sub(r"\s", " ", text)
    words = [(match.group(), match.start()) for match in re.finditer(r"\S+", text)]

    def wrong(position: int, problem: str) -> NoReturn:
        raise NotationError(text, position, problem)

    def number(prefix: str, at: int, meaning: str) -> int:
        word, position = words[at] if at < len(words) else ("", len(text))
        if not re.fullmatch(rf"{prefix}[1-9]\d{{0,4}}", word):
            wrong(position, f"expected {meaning}, like {prefix}64, not {word!r}" if word else f"{meaning} is missing")
        return int(word[1:])

    if not words:
        wrong(0, "the notation is empty; one is: mfcc10 w32 7e2s 7e2 skip 5e1 h64")
    try:
        front_of(words[0][0])
    except ValueError as problem:
        wrong(words[0][1], str(problem))
    width = number("w", 1, "the channels of the cells")
    cells: list[Cell | None] = []
    at = 2
    while at < len(words) and not words[at][0].startswith("h"):
        word, position = words[at]
        match = re.fullmatch(r"([1-9]\d?)e([1-9]\d?)(s?)", word)
        if word == "skip":
            cells.append(None)
        elif not match:
            # To the character: how much of the word could still have been a cell.
            good = re.match(r"(?:s(?:k(?:ip?)?)?|[1-9]\d?(?:e(?:[1-9]\d?s?)?)?)?", word)
            assert good is not None
            wrong(
                position + good.end(), f"expected a cell (like 7e2, 7e2s or skip) or the head (like h64), not {word!r}"
            )
        elif match[3] and int(match[1]) < 2:
            wrong(position, f"a stride of 2 needs a kernel of 2 or more, not {word!r}")
        else:
            cells.append(Cell(int(match[1]), int(match[2]), bool(match[3])))
        at += 1
    if not cells:
        position = words[at][1] if at < len(words) else len(text)
        wrong(position, "there must be a cell (like 7e2, 7e2s or skip) before the head")
    head = number("h", at, "the channels of the head")
    if at + 1 < len(words):
        wrong(words[at + 1][1], f"nothing follows the head, but there is {words[at + 1][0]!r}")
    return Description(words[0][0], width, tuple(cells), head)


def write(description: Description) -> str:
    """The notation; ``parse(write(d)) == d``."""
    cells = (word(cell) for cell in description.cells)
    return " ".join([description.front, f"w{description.width}", *cells, f"h{description.head}"])


def word(cell: Cell | None) -> str:
    """One cell as written."""
    return "skip" if cell is None else f"{cell.kernel}e{cell.expansion}{'s' if cell.strided else ''}"


def front_of(written: str) -> Front:
    """The front end of ``mfcc10``, ``lfbe40``, ``raw`` or ``sinc``.

    Raises:
        ValueError: there is none of that name, or not with so many bins.
    """
    if written in ("raw", "sinc"):
        return Front("raw")
    match = re.fullmatch(r"(mfcc|lfbe)([1-9]\d?)", written)
    if not match:
        raise ValueError(f"expected a front end (mfcc10 to mfcc40, lfbe10 to lfbe80, raw, sinc), not {written!r}")
    fewest, most = BINS[match[1]]
    if not fewest <= int(match[2]) <= most:
        raise ValueError(f"{match[1]} has {fewest} to {most} bins, not {match[2]}")
    return Front(match[1], int(match[2]), WINDOW_SAMPLES, HOP_SAMPLES)


def network_of(notation: str | Description, labels: tuple[str, ...]) -> Network:
    """The network that a notation describes.

    Raises:
        NotationError: the notation does not parse.
        ValueError: its strides leave no frame of a second.
    """
    description = parse(notation) if isinstance(notation, str) else notation
    front, width = front_of(description.front), description.width
    layers, bins = _stem(description.front, front, width)
    for number, cell in enumerate(description.cells, start=1):
        if cell is not None:
            added, bins = _cell(f"cell{number}", cell, width, bins, layers[-1].name)
            layers += added
    layers.append(Conv("head", width, description.head))
    frames = _frames_of_a_second(front, layers)
    if frames < 1:
        raise ValueError(f"{write(description)}: so many strides leave no frame of a second of audio; take out some s")
    layers += [Pool("pool", frames), Output("output", description.head, len(labels))]
    return Network(front, labels, tuple(layers), write(description))


def _frames_of_a_second(front: Front, layers: Sequence[Layer]) -> int:
    frames = front.frames(SAMPLE_RATE)
    for layer in layers:
        if isinstance(layer, Conv):
            frames //= layer.stride[0]
    return frames


def _stem(written: str, front: Front, width: int) -> tuple[list[Layer], int]:
    if front.kind != "raw":
        padding = same_padding(front.bins, STEM_KERNEL[1], STEM_STRIDE[1])
        return [Conv("stem", 1, width, STEM_KERNEL, STEM_STRIDE, padding)], -(-front.bins // STEM_STRIDE[1])
    taps, filters = (SINC_TAPS, "sinc") if written == "sinc" else (RAW_TAPS, "free")
    layers: list[Layer] = [Conv("stem", 1, width, (taps, 1), (RAW_STRIDE, 1), filters=filters)]
    for number, (kernel, stride) in enumerate(RAW_REDUCTIONS, start=1):
        layers.append(Conv(f"stem{number}_depthwise", width, width, (kernel, 1), (stride, 1), depthwise=True))
        layers.append(Conv(f"stem{number}_pointwise", width, width))
    return layers, 1


def _cell(name: str, cell: Cell, width: int, bins: int, before: str) -> tuple[list[Layer], int]:
    inner, stride = width * cell.expansion, 2 if cell.strided else 1
    layers: list[Layer] = [Conv(f"{name}_expand", width, inner)] if cell.expansion > 1 else []
    if bins == 1:
        kernel, strides, padding = (cell.kernel, 1), (stride, 1), (0, 0)
    else:
        kernel, strides = (cell.kernel, cell.kernel), (stride, stride)
        padding = same_padding(bins, cell.kernel, stride)
    layers.append(Conv(f"{name}_depthwise", inner, inner, kernel, strides, padding, depthwise=True))
    layers.append(Conv(f"{name}_project", inner, width, relu=False))
    if not cell.strided:
        layers.append(Add(f"{name}_add", before))
    return layers, -(-bins // stride) if bins > 1 else 1


def scaled(channels: int, multiplier: float) -> int:
    """``channels * multiplier`` rounded to 8, at least 8 and at least 90% of the product (as in MobileNet V2).

    >>> scaled(72, 0.5), scaled(144, 0.5)
    (40, 72)
    """
    exact = channels * multiplier
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


@dataclass(frozen=True)
class Space:
    """Every cell takes one of ``kernels`` x ``expansions``, or is empty (``skip``; not where it has a stride).

    A *path* is a candidate's number per cell, in the order of ``candidates``.
    """

    labels: tuple[str, ...]
    front: str = "mfcc10"
    width: int = BASE_WIDTH
    head: int = BASE_HEAD
    cells: int = 12
    strided: tuple[int, ...] = (0,)  # cells with stride 2, counted from 0
    kernels: tuple[int, ...] = (3, 5, 7)
    expansions: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    skip: bool = True

    def __post_init__(self) -> None:
        front_of(self.front)
        if min(self.width, self.head, self.cells, len(self.kernels), len(self.expansions)) < 1:
            raise ValueError(f"a space needs channels, cells, kernels and expansions, got {self}")
        if not set(self.strided) <= set(range(self.cells)):
            raise ValueError(f"strided names cells 0 to {self.cells - 1}, got {self.strided}")
        if len(self.labels) < 2 or any(len(set(v)) != len(v) for v in (self.labels, self.kernels, self.expansions)):
            raise ValueError(f"labels (two or more), kernels and expansions must be distinct, got {self}")
        # Refuses what no path can build.
        self.network(tuple(0 for _ in range(self.cells)))

    @staticmethod
    def of_multiplier(labels: tuple[str, ...], front: str = "mfcc10", multiplier: float = 1.0) -> Space:
        """The paper's supernet: 72 channels and a head of 144, times ``multiplier``."""
        return Space(labels, front, scaled(BASE_WIDTH, multiplier), scaled(BASE_HEAD, multiplier))

    @property
    def choices(self) -> tuple[tuple[Cell | None, ...], ...]:
        """What each cell may be."""
        return tuple(
            tuple(Cell(kernel, expansion, strided) for kernel in self.kernels for expansion in self.expansions)
            + ((None,) if self.skip and not strided else ())
            for strided in (number in self.strided for number in range(self.cells))
        )

    @property
    def candidates(self) -> tuple[tuple[str, ...], ...]:
        """What each cell may be, as written."""
        return tuple(tuple(word(cell) for cell in cells) for cells in self.choices)

    @property
    def size(self) -> int:
        """How many networks it holds."""
        return math.prod(len(cells) for cells in self.choices)

    def description(self, path: Sequence[int]) -> Description:
        """The network of a path, taken apart.

        Raises:
            ValueError: not one number per cell, or one that is no candidate.
        """
        counts = [len(cells) for cells in self.choices]
        if len(path) != len(counts) or not all(0 <= p < count for p, count in zip(path, counts)):
            raise ValueError(f"a path gives each cell a candidate below {counts}, got {list(path)}")
        cells = tuple(choices[p] for choices, p in zip(self.choices, path))
        return Description(self.front, self.width, cells, self.head)

    def network(self, path: Sequence[int]) -> Network:
        """The network of a path."""
        return network_of(self.description(path), self.labels)

    def path(self, notation: str) -> tuple[int, ...]:
        """The path of a notation.

        Raises:
            ValueError: the notation lies outside this space (where is named).
        """
        found = parse(notation)
        if (found.front, found.width, found.head, len(found.cells)) != (self.front, self.width, self.head, self.cells):
            raise ValueError(
                f"the space has {self.front} w{self.width}, {self.cells} cells and h{self.head}, not {notation!r}"
            )
        path = []
        for number, (cell, choices) in enumerate(zip(found.cells, self.choices), start=1):
            if cell not in choices:
                raise ValueError(f"cell {number} is one of {' '.join(map(word, choices))}, not {word(cell)}")
            path.append(choices.index(cell))
        return tuple(path)


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        weights: of convolutions and the output layer, as multiplied (a sinc filter counts all its taps).
        parameters: all that is trained: weights (of a sinc filter two frequencies), batchnorm's gamma and beta,
            the output's bias.
        macs_per_clip: multiply-accumulates for the last logits of one second; those with padding count.
        macs_per_second: of a stream, logits after every frame; the mean over a long time.
        activations: values of the input and of all layers' outputs, of the frames that these logits look at.
        peak_bytes_whole: most bytes of those activations at one time, layer by layer.
        peak_bytes_streaming: the same when each input frame runs through all layers: what layers remember, and the
            frames at hand.
        peak_values_whole, peak_values_streaming: the same, counted in values.

    Bytes: 8 bits per activation, 16 per raw sample; programs of other widths: ``resources/convolutional.py``.
    """

    weights: int
    parameters: int
    macs_per_clip: int
    macs_per_second: float
    activations: int
    peak_bytes_whole: int
    peak_bytes_streaming: int
    peak_values_whole: int
    peak_values_streaming: int


def cost(network: Network) -> Cost:
    """Count a network, by its shapes alone."""
    found, frames = shapes(network, SAMPLE_RATE), _frames(network)
    rate = Fraction(SAMPLE_RATE, network.front.hop_samples)
    weights = parameters = 0
    macs_second = Fraction(0)
    for layer in network.layers:
        if isinstance(layer, Conv):
            rate /= layer.stride[0]
            parameters += (2 * layer.outputs if layer.filters == "sinc" else layer.weights) + 2 * layer.outputs
        elif isinstance(layer, Output):
            parameters += layer.weights + layer.outputs
        if isinstance(layer, Conv | Output):
            weights += layer.weights
            macs_second += layer.weights * found[layer.name][1] * rate
    per_frame_values = {name: bins * channels for name, (_, bins, channels) in found.items()}
    values = {name: frames[name] * count for name, count in per_frame_values.items()}
    return Cost(
        weights,
        parameters,
        sum(layer_macs(network).values()),
        float(macs_second),
        sum(values.values()),
        _peak(network, values, 2),
        _peak(network, per_frame_values, 2) + _remembered(network, 2),
        _peak(network, values, 1),
        _peak(network, per_frame_values, 1) + _remembered(network, 1),
    )


def layer_macs(network: Network) -> dict[str, int]:
    """Multiply-accumulates of each layer for the last logits of one second; those with padding count."""
    found, frames = shapes(network, SAMPLE_RATE), _frames(network)
    return {
        layer.name: frames[layer.name] * found[layer.name][1] * layer.weights if isinstance(layer, Conv | Output) else 0
        for layer in network.layers
    }


def _frames(network: Network) -> dict[str, int]:
    """Frames of the input and of each layer that the last logits of one second look at."""
    totals, first = looked_at(network, network.front.frames(SAMPLE_RATE))
    return {name: total - first[name] for name, total in totals.items()}


def _peak(network: Network, values: dict[str, int], wide: int) -> int:
    # ``wide``: what a raw sample, or a sum, counts: 2 bytes, or 1 value.
    # A tensor lives from its making to its last reader; logits are not activations.
    names = ["input", *(layer.name for layer in network.layers)]
    last_read = {name: at + 1 for at, name in enumerate(names)}
    for at, layer in enumerate(network.layers, start=1):
        if isinstance(layer, Add):
            last_read[layer.source] = max(last_read[layer.source], at)
    sizes = [values[name] * (wide if _sampled(network, name) else 1) for name in names[:-1]] + [0]
    return max(
        sum(sizes[made] for made in range(at + 1) if made == at or last_read[names[made]] >= at)
        for at in range(1, len(names))
    )


def _remembered(network: Network, wide: int) -> int:
    found, before, total = shapes(network, SAMPLE_RATE), "input", 0
    for layer in network.layers:
        _, bins, channels = found[before]
        if isinstance(layer, Pool) and bins > 1:
            # A pool keeps sums over frequency.
            total += (layer.frames - 1) * channels * wide
        else:
            total += (window_frames(layer)[0] - 1) * bins * channels * (wide if _sampled(network, before) else 1)
        before = layer.name
    return total


def _sampled(network: Network, name: str) -> bool:
    return name == "input" and network.front.kind == "raw"
