"""What a detector with a centre head learns: from its outputs and the annotated boxes to a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spot_ray.losses.center import gaussian_focal_loss, masked_l1
from spot_ray.losses.config import CenterLossConfig
from spot_ray.models.detection.boxes import BoxTruth
from spot_ray.models.detection.center_head import CenterHead
from spot_ray.models.detection.center_targets import BOX_VALUES
from spot_ray.models.detection.head import HeadOutputs

CENTER_LOSS_NAMES = ("loss", "heatmap", "box")
"""What the columns of the loss are."""


def center_objective(head: CenterHead, config: CenterLossConfig) -> Callable[[HeadOutputs, BoxTruth], Tensor]:
    """Return the loss of a centre head.

    Args:
        head: The head whose outputs are scored; it says what they should be.
        config: Weights.

    Returns:
        From outputs and truth to (B, 3) float32 in the order of `CENTER_LOSS_NAMES`: each part is the weighted sum over
        the groups, of which each is divided by the sample's own number of centres; the first is the sum of the parts.
    """

    def objective(outputs: HeadOutputs, truth: BoxTruth) -> Tensor:
        targets = head.targets(truth)
        in_sample = targets.sample == torch.arange(truth.batch_size, device=targets.sample.device)[:, None]
        weights = targets.known.float()
        weights[:, BOX_VALUES:] *= config.velocity_weight
        heatmap = box = weights.new_zeros(truth.batch_size)
        for g, wanted in enumerate(targets.heatmaps):
            heatmap = heatmap + gaussian_focal_loss(outputs[f"heatmap.{g}"].float(), wanted)
            columns = wanted.shape[3]
            predicted = outputs[f"box.{g}"][targets.sample, :, targets.cell // columns, targets.cell % columns].float()
            learned = targets.learned & (targets.group == g)
            box = box + masked_l1(predicted, targets.values, weights, learned, in_sample)
        heatmap, box = config.heatmap_weight * heatmap, config.box_weight * box
        return torch.stack((heatmap + box, heatmap, box), dim=1)

    return objective
