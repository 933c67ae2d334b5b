"""Still pictures for documents (Matplotlib, PNG): what a page without scripts can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

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
