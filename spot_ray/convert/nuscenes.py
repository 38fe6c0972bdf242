"""nuScenes in its official layout, read without its devkit.

Tables lie in `VERSION/*.json`, points of keyframes in `samples/LIDAR_TOP/*.pcd.bin`, those of the sweeps between them
in `sweeps/LIDAR_TOP/*.pcd.bin`, labels in `lidarseg/`. Every LiDAR sweep of every scene becomes a frame; a scene is a
sequence. A keyframe is called by its sample token, a sweep between keyframes by its `sample_data` token.

Frames: points come in the sensor's frame and leave in the ego frame by their own sweep's calibration; boxes come in the
global frame and leave in the ego frame at the LiDAR's time. nuScenes has the ego origin on the ground under the rear
axle, and no height in its poses: `world_SE3_ego` has z = 0 throughout.

The points of a sweep are corrected for the ego's motion and belong to the end of the revolution, which is the time
given. The release does not say so in its tables, but the points do: the 32 points of a sweep's first firing lie on a
line that passes the sensor as far behind it as the vehicle drove in one revolution; those of the last pass through it.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from spot_ray.convert._nuscenes_boxes import boxes_at, boxes_between
from spot_ray.convert._nuscenes_classes import read_categories
from spot_ray.convert._nuscenes_index import CHANNEL, Index, read_index
from spot_ray.convert._nuscenes_tables import Float, Tables, as_transform, find_version
from spot_ray.convert.files import hashed_reading, inside, read_labels, read_points, record
from spot_ray.convert.source import BadFrame, one_of, read_frames
from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.lidars import HDL_32E
from spot_ray.schema.nuscenes import BIKE_RACK
from spot_ray.schema.nuscenes_splits import split_of
from spot_ray.schema.sensors import as_matrix
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import Taxonomy
from spot_ray.storage import uri as uris

COLUMNS = ("x", "y", "z", "intensity", "ring")
"""The float32 values of a point in a `.pcd.bin`: metres in the sensor's frame, 0 to 255, the beam."""


class NuScenes:
    """An opened nuScenes version.

    Args:
        source: The folder that holds the version's folder, `samples` and `sweeps`.
        version: E.g. `v1.0-mini`.
        taxonomy: Its classes.
        index: Its sweeps and boxes.
        locations: Where it was recorded.
        tables_hash: Hash of the tables, for the provenance of every scene.
    """

    def __init__(
        self,
        source: str,
        version: str,
        *,
        taxonomy: Taxonomy,
        index: Index,
        locations: tuple[str, ...],
        tables_hash: str,
    ) -> None:
        self._source = source
        self._version = version
        self._taxonomy = taxonomy
        self._index = index
        self._locations = locations
        self._tables_hash = tables_hash
        self._racks = [s.id for s in taxonomy.sources if s.name == BIKE_RACK]

    def info(self) -> DatasetInfo:
        """Return what holds for the dataset.

        Calibrations differ a little between scenes: points are moved by their own, the rig states the first scene's.
        """
        frames = self._index.frames
        first, _ = self._index.frames_of[self.sequences()[0]]
        mount = as_transform(frames.mounts[frames.mount[first]])
        lidar = dataclasses.replace(HDL_32E, ego_SE3_lidar=as_matrix(mount), intensity_max=255.0)
        what = "keyframes" if (frames.sample >= 0).all() else "keyframes and the sweeps between them"
        return DatasetInfo(
            name="nuscenes",
            rig=(lidar,),
            taxonomy=self._taxonomy,
            licence="CC BY-NC-SA 4.0 and the nuScenes terms of use",
            provenance=f"nuScenes {self._version}, {what} of {CHANNEL}, recorded in {', '.join(self._locations)}",
        )

    def sequences(self) -> tuple[str, ...]:
        """Return the names of the scenes, sorted."""
        return tuple(sorted(self._index.frames_of))

    def read(self, sequence_id: str) -> Iterator[Sweep | BadFrame]:
        """Yield the sweeps of a scene in time order; in place of one whose files are missing or broken, what is."""
        record(self._version, self._tables_hash.encode())
        rows = range(*self._index.frames_of[sequence_id])
        tokens = self._index.frames.token
        return read_frames(((tokens[i].as_py(), i) for i in rows), lambda i: self._sweep(sequence_id, i))

    def _sweep(self, sequence_id: str, i: int) -> Sweep:
        frames = self._index.frames
        points = read_pcd(self._source, frames.points[i].as_py())
        lidarseg = frames.lidarseg[i].as_py()
        world_SE3_ego = as_transform(frames.pose[i])
        ego_SE3_lidar = as_transform(frames.mounts[frames.mount[i]])
        boxes = self._boxes(sequence_id, i, world_SE3_ego)
        racks = None
        if boxes is not None and np.isin(boxes.source_class, self._racks).any():
            # Bicycles in a rack are not annotated one by one, and the benchmark judges none in there.
            racks = boxes.boxes[np.isin(boxes.source_class, self._racks)]
        return Sweep(
            sequence_id=sequence_id,
            frame_id=frames.token[i].as_py(),
            timestamp_ns=int(frames.timestamp_us[i]) * 1000,
            xyz=se3.transform_points(ego_SE3_lidar, points[:, :3]).astype(np.float32),
            world_SE3_ego=world_SE3_ego,
            intensity=points[:, 3].copy(),
            ring=points[:, 4].astype(np.uint16),
            point_source_class=(
                None if lidarseg is None else read_lidarseg(self._source, lidarseg, len(points), self._taxonomy)
            ),
            boxes=boxes,
            ignore_regions=racks,
            motion_compensated=True,
            keyframe=bool(frames.sample[i] >= 0),
            split=split_of(sequence_id, self._version),
        )

    def _boxes(self, sequence_id: str, i: int, world_SE3_ego: Float) -> Boxes | None:
        index = self._index
        if index.annotations is None:
            return None
        sample = int(index.frames.sample[i])
        if sample >= 0:
            return boxes_at(index.annotations, sample, world_SE3_ego)
        samples = range(*index.samples_of[sequence_id])
        time = int(index.frames.timestamp_us[i])
        return boxes_between(index.annotations, samples, index.sample_us, time, world_SE3_ego)


