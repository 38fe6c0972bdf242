"""Boxes with too few points are left out of a sample."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spot_ray.geometry.boxes import points_of_boxes
from spot_ray.operators.config import BoxConfig
from spot_ray.operators.sample import Sample
from spot_ray.operators.select import boxes_at


class MinPoints:
    """Leaves out the boxes that hold fewer points of the sample, earlier sweeps that were merged into it included.

    A point that lies in two boxes counts for both.

    Args:
        config: Its `min_points` counts; 0: all boxes stay.
    """

    def __init__(self, config: BoxConfig) -> None:
        self._min_points = config.min_points

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with the boxes that have points enough."""
        boxes = sample.sweep.boxes
        if not self._min_points or boxes is None:
            return sample
        _, count = points_of_boxes(sample.sweep.xyz, boxes.boxes)
        kept = np.flatnonzero(count >= self._min_points)
        if len(kept) == len(boxes):
            return sample
        return replace(sample, sweep=replace(sample.sweep, boxes=boxes_at(boxes, kept)))
