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
    cell = np.empty(3, np.int64)
    left = np.empty(3, np.int64)
    stride = np.empty(3, np.int64)
    t_next = np.empty(3, np.float64)
    t_step = np.empty(3, np.float64)
    for n in range(len(ends)):
        # The part of the ray inside the grid, as parameters of start + t (end - start).
        t_in, t_out = 0.0, 1.0
        for axis in range(3):
            a, b = starts[n, axis], ends[n, axis]
            d = b - a
            if d == 0.0:
                if a < 0.0 or a >= shape[axis]:
                    t_in = 2.0
            else:
                t_low, t_high = -a / d, (shape[axis] - a) / d
                t_in = max(t_in, min(t_low, t_high))
                t_out = min(t_out, max(t_low, t_high))
        if not t_in < t_out:
            continue
        ends_inside = True
        for axis in range(3):
            ends_inside = ends_inside and 0.0 <= ends[n, axis] < shape[axis]
        linear = 0
        steps = 0
        for axis in range(3):
            a, b = starts[n, axis], ends[n, axis]
            d = b - a
            first = min(max(math.floor(a + t_in * d), 0), shape[axis] - 1)
            last = math.floor(b) if ends_inside else min(max(math.floor(a + t_out * d), 0), shape[axis] - 1)
            cell[axis] = first
            linear = linear * shape[axis] + first
            # Counting down the steps of each axis makes the walk end in `last` whatever rounding does to t_next.
            left[axis] = abs(last - first)
            steps += left[axis]
            stride[axis] = 1 if last > first else -1
            if left[axis] > 0:
                t_step[axis] = 1.0 / abs(d)
                t_next[axis] = (first + (1 if last > first else 0) - a) / d
            else:
                t_step[axis] = 0.0
                t_next[axis] = math.inf
        stride[0] *= shape[1] * shape[2]
        stride[1] *= shape[2]
        for _ in range(steps):
            bits[linear >> 3] |= np.uint8(1 << (linear & 7))
            if t_next[0] <= t_next[1]:
                axis = 0 if t_next[0] <= t_next[2] else 2
            else:
                axis = 1 if t_next[1] <= t_next[2] else 2
            linear += stride[axis]
            left[axis] -= 1
            t_next[axis] = t_next[axis] + t_step[axis] if left[axis] > 0 else math.inf
        if include_end or not ends_inside:
            bits[linear >> 3] |= np.uint8(1 << (linear & 7))
        visited += steps + 1
    return visited
