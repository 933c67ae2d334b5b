"""What notebooks 09 and 10 count: rows for tables of searches, of networks and their widths, and points of fronts.

Plain values in (search records, the JSON of ``training.pareto``, width records, integer programs), rows out, as in the
other studies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kwsbench.integer import convolution_run
from kwsbench.integer.convolution import Convolutional
from kwsbench.metrics.paired import AccuracyDifference, accuracy_difference
from kwsbench.models.layers import Network
from kwsbench.models.space import cost

CHUNKS = (1, 7, 20)  # frames handed over at a time
SAMPLE_CHUNKS = (97, 1600, 7000)  # the same of raw audio: samples


def candidate_rows(networks: Mapping[str, Network]) -> list[dict[str, Any]]:
    """One row per network: its notation and what it costs."""
    rows = []
    for name, network in networks.items():
        c = cost(network)
        rows.append(
            {
                "network": name,
                "notation": network.notation,
                "weights": c.weights,
                "MMACs per clip": c.macs_per_clip / 1e6,
                "peak RAM, streaming (kB)": c.peak_bytes_streaming / 1000,
                "peak RAM, whole clip (kB)": c.peak_bytes_whole / 1000,
            }
        )
    return rows


def cell_labels(network: Network) -> dict[str, str]:
    """What stands in the blocks of a drawing: the cells as they are written, by the names of their layers."""
    words = network.notation.split()[2:-1]
    return {f"cell{i}": word for i, word in enumerate(words, 1) if word != "skip"}


def pareto_rows(summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per network and quantization of ``pareto.json``."""
    rows = []
    for entry in summary:
        difference = entry.get("difference")
        rows.append(
            {
                "network": entry["network"],
                "quantization": entry["quantization"],
                "accuracy_percent": 100 * entry["accuracy"]["mean"],
                "95% interval": f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}",
                "from float (points)": None if difference is None else 100 * difference["mean"],
                "MMACs": entry["macs_per_clip"] / 1e6,
                "flash_bytes": round(entry["flash_bytes"]["mean"]),
                "bits per weight": entry["bits_per_weight"]["mean"],
                "bits per activation": entry["bits_per_activation"]["mean"],
                "on the front": "yes" if entry["on_front"] else "",
            }
        )
    return rows


def float_rows(summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per network of ``pareto.json`` in float."""
    return [
        {
            "network": entry["network"],
            "notation": entry["notation"],
            "accuracy_percent": 100 * entry["accuracy"]["mean"],
            "95% interval": f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}",
            "weights": entry["weights"],
            "MMACs": entry["macs_per_clip"] / 1e6,
        }
        for entry in summary
        if entry["quantization"] == "float"
    ]


def pareto_points(
    summary: Sequence[Mapping[str, Any]], x: str, by: str = "quantization"
) -> dict[str, list[dict[str, Any]]]:
    """Points of ``reports.networks.pareto_figure``, grouped by a key of the entries; ``x``: "flash_bytes" (in kB) or
    "macs_per_clip" (in millions). The table's front is one of bytes: points over operations do not know it."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in summary:
        value = entry[x]["mean"] / 1000 if x == "flash_bytes" else entry[x] / 1e6
        groups.setdefault(entry[by], []).append(
            {
                "name": f"{entry['network']}, {entry['quantization']}",
                "x": round(value, 3),
                "y": round(100 * entry["accuracy"]["mean"], 2),
                "low": round(100 * entry["low"], 2),
                "high": round(100 * entry["high"], 2),
                **({"on_front": entry["on_front"]} if x == "flash_bytes" else {}),
            }
        )
    return groups


def trial_points(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Trained trials of a search as points: operations in millions against accuracy on validation in percent."""
    return [
        {
            "name": row["notation"],
            "x": row["macs"] / 1e6,
            "y": 100 * row["accuracy"],
            "low": 100 * row["accuracy"],
            "high": 100 * row["accuracy"],
        }
        for row in rows
        if row["accuracy"] is not None
    ]


def streaming_rows(program: Convolutional, clips: np.ndarray, backend: str = "numba") -> list[dict[str, Any]]:
    """Whole against streamed, and kernels against the reference: one row per way of handing over the same clips
    ``[N, T, bins]``, with the values that differ."""
    whole = [convolution_run.step(program, clip, convolution_run.fresh(program), backend)[0] for clip in clips]
    rows = []
    for chunk in SAMPLE_CHUNKS if program.input_bits == 16 else CHUNKS:
        different = 0
        for clip, wanted in zip(clips, whole, strict=True):
            state, parts = convolution_run.fresh(program), []
            for at in range(0, len(clip), chunk):
                logits, state = convolution_run.step(program, clip[at : at + chunk], state, backend)
                parts.append(logits)
            different += int(np.count_nonzero(np.concatenate(parts) != wanted))
        rows.append(
            {"run": f"streamed, {chunk:,} at a time", "outputs": sum(w.size for w in whole), "different": different}
        )
    different = 0
    for clip in clips:
        ours, theirs = (convolution_run.trace(program, clip, name) for name in (backend, "reference"))
        different += sum(int(np.count_nonzero(a != b)) for a, b in zip(ours, theirs, strict=True))
    values = len(clips) * sum(a.size for a in convolution_run.trace(program, clips[0], "reference"))
    return [*rows, {"run": "every layer, kernels against reference", "outputs": values, "different": different}]


def width_rows(record: Any) -> list[dict[str, Any]]:
    """One row per layer of a ``WidthRecord``: widths at the first and the last snapshot, of weights and of outputs."""
    weights, outputs = record.of("weight"), record.of("output")
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in (*weights, *outputs)))
    rows = []
    for name in names:
        row: dict[str, Any] = {"layer": name}
        for what, found in (("weights", weights), ("outputs", outputs)):
            values = found.get(f"{name}.{'weight' if what == 'weights' else 'output'}")
            row |= {
                f"{what}, first": None if values is None else float(values[0]),
                f"{what}, last": None if values is None else float(values[-1]),
            }
        rows.append(row)
    return rows


def mean_widths(record: Any) -> list[float]:
    """Mean width of all tensors of a ``WidthRecord`` at each snapshot."""
    return [round(float(v), 3) for v in record.bits.mean(axis=1)]


def freezing(experiment: Any, system: Any) -> dict[str, Any]:
    """Accuracy of a stage-2 system on validation, and of the stage 1 behind it, whose widths had just become whole."""
    before = experiment.accuracy([replace(system, kind="stage_one")], "validation")
    after = experiment.accuracy([system], "validation")
    return {
        "stage 1, frozen (%)": 100 * before["accuracy"],
        "stage 2, integers (%)": 100 * after["accuracy"],
        "95% interval": f"{100 * after['low']:.1f} to {100 * after['high']:.1f}",
        "clips": after["n"],
    }


def width_conclusion(result: Mapping[str, Any], records: Mapping[str, Any]) -> str:
    """What learned widths did, in a sentence or two."""
    rows = {row["quantization"]: row for row in result["rows"]}
    told = []
    for name, row in rows.items():
        if row["kind"] == "stage_two":
            told.append(
                f"{name}: {100 * row['accuracy']:.1f}% at {row['bits_per_weight']:.2f} bits per weight and "
                f"{row['bits_per_activation']:.2f} per activation"
            )
    moved = ", ".join(f"{len(r.moved())} of {len(r.tensors)} tensors ({name})" for name, r in records.items())
    failed = "".join(f" {f['quantization']} failed: {f['why']}" for f in result["failed"])
    return f"Float: {100 * rows['float']['accuracy']:.1f}%. {'; '.join(told)}. Widths moved in {moved}.{failed}"


def key(name: str) -> str:
    """A name of the table as a name of a key figure."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def space_rows(search: Any) -> list[dict[str, Any]]:
    """One row per cell of a ``ClipSearch``: its candidates and the operations of the cheapest and the dearest."""
    rows = []
    for number, (names, macs) in enumerate(zip(search.space.candidates, search.table.cells, strict=True), 1):
        shown = ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])}, ... {', '.join(names[-2:])}"
        rows.append(
            {
                "cell": number,
                "candidates": shown,
                "number": len(names),
                "least MMACs": min(macs) / 1e6,
                "most MMACs": max(macs) / 1e6,
            }
        )
    whole = {"cell": "all, with stem and head", "candidates": search.front, "number": search.space.size}
    return [*rows, whole | {"least MMACs": search.table.least / 1e6, "most MMACs": search.table.most / 1e6}]


