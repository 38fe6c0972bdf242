"""What the LiDAR observed: the space that its rays passed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry import boxes as boxes_ops
from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.geometry.rays import mark_passed
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sweep import Sweep

_MOST_CELLS = 1 << 35
"""4 GiB of bits."""

_BLOCK = 4
"""Cells along the edge of a block; where a block holds no passed cell, none of its cells is looked up."""

_VOXELS = 4
"""Voxels along the edge of the parts of a frame's grid whose blocks are looked up together."""

_MARGIN = 0.03
"""A voxel's outermost samples lie so far from its faces, as a part of its edge."""


def ray_origins(sweep: Sweep, info: DatasetInfo) -> npt.NDArray[np.float64]:
    """Return where the LiDAR was when it fired each point: (N, 3) float64, metres, ego frame of the sweep.

    Points that are corrected for the ego's motion within the sweep lie in one ego frame, but were fired from a LiDAR
    that drove on meanwhile (1 m at 10 m/s and 10 Hz). Where the source gives the poses within the sweep, the origin
    follows them; else it is the mounting position.

    Raises:
        DataError: If a point's `lidar_id` is not in the rig.
    """
    lidar_id = sweep.lidar_id if sweep.lidar_id is not None else np.full(len(sweep), info.rig[0].lidar_id, np.uint8)
    origins = np.empty((len(sweep), 3))
    for value in np.unique(lidar_id):
        mine = lidar_id == value
        spec = info.lidar(int(value))
        origins[mine] = spec.pose[:3, 3]
        if (
            sweep.motion_compensated
            and sweep.sweep_poses is not None
            and sweep.sweep_pose_time_offset_ns is not None
            and sweep.time_offset_ns is not None
            and sweep.world_SE3_ego is not None
        ):
            path = (se3.invert(sweep.world_SE3_ego) @ sweep.sweep_poses @ spec.pose)[:, :3, 3]
            for axis in range(3):
                origins[mine, axis] = np.interp(
                    sweep.time_offset_ns[mine], sweep.sweep_pose_time_offset_ns, path[:, axis]
                )
    return origins


