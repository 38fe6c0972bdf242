"""Frames, ids and velocities against numbers worked by hand, and every kind of broken folder."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spot_ray.convert.files import hashed_reading
from spot_ray.convert.nuscenes import open_source
from spot_ray.convert.source import BadFrame
from spot_ray.errors import ConfigError, DataError
from spot_ray.schema.sweep import Sweep
from spot_ray.storage import uri as uris


def read(folder: Any, sequence: str = "scene-0000") -> list[Sweep]:
    sweeps = []
    for sweep in open_source(str(folder.root), version="v1.0-mini").read(sequence):
        assert isinstance(sweep, Sweep)
        sweeps.append(sweep)
    return sweeps


def test_points_come_to_the_ego_frame_by_the_calibration(nuscenes_folder: Any) -> None:
    sweep = read(nuscenes_folder)[0]
    # Forward is the sensor's y, right its x; it sits at (0.9, 0, 1.8).
    np.testing.assert_allclose(sweep.xyz[0], [10.9, 0.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(sweep.xyz[1], [0.9, -2.0, 1.8], atol=1e-5)
    assert sweep.xyz.dtype == np.float32
    assert sweep.intensity is not None
    assert sweep.ring is not None
    assert sweep.point_source_class is not None
    assert sweep.intensity.tolist() == [12, 255, 7, 0]
    assert sweep.ring.tolist() == [0, 31, 20, 25]
    assert sweep.point_source_class.tolist() == [24, 17, 0, 30]


def test_keyframes_come_in_time_order_with_the_lidars_time_and_pose(nuscenes_folder: Any) -> None:
    sweeps = read(nuscenes_folder, "scene-0001")
    assert [s.name for s in sweeps] == [f"scene-0001/sample-1-{i}" for i in range(3)]
    assert [s.timestamp_ns for s in sweeps] == [1_000_000_003_000 + 500_000_000 * i for i in range(3)]
    for i, sweep in enumerate(sweeps):
        assert sweep.world_SE3_ego is not None
        np.testing.assert_allclose(sweep.world_SE3_ego @ [1, 0, 0, 1], [100, 51 + i, 0, 1], atol=1e-9)
        assert sweep.motion_compensated is True


def test_boxes_come_to_the_ego_frame_with_velocity_over_ground(nuscenes_folder: Any) -> None:
    for i, (x, speed) in enumerate(zip((20, 21, 24), (4, 6, 8), strict=True)):
        boxes = read(nuscenes_folder)[i].boxes
        assert boxes is not None
        assert boxes.track_id is not None
        assert boxes.velocity is not None
        assert boxes.num_lidar_points is not None
        assert boxes.num_radar_points is not None
        car = boxes.track_id.index("car-0")
        np.testing.assert_allclose(boxes.boxes[car], [x, 3, 0.8, 4.5, 2.0, 1.6, 0.0], atol=1e-5)
        np.testing.assert_allclose(boxes.velocity[car], [speed, 0, 0], atol=1e-5)
        assert boxes.source_class[car] == 17
        assert (boxes.num_lidar_points[car], boxes.num_radar_points[car]) == (5 + i, i)
        assert boxes.attribute is not None
        assert boxes.attribute[car] == "vehicle.moving"


def test_an_object_seen_once_has_no_velocity(nuscenes_folder: Any) -> None:
    boxes = read(nuscenes_folder)[1].boxes
    assert boxes is not None
    assert boxes.track_id is not None
    assert boxes.velocity is not None
    cone = boxes.track_id.index("cone-0")
    assert np.isnan(boxes.velocity[cone]).all()
    assert boxes.attribute is not None
    assert boxes.attribute[cone] == ""


def test_too_long_a_gap_gives_no_velocity(nuscenes_folder: Any) -> None:
    def stretch(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["timestamp"] = {0: 0, 1: 1_600_000, 2: 2_900_000}[int(row["token"][-1])]

    nuscenes_folder.edit("sample", stretch)
    speeds = []
    for sweep in read(nuscenes_folder):
        assert sweep.boxes is not None
        assert sweep.boxes.track_id is not None
        assert sweep.boxes.velocity is not None
        speeds.append(sweep.boxes.velocity[sweep.boxes.track_id.index("car-0"), 0])
    # 1.6 s to one neighbour is too long; 2.9 s over both is not, nor 1.3 s.
    np.testing.assert_allclose(speeds, [np.nan, 6 / 2.9, 4 / 1.3], rtol=1e-5)


def test_bike_racks_are_regions_in_which_nothing_counts(nuscenes_folder: Any) -> None:
    sweep = read(nuscenes_folder)[0]
    assert sweep.ignore_regions is not None
    np.testing.assert_allclose(sweep.ignore_regions, [[10, -10, 0.5, 3, 1, 1, 0]], atol=1e-5)


def test_without_lidarseg_points_are_unlabelled_and_ids_stay(nuscenes_folder: Any) -> None:
    def drop_index(rows: list[dict[str, Any]]) -> None:
        rows[:] = [{"token": r["token"], "name": r["name"]} for r in reversed(rows) if r["index"] in (12, 13, 17)]

    nuscenes_folder.edit("category", drop_index)
    nuscenes_folder.table("lidarseg").unlink()
    sweep = read(nuscenes_folder)[1]
    assert sweep.point_source_class is None
    assert sweep.boxes is not None
    assert sorted(sweep.boxes.source_class.tolist()) == [12, 13, 17]


def test_a_version_without_annotations_has_no_boxes_rather_than_none_there(nuscenes_folder: Any) -> None:
    nuscenes_folder.edit("sample_annotation", list.clear)
    nuscenes_folder.edit("instance", list.clear)
    assert read(nuscenes_folder)[0].boxes is None


def test_a_keyframe_in_which_nothing_is_has_empty_boxes(nuscenes_folder: Any) -> None:
    def leave_scene_1(rows: list[dict[str, Any]]) -> None:
        rows[:] = [r for r in rows if r["instance_token"].endswith("1")]

    nuscenes_folder.edit("sample_annotation", leave_scene_1)
    sweep = read(nuscenes_folder)[0]
    assert sweep.boxes is not None
    assert len(sweep.boxes) == 0
    assert sweep.ignore_regions is None


def test_the_rig_has_the_real_mount_and_the_source_pickles(nuscenes_folder: Any) -> None:
    source = pickle.loads(pickle.dumps(open_source(str(nuscenes_folder.root))))
    (lidar,) = source.info().rig
    assert lidar.num_beams == 32
    assert lidar.height_m == 1.8
    np.testing.assert_allclose(lidar.pose @ [0, 1, 0, 1], [1.9, 0, 1.8, 1], atol=1e-9)
    assert [s.frame_id for s in source.read("scene-0001")] == ["sample-1-0", "sample-1-1", "sample-1-2"]
    assert source.info().provenance == "nuScenes v1.0-mini, keyframes of LIDAR_TOP, recorded in nowhere"


def test_scenes_that_the_table_leaves_out_are_left_out(nuscenes_folder: Any) -> None:
    nuscenes_folder.add_sweeps()
    whole = read(nuscenes_folder, "scene-0001")
    nuscenes_folder.edit("scene", lambda rows: rows.pop(0))
    assert open_source(str(nuscenes_folder.root)).sequences() == ("scene-0001",)
    for a, b in zip(whole, read(nuscenes_folder, "scene-0001"), strict=True):
        assert a.boxes is not None
        assert b.boxes is not None
        assert a.name == b.name
        np.testing.assert_array_equal(a.boxes.boxes, b.boxes.boxes)


def test_a_log_in_an_object_store_reads_the_same(nuscenes_folder: Any) -> None:
    nuscenes_folder.add_sweeps()
    root = f"memory://{uuid.uuid4().hex}/nuscenes"
    for file in filter(Path.is_file, nuscenes_folder.root.rglob("*")):
        uris.write_bytes(uris.join(root, str(file.relative_to(nuscenes_folder.root))), file.read_bytes())
    there = open_source(root, version="v1.0-mini").read("scene-0001")
    for a, b in zip(read(nuscenes_folder, "scene-0001"), there, strict=True):
        assert isinstance(b, Sweep)
        assert a.name == b.name
        np.testing.assert_array_equal(a.xyz, b.xyz)


def test_what_travels_to_tasks_are_arrays(nuscenes_folder: Any) -> None:
    def sizes() -> tuple[int, int]:
        """Return the pickled bytes in band, which each task copies, and those beside it, which all share."""
        buffers: list[pickle.PickleBuffer] = []
        in_band = pickle.dumps(open_source(str(nuscenes_folder.root)), protocol=5, buffer_callback=buffers.append)
        return len(in_band), sum(buffer.raw().nbytes for buffer in buffers)

    few = sizes()
    nuscenes_folder.add_sweeps()
    many = sizes()
    assert many[1] > few[1] + 8 * 100
    assert many[0] < few[0] + 8 * 20


def test_a_scenes_hash_tells_of_its_points_and_of_the_tables(nuscenes_folder: Any) -> None:
    def scene_hash() -> str | None:
        with hashed_reading() as source_hash:
            read(nuscenes_folder, "scene-0001")
        return source_hash.hexdigest

    hashes = [scene_hash(), scene_hash()]
    assert hashes[0] == hashes[1]
    _change(nuscenes_folder.points(1, 1), 0, 0.5)
    hashes.append(scene_hash())
    nuscenes_folder.edit("sample_annotation", lambda rows: rows[0].update(size=[1, 1, 1]))
    hashes.append(scene_hash())
    _change(nuscenes_folder.points(0, 1), 0, 0.5)
    assert len({*hashes}) == 3
    assert scene_hash() == hashes[-1]


def _change(file: Path, at: int, value: float) -> None:
    points = np.frombuffer(file.read_bytes(), np.float32).copy()
    points[at] = value
    file.write_bytes(points.tobytes())


def _edit(table: str, change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Any], object]:
    return lambda folder: folder.edit(table, change)


def _stretched(row: dict[str, Any]) -> None:
    row["rotation"] = [1.01 * value for value in row["rotation"]]


BROKEN: list[tuple[str, Callable[[Any], object], str, str]] = [
    ("no folder", lambda f: f.root.rename(f.root.parent / "away"), "no such folder", "nuscenes"),
    ("no tables", lambda f: (f.root / "v1.0-mini").rename(f.root.parent / "x"), "no nuScenes folder", "nuscenes"),
    ("missing table", lambda f: f.table("ego_pose").unlink(), "table 'ego_pose' is missing", "ego_pose.json"),
    ("missing attributes", lambda f: f.table("attribute").unlink(), "table 'attribute'", "attribute.json"),
    ("cut table", lambda f: f.table("sample").write_text('[{"token": "sam'), "not valid JSON", "sample.json"),
    ("object table", lambda f: f.table("scene").write_text('{"token": "a", "name": "b"}'), "holds", "scene.json"),
    ("list of numbers", lambda f: f.table("log").write_text("[1]"), "row 0 is 1", "log.json"),
    ("no field", _edit("ego_pose", lambda r: r[2].pop("rotation")), "row 2 has no field 'rotation'", "ego_pose.json"),
    ("wrong type", _edit("sample", lambda r: r[0].update(timestamp="x")), "field 'timestamp'", "sample.json"),
    ("no pose", _edit("ego_pose", lambda r: r[0].update(rotation=[0, 0, 0, 0])), "is no pose", "ego_pose.json"),
    ("short pose", _edit("ego_pose", lambda r: r[0].update(translation=[0, 0])), "is no pose", "ego_pose.json"),
    ("worded pose", _edit("ego_pose", lambda r: r[0].update(translation=["a", 0, 0])), "is no pose", "ego_pose.json"),
    ("endless pose", _edit("ego_pose", lambda r: r[0].update(translation=[np.inf, 0, 0])), "no pose", "ego_pose.json"),
    ("norm 1.01", _edit("ego_pose", lambda r: _stretched(r[0])), "row pose-0-2 is no pose", "ego_pose.json"),
    (
        "norm of a mount",
        _edit("calibrated_sensor", lambda r: _stretched(r[0])),
        "row mount is no pose: rotation [0.714",
        "calibrated_sensor.json",
    ),
    ("norm of a box", _edit("sample_annotation", lambda r: _stretched(r[0])), "(norm 1.01)", "sample_annotation.json"),
    ("lost pose", _edit("ego_pose", lambda r: r.pop()), "refers to 'pose-1-0', which is not", "ego_pose.json"),
    ("lost keyframe", _edit("sample_data", lambda r: r.pop(0)), "no LIDAR_TOP keyframe", "sample_data.json"),
    ("two keyframes", _edit("sample_data", lambda r: r.append(r[0])), "two LIDAR_TOP", "sample_data.json"),
    (
        "sweep of no sample",
        _edit("sample_data", lambda r: r.append(r[0] | {"token": "d", "sample_token": "x", "is_key_frame": False})),
        "sample_data d refers to 'x'",
        "sample.json",
    ),
    ("sample twice", _edit("sample", lambda r: r.append(r[0])), "token sample-0-2 occurs twice", "sample.json"),
    ("instance twice", _edit("instance", lambda r: r.insert(1, r[0])), "car-0 occurs twice", "instance.json"),
    (
        "mount twice",
        _edit("calibrated_sensor", lambda r: r.append(r[0])),
        "mount occurs twice",
        "calibrated_sensor.json",
    ),
    ("empty scene", _edit("scene", lambda r: r.append({"token": "x", "name": "y"})), "no sample", "sample.json"),
    ("no scenes", _edit("scene", list.clear), "table is empty", "scene.json"),
    ("scene twice", _edit("scene", lambda r: r[0].update(name="scene-0001")), "2 scenes have 1 names", "scene.json"),
    ("new category", _edit("category", lambda r: r[17].update(name="vehicle.cart")), "vehicle.cart", "category.json"),
    ("lost category", _edit("instance", lambda r: r[0].update(category_token="x")), "refers to 'x'", "category.json"),
    ("some indices", _edit("category", lambda r: r[3].pop("index")), "only 31 of 32", "category.json"),
    ("huge index", _edit("category", lambda r: r[3].update(index=300)), "an index is 300", "category.json"),
    ("few categories", _edit("category", lambda r: r.pop(9)), "no category 'movable_object.barrier'", "category.json"),
    ("flat box", _edit("sample_annotation", lambda r: r[0].update(size=[0, 1, 1])), "size", "sample_annotation.json"),
    ("lost sample", _edit("sample_annotation", lambda r: r[0].update(sample_token="x")), "'x'", "sample.json"),
    ("lost instance", _edit("sample_annotation", lambda r: r[0].update(instance_token="x")), "'x'", "instance.json"),
    ("lost attribute", _edit("attribute", lambda r: r[0].update(token="x")), "refers to 'a0'", "attribute.json"),
    (
        "box twice",
        _edit("sample_annotation", lambda r: r.append(r[0])),
        "two boxes in sample",
        "sample_annotation.json",
    ),
    (
        "points outside",
        _edit("sample_data", lambda r: r[0].update(filename="../secret.bin")),
        "'../secret.bin', in the row lidar-0-2",
        "sample_data.json",
    ),
    (
        "labels outside",
        _edit("lidarseg", lambda r: r[0].update(filename="/etc/passwd")),
        "'/etc/passwd', in the row lidar-0-2",
        "lidarseg.json",
    ),
]


@pytest.mark.parametrize(("spoil", "what", "where"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_table_is_named_on_opening(
    nuscenes_folder: Any, spoil: Callable[[Any], object], what: str, where: str
) -> None:
    spoil(nuscenes_folder)
    with pytest.raises(DataError) as caught:
        open_source(str(nuscenes_folder.root), version="v1.0-mini")
    assert what in caught.value.what
    assert caught.value.where.endswith(where)
    assert caught.value.expected or caught.value.remedy


BROKEN_FILES: list[tuple[str, Callable[[Any], object], str, str]] = [
    ("missing points", lambda f: f.points(1, 1).unlink(), "point file is missing", "1-1.pcd.bin"),
    ("empty points", lambda f: f.points(1, 1).write_bytes(b""), "is empty", "1-1.pcd.bin"),
    ("cut points", lambda f: f.points(1, 1).write_bytes(b"\0" * 70), "70 bytes", "1-1.pcd.bin"),
    ("nan", lambda f: _change(f.points(1, 1), 6, np.nan), "not finite, the first is point 1", "1-1.pcd.bin"),
    ("ring", lambda f: _change(f.points(1, 1), 4, 32), "ring 32", "1-1.pcd.bin"),
    ("part of a ring", lambda f: _change(f.points(1, 1), 9, 1.5), "point 1 has the ring 1.5", "1-1.pcd.bin"),
    ("missing labels", lambda f: f.lidarseg(1, 1).unlink(), "label file is missing", "lidar-1-1_lidarseg.bin"),
    ("short labels", lambda f: f.lidarseg(1, 1).write_bytes(b"\1\2\3"), "3 labels for 4", "lidar-1-1_lidarseg.bin"),
    ("unknown label", lambda f: f.lidarseg(1, 1).write_bytes(b"\1\2\3\x28"), "label 40", "lidar-1-1_lidarseg.bin"),
]


@pytest.mark.parametrize(
    ("spoil", "what", "where"), [case[1:] for case in BROKEN_FILES], ids=[case[0] for case in BROKEN_FILES]
)
def test_a_broken_file_is_its_frames_error_and_the_others_are_read(
    nuscenes_folder: Any, spoil: Callable[[Any], object], what: str, where: str
) -> None:
    spoil(nuscenes_folder)
    before, bad, after = open_source(str(nuscenes_folder.root)).read("scene-0001")
    assert isinstance(before, Sweep)
    assert isinstance(after, Sweep)
    assert isinstance(bad, BadFrame)
    assert bad.frame_id == "sample-1-1"
    assert what in bad.error.what
    assert bad.error.where.endswith(where)
    assert bad.error.expected
    assert bad.error.remedy


def test_a_missing_version_lists_those_that_are_there(nuscenes_folder: Any) -> None:
    root = nuscenes_folder.root
    with pytest.raises(DataError, match="no version") as caught:
        open_source(str(root), version="v1.0-trainval")
    assert caught.value.expected == "one of v1.0-mini"
    with pytest.raises(DataError) as caught:
        open_source(str(root / "v1.0-mini"))
    assert caught.value.remedy == "give the folder above it"
    (root / "v1.0-test").mkdir()
    (root / "v1.0-test" / "scene.json").write_text("[]")
    with pytest.raises(DataError, match="several versions") as caught:
        open_source(str(root))
    assert caught.value.remedy == "choose one: --version v1.0-mini | v1.0-test"


def test_an_unknown_choice_of_sweeps_is_told(nuscenes_folder: Any) -> None:
    with pytest.raises(ConfigError, match="sweeps is 'keyframe'") as caught:
        open_source(str(nuscenes_folder.root), sweeps="keyframe")
    assert caught.value.expected == "one of: all, keyframes"
