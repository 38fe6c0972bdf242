from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo, to_network_order
from spot_ray.schema.taxonomy import SemanticClass
from spot_ray.storage import occupancy as occupancy_files
from spot_ray.storage.occupancy import OccupancyWriter, list_label_sets, open_occupancy, write_occupancy

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


def test_a_long_sequence_is_written_file_by_file_while_its_frames_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(occupancy_files, "FRAMES_A_PART", 3)
    shards = tmp_path / "occupancy/default/shards"
    whole: list[int] = []

    def frames() -> Iterator[Occupancy]:
        for i in range(8):
            whole.append(len([p for p in shards.glob("*") if not p.name.startswith(".")]))
            yield frame(f"{i:02d}")

    with OccupancyWriter(str(tmp_path), info()) as w:
        w.add_sequence("s", frames())
    assert whole == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(p.name for p in shards.iterdir()) == [f"s.{part:04d}.parquet" for part in range(3)]
    labels = open_occupancy(str(tmp_path), "default")
    assert labels.get("s", "07").frame_id == "07"
    assert labels.manifest["row_group"].to_pylist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_labels_that_break_off_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occupancy_files, "FRAMES_A_PART", 1)

    def frames() -> Iterator[Occupancy]:
        yield frame("0")
        yield frame("1")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_occupancy(str(tmp_path), "occupancy/default", "s", frames())
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_written_again_they_are_the_same_files_and_nothing_of_a_longer_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(occupancy_files, "FRAMES_A_PART", 1)
    shards = tmp_path / "occupancy/default/shards"
    write_occupancy(str(tmp_path), "occupancy/default", "s.0000", [frame("0"), frame("1")])
    write_occupancy(str(tmp_path), "occupancy/default", "s", [frame("0"), frame("1"), frame("2")])
    first = (shards / "s.0000.parquet").read_bytes()
    (shards / ".s.0001.parquet.0123").write_bytes(b"half")  # of a task whose process died
    rows = write_occupancy(str(tmp_path), "occupancy/default", "s", [frame("0"), frame("1")])
    assert (shards / "s.0000.parquet").read_bytes() == first
    names = sorted(p.name for p in shards.iterdir())
    assert names == [
        *("s.0000.0000.parquet", "s.0000.0001.parquet"), *("s.0000.parquet", "s.0001.parquet")
    ]  # fmt: skip
    assert rows["shard"].to_pylist() == [f"occupancy/default/shards/s.000{i}.parquet" for i in range(2)]
