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
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from spot_ray.config.load import suggestion
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
from spot_ray.storage import uri as uris

CLASSES: tuple[tuple[str, str], ...] = (
    ("Car", "vehicle"),
    ("Bus", "vehicle"),
    ("Truck", "vehicle"),
    ("Pedestrian", "pedestrian"),
    ("Cyclist", "cyclist"),
)
"""ONCE's classes, which have names only, in the order of its benchmark, each with the paper's class that it maps to.

Detectors predict the five; the official evaluation then counts Car, Bus and Truck as one, Vehicle.
"""

LABELLED_CLASSES = frozenset(target for _, target in CLASSES)
"""Classes of the paper that ONCE's boxes tell from others; it has no labels of points."""

SPLIT_LISTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("train", ("train.txt",)),
    ("val", ("val.txt",)),
    ("test", ("test.txt", "test_set.txt")),
    ("raw_small", ("raw_small.txt",)),
    ("raw_medium", ("raw_medium.txt",)),
    ("raw_large", ("raw_large.txt",)),
)
"""The official splits and the names of their lists. raw_small is part of raw_medium, and that of raw_large: a sequence
counts as of the smallest that lists it."""

POINT_COLUMNS = ("x", "y", "z", "intensity")

LIDAR = dataclasses.replace(
    ONCE_40,
    ego_SE3_lidar=as_matrix(se3.from_yaw(math.pi / 2, (0.0, 0.0, ONCE_40.height_m))),
    intensity_max=None,
)
"""The roof LiDAR as it is mounted: its x axis points to the vehicle's left."""

