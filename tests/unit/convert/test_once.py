"""ONCE's frames, boxes and poses against numbers worked by hand, and every kind of broken folder."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spot_ray.convert.once import CLASSES, LABELLED_CLASSES, LIDAR, Once, open_source, taxonomy
from spot_ray.convert.source import BadFrame, known_sources
from spot_ray.errors import ConfigError, DataError
from spot_ray.schema.lidars import ONCE_40
from spot_ray.schema.sweep import Sweep

START_MS = 1_616_343_527_200
HEIGHT = ONCE_40.height_m
# In the LiDAR frame: x left, y back. 10 m ahead on the road, 4 m to the left, 3 m to the right and 190 m behind.
POINTS = np.array([[0, -10, -HEIGHT, 0.11], [4, 0, 0, 1.25], [-3, 190, 2, 242], [0, -20, 1, 0]], np.float32)
QUARTER = 0.5**0.5
CALIB = {"cam01": {"cam_to_velo": [[1, 0, 0, 0]], "cam_intrinsic": [[9, 0, 1]], "distortion": [0, 0, 0, 0, 0]}}


def frame(i: int, **changes: Any) -> dict[str, Any]:
    """Return an entry of `frames`; the LiDAR moves 2 m a frame to the world's +y and its x points to the world's +x."""
    row = {
        "sequence_id": "000076",
        "frame_id": str(START_MS + 500 * i),
        "pose": [0.0, 0.0, 1.0, 0.0, 100.0, 50.0 + 2 * i, 20.0],
    }
    return row | changes


ANNOS = {
    "names": ["Car", "Cyclist"],
    # Ahead, along the road, facing forward (the LiDAR's -y): yaw -90°; to the left, facing left: yaw 0.
    "boxes_3d": [[0.0, -12.0, -1.1, 4.5, 1.9, 1.6, -np.pi / 2], [5.0, 0.0, -1.0, 1.8, 0.6, 1.7, 0.0]],
    "boxes_2d": {"cam01": [[1, 2, 3, 4], [-1, -1, -1, -1]]},
}


class Folder:
    """Three frames, the middle one without annotations, the last one annotated with nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sequence = root / "data" / "000076"
        self.json = self.sequence / "000076.json"
        (self.sequence / "lidar_roof").mkdir(parents=True)
        (root / "ImageSets").mkdir()
        (root / "ImageSets" / "train.txt").write_text("000076\n000080\n")
        self.frames = [frame(0, annos=ANNOS), frame(1), frame(2, annos={"names": [], "boxes_3d": [], "boxes_2d": {}})]
        self.write()
        for i in range(3):
            self.points(i).write_bytes(POINTS.tobytes())

    def points(self, i: int) -> Path:
        return self.sequence / "lidar_roof" / f"{START_MS + 500 * i}.bin"

    def write(self) -> None:
        content = {"meta_info": {"image_size": [1920, 1020]}, "calib": CALIB, "frames": self.frames}
        self.json.write_text(json.dumps(content))

    def open(self) -> Once:
        return open_source(str(self.root))

    def read(self) -> list[Sweep | BadFrame]:
        return list(self.open().read("000076"))

    def sweeps(self) -> list[Sweep]:
        read = self.read()
        for one in read:
            assert isinstance(one, Sweep), one
        return [one for one in read if isinstance(one, Sweep)]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "once")


def test_points_turn_to_the_vehicles_axes_and_rise_by_the_mount(folder: Folder) -> None:
    sweep = folder.sweeps()[0]
    wanted = [[10, 0, 0], [0, 4, HEIGHT], [-190, -3, 2 + HEIGHT], [20, 0, 1 + HEIGHT]]
    np.testing.assert_allclose(sweep.xyz, wanted, atol=1e-4)
    assert sweep.intensity is not None
    np.testing.assert_array_equal(sweep.intensity, POINTS[:, 3])
    assert (sweep.ring, sweep.point_source_class, sweep.motion_compensated) == (None, None, False)
    assert LIDAR.pose[:3, 0].round(9).tolist() == [0, 1, 0]


def test_frames_are_named_by_their_time_and_carry_split_and_calibration(folder: Folder) -> None:
    sweeps = folder.sweeps()
    assert [s.name for s in sweeps] == [f"000076/{START_MS + 500 * i}" for i in range(3)]
    assert [s.timestamp_ns for s in sweeps] == [(START_MS + 500 * i) * 1_000_000 for i in range(3)]
    assert {s.split for s in sweeps} == {"train"}
    assert all(s.keyframe for s in sweeps)
    assert sweeps[1].calibration is not None
    assert json.loads(sweeps[1].calibration) == {"calib": CALIB, "meta_info": {"image_size": [1920, 1020]}}


