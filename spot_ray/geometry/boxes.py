"""Boxes `[x, y, z, dx, dy, dz, yaw]`: centre (z at the centre), full sizes along the box's own axes, yaw about z."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import se3


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
    owner = np.full(len(xyz), -1, dtype=np.int32)
    x = np.asarray(xyz[:, 0], dtype=np.float64)
    order = np.argsort(x, kind="stable")
    x_sorted = x[order]
    for m in np.argsort(-boxes[:, 3:6].prod(axis=1), kind="stable"):
        cx, cy, cz, dx, dy, dz, yaw = boxes[m].astype(np.float64)
        half = np.array([dx, dy, dz]) / 2 + margin_m
        reach = float(np.hypot(half[0], half[1]))
        first, last = np.searchsorted(x_sorted, [cx - reach, cx + reach])
        near = order[first:last]
        local = xyz[near].astype(np.float64) - (cx, cy, cz)
        c, s = np.cos(yaw), np.sin(yaw)
        inside = (
            (np.abs(local[:, 0] * c + local[:, 1] * s) <= half[0])
            & (np.abs(local[:, 1] * c - local[:, 0] * s) <= half[1])
            & (np.abs(local[:, 2]) <= half[2])
        )
        owner[near[inside]] = m
    return owner


def to_box_frame(xyz: npt.NDArray[np.floating], box: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return (N, 3) points in the frame of one (7,) box: origin at its centre, x along its length."""
    return se3.transform_points(se3.invert(se3.from_yaw(float(box[6]), box[:3])), xyz)


def from_box_frame(xyz_box: npt.NDArray[np.floating], box: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return (N, 3) points given in the frame of one (7,) box in the frame that the box is given in."""
    return se3.transform_points(se3.from_yaw(float(box[6]), box[:3]), xyz_box)


def wrap_angle(angle_rad: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return angles in radians, wrapped to [-π, π)."""
    return (angle_rad + np.pi) % (2 * np.pi) - np.pi
