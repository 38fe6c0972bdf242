"""nuScenes in its official layout: tables `VERSION/*.json`, points `samples/LIDAR_TOP/*.pcd.bin`, labels `lidarseg/`.

Every keyframe of every scene becomes a sweep; a scene is a sequence, a sample token a frame. Needs no devkit.

Frames: points come in the sensor's frame and leave in the ego frame by their own scene's calibration; boxes come in the
global frame and leave in the ego frame at the LiDAR's time. nuScenes has the ego origin on the ground under the rear
axle, and no height in its poses: `world_SE3_ego` has z = 0 throughout.

The points of a sweep are corrected for the ego's motion and belong to the end of the revolution, which is the time
given. The release does not say so in its tables, but the points do: the 32 points of a sweep's first firing lie on a
line that passes the sensor as far behind it as the vehicle drove in one revolution; those of the last pass through it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from spot_ray.config.load import suggestion
from spot_ray.convert._nuscenes_tables import CHANNEL, Annotations, Keyframe, Tables, find_version, read_scenes
from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.lidars import HDL_32E
from spot_ray.schema.sensors import as_matrix
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_CLASSES, SourceClass, Taxonomy
from spot_ray.storage import uri as uris

POINT_BYTES = 20
"""Bytes of a point: x, y, z, intensity, ring as little-endian float32."""

CATEGORIES: tuple[tuple[str, str | None], ...] = (
    ("noise", None),
    ("animal", "general object"),
    ("human.pedestrian.adult", "pedestrian"),
    ("human.pedestrian.child", "pedestrian"),
    ("human.pedestrian.construction_worker", "pedestrian"),
    # Riders of scooters and skateboards, and people in wheelchairs, are in the box: Waymo calls both pedestrians.
    ("human.pedestrian.personal_mobility", "pedestrian"),
    ("human.pedestrian.police_officer", "pedestrian"),
    ("human.pedestrian.stroller", "general object"),
    ("human.pedestrian.wheelchair", "pedestrian"),
    ("movable_object.barrier", "general object"),
    ("movable_object.debris", "general object"),
    ("movable_object.pushable_pullable", "general object"),
    ("movable_object.trafficcone", "construction cone"),
    ("static_object.bicycle_rack", "general object"),
    # With or without its rider: nuScenes draws one box around both, so there is no class `cyclist`.
    ("vehicle.bicycle", "bicycle"),
    ("vehicle.bus.bendy", "vehicle"),
    ("vehicle.bus.rigid", "vehicle"),
    ("vehicle.car", "vehicle"),
    ("vehicle.construction", "vehicle"),
    ("vehicle.emergency.ambulance", "vehicle"),
    ("vehicle.emergency.police", "vehicle"),
    ("vehicle.motorcycle", "motorcycle"),
    ("vehicle.trailer", "vehicle"),
    ("vehicle.truck", "vehicle"),
    ("flat.driveable_surface", "road"),
    # Traffic islands, stairs, rails: level, but not to drive on. Waymo's `walkable` holds grass and such surfaces too.
    ("flat.other", "walkable"),
    ("flat.sidewalk", "walkable"),
    ("flat.terrain", "walkable"),
    # Walls and houses for the most part; poles, signs and lights are in it and cannot be told apart.
    ("static.manmade", "building"),
    # Something solid that annotators could not name.
    ("static.other", "general object"),
    # Trunks included.
    ("static.vegetation", "vegetation"),
    ("vehicle.ego", None),
)
"""nuScenes' 32 categories in the order of lidarseg's ids, each with the paper's class that it maps to."""

UNLABELLED_CLASSES = frozenset({"sign", "cyclist", "traffic light", "pole", "tree trunk"})
"""Classes of the paper that nuScenes does not tell from others."""

BIKE_RACK = "static_object.bicycle_rack"


