from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import ConfigError, DataError
from spot_ray.evaluate.benchmarks import find_benchmark
from spot_ray.finetune import picture, predict
from spot_ray.finetune.picture import draw_detected, true_boxes
from spot_ray.schema.detections import Detections
from spot_ray.schema.lidars import HDL_32E
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY, SemanticClass, SourceClass, Taxonomy
from spot_ray.storage.dataset import Dataset, DatasetWriter, open_dataset
from spot_ray.synthetic.run import synthesize
from spot_ray.view.detections import Scene

TAXONOMY = Taxonomy(
    "toy",
    (SemanticClass("vehicle", (0, 0, 255)), SemanticClass("tree", (0, 255, 0))),
    (
        SourceClass(3, "car", "vehicle", detection="Car"),
        SourceClass(4, "tree", "tree"),
        SourceClass(7, "lorry", "vehicle", detection="Truck"),
    ),
    detection_classes=("Truck", "Car"),
)
ROWS = np.array([[5, 1, 1, 4, 2, 1.5, 0], [9, 1, 3, 1, 1, 6, 0], [9, -4, 1, 8, 2.5, 3, 1]], np.float32)


@pytest.fixture
def data(tmp_path: Path) -> str:
    uri = str(tmp_path / "data")
    with DatasetWriter(uri, name="toy", rig=(HDL_32E,), taxonomy=TAXONOMY) as writer:
        for i in range(3):
            boxes = Boxes(ROWS, np.array([3, 4, 7], np.uint16)) if i < 2 else None
            writer.add(Sweep("log", str(i), i, np.array([[1, 2, 0]], np.float32), boxes=boxes))
    return uri


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Scene]:
    """Return the scenes of the last picture."""
    scenes: list[Scene] = []
    monkeypatch.setattr(picture, "draw_detections", lambda _, **given: scenes.extend(given["scenes"]))
    return scenes


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> str:
    """Stand in for a checkpoint that finds a car and, less surely, a truck in every frame."""
    found = Detections(ROWS[:2], np.array([0.8, 0.2], np.float32), np.array([2, 1], np.uint8))
    monkeypatch.setattr(predict, "load_detector", lambda _: "a detector")

    def everywhere(loaded: str, dataset: Dataset, frames: list[int]) -> Iterator[tuple[Sweep, Detections]]:
        assert loaded == "a detector"
        yield from ((dataset[i], found) for i in frames)

    monkeypatch.setattr(predict, "predict_boxes", everywhere)
    return "a checkpoint"


def test_a_picture_is_written_where_it_shall(data: str, tmp_path: Path) -> None:
    draw_detected(str(tmp_path / "new" / "a.png"), data=data, frames=["log/0", "log/1"])
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_true_boxes_are_those_that_the_benchmark_scores(data: str, drawn: list[Scene], tmp_path: Path) -> None:
    draw_detected(str(tmp_path / "a.png"), data=data, frames=["log/1"])
    (scene,) = drawn
    assert scene.truth is not None
    assert scene.truth.class_names == ["Car", "Truck"]
    np.testing.assert_array_equal(scene.truth.boxes, ROWS[[0, 2]])
    assert scene.prediction is None
    assert scene.title == "toy log/1"


def test_without_a_benchmark_boxes_have_the_classes_of_the_dataset() -> None:
    boxes = Boxes(ROWS, np.array([2, 65535, 5], np.uint16))
    assert true_boxes(boxes, PAPER_TAXONOMY).class_names == ["vehicle", "cyclist"]


def test_predictions_are_named_and_those_below_the_least_score_left_out(
    data: str, drawn: list[Scene], detector: str, tmp_path: Path
) -> None:
    # The last frame is not annotated: what is found is drawn nevertheless.
    draw_detected(str(tmp_path / "a.png"), data=data, frames=["log/0", "log/2"], checkpoint=detector)
    draw_detected(str(tmp_path / "a.png"), data=data, frames=["log/0"], checkpoint=detector, min_score=0.2)
    predictions = [scene.prediction for scene in drawn]
    assert [[] if p is None else p.class_names for p in predictions] == [["Car"], ["Car"], ["Car", "Truck"]]
    assert [scene.truth is None for scene in drawn] == [False, True, False]
    assert predictions[2] is not None
    np.testing.assert_array_equal(predictions[2].scores, np.array([0.8, 0.2], np.float32))


def test_predictions_of_a_submission_are_drawn(drawn: list[Scene], tmp_path: Path) -> None:
    city, file = str(tmp_path / "city"), str(tmp_path / "results.bin")
    synthesize(city, preset="waymo", num_sequences=1, num_frames=2)
    dataset, benchmark = open_dataset(city), find_benchmark("waymo")
    boxes = dataset[1].boxes
    assert boxes is not None
    found = Detections(
        boxes.boxes[:2],
        np.array([0.9, 0.2], np.float32),
        dataset.info.taxonomy.benchmark_lookup("detection")[boxes.source_class[:2]],
    )
    benchmark.write(benchmark.from_detections(dataset, [0, 1], [Detections.empty(), found]), file)
    frames = [f"{sequence}/{frame}" for sequence, frame in ids(dataset)]
    draw_detected(str(tmp_path / "a.png"), data=city, frames=frames[::-1], predictions=file, metric="waymo")
    first, second = (scene.prediction for scene in drawn)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.boxes, boxes.boxes[:1].astype(np.float64))
    assert len(second.boxes) == 0
    for wrong in ({"metric": "waymo"}, {"predictions": file}, {"predictions": file, "metric": "w", "checkpoint": "c"}):
        with pytest.raises(ConfigError):
            draw_detected(str(tmp_path / "b.png"), data=city, frames=frames, **wrong)


def ids(dataset: Dataset) -> Iterator[tuple[str, str]]:
    return zip(*(dataset.manifest.column(name).to_pylist() for name in ("sequence_id", "frame_id")), strict=True)


def test_what_cannot_be_drawn_is_an_error(data: str, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    with pytest.raises(DataError, match="there are no boxes to draw"):
        draw_detected(str(out), data=data, frames=["log/2"])
    with pytest.raises(DataError, match="no frame '9'"):
        draw_detected(str(out), data=data, frames=["log/9"])
    for number in (0, 10):
        with pytest.raises(ConfigError, match=f"{number} frames in one picture"):
            draw_detected(str(out), data=data, frames=["log/0"] * number)
    assert not out.exists()
