"""Labelling a dataset on disk, in one process and over real Ray Data."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.dataset_reader import DatasetSequence
from spot_ray.occupancy.label import LabelReport
from spot_ray.occupancy.run import label_dataset, label_in_process
from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter, open_dataset
from spot_ray.storage.occupancy import list_label_sets, open_occupancy

# Ray Data copies its own deprecated settings.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")

CONFIG = LabelConfig(grid=VoxelGrid((-8.0, -8.0, -1.0), (0.5, 0.5, 0.5), (32, 32, 8)), space_cell_m=0.25)
LIDAR = LidarSpec("TOP", 0, "spinning", 4, (-10.0, 10.0), ego_SE3_lidar=nominal_mount(1.8))
VEHICLE, BUILDING = PAPER_TAXONOMY.id_of("vehicle"), PAPER_TAXONOMY.id_of("building")
SEQUENCES = ("log/1", "log/2", "log/3")


def write(uri, sequences=SEQUENCES, *, classes=True, lidar_id=0):
    rng = np.random.default_rng(5)
    with DatasetWriter(uri, name="hand-made", rig=[LIDAR], taxonomy=PAPER_TAXONOMY) as writer:
        for sequence in sequences:
            for i in range(3):
                xyz = rng.uniform([4.5, -6, 0], [7.5, 6, 2.5], (60, 3)).astype(np.float32)
                box = np.array([[5.0, 0.0, 1.0, 2.0, 1.5, 1.5, 0.0]], np.float32)
                writer.add(
                    Sweep(
                        sequence, f"{i}", i, xyz, np.eye(4),
                        lidar_id=np.full(60, lidar_id, np.uint8),
                        point_source_class=np.full(60, BUILDING, np.uint16) if classes else None,
                        boxes=Boxes(box, np.array([VEHICLE], np.uint16), ["car"]) if classes else None,
                    )
                )  # fmt: skip
    return uri


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in ((a.index, b.index), (a.semantic, b.semantic), (a.observed, b.observed))
    )


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def interrupt_after(num_sequences):
    def interrupt(progress):
        if progress.num_sequences == num_sequences:
            raise KeyboardInterrupt

    return interrupt


def test_ray_and_one_process_make_the_same_labels(tmp_path):
    uri = write(str(tmp_path / "data"))
    seen = []
    report = label_dataset(uri, name="ray", config=CONFIG, num_workers=2, on_progress=seen.append)
    assert (seen[-1].num_sequences, seen[-1].of_sequences, seen[-1].num_frames) == (3, 3, 9)
    assert label_in_process(uri, name="alone", config=CONFIG) == report
    assert (report.sequences, report.frames, report.frames_aggregated, report.points) == (3, 9, 9, 540)
    by_ray, alone = open_occupancy(uri, "ray"), open_occupancy(uri, "alone")
    assert len(by_ray) == len(alone) == 9
    for sweep in open_dataset(uri):
        mine = by_ray.get(sweep.sequence_id, sweep.frame_id)
        assert len(mine.index)
        assert same(mine, alone.get(sweep.sequence_id, sweep.frame_id))
    assert by_ray.info.grid == CONFIG.grid
    assert by_ray.info.class_names == PAPER_TAXONOMY.class_names
    assert by_ray.info.provenance["aggregated"] is True
    assert json.loads(by_ray.info.provenance["config"])["knn_radius_m"] == 0.5


def test_files_are_the_same_on_any_number_of_workers_and_the_sweeps_are_only_read(tmp_path):
    uri = write(str(tmp_path / "data"))
    sweeps = contents(tmp_path / "data")
    for name, workers in (("one", 1), ("two", 2), ("again", 2)):
        label_dataset(uri, name="default", config=CONFIG, num_workers=workers)
        shutil.move(tmp_path / "data" / "occupancy", tmp_path / name)
        assert contents(tmp_path / "data") == sweeps
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "again")
    assert len(contents(tmp_path / "one")) == 5  # info.json, one manifest part, three sequences


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_is_told_as_one_message_and_what_is_finished_stays(tmp_path, num_workers, monkeypatch):
    whole = write(str(tmp_path / "whole"))
    label_in_process(whole, config=CONFIG)
    uri = write(str(tmp_path / "data"))
    shard = next((tmp_path / "data").rglob("*log%2F3*.parquet"))
    good = shard.read_bytes()
    shard.write_bytes(b"not parquet")
    with pytest.raises(DataError, match="cannot read") as caught:
        label_dataset(uri, config=CONFIG, num_workers=num_workers)
    assert "sequences are finished: the same command goes on from there" in str(caught.value)
    assert list_label_sets(uri) == []
    kept = len(list((tmp_path / "data" / "occupancy/default/pending").iterdir()))
    assert kept >= 1
    shard.write_bytes(good)

    labelled = []
    original = DatasetSequence.__init__

    def counted(self, dataset, sequence_id, on_read):
        labelled.append(sequence_id)
        original(self, dataset, sequence_id, on_read)

    monkeypatch.setattr(DatasetSequence, "__init__", counted)
    assert label_in_process(uri, config=CONFIG).frames == 9
    assert len(labelled) == 3 - kept
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_what_was_finished_in_another_way_is_made_anew(tmp_path):
    whole = write(str(tmp_path / "whole"))
    label_in_process(whole, config=CONFIG)
    uri = write(str(tmp_path / "data"))
    other = LabelConfig(grid=CONFIG.grid, knn_radius_m=0.4)
    with pytest.raises(KeyboardInterrupt):
        label_dataset(uri, config=other, num_workers=1, on_progress=interrupt_after(2))
    assert len(list((tmp_path / "data" / "occupancy/default/pending").iterdir())) == 2
    assert label_in_process(uri, config=CONFIG).sequences == 3
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_labels_that_exist_are_kept_unless_told_otherwise(tmp_path):
    uri = write(str(tmp_path / "data"), SEQUENCES[:1])
    label_in_process(uri, config=CONFIG)
    before = contents(tmp_path / "data")
    assert label_in_process(uri, config=CONFIG) == LabelReport()
    other = LabelConfig(grid=VoxelGrid((-8.0, -8.0, -1.0), (1.0, 1.0, 1.0), (16, 16, 4)))
    with pytest.raises(DataError, match="another way") as error:
        label_in_process(uri, config=other)
    assert "--overwrite" in str(error.value)
    assert contents(tmp_path / "data") == before
    label_in_process(uri, config=other, overwrite=True)
    assert open_occupancy(uri, "default").info.grid == other.grid
    assert len(open_occupancy(uri, "default")) == 3
    label_in_process(uri, config=CONFIG, overwrite=True)
    assert open_occupancy(uri, "default").info.grid == CONFIG.grid
    names = sorted(p.name for p in (tmp_path / "data" / "occupancy/default").iterdir())
    assert names == ["generation-2", "info.json"]


def test_old_labels_are_there_until_the_new_ones_are_finished(tmp_path):
    for name in ("whole", "data"):
        label_in_process(write(str(tmp_path / name)), config=CONFIG)
    uri, old = str(tmp_path / "data"), contents(tmp_path / "data")
    other = LabelConfig(grid=VoxelGrid((-8.0, -8.0, -1.0), (1.0, 1.0, 1.0), (16, 16, 4)))
    with pytest.raises(KeyboardInterrupt):
        label_dataset(uri, config=other, num_workers=1, overwrite=True, on_progress=interrupt_after(2))
    assert old.items() <= contents(tmp_path / "data").items()
    labels = open_occupancy(uri, "default")
    assert labels.info.grid == CONFIG.grid
    assert len(labels.get(SEQUENCES[2], "2").index)
    # Without --overwrite nothing of it is used or lost.
    assert label_in_process(uri, config=CONFIG) == LabelReport()

    label_in_process(uri, config=other, overwrite=True)
    label_in_process(str(tmp_path / "whole"), config=other, overwrite=True)
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    assert len(open_occupancy(uri, "default")) == 9


def test_sets_of_several_grids_and_classes_stand_side_by_side(tmp_path):
    uri = write(str(tmp_path / "data"))
    coarse = LabelConfig(grid=VoxelGrid((-8.0, -8.0, -1.0), (1.0, 1.0, 1.0), (16, 16, 4)))
    label_in_process(uri, config=CONFIG)
    first = contents(tmp_path / "data")
    label_in_process(uri, name="coarse", config=coarse)
    for kind in ("foreground", "binary"):
        label_in_process(uri, name=kind, config=replace(CONFIG, classes=kind))
    assert first.items() <= contents(tmp_path / "data").items()
    infos = {name: open_occupancy(uri, name).info for name in list_label_sets(uri)}
    assert {name: info.grid for name, info in infos.items()} == {
        "default": CONFIG.grid, "coarse": coarse.grid, "binary": CONFIG.grid, "foreground": CONFIG.grid
    }  # fmt: skip
    assert infos["binary"].class_names == ("occupied",)
    assert infos["binary"].provenance["classes"] == "binary"
    assert infos["default"].provenance["tier"] == "both"
    binary, coarser, finest = (open_occupancy(uri, n).get("log/1", "0") for n in ("binary", "foreground", "default"))
    np.testing.assert_array_equal(binary.index, finest.index)
    np.testing.assert_array_equal(coarser.index, finest.index)
    assert set(binary.semantic) == {1}
    assert set(finest.semantic) == {BUILDING}
    assert set(coarser.semantic) == {infos["foreground"].class_names.index("other") + 1}


def test_sequences_that_arrive_later_are_added(tmp_path):
    uri = write(str(tmp_path / "data"), SEQUENCES[:1])
    label_in_process(uri, config=CONFIG)
    write(uri, SEQUENCES[1:])
    with pytest.raises(DataError, match="another way"):
        label_in_process(uri, config=LabelConfig(grid=CONFIG.grid, knn_radius_m=0.4))
    report = label_in_process(uri, config=CONFIG)
    assert report.sequences == 2
    assert len(open_occupancy(uri, "default")) == 9


def test_without_labels_and_boxes_all_that_is_told_is_that_something_is_there(tmp_path):
    uri = write(str(tmp_path / "data"), SEQUENCES[:1], classes=False)
    report = label_in_process(uri, config=CONFIG)
    assert report.points_unclassed == report.points
    assert report.frames_with_boxes == 0
    labels = open_occupancy(uri, "default")
    assert labels.info.provenance["with_classes"] is False
    assert (labels.info.provenance["tier"], labels.info.class_names) == ("none", ("occupied",))
    assert set(labels.get(SEQUENCES[0], "0").semantic) == {1}


def test_what_labels_lack_is_said_of_all_of_them(tmp_path):
    uri = write(str(tmp_path / "data"), SEQUENCES[:1], classes=False)
    label_in_process(uri, config=CONFIG)
    write(uri, SEQUENCES[1:])
    label_in_process(uri, config=CONFIG)
    provenance = open_occupancy(uri, "default").info.provenance
    assert provenance["with_classes"] is True
    assert provenance["objects_moved_with_boxes"] is False
