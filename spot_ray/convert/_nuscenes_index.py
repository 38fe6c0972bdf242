"""The index of a nuScenes version: its tables joined to flat arrays, small enough to travel to every task.

v1.0-trainval has some 330 thousand LiDAR sweeps and 1.2 million boxes. As arrays they take 180 MB, which the processes
of a machine share; as objects they would take gigabytes in each.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.convert._nuscenes_tables import Float, Poses, Row, Tables
from spot_ray.schema.nuscenes import VELOCITY_MAX_GAP_S

CHANNEL = "LIDAR_TOP"


@dataclass(frozen=True, eq=False)
class Frames:
    """The LiDAR sweeps, by scene and then by time.

    Args:
        token: (F,) the sample's token of a keyframe, the `sample_data` token of a sweep between keyframes.
        timestamp_us: (F,) int64.
        points: (F,) files of the points, relative to the source folder.
        lidarseg: (F,) files of their labels; null where there are none.
        mount: (F,) int32 row of `mounts`.
        pose: (F, 7) float64 pose of the vehicle in the world: x, y, z, quaternion w, x, y, z.
        sample: (F,) int32 sample of a keyframe; -1 for a sweep between keyframes.
        mounts: (C, 7) float64 poses of the sensor in the ego frame.
    """

    token: pa.StringArray
    timestamp_us: npt.NDArray[np.int64]
    points: pa.StringArray
    lidarseg: pa.StringArray
    mount: npt.NDArray[np.int32]
    pose: Float
    sample: npt.NDArray[np.int32]
    mounts: Float


@dataclass(frozen=True, eq=False)
class Annotations:
    """The annotated boxes in the global frame, by sample.

    Args:
        first: (S + 1,) int64: the boxes of sample s are rows `first[s]` to `first[s + 1]`.
        pose: (M, 7) float64: centre x, y, z, quaternion w, x, y, z.
        size_lwh: (M, 3) float32 length, width, height, metres.
        velocity: (M, 3) float32 m/s; NaN where unknown.
        instance: (M,) int32 row of `instances`.
        num_lidar_points: (M,) int32.
        num_radar_points: (M,) int32.
        attribute: (M,) int32 row of `attributes`.
        instances: Instance tokens.
        source_class: (I,) uint16 source class id of every instance.
        attributes: What boxes have as attribute: names joined by `;`, or nothing.
    """

    first: npt.NDArray[np.int64]
    pose: Float
    size_lwh: npt.NDArray[np.float32]
    velocity: npt.NDArray[np.float32]
    instance: npt.NDArray[np.int32]
    num_lidar_points: npt.NDArray[np.int32]
    num_radar_points: npt.NDArray[np.int32]
    attribute: npt.NDArray[np.int32]
    instances: pa.StringArray
    source_class: npt.NDArray[np.uint16]
    attributes: list[str]


@dataclass(frozen=True, eq=False)
class Index:
    """What the tables say.

    Args:
        frames: All sweeps.
        frames_of: First and last (exclusive) sweep of a scene, by its name.
        sample_us: (S,) int64 time of every sample, by scene and then by time.
        samples_of: First and last (exclusive) sample of a scene.
        annotations: All boxes, or None if the version is not annotated.
    """

    frames: Frames
    frames_of: dict[str, tuple[int, int]]
    sample_us: npt.NDArray[np.int64]
    samples_of: dict[str, tuple[int, int]]
    annotations: Annotations | None


@dataclass(frozen=True, eq=False)
class _Samples:
    """The samples by scene and then by time: what the other tables refer to.

    `number` is that of every sample token: -1 if its scene is not in the scene table, and so not wanted.
    """

    number: dict[str, int]
    time_us: npt.NDArray[np.int64]
    scene: npt.NDArray[np.int64]
    rows_of_scene: dict[str, tuple[int, int]]


def read_index(tables: Tables, class_of_category: Mapping[str, int], *, keyframes_only: bool) -> Index:
    """Join the tables.

    Args:
        tables: The tables.
        class_of_category: Source class id of every category token.
        keyframes_only: Whether to leave out the sweeps between keyframes.

    Raises:
        DataError: If a table is missing, malformed, refers to what is not there or to a file outside the folder.
    """
    samples = _read_samples(tables)
    frames, scene = _read_frames(tables, samples, keyframes_only)
    bounds = np.searchsorted(scene, np.arange(len(samples.rows_of_scene) + 1)).tolist()
    return Index(
        frames,
        {name: (bounds[i], bounds[i + 1]) for i, name in enumerate(samples.rows_of_scene)},
        samples.time_us,
        samples.rows_of_scene,
        _read_annotations(tables, samples, class_of_category),
    )


def _read_samples(tables: Tables) -> _Samples:
    scenes = {row["token"]: row["name"] for row in tables.unique_rows("scene")}
    if not scenes:
        raise tables.error("scene", "the table is empty", "at least one scene")
    if len(set(scenes.values())) != len(scenes):
        raise tables.error("scene", f"{len(scenes)} scenes have {len(set(scenes.values()))} names", "unique names")
    number_of = {token: i for i, token in enumerate(scenes)}
    rows = []
    number: dict[str, int] = {}
    for row in tables.unique_rows("sample"):
        number[row["token"]] = -1
        if row["scene_token"] in number_of:
            rows.append((number_of[row["scene_token"]], row["timestamp"], row["token"]))
    rows.sort()
    number |= {token: i for i, (_, _, token) in enumerate(rows)}
    scene_of = np.array([scene for scene, _, _ in rows], dtype=np.int64)
    bounds = np.searchsorted(scene_of, np.arange(len(scenes) + 1)).tolist()
    ranges = {name: (bounds[i], bounds[i + 1]) for i, name in enumerate(scenes.values())}
    for name, (first, last) in ranges.items():
        if first == last:
            raise tables.error("sample", f"no sample belongs to scene {name!r}", "at least one a scene")
    return _Samples(number, np.array([time for _, time, _ in rows], dtype=np.int64), scene_of, ranges)


def _read_frames(tables: Tables, samples: _Samples, keyframes_only: bool) -> tuple[Frames, npt.NDArray[np.int64]]:
    """Return the sweeps, and the number of the scene of each."""
    lidars = {row["token"] for row in tables.rows("sensor") if row["channel"] == CHANNEL}
    mounts = Poses(tables, "calibrated_sensor")
    mount_of: dict[str, int] = {}
    for row in tables.unique_rows("calibrated_sensor"):
        if row["sensor_token"] in lidars:
            mount_of[row["token"]] = len(mount_of)
            mounts.add(row)

    token: list[str] = []
    pose_of: list[str] = []
    points: list[str] = []
    time, mount, sample, is_keyframe = array("q"), array("i"), array("i"), array("b")
    keyframe_of: dict[int, str] = {}
    for row in tables.rows("sample_data"):
        if row["calibrated_sensor_token"] not in mount_of or (keyframes_only and not row["is_key_frame"]):
            continue
        number = tables.find(samples.number, row["sample_token"], "sample", f"sample_data {row['token']}")
        if number < 0:
            continue
        if row["is_key_frame"]:
            if number in keyframe_of:
                raise tables.error("sample_data", f"sample {row['sample_token']} has two {CHANNEL} keyframes", "one")
            keyframe_of[number] = row["token"]
        token.append(row["token"])
        pose_of.append(row["ego_pose_token"])
        points.append(tables.check_file("sample_data", row))
        time.append(row["timestamp"])
        mount.append(mount_of[row["calibrated_sensor_token"]])
        sample.append(number)
        is_keyframe.append(row["is_key_frame"])
    for sample_token, number in samples.number.items():
        if number >= 0 and number not in keyframe_of:
            raise tables.error("sample_data", f"sample {sample_token} has no {CHANNEL} keyframe", "one a sample")

    key = np.array(is_keyframe, dtype=bool)
    timestamp_us = np.array(time, dtype=np.int64)
    sample_of = np.array(sample, dtype=np.int32)
    scene = samples.scene[sample_of]
    order = np.lexsort((timestamp_us, scene))
    files = _read_lidarseg(tables, set(keyframe_of.values()))
    lidarseg = [files.get(data) for data in token]
    token_of = {number: sample_token for sample_token, number in samples.number.items()}
    frame_id = [token_of[number] if k else data for data, number, k in zip(token, sample, is_keyframe, strict=True)]
    frames = Frames(
        token=pa.array(frame_id, pa.string()).take(order),
        timestamp_us=timestamp_us[order],
        points=pa.array(points, pa.string()).take(order),
        lidarseg=pa.array(lidarseg, pa.string()).take(order),
        mount=np.array(mount, dtype=np.int32)[order],
        pose=_read_poses(tables, pose_of, token)[order],
        sample=np.where(key, sample_of, -1).astype(np.int32)[order],
        mounts=mounts.array(),
    )
    return frames, scene[order]


def _read_lidarseg(tables: Tables, keyframes: set[str]) -> dict[str, str]:
    """Return the label file of every keyframe's `sample_data` token; none if lidarseg is not installed."""
    if not tables.has("lidarseg"):
        return {}
    return {
        row["sample_data_token"]: tables.check_file("lidarseg", row)
        for row in tables.rows("lidarseg")
        if row["sample_data_token"] in keyframes
    }


