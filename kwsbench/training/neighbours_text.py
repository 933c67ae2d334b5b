"""The comparison of `training.neighbours` as Markdown: what is said is computed from its JSON, nothing is typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kwsbench.training.result import spread_cell

SYSTEM_COLUMNS = (
    ("sqnr_to_float_db", "SQNR to float dB", False),
    ("sqnr_to_latent_db", "SQNR to latent dB", False),
    ("frr", "FRR", True),
    ("fdr", "FDR", True),
    ("fa_per_hour", "FA/h", False),
    ("fdr_matched", "FDR matched", True),
    ("fdr_at_5", "FDR at 5% FRR", True),
)


def markdown(result: dict[str, Any]) -> str:
    """All tables as Markdown, with definitions."""
    s = result["setup"]
    test, first = s["splits"]["test"], result["rows"][0]
    lines = [
        f"# The General Quantizer and its neighbours: `{s['keyword']}`, {len(s['seeds'])} seed(s), profile "
        f"{s['profile']}",
        "",
        f"Made by `{result['command']}`; corpus table SHA-256 {s['corpus'][:16]}.",
        "",
        f"Test: {test['positives']} positives of {test['positive_speakers']} speakers, {first['n_negative_clips']} "
        f"negative clips, {first['speech_hours']:.2f} h of continuous speech. Threshold of each system: the largest "
        f"with validation FRR at most {s['operating_frr']:.0%}; test is read once with it. Matched: on the test curve "
        "at the float model's own test FRR; at 5% FRR likewise. SQNR is that of all dense weights together, against "
        "the float model that training started from (what training moved counts as noise), and against the trained "
        "latent weights behind the codes (none at 1 bit). Levels: different codes used, over the layers. Bytes: packed "
        "weights with their tables, and everything one stream needs. Values equal: layer outputs that are the same in "
        "training emulation, NumPy reference and kernel. Loss: training loss at the end of the stage. Figures are mean "
        "(lowest-highest) over seeds.",
        "",
    ]
    summary, rows = result["summary"], result["rows"]
    lines += [
        "## Stage 2: everything in integers",
        "",
        *_system_table(summary, rows, ("float", "control", "stage_two")),
    ]
    lines += ["", "## Stage 1: weights quantized, the rest in float", "", *_system_table(summary, rows, ("stage_one",))]
    if "comparisons" in result:
        lines += ["", *_comparison(result)]
    if "ablations" in result:
        lines += ["", *_ablation_table(result["ablations"])]
    if "step_costs" in result:
        lines += ["", *_cost_table(result["step_costs"])]
    if any("findings" in r for r in rows):
        lines += ["", *_findings(rows)]
    if s["illustrative"]:
        lines += ["", "Illustrative: one short run, to show the path, not to rank methods."]
    return "\n".join(lines) + "\n"


def _system_table(summary: list[dict], rows: list[dict], kinds: Sequence[str]) -> list[str]:
    names = ["system", "seeds", *(title for _, title, _ in SYSTEM_COLUMNS)]
    names += ["loss", "levels", "entropy", "bytes, weights", "bytes, all", "values equal"]
    table = []
    for entry in summary:
        mine = [r for r in rows if r["system"] == entry["system"]]
        if mine[0]["kind"] in kinds:
            table.append(
                [entry["system"], str(entry["seeds"]), *_figures(entry), *_weights(entry, mine), _equal(entry)]
            )
    told = [i for i in range(len(names)) if any(cells[i] != "-" for cells in table)]
    return [*_head([names[i] for i in told]), *(_row([cells[i] for i in told]) for cells in table)]


def _figures(entry: Mapping[str, Any]) -> list[str]:
    return ["-" if entry.get(k) is None else spread_cell(entry[k], percent) for k, _, percent in SYSTEM_COLUMNS]


def _weights(entry: Mapping[str, Any], rows: list[dict]) -> list[str]:
    used = [n for r in rows for n in r.get("levels_used", ())]
    levels = "-" if not used else str(max(used)) if min(used) == max(used) else f"{min(used)}-{max(used)}"
    loss, entropy = entry.get("final_loss"), entry.get("entropy_bits")
    sizes = [entry.get(k) for k in ("weight_bytes", "total_bytes")]
    return [
        "-" if loss is None else f"{loss['mean']:.4f}",
        levels,
        "-" if entropy is None else f"{entropy['mean']:.2f}",
        *("-" if size is None else f"{size['mean']:,.0f}" for size in sizes),
    ]


def _equal(entry: Mapping[str, Any]) -> str:
    compared = entry["compared"]
    return f"{compared - entry['different']:,} of {compared:,}" if compared else "-"


def _comparison(result: Mapping[str, Any]) -> list[str]:
    v = result["verdict"]
    lines = [
        "## General against its rivals, paired",
        "",
        "FDR of general minus that of the rival at one FRR on the test curve, in points: mean over the "
        "seeds that both have and its 95% interval (bootstrap over speakers, the same ones for both and for all "
        "seeds; other training seeds are not in it), then each seed. Wins or loses: the interval leaves out 0.",
        "",
        *_head(["bits", "rival", "at", "difference", "per seed", "outcome"]),
    ]
    for row in sorted(result["comparisons"], key=lambda r: (r["at"], -r["bits"])):
        lines.append(_row([str(row["bits"]), row["rival"], row["at"], *_difference(row), row["outcome"]]))
    if not v["rows"]:
        return [*lines, "", "Nothing to judge the prediction by: no width has general and a rival."]
    missed = [r for r in v["rows"] if r["expected"] != r["outcome"]]
    told = "; ".join(
        f"at {r['bits']} bit{'s'[: r['bits'] > 1]} general {r['outcome']} against {r['rival']}" for r in missed
    )
    lines += [
        "",
        f"Prediction on record: general wins at {v['wins_up_to_bits']} bits and fewer, and ties above. At the "
        f"operating FRR it {'did not hold' if missed else 'held'}: {v['held']} of {v['of']} comparisons came out "
        f"as predicted{f'; {told}' if missed else ''}. A tie is no proof of equality.",
    ]
    return lines


def _difference(row: Mapping[str, Any]) -> list[str]:
    per_seed = ", ".join(f"{100 * v:+.1f}" for v in row["per_seed"])
    return [f"{100 * row['mean']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})", per_seed]


def _ablation_table(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "## Ablations of general",
        "",
        "Each changes one thing of the base. Difference: FDR at the operating FRR minus that of the base, in points, "
        "paired as above, over the seeds that both have.",
        "",
        *_head(
            [
                "about",
                "system",
                "seeds",
                "bytes, weights",
                "SQNR to latent dB",
                "FDR",
                "FDR at 5% FRR",
                "difference",
                "per seed",
            ]
        ),
    ]
    for entry in entries:
        s = entry["summary"]
        size, sqnr = s.get("weight_bytes"), s.get("sqnr_to_latent_db")
        difference = _difference(entry["difference"]) if "difference" in entry else ["-", "-"]
        lines.append(
            _row(
                [
                    entry["what"],
                    s["system"],
                    str(s["seeds"]),
                    "-" if size is None else f"{size['mean']:,.0f}",
                    "-" if sqnr is None else spread_cell(sqnr, False),
                    "-" if s.get("fdr") is None else spread_cell(s["fdr"], True),
                    spread_cell(s["fdr_at_5"], True),
                    *difference,
                ]
            )
        )
    return lines


def _findings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many layers of how many each finding names, by system, and the first of its messages."""
    lines = ["## What the annealing says", ""]
    found: dict[tuple[str, str], list[str]] = {}
    layers: dict[str, int] = {}
    for row in rows:
        if "findings" in row:
            layers[row["system"]] = layers.get(row["system"], 0) + len(row["layers"])
        for f in row.get("findings", ()):
            told = f"seed {row['seed']}, {f['layer']}: {f['message']}"
            found.setdefault((row["system"], f["kind"]), []).append(told)
    if not found:
        return [*lines, "Nothing: no dead centroid, no collapse, neither too fast nor too slow."]
    lines += [
        "Findings, of all layers of all seeds; the JSON has every one.",
        "",
        *_head(["system", "finding", "times", "in layers", "the first"]),
    ]
    for (system, kind), messages in found.items():
        lines.append(_row([system, kind, str(len(messages)), str(layers[system]), messages[0]]))
    return lines


def _cost_table(costs: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "## Cost of a training step, relative to float",
        "",
        f"Median (lowest-highest) of {costs[0]['rounds']} rounds in one process, a block of float steps before each "
        f"block of quantized ones; a float step took {np.median([c['float_step_ms'] for c in costs]):.1f} ms. Stage 1 "
        "in the middle of its soft phase.",
        "",
        *_head(["method", "bits", "stage 1", "stage 2"]),
    ]
    cells = {
        (c["method"], c["bits"], c["kind"]): f"{c['ratio']:.2f} ({c['lowest']:.2f}-{c['highest']:.2f})" for c in costs
    }
    for method, bits in dict.fromkeys((c["method"], c["bits"]) for c in costs):
        lines.append(_row([method, str(bits), *(cells[method, bits, k] for k in ("stage_one", "stage_two"))]))
    return lines


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), "|" + "---|" * len(names)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
