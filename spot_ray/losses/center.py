"""The loss of the centre head, one value a sample (CenterPoint, arXiv:2006.11275, section 4)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

FOCUS = 2
"""Exponent on how wrong a cell is (α)."""
FORGIVENESS = 4
"""Exponent on how far from a centre a cell is (β)."""


def gaussian_focal_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """Score heat maps of centres (CornerNet, arXiv:1808.01244, Eq. 1), in log space: no probability is cut off.

    Args:
        logits: (B, C, ny, nx) float32.
        heatmap: (B, C, ny, nx) float32 target, 0 to 1; exactly 1 in the cells of centres.

    Returns:
        (B,) float32: the sum over cells over the number of centres, at least 1.
    """
    is_center = heatmap == 1
    at_centers = (-logits).sigmoid() ** FOCUS * functional.logsigmoid(logits)
    elsewhere = logits.sigmoid() ** FOCUS * functional.logsigmoid(-logits) * (1 - heatmap) ** FORGIVENESS
    return -at_centers.where(is_center, elsewhere).sum(dim=(1, 2, 3)) / is_center.sum(dim=(1, 2, 3)).clamp(min=1)


def masked_l1(predicted: Tensor, values: Tensor, weights: Tensor, learned: Tensor, in_sample: Tensor) -> Tensor:
    """Score the regressed values of K boxes.

    Args:
        predicted: (K, D) float32.
        values: (K, D) float32 targets.
        weights: (K, D) float32 weight of each difference; 0 where the target is unknown.
        learned: (K,) bool, boxes that count.
        in_sample: (B, K) bool, True for the boxes of each sample.

    Returns:
        (B,) float32: the weighted sum over a sample's boxes that count over their number, at least 1.
    """
    counted = in_sample & learned
    of_box = ((predicted - values).abs() * weights).sum(dim=1)
    return of_box.masked_fill(~counted, 0.0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
