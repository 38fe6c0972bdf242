"""Boxes `[x, y, z, dx, dy, dz, yaw]`: centre (z at the centre), full sizes along the box's own axes, yaw about z."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.geometry import se3

_BUCKET_M = 2.0
"""Edge of the square buckets of the ground plane in which boxes are looked up."""
_MOST_BUCKETS = 256
"""Along a side; where boxes lie too far apart, buckets are wider."""
_ROOM = 1024
"""Pairs of a point and a box that there is room for at first; it doubles when it is used up."""


def transform_boxes(dst_SE3_src: npt.ArrayLike, boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return (M, 7) boxes of frame `src` in frame `dst`.

    A box stays upright: the tilt of the transform moves its centre, only the turn about z changes its yaw.
    """
    result = boxes.copy()
    result[:, :3] = se3.transform_points(dst_SE3_src, boxes[:, :3])
    result[:, 6] = wrap_angle(boxes[:, 6] + se3.yaw_of(dst_SE3_src))
    return result


def points_in_boxes(
    xyz: npt.NDArray[np.floating], boxes: npt.NDArray[np.floating], *, margin_m: float = 0.0
) -> npt.NDArray[np.int32]:
    """Find the box that holds each point.

    Args:
        xyz: (N, 3) points, metres.
        boxes: (M, 7) boxes in the same frame.
        margin_m: Added to every side of every box, metres.

    Returns:
        (N,) int32 index of the box; where several hold a point, the smallest in volume; -1 in none.
    """
    if not len(boxes) or not len(xyz):
        return np.full(len(xyz), -1, dtype=np.int32)
    # From the smallest to the largest; of equal ones the last, as if each overwrote those before it.
    order = np.argsort(-boxes[:, 3:6].prod(axis=1), kind="stable")[::-1]
    found = _first_box(xyz, *_prepared(boxes[order], margin_m))
    return np.append(order, -1)[found].astype(np.int32)


