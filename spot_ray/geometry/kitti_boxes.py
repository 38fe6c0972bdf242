"""Boxes in KITTI's columns, to the ego frame and back.

They stand in the rectified frame of camera 0: x right, y down, z forward.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import se3
from spot_ray.geometry.boxes import wrap_angle

AXES_SE3_CAMERA = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""Pose of a camera that looks along x from the origin, for boxes of frames that have none."""

Float = npt.NDArray[np.float64]


def boxes_in_ego(labels: Float, ego_SE3_camera: Float) -> npt.NDArray[np.float32]:
    """Return boxes in KITTI's columns as boxes of the ego frame.

    Args:
        labels: (M, 7) height, width, length, x, y, z of the bottom's centre, rotation about the camera's y axis; metres
            and radians, in the rectified frame of camera 0.
        ego_SE3_camera: (4, 4) pose of that frame.

    Returns:
        (M, 7) float32 boxes.
    """
    height, width, length = labels[:, 0], labels[:, 1], labels[:, 2]
    centre = labels[:, 3:6].copy()
    centre[:, 1] -= height / 2  # y points down
    turn = labels[:, 6]
    heading = np.stack([np.cos(turn), np.zeros_like(turn), -np.sin(turn)], axis=1) @ ego_SE3_camera[:3, :3].T
    boxes = np.empty((len(labels), 7), dtype=np.float32)
    boxes[:, :3] = se3.transform_points(ego_SE3_camera, centre)
    boxes[:, 3:6] = np.stack([length, width, height], axis=1)
    boxes[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    return boxes


def boxes_in_camera(boxes: npt.NDArray[np.floating], ego_SE3_camera: Float) -> Float:
    """Return boxes of the ego frame in KITTI's columns; the inverse of :func:`boxes_in_ego`.

    A box is upright in both frames, though they may be tilted against each other: its centre and its heading over the
    ground are kept.

    Args:
        boxes: (M, 7) `[x, y, z, dx, dy, dz, yaw]`, ego frame.
        ego_SE3_camera: (4, 4) pose of the rectified frame of camera 0.

    Returns:
        (M, 7) float64 height, width, length, x, y, z of the bottom's centre, rotation_y in [-π, π).
    """
    boxes = boxes.astype(np.float64)
    result = np.empty((len(boxes), 7))
    result[:, :3] = boxes[:, [5, 4, 3]]
    result[:, 3:6] = se3.transform_points(np.linalg.inv(ego_SE3_camera), boxes[:, :3])
    result[:, 4] += boxes[:, 5] / 2  # y points down
    # The heading of rotation_y is (cos, 0, -sin) in the camera's frame.
    turn = ego_SE3_camera[:2, [0, 2]] * [1, -1]
    cos_sin = np.linalg.solve(turn, np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])]))
    result[:, 6] = wrap_angle(np.arctan2(cos_sin[1], cos_sin[0]))
    return result
