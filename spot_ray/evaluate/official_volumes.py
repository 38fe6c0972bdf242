"""Labels against the official voxel volumes of SemanticKITTI.

256 × 256 × 32 voxels of 0.2 m in front of the vehicle, one file a kind, 8 voxels a byte with the first in the highest
bit, in the order x, y, z (semantic-kitti-api, `auxiliary/SSCDataset.py`). What they hold follows from the tool that
made them (github.com/jbehley/voxelizer, `src/data/VoxelGrid.cpp`):

- `.bin`: a point of this scan lies in the voxel.
- `.occluded`: seen from this scan's sensor, the voxel is, or its centre lies behind, one that holds a point of this
  scan *or of the many scans after it*. It is no record of rays: sky that no beam passed counts as in sight, and the
  gaps of a tree as hidden.
- `.invalid`: the same, seen from every one of these sensor positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.schema.occupancy import Occupancy

LOWEST_M = -2.2
"""Height of the volumes' lower face in the LiDAR's frame. The configuration of the official tools says −2.0, with which
a scan's own voxels hardly meet `.bin`."""

_SHAPE = (256, 256, 32)
_VOXEL_M = 0.2
_AHEAD_M, _RIGHT_M = 0.0, -25.6


def official_grid(ego_xyz_lidar: npt.ArrayLike, *, lowest_m: float = LOWEST_M) -> VoxelGrid:
    """Return the volumes' grid in the ego frame, for a LiDAR that is level in it.

    Args:
        ego_xyz_lidar: (3,) position of the LiDAR, ego frame, metres.
        lowest_m: Height of the grid's lower face in the LiDAR's frame.
    """
    x, y, z = (float(v) for v in np.asarray(ego_xyz_lidar, dtype=np.float64))
    return VoxelGrid((x + _AHEAD_M, y + _RIGHT_M, z + lowest_m), (_VOXEL_M, _VOXEL_M, _VOXEL_M), _SHAPE)


def read_volume(path: Path) -> npt.NDArray[np.bool_]:
    """Return the (256, 256, 32) bool volume of a `.bin`, `.occluded` or `.invalid` file.

    Raises:
        DataError: If the file has another size.
    """
    packed = np.fromfile(path, np.uint8)
    if len(packed) * 8 != math.prod(_SHAPE):
        raise DataError(f"{len(packed)} bytes", where=str(path), expected=f"{math.prod(_SHAPE) // 8}, 8 voxels a byte")
    return np.unpackbits(packed).astype(bool).reshape(_SHAPE)


@dataclass(frozen=True, eq=False)
class OfficialVolumes:
    """The official volumes of one frame, (256, 256, 32) bool each.

    Args:
        scan: Of `.bin`.
        occluded: Of `.occluded`.
        invalid: Of `.invalid`.
    """

    scan: npt.NDArray[np.bool_]
    occluded: npt.NDArray[np.bool_]
    invalid: npt.NDArray[np.bool_]

    @classmethod
    def read(cls, folder: Path, frame_id: str) -> OfficialVolumes:
        """Return the volumes of a frame from the folder `voxels` of its sequence."""
        return cls(*(read_volume(folder / f"{frame_id}.{kind}") for kind in ("bin", "occluded", "invalid")))


@dataclass(frozen=True)
class Agreement:
    """How a label meets the official volumes: shares of voxels, 0 to 1.

    Args:
        scan_iou: Intersection over union of the label's occupied voxels and `.bin`; near 1 only for a label of the
            scan alone.
        scan_found: Of the voxels of `.bin`, those that the label calls occupied.
        occupied_valid: Of the label's occupied voxels, those that are not `.invalid`: official scans saw them too.
        occupied_near_valid: The same, or a neighbour of the voxel is not.
        free_valid: Of the voxels that the label calls free, those that are not `.invalid`.
        free_in_sight: Of the voxels that the frame's own rays found free, those that are not `.occluded`.
        shadow_occluded: Of the voxels that lie behind the label's occupied ones, or are some, those that are
            `.occluded`.
        occluded_in_shadow: Of the voxels of `.occluded`, those that lie behind the label's occupied ones, or are some.
        valid_observed: Of the voxels that are not `.invalid`, those that the label calls observed.
        sight_observed: Of the voxels that are not `.occluded`, those that the frame's own rays observed.
    """

    scan_iou: float
    scan_found: float
    occupied_valid: float
    occupied_near_valid: float
    free_valid: float
    free_in_sight: float
    shadow_occluded: float
    occluded_in_shadow: float
    valid_observed: float
    sight_observed: float


