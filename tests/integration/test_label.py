"""Labelling a dataset on disk, in one process and over real Ray Data."""

import json

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.config import LabelConfig
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


def test_ray_and_one_process_make_the_same_labels(tmp_path):
    uri = write(str(tmp_path / "data"))
    seen = []
    report = label_dataset(
        uri, name="ray", config=CONFIG, num_workers=2, on_sequence=lambda name, found: seen.append((name, found.frames))
    )
    assert sorted(seen) == [(s, 3) for s in SEQUENCES]
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


def test_an_error_in_a_task_is_the_users_error_and_leaves_nothing(tmp_path):
    uri = write(str(tmp_path / "data"))
    shard = sorted((tmp_path / "data").rglob("*log%2F2*.parquet"))[0]
    shard.write_bytes(b"not parquet")
    with pytest.raises(DataError):
        label_dataset(uri, config=CONFIG, num_workers=2)
    assert list_label_sets(uri) == []
    assert not list((tmp_path / "data").rglob("occupancy/**/*.parquet"))


def test_labels_that_exist_are_kept_unless_told_otherwise(tmp_path):
    uri = write(str(tmp_path / "data"), SEQUENCES[:1])
    label_in_process(uri, config=CONFIG)
    with pytest.raises(DataError, match="already") as error:
        label_in_process(uri, config=CONFIG)
    assert "--overwrite" in str(error.value)
    other = LabelConfig(grid=VoxelGrid((-8.0, -8.0, -1.0), (1.0, 1.0, 1.0), (16, 16, 4)))
    label_in_process(uri, config=other, overwrite=True)
    assert open_occupancy(uri, "default").info.grid == other.grid


def test_sequences_that_arrive_later_are_added(tmp_path):
    uri = write(str(tmp_path / "data"), SEQUENCES[:1])
    label_in_process(uri, config=CONFIG)
    write(uri, SEQUENCES[1:])
    with pytest.raises(DataError, match="another way"):
        label_in_process(uri, config=LabelConfig(grid=CONFIG.grid, knn_radius_m=0.4))
    report = label_in_process(uri, config=CONFIG)
    assert report.sequences == 2
    assert len(open_occupancy(uri, "default")) == 9


def test_without_labels_and_boxes_occupancy_has_no_classes_and_says_so(tmp_path):
    uri = write(str(tmp_path / "data"), SEQUENCES[:1], classes=False)
    report = label_in_process(uri, config=CONFIG)
    assert report.points_unclassed == report.points
    assert report.frames_with_boxes == 0
    labels = open_occupancy(uri, "default")
    assert labels.info.provenance["with_classes"] is False
    assert set(labels.get(SEQUENCES[0], "0").semantic) == {255}


def test_what_labels_lack_is_said_of_all_of_them(tmp_path):
    uri = write(str(tmp_path / "data"), SEQUENCES[:1], classes=False)
    label_in_process(uri, config=CONFIG)
    write(uri, SEQUENCES[1:])
    label_in_process(uri, config=CONFIG)
    provenance = open_occupancy(uri, "default").info.provenance
    assert provenance["with_classes"] is True
    assert provenance["objects_moved_with_boxes"] is False


def test_a_failure_on_the_way_removes_what_was_written(tmp_path):
    uri = write(str(tmp_path / "data"))

    def stop(name, report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_dataset(uri, config=CONFIG, num_workers=1, on_sequence=stop)
    assert list_label_sets(uri) == []
    assert not list((tmp_path / "data").rglob("occupancy/**/*.parquet"))
