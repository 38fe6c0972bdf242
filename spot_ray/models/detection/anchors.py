"""The anchors of the anchor head: boxes of fixed sizes, two at every cell of the bird's-eye view for each class.

Anchors stand at the centres of the cells, where the features are of. The public configurations spread as many of them
evenly from one end of the range to the other instead (`align_center: False`), which puts them up to half a cell off
their features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spot_ray.models.bev import BevMap
from spot_ray.models.detection.config import AnchorConfig

YAWS = (0.0, math.pi / 2)
"""Yaws of a class's anchors."""


class AnchorGrid(nn.Module):
    """The anchors of N classes over a map of ny × nx cells; they are computed where they are needed.

    Anchor `2 · c + r` of a cell is that of class c with yaw `YAWS[r]`.

    Args:
        anchors: One each class, in the order of the classes.
        bev_map: Where the cells lie.
    """

    first: Tensor
    """(2 N, 7) float32 `[x, y, z, dx, dy, dz, yaw]` of the anchors of cell [0, 0]."""
    aligned_m: Tensor
    """(N, 2, 2) float32 extents along x and y of each class's anchors, by yaw."""
    cell_m: Tensor
    """(2,) float32 edge lengths (x, y) of a cell."""
    num_cells: Tensor
    """(2,) float32 number of cells (nx, ny)."""
    matched_iou: Tensor
    """(N,) float32 least overlap of an anchor that learns a box."""
    unmatched_iou: Tensor
    """(N,) float32 overlap below which one learns to be none."""

    def __init__(self, anchors: Sequence[AnchorConfig], bev_map: BevMap) -> None:
        super().__init__()
        self.map_shape = bev_map.shape
        self.num_classes = len(anchors)
        x, y = (lower + cell / 2 for lower, cell in zip(bev_map.lower_m, bev_map.cell_m, strict=True))
        first = [(x, y, a.bottom_m + a.size_m[2] / 2, *a.size_m, yaw) for a in anchors for yaw in YAWS]
        tensors = {
            "first": first,
            "aligned_m": [[a.size_m[:2], a.size_m[1::-1]] for a in anchors],
            "cell_m": bev_map.cell_m,
            "num_cells": bev_map.shape[::-1],
            "matched_iou": [a.matched_iou for a in anchors],
            "unmatched_iou": [a.unmatched_iou for a in anchors],
        }
        for name, values in tensors.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def at(self, anchor: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Return (M, 7) float32 anchors.

        Args:
            anchor: (M,) int64, 0 to 2 N - 1.
            y: (M,) int64 row of the cell.
            x: (M,) int64 column of the cell.
        """
        boxes = self.first[anchor]
        boxes[:, :2] += torch.stack((x, y), dim=1) * self.cell_m
        return boxes