class NuScenes:
    """An opened nuScenes version: an index of its keyframes.

    Args:
        source: The folder that holds the version's folder and `samples`.
        version: E.g. `v1.0-mini`.
        taxonomy: Its classes.
        scenes: Its keyframes in time order, by scene name.
        locations: Where it was recorded.
    """

    def __init__(
        self,
        source: str,
        version: str,
        *,
        taxonomy: Taxonomy,
        scenes: Mapping[str, tuple[Keyframe, ...]],
        locations: Sequence[str],
    ) -> None:
        self._source = source
        self._version = version
        self._taxonomy = taxonomy
        self._scenes = scenes
        self._locations = locations
        self._racks = [s.id for s in taxonomy.sources if s.name == BIKE_RACK]

    def info(self) -> DatasetInfo:
        """Return what holds for the dataset.

        Calibrations differ a little between scenes: points are moved by their own, the rig states the first scene's.
        """
        first = self._scenes[self.sequences()[0]][0]
        lidar = dataclasses.replace(HDL_32E, ego_SE3_lidar=as_matrix(first.ego_SE3_lidar), intensity_max=255.0)
        return DatasetInfo(
            name="nuscenes",
            rig=(lidar,),
            taxonomy=self._taxonomy,
            licence="CC BY-NC-SA 4.0 and the nuScenes terms of use",
            provenance=f"nuScenes {self._version}, keyframes of {CHANNEL}, recorded in {', '.join(self._locations)}",
        )

    def sequences(self) -> tuple[str, ...]:
        """Return the names of the scenes, sorted."""
        return tuple(sorted(self._scenes))

    def read(self, sequence_id: str) -> Iterator[Sweep]:
        """Yield the keyframes of a scene in time order.

        Raises:
            DataError: If a file is missing or broken.
        """
        return (self._sweep(sequence_id, frame) for frame in self._scenes[sequence_id])

    def _sweep(self, sequence_id: str, frame: Keyframe) -> Sweep:
        points = read_points(uris.join(self._source, frame.points))
        labels = None
        if frame.lidarseg is not None:
            labels = read_lidarseg(uris.join(self._source, frame.lidarseg), len(points), self._taxonomy)
        boxes = None if frame.annotations is None else boxes_in_ego(frame.annotations, frame.world_SE3_ego)
        racks = None
        if boxes is not None and np.isin(boxes.source_class, self._racks).any():
            # Bicycles in a rack are not annotated one by one, and the benchmark judges none in there.
            racks = boxes.boxes[np.isin(boxes.source_class, self._racks)]
        return Sweep(
            sequence_id=sequence_id,
            frame_id=frame.token,
            timestamp_ns=frame.timestamp_ns,
            xyz=se3.transform_points(frame.ego_SE3_lidar, points[:, :3]).astype(np.float32),
            world_SE3_ego=frame.world_SE3_ego,
            intensity=points[:, 3].copy(),
            ring=points[:, 4].astype(np.uint16),
            point_source_class=labels,
            boxes=boxes,
            ignore_regions=racks,
            motion_compensated=True,
        )


def open_source(source: str, *, version: str | None = None) -> NuScenes:
    """Open a nuScenes folder.

    Args:
        source: The folder with `samples/` and one folder of tables a version; a path or a URI.
        version: E.g. `v1.0-mini`; None takes the only one that is there.

    Raises:
        DataError: If the folder is not one of nuScenes, lacks the version or a table, or a table is broken.
    """
    root = uris.absolute(source)
    found = find_version(root, version)
    tables = Tables(uris.join(root, found))
    taxonomy, class_of_category = read_categories(tables)
    return NuScenes(
        root,
        found,
        taxonomy=taxonomy,
        scenes=read_scenes(tables, class_of_category),
        locations=sorted({row["location"] for row in tables.read("log")}),
    )


def read_categories(tables: Tables) -> tuple[Taxonomy, dict[str, int]]:
    """Return the taxonomy, and the source class id of every category token.

    The ids are lidarseg's: `index` of the category table, or, where lidarseg is not installed and the table has none,
    the official order.

    Raises:
        DataError: If a category is unknown, or only some have an index.
    """
    rows = tables.read("category")
    targets = dict(CATEGORIES)
    for row in rows:
        if row["name"] not in targets:
            raise DataError(
                f"category {row['name']!r} is not one of nuScenes' {len(CATEGORIES)}",
                where=tables.where("category"),
                expected="an official category name",
                remedy=suggestion(row["name"], list(targets)),
            )
    indexed = [row for row in rows if "index" in row]
    if len(indexed) not in (0, len(rows)):
        raise tables.error("category", f"only {len(indexed)} of {len(rows)} categories have an index", "all or none")
    ids = {name: i for i, name in enumerate(targets)}
    if indexed:
        wrong = [row["index"] for row in rows if type(row["index"]) is not int or not 0 <= row["index"] <= 255]
        if wrong:
            raise tables.error("category", f"an index is {wrong[0]!r}", "a whole number from 0 to 255")
        ids = {row["name"]: row["index"] for row in rows}
    sources = sorted((SourceClass(i, name, targets[name]) for name, i in ids.items()), key=lambda source: source.id)
    classes = tuple(dataclasses.replace(c, labelled=c.name not in UNLABELLED_CLASSES) for c in PAPER_CLASSES)
    return Taxonomy("nuscenes", classes, tuple(sources)), {row["token"]: ids[row["name"]] for row in rows}


