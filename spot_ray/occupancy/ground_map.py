"""The ground of a place as a height map, its gaps between scan lines filled.

Scan lines on the ground lie metres apart where rays graze, and rays that graze pass through the very voxels that hold
the ground between them: by casting alone a quarter of the true ground would be called free. The ground is smooth, so
heights between measured cells are interpolated; meshing by TSDF fails at such angles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.cloud import Cloud
from spot_ray.schema.taxonomy import IGNORE

_CELL_M = 0.2
_LAYER_M = 0.3
"""Ground cells of one column that lie higher than this over its lowest are of something else: a bridge, a wall."""

_SMOOTHING = 8
"""Rounds of smoothing at each level of the pyramid."""

SAMPLES = 4
"""Samples of the ground along each side of a voxel."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class GroundMap:
    """Heights over a lattice of columns, in the sequence frame.

    Args:
        cell_m: Edge of a column, metres.
        first: (2,) int64 lattice index of column (0, 0); its centre lies at (first + 0.5) · cell_m.
        height: (nx, ny) float32 height of the ground at the columns' centres, metres; NaN where nothing is known.
        label: (nx, ny) uint8 class of the nearest measured column that has one, or 255.
        distance: (nx, ny) float32 distance to the nearest measured column, metres; 0 in those.
    """

    cell_m: float
    first: npt.NDArray[np.int64]
    height: Float32
    label: npt.NDArray[np.uint8]
    distance: Float32

    def over_ground(self, xyz: npt.NDArray[np.floating]) -> Float32:
        """Return the (N,) height of (N, 3) points over the ground in metres; NaN where it is not known."""
        column = np.floor(xyz[:, :2] / self.cell_m).astype(np.int64) - self.first
        inside = np.all((column >= 0) & (column < self.height.shape), axis=1)
        result = np.full(len(xyz), np.nan, np.float32)
        result[inside] = xyz[inside, 2] - self.height[column[inside, 0], column[inside, 1]]
        return result


def build_ground_map(ground: Cloud, *, reach_m: float) -> GroundMap:
    """Make the height map of ground points.

    Args:
        ground: Points of the ground, in the sequence frame.
        reach_m: How far from a measured column a height is interpolated, metres.
    """
    if not len(ground):
        empty = np.zeros((0, 0), np.float32)
        return GroundMap(_CELL_M, np.zeros(2, np.int64), empty, empty.astype(np.uint8), empty)
    column = np.floor(ground.xyz[:, :2] / _CELL_M).astype(np.int64)
    margin = int(np.ceil(reach_m / _CELL_M))
    first = column.min(axis=0) - margin
    shape = tuple((column.max(axis=0) - first + margin + 1).tolist())
    linear = (column[:, 0] - first[0]) * shape[1] + column[:, 1] - first[1]
    measured, label = _columns(linear, ground.xyz[:, 2].astype(np.float64), ground.label, shape[0] * shape[1])
    measured, label = measured.reshape(shape), label.reshape(shape)
    known = ~np.isnan(measured)
    distance = (distance_transform_edt(~known) * _CELL_M).astype(np.float32)
    height = _interpolate(np.where(known, measured, 0.0).astype(np.float32), known)
    height[distance > reach_m] = np.nan
    return GroundMap(_CELL_M, first, height, _nearest(label), distance)


