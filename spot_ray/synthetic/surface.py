"""True occupancy by surface: the voxels in which enough of a surface lies that somebody could see.

A surface is the outside of a solid or the ground. What lies within another solid or under the ground is none: the
inside of a wall, the part of a tree's crown that its other blobs cover, the soles of a post. Neither is the side on
which two solids touch. The inside of a solid is therefore not occupied, unlike in
:func:`~spot_ray.synthetic.occupancy.exact_labels`: it is free of surfaces, and no ray gets there but into foliage.

Areas are sums over a fixed lattice of samples, 2.5 cm apart at most, each with the area of its patch: 256 on a face of
0.4 m. Of the occupied voxels of a street, 0.2 % would be others with samples every centimetre. A face that lies exactly
on the border of two voxels counts for the one on its upper side; two faces that coincide and look the same way count
twice.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np
import numpy.typing as npt

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.synthetic.ground import CELL_M, Ground, height_at, material_at
from spot_ray.synthetic.occupancy import RANK
from spot_ray.synthetic.primitives import BOX, CYLINDER, Material, Solids

Float = npt.NDArray[np.float64]

LEAST_SHARE = 0.1
"""A voxel is occupied from this share of the area of a cell's face."""

_SPACING_M = 0.025
_SAMPLES_A_VOXEL = 10
_LIFT_M = 1e-3
"""A surface can be seen if the place this far off it is free: sides on which two solids touch are then hidden."""

_ROAD = PAPER_TAXONOMY.id_of("road")
_WALKABLE = PAPER_TAXONOMY.id_of("walkable")
_LAST_ROAD_MATERIAL = int(Material.PAINT)


def surface_areas(
    grid: VoxelGrid, ground: Ground, solids: Solids, solid_class: npt.NDArray[np.uint8], world_SE3_ego: Float
) -> npt.NDArray[np.float32]:
    """Return how much surface of each class lies in each voxel.

    Args:
        grid: The voxel grid, in the ego frame.
        ground: The ground, in the world frame. Beyond its field there is none.
        solids: P solids in the ego frame.
        solid_class: (P,) uint8 class 1 to 15 of each.
        world_SE3_ego: (4, 4) pose of the ego.

    Returns:
        (nx, ny, nz, 16) float32 areas in square metres by class; class 0 has none.
    """
    lower, size = np.array(grid.lower_m), np.array(grid.voxel_size_m)
    low, high = solids.bounds()
    near = np.all((high >= grid.lower_m) & (low <= grid.upper_m), axis=1)
    solids, low, high = solids.select(near), low[near] - 2 * _LIFT_M, high[near] + 2 * _LIFT_M
    first = np.maximum(np.floor((low - lower) / size).astype(np.int64), 0)
    last = np.minimum(np.floor((high - lower) / size).astype(np.int64), np.array(grid.shape) - 1)
    starts, members = _by_column(first, last, grid.shape[0], grid.shape[1])
    spacing = min(_SPACING_M, float(size.min()) / _SAMPLES_A_VOXEL)
    areas = np.zeros((*grid.shape, PAPER_TAXONOMY.num_classes + 1), np.float32)
    # One row a solid, as the innermost loop reads it: centre, axes in units of the half sizes, kind.
    scaled = (solids.axes / solids.half[:, :, None]).reshape(-1, 9)
    packed = np.concatenate([solids.center, scaled, solids.kind[:, None]], axis=1)
    _add_solids(
        solids.kind, solids.center, solids.axes, solids.half, solid_class[near], packed, starts, members,
        ground.height, ground.origin, world_SE3_ego, lower, np.array(grid.upper_m), size, spacing, areas,
    )  # fmt: skip
    _add_ground(
        ground.height, ground.origin, ground.material, world_SE3_ego, packed, starts, members, lower, size, spacing,
        areas,
    )  # fmt: skip
    return areas


