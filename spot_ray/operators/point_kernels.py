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
