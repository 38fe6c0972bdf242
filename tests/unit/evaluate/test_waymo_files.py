"""`Objects` files: what is written is read, whatever the parts that it is read in; and every kind of broken file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from waymo_scenes import make_scene

from spot_ray.errors import DataError
from spot_ray.evaluate import waymo_files
from spot_ray.evaluate.waymo_boxes import WaymoPredictions
from spot_ray.evaluate.waymo_files import CLASSES, read_predictions, read_truth, write_predictions

COLUMNS = ("boxes", "types", "scores", "overlaps_nlz")


def made_up() -> WaymoPredictions:
    scene = make_scene(21, num_frames=4, objects=20)
    p = scene.predictions
    return WaymoPredictions(scene.frames, True, p.frame, p.boxes, p.types, scene.scores, scene.overlaps_nlz)


def message(**changes: Any) -> Any:
    """Return an `Objects` message of two objects, the second with changes; `box` and `label` hold those of theirs."""
    objects: Any = CLASSES["Objects"]()
    for change in ({}, changes):
        o = objects.objects.add(context_name="segment", frame_timestamp_micros=1_550_000_000_000_000, score=0.5)
        o.object.type = 1
        o.object.num_lidar_points_in_box = 9
        for name in ("center_x", "center_y", "center_z", "length", "width", "height", "heading"):
            setattr(o.object.box, name, 1.5)
        for target, values in ((o.object.box, "box"), (o.object, "label"), (o, "object")):
            for name, value in change.get(values, {}).items():
                setattr(target, name, value)
    return objects


def save(path: Path, content: Any) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return str(path)


@pytest.mark.parametrize("block_bytes", [7, 1000, 4 << 20])
def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    predictions = made_up()
    uri = str(tmp_path / "predictions.bin")
    write_predictions(predictions, uri)
    monkeypatch.setattr(waymo_files, "BLOCK_BYTES", block_bytes)
    read = read_predictions(uri)
    order = np.argsort(predictions.frame, kind="stable")
    expected = [predictions.frames[i] for i in predictions.frame[order]]
    assert [read.frames[i] for i in read.frame] == expected
    assert len(set(expected)) == len(read.frames) == 3
    assert not read.every_frame
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(read, name), getattr(predictions, name)[order])
        assert getattr(read, name).dtype == getattr(predictions, name).dtype


def test_stores_are_read_and_written_like_folders() -> None:
    predictions = made_up()
    write_predictions(predictions, "memory://waymo/predictions.bin")
    try:
        assert len(read_predictions("memory://waymo/predictions.bin").scores) == len(predictions.scores)
    finally:
        fsspec.filesystem("memory").rm("/waymo", recursive=True)


def test_length_is_along_x_and_an_unscored_object_is_certain(tmp_path: Path) -> None:
    objects = message(box={"length": 4.5, "width": 2.0, "height": 1.7, "heading": 0.3})
    objects.objects[1].ClearField("score")
    read = read_predictions(save(tmp_path / "p.bin", objects))
    assert read.boxes[1].tolist() == [1.5, 1.5, 1.5, 4.5, 2.0, 1.7, 0.3]
    assert read.scores.tolist() == [0.5, 1.0]


def test_truth_keeps_levels_and_knows_what_does_not_count(tmp_path: Path) -> None:
    objects = message(label={"num_lidar_points_in_box": 5})
    objects.MergeFrom(message(label={"num_lidar_points_in_box": 0}))
    objects.MergeFrom(message(label={"detection_difficulty_level": 2}))
    objects.MergeFrom(message(label={"type": 0}))
    truth = read_truth(save(tmp_path / "gt.bin", objects))
    assert truth.levels.tolist() == [1, 2, 1, 0, 1, 2, 1, 1]
    assert truth.counted.tolist() == [True, True, True, False, True, True, True, False]
    assert truth.frames == (("segment", 1_550_000_000_000_000),)
    assert not truth.every_frame


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"box": {"center_x": float("nan")}}, "the box of prediction 1 is"),
        ({"box": {"height": -1.0}}, "the box of prediction 1 is"),
        ({"box": {"width": 0.0}}, "the box of prediction 1 is"),
        ({"label": {"type": 0}}, "the type of prediction 1 is 0"),
        ({"label": {"type": 5}}, "the object has the type 5"),
        ({"label": {"type": -1}}, "the object has the type -1"),
        ({"object": {"score": 1.5}}, "the score of prediction 1 is 1.5"),
        ({"object": {"score": float("nan")}}, "the score of prediction 1 is nan"),
        ({"object": {"context_name": ""}}, "names no frame"),
        ({"object": {"camera_name": 1}}, "of camera 1"),
    ],
)
def test_broken_predictions_are_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    uri = save(tmp_path / "predictions.bin", message(**changes))
    with pytest.raises(DataError, match=said) as error:
        read_predictions(uri)
    assert uri in error.value.where
    assert error.value.expected


def test_files_that_are_no_objects_are_told(tmp_path: Path) -> None:
    whole = message().SerializeToString()
    for name, content, said in (
        ("cut.bin", whole[:-3], "ends within an object"),
        ("text.bin", b"sample_token,x,y\n", "no fields of a message"),
        ("long.bin", b"\x0a\xff\xff\xff\xff\xff\xff\xff", "no fields of a message"),
        ("inner.bin", b"\x0a\x03\x0a\x20\x00", "no Objects message"),
        ("empty.bin", b"", "the file is empty"),
    ):
        uri = save(tmp_path / name, content)
        with pytest.raises(DataError, match=said) as error:
            read_truth(uri)
        assert uri in error.value.where
    with pytest.raises(DataError, match="cannot read the file"):
        read_predictions(str(tmp_path / "none.bin"))
