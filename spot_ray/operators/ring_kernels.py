"""The compiled steps of :mod:`spot_ray.operators.rings` that find the beams.

A sample is (S, 5) float64: u, w, cos α, sin α, τ of each point; see there.
"""

from __future__ import annotations

import math

import numba
import numpy as np

SHARED = 6
"""Parameters of all blocks: c and v (x, y; x, y), p (x, y). The heights of the blocks follow."""

_ROW = SHARED + 1

SECTORS = 24
"""Parts of the turn in which a tilt is a shift: with one of 0.6 degrees, neighbours differ by 0.16."""


@numba.njit(cache=True, nogil=True)
def sample(xyz, lidar_SE3_ego, size, nearest_m):  # type: ignore[no-untyped-def]
    """Return u, w, cos α, sin α and τ of about `size` points, spread over the file.

    Args:
        xyz: (N, 3) float32, ego frame.
        lidar_SE3_ego: (4, 4) float64.
        size: Number of points, at most.
        nearest_m: Horizontal distance below which points are left out.
    """
    m = lidar_SE3_ego
    stride = max((len(xyz) + size - 1) // size, 1)
    result = np.empty((size, 5))
    count = 0
    for start in range(0, len(xyz) - stride + 1, stride):
        # Another place in each stride: every n-th point of a file may be of one beam.
        i = start + (((start * 2654435761) & 0xFFFFFFFF) >> 16) % stride
        px, py, pz = np.float64(xyz[i, 0]), np.float64(xyz[i, 1]), np.float64(xyz[i, 2])
        x = m[0, 0] * px + m[0, 1] * py + m[0, 2] * pz + m[0, 3]
        y = m[1, 0] * px + m[1, 1] * py + m[1, 2] * pz + m[1, 3]
        z = m[2, 0] * px + m[2, 1] * py + m[2, 2] * pz + m[2, 3]
        rho = math.sqrt(x * x + y * y)
        if rho < nearest_m:
            continue
        u = 1.0 / rho
        result[count, 0] = u
        result[count, 1] = z * u
        result[count, 2] = x * u
        result[count, 3] = y * u
        result[count, 4] = math.atan2(y, x) / (2.0 * math.pi)
        count += 1
    return result[:count]


@numba.njit(cache=True, nogil=True, inline="always")
def _level(point, parameters):  # type: ignore[no-untyped-def]
    """Return tan θ of a point of a sample, but for the height of its block."""
    u, w, cosine, sine, turn = point[0], point[1], point[2], point[3], point[4]
    shift = (parameters[0] + parameters[2] * turn) * cosine + (parameters[1] + parameters[3] * turn) * sine
    return w + w * u * shift - (1.0 + w * w) * (parameters[4] * cosine + parameters[5] * sine)


@numba.njit(cache=True, nogil=True)
def unknown(points, parameters, tangent, known, first, steady):  # type: ignore[no-untyped-def]
    """Return where the points lie that no known block has: (n,) tan θ but for the height of their block, u, sector.

    Args:
        points: (S, 5) sample.
        parameters: (P,) the shared ones, then the heights of the blocks.
        tangent: (B,) beams, ascending.
        known: (K,) blocks that are found already.
        first: (K + 1,) first beam of each block, and B.
        steady: Points with a larger |w · u| are left out.
    """
    level, inverse, sector = np.empty(len(points)), np.empty(len(points)), np.empty(len(points), np.int64)
    count = 0
    for i in range(len(points)):
        u, w = points[i, 0], points[i, 1]
        if abs(w * u) > steady:
            continue
        at = _level(points[i], parameters)
        taken = False
        for k in range(len(known)):
            if known[k]:
                t = at - parameters[SHARED + k] * u
                lowest, highest = first[k], first[k + 1] - 1
                below, above = 0.5 * _space(tangent, lowest), 0.5 * _space(tangent, highest)
                taken |= tangent[lowest] - below < t < tangent[highest] + above
        if not taken:
            level[count], inverse[count] = at, u
            sector[count] = min(int((points[i, 4] + 0.5) * SECTORS), SECTORS - 1)
            count += 1
    return level[:count], inverse[:count], sector[:count]


@numba.njit(cache=True, nogil=True)
def sharpness(level, inverse, sector, heights, low, step, size):  # type: ignore[no-untyped-def]
    """Return the (H,) sums of the squares of the histograms of tan θ by sector, for each height of the origin.

    Args:
        level: (n,) as by :func:`unknown`.
        inverse: (n,) the same.
        sector: (n,) the same.
        heights: (H,) heights to try, metres.
        low: Lower end of the histograms.
        step: Width of a bin.
        size: Number of bins.
    """
    score = np.zeros(len(heights), np.int64)
    counts = np.empty((SECTORS, size), np.int16)
    per_step = 1.0 / step
    for k in range(len(heights)):
        counts[:] = 0
        total = 0
        for i in range(len(level)):
            place = (level[i] - heights[k] * inverse[i] - low) * per_step
            if 0.0 <= place < size:
                j = int(place)
                total += 2 * counts[sector[i], j] + 1
                counts[sector[i], j] += 1
        score[k] = total
    return score


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def steps_between_sectors(level, inverse, sector, height, low, step, size, reach):  # type: ignore[no-untyped-def]
    """Return how much higher the beams lie in each sector than in the one before, in bins, and how sure that is.

    Args:
        level: (n,) as by :func:`unknown`.
        inverse: (n,) the same.
        sector: (n,) the same.
        height: Height of the origin, metres.
        low: Lower end of the histograms.
        step: Width of a bin.
        size: Number of bins.
        reach: Most bins that are tried.

    Returns:
        (SECTORS,) bins, and (SECTORS,) weights: the products of the histograms there.
    """
    counts = np.zeros((SECTORS, size), np.float32)
    for i in range(len(level)):
        place = (level[i] - height * inverse[i] - low) / step
        if 1.0 <= place < size - 1:
            j = int(place)
            counts[sector[i], j] += np.float32(2.0)
            counts[sector[i], j - 1] += np.float32(1.0)
            counts[sector[i], j + 1] += np.float32(1.0)
    moved, weight = np.zeros(SECTORS), np.zeros(SECTORS)
    for s in range(SECTORS):
        before = counts[s - 1, reach : size - reach]
        for by in range(-reach, reach + 1):
            own = counts[s, reach + by : size - reach + by]
            product = np.float32(0.0)
            for j in range(len(before)):
                product += before[j] * own[j]
            if product > weight[s]:
                weight[s], moved[s] = product, by
    return moved, weight


@numba.njit(cache=True, nogil=True)
def histogram(level, inverse, height, low, step, size):  # type: ignore[no-untyped-def]
    """Return the (size,) int64 histogram of tan θ; the arguments are those of :func:`sharpness`."""
    counts = np.zeros(size, np.int64)
    for i in range(len(level)):
        place = (level[i] - height * inverse[i] - low) / step
        if 0.0 <= place < size:
            counts[int(place)] += 1
    return counts


@numba.njit(cache=True, nogil=True)
def place_beams(counts, expected, reach, lowest, highest):  # type: ignore[no-untyped-def]
    """Return the bins (B,) of beams in a histogram: the best that are in order and about as far apart as expected.

    Dynamic programming over the beams: a beam gains the root of the count in and around its bin, so that no beam
    outweighs the others, and loses for being off its place, and for being off its distance to the one below.

    Args:
        counts: (n,) int64 histogram.
        expected: (B,) float64 bins in which the beams are expected, ascending.
        reach: How far off they may be, in spaces between beams.
        lowest: Bin from which on they are.
        highest: Bin up to which they are.
    """
    beams = len(expected)
    gain = np.zeros(len(counts))
    for i in range(len(counts)):
        below = counts[i - 1] if i > 0 else 0
        above = counts[i + 1] if i + 1 < len(counts) else 0
        gain[i] = math.sqrt(0.5 * below + counts[i] + 0.5 * above)
    space, half = np.empty(beams), np.empty(beams, np.int64)
    for b in range(beams):
        space[b] = _space(expected, b)
    usual = np.median(space)
    for b in range(beams):
        half[b] = math.ceil(reach * min(space[b], usual))
    widest = half.max()
    width = 2 * widest + 1
    score = np.full((beams, width), -np.inf)
    came = np.zeros((beams, width), np.int64)
    scale = 0.0
    for b in range(beams):
        middle = round(expected[b])
        best = 0.0
        for i in range(max(middle - half[b], 0), min(middle + half[b] + 1, len(counts))):
            best = max(best, gain[i])
        scale += best / beams
    if scale == 0.0:
        return expected.copy()
    for b in range(beams):
        middle = round(expected[b])
        last = round(expected[b - 1]) if b > 0 else 0
        for j in range(widest - half[b], widest + half[b] + 1):
            place = middle - widest + j
            if not max(0, lowest) <= place <= min(highest, len(counts) - 1):
                continue
            own = gain[place] / scale - 0.05 * ((place - expected[b]) / space[b]) ** 2
            if b == 0:
                score[b, j] = own
                continue
            gap = expected[b] - expected[b - 1]
            best, source = -np.inf, 0
            first = max(math.ceil(place - 1.8 * gap) - last, -half[b - 1]) + widest
            until = min(math.floor(place - 0.4 * gap) - last, half[b - 1]) + widest
            for k in range(first, until + 1):
                unlike = (place - (last - widest + k)) / gap - 1.0
                value = score[b - 1, k] - 1.5 * unlike * unlike
                if value > best:
                    best, source = value, k
            score[b, j] = best + own
            came[b, j] = source
    result = expected.copy()
    j = int(np.argmax(score[beams - 1]))
    if score[beams - 1, j] == -np.inf:
        return result
    for b in range(beams - 1, -1, -1):
        result[b] = round(expected[b]) - widest + j
        j = came[b, j]
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
def accumulate(points, tangent, parameters, known, first, shift_m):  # type: ignore[no-untyped-def]
    """Return what a step of least squares needs.

    Args:
        points: (S, 5) sample.
        tangent: (B,) beams, ascending.
        parameters: (P,) the shared ones, then the heights of the blocks.
        known: (K,) blocks that are found already.
        first: (K + 1,) first beam of each block, and B.
        shift_m: How far off the origin may still be.

    Returns:
        By beam: (B,) counts, (B,) sums of the residuals, (B, P) sums of the derivatives by the parameters; and
        (P, P) sums of their products, (P,) sums of derivative times residual.
    """
    beams, num, blocks = len(tangent), len(parameters), len(known)
    space = np.empty(beams)
    for b in range(beams):
        space[b] = _space(tangent, b)
    widest = space.max()
    count, residual = np.zeros(beams), np.zeros(beams)
    # With one height, its own; only at the end with those of all blocks.
    sums, products, rights = np.zeros((beams, _ROW)), np.zeros((blocks, _ROW, _ROW)), np.zeros((blocks, _ROW))
    row = np.zeros(_ROW)
    for i in range(len(points)):
        u, w, cosine, sine, turn = points[i, 0], points[i, 1], points[i, 2], points[i, 3], points[i, 4]
        moves = abs(w * u) * shift_m * 4.0
        if moves >= widest:
            continue
        level = _level(points[i], parameters)
        nearest, closest, error, at = -1, 0.4, 0.0, 0
        for k in range(blocks):
            if not known[k]:
                continue
            t = level - parameters[SHARED + k] * u
            b = _nearest(tangent, first[k], first[k + 1], t)
            away = t - tangent[b]
            if abs(away) < closest * space[b] and moves < space[b]:
                nearest, closest, error, at = b, abs(away) / space[b], away, k
        if nearest < 0:
            continue
        steep = -w * u
        row[0], row[1] = steep * cosine, steep * sine
        row[2], row[3] = turn * row[0], turn * row[1]
        row[4], row[5] = (1.0 + w * w) * cosine, (1.0 + w * w) * sine
        row[6] = u
        count[nearest] += 1.0
        residual[nearest] += error
        for p in range(_ROW):
            sums[nearest, p] += row[p]
            rights[at, p] += row[p] * error
            for q in range(_ROW):
                products[at, p, q] += row[p] * row[q]
    basis, normal, right = np.zeros((beams, num)), np.zeros((num, num)), np.zeros(num)
    for k in range(blocks):
        for p in range(_ROW):
            column = p if p < SHARED else SHARED + k
            for b in range(first[k], first[k + 1]):
                basis[b, column] = sums[b, p]
            right[column] += rights[k, p]
            for q in range(_ROW):
                normal[column, q if q < SHARED else SHARED + k] += products[k, p, q]
    return count, residual, basis, normal, right


@numba.njit(cache=True, nogil=True, inline="always")
def _nearest(tangent, low, high, t):  # type: ignore[no-untyped-def]
    """Return the beam of `low` to `high` - 1 that is nearest to t."""
    until = high - 1
    while low < until:
        middle = (low + until) // 2
        if tangent[middle] + tangent[middle + 1] < 2.0 * t:
            low = middle + 1
        else:
            until = middle
    return low


@numba.njit(cache=True, nogil=True, inline="always")
def _space(tangent, b):  # type: ignore[no-untyped-def]
    """Return the distance of a beam to the nearer of its neighbours."""
    space = np.inf
    if b > 0:
        space = min(space, tangent[b] - tangent[b - 1])
    if b + 1 < len(tangent):
        space = min(space, tangent[b + 1] - tangent[b])
    return space
