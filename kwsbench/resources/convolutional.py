"""What an integer convolutional network needs: multiply-accumulates, FLASH, RAM, average widths, and how each is known.

Labels are those of memory.py: *measured* numbers are lengths of written bytes or sizes of arrays that exist, *modelled*
ones follow from shapes by the rules below.

- MACs: one per weight and output position, those that meet padding among them. A *clip* (one second, unless told
  otherwise) is classified once, at its end: counted are the frames that its last logits look at. A *stream* gives
  logits after every frame of the last layer.
- FLASH: the bytes of export/convolutional.py (weights at their widths, padding included; constants; input tables).
  *Unpadded*: the same with ``ceil(weights * bits / 8)`` bytes per operation; *containers*: with one byte per weight.
  Machine code and the front end are not counted.
- RAM, *streaming*: what all operations remember, at most, plus the largest set of tensors alive while one frame
  runs through; *whole*: the largest set alive while a clip is computed operation by operation, nothing
  remembered, as benches of microcontrollers count. A tensor lives from its making to its last reader. Tensors and
  memories are ``ceil(values * bits / 8)`` bytes each at their widths; in containers one byte per value, or two
  (samples, sums over several frequencies). Accumulators (a few at a time), logits and stack are not counted.
- Average widths: over all weights; over the values of all operations' outputs but the logits, as a stream makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kwsbench.data.audio import SAMPLE_RATE
from kwsbench.export.convolutional import constants_of, convolutional_parts, pack_weights
from kwsbench.export.recognizer import pack_constants
from kwsbench.integer.convolution import Add, Conv, Convolutional, Operation, Pool, shapes
from kwsbench.integer.program import OutputDense
from kwsbench.models import layers
from kwsbench.resources.memory import MEASURED, MODELLED


@dataclass(frozen=True)
class Needs:
    """Of a whole program; ``NEEDS_BASIS`` tells how each number is known. Bytes without a further name: at widths."""

    weights: int
    macs_per_clip: int
    macs_per_second: float
    flash_bytes: int
    flash_unpadded_bytes: int
    flash_container_bytes: int
    ram_streaming_bytes: int
    ram_streaming_container_bytes: int
    ram_whole_bytes: int
    ram_whole_container_bytes: int
    bits_per_weight: float
    bits_per_activation: float


NEEDS_BASIS = {
    "weights": MEASURED,
    "macs_per_clip": MODELLED,
    "macs_per_second": MODELLED,
    "flash_bytes": MEASURED,
    "flash_unpadded_bytes": MODELLED,
    "flash_container_bytes": MEASURED,
    "ram_streaming_bytes": MODELLED,
    "ram_streaming_container_bytes": MODELLED,
    "ram_whole_bytes": MODELLED,
    "ram_whole_container_bytes": MODELLED,
    "bits_per_weight": MODELLED,
    "bits_per_activation": MODELLED,
}

# How each column of operation_table is known.
OPERATION_BASIS = {
    "weights": MEASURED,
    "macs_per_clip": MODELLED,
    "macs_per_second": MODELLED,
    "packed_bytes": MEASURED,
    "container_bytes": MEASURED,
    "constants_bytes": MEASURED,
    "state_bytes": MODELLED,
    "state_container_bytes": MODELLED,
}


@dataclass(frozen=True)
class _Tensor:
    """``frames`` of a clip that are looked at, frames per second of a stream, values per frame, bits of each."""

    frames: int
    rate: float
    values: int
    bits: int


def needs(program: Convolutional, samples: int = SAMPLE_RATE) -> Needs:
    """What the whole program needs; a clip is ``samples`` long."""
    rows, parts = operation_table(program, samples)[:-1], convolutional_parts(program)
    tensors, weighted = _tensors(program, samples), _weighted(program)
    weights = sum(o.codes.size for o in weighted)
    made = tensors[1:-1]
    values = sum(t.rate * t.values for t in made)
    beside = len(parts["constants"]) + len(parts["input"])

    def ram(size: Callable[[int, int], int], state: str) -> tuple[int, int]:
        streaming = sum(row[state] for row in rows) + _peak(program, [size(t.values, t.bits) for t in tensors])
        return streaming, _peak(program, [size(t.frames * t.values, t.bits) for t in tensors])

    (streaming, whole), (streaming_container, whole_container) = (
        ram(_packed, "state_bytes"),
        ram(_contained, "state_container_bytes"),
    )
    return Needs(
        weights=weights,
        macs_per_clip=sum(row["macs_per_clip"] for row in rows),
        macs_per_second=sum(row["macs_per_second"] for row in rows),
        flash_bytes=sum(map(len, parts.values())),
        flash_unpadded_bytes=sum(_packed(o.codes.size, o.weight_bits) for o in weighted) + beside,
        flash_container_bytes=weights + beside,
        ram_streaming_bytes=streaming,
        ram_streaming_container_bytes=streaming_container,
        ram_whole_bytes=whole,
        ram_whole_container_bytes=whole_container,
        bits_per_weight=sum(o.codes.size * o.weight_bits for o in weighted) / weights,
        bits_per_activation=sum(t.rate * t.values * t.bits for t in made) / values,
    )


def operation_table(program: Convolutional, samples: int = SAMPLE_RATE) -> list[dict[str, Any]]:
    """One row per operation and a row of totals: its output, widths, MACs, bytes in FLASH, bytes that it remembers."""
    tensors, sizes = _tensors(program, samples), shapes(program)
    rows: list[dict[str, Any]] = []
    for i, operation in enumerate(program.operations):
        before, after = tensors[i], tensors[i + 1]
        weighted = operation if isinstance(operation, Conv | OutputDense) else None
        weights = weighted.codes.size if weighted else 0
        per_frame = sizes[i + 1][0] * weights
        remembered, bits = _remembered(operation, before, sizes[i][0])
        rows.append(
            {
                "operation": operation.name,
                "kind": operation.kind,
                "output": " x ".join(map(str, (after.frames, *sizes[i + 1]))),
                "weight_bits": weighted.weight_bits if weighted else None,
                "activation_bits": after.bits,
                "weights": weights,
                "macs_per_clip": per_frame * after.frames,
                "macs_per_second": per_frame * after.rate,
                "packed_bytes": len(pack_weights(operation)),
                "container_bytes": weighted.codes.nbytes if weighted else 0,
                "constants_bytes": sum(len(pack_constants(v)) for v in constants_of(operation)),
                "state_bytes": _packed(remembered, bits),
                "state_container_bytes": _contained(remembered, bits),
            }
        )
    total: dict[str, Any] = dict.fromkeys(rows[0]) | {"operation": "total", "kind": "", "output": ""}
    return [*rows, total | {key: sum(row[key] for row in rows) for key in OPERATION_BASIS}]


def _weighted(program: Convolutional) -> list[Conv | OutputDense]:
    return [o for o in program.operations if isinstance(o, Conv | OutputDense)]


def network_of(program: Convolutional) -> layers.Network:
    """The network that a program computes, as data; sinc filters come back as the plain weights that they became."""
    found: list[layers.Layer] = []
    for operation, (_, channels) in zip(program.operations, shapes(program)):
        if isinstance(operation, Conv):
            n, k_t, k_f, _ = operation.codes.shape
            form = (k_t, k_f), operation.stride, operation.padding, operation.depthwise, operation.low == 0
            found.append(layers.Conv(operation.name, channels, n, *form))
        elif isinstance(operation, Add):
            found.append(layers.Add(operation.name, program.operations[operation.source].name))
        elif isinstance(operation, Pool):
            found.append(layers.Pool(operation.name, operation.frames))
        else:
            found.append(layers.Output(operation.name, channels, len(operation.codes)))
    return layers.Network(layers.Front(**program.front), program.labels, tuple(found))


def _tensors(program: Convolutional, samples: int) -> list[_Tensor]:
    """The input and every operation's output."""
    network = network_of(program)
    totals, first = layers.looked_at(network, network.front.frames(samples))
    rate, sizes = SAMPLE_RATE / network.front.hop_samples, shapes(program)
    found = [_Tensor(totals["input"] - first["input"], rate, network.front.bins, program.input_bits)]
    for operation, (frequencies, channels) in zip(program.operations, sizes[1:]):
        if isinstance(operation, Conv):
            rate /= operation.stride[0]
        bits = 32 if isinstance(operation, OutputDense) else operation.activation_bits
        frames = totals[operation.name] - first[operation.name]
        found.append(_Tensor(frames, rate, frequencies * channels, bits))
    return found


def _remembered(operation: Operation, before: _Tensor, frequencies: int) -> tuple[int, int]:
    """Most values that an operation keeps between two frames of a stream, and the bits of each."""
    if isinstance(operation, Conv):
        return (operation.codes.shape[1] - 1) * before.values, before.bits
    if isinstance(operation, Pool):
        # A sum over F values needs log2 F bits more.
        return (operation.frames - 1) * before.values // frequencies, before.bits + (frequencies - 1).bit_length()
    return 0, before.bits


def _packed(values: int, bits: int) -> int:
    return -(-values * bits // 8)


def _contained(values: int, bits: int) -> int:
    return values * (1 if bits <= 8 else 2)


def _peak(program: Convolutional, sizes: list[int]) -> int:
    """Largest sum of tensors alive at one operation; ``sizes`` of the input and of all outputs."""
    last_read = [*range(1, len(sizes)), 0]
    for i, operation in enumerate(program.operations):
        if isinstance(operation, Add):
            last_read[operation.source + 1] = i + 1
    sizes = [*sizes[:-1], 0]  # logits
    return max(
        sum(size for made, size in enumerate(sizes[: at + 1]) if made == at or last_read[made] >= at)
        for at in range(1, len(sizes))
    )
