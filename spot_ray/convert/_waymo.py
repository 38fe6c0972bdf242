"""What both formats of the Waymo Open Dataset share: lasers, range images to points, and the sweep of one frame.

A range image has a row a beam (row 0 is the top one) and a column a firing angle (column 0 looks backwards, the next
ones turn clockwise); its channels are range (m), intensity, elongation, and whether the point lies in a no-label zone.
A pixel without a return has a range that is not positive.

Points leave in the vehicle frame at the frame's time: x forward, y left, z up, origin on the ground under the middle of
the rear axle. TOP turns while the vehicle drives; every pixel of its images has a pose of the vehicle of its own, by
which its point is corrected. Those of the other four are stored corrected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from spot_ray.convert._waymo_taxonomy import BOX_CLASS_OFFSET, BOX_TYPES, POINT_TYPES
from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.schema.sensors import LidarSpec, as_matrix
from spot_ray.schema.sweep import NO_LABEL_ZONE, Boxes, Sweep
from spot_ray.schema.taxonomy import UNLABELLED_SOURCE

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

_CHUNK = 16384
"""Points computed at a time: the intermediate arrays stay in the cache, which is twice as quick."""


class Laser(IntEnum):
    """The lasers by their official number, which is the `lidar_id` of their points."""

    TOP = 1
    FRONT = 2
    SIDE_LEFT = 3
    SIDE_RIGHT = 4
    REAR = 5

    @classmethod
    def numbered(cls, number: int, *, where: str) -> Laser:
        """Return the laser of a number.

        Args:
            number: As the files give it.
            where: The file and row, for messages.

        Raises:
            DataError: If no laser has it.
        """
        try:
            return cls(number)
        except ValueError:
            raise DataError(
                f"a laser has the number {number}",
                where=where,
                expected=", ".join(f"{laser.value} {laser.name}" for laser in cls),
            ) from None


@dataclass(frozen=True, eq=False)
class LaserCalibration:
    """How a laser of a segment is mounted and where its beams point.

    Args:
        laser: The laser.
        ego_SE3_lidar: (4, 4) float64 extrinsic.
        inclination_min: Lowest inclination of the uniform beams, radians.
        inclination_max: Highest, radians.
        inclination_values: (H,) float64 inclinations from the lowest beam up, radians, or None: the beams are uniform.
        where: The file and row that it comes from, for messages.

    Raises:
        DataError: If the extrinsic is not rigid, or inclinations are not finite or do not go up.
    """

    laser: Laser
    ego_SE3_lidar: Float64
    inclination_min: float
    inclination_max: float
    inclination_values: Float64 | None
    where: str

    def __post_init__(self) -> None:
        """Check what every point relies on."""
        if not se3.is_rigid(self.ego_SE3_lidar):
            raise DataError(
                f"the extrinsic of laser {self.laser.name} is not a rigid transform: {self.ego_SE3_lidar.tolist()}",
                where=self.where,
                expected="4 × 4, orthonormal",
            )
        values = self.inclination_values
        if values is None:
            values = np.array([self.inclination_min, self.inclination_max])
        if not np.isfinite(values).all() or values[0] >= values[-1]:
            raise DataError(
                f"the inclinations of laser {self.laser.name} are {values.tolist()}",
                where=self.where,
                expected="finite radians, from the lowest beam to the highest",
            )

    def inclinations(self, height: int) -> Float64:
        """Return the (height,) float64 inclination of every row of a range image, the top row first, radians.

        Raises:
            DataError: If the laser has another number of beams.
        """
        if self.inclination_values is None:
            span = self.inclination_max - self.inclination_min
            return ((np.arange(height) + 0.5) / height * span + self.inclination_min)[::-1].copy()
        if len(self.inclination_values) != height:
            raise DataError(
                f"laser {self.laser.name} has {len(self.inclination_values)} inclinations for {height} rows",
                where=self.where,
                expected="one inclination a row of its range images",
            )
        return self.inclination_values[::-1].copy()


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


class Rays:
    """The directions in which the pixels of a laser look, worked out once for all of its frames.

    A pixel's point in the ego frame is `origin + range · direction`. The azimuth of a column is corrected by the yaw of
    the mount, so that all lasers have the same column look to the same side of the vehicle.

    Args:
        inclinations: (H,) float64, the top row first, radians.
        extrinsic: (4, 4) float64 `ego_SE3_lidar`.
        width: Number of columns W.
    """

    def __init__(self, inclinations: Float64, extrinsic: Float64, width: int) -> None:
        self.shape = (len(inclinations), width)
        columns = np.arange(width, 0, -1, dtype=np.float64)
        azimuth = ((columns - 0.5) / width * 2 - 1) * np.pi - np.arctan2(extrinsic[1, 0], extrinsic[0, 0])
        in_lidar = np.empty((3, *self.shape))
        in_lidar[0] = np.cos(inclinations)[:, None] * np.cos(azimuth)
        in_lidar[1] = np.cos(inclinations)[:, None] * np.sin(azimuth)
        in_lidar[2] = np.sin(inclinations)[:, None]
        self._directions = extrinsic[:3, :3] @ in_lidar.reshape(3, -1)
        self._origin = extrinsic[:3, 3:]

    def points(
        self,
        pixel: Index,
        range_m: Float32,
        out: Float32 | Float64,
        *,
        pixel_pose: Float32 | None = None,
        world_SE3_ego: Float64 | None = None,
    ) -> None:
        """Work out points in float64 and write them to `out`.

        Args:
            pixel: (N,) index of each point's pixel, row · W + column.
            range_m: (N,) its range.
            out: (N, 3) of any float dtype: x, y, z in the ego frame at the frame's time, metres.
            pixel_pose: (H, W, 6), see :class:`LaserReturns`; None if the ranges belong to the frame's time.
            world_SE3_ego: (4, 4) float64 pose of the vehicle at the frame's time; needed with `pixel_pose`.
        """
        poses = None if pixel_pose is None else pixel_pose.reshape(-1, 6)
        for start in range(0, len(pixel), _CHUNK):
            part = slice(start, start + _CHUNK)
            xyz = np.take(self._directions, pixel[part], axis=1)
            xyz *= range_m[part]
            xyz += self._origin
            if poses is not None and world_SE3_ego is not None:
                xyz = _by_pixel_pose(xyz, poses[pixel[part]], world_SE3_ego)
            out[part] = xyz.T


def _by_pixel_pose(xyz: Float64, pose: Float32, world_SE3_ego: Float64) -> Float64:
    """Take (3, N) points from the vehicle at their own (N, 6) poses to the vehicle at the frame's time."""
    roll, pitch, yaw, *position = np.ascontiguousarray(pose.T, dtype=np.float64)
    x, y, z = xyz
    c, s = np.cos(roll), np.sin(roll)
    y, z = c * y - s * z, s * y + c * z
    c, s = np.cos(pitch), np.sin(pitch)
    x, z = c * x + s * z, c * z - s * x
    c, s = np.cos(yaw), np.sin(yaw)
    xyz[0] = c * x - s * y
    xyz[1] = s * x + c * y
    xyz[2] = z
    # The frame's position goes off before the turn: world coordinates reach tens of kilometres.
    for axis in range(3):
        xyz[axis] += position[axis] - world_SE3_ego[axis, 3]
    return world_SE3_ego[:3, :3].T @ xyz


