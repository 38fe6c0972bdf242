"""Heights of the poses, corrected by the ground that neighbouring sweeps share.

Localisation is often flat: every ego pose of nuScenes has z = 0, so that on a road that climbs by 5 % the ground of
keyframes 4 m apart disagrees by 0.2 m, and aggregated it is smeared over metres. Sideways the poses are good.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import se3

_CELL_M = 0.5
_REACH_M = 20.0
_KEPT_M = 60.0
_MOST_HEIGHT_M = 1.0
_MOST_RELIEF_M = 0.15
_FEWEST_CELLS = 50
_PRUNE_AT = 60_000
_FLAT_M, _WAY_M = 0.001, 1.0


def are_flat(world_SE3_ego: Sequence[npt.NDArray[np.float64]]) -> bool:
    """Tell whether poses have one height all along a way: then they know nothing of it."""
    place = np.array([pose[:3, 3] for pose in world_SE3_ego])
    return bool(np.ptp(place[:, 2]) < _FLAT_M and np.ptp(place[:, :2], axis=0).max() > _WAY_M)


class HeightAligner:
    """Moves each pose of a sequence up or down until its ground meets that of the sweeps before it.

    The correction is the median difference of height over the cells of 0.5 m in which the sweep and a map of the
    sweeps before it (the newest counts) both have flat ground. Where they share too little the last correction stays,
    `correction_m`, metres.
    """

    def __init__(self) -> None:
        self._origin: npt.NDArray[np.float64] | None = None
        self._key, self._height = np.zeros(0, np.int64), np.zeros(0)
        self.correction_m = 0.0

    def correct(
        self,
        xyz: npt.NDArray[np.float32],
        is_ground: npt.NDArray[np.bool_],
        world_SE3_ego: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float64]:
        """Return the pose of the next sweep, changed in z only; that of the first stays.

        Args:
            xyz: (N, 3) its points, metres, ego frame.
            is_ground: (N,) bool, which of them are ground.
            world_SE3_ego: (4, 4) its pose.
        """
        if self._origin is None:
            self._origin = world_SE3_ego[:3, 3].copy()
        key, height = _ground_heights(xyz[is_ground], world_SE3_ego, self._origin)
        _, mine, before = np.intersect1d(key, self._key, assume_unique=True, return_indices=True)
        if len(mine) >= _FEWEST_CELLS:
            self.correction_m = float(np.median(self._height[before] - height[mine]))
        corrected = world_SE3_ego.copy()
        corrected[2, 3] += self.correction_m
        key, height = np.append(key, self._key), np.append(height + self.correction_m, self._height)
        # The first of equal keys stays: this sweep's.
        self._key, newest = np.unique(key, return_index=True)
        self._height = height[newest]
        if len(self._key) > _PRUNE_AT:
            self._forget_beyond(world_SE3_ego[:2, 3] - self._origin[:2])
        return corrected

    def _forget_beyond(self, centre: npt.NDArray[np.float64]) -> None:
        xy = np.stack([self._key >> 32, (self._key & 0xFFFFFFFF) - (1 << 31)], axis=1) * _CELL_M
        near = np.abs(xy - centre).max(axis=1) < _KEPT_M
        self._key, self._height = self._key[near], self._height[near]


def _ground_heights(
    xyz: npt.NDArray[np.float32], world_SE3_ego: npt.NDArray[np.float64], origin: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the flat cells near a sweep, ascending, and their mean heights over the `origin` (world frame, metres)."""
    near = (np.abs(xyz[:, :2]).max(axis=1, initial=0.0) < _REACH_M) & (np.abs(xyz[:, 2]) < _MOST_HEIGHT_M)
    moved = se3.transform_points(world_SE3_ego, xyz[near].astype(np.float64)) - origin
    cell = np.floor(moved[:, :2] / _CELL_M).astype(np.int64)
    key = (cell[:, 0] << 32) + cell[:, 1] + (1 << 31)
    order = np.argsort(key, kind="stable")
    key, z = key[order], moved[order, 2]
    starts = np.flatnonzero(np.diff(key, prepend=key[:1] - 1))
    if not len(starts):
        return key, z
    count = np.diff(np.append(starts, len(key)))
    flat = (np.maximum.reduceat(z, starts) - np.minimum.reduceat(z, starts) < _MOST_RELIEF_M) & (count > 1)
    return key[starts][flat], (np.add.reduceat(z, starts) / count)[flat]
