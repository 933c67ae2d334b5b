"""The General Quantizer against its equations, numerical gradients, the odd linear grid and brute force."""

import numpy as np
import pytest
import torch

from kwsbench.arithmetic.codebook import integer_form
from kwsbench.quantizers import HARD_SHARE
from kwsbench.quantizers.centroids import snap
from kwsbench.quantizers.general import (
    SHARPNESS,
    START_MU,
    GeneralWeight,
    HardGeneralWeight,
    compand,
    expand,
    general_codebook,
    start_centroids,
)
from kwsbench.quantizers.scales import sqnr_db
from kwsbench.quantizers.tanh import odd_codebook


def weight(rows=12, columns=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.linspace(0.05, 0.3, rows)[:, None]


@pytest.mark.parametrize("mu", [1e-4, 0.5, 8.0, 255.0])
def test_companding_is_mu_law_and_its_inverse(mu):
    v = torch.linspace(-1, 1, 401, dtype=torch.float64)
    constant = torch.tensor(mu, dtype=torch.float64)
    formula = np.sign(v.numpy()) * np.log(1 + mu * np.abs(v.numpy())) / np.log(1 + mu)
    assert np.allclose(compand(v, constant), formula, atol=1e-9)
    assert torch.allclose(expand(compand(v, constant), constant), v, atol=1e-12)


def test_mu_to_zero_is_the_identity():
    v = torch.linspace(-1, 1, 101, dtype=torch.float64)
    assert torch.allclose(compand(v, torch.tensor(1e-9, dtype=torch.float64)), v, atol=1e-9)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7])
def test_uniform_centroids_without_companding_are_the_odd_linear_grid(bits):
    q, book = GeneralWeight(weight(), bits), odd_codebook(bits)
    with torch.no_grad():
        q.centroids.copy_(torch.as_tensor(book.levels))
        q.log_mu.fill_(-20.0)
    _, codes, step = q.table()
    assert np.array_equal(codes, book.codes) and step == pytest.approx(book.step, rel=1e-6)
    x = (q.weight / torch.exp(q.log_scale)).detach().double()
    far = np.min(np.abs(x.numpy()[..., None] - book.thresholds), axis=-1) > 1e-3  # thresholds agree to 1e-4 of mu
    assert np.array_equal(q.codes().detach().numpy()[far], book.encode_codes(x.numpy())[far])


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_hard_is_the_nearest_centroid_in_the_companded_space_by_brute_force(bits, per_channel):
    q = GeneralWeight(weight(), bits, per_channel)
    with torch.no_grad():
        q.centroids.add_(0.02 * torch.randn(q.centroids.shape, generator=torch.Generator().manual_seed(1)))
    mu = q.mu.detach().double()
    z = q.centroids.detach().double().sort().values
    y = compand((q.weight / torch.exp(q.log_scale)[:, None]).detach().double(), mu)
    distance = (y[..., None] - z).abs()
    two = distance.topk(2, largest=False)
    # Snapping may move a threshold by up to a code; far from thresholds the nearest centroid decides.
    sure = (two.values[..., 1] - two.values[..., 0]) > 0.05 * (z[-1] - z[0]) / len(z)
    _, table, _ = q.table()
    expected = table[two.indices[..., 0].numpy()]
    got = q.codes().detach().numpy()
    agree = got == expected
    assert agree[sure.numpy()].mean() > (0.99 if bits < 7 else 0.9)
    # At many bits neighbours may share a code, or a threshold move by one: never further.
    position = np.searchsorted(np.unique(table), got) - np.searchsorted(np.unique(table), expected)
    assert np.abs(position).max() <= 1


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_codebook_has_the_distinct_codes_and_encodes_as_the_forward_does(bits):
    q = GeneralWeight(weight(), bits)
    book = q.codebook
    x = (q.weight / torch.exp(q.log_scale)[:, None]).detach()
    assert np.array_equal(book.encode_codes(x).numpy(), q.codes().detach().numpy())
    step, codes = integer_form(book)
    assert np.all(np.diff(codes.astype(int)) > 0) and step == q.table()[2]
    assert len(codes) <= 2**bits


def test_strong_companding_loses_levels_and_the_codebook_says_so():
    mu, n = torch.tensor(255.0, dtype=torch.float64), 255
    codes, _ = snap(expand(torch.arange(-n, n + 1, 2, dtype=torch.float64) / n, mu).numpy())
    assert len(np.unique(codes)) == 125  # of 256: the known figure
    mu32, n = torch.tensor(255.0, dtype=torch.float64), 31
    codes, _ = snap(expand(torch.arange(-n, n + 1, 2, dtype=torch.float64) / n, mu32).numpy())
    assert len(np.unique(codes)) == 27


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("per_channel", [False, True])
def test_soft_gradients_are_the_numerical_ones(bits, per_channel):
    torch.manual_seed(0)
    q = GeneralWeight(weight(3, 7), bits, per_channel).double()

    def soft(w, scale, mu, z):
        with torch.no_grad():
            for p in (q.weight, q.log_scale, q.log_mu, q.centroids):
                p.requires_grad_(False)
        return torch.func.functional_call(
            _Soft(q), {"q.weight": w, "q.log_scale": scale, "q.log_mu": mu, "q.centroids": z}, (3.0,)
        )

    inputs = [p.detach().clone().requires_grad_() for p in (q.weight, q.log_scale, q.log_mu, q.centroids)]
    assert torch.autograd.gradcheck(soft, inputs, eps=1e-7, atol=1e-4)


