"""A made-up Waymo segment as plain arrays, and the v2 Parquet components that hold it.

The world is known in closed form: a road at z = 0 and upright boxes on it. Every pixel of every laser is cast into it
from where the laser really was when the pixel was measured, so each range image comes with the 3D points that it must
turn into. The vehicle drives a left turn, rolls and pitches a little, and lies far from the world's origin.

    segment = make_segment(num_frames=3)          # TOP 8 × 90, the others 6 × 30
    write_v2(folder, segment, split="training")   # folder/training/COMPONENT/SEGMENT.parquet
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Array = npt.NDArray[Any]

TOP, FRONT, SIDE_LEFT, SIDE_RIGHT, REAR = 1, 2, 3, 4, 5
NAME = "10017090168044687777_6380_000_6400_000"
START_US = 1_550_083_467_346_370
PERIOD_US = 100_000
SWEEP_S = 0.1
ROAD, BUILDING, CAR, VEGETATION, UNDEFINED = 18, 14, 1, 15, 0


@dataclass
class Calibration:
    """How the official files describe a laser: `values` rise from the lowest beam; empty where beams are uniform."""

    extrinsic: Array
    inclination_min: float
    inclination_max: float
    values: list[float]


@dataclass
class Returns:
    """One laser in one frame, both returns. `truth`: (H, W, 3) points in the vehicle frame, NaN where there is none."""

    range_images: list[Array]
    truth: list[Array]
    pixel_pose: Array | None = None
    segmentation: list[Array] | None = None


@dataclass
class Object:
    """A box in the world that moves at a constant velocity, with its `Label.Type` (0: not annotated) and point type."""

    name: str
    label_type: int
    point_type: int
    center: Array
    size: Array
    heading: float
    velocity: Array

    def center_at(self, time_s: float) -> Array:
        return self.center + self.velocity * time_s


@dataclass
class Label:
    """A 3D label as the official files have it: centre and heading in the vehicle frame, speed in the world's axes."""

    name: str
    type: int
    center: Array
    size: Array
    heading: float
    speed: Array | None
    num_points: int
    num_top_points: int
    difficulty: int


@dataclass
class Frame:
    timestamp_us: int
    world_from_vehicle: Array
    returns: dict[int, Returns]
    labels: list[Label]


@dataclass
class Segment:
    name: str
    calibrations: dict[int, Calibration]
    frames: list[Frame] = field(default_factory=list)


def rotation(roll: float | Array, pitch: float | Array, yaw: float | Array) -> Array:
    """Rz(yaw) · Ry(pitch) · Rx(roll), by matrices: (..., 3, 3) of numbers or of (...) arrays."""
    cr, sr, cp, sp, cy, sy = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    zero, one = np.zeros_like(cr), np.ones_like(cr)
    rx = np.array([[one, zero, zero], [zero, cr, -sr], [zero, sr, cr]])
    ry = np.array([[cp, zero, sp], [zero, one, zero], [-sp, zero, cp]])
    rz = np.array([[cy, -sy, zero], [sy, cy, zero], [zero, zero, one]])
    rx, ry, rz = (np.moveaxis(matrix, (0, 1), (-2, -1)) for matrix in (rx, ry, rz))
    return rz @ ry @ rx


def transform(rpy: tuple[float, float, float], xyz: tuple[float, float, float]) -> Array:
    result = np.eye(4)
    result[:3, :3] = rotation(*rpy)
    result[:3, 3] = xyz
    return result


def ego_at(time_s: float | Array) -> tuple[Array, Array]:
    """Roll, pitch, yaw and position of the vehicle, (..., 3) each: 8 m/s in a left turn, 3 km from the origin."""
    yaw = 0.4 + 0.3 * time_s
    radius = 8.0 / 0.3
    position = np.stack([3000.0 + radius * np.sin(yaw), -1200.0 - radius * np.cos(yaw), 0.0 * yaw], axis=-1)
    return np.stack([0.02 * np.sin(3 * time_s), 0.015 * np.cos(2 * time_s), yaw], axis=-1), position


def pose_at(time_s: float) -> Array:
    angles, position = ego_at(time_s)
    return transform(tuple(angles), tuple(position))


