"""The result table: float, equal-steps float, post-training and two-stage training at several widths.

Per seed: thresholds from validation, one reading of the test split. Over seeds: mean, lowest, highest. Beside the
operating point, ``fdr_matched`` reads each system's *test* curve at the float model's own test FRR, so that the
FDRs stand at one FRR; it describes the curve and chooses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from kwsbench.files import write_json
from kwsbench.metrics.compare import spread
from kwsbench.metrics.det import point_at_frr
from kwsbench.quantizers.attach import QuantizedSpotter, WeightPlan
from kwsbench.training.artifacts import kept_json
from kwsbench.training.experiment import Experiment, System
from kwsbench.training.ladder import compare_exact

FIGURES = ("frr", "fdr", "fa_per_hour", "fa_per_hour_speech", "fdr_matched", "fa_matched", "fdr_at_5")


def systems_of(seed: int, bits: Sequence[int], method: str = "tanh") -> list[System]:
    """The systems of one seed, cheapest dependencies first."""
    rows = [System("float", seed), System("control", seed)]
    for b in bits:
        rows.append(System("post_training", seed, WeightPlan("linear", b)))
        rows.append(System("post_training", seed, WeightPlan("linear", b, per_channel=True)))
        rows.append(System("stage_one", seed, WeightPlan(method, b)))
        rows.append(System("stage_two", seed, WeightPlan(method, b)))
    return rows


def run_result(
    experiment: Experiment, seeds: Sequence[int], bits: Sequence[int], out: Path, method: str = "tanh"
) -> dict[str, Any]:
    """Train and evaluate everything; write ``result.json`` and ``result.md`` into ``out``. Resumable: what was
    made before is read, and the JSON is written anew after every system."""
    out.mkdir(parents=True, exist_ok=True)
    todo = [s for seed in seeds for s in systems_of(seed, bits, method)]
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for system in tqdm(todo, desc="systems", disable=not experiment.progress):
        rows.append(measure(experiment, system))
        result = {"setup": setup(experiment, seeds, bits), "rows": rows, "summary": summarise(rows)}
        write_json(out / "result.json", result)
        (out / "result.md").write_text(markdown(result))
    return result


def measure(experiment: Experiment, system: System) -> dict[str, Any]:
    """One system and seed: its operating point on test, and for integer systems the equality check."""
    reference = System("float", system.seed)
    point = experiment.point(system)
    curve = experiment.curve(system)
    # A float model that misses everything has no curve to match; the nearest reading is at the end of it.
    float_frr = min(experiment.point(reference).frr, 1 - 1e-9)
    matched = point_at_frr(curve, float_frr)
    row = {
        "kind": system.kind,
        "seed": system.seed,
        "bits": None if system.weights is None else system.weights.bits,
        **point.as_row(),
        "system": system.label,
        "fdr_matched": matched.as_row()["fdr"],
        "fdr_at_5": point_at_frr(curve, 0.05).as_row()["fdr"],
        "fa_matched": matched.fa_per_hour,
        "matched": matched.as_row(),
        "validation_threshold": point.threshold,
    }
    if system.kind in ("stage_two", "post_training"):
        row |= check_equal(experiment, system)
    return row


def check_equal(experiment: Experiment, system: System) -> dict[str, int]:
    """Emulation = reference = SDOT kernel on the whole test split: values compared and differing."""

    def make() -> dict[str, int]:
        model = experiment.model(system)
        assert isinstance(model, QuantizedSpotter)
        rows = compare_exact(model, experiment.program(system), experiment.bank("test"))
        return {"compared": sum(r.compared for r in rows), "different": sum(r.different for r in rows)}

    file = experiment.folder(system) / f"equality-{experiment.bank('test').source_hash[:12]}.json"
    return kept_json(file, f"{system.label}, seed {system.seed}", make)


def summarise(rows: list[dict[str, Any]], figures: Sequence[str] = FIGURES) -> list[dict[str, Any]]:
    """Mean, lowest and highest of ``figures`` over seeds per system, in order of appearance."""
    labels = list(dict.fromkeys(r["system"] for r in rows))
    table = []
    for label in labels:
        mine = [r for r in rows if r["system"] == label]
        entry: dict[str, Any] = {"system": label, "seeds": len(mine)}
        for name in figures:
            values = [r[name] for r in mine if r.get(name) is not None]
            if values:
                s = spread(values)
                entry[name] = {"mean": s.mean, "lowest": s.least, "highest": s.largest}
        entry["compared"] = sum(r.get("compared", 0) for r in mine)
        entry["different"] = sum(r.get("different", 0) for r in mine)
        table.append(entry)
    return table


def setup(experiment: Experiment, seeds: Sequence[int], bits: Sequence[int]) -> dict[str, Any]:
    """What the figures were measured on."""
    spec, corpus = experiment.spec, experiment.corpus
    keyword = spec.keywords[0]
    splits = {}
    for split in ("train", "validation", "test"):
        positives = corpus.select(keyword, split)
        splits[split] = {
            "positives": len(positives),
            "positive_speakers": len({c.speaker for c in positives}),
            "segments": len(experiment.bank(split)),
            "hours": experiment.bank(split).seconds / 3600,
        }
    return {
        "keyword": keyword,
        "corpus": corpus.fingerprint(),
        "profile": spec.profile.name,
        "illustrative": spec.profile.illustrative,
        "seeds": list(seeds),
        "bits": list(bits),
        "splits": splits,
        "test_snr_db": list(spec.eval_mix.snr_db),
        "operating_frr": spec.frr,
        "batchnorm": spec.batchnorm,
        "rounding": spec.rounding,
    }


def markdown(result: dict[str, Any]) -> str:
    """The table as Markdown, with its definitions and counts."""
    s = result["setup"]
    test = s["splits"]["test"]
    negatives = result["rows"][0]["n_negative_clips"]
    lines = [
        f"# `{s['keyword']}`: {len(s['seeds'])} seed(s), profile {s['profile']}, batchnorm {s['batchnorm']}",
        "",
        f"Made by `kwsbench result --data <corpus> --keyword {s['keyword']} --profile {s['profile']} --batchnorm "
        f"{s['batchnorm']}`; corpus table SHA-256 {s['corpus'][:16]}.",
        "",
        f"Test: {test['positives']} positives of {test['positive_speakers']} speakers, {negatives} negative clips, "
        f"{result['rows'][0]['speech_hours']:.2f} h of continuous speech, SNR {s['test_snr_db'][0]:g} to "
        f"{s['test_snr_db'][1]:g} dB. Threshold of each system: the largest with validation FRR at most "
        f"{s['operating_frr']:.0%}. FDR = FA / (FA + TP) over clips. Matched: on the test curve, at the float model's "
        "test FRR of the same seed. At 5% FRR: likewise. Values equal: layer outputs that are the same in training "
        "emulation, NumPy reference and Numba kernel, of those compared. Figures are mean (lowest-highest) over seeds.",
        "",
        "| system | FRR | FDR | FA/h, all | FA/h, speech | FDR matched | FA/h matched | FDR at 5% FRR | values equal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["summary"]:
        cells = [row["system"]]
        for name in FIGURES:
            value = row.get(name)
            percent = not name.startswith("fa_")
            cells.append("-" if value is None else spread_cell(value, percent))
        equal = row["compared"] - row["different"]
        cells.append(f"{equal:,} of {row['compared']:,}" if row["compared"] else "-")
        lines.append("| " + " | ".join(cells) + " |")
    if s["illustrative"]:
        lines += ["", "Illustrative: one short run, to show the path, not to rank methods."]
    return "\n".join(lines) + "\n"


def spread_cell(value: dict[str, float], percent: bool) -> str:
    """Mean (lowest-highest) of a summary's figure."""
    scale, digits = (100, 1) if percent else (1, 1)
    unit = "%" if percent else ""
    mean, low, high = (f"{scale * value[k]:.{digits}f}" for k in ("mean", "lowest", "highest"))
    dash = " to " if low.startswith("-") else "-"
    return f"{mean}{unit}" if low == high else f"{mean}{unit} ({low}{dash}{high})"