def agreement(label: Occupancy, volumes: OfficialVolumes, *, sensor_voxel: tuple[float, float, float]) -> Agreement:
    """Compare a label, on a grid of :func:`official_grid`, with the official volumes of its frame.

    Args:
        label: The label, with the frame's own observed voxels.
        volumes: The official ones.
        sensor_voxel: Position of the LiDAR in voxels from the grid's lower corner.
    """
    if label.observed_by_frame is None:
        raise ValueError("the label does not tell what the frame's own rays observed")
    occupied = np.zeros(math.prod(_SHAPE), dtype=bool)
    occupied[label.index] = True
    occupied = occupied.reshape(_SHAPE)
    observed, by_frame = unpack_bits(label.observed, _SHAPE), unpack_bits(label.observed_by_frame, _SHAPE)
    shadow = behind(occupied, sensor_voxel)
    return Agreement(
        scan_iou=float((occupied & volumes.scan).sum() / max((occupied | volumes.scan).sum(), 1)),
        scan_found=_share(occupied, volumes.scan),
        occupied_valid=_share(~volumes.invalid, occupied),
        occupied_near_valid=_share(binary_dilation(~volumes.invalid, np.ones((3, 3, 3))), occupied),
        free_valid=_share(~volumes.invalid, observed & ~occupied),
        free_in_sight=_share(~volumes.occluded, by_frame & ~occupied),
        shadow_occluded=_share(volumes.occluded, shadow),
        occluded_in_shadow=_share(shadow, volumes.occluded),
        valid_observed=_share(observed, ~volumes.invalid),
        sight_observed=_share(by_frame, ~volumes.occluded),
    )


def behind(occupied: npt.NDArray[np.bool_], sensor_voxel: tuple[float, float, float]) -> npt.NDArray[np.bool_]:
    """Return which voxels are occupied, or have an occupied one on the line from their centre to the sensor.

    Args:
        occupied: (nx, ny, nz) bool.
        sensor_voxel: Position of the sensor in voxels from the lower corner; it may lie outside.
    """
    # A sensor on the very face of a voxel would make it chance through which voxels a line along the face goes.
    x, y, z = (value + 1e-3 for value in sensor_voxel)
    result: npt.NDArray[np.bool_] = _behind(np.ascontiguousarray(occupied), x, y, z)
    return result


@numba.njit(cache=True, nogil=True)
def _behind(occupied: npt.NDArray[np.bool_], x: float, y: float, z: float) -> npt.NDArray[np.bool_]:
    result = np.zeros(occupied.shape, np.bool_)
    cell = np.empty(3, np.int64)
    stride = np.empty(3, np.int64)
    t_next = np.empty(3)
    t_step = np.empty(3)
    for i in range(occupied.shape[0]):
        for j in range(occupied.shape[1]):
            for k in range(occupied.shape[2]):
                for axis, (start, end) in enumerate(((i, x), (j, y), (k, z))):
                    way = end - (start + 0.5)
                    cell[axis] = start
                    stride[axis] = 1 if way > 0.0 else -1
                    t_step[axis] = 1.0 / abs(way) if way != 0.0 else np.inf
                    t_next[axis] = 0.5 * t_step[axis]
                while True:
                    if occupied[cell[0], cell[1], cell[2]]:
                        result[i, j, k] = True
                        break
                    axis = int(np.argmin(t_next))
                    if t_next[axis] >= 1.0:
                        break
                    cell[axis] += stride[axis]
                    if not 0 <= cell[axis] < occupied.shape[axis]:
                        break
                    t_next[axis] += t_step[axis]
    return result


def _share(those: npt.NDArray[np.bool_], of: npt.NDArray[np.bool_]) -> float:
    return float((those & of).sum() / max(of.sum(), 1))
