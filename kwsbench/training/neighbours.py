"""The General Quantizer beside its neighbours on one bench: error, task, bytes, cost of a training step, and what a
prediction is worth.

Rows are systems (method, width, stage; float; float with equal steps) per seed, measured as in `training.result`:
threshold from validation, the test split read once. The paired comparison sets ``general`` against ``RIVALS`` at each
width; the prediction on record is judged by it at the experiment's operating FRR: *wins* and *loses* need an
interval that leaves out 0, *ties* is the rest. Ablations change one thing of ``general`` at one width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from kwsbench.files import write_json, write_text
from kwsbench.metrics.compare import speaker_groups
from kwsbench.metrics.det import clip_kinds, clip_maxima
from kwsbench.metrics.paired import FdrDifference, Maxima, fdr_difference
from kwsbench.models.feedforward import Spotter
from kwsbench.quantizers.annealing import findings
from kwsbench.quantizers.attach import QuantizedSpotter, WeightPlan
from kwsbench.quantizers.scales import sqnr_db
from kwsbench.quantizers.usage import layer_rows
from kwsbench.resources.memory import memory_summary
from kwsbench.training.experiment import Experiment, System
from kwsbench.training.neighbours_text import markdown
from kwsbench.training.result import FIGURES, measure, setup, summarise
from kwsbench.training.step_cost import step_costs

Menu = Mapping[str, tuple[int, ...]]  # widths by method

MENUS: dict[str, Menu] = {
    "smoke": {"general": (2,), "tanh": (2,), "linear": (2,)},
    "default": {"general": (4, 2), "tanh": (4, 2), "linear": (4, 2), "lsq": (2,), "s8b": (2,), "cosine": (2,)},
    "full": {
        **dict.fromkeys(("general", "tanh", "linear"), (8, 5, 4, 3, 2, 1)),
        **dict.fromkeys(("lsq", "s8b", "cosine"), (8, 4, 2, 1)),
    },
}
# The prediction on record: general wins up to this width, and ties above.
WINS_UP_TO_BITS = 3
RIVALS = ("tanh", "linear")
ABLATION_BITS = 2
FREQUENCIES = {"smoke": (2,), "default": (2, 5), "full": (2, 5, 10)}
# Mixed plans count as equally large within this share of the uniform plan's weight bits.
EQUAL_SIZE = 0.02
QUANTIZER_FIGURES = (
    "sqnr_to_float_db", "sqnr_to_latent_db", "entropy_bits", "weight_bytes", "total_bytes", "final_loss"
)  # fmt: skip


def chosen(profile: str, methods: Sequence[str] = (), bits: Sequence[int] = ()) -> Menu:
    """The menu of a profile, or of the methods and widths that are named.

    Raises:
        ValueError: an unknown method, or a width outside 1 to 8.
    """
    menu = MENUS.get(profile, MENUS["default"])
    named = {m: tuple(bits) or menu.get(m) or menu["general"] for m in (methods or menu)}
    return {m: tuple(WeightPlan(m, b).bits for b in widths) for m, widths in named.items()}


def systems_of(seed: int, menu: Menu) -> list[System]:
    """The systems of one seed."""
    rows = [System("float", seed), System("control", seed)]
    for method, widths in menu.items():
        for b in widths:
            plan = WeightPlan(method, b)
            rows += [System("stage_one", seed, plan), System("stage_two", seed, plan)]
    return rows


def equal_size_plans(sizes: Sequence[int], bits: int) -> list[tuple[int, ...]]:
    """Widths per layer that take as many bits as ``bits`` throughout, for layers of ``sizes`` weights.

    The first layer one bit up and the ones between down, the other way round, and a bit moved from late to early
    layers in between; the last layer stays. Those beyond ``EQUAL_SIZE`` of the uniform size are left out.
    """
    between = len(sizes) - 2
    if between < 1 or bits < 2 or bits > 7:
        return []
    middle = (bits + 1, *[bits] * (between - 2), bits - 1) if between > 1 else (bits,)
    plans = [
        (bits + 1, *[bits - 1] * between, bits),
        (bits - 1, *[bits + 1] * between, bits),
        (bits, *middle, bits),
    ]
    uniform = bits * sum(sizes)
    size = {p: sum(n * b for n, b in zip(sizes, p, strict=True)) for p in plans}
    return [p for p in plans if len(set(p)) > 1 and abs(size[p] - uniform) <= EQUAL_SIZE * uniform]


@dataclass(frozen=True)
class Ablation:
    """One changed thing: ``what`` it is about, the system that has it, and the base without it."""

    what: str
    system: System
    base: System


def ablations_of(experiment: Experiment, seed: int, bits: int = ABLATION_BITS) -> list[Ablation]:
    """The base (``general``, uniform widths, every step, per tensor) and its variants, as stage-2 systems."""
    model, profile = experiment.spec.model, experiment.spec.profile.name
    sizes = [k * n for k, n in zip(model.sizes[:-1], model.sizes[1:])]
    base = System("stage_two", seed, WeightPlan("general", bits))
    variants = [
        ("base", base),
        *(("bit allocation", replace(base, layer_bits=p)) for p in equal_size_plans(sizes, bits)),
        *(("quantization frequency", replace(base, quantize_every=t)) for t in FREQUENCIES.get(profile, (2, 5))),
        ("no annealing", replace(base, weights=WeightPlan("general_hard", bits))),
        ("slower annealing", replace(base, weights=WeightPlan("general_slow", bits))),
        ("scale per row", replace(base, weights=WeightPlan("general", bits, per_channel=True))),
    ]
    return [Ablation(what, system, base) for what, system in variants]


def run_neighbours(
    experiment: Experiment, systems: Sequence[System], ablations: Sequence[Ablation], out: Path | None = None
) -> dict[str, Any]:
    """Train and measure what is not there yet; write ``neighbours.json`` and ``neighbours.md`` into ``out``.

    Without ``out`` nothing is written. The files are written anew after every system; the comparison, the ablations and
    the costs come last.

    Args:
        systems: of any seeds; the float model of each seed among them, or it is not compared.
        ablations: likewise of any seeds; may be empty.

    Raises:
        ValueError: no system.
    """
    if not systems:
        raise ValueError("there is no system to measure: train some, or name methods and widths that are there")
    widths = sorted({s.weights.bits for s in systems if s.weights}, reverse=True)
    result: dict[str, Any] = {
        "command": command(experiment, systems, ablations),
        "setup": setup(experiment, sorted({s.seed for s in systems}), widths),
        "rows": [],
    }

    def write() -> None:
        if out:
            write_json(out / "neighbours.json", result)
            write_text(out / "neighbours.md", markdown(result))

    for system in tqdm(systems, desc="systems", disable=not experiment.progress):
        result["rows"].append(measure_quantizer(experiment, system))
        if system.kind == "stage_two":
            _add_float_bytes(result["rows"], experiment, system)
        result["summary"] = summarise(result["rows"], (*FIGURES, *QUANTIZER_FIGURES))
        write()
    result["comparisons"] = compare(experiment, systems)
    result["verdict"] = verdict(result["comparisons"])
    write()
    if ablations:
        result["ablations"] = ablation_rows(experiment, ablations)
        write()
    plans = list(dict.fromkeys(s.weights for s in systems if s.weights))
    if plans:
        start = experiment.model(System("float", systems[0].seed))
        assert isinstance(start, Spotter)
        sampler = experiment.sampler(systems[0].seed)
        result["step_costs"] = step_costs(start, plans, experiment.spec.profile, sampler)
        write()
    return result


def command(experiment: Experiment, systems: Sequence[System], ablations: Sequence[Ablation]) -> str:
    """The line that makes the same table again."""
    spec = experiment.spec
    embedded = Path(spec.data).resolve().is_relative_to(experiment.root.resolve())
    words = ["kwsbench neighbours", *([] if embedded else ["--data <corpus>"]), f"--keyword {spec.keywords[0]}"]
    seeds = sorted({s.seed for s in systems})
    words += [f"--profile {spec.profile.name}", f"--seeds {','.join(map(str, seeds))}"]
    menu: dict[str, list[int]] = {}
    for w in dict.fromkeys(s.weights for s in systems if s.weights):
        menu.setdefault(w.method, []).append(w.bits)
    named = {m: tuple(bits) for m, bits in menu.items()}
    if named != chosen(spec.profile.name):
        words.append(f"--methods {','.join(named)}")
        if len(set(named.values())) == 1:
            words.append(f"--bits {','.join(map(str, next(iter(named.values()))))}")
    if set(systems) != {s for seed in seeds for s in systems_of(seed, named)}:
        words.append("--finished")
    return " ".join([*words, *(["--ablations"] if ablations else [])])


def measure_quantizer(experiment: Experiment, system: System) -> dict[str, Any]:
    """One system and seed: task figures, and those of its weights. Bytes of integer systems and of float."""
    row = measure(experiment, system)
    model = experiment.model(system)
    row["method"] = None if system.weights is None else system.weights.method
    losses = experiment.history(system)["loss"][-5:]
    row["final_loss"] = float(np.mean(losses)) if losses else None
    if isinstance(model, QuantizedSpotter):
        start = experiment.model(System("float", system.seed))
        assert isinstance(start, Spotter)
        row |= weight_figures(model, start)
    if system.kind == "stage_two":
        packed = memory_summary(experiment.program(system))[2]
        row |= {"weight_bytes": packed["weights_bytes"], "total_bytes": packed["total_bytes"]}
    if system.kind == "stage_one" and (record := experiment.annealing(system)) is not None:
        row["findings"] = [asdict(f) for f in findings(record)]
    return row


def _add_float_bytes(rows: list[dict[str, Any]], experiment: Experiment, system: System) -> None:
    """Bytes of the float models of a seed, counted on the program of a system of that seed."""
    size = memory_summary(experiment.program(system))[0]
    for row in rows:
        if row["method"] is None and row["seed"] == system.seed:
            row |= {"weight_bytes": size["weights_bytes"], "total_bytes": size["total_bytes"]}


def weight_figures(model: QuantizedSpotter, start: Spotter) -> dict[str, Any]:
    """SQNR of all dense weights together, in dB: against the float model they started from, and against the latent
    weights behind them (None at 1 bit, where only a sign counts); levels used per layer; mean entropy per weight."""
    floats = {f"layer{i}": _array(p) for i, p in enumerate(d.weight for d in start.dense)}  # type: ignore[union-attr]
    quantizers = {name: model.quantizer(i) for i, name in enumerate(floats)}
    layers = layer_rows(quantizers, floats)
    quantized = np.concatenate([_array(q.quantized()).ravel() for q in quantizers.values()])
    latent = np.concatenate([_array(q.latent()).ravel() for q in quantizers.values()])
    sizes = [w.size for w in floats.values()]
    return {
        "sqnr_to_float_db": sqnr_db(np.concatenate([w.ravel() for w in floats.values()]), quantized),
        "sqnr_to_latent_db": None if any(r["width"] == 1 for r in layers) else sqnr_db(latent, quantized),
        "entropy_bits": float(np.average([r["entropy_bits"] for r in layers], weights=sizes)),
        "levels_used": [r["codes_used"] for r in layers],
        "layers": layers,
    }


def compare(experiment: Experiment, systems: Sequence[System]) -> list[dict[str, Any]]:
    """``general`` against each rival at each width, over the seeds in which both are among ``systems``.

    At the operating FRR, and at the float model's own.
    """
    there, rows = set(systems), []
    for plan in sorted({s.weights for s in there if s.weights and s.weights.method == "general"}, key=_bits):
        for rival in RIVALS:
            ours, theirs = (System("stage_two", 0, replace(plan, method=m)) for m in ("general", rival))
            seeds = _common_seeds(there, ours, theirs)
            if seeds:
                rows += [
                    {"bits": plan.bits, "rival": rival, "at": at, "seeds": seeds} | _as_row(difference)
                    for at, difference in paired(experiment, seeds, ours, theirs).items()
                ]
    return rows


def paired(experiment: Experiment, seeds: Sequence[int], ours: System, theirs: System) -> dict[str, FdrDifference]:
    """FDR of one system minus another's on test: ``{"operating FRR": ..., "float's FRR": ...}``."""
    floats = [min(experiment.point(System("float", seed)).frr, 1 - 1e-9) for seed in seeds]
    a, b = ([_maxima(experiment, replace(s, seed=seed)) for seed in seeds] for s in (ours, theirs))
    groups = _speakers(experiment, replace(ours, seed=seeds[0]))
    return {
        "operating FRR": fdr_difference(a, b, [experiment.spec.frr] * len(seeds), groups=groups),
        "float's FRR": fdr_difference(a, b, floats, groups=groups),
    }


