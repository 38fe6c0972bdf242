"""Datasets as truth against the official tables, and detections in ego frames as submissions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spot_ray.convert.nuscenes import open_source
from spot_ray.errors import DataError
from spot_ray.evaluate.benchmarks import find_benchmark
from spot_ray.evaluate.nuscenes import ATTRIBUTES, yaws
from spot_ray.evaluate.nuscenes_benchmark import NuscenesBenchmark
from spot_ray.evaluate.nuscenes_files import NuscenesPredictions
from spot_ray.evaluate.nuscenes_truth import NuscenesTruth
from spot_ray.geometry import se3
from spot_ray.schema.detections import Detections
from spot_ray.schema.lidars import HDL_32E
from spot_ray.schema.nuscenes import DETECTION_CLASSES
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_CLASSES, SourceClass, Taxonomy
from spot_ray.storage.dataset import Dataset, DatasetWriter, open_dataset

BENCHMARK = NuscenesBenchmark()
REAL = Path(__file__).resolve().parents[4] / "shared/data/nuscenes"
CAR, PEDESTRIAN, BICYCLE = 10, 11, 12
TAXONOMY = Taxonomy(
    "four",
    PAPER_CLASSES,
    (
        SourceClass(CAR, "car", "vehicle", "car"),
        SourceClass(PEDESTRIAN, "pedestrian", "pedestrian", "pedestrian"),
        SourceClass(BICYCLE, "bicycle", "bicycle", "bicycle"),
        SourceClass(13, "rack", "general object"),
    ),
    detection_classes=("bicycle", "car", "pedestrian"),
)


def convert(root: Path, target: Path) -> Dataset:
    source = open_source(str(root))
    with DatasetWriter.of(str(target), source.info()) as writer:
        for sequence in source.sequences():
            for sweep in source.read(sequence):
                assert isinstance(sweep, Sweep)
                writer.add(sweep)
    return open_dataset(str(target))


def made_up(target: Path, *, taxonomy: Taxonomy = TAXONOMY, **changes: Any) -> Dataset:
    """Return a dataset of two sequences of two frames of the same ids, with three boxes each and no attributes."""
    with DatasetWriter(str(target), name="four", rig=[HDL_32E], taxonomy=taxonomy) as writer:
        for sequence in range(2):
            for frame in range(2):
                pose = se3.from_yaw(0.5 * np.pi * sequence, (1000.0 + 10 * frame, 500.0, 0.0))
                boxes = Boxes(
                    np.array(
                        [[20, 0, 1, 4, 2, 1.5, 0.3], [0, 10, 1, 1, 1, 1.8, 0], [-9, 0, 1, 2, 1, 1.5, 3]], np.float32
                    ),
                    np.array([CAR, PEDESTRIAN, BICYCLE], np.uint16),
                    velocity=np.array([[5, 0, 0], [0.1, 0, 0], [0, 1, 0]], np.float32),
                    num_lidar_points=np.array([9, 4, 1], np.int32),
                )
                sweep = Sweep(
                    sequence_id=f"city-{sequence}",
                    frame_id=f"{frame:06d}",
                    timestamp_ns=frame + 1,
                    xyz=np.ones((5, 3), np.float32),
                    world_SE3_ego=pose,
                    boxes=boxes,
                )
                writer.add(dataclasses.replace(sweep, **changes))
    return open_dataset(str(target))


def found_in(dataset: Dataset, frames: list[int]) -> list[Detections]:
    """Return the truth of frames as a detector would tell it."""
    lookup = dataset.info.taxonomy.benchmark_lookup("detection")
    result = []
    for i in frames:
        boxes = dataset.pose_and_boxes(i)[1]
        assert boxes is not None
        assert boxes.velocity is not None
        classes = lookup[boxes.source_class]
        keep = classes != 255
        scores = np.linspace(0.9, 0.5, int(keep.sum()), dtype=np.float32)
        velocity = np.nan_to_num(boxes.velocity[keep, :2])
        result.append(Detections(boxes.boxes[keep], scores, classes[keep], velocity))
    return result


def test_it_is_found_by_its_name() -> None:
    assert isinstance(find_benchmark("nuscenes"), NuscenesBenchmark)
    assert BENCHMARK.class_names == DETECTION_CLASSES


def compare(a: NuscenesTruth, b: NuscenesTruth, *, velocity: float) -> None:
    """Check that two truths agree but for the rounding of a dataset, whichever order they are in."""
    assert set(a.samples) == set(b.samples)
    np.testing.assert_allclose(a.ego_xy[[a.samples.index(token) for token in b.samples]], b.ego_xy, atol=1e-9)
    assert len(a.racks.centre) == len(b.racks.centre)

    def order(truth: NuscenesTruth) -> Any:
        place = np.array([b.samples.index(token) for token in truth.samples])[truth.boxes.sample]
        return np.lexsort((*truth.boxes.centre.round(2).T, truth.boxes.label, place))

    one, two = a.boxes.take(order(a)), b.boxes.take(order(b))
    for name in ("label", "attribute", "num_points"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_allclose(one.centre, two.centre, atol=1e-4)
    np.testing.assert_allclose(one.size_wlh, two.size_wlh, atol=1e-5)
    np.testing.assert_allclose(np.sin(yaws(one.rotation) - yaws(two.rotation)), 0, atol=1e-6)
    np.testing.assert_allclose(one.velocity, two.velocity, atol=velocity)
    assert a.class_names == b.class_names
    assert a.error_names == b.error_names


def test_a_converted_log_has_the_truth_of_its_tables(nuscenes_folder: Any, tmp_path: Path) -> None:
    dataset = convert(nuscenes_folder.root, tmp_path / "dataset")
    truth = BENCHMARK.dataset_truth(dataset, range(len(dataset)))
    compare(truth, BENCHMARK.official_truth(str(nuscenes_folder.root)), velocity=1e-5)
    assert truth.samples[:2] == ("sample-0-0", "sample-0-1")
    assert len(truth.racks.centre) == 6


@pytest.mark.skipif(not REAL.exists(), reason="the real keyframes are not in ../shared/data/nuscenes")
def test_the_real_frames_have_the_truth_of_their_tables(tmp_path: Path) -> None:
    dataset = convert(REAL, tmp_path / "dataset")
    truth, official = BENCHMARK.dataset_truth(dataset, range(11)), BENCHMARK.official_truth(str(REAL), split="mini_val")
    compare(truth, official, velocity=1e-5)
    predictions = BENCHMARK.from_detections(dataset, range(11), found_in(dataset, list(range(11))))
    scores, officially = (BENCHMARK.score(one, predictions) for one in (truth, official))
    assert scores.figures == pytest.approx(officially.figures, abs=1e-5)
    assert officially.figures["AP/car"] > 0.9
    assert officially.figures["mATE"] < 0.31


def test_detections_come_to_the_global_frame(tmp_path: Path) -> None:
    dataset = made_up(tmp_path / "dataset")
    detections = Detections(
        np.array([[20, 1, 1, 4, 2, 1.5, 0.3]], np.float32),
        np.array([0.75], np.float32),
        np.array([2], np.uint8),
        np.array([[3, 0]], np.float32),
    )
    # The second sequence heads along global y, from (1000, 500).
    found = BENCHMARK.from_detections(dataset, [2], [detections])
    assert found.samples == ("city-1/000000",)
    assert DETECTION_CLASSES[found.boxes.label[0]] == "car"
    np.testing.assert_allclose(found.boxes.centre, [[999, 520, 1]], atol=1e-5)
    np.testing.assert_allclose(found.boxes.size_wlh, [[2, 4, 1.5]])
    np.testing.assert_allclose(yaws(found.boxes.rotation), 0.5 * np.pi + 0.3, atol=1e-6)
    np.testing.assert_allclose(found.boxes.rotation[0, 0], np.cos(0.25 * np.pi + 0.15), atol=1e-6)
    np.testing.assert_allclose(found.boxes.velocity, [[0, 3]], atol=1e-6)
    assert found.boxes.num_points.tolist() == [-1]
    assert found.scores.tolist() == [0.75]


def test_a_submission_comes_back_to_the_ego_frames(nuscenes_folder: Any, tmp_path: Path) -> None:
    dataset = convert(nuscenes_folder.root, tmp_path / "dataset")
    frames = [i for i in range(len(dataset)) if dataset.manifest.column("keyframe")[i].as_py()]
    detections = found_in(dataset, frames)
    file = str(tmp_path / "results.json")
    BENCHMARK.write(BENCHMARK.from_detections(dataset, frames, detections), file)
    predictions = BENCHMARK.read(file)
    assert sum(map(len, detections)) > 3
    for one, same in zip(BENCHMARK.in_ego(dataset, frames[::-1], predictions), detections[::-1], strict=True):
        np.testing.assert_allclose(one.boxes[:, :6], same.boxes[:, :6], atol=1e-5)
        np.testing.assert_allclose(np.exp(1j * one.boxes[:, 6]), np.exp(1j * same.boxes[:, 6]), atol=1e-6)
        np.testing.assert_allclose(one.scores, same.scores, atol=1e-7)
        assert one.class_names == tuple(dataset.info.taxonomy.detection_classes[c - 1] for c in same.classes)
    with pytest.raises(DataError, match="1 of 1 frames have no predictions"):
        BENCHMARK.in_ego(dataset, frames[:1], BENCHMARK.from_detections(dataset, frames[1:], detections[1:]))


def test_attributes_follow_from_class_and_speed(nuscenes_folder: Any, tmp_path: Path) -> None:
    dataset = convert(nuscenes_folder.root, tmp_path / "dataset")
    count = len(DETECTION_CLASSES)
    boxes = np.tile(np.array([[20, 1, 1, 4, 2, 1.5, 0.3]], np.float32), (2 * count, 1))
    classes = np.tile(np.arange(1, count + 1, dtype=np.uint8), 2)
    velocity = np.zeros((2 * count, 2), np.float32)
    velocity[:count] = 0.15
    found = BENCHMARK.from_detections(
        dataset, [0], [Detections(boxes, np.ones(2 * count, np.float32), classes, velocity)]
    )
    names = ["" if i < 0 else ATTRIBUTES[i].partition(".")[2] for i in found.boxes.attribute]
    assert names[:count] == ["moving"] * 6 + ["with_rider"] * 2 + [""] * 2
    assert (
        names[count:] == ["parked"] * 2 + ["stopped"] + ["parked"] * 2 + ["standing"] + ["without_rider"] * 2 + [""] * 2
    )
    unknown = BENCHMARK.from_detections(dataset, [0], [Detections(boxes[:1], np.ones(1, np.float32), classes[:1])])
    assert np.isnan(unknown.boxes.velocity).all()
    assert ATTRIBUTES[unknown.boxes.attribute[0]] == "vehicle.parked"


def test_of_more_than_500_boxes_the_best_are_kept(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random(700, dtype=np.float32)
    boxes = np.tile(np.array([[20, 1, 1, 4, 2, 1.5, 0.3]], np.float32), (700, 1))
    dataset = made_up(tmp_path / "dataset")
    many = Detections(boxes, scores, np.ones(700, np.uint8))
    found = BENCHMARK.from_detections(dataset, [0, 1], [many, Detections.empty()])
    assert found.scores.tolist() == sorted(scores.tolist(), reverse=True)[:500]
    note = "200 boxes of the lowest scores were dropped in 1 frames of more than 500"
    assert note in BENCHMARK.score(BENCHMARK.dataset_truth(dataset, [0, 1]), found).table


def test_a_dataset_with_some_of_the_classes_is_scored_over_them(tmp_path: Path) -> None:
    dataset = made_up(tmp_path / "dataset")
    truth = BENCHMARK.dataset_truth(dataset, range(4))
    assert truth.samples == ("city-0/000000", "city-0/000001", "city-1/000000", "city-1/000001")
    assert truth.class_names == ("car", "pedestrian", "bicycle")
    assert truth.error_names == ("ATE", "ASE", "AOE", "AVE")
    assert truth.boxes.num_points.tolist() == [9, 4, 1] * 4
    predictions = BENCHMARK.from_detections(dataset, range(4), found_in(dataset, [0, 1, 2, 3]))
    scores = BENCHMARK.score(truth, predictions)
    assert scores.headline == "NDS"
    assert scores.figures["NDS"] == pytest.approx(1)
    assert "mAAE" not in scores.figures
    assert "not in the NDS, as there is no truth for it: mAAE" in scores.table
    assert "means over 3 of the benchmark's 10 classes" in scores.table
    assert "no truth" not in scores.table.replace("there is no truth", "")
    pedestrians = truth.boxes.label == DETECTION_CLASSES.index("pedestrian")
    fewer = BENCHMARK.score(dataclasses.replace(truth, boxes=truth.boxes.take(~pedestrians)), predictions)
    assert fewer.figures["mAP"] == pytest.approx(2 / 3)
    assert "no truth that counts: pedestrian; AP 0 and errors 1" in fewer.table
    some = dataclasses.replace(predictions, boxes=predictions.boxes.take(predictions.boxes.label != 0))
    some = dataclasses.replace(some, scores=predictions.scores[predictions.boxes.label != 0])
    # A third of the mAP, and of each of four errors: 1 for the cars.
    assert BENCHMARK.score(truth, some).figures["NDS"] == pytest.approx(2 / 3)


def test_a_submission_survives_its_file(tmp_path: Path) -> None:
    dataset = made_up(tmp_path / "dataset")
    predictions = BENCHMARK.from_detections(dataset, range(4), found_in(dataset, [0, 1, 2, 3]))
    BENCHMARK.write(predictions, str(tmp_path / "results.json"))
    again = BENCHMARK.read(str(tmp_path / "results.json"))
    assert again.samples == predictions.samples
    for name in vars(predictions.boxes):
        np.testing.assert_array_equal(getattr(again.boxes, name), getattr(predictions.boxes, name))


def test_nothing_found_can_be_scored_before_predicting(tmp_path: Path) -> None:
    dataset = made_up(tmp_path / "dataset")
    nothing = BENCHMARK.from_detections(dataset, range(4), [Detections.empty()] * 4)
    file = str(tmp_path / "new" / "results.json")
    BENCHMARK.check_place(file)
    BENCHMARK.write(nothing, file)
    for predictions in (nothing, BENCHMARK.read(file)):
        figures = BENCHMARK.score(BENCHMARK.dataset_truth(dataset, range(4)), predictions).figures
        assert (figures["NDS"], figures["mAP"], figures["mATE"]) == (0, 0, 1)
    with pytest.raises(DataError, match="cannot write the file: is a directory"):
        BENCHMARK.check_place(str(tmp_path))


def test_frames_of_the_predictions_have_to_be_those_of_the_truth(tmp_path: Path) -> None:
    dataset = made_up(tmp_path / "dataset")
    truth = BENCHMARK.dataset_truth(dataset, [0, 1])

    def predictions(*samples: str) -> NuscenesPredictions:
        none = BENCHMARK.from_detections(dataset, [0], [Detections.empty()])
        return dataclasses.replace(none, samples=samples)

    assert BENCHMARK.score(truth, predictions("city-0/000001", "city-0/000000")).figures["mAP"] == 0
    with pytest.raises(DataError, match="1 of 2 frames have no predictions, the first is city-0/000001"):
        BENCHMARK.score(truth, predictions("city-0/000000"))
    with pytest.raises(DataError, match=r"2 of 4 frames of the predictions .* the first is city-1/000000"):
        BENCHMARK.score(truth, predictions("city-0/000000", "city-1/000000", "city-0/000001", "city-7"))


def test_frames_that_cannot_be_scored_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="city-0/000001 is no keyframe"):
        BENCHMARK.dataset_truth(made_up(tmp_path / "a", keyframe=False), [1])
    with pytest.raises(DataError, match="not annotated"):
        BENCHMARK.dataset_truth(made_up(tmp_path / "b", boxes=None), [0])
    posed = made_up(tmp_path / "c", world_SE3_ego=None)
    with pytest.raises(DataError, match="has no pose"):
        BENCHMARK.dataset_truth(posed, [0])
    with pytest.raises(DataError, match="has no pose"):
        BENCHMARK.from_detections(posed, [0], [Detections.empty()])
    sources = (SourceClass(CAR, "van", "vehicle", "van"), *TAXONOMY.sources[1:])
    vans = dataclasses.replace(TAXONOMY, sources=sources, detection_classes=("bicycle", "van", "pedestrian"))
    with pytest.raises(DataError, match="the dataset's detection class 'van'"):
        BENCHMARK.dataset_truth(made_up(tmp_path / "d", taxonomy=vans), [0])
    dataset = made_up(tmp_path / "e")
    with pytest.raises(DataError, match="given twice"):
        BENCHMARK.dataset_truth(dataset, [0, 0])
    one = np.array([[20, 1, 1, 4, 2, 1.5, 0.3]], np.float32)
    with pytest.raises(DataError, match=r"a detection has the class 4[\s\S]*1 to 3: bicycle, car, pedestrian"):
        BENCHMARK.from_detections(dataset, [0], [Detections(one, np.ones(1, np.float32), np.array([4], np.uint8))])


def test_unknown_attributes_of_a_dataset_are_refused(tmp_path: Path) -> None:
    boxes = Boxes(np.ones((1, 7), np.float32), np.array([CAR], np.uint16), attribute=["flying"])
    with pytest.raises(DataError, match="the attribute 'flying'"):
        BENCHMARK.dataset_truth(made_up(tmp_path / "dataset", boxes=boxes), [0])
