"""The compiled steps of :mod:`spot_ray.operators.beams`."""

from __future__ import annotations

import math

import numba
import numpy as np

KEPT, WRONG = 1, 2
"""What a table of rings may say of one; else 0."""


@numba.njit(cache=True, nogil=True)
def kept_points(ring, lidar_id, table):  # type: ignore[no-untyped-def]
    """Return the (K,) int64 indices of the points whose ring is `KEPT`, and whether one is `WRONG`.

    Args:
        ring: (N,) uint16, less than B.
        lidar_id: (N,) uint8.
        table: (256, B) uint8 by LiDAR and ring.
    """
    index = np.empty(len(ring), np.int64)
    count, seen = 0, 0
    # Without a branch: 0.5 ns a point.
    for i in range(len(ring)):
        state = table[lidar_id[i], ring[i]]
        index[count] = i
        count += state & KEPT
        seen |= state
    return index[:count], seen & WRONG != 0


@numba.njit(cache=True, nogil=True)
def take_rows(xyz, index):  # type: ignore[no-untyped-def]
    """Return the (K, 3) rows of an array: three times as fast as NumPy's own."""
    result = np.empty((len(index), 3), xyz.dtype)
    for i in range(len(index)):
        j = index[i]
        result[i, 0], result[i, 1], result[i, 2] = xyz[j, 0], xyz[j, 1], xyz[j, 2]
    return result


@numba.njit(cache=True, nogil=True)
def between(xyz, own, beam, lidar_SE3_ego, added, columns, nearest_m, step):  # type: ignore[no-untyped-def]
    """Return the points of new beams between those of a LiDAR.

    Points are put into a range image. From each point, up to the beam above, the one nearest in azimuth is sought, at
    most one and a half columns away. If both are of one surface, new points are put between them, so that their
    inclinations are even (in its tangent) and, of a plane, they are on the plane.

    Args:
        xyz: (N, 3) float32, ego frame.
        own: (P,) int64 indices of the points that may be used.
        beam: (P,) int64 their beams, counted from the lowest; -1 for none.
        lidar_SE3_ego: (4, 4) float64.
        added: (B - 1,) int64 new beams between a beam and the one above.
        columns: Columns of the range image.
        nearest_m: Horizontal distance below which points are not used.
        step: Largest relative difference in range of two points of one surface, or of one and where the surface that
            two points of one side make leads.

    Returns:
        (M, 3) float32 points, (M,) int64 the index of the point below, (M,) int64 of that above, (M,) float64 how far
        each is on the way from the one to the other, 0 to 1.
    """
    beams = len(added) + 1
    m = lidar_SE3_ego
    image = np.full((beams, columns), -1, np.int64)
    turn, range_m, slope = np.empty(len(own)), np.empty(len(own)), np.empty(len(own))
    per_column = columns / (2.0 * math.pi)
    for p in range(len(own)):
        x, y, z = np.float64(xyz[own[p], 0]), np.float64(xyz[own[p], 1]), np.float64(xyz[own[p], 2])
        ahead = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
        left = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
        up = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
        range_m[p] = math.sqrt(ahead * ahead + left * left)
        if beam[p] < 0 or range_m[p] < nearest_m:
            turn[p] = -1.0
            continue
        slope[p] = up / range_m[p]
        turn[p] = min((math.atan2(left, ahead) + math.pi) * per_column, columns - 1e-9)
        if image[beam[p], int(turn[p])] < 0:
            image[beam[p], int(turn[p])] = p
    most = 0
    for p in range(len(own)):
        if turn[p] >= 0.0 and beam[p] < beams - 1:
            most += added[beam[p]]
    points = np.empty((most, 3), np.float32)
    below, above, way = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most)
    count = 0
    for p in range(len(own)):
        if turn[p] < 0.0 or beam[p] >= beams - 1 or added[beam[p]] == 0:
            continue
        b = beam[p]
        q = _beside(image, turn, b + 1, turn[p], columns)
        if q < 0 or not slope[q] > slope[p]:
            continue
        if abs(range_m[q] - range_m[p]) > step * min(range_m[p], range_m[q]):
            under = _beside(image, turn, b - 1, turn[p], columns) if b > 0 else -1
            over = _beside(image, turn, b + 2, turn[p], columns) if b + 2 < beams else -1
            if not (_leads(range_m, slope, under, p, q, step) or _leads(range_m, slope, over, q, p, step)):
                continue
        for j in range(added[b]):
            even = (j + 1) / (added[b] + 1)
            # Along the line between the two, 1 / range is linear in the tangent of the inclination.
            part = even * range_m[p] / (range_m[q] * (1.0 - even) + range_m[p] * even)
            for axis in range(3):
                points[count, axis] = (1.0 - part) * xyz[own[p], axis] + part * xyz[own[q], axis]
            below[count], above[count], way[count] = own[p], own[q], part
            count += 1
    return points[:count], below[:count], above[:count], way[:count]


@numba.njit(cache=True, nogil=True, inline="always")
def _beside(image, turn, beam, at, columns):  # type: ignore[no-untyped-def]
    """Return the point of a beam that is nearest in azimuth, within one and a half columns, or -1."""
    best, nearest = -1, 1.5
    for by in range(-1, 2):
        p = image[beam, (int(at) + by) % columns]
        if p >= 0:
            away = abs(turn[p] - at)
            away = min(away, columns - away)
            if away < nearest:
                best, nearest = p, away
    return best


@numba.njit(cache=True, nogil=True, inline="always")
def _leads(range_m, slope, first, second, third, step):  # type: ignore[no-untyped-def]
    """Tell whether the line through two points leads to the third: on it, 1 / range is linear in the slope."""
    if first < 0 or slope[second] == slope[first]:
        return False
    inverse = 1.0 / range_m[second]
    rise = (inverse - 1.0 / range_m[first]) / (slope[second] - slope[first])
    expected = inverse + rise * (slope[third] - slope[second])
    # Twice as far at most: a line that leads to the horizon leads anywhere.
    return expected > 0.5 * inverse and abs(expected * range_m[third] - 1.0) <= step
