"""Points that a camera sees, for sources that annotate only what it shows, as KITTI does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.operators.config import CameraViewConfig
from spot_ray.operators.sample import Sample
from spot_ray.operators.select import points_at
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep

CALIBRATION = "calibration"
"""The Parquet column that the operator needs of a frame."""
_SHAPES = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
"""What a calibration must hold, by the names of KITTI's files, and their shapes."""


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

    calibration = _calibration(sweep)
    size = calibration.get("image_size") or config.image_size
    if size is None:
        raise DataError(
            "the frame's calibration does not tell the size of its image",
            where=sweep.name,
            expected="image_size, width and height in pixels",
            remedy="set data.camera_view.image_size, for most of KITTI [1242, 375], or convert with the images there",
        )
    rectified, camera = np.eye(4), np.eye(4)
    rectified[:3, :3], camera[:3] = calibration["R0_rect"], calibration["Tr_velo_to_cam"]
    image_from_ego = np.array(calibration["P2"], np.float64) @ rectified @ camera @ se3.invert(rig[0].pose)
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


def _calibration(sweep: Sweep) -> dict[str, Any]:
    needed = f"a JSON object with {', '.join(_SHAPES)}, row by row"
    remedy = "set data.camera_view.enabled=false for sources that annotate all around"
    if sweep.calibration is None:
        raise DataError("the frame has no camera calibration", where=sweep.name, expected=needed, remedy=remedy)
    try:
        found = json.loads(sweep.calibration)
    except json.JSONDecodeError as error:
        raise DataError(
            f"the frame's calibration is no JSON: {error}", where=sweep.name, expected=needed, remedy=remedy
        ) from None
    for name, shape in _SHAPES.items():
        matrix = found.get(name) if isinstance(found, dict) else None
        if matrix is None:
            raise DataError(f"the frame's calibration has no {name}", where=sweep.name, expected=needed, remedy=remedy)
        if not _is_matrix(matrix, shape):
            raise DataError(
                f"{name} of the frame's calibration is no matrix",
                where=sweep.name,
                expected=f"{shape[0]} rows of {shape[1]} finite numbers",
                remedy=remedy,
            )
    return dict(found)


def _is_matrix(rows: object, shape: tuple[int, int]) -> bool:
    try:
        values = np.array(rows, np.float64)
    except (TypeError, ValueError):
        return False
    return values.shape == shape and bool(np.isfinite(values).all())
