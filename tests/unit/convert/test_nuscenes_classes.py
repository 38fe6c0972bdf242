"""The categories against the benchmarks' own tables, and the splits against their official sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spot_ray.convert._nuscenes_classes import SEGMENTATION_CLASSES, UNLABELLED_CLASSES
from spot_ray.convert.nuscenes import open_source
from spot_ray.schema.nuscenes import CATEGORIES, DETECTION_CLASSES
from spot_ray.schema.nuscenes_splits import MINI_SPLITS, SPLITS, split_of
from spot_ray.schema.taxonomy import PAPER_CLASSES, Task, Taxonomy

DETECTED = {
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.construction": "construction_vehicle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    **{f"vehicle.{name}": name for name in ("bicycle", "car", "motorcycle", "trailer", "truck")},
    **{
        f"human.pedestrian.{kind}": "pedestrian" for kind in ("adult", "child", "construction_worker", "police_officer")
    },
}
SEGMENTED = DETECTED | {
    "flat.driveable_surface": "driveable_surface",
    "flat.other": "other_flat",
    "flat.sidewalk": "sidewalk",
    "flat.terrain": "terrain",
    "static.manmade": "manmade",
    "static.vegetation": "vegetation",
}


@pytest.fixture
def taxonomy(nuscenes_folder: Any) -> Taxonomy:
    return open_source(str(nuscenes_folder.root)).info().taxonomy


def test_every_category_has_its_place_among_the_papers_classes(taxonomy: Taxonomy) -> None:
    assert [(s.id, s.name) for s in taxonomy.sources] == list(enumerate(c.name for c in CATEGORIES))
    assert len(CATEGORIES) == 32
    assert {c.name for c in CATEGORIES if c.paper is None} == {"noise", "vehicle.ego"}
    reached = {c.paper for c in CATEGORIES if c.paper is not None}
    assert reached | UNLABELLED_CLASSES == {c.name for c in PAPER_CLASSES}
    assert not reached & UNLABELLED_CLASSES
    assert {c.name for c in taxonomy.classes if not c.labelled} == UNLABELLED_CLASSES
    lookup = taxonomy.lookup()
    assert taxonomy.class_names[lookup[16] - 1] == "vehicle"
    assert taxonomy.class_names[lookup[27] - 1] == "walkable"
    assert lookup[31] == 255


@pytest.mark.parametrize(
    ("task", "official", "classes"),
    [("detection", DETECTED, DETECTION_CLASSES), ("segmentation", SEGMENTED, SEGMENTATION_CLASSES)],
)
def test_every_category_counts_as_the_benchmark_has_it(
    taxonomy: Taxonomy, task: Task, official: dict[str, str], classes: tuple[str, ...]
) -> None:
    assert {c.name: getattr(c, task) for c in CATEGORIES if getattr(c, task)} == official
    lookup = taxonomy.benchmark_lookup(task)
    for source in taxonomy.sources:
        name = official.get(source.name)
        assert lookup[source.id] == (255 if name is None else classes.index(name) + 1)
    assert set(lookup[:32].tolist()) == {255, *range(1, len(classes) + 1)}


def test_the_benchmarks_classes_have_their_official_numbers(taxonomy: Taxonomy) -> None:
    assert len(taxonomy.detection_classes) == 10
    assert taxonomy.detection_classes[:3] == ("car", "truck", "bus")
    assert taxonomy.detection_classes[8:] == ("traffic_cone", "barrier")
    assert len(taxonomy.segmentation_classes) == 16
    # Alphabetical but for the surfaces, which follow the objects.
    assert list(taxonomy.segmentation_classes[:10]) == sorted(DETECTION_CLASSES)
    assert list(taxonomy.segmentation_classes[10:14]) == ["driveable_surface", "other_flat", "sidewalk", "terrain"]


def test_the_splits_have_their_official_sizes_and_share_no_scene() -> None:
    scenes = {f"scene-{n:04d}": split_of(f"scene-{n:04d}", "v1.0-trainval") for n in range(1200)}
    found = list(scenes.values())
    assert {split: found.count(split) for split in SPLITS} == {"train": 700, "val": 150, "test": 150}
    # No two runs overlap: each number counts once.
    assert (
        sum(int(run.split("-")[-1]) - int(run.split("-")[0]) + 1 for runs in SPLITS.values() for run in runs.split())
        == 1000
    )
    assert np.flatnonzero([split is not None for split in found])[[0, -1]].tolist() == [1, 1110]
    mini = [split_of(scene, "v1.0-mini") for scene in scenes]
    assert {split: mini.count(split) for split in MINI_SPLITS} == {"mini_train": 8, "mini_val": 2}


@pytest.mark.parametrize(
    ("scene", "version", "split"),
    [
        ("scene-0001", "v1.0-trainval", "train"),
        ("scene-0003", "v1.0-trainval", "val"),
        ("scene-0077", "v1.0-test", "test"),
        ("scene-0103", "v1.0-trainval", "val"),
        ("scene-0103", "v1.0-mini", "mini_val"),
        ("scene-0061", "v1.0-mini", "mini_train"),
        ("scene-0001", "v1.0-mini", None),
        ("scene-0037", "v1.0-trainval", None),
        ("a drive of mine", "v1.0-trainval", None),
    ],
)
def test_a_scene_is_in_its_official_split(scene: str, version: str, split: str | None) -> None:
    assert split_of(scene, version) == split


def test_sweeps_carry_their_split(nuscenes_folder: Any) -> None:
    nuscenes_folder.edit("scene", lambda rows: rows[0].update(name="scene-0916"))
    source = open_source(str(nuscenes_folder.root))
    assert {s.split for s in source.read("scene-0916")} == {"mini_val"}
    assert {s.split for s in source.read("scene-0001")} == {None}
