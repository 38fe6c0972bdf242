"""The benchmarks' classes of the synthetic cities."""

from __future__ import annotations

import numpy as np
import pytest

from spot_ray.convert._waymo_taxonomy import taxonomy as waymo
from spot_ray.convert.kitti import TAXONOMY as KITTI
from spot_ray.convert.once import taxonomy as once
from spot_ray.schema.nuscenes import DETECTION_CLASSES
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.synthetic.detection import taxonomy_of
from spot_ray.synthetic.presets import PRESETS
from spot_ray.synthetic.world import World

BENCHMARKS = {
    "kitti": KITTI.detection_classes,
    "nuscenes": DETECTION_CLASSES,
    "waymo": waymo().detection_classes,
    "once": once().detection_classes,
}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_classes_are_named_and_ordered_as_the_converters_do(preset: str) -> None:
    own = taxonomy_of(preset).detection_classes
    assert own == tuple(name for name in BENCHMARKS[preset] if name in own)
    assert len(own) == (4 if preset == "nuscenes" else 3)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_points_and_labels_are_of_the_same_classes_as_before(preset: str) -> None:
    taxonomy = taxonomy_of(preset)
    assert (taxonomy.name, taxonomy.classes) == (PAPER_TAXONOMY.name, PAPER_TAXONOMY.classes)
    np.testing.assert_array_equal(taxonomy.lookup(), PAPER_TAXONOMY.lookup())


def test_what_counts_as_what() -> None:
    def counts(preset: str) -> dict[str, str]:
        return {source.name: source.detection for source in taxonomy_of(preset).sources if source.detection}

    assert counts("kitti") == counts("once") == {"vehicle": "Car", "pedestrian": "Pedestrian", "cyclist": "Cyclist"}
    assert counts("waymo") == {"vehicle": "vehicle", "pedestrian": "pedestrian", "cyclist": "cyclist"}
    assert counts("nuscenes") == {
        "vehicle": "car",
        "pedestrian": "pedestrian",
        "motorcycle": "motorcycle",
        "cyclist": "bicycle",
        "bicycle": "bicycle",
    }


def test_boxes_have_what_detection_needs() -> None:
    boxes = World("nuscenes", seed=0, sequence=0, num_frames=3).sweep(1).boxes
    assert boxes is not None
    assert boxes.velocity is not None
    assert boxes.num_lidar_points is not None
    assert boxes.track_id is not None
    assert np.isfinite(boxes.velocity).all()
    assert np.linalg.norm(boxes.velocity[:, :2], axis=1).max() > 1  # something moves
    assert boxes.num_lidar_points.max() > 5
