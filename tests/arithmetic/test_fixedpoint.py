from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kwsbench.arithmetic import fixedpoint as fp
from kwsbench.integer.kernels import scalar

ints32 = st.integers(-(2**31), 2**31 - 1)
multipliers = st.integers(2**30, 2**31 - 1)


@given(st.floats(-1e6, 1e6, width=32))
def test_rounding_is_the_mathematical_half_up_in_float32(v):
    x = np.float32(v)
    exact = (Fraction(float(x)) + Fraction(1, 2)).__floor__()
    assert fp.round_half_up(np.array([x]))[0] == exact
    assert fp.round_half_up(torch.tensor([x]))[0] == exact


@pytest.mark.parametrize("value, rounded", [(0.5, 1), (-0.5, 0), (-1.5, -1), (2.5, 3)])
def test_ties_go_up(value, rounded):
    assert fp.round_half_up(np.float32([value]))[0] == rounded


def test_the_value_where_the_textbook_sum_fails():
    below_half = np.nextafter(np.float32(0.5), np.float32(0))
    assert np.floor(below_half + np.float32(0.5)) == 1
    assert fp.round_half_up(np.array([below_half]))[0] == 0


@given(ints32, multipliers, st.integers(1, 62))
def test_single_rounding_is_exact_rational_arithmetic(acc, m, s):
    exact = (Fraction(acc * m, 2**s) + Fraction(1, 2)).__floor__()
    assert fp.requantize_single(np.int64(acc), np.int64(m), np.int64(s)) == exact


def half_away(v: Fraction) -> int:
    magnitude = (abs(v) + Fraction(1, 2)).__floor__()
    return magnitude if v >= 0 else -magnitude


@given(ints32, multipliers, st.integers(31, 62))
def test_double_roundings_are_two_rational_roundings(acc, m, s):
    v = (Fraction(acc * m, 2**31) + Fraction(1, 2)).__floor__()
    away = half_away(Fraction(v, 2 ** (s - 31)))
    up = (Fraction(v, 2 ** (s - 31)) + Fraction(1, 2)).__floor__()
    args = (np.array([acc]), np.int64(m), np.int64(s))
    assert fp.requantize_double(*args)[0] == away
    assert fp.requantize_double_up(*args)[0] == up


@given(ints32, multipliers, st.integers(1, 62), st.sampled_from(sorted(fp.REQUANTIZE)))
def test_numpy_torch_and_numba_agree(acc, m, s, rounding):
    expected = fp.requantize(np.array([acc]), np.int64(m), np.int64(s), -128, 127, rounding)[0]
    in_torch = fp.requantize(torch.tensor([acc]), torch.tensor([m]), torch.tensor([s]), -128, 127, rounding)
    in_numba = scalar.clamp(scalar.requantize(acc, m, s, scalar.ROUNDINGS[rounding]), -128, 127)
    assert in_torch[0] == expected
    assert in_numba == expected


@given(
    st.integers(-(2**24), 2**24),
    st.integers(-127, 127),
    st.integers(-127, 127),
    st.integers(2**14, 2**15),
    st.integers(0, 2**40),
    st.integers(1, 46),
)
def test_unfolded_equals_its_equation(acc, a, b, m1, m2, s):
    exact = (Fraction(acc * a * m1 + b * m2, 2**s) + Fraction(1, 2)).__floor__()
    clamped = min(max(exact, -128), 127)
    got = fp.requantize_unfolded(np.array([acc]), np.array([a]), np.array([b]), m1, m2, s, -128, 127)
    assert got[0] == clamped
    in_torch = fp.requantize_unfolded(torch.tensor([acc]), torch.tensor([a]), torch.tensor([b]), m1, m2, s, -128, 127)
    assert in_torch[0] == clamped
    assert scalar.clamp(scalar.requantize_unfolded(acc, a, b, m1, m2, s), -128, 127) == clamped


@given(st.floats(2.0**-30, 2.0**29))
def test_multipliers_are_normalised_and_close(ratio):
    m, s = (int(v[0]) for v in fp.quantize_multiplier(np.array([ratio])))
    assert 2**30 <= m < 2**31
    assert 1 <= s <= 62
    assert abs(Fraction(m, 2**s) / Fraction(ratio) - 1) <= Fraction(1, 2**31)


def test_a_multiplier_that_rounds_up_to_2_31_is_renormalised():
    m, s = fp.quantize_multiplier(np.array([1 - 2.0**-40]))
    assert (m[0], s[0]) == (2**30, 30)


@pytest.mark.parametrize("ratio", [0.0, -1.0, np.nan, np.inf])
def test_senseless_ratios_are_named(ratio):
    with pytest.raises(ValueError, match="positive and finite"):
        fp.quantize_multiplier(np.array([0.5, ratio]))


def test_a_ratio_out_of_reach_is_named():
    with pytest.raises(ValueError, match=r"outside 1\.\.62"):
        fp.quantize_multiplier(np.array([2.0**-40]))
