"""Greedy non-maximum suppression of rotated boxes, without a loop over boxes, on a CPU and a GPU alike."""

from __future__ import annotations

import torch
from torch import Tensor

from spot_ray.models.detection.box_iou import in_blocks, near_pairs, pair_bev_iou

_BLOCK = 256
"""Boxes that are judged at once, by what is left of those before them."""


def nms(boxes: Tensor, scores: Tensor, *, iou: float, classes: Tensor | None = None) -> Tensor:
    """Keep each box that no kept box of a greater score overlaps by more than `iou`, seen from above.

    This is the greedy algorithm, exactly, a block of boxes at a time: what is kept of the best ones takes its share of
    all others, and the best of what is left are next. A GPU is waited for some fifteen times a block.

    Args:
        boxes: (M, 7) float32 or float64 `[x, y, z, dx, dy, dz, yaw]`. One that is not finite overlaps none.
        scores: (M,); among equal ones the earlier box is the greater.
        iou: Greatest overlap of two kept boxes.
        classes: (M,) integers: only boxes of one class suppress each other; None: all do.

    Returns:
        (K,) int64 indices of the kept boxes, by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes.detach()[order]
    classes = None if classes is None else classes[order]
    left = torch.arange(len(boxes), device=boxes.device)
    kept = [left[:0]]
    while len(left):
        block, left = left[:_BLOCK], left[_BLOCK:]
        best = block[_greedy(*_overlaps(boxes, classes, block, block, iou), len(block))]
        _, gone = _overlaps(boxes, classes, best, left, iou)
        left = left[torch.ones_like(left, dtype=torch.bool).index_fill_(0, gone, False)]
        kept.append(best)
    return order[torch.cat(kept)]


def _overlaps(
    boxes: Tensor, classes: Tensor | None, first: Tensor, second: Tensor, iou: float
) -> tuple[Tensor, Tensor]:
    """Return the pairs in which a box of `first` would suppress one of `second`: positions in these (K,) ranks."""
    better, worse = [], []
    for i, j in near_pairs(boxes[first], boxes[second]):
        a, b = first[i], second[j]
        may = a < b if classes is None else (a < b) & (classes[a] == classes[b])
        for part_i, part_j in in_blocks(i[may], j[may]):
            over = pair_bev_iou(boxes[first[part_i]], boxes[second[part_j]]) > iou
            better.append(part_i[over])
            worse.append(part_j[over])
    return torch.cat(better), torch.cat(worse)


def _greedy(better: Tensor, worse: Tensor, count: int) -> Tensor:
    """Return the (count,) bool mask of what greedy suppression keeps.

    Say "a box is kept if none that suppresses it is kept" of all boxes at once, again and again: after k times it is
    true of boxes at the end of chains of up to k suppressors, and once nothing changes it is true of all. Chains are
    short.

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