def surface_labels(areas: npt.NDArray[np.float32], grid: VoxelGrid) -> npt.NDArray[np.uint8]:
    """Return the true labels by surface.

    A voxel is occupied if the areas of all classes in it add up to `LEAST_SHARE` of its smallest face. Its class is one
    of those that reach this share by themselves, or, where none does, that of the largest area. Of several that reach
    it the one wins that :func:`~spot_ray.synthetic.occupancy.exact_labels` prefers: foreground before other objects,
    small before large ones, and these before ground; among equals the larger area, then the lower id.

    Args:
        areas: (nx, ny, nz, 16) float32 as :func:`surface_areas` returns them.
        grid: Their grid.

    Returns:
        (nx, ny, nz) uint8: 0 empty, else the class.
    """
    x, y, z = grid.voxel_size_m
    least = LEAST_SHARE * min(x * y, y * z, z * x)
    labels: npt.NDArray[np.uint8] = _classes(areas.reshape(-1, areas.shape[-1]), least, RANK).reshape(grid.shape)
    return labels


@nb.njit(cache=True)
def _classes(areas, least, rank):  # type: ignore[no-untyped-def]
    labels = np.zeros(len(areas), np.uint8)
    for v in range(len(areas)):
        total = 0.0
        best = 0
        for c in range(1, areas.shape[1]):
            area = areas[v, c]
            if area <= 0.0:
                continue
            total += area
            held = areas[v, best]
            enough, held_enough = area >= least, held >= least
            if enough and held_enough:
                better = rank[c] > rank[best] or (rank[c] == rank[best] and area > held)
            else:
                better = area > held
            if better:
                best = c
        if total >= least:
            labels[v] = best
    return labels


@nb.njit(cache=True)
def _by_column(first, last, nx, ny):  # type: ignore[no-untyped-def]
    """Return the solids above each column of voxels: members[starts[c] : starts[c + 1]] for column c = i · ny + j."""
    starts = np.zeros(nx * ny + 1, np.int64)
    for p in range(len(first)):
        for i in range(first[p, 0], last[p, 0] + 1):
            for j in range(first[p, 1], last[p, 1] + 1):
                starts[i * ny + j + 1] += 1
    starts = np.cumsum(starts)
    members = np.empty(starts[-1], np.int64)
    free = starts[:-1].copy()
    for p in range(len(first)):
        for i in range(first[p, 0], last[p, 0] + 1):
            for j in range(first[p, 1], last[p, 1] + 1):
                members[free[i * ny + j]] = p
                free[i * ny + j] += 1
    return starts, members


@nb.njit(cache=True, inline="always")
def _within(packed, starts, members, column, own, x, y, z):  # type: ignore[no-untyped-def]
    """Tell whether a place lies within a solid other than `own`."""
    inside = False
    for n in range(starts[column], starts[column + 1]):
        q = members[n]
        dx, dy, dz = x - packed[q, 0], y - packed[q, 1], z - packed[q, 2]
        c = abs(packed[q, 9] * dx + packed[q, 10] * dy + packed[q, 11] * dz)
        if q == own or c >= 1.0:
            continue
        a = abs(packed[q, 3] * dx + packed[q, 4] * dy + packed[q, 5] * dz)
        b = abs(packed[q, 6] * dx + packed[q, 7] * dy + packed[q, 8] * dz)
        if packed[q, 12] == BOX:
            inside = a < 1.0 and b < 1.0
        elif packed[q, 12] == CYLINDER:
            inside = a * a + b * b < 1.0
        else:
            inside = a * a + b * b + c * c < 1.0
        if inside:
            break
    return inside


@nb.njit(cache=True)
def _add_patches(patches, count, own, label, packed, starts, members, height, origin, m, lower, size, areas):  # type: ignore[no-untyped-def]
    """Add patches of a solid: rows of place, outward unit normal and area; those that are hidden are left out."""
    for n in range(count):
        x, y, z = patches[n, 0], patches[n, 1], patches[n, 2]
        fx, fy, fz = (x - lower[0]) / size[0], (y - lower[1]) / size[1], (z - lower[2]) / size[2]
        if not (0.0 <= fx < areas.shape[0] and 0.0 <= fy < areas.shape[1] and 0.0 <= fz < areas.shape[2]):
            continue
        i, j, k = int(fx), int(fy), int(fz)
        x, y, z = x + _LIFT_M * patches[n, 3], y + _LIFT_M * patches[n, 4], z + _LIFT_M * patches[n, 5]
        wx = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
        wy = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
        wz = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
        if wz < height_at(height, origin, wx, wy):
            continue
        if not _within(packed, starts, members, i * areas.shape[1] + j, own, x, y, z):
            areas[i, j, k, label] += patches[n, 6]