def _read_poses(tables: Tables, pose_of: list[str], referrers: list[str]) -> Float:
    """Return the (F, 7) ego poses of the rows of `sample_data` that refer to them."""
    wanted = dict.fromkeys(pose_of, -1)
    poses = Poses(tables, "ego_pose")
    num_poses = 0
    for row in tables.rows("ego_pose"):
        if row["token"] in wanted:
            wanted[row["token"]] = num_poses
            num_poses += 1
            poses.add(row)
    rows = np.array([wanted[token] for token in pose_of], dtype=np.int64)
    lost = np.flatnonzero(rows < 0)
    if len(lost):
        tables.find({}, pose_of[lost[0]], "ego_pose", f"sample_data {referrers[lost[0]]}")
    return poses.array()[rows]


def _read_annotations(tables: Tables, samples: _Samples, class_of_category: Mapping[str, int]) -> Annotations | None:
    """Return the boxes; None if the version has none at all, as the test split."""
    instance_of: dict[str, int] = {}
    source_class: list[int] = []
    for row in tables.unique_rows("instance"):
        instance_of[row["token"]] = len(instance_of)
        category = tables.find(class_of_category, row["category_token"], "category", f"instance {row['token']}")
        source_class.append(category)

    poses = Poses(tables, "sample_annotation")
    sizes = array("d")
    sample, instance, lidar, radar, attribute = (array("i") for _ in range(5))
    attribute_of: dict[tuple[str, ...], int] = {}
    for row in tables.rows("sample_annotation"):
        referrer = f"sample_annotation {row['token']}"
        number = tables.find(samples.number, row["sample_token"], "sample", referrer)
        if number < 0:
            continue
        sample.append(number)
        instance.append(tables.find(instance_of, row["instance_token"], "instance", referrer))
        poses.add(row)
        sizes.extend(_size_lwh(tables, row))
        lidar.append(row["num_lidar_pts"])
        radar.append(row["num_radar_pts"])
        attribute.append(attribute_of.setdefault(tuple(row["attribute_tokens"]), len(attribute_of)))
    if not sample:
        return None
    sample_of, instance_id = np.array(sample, dtype=np.int32), np.array(instance, dtype=np.int32)
    pose = poses.array()
    order = np.argsort(sample_of, kind="stable")
    return Annotations(
        first=np.searchsorted(sample_of[order], np.arange(len(samples.time_us) + 1)).astype(np.int64),
        pose=pose[order],
        size_lwh=np.array(sizes, dtype=np.float32).reshape(-1, 3)[order],
        velocity=_velocities(tables, pose[:, :3], sample_of, instance_id, samples, list(instance_of))[order],
        instance=instance_id[order],
        num_lidar_points=np.array(lidar, dtype=np.int32)[order],
        num_radar_points=np.array(radar, dtype=np.int32)[order],
        attribute=np.array(attribute, dtype=np.int32)[order],
        instances=pa.array(list(instance_of), pa.string()),
        source_class=np.array(source_class, dtype=np.uint16),
        attributes=_attribute_names(tables, list(attribute_of)),
    )


