"""Which points of a sweep are ground, from geometry alone: for sources that label no points.

A surface is grown from the vehicle outwards over square patches, in the manner of Himmelsbach et al., "Fast
Segmentation of 3D Point Clouds for Ground Vehicles" (IV 2010), Patchwork++ (IROS 2022) and GroundGrid (T-IV 2024).
Where the ground of a patch may lie is predicted from the ground nearer to the vehicle, so that neither reflections
from below nor the roofs of cars start a surface of their own. What it takes for an obstacle: banks steeper than 25 %
whose foot is hidden.
"""

from __future__ import annotations

import functools
import math

import numba
import numpy as np
import numpy.typing as npt

REACH_M = 100.0
"""Points farther than this from the vehicle along x or y are never called ground."""

_PATCH_M = 2.0
_NUM_PATCHES = int(2 * REACH_M / _PATCH_M)
_CELLS = 4
_CELL_M = _PATCH_M / _CELLS
"""A patch has a plane, and each of its 4 × 4 cells a height of its own: a kerb is a step from cell to cell."""

_SEED_REACH_M = 8.0
_SEED_HEIGHT_M = 0.5
_SEED_SLOPE = 0.1
"""The tilt of the vehicle and the errors of its height and of the road's: what lies within may be ground near it."""
_SEED_BANDS_M = ((1.0, 1.0), (0.5, 0.3), (0.3, 0.2), (0.2, 0.15), (0.15, 0.1), (0.15, 0.1))
"""(below, above) the plane, round by round; narrower above, since what stands on the ground lies there."""

_WIDEST_WINDOW = 9
"""Patches to each side whose ground may predict a patch: as far as two rings of 32 beams lie apart at 45 m."""
_ENOUGH_CELLS = 8
_SLOPE_WEIGHT_M2 = 4.0
"""The slope known before counts as much as cells whose squared distances from their middle sum to this."""
_MOST_SLOPE = 0.25

_UP_M, _UP_SLOPE, _MOST_UP_M = 0.15, 0.05, 0.7
_DOWN_M, _DOWN_SLOPE, _MOST_DOWN_M = 0.25, 0.1, 1.0
"""How far the ground may lie over or under the prediction, by the distance to what it is predicted from: obstacles are
above, and only rare reflections below."""

_STEP_M = 0.2
"""How far a cell may lie from the plane of its patch: kerbs, lawns."""
_THICKNESS_M = 0.1
"""How far points may lie from the lowest of their cell: range noise, grass."""
_KERB_M = 0.3
_KERB_NOISE_M = 0.06
"""In a cell on a kerb, points up to the first are ground if they lie within the second of a neighbour's height."""

_Float = npt.NDArray[np.float64]
_Index = npt.NDArray[np.int32]
_Points = npt.NDArray[np.float32]


