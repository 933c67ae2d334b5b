"""Still pictures for documents (Matplotlib, PNG): what a page without scripts can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from kwsbench.files import replacing
from kwsbench.metrics.det import DetCurve
from kwsbench.reports.style import PALETTE, matplotlib_style


def det_picture(systems: Mapping[str, Sequence[DetCurve]], path: Path, target_frr: float = 0.05) -> None:
    """DET curves of several systems, one thin line per seed: FRR against FDR of clips and against FA/h.

    A count of zero has no place on the logarithmic axis of FA/h; it is drawn at half a count.
    """
    style = {**matplotlib_style(), "text.color": "#333333", "savefig.facecolor": "white"}
    with matplotlib.rc_context(rc=style):  # type: ignore[arg-type]
        figure = Figure(figsize=(10, 4.6), dpi=110, layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, (name, curves) in enumerate(systems.items()):
            # Later rounds of the palette are dashed: post-training beside trained of the same colour.
            look = {"color": PALETTE[i % len(PALETTE)], "linestyle": ("-", "--", ":")[i // len(PALETTE) % 3]}
            for j, curve in enumerate(curves):
                label = name if j == 0 else None
                left.plot(100 * curve.fdr, 100 * curve.frr, linewidth=1.4, label=label, **look)
                events = np.maximum(curve.false_accepts, 0.5) / curve.negative_hours
                right.plot(events, 100 * curve.frr, linewidth=1.4, **look)
        hours = next(iter(systems.values()))[0].negative_hours
        left.set(xlim=(0, 15), xlabel="FDR of clips (%)", ylabel="FRR (%)")
        right.set(xscale="log", xlabel=f"false accepts per hour ({hours:.2f} h of negative audio)", ylabel="FRR (%)")
        right.set_xlim(0.5 / hours, 1000)
        for axes in (left, right):
            axes.set_ylim(0, 20)
            axes.axhline(100 * target_frr, color="#767676", linewidth=1, linestyle=":")
        figure.legend(loc="outside right center", fontsize=9)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")


# How a quantization is drawn, by how its name in a table of training/pareto.py begins.
MARKERS = {"float": "o", "not trained": "x", "trained": "^", "DiffQ": "v", "mixed": "D", "": "s"}


def pareto_picture(summary: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The table of `kwsbench pareto`: accuracy over the bytes of a device (every quantization) and over operations
    (float), with 95% intervals; a colour per network, a marker per kind of quantization, the fixed widths joined."""
    style = {**matplotlib_style(), "text.color": "#333333", "savefig.facecolor": "white"}
    networks = list(dict.fromkeys(entry["network"] for entry in summary))
    with matplotlib.rc_context(rc=style):  # type: ignore[arg-type]
        figure = Figure(figsize=(11, 5.2), dpi=110, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for i, network in enumerate(networks):
            colour = PALETTE[i % len(PALETTE)]
            mine = [e for e in summary if e["network"] == network and e["kind"] != "control"]
            for entry in mine:
                marker = _marker(entry["quantization"])
                _point(left, entry["flash_bytes"]["mean"] / 1000, entry, colour, marker)
                if entry["kind"] == "float":
                    _point(right, entry["macs_per_clip"] / 1e6, entry, colour, marker)
            fixed = sorted(
                (e["flash_bytes"]["mean"] / 1000, 100 * e["accuracy"]["mean"])
                for e in mine
                if e["quantization"].endswith((" bit", " bits")) and "budget" not in e["quantization"]
            )
            left.plot(*zip(*fixed), color=colour, linewidth=1, alpha=0.6) if fixed else None
            heard = f" ({mine[0]['front']})" if network.startswith("found") else ""
            left.plot([], [], color=colour, marker="s", linewidth=1, label=network + heard)
        shown = {_marker(e["quantization"]) for e in summary}
        names = {"o": "float", "s": "fixed width", "x": "not trained", "^": "trained width", "v": "DiffQ",
                 "D": "mixed 2/4/8"}  # fmt: skip
        for marker, name in names.items():
            if marker in shown:
                left.plot([], [], color="#333333", marker=marker, linestyle="", label=name)
        left.set(xscale="log", xlabel="FLASH (kB; float: 4 bytes per parameter)", ylabel="accuracy on test (%)")
        right.set(xscale="log", xlabel="operations of a clip (millions), in float")
        for axes in (left, right):
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        figure.legend(loc="outside right center", fontsize=9)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")


def _marker(quantization: str) -> str:
    return next(m for part, m in MARKERS.items() if quantization.startswith(part) or quantization.endswith(part))


def _point(axes: Any, x: float, entry: Mapping[str, Any], colour: str, marker: str) -> None:
    y = 100 * entry["accuracy"]["mean"]
    span = [[max(0.0, y - 100 * entry["low"])], [max(0.0, 100 * entry["high"] - y)]]
    axes.errorbar(x, y, yerr=span, color=colour, marker=marker, markersize=6, elinewidth=0.8, alpha=0.85, linestyle="")
