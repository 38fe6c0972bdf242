"""nuScenes' tables: relational JSON files, checked and joined to one index of keyframes a scene."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from spot_ray.config.load import suggestion
from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.storage import uri as uris

CHANNEL = "LIDAR_TOP"
VELOCITY_MAX_GAP_S = 1.5
"""Longest time between two annotations that still give a velocity; the devkit's `box_velocity` has the same."""

_FIELDS: dict[str, dict[str, type]] = {
    "category": {"token": str, "name": str},
    "log": {"token": str, "location": str},
    "scene": {"token": str, "name": str},
    "sample": {"token": str, "timestamp": int, "scene_token": str},
    "sensor": {"token": str, "channel": str},
    "calibrated_sensor": {"token": str, "sensor_token": str, "translation": list, "rotation": list},
    "sample_data": {
        "token": str,
        "sample_token": str,
        "ego_pose_token": str,
        "calibrated_sensor_token": str,
        "timestamp": int,
        "filename": str,
        "is_key_frame": bool,
    },
    "ego_pose": {"token": str, "translation": list, "rotation": list},
    "instance": {"token": str, "category_token": str},
    "sample_annotation": {
        "token": str,
        "sample_token": str,
        "instance_token": str,
        "attribute_tokens": list,
        "translation": list,
        "size": list,
        "rotation": list,
        "prev": str,
        "next": str,
        "num_lidar_pts": int,
        "num_radar_pts": int,
    },
    "attribute": {"token": str, "name": str},
    "lidarseg": {"sample_data_token": str, "filename": str},
}
"""The tables that are read, and which fields of them, with their JSON types."""

Row = dict[str, Any]
Float = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
    """The boxes of one keyframe as the tables have them, in the global frame.

    Args:
        world_SE3_box: (M, 4, 4) float64 poses.
        size_wlh: (M, 3) float64 width, length, height, metres.
        velocity: (M, 3) float64 in the global frame, m/s; NaN where unknown.
        source_class: (M,) uint16.
        track_id: M instance tokens.
        num_lidar_points: (M,) int32.
        num_radar_points: (M,) int32.
        attribute: M names; joined by `;` where a box has several, empty where it has none.
    """

    world_SE3_box: Float
    size_wlh: Float
    velocity: Float
    source_class: npt.NDArray[np.uint16]
    track_id: list[str]
    num_lidar_points: npt.NDArray[np.int32]
    num_radar_points: npt.NDArray[np.int32]
    attribute: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Keyframe:
    """What the tables say of one keyframe; files are relative to the source folder.

    Args:
        token: Its sample token.
        timestamp_ns: Time of the LiDAR sweep.
        points: File of the points.
        lidarseg: File of their labels, or None.
        ego_SE3_lidar: (4, 4) calibration.
        world_SE3_ego: (4, 4) pose of the vehicle at the LiDAR's time.
        annotations: Its boxes, or None if the version is not annotated.
    """

    token: str
    timestamp_ns: int
    points: str
    lidarseg: str | None
    ego_SE3_lidar: Float
    world_SE3_ego: Float
    annotations: Annotations | None


def find_version(source: str, version: str | None) -> str:
    """Return the version to read: `version`, or the only one in the folder.

    Raises:
        DataError: If the folder is missing, is not one of nuScenes, or has not (only) the version.
    """
    layout = "the folder that holds samples/ and one folder of tables, e.g. v1.0-mini/"
    if not uris.exists(source):
        raise DataError("no such folder", where=source, expected=layout)
    names = uris.list_dir(source)
    if "scene.json" in names:
        raise DataError(
            "this is the folder of the tables", where=source, expected=layout, remedy="give the folder above it"
        )
    tables = {f"{name}.json" for name in _FIELDS}
    found = [name for name in names if not tables.isdisjoint(uris.list_dir(uris.join(source, name)))]
    if not found:
        raise DataError("this is no nuScenes folder: no folder in it holds tables", where=source, expected=layout)
    if version is None and len(found) > 1:
        raise DataError(
            "the folder holds several versions", where=source, remedy=f"choose one: --version {' | '.join(found)}"
        )
    if version is not None and version not in found:
        raise DataError(
            f"no version {version!r}",
            where=source,
            expected=f"one of {', '.join(found)}",
            remedy=suggestion(version, found),
        )
    return version or found[0]


