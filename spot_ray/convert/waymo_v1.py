"""The Waymo Open Dataset's perception data in its first format: a TFRecord file of `Frame` messages for every segment.

A folder holds `training/`, `validation/` and `testing/` (any of them), or the files themselves; each file is
`segment-NAME_with_camera_labels.tfrecord`. A segment is a sequence, and its frames are read one after the other: a file
is never in memory as a whole. Needs neither TensorFlow nor Waymo's package. Sweeps equal those of :mod:`.waymo_v2`.

What a message leaves out is as Waymo's own converter to the second format has it: a label without `speed_z` has none,
one without a difficulty has the unknown one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spot_ray.convert import files
from spot_ray.convert._tfrecord import Record, read_records
from spot_ray.convert._waymo import LaserReturns, SweepBuilder
from spot_ray.convert._waymo_boxes import BoxLabels, boxes_of
from spot_ray.convert._waymo_folder import SPLITS, dataset_info, folders_of, refuse_version
from spot_ray.convert._waymo_laser import Float64, Laser, LaserCalibration, lidar_spec
from spot_ray.convert._waymo_v1_frame import parse, read_float_image, read_int_image
from spot_ray.convert.source import BadFrame, read_frames
from spot_ray.errors import DataError
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.storage import uri as uris

PREFIX, SUFFIX, EXTENSION = "segment-", "_with_camera_labels", ".tfrecord"


@dataclass(frozen=True)
class Segment:
    """A file.

    Args:
        file: Its path relative to the log's folder.
        split: The split that its folder stands for, or None.
    """

    file: str
    split: str | None


class WaymoV1:
    """An opened folder of segments.

    Args:
        source: The folder.
        segments: Its files by context name.
    """

    def __init__(self, source: str, segments: Mapping[str, Segment]) -> None:
        self._source = source
        self._segments = segments

    def info(self) -> DatasetInfo:
        """Return what holds for the dataset; calibrations are those of the first segment's first frame.

        Raises:
            DataError: If that frame cannot be read.
        """
        first = self._segments[self.sequences()[0]]
        record = next(read_records(uris.join(self._source, first.file)))
        frame = parse("Frame", record.checked(), where=record.where)
        calibrations = calibrations_of(frame, record.where)
        rig = [
            lidar_spec(calibrations[returns.laser], (image.shape[0], image.shape[1]))
            for returns in lasers_of(frame, record.where)
            for image in returns.range_images[:1]
            if image is not None
        ]
        return dataset_info(rig, "v1 (TFRecord)")

    def sequences(self) -> tuple[str, ...]:
        """Return the context names of the segments, sorted."""
        return tuple(sorted(self._segments))

    def read(self, sequence_id: str) -> Iterator[Sweep | BadFrame]:
        """Yield the sweeps of one segment in the order of the file, which is that of time.

        Raises:
            DataError: If the file is missing, ends within a record, or has a length that does not fit its checksum.
        """
        reader = _SegmentReader(sequence_id, self._segments[sequence_id])
        return read_frames(self._records(sequence_id), reader.sweep)

    def _records(self, sequence_id: str) -> Iterator[tuple[str, Record]]:
        file = self._segments[sequence_id].file
        for number, record in enumerate(read_records(uris.join(self._source, file))):
            files.record(f"{file}#{number}", record.data)
            yield f"record {number}", record


def open_source(source: str, *, version: str | None = None) -> WaymoV1:
    """Open a folder of segments.

    Args:
        source: The folder, or the folder of one split; a path or a URI.
        version: None: a folder holds one version.

    Raises:
        DataError: If there are no segments in the folder, or one is there twice.
        ConfigError: If a version is asked for.
    """
    refuse_version(version)
    root = uris.absolute(source)
    segments: dict[str, Segment] = {}
    for folder, split in folders_of(root).items():
        for name in uris.list_dir(uris.join(root, folder) if folder else root):
            if not name.endswith(EXTENSION):
                continue
            context = name.removesuffix(EXTENSION).removesuffix(SUFFIX).removeprefix(PREFIX)
            file = f"{folder}/{name}" if folder else name
            if context in segments:
                raise DataError(
                    f"segment {context} is there twice: {segments[context].file} and {file}",
                    where=root,
                    expected="every segment in one file",
                )
            segments[context] = Segment(file, split)
    if not segments:
        raise DataError(
            "no segments in the folder",
            where=root,
            expected=f"{PREFIX}NAME{SUFFIX}{EXTENSION} in it or in {', '.join(SPLITS)}",
            remedy="unpack the .tar files of the release; give the folder that holds the splits",
        )
    return WaymoV1(root, segments)


class _SegmentReader:
    """Makes sweeps of the records of one segment."""

    def __init__(self, sequence_id: str, segment: Segment) -> None:
        self._sequence_id = sequence_id
        self._split = segment.split
        self._calibrations: list[Any] = []
        self._builder: SweepBuilder | None = None

    def sweep(self, record: Record) -> Sweep:
        where = record.where
        frame = parse("Frame", record.checked(), where=where)
        if frame.context.name != self._sequence_id:
            raise DataError(
                f"the frame belongs to segment {frame.context.name!r}",
                where=where,
                expected=self._sequence_id,
                remedy=f"give the file its official name, {PREFIX}{frame.context.name}{SUFFIX}{EXTENSION}",
            )
        pose = _transform(frame.pose, "vehicle pose", where)
        return self._builder_for(frame, where).sweep(
            frame.timestamp_micros, pose, lasers_of(frame, where), self._boxes(frame, pose, where)
        )

    def _builder_for(self, frame: Any, where: str) -> SweepBuilder:
        # Every frame repeats the calibrations of its segment.
        calibrations = list(frame.context.laser_calibrations)
        if self._builder is None or calibrations != self._calibrations:
            self._builder = SweepBuilder(self._sequence_id, calibrations_of(frame, where), split=self._split)
            self._calibrations = calibrations
        return self._builder

    def _boxes(self, frame: Any, pose: Float64, where: str) -> Boxes | None:
        # A frame without a label and one that was not labelled look the same: the split tells them apart.
        if not frame.laser_labels and self._split not in ("train", "val"):
            return None
        return boxes_of(box_labels_of(frame, where), pose)


def lasers_of(frame: Any, where: str) -> list[LaserReturns]:
    """Return what the lasers of a frame saw.

    Args:
        frame: A `Frame` message.
        where: The file and record, for messages.

    Raises:
        DataError: If a laser is unknown or has no first return, or an image is damaged.
    """
    result = []
    for message in frame.lasers:
        laser = Laser.numbered(message.name, where=where)
        place = f"{where}, laser {laser.name}"
        returns = (message.ri_return1, message.ri_return2)
        images = [
            read_float_image(r.range_image_compressed, channels=4, what=f"range image of return {i}", where=place)
            if r.range_image_compressed
            else None
            for i, r in enumerate(returns, start=1)
        ]
        if images[0] is None:
            raise DataError("the laser has no range image", where=place, expected="one of the first return")
        labels = [
            read_int_image(r.segmentation_label_compressed, channels=2, what=f"segmentation of return {i}", where=place)
            if r.segmentation_label_compressed
            else None
            for i, r in enumerate(returns, start=1)
        ]
        pose = message.ri_return1.range_image_pose_compressed
        result.append(
            LaserReturns(
                laser=laser,
                range_images=(images[0], images[1]),
                where=place,
                pixel_pose=read_float_image(pose, channels=6, what="pose of the pixels", where=place) if pose else None,
                segmentation=(labels[0], labels[1]) if any(label is not None for label in labels) else None,
            )
        )
    return result


def calibrations_of(frame: Any, where: str) -> dict[Laser, LaserCalibration]:
    """Return the calibrations that a frame repeats from its segment.

    Args:
        frame: A `Frame` message.
        where: The file and record, for messages.

    Raises:
        DataError: If a laser is unknown or occurs twice, or its calibration is impossible.
    """
    result: dict[Laser, LaserCalibration] = {}
    for message in frame.context.laser_calibrations:
        laser = Laser.numbered(message.name, where=where)
        if laser in result:
            raise DataError(f"laser {laser.name} is calibrated twice", where=where, expected="every laser once")
        values = np.array(message.beam_inclinations, dtype=np.float64)
        result[laser] = LaserCalibration(
            laser=laser,
            ego_SE3_lidar=_transform(message.extrinsic, f"extrinsic of laser {laser.name}", where),
            inclination_min=message.beam_inclination_min,
            inclination_max=message.beam_inclination_max,
            inclination_values=values if len(values) else None,
            where=where,
        )
    return result


def box_labels_of(frame: Any, where: str) -> BoxLabels:
    """Return the 3D labels of a frame.

    Args:
        frame: A `Frame` message.
        where: The file and record, for messages.

    Raises:
        DataError: If a label's box is not one of seven numbers.
    """
    labels = frame.laser_labels
    for label in labels:
        given = [field.name for field, _ in label.box.ListFields()]
        if len(given) != 7:
            raise DataError(
                f"the box of label {label.id!r} has only {', '.join(given) or 'nothing'}",
                where=where,
                expected="centre, length, width, height and heading",
            )
    counted = all(label.HasField("num_lidar_points_in_box") for label in labels)
    boxes = [
        (b.center_x, b.center_y, b.center_z, b.length, b.width, b.height, b.heading) for b in (x.box for x in labels)
    ]
    velocity = [
        (m.speed_x, m.speed_y, m.speed_z) if m.HasField("speed_x") else (np.nan, np.nan, np.nan)
        for m in (label.metadata for label in labels)
    ]
    return BoxLabels(
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 7),
        types=np.array([label.type for label in labels], dtype=np.int32),
        ids=[label.id for label in labels],
        velocity_world=np.array(velocity, dtype=np.float64).reshape(-1, 3),
        num_lidar_points=np.array([x.num_lidar_points_in_box for x in labels], dtype=np.int32) if counted else None,
        difficulty=np.array([label.detection_difficulty_level for label in labels], dtype=np.int32),
        where=where,
    )


def _transform(message: Any, what: str, where: str) -> Float64:
    values = np.array(message.transform, dtype=np.float64)
    if len(values) != 16:
        raise DataError(f"the {what} has {len(values)} numbers", where=where, expected="16: a 4 × 4 matrix by rows")
    return values.reshape(4, 4)
