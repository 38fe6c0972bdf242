"""Heights of the poses, corrected by the ground that neighbouring sweeps share.

Localisation is often flat: every ego pose of nuScenes has z = 0, so that on a road that climbs by 5 % the ground of
keyframes 4 m apart disagrees by 0.2 m, and aggregated it is smeared over metres. Sideways the poses are good.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import se3
from spot_ray.schema.sweep import Sweep

_CELL_M = 0.5
_REACH_M = 20.0
_MOST_HEIGHT_M = 1.0
_MOST_RELIEF_M = 0.15
_FEWEST_CELLS = 50


def align_heights(
    sweeps: Sequence[Sweep],
    world_SE3_ego: Sequence[npt.NDArray[np.float64]],
    lookup: npt.NDArray[np.uint8],
    ground: npt.NDArray[np.bool_],
) -> list[npt.NDArray[np.float64]]:
    """Move each pose up or down until its ground meets that of the sweeps before it.

    The correction is the median difference of height over the cells of 0.5 m in which the sweep and a map of the
    sweeps before it (the newest counts) both have flat ground. Where they share too little the last correction stays.

    Args:
        sweeps: The sequence, in time order.
        world_SE3_ego: Pose of each.
        lookup: (65536,) uint8 class of each source class.
        ground: (256,) bool by class: whether it is ground. A sweep without a labelled ground point is taken by the
            flatness of its cells alone.

    Returns:
        The poses, changed in z only; the first stays.
    """
    origin = world_SE3_ego[0][:3, 3]
    map_key, map_height = np.zeros(0, np.int64), np.zeros(0)
    correction = 0.0
    corrected = []
    for sweep, pose in zip(sweeps, world_SE3_ego, strict=True):
        key, height = _ground_heights(sweep, pose, origin, lookup, ground)
        _, mine, before = np.intersect1d(key, map_key, assume_unique=True, return_indices=True)
        if len(mine) >= _FEWEST_CELLS:
            correction = float(np.median(map_height[before] - height[mine]))
        corrected.append(pose.copy())
        corrected[-1][2, 3] += correction
        key, height = np.append(key, map_key), np.append(height + correction, map_height)
        # The first of equal keys stays: this sweep's.
        map_key, newest = np.unique(key, return_index=True)
        map_height = height[newest]
    return corrected


def _ground_heights(
    sweep: Sweep,
    world_SE3_ego: npt.NDArray[np.float64],
    origin: npt.NDArray[np.float64],
    lookup: npt.NDArray[np.uint8],
    ground: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the flat cells near a sweep, ascending, and their mean heights over the `origin` (world frame, metres)."""
    near = (np.abs(sweep.xyz[:, :2]).max(axis=1) < _REACH_M) & (np.abs(sweep.xyz[:, 2]) < _MOST_HEIGHT_M)
    if sweep.point_source_class is not None:
        is_ground = ground[lookup[sweep.point_source_class]]
        if is_ground.any():
            near &= is_ground
    xyz = se3.transform_points(world_SE3_ego, sweep.xyz[near].astype(np.float64)) - origin
    cell = np.floor(xyz[:, :2] / _CELL_M).astype(np.int64)
    key = (cell[:, 0] << 32) + cell[:, 1]
    order = np.argsort(key, kind="stable")
    key, z = key[order], xyz[order, 2]
    starts = np.flatnonzero(np.diff(key, prepend=key[:1] - 1))
    if not len(starts):
        return key, z
    count = np.diff(np.append(starts, len(key)))
    flat = (np.maximum.reduceat(z, starts) - np.minimum.reduceat(z, starts) < _MOST_RELIEF_M) & (count > 1)
    return key[starts][flat], (np.add.reduceat(z, starts) / count)[flat]
