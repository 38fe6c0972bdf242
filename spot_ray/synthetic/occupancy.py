"""Exact occupancy: the voxels that the ground or a solid touches, from the geometry itself and not from points."""

from __future__ import annotations

import math

import numba as nb
import numpy as np
import numpy.typing as npt

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.synthetic.ground import Ground, height_at, material_at
from spot_ray.synthetic.primitives import BOX, CYLINDER, Material, Solids

Float = npt.NDArray[np.float64]

_SAMPLE_M = 0.08
"""Spacing at which the ground is sampled within a column of voxels."""

_ROAD = PAPER_TAXONOMY.id_of("road")
_WALKABLE = PAPER_TAXONOMY.id_of("walkable")
_LAST_ROAD_MATERIAL = int(Material.PAINT)

_SMALL = ("sign", "traffic light", "construction cone")
_LARGE = ("building", "vegetation")
RANK = np.array(
    [
        0,
        *(
            5 if c.foreground else 1 if c.ground else 4 if c.name in _SMALL else 2 if c.name in _LARGE else 3
            for c in PAPER_TAXONOMY.classes
        ),
    ],
    dtype=np.uint8,
)
"""(16,) uint8 by class. Who gets a voxel that several touch: foreground, then other objects, the small before the
large, then ground."""


def exact_labels(
    grid: VoxelGrid, ground: Ground, solids: Solids, solid_class: npt.NDArray[np.uint8], world_SE3_ego: Float
) -> npt.NDArray[np.uint8]:
    """Return the exact labels of a frame.

    A voxel is occupied if the volume of a solid reaches into it (the overlap test is exact to 1e-6 of the solid's
    size), if it holds a part of the ground's surface (exact to two centimetres at kerbs), or if it lies under the
    ground.

    Args:
        grid: The voxel grid, in the ego frame.
        ground: The ground, in the world frame.
        solids: P solids in the ego frame.
        solid_class: (P,) uint8 class 1 to 15 of each.
        world_SE3_ego: (4, 4) pose of the ego.

    Returns:
        (nx, ny, nz) uint8: 0 empty, else the class. Where several touch a voxel, foreground goes before other objects,
        small before large ones, and these before ground; on the ground, the class of most of the column's surface.
    """
    lower, size = np.array(grid.lower_m), np.array(grid.voxel_size_m)
    labels = np.zeros(grid.shape, np.uint8)
    steps = max(math.ceil(max(grid.voxel_size_m[:2]) / _SAMPLE_M), 1)
    _mark_ground(ground.height, ground.material, ground.origin, world_SE3_ego, lower, size, steps, labels)
    low, high = solids.bounds()
    first = np.floor((low - lower) / size).astype(np.int64)
    last = np.floor((high - lower) / size).astype(np.int64)
    _mark_solids(
        solids.kind, solids.center, solids.axes, solids.half, solid_class, first, last, lower, size, RANK, labels
    )
    return labels


@nb.njit(cache=True)
def _mark_ground(height, material, origin, world_SE3_ego, lower, size, steps, labels):  # type: ignore[no-untyped-def]
    """Mark all voxels from the bottom of the grid up to the ground's highest point in each column."""
    m = world_SE3_ego
    nx, ny, nz = labels.shape
    # Neighbouring columns share the samples on their border: no part of the surface falls between two columns.
    top = np.full((nx, ny), -np.inf)
    road = np.zeros((nx, ny), np.int64)
    z = 0.0
    for i in range(nx * steps + 1):
        x = lower[0] + i * size[0] / steps
        z = 0.0
        for j in range(ny * steps + 1):
            y = lower[1] + j * size[1] / steps
            wx = wy = 0.0
            # The ego frame leans a little, so the height and the place depend on each other: it converges at once.
            for _ in range(2):
                wx = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
                wy = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
                wz = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
                z += (height_at(height, origin, wx, wy) - wz) / m[2, 2]
            vote = 1 if material_at(material, origin, wx, wy) <= _LAST_ROAD_MATERIAL else -1
            ci, cj = i // steps, j // steps
            for a in range(max(ci - 1, 0) if i % steps == 0 else ci, min(ci, nx - 1) + 1):
                for b in range(max(cj - 1, 0) if j % steps == 0 else cj, min(cj, ny - 1) + 1):
                    top[a, b] = max(top[a, b], z)
                    road[a, b] += vote
    for a in range(nx):
        for b in range(ny):
            highest = min(math.floor((top[a, b] - lower[2]) / size[2]), nz - 1)
            for k in range(highest + 1):
                labels[a, b, k] = _ROAD if road[a, b] >= 0 else _WALKABLE


