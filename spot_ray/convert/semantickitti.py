"""SemanticKITTI in its official layout: `sequences/XX/{velodyne,labels,calib.txt,poses.txt,times.txt}`.

Points and times are of KITTI's odometry benchmark, labels and poses (corrected where the drive meets itself) of
SemanticKITTI. A folder is a sequence, a file of points a frame; its number is its row in `poses.txt` and `times.txt`,
which may go on beyond the files that are there.

Frames: points come in the Velodyne's frame and leave in the ego frame by its nominal mount, 1.73 m over the ground.
Poses come as `P`, camera 0 in its frame at the start of the sequence, and `Tr` takes the Velodyne's points to camera 0,
so the Velodyne's pose is Tr⁻¹ · P · Tr; the world frame here is the ego frame at the start of the sequence, z up.
Times are seconds since the start of the sequence: there is no epoch.

Labels: instance ids are unique among the objects of one class in a sequence; 0, no instance, becomes -1. Moving objects
have classes of their own and map as the standing ones. No object has a box. Files list points beam by beam but state no
beam, so there is no `ring`.

The points are corrected for the ego's motion within the sweep, to the moment at which the cameras fired and the
Velodyne looked forward: the readme of the odometry benchmark says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from spot_ray.convert._kitti_text import (
    POINT_COLUMNS,
    PROJECTIONS,
    as_lists,
    frame_of,
    homogeneous,
    read_calibration,
    read_rows,
)
from spot_ray.convert.files import AGAIN, inside, read_labels, read_points
from spot_ray.convert.source import BadFrame, read_frames
from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry import se3
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.lidars import HDL_64E
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_CLASSES, SourceClass, Taxonomy
from spot_ray.storage import uri as uris

CLASSES: tuple[tuple[int, str, str | None, str | None], ...] = (
    (0, "unlabeled", None, None),
    # Reflections and measurements of nothing.
    (1, "outlier", None, None),
    (10, "car", "vehicle", "car"),
    (11, "bicycle", "bicycle", "bicycle"),
    (13, "bus", "vehicle", "other-vehicle"),
    (15, "motorcycle", "motorcycle", "motorcycle"),
    (16, "on-rails", "vehicle", "other-vehicle"),
    (18, "truck", "vehicle", "truck"),
    # Trailers, caravans, construction machines.
    (20, "other-vehicle", "vehicle", "other-vehicle"),
    (30, "person", "pedestrian", "person"),
    # Riders, with what they ride.
    (31, "bicyclist", "cyclist", "bicyclist"),
    (32, "motorcyclist", "cyclist", "motorcyclist"),
    (40, "road", "road", "road"),
    (44, "parking", "road", "parking"),
    (48, "sidewalk", "walkable", "sidewalk"),
    # Chosen by annotators between sidewalk and terrain, e.g. paved traffic islands: level, but not to drive on.
    (49, "other-ground", "walkable", "other-ground"),
    (50, "building", "building", "building"),
    # Crash barriers and low walls too: solid, and no house.
    (51, "fence", "general object", "fence"),
    # Bridges, tunnels, shelters.
    (52, "other-structure", "building", None),
    (60, "lane-marking", "road", "road"),
    (70, "vegetation", "vegetation", "vegetation"),
    (71, "trunk", "tree trunk", "trunk"),
    # Grass and soil.
    (72, "terrain", "walkable", "terrain"),
    # Without what it carries; of traffic lights too, which have no class.
    (80, "pole", "pole", "pole"),
    (81, "traffic-sign", "sign", "traffic-sign"),
    # Bins, hydrants, advertising columns, statues.
    (99, "other-object", "general object", None),
    (252, "moving-car", "vehicle", "car"),
    (253, "moving-bicyclist", "cyclist", "bicyclist"),
    (254, "moving-person", "pedestrian", "person"),
    (255, "moving-motorcyclist", "cyclist", "motorcyclist"),
    (256, "moving-on-rails", "vehicle", "other-vehicle"),
    (257, "moving-bus", "vehicle", "other-vehicle"),
    (258, "moving-truck", "vehicle", "truck"),
    (259, "moving-other-vehicle", "vehicle", "other-vehicle"),
)
"""SemanticKITTI's labels: id, name, the paper's class that it maps to, and the class of the segmentation benchmark that
it counts as (`learning_map` of the official `semantic-kitti.yaml`)."""

SEGMENTATION_CLASSES = (
    *("car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist"),
    *("road", "parking", "sidewalk", "other-ground", "building", "fence", "vegetation", "trunk", "terrain"),
    *("pole", "traffic-sign"),
)
"""What the segmentation benchmark scores, in its order; the first is its class 1."""

UNLABELLED_CLASSES = frozenset({"traffic light", "construction cone"})
"""Classes of the paper that SemanticKITTI does not tell from others."""

SPLITS: dict[str, str] = {
    **{f"{number:02d}": "train" for number in (*range(8), 9, 10)},
    "08": "val",
    **{f"{number:02d}": "test" for number in range(11, 22)},
}
"""The official split of every sequence."""

TAXONOMY = Taxonomy(
    "semantickitti",
    tuple(replace(c, labelled=c.name not in UNLABELLED_CLASSES) for c in PAPER_CLASSES),
    tuple(SourceClass(i, name, target, segmentation=counts) for i, name, target, counts in CLASSES),
    segmentation_classes=SEGMENTATION_CLASSES,
)

_KNOWN = np.isin(np.arange(1 << 16), [i for i, *_ in CLASSES])
_CALIBRATION_ARCHIVE = "unpack data_odometry_calib.zip of KITTI's odometry benchmark too"

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sequence:
    """One sequence of the index.

    Args:
        frame_ids: Six digits each, ascending.
        labelled: Whether it has a folder of labels.
        has_poses: Whether it has `poses.txt`.
    """

    frame_ids: tuple[str, ...]
    labelled: bool
    has_poses: bool


class SemanticKitti:
    """An opened SemanticKITTI folder: an index of its files.

    Args:
        source: The folder that holds `sequences`.
        sequences: Its sequences by name.
    """

    def __init__(self, source: str, sequences: Mapping[str, Sequence]) -> None:
        self._source = source
        self._sequences = sequences

    def info(self) -> DatasetInfo:
        """Return what holds for the dataset."""
        return DatasetInfo(
            name="semantickitti",
            rig=(HDL_64E,),
            taxonomy=TAXONOMY,
            licence="CC BY-NC-SA 4.0 (labels, poses), CC BY-NC-SA 3.0 (points)",
            provenance="SemanticKITTI, on the sweeps of the KITTI odometry benchmark",
        )

    def sequences(self) -> tuple[str, ...]:
        """Return the names of the sequences, sorted."""
        return tuple(sorted(self._sequences))

    def read(self, sequence_id: str) -> Iterator[Sweep | BadFrame]:
        """Yield the sweeps of a sequence in time order.

        Raises:
            DataError: If calibration, times or poses are missing or broken.
        """
        sequence = self._sequences[sequence_id]
        reader = SequenceReader(self._source, sequence_id, sequence)
        return read_frames([(frame_id, frame_id) for frame_id in sequence.frame_ids], reader.sweep)


class SequenceReader:
    """What all sweeps of a sequence need, read once.

    Args:
        source: The folder that holds `sequences`.
        sequence_id: The name of the sequence.
        sequence: Its index.

    Raises:
        DataError: If calibration, times or poses are missing or broken.
    """

    def __init__(self, source: str, sequence_id: str, sequence: Sequence) -> None:
        self._source = source
        self._sequence_id = sequence_id
        self._folder = f"sequences/{sequence_id}"
        self._labelled = sequence.labelled
        # The labels' archive brings the poses: without them, the labelled sweeps could not be put together.
        has_poses = sequence.has_poses or sequence.labelled
        self._poses = read_rows(source, f"{self._folder}/poses.txt", "pose file", 12) if has_poses else None
        self._timestamps_ns = read_times(source, f"{self._folder}/times.txt")
        matrices = read_calibration(source, f"{self._folder}/calib.txt", needed=("Tr",), optional=PROJECTIONS)
        assert matrices["Tr"] is not None
        self._camera_SE3_ego = homogeneous(matrices["Tr"]) @ se3.invert(HDL_64E.pose)
        self._calibration = json.dumps({**as_lists(matrices), "image_size": None})

    def sweep(self, frame_id: str) -> Sweep:
        """Return one sweep.

        Raises:
            DataError: If its file is missing or broken, or it has no time or pose.
        """
        number = int(frame_id)
        points = read_points(self._source, f"{self._folder}/velodyne/{frame_id}.bin", POINT_COLUMNS)
        source_class = instance_id = None
        if self._labelled:
            source_class, instance_id = read_point_labels(
                self._source, f"{self._folder}/labels/{frame_id}.label", len(points)
            )
        if number >= len(self._timestamps_ns):
            raise self._too_short("times.txt", frame_id, len(self._timestamps_ns))
        return Sweep(
            sequence_id=self._sequence_id,
            frame_id=frame_id,
            timestamp_ns=int(self._timestamps_ns[number]),
            xyz=se3.transform_points(HDL_64E.pose, points[:, :3]),
            world_SE3_ego=None if self._poses is None else self._pose(self._poses, frame_id),
            intensity=points[:, 3].copy(),
            point_source_class=source_class,
            instance_id=instance_id,
            motion_compensated=True,
            calibration=self._calibration,
            split=SPLITS.get(self._sequence_id),
        )

    def _pose(self, poses: Float, frame_id: str) -> Float:
        number = int(frame_id)
        if number >= len(poses):
            raise self._too_short("poses.txt", frame_id, len(poses))
        start_SE3_camera = homogeneous(poses[number].reshape(3, 4))
        if not se3.is_rigid(start_SE3_camera):
            raise DataError(
                f"the pose is no rigid transform: {poses[number].tolist()}",
                where=f"{self._where('poses.txt')}, row {number + 1}",
                expected="the upper three rows of one, row by row",
                remedy=AGAIN,
            )
        # The exact inverse of the printed matrix, so that the start of the sequence is the identity.
        return np.linalg.inv(self._camera_SE3_ego) @ start_SE3_camera @ self._camera_SE3_ego

    def _where(self, name: str) -> str:
        return inside(self._source, f"{self._folder}/{name}")

    def _too_short(self, name: str, frame_id: str, num_rows: int) -> DataError:
        return DataError(
            f"{name} has {num_rows} rows and none for the frame {frame_id}",
            where=self._where(name),
            expected=f"at least {int(frame_id) + 1} rows, one a sweep of the whole sequence",
            remedy=AGAIN,
        )


def open_source(source: str, *, version: str | None = None) -> SemanticKitti:
    """Open a SemanticKITTI folder.

    A sequence is labelled if it has a folder `labels` with files in it; the official test sequences, 11 to 21, have
    none. A labelled one needs `poses.txt`; in one without either, sweeps have no pose.

    A sweep's `calibration` is a JSON object of the matrices by their names in `calib.txt`, row by row (`Tr`, and `P0`
    to `P3`, null if the file lacks one), and of `image_size`, which is null. They are for points in the Velodyne's
    frame: `LidarSpec.ego_SE3_lidar` of the rig inverted takes ours there.

    Args:
        source: The folder with `sequences/`; a path or a URI.
        version: None: the dataset has but one.

    Raises:
        ConfigError: If a version is given.
        DataError: If the folder is not one of SemanticKITTI.
    """
    if version is not None:
        raise ConfigError(f"SemanticKITTI has no version {version!r}", where="--version", remedy="leave it out")
    root = uris.absolute(source)
    layout = "the folder that holds sequences/00/velodyne/000000.bin …"
    if not uris.exists(root):
        raise DataError("no such folder", where=root, expected=layout)
    sequences: dict[str, Sequence] = {}
    for name in uris.list_dir(uris.join(root, "sequences")):
        folder = uris.join(root, "sequences", name)
        if files := uris.list_dir(uris.join(folder, "velodyne")):
            frame_ids = tuple(frame_of(uris.join(folder, "velodyne", file)) for file in files)
            labelled = bool(uris.list_dir(uris.join(folder, "labels")))
            sequences[name] = Sequence(frame_ids, labelled, "poses.txt" in uris.list_dir(folder))
    if not sequences:
        raise DataError(
            "no SemanticKITTI folder: there are no sequences/*/velodyne/*.bin",
            where=root,
            expected=layout,
            remedy="give the folder above it" if root.endswith("/sequences") else "",
        )
    return SemanticKitti(root, sequences)


def read_times(root: str, relative: str) -> npt.NDArray[np.int64]:
    """Return the times of all sweeps of a sequence in nanoseconds since its start.

    Raises:
        DataError: If the file is missing or broken, or times are negative or do not grow.
    """
    where = inside(root, relative)
    if not uris.exists(where):
        raise DataError(
            "the sequence has no times",
            where=where,
            expected="one time in seconds a row, a row a sweep",
            remedy=_CALIBRATION_ARCHIVE,
        )
    seconds = read_rows(root, relative, "time file", 1)[:, 0]
    times_ns = np.rint(seconds * 1e9).astype(np.int64)
    before = np.concatenate([[-1], times_ns[:-1]])
    wrong = np.flatnonzero(times_ns <= before)
    if len(wrong):
        row = int(wrong[0])
        what = f"the time {seconds[row]:g} s does not follow {seconds[row - 1]:g} s" if row else "the first is negative"
        raise DataError(what, where=f"{where}, row {row + 1}", expected="times that grow, from 0 on", remedy=AGAIN)
    return times_ns


def read_point_labels(
    root: str, relative: str, num_points: int
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int32]]:
    """Return the labels of a sweep: (num_points,) uint16 source classes, (num_points,) int32 instances, -1 where none.

    Raises:
        DataError: If the file is missing or of another length, or holds an id that is not SemanticKITTI's.
    """
    labels = read_labels(root, relative, "<u4", num_points)
    source_class = (labels & 0xFFFF).astype(np.uint16)
    unknown = np.flatnonzero(~_KNOWN[source_class])
    if len(unknown):
        raise DataError(
            f"point {unknown[0]} has the label {source_class[unknown[0]]}, which no class has",
            where=inside(root, relative),
            expected=f"one of {', '.join(str(i) for i, *_ in CLASSES)}",
            remedy="give the official labels, not those of a learning map",
        )
    instance_id = (labels >> 16).astype(np.int32)
    instance_id[instance_id == 0] = -1
    return source_class, instance_id
