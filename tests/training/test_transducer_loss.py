"""The transducer loss against every alignment counted out, numerical gradients, autograd, and bad input."""

import itertools

import numpy as np
import pytest
import torch

from kwsbench.training.transducer_loss import transducer_loss


def alignments(frames: int, labels: int):
    """Every alignment as the frame at which each label is emitted: non-decreasing."""
    return itertools.combinations_with_replacement(range(frames), labels)


def brute_force(logits: torch.Tensor, labels: list[int], frames: int) -> torch.Tensor:
    """-log of the sum over alignments of the product of their symbols' probabilities; differentiable by autograd."""
    logs = logits.double().log_softmax(-1)
    totals = []
    for emitted_at in alignments(frames, len(labels)):
        total = torch.zeros((), dtype=torch.float64)
        u = 0
        for t in range(frames):
            while u < len(labels) and emitted_at[u] == t:
                total = total + logs[t, u, labels[u]]
                u += 1
            total = total + logs[t, u, 0]
        totals.append(total)
    return -torch.logsumexp(torch.stack(totals), 0)


def draw(seed, batch=1, frames=4, labels=3, symbols=4, dtype=torch.float64, scale=2.0):
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(batch, frames, labels + 1, symbols, generator=rng, dtype=dtype)
    targets = torch.randint(1, symbols, (batch, labels), generator=rng)
    return logits, targets


@pytest.mark.parametrize(("frames", "labels"), list(itertools.product([1, 2, 5], [0, 1, 3, 4])))
def test_loss_and_gradient_are_those_of_all_alignments(frames, labels):
    """More labels than frames included: a transducer has no limit there."""
    logits, targets = draw(10 * frames + labels, frames=frames, labels=labels)
    logits.requires_grad_()
    loss = transducer_loss(logits, targets, torch.tensor([frames]), torch.tensor([labels]))
    oracle_logits = logits.detach().clone().requires_grad_()
    oracle = brute_force(oracle_logits[0], targets[0].tolist(), frames)
    assert loss.item() == pytest.approx(oracle.item(), abs=1e-12)
    loss.sum().backward()
    oracle.backward()
    torch.testing.assert_close(logits.grad, oracle_logits.grad, atol=1e-12, rtol=0)


def test_each_item_of_a_padded_batch_has_its_own_loss():
    """Padding may hold anything, infinities and NaN included, and gets no gradient."""
    logits, targets = draw(3, batch=4, frames=5, labels=3)
    frames, counts = torch.tensor([5, 3, 1, 4]), torch.tensor([3, 1, 2, 0])
    targets[1, 1:] = -100
    targets[3, :] = 999
    for b in range(4):
        logits[b, frames[b] :] = torch.nan
        logits[b, :, counts[b] + 1 :] = torch.inf
    logits.requires_grad_()
    losses = transducer_loss(logits, targets, frames, counts)
    losses.sum().backward()
    for b, (t, u) in enumerate(zip(frames.tolist(), counts.tolist())):
        alone = logits.detach()[b : b + 1, :t, : u + 1].clone().requires_grad_()
        loss = transducer_loss(alone, targets[b : b + 1, :u], frames[b : b + 1], counts[b : b + 1])
        loss.sum().backward()
        assert losses[b].item() == pytest.approx(loss.item(), abs=1e-12)
        torch.testing.assert_close(logits.grad[b, :t, : u + 1], alone.grad[0], atol=1e-12, rtol=0)
        assert (logits.grad[b, t:] == 0).all() and (logits.grad[b, :, u + 1 :] == 0).all()


def test_gradients_agree_with_numerical_differences():
    logits, targets = draw(5, batch=2, frames=3, labels=2)
    logits.requires_grad_()
    lengths = torch.tensor([3, 2]), torch.tensor([2, 1])
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: (weights * transducer_loss(x, targets, *lengths)).sum(), (logits,))


