"""`spot-ray score --checkpoint` with a detector of one answer: which frames, against which truth, what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spot_ray.cli import main
from spot_ray.convert.once import LIDAR, taxonomy
from spot_ray.errors import CheckpointError, ConfigError, DataError
from spot_ray.finetune import score
from spot_ray.finetune.score import score_detector
from spot_ray.schema.detections import Detections
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.storage.dataset import Dataset, DatasetWriter

CAR = np.array([[9, 0, 1, 4, 2, 1.5, 0]], np.float32)
ID = "16163435272{:02d}".format
OFFICIAL = [0.0, -9.0, 1.0 - LIDAR.height_m, 4.0, 2.0, 1.5, -np.pi / 2]
"""The car in the LiDAR's frame, whose x is to the left and y to the back."""


@pytest.fixture
def city(tmp_path: Path) -> str:
    """Three frames of val, the last without annotations, and two of test."""
    uri = str(tmp_path / "city")
    with DatasetWriter(uri, name="city", rig=(LIDAR,), taxonomy=taxonomy()) as writer:
        for sequence_id, split, annotated in (("a", "val", (True, True, False)), ("b", "test", (False, False))):
            for i, has_boxes in enumerate(annotated):
                writer.add(
                    Sweep(
                        sequence_id,
                        ID(i + 10 * (split == "test")),
                        i,
                        np.ones((1, 3), np.float32),
                        intensity=np.ones(1, np.float32),
                        boxes=Boxes(CAR, np.zeros(1, np.uint16)) if has_boxes else None,
                        split=split,
                    )
                )
    return uri


class Detector:
    """Finds the car in every frame; keeps which frames it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.device = ""
        self.class_names = ("Car",)

    def load(self, uri: str, device: Any) -> Any:
        if uri != "run":
            raise CheckpointError("no checkpoint is here", where=uri)
        self.device = str(device)
        description = SimpleNamespace(class_names=self.class_names, features=("x", "y", "z", "intensity"))
        return SimpleNamespace(config=SimpleNamespace(benchmark="once"), description=description, uri=uri)

    def predict(self, _: Any, dataset: Dataset, frames: Sequence[int]) -> Iterator[tuple[Sweep, Detections]]:
        for i in frames:
            self.asked.append(i)
            yield dataset[i], Detections(CAR, np.array([0.8], np.float32), np.array([1], np.uint8))


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Detector:
    one = Detector()
    monkeypatch.setattr(score, "load_detector", one.load)
    monkeypatch.setattr(score, "predict_boxes", one.predict)
    return one


def release(root: Path, sequence_id: str, numbers: Sequence[int]) -> str:
    """Write an official folder in which every frame is annotated with the car."""
    (root / "ImageSets").mkdir(parents=True)
    (root / "ImageSets" / "test.txt").write_text(sequence_id)
    (root / "data" / sequence_id).mkdir(parents=True)
    annos = {"names": ["Car"], "boxes_3d": [OFFICIAL]}
    frames = [{"frame_id": ID(i), "annos": annos} for i in numbers]
    (root / "data" / sequence_id / f"{sequence_id}.json").write_text(json.dumps({"frames": frames}))
    return str(root)


def test_annotated_frames_are_predicted_and_scored_by_the_recipes_benchmark(city: str, detector: Detector) -> None:
    done: list[tuple[int, int]] = []
    result = score_detector("run", data=city, split="val", on_frame=lambda n, of: done.append((n, of)))
    assert (result.examination.benchmark.name, result.examination.frames) == ("once", (0, 1))
    assert result.scores is not None
    assert result.scores.figures["AP/Vehicle"] == 1.0
    assert detector.asked == [0, 1]
    assert done == [(1, 2), (2, 2)]
    other = score_detector("run", data=city, metric="once-corrected", subset=Subset("frame", (f"a/{ID(1)}",)))
    assert (other.examination.benchmark.name, other.examination.frames) == ("once-corrected", (1,))


def test_a_test_split_is_written_and_not_scored(
    city: str, detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "result.json"
    arguments = ["score", "--checkpoint", "run", "--data", city, "--split", "test", "--write", str(out)]
    assert main([*arguments, "--json", str(tmp_path / "scores.json")]) == 0
    assert detector.asked == [3, 4]
    assert [row["frame_id"] for row in json.loads(out.read_text())] == [ID(10), ID(11)]
    told = capsys.readouterr().out
    assert f"wrote what was found in 2 frames to {out}" in told
    assert "nothing is scored: no frame is annotated" in told
    assert not (tmp_path / "scores.json").exists()
    with pytest.raises(DataError, match="none of 2 key frames is annotated") as caught:
        score_detector("run", data=city, split="test")
    assert "--write" in caught.value.remedy


def test_what_is_written_scores_the_same_as_a_submission(
    city: str, detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scores = str(tmp_path / "result.json"), [tmp_path / "a.json", tmp_path / "b.json"]
    arguments = ["score", "--checkpoint", "run", "--data", city, "--split", "val", "--device", "cpu"]
    assert main([*arguments, "--write", out, "--json", str(scores[0])]) == 0
    assert detector.device == "cpu"
    assert "Vehicle" in capsys.readouterr().out
    submitted = ["score", "--metric", "once", "--predictions", out, "--ground-truth", city, "--split", "val"]
    assert main([*submitted, "--json", str(scores[1])]) == 0
    assert json.loads(scores[0].read_text()) == json.loads(scores[1].read_text())


def test_truth_of_the_benchmarks_own_counts_for_all_key_frames(city: str, detector: Detector, tmp_path: Path) -> None:
    official = release(tmp_path / "once", "b", (10, 11))
    result = score_detector("run", data=city, split="test", ground_truth=official)
    assert result.scores is not None
    assert result.scores.figures["AP/Vehicle"] == 1.0
    assert detector.asked == [3, 4]


def test_what_cannot_be_is_refused_before_anything_is_predicted(city: str, detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint is here"):
        score_detector("none", data=city)
    with pytest.raises(ConfigError, match="no benchmark 'onse'"):
        score_detector("run", data=city, metric="onse")
    with pytest.raises(ConfigError, match="the benchmark's own, or that of the dataset"):
        score_detector("run", data=city, ground_truth=city)
    with pytest.raises(DataError, match="no such folder"):
        score_detector("run", data=city, ground_truth=str(tmp_path / "none"))
    with pytest.raises(DataError, match="no sequence is of the split 'vall'"):
        score_detector("run", data=city, split="vall")
    with pytest.raises(ConfigError, match="cannot compute on 'gpu'"):
        score_detector("run", data=city, device="gpu")
    with pytest.raises(ConfigError, match="subset names frames of a converted dataset"):
        score_detector("run", data=city, subset=Subset("sequence", ("a",)), ground_truth=str(tmp_path))
    with pytest.raises(DataError, match="detection class 'Bus' is none of the benchmark's"):
        score_detector("run", data=city, metric="kitti")
    with pytest.raises(DataError, match="json"):
        score_detector("run", data=city, split="test", write=str(tmp_path / "result.zip"))
    with pytest.raises(DataError, match="cannot make the folder"):
        score_detector("run", data=city, split="test", write=f"{__file__}/x.json")
    official = release(tmp_path / "once", "b", (10,))
    with pytest.raises(DataError, match="are none of the truth's"):
        score_detector("run", data=city, split="test", ground_truth=official)
    detector.class_names = ("Lorry",)
    with pytest.raises(ConfigError, match="the detector finds 'Lorry'"):
        score_detector("run", data=city, split="val")
    assert detector.asked == []
