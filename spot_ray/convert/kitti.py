"""KITTI's object benchmark in its official layout: `{training,testing}/{velodyne,label_2,calib,image_2}`, `ImageSets/`.

Every frame is a sequence of its own, `training/000000`, since the benchmark shuffled frames of many drives and left out
their poses: `world_SE3_ego` is None. It gives no times either, so every `timestamp_ns` is 0.

Frames: points come in the Velodyne's frame and leave in the ego frame by its nominal mount, 1.73 m over the ground.
Boxes come in the rectified frame of camera 0 (x right, y down, z forward), by the centre of their bottom; the inverse
of `R0_rect` and `Tr_velo_to_cam` takes centre and heading to the Velodyne's frame. They stay upright there, though the
two frames are tilted against each other by a degree.

Only objects that camera 2 sees are annotated: outside of its image, points without a box may belong to anything.
`DontCare` regions are `Sweep.ignore_boxes_2d`. A label's `alpha` has no column: it is `ry` minus the azimuth of the
object in the camera's frame. Files list points beam by beam but state no beam, so there is no `ring`.

The points are not corrected for the ego's motion within the sweep, and without poses they cannot be: the benchmark's
readme maps its frames to those of the raw data, whose readme says so, and so do the points. They lie on a grid of 1 mm,
and each beam's on one cone all around, to 0.05 mrad; the corrected ones of the odometry benchmark do neither. Cameras
fired while the Velodyne looked forward, so what the image shows was measured at nearly one moment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from spot_ray.convert._kitti_labels import read_label
from spot_ray.convert._kitti_text import POINT_COLUMNS, as_lists, frame_of, homogeneous, read_calibration
from spot_ray.convert.files import AGAIN, inside, read_points, read_text, record
from spot_ray.convert.source import BadFrame, read_frames
from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry import se3
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.lidars import HDL_64E
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_CLASSES, SourceClass, Taxonomy
from spot_ray.storage import uri as uris

CLASSES: tuple[tuple[str, str, str | None], ...] = (
    ("Car", "vehicle", "Car"),
    # The benchmark takes a van for a neighbour of a car, and a sitting person for one of a pedestrian: neither a hit
    # nor a miss.
    ("Van", "vehicle", None),
    ("Truck", "vehicle", None),
    ("Pedestrian", "pedestrian", "Pedestrian"),
    ("Person_sitting", "pedestrian", None),
    ("Cyclist", "cyclist", "Cyclist"),
    ("Tram", "vehicle", None),
    # Trailers, segways and whatever else moves.
    ("Misc", "general object", None),
)
"""KITTI's object types in the order of its readme; each with the paper's class that it maps to, and the class of the
detection benchmark that it counts as. The id of a type is its place here."""

DETECTION_CLASSES = ("Car", "Pedestrian", "Cyclist")
"""What the detection benchmark scores, in its order."""

LISTS: dict[str, tuple[str, str | None]] = {
    "train": ("training", "train"),
    "val": ("training", "val"),
    "trainval": ("training", None),
    "test": ("testing", "test"),
}
"""The files of `ImageSets`: the folder that their frames lie in, and the split that they make."""

SEQUENCES_A_SHARD = 256

_UNLABELLED = {c.name for c in PAPER_CLASSES} - {target for _, target, _ in CLASSES}

TAXONOMY = Taxonomy(
    "kitti",
    tuple(replace(c, labelled=c.name not in _UNLABELLED) for c in PAPER_CLASSES),
    tuple(SourceClass(i, name, target, detection=counts) for i, (name, target, counts) in enumerate(CLASSES)),
    detection_classes=DETECTION_CLASSES,
)

_ID_OF_TYPE = {source.name: source.id for source in TAXONOMY.sources}
_NEEDED = ("P2", "R0_rect", "Tr_velo_to_cam")
_OPTIONAL = ("P0", "P1", "P3", "Tr_imu_to_velo")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEAD = 24
"""Bytes of a PNG up to and with its width and height."""


@dataclass(frozen=True)
class Frame:
    """One frame of the index.

    Args:
        folder: `training` or `testing`.
        frame_id: Six digits.
        split: The official split that it belongs to, or None.
        annotated: Whether it has a label file.
        has_image: Whether it has an image of camera 2.
    """

    folder: str
    frame_id: str
    split: str | None
    annotated: bool
    has_image: bool

    def file(self, kind: str, suffix: str) -> str:
        """Return one of its files, relative to the source: `training/velodyne/000000.bin`."""
        return f"{self.folder}/{kind}/{self.frame_id}.{suffix}"


class Kitti:
    """An opened KITTI object folder: an index of its frames.

    Args:
        source: The folder that holds `training` and `testing`.
        frames: Its frames by sequence id.
    """

    def __init__(self, source: str, frames: Mapping[str, Frame]) -> None:
        self._source = source
        self._frames = frames

    def info(self) -> DatasetInfo:
        """Return what holds for the dataset."""
        folders = sorted({frame.folder for frame in self._frames.values()})
        return DatasetInfo(
            name="kitti",
            rig=(HDL_64E,),
            taxonomy=TAXONOMY,
            licence="CC BY-NC-SA 3.0",
            provenance=f"KITTI object detection benchmark 2012/2017, {' and '.join(folders)}",
            sequences_a_shard=SEQUENCES_A_SHARD,
        )

    def sequences(self) -> tuple[str, ...]:
        """Return the names of the frames with their folder, sorted: `training/000000`."""
        return tuple(sorted(self._frames))

    def read(self, sequence_id: str) -> Iterator[Sweep | BadFrame]:
        """Yield the one frame of a sequence."""
        frame = self._frames[sequence_id]
        return read_frames([(frame.frame_id, frame)], self._sweep)

    def _sweep(self, frame: Frame) -> Sweep:
        points = read_points(self._source, frame.file("velodyne", "bin"), POINT_COLUMNS)
        matrices = read_calibration(self._source, frame.file("calib", "txt"), needed=_NEEDED, optional=_OPTIONAL)
        size = read_image_size(self._source, frame.file("image_2", "png")) if frame.has_image else None
        boxes = ignored = None
        if frame.annotated:
            rotation, velodyne = matrices["R0_rect"], matrices["Tr_velo_to_cam"]
            assert rotation is not None
            assert velodyne is not None
            ego_SE3_camera = HDL_64E.pose @ np.linalg.inv(homogeneous(rotation) @ homogeneous(velodyne))
            boxes, ignored = read_label(self._source, frame.file("label_2", "txt"), _ID_OF_TYPE, ego_SE3_camera)
        return Sweep(
            sequence_id=f"{frame.folder}/{frame.frame_id}",
            frame_id=frame.frame_id,
            timestamp_ns=0,
            xyz=se3.transform_points(HDL_64E.pose, points[:, :3]),
            intensity=points[:, 3].copy(),
            boxes=boxes,
            ignore_boxes_2d=ignored,
            motion_compensated=False,
            calibration=json.dumps({**as_lists(matrices), "image_size": size}),
            split=frame.split,
        )


def open_source(source: str, *, version: str | None = None) -> Kitti:
    """Open a folder of KITTI's object benchmark.

    Frames are the files of `velodyne` and those that `ImageSets/{train,val,trainval,test}.txt` list, if there are such
    lists. A frame of `training` has the split `train` or `val` of its list, and None if it is in neither; one of
    `testing` has `test`.

    A sweep's `calibration` is a JSON object of the matrices by their names in the calibration file, row by row (`P0` to
    `P3`, `R0_rect`, `Tr_velo_to_cam`, `Tr_imu_to_velo`; null if the file lacks one), and of `image_size`: width and
    height of camera 2's image, null where the image is not there. They are for points in the Velodyne's frame:
    `LidarSpec.ego_SE3_lidar` of the rig inverted takes ours there.

    Args:
        source: The folder with `training/` or `testing/` or both; a path or a URI.
        version: None: the benchmark has but one.

    Raises:
        ConfigError: If a version is given.
        DataError: If the folder is not one of KITTI's object benchmark, or a list is broken.
    """
    if version is not None:
        raise ConfigError(f"KITTI has no version {version!r}", where="--version", remedy="leave it out")
    root = uris.absolute(source)
    layout = "the folder that holds training/velodyne/000000.bin …, testing/velodyne/ … and ImageSets/"
    if not uris.exists(root):
        raise DataError("no such folder", where=root, expected=layout)
    ids: dict[str, set[str]] = {}
    for folder in ("training", "testing"):
        names = uris.list_dir(uris.join(root, folder, "velodyne"))
        if names:
            ids[folder] = {frame_of(uris.join(root, folder, "velodyne", name)) for name in names}
    if not ids:
        raise DataError(
            "no KITTI folder: there are no training/velodyne/*.bin or testing/velodyne/*.bin",
            where=root,
            expected=layout,
            remedy="give the folder above it" if root.endswith(("/training", "/testing")) else "",
        )
    split_of = _read_lists(root, ids)
    frames: dict[str, Frame] = {}
    for folder, listed in ids.items():
        annotated = bool(uris.list_dir(uris.join(root, folder, "label_2")))
        images = set(uris.list_dir(uris.join(root, folder, "image_2")))
        for frame_id in listed:
            sequence_id = f"{folder}/{frame_id}"
            split = "test" if folder == "testing" else split_of.get(sequence_id)
            frames[sequence_id] = Frame(folder, frame_id, split, annotated, f"{frame_id}.png" in images)
    return Kitti(root, frames)


def read_image_size(root: str, relative: str) -> tuple[int, int]:
    """Return width and height of a PNG in pixels; only its head is read.

    Raises:
        DataError: If the file is missing, or no PNG.
    """
    where = inside(root, relative)
    system, path = uris.filesystem(where)
    with uris.refusals_told("read the file", where), system.open_input_stream(path) as stream:
        head = bytes(stream.read(_PNG_HEAD))
    record(relative, head)
    if len(head) < _PNG_HEAD or not head.startswith(_PNG) or head[12:16] != b"IHDR":
        raise DataError("the image is no PNG", where=where, expected="a PNG with its header", remedy=AGAIN)
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _read_lists(root: str, ids: dict[str, set[str]]) -> dict[str, str]:
    """Return the split of each frame, by sequence id, that `ImageSets` names; frames that it names are added to `ids`.

    The lists of a folder that is not there are passed over: most users leave out `testing`.
    """
    present = uris.list_dir(uris.join(root, "ImageSets"))
    split_of: dict[str, str] = {}
    for name, (folder, split) in LISTS.items():
        if f"{name}.txt" not in present or folder not in ids:
            continue
        relative = f"ImageSets/{name}.txt"
        seen: set[str] = set()
        for row, line in enumerate(read_text(root, relative, "list of frames").splitlines(), 1):
            frame_id = line.strip()
            if not frame_id:
                continue
            where = f"{inside(root, relative)}, row {row}"
            if re.fullmatch(r"\d{6}", frame_id) is None:
                raise DataError(
                    f"the list names the frame {frame_id!r}", where=where, expected="six digits, e.g. 000000"
                )
            if frame_id in seen:
                raise DataError(f"the frame {frame_id} occurs twice", where=where, expected="each frame once")
            seen.add(frame_id)
            sequence_id = f"{folder}/{frame_id}"
            if split is not None and split_of.setdefault(sequence_id, split) != split:
                raise DataError(
                    f"the frame {frame_id} is in {split_of[sequence_id]}.txt too",
                    where=where,
                    expected="each frame in one split",
                )
        ids[folder] |= seen
    return split_of
