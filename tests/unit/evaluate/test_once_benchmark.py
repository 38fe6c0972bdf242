"""ONCE's benchmark on a converted dataset: boxes go back into the LiDAR's frame, and score what they should."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from spot_ray.convert.once import LIDAR, taxonomy
from spot_ray.convert.run import convert
from spot_ray.errors import DataError
from spot_ray.evaluate.benchmark import Benchmark
from spot_ray.evaluate.once import OnceBoxes
from spot_ray.evaluate.once_benchmark import OnceBenchmark
from spot_ray.evaluate.once_files import OncePredictions, OnceTruth
from spot_ray.schema.detections import Detections
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY, SourceClass, Taxonomy
from spot_ray.storage.dataset import Dataset, DatasetWriter, open_dataset

START_MS = 1_616_343_527_200
# In the LiDAR's frame (x left, y back): ahead facing forward, to the left, far behind.
CAR = [0.5, -12.0, -1.1, 4.5, 1.9, 1.6, -1.57]
CYCLIST = [5.0, 0.25, -1.0, 1.8, 0.6, 1.7, 0.3]
TRUCK = [1.0, 55.0, -0.4, 7.5, 2.5, 3.0, 2.9]
FRAMES = [
    {"names": ["Car", "Cyclist"], "boxes_3d": [CAR, CYCLIST]},
    {"names": ["Truck"], "boxes_3d": [TRUCK]},
    {"names": [], "boxes_3d": []},
    None,
]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    root = tmp_path / "once"
    folder = root / "data" / "000027"
    (folder / "lidar_roof").mkdir(parents=True)
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "val.txt").write_text("000027\n")
    rows = []
    for i, annos in enumerate(FRAMES):
        frame_id = str(START_MS + 500 * i)
        np.array([[0, -10, -1, 0.1]], np.float32).tofile(folder / "lidar_roof" / f"{frame_id}.bin")
        row = {"frame_id": frame_id, "pose": [0, 0, 0, 1, 0, 0, 0]}
        rows.append(row if annos is None else row | {"annos": annos})
    (folder / "000027.json").write_text(json.dumps({"frames": rows}))
    return root


@pytest.fixture
def dataset(release: Path, tmp_path: Path) -> Dataset:
    convert("once", source=str(release), uri=str(tmp_path / "out"), num_workers=1)
    return open_dataset(str(tmp_path / "out"))


def as_detections(dataset: Dataset, frame: int) -> Detections:
    boxes = dataset.pose_and_boxes(frame)[1]
    if boxes is None or not len(boxes):
        return Detections.empty()
    return Detections(boxes.boxes, np.full(len(boxes), 0.5, np.float32), (boxes.source_class + 1).astype(np.uint8))


def test_it_is_a_benchmark() -> None:
    official: Benchmark[OnceTruth, OncePredictions] = OnceBenchmark()
    assert official.name == "once"
    assert OnceBenchmark("corrected").name == "once-corrected"
    assert official.class_names == ("Car", "Bus", "Truck", "Pedestrian", "Cyclist")


def test_truth_of_the_dataset_is_that_of_the_release(release: Path, dataset: Dataset) -> None:
    benchmark = OnceBenchmark()
    official = benchmark.official_truth(str(release), split="val")
    converted = benchmark.dataset_truth(dataset, range(4))
    assert list(converted.frames) == list(official.frames) == [("000027", str(START_MS + 500 * i)) for i in range(2)]
    assert converted.unscored == official.unscored
    assert converted.superclasses == official.superclasses
    for key, one in official.frames.items():
        np.testing.assert_allclose(converted.frames[key].boxes, one.boxes, atol=1e-5)
        np.testing.assert_array_equal(converted.frames[key].classes, one.classes)


@pytest.mark.parametrize("variant", ["official", "corrected"])
def test_truth_submitted_scores_1_through_the_files(
    release: Path, dataset: Dataset, tmp_path: Path, variant: str
) -> None:
    benchmark = OnceBenchmark(variant)  # type: ignore[arg-type]
    found = benchmark.from_detections(dataset, range(4), [as_detections(dataset, i) for i in range(4)])
    benchmark.write(found, str(tmp_path / "result.json"))
    scores = benchmark.score(benchmark.official_truth(str(release)), benchmark.read(str(tmp_path / "result.json")))
    assert scores.figures == {
        "mAP": pytest.approx(2 / 3),
        "mAP/0-30m": pytest.approx(2 / 3),
        "mAP/50m-inf": pytest.approx(1 / 3),
        "AP/Vehicle": pytest.approx(1.0),
        "AP/Vehicle/0-30m": pytest.approx(1.0),
        "AP/Vehicle/50m-inf": pytest.approx(1.0),
        "AP/Cyclist": pytest.approx(1.0),
        "AP/Cyclist/0-30m": pytest.approx(1.0),
    }
    assert scores.headline in scores.figures
    assert scores.metric == benchmark.name
    assert "2 frames; 2 more without truth do not count" in scores.table
    lines = [line.split() for line in scores.table.splitlines()]
    assert ["Vehicle", "100.00", "100.00", "-", "100.00"] in lines
    assert ["mAP", "66.67", "66.67", "-", "33.33"] in lines
    assert ["true", "boxes", "3", "2", "0", "1"] in lines


def test_nothing_found_can_be_scored_before_predicting(release: Path, dataset: Dataset, tmp_path: Path) -> None:
    benchmark = OnceBenchmark()
    nothing = benchmark.from_detections(dataset, range(4), [Detections.empty()] * 4)
    for truth in (benchmark.dataset_truth(dataset, range(4)), benchmark.official_truth(str(release))):
        assert set(benchmark.score(truth, nothing).figures.values()) == {0.0}
    out = tmp_path / "new"
    for name in ("a.json", "b.pkl"):
        benchmark.check_place(str(out / name))
    assert list(out.iterdir()) == []
    (out / "a.json").mkdir()
    with pytest.raises(DataError, match="cannot write the file: is a directory"):
        benchmark.check_place(str(out / "a.json"))
    for name in ("c.zip", "c.pickle", "c", "c.JSON"):
        for refuse in (benchmark.check_place, lambda uri: benchmark.write(nothing, uri)):
            with pytest.raises(DataError, match="the name does not tell what to write") as caught:
                refuse(str(out / name))
            assert caught.value.where.endswith(name)
        assert not (out / name).exists()


def test_a_detection_leaves_in_the_lidars_frame(dataset: Dataset) -> None:
    # 20 m ahead and 2 m to the left, facing forward. The LiDAR's x is left, its y back: forward is yaw -90 degrees.
    box = np.array([[20, 2, 1, 4, 2, 1.5, 0]], np.float32)
    one = Detections(box, np.array([0.7], np.float32), np.array([4], np.uint8))
    found = OnceBenchmark().from_detections(dataset, [3], [one]).frames["000027", str(START_MS + 1500)]
    np.testing.assert_allclose(found.boxes, [[2, -20, 1 - LIDAR.height_m, 4, 2, 1.5, -np.pi / 2]], atol=1e-6)
    assert found.classes.tolist() == [3]
    np.testing.assert_allclose(found.scores, [0.7])


def test_a_submission_comes_back_to_the_ego_frames(dataset: Dataset, tmp_path: Path) -> None:
    frames = list(range(len(dataset)))
    detections = [as_detections(dataset, i) for i in frames]
    benchmark = OnceBenchmark()
    file, plain = tmp_path / "results.json", tmp_path / "plain.json"
    benchmark.write(benchmark.from_detections(dataset, frames, detections), str(file))
    # Others do not name the sequences.
    plain.write_text(json.dumps([{**frame, "sequence_id": None} for frame in json.loads(file.read_text())]))
    for uri in (file, plain):
        placed = benchmark.in_ego(dataset, frames[::-1], benchmark.read(str(uri)))
        assert sum(len(one.boxes) for one in placed) == 3
        for one, same in zip(placed, detections[::-1], strict=True):
            np.testing.assert_allclose(one.boxes[:, :6], same.boxes[:, :6], atol=1e-5)
            np.testing.assert_allclose(np.exp(1j * one.boxes[:, 6]), np.exp(1j * same.boxes[:, 6]), atol=1e-6)
            assert one.class_names == tuple(benchmark.class_names[c - 1] for c in same.classes)
    with pytest.raises(DataError, match="a frame is given twice"):
        benchmark.from_detections(dataset, [0, 0], detections[:1] * 2)
    some = benchmark.from_detections(dataset, frames[1:], detections[1:])
    with pytest.raises(DataError, match="1 of 4 frames have no predictions"):
        benchmark.in_ego(dataset, frames, some)


def test_a_frame_that_two_sequences_have_needs_its_sequence(tmp_path: Path) -> None:
    classes = Taxonomy("one", PAPER_TAXONOMY.classes, (SourceClass(1, "car", None, "Car"),), detection_classes=("Car",))
    with DatasetWriter(str(tmp_path / "a"), name="two", rig=(LIDAR,), taxonomy=classes) as writer:
        for sequence_id in "st":
            writer.add(Sweep(sequence_id, "000000", 0, np.ones((3, 3), np.float32)))
    found = OncePredictions({(None, "000000"): OnceBoxes(np.zeros((0, 7)), np.zeros(0, np.int64), np.zeros(0))})
    with pytest.raises(DataError, match="frame 000000 is in several sequences"):
        OnceBenchmark().in_ego(open_dataset(str(tmp_path / "a")), [0], found)


def synthetic(uri: str, classes: Taxonomy, source_class: int) -> Dataset:
    """Write one frame of a dataset whose LiDAR looks ahead."""
    with DatasetWriter(
        uri, name="city", rig=(dataclasses.replace(LIDAR, intensity_max=255.0),), taxonomy=classes
    ) as writer:
        boxes = Boxes(np.array([[9, 0, 1, 4, 2, 1.5, 0]], np.float32), np.array([source_class], np.uint16))
        writer.add(Sweep("s", "000000", 0, np.ones((3, 3), np.float32), boxes=boxes))
    return open_dataset(uri)


def test_classes_that_a_dataset_lacks_are_not_scored(tmp_path: Path) -> None:
    classes = Taxonomy(
        "two",
        PAPER_TAXONOMY.classes,
        (SourceClass(1, "van", None, "Car"), SourceClass(2, "rider", None, "Cyclist"), SourceClass(3, "pole", None)),
        detection_classes=("Cyclist", "Car"),
    )
    dataset = synthetic(str(tmp_path / "a"), classes, 1)
    benchmark = OnceBenchmark()
    truth = benchmark.dataset_truth(dataset, [0])
    assert truth.superclasses == ("Vehicle", "Cyclist")
    assert truth.frames["s", "000000"].classes.tolist() == [0]
    car = Detections(np.array([[9, 0, 1, 4, 2, 1.5, 0]], np.float32), np.ones(1, np.float32), np.array([2], np.uint8))
    scores = benchmark.score(truth, benchmark.from_detections(dataset, [0], [car]))
    assert scores.figures["mAP"] == pytest.approx(0.5)
    assert "Pedestrian" not in scores.table
    with pytest.raises(DataError, match="a detection has the class 3"):
        benchmark.from_detections(dataset, [0], [dataclasses.replace(car, classes=np.array([3], np.uint8))])
    # A pole is no class of the benchmark.
    with pytest.raises(DataError, match="none of 1 frames has a box"):
        benchmark.dataset_truth(synthetic(str(tmp_path / "b"), classes, 3), [0])


def test_a_dataset_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    classes = Taxonomy("one", PAPER_TAXONOMY.classes, (SourceClass(1, "car", None, "car"),), detection_classes=("car",))
    with pytest.raises(DataError, match="class 'car' is none of the benchmark's"):
        OnceBenchmark().dataset_truth(synthetic(str(tmp_path / "a"), classes, 1), [0])
    none = dataclasses.replace(taxonomy(), sources=(SourceClass(0, "Car", None),), detection_classes=())
    with pytest.raises(DataError, match="the dataset has no detection class"):
        OnceBenchmark().dataset_truth(synthetic(str(tmp_path / "b"), none, 0), [0])
