"""A summary against counts made by hand; it reads no shard."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import SemanticClass, SourceClass, Taxonomy
from spot_ray.storage.dataset import Dataset, DatasetWriter, open_dataset
from spot_ray.storage.inspect import render, summarize
from spot_ray.storage.occupancy import OccupancyWriter

TAXONOMY = Taxonomy(
    "small",
    (
        SemanticClass("car", (1, 2, 3)),
        SemanticClass("road", (1, 2, 3)),
        SemanticClass("pole", (1, 2, 3), labelled=False),
    ),
    (
        SourceClass(40, "van", "car"),
        SourceClass(4, "car", "car"),
        SourceClass(9, "road", "road"),
        SourceClass(0, "?", None),
    ),
)
RIG = (LidarSpec("roof", 3, "spinning", 40, (-25.0, 15.0), ego_SE3_lidar=nominal_mount(1.9)),)


def sweep(sequence: str, frame: int, seconds: float, classes: list[int] | None, boxes: list[int] | None) -> Sweep:
    n = 4 if classes is None else len(classes)
    return Sweep(
        sequence_id=sequence,
        frame_id=str(frame),
        timestamp_ns=int(seconds * 1e9),
        xyz=np.ones((n, 3), np.float32),
        point_source_class=None if classes is None else np.array(classes, np.uint16),
        boxes=None if boxes is None else Boxes(np.ones((len(boxes), 7), np.float32), np.array(boxes, np.uint16)),
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    with DatasetWriter(str(tmp_path / "d"), name="small", rig=RIG, taxonomy=TAXONOMY, licence="mine") as writer:
        writer.add(sweep("a", 0, 10.0, [40, 40, 9, 0, 65535, 9], [4]))
        writer.add(sweep("a", 1, 10.5, [9], []))
        writer.add(sweep("a", 2, 12.0, None, None))
        writer.add(sweep("b", 0, 5.0, [4, 40], [40, 4]))
        writer.add(sweep("b", 1, 5.25, [0, 65535, 65535], None))
    return open_dataset(str(tmp_path / "d"))


def test_frames_classes_and_sizes_are_counted(dataset: Dataset) -> None:
    summary = summarize(dataset)
    assert (summary.num_sequences, summary.num_frames) == (2, 5)
    assert summary.duration_s == pytest.approx(2.25)
    assert summary.points_a_frame == (1, 3.0, 6)
    assert (summary.num_frames_with_point_labels, summary.num_frames_with_boxes) == (4, 3)
    assert [(c.name, c.num_frames_with_points, c.num_frames_with_boxes) for c in summary.classes] == [
        ("car", 2, 2),
        ("road", 2, 0),
        ("pole", 0, 0),
    ]
    (sensor,) = summary.sensors
    assert (sensor.name, sensor.num_beams, sensor.beams_per_deg, sensor.height_m) == ("roof", 40, 1.0, 1.9)
    size = sum(p.stat().st_size for p in (Path(dataset.uri) / "shards").iterdir())
    assert summary.bytes_a_frame == size / 5
    assert summary.label_sets == ()


def test_no_shard_is_read(dataset: Dataset) -> None:
    for shard in (Path(dataset.uri) / "shards").iterdir():
        shard.write_bytes(b"")
    assert summarize(dataset).classes[0].num_frames_with_points == 2


def test_a_dataset_without_any_label_counts_none(tmp_path: Path) -> None:
    with DatasetWriter(str(tmp_path / "d"), name="bare", rig=RIG, taxonomy=TAXONOMY) as writer:
        writer.add(sweep("a", 0, 1.0, None, None))
    summary = summarize(open_dataset(str(tmp_path / "d")))
    assert (summary.num_frames_with_point_labels, summary.num_frames_with_boxes) == (0, 0)
    assert {c.num_frames_with_points for c in summary.classes} == {0}


def test_label_sets_are_listed_with_their_frames(dataset: Dataset) -> None:
    grid = VoxelGrid(shape=(2, 2, 2))
    info = OccupancyInfo(name="default", grid=grid, classes=TAXONOMY.classes, provenance={})
    none = np.zeros(0, np.int32), np.zeros(0, np.uint8)
    with OccupancyWriter(dataset.uri, info) as writer:
        writer.add_sequence("a", [Occupancy("a", "0", *none, np.zeros(1, np.uint8))])
    (labels,) = summarize(dataset).label_sets
    assert (labels.name, labels.num_frames) == ("default", 1)


def test_the_text_tells_all_and_the_json_is_plain(dataset: Dataset) -> None:
    summary = summarize(dataset)
    text = render(summary)
    assert json.loads(json.dumps(dataclasses.asdict(summary)))["classes"][1]["name"] == "road"
    for part in ("1 to 6, median 3", "40 beams over -25 to 15 deg", "none yet", "mine", "the source does not label it"):
        assert part in text
    (car,) = [line.split() for line in text.splitlines() if " car " in line]
    assert car == ["1", "car", "2", "2"]
