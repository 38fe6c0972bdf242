"""The compiled steps of :mod:`spot_ray.operators.rings` that tell every point's ring, when the beams are found."""

from __future__ import annotations

import functools

import numba
import numpy as np
import numpy.typing as npt

_NEAR = 65535
"""The ring of a point that is too near to the sensor."""

_JOIN = 3
"""Beams beside another block that a point of it may seem to be of, seen from the wrong height."""

_CHUNK = 1024
"""Points that are told apart at a time: what is kept of them stays in the fastest cache."""


@functools.cache
def directions(size: int) -> npt.NDArray[np.float64]:
    """Return the (3, size) cos α, sin α and τ in the middle of the entries that :func:`nearest_rings` looks up.

    It counts directions by y / (|x| + |y|), which needs no arc tangent: from -x over -y, x and y round to -x.
    """
    place = (np.arange(size) + 0.5) * (4 / size) - 2
    ahead = np.abs(place) <= 1
    side = np.where(ahead, place, np.sign(place) * (2 - np.abs(place)))
    azimuth = np.arctan2(side, np.where(ahead, 1, -1) * (1 - np.abs(side)))
    return np.stack([np.cos(azimuth), np.sin(azimuth), azimuth / (2 * np.pi)])


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def nearest_rings(xyz, lidar_SE3_ego, shift, tilt, height, tangent, first, ring, step, nearest_m):  # type: ignore[no-untyped-def]
    """Return the (N,) uint16 ring of each point: that of the nearest beam; 65535 for a point that is too near.

    Args:
        xyz: (N, 3) float32, ego frame.
        lidar_SE3_ego: (4, 4) float64.
        shift: (A,) float32 shift of the origin towards each of the :func:`directions`, metres.
        tilt: (A,) float32 tilt in each direction.
        height: (K,) heights of the blocks' origins.
        tangent: (B,) beams, ascending.
        first: (K + 1,) first beam of each block, and B.
        ring: (B,) uint16 ring number of each beam.
        step: Step of the table over tan θ.
        nearest_m: Horizontal distance below which a point is too near.
    """
    blocks = len(height)
    low = tangent[0] - 0.1
    size = int((tangent[-1] - low) / step) + 2
    table = np.empty((blocks, size), np.uint16)
    for k in range(blocks):
        b = first[k]
        for i in range(size):
            t = low + (i + 0.5) * step
            while b + 1 < first[k + 1] and tangent[b] + tangent[b + 1] < 2.0 * t:
                b += 1
            table[k, i] = b
    inner_low, inner_high = first[:-1] + _JOIN, first[1:] - _JOIN
    inner_low[0], inner_high[-1] = 0, len(tangent)
    m = lidar_SE3_ego.astype(np.float32)
    beams, heights = tangent.astype(np.float32), height.astype(np.float32)
    low32, per_step, last = np.float32(low), np.float32(1.0 / step), np.float32(size - 1)
    quarter, final = np.float32(len(shift) / 4), np.float32(len(shift) - 1)
    near = np.float32(nearest_m * nearest_m)
    zero, one, two = np.float32(0.0), np.float32(1.0), np.float32(2.0)
    result = np.empty(len(xyz), np.uint16)
    us, ws, squares = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32)
    entries = np.empty(_CHUNK, np.int32)
    for start in range(0, len(xyz), _CHUNK):
        count = min(_CHUNK, len(xyz) - start)
        # A loop of its own without branches, which the compiler turns into vector instructions.
        for j in range(count):
            px, py, pz = xyz[start + j, 0], xyz[start + j, 1], xyz[start + j, 2]
            x = m[0, 0] * px + m[0, 1] * py + m[0, 2] * pz + m[0, 3]
            y = m[1, 0] * px + m[1, 1] * py + m[1, 2] * pz + m[1, 3]
            z = m[2, 0] * px + m[2, 1] * py + m[2, 2] * pz + m[2, 3]
            square = max(x * x + y * y, np.float32(1e-12))
            u = one / np.sqrt(square)
            side = y / (abs(x) + abs(y) + np.float32(1e-12))
            turned = (two if y >= zero else -two) - side
            place = ((turned if x < zero else side) + two) * quarter
            entries[j] = np.int32(min(place, final))
            squares[j], us[j], ws[j] = square, u, z * u
        for j in range(count):
            if squares[j] < near:
                result[start + j] = _NEAR
                continue
            u, w, a = us[j], ws[j], entries[j]
            level = w + w * u * shift[a] - (one + w * w) * tilt[a]
            closest = np.float32(np.inf)
            for k in range(blocks):
                t = level - heights[k] * u
                b = table[k, np.int32(max(min((t - low32) * per_step, last), zero))]
                if inner_low[k] <= b < inner_high[k]:
                    result[start + j] = ring[b]
                    break
                away = abs(t - beams[b])
                if away < closest:
                    closest = away
                    result[start + j] = ring[b]
    return result


@numba.njit(cache=True, nogil=True)
def fill_near(ring, num_beams):  # type: ignore[no-untyped-def]
    """Replace the rings of points that were too near by what their place between others tells, in place.

    Args:
        ring: (N,) uint16 in file order, 65535 where too near.
        num_beams: Number of beams.
    """
    i = 0
    while i < len(ring):
        if ring[i] != _NEAR:
            i += 1
            continue
        until = i
        while until < len(ring) and ring[until] == _NEAR:
            until += 1
        before = int(ring[i - 1]) if i > 0 else -1
        after = int(ring[until]) if until < len(ring) else -1
        way = 0
        if before >= 0 and after >= 0:
            places = until - i + 1
            if (after - before - places) % num_beams == 0:
                way = 1
            elif (after - before + places) % num_beams == 0:
                way = -1
        start = before if before >= 0 else max(after, 0)
        for j in range(i, until):
            ring[j] = (start + way * (j - i + 1)) % num_beams
        i = until
