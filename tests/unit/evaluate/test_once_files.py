"""ONCE's submissions and annotations: what is written is read again, and everything broken is named."""

from __future__ import annotations

import json
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.evaluate.once import OnceBoxes
from spot_ray.evaluate.once_files import (
    OncePredictions,
    OnceTruth,
    match_frames,
    read_predictions,
    read_truth,
    write_predictions,
)

START_MS = 1_616_343_527_200
BOX = [1.0, -12.5, -0.9, 4.5, 1.9, 1.6, -1.5]


def frame_id(i: int) -> str:
    return str(START_MS + 500 * i)


def found(*names: int) -> OnceBoxes:
    count = len(names)
    rows = np.array([BOX] * count, np.float64).reshape(-1, 7) + np.arange(count)[:, None] / 3
    return OnceBoxes(rows, np.array(names, np.int64), np.linspace(0.1, 0.9, count))


def entry(**changes: Any) -> dict[str, Any]:
    return {"frame_id": frame_id(0), "name": ["Car"], "score": [0.5], "boxes_3d": [BOX]} | changes


class Release:
    """Two sequences of val, one of train; the first frame of each has boxes, then none, then is not annotated."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "ImageSets").mkdir(parents=True)
        (root / "ImageSets" / "val.txt").write_text("000027\n000028\n")
        (root / "ImageSets" / "train.txt").write_text("000076\n")
        annos = {"names": ["Car", "Cyclist"], "boxes_3d": [BOX, BOX]}
        for k, sequence_id in enumerate(("000027", "000028", "000076")):
            rows: list[dict[str, Any]] = [{"frame_id": frame_id(10 * k + i)} for i in range(3)]
            rows[0]["annos"] = annos
            rows[1]["annos"] = {"names": [], "boxes_3d": []}
            self.write(sequence_id, rows)

    def file(self, sequence_id: str) -> Path:
        return self.root / "data" / sequence_id / f"{sequence_id}.json"

    def write(self, sequence_id: str, rows: list[Any]) -> None:
        self.file(sequence_id).parent.mkdir(parents=True, exist_ok=True)
        self.file(sequence_id).write_text(json.dumps({"frames": rows}))


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path / "once")


def test_a_submission_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = str(tmp_path / "result.json")
    written = OncePredictions({("000027", frame_id(1)): found(0, 4, 2), (None, frame_id(0)): found()})
    write_predictions(written, file)
    again = read_predictions(file)
    assert list(again.frames) == list(written.frames)
    for key, one in written.frames.items():
        np.testing.assert_array_equal(again.frames[key].boxes, one.boxes)
        np.testing.assert_array_equal(again.frames[key].classes, one.classes)
        np.testing.assert_array_equal(again.frames[key].scores, one.scores)
    first = json.loads((tmp_path / "result.json").read_text())[0]
    assert set(first) == {"sequence_id", "frame_id", "name", "score", "boxes_3d"}
    assert first["name"] == ["Car", "Cyclist", "Truck"]


def test_the_servers_pickle_holds_arrays_that_any_numpy_reads(tmp_path: Path) -> None:
    file = tmp_path / "result.pkl"
    write_predictions(
        OncePredictions({("000027", frame_id(1)): found(0, 4), ("000027", frame_id(2)): found()}), str(file)
    )
    rows = pickle.loads(file.read_bytes())
    assert [row["frame_id"] for row in rows] == [frame_id(1), frame_id(2)]
    assert (rows[0]["name"] == "Cyclist").tolist() == [False, True]
    np.testing.assert_array_equal(rows[0]["boxes_3d"], found(0, 4).boxes)
    assert rows[1]["boxes_3d"].shape == (0, 7)
    assert rows[1]["score"].dtype == np.float64
    text = [value for op, value, _ in pickletools.genops(file.read_bytes()) if "UNICODE" in op.name]
    assert [name for name in text if "numpy" in str(name)] == ["numpy"]


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "result.pkl").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(DataError, match="what reads a pickle runs it") as caught:
        read_predictions(str(tmp_path / "result.pkl"))
    assert "tolist" in caught.value.remedy
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "what", "where"),
    [
        ("[{", "not valid JSON", "result.json"),
        ({}, "the file holds {}", "result.json"),
        ([3], "the frame is 3", "[0]"),
        ([{"name": []}], "the frame is", "[0]"),
        ([entry(), entry()], f"frame {frame_id(0)} occurs twice", "[1]"),
        ([entry(score=None)], "1 name, None score, 1 boxes_3d", f"[0], frame {frame_id(0)}"),
        ([entry(name=["Car", "Car"])], "2 name, 1 score, 1 boxes_3d", f"[0], frame {frame_id(0)}"),
        ([entry(name=["car"])], "the class of box 0 is 'car'", f"frame {frame_id(0)}"),
        ([entry(name=[["Car"]])], "the class of box 0 is ['Car']", f"frame {frame_id(0)}"),
        ([entry(score=[float("nan")])], "the score of box 0 is nan", f"frame {frame_id(0)}"),
        ([entry(score=["0.5"])], "the score of box 0 is '0.5'", f"frame {frame_id(0)}"),
        ([entry(score=[-1])], "the score of box 0 is -1", f"frame {frame_id(0)}"),
        ([entry(score=[5.0])], "the score of box 0 is 5.0", f"frame {frame_id(0)}"),
        ([entry(score=[True])], "the score of box 0 is True", f"frame {frame_id(0)}"),
        ([entry(score=[10**400])], "the score of box 0 is 1000", f"frame {frame_id(0)}"),
        ([entry(boxes_3d=[[*BOX[:6], 10**400]])], "box 0 is [1.0, -12.5", f"frame {frame_id(0)}"),
        ("[" * 100_000, "nested too deeply", "result.json"),
        ("[1" + "0" * 5000 + "]", "not valid JSON", "result.json"),
        ([entry(boxes_3d=[[*BOX[:6], float("nan")]])], "box 0 is [1.0, -12.5", f"frame {frame_id(0)}"),
        ([entry(boxes_3d=[[*BOX[:5], -1.6, 0.0]])], "box 0 is [1.0, -12.5", f"frame {frame_id(0)}"),
        ([entry(boxes_3d=[BOX[:6]])], "box 0 is [1.0, -12.5", f"frame {frame_id(0)}"),
        ([entry(boxes_3d=[[*BOX[:6], None]])], "box 0 is [1.0, -12.5", f"frame {frame_id(0)}"),
        ([entry(boxes_3d=[[*BOX[:6], "1"]])], "box 0 is [1.0, -12.5", f"frame {frame_id(0)}"),
        ([entry(name=["Car"] * 2, score=[0.1] * 2, boxes_3d=[BOX, 7])], "box 1 is 7", f"frame {frame_id(0)}"),
    ],
)
def test_a_broken_submission_is_named(tmp_path: Path, content: Any, what: str, where: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_predictions(str(file))
    assert what in caught.value.what
    assert caught.value.where.endswith(where)


def test_truth_is_every_frame_with_a_box(release: Release) -> None:
    truth = read_truth(str(release.root), "val")
    assert list(truth.frames) == [("000027", frame_id(0)), ("000028", frame_id(10))]
    assert truth.unscored == {
        (s, frame_id(i)) for s, i in (("000027", 1), ("000027", 2), ("000028", 11), ("000028", 12))
    }
    boxes = truth.frames["000027", frame_id(0)]
    np.testing.assert_array_equal(boxes.boxes, [BOX, BOX])
    assert boxes.classes.tolist() == [0, 4]
    assert boxes.scores is None
    assert len(read_truth(str(release.root)).frames) == 3


@pytest.mark.parametrize(
    ("spoil", "split", "what"),
    [
        (lambda r: None, "vall", "no list names the sequences of the split 'vall'"),
        (lambda r: r.file("000028").unlink(), "val", "no such file"),
        (lambda r: r.file("000028").write_text("{"), "val", "not valid JSON"),
        (lambda r: r.write("000028", []), "val", "lists no frames"),
        (lambda r: r.write("000028", [{"frame_id": "7"}]), "val", "frame_id is '7'"),
        (lambda r: r.write("000028", [{"frame_id": frame_id(0)}] * 2), "val", "is listed twice"),
        (lambda r: r.write("000076", [{"frame_id": frame_id(0)}]), "train", "no frame of the split 'train' has a box"),
        (
            lambda r: r.write("000028", [{"frame_id": frame_id(0), "annos": {"names": ["Tram"], "boxes_3d": [BOX]}}]),
            "val",
            "the class of box 0 is 'Tram'",
        ),
        (lambda r: (r.root / "ImageSets" / "val.txt").write_bytes(b"\xff\xfe\x00"), "val", "not a text file"),
        (lambda r: (r.root / "ImageSets" / "train.txt").write_text("000027"), "val", "in the splits train and val"),
    ],
)
def test_broken_truth_is_named(release: Release, spoil: Callable[[Release], Any], split: str, what: str) -> None:
    spoil(release)
    with pytest.raises(DataError) as caught:
        read_truth(str(release.root), split)
    assert what in caught.value.what
    assert str(release.root) in caught.value.where


def test_a_wrong_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_truth(str(tmp_path / "none"))
    with pytest.raises(DataError, match="no sequence in data"):
        read_truth(str(tmp_path))


def truth_of(*keys: tuple[str, str], unscored: frozenset[tuple[str, str]] = frozenset()) -> OnceTruth:
    boxes = OnceBoxes(np.array([BOX]), np.zeros(1, np.int64))
    return OnceTruth(dict.fromkeys(keys, boxes), unscored, where="the truth")


def test_predictions_meet_their_frames_in_any_order() -> None:
    truth = truth_of(("a", "1"), ("b", "2"), unscored=frozenset({("b", "3")}))
    given: dict[tuple[str | None, str], OnceBoxes] = {(None, "3"): found(), ("b", "2"): found(0), (None, "1"): found(1)}
    true, boxes, num_unscored = match_frames(truth, OncePredictions(given))
    assert [one.classes.tolist() for one in boxes] == [[1], [0]]
    assert len(true) == 2
    assert num_unscored == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([("a", "1")], "1 of 2 frames have no predictions, the first is b/2"),
        (
            [("a", "1"), ("b", "2"), ("b", "9")],
            "1 of 3 frames of the predictions are none of the truth's, the first is b/9",
        ),
        (
            [("a", "1"), ("b", "2"), (None, "9")],
            "1 of 3 frames of the predictions are none of the truth's, the first is 9",
        ),
        (
            [("a", "1"), ("b", "2"), ("a", "2")],
            "1 of 3 frames of the predictions are none of the truth's, the first is a/2",
        ),
        ([("a", "1"), ("b", "2"), (None, "1")], "frame 1 occurs twice"),
    ],
)
def test_frames_that_do_not_fit_are_named(keys: list[tuple[str | None, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        match_frames(truth_of(("a", "1"), ("b", "2")), OncePredictions(dict.fromkeys(keys, found())))


def test_a_frame_of_several_sequences_needs_its_sequence() -> None:
    truth = truth_of(("a", "1"), ("b", "1"))
    with pytest.raises(DataError, match="frame 1 is in several sequences"):
        match_frames(truth, OncePredictions({(None, "1"): found()}))
    assert len(match_frames(truth, OncePredictions({("b", "1"): found(), ("a", "1"): found(0)}))[1][0].boxes) == 1
