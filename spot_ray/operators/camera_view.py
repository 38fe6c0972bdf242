"""Points that a camera sees, for sources that annotate only what it shows, as KITTI does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.operators.config import CameraViewConfig
from spot_ray.operators.sample import Sample
from spot_ray.operators.select import points_at
from spot_ray.schema.kitti_camera import USUAL_IMAGE_SIZE, kitti_camera
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep

CALIBRATION = "calibration"
"""The Parquet column that the operator needs of a frame."""


class CameraView:
    """Leaves out the points of a sample that do not lie in the image of camera 2; boxes stay.

    Args:
        config: Whether to, and the image's size where calibrations do not tell it.
        rig: The LiDARs of the dataset; the calibration is for points in the frame of the first.
    """

    def __init__(self, config: CameraViewConfig, rig: Sequence[LidarSpec]) -> None:
        self._config = config
        self._rig = tuple(rig)

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with the points that are seen.

        Raises:
            DataError: If the frame has no calibration or image size, or no point of it is seen.
        """
        if not self._config.enabled:
            return sample
        index = points_in_view(sample.sweep, self._rig, self._config)
        lag = sample.time_lag_s
        return replace(
            sample, sweep=points_at(sample.sweep, index), time_lag_s=None if lag is None else lag.take(index)
        )


def points_in_view(sweep: Sweep, rig: Sequence[LidarSpec], config: CameraViewConfig) -> npt.NDArray[np.int64]:
    """Return the ascending (M,) indices of the points that lie in the image of camera 2, in front of it.

    A point is in the image if its pixel coordinates are from 0 to below the image's width and height (the rule of
    OpenPCDet's `get_fov_flag`).

    Args:
        sweep: A frame in the ego frame, with its `calibration`: a JSON object of KITTI's matrices `P2`, `R0_rect` and
            `Tr_velo_to_cam`, row by row, and of `image_size`, width and height or null.
        rig: The LiDARs of the dataset; the calibration is for points in the frame of the first.
        config: The image's size where the calibration does not tell it.

    Raises:
        DataError: If the sweep has no such calibration or image size, or no point is seen.
    """
    from spot_ray.operators.point_kernels import mark_in_image

    try:
        camera = kitti_camera(sweep, rig[0])
    except DataError as error:
        raise error.with_remedies("set data.camera_view.enabled=false for sources that annotate all around") from None
    size = camera.image_size or config.image_size
    if size is None:
        raise DataError(
            "the frame's calibration does not tell the size of its image",
            where=sweep.name,
            expected="image_size, width and height in pixels",
            remedy="set data.camera_view.image_size, for most of KITTI "
            f"{list(USUAL_IMAGE_SIZE)}, or convert with the images there",
        )
    image_from_ego = camera.projection @ np.linalg.inv(camera.ego_SE3_camera)
    seen = np.empty(len(sweep), dtype=bool)
    mark_in_image(sweep.xyz, image_from_ego, float(size[0]), float(size[1]), seen)
    index = np.flatnonzero(seen)
    if not len(index):
        raise DataError(
            f"none of the frame's {len(sweep)} points is in the camera's view",
            where=sweep.name,
            expected="a calibration that fits the points",
            remedy="set data.camera_view.enabled=false, or leave the frame out",
        )
    return index
