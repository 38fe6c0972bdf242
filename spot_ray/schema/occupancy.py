"""Occupancy of one frame: sparse occupied voxels and bit masks of what was observed.

Voxel values: 0 = empty, 1 to N = the taxonomy's classes, 255 = unobserved (dense arrays only).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.schema.taxonomy import EMPTY, IGNORE

OCCUPANCY_VERSION = 1


@dataclass(frozen=True)
class OccupancyInfo:
    """What `occupancy/NAME/info.json` holds.

    Args:
        name: Name of the label set; one dataset may hold several.
        grid: The voxel grid, in the ego frame.
        class_names: Names of the classes 1 to N.
        provenance: How the labels were made: a JSON-able record of parameters.
        version: Format version.
    """

    name: str
    grid: VoxelGrid
    class_names: tuple[str, ...]
    provenance: dict[str, str | int | float | bool | None]
    version: int = OCCUPANCY_VERSION


@dataclass(frozen=True, eq=False)
class Occupancy:
    """The occupancy of one frame.

    Args:
        sequence_id: As in the sweep.
        frame_id: As in the sweep.
        index: (M,) int32 linear indices of the occupied voxels, ascending.
        semantic: (M,) uint8 class 1 to N; 255 where the voxel is occupied by something without a class.
        observed: (ceil(n / 8),) uint8 bits of the voxels that some sweep observed (occupied or passed by a ray).
        observed_by_frame: The same for this frame's own rays, or None.
    """

    sequence_id: str
    frame_id: str
    index: npt.NDArray[np.int32]
    semantic: npt.NDArray[np.uint8]
    observed: npt.NDArray[np.uint8]
    observed_by_frame: npt.NDArray[np.uint8] | None = None

    def dense(self, grid: VoxelGrid) -> npt.NDArray[np.uint8]:
        """Return (nx, ny, nz) uint8: 0 empty, 1 to N the class, 255 unobserved or occupied without a class."""
        return dense_labels(self.index, self.semantic, self.observed, grid)


def dense_labels(
    index: npt.NDArray[np.int32], semantic: npt.NDArray[np.uint8], observed: npt.NDArray[np.uint8], grid: VoxelGrid
) -> npt.NDArray[np.uint8]:
    """Return the (nx, ny, nz) uint8 label array of a frame; see :meth:`Occupancy.dense`."""
    seen = unpack_bits(observed, (grid.num_voxels,))
    labels = np.where(seen, np.uint8(EMPTY), np.uint8(IGNORE))
    labels[index] = np.where(seen[index], semantic, np.uint8(IGNORE))
    return labels.reshape(grid.shape)


def to_network_order(labels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return `[..., x, y, z]` labels as `[..., z, y, x]`, the order of network tensors (a view; its own inverse)."""
    return np.swapaxes(labels, -1, -3)