def test_poses_are_of_the_lidar_and_leave_as_of_the_ego_frame(folder: Folder) -> None:
    # A half turn about z: the LiDAR's y, which is the vehicle's back, points to the world's -y.
    for i, sweep in enumerate(folder.sweeps()):
        assert sweep.world_SE3_ego is not None
        origin = [100, 50 + 2 * i, 20 - HEIGHT]
        np.testing.assert_allclose(sweep.world_SE3_ego[:3, 3], origin, atol=1e-9)
        np.testing.assert_allclose(sweep.world_SE3_ego @ [5, 0, 0, 1], [100, 55 + 2 * i, 20 - HEIGHT, 1], atol=1e-9)
        np.testing.assert_allclose(sweep.world_SE3_ego @ [0, 3, 0, 1], [97, 50 + 2 * i, 20 - HEIGHT, 1], atol=1e-9)


def test_a_quaternion_has_its_real_part_last(folder: Folder) -> None:
    folder.frames[1] = frame(1, pose=[0.0, 0.0, QUARTER, QUARTER, 0.0, 0.0, 0.0])
    folder.write()
    pose = folder.sweeps()[1].world_SE3_ego
    assert pose is not None
    # A quarter to the left takes the LiDAR's -y (forward) to the world's +x.
    np.testing.assert_allclose(pose[:3, 0], [1, 0, 0], atol=1e-9)


def test_a_frame_that_could_not_be_located_has_no_pose(folder: Folder) -> None:
    folder.frames[1] = frame(1, pose=[0, 0, 0, 0, 0, 0, 0])
    folder.write()
    assert [s.world_SE3_ego is None for s in folder.sweeps()] == [False, True, False]


def test_boxes_turn_with_the_points(folder: Folder) -> None:
    annotated, unannotated, empty = folder.sweeps()
    assert unannotated.boxes is None
    assert empty.boxes is not None
    assert len(empty.boxes) == 0
    boxes = annotated.boxes
    assert boxes is not None
    np.testing.assert_allclose(boxes.boxes[0], [12, 0, HEIGHT - 1.1, 4.5, 1.9, 1.6, 0], atol=1e-5)
    np.testing.assert_allclose(boxes.boxes[1], [0, 5, HEIGHT - 1.0, 1.8, 0.6, 1.7, np.pi / 2], atol=1e-5)
    assert boxes.source_class.tolist() == [0, 4]
    assert (boxes.track_id, boxes.box_2d) == (None, None)


def test_the_class_map_is_whole() -> None:
    classes = taxonomy()
    assert [s.name for s in classes.sources] == ["Car", "Bus", "Truck", "Pedestrian", "Cyclist"]
    assert classes.detection_classes == tuple(name for name, _ in CLASSES)
    assert classes.benchmark_lookup("detection")[[0, 1, 2, 3, 4, 65535]].tolist() == [1, 2, 3, 4, 5, 255]
    assert [classes.class_names[i - 1] for i in classes.lookup()[[0, 2, 3, 4]]] == [
        *("vehicle", "vehicle", "pedestrian", "cyclist")
    ]
    assert {c.name for c in classes.classes if c.labelled} == LABELLED_CLASSES == {"vehicle", "pedestrian", "cyclist"}
    assert classes.segmentation_classes == ()


def test_the_smallest_raw_split_counts_and_without_lists_there_is_none(folder: Folder) -> None:
    for name in ("000000", "000074", "000500", "000900", "000028"):
        (folder.root / "data" / name).mkdir()
    (folder.root / "data" / "000000.tar").write_text("an archive")
    lists = {
        "raw_small": "000000\n",
        "raw_medium": "000000\n000074\n",
        "raw_large": "000000\n000074\n000500",
        "test_set": "000028\n",
    }
    for name, text in lists.items():
        (folder.root / "ImageSets" / f"{name}.txt").write_text(text)
    log = folder.open()
    assert log.sequences() == ("000000", "000028", "000074", "000076", "000500", "000900")
    assert [log.split_of[s] for s in log.sequences()] == [
        "raw_small",
        "test",
        "raw_medium",
        "train",
        "raw_large",
        None,
    ]
    for path in (folder.root / "ImageSets").iterdir():
        path.unlink()
    assert set(folder.open().split_of.values()) == {None}


def test_a_source_travels_to_a_task(folder: Folder) -> None:
    assert "once" in known_sources()
    again = pickle.loads(pickle.dumps(folder.open()))
    assert [s.timestamp_ns for s in again.read("000076")] == [s.timestamp_ns for s in folder.sweeps()]
    assert again.info() == folder.open().info()
    assert again.info().rig[0].intensity_max is None


def annos(**changes: Any) -> dict[str, Any]:
    return frame(1, annos=ANNOS | changes)