@nb.njit(cache=True)
def _add_solids(  # type: ignore[no-untyped-def]
    kind, center, axes, half, label, packed, starts, members, height, origin, m, lower, upper, size, spacing, areas
):
    patches = np.empty((1024, 7))
    for p in range(len(kind)):
        if kind[p] == BOX:
            count, patches = _box_patches(center[p], axes[p], half[p], spacing, lower, upper, patches)
        else:
            if kind[p] == CYLINDER:
                count, patches = _cylinder_patches(half[p], spacing, patches)
            else:
                count, patches = _ellipsoid_patches(half[p], spacing, patches)
            _turn(center[p], axes[p], patches, count)
        _add_patches(patches, count, p, label[p], packed, starts, members, height, origin, m, lower, size, areas)


@nb.njit(cache=True)
def _box_patches(center, axes, half, spacing, lower, upper, patches):  # type: ignore[no-untyped-def]
    """Return the number of patches of a box that may lie in the grid, and the patches, in the ego frame."""
    count = 0
    row = np.empty(3)
    for n in range(3):
        u, v = (n + 1) % 3, (n + 2) % 3
        # Rows that lie flat: those of a high wall above the grid are passed over as a whole.
        if abs(axes[u, 2]) > abs(axes[v, 2]):
            u, v = v, u
        nu, nv = math.ceil(2 * half[u] / spacing), math.ceil(2 * half[v] / spacing)
        area = 4 * half[u] * half[v] / (nu * nv)
        for sign in (-1.0, 1.0):
            for b in range(nv):
                up = ((2 * b + 1) / nv - 1.0) * half[v]
                misses = False
                for k in range(3):
                    row[k] = center[k] + sign * half[n] * axes[n, k] + up * axes[v, k]
                    reach = half[u] * abs(axes[u, k])
                    misses = misses or row[k] + reach < lower[k] or row[k] - reach >= upper[k]
                if misses:
                    continue
                patches = _with_room(patches, count + nu)
                for a in range(nu):
                    along = ((2 * a + 1) / nu - 1.0) * half[u]
                    for k in range(3):
                        patches[count, k] = row[k] + along * axes[u, k]
                        patches[count, 3 + k] = sign * axes[n, k]
                    patches[count, 6] = area
                    count += 1
    return count, patches


@nb.njit(cache=True)
def _cylinder_patches(half, spacing, patches):  # type: ignore[no-untyped-def]
    """Return the number of patches of a cylinder, and the patches, in its own axes; normals are of any length."""
    a, b, h = half
    wide = max(a, b)
    around = max(math.ceil(2 * math.pi * wide / spacing), 12)
    rows, rings = math.ceil(2 * h / spacing), math.ceil(wide / spacing)
    patches = _with_room(patches, around * rows + 2 * rings * max(around, 6))
    count = 0
    for t in range(around):
        angle = 2 * math.pi * (t + 0.5) / around
        c, s = math.cos(angle), math.sin(angle)
        area = math.hypot(a * s, b * c) * (2 * math.pi / around) * (2 * h / rows)
        for r in range(rows):
            patches[count] = (a * c, b * s, ((2 * r + 1) / rows - 1.0) * h, c / a, s / b, 0.0, area)
            count += 1
    for r in range(rings):
        out = (r + 0.5) / rings
        turns = max(math.ceil(2 * math.pi * wide * out / spacing), 6)
        area = math.pi * a * b * (2 * r + 1) / (rings * rings) / turns
        for t in range(turns):
            angle = 2 * math.pi * (t + 0.5) / turns
            x, y = a * out * math.cos(angle), b * out * math.sin(angle)
            for sign in (-1.0, 1.0):
                patches[count] = (x, y, sign * h, 0.0, 0.0, sign, area)
                count += 1
    return count, patches


@nb.njit(cache=True)
def _ellipsoid_patches(half, spacing, patches):  # type: ignore[no-untyped-def]
    """Return the number of patches of an ellipsoid, and the patches, in its own axes; normals are of any length."""
    a, b, c = half
    wide = max(a, b)
    bands = max(math.ceil(math.pi * max(wide, c) / spacing), 6)
    patches = _with_room(patches, bands * max(math.ceil(2 * math.pi * wide / spacing), 6))
    count = 0
    for n in range(bands):
        top, bottom = math.cos(math.pi * n / bands), math.cos(math.pi * (n + 1) / bands)
        z = (top + bottom) / 2
        out = math.sqrt(1.0 - z * z)
        turns = max(math.ceil(2 * math.pi * wide * out / spacing), 6)
        solid_angle = (top - bottom) * 2 * math.pi / turns
        for t in range(turns):
            angle = 2 * math.pi * (t + 0.5) / turns
            x, y = out * math.cos(angle), out * math.sin(angle)
            # How much the map from the unit ball to the ellipsoid stretches its surface here.
            stretch = a * b * c * math.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
            patches[count] = (a * x, b * y, c * z, x / a, y / b, z / c, solid_angle * stretch)
            count += 1
    return count, patches


