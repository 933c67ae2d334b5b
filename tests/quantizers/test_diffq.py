"""Widths under pseudo-noise: the noise by its formula, true gradients of the width, equality once frozen."""

import pytest
import torch

from kwsbench.quantizers.diffq import PACE, DiffqActivation, DiffqWeight, NoisyWidth
from kwsbench.quantizers.linear import linear_codebook
from kwsbench.quantizers.scales import sqnr_db


def drawn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_width_runs_between_its_ends():
    width = NoisyWidth(2, 8, 5)
    assert float(width().detach()) == pytest.approx(5)
    with torch.no_grad():
        width.logit_pace.fill_(-10)
        assert float(width()) == pytest.approx(2)
        width.logit_pace.fill_(10)
        assert float(width()) == pytest.approx(8) and width.nearest == 8
    assert 7.5 < float(NoisyWidth(2, 8, 8)().detach()) < 8
    with pytest.raises(ValueError, match="starts at 2 to 8 bits, got 9"):
        NoisyWidth(2, 8, 9)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_the_noise_is_as_large_as_the_rounding_it_stands_for(bits):
    w = drawn(50, 200)
    q = DiffqWeight(w, bits)
    with torch.no_grad():
        q.width.logit_pace.fill_(torch.logit(torch.tensor((bits - 2) / 6), eps=1e-7) / PACE)
        noise = q.train().quantized() - w
        spacing = float(w.abs().max()) / (2 ** (bits - 1) - 1)
        assert noise.abs().max() <= spacing / 2 * (1 + 1e-4)
        assert float(noise.std()) == pytest.approx(spacing / 12**0.5, rel=0.03)
        if bits > 3:  # few levels round a Gaussian's middle unevenly
            rounded = q.eval().quantized()
            assert abs(sqnr_db(w.numpy(), (w + noise).numpy()) - sqnr_db(w.numpy(), rounded.numpy())) < 0.3


def test_the_noise_of_a_step_is_its_own_and_returns():
    q = DiffqWeight(drawn(4, 5), 4, seed=3).train()
    q.anneal(7, 100)
    first = q.quantized()
    assert torch.equal(first, q.quantized())
    q.anneal(8, 100)
    assert not torch.equal(first, q.quantized())
    q.anneal(7, 100)
    assert torch.equal(first, q.quantized())
    other = DiffqWeight(drawn(4, 5), 4, seed=4).train()
    other.anneal(7, 100)
    assert not torch.equal(first, other.quantized())


@pytest.mark.parametrize("make", [lambda: DiffqWeight(drawn(6, 7), 4), lambda: DiffqActivation(4, False, True)])
def test_the_gradient_of_the_width_is_the_slope_of_the_forward(make):
    """No rounding in training: numerical differences of the forward itself."""
    q, upstream = make().train(), drawn(6, 7, seed=2)
    run = (lambda: q.quantized()) if isinstance(q, DiffqWeight) else (lambda: q(drawn(6, 7, scale=3)))
    (run() * upstream).sum().backward()
    gradient, h = float(q.width.logit_pace.grad), 3e-4
    with torch.no_grad():
        q.width.logit_pace += h
        above = float((run() * upstream).sum())
        q.width.logit_pace -= 2 * h
        below = float((run() * upstream).sum())
    assert gradient == pytest.approx((above - below) / (2 * h), rel=1e-2)
    q.zero_grad()
    q.counted_bits().backward()
    assert q.width.logit_pace.grad > 0


def test_weights_pass_their_gradient_through_the_noise():
    q, upstream = DiffqWeight(drawn(6, 7), 6).train(), drawn(6, 7, seed=2)
    (q.quantized() * upstream).sum().backward()
    inner = q.weight.detach().abs() < q.weight.detach().abs().max()  # the largest one also sets the spacing
    assert torch.equal(q.weight.grad[inner], upstream[inner])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_evaluation_is_the_linear_grid_of_the_nearest_width_and_freezing_keeps_it(bits):
    q = DiffqWeight(drawn(12, 40), bits).eval()
    assert q.bits == bits
    assert set(q.codes().unique().tolist()) <= set(linear_codebook(bits).levels.tolist())
    fixed = q.frozen()
    assert torch.equal(fixed.quantized(), q.quantized()) and fixed.bits == bits and fixed.grid == q.grid


@pytest.mark.parametrize("signed, relu", [(True, False), (False, False), (False, True)])
def test_frozen_activations_are_equal_and_noise_stays_near_the_range(signed, relu):
    q, z = DiffqActivation(5, signed, relu), drawn(3, 4, 5, 6, scale=2)
    q.calibrate(z)
    fixed = q.eval().frozen()
    assert torch.equal(q(z), fixed(z)) and fixed.bits == q.bits == 5 and fixed.limits() == q.limits()
    noisy, peak = q.train()(z).detach(), q.peak().item()
    half = peak / (2 ** (5 - signed) - 1) / 2
    assert noisy.max() <= peak + half + 1e-5 and noisy.min() >= (-peak if signed else 0) - half - 1e-5
    assert not torch.equal(noisy, fixed(z))
