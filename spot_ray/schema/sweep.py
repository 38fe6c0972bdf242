"""One LiDAR sweep with its annotations: what a converter hands in and a reader gets back."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry import se3

NO_LABEL_ZONE = 1
"""Bit of `Sweep.flags`: the point lies in a zone that was not annotated."""

POINT_DTYPES: dict[str, type[np.generic]] = {
    "intensity": np.float32,
    "elongation": np.float32,
    "ring": np.uint16,
    "lidar_id": np.uint8,
    "return_index": np.uint8,
    "time_offset_ns": np.int32,
    "flags": np.uint8,
    "point_source_class": np.uint16,
    "instance_id": np.int32,
}
"""The optional point columns beside `xyz`, and their dtype in memory."""

BOX_COLUMNS: dict[str, tuple[type[np.generic], int]] = {
    "velocity": (np.float32, 3),
    "num_lidar_points": (np.int32, 1),
    "num_radar_points": (np.int32, 1),
    "box_2d": (np.float32, 4),
    "truncation": (np.float32, 1),
    "occlusion": (np.int32, 1),
    "difficulty": (np.int32, 1),
    "interpolated": (np.bool_, 1),
}
"""The optional numeric box columns: dtype and width."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """The annotated boxes of a frame, in the ego frame. What a source lacks is None, never made up.

    Args:
        boxes: (M, 7) float32 `[x, y, z, dx, dy, dz, yaw]`: centre, full sizes in metres, yaw in radians.
        source_class: (M,) uint16 source class id (see :class:`~spot_ray.schema.taxonomy.Taxonomy`).
        track_id: M strings that name the same object over a sequence.
        velocity: (M, 3) float32 over ground in ego axes, m/s; NaN where unknown.
        num_lidar_points: (M,) int32.
        num_radar_points: (M,) int32.
        box_2d: (M, 4) float32 left, top, right, bottom in pixels.
        truncation: (M,) float32, 0 to 1.
        occlusion: (M,) int32, the source's own levels.
        difficulty: (M,) int32, the source's own levels.
        interpolated: (M,) bool, True for a box that was interpolated between annotated frames.
        attribute: M strings.

    Raises:
        DataError: If the columns disagree in length, or a box is not finite or has a size that is not positive.
    """

    boxes: npt.NDArray[np.float32]
    source_class: npt.NDArray[np.uint16]
    track_id: list[str] | None = None
    velocity: npt.NDArray[np.float32] | None = None
    num_lidar_points: npt.NDArray[np.int32] | None = None
    num_radar_points: npt.NDArray[np.int32] | None = None
    box_2d: npt.NDArray[np.float32] | None = None
    truncation: npt.NDArray[np.float32] | None = None
    occlusion: npt.NDArray[np.int32] | None = None
    difficulty: npt.NDArray[np.int32] | None = None
    interpolated: npt.NDArray[np.bool_] | None = None
    attribute: list[str] | None = None

    def __post_init__(self) -> None:
        """Check lengths, finiteness and sizes."""
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 7:
            raise DataError(f"boxes have the shape {self.boxes.shape}", expected="(M, 7): x, y, z, dx, dy, dz, yaw")
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and len(value) != len(self.boxes):
                raise DataError(f"{len(value)} values in the box column {f.name!r}", expected=f"{len(self.boxes)}")
        wrong = ~np.isfinite(self.boxes).all(axis=1) | (self.boxes[:, 3:6] <= 0).any(axis=1)
        if wrong.any():
            m = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"box {m} is {self.boxes[m].tolist()}", expected="finite numbers and positive sizes dx, dy, dz"
            )

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.boxes)

    @staticmethod
    def empty() -> Boxes:
        """Return no boxes: an annotated frame in which nothing is."""
        return Boxes(np.zeros((0, 7), np.float32), np.zeros(0, np.uint16), track_id=[])


@dataclass(frozen=True, eq=False)
class Sweep:
    """One sweep. Points are in the ego frame in metres: x forward, y left, z up, z = 0 on the ground under the vehicle.

    Args:
        sequence_id: The log or sequence.
        frame_id: Unique within the sequence.
        timestamp_ns: Nanoseconds since the epoch; grows within a sequence.
        xyz: (N, 3) float32, metres, ego frame.
        world_SE3_ego: (4, 4) float64 pose of the vehicle, or None.
        intensity: (N,) float32 as the source gives it.
        elongation: (N,) float32 as the source gives it.
        ring: (N,) uint16 beam of the LiDAR that fired.
        lidar_id: (N,) uint8; None means the first LiDAR of the rig.
        return_index: (N,) uint8, 0 for the first return.
        time_offset_ns: (N,) int32, firing time minus `timestamp_ns`.
        flags: (N,) uint8 bits, see `NO_LABEL_ZONE`.
        point_source_class: (N,) uint16 source class id; 65535 where unlabelled.
        instance_id: (N,) int32; -1 where none.
        extra: The source's own columns, (N,) each, of any numeric dtype.
        boxes: Annotated boxes, or None if the frame is not annotated.
        ignore_regions: (K, 7) float32 boxes in which nothing counts, or None.
        motion_compensated: Whether the points are corrected for the ego's motion within the sweep; None if unknown.
        sweep_pose_time_offset_ns: (P,) int64 times of the poses within the sweep, or None.
        sweep_poses: (P, 4, 4) float64 `world_SE3_ego` at those times, or None.
        calibration: The source's camera calibration and image sizes as JSON text, or None.
        ignore_boxes_2d: (K, 4) float32 left, top, right, bottom in pixels in which nothing counts, or None.
        keyframe: False for a sweep that the source recorded between the frames that it annotates.
        split: The source's official split that the sequence belongs to (`train`, `val`, `test` …), or None.

    Raises:
        DataError: If an id is empty, a column is no array of numbers, the columns disagree in length, a coordinate is
            not finite, there are no points, or a pose is not rigid.
    """

    sequence_id: str
    frame_id: str
    timestamp_ns: int
    xyz: npt.NDArray[np.float32]
    world_SE3_ego: npt.NDArray[np.float64] | None = None
    intensity: npt.NDArray[np.float32] | None = None
    elongation: npt.NDArray[np.float32] | None = None
    ring: npt.NDArray[np.uint16] | None = None
    lidar_id: npt.NDArray[np.uint8] | None = None
    return_index: npt.NDArray[np.uint8] | None = None
    time_offset_ns: npt.NDArray[np.int32] | None = None
    flags: npt.NDArray[np.uint8] | None = None
    point_source_class: npt.NDArray[np.uint16] | None = None
    instance_id: npt.NDArray[np.int32] | None = None
    extra: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    boxes: Boxes | None = None
    ignore_regions: npt.NDArray[np.float32] | None = None
    motion_compensated: bool | None = None
    sweep_pose_time_offset_ns: npt.NDArray[np.int64] | None = None
    sweep_poses: npt.NDArray[np.float64] | None = None
    calibration: str | None = None
    ignore_boxes_2d: npt.NDArray[np.float32] | None = None
    keyframe: bool = True
    split: str | None = None

    def __post_init__(self) -> None:
        """Check what every later stage relies on."""
        if not all(isinstance(name, str) and name and "\0" not in name for name in (self.sequence_id, self.frame_id)):
            raise DataError(
                f"the ids are {self.sequence_id!r} and {self.frame_id!r}",
                expected="strings, not empty, no zero character",
            )
        arrays = {"xyz": self.xyz, **{name: getattr(self, name) for name in POINT_DTYPES}, **self.extra}
        for column, values in arrays.items():
            if values is not None and (not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf"):
                kind = f"of dtype {values.dtype}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
                raise DataError(f"{column} is {kind}", where=self.name, expected="a NumPy array of numbers")
        if self.boxes is not None and not isinstance(self.boxes, Boxes):
            raise DataError(f"boxes is a {type(self.boxes).__name__}", where=self.name, expected="spot_ray.Boxes")
        if self.xyz.ndim != 2 or self.xyz.shape[1] != 3:
            raise DataError(f"xyz has the shape {self.xyz.shape}", where=self.name, expected="(N, 3)")
        if not len(self.xyz):
            raise DataError("the sweep has no points", where=self.name, remedy="leave such frames out of the source")
        for column in (*POINT_DTYPES, *self.extra):
            values = self.extra[column] if column in self.extra else getattr(self, column)
            if values is not None and values.shape != (len(self.xyz),):
                raise DataError(
                    f"point column {column!r} has the shape {values.shape}",
                    where=self.name,
                    expected=f"({len(self.xyz)},), one value a point",
                )
        if not np.isfinite(self.xyz).all():
            bad = ~np.isfinite(self.xyz).all(axis=1)
            raise DataError(
                f"{int(bad.sum())} of {len(self.xyz)} points have coordinates that are not finite, the first is point "
                f"{int(np.flatnonzero(bad)[0])}",
                where=self.name,
                expected="finite metres",
                remedy="remove points without a return before writing",
            )
        if self.world_SE3_ego is not None and not se3.is_rigid(self.world_SE3_ego):
            raise DataError("world_SE3_ego is not a rigid transform", where=self.name, expected="4 × 4, orthonormal")

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.xyz)

    @property
    def name(self) -> str:
        """`SEQUENCE/FRAME`, as messages and the command line write it."""
        return f"{self.sequence_id}/{self.frame_id}"