def range_image_to_points(
    range_image: Float32,
    inclinations: Float64,
    extrinsic: Float64,
    *,
    pixel_pose: Float32 | None = None,
    world_SE3_ego: Float64 | None = None,
) -> tuple[Float64, Index, Index, npt.NDArray[np.bool_]]:
    """Return the points of one range image, in float64.

    Args:
        range_image: (H, W, 4) float32.
        inclinations: (H,) float64, the top row first, radians.
        extrinsic: (4, 4) float64 `ego_SE3_lidar`.
        pixel_pose: (H, W, 6) float32 poses of the vehicle in the world at each pixel's time, of TOP only.
        world_SE3_ego: (4, 4) float64 pose of the vehicle at the frame's time; needed with `pixel_pose`.

    Returns:
        (N, 3) float64 points in the ego frame, metres, row by row; their (N,) rows and (N,) columns; the (H, W) mask of
        pixels with a return.
    """
    mask = range_image[..., 0] > 0
    pixel = np.flatnonzero(mask)
    xyz = np.empty((len(pixel), 3))
    rays = Rays(inclinations, extrinsic, range_image.shape[1])
    ranges = range_image[..., 0].reshape(-1)[pixel]
    rays.points(pixel, ranges, xyz, pixel_pose=pixel_pose, world_SE3_ego=world_SE3_ego)
    rows, columns = np.divmod(pixel, range_image.shape[1])
    return xyz, rows, columns, mask


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
        self.features: Float32 = np.ascontiguousarray(image.reshape(-1, 4)[self.pixel].T)
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
        """Return instance id and `Segmentation.Type` of every point; both (N,) int32."""
        assert self.segmentation is not None
        instances, types = np.ascontiguousarray(self.segmentation.reshape(-1, 2)[self.pixel].T)
        if len(types) and not 0 <= types.min() <= types.max() < len(POINT_TYPES):
            wrong = int(types[(types < 0) | (types >= len(POINT_TYPES))][0])
            raise DataError(
                f"a point of laser {self.laser.name} has the segmentation type {wrong}",
                where=self.where,
                expected=f"0 to {len(POINT_TYPES) - 1}",
            )
        return instances, types


