"""Surfaces between scan lines: places where neighbouring points on both sides lie in one plane, or on one line.

In voxel space, without a mesh: for each block of cells the spread of the points around it tells whether they form a
plane or a line; if so, and if there are points on opposite sides, the piece within the block is filled with points. So
a wall is closed between two scan lines, and does not grow beyond the last one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.occupancy.cloud import Cloud
from spot_ray.schema.taxonomy import IGNORE

_BLOCK = 4
"""Cells of the cloud along a block's edge."""

_REACH = 2
"""Blocks on each side that count as a block's neighbourhood."""

_FULL = 10
"""Points of a block that need no more: a plane through it holds about `_BLOCK`²."""

_FEWEST = 4
"""Points of a neighbourhood from which a plane or a line is told."""

_THIN = 1.8
"""A plane's points lie this close to it (one standard deviation), in cells."""

_SECTORS = 8


@dataclass(frozen=True, eq=False)
class Patches:
    """Points that fill surfaces.

    Args:
        xyz: (M, 3) float32, metres; each stands for as much surface as one cell of the cloud.
        label: (M,) uint8 class, or 255.
    """

    xyz: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint8]

    @classmethod
    def none(cls) -> Patches:
        """Return no points."""
        return cls(np.zeros((0, 3), np.float32), np.zeros(0, np.uint8))

    def joined(self, other: Patches) -> Patches:
        """Return these points and others."""
        return Patches(np.concatenate([self.xyz, other.xyz]), np.concatenate([self.label, other.label]))


def complete_object(cloud: Cloud, *, mirror: bool) -> Patches:
    """Fill the gaps of an object, and give it the side that no ray reached.

    Vehicles, cyclists and people are much alike on both sides, and a LiDAR mostly sees one.

    Args:
        cloud: Its points, in the frame of its box; they are not repeated.
        mirror: Whether to add its points mirrored, y to -y, before gaps are filled.
    """
    if not mirror:
        return fill_surfaces(cloud)
    other = Patches(cloud.xyz * np.array([1, -1, 1], np.float32), cloud.label)
    both = Patches(cloud.xyz, cloud.label).joined(other)
    return other.joined(_fill_surfaces(both.xyz, both.label, cloud.cell_m))


def fill_surfaces(cloud: Cloud) -> Patches:
    """Fill the gaps of a cloud's surfaces.

    Args:
        cloud: The cloud; its own points are not repeated.
    """
    return _fill_surfaces(cloud.xyz, cloud.label, cloud.cell_m)


def _fill_surfaces(points: npt.NDArray[np.float32], point_label: npt.NDArray[np.uint8], cell_m: float) -> Patches:
    if len(points) < _FEWEST:
        return Patches.none()
    edge = cell_m * _BLOCK
    block = np.floor(points / edge).astype(np.int64)
    low = block.min(axis=0) - _REACH - 1
    shape = block.max(axis=0) - low + _REACH + 2
    linear = ((block[:, 0] - low[0]) * shape[1] + block[:, 1] - low[1]) * shape[2] + block[:, 2] - low[2]
    order = np.argsort(linear, kind="stable")
    starts = np.flatnonzero(np.diff(linear[order], prepend=-1))
    place = linear[order][starts]
    xyz = (points[order].astype(np.float64) - low * edge) / cell_m
    moments = _moments(xyz, starts)
    label = _majority(point_label[order], starts)
    directory = np.full(int(np.prod(shape)), -1, np.int32)
    directory[place] = np.arange(len(place), dtype=np.int32)
    filled, filled_label = _fill(directory, shape, place, moments, label)
    return Patches(((filled * cell_m) + low * edge).astype(np.float32), filled_label)


