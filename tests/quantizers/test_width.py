"""Trained steps and ranges: values and gradients against the published formulas and numerical differences."""

import math

import numpy as np
import pytest
import torch

from kwsbench.arithmetic.codebook import Codebook
from kwsbench.quantizers.linear import linear_codebook
from kwsbench.quantizers.width import PACE, TrainedRange, TrainedWidthActivation, TrainedWidthWeight


def drawn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def range_of(step_log2, peak, signed=True, top=2.0**20):
    """A range with just this d and xmax."""
    found = TrainedRange(1.0, 4, signed, top)
    with torch.no_grad():
        found.step_pace.fill_(step_log2 / PACE)
        found.peak_pace.fill_(math.log2(peak) / PACE)
    return found


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_fresh_range_has_the_bits_it_was_asked_for(bits, signed):
    found = TrainedRange(1.0, bits, signed)
    codes = int(found.largest())
    assert codes <= min(2 ** (bits - signed) - 1, 127)
    assert found.bits <= bits and found.bits >= (bits if signed else min(bits, 7)) - (bits > 2)
    assert float(found.peak().detach()) == pytest.approx(1.0)
    assert math.log2(found.step().item()) % 1 == 0


def test_the_forward_is_the_published_formula():
    found = range_of(-3.2, 0.9)  # d = 1/8, K = 7
    x = drawn(40, 50)
    d, peak = 0.125, 0.9
    published = d * np.floor(np.clip(x.double().numpy(), -peak, peak) / d + 0.5)
    assert np.array_equal(found.quantize(x).detach().double().numpy(), published)
    assert found.largest() == 7 and found.bits == 4
    unsigned = range_of(-3.2, 0.9, signed=False)
    assert np.array_equal(unsigned.quantize(x).detach().double().numpy(), np.maximum(published, 0))
    assert unsigned.bits == 3


@pytest.mark.parametrize("signed", [True, False])
def test_gradients_are_the_published_ones(signed):
    """1905.11452, case U3: (Q - x) / d inside and 0 outside for d; 0 inside and sign(x) outside for xmax."""
    found, x, upstream = range_of(-2, 1.3, signed), drawn(40, 50).requires_grad_(), drawn(40, 50, seed=1)
    q = found.quantize(x)
    (q * upstream).sum().backward()
    v, g, d, peak = x.detach().double(), upstream.double(), 0.25, 1.3
    inside = (v >= (-peak if signed else 0)) & (v <= peak)
    to_d = (g * torch.where(inside, (q.detach() - v) / d, 0)).sum()
    to_peak = (g * torch.where(v > peak, 1.0, 0.0) - (g * (v < -peak) if signed else 0)).sum()
    assert torch.equal(x.grad, torch.where(inside, upstream, 0))
    # Through the logarithms: d = 2^(PACE p).
    assert float(found.step_pace.grad) == pytest.approx(float(to_d) * d * math.log(2) * PACE, rel=1e-4)
    assert float(found.peak_pace.grad) == pytest.approx(float(to_peak) * peak * math.log(2) * PACE, rel=1e-4)


def test_the_gradient_of_xmax_is_the_slope_of_the_clipped_tensor():
    """Numerical differences of clip(x, -xmax, xmax), what remains of Q once the rounding is passed through."""
    x, upstream = drawn(40, 50).double(), drawn(40, 50, seed=1).double()
    found = range_of(-2, 1.3)
    (found.quantize(x.float()) * upstream.float()).sum().backward()

    def surrogate(pace):
        peak = 2 ** (PACE * pace)
        return float((x.clamp(-peak, peak) * upstream).sum())

    at, h = math.log2(1.3) / PACE, 1e-6
    assert float(found.peak_pace.grad) == pytest.approx((surrogate(at + h) - surrogate(at - h)) / 2e-6, rel=1e-3)


