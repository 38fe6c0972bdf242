"""Greedy non-maximum suppression of rotated boxes, without a loop over boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from spot_ray.models.detection.box_iou import in_blocks, near_pairs, pair_bev_iou


def nms(boxes: Tensor, scores: Tensor, *, iou: float, classes: Tensor | None = None) -> Tensor:
    """Keep each box that no kept box of a greater score overlaps by more than `iou`, seen from above.

    This is the greedy algorithm, exactly. Say "a box is kept if none that suppresses it is kept" of all boxes at once,
    again and again: after k times it is true of boxes at the end of chains of up to k suppressors, and once nothing
    changes it is true of all. Chains are short, and each time costs one scatter and one wait for a GPU.

    Args:
        boxes: (M, 7) `[x, y, z, dx, dy, dz, yaw]`, floating-point. One that is not finite overlaps none.
        scores: (M,); among equal ones the earlier box is the greater.
        iou: Greatest overlap of two kept boxes.
        classes: (M,) integers: only boxes of one class suppress each other; None: all do.

    Returns:
        (K,) int64 indices of the kept boxes, by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes.detach()[order]
    if classes is not None:
        classes = classes[order]
    better, worse = [], []
    for i, j in near_pairs(boxes, boxes):
        may = i < j if classes is None else (i < j) & (classes[i] == classes[j])
        for block_i, block_j in in_blocks(i[may], j[may]):
            over = pair_bev_iou(boxes[block_i], boxes[block_j]) > iou
            better.append(block_i[over])
            worse.append(block_j[over])
    if not better:
        return order
    return order[_greedy(torch.cat(better), torch.cat(worse), len(boxes))]


def _greedy(better: Tensor, worse: Tensor, count: int) -> Tensor:
    """Return the (count,) bool mask of what greedy suppression keeps.

    Args:
        better: (P,) int64 rank of the box of the greater score, of each pair that overlaps.
        worse: (P,) int64 rank of the other, greater than `better`.
        count: Number of boxes.
    """
    kept = torch.ones(count, dtype=torch.bool, device=better.device)
    while True:
        suppressors = torch.zeros(count, dtype=torch.int32, device=better.device)
        suppressors.scatter_add_(0, worse, kept[better].int())
        now = suppressors == 0
        if torch.equal(now, kept):
            return kept
        kept = now
