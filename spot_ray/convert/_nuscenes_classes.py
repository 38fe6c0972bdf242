"""nuScenes' categories: what they mean to the paper and to nuScenes' own benchmarks."""

from __future__ import annotations

import dataclasses

from spot_ray.config.load import suggestion
from spot_ray.convert._nuscenes_tables import Tables
from spot_ray.errors import DataError
from spot_ray.schema.nuscenes import CATEGORIES, DETECTION_CLASSES
from spot_ray.schema.taxonomy import PAPER_CLASSES, SourceClass, Taxonomy

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
