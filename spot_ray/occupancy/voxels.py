"""From points that stand for surface to occupied voxels with one class each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.taxonomy import IGNORE

_CLASS_SHARE = 0.05
"""Part of a voxel's face that a class needs to have a voxel which others have more of."""

_ROUNDS = 3
"""How many voxels far a voxel whose points have no class asks for one."""


@dataclass(frozen=True, eq=False)
class Surface:
    """Points, each of which stands for as much surface as one cell of the aggregated cloud has.

    Args:
        xyz: (N, 3) float32, metres.
        label: (N,) uint8 class 1 to C, or 255.
        ego_SE3_points: (4, 4) from the points' frame to that of the voxel grid.
        measured: Whether a LiDAR measured them; if not, they fill a gap.
    """

    xyz: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint8]
    ego_SE3_points: npt.NDArray[np.float64]
    measured: bool


@dataclass(frozen=True, eq=False)
class GroundShare:
    """The ground in each voxel of a grid.

    Args:
        area: (n,) float32 area of the ground in the voxel, as a part of a voxel's face.
        label: (n,) uint8 class of the ground there, 255 where it has none.
        measured: (n,) bool: a LiDAR measured it there.
    """

    area: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint8]
    measured: npt.NDArray[np.bool_]


def decide(
    surfaces: Sequence[Surface],
    ground: GroundShare | None,
    grid: VoxelGrid,
    *,
    cell_m: float,
    least: float,
    foreground: npt.NDArray[np.bool_],
    ground_classes: npt.NDArray[np.bool_],
    ask_around: bool,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Find the voxels that hold enough surface, and the class of each.

    A voxel that a surface or its noise only just reaches into is not occupied. How much is enough is told from the
    voxels around: where points are dense, a single one is a sliver of a surface that lies next door; where they are
    sparse, it is all that is known.

    Of the classes with a twentieth of a face a foreground class goes before others (the one that a planner must not
    miss), these before ground, and that before none; of alike ones the rarer in the frame: a sign would else be lost to
    the pole that it hangs on. A class with less surface only has a voxel that no other has more of. Where no point has
    a class, that of most of the voxels around is taken that is not ground; else the voxel is occupied without one.

    Args:
        surfaces: What stands for surface; points outside the grid do not count.
        ground: The ground's height map in the grid, or None.
        grid: The grid.
        cell_m: Each point stands for the surface of a cell of this edge, metres.
        least: The least surface, as a part of a voxel's face.
        foreground: (256,) bool by class; False for 255.
        ground_classes: (256,) bool by class; False for 255.
        ask_around: Whether a voxel without a class gets one from the voxels around; not where boxes alone tell classes,
            or all that stands beside a car would be a car.

    Returns:
        (M,) int32 linear indices of the occupied voxels, ascending, their (M,) uint8 class, 255 without one, and (M,)
        bool whether they hold a measured point.
    """
    size = np.array(grid.voxel_size_m)
    full = max(float(np.prod(size) ** (2 / 3)) / cell_m**2, 1.0)
    count = np.zeros(grid.num_voxels, np.uint8)
    measured = np.zeros((grid.num_voxels + 7) // 8, np.uint8)
    places = []
    for surface in surfaces:
        # Matrix from the points' metres to the grid's voxels, so that a point costs one product.
        matrix = surface.ego_SE3_points[:3] / size[:, None]
        matrix[:, 3] -= np.array(grid.lower_m) / size
        places.append(np.empty(len(surface.xyz), np.int32))
        _locate(surface.xyz, matrix, np.array(grid.shape), places[-1], count, measured, surface.measured)
    area = np.zeros(1, np.float32) if ground is None else ground.area
    index = _occupied(count, area, np.array(grid.shape), full, least)
    slot = np.full(grid.num_voxels, -1, np.int32)
    slot[index] = np.arange(len(index), dtype=np.int32)
    used = np.unique(np.concatenate([np.unique(s.label) for s in surfaces] + [np.zeros(0, np.uint8)]))
    if ground is not None:
        used = np.union1d(used, np.unique(ground.label[index]))
    column = np.zeros(256, np.int32)
    column[used] = np.arange(len(used), dtype=np.int32)
    votes = np.zeros((len(index), max(len(used), 1)), np.float32)
    for surface, place in zip(surfaces, places, strict=True):
        _vote(votes, slot, place, column[surface.label])
    if ground is not None and len(index):
        rows = np.flatnonzero(ground.area[index] > 0)
        votes[rows, column[ground.label[index[rows]]]] += ground.area[index[rows]] * np.float32(full)
    semantic = _classes(votes, used.astype(np.uint8), foreground, ground_classes, _CLASS_SHARE * full)
    for _ in range(_ROUNDS if ask_around else 0):
        _ask_around(semantic, index, slot, np.array(grid.shape), ground_classes)
    has_points = (measured[index >> 3] >> (index & 7) & 1).astype(bool)
    if ground is not None:
        has_points |= ground.measured[index]
    return index, semantic, has_points


@numba.njit(cache=True, nogil=True)
def _locate(
    xyz: npt.NDArray[np.float32],
    matrix: npt.NDArray[np.float64],
    shape: npt.NDArray[np.int64],
    place: npt.NDArray[np.int32],
    count: npt.NDArray[np.uint8],
    measured: npt.NDArray[np.uint8],
    is_measured: bool,
) -> None:
    """Find the voxel of each point, -1 outside, and count the points of each voxel up to 255."""
    for n in range(len(xyz)):
        x, y, z = float(xyz[n, 0]), float(xyz[n, 1]), float(xyz[n, 2])
        a = np.floor(matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + matrix[0, 3])
        b = np.floor(matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + matrix[1, 3])
        c = np.floor(matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + matrix[2, 3])
        place[n] = -1
        if 0 <= a < shape[0] and 0 <= b < shape[1] and 0 <= c < shape[2]:
            linear = (int(a) * shape[1] + int(b)) * shape[2] + int(c)
            place[n] = linear
            if count[linear] < 255:
                count[linear] += np.uint8(1)
            if is_measured:
                measured[linear >> 3] |= np.uint8(1 << (linear & 7))


@numba.njit(cache=True, nogil=True)
def _occupied(
    count: npt.NDArray[np.uint8],
    area: npt.NDArray[np.float32],
    shape: npt.NDArray[np.int64],
    full: float,
    least: float,
) -> npt.NDArray[np.int32]:
    """Return the voxels with enough surface: counted points, or ground if `area` has more than one element."""
    found = np.zeros(len(count), np.bool_)
    with_ground = len(area) > 1
    n = 0
    for i in range(shape[0]):
        for j in range(shape[1]):
            for k in range(shape[2]):
                own = float(count[n])
                if with_ground and (area[n] >= least or (area[n] > 0 and area[n] + own / full >= least)):
                    found[n] = True
                elif own > 0:
                    if own >= least * full:
                        found[n] = True
                    else:
                        most = own
                        for a in range(max(i - 1, 0), min(i + 2, shape[0])):
                            for b in range(max(j - 1, 0), min(j + 2, shape[1])):
                                for c in range(max(k - 1, 0), min(k + 2, shape[2])):
                                    most = max(most, float(count[(a * shape[1] + b) * shape[2] + c]))
                        found[n] = own >= least * min(most, full)
                n += 1
    return np.flatnonzero(found).astype(np.int32)


@numba.njit(cache=True, nogil=True)
def _vote(
    votes: npt.NDArray[np.float32],
    slot: npt.NDArray[np.int32],
    place: npt.NDArray[np.int32],
    column: npt.NDArray[np.int32],
) -> None:
    for n in range(len(place)):
        if place[n] >= 0 and slot[place[n]] >= 0:
            votes[slot[place[n]], column[n]] += np.float32(1)


@numba.njit(cache=True, nogil=True)
def _classes(
    votes: npt.NDArray[np.float32],
    label: npt.NDArray[np.uint8],
    foreground: npt.NDArray[np.bool_],
    ground: npt.NDArray[np.bool_],
    enough: float,
) -> npt.NDArray[np.uint8]:
    """Return the class of each row of votes; the columns are ascending classes."""
    result = np.full(len(votes), IGNORE, np.uint8)
    total = np.zeros(len(label))
    for r in range(len(votes)):
        for c in range(len(label)):
            total[c] += votes[r, c]
    for r in range(len(votes)):
        # Compared in this order: enough surface, the kind of class, and then how rare it is or how much it has.
        best = (False, -1, 0.0)
        for c in range(len(label)):
            v = float(votes[r, c])
            if v == 0:
                continue
            kind = 0
            if ground[label[c]]:
                kind = 1
            elif foreground[label[c]]:
                kind = 3
            elif label[c] != IGNORE:
                kind = 2
            is_enough = v >= enough
            key = (is_enough, kind if is_enough or label[c] == IGNORE else 1, 1.0 / total[c] if is_enough else v)
            if best[1] < 0 or key > best:
                best = key
                result[r] = label[c]
    return result


@numba.njit(cache=True, nogil=True)
def _ask_around(
    semantic: npt.NDArray[np.uint8],
    index: npt.NDArray[np.int32],
    slot: npt.NDArray[np.int32],
    shape: npt.NDArray[np.int64],
    ground: npt.NDArray[np.bool_],
) -> None:
    """Give voxels without a class, in place, the most frequent one of the 26 around them that is not ground."""
    rows = np.flatnonzero(semantic == IGNORE)
    found = np.full(len(rows), IGNORE, np.uint8)
    votes = np.zeros(256, np.int32)
    for n in range(len(rows)):
        votes[:] = 0
        place = index[rows[n]]
        i, j, k = place // (shape[1] * shape[2]), place // shape[2] % shape[1], place % shape[2]
        best = 0
        for a in range(max(i - 1, 0), min(i + 2, shape[0])):
            for b in range(max(j - 1, 0), min(j + 2, shape[1])):
                for c in range(max(k - 1, 0), min(k + 2, shape[2])):
                    other = slot[(a * shape[1] + b) * shape[2] + c]
                    if other >= 0 and semantic[other] != IGNORE and not ground[semantic[other]]:
                        label = semantic[other]
                        votes[label] += 1
                        if votes[label] > best or (votes[label] == best and label < found[n]):
                            best = votes[label]
                            found[n] = label
    semantic[rows] = found
