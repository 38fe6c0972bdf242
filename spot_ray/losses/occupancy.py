"""The pre-training loss L = CE + λ · Lovász (paper, Eq. 3), one value a sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spot_ray.losses.cross_entropy import weighted_cross_entropy
from spot_ray.losses.lovasz import lovasz_slopes
from spot_ray.losses.positions import positions

IGNORE_INDEX = 255

UNLABELLED_LOGIT = -1e4
"""Logit of a class that a sample's dataset cannot label: out of the softmax, finite in half precision too."""


class OccupancyLoss(NamedTuple):
    """Losses of B samples.

    Args:
        total: (B,) float32 cross_entropy + λ · lovasz: the one to differentiate.
        cross_entropy: (B,) float32, without a gradient.
        lovasz: (B,) float32, without a gradient.
    """

    total: Tensor
    cross_entropy: Tensor
    lovasz: Tensor


def occupancy_loss(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor,
    *,
    lovasz_weight: float,
    over_present: bool,
    labelled: Tensor | None = None,
) -> OccupancyLoss:
    """Score every sample on its own observed voxels.

    A sample's loss does not depend on its neighbours in the batch, so sums over samples are the same however a global
    batch is shared among workers.

    Both terms share one softmax, and their gradients are written down with them. Until backward, an observed voxel
    keeps 4 · (N + 1) + 8 bytes. Forward works on one sample at a time, with four times that and what the Lovász term
    takes: some 60 bytes a voxel on the CPU, 60 a voxel and class on a GPU (0.9 GB for a million voxels of 15 classes).
    Unobserved voxels cost nothing but their zeros in the gradient. It waits for a GPU twice: for the observed voxels
    and for how many of them each sample has.

    Args:
        logits: (B, N + 1, nz, ny, nx) float; computed in float32.
        labels: (B, nz, ny, nx) uint8 class 0 to N; 255 is ignored.
        class_weights: (N + 1,) float32 cross-entropy weights, 0 being empty.
        lovasz_weight: λ.
        over_present: Average the Lovász term over the classes in the sample's observed truth; off: over all.
        labelled: (B, N + 1) bool: a class that is not is left out of the sample's softmax; None: all are.

    Returns:
        The losses; 0 with zero gradient for a sample without an observed voxel.
    """
    return OccupancyLoss(*_OccupancyLoss.apply(logits, labels, class_weights, lovasz_weight, over_present, labelled))


class _OccupancyLoss(torch.autograd.Function):
    """Forward keeps the gradient of each sample's total at its observed voxels, and backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        class_weights: Tensor,
        lovasz_weight: float,
        over_present: bool,
        labelled: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        losses, gradients, voxels = [], [], _observed(labels)
        for b, observed in enumerate(voxels):
            seen = logits[b].flatten(1).index_select(1, observed).float()
            masked = None if labelled is None else ~labelled[b][:, None]
            if masked is not None:
                seen.masked_fill_(masked, UNLABELLED_LOGIT)
            truth = labels[b].flatten().index_select(0, observed).long()
            loss, gradient = _score(seen, truth, class_weights, lovasz_weight, over_present)
            if masked is not None:
                gradient.masked_fill_(masked, 0.0)
            losses.append(loss)
            gradients.append(gradient)
        cross_entropy, lovasz = torch.stack(losses, dim=1)
        ctx.save_for_backward(*gradients, *voxels)
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        ctx.mark_non_differentiable(cross_entropy, lovasz)
        return cross_entropy + lovasz_weight * lovasz, cross_entropy, lovasz

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        size = len(grad_total)
        gradients, voxels = ctx.saved_tensors[:size], ctx.saved_tensors[size:]
        grad_logits = torch.zeros(ctx.shape, dtype=ctx.dtype, device=grad_total.device)
        for b in range(size):
            scaled = (gradients[b] * grad_total[b]).to(ctx.dtype)
            grad_logits[b].view(ctx.shape[1], -1).index_copy_(1, voxels[b], scaled)
        return grad_logits, None, None, None, None, None


def _observed(labels: Tensor) -> tuple[Tensor, ...]:
    """Return the (M,) int64 observed voxels of each sample, in order."""
    is_observed = (labels != IGNORE_INDEX).flatten(1)
    num_voxels = is_observed.shape[1]
    voxels = positions(is_observed.flatten()).split(is_observed.sum(dim=1).tolist())
    return tuple(voxel - b * num_voxels for b, voxel in enumerate(voxels))


def _score(
    logits: Tensor, truth: Tensor, class_weights: Tensor, lovasz_weight: float, over_present: bool
) -> tuple[Tensor, Tensor]:
    """Return (2,) cross-entropy and Lovász of one sample, and the (N + 1, M) gradient of their weighted sum.

    With p the softmax, w the voxel's share of the class weights, y its one-hot truth and s the slopes of λ · Lovász:
    gradient = w · (p - y) + p · (s - Σ p · s).
    """
    log_probabilities = torch.log_softmax(logits, dim=0)
    cross_entropy, share = weighted_cross_entropy(log_probabilities, truth, class_weights)
    probabilities = log_probabilities.exp_()
    lovasz, slopes = lovasz_slopes(probabilities, truth, over_present=over_present)
    gradient = slopes.mul_(lovasz_weight)
    gradient.sub_((probabilities * gradient).sum(dim=0)).add_(share).mul_(probabilities)
    gradient.scatter_add_(0, truth[None], -share[None])
    return torch.stack((cross_entropy, lovasz)), gradient
