"""Compiled loops that undo :mod:`spot_ray.storage.blobs`: what NumPy does in a dozen passes over memory, in one or two.

A module of its own, since importing numba takes a quarter of a second, which a machine that only writes never pays.
Blocks of points are put together where the cache is nearest; only the result goes out to memory. Differences are summed
as int32, which wrap around as NumPy's do, so that damaged bytes give the same numbers on every machine.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_BLOCK = 1024
"""Points at a time: their 12 KiB of steps stay in the first cache."""


@numba.njit(cache=True, nogil=True)
def join_planes(planes: npt.NDArray[np.uint8], shift: int, numbers: npt.NDArray[Any]) -> None:
    """Put unsigned numbers together from their byte planes.

    Args:
        planes: (width, N) uint8, the lowest byte first.
        shift: Bits to move the numbers up by.
        numbers: (N,) uint8, uint16, uint32 or uint64, filled: of at least 8 · width + shift bits.
    """
    width, count = planes.shape
    unsigned = numbers.dtype.type
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        part = numbers[start:stop]
        for byte in range(width):
            plane, up = planes[byte, start:stop], unsigned(shift + 8 * byte)
            if byte == 0:
                for i in range(len(part)):
                    part[i] = unsigned(plane[i]) << up
            else:
                for i in range(len(part)):
                    part[i] |= unsigned(plane[i]) << up


@numba.njit(cache=True, nogil=True)
def sum_steps(planes: npt.NDArray[np.uint8], scale: np.float32, xyz: npt.NDArray[np.float32]) -> None:
    """Add up differences of steps to coordinates.

    Args:
        planes: (width, 3, N) uint8 byte planes of zigzag-coded differences between neighbours, the lowest byte first.
        scale: Metres a step.
        xyz: (N, 3) float32 metres, filled.
    """
    width, _, count = planes.shape
    zigzag = np.empty((3, _BLOCK), np.uint32)
    one = np.uint32(1)
    x, y, z = np.int32(0), np.int32(0), np.int32(0)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        for axis in range(3):
            part = zigzag[axis, : stop - start]
            for byte in range(width):
                plane, up = planes[byte, axis, start:stop], np.uint32(8 * byte)
                if byte == 0:
                    for i in range(len(part)):
                        part[i] = plane[i]
                else:
                    for i in range(len(part)):
                        part[i] |= np.uint32(plane[i]) << up
            for i in range(len(part)):
                part[i] = (part[i] >> one) ^ (np.uint32(0) - (part[i] & one))
        points = xyz[start:stop]
        for i in range(len(points)):
            x = np.int32(x + np.int32(zigzag[0, i]))
            y = np.int32(y + np.int32(zigzag[1, i]))
            z = np.int32(z + np.int32(zigzag[2, i]))
            points[i, 0] = np.float32(x) * scale
            points[i, 1] = np.float32(y) * scale
            points[i, 2] = np.float32(z) * scale


@numba.njit(cache=True, nogil=True)
def undo_lanes(
    by_lane: npt.NDArray[np.float32], lane: npt.NDArray[np.unsignedinteger[Any]], xyz: npt.NDArray[np.float32]
) -> None:
    """Put points that lie lane by lane back into the order in which they were written.

    Within a lane they are in that order already: a place in each lane that moves on with every point finds them, and
    reads each lane from its beginning to its end.

    Args:
        by_lane: (N, 3) float32 points of the lowest lane first.
        lane: (N,) uint8 or uint16 lane of each point.
        xyz: (N, 3) float32, filled.
    """
    place = np.zeros((1 << (8 * lane.itemsize)) + 1, np.uint32)
    for i in range(len(lane)):
        place[np.uint32(lane[i]) + np.uint32(1)] += np.uint32(1)
    for n in range(1, len(place)):
        place[n] += place[n - 1]
    for i in range(len(lane)):
        n = place[lane[i]]
        place[lane[i]] = n + np.uint32(1)
        xyz[i, 0] = by_lane[n, 0]
        xyz[i, 1] = by_lane[n, 1]
        xyz[i, 2] = by_lane[n, 2]
