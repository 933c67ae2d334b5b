"""LSQ, absolute cosine and S8BQAT: their starts, penalties, compressions and schedules by their equations."""

import numpy as np
import pytest
import torch

from kwsbench.quantizers import HARD_SHARE, QUANTIZERS
from kwsbench.quantizers.centroids import compand, expand, lloyd, snap
from kwsbench.quantizers.lsq import LsqWeight
from kwsbench.quantizers.regularized import COMPRESSIONS, CosineWeight, S8bWeight
from kwsbench.quantizers.scales import sqnr_db

REGULARIZED = [CosineWeight, S8bWeight]


def weight(rows=12, columns=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.linspace(0.05, 0.3, rows)[:, None]


@pytest.mark.parametrize("bits", [2, 4, 7])
@pytest.mark.parametrize("per_channel", [False, True])
def test_lsq_starts_at_its_published_step_with_its_published_gradient(bits, per_channel):
    w, largest = weight(), 2 ** (bits - 1) - 1
    q = LsqWeight(w, bits, per_channel)
    mean = w.abs().mean(1) if per_channel else w.abs().mean().reshape(1)
    assert torch.allclose(q.step(), 2 * mean / largest**0.5)
    q.quantized().sum().backward()
    v = (w / q.step().detach()[:, None]).double()
    inside = (v >= -(largest + 1)) & (v <= largest)
    # LSQ, equation 3: round(v) - v inside, the clipped code outside; times 1 / sqrt(N Qp).
    codes = torch.floor(v + 0.5).clamp(-(largest + 1), largest)
    per_weight = torch.where(inside, codes - v, codes)
    total = per_weight.sum(1) if per_channel else per_weight.sum().reshape(1)
    elements = w.shape[1] if per_channel else w.numel()
    published = total / (elements * largest) ** 0.5
    # Trained is the ratio of the step to its start.
    assert torch.allclose(q.ratio.grad.double() / q.start.double(), published, rtol=1e-4, atol=1e-5)


def test_lsq_at_one_bit_starts_at_the_mean():
    assert torch.allclose(LsqWeight(weight(), 1).step(), weight().abs().mean())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", REGULARIZED)
def test_the_penalty_is_zero_on_centroids_and_one_halfway(kind, bits):
    q = kind(weight(), bits)
    levels = torch.as_tensor(q.codebook.levels * float(q.scale), dtype=torch.float32)
    for values, expected in ((levels, 0.0), ((levels[1:] + levels[:-1]) / 2, 1.0)):
        with torch.no_grad():
            q.weight.copy_(values[torch.arange(q.weight.numel()) % len(values)].reshape(q.weight.shape))
        assert float(q.penalty().detach()) == pytest.approx(expected, abs=2e-3)
    with torch.no_grad():
        q.weight.fill_(float(levels[-1] + 2 * (levels[-1] - levels[-2])))
    assert float(q.penalty().detach()) == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("kind", REGULARIZED)
def test_the_gradient_of_the_penalty_is_the_numerical_one(kind):
    q = kind(weight(), 3).double()
    w = weight(3, 7, seed=5).double()  # not the weights that made the levels: none lies on a cusp

    def penalty(w):
        return torch.func.functional_call(_Penalty(q), {"q.weight": w}, ())

    assert torch.autograd.gradcheck(penalty, [w.requires_grad_()], eps=1e-7, atol=1e-4)


class _Penalty(torch.nn.Module):
    def __init__(self, q):
        super().__init__()
        self.q = q

    def forward(self):
        return self.q.penalty()


@pytest.mark.parametrize("kind", REGULARIZED)
def test_gradient_descent_on_the_penalty_alone_lands_on_the_centroids(kind):
    q = kind(weight(), 3)
    before = sqnr_db(q.weight.detach().numpy(), q.quantized().detach().numpy())
    optimizer = torch.optim.SGD([q.weight], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        q.penalty().backward()
        optimizer.step()
    after = sqnr_db(q.weight.detach().numpy(), q.quantized().detach().numpy())
    assert float(q.penalty().detach()) < 0.2 and after > before + 5


@pytest.mark.parametrize("kind", REGULARIZED)
def test_training_is_float_until_the_hard_share_and_evaluation_is_always_hard(kind):
    q = kind(weight(), 2)
    hard = (q.step()[:, None] * q.codes()).detach()
    q.anneal(1, 1000)
    assert torch.equal(q.train().quantized(), q.weight)
    assert torch.equal(q.eval().quantized(), hard)
    q.anneal(int(1000 * HARD_SHARE), 1000)
    assert torch.equal(q.train().quantized(), hard)
    q.quantized().sum().backward()
    x = (q.weight / q.scale).detach()
    inside = (x > float(q.codebook.levels[0])) & (x < float(q.codebook.levels[-1]))
    assert torch.allclose(q.weight.grad, inside.float())


def test_the_hard_compressor_puts_every_weight_on_its_centroid_now_and_then():
    q, steps = S8bWeight(weight(), 2), 400
    period = int(HARD_SHARE * steps / COMPRESSIONS)
    fired = []
    for step in range(steps):
        with torch.no_grad():
            q.weight.add_(1e-3)
        before = q.weight.detach().clone()
        q.anneal(step, steps)
        if not torch.equal(before, q.weight):
            fired.append(step)
            assert torch.allclose(q.weight, q.quantized(), atol=1e-7)
    assert fired == [period * i for i in range(1, COMPRESSIONS)]


def test_cosine_never_touches_the_weights_itself():
    q = CosineWeight(weight(), 2)
    for step in range(100):
        q.anneal(step, 100)
    assert torch.equal(q.weight, weight())


@pytest.mark.parametrize("bits, known", [(1, 4.40), (2, 9.30), (3, 14.62), (4, 20.22), (5, 26.01)])
def test_lloyd_reaches_the_published_distortion_of_a_gaussian(bits, known):
    """J. Max (1960), table I: SQNR of the optimal quantizers of a Gaussian."""
    x = np.random.default_rng(0).normal(size=200_000)
    levels = lloyd(x, 2**bits)
    nearest = levels[np.abs(x[:, None] - levels).argmin(1)] if bits < 4 else levels[
        np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
    ]  # fmt: skip
    assert abs(sqnr_db(x, nearest) - known) < 0.15


def test_companding_in_numpy_is_its_own_inverse_and_nothing_at_zero():
    v = np.linspace(-1, 1, 101)
    for mu in (0.0, 1e-3, 8.0, 255.0):
        assert np.allclose(expand(compand(v, mu), mu), v, atol=1e-12)
    assert np.array_equal(compand(v, 0.0), v)


def test_snapping_is_exact_where_a_step_is_and_nearest_elsewhere():
    assert snap(np.array([-3.0, -1.0, 1.0, 3.0]) * 0.2)[0].tolist() == [-3, -1, 1, 3]
    codes, step = snap(np.array([-1.0, 0.1234, 0.9]))
    assert step == pytest.approx(1 / 127) and codes.tolist() == [-127, 16, 114]
    assert snap(np.zeros(4)) == (pytest.approx(np.zeros(4)), 1.0)


@pytest.mark.parametrize("method", sorted(QUANTIZERS))
def test_only_regularizing_methods_have_a_penalty(method):
    q = QUANTIZERS[method](weight(), 4)
    assert (q.penalty() is not None) == (method in ("cosine", "s8b"))
