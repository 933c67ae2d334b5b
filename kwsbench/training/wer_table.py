"""The table of word error rates: float, float at equal steps, 8-bit training, post-training, few bits, a mix.

Per seed and encoder: everything is chosen on training and validation data, the test split is recognised once. Intervals
resample speakers (metrics/wer.py), since utterances of one speaker share what makes them hard; differences are
paired with 8-bit training of the same encoder and seed. Over seeds: mean, lowest, highest; the intervals of a summary
add up each speaker's errors over the seeds first, so they tell of other speakers, not of other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from kwsbench.files import write_json, write_text
from kwsbench.metrics.compare import spread
from kwsbench.metrics.wer import RateInterval, WordErrors, wer_difference_interval, wer_interval
from kwsbench.quantizers.attach import WeightPlan
from kwsbench.quantizers.recognizer import RecognizerPlan
from kwsbench.training.recognition import Recognition, RecognitionSystem
from kwsbench.training.sensitivity import Proposal, propose_mix

BASELINE_BITS = 8
BUDGET = 0.4  # of the bytes of 8-bit matrices, for the mix
LISTED = 20  # of what was left out; the JSON has all


def systems_of(encoder: str, seed: int, bits: Sequence[int], mix: RecognizerPlan | None) -> list[RecognitionSystem]:
    """The systems of one encoder and seed, cheapest dependencies first; the others are compared to the third."""
    linear = RecognizerPlan(WeightPlan("linear", BASELINE_BITS))
    plans = [RecognizerPlan(WeightPlan("general", b)) for b in bits] + ([mix] if mix is not None else [])
    return [
        RecognitionSystem("float", seed, encoder),
        RecognitionSystem("control", seed, encoder),
        RecognitionSystem("stage_two", seed, encoder, linear),
        RecognitionSystem("post_training", seed, encoder, linear),
        *(RecognitionSystem("stage_two", seed, encoder, plan) for plan in plans),
    ]


def run_table(
    recognition: Recognition,
    encoders: Sequence[str],
    seeds: Sequence[int],
    bits: Sequence[int],
    out: Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Train and evaluate everything; write ``recognition.json`` and ``recognition.md`` into ``out``.

    Without ``out`` nothing is written. The mix is proposed on the first seed's float model and validation data, and
    serves all seeds. Resumable: what was made before is read; both files are written anew after every system.
    ``command``: how to make it again.
    """
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"setup": setup(recognition, encoders, seeds, bits) | {"command": command}, "mixes": {}}
    total = len(encoders) * len(seeds) * len(systems_of("lstm", 0, bits, None)) + len(encoders) * len(seeds)
    with tqdm(total=total, desc="systems", disable=not recognition.progress) as bar:
        for encoder in encoders:
            proposal = propose_mix(recognition, encoder, seeds[0], budget=BUDGET)
            result["mixes"][encoder] = proposal.to_json()
            for seed in seeds:
                for system in systems_of(encoder, seed, bits, proposal.plan):
                    rows.append(measure(recognition, system))
                    result |= {"rows": rows, "summary": summarise(rows)}
                    if out:
                        write_json(out / "recognition.json", result)
                        write_text(out / "recognition.md", markdown(result))
                    bar.update()
    return result


def setup(
    recognition: Recognition, encoders: Sequence[str], seeds: Sequence[int], bits: Sequence[int]
) -> dict[str, Any]:
    """What the figures were measured on, and what was left out of it."""
    spec, p = recognition.spec, recognition.spec.profile
    known = set(recognition.vocabulary.symbols) if spec.task == "commands" else set()
    splits = {}
    for split in ("train", "validation", "test"):
        bank = recognition.bank(split)
        words = [word for text in bank.texts for word in text.split()]
        splits[split] = {
            "utterances": len(bank),
            "speakers": len(set(bank.speakers)),
            "words": len(words),
            "unknown_words": sum(word not in known for word in words) if known else _unknown(recognition, bank.texts),
            "hours": len(bank.features) * p.features.frame_seconds / 3600,
        }
    left_out = recognition.left_out()
    return {
        "task": spec.task,
        "corpus": recognition.corpus.fingerprint(),
        "symbols": list(recognition.vocabulary.symbols),
        "profile": p.name,
        "illustrative": p.illustrative,
        "encoders": list(encoders),
        "seeds": list(seeds),
        "bits": list(bits),
        "steps": {"float": p.float_stage.steps, "stage 1": p.stage_one.steps, "stage 2": p.stage_two.steps},
        "device": recognition.device,
        "splits": splits,
        "left_out": left_out,
        "left_out_count": sum(map(len, left_out.values())),
        "notes": list(recognition.corpus.notes),
    }


