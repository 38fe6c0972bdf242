"""A log of a street whose objects are known to the point, annotated for detection, without labels."""

from __future__ import annotations

import numpy as np

from spot_ray.geometry.boxes import from_box_frame
from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import SemanticClass, SourceClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter

STREET_LIDAR = LidarSpec("top", 0, "spinning", 4, (-20.0, 10.0), ego_SE3_lidar=nominal_mount(1.8), intensity_max=255.0)
STREET_TAXONOMY = Taxonomy(
    "street",
    (SemanticClass("vehicle", (0, 0, 255), foreground=True), SemanticClass("pedestrian", (255, 0, 0), foreground=True)),
    (
        SourceClass(0, "car", "vehicle", detection="Car"),
        SourceClass(1, "van", "vehicle"),
        SourceClass(2, "walker", "pedestrian", detection="Pedestrian"),
    ),
    detection_classes=("Pedestrian", "Car"),
)
STREET = {"a": 5, "b": 3}
CAR, VAN, WALKER = 0, 1, 2


def street_objects(frame: int) -> list[tuple[int, list[float], int, int]]:
    """Return source class, box, number of points and difficulty of the objects of a street's frame."""
    return [
        (CAR, [-6 + 2.5 * (frame % 6), 5.0, 0.7, 3.0, 1.6, 1.4, 0.3], 10 + frame, 1),
        (CAR, [-5 + 1.5 * frame, -1.0, 0.7, 2.6, 1.4, 1.4, -0.4], 6, 1 if frame else -1),
        (CAR, [6.0, 1.5, 0.7, 2.6, 1.4, 1.4, 1.5], 3, 2),
        (VAN, [-6.0, 2.0, 0.9, 3.0, 1.8, 1.8, 0.0], 9, 1),
        (WALKER, [-6 + 1.2 * frame, -6.0, 0.9, 0.8, 0.8, 1.8, 0.0], 5, 1),
    ]


def make_street_sweep(sequence_id: str, number: int) -> Sweep:
    """Return a frame whose points tell what they are of: intensity is 10 · frame + object, or 0 on the ground."""
    frame = number + (STREET["a"] if sequence_id == "b" else 0)
    rng = np.random.default_rng([1, frame])
    objects = street_objects(frame)
    xyz, intensity = [rng.uniform([-8, -8, -0.2], [8, 8, -0.01], (300, 3))], [np.zeros(300)]
    for k, (_, box, count, _) in enumerate(objects):
        inside = rng.uniform(-0.4, 0.4, (count, 3)) * box[3:6]
        xyz.append(from_box_frame(inside, np.array(box)))
        intensity.append(np.full(count, 10 * frame + k + 1))
    boxes = np.array([box for _, box, _, _ in objects], np.float32)
    velocity = np.tile(np.float32([frame, 1, 0]), (len(objects), 1))
    velocity[-1] = np.nan
    pose = np.eye(4)
    pose[0, 3] = frame
    points = np.concatenate(xyz).astype(np.float32)
    return Sweep(
        sequence_id,
        f"{number:03d}",
        number * 100_000_000,
        points,
        world_SE3_ego=pose,
        intensity=np.concatenate(intensity).astype(np.float32),
        ring=np.arange(len(points)).astype(np.uint16) % 4,
        boxes=Boxes(
            boxes,
            np.array([source for source, _, _, _ in objects], np.uint16),
            velocity=velocity,
            difficulty=np.array([level for _, _, _, level in objects], np.int32),
        ),
    )


def write_street(folder: str) -> str:
    """Write the street and return its URI."""
    with DatasetWriter(folder, name="street", rig=[STREET_LIDAR], taxonomy=STREET_TAXONOMY, lossless=True) as writer:
        for sequence_id, count in STREET.items():
            for number in range(count):
                writer.add(make_street_sweep(sequence_id, number))
    return folder