@nb.njit(cache=True)
def _with_room(patches, count):  # type: ignore[no-untyped-def]
    """Return the patches in an array that has room for `count`."""
    if count <= len(patches):
        return patches
    larger = np.empty((2 * count, 7))
    larger[: len(patches)] = patches
    return larger


@nb.njit(cache=True)
def _turn(center, axes, patches, count):  # type: ignore[no-untyped-def]
    """Take patches from a solid's own axes to the ego frame, in place, and make their normals unit vectors."""
    for n in range(count):
        a, b, c = patches[n, 0], patches[n, 1], patches[n, 2]
        p, q, r = patches[n, 3], patches[n, 4], patches[n, 5]
        length = math.sqrt(p * p + q * q + r * r)
        for k in range(3):
            patches[n, k] = center[k] + axes[0, k] * a + axes[1, k] * b + axes[2, k] * c
            patches[n, 3 + k] = (axes[0, k] * p + axes[1, k] * q + axes[2, k] * r) / length


@nb.njit(cache=True)
def _add_ground(height, origin, material, m, packed, starts, members, lower, size, spacing, areas):  # type: ignore[no-untyped-def]
    nx, ny, nz = areas.shape[:3]
    steps = math.ceil(CELL_M / spacing)
    patch = (CELL_M / steps) ** 2
    margin = 2 * CELL_M
    width, depth = nx * size[0], ny * size[1]
    for i in range(height.shape[0] - 1):
        for j in range(height.shape[1] - 1):
            # In the ego frame, the middle of the cell.
            dx = origin[0] + (i + 0.5) * CELL_M - m[0, 3]
            dy = origin[1] + (j + 0.5) * CELL_M - m[1, 3]
            h00, h01, h10, h11 = height[i, j], height[i, j + 1], height[i + 1, j], height[i + 1, j + 1]
            dz = (h00 + h01 + h10 + h11) / 4 - m[2, 3]
            x = m[0, 0] * dx + m[1, 0] * dy + m[2, 0] * dz - lower[0]
            y = m[0, 1] * dx + m[1, 1] * dy + m[2, 1] * dz - lower[1]
            if x < -margin or y < -margin or x > width + margin or y > depth + margin:
                continue
            for s in range(steps):
                u = (s + 0.5) / steps
                for t in range(steps):
                    v = (t + 0.5) / steps
                    slope_x = ((h10 - h00) * (1 - v) + (h11 - h01) * v) / CELL_M
                    slope_y = ((h01 - h00) * (1 - u) + (h11 - h10) * u) / CELL_M
                    wx, wy = origin[0] + (i + u) * CELL_M, origin[1] + (j + v) * CELL_M
                    dx, dy = wx - m[0, 3], wy - m[1, 3]
                    dz = (h00 * (1 - v) + h01 * v) * (1 - u) + (h10 * (1 - v) + h11 * v) * u - m[2, 3]
                    x = m[0, 0] * dx + m[1, 0] * dy + m[2, 0] * dz
                    y = m[0, 1] * dx + m[1, 1] * dy + m[2, 1] * dz
                    z = m[0, 2] * dx + m[1, 2] * dy + m[2, 2] * dz
                    fx, fy, fz = (x - lower[0]) / size[0], (y - lower[1]) / size[1], (z - lower[2]) / size[2]
                    if not (0.0 <= fx < nx and 0.0 <= fy < ny and 0.0 <= fz < nz):
                        continue
                    a, b = int(fx), int(fy)
                    if _within(packed, starts, members, a * ny + b, -1, x, y, z + _LIFT_M):
                        continue
                    label = _ROAD if material_at(material, origin, wx, wy) <= _LAST_ROAD_MATERIAL else _WALKABLE
                    areas[a, b, int(fz), label] += patch * math.sqrt(1.0 + slope_x * slope_x + slope_y * slope_y)
