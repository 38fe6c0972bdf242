"""`spot-ray score` on files: the same figures from official truth and from the dataset made of it; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spot_ray.cli import main
from spot_ray.convert.once import LIDAR, taxonomy
from spot_ray.convert.run import convert
from spot_ray.errors import DataError
from spot_ray.evaluate.score_files import annotated_frames, is_annotated, key_frames
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.storage.dataset import Dataset, DatasetWriter, open_dataset
from spot_ray.storage.subset import write_subset

START_MS = 1_616_343_527_200
IDS = [str(START_MS + 500 * i) for i in range(4)]
BOXES = [[[10.0 * k + 10, i, -1, 4.5, 1.9, 1.6, 0.3] for k in range(3)] for i in range(3)]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Three annotated frames of three cars each in val, and one of test without annotations."""
    root = tmp_path / "once"
    (root / "ImageSets").mkdir(parents=True)
    for split, sequence_id, numbers in (("val", "000027", range(3)), ("test", "000030", range(3, 4))):
        folder = root / "data" / sequence_id
        (folder / "lidar_roof").mkdir(parents=True)
        (root / "ImageSets" / f"{split}.txt").write_text(sequence_id)
        rows: list[dict[str, Any]] = []
        for i in numbers:
            np.array([[0, -10, -1, 0.1]], np.float32).tofile(folder / "lidar_roof" / f"{IDS[i]}.bin")
            rows.append({"frame_id": IDS[i], "pose": [0, 0, 0, 1, 0, 0, 0]})
            if split == "val":
                rows[-1]["annos"] = {"names": ["Car"] * 3, "boxes_3d": BOXES[i]}
        (folder / f"{sequence_id}.json").write_text(json.dumps({"frames": rows}))
    return root


@pytest.fixture
def converted(release: Path, tmp_path: Path) -> str:
    uri = str(tmp_path / "converted")
    convert("once", source=str(release), uri=uri, num_workers=1)
    return uri


def submission(path: Path, frames: range = range(3), **changes: Any) -> str:
    """Write two of the three cars of each frame, and one that is not there."""
    rows: list[dict[str, Any]] = []
    for i in frames:
        boxes = [*BOXES[i][:2], [-30.0, *BOXES[i][2][1:]]]
        rows.append({"frame_id": IDS[i], "name": ["Car"] * 3, "score": [0.9, 0.8, 0.7], "boxes_3d": boxes})
    rows[0] |= changes
    path.write_text(json.dumps(rows))
    return str(path)


def score(predictions: str, truth: Path | str, *more: str) -> int:
    return main(["score", "--metric", "once", "--predictions", predictions, "--ground-truth", str(truth), *more])


def test_truth_may_be_the_release_or_the_dataset_made_of_it(
    release: Path, converted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = submission(tmp_path / "result.json")
    figures = []
    for truth in (release, converted):
        assert score(predictions, truth, "--split", "val", "--json", str(tmp_path / "scores.json")) == 0
        content = json.loads((tmp_path / "scores.json").read_text())
        assert (content["metric"], content["headline"]) == ("once", "mAP")
        figures.append(content["figures"])
        told = capsys.readouterr()
        assert "Vehicle" in told.out
        assert f"reading the predictions, {predictions}" in told.err
    # Six of nine cars are found before the three that are not there. As many as 33 of the 50 positions of recall are
    # nearest to at most 6/9.
    assert figures[0]["AP/Vehicle"] == pytest.approx(33 / 50)
    assert figures[0] == pytest.approx(figures[1])


def test_a_subset_names_frames_of_a_dataset(
    release: Path, converted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "subset.json")
    write_subset(file, Subset("frame", (f"000027/{IDS[1]}",)))
    assert score(submission(tmp_path / "one.json", range(1, 2)), converted, "--subset", file) == 0
    assert "1 frames" in capsys.readouterr().out
    assert score(submission(tmp_path / "one.json", range(1, 2)), release, "--subset", file) == 2
    assert "a subset names frames of a converted dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "frames", "message"),
    [
        ({}, range(2), f"1 of 3 frames have no predictions, the first is 000027/{IDS[2]}"),
        ({"frame_id": "1"}, range(3), "1 of 3 frames of the predictions are none of the truth's, the first is 1"),
        ({"name": ["Car", "Tram", "Car"]}, range(3), "the class of box 1 is 'Tram'"),
        ({"boxes_3d": [[float("nan")] * 7] * 3}, range(3), "box 0 is [nan, nan"),
        ({"boxes_3d": [[1, 2, 3, -4, 5, 6, 0]] * 3}, range(3), "box 0 is [1, 2, 3, -4"),
        ({"score": [0.5]}, range(3), "3 name, 1 score, 3 boxes_3d"),
    ],
)
def test_what_does_not_fit_is_told_without_a_traceback(
    release: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    frames: range,
    message: str,
) -> None:
    assert score(submission(tmp_path / "result.json", frames, **changes), release, "--split", "val") == 2
    told = capsys.readouterr().err
    assert message in told
    assert "result.json" in told
    assert "expected:" in told
    assert "Traceback" not in told


def test_what_is_not_there_is_told(
    release: Path, converted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = submission(tmp_path / "result.json")
    for arguments, message in (
        ((str(tmp_path / "none.json"), release), "no such file"),
        ((predictions, release, "--split", "vall"), "did you mean 'val'?"),
        ((predictions, converted, "--split", "vall"), "did you mean 'val'?"),
        ((predictions, release, "--split", "test"), "no frame of the split 'test' has a box"),
        ((predictions, converted, "--split", "test"), "none of 1 key frames is annotated"),
        ((predictions, predictions), "this is no ONCE folder"),
    ):
        assert score(*arguments) == 2  # type: ignore[arg-type]
        assert message in capsys.readouterr().err


def city(uri: str) -> Dataset:
    """Write a train sequence with one frame between key frames and one that is not annotated, and a test sequence."""
    with DatasetWriter(uri, name="city", rig=(LIDAR,), taxonomy=taxonomy()) as writer:
        for sequence_id, split, kinds in (("a", "train", "ksn"), ("b", "test", "nn")):
            for i, kind in enumerate(kinds):
                boxes = Boxes(np.zeros((0, 7), np.float32), np.zeros(0, np.uint16)) if kind != "n" else None
                writer.add(
                    Sweep(
                        sequence_id,
                        str(i),
                        i,
                        np.ones((1, 3), np.float32),
                        intensity=np.ones(1, np.float32),
                        boxes=boxes,
                        keyframe=kind != "s",
                        split=split,
                    )
                )
    return open_dataset(uri)


def test_annotated_key_frames_are_scored(tmp_path: Path) -> None:
    dataset = city(str(tmp_path / "city"))
    assert key_frames(dataset).tolist() == [0, 2, 3, 4]
    assert key_frames(dataset, split="test").tolist() == [3, 4]
    assert is_annotated(dataset, key_frames(dataset)).tolist() == [True, False, False, False]
    assert annotated_frames(dataset).tolist() == [0]
    assert annotated_frames(dataset, subset=Subset("sequence", ("a",)), split="train").tolist() == [0]
    with pytest.raises(DataError, match="none of 2 key frames is annotated"):
        annotated_frames(dataset, split="test")
    with pytest.raises(DataError, match="there is no key frame"):
        key_frames(dataset, split="test", subset=Subset("sequence", ("a",)))