def objects() -> list[Object]:
    """What stands and drives around the vehicle's start, given in its frame there."""

    def put(name: str, label: int, point: int, xy: tuple[float, float], size: tuple[float, ...], turn: float,
            speed: float) -> Object:  # fmt: skip
        angles, position = ego_at(0.0)
        yaw = float(angles[2])
        level = rotation(0.0, 0.0, yaw)
        center = position + level @ np.array([*xy, size[2] / 2])
        heading = yaw + turn
        velocity = speed * np.array([np.cos(heading), np.sin(heading), 0.0])
        return Object(name, label, point, center, np.array(size), heading, velocity)

    return [
        put("car-ahead", 1, CAR, (14.0, 1.0), (4.6, 2.0, 1.7), 0.2, 6.0),
        put("van-left", 1, CAR, (3.0, 6.0), (5.2, 2.1, 2.2), 0.0, 0.0),
        put("walker", 2, 7, (7.0, -5.0), (0.8, 0.7, 1.8), 1.5, 1.4),
        put("sign", 3, 8, (9.0, 6.0), (0.2, 0.9, 2.4), 0.1, 0.0),
        put("rider", 4, 6, (-9.0, -3.0), (1.8, 0.8, 1.7), -0.4, 3.0),
        put("house", 0, BUILDING, (10.0, -22.0), (30.0, 8.0, 9.0), 0.05, 0.0),
        put("wall", 0, BUILDING, (-25.0, 0.0), (2.0, 40.0, 12.0), 0.0, 0.0),
    ]


def calibrations(top_rows: int) -> dict[int, Calibration]:
    """Mounts like the real ones. TOP's beams are closer together near the horizon; the others' are uniform."""
    x = np.linspace(0.0, 1.0, top_rows)
    top_inclinations = np.radians(2.4 - 20.0 * x**1.7)[::-1]
    half = np.radians(90.0)
    side = {"inclination_min": -half, "inclination_max": np.radians(30.0), "values": []}
    return {
        # In the real files the order of calibrations is not that of the numbers.
        FRONT: Calibration(transform((0.01, 0.0, 0.02), (4.07, 0.0, 0.69)), **side),
        REAR: Calibration(transform((0.0, 0.01, 3.1), (-1.16, 0.0, 0.47)), **side),
        SIDE_LEFT: Calibration(transform((0.0, -0.01, 1.55), (3.25, 1.02, 0.98)), **side),
        SIDE_RIGHT: Calibration(transform((0.005, 0.0, -1.6), (3.25, -1.02, 0.98)), **side),
        TOP: Calibration(
            transform((0.006, -0.01, 2.6), (1.43, 0.0, 2.18)),
            float(top_inclinations[0]), float(top_inclinations[-1]), top_inclinations.tolist(),
        ),
    }  # fmt: skip


def make_segment(
    *,
    name: str = NAME,
    num_frames: int = 3,
    top: tuple[int, int] = (8, 90),
    side: tuple[int, int] = (6, 30),
    seed: int = 0,
    boxes: bool = True,
) -> Segment:
    """Cast a segment: every second frame, from the first, has segmentation; the last has no label at all.

    Args:
        name: The segment's context name.
        num_frames: Frames, 0.1 s apart.
        top: Rows and columns of TOP (really 64 × 2650).
        side: Those of the four others (really 200 × 600).
        seed: Of intensities, second returns and no-label zones.
        boxes: Whether there are labels, as in `training` and `validation`.
    """
    segment = Segment(name, calibrations(top[0]))
    rng = np.random.default_rng(seed)
    things = objects()
    for i in range(num_frames):
        time_s = i * PERIOD_US * 1e-6
        frame = Frame(START_US + i * PERIOD_US, pose_at(time_s), {}, [])
        for laser, calibration in segment.calibrations.items():
            shape = top if laser == TOP else side
            frame.returns[laser] = _cast(laser, calibration, shape, time_s, things, rng, labelled=i % 2 == 0)
        if boxes and i + 1 < num_frames:
            frame.labels = _labels(frame, things, time_s)
        segment.frames.append(frame)
    return segment


