"""What a notebook shows and publishes: a figure or a table with its caption, and the key figures of its run.

The same calls serve JupyterLab and the report page: a figure travels as Plotly JSON, not as a widget, so it
neither hangs in batch nor vanishes from the page.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from IPython.display import display

PLOTLY_MIME = "application/vnd.plotly.v1+json"
KEY_FIGURES_MIME = "application/vnd.kwsbench.figures+json"
SYSTEMS_MIME = "application/vnd.kwsbench.systems+json"
CAPTION = {"kwsbench": {"role": "caption"}}  # metadata of the output that captions the one before it


def show(figure: Any, caption: str) -> None:
    """Display a Plotly figure and its caption (Markdown with $math$).

    What a reader who cannot see the plot is told is ``figure.layout.meta["alt"]``, else the figure's title.
    """
    bundle = json.loads(figure.to_json())  # typed arrays stay compact; NaN becomes null
    title = bundle.get("layout", {}).get("title", {}).get("text", "figure")
    display({PLOTLY_MIME: bundle, "text/plain": f"[plot] {title}"}, raw=True)
    _caption(caption)


def show_table(html: str, caption: str) -> None:
    """Display an HTML table (see reports.tables) and its caption."""
    display({"text/html": html, "text/plain": "[table]"}, raw=True)
    _caption(caption)


def publish(**figures: int | float | str | bool) -> None:
    """Publish the key figures of this run: they stand in the report's index, so put units in the names.

    Raises TypeError for anything but a number, text or truth value, ValueError for a NaN.
    """
    plain: dict[str, Any] = {}
    for name, value in figures.items():
        if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # NumPy scalars
            value = value.item()
        if not isinstance(value, (bool, str, numbers.Real)):
            raise TypeError(f"key figure {name} must be a number, text or truth value, got {type(value).__name__}")
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"key figure {name} is NaN; publish what was measured, or leave it out")
        plain[name] = str(value) if isinstance(value, float) and math.isinf(value) else value
    # A list, since notebooks sort the keys of objects.
    rows = [{"name": name, "value": value} for name, value in plain.items()]
    text = "\n".join(f"{name}: {value}" for name, value in plain.items())
    display({KEY_FIGURES_MIME: {"figures": rows}, "text/plain": text}, raw=True)


def publish_systems(records: Sequence[Mapping[str, Any]]) -> None:
    """Publish what the run measured of each system (training.record.system_record): the index overlays their DET
    curves, puts their FDR over their bytes, and finds the first layer in which two runs differ.

    Raises ValueError for a NaN or infinity (JSON has none), TypeError for what JSON cannot hold.
    """
    rows = json.loads(json.dumps(list(records), allow_nan=False))
    text = "systems: " + "; ".join(str(row["system"]) for row in rows)
    display({SYSTEMS_MIME: {"systems": rows}, "text/plain": text}, raw=True)


def _caption(text: str) -> None:
    display({"text/markdown": f"*{text}*", "text/plain": text}, raw=True, metadata=CAPTION)