def _size_lwh(tables: Tables, row: Row) -> tuple[float, float, float]:
    size = row["size"]
    if len(size) != 3 or not all(isinstance(v, int | float) and 0 < v < np.inf for v in size):
        raise tables.error(
            "sample_annotation", f"row {row['token']} has the size {size}", "width, length, height: positive metres"
        )
    return size[1], size[0], size[2]


def _attribute_names(tables: Tables, combinations: list[tuple[str, ...]]) -> list[str]:
    if not any(combinations):
        return ["" for _ in combinations]
    names = {row["token"]: row["name"] for row in tables.rows("attribute")}
    return [
        ";".join(tables.find(names, token, "attribute", "a sample_annotation") for token in tokens)
        for tokens in combinations
    ]


def _velocities(
    tables: Tables,
    centre: Float,
    sample: npt.NDArray[np.int32],
    instance: npt.NDArray[np.int32],
    samples: _Samples,
    instances: list[str],
) -> npt.NDArray[np.float32]:
    """Return (M, 3) m/s in the global frame between the neighbours in time, as the devkit's `box_velocity` defines it.

    Where only one neighbour exists, it is the difference to it. NaN where there is none, or where an interval exceeds
    `VELOCITY_MAX_GAP_S` (twice that over two intervals). The neighbours are those of the same instance in time, which
    is what `prev` and `next` link.
    """
    order = np.lexsort((sample, instance))
    same = instance[order[1:]] == instance[order[:-1]]
    twice = np.flatnonzero(same & (sample[order[1:]] == sample[order[:-1]]))
    if len(twice):
        row = order[twice[0]]
        token = next(token for token, number in samples.number.items() if number == sample[row])
        raise tables.error(
            "sample_annotation", f"instance {instances[instance[row]]} has two boxes in sample {token}", "one"
        )
    has_previous = np.concatenate([[False], same])
    has_next = np.concatenate([same, [False]])
    place = np.arange(len(order))
    first, last = order[place - has_previous], order[place + has_next]
    seconds = 1e-6 * (samples.time_us[sample[last]] - samples.time_us[sample[first]])
    sides = has_previous.astype(np.int64) + has_next
    known = (sides > 0) & (seconds > 0) & (seconds <= VELOCITY_MAX_GAP_S * sides)
    result = np.full((len(order), 3), np.nan, dtype=np.float32)
    result[order[known]] = (centre[last[known]] - centre[first[known]]) / seconds[known, None]
    return result
