from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spot_ray.config.load import from_json, to_json
from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.occupancy import OccupancyInfo
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import SemanticClass, SourceClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import open_occupancy

CAR = SemanticClass("car", (1, 2, 3), foreground=True, paper_class="vehicle")
ROAD = SemanticClass("road", (4, 5, 6), ground=True, labelled=False)
TAXONOMY = Taxonomy("two", (CAR, ROAD), (SourceClass(7, "Car", "car"),))
GRID = VoxelGrid((0.0, 0.0, 0.0), (0.4, 0.4, 0.4), (2, 2, 2))

VERSION_1 = """{
  "name": "default",
  "grid": {"lower_m": [0.0, 0.0, 0.0], "voxel_size_m": [0.4, 0.4, 0.4], "shape": [2, 2, 2]},
  "class_names": ["car", "road"],
  "provenance": {"generator": "spot_ray.occupancy", "aggregated": true},
  "version": 1
}
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A dataset with a folder for the label set `default`."""
    with DatasetWriter(
        str(tmp_path), name="d", rig=(LidarSpec("L", 0, "spinning", 4, (-10.0, 10.0)),), taxonomy=TAXONOMY
    ) as writer:
        writer.add(Sweep("s", "0", 0, np.zeros((1, 3), np.float32)))
    (tmp_path / "occupancy/default").mkdir(parents=True)
    return str(tmp_path)


def write(uri: str, text: str) -> None:
    (Path(uri) / "occupancy/default/info.json").write_text(text)


def test_a_label_set_of_version_1_has_the_classes_of_the_dataset(uri: str) -> None:
    write(uri, VERSION_1)
    info = open_occupancy(uri, "default").info
    assert info == OccupancyInfo("default", GRID, (CAR, ROAD), {"generator": "spot_ray.occupancy", "aggregated": True})


def test_names_that_are_not_those_of_the_dataset_are_refused(uri: str) -> None:
    write(uri, VERSION_1.replace('"car", "road"', '"road", "car"'))
    with pytest.raises(DataError, match=r"classes road, car\n.*info\.json\n.*car, road"):
        open_occupancy(uri, "default")


def test_a_newer_version_says_to_upgrade_whatever_it_holds(uri: str) -> None:
    write(uri, json.dumps({"version": 3, "unheard_of": 1}))
    with pytest.raises(DataError, match=r"version 3\n[^!]*upgrade spot_ray"):
        open_occupancy(uri, "default")


@pytest.mark.parametrize("text", ["", "[]", "{}", VERSION_1[:-40], '{"version": "two"}'])
def test_a_damaged_file_is_named(uri: str, text: str) -> None:
    write(uri, text)
    with pytest.raises(ConfigError) as caught:
        open_occupancy(uri, "default")
    assert caught.value.where.endswith("occupancy/default/info.json")


def test_classes_of_its_own_come_back_and_make_a_taxonomy() -> None:
    info = OccupancyInfo("boxes", GRID, (CAR, ROAD), {"tier": "boxes"})
    assert from_json(OccupancyInfo, to_json(info), where="here") == info
    assert info.class_names == ("car", "road")
    assert (info.taxonomy.name, info.taxonomy.classes) == ("boxes", (CAR, ROAD))
    assert info.taxonomy.lookup()[[1, 2, 3]].tolist() == [1, 255, 255]  # nothing labels roads


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="class car occurs twice"):
        OccupancyInfo("twice", GRID, (CAR, CAR), {})