def test_the_gradient_of_every_node_sums_to_zero():
    """A softmax does not feel a constant added to its logits."""
    logits, targets = draw(8, batch=2, frames=6, labels=4)
    logits.requires_grad_()
    transducer_loss(logits, targets, torch.tensor([6, 5]), torch.tensor([4, 2])).sum().backward()
    assert logits.grad.sum(-1).abs().max() < 1e-12


def test_probabilities_of_all_label_sequences_sum_to_one():
    """With at most n labels over T frames something is missing; it vanishes as n grows."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64)  # logits that do not see the labels
    table[..., 0] += 2
    missing = []
    for most in (2, 5, 8):
        total = 0.0
        for count in range(most + 1):
            for labels in itertools.product([1, 2], repeat=count):
                logits = table[None, :, : count + 1]
                targets = torch.tensor([labels], dtype=torch.long).reshape(1, count)
                total += float((-transducer_loss(logits, targets, torch.tensor([2]), torch.tensor([count]))).exp())
        missing.append(1 - total)
    assert missing[0] > missing[1] > missing[2] > 0 and missing[2] < 0.02


def test_float32_logits_are_summed_in_float64():
    """400 frames, 80 labels: what float32 adds is its own rounding of the result only."""
    logits, targets = draw(1, batch=1, frames=400, labels=80, symbols=9, dtype=torch.float32)
    lengths = torch.tensor([400]), torch.tensor([80])
    narrow = transducer_loss(logits, targets, *lengths)
    wide = transducer_loss(logits.double(), targets, *lengths)
    assert narrow.dtype == torch.float32 and narrow.item() == np.float32(wide.item())


def test_impossible_labels_have_an_infinite_loss_and_no_gradient():
    logits, targets = draw(2, batch=2, frames=3, labels=2)
    targets[:] = 1
    logits[0, :, :, 1] = -torch.inf
    logits.requires_grad_()
    losses = transducer_loss(logits, targets, torch.tensor([3, 3]), torch.tensor([2, 2]))
    losses.sum().backward()
    assert losses[0] == torch.inf and torch.isfinite(losses[1])
    assert (logits.grad[0] == 0).all() and (logits.grad[1] != 0).any()


def test_nan_is_not_hidden():
    logits, targets = draw(2)
    logits[0, 1, 1, 2] = torch.nan
    assert transducer_loss(logits, targets, torch.tensor([4]), torch.tensor([3])).isnan().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": torch.tensor([4, 0])}, r"frames must lie in 1\.\.4, got 0 for item 1 .* leave out audio shorter"),
        ({"frames": torch.tensor([5, 4])}, r"frames must lie in 1\.\.4, got 5 for item 0"),
        ({"label_counts": torch.tensor([3, 4])}, r"label_counts must lie in 0\.\.3, got 4 for item 1"),
        ({"labels": torch.tensor([[1, 2, 3], [1, 0, 2]])}, r"label 0 of item 1 .* 0 is the blank"),
        ({"labels": torch.tensor([[1, 2, 4], [1, 1, 1]])}, r"label 4 of item 0 .* labels are 1\.\.3"),
        ({"labels": torch.ones(2, 2, dtype=torch.long)}, r"labels must be \[B, U\] = \(2, 3\)"),
        ({"frames": torch.tensor([4])}, r"frames must be \[B\] = \(2,\), got \(1,\)"),
        ({"logits": torch.zeros(2, 4, 4)}, r"logits must be float \[B, T, U \+ 1, V\]"),
        ({"logits": torch.zeros(2, 4, 4, 4, dtype=torch.long)}, r"logits must be float"),
    ],
)
def test_bad_input_is_named(changes, message):
    logits, labels = draw(0, batch=2)
    good = {"logits": logits, "labels": labels, "frames": torch.tensor([4, 4]), "label_counts": torch.tensor([3, 3])}
    with pytest.raises(ValueError, match=message):
        transducer_loss(**(good | changes))