def _cast(
    laser: int,
    calibration: Calibration,
    shape: tuple[int, int],
    time_s: float,
    things: list[Object],
    rng: np.random.Generator,
    *,
    labelled: bool,
) -> Returns:
    height, width = shape
    if calibration.values:
        inclination = np.array(calibration.values)[::-1]
    else:
        step = (calibration.inclination_max - calibration.inclination_min) / height
        inclination = np.array([calibration.inclination_max - (row + 0.5) * step for row in range(height)])
    # The middle of column 0 is half a column from straight back, counted from the vehicle's x axis.
    azimuth = np.pi - (np.arange(width) + 0.5) * 2 * np.pi / width
    azimuth = azimuth - np.arctan2(calibration.extrinsic[1, 0], calibration.extrinsic[0, 0])
    directions = np.stack(
        [
            np.cos(inclination)[:, None] * np.cos(azimuth),
            np.cos(inclination)[:, None] * np.sin(azimuth),
            np.broadcast_to(np.sin(inclination)[:, None], shape),
        ],
        axis=-1,
    )
    # TOP's columns are measured one after the other around the frame's time, its rows a little apart; the images of the
    # others are as if measured at once.
    moment = np.zeros(shape)
    if laser == TOP:
        moment = (np.arange(width) / width - 0.5) * SWEEP_S + np.arange(height)[:, None] * 1e-5
    pose = np.concatenate(ego_at(time_s + moment), axis=-1)
    if laser == TOP:
        # What the file says is the truth: its poses are rounded to float32.
        pose = pose.astype(np.float32)
    angles, position = np.split(pose.astype(np.float64), 2, axis=-1)
    turns = rotation(*np.moveaxis(angles, -1, 0))
    in_vehicle = directions @ calibration.extrinsic[:3, :3].T
    world_rays = (turns @ in_vehicle[..., None])[..., 0]
    origins = turns @ calibration.extrinsic[:3, 3] + position
    distance, kind, owner = _intersect(origins, world_rays, time_s + moment, things)
    hit = (distance < 75.0 if laser == TOP else distance < 20.0) & (rng.random(shape) > 0.03)
    if laser != TOP:
        # Their field of view is a part of the circle, the image is the whole circle.
        forward = (calibration.extrinsic[:3, :3] @ [1.0, 0.0, 0.0])[:2]
        hit &= (in_vehicle[..., :2] @ forward) > 0
    second = hit & (rng.random(shape) < 0.2)
    returns = Returns([], [], pose if laser == TOP else None, [] if labelled and laser == TOP else None)
    to_vehicle = np.linalg.inv(pose_at(time_s))
    zone = np.where(np.cos(3 * azimuth) > 0.9, 1.0, -1.0)
    for number, valid in enumerate((hit, second)):
        ranges = np.where(valid, distance + 0.7 * number, -1.0).astype(np.float32)
        image = np.full((height, width, 4), -1.0, np.float32)
        image[..., 0] = ranges
        image[..., 1] = np.where(valid, rng.gamma(0.3, 2.0, shape), -1.0)
        image[..., 2] = np.where(valid, rng.random(shape), -1.0)
        image[..., 3] = np.where(valid, zone, -1.0)
        returns.range_images.append(image)
        world = origins + world_rays * ranges[..., None].astype(np.float64)
        truth = world @ to_vehicle[:3, :3].T + to_vehicle[:3, 3]
        returns.truth.append(np.where(valid[..., None], truth, np.nan))
        if returns.segmentation is not None:
            types = np.where(rng.random(shape) < 0.05, UNDEFINED, kind if number == 0 else VEGETATION)
            instances = np.where((types == kind) & (owner >= 0), owner + 1, 0)
            labels = np.stack([instances, types], axis=-1).astype(np.int32)
            returns.segmentation.append(np.where(valid[..., None], labels, 0).astype(np.int32))
    return returns


