"""Time of one encoder step of several recognizers, side by side: in one run, in turns, over several processes.

A step makes one encoder frame: the calls that `listen` makes for it (stacked frames through the layers before the
reduction, what they give, joined, through the others). Two conditions:

- ``hot``: steps follow each other; what fits a cache is in it.
- ``cold``: before every step 32 MB of other memory are read, so that weights come from beyond the second-level cache,
  as on a device that does other things between two frames.

Time is processor time of the thread: a shared machine's pauses do not count. In every round each recognizer has its
turn, in a new order; a ratio is taken within a round, so the machine's ups and downs cancel; rounds of all processes
together give the median and its 5% and 95%. A fresh process places its memory elsewhere: hence several.
"""

from __future__ import annotations

import multiprocessing
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from kwsbench.integer.kernels.matvec import has_blocks
from kwsbench.integer.listen import Engine, spans
from kwsbench.integer.packed import Packed
from kwsbench.integer.recognizer import Recognizer

EVICT_BYTES = 32 * 2**20
CONDITIONS = ("hot", "cold")


def encoder_step(engine: Engine, seed: int = 0) -> Callable[[], None]:
    """A function that takes one encoder step, on drawn inputs and the state it left behind."""
    recognizer, rng = engine.recognizer, np.random.default_rng(seed)
    layers, reduction = len(recognizer.encoder), recognizer.reduction
    places = spans(recognizer)
    h, c = np.zeros(places[-1].stop, np.int8), np.zeros(places[-1].stop, np.int16)
    x = np.asarray(rng.integers(-100, 101, recognizer.encoder[0].input.codes.shape[1]), np.int8)
    if reduction == 1:
        return lambda: engine.encode(x, h, c, 0, layers)
    cut = recognizer.reduce_after
    span = places[cut - 1]
    joined = np.zeros((reduction, span.stop - span.start), np.int8)

    def step() -> None:
        for n in range(reduction):
            engine.encode(x, h, c, 0, cut)
            joined[n] = h[span]
        engine.encode(joined.reshape(-1), h, c, cut, layers)

    return step


def time_steps(
    recognizers: Mapping[str, Recognizer],
    rounds: int = 30,
    condition: str = "hot",
    seed: int = 0,
    seconds_per_turn: float = 2e-3,
) -> dict[str, np.ndarray]:
    """Seconds per step of every recognizer, ``[rounds]``, in this process.

    Raises:
        ValueError: an unknown condition, or no rounds.
    """
    if condition not in CONDITIONS or rounds < 1:
        raise ValueError(f"condition must be one of {CONDITIONS} and rounds at least 1, got {condition!r} and {rounds}")
    rng = np.random.default_rng(seed)
    names = list(recognizers)
    steps = {name: encoder_step(Packed(recognizer)) for name, recognizer in recognizers.items()}
    for step in steps.values():
        step()  # compiles
    counts = {name: max(1, int(seconds_per_turn / _once(step))) for name, step in steps.items()}
    other = np.ones(EVICT_BYTES // 8)
    times = {name: np.zeros(rounds) for name in names}
    for turn in range(rounds):
        for name in rng.permutation(names).tolist():
            if condition == "hot":
                steps[name]()  # the turn before belonged to another
                times[name][turn] = _seconds(steps[name], counts[name])
            else:
                other += 1.0
                times[name][turn] = _seconds(steps[name], 1)
    return times


def time_in_processes(
    recognizers: Mapping[str, Recognizer], processes: int = 3, rounds: int = 30, condition: str = "hot"
) -> dict[str, np.ndarray]:
    """Seconds per step, ``[processes * rounds]``: ``time_steps`` in fresh processes, one after the other.

    Raises:
        ValueError: no processes.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    parts = []
    for seed in range(processes):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            parts.append(pool.submit(time_steps, dict(recognizers), rounds, condition, seed).result())
    return {name: np.concatenate([part[name] for part in parts]) for name in recognizers}


def step_table(
    recognizers: Mapping[str, Recognizer], times: Mapping[str, np.ndarray], base: str
) -> list[dict[str, Any]]:
    """One row per recognizer: microseconds of a step, its ratio to ``base`` (median, 5% and 95% over rounds), and the
    bytes in memory of what a step reads (matrices and constants of the encoder) with their ratio.

    Raises:
        ValueError: ``base`` was not measured.
    """
    if base not in times:
        raise ValueError(f"{base!r} was not measured; choose one of {sorted(times)}")
    held = {name: encoder_bytes(recognizers[name]) for name in times}
    rows = []
    for name, seconds in times.items():
        ratio = seconds / times[base]
        low, high = np.percentile(ratio, [5, 95])
        rows.append(
            {
                "recognizer": name,
                "step_us": 1e6 * float(np.median(seconds)),
                "time_ratio": float(np.median(ratio)),
                "time_ratio_low": float(low),
                "time_ratio_high": float(high),
                "encoder_bytes": held[name],
                "bytes_ratio": held[name] / held[base],
            }
        )
    return rows


def encoder_bytes(recognizer: Recognizer) -> int:
    """Bytes in memory of the encoder's matrices and constants, as `Packed` holds them."""
    engine = Packed(recognizer)
    rows = sum(len(layer.bias) for layer in recognizer.encoder)
    return sum(engine.matrix_bytes[: 2 * len(recognizer.encoder)]) + rows * engine.bytes_per_gate_row


def machine() -> dict[str, Any]:
    """What a table of times has to name: processor, kernels in use, Python."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux: what `platform` knows must do
    kernels = "512-bit dot products (VNNI, VBMI)" if has_blocks() else "plain loops"
    return {"processor": model, "kernels": kernels, "python": platform.python_version(), "system": platform.system()}


def _seconds(step: Callable[[], None], count: int) -> float:
    begin = time.thread_time()
    for _ in range(count):
        step()
    return (time.thread_time() - begin) / count


def _once(step: Callable[[], None]) -> float:
    return max(min(_seconds(step, 1) for _ in range(3)), 1e-7)