def strategy_rows(search: Any, strategies: Sequence[str]) -> list[dict[str, Any]]:
    """One row per strategy of a ``ClipSearch``: what it found, and what it spent."""
    rows = []
    for strategy in strategies:
        row: dict[str, Any] = {"strategy": strategy, "found": search.found(strategy)}
        if strategy == "proxyless":
            record = search.record()
            row |= {"trained": 0, "validation_percent": None, "bits": "", "GMACs spent": record.macs / 1e9}
        else:
            trials = search.trials(strategy)
            best = trials.best
            row |= {
                "trained": sum(t.steps > 0 for t in trials.trials),
                "validation_percent": 100 * best.accuracy,
                "bits": ", ".join(f"{name} {width}" for name, width in best.bits.items()),
                "GMACs spent": trials.macs / 1e9,
            }
        rows.append(row)
    return rows


def search_differences(right: Mapping[str, np.ndarray], speakers: np.ndarray) -> dict[str, AccuracyDifference]:
    """What "proxyless" found minus what each other strategy found, clip by clip. ``right``: by strategy, bool [clips],
    whether a clip was told right; ``speakers``: their numbers [clips]."""
    ours = right["proxyless"][None]
    return {
        name: accuracy_difference(ours, theirs[None], groups=speakers)
        for name, theirs in right.items()
        if name != "proxyless"
    }


def search_conclusion(
    result: Mapping[str, Any], found: Mapping[str, str], differences: Mapping[str, AccuracyDifference]
) -> str:
    """How the found networks did beside each other, in a sentence or two."""
    floats = {e["network"]: e for e in result["summary"] if e["quantization"] == "float"}
    told = [
        f"{strategy} found `{notation}` ({floats[strategy]['macs_per_clip'] / 1e6:.2f} million operations, "
        f"{100 * floats[strategy]['accuracy']['mean']:.1f}%)"
        for strategy, notation in found.items()
    ]
    if not differences:
        return f"{told[0]}."
    against = ", ".join(
        f"{strategy} {100 * d.mean:+.1f} points (95% {100 * d.low:+.1f} to {100 * d.high:+.1f})"
        for strategy, d in differences.items()
    )
    verdict = (
        "Every interval holds 0: no difference is shown"
        if all(d.outcome == "ties" for d in differences.values())
        else "An interval without 0 speaks for these networks and this seed; other seeds tell whether it holds"
    )
    return f"{'; '.join(told)}. At equal cost, the differentiable search against {against}, clip by clip. {verdict}."