def verdict(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the prediction held, per width and altogether, at the operating FRR."""
    rows = []
    for row in comparisons:
        if row["at"] == "operating FRR":
            expected = "wins" if row["bits"] <= WINS_UP_TO_BITS else "ties"
            rows.append({"bits": row["bits"], "rival": row["rival"], "expected": expected, "outcome": row["outcome"]})
    held = sum(r["expected"] == r["outcome"] for r in rows)
    return {"rows": rows, "held": held, "of": len(rows), "wins_up_to_bits": WINS_UP_TO_BITS}


def ablation_rows(experiment: Experiment, ablations: Sequence[Ablation]) -> list[dict[str, Any]]:
    """One entry per variant: its rows, their summary, and its paired difference from the base over common seeds."""
    systems = [a.system for a in ablations]
    entries = []
    for first in {replace(a.system, seed=0): a for a in ablations}.values():
        seeds = _common_seeds(systems, first.system, first.base)
        if not seeds:
            continue
        rows = [measure_quantizer(experiment, replace(first.system, seed=seed)) for seed in seeds]
        (summary,) = summarise(rows, (*FIGURES, *QUANTIZER_FIGURES))
        entry = {"what": first.what, "seeds": seeds, "rows": rows, "summary": summary}
        if first.system != first.base:
            difference = paired(experiment, seeds, first.system, first.base)["operating FRR"]
            entry["difference"] = _as_row(difference)
        entries.append(entry)
    return entries


def _common_seeds(systems: Iterable[System], ours: System, theirs: System) -> list[int]:
    """Seeds in which both, whatever their own seed, are among ``systems``."""
    there = set(systems)
    return [
        seed
        for seed in sorted({s.seed for s in there})
        if replace(ours, seed=seed) in there and replace(theirs, seed=seed) in there
    ]


def _bits(plan: WeightPlan) -> int:
    return plan.bits


def _as_row(difference: FdrDifference) -> dict[str, Any]:
    row = asdict(difference) | {"outcome": difference.outcome}
    return json.loads(json.dumps(row))  # tuples as lists, as they are read back


def _maxima(experiment: Experiment, system: System) -> Maxima:
    return clip_maxima(experiment.scores(system, "test"), experiment.spec.keywords[0], experiment.spec.detector)


def _speakers(experiment: Experiment, system: System) -> Maxima:
    """Numbers of the speakers of the positives and of the negative clips, as `_maxima` has them."""
    scores = experiment.scores(system, "test")
    by_path = {clip.path: clip.speaker for clip in experiment.corpus.clips}
    numbers = speaker_groups([by_path[path] for path in scores.paths])
    positive, negative = clip_kinds(scores, experiment.spec.keywords[0])
    return numbers[positive], numbers[negative]


def _array(t: Any) -> np.ndarray:
    return t.detach().cpu().double().numpy()
