"""The transducer loss: -log of the labels' probability, summed over all alignments (Graves 2012, arXiv 1211.3711).

    logits [B, T, U + 1, V]; at node (t, u), after u labels at encoder frame t, the blank leads to (t + 1, u) and
    label u (0-based) to (t, u + 1). Every path from (0, 0) ends with the blank at (T - 1, U).

    alpha(t, u) = log p of reaching the node,   beta(t, u) = log p of finishing from it,   loss = -beta(0, 0)
    d loss / d logit_v = occupancy * softmax_v - (flow through the arc of v)

Only the two log-probabilities that a node uses go through forward-backward (Numba, on the CPU, float64); normalisation
and gradient stay in torch on the device of the logits, in float64, rounded once to their type. The gradient is that of
the softmax fused with the loss (arXiv 1909.12415): no tensor of log-probabilities is kept for the backward pass.
Any number of labels fits any number of frames but zero: frames, not labels, can be too few.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from kwsbench.models.transducer import BLANK


def transducer_loss(
    logits: torch.Tensor, labels: torch.Tensor, frames: torch.Tensor, label_counts: torch.Tensor
) -> torch.Tensor:
    """Loss in nats ``[B]`` of each item; differentiable in ``logits``.

    logits: ``[B, T, U + 1, V]`` float, not normalised, symbol 0 the blank. labels: ``[B, U]`` integers; what stands
    beyond an item's count is ignored. frames, label_counts: ``[B]``, encoder frames and labels of each item. An item
    may have no label: its only alignment is all blanks. Where the labels have no probability at all (logits of
    -inf) the loss is inf and its gradient 0; logits of NaN give NaN.

    Raises:
        ValueError: shapes do not fit, an item has no frame (empty audio) or more than ``T``, a label is the blank or
            outside the vocabulary. Items are named by their place in the batch.
    """
    _check(logits, labels, frames, label_counts)
    return _TransducerLoss.apply(logits, labels.long(), frames, label_counts)


class _TransducerLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, frames, label_counts):
        exact = logits.detach().double()
        norm = exact.logsumexp(-1)
        blank = exact[..., BLANK] - norm
        index = _label_index(labels, logits)
        label = exact[:, :, :-1].gather(-1, index)[..., 0] - norm[:, :, :-1]
        loss, through_blank, through_label = forward_backward(
            *(np.ascontiguousarray(x.cpu().numpy()) for x in (blank, label, frames.long(), label_counts.long()))
        )
        if ctx.needs_input_grad[0]:
            flow_blank, flow_label = (torch.from_numpy(x).to(logits.device) for x in (through_blank, through_label))
            occupancy = flow_blank.clone()
            occupancy[:, :, :-1] += flow_label
            # Outside an item nothing flows, and whatever the padding's logits are must not matter: not even NaN.
            gradient = (exact - norm[..., None]).exp() * occupancy[..., None]
            gradient = torch.where(occupancy[..., None] == 0, 0.0, gradient)
            gradient[..., BLANK] -= flow_blank
            gradient[:, :, :-1].scatter_add_(-1, index, -flow_label[..., None])
            ctx.save_for_backward(gradient.to(logits.dtype))
        return torch.from_numpy(loss).to(logits.device, logits.dtype)

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None, None, None], None, None, None


def _label_index(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """``[B, T, U, 1]`` for gather; padding, which may hold anything, points to the blank."""
    valid = (labels > BLANK) & (labels < logits.shape[-1])
    index = torch.where(valid, labels, BLANK).to(logits.device)
    return index[:, None, :, None].expand(-1, logits.shape[1], -1, 1)


@numba.njit(cache=True, nogil=True)
def _log_add(a: float, b: float) -> float:
    if a == -np.inf:
        return b
    if b == -np.inf:
        return a
    high, low = (a, b) if a > b else (b, a)
    return high + np.log1p(np.exp(low - high))


@numba.njit(cache=True, nogil=True)
def forward_backward(
    blank: np.ndarray, label: np.ndarray, frames: np.ndarray, label_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Forward-backward over the lattices of a batch, float64.

    blank: ``[B, T, U + 1]`` log-probabilities of the blank at each node; label: ``[B, T, U]`` of the next label.
    Returns the losses ``[B]`` and the probability, given the labels, that an alignment takes each arc:
    ``[B, T, U + 1]`` for blanks, ``[B, T, U]`` for labels, zero outside an item and in items without probability.
    """
    batch, n_frames, nodes = blank.shape
    losses = np.empty(batch)
    through_blank = np.zeros(blank.shape)
    through_label = np.zeros(label.shape)
    alpha = np.empty((n_frames, nodes))
    beta = np.empty((n_frames, nodes))
    for b in range(batch):
        last, count = frames[b] - 1, label_counts[b]
        for t in range(last, -1, -1):
            for u in range(count, -1, -1):
                stay = -np.inf
                if u < count:
                    stay = label[b, t, u] + beta[t, u + 1]
                if t < last:
                    on = blank[b, t, u] + beta[t + 1, u]
                else:
                    on = blank[b, t, u] if u == count else -np.inf
                beta[t, u] = _log_add(stay, on)
        total = beta[0, 0]
        losses[b] = -total
        if total == -np.inf:
            continue
        for t in range(last + 1):
            for u in range(count + 1):
                if t == 0 and u == 0:
                    alpha[t, u] = 0.0
                else:
                    before = alpha[t - 1, u] + blank[b, t - 1, u] if t > 0 else -np.inf
                    beside = alpha[t, u - 1] + label[b, t, u - 1] if u > 0 else -np.inf
                    alpha[t, u] = _log_add(before, beside)
                reached = alpha[t, u] - total
                if t < last:
                    through_blank[b, t, u] = np.exp(reached + blank[b, t, u] + beta[t + 1, u])
                elif u == count:
                    through_blank[b, t, u] = np.exp(reached + blank[b, t, u])
                if u < count:
                    through_label[b, t, u] = np.exp(reached + label[b, t, u] + beta[t, u + 1])
    return losses, through_blank, through_label


def _check(logits: torch.Tensor, labels: torch.Tensor, frames: torch.Tensor, label_counts: torch.Tensor) -> None:
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(f"logits must be float [B, T, U + 1, V], got {logits.dtype} {tuple(logits.shape)}")
    batch, n_frames, nodes, symbols = logits.shape
    if labels.shape != (batch, nodes - 1):
        raise ValueError(f"labels must be [B, U] = {(batch, nodes - 1)} for these logits, got {tuple(labels.shape)}")
    for name, lengths, least, most in (("frames", frames, 1, n_frames), ("label_counts", label_counts, 0, nodes - 1)):
        if lengths.shape != (batch,):
            raise ValueError(f"{name} must be [B] = {(batch,)}, got {tuple(lengths.shape)}")
        wrong = [b for b, n in enumerate(lengths.tolist()) if not least <= n <= most]
        if wrong:
            hint = "; leave out audio shorter than one encoder frame" if least and lengths[wrong[0]] < 1 else ""
            raise ValueError(
                f"{name} must lie in {least}..{most}, "
                f"got {int(lengths[wrong[0]])} for item {wrong[0]} of the batch{hint}"
            )
    used = torch.arange(nodes - 1, device=labels.device) < label_counts.to(labels.device)[:, None]
    bad = (used & ((labels <= BLANK) | (labels >= symbols))).nonzero().tolist()
    if bad:
        b, u = bad[0]
        raise ValueError(
            f"label {int(labels[b, u])} of item {b} of the batch is not in the vocabulary: "
            f"labels are 1..{symbols - 1}, {BLANK} is the blank"
        )