def _check_shape(what: str, shape: tuple[int, ...], expected: tuple[int, ...], where: str) -> None:
    if shape != expected:
        raise DataError(f"{what} has the shape {shape}", where=where, expected=f"{expected}")


@dataclass(frozen=True, eq=False)
class BoxLabels:
    """The 3D labels of one frame as both formats have them.

    Args:
        boxes: (M, 7) float64 centre, length, width, height, heading in the ego frame.
        types: (M,) `Label.Type`.
        ids: M ids, unique within the frame and constant over the segment.
        velocity_world: (M, 3) float64 m/s in world axes, NaN where unknown; None if the segment has none.
        num_lidar_points: (M,) points of all lasers.
        difficulty: (M,) detection difficulty as labelled: 0 unknown, 1, 2; None if the segment has none.
        where: The file that they come from, for messages.
    """

    boxes: Float64
    types: npt.NDArray[np.integer]
    ids: list[str]
    velocity_world: Float64 | None
    num_lidar_points: npt.NDArray[np.integer] | None
    difficulty: npt.NDArray[np.integer] | None
    where: str


def boxes_of(labels: BoxLabels, world_SE3_ego: Float64) -> Boxes:
    """Return the boxes of a frame, their velocity over ground turned from world to ego axes.

    The dataset's authors say that speeds are in the global frame, derived from the boxes' centres over time
    (waymo-research/waymo-open-dataset, thread 39).

    Raises:
        DataError: If a type is unknown, an id occurs twice, or a box is not finite or has no size.
    """
    unknown = ~np.isin(labels.types, np.arange(len(BOX_TYPES)))
    if unknown.any():
        raise DataError(
            f"box {labels.ids[int(np.flatnonzero(unknown)[0])]!r} has the type {int(labels.types[unknown][0])}",
            where=labels.where,
            expected=f"0 to {len(BOX_TYPES) - 1}",
        )
    if len(set(labels.ids)) != len(labels.ids):
        twice = sorted({i for i in labels.ids if labels.ids.count(i) > 1})[0]
        raise DataError(f"box {twice!r} occurs twice in the frame", where=labels.where, expected="every object once")
    velocity = None
    if labels.velocity_world is not None:
        velocity = (labels.velocity_world @ world_SE3_ego[:3, :3]).astype(np.float32)
    try:
        return Boxes(
            boxes=labels.boxes.astype(np.float32),
            source_class=(labels.types.astype(np.uint16) + BOX_CLASS_OFFSET).astype(np.uint16),
            track_id=list(labels.ids),
            velocity=velocity,
            num_lidar_points=None if labels.num_lidar_points is None else labels.num_lidar_points.astype(np.int32),
            difficulty=None if labels.difficulty is None else labels.difficulty.astype(np.int32),
        )
    except DataError as error:
        raise DataError(error.what, where=labels.where, expected=error.expected, remedy=error.remedy) from None


def lidar_spec(calibration: LaserCalibration, shape: tuple[int, int]) -> LidarSpec:
    """Return the spec of a laser.

    TOP is a 64-beam spinner whose rows are rings. The four short-range ones scan 200 rows through a field of view of 90
    to 180 degrees: they are `solid_state`, since the re-sampling of beams is made for spinners.

    Args:
        calibration: Of a segment; others differ by a few hundredths of a degree.
        shape: (rows, columns) of its range images.
    """
    inclinations = np.degrees(calibration.inclinations(shape[0]))
    spins = calibration.laser is Laser.TOP
    return LidarSpec(
        name=calibration.laser.name,
        lidar_id=int(calibration.laser),
        kind="spinning" if spins else "solid_state",
        num_beams=shape[0],
        vfov_deg=(float(inclinations.min()), float(inclinations.max())),
        inclinations_deg=tuple(inclinations.tolist()),
        ego_SE3_lidar=as_matrix(calibration.ego_SE3_lidar),
        columns=shape[1] if spins else None,
        rate_hz=10.0,
        intensity_max=None,
    )
