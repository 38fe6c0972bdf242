"""nuScenes' categories: what they mean to the paper and to nuScenes' own benchmarks."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from spot_ray.config.load import suggestion
from spot_ray.convert._nuscenes_tables import Tables
from spot_ray.errors import DataError
from spot_ray.schema.taxonomy import PAPER_CLASSES, SourceClass, Taxonomy


class Category(NamedTuple):
    """A category: its name, and what it counts as for the paper, in the detection and the lidarseg benchmark."""

    name: str
    paper: str | None
    detection: str | None
    segmentation: str | None


CATEGORIES: tuple[Category, ...] = (
    Category("noise", None, None, None),
    Category("animal", "general object", None, None),
    Category("human.pedestrian.adult", "pedestrian", "pedestrian", "pedestrian"),
    Category("human.pedestrian.child", "pedestrian", "pedestrian", "pedestrian"),
    Category("human.pedestrian.construction_worker", "pedestrian", "pedestrian", "pedestrian"),
    # Riders of scooters and skateboards, and people in wheelchairs, are in the box: Waymo calls both pedestrians.
    Category("human.pedestrian.personal_mobility", "pedestrian", None, None),
    Category("human.pedestrian.police_officer", "pedestrian", "pedestrian", "pedestrian"),
    Category("human.pedestrian.stroller", "general object", None, None),
    Category("human.pedestrian.wheelchair", "pedestrian", None, None),
    Category("movable_object.barrier", "general object", "barrier", "barrier"),
    Category("movable_object.debris", "general object", None, None),
    Category("movable_object.pushable_pullable", "general object", None, None),
    Category("movable_object.trafficcone", "construction cone", "traffic_cone", "traffic_cone"),
    Category("static_object.bicycle_rack", "general object", None, None),
    # With or without its rider: nuScenes draws one box around both, so there is no class `cyclist`.
    Category("vehicle.bicycle", "bicycle", "bicycle", "bicycle"),
    Category("vehicle.bus.bendy", "vehicle", "bus", "bus"),
    Category("vehicle.bus.rigid", "vehicle", "bus", "bus"),
    Category("vehicle.car", "vehicle", "car", "car"),
    Category("vehicle.construction", "vehicle", "construction_vehicle", "construction_vehicle"),
    Category("vehicle.emergency.ambulance", "vehicle", None, None),
    Category("vehicle.emergency.police", "vehicle", None, None),
    Category("vehicle.motorcycle", "motorcycle", "motorcycle", "motorcycle"),
    Category("vehicle.trailer", "vehicle", "trailer", "trailer"),
    Category("vehicle.truck", "vehicle", "truck", "truck"),
    Category("flat.driveable_surface", "road", None, "driveable_surface"),
    # Traffic islands, stairs, rails: level, but not to drive on. Waymo's `walkable` holds grass and such surfaces too.
    Category("flat.other", "walkable", None, "other_flat"),
    Category("flat.sidewalk", "walkable", None, "sidewalk"),
    Category("flat.terrain", "walkable", None, "terrain"),
    # Walls and houses for the most part; poles, signs and lights are in it and cannot be told apart.
    Category("static.manmade", "building", None, "manmade"),
    # Something solid that annotators could not name.
    Category("static.other", "general object", None, None),
    # Trunks included.
    Category("static.vegetation", "vegetation", None, "vegetation"),
    Category("vehicle.ego", None, None, None),
)
"""nuScenes' 32 categories in the order of lidarseg's ids (detection: nuscenes-devkit, `eval/detection/utils.py`;
segmentation: `eval/lidarseg/utils.py`)."""

DETECTION_CLASSES = (
    "car",
    "truck",
    "bus",
    "trailer",
    "construction_vehicle",
    "pedestrian",
    "motorcycle",
    "bicycle",
    "traffic_cone",
    "barrier",
)
"""The classes of the detection benchmark in its order (nuscenes-devkit, `eval/detection/constants.py`)."""

SEGMENTATION_CLASSES = (
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
)
"""The classes of the lidarseg benchmark, 1 to 16 (nuscenes-devkit, `eval/lidarseg/utils.py`)."""

UNLABELLED_CLASSES = frozenset({"sign", "cyclist", "traffic light", "pole", "tree trunk"})
"""Classes of the paper that nuScenes does not tell from others."""

BIKE_RACK = "static_object.bicycle_rack"


def read_categories(tables: Tables) -> tuple[Taxonomy, dict[str, int]]:
    """Return the taxonomy, and the source class id of every category token.

    The ids are lidarseg's: `index` of the category table, or, where lidarseg is not installed and the table has none,
    the official order.

    Raises:
        DataError: If a category is unknown, or only some have an index.
    """
    rows = list(tables.rows("category"))
    names = [category.name for category in CATEGORIES]
    for row in rows:
        if row["name"] not in names:
            raise DataError(
                f"category {row['name']!r} is not one of nuScenes' {len(CATEGORIES)}",
                where=tables.where("category"),
                expected="an official category name",
                remedy=suggestion(row["name"], names),
            )
    indexed = [row for row in rows if "index" in row]
    if len(indexed) not in (0, len(rows)):
        raise tables.error("category", f"only {len(indexed)} of {len(rows)} categories have an index", "all or none")
    ids = {name: i for i, name in enumerate(names)}
    if indexed:
        wrong = [row["index"] for row in rows if type(row["index"]) is not int or not 0 <= row["index"] <= 255]
        if wrong:
            raise tables.error("category", f"an index is {wrong[0]!r}", "a whole number from 0 to 255")
        ids = {row["name"]: row["index"] for row in rows}
        missing = [name for name in names if name not in ids]
        if missing:
            raise tables.error("category", f"there is no category {missing[0]!r}", f"all {len(names)} with lidarseg")
    sources = (SourceClass(ids[c.name], c.name, c.paper, c.detection, c.segmentation) for c in CATEGORIES)
    taxonomy = Taxonomy(
        "nuscenes",
        tuple(dataclasses.replace(c, labelled=c.name not in UNLABELLED_CLASSES) for c in PAPER_CLASSES),
        tuple(sorted(sources, key=lambda source: source.id)),
        detection_classes=DETECTION_CLASSES,
        segmentation_classes=SEGMENTATION_CLASSES,
    )
    return taxonomy, {row["token"]: ids[row["name"]] for row in rows}
