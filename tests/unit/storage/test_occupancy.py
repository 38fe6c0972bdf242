from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo, to_network_order
from spot_ray.schema.taxonomy import SemanticClass
from spot_ray.storage.occupancy import OccupancyWriter, list_label_sets, open_occupancy

GRID = VoxelGrid((-0.8, -0.8, -0.2), (0.4, 0.4, 0.4), (4, 4, 3))


def info(name: str = "default", grid: VoxelGrid = GRID) -> OccupancyInfo:
    classes = (SemanticClass("road", (1, 2, 3), ground=True), SemanticClass("car", (4, 5, 6), foreground=True))
    return OccupancyInfo(name, grid, classes, {"made_by": "hand"})


def frame(frame_id: str) -> Occupancy:
    observed = np.zeros(GRID.shape, bool)
    observed[1, 2, 0] = observed[3, 3, 2] = observed[0, 0, 1] = True
    index = GRID.linear(np.array([[0, 0, 0], [1, 2, 0], [3, 3, 2]]))
    return Occupancy("s", frame_id, index, np.array([1, 2, 255], np.uint8), pack_bits(observed))


def test_labels_come_back_and_densify_as_defined(tmp_path: Path) -> None:
    with OccupancyWriter(str(tmp_path), info()) as w:
        w.add_sequence("s", [frame("0"), frame("1")])
    labels = open_occupancy(str(tmp_path), "default")
    assert labels.info == info()
    dense = labels.get("s", "1").dense(GRID)
    assert dense[0, 0, 0] == 255  # occupied, yet no ray reached it
    assert dense[1, 2, 0] == 2
    assert dense[3, 3, 2] == 255  # occupied by something without a class
    assert dense[0, 0, 1] == 0
    assert (dense == 255).sum() == GRID.num_voxels - 2
    assert to_network_order(dense)[0, 2, 1] == 2


def test_a_failed_write_shows_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), OccupancyWriter(str(tmp_path), info()) as w:
        w.add_sequence("s", [frame("0")])
        raise RuntimeError
    assert list_label_sets(str(tmp_path)) == []
    with pytest.raises(DataError, match="spot-ray label --data"):
        open_occupancy(str(tmp_path), "default")


def test_two_grids_stand_side_by_side_but_not_under_one_name(tmp_path: Path) -> None:
    fine = VoxelGrid((-0.8, -0.8, -0.2), (0.2, 0.2, 0.2), (8, 8, 6))
    for name, grid in (("default", GRID), ("fine", fine)):
        with OccupancyWriter(str(tmp_path), info(name, grid)) as w:
            w.add_sequence("s", [frame("0")])
    assert list_label_sets(str(tmp_path)) == ["default", "fine"]
    with pytest.raises(DataError, match="another grid"), OccupancyWriter(str(tmp_path), info("default", fine)) as w:
        w.add_sequence("t", [frame("0")])


def test_a_failed_write_leaves_no_folder_and_no_harm(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), OccupancyWriter(str(tmp_path), info()) as w:
        w.add_sequence("s", [frame("0")])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with OccupancyWriter(str(tmp_path), info()) as w:
        w.add_sequence("s", [frame("0")])
    with pytest.raises(RuntimeError), OccupancyWriter(str(tmp_path), info()) as w:
        w.add_sequence("t", [frame("0")])
        raise RuntimeError
    assert [p.name for p in (tmp_path / "occupancy/default/shards").iterdir()] == ["s.0000.parquet"]


def test_a_sequence_is_labelled_once(tmp_path: Path) -> None:
    with OccupancyWriter(str(tmp_path), info()) as w:
        w.add_sequence("s", [frame("0")])
    with (
        pytest.raises(DataError, match="'s' has labels 'default' already"),
        OccupancyWriter(str(tmp_path), info()) as w,
    ):
        w.add_sequence("s", [frame("1")])
    # The labels that were there are whole.
    assert open_occupancy(str(tmp_path), "default").get("s", "0").dense(GRID)[1, 2, 0] == 2


def test_a_frame_without_labels_is_named(tmp_path: Path) -> None:
    with OccupancyWriter(str(tmp_path), info()) as w:
        w.add_sequence("s", [frame("0")])
    with pytest.raises(DataError, match="no frame s/9"):
        open_occupancy(str(tmp_path), "default").get("s", "9")


@pytest.mark.parametrize("name", ["", "..", "a/b", "../..", ".hidden"])
def test_a_name_of_a_label_set_never_leads_elsewhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no name of a label set"):
        open_occupancy(str(tmp_path), name)
