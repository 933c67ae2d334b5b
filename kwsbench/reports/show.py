"""What a notebook shows and publishes: a figure, a table or a sound with its caption, the key figures of its run.

The same calls serve JupyterLab and the report page: a figure travels as Plotly JSON, not as a widget, so it
neither hangs in batch nor vanishes from the page.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import numbers
import re
import wave
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from IPython.display import display

PLOTLY_MIME = "application/vnd.plotly.v1+json"
KEY_FIGURES_MIME = "application/vnd.kwsbench.figures+json"
SYSTEMS_MIME = "application/vnd.kwsbench.systems+json"
CAPTION = {"kwsbench": {"role": "caption"}}  # metadata of the output that captions the one before it
AUDIO_SOURCE = re.compile(r'src="data:audio/wav;base64,(?P<data>[A-Za-z0-9+/=]+)"')


def show(figure: Any, caption: str) -> None:
    """Display a Plotly figure and its caption (Markdown with $math$).

    What a reader who cannot see the plot is told is ``figure.layout.meta["alt"]``, else the figure's title.
    """
    bundle = json.loads(figure.to_json())  # typed arrays stay compact; NaN becomes null
    title = bundle.get("layout", {}).get("title", {}).get("text", "figure")
    display({PLOTLY_MIME: bundle, "text/plain": f"[plot] {title}"}, raw=True)
    _caption(caption)


def show_table(table: str, caption: str) -> None:
    """Display an HTML table (see reports.tables) and its caption."""
    display({"text/html": table, "text/plain": "[table]"}, raw=True)
    _caption(caption)


def show_audio(samples: np.ndarray, sample_rate: int, caption: str, label: str = "") -> None:
    """Display a player of ``samples`` (mono, float, full scale 1, shape [n]) and its caption.

    The sound travels as 16-bit WAV: JupyterLab plays it, the report writes it beside its pages. Louder samples
    are clipped. ``label`` names the player for those who cannot see the page; the caption by default.

    Raises:
        ValueError: samples are empty, not mono, or not finite; the sample rate is not positive.
    """
    encoded = base64.b64encode(wav_bytes(samples, sample_rate)).decode()
    told = label or caption
    player = f'<audio controls aria-label="{html.escape(told)}" src="data:audio/wav;base64,{encoded}"></audio>'
    seconds = len(samples) / sample_rate
    display(
        {"text/html": player, "text/plain": f"[audio] {told} ({seconds:.2f} s)"},
        raw=True,
        metadata={"kwsbench": {"role": "audio", "label": told}},
    )
    _caption(caption)


def wav_bytes(samples: np.ndarray, sample_rate: int) -> bytes:
    """Mono float samples [n] of full scale 1 as a 16-bit PCM WAV file; see `show_audio` for what is refused."""
    values = np.asarray(samples, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"a sound is one channel of samples [n], got the shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a sound holds finite samples only; this one has NaN or infinity")
    if sample_rate <= 0:
        raise ValueError(f"the sample rate must be positive, got {sample_rate}")
    pcm = np.round(32767 * values.clip(-1, 1)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(int(sample_rate))
        writer.writeframes(pcm.tobytes())
    return file.getvalue()


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