def measure(recognition: Recognition, system: RecognitionSystem) -> dict[str, Any]:
    """One system: errors on test with their interval, the difference to 8-bit training, bytes, delays."""
    test = recognition.recognised(system, "test")
    baseline_system = systems_of(system.encoder, system.seed, (), None)[2]
    baseline = recognition.recognised(baseline_system, "test")
    delays = [d for d in test.delay_seconds if not math.isnan(d)]
    return {
        "system": system.label,
        "kind": system.kind,
        "encoder": system.encoder,
        "seed": system.seed,
        "plan": system.plan.to_json() if system.plan is not None else None,
        **_errors(test.total),
        "interval": _interval(wer_interval(test.by_speaker())),
        "difference": _interval(wer_difference_interval(test.by_speaker(), baseline.by_speaker())),
        "validation_wer": recognition.recognised(system, "validation").total.rate,
        "speakers": {s: _errors(e) for s, e in zip(sorted(set(test.speakers)), test.by_speaker(), strict=True)},
        "bytes": (size := recognition.packed_bytes(system)),
        "of_8_bit": size / recognition.packed_bytes(baseline_system),
        "of_float": size / recognition.packed_bytes(RecognitionSystem("float", system.seed, system.encoder)),
        "delay_seconds": _delays(delays),
        "program": recognition.program_equality(system) if recognition.has_program(system) else None,
    }


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per encoder and system, over its seeds, in order of appearance."""
    table = []
    for encoder, label in dict.fromkeys((r["encoder"], r["system"]) for r in rows):
        mine = [r for r in rows if (r["encoder"], r["system"]) == (encoder, label)]
        seeds = {r["seed"] for r in mine}
        baseline_label = systems_of(encoder, 0, (), None)[2].label
        baseline = [r for r in rows if (r["encoder"], r["system"]) == (encoder, baseline_label) and r["seed"] in seeds]
        entry: dict[str, Any] = {"encoder": encoder, "system": label, "seeds": len(mine)}
        for name in ("wer", "validation_wer", "bytes", "of_8_bit", "of_float"):
            s = spread([r[name] for r in mine])
            entry[name] = {"mean": s.mean, "lowest": s.least, "highest": s.largest}
        entry |= {name: sum(r[name] for r in mine) for name in ("substitutions", "insertions", "deletions", "words")}
        entry["interval"] = _interval(wer_interval(_by_speaker(mine)))
        # The baseline comes third: before it is there, nothing can be compared.
        paired = len(baseline) == len(mine)
        entry["difference"] = (
            _interval(wer_difference_interval(_by_speaker(mine), _by_speaker(baseline))) if paired else None
        )
        entry["delay_seconds"] = _delays([r["delay_seconds"]["median"] for r in mine if r["delay_seconds"]])
        programs = [r["program"] for r in mine if r["program"] is not None]
        entry["program"] = {k: sum(p[k] for p in programs) for k in ("compared", "different")} if programs else None
        table.append(entry)
    return table


def markdown(result: dict[str, Any]) -> str:
    """The table as Markdown, with its definitions, counts and what was left out."""
    s = result["setup"]
    test = s["splits"]["test"]
    lines = [
        f"# Recognition, task `{s['task']}`: {len(s['seeds'])} seed(s), profile {s['profile']}",
        "",
        *([f"Made by `{s['command']}`; corpus SHA-256 {s['corpus'][:16]}.", ""] if s["command"] else []),
        f"{DESCRIPTIONS[s['task']]} {len(s['symbols'])} symbols. "
        + " ".join(
            f"{split.capitalize()}: {x['utterances']:,} utterances, {x['words']:,} words, {x['speakers']} speakers, "
            f"{x['hours']:.2f} h."
            for split, x in s["splits"].items()
        )
        + " The splits share no speaker.",
        "",
        "WER = (S + I + D) / words; mean (lowest-highest) over seeds. In brackets: 95% interval of the mean, speakers "
        f"of the test split resampled ({test['speakers']}). Difference: WER minus that of {BASELINE_BITS}-bit training "
        "of the same encoder and seeds, paired, in points. S, I, D are added up over seeds. Bytes: what a device "
        "stores. Stage 2: weights, activations and state quantized. Delay: from the end of speech to the last "
        "label, in audio (median; no computing). Greedy search. Program: test utterances that the integer program, on "
        "packed kernels, recognises as training's own arithmetic did (a Conformer has no such program).",
        "",
        "| encoder | system | WER | 95% | difference to 8 bits | S + I + D of words | bytes | of 8 bits | of float | "
        "delay, s | program |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["summary"]:
        difference, delay = row["difference"], row["delay_seconds"]
        interval = row["interval"]
        counts = f"{row['substitutions']:,} + {row['insertions']:,} + {row['deletions']:,} of {row['words']:,}"
        cells = [
            row["encoder"],
            row["system"],
            _percent(row["wer"]),
            f"[{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]",
            "-" if difference is None else _points(difference),
            counts,
            f"{row['bytes']['mean']:,.0f}",
            f"{row['of_8_bit']['mean']:.3f}",
            f"{row['of_float']['mean']:.3f}",
            "-" if delay is None else f"{delay['median']:.2f}",
            "-" if row["program"] is None else _equal(row["program"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for encoder, mix in result["mixes"].items():
        lines += ["", *Proposal.from_json(mix).markdown(encoder)]
    lines += ["", *_left_out(s)]
    if s["illustrative"]:
        lines += ["", "Illustrative: short training on few speakers, to show the path, not to rank methods."]
    return "\n".join(lines) + "\n"


DESCRIPTIONS = {
    "commands": "Recorded single words of one speaker strung together, mixed with noise: easier than speech, since "
    "every word was spoken alone.",
    "sentences": "Synthetic speech: sentences of a small grammar by the embedded synthesizer, mixed with noise; the "
    "splits share sentences, not voices.",
    "librispeech": "Read speech of LibriSpeech, mixed with noise, recognised by characters.",
}


def _left_out(s: dict[str, Any]) -> list[str]:
    """What was not used, counted and listed."""
    unknown = {split: x["unknown_words"] for split, x in s["splits"].items() if x["unknown_words"]}
    lines = [f"Left out: {s['left_out_count']:,}."]
    if unknown:
        counts = ", ".join(f"{n:,} in {split}" for split, n in unknown.items())
        lines[0] += f" Words outside the vocabulary: {counts}; in test and validation they count as errors."
    listed = [f"- {where}: {item}" for where, items in s["left_out"].items() for item in items]
    lines += [""] * bool(listed) + listed[:LISTED]
    return lines + [f"- and {len(listed) - LISTED:,} more, in the JSON"] * (len(listed) > LISTED)


def _unknown(recognition: Recognition, texts: Sequence[str]) -> int:
    """Words that hold a symbol outside the vocabulary."""
    known = set(recognition.vocabulary.symbols)
    if recognition.vocabulary.separator:
        return sum(word not in known for text in texts for word in text.split())
    return sum(not set(word) <= known for text in texts for word in text.split())


def _errors(errors: WordErrors) -> dict[str, Any]:
    return {**vars(errors), "wer": errors.rate if errors.words else None}


def _by_speaker(rows: Sequence[dict[str, Any]]) -> list[WordErrors]:
    """Errors of every speaker, added up over seeds."""
    names = ("substitutions", "insertions", "deletions", "words")
    speakers = sorted({speaker for r in rows for speaker in r["speakers"]})
    return [
        sum((WordErrors(*(r["speakers"][speaker][n] for n in names)) for r in rows), WordErrors())
        for speaker in speakers
    ]


def _interval(interval: RateInterval) -> dict[str, float]:
    return {"rate": interval.rate, "low": interval.low, "high": interval.high, "n": interval.n}


def _delays(delays: Sequence[float]) -> dict[str, float] | None:
    """Median and 90th percentile; None where nothing was recognised."""
    if not delays:
        return None
    median, high = np.quantile(delays, [0.5, 0.9])
    return {"median": float(median), "p90": float(high), "n": len(delays)}


def _equal(program: dict[str, int]) -> str:
    return f"{program['compared'] - program['different']:,} of {program['compared']:,}"


def _percent(value: dict[str, float]) -> str:
    mean, low, high = (f"{100 * value[k]:.1f}" for k in ("mean", "lowest", "highest"))
    return f"{mean}%" if low == high else f"{mean}% ({low}-{high})"


def _points(difference: dict[str, float]) -> str:
    rate, low, high = (f"{100 * difference[k]:+.1f}" for k in ("rate", "low", "high"))
    return "0" if difference["rate"] == difference["low"] == difference["high"] == 0 else f"{rate} [{low}, {high}]"
