"""nuScenes' boxes in the ego frame, at keyframes and interpolated between them."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from spot_ray.convert._nuscenes_index import Annotations
from spot_ray.convert._nuscenes_tables import Float
from spot_ray.geometry import se3
from spot_ray.schema.nuscenes import VELOCITY_MAX_GAP_S
from spot_ray.schema.sweep import Boxes


@dataclasses.dataclass(frozen=True, eq=False)
class _GlobalBoxes:
    """Boxes in the global frame: (M, 7) pose, (M, 3) size, (M, 3) velocity, (M,) instance as in `Annotations`."""

    pose: Float
    size_lwh: Float
    velocity: Float
    instance: npt.NDArray[np.int32]


def boxes_at(annotations: Annotations, sample: int, world_SE3_ego: Float) -> Boxes:
    """Return the boxes of a sample in the ego frame; velocities stay over ground, in ego axes.

    Args:
        annotations: All boxes.
        sample: The sample.
        world_SE3_ego: (4, 4) pose of the vehicle.
    """
    rows = _rows(annotations, sample)
    boxes = _in_ego(annotations, _of_sample(annotations, sample), world_SE3_ego)
    return dataclasses.replace(
        boxes,
        num_lidar_points=annotations.num_lidar_points[rows],
        num_radar_points=annotations.num_radar_points[rows],
        attribute=[annotations.attributes[i] for i in annotations.attribute[rows]],
        interpolated=np.zeros(len(boxes), dtype=bool),
    )


def boxes_between(
    annotations: Annotations,
    samples: range,
    sample_us: npt.NDArray[np.int64],
    timestamp_us: int,
    world_SE3_ego: Float,
) -> Boxes:
    """Return the boxes of a time between samples in the ego frame, interpolated by instance in the global frame.

    As the devkit's `get_boxes` does: the centre linearly, the rotation along the shortest arc, and before the first
    sample of a scene, or after its last, the boxes of that one. Unlike there, an instance that only one of the two
    samples has gets no box: the devkit puts it where it will be at the later one. Sizes, which the devkit takes from
    the later one, are interpolated too; in the release they are the same. Nobody counted the points in these boxes or
    looked at their attributes.

    Args:
        annotations: All boxes.
        samples: The samples of the scene, in time order.
        sample_us: (S,) times of all samples.
        timestamp_us: The time.
        world_SE3_ego: (4, 4) pose of the vehicle at that time.
    """
    times = sample_us[samples.start : samples.stop]
    after = int(np.searchsorted(times, timestamp_us, side="right"))
    if after in (0, len(times)):
        here = _of_sample(annotations, samples[min(after, len(times) - 1)])
    else:
        seconds = 1e-6 * float(times[after] - times[after - 1])
        weight = 1e-6 * float(timestamp_us - times[after - 1]) / seconds
        ends = (_of_sample(annotations, samples[after - 1]), _of_sample(annotations, samples[after]))
        here = _interpolate(*ends, weight=weight, seconds=seconds)
    boxes = _in_ego(annotations, here, world_SE3_ego)
    return dataclasses.replace(boxes, interpolated=np.ones(len(boxes), dtype=bool))


def _rows(annotations: Annotations, sample: int) -> slice:
    return slice(int(annotations.first[sample]), int(annotations.first[sample + 1]))


def _of_sample(annotations: Annotations, sample: int) -> _GlobalBoxes:
    rows = _rows(annotations, sample)
    return _GlobalBoxes(
        annotations.pose[rows],
        annotations.size_lwh[rows].astype(np.float64),
        annotations.velocity[rows].astype(np.float64),
        annotations.instance[rows],
    )


def _interpolate(a: _GlobalBoxes, b: _GlobalBoxes, *, weight: float, seconds: float) -> _GlobalBoxes:
    instance, m, n = np.intersect1d(a.instance, b.instance, assume_unique=True, return_indices=True)
    centre_a, centre_b = a.pose[m, :3], b.pose[n, :3]
    velocity = (centre_b - centre_a) / seconds
    if seconds > VELOCITY_MAX_GAP_S:
        velocity = np.full_like(velocity, np.nan)
    return _GlobalBoxes(
        np.hstack([(1 - weight) * centre_a + weight * centre_b, _slerp(a.pose[m, 3:], b.pose[n, 3:], weight)]),
        (1 - weight) * a.size_lwh[m] + weight * b.size_lwh[n],
        velocity,
        instance,
    )


def _slerp(a: Float, b: Float, weight: float) -> Float:
    """Return (M, 4) unit quaternions between `a` and `b` along the shortest arc (Shoemake 1985)."""
    cosine = (a * b).sum(axis=1, keepdims=True)
    b = np.where(cosine < 0, -b, b)
    angle = np.arccos(np.clip(np.abs(cosine), 0, 1))
    sine = np.sin(angle)
    near = sine < 1e-6  # where the arc is a line to double precision
    divisor = np.where(near, 1, sine)
    part_a = np.where(near, 1 - weight, np.sin((1 - weight) * angle) / divisor)
    part_b = np.where(near, weight, np.sin(weight * angle) / divisor)
    mixed = part_a * a + part_b * b
    result: Float = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return result


def _in_ego(annotations: Annotations, boxes: _GlobalBoxes, world_SE3_ego: Float) -> Boxes:
    ego_SE3_world = se3.invert(world_SE3_ego)
    ego_R_world = ego_SE3_world[:3, :3]
    w, x, y, z = boxes.pose[:, 3:].T
    forward = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], axis=1) @ ego_R_world.T
    result = np.empty((len(boxes.pose), 7), dtype=np.float32)
    result[:, :3] = se3.transform_points(ego_SE3_world, boxes.pose[:, :3])
    result[:, 3:6] = boxes.size_lwh
    result[:, 6] = np.arctan2(forward[:, 1], forward[:, 0])
    return Boxes(
        boxes=result,
        source_class=annotations.source_class[boxes.instance],
        track_id=annotations.instances.take(boxes.instance).to_pylist(),
        velocity=(boxes.velocity @ ego_R_world.T).astype(np.float32),
    )
