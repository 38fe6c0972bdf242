"""The sweep of one frame of the Waymo Open Dataset, from what its lasers saw: the same for both formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.convert._waymo_laser import Float32, Float64, Index, Laser, LaserCalibration, Rays
from spot_ray.convert._waymo_taxonomy import POINT_TYPES
from spot_ray.errors import DataError
from spot_ray.schema.sweep import NO_LABEL_ZONE, Boxes, Sweep
from spot_ray.schema.taxonomy import UNLABELLED_SOURCE


@dataclass(frozen=True, eq=False)
class LaserReturns:
    """What one laser saw in one frame.

    Args:
        laser: The laser.
        range_images: (H, W, 4) float32 of the first and the second return; None where there is none.
        where: The file and row that they come from, for messages.
        pixel_pose: (H, W, 6) float32 roll, pitch, yaw, x, y, z of the vehicle in the world when the pixel was
            measured; of TOP only.
        segmentation: (H, W, 2) int32 instance id and `Segmentation.Type` of the first and the second return; None if
            the frame has none.
    """

    laser: Laser
    range_images: tuple[Float32 | None, Float32 | None]
    where: str
    pixel_pose: Float32 | None = None
    segmentation: tuple[npt.NDArray[np.int32] | None, npt.NDArray[np.int32] | None] | None = None


class SweepBuilder:
    """Puts the sweeps of a segment together.

    Args:
        sequence_id: The segment.
        calibrations: Of every laser of the segment.
        split: The official split, or None.
    """

    def __init__(
        self, sequence_id: str, calibrations: Mapping[Laser, LaserCalibration], *, split: str | None = None
    ) -> None:
        self._sequence_id = sequence_id
        self._calibrations = calibrations
        self._split = split
        self._rays: dict[tuple[Laser, int, int], Rays] = {}

    def sweep(
        self, timestamp_us: int, world_SE3_ego: Float64, lasers: Sequence[LaserReturns], boxes: Boxes | None
    ) -> Sweep:
        """Return the sweep of one frame: laser by laser in the order of their numbers, first returns first.

        Args:
            timestamp_us: The frame's time, microseconds since the epoch; its text is the frame's id.
            world_SE3_ego: (4, 4) float64 pose of the vehicle.
            lasers: What each laser saw; all that the segment has a calibration of.
            boxes: In the ego frame, or None if the frame is not annotated.

        Raises:
            DataError: If a laser is missing or has no calibration, images of one laser disagree in shape, a value is
                not finite, or a label is unknown.
        """
        self._check_complete(lasers)
        images = []
        for laser in sorted(lasers, key=lambda returns: returns.laser):
            images += [_Image(laser, i) for i, image in enumerate(laser.range_images) if image is not None]
        num_points = sum(len(image) for image in images)
        labelled = any(image.segmentation is not None for image in images)
        xyz = np.empty((num_points, 3), np.float32)
        features = np.empty((3, num_points), np.float32)
        ring = np.empty(num_points, np.uint16)
        lidar_id = np.empty(num_points, np.uint8)
        return_index = np.empty(num_points, np.uint8)
        flags = np.zeros(num_points, np.uint8)
        classes = np.full(num_points, UNLABELLED_SOURCE, np.uint16) if labelled else None
        instances = np.full(num_points, -1, np.int32) if labelled else None
        start = 0
        for image in images:
            part = slice(start, start + len(image))
            start += len(image)
            features[:, part] = image.features[1:]
            rays = self._rays_of(image.laser, *image.shape)
            rays.points(
                image.pixel, image.features[0], xyz[part], pixel_pose=image.pixel_pose, world_SE3_ego=world_SE3_ego
            )
            if not np.isfinite(xyz[part].sum(dtype=np.float64)):
                raise DataError("a pixel pose is not finite", where=image.where, expected="finite numbers")
            ring[part] = image.pixel // image.shape[1]
            lidar_id[part] = image.laser
            return_index[part] = image.return_index
            if classes is not None and instances is not None and image.segmentation is not None:
                instances[part], classes[part] = image.labels()
        flags[features[2] == 1] = NO_LABEL_ZONE
        return Sweep(
            sequence_id=self._sequence_id,
            frame_id=str(timestamp_us),
            timestamp_ns=timestamp_us * 1000,
            xyz=xyz,
            world_SE3_ego=world_SE3_ego,
            intensity=features[0],
            elongation=features[1],
            ring=ring,
            lidar_id=lidar_id,
            return_index=return_index,
            flags=flags,
            point_source_class=classes,
            instance_id=instances,
            boxes=boxes,
            motion_compensated=True,
            split=self._split,
        )

    def _check_complete(self, lasers: Sequence[LaserReturns]) -> None:
        found = [laser.laser for laser in lasers]
        twice = {laser for laser in found if found.count(laser) > 1}
        if twice:
            laser = min(twice)
            wheres = "; ".join(returns.where for returns in lasers if returns.laser == laser)
            raise DataError(f"laser {laser.name} occurs twice in the frame", where=wheres, expected="every laser once")
        for returns in lasers:
            if returns.laser not in self._calibrations:
                raise DataError(
                    f"laser {returns.laser.name} has no calibration",
                    where=returns.where,
                    expected=f"one of {', '.join(laser.name for laser in self._calibrations)}",
                )
        missing = sorted(set(self._calibrations) - set(found))
        if missing:
            raise DataError(
                f"the frame has no range image of laser {missing[0].name}",
                where=lasers[0].where if lasers else "",
                expected=f"all of {', '.join(laser.name for laser in sorted(self._calibrations))}",
            )

    def _rays_of(self, laser: Laser, height: int, width: int) -> Rays:
        key = (laser, height, width)
        if key not in self._rays:
            calibration = self._calibrations[laser]
            self._rays[key] = Rays(calibration.inclinations(height), calibration.ego_SE3_lidar, width)
        return self._rays[key]


class _Image:
    """The pixels with a return of one range image, checked."""

    def __init__(self, returns: LaserReturns, return_index: int) -> None:
        image = returns.range_images[return_index]
        assert image is not None
        self.laser = returns.laser
        self.return_index = return_index
        self.where = returns.where
        self.shape = (image.shape[0], image.shape[1])
        self.pixel_pose = returns.pixel_pose
        self.segmentation = None if returns.segmentation is None else returns.segmentation[return_index]
        what = f"the range image of return {return_index + 1} of laser {self.laser.name}"
        _check_shape(what, image.shape, (*self.shape, 4), self.where)
        if self.laser is Laser.TOP and self.pixel_pose is None:
            raise DataError(
                "laser TOP has no pixel poses", where=self.where, expected="the pose of every pixel of its range images"
            )
        if self.pixel_pose is not None:
            _check_shape("the pixel pose", self.pixel_pose.shape, (*self.shape, 6), self.where)
        if self.segmentation is not None:
            _check_shape("the segmentation", self.segmentation.shape, (*self.shape, 2), self.where)
        ranges = image[..., 0].reshape(-1)
        self.pixel: Index = np.flatnonzero(ranges > 0)
        # `take` is ten times as quick as an index.
        self.features: Float32 = np.take(image.reshape(-1, 4), self.pixel, axis=0).T
        # A sum is finite if all of its terms are, and NaN is not positive: only the sum over all pixels shows it.
        if not (np.isfinite(ranges.sum(dtype=np.float64)) and np.isfinite(self.features.sum(dtype=np.float64))):
            bad = np.argwhere(~np.isfinite(image))[0]
            raise DataError(
                f"{what} holds {image[tuple(bad)]} in row {bad[0]}, column {bad[1]}, channel {bad[2]}",
                where=self.where,
                expected="finite range, intensity, elongation and no-label zone",
            )

    def __len__(self) -> int:
        return len(self.pixel)

    def labels(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return instance id (-1: none) and source class of every point; both (N,) int32."""
        assert self.segmentation is not None
        instances, types = np.take(self.segmentation.reshape(-1, 2), self.pixel, axis=0).T
        wrong = types[(types < -1) | (types >= len(POINT_TYPES))]
        if len(wrong):
            raise DataError(
                f"a point of laser {self.laser.name} has the segmentation type {wrong[0]}",
                where=self.where,
                expected=f"0 to {len(POINT_TYPES) - 1}, or -1: no label",
            )
        # Labels of the release hold -1 beside the official ids (waymo-research/waymo-open-dataset, thread 586).
        return instances, np.where(types < 0, UNLABELLED_SOURCE, types)


def _check_shape(what: str, shape: tuple[int, ...], expected: tuple[int, ...], where: str) -> None:
    if shape != expected:
        raise DataError(f"{what} has the shape {shape}", where=where, expected=f"{expected}")