def points_of_boxes(
    xyz: npt.NDArray[np.floating], boxes: npt.NDArray[np.floating], *, margin_m: float = 0.0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find all points of each box; one that lies in several boxes is a point of each.

    Args:
        xyz: (N, 3) points, metres.
        boxes: (M, 7) boxes in the same frame.
        margin_m: Added to every side of every box, metres.

    Returns:
        (P,) int64 indices of points, box by box and ascending within a box, and (M,) int64 how many each box has.
    """
    if not len(boxes) or not len(xyz):
        return np.zeros(0, np.int64), np.zeros(len(boxes), np.int64)
    point, box = _all_boxes(xyz, *_prepared(boxes, margin_m))
    return point[np.argsort(box, kind="stable")], np.bincount(box, minlength=len(boxes))


_Prepared = tuple[
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    float,
]


def _prepared(boxes: npt.NDArray[np.floating], margin_m: float) -> _Prepared:
    """Return what the compiled loops need of (M, 7) boxes.

    Returns:
        Their centres; half sizes; cosine, sine and reach of each; lower corner and extent of the ground plane that they
        reach over, and the edge of its buckets.
    """
    boxes = boxes.astype(np.float64)
    half = boxes[:, 3:6] / 2 + margin_m
    reach = np.hypot(half[:, 0], half[:, 1])
    low = boxes[:, :2].min(axis=0) - reach.max()
    extent = boxes[:, :2].max(axis=0) + reach.max() - low
    edge = max(_BUCKET_M, float(extent.max()) / _MOST_BUCKETS)
    turned = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), reach], axis=1)
    return np.ascontiguousarray(boxes[:, :3]), half, turned, low, extent, edge


@numba.njit(cache=True, nogil=True)
def _first_box(
    xyz: npt.NDArray[np.floating],
    centre: npt.NDArray[np.float64],
    half: npt.NDArray[np.float64],
    turned: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    extent: npt.NDArray[np.float64],
    edge: float,
) -> npt.NDArray[np.int64]:
    """Return the first box that holds each point, -1 in none; for the arguments see :func:`_prepared`."""
    start, member, nx, ny = _buckets(centre, turned, low, extent, edge)
    result = np.full(len(xyz), -1, np.int64)
    for n in range(len(xyz)):
        x, y, z = float(xyz[n, 0]), float(xyz[n, 1]), float(xyz[n, 2])
        # Asked so that what is not a number lies in no box.
        if not (0.0 <= x - low[0] <= extent[0] and 0.0 <= y - low[1] <= extent[1]):
            continue
        bucket = min(int((x - low[0]) / edge), nx - 1) * ny + min(int((y - low[1]) / edge), ny - 1)
        for e in range(start[bucket], start[bucket + 1]):
            m = member[e]
            dx, dy = x - centre[m, 0], y - centre[m, 1]
            c, s = turned[m, 0], turned[m, 1]
            if (
                abs(dx * c + dy * s) <= half[m, 0]
                and abs(dy * c - dx * s) <= half[m, 1]
                and abs(z - centre[m, 2]) <= half[m, 2]
            ):
                result[n] = member[e]
                break
    return result


@numba.njit(cache=True, nogil=True)
def _all_boxes(
    xyz: npt.NDArray[np.floating],
    centre: npt.NDArray[np.float64],
    half: npt.NDArray[np.float64],
    turned: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    extent: npt.NDArray[np.float64],
    edge: float,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the (P,) points, ascending, and boxes of all pairs; for the arguments see :func:`_prepared`."""
    start, member, nx, ny = _buckets(centre, turned, low, extent, edge)
    point, box = np.empty(_ROOM, np.int64), np.empty(_ROOM, np.int64)
    count = 0
    for n in range(len(xyz)):
        x, y, z = float(xyz[n, 0]), float(xyz[n, 1]), float(xyz[n, 2])
        if not (0.0 <= x - low[0] <= extent[0] and 0.0 <= y - low[1] <= extent[1]):
            continue
        bucket = min(int((x - low[0]) / edge), nx - 1) * ny + min(int((y - low[1]) / edge), ny - 1)
        for e in range(start[bucket], start[bucket + 1]):
            m = member[e]
            # Written out as above: a function for both costs a quarter of the time.
            dx, dy = x - centre[m, 0], y - centre[m, 1]
            c, s = turned[m, 0], turned[m, 1]
            if (
                abs(dx * c + dy * s) <= half[m, 0]
                and abs(dy * c - dx * s) <= half[m, 1]
                and abs(z - centre[m, 2]) <= half[m, 2]
            ):
                if count == len(point):
                    point, box = np.append(point, point), np.append(box, box)
                point[count], box[count] = n, m
                count += 1
    return point[:count].copy(), box[:count].copy()


@numba.njit(cache=True, nogil=True)
def _buckets(
    centre: npt.NDArray[np.float64],
    turned: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    extent: npt.NDArray[np.float64],
    edge: float,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], int, int]:
    """Return the boxes that reach into each square bucket of the ground plane, ascending in each.

    Returns:
        Where each bucket's boxes start, the boxes, and the buckets along x and y.
    """
    nx, ny = int(extent[0] / edge) + 1, int(extent[1] / edge) + 1
    start = np.zeros(nx * ny + 1, np.int32)
    member = np.empty(0, np.int32)
    for fill in (False, True):
        if fill:
            for bucket in range(nx * ny):
                start[bucket + 1] += start[bucket]
            member = np.empty(start[-1], np.int32)
        end = start[:-1].copy()
        for m in range(len(centre)):
            x, y, reach = centre[m, 0] - low[0], centre[m, 1] - low[1], turned[m, 2]
            for i in range(max(int((x - reach) / edge), 0), min(int((x + reach) / edge) + 1, nx)):
                for j in range(max(int((y - reach) / edge), 0), min(int((y + reach) / edge) + 1, ny)):
                    if fill:
                        member[end[i * ny + j]] = m
                        end[i * ny + j] += 1
                    else:
                        start[i * ny + j + 1] += 1
    return start, member, nx, ny


def to_box_frame(xyz: npt.NDArray[np.floating], box: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return (N, 3) points in the frame of one (7,) box: origin at its centre, x along its length."""
    return se3.transform_points(se3.invert(se3.from_yaw(float(box[6]), box[:3])), xyz)


def from_box_frame(xyz_box: npt.NDArray[np.floating], box: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return (N, 3) points given in the frame of one (7,) box in the frame that the box is given in."""
    return se3.transform_points(se3.from_yaw(float(box[6]), box[:3]), xyz_box)


def wrap_angle(angle_rad: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return angles in radians, wrapped to [-π, π)."""
    return (angle_rad + np.pi) % (2 * np.pi) - np.pi