_LAYOUT = "the folder that holds data/, with one folder a sequence, and ImageSets/"
_FRAME_ID = re.compile(r"[0-9]{13}")


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
        self._class_of = {name: i for i, (name, _) in enumerate(CLASSES)}

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
        name = f"data/{sequence_id}/{sequence_id}.json"
        content = files.read_json(self._source, name, "sequence file")
        if not isinstance(content, dict) or not isinstance(content.get("frames"), list) or not content["frames"]:
            raise DataError(
                "the file lists no frames",
                where=uris.join(self._source, name),
                expected="an object with calib and a list `frames`",
                remedy=files.AGAIN,
            )
        yield from read_frames(_in_order(sequence_id, content), self._sweep)

    def _sweep(self, frame: _Frame) -> Sweep:
        where = f"{uris.join(self._source, 'data', frame.sequence_id, frame.sequence_id)}.json, frames[{frame.index}]"
        row = frame.row
        time_ms = _time_ms(row)
        if time_ms is None:
            raise DataError(
                f"frame_id is {_shorten(row.get('frame_id')) if isinstance(row, dict) else _shorten(row)}",
                where=where,
                expected="the frame's time: 13 digits, milliseconds since 1970",
            )
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
            boxes=None if "annos" not in row else self._boxes(row["annos"], where),
            motion_compensated=False,
            calibration=frame.calibration,
            split=self.split_of[frame.sequence_id],
        )

    def _boxes(self, annos: Any, where: str) -> Boxes:
        names, rows = (annos.get(key) if isinstance(annos, dict) else None for key in ("names", "boxes_3d"))
        if not isinstance(names, list) or not isinstance(rows, list) or len(names) != len(rows):
            found = [len(v) if isinstance(v, list) else _shorten(v) for v in (names, rows)]
            raise DataError(
                f"annos has {found[0]} names and {found[1]} boxes_3d",
                where=f"{where}.annos",
                expected="two lists of one length",
                remedy=files.AGAIN,
            )
        for i, (name, row) in enumerate(zip(names, rows, strict=True)):
            if name not in self._class_of:
                raise DataError(
                    f"the class of box {i} is {_shorten(name)}",
                    where=f"{where}.annos.names",
                    expected=f"one of {', '.join(self._class_of)}",
                    remedy=suggestion(name, list(self._class_of)) if isinstance(name, str) else "",
                )
            if not _are_numbers(row, 7) or min(row[3:6]) <= 0:
                raise DataError(
                    f"box {i} is {_shorten(row)}",
                    where=f"{where}.annos.boxes_3d",
                    expected="x, y, z, length, width, height, yaw: finite numbers, positive sizes",
                )
        boxes_lidar = np.array(rows, dtype=np.float64).reshape(-1, 7)
        return Boxes(
            boxes=transform_boxes(LIDAR.pose, boxes_lidar).astype(np.float32),
            source_class=np.array([self._class_of[name] for name in names], dtype=np.uint16),
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
    if not uris.exists(root):
        raise DataError("no such folder", where=root, expected=_LAYOUT)
    # What was unpacked may lie beside its archives.
    sequences = [name for name in uris.list_dir(uris.join(root, "data")) if "." not in name]
    if not sequences:
        raise DataError("this is no ONCE folder: no sequence in data/", where=root, expected=_LAYOUT)
    listed = _read_lists(root)
    return Once(root, {sequence_id: listed.get(sequence_id) for sequence_id in sequences})


def taxonomy() -> Taxonomy:
    """Return ONCE's taxonomy: its boxes carry the place of their class in :data:`CLASSES`."""
    return Taxonomy(
        "once",
        tuple(dataclasses.replace(c, labelled=c.name in LABELLED_CLASSES) for c in PAPER_CLASSES),
        tuple(SourceClass(i, name, target, detection=name) for i, (name, target) in enumerate(CLASSES)),
        detection_classes=tuple(name for name, _ in CLASSES),
    )


def _read_lists(root: str) -> dict[str, str]:
    """Return the split of every sequence that a list of `ImageSets` names."""
    present = uris.list_dir(uris.join(root, "ImageSets"))
    split_of: dict[str, str] = {}
    for split, names in SPLIT_LISTS:
        for name in (n for n in names if n in present):
            for sequence_id in files.read_text(root, f"ImageSets/{name}", "list of a split").split():
                other = split_of.setdefault(sequence_id, split)
                if other != split and not (other.startswith("raw_") and split.startswith("raw_")):
                    raise DataError(
                        f"sequence {sequence_id!r} is in the splits {other} and {split}",
                        where=uris.join(root, "ImageSets", name),
                        expected="train, val, test and raw without a common sequence",
                    )
    return split_of


def _in_order(sequence_id: str, content: dict[str, Any]) -> Iterator[tuple[str, _Frame]]:
    """Yield the frame ids and entries of a sequence."""
    kept = {key: content[key] for key in ("calib", "meta_info") if key in content}
    calibration = json.dumps(kept, separators=(",", ":")) if "calib" in kept else None
    latest_ms = -1
    for i, row in enumerate(content["frames"]):
        time_ms = _time_ms(row)
        frame_id = f"frames[{i}]" if time_ms is None else str(row["frame_id"])
        yield frame_id, _Frame(i, row, latest_ms, sequence_id, calibration)
        latest_ms = max(latest_ms, -1 if time_ms is None else time_ms)


def _time_ms(row: Any) -> int | None:
    """Return the time that a frame is named by, or None if it is no such name."""
    frame_id = row.get("frame_id") if isinstance(row, dict) else None
    if isinstance(frame_id, bool) or not isinstance(frame_id, str | int) or not _FRAME_ID.fullmatch(str(frame_id)):
        return None
    return int(frame_id)


def _pose(row: dict[str, Any], where: str) -> npt.NDArray[np.float64] | None:
    """Return the (4, 4) `world_SE3_lidar` of a frame, or None if the source could not locate it."""
    pose = row.get("pose")
    if not _are_numbers(pose, 7):
        raise DataError(
            f"pose is {_shorten(pose)}", where=where, expected="seven numbers: quaternion x, y, z, w and three metres"
        )
    x, y, z, w, *translation = pose
    if x == y == z == w == 0:
        return None
    try:
        return se3.from_quaternion((w, x, y, z), translation)
    except ValueError as error:
        raise DataError(f"pose is {error}", where=where, expected="a quaternion x, y, z, w of norm 1") from None


def _are_numbers(values: object, count: int) -> TypeGuard[list[float]]:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    )


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
