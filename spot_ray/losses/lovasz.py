"""Lovász-Softmax: the convex extension of the Jaccard loss to probabilities (Berman et al., CVPR 2018; paper, Eq. 4).

For class c, let e_i be the error of voxel i: 1 - p_i(c) where c is true, p_i(c) elsewhere. With errors in falling
order, the loss is Σ e_i · (J_i - J_{i-1}), J_i being the Jaccard loss 1 - |intersection| / |union| if exactly the
first i voxels were wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ONE_BITS = 0x3F800000
"""Bits of float32 1.0; between 0 and 1, bits order as the numbers do."""


def lovasz_softmax(probabilities: Tensor, labels: Tensor, *, over_present: bool) -> Tensor:
    """Average the Lovász extension of the Jaccard loss over the classes 1 to N; empty (0) is left out.

    Exact: no binning, no sampling.

    Args:
        probabilities: (N + 1, M) float32 softmax.
        labels: (M,) int64 true class, 0 to N.
        over_present: Average over the classes among `labels`; off: over all N, where an absent class costs its greatest
            probability.

    Returns:
        () float32; 0 with zero gradient if there is no class to average over.
    """
    loss: Tensor = _LovaszSoftmax.apply(probabilities, labels, over_present)
    return loss


class _LovaszSoftmax(torch.autograd.Function):
    """The loss is piecewise linear: forward keeps the slopes, and backward only scales them."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, labels: Tensor, over_present: bool) -> Tensor:
        num_classes = len(probabilities)
        gradient = torch.zeros_like(probabilities)
        counts = torch.bincount(labels, minlength=num_classes).tolist()
        classes = [c for c in range(1, num_classes) if counts[c] or (not over_present and len(labels))]
        loss = probabilities.new_zeros(())
        for c in classes:
            loss += _add_class(probabilities[c], labels == c, gradient[c])
        scale = 1.0 / max(1, len(classes))
        ctx.save_for_backward(gradient.mul_(scale))
        return loss * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None


def _add_class(probability: Tensor, foreground: Tensor, gradient: Tensor) -> Tensor:
    """Return one class's loss, and write its slope with respect to `probability` into the zeros of `gradient`."""
    errors = torch.where(foreground, 1.0 - probability, probability).clamp_(0.0, 1.0)
    # Past the last true voxel the intersection is empty and the Jaccard loss stays 1: smaller errors have slope 0.
    least = torch.where(foreground, errors, 2.0).amin().clamp(max=errors.amax())
    index = (errors >= least).nonzero().squeeze(1)
    error, order, is_foreground = _sort_falling(errors.index_select(0, index), index, foreground.index_select(0, index))

    total = is_foreground.sum()
    rank = torch.arange(1, len(order) + 1, device=order.device)
    found = is_foreground.cumsum(0)
    intersection = (total - found).float()
    union = (total + rank - found).float()
    # J_i - J_{i-1} in closed form: a difference of two float32 Jaccard losses would lose its digits to cancellation.
    first_of_absent = (total == 0) & (rank == 1)
    slope = torch.where(
        is_foreground | first_of_absent, 1.0 / union, intersection / (union * (union - 1.0)).clamp(min=1.0)
    )
    gradient.scatter_(0, order, torch.where(is_foreground, -slope, slope))
    return (error * slope).sum()


def _sort_falling(error: Tensor, index: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort by falling error, ties by index; return (error, index, foreground).

    All three travel in one 64-bit key (31 bits error, 32 bits index, 1 bit foreground), so that one sort without a
    permutation does it: on the CPU by NumPy, whose sort of integers uses vector instructions.
    """
    key = ((_ONE_BITS - error.view(torch.int32)).long() << 33) | (index << 1) | foreground
    if key.device.type == "cpu":
        key.numpy().sort()
    else:
        key = torch.sort(key).values
    bits = (_ONE_BITS - (key >> 33)).int()
    return bits.view(torch.float32), (key >> 1) & 0xFFFFFFFF, (key & 1).bool()
