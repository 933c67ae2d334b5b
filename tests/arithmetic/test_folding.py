"""Constants of a layer: constant channels, bounds and the output bias, by docs/arithmetic.md, sections 2 to 4."""

import numpy as np
import pytest

from kwsbench.arithmetic import folding
from kwsbench.arithmetic.fixedpoint import REQUANTIZE, requantize

ONE = np.ones(1)


def emitted(folded, sums, rounding="single"):
    """Outputs of each channel for accumulated sums ``[T, N]``."""
    acc = folded.row_factor * np.asarray(sums) + folded.bias
    return requantize(acc, folded.multiplier, folded.shift, -128, 127, rounding)


def test_a_bias_beyond_2_30_makes_a_constant_channel():
    g = np.array([2.0**-20, -(2.0**-20), 2.0**-20, 1.0])
    offset = np.array([2.0**12, -(2.0**12), 2.0**10, 0.0])  # in accumulator units: 2^32, -2^32, 2^30, 0
    folded = folding.fold(g, offset, ONE, 1.0, 1.0, "symmetric", 2**23)
    assert folded.row_factor.tolist() == [0, 0, 1, 1]
    assert np.max(np.abs(folded.bias)) <= folding.BIAS_MAX
    assert folded.bias[2] == 2**30
    assert emitted(folded, [[0] * 4, [5] * 4]).tolist() == [[127, -128, 127, 0], [127, -128, 127, 5]]


@pytest.mark.parametrize("rounding", REQUANTIZE)
@pytest.mark.parametrize("grid", ["odd", "binary"])
def test_on_a_grid_without_zero_a_constant_channel_holds_while_its_sum_is_below_half_a_unit(grid, rounding):
    bound = 2**22 - 128  # the largest bound of inputs of 128 below half of 2^23
    offset = np.array([-200.0, -3.4, 0.0, 5.6, 127.0])
    folded = folding.fold(np.zeros(5), offset, ONE, 1.0, 1.0, grid, bound)
    assert np.all(np.abs(folded.row_factor) == 1)
    for total in (-bound, 0, bound):
        assert emitted(folded, np.full((1, 5), total), rounding).tolist() == [[-128, -3, 0, 6, 127]]
    with pytest.raises(ValueError, match=f"channel 0 has a gain of zero, and its {grid} weights cannot become zero"):
        folding.fold(np.zeros(5), offset, ONE, 1.0, 1.0, grid, 2**22)


def test_a_15_bit_multiplier_that_rounds_up_to_2_15_is_renormalised():
    unfolded = folding.unfold(np.array([127.0, -1.0]), np.zeros(2), ONE, 1 - 2.0**-20, 1.0)
    assert (unfolded.m1, unfolded.shift) == (2**14, 14)
    assert unfolded.gain_codes.tolist() == [127, -1]


@pytest.mark.parametrize("s_x", [2.0**-50, 2.0**20])
def test_an_unfolded_shift_out_of_reach_is_refused(s_x):
    with pytest.raises(ValueError, match=r"needs a shift of -?\d+, outside 1\.\.46"):
        folding.unfold(np.array([127.0]), np.zeros(1), ONE, s_x, 1.0)


def test_the_output_bias_by_its_equations():
    bias = np.array([1.0, -0.5, 0.003])
    unit = np.array([0.01])
    assert folding.output_bias(bias, unit, False).tolist() == [100, -50, 0]
    # B = 127, -63 (-63.5 rounds up), 0, of 1/127 each.
    assert folding.output_bias(bias, unit, True).tolist() == [100, round(-6300 / 127), 0]
    assert folding.output_bias(bias, unit * 100, True).tolist() == [1, 0, 0]
    assert folding.output_bias(bias, unit / 100, True).tolist() == [10000, round(-630000 / 127), 0]
    # One unit per row: the codes are as coarse, the constant is rounded once.
    rows = np.array([0.01, 0.001, 0.0001])
    assert folding.output_bias(bias, rows, True).tolist() == [100, round(-63 / 127 / 0.001), 0]
    assert folding.output_bias(np.zeros(3), unit, True).tolist() == [0, 0, 0]


@pytest.mark.parametrize("unfolded", [False, True])
def test_an_output_bias_beyond_2_30_is_refused(unfolded):
    with pytest.raises(ValueError, match=r"exceeds 2\^30 accumulator units"):
        folding.output_bias(np.array([2.0]), np.array([2.0**-30]), unfolded)


@pytest.mark.parametrize("unfolded", [False, True])
def test_an_output_bias_that_is_not_finite_is_refused(unfolded):
    with pytest.raises(ValueError, match="the offset of channel 1 is inf"):
        folding.output_bias(np.array([2.0, np.inf]), np.array([0.1]), unfolded)
