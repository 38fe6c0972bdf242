"""ONCE in its official layout: `data/SEQ/SEQ.json`, points `data/SEQ/lidar_roof/FRAME.bin`, splits `ImageSets/*.txt`.

Every frame of every sequence that is there becomes a sweep, annotated or not: the release has 2 Hz frames only, and
those without `annos` (all of the raw sequences, some of the others) are what it is meant to be pre-trained on.

Frames: the LiDAR's x points to the left, y to the back, z up, says the documentation. The points agree: registered to
the frame before, a sweep has moved along -y, and the points of a turning vehicle turn the same way. Points and boxes
leave in the ego frame by a mount that turns a quarter and has the nominal height of :data:`ONCE_40`; the release has no
ego frame of its own. `pose` takes LiDAR points to the sequence's world (quaternion x, y, z, w, then metres); a frame
whose quaternion is all zeros has none.

The points are not corrected for the ego's motion: all points of a ring lie at one inclination, to 1e-5 degrees, also
where the vehicle moved half a metre in the revolution. Files list no ring.

Intensities have no stated scale: most lie below 1, in steps of 0.01, single ones reach 242. So the rig leaves it open.

Not kept: `boxes_2d`, the boxes projected into seven cameras. The cameras' calibration is kept, to project them again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from spot_ray.convert import files
from spot_ray.convert.source import BadFrame, read_frames
from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry import se3
from spot_ray.geometry.boxes import transform_boxes
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.lidars import ONCE_40
from spot_ray.schema.sensors import as_matrix
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_CLASSES, SourceClass, Taxonomy
from spot_ray.storage import once_release as release
from spot_ray.storage import uri as uris

CLASSES: tuple[tuple[str, str], ...] = tuple(
    zip(release.CLASS_NAMES, ("vehicle", "vehicle", "vehicle", "pedestrian", "cyclist"), strict=True)
)
"""ONCE's classes in the order of its benchmark, each with the paper's class that it maps to.

Detectors predict the five; the official evaluation then counts Car, Bus and Truck as one, Vehicle.
"""

LABELLED_CLASSES = frozenset(target for _, target in CLASSES)
"""Classes of the paper that ONCE's boxes tell from others; it has no labels of points."""

POINT_COLUMNS = ("x", "y", "z", "intensity")

LIDAR = dataclasses.replace(
    ONCE_40,
    ego_SE3_lidar=as_matrix(se3.from_yaw(math.pi / 2, (0.0, 0.0, ONCE_40.height_m))),
    intensity_max=None,
)
"""The roof LiDAR as it is mounted: its x axis points to the vehicle's left."""


@dataclasses.dataclass(frozen=True)
class _Frame:
    """One entry of `frames`, and what its sequence says for all of them.

    Args:
        index: Its place in the list.
        row: The entry, unchecked.
        after_ms: The latest time of the entries before it, milliseconds; -1 for the first.
        sequence_id: Its sequence.
        calibration: The cameras' calibration as JSON text, or None.
    """

    index: int
    row: Any
    after_ms: int
    sequence_id: str
    calibration: str | None