BOX = [0.0, -12.0, -1.1, 4.5, 1.9, 1.6, 0.0]


@pytest.mark.parametrize(
    ("row", "what", "where"),
    [
        (frame(1, pose=[0, 0, 0, 0.9, 1, 2, 3]), "norm 0.9", "000076.json, frames[1]"),
        (frame(1, pose=[0, 0, 0, 1, 1, 2]), "pose is [0, 0, 0, 1, 1, 2]", "frames[1]"),
        (frame(1, pose=[0, 0, 0, 1, 1, 2, float("nan")]), "nan", "frames[1]"),
        ({"frame_id": str(START_MS + 500)}, "pose is None", "frames[1]"),
        (frame(1, frame_id="../../000080/lidar_roof/1616343527200"), "frame_id is '../../000080", "frames[1]"),
        (frame(1, frame_id="1616343527"), "frame_id is '1616343527'", "frames[1]"),
        (frame(1, frame_id=None), "frame_id is None", "frames[1]"),
        (frame(0), f"frame {START_MS} does not follow {START_MS}", "frames[1]"),
        (frame(-1), f"frame {START_MS - 500} does not follow {START_MS}", "frames[1]"),
        (frame(1, sequence_id="000080"), "of sequence '000080'", "frames[1]"),
        ("broken", "frame_id is 'broken'", "frames[1]"),
        (annos(names=["Car", "Tram"]), "class of box 1 is 'Tram'", "frames[1].annos.names"),
        (annos(names=["Car"]), "1 names and 2 boxes_3d", "frames[1].annos"),
        (annos(boxes_3d=None), "2 names and None boxes_3d", "frames[1].annos"),
        (annos(boxes_3d=[BOX, BOX[:6]]), "box 1 is [0.0, -12.0", "frames[1].annos.boxes_3d"),
        (annos(boxes_3d=[BOX, [0, 0, 0, 1, 0, 1, 0]]), "box 1 is [0, 0, 0, 1, 0, 1, 0]", "frames[1].annos.boxes_3d"),
        (frame(1, annos=[]), "None names", "frames[1].annos"),
    ],
)
def test_a_bad_frame_is_set_aside_and_says_where(folder: Folder, row: Any, what: str, where: str) -> None:
    folder.frames[1] = row
    folder.write()
    first, bad, last = folder.read()
    assert isinstance(first, Sweep)
    assert isinstance(last, Sweep)
    assert isinstance(bad, BadFrame)
    assert bad.frame_id == (str(row["frame_id"]) if isinstance(row, dict) and "does not" in what else bad.frame_id)
    assert what in bad.error.what
    assert bad.error.where.endswith(where)
    assert bad.error.expected


def test_a_late_frame_does_not_move_the_clock_back(folder: Folder) -> None:
    folder.frames = [frame(0), frame(2), frame(1), frame(1, frame_id="x"), frame(2)]
    folder.write()
    assert [isinstance(one, Sweep) for one in folder.read()] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (POINTS.tobytes()[:-6], "has 58 bytes"),
        (b"", "is empty"),
        (np.where(POINTS == 242, np.nan, POINTS).astype(np.float32).tobytes(), "1 of 4 points are not finite"),
        (None, "point file is missing"),
    ],
)
def test_a_broken_point_file_is_its_frames_alone(folder: Folder, content: bytes | None, what: str) -> None:
    if content is None:
        folder.points(1).unlink()
    else:
        folder.points(1).write_bytes(content)
    read = folder.read()
    assert [isinstance(one, Sweep) for one in read] == [True, False, True]
    assert isinstance(read[1], BadFrame)
    assert what in read[1].error.what
    assert read[1].error.where.endswith(f"{START_MS + 500}.bin")


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda f: f.json.write_text('{"frames": ['), "not valid JSON"),
        (lambda f: f.json.write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
        (lambda f: f.json.write_text("[]"), "lists no frames"),
        (lambda f: f.json.write_text('{"frames": []}'), "lists no frames"),
        (lambda f: f.json.unlink(), "sequence file is missing"),
    ],
)
def test_a_broken_sequence_file_is_named(folder: Folder, spoil: Callable[[Folder], Any], what: str) -> None:
    spoil(folder)
    with pytest.raises(DataError) as caught:
        folder.read()
    assert what in caught.value.what
    assert caught.value.where.endswith("000076.json")


def test_a_wrong_folder_says_what_was_expected(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no sequence in data") as caught:
        open_source(str(folder.root / "data"))
    assert "ImageSets/" in caught.value.expected
    with pytest.raises(ConfigError, match="no version '2'"):
        open_source(str(folder.root), version="2")
    (folder.root / "ImageSets" / "val.txt").write_text("000076")
    with pytest.raises(DataError, match="in the splits train and val"):
        folder.open()
