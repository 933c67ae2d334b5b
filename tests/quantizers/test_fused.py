"""The loops of training against torch's own operations: values, gradients, every layout."""

import numpy as np
import pytest
import torch

from kwsbench.arithmetic.folding import fold
from kwsbench.quantizers import fused

LAYOUTS = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "channels first": lambda t: t.contiguous(),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}


def drawn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codes", [(0, 1), (0, 127), (-8, 7), (-1, 0)])
def test_fake_quantization_and_its_gradients(codes, layout):
    z = LAYOUTS[layout](drawn(3, 5, 7, 4, scale=2))
    z[0, 0, 0, :3] = torch.tensor([0.05, -0.05, 0.15])  # ties
    results = []
    for function in (fused.uniform, fused.plain_uniform):
        mine, step = z.clone().requires_grad_(), torch.tensor(0.1, requires_grad=True)
        low, high = step * codes[0], (step * codes[1]).clamp(max=6)
        y = function(mine, step, low, high, *codes)
        (y * drawn(3, 5, 7, 4, seed=1)).sum().backward()
        results.append((y.detach(), mine.grad, step.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.allclose(results[0][2], results[1][2], rtol=1e-4, atol=1e-4)


def test_fake_quantization_of_a_matrix_rounds_half_up():
    z = torch.tensor([[-1.5, -0.5, 0.5], [1.5, 2.5, 9.0]])
    one = torch.tensor(1.0)
    y = fused.uniform(z, one, one * -4, one * 3, -4, 3)
    assert y.tolist() == [[-1.0, 0.0, 1.0], [2.0, 3.0, 3.0]]


def test_the_step_learns_as_lsq_says():
    """Esser et al., equation 3: round(v) - v inside, the code at the edge outside, v = z / step."""
    z, step = drawn(2, 3, 4, 5, scale=2), torch.tensor(0.3, requires_grad=True)
    upstream = drawn(2, 3, 4, 5, seed=2)
    (fused.uniform(z, step, step * -4, step * 3, -4, 3) * upstream).sum().backward()
    v = (z / 0.3).double().numpy()
    published = np.where(v < -4, -4, np.where(v > 3, 3, np.floor(v + 0.5) - v))
    assert float(step.grad) == pytest.approx(float((published * upstream.numpy()).sum()), rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rounding", ["single", "double", "double_up"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_requantization_and_its_gradients(kind, rounding, layout):
    generator = torch.Generator().manual_seed(0)
    acc = torch.randint(-(2**20), 2**20, (3, 6, 7, 4), generator=generator).to(kind)
    acc = LAYOUTS[layout](acc)
    g, o = drawn(6, seed=3).abs(), drawn(6, seed=4)
    constants = fold(g.double().numpy(), o.double().numpy(), np.array([0.01]), 0.003, 0.5, "symmetric", 2**23)
    results = []
    for function in (fused.requantized, fused.plain_requantized):
        mine = acc.clone().requires_grad_()
        unit, offset = (g * 0.01 * 0.003 / 0.5).requires_grad_(), (o / 0.5).requires_grad_()
        highest = torch.tensor(6.3, requires_grad=True)
        y = function(mine, unit, offset, constants, -8, 6, rounding, highest)
        assert y.dtype == torch.float32 and len(y.unique()) > 10
        (y * drawn(3, 6, 7, 4, seed=1)).sum().backward()
        results.append((y.detach(), mine.grad, unit.grad, offset.grad, highest.grad))
    assert torch.equal(results[0][0], results[1][0])
    for mine, theirs in zip(results[0][1:], results[1][1:]):
        assert mine.dtype == theirs.dtype
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_moments_are_mean_and_variance_of_each_channel(kind):
    acc = torch.randint(-(2**20), 2**20, (3, 6, 7, 4), generator=torch.Generator().manual_seed(0)).to(kind)
    mean, var = fused.moments(acc)
    assert torch.allclose(mean, acc.double().mean((0, 2, 3)).float(), rtol=1e-5)
    assert torch.allclose(var, acc.double().var((0, 2, 3)).float(), rtol=1e-5)
    assert mean.dtype == var.dtype == torch.float32
