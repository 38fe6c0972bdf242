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
    """The space that rays of a whole sequence passed, in one grid of the sequence's own, as bits.

    Every sweep is cast once, whatever the number of frames, and each frame looks its voxels up; casting all sweeps into
    the grid of each frame would cost the square of the number of frames. A bit is 1 / 8 byte: 300 m of road with 150 m
    at each side and 12 m in height take 15 MB at 0.2 m.

    Args:
        grid: The frames' voxel grid.
        seq_SE3_ego: Pose of every frame in the sequence frame.
        cell_m: Edge of a cell, metres.

    Raises:
        DataError: If the sequence covers too much space.
    """

    def __init__(self, grid: VoxelGrid, seq_SE3_ego: Sequence[npt.NDArray[np.float64]], cell_m: float) -> None:
        corners = np.array(list(itertools.product(*zip(grid.lower_m, grid.upper_m, strict=True))))
        covered = np.concatenate([se3.transform_points(pose, corners) for pose in seq_SE3_ego])
        # Whole cells from the sequence's origin, so that the cells of a frame at the origin subdivide its voxels.
        low = np.floor((covered.min(axis=0) - grid.lower_m) / cell_m) * cell_m + grid.lower_m
        shape = np.ceil((covered.max(axis=0) - low) / cell_m).astype(np.int64)
        if math.prod(shape.tolist()) > _MOST_CELLS:
            raise DataError(
                f"a sequence covers {' x '.join(f'{s * cell_m:.0f}' for s in shape)} m",
                expected=f"at most {_MOST_CELLS * cell_m**3:.1e} m³ at space_cell_m={cell_m}",
                remedy="split the sequence into shorter ones, check its poses, or raise space_cell_m",
            )
        self._frame_grid = grid
        self.grid = VoxelGrid(
            (float(low[0]), float(low[1]), float(low[2])),
            (cell_m, cell_m, cell_m),
            (int(shape[0]), int(shape[1]), int(shape[2])),
        )
        self.bits = np.zeros((self.grid.num_voxels + 7) // 8, dtype=np.uint8)

    def add(
        self, xyz: npt.NDArray[np.floating], origins: npt.NDArray[np.float64], seq_SE3_ego: npt.NDArray[np.float64]
    ) -> None:
        """Cast the rays of a sweep: (N, 3) ends and origins in its ego frame."""
        mark_passed(
            self.bits,
            se3.transform_points(seq_SE3_ego, origins),
            se3.transform_points(seq_SE3_ego, xyz.astype(np.float64)),
            self.grid,
        )

    def passed_by_sequence(
        self, seq_SE3_ego: npt.NDArray[np.float64], *, free_fraction: float
    ) -> npt.NDArray[np.bool_]:
        """Return the voxels (n,) bool of a frame's grid of which rays passed more than a fraction.

        Each voxel is sampled at the centres of the cells that would divide it.

        Args:
            seq_SE3_ego: Pose of the frame.
            free_fraction: From 0: any part, to 1.
        """
        grid = self._frame_grid
        samples = np.maximum(np.round(np.array(grid.voxel_size_m) / self.grid.voxel_size_m), 1).astype(np.int64)
        # From a sample's position in units of samples to units of cells.
        scale = np.array(grid.voxel_size_m) / samples
        matrix = seq_SE3_ego[:3, :3] * scale / self.grid.voxel_size_m[0]
        offset = se3.transform_points(seq_SE3_ego, np.array([grid.lower_m]))[0] - self.grid.lower_m
        enough = max(math.ceil(free_fraction * samples.prod()), 1)
        return _enough_passed(
            self.bits,
            np.array(self.grid.shape, dtype=np.int64),
            np.ascontiguousarray(matrix),
            offset / self.grid.voxel_size_m[0],
            np.array(grid.shape, dtype=np.int64),
            samples,
            enough,
        )


@numba.njit(cache=True, nogil=True)
def _enough_passed(
    bits: npt.NDArray[np.uint8],
    space_shape: npt.NDArray[np.int64],
    matrix: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    shape: npt.NDArray[np.int64],
    samples: npt.NDArray[np.int64],
    enough: int,
) -> npt.NDArray[np.bool_]:
    """Tell for each voxel whether at least `enough` of its samples lie in cells whose bit is set."""
    result = np.zeros(shape[0] * shape[1] * shape[2], dtype=np.bool_)
    n = 0
    for ix in range(shape[0]):
        for iy in range(shape[1]):
            for iz in range(shape[2]):
                count = 0
                left = samples[0] * samples[1] * samples[2]
                for s in range(left):
                    if count + left - s < enough or count >= enough:
                        break
                    x = ix * samples[0] + s // (samples[1] * samples[2]) + 0.5
                    y = iy * samples[1] + (s // samples[2]) % samples[1] + 0.5
                    z = iz * samples[2] + s % samples[2] + 0.5
                    a = math.floor(matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + offset[0])
                    b = math.floor(matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + offset[1])
                    c = math.floor(matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + offset[2])
                    if 0 <= a < space_shape[0] and 0 <= b < space_shape[1] and 0 <= c < space_shape[2]:
                        linear = (a * space_shape[1] + b) * space_shape[2] + c
                        count += (bits[linear >> 3] >> (linear & 7)) & 1
                result[n] = count >= enough
                n += 1
    return result


def voxels_in_boxes(boxes: npt.NDArray[np.floating], grid: VoxelGrid, *, margin_m: float) -> npt.NDArray[np.int32]:
    """Return the linear indices of the voxels that a box touches.

    Args:
        boxes: (M, 7) boxes in the grid's frame.
        grid: The grid.
        margin_m: Added to every side, metres.

    Returns:
        (K,) int32, ascending. A voxel counts if its centre lies within half its diagonal (sideways) and half its height
        of an enlarged box, which takes in every voxel that the box touches and a few at its corners.
    """
    touched = [np.zeros(0, np.int32)]
    size = np.array(grid.voxel_size_m)
    for box in boxes.astype(np.float64):
        around = math.hypot(box[3], box[4]) / 2 + margin_m
        reach = np.array([around, around, box[5] / 2 + margin_m])
        low = np.floor((box[:3] - reach - grid.lower_m) / size).astype(np.int64).clip(0, grid.shape)
        high = (np.floor((box[:3] + reach - grid.lower_m) / size).astype(np.int64) + 1).clip(0, grid.shape)
        window = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1).reshape(-1, 3)
        linear = grid.linear(window)
        enlarged = box[None].copy()
        enlarged[0, 3:5] += math.hypot(size[0], size[1])
        enlarged[0, 5] += size[2]
        touched.append(linear[boxes_ops.points_in_boxes(grid.centers(linear), enlarged, margin_m=margin_m) >= 0])
    return np.unique(np.concatenate(touched))
