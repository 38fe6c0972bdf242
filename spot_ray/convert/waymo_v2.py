"""The Waymo Open Dataset's perception data v2: a Parquet file for every component of every segment.

A folder holds `training/`, `validation/` and `testing/` (any of them), or is one of them; each has a folder a component
with a file a segment: `lidar/NAME.parquet`. Of the components, `lidar`, `lidar_pose`, `lidar_calibration` and
`vehicle_pose` are needed; `lidar_box` and `lidar_segmentation` are read where a segment has them, and `testing` has
neither. A segment is a sequence; its range images are streamed, so that a file is never in memory as a whole. Needs
neither TensorFlow nor Waymo's package. Sweeps equal those of :mod:`.waymo_v1`.

Not kept, since a sweep has no place for them: the difficulty of tracking, accelerations, the number of TOP's points in
a box, and all that belongs to cameras.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from spot_ray.convert._waymo import LaserReturns, SweepBuilder
from spot_ray.convert._waymo_folder import SPLITS, dataset_info, folders_of, refuse_version
from spot_ray.convert._waymo_laser import Laser, LaserCalibration, lidar_spec
from spot_ray.convert._waymo_parquet import (
    LASER,
    TIME,
    Check,
    ComponentFile,
    FrameRows,
    Row,
    is_floats,
    is_integers,
)
from spot_ray.convert._waymo_v2_tables import (
    BOX_COLUMNS,
    CALIBRATION_COLUMNS,
    POSE_COLUMNS,
    SegmentBoxes,
    VehiclePoses,
    calibrations_of,
)
from spot_ray.convert.source import BadFrame, read_frames
from spot_ray.errors import DataError
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sweep import Sweep
from spot_ray.storage import uri as uris

NEEDED = ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose")
"""Components that no sweep can be made without."""

EXTENSION = ".parquet"

_LIDAR = "[LiDARComponent].range_image_return"
_POSE = "[LiDARPoseComponent].range_image_return1"
_LABELS = "[LiDARSegmentationLabelComponent].range_image_return"

_LIDAR_COLUMNS: dict[str, Check] = {
    f"{_LIDAR}{i}.{what}": check for i in (1, 2) for what, check in (("values", is_floats), ("shape", is_integers))
}
_PIXEL_POSE_COLUMNS: dict[str, Check] = {f"{_POSE}.values": is_floats, f"{_POSE}.shape": is_integers}
_LABEL_COLUMNS: dict[str, Check] = {f"{_LABELS}{i}.{what}": is_integers for i in (1, 2) for what in ("values", "shape")}
_KEYS: dict[str, Check] = {TIME: pa.types.is_integer, LASER: pa.types.is_integer}


@dataclass(frozen=True)
class Segment:
    """Where the files of a segment are.

    Args:
        folder: The folder of its split, relative to the log's; empty if that is the log's.
        split: The split that the folder stands for, or None.
        components: The components that it has a file of.
    """

    folder: str
    split: str | None
    components: frozenset[str]


class WaymoV2:
    """An opened folder of segments.

    Args:
        source: The folder.
        segments: Its segments by context name.
    """

    def __init__(self, source: str, segments: Mapping[str, Segment]) -> None:
        self._source = source
        self._segments = segments

    def info(self) -> DatasetInfo:
        """Return what holds for the dataset.

        Calibrations differ a little between segments: points are made by their own, the rig states the first segment's.

        Raises:
            DataError: If the first segment's calibration cannot be read.
        """
        first = self.sequences()[0]
        with contextlib.ExitStack() as stack:
            calibrations = self._calibrations(stack, first)
            shape = f"{_LIDAR}1.shape"
            lidar = self._open(stack, first, "lidar", {LASER: pa.types.is_integer, shape: is_integers})
            shapes = dict(zip(lidar.integers(LASER).tolist(), lidar.read([shape])[shape].to_pylist(), strict=True))
        missing = [laser.name for laser in calibrations if not shapes.get(laser)]
        if missing:
            raise DataError(f"laser {missing[0]} has no range image", where=lidar.where, expected="one in every frame")
        rig = [lidar_spec(laser, tuple(shapes[laser.laser][:2])) for laser in calibrations.values()]
        return dataset_info(rig, "v2 (Parquet)")

    def sequences(self) -> tuple[str, ...]:
        """Return the context names of the segments, sorted."""
        return tuple(sorted(self._segments))

    def read(self, sequence_id: str) -> Iterator[Sweep | BadFrame]:
        """Yield the sweeps of one segment in time order.

        A frame is every timestamp that any component has; one that lacks a pose or a laser is bad.

        Raises:
            DataError: If a file is missing, damaged, or lacks a column, or the rows of a frame lie too far apart.
        """
        with contextlib.ExitStack() as stack:
            segment = self._segments[sequence_id]
            builder = SweepBuilder(sequence_id, self._calibrations(stack, sequence_id), split=segment.split)
            poses = self._open(stack, sequence_id, "vehicle_pose", POSE_COLUMNS)
            reader = _SegmentReader(
                builder,
                poses=VehiclePoses(poses),
                lidar=self._rows(stack, sequence_id, "lidar", _LIDAR_COLUMNS),
                pixel_poses=self._rows(stack, sequence_id, "lidar_pose", _PIXEL_POSE_COLUMNS),
                segmentation=self._rows(stack, sequence_id, "lidar_segmentation", _LABEL_COLUMNS)
                if "lidar_segmentation" in segment.components
                else None,
                boxes=SegmentBoxes(self._open(stack, sequence_id, "lidar_box", BOX_COLUMNS))
                if "lidar_box" in segment.components
                else None,
            )
            yield from read_frames(reader.frames(), reader.sweep)

    def _open(
        self, stack: contextlib.ExitStack, sequence_id: str, component: str, columns: Mapping[str, Check]
    ) -> ComponentFile:
        folder = self._segments[sequence_id].folder
        relative = "/".join(part for part in (folder, component, f"{sequence_id}{EXTENSION}") if part)
        file = ComponentFile(self._source, relative, columns)
        stack.callback(file.close)
        return file

    def _rows(
        self, stack: contextlib.ExitStack, sequence_id: str, component: str, columns: Mapping[str, Check]
    ) -> FrameRows:
        rows = FrameRows(self._open(stack, sequence_id, component, {**_KEYS, **columns}), list(columns))
        stack.callback(rows.close)
        return rows

    def _calibrations(self, stack: contextlib.ExitStack, sequence_id: str) -> dict[Laser, LaserCalibration]:
        return calibrations_of(self._open(stack, sequence_id, "lidar_calibration", CALIBRATION_COLUMNS))


def open_source(source: str, *, version: str | None = None) -> WaymoV2:
    """Open a folder of segments.

    Args:
        source: The folder of the splits, or that of one split, which holds the folders of the components; a path or a
            URI.
        version: None: the files do not tell theirs.

    Raises:
        DataError: If there are no segments in the folder, one is there twice, or one lacks a component that is needed.
        ConfigError: If a version is asked for.
    """
    refuse_version(version)
    root = uris.absolute(source)
    segments: dict[str, Segment] = {}
    for folder, split in folders_of(root).items():
        for name, segment in _segments_of(root, folder, split).items():
            if name in segments:
                raise DataError(
                    f"segment {name} is in two folders: {segments[name].folder or '.'} and {folder}",
                    where=root,
                    expected="every segment in one split",
                )
            segments[name] = segment
    if not segments:
        raise DataError(
            "no segments in the folder",
            where=root,
            expected=f"lidar/NAME{EXTENSION} in it or in {', '.join(SPLITS)}",
            remedy="give the folder that holds the splits, or that of one split",
        )
    return WaymoV2(root, segments)


def _segments_of(root: str, folder: str, split: str | None) -> dict[str, Segment]:
    at = uris.join(root, folder) if folder else root
    listed = {
        component: {
            name.removesuffix(EXTENSION)
            for name in uris.list_dir(uris.join(at, component))
            if name.endswith(EXTENSION) and not name.startswith("_")
        }
        for component in (*NEEDED, "lidar_box", "lidar_segmentation")
    }
    segments = {}
    for name in listed["lidar"]:
        components = frozenset(component for component, names in listed.items() if name in names)
        missing = [component for component in NEEDED if component not in components]
        if missing:
            raise DataError(
                f"segment {name} has no component {missing[0]!r}",
                where=uris.join(at, missing[0], f"{name}{EXTENSION}"),
                expected=f"a file of each of {', '.join(NEEDED)}",
                remedy="download the component for the same segments",
            )
        segments[name] = Segment(folder, split, components)
    return segments


@dataclass(frozen=True, eq=False)
class _FrameRows:
    """The streamed rows of one frame."""

    time: int
    lidar: list[Row]
    pixel_poses: list[Row]
    segmentation: list[Row]


class _SegmentReader:
    """Makes the sweeps of a segment from its components."""

    def __init__(
        self,
        builder: SweepBuilder,
        *,
        poses: VehiclePoses,
        lidar: FrameRows,
        pixel_poses: FrameRows,
        segmentation: FrameRows | None,
        boxes: SegmentBoxes | None,
    ) -> None:
        self._builder = builder
        self._poses = poses
        self._lidar = lidar
        self._pixel_poses = pixel_poses
        self._segmentation = segmentation
        self._boxes = boxes

    def frames(self) -> Iterator[tuple[str, _FrameRows]]:
        times = self._lidar.times | self._pixel_poses.times | self._poses.times
        times |= self._segmentation.times if self._segmentation is not None else set()
        times |= self._boxes.times if self._boxes is not None else set()
        for time in sorted(times):
            yield (
                str(time),
                _FrameRows(
                    time,
                    lidar=self._lidar.take(time),
                    pixel_poses=self._pixel_poses.take(time),
                    segmentation=self._segmentation.take(time) if self._segmentation is not None else [],
                ),
            )

    def sweep(self, rows: _FrameRows) -> Sweep:
        pose = self._poses.at(rows.time)
        pixel_poses = _by_laser(rows.pixel_poses)
        labels = _by_laser(rows.segmentation)
        lasers = []
        for row in rows.lidar:
            laser = Laser.numbered(row.laser, where=row.where)
            pixel_pose = pixel_poses.get(laser)
            segmentation = labels.get(laser)
            images = row.image(f"{_LIDAR}1", 4, np.float32), row.image(f"{_LIDAR}2", 4, np.float32)
            if images[0] is None:
                raise DataError(
                    f"laser {laser.name} has no range image", where=row.where, expected="one of the first return"
                )
            lasers.append(
                LaserReturns(
                    laser=laser,
                    range_images=images,
                    where=row.where,
                    pixel_pose=None if pixel_pose is None else pixel_pose.image(_POSE, 6, np.float32),
                    segmentation=None
                    if segmentation is None
                    else (
                        segmentation.image(f"{_LABELS}1", 2, np.int32),
                        segmentation.image(f"{_LABELS}2", 2, np.int32),
                    ),
                )
            )
        boxes = None if self._boxes is None else self._boxes.at(rows.time, pose)
        return self._builder.sweep(rows.time, pose, lasers, boxes)


def _by_laser(rows: list[Row]) -> dict[Laser, Row]:
    result: dict[Laser, Row] = {}
    for row in rows:
        laser = Laser.numbered(row.laser, where=row.where)
        if laser in result:
            raise DataError(
                f"laser {laser.name} occurs twice in the frame",
                where=f"{result[laser].where}; {row.where}",
                expected="every laser once",
            )
        result[laser] = row
    return result