class Tables:
    """The tables of one version.

    Args:
        folder: The folder of the JSON files.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def where(self, table: str) -> str:
        """Return the file of a table."""
        return uris.join(self.folder, f"{table}.json")

    def has(self, table: str) -> bool:
        """Tell whether the table is there."""
        return uris.exists(self.where(table))

    def read(self, table: str, keep: Callable[[Row], bool] | None = None) -> list[Row]:
        """Return the rows of a table.

        Args:
            table: Its name.
            keep: Which rows to keep. Others are dropped while parsing: of the millions in `sample_data` and
                `ego_pose` only each hundredth belongs to a LiDAR keyframe.

        Raises:
            DataError: If the file is missing or malformed, or a row lacks a field.
        """
        if not self.has(table):
            raise DataError(
                f"the table {table!r} is missing",
                where=self.where(table),
                expected="all tables of the official release",
                remedy="download and unpack the version's metadata again",
            )
        fields = _FIELDS[table]

        def check(row: Row) -> Row | None:
            for field, kind in fields.items():
                if field not in row:
                    raise self.error(table, f"a row has no field {field!r}: {_shorten(row)}", ", ".join(fields))
                if type(row[field]) is not kind:
                    raise self.error(
                        table, f"field {field!r} is {_shorten(row[field])} in the row {_shorten(row)}", kind.__name__
                    )
            return row if keep is None or keep(row) else None

        try:
            rows = json.loads(uris.read_bytes(self.where(table)), object_hook=check)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(
                f"not valid JSON: {error}",
                where=self.where(table),
                remedy="the file is cut or damaged: download and unpack the version's metadata again",
            ) from None
        if not isinstance(rows, list) or not all(row is None or isinstance(row, dict) for row in rows):
            raise self.error(table, f"the file holds {_shorten(rows)}", "a list of objects")
        return [row for row in rows if row is not None]

    def find(self, rows: Mapping[str, T], token: str, table: str, referrer: str) -> T:
        """Return what a token of another row refers to.

        Raises:
            DataError: If the token is unknown.
        """
        if token not in rows:
            raise self.error(table, f"{referrer} refers to {token!r}, which is not in the table", "a known token")
        return rows[token]

    def pose(self, table: str, row: Row) -> Float:
        """Return the (4, 4) transform of a row's rotation (w, x, y, z) and translation.

        Raises:
            DataError: If they are not a pose.
        """
        try:
            pose = se3.from_quaternion(row["rotation"], row["translation"])
        except (ValueError, TypeError):
            pose = np.full((4, 4), np.nan)
        if not se3.is_rigid(pose):
            raise self.error(
                table,
                f"row {row['token']} is no pose: rotation {row['rotation']}, translation {row['translation']}",
                "a quaternion w, x, y, z and three metres",
            )
        return pose

    def error(self, table: str, what: str, expected: str) -> DataError:
        """Return the error of a table."""
        return DataError(what, where=self.where(table), expected=expected)


def read_scenes(tables: Tables, class_of_category: Mapping[str, int]) -> dict[str, tuple[Keyframe, ...]]:
    """Join the tables.

    Args:
        tables: The tables.
        class_of_category: Source class id of every category token.

    Returns:
        The LiDAR keyframes in time order, by scene name.

    Raises:
        DataError: If a table is missing, malformed, or refers to what is not there.
    """
    samples = {row["token"]: row for row in tables.read("sample")}
    lidars = {row["token"] for row in tables.read("sensor") if row["channel"] == CHANNEL}
    mounts = tables.read("calibrated_sensor", lambda row: row["sensor_token"] in lidars)
    ego_SE3_lidar = {row["token"]: tables.pose("calibrated_sensor", row) for row in mounts}
    sweeps = tables.read(
        "sample_data", lambda row: row["is_key_frame"] and row["calibrated_sensor_token"] in ego_SE3_lidar
    )
    pose_tokens = {row["ego_pose_token"] for row in sweeps}
    poses = {row["token"]: row for row in tables.read("ego_pose", lambda row: row["token"] in pose_tokens)}
    annotations = _read_annotations(tables, samples, class_of_category)
    lidarseg: dict[str, str] = {}
    if tables.has("lidarseg"):
        lidarseg = {row["sample_data_token"]: row["filename"] for row in tables.read("lidarseg")}

    sweep_of: dict[str, Row] = {}
    for row in sweeps:
        if sweep_of.setdefault(row["sample_token"], row) is not row:
            raise tables.error("sample_data", f"sample {row['sample_token']} has two {CHANNEL} keyframes", "one")
    frames: dict[str, list[Keyframe]] = {}
    for token, sample in samples.items():
        if token not in sweep_of:
            raise tables.error("sample_data", f"sample {token} has no {CHANNEL} keyframe", "one a sample")
        sweep = sweep_of[token]
        pose = tables.find(poses, sweep["ego_pose_token"], "ego_pose", f"sample_data {sweep['token']}")
        keyframe = Keyframe(
            token=token,
            timestamp_ns=sweep["timestamp"] * 1000,
            points=sweep["filename"],
            lidarseg=lidarseg.get(sweep["token"]),
            ego_SE3_lidar=ego_SE3_lidar[sweep["calibrated_sensor_token"]],
            world_SE3_ego=tables.pose("ego_pose", pose),
            annotations=None if annotations is None else annotations.get(token, _stack([], [], [], [])),
        )
        frames.setdefault(sample["scene_token"], []).append(keyframe)

    scenes: dict[str, tuple[Keyframe, ...]] = {}
    for scene in tables.read("scene"):
        if scene["token"] not in frames:
            raise tables.error("sample", f"no sample belongs to scene {scene['name']!r}", "at least one a scene")
        scenes[scene["name"]] = tuple(sorted(frames[scene["token"]], key=lambda frame: frame.timestamp_ns))
    if not scenes:
        raise tables.error("scene", "the table is empty", "at least one scene")
    return scenes


def _read_annotations(
    tables: Tables, samples: Mapping[str, Row], class_of_category: Mapping[str, int]
) -> dict[str, Annotations] | None:
    """Return the annotations of every sample that has some; None if the version has none at all, as the test split."""
    rows = {row["token"]: row for row in tables.read("sample_annotation")}
    if not rows:
        return None
    class_of_instance = {
        row["token"]: tables.find(class_of_category, row["category_token"], "category", f"instance {row['token']}")
        for row in tables.read("instance")
    }
    attributes: dict[str, str] = {}
    if any(row["attribute_tokens"] for row in rows.values()):
        attributes = {row["token"]: row["name"] for row in tables.read("attribute")}
    by_sample: dict[str, list[Row]] = {}
    for row in rows.values():
        tables.find(samples, row["sample_token"], "sample", f"sample_annotation {row['token']}")
        by_sample.setdefault(row["sample_token"], []).append(row)

    result: dict[str, Annotations] = {}
    for token, boxes in by_sample.items():
        for row in boxes:
            _check_size(tables, row)
        referrers = [f"sample_annotation {row['token']}" for row in boxes]
        result[token] = _stack(
            boxes,
            [tables.pose("sample_annotation", row) for row in boxes],
            [_velocity(tables, row, rows, samples) for row in boxes],
            [
                (
                    tables.find(class_of_instance, row["instance_token"], "instance", referrer),
                    ";".join(tables.find(attributes, a, "attribute", referrer) for a in row["attribute_tokens"]),
                )
                for row, referrer in zip(boxes, referrers, strict=True)
            ],
        )
    return result


def _stack(rows: list[Row], poses: list[Float], velocities: list[Float], names: list[tuple[int, str]]) -> Annotations:
    return Annotations(
        world_SE3_box=np.array(poses, dtype=np.float64).reshape(-1, 4, 4),
        size_wlh=np.array([row["size"] for row in rows], dtype=np.float64).reshape(-1, 3),
        velocity=np.array(velocities, dtype=np.float64).reshape(-1, 3),
        source_class=np.array([source_class for source_class, _ in names], dtype=np.uint16),
        track_id=[row["instance_token"] for row in rows],
        num_lidar_points=np.array([row["num_lidar_pts"] for row in rows], dtype=np.int32),
        num_radar_points=np.array([row["num_radar_pts"] for row in rows], dtype=np.int32),
        attribute=[attribute for _, attribute in names],
    )


def _check_size(tables: Tables, row: Row) -> None:
    size = row["size"]
    if len(size) != 3 or not all(isinstance(v, int | float) and 0 < v < np.inf for v in size):
        raise tables.error(
            "sample_annotation", f"row {row['token']} has the size {size}", "width, length, height: positive metres"
        )


def _velocity(tables: Tables, row: Row, rows: Mapping[str, Row], samples: Mapping[str, Row]) -> Float:
    """Return (3,) m/s in the global frame between the neighbours in time, as the devkit's `box_velocity` defines it.

    Where only one neighbour exists, it is the difference to it. NaN where there is none, or where an interval exceeds
    `VELOCITY_MAX_GAP_S` (twice that over two intervals).
    """
    referrer = f"sample_annotation {row['token']}"
    ends = [tables.find(rows, row[side], "sample_annotation", referrer) for side in ("prev", "next") if row[side]]
    if not ends:
        return np.full(3, np.nan)
    first, last = ends if len(ends) == 2 else (ends[0], row) if row["prev"] else (row, ends[0])
    times = [tables.find(samples, r["sample_token"], "sample", referrer)["timestamp"] for r in (first, last)]
    seconds = 1e-6 * (times[1] - times[0])
    if not 0 < seconds <= VELOCITY_MAX_GAP_S * len(ends):
        return np.full(3, np.nan)
    moved: Float = tables.pose("sample_annotation", last)[:3, 3] - tables.pose("sample_annotation", first)[:3, 3]
    return moved / seconds


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
