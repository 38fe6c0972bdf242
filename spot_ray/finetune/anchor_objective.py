"""What the anchor head minimises."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spot_ray.losses.anchor import direction_loss, residual_loss, sigmoid_focal_loss, sum_by_sample
from spot_ray.losses.config import AnchorLossConfig
from spot_ray.models.detection.anchor_head import AnchorHead
from spot_ray.models.detection.anchor_targets import NEGATIVE, POSITIVE
from spot_ray.models.detection.boxes import BoxTruth
from spot_ray.models.detection.head import HeadOutputs

ANCHOR_LOSS_NAMES = ("loss", "class", "box", "direction")
"""The columns of the objective."""


def anchor_objective(head: AnchorHead, config: AnchorLossConfig) -> Callable[[HeadOutputs, BoxTruth], Tensor]:
    """Return the loss of the head's outputs.

    It is summed over the anchors of all groups, and divided by the number of positive ones of the sample, at least 1.

    Args:
        head: The head, on the device of its outputs.
        config: Weights.

    Returns:
        A function of outputs and truth that returns (B, 4) float32: a row a sample, `ANCHOR_LOSS_NAMES` its columns,
        each part weighted and the loss their sum.
    """

    def objective(outputs: HeadOutputs, truth: BoxTruth) -> Tensor:
        targets = head.targets(truth)
        sample, anchor, y, x = targets.positives
        is_positive = targets.labels == POSITIVE
        weights = is_positive + config.negative_weight * (targets.labels == NEGATIVE)
        classes = sigmoid_focal_loss(
            outputs["class"],
            weights.index_select(1, head.anchor_of_channel),
            (sample, head.channel_of_anchor[anchor], y, x),
        )
        residuals = residual_loss(
            outputs["box"][sample, anchor, :, y, x],
            targets.residuals,
            velocity_weight=config.velocity_weight,
            beta=config.smooth_l1_beta,
        )
        directions = direction_loss(outputs["direction"][sample, anchor, :, y, x], targets.directions)

        parts = torch.stack(
            (
                config.class_weight * classes,
                config.box_weight * sum_by_sample(residuals, sample, truth.batch_size),
                config.direction_weight * sum_by_sample(directions, sample, truth.batch_size),
            ),
            dim=1,
        )
        parts = parts / is_positive.flatten(1).sum(dim=1, keepdim=True).clamp(min=1)
        return torch.cat((parts.sum(dim=1, keepdim=True), parts), dim=1)

    return objective
