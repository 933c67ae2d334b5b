"""Tables from rows (lists of dictionaries) as HTML or Markdown: escaped, with units and labels.

A column's unit is read from the end of its key (``total_bytes``, ``snr_db``, ``fa_per_hour``) and stands
under its title, with its label (measured, modelled, projected) where one is given. Numbers are right-aligned
with thousands separators and three significant digits; None and NaN are a dash.
"""

from __future__ import annotations

import html
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kwsbench.metrics.det import OperatingPoint

Row = Mapping[str, Any]

UNITS = {
    "_fa_per_hour": "per h",
    "_per_hour": "per h",
    "_per_second": "per s",
    "_bytes": "bytes",
    "_bits": "bits",
    "_hours": "h",
    "_seconds": "s",
    "_ms": "ms",
    "_hz": "Hz",
    "_db": "dB",
    "_percent": "%",
}
NONE = "–"


def html_table(
    rows: Sequence[Row],
    titles: Mapping[str, str] | None = None,
    basis: Mapping[str, str] | None = None,
    caption: str = "",
) -> str:
    """An HTML table of ``rows``; the columns are the keys of the first row.

    Args:
        titles: column titles by key, instead of those made from the keys; only these columns are shown.
        basis: how a column is known, by key ("measured", "modelled", "projected").
    """
    keys, heads = _heads(rows, titles, basis)
    right = {k: any(_is_number(row.get(k)) for row in rows) for k in keys}
    out = ["<table>"]
    if caption:
        out.append(f"<caption>{html.escape(caption)}</caption>")
    out.append("<thead><tr>")
    for key, (title, notes) in zip(keys, heads, strict=True):
        small = f"<br><small>{html.escape(', '.join(notes))}</small>" if notes else ""
        out.append(f'<th scope="col"{_aligned(right[key])}>{html.escape(title)}{small}</th>')
    out.append("</tr></thead><tbody>")
    for row in rows:
        cells = (f"<td{_aligned(right[k])}>{html.escape(format_value(row.get(k)))}</td>" for k in keys)
        out.append(f"<tr>{''.join(cells)}</tr>")
    out.append("</tbody></table>")
    return "\n".join(out)


def markdown_table(
    rows: Sequence[Row], titles: Mapping[str, str] | None = None, basis: Mapping[str, str] | None = None
) -> str:
    """The same as a Markdown table (pipes)."""
    keys, heads = _heads(rows, titles, basis)
    right = {k: any(_is_number(row.get(k)) for row in rows) for k in keys}
    names = [_markdown(title + (f" ({', '.join(notes)})" if notes else "")) for title, notes in heads]
    lines = [
        "| " + " | ".join(names) + " |",
        "|" + "|".join("---:" if right[k] else "---" for k in keys) + "|",
    ]
    for row in rows:
        lines.append("| " + " | ".join(_markdown(format_value(row.get(k))) for k in keys) + " |")
    return "\n".join(lines)


def operating_rows(points: Mapping[str, OperatingPoint]) -> list[dict[str, str]]:
    """Rows of operating points in which every rate stands beside its counts and 95% interval."""
    return [
        {
            "system": name,
            "threshold": f"{p.threshold:.3f}",
            "FRR": f"{_percent(p.frr)} ({p.misses} of {p.n_positives}; "
            f"{_percent(p.frr_low95)} to {_percent(p.frr_high95)})",
            "FDR": f"{_percent(p.fdr)} ({p.false_accepts} of {p.false_accepts + p.true_accepts} accepted; "
            f"{p.n_negative_clips} negative clips)",
            "FA/h": f"{format_value(p.fa_per_hour)} ({p.events} in {format_value(p.hours)} h; "
            f"at most {format_value(p.fa_per_hour_upper95)})",
            "FA/h, speech": NONE if p.speech_hours == 0 else _speech(p),
        }
        for name, p in points.items()
    ]


def format_value(value: Any) -> str:
    """A cell's text.

    >>> [format_value(v) for v in (1234567, 0.123456, 12345.6, 0.0, None, float("nan"), True, "a")]
    ['1,234,567', '0.123', '12,346', '0', '–', '–', 'yes', 'a']
    """
    if value is None:
        return NONE
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isnan(number):
            return NONE
        if math.isinf(number):
            return "∞" if number > 0 else "-∞"
        return f"{number:,.0f}" if abs(number) >= 999.5 else f"{number:.3g}"
    return str(value)


def _heads(
    rows: Sequence[Row], titles: Mapping[str, str] | None, basis: Mapping[str, str] | None
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Keys of the columns; their titles with the notes that stand under them (unit, basis)."""
    if not rows:
        raise ValueError("a table needs at least one row")
    keys = list(titles) if titles else list(rows[0])
    heads = []
    for key in keys:
        suffix = next((s for s in UNITS if key.endswith(s)), "")
        title = titles[key] if titles else key.removesuffix(suffix).replace("_", " ")
        heads.append((title, [note for note in (UNITS.get(suffix), (basis or {}).get(key)) if note]))
    return keys, heads


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _aligned(right: bool) -> str:
    return ' class="number"' if right else ""


def _markdown(cell: str) -> str:
    one_line = html.escape(" ".join(cell.split()), quote=False)
    return re.sub(r"([\\|`*_\[\]$~])", r"\\\1", one_line)


def _speech(p: OperatingPoint) -> str:
    return f"{format_value(p.fa_per_hour_speech)} ({p.speech_events} in {format_value(p.speech_hours)} h)"


def _percent(share: float) -> str:
    return NONE if math.isnan(share) else f"{100 * share:.1f}%"
