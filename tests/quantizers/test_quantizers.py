"""Every quantizer of the table: forward against its published formula, gradient against its derivative."""

import numpy as np
import pytest
import torch

from kwsbench.quantizers import QUANTIZERS, TanhWeight
from kwsbench.quantizers.linear import LinearWeight
from kwsbench.quantizers.scales import max_abs_scale, mse_scale, sqnr_db
from kwsbench.quantizers.tanh import odd_codebook

EVERY = [(m, b, pc) for m in QUANTIZERS for b in range(1, 9) for pc in (False, True)]


def weight(rows=12, columns=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.linspace(0.05, 0.3, rows)[:, None]


@pytest.mark.parametrize("method, bits, per_channel", EVERY)
def test_codes_lie_on_the_grid_and_the_weight_is_step_times_codes(method, bits, per_channel):
    q = QUANTIZERS[method](weight(), bits, per_channel)
    codes = q.codes().detach().numpy()
    assert codes.dtype == np.float32
    assert set(np.unique(codes)) <= set(q.codebook.codes.tolist())
    assert len(np.unique(codes)) <= 2**bits
    assert q.step().shape == ((12,) if per_channel else (1,))
    assert torch.all(q.step() > 0)


@pytest.mark.parametrize("method, bits, per_channel", EVERY)
def test_more_bits_never_lose_much_and_rows_never_hurt(method, bits, per_channel):
    w = weight()
    q = QUANTIZERS[method](w, bits, per_channel)
    got = sqnr_db(w.numpy(), (q.step()[:, None] * q.codes()).detach().numpy())
    floor = {1: 1.0, 2: 1.0, 3: 5.0, 4: 10.0, 5: 15.0, 6: 20.0, 7: 24.0, 8: 26.0}[bits]
    if method == "dorefa":
        floor = min(floor, 20.0) - 1  # tanh bends the weights; at many bits that error stays
    assert got > floor


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7])
def test_tanh_forward_is_the_swd_formula(bits):
    q = TanhWeight(weight(), bits)
    n = 2**bits - 1
    t = torch.tanh(q.latent_weight).double().detach().numpy()
    s = torch.exp(q.log_scale).item()
    formula = s * (2 * np.floor(n * (t + 1) / 2 + 0.5) - n) / n
    got = (q.step().double()[:, None] * q.codes().double()).detach().numpy()
    assert np.allclose(got, formula, rtol=1e-6, atol=0)


def test_tanh_at_one_bit_is_the_sign_and_zero_is_positive():
    q = TanhWeight(weight(), 1)
    with torch.no_grad():
        q.latent_weight[0, :3] = torch.tensor([0.0, -0.0, -1e-30])
    assert q.codes()[0, :3].tolist() == [1.0, 1.0, -1.0]
    assert torch.isclose(q.step()[0], weight().abs().mean(), rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_tanh_gradient_is_that_of_s_tanh(bits):
    q = TanhWeight(weight(), bits)
    upstream = torch.randn(12, 40, generator=torch.Generator().manual_seed(1))
    (q.step()[:, None] * q.codes() * upstream).sum().backward()
    s = torch.exp(q.log_scale.detach())
    expected = upstream * s * (1 - torch.tanh(q.latent_weight.detach()) ** 2)
    assert torch.allclose(q.latent_weight.grad, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("per_channel", [False, True])
def test_dorefa_gradient_is_that_of_its_equation_the_peak_included(per_channel):
    q = QUANTIZERS["dorefa"](weight(), 4, per_channel)
    upstream = torch.randn(12, 40, generator=torch.Generator().manual_seed(1))
    (q.quantized() * upstream).sum().backward()
    w = weight().requires_grad_()
    t = torch.tanh(w)
    peak = t.abs().max(dim=1, keepdim=True).values if per_channel else t.abs().max()
    (torch.exp(q.log_scale.detach())[:, None] * t / peak * upstream).sum().backward()
    assert torch.allclose(q.weight.grad, w.grad, rtol=1e-4, atol=1e-6)


def test_linear_gradient_is_masked_outside_the_range_and_lsq_scaled():
    q = LinearWeight(weight(), 4)
    with torch.no_grad():
        q.log_step.sub_(1.5)  # many weights now lie outside the range
    inside = (q.weight / q.step()).detach()
    inside = (inside >= -8) & (inside <= 7)
    codes = q.codes()
    (q.step() * codes).sum().backward()
    assert torch.allclose(q.weight.grad[inside], torch.ones(()), rtol=1e-5)
    assert torch.all(q.weight.grad[~inside] == 0)
    # LSQ, equation 3, times step (the parameter is its logarithm) and 1 / sqrt(N Qp).
    v = (q.weight / q.step()).detach()
    per_weight = torch.where(inside, codes.detach() - v, codes.detach())
    expected = per_weight.sum() * q.step().detach() / (480 * 7) ** 0.5
    assert torch.allclose(q.log_step.grad, expected, rtol=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 5, 7])
def test_linear_starts_where_no_other_step_has_less_error(bits):
    w = weight().double().numpy()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    steps = np.abs(w).max() / high * np.geomspace(0.05, 1.5, 4000)
    errors = [np.mean((np.clip(np.floor(w / d + 0.5), low, high) * d - w) ** 2) for d in steps]
    mine = LinearWeight(weight(), bits).step().item()
    error = np.mean((np.clip(np.floor(w / mine + 0.5), low, high) * mine - w) ** 2)
    assert error <= 1.02 * min(errors)


def test_linear_at_eight_bits_holds_the_largest_weight():
    assert LinearWeight(weight(), 8).step().item() == pytest.approx(weight().abs().max().item() / 127)


def test_max_abs_is_the_largest_weight_over_the_largest_code():
    w = weight().numpy()
    assert np.allclose(max_abs_scale(w, 7, False), np.abs(w).max() / 7)
    assert np.allclose(max_abs_scale(w, 7, True), np.abs(w).max(1) / 7)
    assert max_abs_scale(np.zeros((2, 3)), 7, True).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("bits, published", [(4, 19.4), (5, 24.6), (8, 40.5)])
def test_best_clip_of_a_gaussian_reaches_the_known_sqnr(bits, published):
    """Best clipped uniform grid of a Gaussian: 19.4 / 24.6 / 40.5 dB at 4 / 5 / 8 bits."""
    w = np.random.default_rng(0).normal(size=(1, 200_000))
    book = odd_codebook(bits)
    s = mse_scale(w, book, False)
    assert abs(sqnr_db(w, s * book.quantize(w / s)) - published) < 0.15


@pytest.mark.parametrize("method, bits, per_channel", EVERY)
def test_rows_of_zeros_have_a_finite_scale(method, bits, per_channel):
    w = weight()
    w[3:] = 0
    assert torch.isfinite(QUANTIZERS[method](w, bits, per_channel).quantized()).all()
    assert torch.isfinite(QUANTIZERS[method](0 * w, bits, per_channel).quantized()).all()


@pytest.mark.parametrize("bits", [0, 9, 3.5])
@pytest.mark.parametrize("method", sorted(QUANTIZERS))
def test_impossible_bits_are_refused(method, bits):
    with pytest.raises(ValueError, match="bits must be an integer from 1 to 8"):
        QUANTIZERS[method](weight(), bits)
