"""The Waymo benchmark from a converted dataset, a detector and files to its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spot_ray.convert._waymo_taxonomy import taxonomy
from spot_ray.errors import DataError
from spot_ray.evaluate.benchmark import Benchmark
from spot_ray.evaluate.waymo_benchmark import WaymoBenchmark
from spot_ray.evaluate.waymo_boxes import WaymoPredictions, WaymoTruth
from spot_ray.evaluate.waymo_files import CLASSES
from spot_ray.schema.detections import Detections
from spot_ray.schema.lidars import WAYMO_TOP
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_CLASSES, SourceClass, Taxonomy
from spot_ray.storage.dataset import Dataset, DatasetWriter, open_dataset

BENCHMARK: Benchmark[WaymoTruth, WaymoPredictions] = WaymoBenchmark()
START_US = 1_550_000_000_123_456
FRAME_BOXES = 4


def sweep(sequence: str, frame: int, boxes: Boxes | None) -> Sweep:
    time = START_US + 100_000 * frame
    return Sweep(sequence, str(time), time * 1000, np.ones((3, 3), np.float32), boxes=boxes)


def labels(seed: int, classes: Sequence[int] = (101, 102, 104, 103)) -> Boxes:
    rng = np.random.default_rng(seed)
    count = len(classes)
    place = np.stack([12.0 * np.arange(1, count + 1), rng.uniform(-5, 5, count), np.ones(count)], axis=1)
    boxes = np.column_stack([place, rng.uniform(1, 4, (count, 3)), rng.uniform(-3, 3, count)])
    return Boxes(
        boxes.astype(np.float32),
        np.array(classes, np.uint16),
        num_lidar_points=rng.integers(1, 20, count).astype(np.int32),
        difficulty=np.zeros(count, np.int32),
    )


def write(path: Path, sweeps: Sequence[Sweep], classes: Taxonomy | None = None) -> Dataset:
    with DatasetWriter(str(path), name="waymo", rig=[WAYMO_TOP], taxonomy=classes or taxonomy()) as writer:
        for s in sweeps:
            writer.add(s)
    return open_dataset(str(path))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    sweeps = [sweep(name, frame, labels(10 * i + frame)) for i, name in enumerate("ab") for frame in range(3)]
    return write(tmp_path / "data", sweeps)


def as_found(dataset: Dataset, frames: Sequence[int], *, left_out: int = 0) -> list[Detections]:
    """Return the labels as a detector would give them, the last ones of each frame left out."""
    found = []
    for i in frames:
        boxes = dataset.pose_and_boxes(i)[1]
        assert boxes is not None
        keep = len(boxes) - left_out
        classes = dataset.info.taxonomy.benchmark_lookup("detection")[boxes.source_class][:keep]
        found.append(Detections(boxes.boxes[:keep], np.linspace(0.4, 0.9, keep, dtype=np.float32), classes))
    return found


def test_labels_found_exactly_score_one(dataset: Dataset, tmp_path: Path) -> None:
    frames = range(6)
    truth = BENCHMARK.dataset_truth(dataset, frames)
    predictions = BENCHMARK.from_detections(dataset, frames, as_found(dataset, frames))
    uri = str(tmp_path / "out" / "predictions.bin")
    BENCHMARK.write(predictions, uri)
    for found in (predictions, BENCHMARK.read(uri)):
        scores = BENCHMARK.score(truth, found)
        assert scores.metric == "waymo"
        assert scores.headline == "L2/mAPH"
        assert list(scores.figures.values()) == pytest.approx([1.0] * len(scores.figures), abs=1e-6)
        assert {"L1/mAP", "L2/mAPH", "L1/AP/vehicle", "L2/APH/cyclist", "L2/AP/vehicle/[0, 30)"} < set(scores.figures)
        assert "L2/AP/vehicle/[30, 50)" not in scores.figures
        assert "frames have no prediction" not in str(scores)
    assert "mean of 3" in scores.table
    assert "vehicle" in scores.table


def test_keys_types_and_levels_are_those_of_the_official_files(dataset: Dataset) -> None:
    truth = BENCHMARK.dataset_truth(dataset, [4])
    assert truth.frames == (("b", START_US + 100_000),)
    assert truth.types.tolist() == [1, 2, 4, 3]
    boxes = dataset.pose_and_boxes(4)[1]
    assert boxes is not None
    assert boxes.num_lidar_points is not None
    assert truth.levels.tolist() == np.where(boxes.num_lidar_points <= 5, 2, 1).tolist()
    np.testing.assert_array_equal(truth.boxes, boxes.boxes)


def test_labelled_difficulty_counts_more_than_points(tmp_path: Path) -> None:
    boxes = replace(
        labels(0), num_lidar_points=np.array([50, 2, 0, 2], np.int32), difficulty=np.array([2, 1, 1, 0], np.int32)
    )
    truth = BENCHMARK.dataset_truth(write(tmp_path / "data", [sweep("a", 0, boxes)]), [0])
    assert truth.levels.tolist() == [2, 1, 0, 2]


def test_means_are_over_the_classes_that_a_dataset_has(tmp_path: Path) -> None:
    classes = Taxonomy(
        "city",
        PAPER_CLASSES,
        (
            SourceClass(1, "walker", "pedestrian", "pedestrian"),
            SourceClass(2, "car", "vehicle", "vehicle"),
            SourceClass(3, "bin", None),
        ),
        detection_classes=("pedestrian", "vehicle"),
    )
    dataset = write(tmp_path / "data", [sweep("a", 0, labels(0, (2, 2, 1, 3)))], classes)
    truth = BENCHMARK.dataset_truth(dataset, [0])
    assert truth.types.tolist() == [1, 1, 2]
    found = as_found(dataset, [0], left_out=1)[0]
    scores = BENCHMARK.score(truth, BENCHMARK.from_detections(dataset, [0], [found]))
    assert scores.figures["L2/mAP"] == pytest.approx(1.0)
    vehicles = replace(found, boxes=found.boxes[:2], scores=found.scores[:2], classes=found.classes[:2])
    scores = BENCHMARK.score(truth, BENCHMARK.from_detections(dataset, [0], [vehicles]))
    assert scores.figures["L2/mAP"] == pytest.approx(0.5)
    assert scores.figures["L2/AP/pedestrian"] == 0
    assert "L2/AP/cyclist" not in scores.figures
    assert "There is no box of" not in scores.table
    # A class that the dataset detects and of which there is no box counts 0, as with the official file.
    dataset = write(tmp_path / "cars", [sweep("a", 0, labels(0, (2, 2)))], classes)
    truth = BENCHMARK.dataset_truth(dataset, [0])
    assert truth.class_names == ("vehicle", "pedestrian")
    scores = BENCHMARK.score(truth, BENCHMARK.from_detections(dataset, [0], as_found(dataset, [0])))
    assert scores.figures["L2/AP/vehicle"] == pytest.approx(1.0)
    assert scores.figures["L2/mAP"] == pytest.approx(0.5)
    assert "There is no box of pedestrian: 0 in the means" in scores.table


def test_the_means_do_not_depend_on_where_the_truth_comes_from(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", [sweep("a", 0, labels(0, (101, 101, 104)))])
    found = BENCHMARK.from_detections(dataset, [0], as_found(dataset, [0]))
    of_dataset = BENCHMARK.score(BENCHMARK.dataset_truth(dataset, [0]), found)
    official = BENCHMARK.score(BENCHMARK.official_truth(official_file(tmp_path / "gt.bin", dataset, [0])), found)
    assert of_dataset.figures["L1/mAP"] == pytest.approx(2 / 3)
    assert official.figures["L1/mAP"] == pytest.approx(2 / 3)


def test_frames_that_do_not_exist_are_named(dataset: Dataset) -> None:
    truth = BENCHMARK.dataset_truth(dataset, [0, 1])
    with pytest.raises(
        DataError, match=f"1 of 3 frames of the predictions .* the first is frame a/{START_US + 200_000}"
    ):
        BENCHMARK.score(truth, BENCHMARK.from_detections(dataset, [0, 1, 2], as_found(dataset, [0, 1, 2])))


def test_missing_frames_are_named(dataset: Dataset) -> None:
    truth = BENCHMARK.dataset_truth(dataset, range(6))
    with pytest.raises(DataError, match=f"1 of 6 frames have no predictions, the first is frame b/{START_US}"):
        BENCHMARK.score(truth, BENCHMARK.from_detections(dataset, [0, 1, 2, 4, 5], as_found(dataset, [0, 1, 2, 4, 5])))


def test_a_file_may_have_nothing_for_a_frame_but_not_for_a_segment(dataset: Dataset, tmp_path: Path) -> None:
    truth = BENCHMARK.dataset_truth(dataset, range(6))
    found = as_found(dataset, range(6))
    uri = str(tmp_path / "predictions.bin")
    BENCHMARK.write(BENCHMARK.from_detections(dataset, range(6), [*found[:5], Detections.empty()]), uri)
    scores = BENCHMARK.score(truth, BENCHMARK.read(uri))
    assert scores.figures["L2/AP/vehicle"] == pytest.approx(5 / 6, abs=1e-6)
    assert "1 of 6 frames have no prediction." in str(scores)
    BENCHMARK.write(BENCHMARK.from_detections(dataset, range(3), found[:3]), uri)
    with pytest.raises(DataError, match="1 of 2 segments have no predictions for any frame, the first is b") as error:
        BENCHMARK.score(truth, BENCHMARK.read(uri))
    assert error.value.where == uri


def test_predictions_come_back_to_the_ego_frames(dataset: Dataset, tmp_path: Path) -> None:
    found = as_found(dataset, range(6))
    uri = str(tmp_path / "predictions.bin")
    BENCHMARK.write(BENCHMARK.from_detections(dataset, range(3), [*found[:2], Detections.empty()]), uri)
    names = dataset.info.taxonomy.detection_classes
    for one, same in zip(BENCHMARK.in_ego(dataset, [1, 0], BENCHMARK.read(uri)), found[1::-1], strict=True):
        np.testing.assert_allclose(one.boxes, same.boxes)
        np.testing.assert_allclose(one.scores, same.scores)
        assert one.class_names == tuple(names[c - 1] for c in same.classes)
    # A file has nothing for a frame in which nothing was found; a segment that it lacks was not looked at.
    assert len(BENCHMARK.in_ego(dataset, [2], BENCHMARK.read(uri))[0].boxes) == 0
    with pytest.raises(DataError, match=f"1 of 1 frames have no predictions, the first is frame b/{START_US}"):
        BENCHMARK.in_ego(dataset, [3], BENCHMARK.read(uri))
    with pytest.raises(DataError, match="a frame is given twice"):
        BENCHMARK.from_detections(dataset, [0, 0], found[:1] * 2)
    with pytest.raises(DataError, match="1 of 1 frames have no predictions"):
        BENCHMARK.in_ego(dataset, [2], BENCHMARK.from_detections(dataset, range(2), found[:2]))


def test_nothing_found_can_be_scored_before_predicting_and_from_its_file(dataset: Dataset, tmp_path: Path) -> None:
    nothing = BENCHMARK.from_detections(dataset, range(6), [Detections.empty()] * 6)
    uri = str(tmp_path / "predictions.bin")
    BENCHMARK.check_place(uri)
    BENCHMARK.write(nothing, uri)
    official = BENCHMARK.official_truth(official_file(tmp_path / "gt.bin", dataset, range(6)))
    for truth in (BENCHMARK.dataset_truth(dataset, range(6)), official):
        for found in (nothing, BENCHMARK.read(uri)):
            scores = BENCHMARK.score(truth, found)
            assert set(scores.figures.values()) == {0.0}
            assert "6 of 6 frames have no prediction." in scores.table
    with pytest.raises(DataError, match="cannot write the file: is a directory"):
        BENCHMARK.check_place(str(tmp_path))


def official_file(path: Path, dataset: Dataset, frames: Sequence[int]) -> str:
    """Write labels as the official file has them."""
    truth = BENCHMARK.dataset_truth(dataset, frames)
    objects = CLASSES["Objects"]()
    for frame, box, kind in zip(truth.frame, truth.boxes.tolist(), truth.types, strict=True):
        name, time = truth.frames[frame]
        o = objects.objects.add(context_name=name, frame_timestamp_micros=time)
        o.object.type, o.object.num_lidar_points_in_box = int(kind), 9
        b = o.object.box
        b.center_x, b.center_y, b.center_z, b.length, b.width, b.height, b.heading = box
    path.write_bytes(objects.SerializeToString())
    return str(path)


def test_official_files_are_found_in_their_folder(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "official"
    folder.mkdir()
    with pytest.raises(DataError, match="no files of ground truth"):
        BENCHMARK.official_truth(str(folder))
    file = official_file(folder / "validation_ground_truth_objects_gt.bin", dataset, range(6))
    with pytest.raises(DataError, match="does not tell that it is of the split 'train'"):
        BENCHMARK.official_truth(file, split="train")
    for where, split in ((file, None), (file, "val"), (str(folder), None), (str(folder), "val")):
        assert len(BENCHMARK.official_truth(where, split=split).frames) == 6
    with pytest.raises(DataError, match="no files of ground truth of the split 'train'"):
        BENCHMARK.official_truth(str(folder), split="train")
    official_file(folder / "training_ground_truth_objects_gt.bin", dataset, range(2))
    with pytest.raises(DataError, match=r"there is no split 'vall'[\s\S]*did you mean 'val'"):
        BENCHMARK.official_truth(str(folder), split="vall")
    with pytest.raises(DataError, match="2 files of ground truth: training_"):
        BENCHMARK.official_truth(str(folder))
    assert len(BENCHMARK.official_truth(str(folder), split="train").frames) == 2


def test_the_official_file_scores_all_classes_and_knows_segments_only(dataset: Dataset, tmp_path: Path) -> None:
    file = official_file(tmp_path / "gt.bin", dataset, [0, 1, 2])
    truth = BENCHMARK.official_truth(file)
    found = as_found(dataset, [0, 1, 2], left_out=1)
    assert truth.class_names == ("vehicle", "pedestrian", "sign", "cyclist")
    predictions = BENCHMARK.from_detections(dataset, [0, 1, 2], found)
    assert BENCHMARK.score(truth, predictions).figures["L2/mAPH"] == pytest.approx(1.0, abs=1e-6)
    assert BENCHMARK.score(truth, predictions).figures["L2/APH/sign"] == 0
    # A frame of the segment that the file has no label in: false positives, as the official code counts them.
    later = replace(predictions, frames=(("a", START_US), ("a", START_US + 100_000), ("a", 7)), every_frame=False)
    scores = BENCHMARK.score(truth, later)
    assert 0 < scores.figures["L2/AP/vehicle"] < 1
    assert "1 predicted frames have no true box, or do not exist" in scores.table
    assert "predicted frames" not in BENCHMARK.score(truth, predictions).table
    with pytest.raises(DataError, match=r"1 of 3 frames of the predictions .* the first is frame c/7"):
        BENCHMARK.score(truth, replace(later, frames=(*later.frames[:2], ("c", 7))))


def test_a_class_without_a_box_is_zero_in_the_official_means(dataset: Dataset, tmp_path: Path) -> None:
    truth = BENCHMARK.official_truth(official_file(tmp_path / "gt.bin", dataset, [0]))
    cyclists = truth.types == 4
    truth = replace(truth, levels=np.where(cyclists, 0, truth.levels).astype(np.uint8))
    scores = BENCHMARK.score(truth, BENCHMARK.from_detections(dataset, [0], as_found(dataset, [0], left_out=2)))
    assert scores.figures["L2/mAP"] == pytest.approx(2 / 3)
    assert "L2/AP/cyclist" not in scores.figures
    assert "There is no box of cyclist" in str(scores)


def test_a_dataset_that_cannot_be_scored_is_told(tmp_path: Path, dataset: Dataset) -> None:
    no_points = replace(labels(0), num_lidar_points=None)
    broken = write(tmp_path / "broken", [sweep("a", 0, None), sweep("a", 1, no_points)])
    with pytest.raises(DataError, match="not annotated") as error:
        BENCHMARK.dataset_truth(broken, [0])
    assert f"frame a/{START_US}" in error.value.where
    with pytest.raises(DataError, match="how many points"):
        BENCHMARK.dataset_truth(broken, [1])
    other = Taxonomy("other", PAPER_CLASSES, (SourceClass(1, "car", "vehicle", "Car"),), detection_classes=("Car",))
    with pytest.raises(DataError, match="the dataset's detection class 'Car'"):
        BENCHMARK.dataset_truth(write(tmp_path / "other", [sweep("a", 0, None)], other), [0])
    with pytest.raises(DataError, match="a detection has the class 5"):
        found = as_found(dataset, [0])[0]
        BENCHMARK.from_detections(dataset, [0], [replace(found, classes=np.full(FRAME_BOXES, 5, np.uint8))])
    empty = BENCHMARK.dataset_truth(write(tmp_path / "empty", [sweep("a", 0, Boxes.empty())]), [])
    with pytest.raises(DataError, match="no box to score"):
        BENCHMARK.score(empty, BENCHMARK.from_detections(dataset, [], []))
