"""How far boxes overlap, seen from above and in space, for the metrics of every benchmark that goes by overlap.

Boxes are `[x, y, z, dx, dy, dz, yaw]` as in `geometry/boxes.py`. All is computed in float64. Of each pair, the first
rectangle is moved into the frame of the second, where the second's sides lie along the axes, and is clipped by them one
after the other (Sutherland and Hodgman, "Reentrant polygon clipping", 1974). Only offsets of centres and differences of
yaw come in, so boxes far from the origin are as exact as their coordinates, and identical ones overlap wholly.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError

_MOST_CORNERS = 24
"""Of a clipped rectangle it is 8; rounding can make a few that coincide."""

Float = npt.NDArray[np.float64]


def bev_intersections(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> Float:
    """Return the area that each box of one set shares with each of another, seen from above.

    Args:
        a: (N, 7) boxes, finite; `z` and `dz` are not looked at.
        b: (M, 7) boxes in the same frame.

    Returns:
        (N, M) float64, square metres.

    Raises:
        DataError: If the boxes are no (N, 7) and (M, 7).
    """
    return _bev_intersections(*_checked(a, b))


def iou_3d(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> Float:
    """Return the intersection over union of the volumes of each pair of boxes.

    Args:
        a: (N, 7) boxes, finite.
        b: (M, 7) boxes in the same frame.

    Returns:
        (N, M) float64, 0 to 1; 0 where both have no volume.

    Raises:
        DataError: If the boxes are no (N, 7) and (M, 7).
    """
    a, b = _checked(a, b)
    shared = _bev_intersections(a, b)
    if shared.any():
        # Of the offset of the centres, as on the ground: sums of a large z and a small height would round.
        apart = np.abs(a[:, None, 2] - b[None, :, 2])
        half_a, half_b = a[:, None, 5] / 2, b[None, :, 5] / 2
        shared *= np.clip(half_a + half_b - apart, 0.0, 2 * np.minimum(half_a, half_b))
    return _over_union(shared, a[:, 3:6].prod(axis=1), b[:, 3:6].prod(axis=1))


@numba.njit(cache=True, nogil=True)
def rectangles_share(
    dx: float,
    dy: float,
    turn: float,
    half_ax: float,
    half_ay: float,
    half_bx: float,
    half_by: float,
    corners: Float,
    clipped: Float,
) -> float:
    """Return the area that two rectangles share, for kernels that walk over pairs themselves.

    Args:
        dx: Centre of the first along the x axis of the second, in the second's frame.
        dy: The same along its y axis.
        turn: Yaw of the first less that of the second, radians.
        half_ax: Half the first's side along its own x axis.
        half_ay: The same along its y axis.
        half_bx: Half the second's side along its own x axis.
        half_by: The same along its y axis.
        corners: (24, 2) scratch; see :func:`clip_scratch`.
        clipped: (24, 2) scratch.
    """
    c, s = math.cos(turn), math.sin(turn)
    for k in range(4):
        along = half_ax if k == 0 or k == 3 else -half_ax
        across = half_ay if k < 2 else -half_ay
        corners[k, 0] = dx + along * c - across * s
        corners[k, 1] = dy + along * s + across * c
    count = 4
    for axis in range(2):
        limit = half_bx if axis == 0 else half_by
        for sign in (1.0, -1.0):
            kept = 0
            for k in range(count):
                before = k - 1 if k else count - 1
                # Positive inside.
                depth, depth_before = limit - sign * corners[k, axis], limit - sign * corners[before, axis]
                if (depth > 0.0 and depth_before < 0.0) or (depth < 0.0 and depth_before > 0.0):
                    part = depth_before / (depth_before - depth)
                    other = 1 - axis
                    clipped[kept, axis] = sign * limit
                    clipped[kept, other] = corners[before, other] + part * (corners[k, other] - corners[before, other])
                    kept += 1
                if depth >= 0.0:
                    clipped[kept, 0], clipped[kept, 1] = corners[k, 0], corners[k, 1]
                    kept += 1
            corners, clipped = clipped, corners
            count = kept
            if count < 3:
                return 0.0
    twice = 0.0
    for k in range(1, count - 1):
        ux, uy = corners[k, 0] - corners[0, 0], corners[k, 1] - corners[0, 1]
        vx, vy = corners[k + 1, 0] - corners[0, 0], corners[k + 1, 1] - corners[0, 1]
        twice += ux * vy - uy * vx
    return min(max(twice / 2, 0.0), 4 * half_ax * half_ay, 4 * half_bx * half_by)


@numba.njit(cache=True, nogil=True)
def clip_scratch() -> tuple[Float, Float]:
    """Return the two arrays that :func:`rectangles_share` works in."""
    return np.empty((_MOST_CORNERS, 2)), np.empty((_MOST_CORNERS, 2))


@numba.njit(cache=True, nogil=True)
def _bev_intersections(a: Float, b: Float) -> Float:
    """Return what :func:`bev_intersections` does, of float64 boxes."""
    result = np.zeros((len(a), len(b)))
    corners, clipped = clip_scratch()
    reach_a = np.hypot(a[:, 3], a[:, 4]) / 2
    for m in range(len(b)):
        reach_b = math.hypot(b[m, 3], b[m, 4]) / 2
        c, s = math.cos(b[m, 6]), math.sin(b[m, 6])
        for n in range(len(a)):
            x, y = a[n, 0] - b[m, 0], a[n, 1] - b[m, 1]
            reach = reach_a[n] + reach_b
            if x * x + y * y < reach * reach:
                result[n, m] = rectangles_share(
                    x * c + y * s,
                    y * c - x * s,
                    a[n, 6] - b[m, 6],
                    a[n, 3] / 2,
                    a[n, 4] / 2,
                    b[m, 3] / 2,
                    b[m, 4] / 2,
                    corners,
                    clipped,
                )
    return result


def _over_union(shared: Float, size_a: Float, size_b: Float) -> Float:
    """Return shared sizes (N, M) over those of the unions; 0 where that is 0."""
    union = size_a[:, None] + size_b[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _checked(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> tuple[Float, Float]:
    """Return both sets as contiguous float64."""
    for boxes in (a, b):
        if boxes.ndim != 2 or boxes.shape[1] != 7:
            raise DataError(f"boxes have the shape {boxes.shape}", expected="(N, 7)")
    return np.ascontiguousarray(a, dtype=np.float64), np.ascontiguousarray(b, dtype=np.float64)