def _intersect(origins: Array, rays: Array, times: Array, things: list[Object]) -> tuple[Array, Array, Array]:
    """Distance to the road or a box, `Segmentation.Type` there, and the object's number (-1: the road)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(rays[..., 2] < 0, -origins[..., 2] / rays[..., 2], np.inf)
        kind = np.full(distance.shape, ROAD)
        owner = np.full(distance.shape, -1)
        for number, thing in enumerate(things):
            turn = rotation(0.0, 0.0, thing.heading)
            local = (origins - thing.center - thing.velocity * times[..., None]) @ turn
            local_rays = rays @ turn
            one, two = (-thing.size / 2 - local) / local_rays, (thing.size / 2 - local) / local_rays
            near = np.minimum(one, two).max(axis=-1)
            far = np.maximum(one, two).min(axis=-1)
            closer = (near > 0) & (near < far) & (near < distance)
            distance = np.where(closer, near, distance)
            kind = np.where(closer, thing.point_type, kind)
            owner = np.where(closer, number, owner)
    return distance, kind, owner


def _labels(frame: Frame, things: list[Object], time_s: float) -> list[Label]:
    to_vehicle = np.linalg.inv(frame.world_from_vehicle)
    vehicle_yaw = np.arctan2(frame.world_from_vehicle[1, 0], frame.world_from_vehicle[0, 0])
    labels = []
    for number, thing in enumerate(thing for thing in things if thing.label_type):
        center = to_vehicle[:3, :3] @ thing.center_at(time_s) + to_vehicle[:3, 3]
        heading = (thing.heading - vehicle_yaw + np.pi) % (2 * np.pi) - np.pi
        counts = {}
        for laser, returns in frame.returns.items():
            points = np.concatenate([truth[np.isfinite(truth[..., 0])] for truth in returns.truth])
            local = (points - center) @ rotation(0.0, 0.0, heading)
            counts[laser] = int((np.abs(local) <= thing.size / 2 + 0.02).all(axis=1).sum())
        # Parked objects carry no speed in this made-up segment, and the last object has no difficulty.
        speed = thing.velocity if thing.velocity.any() else None
        labels.append(
            Label(thing.name, thing.label_type, center, thing.size, float(heading), speed, sum(counts.values()),
                  counts[TOP], (1, 2, 0)[number % 3])
        )  # fmt: skip
    return labels


COMPONENTS = ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box", "lidar_segmentation")

_MATRIX = pa.list_(pa.float64(), 16)
_SHAPE = pa.list_(pa.int32(), 3)


def v2_tables(segment: Segment) -> dict[str, pa.Table]:
    """The official v2 components as tables: names, types and nulls as the official package writes them."""
    return {
        "lidar": _lidar(segment),
        "lidar_pose": _lidar_pose(segment),
        "lidar_calibration": _lidar_calibration(segment),
        "vehicle_pose": _vehicle_pose(segment),
        "lidar_box": _lidar_box(segment),
        "lidar_segmentation": _lidar_segmentation(segment),
    }


def write_v2(
    root: Path,
    segment: Segment,
    *,
    split: str | None = "training",
    row_group_size: int | None = None,
    tables: dict[str, pa.Table] | None = None,
) -> Path:
    """Write the components of a segment; return the folder that holds the components' folders.

    Args:
        root: Folder of the splits.
        segment: The segment.
        split: Folder of the split; None writes to `root` itself.
        row_group_size: Rows a row group; None puts a whole component into one.
        tables: Written instead of `v2_tables(segment)`; a component that is not in it has no file.
    """
    folder = root if split is None else root / split
    for component, table in (v2_tables(segment) if tables is None else tables).items():
        (folder / component).mkdir(parents=True, exist_ok=True)
        path = folder / component / f"{segment.name}.parquet"
        pq.write_table(table, path, row_group_size=row_group_size or max(1, len(table)), compression="snappy")
    return folder


def _keys(segment: Segment, rows: list[tuple[int, int]]) -> dict[str, pa.Array]:
    return {
        "key.segment_context_name": pa.array([segment.name] * len(rows), pa.string()),
        "key.frame_timestamp_micros": pa.array([time for time, _ in rows], pa.int64()),
        "key.laser_name": pa.array([laser for _, laser in rows], pa.int8()),
    }


def _image_columns(component: str, number: int, images: list[Array | None], kind: pa.DataType) -> dict[str, pa.Array]:
    prefix = f"[{component}].range_image_return{number}"
    filled = [image for image in images if image is not None]
    flat = np.concatenate([image.reshape(-1) for image in filled]) if filled else np.zeros(0)
    offsets = np.cumsum([0] + [0 if image is None else image.size for image in images])
    values = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(flat, kind), mask=pa.array([image is None for image in images])
    )
    shapes = [None if image is None else list(image.shape) for image in images]
    return {f"{prefix}.values": values, f"{prefix}.shape": pa.array(shapes, _SHAPE)}


def _lidar(segment: Segment) -> pa.Table:
    rows = [(frame.timestamp_us, laser) for frame in segment.frames for laser in sorted(frame.returns)]
    returns = [frame.returns[laser] for frame in segment.frames for laser in sorted(frame.returns)]
    columns = _keys(segment, rows)
    for number in (1, 2):
        images = [r.range_images[number - 1] for r in returns]
        columns |= _image_columns("LiDARComponent", number, images, pa.float32())
    return pa.table(columns)


def _lidar_pose(segment: Segment) -> pa.Table:
    rows = [(frame.timestamp_us, TOP) for frame in segment.frames]
    images = [frame.returns[TOP].pixel_pose for frame in segment.frames]
    return pa.table(_keys(segment, rows) | _image_columns("LiDARPoseComponent", 1, images, pa.float32()))


def _lidar_segmentation(segment: Segment) -> pa.Table:
    frames = [frame for frame in segment.frames if frame.returns[TOP].segmentation is not None]
    columns = _keys(segment, [(frame.timestamp_us, TOP) for frame in frames])
    for number in (1, 2):
        images = [(frame.returns[TOP].segmentation or [])[number - 1] for frame in frames]
        columns |= _image_columns("LiDARSegmentationLabelComponent", number, images, pa.int32())
    return pa.table(columns)


def _lidar_calibration(segment: Segment) -> pa.Table:
    prefix = "[LiDARCalibrationComponent]"
    calibrations = list(segment.calibrations.values())
    return pa.table(
        {
            "key.segment_context_name": pa.array([segment.name] * len(calibrations), pa.string()),
            "key.laser_name": pa.array(list(segment.calibrations), pa.int8()),
            f"{prefix}.extrinsic.transform": pa.array([c.extrinsic.ravel().tolist() for c in calibrations], _MATRIX),
            f"{prefix}.beam_inclination.min": pa.array([c.inclination_min for c in calibrations], pa.float64()),
            f"{prefix}.beam_inclination.max": pa.array([c.inclination_max for c in calibrations], pa.float64()),
            f"{prefix}.beam_inclination.values": pa.array(
                [c.values or None for c in calibrations], pa.list_(pa.float64())
            ),
        }
    )


def _vehicle_pose(segment: Segment) -> pa.Table:
    poses = [frame.world_from_vehicle.ravel().tolist() for frame in segment.frames]
    return pa.table(
        {
            "key.segment_context_name": pa.array([segment.name] * len(poses), pa.string()),
            "key.frame_timestamp_micros": pa.array([f.timestamp_us for f in segment.frames], pa.int64()),
            "[VehiclePoseComponent].world_from_vehicle.transform": pa.array(poses, _MATRIX),
        }
    )


def _lidar_box(segment: Segment) -> pa.Table:
    labels = [(frame.timestamp_us, label) for frame in segment.frames for label in frame.labels]
    prefix = "[LiDARBoxComponent]"
    columns = {
        "key.segment_context_name": pa.array([segment.name] * len(labels), pa.string()),
        "key.frame_timestamp_micros": pa.array([time for time, _ in labels], pa.int64()),
        "key.laser_object_id": pa.array([label.name for _, label in labels], pa.string()),
    }
    for axis, letter in enumerate("xyz"):
        columns[f"{prefix}.box.center.{letter}"] = pa.array([float(b.center[axis]) for _, b in labels], pa.float64())
    for axis, letter in enumerate("xyz"):
        columns[f"{prefix}.box.size.{letter}"] = pa.array([float(b.size[axis]) for _, b in labels], pa.float64())
    columns |= {
        f"{prefix}.box.heading": pa.array([b.heading for _, b in labels], pa.float64()),
        f"{prefix}.type": pa.array([b.type for _, b in labels], pa.int8()),
        f"{prefix}.num_lidar_points_in_box": pa.array([b.num_points for _, b in labels], pa.int64()),
        f"{prefix}.num_top_lidar_points_in_box": pa.array([b.num_top_points for _, b in labels], pa.int64()),
    }
    for what in ("speed", "acceleration"):
        for axis, letter in enumerate("xyz"):
            values = [None if b.speed is None else float(b.speed[axis]) if what == "speed" else 0.0 for _, b in labels]
            columns[f"{prefix}.{what}.{letter}"] = pa.array(values, pa.float64())
    for what in ("detection", "tracking"):
        levels = [b.difficulty or None for _, b in labels]
        columns[f"{prefix}.difficulty_level.{what}"] = pa.array(levels, pa.int8())
    return pa.table(columns)