def passed_by_sweep(sweep: Sweep, origins: npt.NDArray[np.float64], grid: VoxelGrid) -> npt.NDArray[np.bool_]:
    """Return the voxels (n,) bool of a grid in the sweep's ego frame that its own rays passed; the ends not counted."""
    bits = np.zeros((grid.num_voxels + 7) // 8, dtype=np.uint8)
    mark_passed(bits, origins, sweep.xyz, grid)
    return unpack_bits(bits, (grid.num_voxels,))


class PassedSpace:
    """The space that rays of a part of a sequence passed, in a grid of its own, as bits.

    Every sweep is cast once, whatever the number of frames, and each frame looks its voxels up; casting all sweeps into
    the grid of each frame would cost the square of the number of frames. A bit is 1 / 8 byte: 300 m of road with 150 m
    at each side and 12 m in height take 15 MB at 0.2 m. The grids of all parts share one lattice of cells.

    Args:
        grid: The frames' voxel grid.
        seq_SE3_ego: Pose of every frame of the part in the sequence frame.
        cell_m: Edge of a cell, metres.
        margin_z_m: Space above and below for poses whose height is corrected later, metres.

    Raises:
        DataError: If the part covers too much space.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        seq_SE3_ego: Sequence[npt.NDArray[np.float64]],
        cell_m: float,
        *,
        margin_z_m: float = 0.0,
    ) -> None:
        corners = np.array(list(itertools.product(*zip(grid.lower_m, grid.upper_m, strict=True))))
        covered = np.concatenate([se3.transform_points(pose, corners) for pose in seq_SE3_ego])
        margin = np.array([0.0, 0.0, margin_z_m])
        # Whole cells from the sequence's origin, so that the cells of a frame at the origin subdivide its voxels.
        first = np.floor((covered.min(axis=0) - margin - grid.lower_m) / cell_m)
        low = first * cell_m + grid.lower_m
        shape = np.ceil((covered.max(axis=0) + margin - low) / cell_m).astype(np.int64)
        if math.prod(shape.tolist()) > _MOST_CELLS:
            raise DataError(
                f"{len(seq_SE3_ego)} sweeps cover {' x '.join(f'{s * cell_m:.0f}' for s in shape)} m",
                expected=f"at most {_MOST_CELLS * cell_m**3:.1e} m³ at space_cell_m={cell_m}",
                remedy="check the poses, shorten the window (window_m), or raise space_cell_m",
            )
        self.first = first.astype(np.int64)
        self.grid = VoxelGrid(
            (float(low[0]), float(low[1]), float(low[2])),
            (cell_m, cell_m, cell_m),
            (int(shape[0]), int(shape[1]), int(shape[2])),
        )
        self.bits = np.zeros((self.grid.num_voxels + 7) // 8, dtype=np.uint8)
        self._blocks: npt.NDArray[np.bool_] | None = None

    def add(
        self, xyz: npt.NDArray[np.floating], origins: npt.NDArray[np.float64], seq_SE3_ego: npt.NDArray[np.float64]
    ) -> None:
        """Cast the rays of a sweep: (N, 3) ends and origins in its ego frame."""
        self._blocks = None
        mark_passed(
            self.bits,
            se3.transform_points(seq_SE3_ego, origins),
            se3.transform_points(seq_SE3_ego, xyz.astype(np.float64)),
            self.grid,
        )

    def blocks(self) -> npt.NDArray[np.bool_]:
        """Return which blocks of `_BLOCK`³ cells hold a cell that a ray passed: three-dimensional, from the corner."""
        if self._blocks is None:
            self._blocks = _with_any(self.bits, np.array(self.grid.shape, dtype=np.int64))
        return self._blocks


@numba.njit(cache=True, nogil=True)
def _with_any(bits: npt.NDArray[np.uint8], shape: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Tell which blocks of cells have a bit set."""
    blocks = (shape + _BLOCK - 1) // _BLOCK
    result = np.zeros((blocks[0], blocks[1], blocks[2]), np.bool_)
    for i in range(shape[0]):
        for j in range(shape[1]):
            row = (i * shape[1] + j) * shape[2]
            for k in range(blocks[2]):
                first = row + k * _BLOCK
                last = min(first + _BLOCK, row + shape[2]) - 1
                low, high = first >> 3, last >> 3
                if low == high:
                    found = (bits[low] >> (first & 7)) & ((2 << (last - first)) - 1)
                else:
                    found = (bits[low] >> (first & 7)) | (bits[high] & ((2 << (last & 7)) - 1))
                if found:
                    result[i // _BLOCK, j // _BLOCK, k] = True
    return result


def passed_by_sequence(
    spaces: Sequence[PassedSpace],
    seq_SE3_ego: npt.NDArray[np.float64],
    grid: VoxelGrid,
) -> npt.NDArray[np.bool_]:
    """Return the voxels (n,) bool of a frame's grid that rays of any part passed.

    The cells lie across the voxels, and a voxel counts as passed if a cell is that holds one of its samples: on each
    axis one more than the cells that would divide it, from near one face to near the other. On synthetic drives that
    finds 99.96 % of the voxels that casting every sweep into every frame finds (99.5 % with samples at the centres of
    the cells that would divide it), and 2 to 4 % more, next to them.

    Args:
        spaces: What the rays of the parts passed; at least one.
        seq_SE3_ego: Pose of the frame.
        grid: The frame's grid.
    """
    cell_m = spaces[0].grid.voxel_size_m[0]
    samples = np.maximum(np.round(np.array(grid.voxel_size_m) / cell_m), 1).astype(np.int64) + 1
    matrix = seq_SE3_ego[:3, :3] * np.array(grid.voxel_size_m) / cell_m
    corner = se3.transform_points(seq_SE3_ego, np.array([grid.lower_m]))[0]
    first = np.min([space.first for space in spaces], axis=0)
    offset = (corner - spaces[0].grid.lower_m) / cell_m + (spaces[0].first - first)
    inside = _samples(samples, matrix)
    result = np.zeros(grid.num_voxels, dtype=np.bool_)
    for space in spaces:
        _look_up(
            result,
            space.bits,
            space.blocks(),
            space.first - first,
            np.array(space.grid.shape, dtype=np.int64),
            np.ascontiguousarray(matrix),
            offset,
            np.array(grid.shape, dtype=np.int64),
            inside,
        )
    return result


def _samples(number: npt.NDArray[np.int64], matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the (S, 3) offsets of a voxel's samples from its lower corner, in cells.

    The middle ones come first, since they are most often passed.
    """
    at = [_MARGIN + (1 - 2 * _MARGIN) * np.arange(n) / (n - 1) for n in number.tolist()]
    inside = np.stack(np.meshgrid(*at, indexing="ij"), axis=-1).reshape(-1, 3)
    middle = np.abs(inside - 0.5).sum(axis=1)
    return np.ascontiguousarray((inside @ matrix.T)[np.argsort(middle, kind="stable")])


@numba.njit(cache=True, nogil=True)
def _look_up(
    result: npt.NDArray[np.bool_],
    bits: npt.NDArray[np.uint8],
    blocks: npt.NDArray[np.bool_],
    first: npt.NDArray[np.int64],
    space_shape: npt.NDArray[np.int64],
    matrix: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    shape: npt.NDArray[np.int64],
    samples: npt.NDArray[np.float64],
) -> None:
    """Set the result of each voxel of which a sample lies in a cell whose bit is set."""
    xx, xy, xz = matrix[0]
    yx, yy, yz = matrix[1]
    zx, zy, zz = matrix[2]
    x0, y0, z0 = offset
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    for first_x in range(0, shape[0], _VOXELS):
        for first_y in range(0, shape[1], _VOXELS):
            for first_z in range(0, shape[2], _VOXELS):
                for r in range(3):
                    at = matrix[r, 0] * first_x + matrix[r, 1] * first_y + matrix[r, 2] * first_z + offset[r]
                    least, most = at, at
                    for axis in range(3):
                        least += min(matrix[r, axis] * _VOXELS, 0.0)
                        most += max(matrix[r, axis] * _VOXELS, 0.0)
                    low[r], high[r] = math.floor(least) - first[r], math.floor(most) - first[r]
                if not _any_block(blocks, low, high):
                    continue
                for ix in range(first_x, min(first_x + _VOXELS, shape[0])):
                    for iy in range(first_y, min(first_y + _VOXELS, shape[1])):
                        for iz in range(first_z, min(first_z + _VOXELS, shape[2])):
                            n = (ix * shape[1] + iy) * shape[2] + iz
                            if not result[n]:
                                x = xx * ix + xy * iy + xz * iz + x0
                                y = yx * ix + yy * iy + yz * iz + y0
                                z = zx * ix + zy * iy + zz * iz + z0
                                result[n] = _any_sample(bits, first, space_shape, x, y, z, samples)


@numba.njit(cache=True, nogil=True)
def _any_block(blocks, low, high):  # type: ignore[no-untyped-def]
    """Tell whether a block is set that holds any of the cells from `low` to `high`."""
    for i in range(max(low[0] // _BLOCK, 0), min(high[0] // _BLOCK + 1, blocks.shape[0])):
        for j in range(max(low[1] // _BLOCK, 0), min(high[1] // _BLOCK + 1, blocks.shape[1])):
            for k in range(max(low[2] // _BLOCK, 0), min(high[2] // _BLOCK + 1, blocks.shape[2])):
                if blocks[i, j, k]:
                    return True
    return False


@numba.njit(cache=True, nogil=True)
def _any_sample(bits, first, shape, x, y, z, samples):  # type: ignore[no-untyped-def]
    """Tell whether a sample of the voxel whose corner lies at (x, y, z) lies in a cell whose bit is set."""
    for s in range(len(samples)):
        i = math.floor(x + samples[s, 0]) - first[0]
        j = math.floor(y + samples[s, 1]) - first[1]
        k = math.floor(z + samples[s, 2]) - first[2]
        if 0 <= i < shape[0] and 0 <= j < shape[1] and 0 <= k < shape[2]:
            linear = (i * shape[1] + j) * shape[2] + k
            if (bits[linear >> 3] >> (linear & 7)) & 1:
                return True
    return False


def voxels_in_boxes(boxes: npt.NDArray[np.floating], grid: VoxelGrid, *, margin_m: float) -> npt.NDArray[np.int32]:
    """Return the linear indices of the voxels whose centre lies in a box.

    Args:
        boxes: (M, 7) boxes in the grid's frame.
        grid: The grid.
        margin_m: Added to every side, metres.

    Returns:
        (K,) int32, ascending.
    """
    touched = [np.zeros(0, np.int32)]
    size = np.array(grid.voxel_size_m)
    for box in boxes.astype(np.float64):
        around = math.hypot(box[3], box[4]) / 2 + margin_m * math.sqrt(2)
        reach = np.array([around, around, box[5] / 2 + margin_m])
        low = np.floor((box[:3] - reach - grid.lower_m) / size).astype(np.int64).clip(0, grid.shape)
        high = (np.floor((box[:3] + reach - grid.lower_m) / size).astype(np.int64) + 1).clip(0, grid.shape)
        window = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1).reshape(-1, 3)
        linear = grid.linear(window)
        touched.append(linear[boxes_ops.points_in_boxes(grid.centers(linear), box[None], margin_m=margin_m) >= 0])
    return np.unique(np.concatenate(touched))
