"""Submissions and tables that are broken in every way, each refused by its name."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes_detection import perfect_results, write_release

from spot_ray.errors import DataError
from spot_ray.evaluate.nuscenes import ATTRIBUTES
from spot_ray.evaluate.nuscenes_files import read_predictions, write_predictions
from spot_ray.evaluate.nuscenes_truth import read_truth
from spot_ray.storage import json_rows
from spot_ray.storage import uri as uris

Row = dict[str, Any]


def box(token: str = "a", **changes: Any) -> Row:
    standard = {
        "sample_token": token,
        "translation": [1.0, 2, 3.5],
        "size": [2.0, 4.5, 1.5],
        "rotation": [1, 0.0, 0, 0],
        "velocity": [0.5, -0.5],
        "detection_name": "car",
        "detection_score": 0.25,
        "attribute_name": "vehicle.moving",
    }
    return standard | changes


def submission(tmp_path: Path, results: Any, meta: Any = None) -> str:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"meta": meta or {"use_lidar": True}, "results": results}))
    return str(file)


def test_boxes_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    results = {
        "b": [box("b"), box("b", detection_name="barrier", attribute_name="", more={"ego_translation": [1]})],
        "empty": [],
        "a": [box(velocity=[float("nan"), 1], num_pts=3, detection_score=1), box(num_pts=12.9), box(num_pts=1e12)],
    }
    found = read_predictions(submission(tmp_path, results))
    assert found.samples == ("b", "empty", "a")
    assert found.meta == {"use_lidar": True}
    assert found.boxes.sample.tolist() == [0, 0, 2, 2, 2]
    assert found.boxes.label.tolist() == [0, 9, 0, 0, 0]
    assert found.boxes.centre.tolist() == [[1, 2, 3.5]] * 5
    assert found.boxes.size_wlh[0].tolist() == [2, 4.5, 1.5]
    assert found.boxes.rotation[0].tolist() == [1, 0, 0, 0]
    assert found.boxes.attribute.tolist() == [ATTRIBUTES.index("vehicle.moving"), -1, 5, 5, 5]
    # Cut to whole numbers, as the devkit does.
    assert found.boxes.num_points.tolist() == [-1, -1, 3, 12, 2**31 - 1]
    assert found.scores.tolist() == [0.25, 0.25, 1, 0.25, 0.25]
    np.testing.assert_equal(found.boxes.velocity[2], [np.nan, 1])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"sample_token": "b"}, "sample_token of box 1 of sample a is 'b'"),
        ({"translation": [1.0, float("nan"), 0]}, "translation of box 1 of sample a is .*nan"),
        ({"translation": [1.0, 2.0]}, "translation of box 1 of sample a"),
        ({"translation": [1.0, None, 0]}, "translation of box 1 of sample a"),
        ({"translation": [1.0, float("inf"), 0]}, "translation of box 1 of sample a"),
        ({"translation": "here"}, "box 1 of sample a is broken"),
        ({"size": [2.0, -4.5, 1.5]}, "size of box 1 of sample a"),
        ({"size": [2.0, 0, 1.5]}, "size of box 1 of sample a"),
        ({"rotation": [0, 0, 0, 0]}, "rotation of box 1 of sample a"),
        ({"rotation": [1, 0, 0, 0, 0]}, "rotation of box 1 of sample a"),
        ({"velocity": [1.0, 0, 0]}, "velocity of box 1 of sample a"),
        ({"velocity": [1.0, float("inf")]}, "velocity of box 1 of sample a"),
        ({"detection_name": "cat"}, "detection_name of box 1 of sample a is 'cat'"),
        ({"detection_name": 7}, "box 1 of sample a is broken"),
        ({"detection_score": -0.5}, "detection_score of box 1 of sample a is -0.5"),
        ({"detection_score": float("nan")}, "detection_score of box 1 of sample a is nan"),
        ({"attribute_name": "vehicle.flying"}, "attribute_name of box 1 of sample a is 'vehicle.flying'"),
        ({"attribute_name": None}, "box 1 of sample a has no 'attribute_name'"),
    ],
)
def test_a_broken_box_is_refused(tmp_path: Path, changes: Row, what: str) -> None:
    file = submission(tmp_path, {"b": [box("b")], "none": [], "a": [box(), box(**changes), box()]})
    with pytest.raises(DataError, match=what) as caught:
        read_predictions(file)
    assert caught.value.where == file


@pytest.mark.parametrize("field", sorted(box()))
def test_a_box_that_lacks_a_field_is_refused(tmp_path: Path, field: str) -> None:
    broken = {name: value for name, value in box().items() if name != field}
    with pytest.raises(DataError, match=f"box 2 of sample a has no '{field}'"):
        read_predictions(submission(tmp_path, {"b": [box("b")], "a": [box(), box(), broken]}))


def test_a_broken_box_is_called_by_its_place_also_in_a_later_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", 700)
    results: dict[str, list[Row]] = {token: [box(token)] * 7 for token in "abc"}
    assert len(read_predictions(submission(tmp_path, results)).boxes) == 21
    results["b"] = [*results["b"][:5], box("b", size=3), box("b")]
    with pytest.raises(DataError, match="box 5 of sample b is broken"):
        read_predictions(submission(tmp_path, results))


def test_more_than_500_boxes_are_refused(tmp_path: Path) -> None:
    assert len(read_predictions(submission(tmp_path, {"a": [box()] * 500})).boxes) == 500
    with pytest.raises(DataError, match="sample b has 501 boxes"):
        read_predictions(submission(tmp_path, {"a": [box()], "b": [box("b")] * 501}))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not valid JSON"),
        ("[]", "there is a list where an object should be, at byte 0"),
        ('{"meta": {}}', "has no 'results'"),
        ('{"results": {}}', "has no 'meta'"),
        ('{"meta": 1, "results": {}}', "has no 'meta' that is an object"),
        ('{"meta": {}, "results": []}', "there is a list where an object should be, at byte 24"),
        ('{"meta": {}, "results": null}', "there is null where an object should be"),
        ('{"meta": {}, "results": {"a": {}}}', "there is an object where a list should be"),
        ('{"meta": {}, "results": {"a": [7]}}', "there is a number where an object should be"),
        ('{"meta": {}, "results": {"a": [], "a": []}}', "'a' occurs twice"),
        ('{"meta": {}, "results": {"a": []}', "expecting ','"),
        ('{"meta": {}, "results": {"a": []}} more', "something follows"),
    ],
)
def test_what_is_no_submission_is_refused(tmp_path: Path, text: str, what: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(DataError, match=what) as caught:
        read_predictions(str(file))
    assert ("not valid JSON" in caught.value.what) == ("cut or damaged" in caught.value.remedy)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_predictions(str(tmp_path / "none.json"))


def test_submissions_go_to_object_stores_too(tmp_path: Path) -> None:
    there = f"memory://{uuid.uuid4().hex}/results.json"
    predictions = read_predictions(submission(tmp_path, {"b": [box("b")], "a": []}))
    write_predictions(predictions, there)
    again = read_predictions(there)
    assert again.samples == ("b", "a")
    np.testing.assert_array_equal(again.boxes.centre, predictions.boxes.centre)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    write_release(tmp_path / "release")
    return tmp_path / "release/v1.0-mini"


def edit(tables: Path, table: str, change: Callable[[list[Row]], object]) -> None:
    rows = json.loads((tables / f"{table}.json").read_text())
    change(rows)
    (tables / f"{table}.json").write_text(json.dumps(rows))


def test_truth_has_all_boxes_of_the_split(release: Path) -> None:
    truth = read_truth(str(release), split="mini_train")
    perfect = perfect_results(release)["results"]
    assert truth.samples == tuple(f"scene-0061-sample-{i}" for i in range(10))
    assert len(truth.boxes) == sum(len(perfect[token]) for token in truth.samples)
    assert len(read_truth(str(release.parent)).samples) == 30
    rack = json.loads((release / "sample_annotation.json").read_text())[0]
    assert rack["instance_token"].endswith("bicycle_rack-0")
    assert len(read_truth(str(release), split="mini_val").racks.centre) > 20


def test_tables_in_an_object_store_read_the_same(release: Path) -> None:
    there = f"memory://{uuid.uuid4().hex}/v1.0-mini"
    for file in release.iterdir():
        uris.write_bytes(uris.join(there, file.name), file.read_bytes())
    np.testing.assert_array_equal(read_truth(there).boxes.centre, read_truth(str(release)).boxes.centre)


def test_of_several_versions_the_one_of_the_split_is_read(release: Path) -> None:
    (release.parent / "v1.0-trainval").mkdir()
    (release.parent / "v1.0-trainval/scene.json").write_text("[]")
    assert len(read_truth(str(release.parent), split="mini_val").samples) == 20
    with pytest.raises(DataError, match="several versions"):
        read_truth(str(release.parent))


@pytest.mark.parametrize(
    ("table", "change", "what"),
    [
        ("sample_annotation", lambda rows: rows.clear(), "no box is annotated"),
        ("sample_annotation", lambda rows: rows[9].update(size=[1, 0, 1]), "has the size"),
        ("sample_annotation", lambda rows: rows[9].update(translation=[1, 0]), "not 3 finite numbers"),
        ("sample_annotation", lambda rows: rows[9].update(rotation=[1, 0, 0, None]), "not 4 finite numbers"),
        ("sample_annotation", lambda rows: rows[9].update(next="nowhere"), "no row 'nowhere'"),
        ("sample_annotation", lambda rows: rows[9].update(instance_token="nobody"), "no row 'nobody'"),
        ("sample_annotation", lambda rows: rows[9].pop("num_radar_pts"), "row 9 has no 'num_radar_pts'"),
        ("sample_annotation", lambda rows: rows[-1].update(attribute_tokens=["a", "b"]), "has two attributes"),
        ("attribute", lambda rows: rows[0].update(name="pedestrian.flying"), "'pedestrian.flying' is not one of"),
        ("attribute", lambda rows: rows.pop(), "no row 'a-vehicle.stopped'"),
        ("sample", lambda rows: rows.append(rows[0]), "a token occurs twice"),
        ("sample_data", lambda rows: rows.pop(0), "has no LIDAR_TOP keyframe"),
        ("ego_pose", lambda rows: rows.pop(0), "no row 'pose-"),
        ("scene", lambda rows: rows.clear(), "there is no sample"),
    ],
)
def test_broken_tables_are_refused(release: Path, table: str, change: Callable[[list[Row]], object], what: str) -> None:
    def last_car(rows: list[Row]) -> None:
        # The boxes of classes that are not scored come first.
        rows.sort(key=lambda row: "vehicle.car" in row.get("instance_token", ""))
        change(rows)

    edit(release, table, last_car)
    with pytest.raises(DataError, match=what):
        read_truth(str(release))


def test_missing_tables_and_splits_are_named(release: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'vall'"):
        read_truth(str(release), split="vall")
    with pytest.raises(DataError, match="no scene belongs to the split 'val'") as caught:
        read_truth(str(release), split="val")
    assert caught.value.expected == "a split that is there: mini_train, mini_val"
    with pytest.raises(DataError, match="no nuScenes tables"):
        read_truth(str(tmp_path / "nothing"))
    (release / "ego_pose.json").unlink()
    with pytest.raises(DataError, match="the table 'ego_pose' is missing"):
        read_truth(str(release))
