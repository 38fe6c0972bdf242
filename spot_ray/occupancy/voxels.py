"""From labelled points to occupied voxels with one class each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.taxonomy import IGNORE


def voxelise(
    xyz: npt.NDArray[np.floating],
    label: npt.NDArray[np.uint8],
    grid: VoxelGrid,
    foreground: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Find the voxels that hold points, and the class that most of each voxel's labelled points have.

    Of classes with the same count a foreground class wins (the rare one, and the one that a planner must not miss),
    then the lower id. A voxel whose points all lack a class is occupied without one.

    Args:
        xyz: (N, 3) points in the grid's frame, metres; those outside the grid do not count.
        label: (N,) uint8 class 1 to C, or 255.
        grid: The grid.
        foreground: (C + 1,) bool by class, `Taxonomy.mask("foreground")`.

    Returns:
        (M,) int32 linear indices, ascending, and (M,) uint8 class, 255 without one.
    """
    voxel, inside = grid.voxel_of(xyz)
    linear = grid.linear(voxel[inside])
    label = label[inside]
    occupied = np.zeros(grid.num_voxels, dtype=bool)
    occupied[linear] = True
    index = np.flatnonzero(occupied).astype(np.int32)
    if not len(index):
        return index, np.zeros(0, np.uint8)

    slot = np.empty(grid.num_voxels, dtype=np.int32)
    slot[index] = np.arange(len(index), dtype=np.int32)
    known = label != IGNORE
    num_columns = len(foreground)
    cell = slot[linear[known]].astype(np.int64) * num_columns + label[known]
    votes = np.bincount(cell, minlength=len(index) * num_columns).reshape(len(index), num_columns)
    semantic = (2 * votes + (foreground & (votes > 0))).argmax(axis=1).astype(np.uint8)
    semantic[votes.sum(axis=1) == 0] = IGNORE
    return index, semantic
