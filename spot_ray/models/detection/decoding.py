"""From what a head puts out of its groups to the boxes of a frame: what every head does in the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spot_ray.models.detection.boxes import FoundBoxes
from spot_ray.models.detection.config import DecodeConfig
from spot_ray.models.detection.nms import nms


class Candidates(NamedTuple):
    """The boxes of one group that may be found in one sample.

    Args:
        boxes: (M, 7) float32 `[x, y, z, dx, dy, dz, yaw]`, or (M, 9) with velocities behind.
        scores: (M,) float32, 0 to 1.
        classes: (M,) int64 position in the detector's `class_names`.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def best_places(logits: Tensor, config: DecodeConfig) -> tuple[Tensor, ...]:
    """Return where the candidates of a group are: the greatest logits of those whose score is not too low.

    Waits for a GPU once. The order is the same everywhere and every time.

    Args:
        logits: Logits of scores, of any shape. One that is no number is a candidate, so that it is noticed.
        config: How many, and of which score at least.

    Returns:
        (M,) int64 indices for each dimension, by falling logit; of equal ones the first comes first.
    """
    threshold = config.score_threshold
    least = math.log(threshold / (1 - threshold)) if threshold else -math.inf
    place = (~(logits < least)).nonzero(as_tuple=True)
    order = torch.sort(logits[place], descending=True, stable=True).indices[: config.num_candidates]
    return tuple(index[order] for index in place)


def found_boxes(groups: Sequence[Candidates], config: DecodeConfig, *, range_m: Tensor) -> FoundBoxes:
    """Return the boxes of a sample: of each group what suppression leaves within the range, of all of it the best.

    Args:
        groups: The candidates of each group; groups do not suppress each other.
        config: What suppresses what, and the most boxes of a frame.
        range_m: (2, 3) lowest and highest `[x, y, z]` of a centre. What is no number is not hidden.
    """
    left = []
    for boxes, scores, classes in groups:
        outside = ((boxes[:, :3] < range_m[0]) | (boxes[:, :3] > range_m[1])).any(dim=1)
        inside = (~outside).nonzero()[:, 0]
        rivals = classes[inside] if config.nms == "class" else None
        kept = inside[nms(boxes[inside, :7], scores[inside], iou=config.nms_iou, classes=rivals)]
        left.append((boxes[kept], scores[kept], classes[kept]))
    boxes, scores, classes = (torch.cat(parts) for parts in zip(*left, strict=True))
    best = torch.sort(scores, descending=True, stable=True).indices[: config.max_detections]
    boxes = boxes[best]
    return FoundBoxes(boxes[:, :7], scores[best], classes[best], boxes[:, 7:] if boxes.shape[1] > 7 else None)
