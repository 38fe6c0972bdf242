"""Camera 2 of a frame of KITTI's object benchmark, from what `Sweep.calibration` keeps of it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep

USUAL_IMAGE_SIZE = (1242, 375)
"""Width and height in pixels of most of the benchmark's images, for frames whose calibration does not tell them."""

_SHAPES = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
"""What a calibration must hold, by the names of KITTI's files, and their shapes."""

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class KittiCamera:
    """Camera 2.

    Args:
        ego_SE3_camera: (4, 4) pose of the rectified frame of camera 0: x right, y down, z forward.
        projection: (3, 4) `P2`, from that frame to the image of camera 2.
        image_size: (width, height) in pixels; None: the source did not have the image.
    """

    ego_SE3_camera: Float
    projection: Float
    image_size: tuple[int, int] | None


def kitti_camera(sweep: Sweep, lidar: LidarSpec) -> KittiCamera:
    """Return the camera of a frame of the KITTI converter.

    Args:
        sweep: The frame; its `calibration` is a JSON object of KITTI's matrices `P2`, `R0_rect` and `Tr_velo_to_cam`,
            row by row, and of `image_size`, width and height or null.
        lidar: The LiDAR whose frame the calibration is for.

    Raises:
        DataError: If the frame has no such calibration.
    """
    needed = f"a JSON object with {', '.join(_SHAPES)}, row by row"
    if sweep.calibration is None:
        raise DataError("the frame has no camera calibration", where=sweep.name, expected=needed)
    try:
        found = json.loads(sweep.calibration)
    except json.JSONDecodeError as error:
        raise DataError(f"the frame's calibration is no JSON: {error}", where=sweep.name, expected=needed) from None
    for name, shape in _SHAPES.items():
        matrix = found.get(name) if isinstance(found, dict) else None
        if matrix is None:
            raise DataError(f"the frame's calibration has no {name}", where=sweep.name, expected=needed)
        if not _is_matrix(matrix, shape):
            raise DataError(
                f"{name} of the frame's calibration is no matrix",
                where=sweep.name,
                expected=f"{shape[0]} rows of {shape[1]} finite numbers",
            )
    rectified, camera = np.eye(4), np.eye(4)
    rectified[:3, :3], camera[:3] = found["R0_rect"], found["Tr_velo_to_cam"]
    size = found.get("image_size")
    return KittiCamera(
        ego_SE3_camera=lidar.pose @ np.linalg.inv(rectified @ camera),  # as orthonormal as the file's five digits
        projection=np.array(found["P2"], dtype=np.float64),
        image_size=None if size is None else (int(size[0]), int(size[1])),
    )


def _is_matrix(rows: object, shape: tuple[int, int]) -> bool:
    try:
        values = np.array(rows, np.float64)
    except (TypeError, ValueError):
        return False
    return values.shape == shape and bool(np.isfinite(values).all())