def read_points(where: str) -> npt.NDArray[np.float32]:
    """Return the (N, 5) float32 points of a `.pcd.bin`: x, y, z in the sensor frame in metres, intensity 0–255, ring.

    Raises:
        DataError: If the file is missing, empty or cut, or a value is impossible.
    """
    data = _read_file(where, "point file")
    again = "the file is cut or damaged: download and unpack it again"
    if not data:
        raise DataError("the point file is empty", where=where, expected=f"{POINT_BYTES} bytes a point", remedy=again)
    if len(data) % POINT_BYTES:
        raise DataError(
            f"the point file has {len(data)} bytes",
            where=where,
            expected=f"a multiple of {POINT_BYTES}: x, y, z, intensity, ring as float32",
            remedy=again,
        )
    points = np.frombuffer(data, dtype="<f4").reshape(-1, 5)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(points)} points are not finite, the first is point {bad[0]}: "
            f"{points[bad[0]].tolist()}",
            where=where,
            expected="finite x, y, z, intensity, ring",
            remedy=again,
        )
    rings = points[:, 4]
    bad = np.flatnonzero((rings < 0) | (rings >= HDL_32E.num_beams) | (rings != np.floor(rings)))
    if len(bad):
        raise DataError(
            f"point {bad[0]} has the ring {rings[bad[0]]}",
            where=where,
            expected=f"a whole number from 0 to {HDL_32E.num_beams - 1}",
            remedy="the file has not five values a point, or is damaged",
        )
    return points


def read_lidarseg(where: str, num_points: int, taxonomy: Taxonomy) -> npt.NDArray[np.uint16]:
    """Return the (num_points,) uint16 source classes of a `_lidarseg.bin`.

    Raises:
        DataError: If the file is missing or of another length, or holds an id that no category has.
    """
    labels = np.frombuffer(_read_file(where, "lidarseg file"), dtype=np.uint8)
    if len(labels) != num_points:
        raise DataError(
            f"{len(labels)} labels for {num_points} points",
            where=where,
            expected="one byte a point of the keyframe",
            remedy="install lidarseg and samples of the same version again",
        )
    bad = np.flatnonzero(~np.isin(labels, [source.id for source in taxonomy.sources]))
    if len(bad):
        raise DataError(
            f"point {bad[0]} has the label {labels[bad[0]]}, which no category has",
            where=where,
            expected="an `index` of category.json",
            remedy="use the category.json that comes with lidarseg",
        )
    return labels.astype(np.uint16)


def boxes_in_ego(annotations: Annotations, world_SE3_ego: npt.NDArray[np.float64]) -> Boxes:
    """Return annotations of the global frame as boxes in the ego frame; velocities stay over ground, in ego axes."""
    ego_SE3_world = se3.invert(world_SE3_ego)
    ego_SE3_box = ego_SE3_world @ annotations.world_SE3_box
    boxes = np.empty((len(ego_SE3_box), 7), dtype=np.float32)
    boxes[:, :3] = ego_SE3_box[:, :3, 3]
    boxes[:, 3:6] = annotations.size_wlh[:, [1, 0, 2]]
    boxes[:, 6] = np.arctan2(ego_SE3_box[:, 1, 0], ego_SE3_box[:, 0, 0])
    return Boxes(
        boxes=boxes,
        source_class=annotations.source_class,
        track_id=list(annotations.track_id),
        velocity=(annotations.velocity @ ego_SE3_world[:3, :3].T).astype(np.float32),
        num_lidar_points=annotations.num_lidar_points,
        num_radar_points=annotations.num_radar_points,
        attribute=list(annotations.attribute),
    )


def _read_file(where: str, what: str) -> bytes:
    if not uris.exists(where):
        raise DataError(
            f"the {what} is missing",
            where=where,
            expected="every file that the tables name",
            remedy="download and unpack all archives of the version",
        )
    return uris.read_bytes(where)
