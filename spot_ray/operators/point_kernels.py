"""Compiled loops over the points of a sample: each point is read once and written once.

A module of its own, imported when the first sample is worked on, since importing numba takes a quarter of a second.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

_BLOCK = 1024
"""Points at a time: their rows stay in the first cache until the last feature is in."""


@numba.njit(cache=True, nogil=True)
def move_points(xyz: npt.NDArray[np.float32], matrix: npt.NDArray[np.float64], moved: npt.NDArray[np.float32]) -> None:
    """Multiply x and y by a matrix, in float64, rounded once; z stays.

    Args:
        xyz: (N, 3) float32 points.
        matrix: (2, 2) float64.
        moved: (N, 3) float32, filled.
    """
    xx, xy, yx, yy = matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1]
    for i in range(len(xyz)):
        x, y = np.float64(xyz[i, 0]), np.float64(xyz[i, 1])
        moved[i, 0] = xx * x + xy * y
        moved[i, 1] = yx * x + yy * y
        moved[i, 2] = xyz[i, 2]


@numba.njit(cache=True, nogil=True)
def mark_in_image(
    xyz: npt.NDArray[np.float32],
    image_from_ego: npt.NDArray[np.float64],
    width: float,
    height: float,
    seen: npt.NDArray[np.bool_],
) -> None:
    """Mark the points that lie in a camera's image, in front of it.

    Args:
        xyz: (N, 3) float32 points.
        image_from_ego: (3, 4) float64: (u · d, v · d, d) = matrix · (x, y, z, 1), with the depth d in metres.
        width: Of the image, pixels.
        height: Of the image, pixels.
        seen: (N,) bool, filled.
    """
    m = image_from_ego
    for i in range(len(xyz)):
        x, y, z = np.float64(xyz[i, 0]), np.float64(xyz[i, 1]), np.float64(xyz[i, 2])
        depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
        u = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
        v = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
        seen[i] = depth > 0 and 0 <= u < width * depth and 0 <= v < height * depth


@numba.njit(cache=True, nogil=True)
def interleave(xyz: npt.NDArray[np.float32], others: npt.NDArray[np.float32], points: npt.NDArray[np.float32]) -> None:
    """Put coordinates and columns together, point by point.

    Args:
        xyz: (N, 3) float32.
        others: (K, N) float32 columns.
        points: (N, 3 + K) float32, filled.
    """
    for start in range(0, len(xyz), _BLOCK):
        # Slices: an index that is counted from 0 needs no check for a negative one.
        part, rows = xyz[start : start + _BLOCK], points[start : start + _BLOCK]
        for i in range(len(rows)):
            rows[i, 0] = part[i, 0]
            rows[i, 1] = part[i, 1]
            rows[i, 2] = part[i, 2]
        for k in range(len(others)):
            column = others[k, start : start + _BLOCK]
            for i in range(len(rows)):
                rows[i, 3 + k] = column[i]
