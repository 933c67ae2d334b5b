"""The training forward of integer LSTMs: equal to arithmetic.gates, gradients those of the float cell."""

import numpy as np
import pytest
import torch

from kwsbench.arithmetic import gates as arithmetic
from kwsbench.quantizers.gates import gate_tensors, joint, lstm_sequence

NAMES = ("input_multiplier", "state_multiplier", "bias", "shift")
SIGMOID, TANH = arithmetic.SIGMOID.astype(np.int64), arithmetic.TANH.astype(np.int64)


def drawn(seed, batch=3, frames=9, inputs=10, hidden=6, code=127, gain=1.0):
    rng = torch.Generator().manual_seed(seed)

    def ints(*shape, largest=127):
        return torch.randint(-largest, largest + 1, shape, generator=rng).float()

    rows = 4 * hidden
    unit_x = 0.003 * gain * (0.5 + torch.rand(rows, generator=rng)) / code
    unit_h = 0.005 * gain * (0.5 + torch.rand(rows, generator=rng)) / code
    bias = torch.randn(rows, generator=rng)
    return (
        ints(batch, frames, inputs),
        ints(rows, inputs, largest=code),
        ints(rows, hidden, largest=code),
        (
            unit_x,
            unit_h,
            bias,
        ),
    )


def constants_of(units):
    return arithmetic.gate_constants(*(u.detach().double().numpy() for u in units))


def by_integers(x, codes_x, codes_h, constants):
    """h ``[B, T, H]`` and c of each frame, by int64 NumPy."""
    x, codes_x, codes_h = (a.detach().numpy().astype(np.int64) for a in (x, codes_x, codes_h))
    hidden = codes_h.shape[1]
    h = c = np.zeros((len(x), hidden), np.int64)
    hs = []
    for t in range(x.shape[1]):
        values = [getattr(constants, name) for name in NAMES]
        z = arithmetic.preactivation(x[:, t] @ codes_x.T, h @ codes_h.T, *values)
        h, c = arithmetic.lstm(z, c, SIGMOID, TANH)
        hs.append(h)
    return np.stack(hs, 1), c


@pytest.mark.parametrize("gain", [1.0, 40.0])  # the second drives gates and cells into saturation
@pytest.mark.parametrize("code", [1, 7, 127])
def test_a_sequence_is_the_integer_arithmetic(code, gain):
    x, codes_x, codes_h, units = drawn(code, code=code, gain=gain)
    fresh = torch.zeros(3, 6)
    h, c = lstm_sequence(x @ codes_x.T, codes_h, *units, gate_tensors(*units), fresh, fresh.double())
    want_h, want_c = by_integers(x, codes_x, codes_h, constants_of(units))
    assert np.array_equal(h.numpy(), want_h) and np.array_equal(c.numpy(), want_c)
    assert np.abs(want_h).max() > 40


def test_an_open_cell_fills_up_and_saturates():
    """Input, forget and output gates open, the candidate at 1: c grows by one a frame and stops at 16."""
    x, codes_x, codes_h, units = drawn(0, frames=25)
    x, codes_h = torch.zeros_like(x), torch.zeros_like(codes_h)
    units = (*units[:2], torch.full_like(units[2], 20.0))
    fresh = torch.zeros(3, 6)
    h, c = lstm_sequence(x @ codes_x.T, codes_h, *units, gate_tensors(*units), fresh, fresh.double())
    assert torch.all(c == 2**15 - 1) and torch.all(h[:, -1] == 127)
    assert np.array_equal(c.numpy(), by_integers(x, codes_x, codes_h, constants_of(units))[1])


@pytest.mark.parametrize("cut", [0, 1, 4, 9])
def test_a_sequence_may_be_cut_anywhere(cut):
    x, codes_x, codes_h, units = drawn(5)
    acc, constants = x @ codes_x.T, gate_tensors(*units)
    fresh = (torch.zeros(3, 6), torch.zeros(3, 6).double())
    whole, last = lstm_sequence(acc, codes_h, *units, constants, *fresh)
    first, c = lstm_sequence(acc[:, :cut], codes_h, *units, constants, *fresh)
    h = first[:, -1] if cut else fresh[0]
    second, c = lstm_sequence(acc[:, cut:], codes_h, *units, constants, h, c)
    assert torch.equal(torch.cat([first, second], 1), whole) and torch.equal(c, last)


def test_its_gradient_is_that_of_the_float_cell():
    """An oracle of its own: the cell in plain autograd, at units where it is far from chaotic."""
    x, codes_x, codes_h, units = drawn(1, batch=8, frames=20, inputs=24, hidden=16)
    leaves = [a.clone().requires_grad_() for a in (x, codes_x, codes_h, *units)]
    weight = torch.randn(8, 20, 16, generator=torch.Generator().manual_seed(2))

    def emulated(x, codes_x, codes_h, *units):
        fresh = torch.zeros(8, 16)
        return lstm_sequence(x @ codes_x.T, codes_h, *units, gate_tensors(*units), fresh, fresh.double())[0]

    def plain(x, codes_x, codes_h, unit_x, unit_h, bias):
        h = c = torch.zeros(8, 16)
        out = []
        for frame in x.unbind(1):
            i, f, g, o = ((frame @ codes_x.T) * unit_x + (128 * h @ codes_h.T) * unit_h + bias).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return 128 * torch.stack(out, 1)

    got = torch.autograd.grad((emulated(*leaves) * weight).sum(), leaves)
    want = torch.autograd.grad((plain(*leaves) * weight).sum(), leaves)
    for ours, theirs in zip(got, want):
        assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_the_gradient_reaches_the_state_before():
    x, codes_x, codes_h, units = drawn(3)
    h = torch.full((3, 6), 20.0, requires_grad=True)
    out, _ = lstm_sequence(x @ codes_x.T, codes_h, *units, gate_tensors(*units), h, torch.zeros(3, 6).double())
    (gradient,) = torch.autograd.grad(out[:, 0].sum(), h)
    step = 6.0
    moved = []
    for sign in (1, -1):
        shifted = h.detach().clone()
        shifted[0] += sign * step
        y, _ = lstm_sequence(x @ codes_x.T, codes_h, *units, gate_tensors(*units), shifted, torch.zeros(3, 6).double())
        moved.append(y[0, 0].sum())
    assert gradient[0].sum() == pytest.approx(float(moved[0] - moved[1]) / (2 * step), abs=0.25)
    assert torch.all(gradient.abs().sum(1) > 0)


def test_a_joint_is_the_integer_arithmetic_and_broadcasts():
    x, codes_x, codes_h, units = drawn(7, batch=2, frames=5)
    acc_x = (x @ codes_x.T)[:, :, None].requires_grad_()
    acc_h = (x[:, :3, :6] @ codes_h.T)[:, None].requires_grad_()
    y = joint(acc_x, acc_h, *units, gate_tensors(*units))
    constants = constants_of(units)
    z = arithmetic.preactivation(
        acc_x.detach().numpy().astype(np.int64),
        acc_h.detach().numpy().astype(np.int64),
        *(getattr(constants, name) for name in NAMES),
    )
    assert y.shape == (2, 5, 3, 24) and np.array_equal(y.detach().numpy(), arithmetic.squash(z, TANH))
    y.sum().backward()
    real = acc_x.detach() * units[0] + acc_h.detach() * units[1] + units[2]
    want = (128 * (1 - real.tanh() ** 2) * units[0]).sum(2, keepdim=True)
    assert torch.allclose(acc_x.grad, want, rtol=1e-4, atol=1e-6)
