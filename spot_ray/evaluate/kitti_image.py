"""Boxes in KITTI's columns as its cameras see them: the angle of observation, and the image of camera 2."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spot_ray.geometry.boxes import wrap_angle

_NEAREST_M = 0.1
"""What is nearer to the camera's plane, or behind it, is cut off before projecting."""

_CORNERS = np.array([(along, up, across) for along in (-0.5, 0.5) for up in (-1, 0) for across in (-0.5, 0.5)])
"""Of a box of size 1, from the centre of its bottom; y points down."""
_EDGES = np.array([(i, i | bit) for bit in (1, 2, 4) for i in range(8) if not i & bit])

Float = npt.NDArray[np.float64]


def observation_angle(boxes: Float) -> Float:
    """Return (M,) `alpha` in [-π, π) of (M, 7) boxes in KITTI's columns: rotation_y less the azimuth of the centre."""
    return wrap_angle(boxes[:, 6] - np.arctan2(boxes[:, 3], boxes[:, 5])).astype(np.float64, copy=False)


def boxes_in_image(boxes: Float, projection: Float, image_size: tuple[int, int]) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Return the upright boxes that the image shows boxes in.

    What of a box lies behind the camera is cut off; the rest is projected and clipped to the image.

    Args:
        boxes: (M, 7) in KITTI's columns.
        projection: (3, 4) from the boxes' frame to pixels.
        image_size: (width, height) in pixels.

    Returns:
        (M, 4) float64 left, top, right, bottom, from 0 to the width and height less 1; (M,) bool: the image shows a
        part of the box.
    """
    corners = _CORNERS * boxes[:, None, [2, 0, 1]]
    c, s = np.cos(boxes[:, None, 6]), np.sin(boxes[:, None, 6])
    placed = np.stack(
        [corners[..., 0] * c + corners[..., 2] * s, corners[..., 1], corners[..., 2] * c - corners[..., 0] * s], axis=-1
    )
    seen = (placed + boxes[:, None, 3:6]) @ projection[:, :3].T + projection[:, 3]
    ends = seen[:, _EDGES]  # (M, 12, 2, 3)
    depth = ends[..., 2]
    ahead: npt.NDArray[np.bool_] = np.greater_equal(depth, _NEAREST_M)
    step = depth - depth[..., ::-1]
    part = np.divide(_NEAREST_M - depth[..., ::-1], step, out=np.zeros_like(step), where=step != 0)
    cut = ends[..., ::-1, :] + part[..., None] * (ends - ends[..., ::-1, :])
    kept = np.where(ahead[..., None], ends, cut)[..., :2] / np.where(ahead, depth, _NEAREST_M)[..., None]
    some = (ahead[..., 0] | ahead[..., 1])[..., None, None]
    low = np.where(some, kept, np.inf).min(axis=(1, 2))
    high = np.where(some, kept, -np.inf).max(axis=(1, 2))
    last = np.array(image_size, dtype=np.float64) - 1
    result = np.concatenate([np.clip(low, 0, last), np.clip(high, 0, last)], axis=1)
    width, height = (result[:, 2:] - result[:, :2]).T
    return result, np.minimum(width, height) > 0