def test_the_gradient_of_d_is_the_slope_of_the_scaled_codes():
    """Inside, with the codes' own change passed through: d(d round(x / d)) = (round(x / d) - x / d) dd."""
    x, upstream = drawn(40, 50, scale=0.3).double(), drawn(40, 50, seed=1).double()
    found = range_of(-2, 4.0)
    (found.quantize(x.float()) * upstream.float()).sum().backward()
    codes = torch.floor(x / 0.25 + 0.5)

    def surrogate(d):
        return float(((d * codes - d * (x / 0.25) + x) * upstream).sum())

    slope = (surrogate(0.25 + 1e-6) - surrogate(0.25 - 1e-6)) / 2e-6
    assert float(found.step_pace.grad) == pytest.approx(slope * 0.25 * math.log(2) * PACE, rel=1e-3)


@pytest.mark.parametrize("signed", [True, False])
def test_the_counted_width_pushes_at_both(signed):
    found = range_of(-3.2, 0.9, signed)
    bits = found.counted_bits()
    assert float(bits.detach()) == found.bits == (4 if signed else 3)
    bits.backward()
    # b = log2(r + 1) (+ 1), r = xmax / d, rounded in value only: db/dlog2(xmax) = r / (r + 1) = -db/dlog2(d).
    expected = PACE * 7 / 8 * 7.2 / 7
    assert float(found.peak_pace.grad) == pytest.approx(expected, rel=1e-4)
    assert float(found.step_pace.grad) == pytest.approx(-expected, rel=1e-4)
    at, h = found.soft_bits().item(), 1e-3
    with torch.no_grad():
        found.peak_pace += h
    slope = (found.soft_bits().item() - at) / h
    assert slope == pytest.approx(PACE * 7.2 / 8.2, rel=1e-2)


def test_widths_stay_between_two_and_eight_bits():
    for step_log2, peak, bits in ((-30, 1.0, 8), (10, 1.0, 2), (-3, 1e9, 8), (-3, 1e-9, 2)):
        found = range_of(step_log2, peak)
        assert found.bits == bits
        counted = found.counted_bits()
        assert float(counted.detach()) == bits
    assert range_of(10, 1.0, signed=False, top=6.0).bits == 1 and range_of(-10, 6.0, signed=False, top=6.0).bits == 7
    # At its bound a size pushes no further.
    found = range_of(10, 1.0)
    found.counted_bits().backward()
    assert found.step_pace.grad == 0 and found.peak_pace.grad == 0
    with pytest.raises(ValueError, match="a trained width starts at 2 to 8 bits, got 1"):
        TrainedRange(1.0, 1, True)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_frozen_weights_are_equal_and_lie_on_the_linear_codebook(bits):
    q = TrainedWidthWeight(drawn(12, 40, scale=0.2), bits)
    with torch.no_grad():
        q.range.peak_pace.sub_(0.05)  # some weights now lie outside
    fixed = q.frozen()
    assert torch.equal(q.quantized(), fixed.quantized()) and torch.equal(q.codes(), fixed.codes())
    assert fixed.bits == q.bits and isinstance(q.codebook, Codebook) and q.grid == fixed.grid
    assert set(q.codes().unique().tolist()) <= set(linear_codebook(q.bits).levels.tolist())


@pytest.mark.parametrize("signed, relu", [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_frozen_activations_are_equal(bits, signed, relu):
    q, z = TrainedWidthActivation(bits, signed, relu), drawn(3, 4, 5, 6, scale=3)
    q.calibrate(z)
    fixed = q.frozen()
    assert torch.equal(q(z), fixed(z)) and fixed.bits == q.bits and fixed.limits() == q.limits()
    low, high = fixed.limits()
    assert high - low < 2**fixed.bits and (low < 0) == signed
    with torch.no_grad():
        fixed.log2_step.add_(0.1)
    assert fixed.limits()[1] <= high  # the codes of the frozen range stay


def test_weights_of_one_code_have_collapsed_whatever_their_ratio():
    q = TrainedWidthWeight(drawn(12, 40, scale=0.2), 4)
    assert not q.collapsed()
    with torch.no_grad():
        q.range.step_pace.fill_(3 / PACE)
    assert q.bits == 2 and q.collapsed()


def test_a_range_at_its_end_comes_back_and_does_not_run_away():
    found = range_of(-3, 6.0, signed=False, top=6.0)
    for direction, passes in ((1.0, True), (-1.0, False)):
        found.zero_grad()
        (found.peak() * direction).backward()  # descent goes against the gradient
        assert (found.peak_pace.grad != 0) == passes