def _moments(xyz: npt.NDArray[np.float64], starts: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Return (B, 10): count, sums of x, y, z, sums of xx, xy, xz, yy, yz, zz of each block's points."""
    x, y, z = xyz.T
    columns = np.stack([np.ones(len(xyz)), x, y, z, x * x, x * y, x * z, y * y, y * z, z * z], axis=1)
    return np.add.reduceat(columns, starts, axis=0)


@numba.njit(cache=True, nogil=True)
def _majority(label: npt.NDArray[np.uint8], starts: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
    """Return each block's most frequent class; 255 only where it has no other."""
    result = np.full(len(starts), IGNORE, np.uint8)
    votes = np.zeros(256, np.int32)
    for b in range(len(starts)):
        end = starts[b + 1] if b + 1 < len(starts) else len(label)
        best = 0
        for n in range(starts[b], end):
            if label[n] != IGNORE:
                votes[label[n]] += 1
        for n in range(starts[b], end):
            if label[n] != IGNORE and (votes[label[n]] > best or (votes[label[n]] == best and label[n] < result[b])):
                best = votes[label[n]]
                result[b] = label[n]
        for n in range(starts[b], end):
            votes[label[n]] = 0
    return result


@numba.njit(cache=True, nogil=True)
def _eigen(c, vectors, values):  # type: ignore[no-untyped-def]
    """Find the eigenvalues, ascending, and eigenvectors (columns) of a symmetric 3 × 3 matrix by Jacobi rotations."""
    a = c.copy()
    v = np.eye(3)
    for _ in range(6):
        for p, q in ((0, 1), (0, 2), (1, 2)):
            if abs(a[p, q]) < 1e-12:
                continue
            theta = (a[q, q] - a[p, p]) / (2.0 * a[p, q])
            t = (1.0 if theta >= 0 else -1.0) / (abs(theta) + np.sqrt(theta * theta + 1.0))
            cs = 1.0 / np.sqrt(t * t + 1.0)
            sn = t * cs
            for k in range(3):
                akp, akq = a[k, p], a[k, q]
                a[k, p], a[k, q] = cs * akp - sn * akq, sn * akp + cs * akq
            for k in range(3):
                apk, aqk = a[p, k], a[q, k]
                a[p, k], a[q, k] = cs * apk - sn * aqk, sn * apk + cs * aqk
            for k in range(3):
                vkp, vkq = v[k, p], v[k, q]
                v[k, p], v[k, q] = cs * vkp - sn * vkq, sn * vkp + cs * vkq
    order = np.argsort(np.array([a[0, 0], a[1, 1], a[2, 2]]))
    for k in range(3):
        values[k] = a[order[k], order[k]]
        for r in range(3):
            vectors[r, k] = v[r, order[k]]


@numba.njit(cache=True, nogil=True)
def _fill(directory, shape, place, moments, label):  # type: ignore[no-untyped-def]
    """Visit every block near points, and return the points that fill it and their classes."""
    stride = np.array([shape[1] * shape[2], shape[2], 1])
    capacity = 1 << 16
    out = np.empty((capacity, 3))
    out_label = np.empty(capacity, np.uint8)
    used = 0
    visited = np.zeros((len(directory) + 7) // 8, np.uint8)
    vectors, values = np.empty((3, 3)), np.empty(3)
    total = np.empty(10)
    covariance = np.empty((3, 3))
    near = np.empty((2 * _REACH + 1) ** 3, np.int32)
    for b in range(len(place)):
        for dx in range(-1, 2):
            for dy in range(-1, 2):
                for dz in range(-1, 2):
                    here = place[b] + dx * stride[0] + dy * stride[1] + dz
                    if visited[here >> 3] >> (here & 7) & 1:
                        continue
                    visited[here >> 3] |= np.uint8(1 << (here & 7))
                    own = directory[here]
                    if own >= 0 and moments[own, 0] >= _FULL:
                        continue
                    # The neighbourhood's points, and how they are spread.
                    total[:] = 0.0
                    num_near = 0
                    for ax in range(-_REACH, _REACH + 1):
                        for ay in range(-_REACH, _REACH + 1):
                            for az in range(-_REACH, _REACH + 1):
                                block = directory[here + ax * stride[0] + ay * stride[1] + az]
                                if block >= 0:
                                    near[num_near] = block
                                    num_near += 1
                                    for k in range(10):
                                        total[k] += moments[block, k]
                    if total[0] < _FEWEST:
                        continue
                    mean = total[1:4] / total[0]
                    m = 4
                    for p in range(3):
                        for q in range(p, 3):
                            covariance[p, q] = total[m] / total[0] - mean[p] * mean[q]
                            covariance[q, p] = covariance[p, q]
                            m += 1
                    _eigen(covariance, vectors, values)
                    thin = _THIN * _THIN
                    corner = np.array(
                        [
                            float(here // stride[0] * _BLOCK),
                            float(here // stride[1] % shape[1] * _BLOCK),
                            float(here % shape[2] * _BLOCK),
                        ]
                    )
                    is_line = values[1] < thin
                    if not is_line and values[0] >= thin:
                        continue
                    if used + _BLOCK * _BLOCK > capacity:
                        capacity *= 2
                        grown, grown_label = np.empty((capacity, 3)), np.empty(capacity, np.uint8)
                        grown[:used], grown_label[:used] = out[:used], out_label[:used]
                        out, out_label = grown, grown_label
                    sides, nearest = _sides(
                        near[:num_near], moments, label, corner + _BLOCK / 2, mean, vectors, is_line
                    )
                    if is_line:
                        if sides[0] and sides[1]:
                            used = _add_line(out, out_label, used, corner, mean, vectors[:, 2], nearest)
                    else:
                        across = False
                        for k in range(_SECTORS // 2):
                            across = across or (sides[k] and sides[k + _SECTORS // 2])
                        if across:
                            used = _add_plane(out, out_label, used, corner, mean, vectors[:, 0], nearest)
    return out[:used], out_label[:used]


@numba.njit(cache=True, nogil=True)
def _sides(near, moments, label, centre, mean, vectors, is_line):  # type: ignore[no-untyped-def]
    """Tell on which sides of a block there are points of its surface, and the class of the nearest block with one.

    For a line the sides are before and after; for a plane they are the sectors of a circle within it.
    """
    sides = np.zeros(_SECTORS, np.bool_)
    nearest, nearest_label = np.inf, np.uint8(IGNORE)
    for n in range(len(near)):
        block = near[n]
        place = moments[block, 1:4] / moments[block, 0]
        d = place - mean
        off = d[0] * vectors[0, 0] + d[1] * vectors[1, 0] + d[2] * vectors[2, 0]
        if abs(off) > 2 * _THIN:
            continue
        e = place - centre
        u = e[0] * vectors[0, 2] + e[1] * vectors[1, 2] + e[2] * vectors[2, 2]
        v = e[0] * vectors[0, 1] + e[1] * vectors[1, 1] + e[2] * vectors[2, 1]
        distance = e[0] * e[0] + e[1] * e[1] + e[2] * e[2]
        if label[block] != IGNORE and distance < nearest:
            nearest, nearest_label = distance, label[block]
        if is_line:
            sides[0] |= u < -1.0
            sides[1] |= u > 1.0
        elif u * u + v * v > 1.0:
            angle = np.arctan2(v, u) / (2 * np.pi) * _SECTORS
            sides[int(np.floor(angle + 0.5)) % _SECTORS] = True
    return sides, nearest_label


@numba.njit(cache=True, nogil=True)
def _add_plane(out, out_label, used, corner, mean, normal, label):  # type: ignore[no-untyped-def]
    """Add a point a cell of the plane's piece within the block."""
    main = 0
    for k in range(1, 3):
        if abs(normal[k]) > abs(normal[main]):
            main = k
    a, b = (main + 1) % 3, (main + 2) % 3
    for i in range(_BLOCK):
        for j in range(_BLOCK):
            pa, pb = corner[a] + i + 0.5, corner[b] + j + 0.5
            pm = mean[main] - (normal[a] * (pa - mean[a]) + normal[b] * (pb - mean[b])) / normal[main]
            if corner[main] <= pm < corner[main] + _BLOCK:
                out[used, a], out[used, b], out[used, main] = pa, pb, pm
                out_label[used] = label
                used += 1
    return used


@numba.njit(cache=True, nogil=True)
def _add_line(out, out_label, used, corner, mean, direction, label):  # type: ignore[no-untyped-def]
    """Add a point a cell of the line's piece within the block."""
    main = 0
    for k in range(1, 3):
        if abs(direction[k]) > abs(direction[main]):
            main = k
    for i in range(_BLOCK):
        t = (corner[main] + i + 0.5 - mean[main]) / direction[main]
        inside = True
        for k in range(3):
            p = mean[k] + t * direction[k]
            out[used, k] = p
            inside = inside and corner[k] <= p < corner[k] + _BLOCK
        if inside:
            out_label[used] = label
            used += 1
    return used
