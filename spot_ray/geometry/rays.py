"""Which voxels of a grid a ray passes (Amanatides and Woo, "A Fast Voxel Traversal Algorithm", 1987)."""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.geometry.grid import VoxelGrid


def mark_passed(
    bits: npt.NDArray[np.uint8],
    origins: npt.NDArray[np.floating],
    ends: npt.NDArray[np.floating],
    grid: VoxelGrid,
    *,
    include_end: bool = False,
) -> int:
    """Set the bit of every voxel that a ray passes on its way from its origin to its end.

    A ray is clipped to the grid where it starts or ends outside it. The voxel that holds the end is left out, since
    something is there; a ray that ends outside the grid passes its last voxel too.

    Args:
        bits: (ceil(n / 8),) uint8 little-endian bits in the grid's linear order (see
            :func:`~spot_ray.geometry.grid.pack_bits`), changed in place; bits that are set stay set.
        origins: (N, 3) or (3,) start of the rays, metres, in the grid's frame.
        ends: (N, 3) ends of the rays, metres, in the grid's frame.
        grid: The grid.
        include_end: Mark the voxel that holds the end as well.

    Returns:
        The number of voxels visited, for measuring speed.
    """
    if bits.dtype != np.uint8 or bits.shape != ((grid.num_voxels + 7) // 8,):
        raise ValueError(f"bits are {bits.dtype} {bits.shape}, expected uint8 ({(grid.num_voxels + 7) // 8},)")
    if ends.ndim != 2 or ends.shape[1] != 3 or origins.shape not in ((3,), ends.shape):
        raise ValueError(f"origins {origins.shape} and ends {ends.shape}, expected (3,) or (N, 3) and (N, 3)")
    # By division, as VoxelGrid.voxel_of does it, so that both agree on the voxel of a point on a face.
    start = (np.asarray(origins, dtype=np.float64) - grid.lower_m) / grid.voxel_size_m
    end = (np.asarray(ends, dtype=np.float64) - grid.lower_m) / grid.voxel_size_m
    start = np.ascontiguousarray(np.broadcast_to(start, end.shape))
    return int(_mark_passed(bits, start, end, np.array(grid.shape, dtype=np.int64), include_end))


@numba.njit(cache=True, nogil=True)
def _mark_passed(
    bits: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.float64],
    ends: npt.NDArray[np.float64],
    shape: npt.NDArray[np.int64],
    include_end: bool,
) -> int:
    """Traverse the rays; `starts` and `ends` are in units of voxels from the grid's lower corner."""
    visited = 0
    nx, ny, nz = shape[0], shape[1], shape[2]
    for n in range(len(ends)):
        ax, ay, az = starts[n, 0], starts[n, 1], starts[n, 2]
        bx, by, bz = ends[n, 0], ends[n, 1], ends[n, 2]
        # The part of the ray inside the grid, as parameters of start + t (end - start).
        t_in, t_out = _clip(ax, bx, nx, 0.0, 1.0)
        t_in, t_out = _clip(ay, by, ny, t_in, t_out)
        t_in, t_out = _clip(az, bz, nz, t_in, t_out)
        if not t_in < t_out:
            continue
        ends_inside = 0.0 <= bx < nx and 0.0 <= by < ny and 0.0 <= bz < nz
        x, left_x, way_x, next_x, step_x = _axis(ax, bx, nx, t_in, t_out, ends_inside)
        y, left_y, way_y, next_y, step_y = _axis(ay, by, ny, t_in, t_out, ends_inside)
        z, left_z, way_z, next_z, step_z = _axis(az, bz, nz, t_in, t_out, ends_inside)
        linear = (x * ny + y) * nz + z
        way_x, way_y = way_x * ny * nz, way_y * nz
        steps = left_x + left_y + left_z
        # Scalars, not arrays of three: they stay in registers, a step takes two thirds of the time.
        for _ in range(steps):
            bits[linear >> 3] |= np.uint8(1 << (linear & 7))
            if next_x <= next_y:
                along_x, along_y = next_x <= next_z, False
            else:
                along_x, along_y = False, next_y <= next_z
            if along_x:
                linear += way_x
                left_x -= 1
                next_x = next_x + step_x if left_x > 0 else math.inf
            elif along_y:
                linear += way_y
                left_y -= 1
                next_y = next_y + step_y if left_y > 0 else math.inf
            else:
                linear += way_z
                left_z -= 1
                next_z = next_z + step_z if left_z > 0 else math.inf
        if include_end or not ends_inside:
            bits[linear >> 3] |= np.uint8(1 << (linear & 7))
        visited += steps + 1
    return visited


@numba.njit(cache=True, nogil=True, inline="always")
def _clip(a, b, size, t_in, t_out):  # type: ignore[no-untyped-def]
    """Narrow the part of a ray that lies within the grid along one axis."""
    d = b - a
    if d == 0.0:
        if a < 0.0 or a >= size:
            t_in = 2.0
    else:
        t_low, t_high = -a / d, (size - a) / d
        t_in = max(t_in, min(t_low, t_high))
        t_out = min(t_out, max(t_low, t_high))
    return t_in, t_out


@numba.njit(cache=True, nogil=True, inline="always")
def _axis(a, b, size, t_in, t_out, ends_inside):  # type: ignore[no-untyped-def]
    """Return along one axis the first cell, the number of steps, their direction, when the first is due, and a step.

    Counting down the steps of each axis makes the walk end in the last cell whatever rounding does to the times.
    """
    d = b - a
    first = min(max(math.floor(a + t_in * d), 0), size - 1)
    last = math.floor(b) if ends_inside else min(max(math.floor(a + t_out * d), 0), size - 1)
    left = abs(last - first)
    if left == 0:
        return first, left, -1, math.inf, 0.0
    way = 1 if last > first else -1
    return first, left, way, (first + (1 if last > first else 0) - a) / d, 1.0 / abs(d)
