"""Residual addition and average against exact rational numbers, NumPy = torch, int32 = int64; refused constants."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kwsbench.arithmetic import fixedpoint, residual

CODES = np.arange(-128, 128)
PAIRS = np.stack(np.meshgrid(CODES, CODES), axis=-1).reshape(-1, 2)
SCALES = st.floats(1e-3, 1e2)


def half_up(value: Fraction) -> int:
    below = value.numerator // value.denominator
    return below + (value - below >= Fraction(1, 2))


@given(s_x=SCALES, s_source=SCALES, s_y=SCALES)
def test_a_sum_is_the_exact_one_of_its_constants_rounded_half_up(s_x, s_source, s_y):
    k = residual.add_constants(s_x, s_source, s_y)
    assert 0 <= k.multiplier <= 2**20 and 0 <= k.source_multiplier <= 2**20 and 1 <= k.shift <= 31
    some = np.concatenate([PAIRS[:: 256 * 5 + 3], [[-128, -128], [127, 127], [-128, 127], [127, -128]]])
    got = residual.add(some[:, 0], some[:, 1], k, -128, 127)
    for (x, source), y in zip(some.tolist(), got.tolist()):
        exact = Fraction(x * k.multiplier + source * k.source_multiplier, 2**k.shift)
        assert y == min(max(half_up(exact), -128), 127)
        # The constants are the ratios to within half a unit of the shift each.
        true = Fraction(x) * Fraction(s_x / s_y) + Fraction(source) * Fraction(s_source / s_y)
        assert abs(exact - true) <= Fraction(abs(x) + abs(source), 2 ** (k.shift + 1))


TIES = [(0.5, 0.25, 0.5), (1.0, 1.0, 2.0), (1.0, 2.0, 1.99999999)]  # the last one's halves only after rounding


@pytest.mark.parametrize("scales", [*TIES, (1.0, 1.0, 1.0), (0.02, 0.3, 0.11)])
def test_every_pair_of_codes_in_int32_int64_and_torch(scales):
    k = residual.add_constants(*scales)
    x, source = PAIRS.T
    want = np.array(
        [half_up(Fraction(a * k.multiplier + b * k.source_multiplier, 2**k.shift)) for a, b in PAIRS.tolist()]
    )
    ties = (2 * (x * k.multiplier + source * k.source_multiplier)) % 2 ** (k.shift + 1) == 2**k.shift
    want = want.clip(-8, 7)
    for kind in (np.int32, np.int64):
        got = residual.add(x.astype(kind), source.astype(kind), k, -8, 7)
        assert got.dtype == kind and np.array_equal(got, want)
    for kind in (torch.int32, torch.int64):
        assert np.array_equal(
            residual.add(torch.tensor(x, dtype=kind), torch.tensor(source, dtype=kind), k, -8, 7), want
        )
    assert ties.any() == (scales in TIES)


def test_no_step_of_a_sum_leaves_int32():
    """At the largest multipliers and the largest shift at once."""
    worst = 2 * 128 * 2**residual.ADD_BITS + 2 ** (residual.ADD_SHIFT - 1)
    assert worst < 2**31
    k = residual.AddConstants(2**20, 2**20, 31)
    x = np.array([-128, 127], np.int32)
    assert residual.add(x, x, k, -128, 127).tolist() == [0, 0]


def test_a_tiny_ratio_adds_nothing_and_a_huge_one_is_refused():
    k = residual.add_constants(1e-6, 1e-9, 1.0)
    assert k.shift == 31
    assert not residual.add(PAIRS[:, 0], PAIRS[:, 1], k, -128, 127).any()
    assert residual.add_constants(2.0**19 * 0.999, 1.0, 1.0).shift == 1
    with pytest.raises(
        ValueError, match=r"units 5.24e\+05, 1 and an output unit 1 needs a shift of 0, outside 1\.\.31"
    ):
        residual.add_constants(2.0**19, 1.0, 1.0)


@pytest.mark.parametrize(
    "scales", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan")), (1.0, float("inf"), 1.0)]
)
def test_scales_that_are_none_are_refused(scales):
    with pytest.raises(ValueError, match="must be positive and finite, got"):
        residual.add_constants(*scales)


@given(s_x=SCALES, s_y=SCALES, frames=st.integers(1, 400), frequencies=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_mean_is_exact_to_the_multiplier_and_rounds_half_up(s_x, s_y, frames, frequencies, seed):
    m, s = residual.pool_constants(s_x, s_y, frames, frequencies)
    count = frames * frequencies
    assert 2**30 <= m < 2**31 and 1 <= s <= 62
    assert abs(Fraction(m, 2**s) / (Fraction(s_x) / (Fraction(s_y) * count)) - 1) < Fraction(1, 2**29)
    acc = np.random.default_rng(seed).integers(-128 * count, 127 * count + 1, 50)
    got = fixedpoint.requantize(acc, np.int64(m), np.int64(s), -128, 127)
    assert got.tolist() == [min(max(half_up(Fraction(a * m, 2**s)), -128), 127) for a in acc.tolist()]


def test_a_mean_of_too_many_values_is_refused():
    assert residual.POOLED * 128 < 2**31
    with pytest.raises(ValueError, match="a mean takes 1 to 16777215 values, got 16777216 frames of 1"):
        residual.pool_constants(1.0, 1.0, 2**24, 1)
    with pytest.raises(ValueError, match="got 0 frames of 4"):
        residual.pool_constants(1.0, 1.0, 0, 4)


def test_ranges_of_all_widths():
    for bits in residual.ACTIVATION_BITS:
        low, high = residual.activation_range(bits, False)
        assert high - low + 1 == 2**bits and -128 <= low and high <= 127
        assert residual.activation_range(bits, True) == (0, min(2**bits - 1, 127))
    for bits in (0, 9, -1):
        with pytest.raises(ValueError, match=f"activations have 1 to 8 bits, got {bits}"):
            residual.activation_range(bits, True)


@given(bits=st.integers(1, 8), scale=st.floats(0.005, 11.9))
def test_clamping_codes_at_six_is_relu6_before_rounding(bits, scale):
    low, high = residual.relu6_range(bits, scale)
    z = np.concatenate([np.linspace(-2, 14, 501), scale * (np.arange(-3, 140) + 0.5)])
    want = fixedpoint.round_half_up(np.clip(z, 0, 6) / scale).clip(*residual.activation_range(bits, True))
    assert np.array_equal(fixedpoint.round_half_up(z / scale).clip(low, high), want)


@pytest.mark.parametrize("scale", [0.0, -1.0, 13.0, float("nan"), float("inf")])
def test_a_unit_with_nothing_below_six_is_refused(scale):
    with pytest.raises(ValueError, match="leaves only zero between 0 and 6"):
        residual.relu6_range(4, scale)
