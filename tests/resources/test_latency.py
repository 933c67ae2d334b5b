"""Timing of encoder steps: what a step does, what a table says; nothing here asserts on measured times."""

import numpy as np
import pytest

from kwsbench.integer import listen
from kwsbench.integer.drawn import draw_recognizer
from kwsbench.resources import latency

SMALL = {"n_mels": 4, "stack": 2, "embedding": 3, "prediction": 5, "joint": 6, "symbols": 4}


class Watched:
    """Notes what a step calls."""

    def __init__(self, recognizer):
        self.recognizer, self.engine, self.calls = recognizer, listen.Reference(recognizer), []

    def encode(self, x, h, c, first, last):
        self.calls.append((len(x), first, last))
        self.engine.encode(x, h, c, first, last)


@pytest.mark.parametrize("reduction, calls", [(2, [(8, 0, 1), (8, 0, 1), (14, 1, 3)]), (1, [(8, 0, 3)])])
def test_a_step_makes_one_encoder_frame(reduction, calls):
    engine = Watched(draw_recognizer((7, 9, 5), bits=4, reduction=reduction, **SMALL))
    latency.encoder_step(engine)()
    assert engine.calls == calls


def test_times_of_processes_stand_side_by_side():
    made = {f"{bits} bits": draw_recognizer((7, 9), bits=bits, **SMALL) for bits in (8, 1)}
    times = latency.time_in_processes(made, processes=2, rounds=3)
    assert {name: len(v) for name, v in times.items()} == {"8 bits": 6, "1 bits": 6}
    assert all(np.all(v > 0) for v in times.values())
    cold = latency.time_steps(made, rounds=2, condition="cold")
    assert all(np.all(v > 0) for v in cold.values())


def test_a_table_takes_ratios_within_rounds():
    made = {f"{bits} bits": draw_recognizer((32, 32), bits=bits, **SMALL) for bits in (8, 1)}
    times = {"8 bits": np.array([1e-6, 2e-6, 10e-6]), "1 bits": np.array([5e-7, 1e-6, 4e-6])}
    rows = {row["recognizer"]: row for row in latency.step_table(made, times, "8 bits")}
    assert rows["1 bits"]["time_ratio"] == pytest.approx(0.5)
    assert rows["1 bits"]["time_ratio_low"] == pytest.approx(np.percentile([0.5, 0.5, 0.4], 5))
    assert rows["1 bits"]["step_us"] == pytest.approx(1.0)
    assert rows["8 bits"]["bytes_ratio"] == 1
    matrices = 128 * 32 + 128 * 32 + 128 * 64 + 128 * 32  # columns padded to 32
    constants = 256 * (4 + 4 + 8 + 1)
    assert rows["8 bits"]["encoder_bytes"] == matrices + constants
    assert rows["1 bits"]["encoder_bytes"] == matrices // 8 + constants


def test_what_cannot_be_measured_is_refused():
    made = {"a": draw_recognizer((7, 9), **SMALL)}
    with pytest.raises(ValueError, match="'warm' and 3"):
        latency.time_steps(made, rounds=3, condition="warm")
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        latency.time_in_processes(made, processes=0)
    with pytest.raises(ValueError, match="'b' was not measured"):
        latency.step_table(made, {"a": np.ones(3)}, "b")
    assert set(latency.machine()) == {"processor", "kernels", "python", "system"}
