"""The classes of the Waymo Open Dataset: boxes have four, points of the TOP LiDAR 22; they share one id space."""

from __future__ import annotations

import dataclasses

from spot_ray.schema.taxonomy import PAPER_CLASSES, SourceClass, Taxonomy

BOX_CLASS_OFFSET = 100
"""Source class id of a box is this plus its `Label.Type`; that of a point is its `Segmentation.Type` itself."""

BOX_TYPES: tuple[tuple[str, str | None, str | None], ...] = (
    ("TYPE_UNKNOWN", None, None),
    ("TYPE_VEHICLE", "vehicle", "vehicle"),
    ("TYPE_PEDESTRIAN", "pedestrian", "pedestrian"),
    ("TYPE_SIGN", "sign", "sign"),
    # With the rider, whatever is ridden.
    ("TYPE_CYCLIST", "cyclist", "cyclist"),
)
"""`Label.Type` in the order of its numbers: official name, the paper's class, the class of the detection benchmark."""

POINT_TYPES: tuple[tuple[str, str | None, str | None], ...] = (
    ("TYPE_UNDEFINED", None, None),
    ("TYPE_CAR", "vehicle", "car"),
    ("TYPE_TRUCK", "vehicle", "truck"),
    ("TYPE_BUS", "vehicle", "bus"),
    ("TYPE_OTHER_VEHICLE", "vehicle", "other vehicle"),
    ("TYPE_MOTORCYCLIST", "cyclist", "motorcyclist"),
    ("TYPE_BICYCLIST", "cyclist", "bicyclist"),
    ("TYPE_PEDESTRIAN", "pedestrian", "pedestrian"),
    ("TYPE_SIGN", "sign", "sign"),
    ("TYPE_TRAFFIC_LIGHT", "traffic light", "traffic light"),
    ("TYPE_POLE", "pole", "pole"),
    ("TYPE_CONSTRUCTION_CONE", "construction cone", "construction cone"),
    ("TYPE_BICYCLE", "bicycle", "bicycle"),
    ("TYPE_MOTORCYCLE", "motorcycle", "motorcycle"),
    ("TYPE_BUILDING", "building", "building"),
    ("TYPE_VEGETATION", "vegetation", "vegetation"),
    ("TYPE_TREE_TRUNK", "tree trunk", "tree trunk"),
    # Its top is the edge of what people walk on, and no wheel should touch it.
    ("TYPE_CURB", "walkable", "curb"),
    ("TYPE_ROAD", "road", "road"),
    ("TYPE_LANE_MARKER", "road", "lane marker"),
    # Ground that neither cars drive on nor people are meant to walk on: grass, gravel, traffic islands.
    ("TYPE_OTHER_GROUND", "walkable", "other ground"),
    ("TYPE_WALKABLE", "walkable", "walkable"),
    ("TYPE_SIDEWALK", "walkable", "sidewalk"),
)
"""`Segmentation.Type` in the order of its numbers: official name, the paper's class, the class of the benchmark."""

UNLABELLED_CLASSES = frozenset({"general object"})
"""Classes of the paper that Waymo does not label."""


def taxonomy() -> Taxonomy:
    """Return the taxonomy of the Waymo Open Dataset, the same in all of its formats.

    The benchmarks' classes are in the order of the official enums.
    """
    return Taxonomy(
        name="waymo",
        classes=tuple(dataclasses.replace(c, labelled=c.name not in UNLABELLED_CLASSES) for c in PAPER_CLASSES),
        sources=(
            *(
                SourceClass(i, f"Segmentation.{name}", target, segmentation=segmentation)
                for i, (name, target, segmentation) in enumerate(POINT_TYPES)
            ),
            *(
                SourceClass(BOX_CLASS_OFFSET + i, f"Label.{name}", target, detection=detection)
                for i, (name, target, detection) in enumerate(BOX_TYPES)
            ),
        ),
        detection_classes=tuple(detection for _, _, detection in BOX_TYPES if detection is not None),
        segmentation_classes=tuple(segmentation for _, _, segmentation in POINT_TYPES if segmentation is not None),
    )
