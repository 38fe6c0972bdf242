"""The loss of the anchor head (SECOND, Sensors 18(10), 2018, section 3.3): classes, boxes and directions of anchors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

FOCAL_ALPHA = 0.25
"""α of the focal loss: weight of what is true; what is not weighs 1 - α."""
_YAW = 6
_SIZE_OF_BOX = 7


def sigmoid_focal_loss(logits: Tensor, weights: Tensor, truth: tuple[Tensor, ...]) -> Tensor:
    """Sum the focal loss of each sample (Lin et al., ICCV 2017, Eq. 5), with γ = 2.

    With p the sigmoid of a logit, what is true costs -α · (1 - p)² · log p, and all else -(1 - α) · p² · log(1 - p).

    Args:
        logits: (B, ...) float32.
        weights: (B, ...) float32 weight of each logit, ≥ 0, for as long as it is not true.
        truth: (P,) int64 for each dimension of the logits: which of them are true, each once; these weigh 1.

    Returns:
        (B,) float32.
    """
    loss: Tensor = _SigmoidFocalLoss.apply(logits, weights, *truth)
    return loss


class _SigmoidFocalLoss(torch.autograd.Function):
    """Forward keeps the slopes, and backward only scales them: three tensors of the logits' size are made, not ten."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weights: Tensor, *truth: Tensor) -> Tensor:
        # p² · s and its slope p² · (2 · (1 - p) · s + p), where s = -log(1 - p).
        p = torch.sigmoid(logits)
        loss = functional.softplus(logits)
        slope = (1 - p).mul_(loss).mul_(2).add_(p)
        weighted_square = p.mul_(p).mul_(weights).mul_(1 - FOCAL_ALPHA)
        slope.mul_(weighted_square)
        loss.mul_(weighted_square)

        # What is true is the same with the logit's sign turned.
        opposite = -logits[truth]
        q = torch.sigmoid(opposite)
        surprise = functional.softplus(opposite)
        square = FOCAL_ALPHA * q * q
        loss.index_put_(truth, square * surprise)
        slope.index_put_(truth, -square * (2 * (1 - q) * surprise + q))

        ctx.save_for_backward(slope)
        return loss.flatten(1).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        scaled = slope * grad_output.view(-1, *(1 for _ in slope.shape[1:]))
        return (scaled, *(None for _ in ctx.needs_input_grad[1:]))


def residual_loss(predicted: Tensor, truth: Tensor, *, velocity_weight: float, beta: float) -> Tensor:
    """Sum the smooth L1 losses of each box's residuals; of yaw, that of the difference's sine (SECOND, Eq. 6).

    Args:
        predicted: (P, 7) or, with velocities, (P, 9) float32 residuals, yaw in column 6.
        truth: Like `predicted`; velocities are NaN where unknown, and then cost nothing.
        velocity_weight: Weight of the velocities' components; the others weigh 1.
        beta: Difference from which on the loss grows linearly; 0: plain L1.

    Returns:
        (P,) float32.
    """
    velocity = truth[:, _SIZE_OF_BOX:]
    velocity = torch.where(velocity.isnan(), predicted[:, _SIZE_OF_BOX:].detach(), velocity)
    difference = torch.cat(
        (
            predicted[:, :_YAW] - truth[:, :_YAW],
            torch.sin(predicted[:, _YAW:_SIZE_OF_BOX] - truth[:, _YAW:_SIZE_OF_BOX]),
            predicted[:, _SIZE_OF_BOX:] - velocity,
        ),
        dim=1,
    )
    loss = functional.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=beta)
    return loss[:, :_SIZE_OF_BOX].sum(dim=1) + velocity_weight * loss[:, _SIZE_OF_BOX:].sum(dim=1)


def direction_loss(logits: Tensor, directions: Tensor) -> Tensor:
    """Return the (P,) float32 cross-entropies of (P, 2) float32 logits with (P,) int64 directions."""
    return functional.cross_entropy(logits, directions, reduction="none")


def sum_by_sample(values: Tensor, sample: Tensor, batch_size: int) -> Tensor:
    """Return the (batch_size,) sums of (P,) values by their (P,) sample, added in the same order each time."""
    is_other = sample != torch.arange(batch_size, device=sample.device)[:, None]
    return values.masked_fill(is_other, 0.0).sum(dim=1)
