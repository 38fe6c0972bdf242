"""Which anchors learn which boxes (SECOND; OpenPCDet's `AxisAlignedTargetAssigner`).

A class's anchors are matched with that class's boxes alone, by their overlap in the bird's-eye view with the yaw of the
box rounded to the nearer axis. So only anchors of cells near a box matter, and only they are looked at: the work grows
with the number of boxes, not with the size of the map times it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spot_ray.models.detection.anchor_coder import direction_of, encode_boxes
from spot_ray.models.detection.anchors import YAWS, AnchorGrid
from spot_ray.models.detection.boxes import BoxTruth

NEGATIVE, IGNORED, POSITIVE = 0, 1, 2
"""Labels: an anchor learns to be none, learns nothing, or learns a box."""

_LAST = 0x7FFFFFFF
"""Greatest int32."""


@dataclass(frozen=True, eq=False)
class AnchorTargets:
    """What the anchors of B samples learn.

    Args:
        labels: (B, 2 N, ny, nx) uint8 `NEGATIVE`, `IGNORED` or `POSITIVE`.
        positives: Four (P,) int64: sample, anchor, row and column of each positive one, in this order.
        residuals: (P, 7) float32 of its box, as :mod:`~spot_ray.models.detection.anchor_coder` has them, or (P, 9)
            with its velocity in m/s, NaN where unknown.
        directions: (P,) int64 direction of its box, 0 or 1.
    """

    labels: Tensor
    positives: tuple[Tensor, Tensor, Tensor, Tensor]
    residuals: Tensor
    directions: Tensor


def assign_targets(grid: AnchorGrid, truth: BoxTruth, *, velocity: bool) -> AnchorTargets:
    """Match anchors with boxes.

    An anchor learns a box if it overlaps one by at least its class's `matched_iou`, or if no anchor overlaps some box
    more than it does; else it learns to be none if it overlaps each by less than `unmatched_iou`, and nothing if not.
    The box that it learns is the one that it overlaps most, also if another one made it positive; of equal ones the
    first. Wherever a box and an anchor overlap by exactly as much as the box and another one, both count as the most.

    It waits for a GPU twice, for the number of pairs and of positives.

    Args:
        grid: The anchors, on the device of the boxes.
        truth: The boxes of the batch.
        velocity: Also return the velocities.

    Returns:
        The targets; they do not depend on the order in which the device works.
    """
    ny, nx = grid.map_shape
    shape = (truth.batch_size, grid.num_classes * len(YAWS), ny, nx)
    pairs = _pairs(grid, truth)

    # One maximum over whole numbers finds the greatest overlap and, among equal ones, the first box: the bits of a
    # float32 that is not negative order as the numbers do.
    key = (pairs.iou.view(torch.int32).long() << 32) | (_LAST - pairs.box)
    best = torch.zeros(math.prod(shape), dtype=torch.int64, device=key.device)
    best.scatter_reduce_(0, pairs.anchor, key, "amax")

    best_of_box = pairs.iou.new_zeros(len(truth.boxes)).scatter_reduce_(0, pairs.box, pairs.iou, "amax")
    classes = truth.classes[pairs.box]
    is_best = (pairs.iou == best_of_box[pairs.box]) & (pairs.iou > 0)
    learns = is_best | (pairs.iou >= grid.matched_iou[classes])
    label = (pairs.iou >= grid.unmatched_iou[classes]).byte().masked_fill_(learns, POSITIVE)
    labels = label.new_zeros(len(best)).scatter_reduce_(0, pairs.anchor, label, "amax").view(shape)

    sample, anchor, y, x = (labels == POSITIVE).nonzero(as_tuple=True)
    box = _LAST - (best.view(shape)[sample, anchor, y, x] & 0xFFFFFFFF)
    boxes = truth.boxes[box]
    residuals = encode_boxes(boxes, grid.at(anchor, y, x))
    if velocity:
        residuals = torch.cat((residuals, truth.velocity[box]), dim=1)
    return AnchorTargets(labels, (sample, anchor, y, x), residuals, direction_of(boxes[:, 6]))


class _Pairs(NamedTuple):
    """Boxes and anchors of their class near them.

    Args:
        box: (Q,) int64 position in the truth.
        anchor: (Q,) int64 flat position in the labels.
        iou: (Q,) float32 bird's-eye IoU, the box turned to the nearer axis.
    """

    box: Tensor
    anchor: Tensor
    iou: Tensor


def _pairs(grid: AnchorGrid, truth: BoxTruth) -> _Pairs:
    """Return all pairs of a box and an anchor of its class that overlap, and some that only nearly do."""
    boxes, device = truth.boxes, truth.boxes.device
    num_yaws = len(YAWS)
    # A window of cells for each box and yaw: those whose anchors reach the box. Columns are (x, y) from here on.
    extent_of_box = _aligned_extent(boxes)[:, None]  # (K, 1, 2)
    extent_of_anchor = grid.aligned_m[truth.classes]  # (K, 2, 2)
    reach = (extent_of_box + extent_of_anchor) / 2
    from_first = (boxes[:, :2] - grid.first[0, :2])[:, None]
    lower = ((from_first - reach) / grid.cell_m).ceil().clamp(min=0).minimum(grid.num_cells).long()
    upper = ((from_first + reach) / grid.cell_m).floor().clamp(min=-1).minimum(grid.num_cells - 1).long()
    size = (upper - lower + 1).clamp(min=0)
    area = size.prod(dim=2).flatten()

    ends = area.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    window = torch.repeat_interleave(area, output_size=total)
    within = torch.arange(total, device=device) - (ends - area)[window]
    width = size[..., 0].flatten()[window]
    row, column = within.div(width, rounding_mode="floor"), within.remainder(width)
    cell = lower.flatten(0, 1)[window] + torch.stack((column, row), dim=1)

    box = window.div(num_yaws, rounding_mode="floor")
    distance = (from_first[box, 0] - cell * grid.cell_m).abs()
    of_box, of_anchor = extent_of_box[box, 0], extent_of_anchor.flatten(0, 1)[window]
    # By extents, not corners: where one lies within the other, overlaps of anchors side by side are equal to the bit.
    overlap = ((of_box + of_anchor) / 2 - distance).minimum(of_box).minimum(of_anchor).clamp_(min=0).prod(dim=1)
    iou = overlap / (of_box.prod(dim=1) + of_anchor.prod(dim=1) - overlap)

    of_map = (truth.sample[box] * grid.num_classes + truth.classes[box]) * num_yaws + window.remainder(num_yaws)
    ny, nx = grid.map_shape
    return _Pairs(box, (of_map * ny + cell[:, 1]) * nx + cell[:, 0], iou)


def _aligned_extent(boxes: Tensor) -> Tensor:
    """Return (K, 2) extents along x and y of boxes that are turned to the nearer axis."""
    from_axis = torch.remainder(boxes[:, 6:] + math.pi / 2, math.pi) - math.pi / 2
    return torch.where(from_axis.abs() < math.pi / 4, boxes[:, 3:5], boxes[:, 3:5].flip(1))
