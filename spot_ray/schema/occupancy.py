"""Occupancy of one frame: sparse occupied voxels and bit masks of what was observed.

Voxel values: 0 = empty, 1 to N = the label set's classes, 255 = unobserved (dense arrays only). A label set has classes
of its own: those of the dataset's taxonomy, or coarser ones that its boxes alone, or no labels at all, can tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid, pack_bits, unpack_bits
from spot_ray.schema.taxonomy import EMPTY, IGNORE, SemanticClass, Taxonomy

OCCUPANCY_VERSION = 2
"""1: names of classes alone, those of the dataset's taxonomy. 2: the classes whole, of the label set's own."""


@dataclass(frozen=True)
class OccupancyInfo:
    """What `occupancy/NAME/info.json` holds.

    Args:
        name: Name of the label set; one dataset may hold several.
        grid: The voxel grid, in the ego frame.
        classes: The classes 1 to N.
        provenance: How the labels were made: a JSON-able record of parameters.
        generation: How often the set was replaced; see :mod:`spot_ray.storage.occupancy`.
        version: Format version.

    Raises:
        DataError: If two classes have one name, or there are no or more than 254 classes.
    """

    name: str
    grid: VoxelGrid
    classes: tuple[SemanticClass, ...]
    provenance: dict[str, str | int | float | bool | None]
    generation: int = 0
    version: int = OCCUPANCY_VERSION

    def __post_init__(self) -> None:
        """Check the classes."""
        _ = self.taxonomy

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes 1 to N."""
        return tuple(c.name for c in self.classes)

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes as a taxonomy, named as the label set, whose source ids are the ids of the classes."""
        return Taxonomy.from_classes(self.name, self.classes)


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


def crop_occupancy(occupancy: Occupancy, source: VoxelGrid, target: VoxelGrid) -> Occupancy:
    """Return the labels of a smaller grid that lies cell on cell within the one they were made on.

    Raises:
        DataError: If the target's cells are not cells of the source.
    """
    if source == target:
        return occupancy
    offset = cell_offset(source, target)
    inner = tuple(slice(o, o + n) for o, n in zip(offset, target.shape, strict=True))

    def crop_bits(bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return pack_bits(unpack_bits(bits, source.shape)[inner])

    moved = source.unravel(occupancy.index) - np.array(offset, np.int32)
    inside = np.all((moved >= 0) & (moved < target.shape), axis=1)
    own = occupancy.observed_by_frame
    return Occupancy(
        occupancy.sequence_id,
        occupancy.frame_id,
        target.linear(moved[inside]),
        occupancy.semantic[inside],
        crop_bits(occupancy.observed),
        None if own is None else crop_bits(own),
    )


def cell_offset(source: VoxelGrid, target: VoxelGrid) -> tuple[int, int, int]:
    """Return the cell of `source` that is the first cell of `target`.

    Raises:
        DataError: If the target's cells are not cells of the source.
    """
    steps = (np.array(target.lower_m) - np.array(source.lower_m)) / np.array(source.voxel_size_m)
    x, y, z = (int(v) for v in np.rint(steps))
    fits = (
        np.allclose(target.voxel_size_m, source.voxel_size_m, atol=1e-6)
        and np.abs(steps - (x, y, z)).max() < 1e-3
        and min(x, y, z) >= 0
        and all(o + n <= m for o, n, m in zip((x, y, z), target.shape, source.shape, strict=True))
    )
    if not fits:
        raise DataError(
            f"the grid of the recipe does not lie in the grid of the labels: {target} in {source}",
            expected="the same voxel size, a whole number of cells apart, within the labels' range",
            remedy="label again with the recipe's grid: spot-ray label --data URI --recipe NAME --name OTHER",
        )
    return x, y, z
