"""What nuScenes' release fixes: categories, classes of the detection benchmark, how velocities are known."""

from __future__ import annotations

from typing import NamedTuple


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

BIKE_RACK = "static_object.bicycle_rack"
"""The category of bicycle racks: bicycles in them are not annotated one by one, and the benchmark judges none there."""

VELOCITY_MAX_GAP_S = 1.5
"""Longest time between two annotations that still give a velocity; the devkit's `box_velocity` has the same."""
