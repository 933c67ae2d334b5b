"""The network explorer's arithmetic: a notation, or a network by its name, and two widths -> drawing, costs per block.

Operations and bytes are those that ``resources/convolutional.py`` finds in an integer program of the network. Such a
program is made up here (``stand_in``): every code is 1, for sizes do not depend on what was trained. FLASH holds packed
weights only; the constants beside them do depend on it.

Pickers and notation say the same: a picker changes a ``Description`` (models/space.py), which is written, and the field
is parsed back into the pickers.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from kwsbench.arithmetic.codebook import check_bits
from kwsbench.arithmetic.residual import activation_range
from kwsbench.data.clips import clip_task
from kwsbench.integer import convolution as program
from kwsbench.integer.program import InputQuantizer, OutputDense, Proof
from kwsbench.models import layers
from kwsbench.models.space import SAMPLE_RATE, Cell, Cost, Description, cost, network_of
from kwsbench.reports.network_study import cell_labels
from kwsbench.reports.networks import blocks, network_drawing
from kwsbench.reports.style import HEIGHT_PX, text
from kwsbench.resources.convolutional import Needs, needs, operation_table
from kwsbench.training.pareto import networks_of
from kwsbench.training.search_record import SearchRecord, Trials

LABELS = clip_task("twelve").labels
START = "mfcc10 w32 7e2s 7e2 skip 5e1 h64"
FRONTS = ("mfcc10", "mfcc20", "mfcc40", "lfbe20", "lfbe40", "lfbe80", "raw", "sinc")
KERNELS, EXPANSIONS = (3, 5, 7, 9), (1, 2, 3, 4, 5, 6)
CHANNELS, HEAD_CHANNELS, CELLS = (8, 96), (8, 192), (1, 12)  # fewest and most that sliders offer
MOST_WEIGHTS = 4_000_000  # packing more takes longer than a slider should
TOTAL = "total"
MODELLED = "modelled"


@dataclass(frozen=True)
class NetworkState:
    """What field, menu and sliders say. ``name``: of a network without notation, shown in place of ``notation``."""

    notation: str = START
    name: str = ""
    weight_bits: int = 8
    activation_bits: int = 8

    def __post_init__(self) -> None:
        check_bits(self.weight_bits)
        check_bits(self.activation_bits)


@dataclass(frozen=True, eq=False)
class NetworkView:
    """What the explorer shows of a state. ``rows``: one per block, and their total."""

    state: NetworkState
    name: str
    network: layers.Network = field(repr=False)
    cost: Cost
    needs: Needs
    rows: tuple[dict[str, Any], ...] = field(repr=False)

    @property
    def packed_bytes(self) -> int:
        """Of all weights, as they are written."""
        return int(self.rows[-1]["packed_bytes"])

    @property
    def command(self) -> str:
        """The command that trains this network and sets it beside others."""
        if self.state.name:
            return f'kwsbench pareto --menu "{self.state.name}"'
        return f'kwsbench pareto --network "{self.network.notation}"'

    def totals(self) -> dict[str, Any]:
        """The row of the summary."""
        return {
            "weights (kB)": self.packed_bytes / 1000,
            "RAM, streaming (kB)": self.needs.ram_streaming_bytes / 1000,
            "RAM, whole clip (kB)": self.needs.ram_whole_bytes / 1000,
            "million MACs per clip": self.needs.macs_per_clip / 1e6,
            "million MACs per second": self.needs.macs_per_second / 1e6,
            "parameters": self.cost.parameters,
        }


# ------------------------------------------------------------ what can be shown


def menu() -> dict[str, layers.Network]:
    """Networks to compare with, by name; those with a notation can be edited from there on."""
    named = networks_of("default", LABELS)
    return {name: network for name, network in named.items() if isinstance(network, layers.Network)}


def found(root: Path) -> dict[str, str]:
    """Notations that searches under ``root`` ended with, by what they are called; damaged records are passed over."""
    notations: dict[str, str] = {}
    for folder in sorted(root.glob("search-*-*")):
        _, strategy, digest = folder.name.split("-", 2)
        try:
            notation = _found_in(folder)
            network_of(notation, LABELS)
        except (OSError, ValueError):
            continue  # not finished, or of a version before
        notations[f"{strategy} {digest[:6]}: {notation}"] = notation
    return notations


def _found_in(folder: Path) -> str:
    record = folder / "record.npz"
    if record.is_file():
        return SearchRecord.load(record).notation
    return Trials.from_json(json.loads((folder / "trials.json").read_text(encoding="utf-8"))).best.notation


# ------------------------------------------------------------ pickers


def offered(usual: Sequence[Any], current: Any) -> list[Any]:
    """What a picker offers: the usual, and what the notation says."""
    return [*usual] if current in usual else sorted([*usual, current])


def picked(kernel: int, expansion: int, strided: bool) -> Cell | None:
    """The cell that a row of pickers says; kernel 0 is an empty one."""
    return Cell(kernel, expansion, strided) if kernel else None


def resized(description: Description, count: int) -> Description:
    """With so many cells: those at the end go, or the last is repeated, without its stride.

    Raises:
        ValueError: no cell.
    """
    if count < 1:
        raise ValueError(f"a network has at least one cell, got {count}")
    cells, last = description.cells, description.cells[-1]
    more = replace(last, strided=False) if last else None
    return replace(description, cells=(*cells[:count], *[more] * (count - len(cells))))


# ------------------------------------------------------------ the view


def view(state: NetworkState) -> NetworkView:
    """Network, costs and rows of a state.

    Raises:
        NotationError: the notation does not parse; the message points at the place.
        ValueError: no network of that name, one that cannot be built, or one too large to be counted at once.
    """
    if state.name:
        known = menu()
        if state.name not in known:
            raise ValueError(f"no network {state.name!r} on the menu: {', '.join(known)}")
        network = known[state.name]
    else:
        network = network_of(state.notation, LABELS)
    counted = cost(network)
    if counted.weights > MOST_WEIGHTS:
        raise ValueError(
            f"{counted.weights:,} weights; at most {MOST_WEIGHTS:,} are counted at once: take fewer channels or cells"
        )
    needed, rows = _counted(network, state.weight_bits, state.activation_bits)
    return NetworkView(state, state.name or network.notation, network, counted, needed, rows)


@lru_cache(maxsize=256)
def _counted(network: layers.Network, weight_bits: int, activation_bits: int) -> tuple[Needs, tuple[dict, ...]]:
    made = stand_in(network, weight_bits, activation_bits)
    operations = {row["operation"]: row for row in operation_table(made)[:-1]}
    totals, first = layers.looked_at(network, network.front.frames(SAMPLE_RATE))
    found = layers.shapes(network, SAMPLE_RATE)
    looked = {name: (totals[name] - first[name]) * bins * channels for name, (_, bins, channels) in found.items()}
    rows: list[dict[str, Any]] = [_row("input", "input", found, looked["input"], {})]
    cells = cell_labels(network)
    for name, group in blocks(network).items():
        added = {
            key: sum(operations[layer.name][key] for layer in group)
            for key in ("weights", "macs_per_clip", "packed_bytes", "state_bytes")
        }
        told = f"{name} ({cells[name]})" if name in cells else name
        rows.append(_row(told, group[-1].name, found, sum(looked[layer.name] for layer in group), added))
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key not in ("block", "output")}
    return needs(made), (*rows, {"block": TOTAL, "output": ""} | total)


def _row(
    block: str, last: str, found: dict[str, tuple[int, int, int]], values: int, added: dict[str, int]
) -> dict[str, Any]:
    nothing = dict.fromkeys(("weights", "macs_per_clip", "packed_bytes", "state_bytes"), 0)
    output = " x ".join(f"{n:,}" for n in found[last])
    return {"block": block, "output": output, "activations": values} | nothing | added


def stand_in(network: layers.Network, weight_bits: int, activation_bits: int) -> program.Convolutional:
    """An integer program with the sizes of ``network`` at these widths; every code is 1."""
    index = {layer.name: i for i, layer in enumerate(network.layers)}
    # The grids of 1 and of 8 bits, and between; each has a code 1.
    grid = "binary" if weight_bits == 1 else "symmetric" if weight_bits == 8 else "odd"
    proof, operations = Proof(1, 1, 1), []
    for layer in network.layers:
        relu = isinstance(layer, layers.Conv) and layer.relu
        limits = *activation_range(activation_bits, relu), activation_bits, 1.0
        operation: program.Operation
        if isinstance(layer, layers.Conv):
            ones = np.ones((layer.outputs, *layer.kernel, 1 if layer.depthwise else layer.inputs), np.int8)
            nothing = np.zeros(layer.outputs, np.int32)
            form = layer.depthwise, layer.stride, layer.padding, nothing, nothing, nothing
            operation = program.Conv(layer.name, ones, weight_bits, grid, *form, *limits, "single", proof)
        elif isinstance(layer, layers.Add):
            operation = program.Add(layer.name, index[layer.source], 1, 1, 0, *limits)
        elif isinstance(layer, layers.Pool):
            operation = program.Pool(layer.name, layer.frames, 1, 0, *limits, "single")
        else:
            ones, nothing = np.ones((layer.outputs, layer.inputs), np.int8), np.zeros(layer.outputs, np.int32)
            operation = OutputDense(layer.name, ones, weight_bits, grid, nothing, np.ones(layer.outputs), proof)
        operations.append(operation)
    bins, bits = network.front.bins, 16 if network.front.kind == "raw" else 8
    heard = InputQuantizer(np.zeros(bins, np.float32), np.ones(bins, np.float32), 1.0)
    return program.Convolutional(network.labels, dict(vars(network.front)), heard, bits, tuple(operations))


# ------------------------------------------------------------ what it looks like

TITLES = {
    "block": "block",
    "output": "time x frequency x channels",
    "weights": "weights",
    "macs_per_clip": "MACs per clip",
    "activations": "activations",
    "packed_bytes": "packed weights",
    "state_bytes": "remembered while streaming",
}
TOTALS_BASIS = {f"{what} (kB)": MODELLED for what in ("weights", "RAM, streaming", "RAM, whole clip")}
BASIS = {"packed_bytes": MODELLED, "state_bytes": MODELLED}


def draw(v: NetworkView) -> go.Figure:
    """The drawing, its costs in the title."""
    told = (
        f"{v.cost.weights:,} weights in {v.packed_bytes / 1000:.1f} kB, "
        f"{v.needs.macs_per_clip / 1e6:.2f} million MACs, RAM {v.needs.ram_streaming_bytes / 1000:.1f} kB streaming"
    )
    fig = network_drawing(v.network, cell_labels(v.network), f"{text(v.name)}<br><b>{told}</b>")
    fig.update_layout(
        meta={"alt": f"{v.name}: {told}."},
        title={"font": {"size": 13}, "y": 0.98, "yanchor": "top"},
        # Two lines of the title, and two rows of legend where there are many kernels.
        margin={"t": 112},
        legend={"font": {"size": 12}},
        height=HEIGHT_PX + 40,
    )
    return fig


def error_html(message: str) -> str:
    """A message as HTML in which a caret stands below its character."""
    return f'<pre style="margin: 0; overflow-x: auto; color: #b71c1c">{html.escape(message)}</pre>'


def command_html(command: str) -> str:
    """A command that one click selects."""
    look = "margin: 0; line-height: 28px; user-select: all; overflow-x: auto"
    return f'<pre style="{look}">{html.escape(command)}</pre>'
