"""Lovász-Softmax: the convex extension of the Jaccard loss to probabilities (Berman et al., CVPR 2018; paper, Eq. 4).

For class c, let e_i be the error of voxel i: 1 - p_i(c) where c is true, p_i(c) elsewhere. With errors in falling
order, the loss is Σ e_i · (J_i - J_{i-1}), J_i being the Jaccard loss 1 - |intersection| / |union| if exactly the
first i voxels were wrong.

An error travels through the sort as an integer: the bits of a float32 between 0 and 1 order as the numbers do, take 30
bits, and leave room for one that says whether the class is true. So one sort of integers yields errors and truth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spot_ray.losses.positions import positions

_ONE_BITS = 0x3F800000
"""Bits of float32 1.0."""


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


def lovasz_slopes(probabilities: Tensor, labels: Tensor, *, over_present: bool) -> tuple[Tensor, Tensor]:
    """Return the loss of :func:`lovasz_softmax` and its slopes, outside of autograd.

    On the CPU classes come one by one, without the errors that cannot matter; elsewhere all classes are sorted at once,
    which waits for the device nowhere.

    Args:
        probabilities: (N + 1, M) float32 softmax.
        labels: (M,) int64 true class, 0 to N.
        over_present: As there.

    Returns:
        () float32 loss, and (N + 1, M) float32 its slope with respect to each probability; among equal errors those of
        other classes count as the greater ones.
    """
    if probabilities.device.type == "cpu":
        return slopes_class_by_class(probabilities, labels, over_present=over_present)
    return slopes_at_once(probabilities, labels, over_present=over_present)


class _LovaszSoftmax(torch.autograd.Function):
    """The loss is piecewise linear: forward keeps the slopes, and backward only scales them."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, labels: Tensor, over_present: bool) -> Tensor:
        loss, slopes = lovasz_slopes(probabilities, labels, over_present=over_present)
        ctx.save_for_backward(slopes)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * grad_output, None, None


def slopes_class_by_class(probabilities: Tensor, labels: Tensor, *, over_present: bool) -> tuple[Tensor, Tensor]:
    """Do :func:`lovasz_slopes` on the CPU, with some 60 bytes a voxel for one class at a time."""
    num_classes, num_voxels = probabilities.shape
    slopes = torch.zeros_like(probabilities)
    loss = probabilities.new_zeros(())
    if num_voxels == 0:
        return loss, slopes
    counts = torch.bincount(labels, minlength=num_classes)
    # 32-bit labels sort in half the time of 64-bit ones.
    voxels_of = torch.sort(labels.int(), stable=True).indices.split(counts.tolist())
    classes = [c for c in range(1, num_classes) if len(voxels_of[c]) or not over_present]
    for c in classes:
        loss += _add_class(probabilities[c], voxels_of[c], slopes[c])
    scale = 1.0 / max(1, len(classes))
    return loss * scale, slopes.mul_(scale)


def _add_class(probability: Tensor, true: Tensor, slopes: Tensor) -> Tensor:
    """Return one class's loss, and write its slopes into the zeros of `slopes`; `true` are the (T,) voxels of it."""
    error_of_true = 1.0 - probability.index_select(0, true)
    # Past the last true voxel the intersection is empty and the Jaccard loss stays 1: smaller errors have slope 0.
    is_candidate = probability >= (error_of_true.amin() if len(true) else probability.amax())
    is_candidate[true] = False
    others = positions(is_candidate)
    key_of_others = (_code(probability.index_select(0, others)).long() << 32) | others
    key_of_true = ((_code(error_of_true) | 1).long() << 32) | true
    key = torch.cat((key_of_others, key_of_true))
    key.numpy().sort()  # NumPy sorts integers with vector instructions
    code, order = (key >> 32).int(), key & 0xFFFFFFFF

    is_true = code & 1
    rank = torch.arange(1, len(code) + 1, dtype=torch.int32)
    intersection = len(true) - is_true.cumsum(0, dtype=torch.int32)
    slope = _slope(is_true.bool(), rank, intersection)
    slopes.scatter_(0, order, torch.where(is_true.bool(), -slope, slope))
    return (_error(code) * slope).sum()


def slopes_at_once(probabilities: Tensor, labels: Tensor, *, over_present: bool) -> tuple[Tensor, Tensor]:
    """Do :func:`lovasz_slopes` by one sort of (N, M) 32-bit codes along M: about 60 bytes a class and voxel."""
    num_classes, num_voxels = len(probabilities) - 1, len(labels)
    slopes = torch.zeros_like(probabilities)
    if num_classes == 0 or num_voxels == 0:
        return probabilities.new_zeros(()), slopes
    code = _code(probabilities)
    code_of_true = _code(1.0 - probabilities.gather(0, labels[None])) | 1
    code, order = torch.sort(code.scatter_(0, labels[None], code_of_true)[1:], dim=1, stable=True)

    is_true = code & 1
    # One flat cumulative sum of integers: exact, and CUDA gives a row of a 2D one to a single block. Taken from the
    # number of true voxels up to the end of the row, it leaves those that are still to come.
    total = is_true.sum(dim=1)
    dtype = torch.int32 if is_true.numel() <= torch.iinfo(torch.int32).max else torch.int64
    found = is_true.flatten().cumsum(0, dtype=dtype).view_as(code)
    intersection = total.cumsum(0).to(dtype)[:, None] - found
    rank = torch.arange(1, num_voxels + 1, dtype=dtype, device=code.device)
    slope = _slope(is_true.bool(), rank, intersection)

    weight = (total > 0).float() if over_present else torch.ones_like(total, dtype=torch.float32)
    weight /= weight.sum().clamp(min=1.0)
    loss = ((_error(code) * slope).sum(dim=1) * weight).sum()
    slope = torch.where(is_true.bool(), -slope, slope).mul_(weight[:, None])
    slopes[1:].scatter_(1, order, slope)
    return loss, slopes


def _code(error: Tensor) -> Tensor:
    """Return int32 codes that rise as errors fall; their last bit is 0."""
    return (_ONE_BITS - error.abs().clamp_(max=1.0).view(torch.int32)) << 1


def _error(code: Tensor) -> Tensor:
    """Return the float32 errors of codes."""
    return (_ONE_BITS - (code >> 1)).view(torch.float32)


def _slope(is_true: Tensor, rank: Tensor, intersection: Tensor) -> Tensor:
    """Return J_i - J_{i-1} at each rank i, counted from 1, of errors in falling order.

    In closed form: a difference of two float32 Jaccard losses would lose its digits to cancellation. The union is what
    is left of the intersection and all voxels up to i.
    """
    union = (intersection + rank).float()
    step = intersection / (union - 1.0).clamp_(min=1.0)
    # An absent class costs its greatest error: there alone is a union of one voxel that is not of the class.
    return step.masked_fill_(is_true | (union == 1.0), 1.0).div_(union)