def ground_mask(xyz: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Find the points on the ground.

    The vehicle may be tilted by some degrees against the road, the road may climb by 15 % and bend; pavements and their
    kerbs are ground.

    Args:
        xyz: (N, 3) points of one sweep, metres, ego frame: z = 0 nominally on the ground under the vehicle.

    Returns:
        (N,) bool; False beyond `REACH_M`.
    """
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise ValueError(f"xyz has the shape {xyz.shape}, expected (N, 3)")
    points = np.ascontiguousarray(xyz, dtype=np.float32)
    first, member = _sort_by_patch(points)
    lowest, planes = _grow(points, first, member, *_outwards())
    result: npt.NDArray[np.bool_] = _near_surface(points, member, lowest, planes)
    return result


@functools.cache
def _outwards() -> tuple[_Index, _Index]:
    """Return the patches from the vehicle outwards, and a window's (x, y, ring) offsets, ring by ring."""
    x, y = np.divmod(np.arange(_NUM_PATCHES**2), _NUM_PATCHES)
    middle = (_NUM_PATCHES - 1) / 2
    order = np.argsort((x - middle) ** 2 + (y - middle) ** 2, kind="stable")
    side = np.arange(-_WIDEST_WINDOW, _WIDEST_WINDOW + 1)
    offset = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    window = np.concatenate([offset, np.abs(offset).max(axis=1, keepdims=True)], axis=1)
    return order.astype(np.int32), window[np.argsort(window[:, 2], kind="stable")].astype(np.int32)


@numba.njit(cache=True, nogil=True)
def _sort_by_patch(xyz: _Points) -> tuple[_Index, _Index]:
    """Return `first` (P + 1) and `member`: the points of patch p are `member[first[p] : first[p + 1]]`."""
    patch = np.full(len(xyz), -1, np.int32)
    first = np.zeros(_NUM_PATCHES * _NUM_PATCHES + 1, np.int32)
    for i in range(len(xyz)):
        x, y = (xyz[i, 0] + REACH_M) / _PATCH_M, (xyz[i, 1] + REACH_M) / _PATCH_M
        if 0.0 <= x < _NUM_PATCHES and 0.0 <= y < _NUM_PATCHES:
            patch[i] = int(x) * _NUM_PATCHES + int(y)
            first[patch[i] + 1] += 1
    for p in range(len(first) - 1):
        first[p + 1] += first[p]
    member = np.empty(first[-1], np.int32)
    end = first[:-1].copy()
    for i in range(len(xyz)):
        if patch[i] >= 0:
            member[end[patch[i]]] = i
            end[patch[i]] += 1
    return first, member


@numba.njit(cache=True, nogil=True, inline="always")
def _add(moments: _Float, x: float, y: float, z: float) -> None:
    """Add a point to the moments that a plane is fitted to."""
    moments[0] += 1.0
    moments[1] += x
    moments[2] += y
    moments[3] += z
    moments[4] += x * x
    moments[5] += x * y
    moments[6] += y * y
    moments[7] += x * z
    moments[8] += y * z


@numba.njit(cache=True, nogil=True)
def _fit(moments: _Float, x: float, y: float, slope_x: float, slope_y: float) -> tuple[float, float, float, float]:
    """Return a plane's height at (x, y), its slopes, and the distance from (x, y) to the middle of the points.

    The given slopes are what is known before: they fill in across the points' spread.
    """
    n = moments[0]
    mean_x, mean_y, mean_z = moments[1] / n, moments[2] / n, moments[3] / n
    xx = moments[4] - n * mean_x * mean_x + _SLOPE_WEIGHT_M2
    xy = moments[5] - n * mean_x * mean_y
    yy = moments[6] - n * mean_y * mean_y + _SLOPE_WEIGHT_M2
    xz = moments[7] - n * mean_x * mean_z + _SLOPE_WEIGHT_M2 * slope_x
    yz = moments[8] - n * mean_y * mean_z + _SLOPE_WEIGHT_M2 * slope_y
    determinant = xx * yy - xy * xy
    slope_x = (xz * yy - yz * xy) / determinant
    slope_y = (yz * xx - xz * xy) / determinant
    too_steep = max(math.hypot(slope_x, slope_y) / _MOST_SLOPE, 1.0)
    slope_x, slope_y = slope_x / too_steep, slope_y / too_steep
    dx, dy = x - mean_x, y - mean_y
    return mean_z + slope_x * dx + slope_y * dy, slope_x, slope_y, math.hypot(dx, dy)


@numba.njit(cache=True, nogil=True)
def _seed_plane(xyz: _Points) -> tuple[float, float, float]:
    """Return the height and slopes, at the origin, of a plane through the lowest points near the vehicle."""
    n = int(2 * _SEED_REACH_M / _CELL_M)
    low = np.full((n, n), np.inf)
    for i in range(len(xyz)):
        x, y, z = xyz[i, 0], xyz[i, 1], xyz[i, 2]
        if abs(x) < _SEED_REACH_M and abs(y) < _SEED_REACH_M:
            cx, cy = int((x + _SEED_REACH_M) / _CELL_M), int((y + _SEED_REACH_M) / _CELL_M)
            if abs(z) < _SEED_HEIGHT_M + _SEED_SLOPE * math.hypot(x, y):
                low[cx, cy] = min(low[cx, cy], z)
    height, slope_x, slope_y = 0.0, 0.0, 0.0
    for below, above in _SEED_BANDS_M:
        moments = np.zeros(9)
        for cx in range(n):
            for cy in range(n):
                x, y = (cx + 0.5) * _CELL_M - _SEED_REACH_M, (cy + 0.5) * _CELL_M - _SEED_REACH_M
                if -below < low[cx, cy] - (height + slope_x * x + slope_y * y) < above:
                    _add(moments, x, y, low[cx, cy])
        if moments[0] > 0.0:
            height, slope_x, slope_y, _ = _fit(moments, 0.0, 0.0, slope_x, slope_y)
    return height, slope_x, slope_y


@numba.njit(cache=True, nogil=True)
def _grow(xyz: _Points, first: _Index, member: _Index, order: _Index, window: _Index) -> tuple[_Index, _Float]:
    """Return the surface: for each cell the point that is its ground, or -1, and for each patch its moments.

    Behind the moments of a patch's ground stand its slopes, times the number of its cells, so that all of it adds up.
    """
    n = _NUM_PATCHES
    seed, seed_x, seed_y = _seed_plane(xyz)
    lowest = np.full((n * _CELLS, n * _CELLS), -1, np.int32)
    planes = np.zeros((n, n, 11))
    nearby = np.empty(11)
    for p in order:
        members = member[first[p] : first[p + 1]]
        if len(members) == 0:
            continue
        px, py = p // n, p % n
        x, y = (px + 0.5) * _PATCH_M - REACH_M, (py + 0.5) * _PATCH_M - REACH_M
        _gather(planes, window, px, py, nearby)
        if nearby[0] > 0.0:
            height, slope_x, slope_y, away = _fit(nearby, x, y, nearby[9] / nearby[0], nearby[10] / nearby[0])
        else:
            height, slope_x, slope_y = seed + seed_x * x + seed_y * y, seed_x, seed_y
            away = math.hypot(x, y)
        cells = lowest[px * _CELLS : (px + 1) * _CELLS, py * _CELLS : (py + 1) * _CELLS]
        _settle(xyz, members, (x, y, height, slope_x, slope_y), away, cells, planes[px, py])
    return lowest, planes


@numba.njit(cache=True, nogil=True)
def _gather(planes: _Float, window: _Index, px: int, py: int, nearby: _Float) -> None:
    """Sum up the moments around a patch, ring by ring until there are enough cells; nearer rings weigh more."""
    n = _NUM_PATCHES
    nearby[:] = 0.0
    cells = 0.0
    ring = 0
    for j in range(len(window)):
        if window[j, 2] > ring:
            if cells >= _ENOUGH_CELLS:
                break
            ring = window[j, 2]
        qx, qy = px + window[j, 0], py + window[j, 1]
        if 0 <= qx < n and 0 <= qy < n and planes[qx, qy, 0] > 0.0:
            cells += planes[qx, qy, 0]
            weight = 1.0 / (1.0 + ring) ** 2
            for t in range(11):
                nearby[t] += weight * planes[qx, qy, t]


@numba.njit(cache=True, nogil=True)
def _settle(
    xyz: _Points,
    members: _Index,
    predicted: tuple[float, float, float, float, float],
    away: float,
    cells: _Index,
    plane: _Float,
) -> None:
    """Find the ground of one patch: fill in its `cells` (the ground's point, or stays -1) and its `plane`."""
    x, y, height, slope_x, slope_y = predicted
    up = min(_UP_M + _UP_SLOPE * away, _MOST_UP_M)
    down = min(_DOWN_M + _DOWN_SLOPE * away, _MOST_DOWN_M)
    # The lowest point of each cell that is not too low to be ground, as heights over the predicted plane.
    low = np.full((_CELLS, _CELLS), np.inf)
    for i in members:
        dx, dy = xyz[i, 0] - x, xyz[i, 1] - y
        cx, cy = (
            min(int((dx + _PATCH_M / 2) / _CELL_M), _CELLS - 1),
            min(int((dy + _PATCH_M / 2) / _CELL_M), _CELLS - 1),
        )
        over = xyz[i, 2] - (height + slope_x * dx + slope_y * dy)
        if -down <= over < low[cx, cy]:
            low[cx, cy] = over
            cells[cx, cy] = i
    # The patch's own plane, relative to the predicted one, through the cells that obstacles do not fill.
    own, own_x, own_y = 0.0, 0.0, 0.0
    for most in (up, _STEP_M, 0.6 * _STEP_M, _STEP_M):
        moments = np.zeros(9)
        for cx in range(_CELLS):
            for cy in range(_CELLS):
                if cells[cx, cy] >= 0:
                    dx, dy = xyz[cells[cx, cy], 0] - x, xyz[cells[cx, cy], 1] - y
                    if low[cx, cy] - (own + own_x * dx + own_y * dy) <= most:
                        _add(moments, dx, dy, low[cx, cy])
        if moments[0] == 0.0:
            cells[:] = -1
            return
        own, own_x, own_y, _ = _fit(moments, 0.0, 0.0, 0.0, 0.0)
    for cx in range(_CELLS):
        for cy in range(_CELLS):
            i = cells[cx, cy]
            if i >= 0:
                if abs(low[cx, cy] - (own + own_x * (xyz[i, 0] - x) + own_y * (xyz[i, 1] - y))) <= _STEP_M:
                    _add(plane, xyz[i, 0], xyz[i, 1], xyz[i, 2])
                else:
                    cells[cx, cy] = -1
    plane[9], plane[10] = plane[0] * (slope_x + own_x), plane[0] * (slope_y + own_y)


@numba.njit(cache=True, nogil=True)
def _near_surface(xyz: _Points, member: _Index, lowest: _Index, planes: _Float) -> npt.NDArray[np.bool_]:
    """Return the (N,) mask of the points that lie on the surface."""
    result = np.zeros(len(xyz), np.bool_)
    most = len(lowest) - 1
    for i in member:  # patch by patch, which the cache likes
        cx, cy = min(int((xyz[i, 0] + REACH_M) / _CELL_M), most), min(int((xyz[i, 1] + REACH_M) / _CELL_M), most)
        j = lowest[cx, cy]
        if j < 0:
            continue
        plane = planes[cx // _CELLS, cy // _CELLS]
        slope_x, slope_y = plane[9] / plane[0], plane[10] / plane[0]
        over = xyz[i, 2] - xyz[j, 2] - slope_x * (xyz[i, 0] - xyz[j, 0]) - slope_y * (xyz[i, 1] - xyz[j, 1])
        if abs(over) <= _THICKNESS_M:
            result[i] = True
        elif 0.0 < over <= _KERB_M:
            for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                qx, qy = cx + dx, cy + dy
                if 0 <= qx <= most and 0 <= qy <= most and lowest[qx, qy] >= 0:
                    j = lowest[qx, qy]
                    over = xyz[i, 2] - xyz[j, 2] - slope_x * (xyz[i, 0] - xyz[j, 0]) - slope_y * (xyz[i, 1] - xyz[j, 1])
                    result[i] |= abs(over) <= _KERB_NOISE_M
    return result
