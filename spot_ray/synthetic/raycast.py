"""Ray casting of a spinning LiDAR, compiled: the ground column by column, then every solid into its window of rays.

A ray is (column, beam). Beams ascend in inclination; column c looks to azimuth π − (c + ½) · 2π / columns, clockwise as
the real sensors turn. All lengths are along the unit ray, in the sensor frame.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from spot_ray.synthetic.ground import height_at
from spot_ray.synthetic.primitives import BOX, CYLINDER

NOTHING = -2
GROUND = -1


@nb.njit(cache=True)
def cast_ground(height, origin, world_SE3_sensor, cos_az, sin_az, tan_inc, max_range, distance, hit):  # type: ignore[no-untyped-def]
    """Find the first hit of every ray on the ground.

    A column's rays lie in one plane. Walking outwards in it, the ground's elevation angle as seen from the sensor grows
    past one beam after the other: each beam's hit is bracketed by two steps and then refined on the exact surface.

    Args:
        height: (nx, ny) float64 height field.
        origin: (2,) its node (0, 0).
        world_SE3_sensor: (4, 4) float64.
        cos_az: (W,) cosines of the columns' azimuths.
        sin_az: (W,) their sines.
        tan_inc: (R,) tangents of the inclinations, ascending.
        max_range: Metres.
        distance: (W, R) float64, written: the length of the ray; infinite where there is no hit.
        hit: (W, R) int32, written: `GROUND` or `NOTHING`.
    """
    m = world_SE3_sensor
    beams = len(tan_inc)
    for c in range(len(cos_az)):
        dx, dy = cos_az[c], sin_az[c]
        ax, ay, az = m[0, 0] * dx + m[0, 1] * dy, m[1, 0] * dx + m[1, 1] * dy, m[2, 0] * dx + m[2, 1] * dy
        for b in range(beams):
            distance[c, b] = np.inf
            hit[c, b] = NOTHING
        beam = 0
        near, far = 0.0, 1.0
        # Height of the ground in the sensor frame: starts from the last step's, one correction a step is exact to a
        # millimetre as the sensor stands nearly upright.
        z = -(m[2, 3] - height_at(height, origin, m[0, 3], m[1, 3])) / m[2, 2]
        z_near = z
        while beam < beams and far < max_range:
            x, y = m[0, 3] + far * ax + z * m[0, 2], m[1, 3] + far * ay + z * m[1, 2]
            z += (height_at(height, origin, x, y) - (m[2, 3] + far * az + z * m[2, 2])) / m[2, 2]
            while beam < beams and far * tan_inc[beam] <= z:
                slope = tan_inc[beam]
                low, high = near, far
                f_low = max(near * slope - z_near, 1e-9)
                f_high = far * slope - z
                r = high
                for _ in range(8):
                    r = (low * f_high - high * f_low) / (f_high - f_low)
                    zs = r * slope
                    f = (
                        m[2, 3]
                        + r * az
                        + zs * m[2, 2]
                        - height_at(height, origin, m[0, 3] + r * ax + zs * m[0, 2], m[1, 3] + r * ay + zs * m[1, 2])
                    )
                    if abs(f) < 1e-3:
                        break
                    if f > 0:
                        low, f_low = r, f
                        f_high *= 0.5
                    else:
                        high, f_high = r, f
                        f_low *= 0.5
                length = r * math.sqrt(1 + slope * slope)
                if length <= max_range:
                    distance[c, beam] = length
                    hit[c, beam] = GROUND
                beam += 1
            near, z_near = far, z
            far += 0.2 + 0.012 * far


@nb.njit(cache=True, inline="always")
def ray_interval(kind, ox, oy, oz, dx, dy, dz):  # type: ignore[no-untyped-def]
    """Return (entry, exit) of a ray through the unit solid of a kind; entry > exit if it misses.

    Args:
        kind: `BOX` (|x|, |y|, |z| ≤ 1), `CYLINDER` (x² + y² ≤ 1, |z| ≤ 1) or `ELLIPSOID` (the unit ball).
        ox: Origin of the ray, in units of the half sizes along the solid's axes.
        oy: The same.
        oz: The same.
        dx: Its direction in the same units; the interval is in lengths of it.
        dy: The same.
        dz: The same.
    """
    if kind == BOX:
        ix = 1.0 / dx if dx != 0.0 else 1e30
        iy = 1.0 / dy if dy != 0.0 else 1e30
        iz = 1.0 / dz if dz != 0.0 else 1e30
        ax, ay, az = abs(ix), abs(iy), abs(iz)
        entry = max(-ox * ix - ax, -oy * iy - ay, -oz * iz - az)
        leave = min(-ox * ix + ax, -oy * iy + ay, -oz * iz + az)
        return entry, leave
    if kind == CYLINDER:
        a = dx * dx + dy * dy
        b = ox * dx + oy * dy
        q = ox * ox + oy * oy - 1.0
        inner = b * b - a * q
        if inner < 0.0:
            return 1.0, 0.0
        if a < 1e-18:
            entry, leave = -1e30, 1e30
        else:
            root = math.sqrt(inner)
            entry, leave = (-b - root) / a, (-b + root) / a
        iz = 1.0 / dz if dz != 0.0 else 1e30
        az = abs(iz)
        return max(entry, -oz * iz - az), min(leave, -oz * iz + az)
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    inner = b * b - a * (ox * ox + oy * oy + oz * oz - 1.0)
    if inner < 0.0:
        return 1.0, 0.0
    root = math.sqrt(inner)
    return (-b - root) / a, (-b + root) / a


@nb.njit(cache=True)
def _window(center, axes, half):  # type: ignore[no-untyped-def]
    """Return (azimuth from, azimuth to, tan inclination from, to, least horizontal distance) that bound a solid."""
    xs, ys = np.empty(8), np.empty(8)
    z_low, z_high = 1e30, -1e30
    for n in range(8):
        p = center.copy()
        for k in range(3):
            sign = half[k] if (n >> k) & 1 else -half[k]
            p += sign * axes[k]
        xs[n], ys[n] = p[0], p[1]
        z_low, z_high = min(z_low, p[2]), max(z_high, p[2])
    nearest, farthest = 1e30, 0.0
    middle = math.atan2(center[1], center[0])
    first, last = 1e30, -1e30
    for n in range(8):
        turn = math.atan2(ys[n], xs[n]) - middle
        if turn > math.pi:
            turn -= 2 * math.pi
        elif turn < -math.pi:
            turn += 2 * math.pi
        first, last = min(first, turn), max(last, turn)
        farthest = max(farthest, math.hypot(xs[n], ys[n]))
        for k in range(3):
            other = n ^ (1 << k)
            if other > n:
                ex, ey = xs[other] - xs[n], ys[other] - ys[n]
                square = ex * ex + ey * ey
                s = 0.0
                if square > 0:
                    s = min(max(-(xs[n] * ex + ys[n] * ey) / square, 0.0), 1.0)
                nearest = min(nearest, math.hypot(xs[n] + s * ex, ys[n] + s * ey))
    if last - first >= math.pi:
        first, last, nearest = -math.pi, math.pi, 1e-3
    nearest = max(nearest, 1e-3)
    tan_low = z_low / (nearest if z_low < 0 else farthest)
    tan_high = z_high / (nearest if z_high > 0 else farthest)
    return middle + first, middle + last, tan_low, tan_high, nearest


@nb.njit(cache=True)
def cast_solids(kind, center, axes, half, cos_az, sin_az, tan_inc, max_range, distance, hit):  # type: ignore[no-untyped-def]
    """Find the first hit of every ray on a solid, keeping what is nearer already.

    Args:
        kind: (P,) int64 kinds.
        center: (P, 3) float64 in the sensor frame.
        axes: (P, 3, 3) float64, rows are the solids' axes in the sensor frame.
        half: (P, 3) float64 half sizes.
        cos_az: (W,) cosines of the columns' azimuths.
        sin_az: (W,) their sines.
        tan_inc: (R,) tangents of the inclinations, ascending.
        max_range: Metres.
        distance: (W, R) float64, updated.
        hit: (W, R) int32, updated with the solid's index.
    """
    columns = len(cos_az)
    cos_inc = 1.0 / np.sqrt(1.0 + tan_inc * tan_inc)
    sin_inc = tan_inc * cos_inc
    count = len(kind)
    bounds = np.empty((count, 5))
    for p in range(count):
        bounds[p] = _window(center[p], axes[p], half[p])
    # Near solids first: what they hide is skipped without an intersection.
    for p in np.argsort(bounds[:, 4]):
        nearest = bounds[p, 4]
        if nearest > max_range:
            break
        first_beam = np.searchsorted(tan_inc, bounds[p, 2])
        last_beam = np.searchsorted(tan_inc, bounds[p, 3])
        if first_beam >= last_beam:
            continue
        first = math.floor((math.pi - bounds[p, 1]) * columns / (2 * math.pi) - 0.5)
        last = math.ceil((math.pi - bounds[p, 0]) * columns / (2 * math.pi) - 0.5)
        last = min(last, first + columns - 1)
        a, h = axes[p], half[p]
        o = np.empty(3)
        for k in range(3):
            o[k] = -(a[k, 0] * center[p, 0] + a[k, 1] * center[p, 1] + a[k, 2] * center[p, 2]) / h[k]
        for step in range(first, last + 1):
            c = step % columns
            qx = (a[0, 0] * cos_az[c] + a[0, 1] * sin_az[c]) / h[0]
            qy = (a[1, 0] * cos_az[c] + a[1, 1] * sin_az[c]) / h[1]
            qz = (a[2, 0] * cos_az[c] + a[2, 1] * sin_az[c]) / h[2]
            wx, wy, wz = a[0, 2] / h[0], a[1, 2] / h[1], a[2, 2] / h[2]
            for b in range(first_beam, last_beam):
                if distance[c, b] <= nearest:
                    continue
                ci, si = cos_inc[b], sin_inc[b]
                entry, leave = ray_interval(
                    kind[p], o[0], o[1], o[2], ci * qx + si * wx, ci * qy + si * wy, ci * qz + si * wz
                )
                if entry <= leave and 0.0 < entry < distance[c, b] and entry <= max_range:
                    distance[c, b] = entry
                    hit[c, b] = p
