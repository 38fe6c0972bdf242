"""By how much the sweeps of a sequence disagree about the height of the ground, given their poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import se3

_CELL_M = 0.5


@dataclass(frozen=True)
class GroundSpread:
    """How far apart sweeps see the ground of the same cell of 0.5 m.

    Args:
        cells: Cells that at least two sweeps see.
        median_m: Median over the cells of (highest − lowest mean height of a sweep in it), metres.
        p95_m: The 95th percentile of it.
        end_to_end_m: Median over the cells of the latest sweep's height less the earliest's: drift.
    """

    cells: int
    median_m: float
    p95_m: float
    end_to_end_m: float


def ground_spread(
    ground_xyz: Sequence[npt.NDArray[np.floating]], world_SE3_ego: Sequence[npt.NDArray[np.float64]]
) -> GroundSpread:
    """Measure the spread.

    Args:
        ground_xyz: The (N, 3) ground points of each sweep, ego frame, metres, in time order.
        world_SE3_ego: (4, 4) pose of each.

    Raises:
        ValueError: If no cell is seen twice.
    """
    keys, heights = [], []
    for xyz, pose in zip(ground_xyz, world_SE3_ego, strict=True):
        world = se3.transform_points(pose, xyz.astype(np.float64))
        cell = np.floor(world[:, :2] / _CELL_M).astype(np.int64)
        key, row, count = np.unique((cell[:, 0] << 32) + cell[:, 1], return_inverse=True, return_counts=True)
        keys.append(key)
        heights.append(np.bincount(row, weights=world[:, 2], minlength=len(key)) / count)
    key, height = np.concatenate(keys), np.concatenate(heights)
    order = np.argsort(key, kind="stable")  # in time order within a cell
    key, height = key[order], height[order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    count = np.diff(np.append(first, len(key)))
    twice = count > 1
    if not twice.any():
        raise ValueError("no cell of the ground is seen by two sweeps")
    spread = (np.maximum.reduceat(height, first) - np.minimum.reduceat(height, first))[twice]
    change = (height[first + count - 1] - height[first])[twice]
    return GroundSpread(
        int(twice.sum()), float(np.median(spread)), float(np.percentile(spread, 95)), float(np.median(change))
    )