@nb.njit(cache=True)
def _mark_solids(kind, center, axes, half, solid_class, first, last, lower, size, rank, labels):  # type: ignore[no-untyped-def]
    """Mark the voxels that each solid reaches into, unless something of higher rank has them."""
    nx, ny, nz = labels.shape
    reach = size / 2
    for p in range(len(kind)):
        own = rank[solid_class[p]]
        for i in range(max(first[p, 0], 0), min(last[p, 0], nx - 1) + 1):
            x = lower[0] + (i + 0.5) * size[0] - center[p, 0]
            for j in range(max(first[p, 1], 0), min(last[p, 1], ny - 1) + 1):
                y = lower[1] + (j + 0.5) * size[1] - center[p, 1]
                for k in range(max(first[p, 2], 0), min(last[p, 2], nz - 1) + 1):
                    if rank[labels[i, j, k]] >= own:
                        continue
                    z = lower[2] + (k + 0.5) * size[2] - center[p, 2]
                    if overlaps(kind[p], axes[p], half[p], x, y, z, reach):
                        labels[i, j, k] = solid_class[p]


@nb.njit(cache=True)
def overlaps(kind, axes, half, x, y, z, reach):  # type: ignore[no-untyped-def]
    """Tell whether a solid and an axis-aligned box have a point in common.

    Args:
        kind: Kind of the solid.
        axes: (3, 3) its axes, in rows.
        half: (3,) its half sizes.
        x: Centre of the box relative to the solid's centre.
        y: The same.
        z: The same.
        reach: (3,) half sizes of the box.
    """
    # In units of the solid: its centre is 0, its half sizes are 1, the box is a parallelepiped p + e · [-1, 1]³.
    p = np.empty(3)
    e = np.empty((3, 3))
    inside = True
    for n in range(3):
        p[n] = (axes[n, 0] * x + axes[n, 1] * y + axes[n, 2] * z) / half[n]
        width = 0.0
        for k in range(3):
            e[n, k] = axes[n, k] * reach[k] / half[n]
            width += abs(e[n, k])
        if abs(p[n]) > 1.0 + width:
            return False
        inside = inside and abs(p[n]) <= 1.0
    if kind == BOX:
        return inside or _boxes_overlap(axes, half, x, y, z, reach)
    return _round_overlaps(kind, p, e)


@nb.njit(cache=True)
def _boxes_overlap(axes, half, x, y, z, reach):  # type: ignore[no-untyped-def]
    """Test the nine axes that are at right angles to one edge of each box; the faces' axes are tested already."""
    for n in range(3):
        for k in range(3):
            a, b = (k + 1) % 3, (k + 2) % 3
            # The cross product of the solid's axis n and the box's axis k.
            lx = 0.0 if k == 0 else (axes[n, 2] if k == 1 else -axes[n, 1])
            ly = -axes[n, 2] if k == 0 else (0.0 if k == 1 else axes[n, 0])
            lz = axes[n, 1] if k == 0 else (-axes[n, 0] if k == 1 else 0.0)
            if lx * lx + ly * ly + lz * lz < 1e-12:
                continue
            of_box = reach[a] * abs(axes[n, b]) + reach[b] * abs(axes[n, a])
            of_solid = 0.0
            for q in range(3):
                if q != n:
                    of_solid += half[q] * abs(axes[q, 0] * lx + axes[q, 1] * ly + axes[q, 2] * lz)
            if abs(x * lx + y * ly + z * lz) > of_box + of_solid:
                return False
    return True


@nb.njit(cache=True)
def _round_overlaps(kind, p, e):  # type: ignore[no-untyped-def]
    """Find the point of a parallelepiped that is nearest to a unit cylinder or ball.

    Projected gradient descent that ends with a proof: a common point, or a plane between the two.
    """
    scale = np.empty(3)
    for k in range(3):
        scale[k] = 1e-30
        for j in range(3):
            scale[k] += abs(e[0, k] * e[0, j] + e[1, k] * e[1, j] + e[2, k] * e[2, j])
    t = np.zeros(3)
    for _ in range(100):
        qx = p[0] + e[0, 0] * t[0] + e[0, 1] * t[1] + e[0, 2] * t[2]
        qy = p[1] + e[1, 0] * t[0] + e[1, 1] * t[1] + e[1, 2] * t[2]
        qz = p[2] + e[2, 0] * t[0] + e[2, 1] * t[1] + e[2, 2] * t[2]
        if kind == CYLINDER:
            shrink = 1.0 / max(math.sqrt(qx * qx + qy * qy), 1.0)
            kx, ky, kz = qx * shrink, qy * shrink, min(max(qz, -1.0), 1.0)
        else:
            shrink = 1.0 / max(math.sqrt(qx * qx + qy * qy + qz * qz), 1.0)
            kx, ky, kz = qx * shrink, qy * shrink, qz * shrink
        nx, ny, nz = qx - kx, qy - ky, qz - kz
        if nx * nx + ny * ny + nz * nz < 1e-12:
            return True
        nearest = nx * (p[0] - kx) + ny * (p[1] - ky) + nz * (p[2] - kz)
        for k in range(3):
            slope = nx * e[0, k] + ny * e[1, k] + nz * e[2, k]
            nearest -= abs(slope)
            t[k] = min(max(t[k] - slope / scale[k], -1.0), 1.0)
        if nearest > 0.0:
            return False
    return True