def open_source(source: str, *, version: str | None = None, sweeps: str = "all") -> NuScenes:
    """Open a nuScenes folder.

    Args:
        source: The folder with `samples/`, `sweeps/` and one folder of tables a version; a path or a URI.
        version: E.g. `v1.0-mini`; None takes the only one that is there.
        sweeps: `all`, or `keyframes`: only the annotated ones, a tenth of the data.

    Raises:
        ConfigError: If `sweeps` is something else.
        DataError: If the folder is not one of nuScenes, lacks the version, a table or all sweeps, or a table is broken
            or names a file outside the folder.
    """
    one_of("sweeps", sweeps, ("all", "keyframes"))
    root = uris.absolute(source)
    found = find_version(root, version)
    tables = Tables(root, found)
    with hashed_reading() as tables_hash:
        taxonomy, class_of_category = read_categories(tables)
        index = read_index(tables, class_of_category, keyframes_only=sweeps == "keyframes")
        locations = tuple(sorted({row["location"] for row in tables.rows("log")}))
    _check_downloaded(root, index)
    assert tables_hash.hexdigest is not None
    return NuScenes(root, found, taxonomy=taxonomy, index=index, locations=locations, tables_hash=tables_hash.hexdigest)


def read_pcd(root: str, relative: str) -> npt.NDArray[np.float32]:
    """Return the (N, 5) float32 points of a `.pcd.bin`: see `COLUMNS`.

    Raises:
        DataError: If the file is missing, empty or cut, or a value is impossible.
    """
    points = read_points(root, relative, COLUMNS)
    rings = points[:, 4]
    bad = np.flatnonzero((rings < 0) | (rings >= HDL_32E.num_beams) | (rings != np.floor(rings)))
    if len(bad):
        raise DataError(
            f"point {bad[0]} has the ring {rings[bad[0]]}",
            where=inside(root, relative),
            expected=f"a whole number from 0 to {HDL_32E.num_beams - 1}",
            remedy="the file has not five values a point, or is damaged",
        )
    return points


def read_lidarseg(root: str, relative: str, num_points: int, taxonomy: Taxonomy) -> npt.NDArray[np.uint16]:
    """Return the (num_points,) uint16 source classes of a `_lidarseg.bin`.

    Raises:
        DataError: If the file is missing or of another length, or holds an id that no category has.
    """
    labels = read_labels(root, relative, np.uint8, num_points)
    bad = np.flatnonzero(~np.isin(labels, [source.id for source in taxonomy.sources]))
    if len(bad):
        raise DataError(
            f"point {bad[0]} has the label {labels[bad[0]]}, which no category has",
            where=inside(root, relative),
            expected="an `index` of category.json",
            remedy="use the category.json that comes with lidarseg",
        )
    return labels.astype(np.uint16)


def _check_downloaded(root: str, index: Index) -> None:
    """Refuse tables whose sweeps between keyframes lie in folders of which none is there: a download of its own."""
    between = index.frames.points.filter(index.frames.sample < 0).to_pylist()
    folders = sorted({posixpath.dirname(file) for file in between})
    if folders and not any(uris.exists(inside(root, folder)) for folder in folders):
        raise DataError(
            f"the tables list {len(between)} sweeps between the keyframes, and their folder is not there",
            where=inside(root, folders[0]),
            expected="the sweeps of the release, which come in archives of their own",
            remedy="download them, or convert the keyframes alone: --option sweeps=keyframes",
        )