class _Soft(torch.nn.Module):
    """The soft forward as a module, for functional_call."""

    def __init__(self, q):
        super().__init__()
        self.q = q

    def forward(self, sharpness):
        return self.q.softened(sharpness)


@pytest.mark.parametrize("bits", [1, 3, 5])
def test_hard_gradients_are_straight_through_and_exact_for_centroids(bits):
    q = GeneralWeight(weight(), bits)
    upstream = torch.randn(12, 40, generator=torch.Generator().manual_seed(1))
    (q.quantized() * upstream).sum().backward()
    scale, mu = torch.exp(q.log_scale.detach()), q.mu.detach()
    x = (q.weight / scale).detach()
    levels = expand(q.centroids.detach().sort().values, mu)
    inside = (x >= levels[0]) & (x <= levels[-1])
    assert torch.allclose(q.weight.grad[inside], upstream[inside], rtol=1e-4)
    assert torch.all(q.weight.grad[~inside] == 0)
    # d w^ / d z_j = s F^-1'(z_j) for the weights of cell j
    bounds, _, _ = q.table()
    cells = torch.bucketize(x.double(), torch.as_tensor(bounds), right=True)
    z = q.centroids.detach().sort().values
    slope = torch.log1p(mu) * torch.exp(z.abs() * torch.log1p(mu)) / mu
    expected = torch.zeros(len(z)).index_add_(0, cells.ravel(), upstream.ravel()) * scale * slope
    order = q.centroids.detach().argsort()
    assert torch.allclose(q.centroids.grad[order], expected, rtol=1e-3, atol=1e-5)


def test_soft_tends_to_hard_and_only_a_training_forward_is_soft():
    q = GeneralWeight(weight(), 3)
    hard = q.quantized().detach()
    q.anneal(0, 100)
    assert q.sharpness == SHARPNESS[0]
    soft = q.train().quantized().detach()
    assert not torch.equal(soft, hard)
    assert torch.equal(q.eval().quantized().detach(), hard)
    q.anneal(int(100 * HARD_SHARE), 100)
    assert q.sharpness is None and torch.equal(q.train().quantized().detach(), hard)
    gaps = [(q.softened(a) - hard).abs().median().item() for a in (2.0, 10.0, 100.0)]
    assert gaps[0] > gaps[1] > gaps[2]


def test_without_annealing_it_is_the_same_quantizer_hard_from_the_start():
    soft, hard = GeneralWeight(weight(), 3).train(), HardGeneralWeight(weight(), 3).train()
    for step in (0, 50, 100):
        soft.anneal(step, 100)
        hard.anneal(step, 100)
        assert hard.sharpness is None and torch.equal(hard.quantized(), hard.eval().quantized())
        assert torch.equal(hard.quantized(), soft.eval().quantized())
        assert torch.equal(soft.train().quantized(), hard.train().quantized()) == (step == 100)


def test_annealing_is_geometric():
    q = GeneralWeight(weight(), 3)
    steps = []
    for share in (0.0, 0.2, 0.4, 0.6):
        q.anneal(int(100 * share), 100)
        steps.append(q.sharpness)
    assert np.allclose(np.diff(np.log(steps)), np.log(SHARPNESS[1] / SHARPNESS[0]) / 4)


@pytest.mark.parametrize("bits, at_least", [(1, 4.3), (2, 9.1), (3, 14.3), (4, 19.9), (5, 25.7), (8, 40.0)])
def test_start_on_a_gaussian_is_near_lloyd_max(bits, at_least):
    """Lloyd-Max has 4.4 / 9.3 / 14.6 / 20.2 / 26.0 dB at 1 to 5 bits; companded thresholds cost up to 0.15."""
    w = torch.randn(200, 600, generator=torch.Generator().manual_seed(0))
    q = GeneralWeight(w, bits)
    assert sqnr_db(w.numpy(), q.quantized().detach().numpy()) > at_least


def test_centroids_in_disorder_and_in_one_place_still_make_a_codebook():
    q = GeneralWeight(weight(), 2)
    with torch.no_grad():
        q.centroids.copy_(q.centroids.flip(0))
    assert np.all(np.diff(q.codebook.levels) > 0)
    with torch.no_grad():
        q.centroids.fill_(0.25)
    assert len(np.unique(q.codes().detach().numpy())) == 1
    assert set(np.unique(q.codes().detach().numpy())) <= set(q.codebook.codes.tolist())
    with torch.no_grad():
        q.centroids.zero_()
    assert torch.all(q.quantized() == 0)


def test_the_start_has_one_centroid_per_code_that_int8_can_hold():
    x = weight().numpy() / 0.9
    for bits in range(1, 9):
        z = start_centroids(x, bits, START_MU[bits])
        assert z.shape == (2**bits,) and np.all(np.diff(z) >= 0)
        assert len(general_codebook(bits).levels) == min(2**bits, 255)