class Once:
    """An opened ONCE folder: the names of its sequences and their splits.

    Args:
        source: The folder that holds `data`.
        split_of: The split of every sequence, or None where no list has it.
    """

    def __init__(self, source: str, split_of: Mapping[str, str | None]) -> None:
        self._source = source
        self.split_of = dict(split_of)

    def info(self) -> DatasetInfo:
        """Return what holds for the dataset."""
        return DatasetInfo(
            name="once",
            rig=(LIDAR,),
            taxonomy=taxonomy(),
            licence="CC BY-NC-SA 4.0 and the ONCE terms of use",
            provenance="ONCE, lidar_roof",
        )

    def sequences(self) -> tuple[str, ...]:
        """Return the names of the sequences, sorted."""
        return tuple(sorted(self.split_of))

    def read(self, sequence_id: str) -> Iterator[Sweep | BadFrame]:
        """Yield the frames of a sequence in time order.

        Raises:
            DataError: If the sequence's JSON file is missing or broken.
        """
        name = release.sequence_file(sequence_id)
        content = files.read_json(self._source, name, "sequence file")
        release.check_sequence(content, uris.join(self._source, name))
        yield from read_frames(_in_order(sequence_id, content), self._sweep)

    def _sweep(self, frame: _Frame) -> Sweep:
        name = uris.join(self._source, release.sequence_file(frame.sequence_id))
        where = f"{name}, frames[{frame.index}]"
        row = frame.row
        time_ms = release.check_frame_time(row, where)
        frame_id = str(row["frame_id"])
        if time_ms <= frame.after_ms:
            raise DataError(
                f"frame {frame_id} does not follow {frame.after_ms}",
                where=where,
                expected="each frame once, in time order",
            )
        if str(row.get("sequence_id", frame.sequence_id)) != frame.sequence_id:
            raise DataError(
                f"frame {frame_id} says it is of sequence {row['sequence_id']!r}",
                where=where,
                expected=frame.sequence_id,
            )
        points = files.read_points(self._source, f"data/{frame.sequence_id}/lidar_roof/{frame_id}.bin", POINT_COLUMNS)
        world_SE3_lidar = _pose(row, where)
        return Sweep(
            sequence_id=frame.sequence_id,
            frame_id=frame_id,
            timestamp_ns=time_ms * 1_000_000,
            xyz=se3.transform_points(LIDAR.pose, points[:, :3]).astype(np.float32),
            world_SE3_ego=None if world_SE3_lidar is None else world_SE3_lidar @ se3.invert(LIDAR.pose),
            intensity=points[:, 3].copy(),
            boxes=None if "annos" not in row else _boxes(row["annos"], where),
            motion_compensated=False,
            calibration=frame.calibration,
            split=self.split_of[frame.sequence_id],
        )


def open_source(source: str, *, version: str | None = None) -> Once:
    """Open a ONCE folder.

    Args:
        source: The folder with `data/` and `ImageSets/`; a path or a URI. Without lists, no sequence has a split.
        version: None: ONCE has only one.

    Raises:
        ConfigError: If a version is asked for.
        DataError: If the folder is not one of ONCE, or a sequence is listed in two splits.
    """
    if version is not None:
        raise ConfigError(f"ONCE has no version {version!r}", where="--version", remedy="leave it out")
    root = uris.absolute(source)
    sequences = release.list_sequences(root)
    listed = release.read_splits(root, lambda name: files.read_text(root, name, "list of a split"))
    return Once(root, {sequence_id: listed.get(sequence_id) for sequence_id in sequences})


def taxonomy() -> Taxonomy:
    """Return ONCE's taxonomy: its boxes carry the place of their class in :data:`CLASSES`."""
    return Taxonomy(
        "once",
        tuple(dataclasses.replace(c, labelled=c.name in LABELLED_CLASSES) for c in PAPER_CLASSES),
        tuple(SourceClass(i, name, target, detection=name) for i, (name, target) in enumerate(CLASSES)),
        detection_classes=tuple(name for name, _ in CLASSES),
    )


def _boxes(annos: Any, where: str) -> Boxes:
    boxes_lidar, classes = release.read_annos(annos, where)
    return Boxes(boxes=transform_boxes(LIDAR.pose, boxes_lidar).astype(np.float32), source_class=classes)


def _in_order(sequence_id: str, content: dict[str, Any]) -> Iterator[tuple[str, _Frame]]:
    """Yield the frame ids and entries of a sequence."""
    kept = {key: content[key] for key in ("calib", "meta_info") if key in content}
    calibration = json.dumps(kept, separators=(",", ":")) if "calib" in kept else None
    latest_ms = -1
    for i, row in enumerate(content["frames"]):
        time_ms = release.frame_time_ms(row)
        frame_id = f"frames[{i}]" if time_ms is None else str(row["frame_id"])
        yield frame_id, _Frame(i, row, latest_ms, sequence_id, calibration)
        latest_ms = max(latest_ms, -1 if time_ms is None else time_ms)


def _pose(row: dict[str, Any], where: str) -> npt.NDArray[np.float64] | None:
    """Return the (4, 4) `world_SE3_lidar` of a frame, or None if the source could not locate it."""
    pose = row.get("pose")
    if not release.are_numbers(pose, 7):
        raise DataError(
            f"pose is {release.shorten(pose)}",
            where=where,
            expected="seven numbers: quaternion x, y, z, w and three metres",
        )
    x, y, z, w, *translation = pose
    if x == y == z == w == 0:
        return None
    try:
        return se3.from_quaternion((w, x, y, z), translation)
    except ValueError as error:
        raise DataError(f"pose is {error}", where=where, expected="a quaternion x, y, z, w of norm 1") from None
