"""The arithmetic against results of real NEON instructions. The file is part of the tests: absent, they fail."""

from pathlib import Path

import numpy as np
import pytest

from kwsbench.arithmetic import fixedpoint
from kwsbench.integer.kernels import neon, scalar

MODES = {"single": "rq_single", "double": "rq_gemmlowp", "double_up": "rq_rndnu"}


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).with_name("neon_insn_golden.npz")) as archive:
        return {k: archive[k].astype(np.int64) for k in archive.files}


@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize("rounding", MODES)
def test_requantization_equals_the_instructions(golden, rounding, relu):
    want = golden[f"{MODES[rounding]}_relu{relu}__y"]
    got = fixedpoint.requantize(
        golden["rq__a"], golden["rq__m"], golden["rq__s"] + 31, 0 if relu else -128, 127, rounding
    )
    assert len(want) == 40000
    assert np.array_equal(got, want)


@pytest.mark.parametrize("rounding", MODES)
def test_the_numba_scalar_equals_the_instructions(golden, rounding):
    mode = scalar.ROUNDINGS[rounding]
    got = [
        scalar.clamp(scalar.requantize(a, m, s + 31, mode), -128, 127)
        for a, m, s in zip(golden["rq__a"], golden["rq__m"], golden["rq__s"])
    ]
    assert np.array_equal(got, golden[f"{MODES[rounding]}_relu0__y"])


def test_the_vectors_can_tell_the_modes_apart(golden):
    single, double, up = (golden[f"{MODES[m]}_relu0__y"] for m in MODES)
    assert np.sum(single != double) > 100
    assert np.sum(single != up) > 100
    assert np.sum(double != up) > 100


def test_high_half_is_sqrdmulh(golden):
    a, b, want = (golden[f"sqrdmulh_s32__{k}"] for k in "aby")
    # A shift of 31 leaves SQRDMULH alone; the product of two -2^31 is the one value that saturates.
    got = fixedpoint.saturate(fixedpoint.requantize_double_up(a, b, np.int64(31)), -(2**31), 2**31 - 1)
    assert np.array_equal(got, want)


def test_sdot_kernel_equals_the_instruction(golden):
    a = golden["sdot__a"].reshape(-1, 4).astype(np.int8)
    b = golden["sdot__b"].reshape(-1, 4).astype(np.int8)
    bias = golden["sdot__acc"].astype(np.int32)
    got = np.empty((1, 1), np.int32)
    for i in range(len(a)):
        neon.accumulate_sdot(a[i : i + 1], b[i : i + 1], bias[i : i + 1], got)
        assert got[0, 0] == golden["sdot__y"][i]


def test_lane_kernel_wraps_as_smull_smlal_and_sadalp_do(golden):
    """One lane: SMULL of the first product, SMLAL of the second; both golden operations, chained by the kernel."""
    a, b, acc, want = (golden[f"smlal_s8__{k}"] for k in ("a", "b", "acc", "y"))
    wrapped = (acc + a * b + 2**15) % 2**16 - 2**15
    assert np.array_equal(wrapped, want)
    assert np.any(acc + a * b != want), "the vectors must include wraps"
    # The same wrap inside the kernel: two products in lane 0 without widening in between.
    x = np.zeros((1, 16), np.int8)
    codes = np.zeros((1, 16), np.int8)
    out = np.empty((1, 1), np.int32)
    zero = np.zeros(1, np.int32)
    rng = np.random.default_rng(0)
    wraps = 0
    for _ in range(2000):
        first, second = rng.choice([-128, 0, 127], (2, 2))
        x[0, [0, 8]], codes[0, [0, 8]] = first, second
        exact = int(first[0]) * int(second[0]) + int(first[1]) * int(second[1])
        neon.accumulate_lanes(x, codes, zero, 2, out)
        assert out[0, 0] == (exact + 2**15) % 2**16 - 2**15
        wraps += out[0, 0] != exact
        neon.accumulate_lanes(x, codes, zero, 1, out)
        assert out[0, 0] == exact
    assert wraps > 0


def test_lane_kernel_widens_as_sadalp_does(golden):
    """Lanes 0 and 1 are driven to the golden int16 pair by four products each, the bias is the golden accumulator."""
    pairs = golden["sadalp_s16__a"].reshape(-1, 2)
    quotient, rest = np.divmod(pairs, 127)
    x = np.zeros((len(pairs), 4, 8), np.int8)
    x[:, 0, :2] = np.clip(quotient, -128, 127)
    x[:, 1, :2] = np.clip(quotient - x[:, 0, :2], -128, 127)
    x[:, 2, :2] = quotient - x[:, 0, :2] - x[:, 1, :2]
    x[:, 3, :2] = rest
    codes = np.zeros((1, 4, 8), np.int8)
    codes[:, :3], codes[:, 3] = 127, 1
    assert np.array_equal((x.astype(np.int64) * codes).sum(axis=1)[:, :2], pairs)
    got = np.empty((1, 1), np.int32)
    for i, acc in enumerate(golden["sadalp_s16__acc"].astype(np.int32)):
        neon.accumulate_lanes(x[i].reshape(1, 32), codes.reshape(1, 32), acc.reshape(1), 4, got)
        assert got[0, 0] == golden["sadalp_s16__y"][i]