def _columns(
    linear: npt.NDArray[np.int64], z: npt.NDArray[np.float64], label: npt.NDArray[np.uint8], size: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    """Return the (size,) mean height of each column's lowest layer, NaN without points, and its class."""
    lowest = np.full(size, np.inf)
    np.minimum.at(lowest, linear, z)
    used = z <= lowest[linear] + _LAYER_M
    linear, z, label = linear[used], z[used], label[used]
    count = np.bincount(linear, minlength=size)
    mean = np.full(size, np.nan)
    np.divide(np.bincount(linear, z, minlength=size), count, out=mean, where=count > 0)
    known = label != IGNORE
    best, winner = np.zeros(size, np.int64), np.full(size, IGNORE, np.uint8)
    for value in np.unique(label[known]):
        votes = np.bincount(linear[label == value], minlength=size)
        winner[votes > best] = value
        best = np.maximum(best, votes)
    return mean, winner


def _nearest(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the class of the nearest column that has one, everywhere; 255 if none has."""
    unknown = label == IGNORE
    if unknown.all():
        return label
    rows, columns = distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return label[rows, columns]


def _interpolate(height: Float32, known: npt.NDArray[np.bool_]) -> Float32:
    """Fill the columns that are not known so that each is the mean of its neighbours, coarse to fine.

    Args:
        height: (nx, ny) float32; 0 where it is not known.
        known: (nx, ny) bool; these stay.
    """
    if known.all() or min(height.shape) < 2:
        mean = float(height[known].mean())
        return np.where(known, height, np.float32(mean))
    pad = [(0, size % 2) for size in height.shape]
    value, weight = np.pad(height, pad), np.pad(known, pad).astype(np.float32)
    parts = [(slice(i, None, 2), slice(j, None, 2)) for i in (0, 1) for j in (0, 1)]
    total = sum((weight[p] for p in parts), np.float32(0))
    coarse = np.divide(
        sum((value[p] * weight[p] for p in parts), np.float32(0)), total, out=np.zeros_like(total), where=total > 0
    )
    coarse = _interpolate(coarse, np.asarray(total > 0))
    fine = np.repeat(np.repeat(coarse, 2, axis=0), 2, axis=1)[: height.shape[0], : height.shape[1]]
    result = np.where(known, height, fine).astype(np.float32)
    _smooth(result, known, _SMOOTHING)
    return result


@numba.njit(cache=True, nogil=True)
def _smooth(height: Float32, known: npt.NDArray[np.bool_], rounds: int) -> None:
    """Set each unknown column to the mean of its neighbours, in place (Gauss and Seidel), there and back."""
    nx, ny = height.shape
    for r in range(rounds):
        for a in range(nx):
            i = a if r % 2 == 0 else nx - 1 - a
            for b in range(ny):
                j = b if r % 2 == 0 else ny - 1 - b
                if not known[i, j]:
                    total, count = np.float32(0), 0
                    if i > 0:
                        total += height[i - 1, j]
                        count += 1
                    if i < nx - 1:
                        total += height[i + 1, j]
                        count += 1
                    if j > 0:
                        total += height[i, j - 1]
                        count += 1
                    if j < ny - 1:
                        total += height[i, j + 1]
                        count += 1
                    height[i, j] = total / np.float32(count)


def ground_area(
    ground: GroundMap, seq_SE3_ego: npt.NDArray[np.float64], grid: VoxelGrid, *, near_m: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Return how much of the ground each voxel of a frame holds.

    Args:
        ground: The ground.
        seq_SE3_ego: (4, 4) pose of the frame.
        grid: The frame's grid.
        near_m: How far from a measured column the ground counts as measured, metres.

    Returns:
        (n,) uint8 samples of the ground in each voxel, of `SAMPLES`² that a level voxel's face has; the same of those
        near a measured column alone; the (n,) uint8 class of a voxel with samples, 255 if not known; and (n,) bool
        whether one of its samples is of a measured column.
    """
    total = np.zeros(grid.shape, np.uint8)
    near = np.zeros(grid.shape, np.uint8)
    label = np.full(grid.shape, IGNORE, np.uint8)
    measured = np.zeros(grid.shape, np.bool_)
    if ground.height.size:
        _sample_ground(
            ground.height,
            ground.distance,
            ground.label,
            ground.first,
            ground.cell_m,
            np.ascontiguousarray(seq_SE3_ego, np.float64),
            np.array(grid.lower_m),
            np.array(grid.voxel_size_m),
            near_m,
            total,
            near,
            label,
            measured,
        )
    return total.reshape(-1), near.reshape(-1), label.reshape(-1), measured.reshape(-1)


@numba.njit(cache=True, nogil=True)
def _sample_ground(  # type: ignore[no-untyped-def]
    height, distance, map_label, first, cell, pose, lower, size, near_m, total, near, label, measured
):
    """Sample the ground in every column of the frame's grid."""
    nx, ny, nz = total.shape
    mx, my = height.shape
    for i in range(nx):
        for j in range(ny):
            z = 0.0
            for s in range(SAMPLES * SAMPLES):
                x = lower[0] + (i + (s // SAMPLES + 0.5) / SAMPLES) * size[0]
                y = lower[1] + (j + (s % SAMPLES + 0.5) / SAMPLES) * size[1]
                # The frame leans, so height and place depend on each other: it converges at once.
                h = np.float32(np.nan)
                a = b = 0
                for _ in range(2):
                    wx = pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3]
                    wy = pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3]
                    wz = pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3]
                    fx = wx / cell - 0.5 - first[0]
                    fy = wy / cell - 0.5 - first[1]
                    a, b = int(np.floor(fx)), int(np.floor(fy))
                    if a < 0 or b < 0 or a >= mx - 1 or b >= my - 1:
                        h = np.float32(np.nan)
                        break
                    fx -= a
                    fy -= b
                    h = (height[a, b] * (1 - fy) + height[a, b + 1] * fy) * (1 - fx) + (
                        height[a + 1, b] * (1 - fy) + height[a + 1, b + 1] * fy
                    ) * fx
                    if np.isnan(h):
                        break
                    z += (h - wz) / pose[2, 2]
                if np.isnan(h):
                    z = 0.0
                    continue
                k = int(np.floor((z - lower[2]) / size[2]))
                if 0 <= k < nz:
                    total[i, j, k] += 1
                    near[i, j, k] += distance[a, b] <= near_m
                    measured[i, j, k] |= distance[a, b] == 0
                    if label[i, j, k] == IGNORE:
                        label[i, j, k] = map_label[a, b]
