"""The lasers of the Waymo Open Dataset: how they are mounted, where their pixels look, and what points that makes.

A range image has a row a beam (row 0 is the top one) and a column a firing angle (column 0 looks backwards, the next
ones turn clockwise); its channels are range (m), intensity, elongation, and whether the point lies in a no-label zone.
A pixel without a return has a range that is not positive.

Points leave in the vehicle frame at the frame's time: x forward, y left, z up, origin on the ground under the middle of
the rear axle. TOP turns while the vehicle drives; every pixel of its images has a pose of the vehicle of its own, by
which its point is corrected. Those of the other four are stored corrected.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.schema.sensors import LidarSpec, as_matrix

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

_CHUNK = 16384
"""Points computed at a time: the intermediate arrays stay in the cache, which is twice as quick."""
_SMALL_RAD = 0.05
"""Up to here the series of sine and cosine need but five terms."""


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
            pixel_pose: (H, W, 6) float32 roll, pitch, yaw, x, y, z of the vehicle in the world at each pixel's time;
                None if the ranges belong to the frame's time.
            world_SE3_ego: (4, 4) float64 pose of the vehicle at the frame's time; needed with `pixel_pose`.
        """
        poses = None if pixel_pose is None else pixel_pose.reshape(-1, 6)
        for start in range(0, len(pixel), _CHUNK):
            part = slice(start, start + _CHUNK)
            xyz = np.take(self._directions, pixel[part], axis=1)
            xyz *= range_m[part]
            xyz += self._origin
            if poses is not None and world_SE3_ego is not None:
                xyz = _by_pixel_pose(xyz, np.take(poses, pixel[part], axis=0), world_SE3_ego)
            out[part] = xyz.T


def _by_pixel_pose(xyz: Float64, pose: Float32, world_SE3_ego: Float64) -> Float64:
    """Take (3, N) points from the vehicle at their own (N, 6) poses to the vehicle at the frame's time."""
    roll, pitch, yaw, *position = np.ascontiguousarray(pose.T, dtype=np.float64)
    x, y, z = xyz
    s, c = _sin_cos(roll)
    y, z = c * y - s * z, s * y + c * z
    s, c = _sin_cos(pitch)
    x, z = c * x + s * z, c * z - s * x
    s, c = _sin_cos(yaw)
    xyz[0] = c * x - s * y
    xyz[1] = s * x + c * y
    xyz[2] = z
    # The frame's position goes off before the turn: world coordinates reach tens of kilometres.
    for axis in range(3):
        xyz[axis] += position[axis] - world_SE3_ego[axis, 3]
    return world_SE3_ego[:3, :3].T @ xyz


def _sin_cos(angle: Float64) -> tuple[Float64, Float64]:
    """Return sine and cosine of (N,) angles, to the last digits.

    The vehicle turns little while a part of an image is measured. So the angles are taken from the first of them, where
    the series is short (its next terms are below 1e-17), which takes a third of the time of :func:`numpy.sin`.
    """
    first = angle[0]
    d = angle - first
    if not np.abs(d).max() < _SMALL_RAD:  # also if one is not finite
        return np.sin(angle), np.cos(angle)
    d2 = d * d
    sin_d = d * (1 + d2 * (-1 / 6 + d2 * (1 / 120 + d2 * (-1 / 5040 + d2 * (1 / 362880)))))
    cos_d = 1 + d2 * (-1 / 2 + d2 * (1 / 24 + d2 * (-1 / 720 + d2 * (1 / 40320))))
    s, c = np.sin(first), np.cos(first)
    return s * cos_d + c * sin_d, c * cos_d - s * sin_d


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
