"""KITTI's boxes, splits and levels against numbers worked by hand, and every kind of broken folder."""

from __future__ import annotations

import json
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from spot_ray.convert._kitti_labels import difficulty
from spot_ray.convert.files import hashed_reading
from spot_ray.convert.kitti import CLASSES, Kitti, open_source
from spot_ray.convert.source import BadFrame, known_sources
from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.kitti_boxes import boxes_in_ego
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_CLASSES
from spot_ray.storage.dataset import DatasetWriter, open_dataset

POINTS = np.array([[10, 0, -1.73, 0], [5, -2, 0.5, 0.99], [-3, 4, 1, 0.25]], np.float32)
# The camera looks along the Velodyne's x, 0.3 m in front of it and 0.1 m below: x_cam = -y, y_cam = -z - 0.1,
# z_cam = x - 0.3.
CALIB = """P0: 700 0 600 0 0 700 180 0 0 0 1 0
P1: 700 0 600 -380 0 700 180 0 0 0 1 0
P2: 700 0 600 45 0 700 180 -0.3 0 0 1 0.005
P3: 700 0 600 -330 0 700 180 2.3 0 0 1 0.003
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 -0.1 1 0 0 -0.3
Tr_imu_to_velo: 1 0 0 -0.8 0 1 0 0.3 0 0 1 -0.8

"""
LABEL = """Car 0.20 1 -1.57 100.0 50.0 180.0 95.5 1.6 1.8 4.0 2.0 1.5 20.0 -1.5707963
DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10
Pedestrian 0.00 0 0.2 300 50 320 120 1.7 0.5 0.8 -4.0 1.6 8.0 0.0
"""


def png(width: int, height: int) -> bytes:
    """Return the start of a PNG as its specification has it; the pixels are never read."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + b"rest"


class Folder:
    """Three training frames in two lists, one of them in none; a testing frame of the same number."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for i in range(3):
            self.add("training", i)
            self.write(f"training/label_2/{i:06d}.txt", LABEL if i == 0 else "")
        self.add("testing", 0)
        self.write("ImageSets/train.txt", "000000\n")
        self.write("ImageSets/val.txt", "000002\n\n")
        self.write("ImageSets/trainval.txt", "000000\n000002\n")
        self.write("ImageSets/test.txt", "000000\n")
        self.path("training/image_2/000000.png").parent.mkdir()
        self.path("training/image_2/000000.png").write_bytes(png(1242, 375))

    def add(self, folder: str, i: int) -> None:
        self.write(f"{folder}/calib/{i:06d}.txt", CALIB)
        self.path(f"{folder}/velodyne").mkdir(exist_ok=True)
        self.path(f"{folder}/velodyne/{i:06d}.bin").write_bytes(POINTS[: i + 1].tobytes())

    def path(self, relative: str) -> Path:
        return self.root / relative

    def write(self, relative: str, text: str) -> None:
        self.path(relative).parent.mkdir(parents=True, exist_ok=True)
        self.path(relative).write_text(text)

    def edit(self, relative: str, old: str, new: str) -> None:
        text = self.path(relative).read_text()
        assert old in text
        self.path(relative).write_text(text.replace(old, new))

    def open(self) -> Kitti:
        return open_source(str(self.root))

    def read(self, sequence_id: str = "training/000000") -> Sweep:
        (sweep,) = self.open().read(sequence_id)
        assert isinstance(sweep, Sweep), sweep.error
        return sweep


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "kitti")


def test_it_is_found_by_its_name_and_pickles(folder: Folder) -> None:
    assert "kitti" in known_sources()
    source = pickle.loads(pickle.dumps(folder.open()))
    assert source.sequences() == ("testing/000000", "training/000000", "training/000001", "training/000002")
    info = source.info()
    assert info.sequences_a_shard > 1
    assert info.rig[0].num_beams == 64
    assert "testing and training" in info.provenance


def test_points_stand_on_the_ground_and_carry_no_made_up_column(folder: Folder) -> None:
    sweep = folder.read("training/000002")
    np.testing.assert_allclose(sweep.xyz, [[10, 0, 0], [5, -2, 2.23], [-3, 4, 2.73]], atol=1e-6)
    assert sweep.xyz.dtype == np.float32
    assert sweep.intensity is not None
    assert sweep.intensity.tolist() == POINTS[:, 3].tolist()
    assert sweep.timestamp_ns == 0
    assert sweep.motion_compensated is False
    for name in ("world_SE3_ego", "ring", "point_source_class", "instance_id", "sweep_poses", "lidar_id"):
        assert getattr(sweep, name) is None


def test_boxes_come_to_the_ego_frame_by_their_centre(folder: Folder) -> None:
    boxes = folder.read().boxes
    assert boxes is not None
    # The car: 20.3 m ahead, 2 m right; its bottom 1.5 m below the camera, which is 1.73 - 0.1 m up; it faces forward.
    # The pedestrian: at a turn of 0 it faces the camera's x, to the right.
    expected = [[20.3, -2, 0.13 + 0.8, 4.0, 1.8, 1.6, 0.0], [8.3, 4, 0.03 + 0.85, 0.8, 0.5, 1.7, -np.pi / 2]]
    np.testing.assert_allclose(boxes.boxes, expected, atol=1e-5)
    assert boxes.boxes.dtype == np.float32
    assert boxes.source_class.tolist() == [0, 3]
    assert boxes.track_id is None
    assert boxes.velocity is None
    assert boxes.num_lidar_points is None


def test_a_tilted_camera_turns_centre_and_heading(folder: Folder) -> None:
    # The camera is rolled by 30° about its viewing axis: its right, x, points 30° down, and so does the bottom's y.
    c, s = np.cos(np.pi / 6), 0.5
    ego_SE3_camera = np.array([[0, 0, 1, 0], [-c, s, 0, 0], [-s, -c, 0, 1.0], [0, 0, 0, 1]])
    label = np.array([[2.0, 1.0, 4.0, 1.0, 2.0, 10.0, 0.0], [2.0, 1.0, 4.0, 0.0, 1.0, 5.0, -np.pi / 4]])
    boxes = boxes_in_ego(label, ego_SE3_camera)
    # Centre (1, 2 - 1, 10) in the camera's frame.
    np.testing.assert_allclose(boxes[0], [10, -c + s, 1 - s - c, 4, 1, 2, -np.pi / 2], atol=1e-6)
    # The heading (√½, 0, √½) of the camera's frame is (√½, -c √½, -s √½) here.
    np.testing.assert_allclose(boxes[1], [5, 0, 1, 4, 1, 2, np.arctan2(-c, 1)], atol=1e-6)


def test_what_3d_ap_needs_is_kept(folder: Folder) -> None:
    sweep = folder.read()
    boxes = sweep.boxes
    assert boxes is not None
    assert boxes.box_2d is not None
    assert boxes.truncation is not None
    assert boxes.occlusion is not None
    assert boxes.difficulty is not None
    np.testing.assert_allclose(boxes.box_2d, [[100, 50, 180, 95.5], [300, 50, 320, 120]])
    np.testing.assert_allclose(boxes.truncation, [0.2, 0])
    assert boxes.occlusion.tolist() == [1, 0]
    assert boxes.difficulty.tolist() == [1, 0]
    np.testing.assert_allclose(sweep.ignore_boxes_2d, [[503.89, 169.71, 590.61, 190.13]], rtol=1e-6)
    calibration = json.loads(sweep.calibration or "")
    assert calibration["image_size"] == [1242, 375]
    assert calibration["P2"] == [[700, 0, 600, 45], [0, 700, 180, -0.3], [0, 0, 1, 0.005]]
    assert calibration["R0_rect"] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert calibration["Tr_velo_to_cam"] == [[0, -1, 0, 0], [0, 0, -1, -0.1], [1, 0, 0, -0.3]]
    assert calibration.keys() == {"P0", "P1", "P2", "P3", "R0_rect", "Tr_velo_to_cam", "Tr_imu_to_velo", "image_size"}


@pytest.mark.parametrize(
    ("height", "occlusion", "truncation", "level"),
    [
        (40, 0, 0.15, 0),
        (39.99, 0, 0.15, 1),
        (41, 1, 0, 1),
        (41, 0, 0.16, 1),
        (25, 1, 0.3, 1),
        (41, 0, 0.31, 2),
        (26, 2, 0.5, 2),
        (24.99, 0, 0, -1),
        (100, 3, 0, -1),
        (100, 0, 0.51, -1),
    ],
)
def test_levels_of_difficulty_are_the_benchmarks(height: float, occlusion: int, truncation: float, level: int) -> None:
    arrays = (np.array([v], np.float64) for v in (height, occlusion, truncation))
    assert difficulty(*arrays).tolist() == [level]


def test_an_empty_label_file_is_a_frame_in_which_nothing_is(folder: Folder) -> None:
    sweep = folder.read("training/000001")
    assert sweep.boxes is not None
    assert len(sweep.boxes) == 0
    assert sweep.ignore_boxes_2d is None
    assert json.loads(sweep.calibration or "")["image_size"] is None


def test_splits_are_those_of_the_lists(folder: Folder) -> None:
    splits = {name: folder.read(name).split for name in folder.open().sequences()}
    assert splits == {
        "testing/000000": "test",
        "training/000000": "train",
        "training/000001": None,
        "training/000002": "val",
    }
    assert folder.read("testing/000000").boxes is None


def test_without_lists_the_frames_are_the_files(folder: Folder) -> None:
    for name in ("train", "val", "trainval", "test"):
        folder.path(f"ImageSets/{name}.txt").unlink()
    assert len(folder.open().sequences()) == 4
    assert folder.read().split is None
    assert folder.read("testing/000000").split == "test"


def test_a_listed_frame_without_its_files_is_told_and_a_folder_left_out_is_not(folder: Folder) -> None:
    folder.write("ImageSets/val.txt", "000002\n000007\n")
    folder.path("testing/velodyne/000000.bin").unlink()
    source = folder.open()
    assert source.sequences() == ("training/000000", "training/000001", "training/000002", "training/000007")
    (bad,) = source.read("training/000007")
    assert isinstance(bad, BadFrame)
    assert bad.frame_id == "000007"
    assert bad.error.what == "the point file is missing"


def test_optional_lines_of_the_calibration_may_be_missing(folder: Folder) -> None:
    lines = [line for line in CALIB.splitlines() if line.startswith(("P2", "R0", "Tr_velo"))]
    folder.write("training/calib/000000.txt", "\n".join(["calib_time: 09-Jan-2012 13:57:47", *lines]))
    calibration = json.loads(folder.read().calibration or "")
    assert calibration["P0"] is None
    assert calibration["Tr_imu_to_velo"] is None


def test_every_type_has_its_place(folder: Folder) -> None:
    taxonomy = folder.open().info().taxonomy
    readme = ["Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc"]
    assert [(s.id, s.name) for s in taxonomy.sources] == list(enumerate(readme))
    assert taxonomy.detection_classes == ("Car", "Pedestrian", "Cyclist")
    assert taxonomy.benchmark_lookup("detection")[:8].tolist() == [1, 255, 255, 2, 255, 3, 255, 255]
    targets = [taxonomy.class_names[i - 1] for i in taxonomy.lookup()[:8]]
    assert targets == [
        *("vehicle", "vehicle", "vehicle", "pedestrian", "pedestrian", "cyclist", "vehicle", "general object")
    ]
    assert {c.name for c in taxonomy.classes if c.labelled} == {target for _, target, _ in CLASSES}
    assert taxonomy.class_names == tuple(c.name for c in PAPER_CLASSES)


def test_a_dataset_of_it_gives_everything_back(folder: Folder, tmp_path: Path) -> None:
    source = folder.open()
    info = source.info()
    uri = str(tmp_path / "out")
    with DatasetWriter(uri, name=info.name, rig=info.rig, taxonomy=info.taxonomy) as writer:
        for sequence_id in source.sequences():
            for sweep in source.read(sequence_id):
                assert isinstance(sweep, Sweep)
                writer.add(sweep)
    dataset = open_dataset(uri)
    assert dataset.sequences == source.sequences()
    back, sweep = dataset[dataset.index_of("training/000000/000000")], folder.read()
    assert back.boxes is not None
    assert sweep.boxes is not None
    np.testing.assert_array_equal(back.boxes.boxes, sweep.boxes.boxes)
    np.testing.assert_array_equal(back.boxes.difficulty, sweep.boxes.difficulty)
    np.testing.assert_array_equal(back.ignore_boxes_2d, sweep.ignore_boxes_2d)
    assert (back.calibration, back.split, back.motion_compensated) == (sweep.calibration, "train", False)


def test_the_hash_covers_every_file_of_a_frame(folder: Folder) -> None:
    def digest() -> str | None:
        with hashed_reading() as running:
            folder.read()
        return running.hexdigest

    before = digest()
    assert digest() == before
    seen = {before}
    folder.path("training/image_2/000000.png").write_bytes(png(1224, 370))
    seen.add(digest())
    folder.edit("training/label_2/000000.txt", "Car 0.20", "Car 0.21")
    seen.add(digest())
    folder.edit("training/calib/000000.txt", "P0: 700", "P0: 701")
    seen.add(digest())
    folder.path("training/velodyne/000000.bin").write_bytes(POINTS[1:2].tobytes())
    seen.add(digest())
    assert len(seen) == 5


def test_it_reads_from_an_object_store(folder: Folder) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder.root), "/kitti-test", recursive=True)
    try:
        source = open_source("memory:///kitti-test")
        (sweep,) = source.read("training/000000")
    finally:
        store.rm("/kitti-test", recursive=True)
    assert source.sequences() == folder.open().sequences()
    assert isinstance(sweep, Sweep)
    assert sweep.calibration == folder.read().calibration
    np.testing.assert_array_equal(sweep.xyz, folder.read().xyz)


def _nan(f: Folder) -> None:
    points = POINTS.copy()
    points[1, 2] = np.nan
    f.path("training/velodyne/000000.bin").write_bytes(points.tobytes())


def _edit(relative: str, old: str, new: str) -> Callable[[Folder], object]:
    return lambda f: f.edit(relative, old, new)


BIN, CAL, LAB = "training/velodyne/000000.bin", "training/calib/000000.txt", "training/label_2/000000.txt"
IMAGE = "training/image_2/000000.png"
BROKEN_FRAMES: list[tuple[str, Callable[[Folder], object], str, str]] = [
    ("cut points", lambda f: f.path(BIN).write_bytes(b"\0" * 30), "has 30 bytes", BIN),
    ("empty points", lambda f: f.path(BIN).write_bytes(b""), "is empty", BIN),
    ("nan", _nan, "not finite, the first is point 1", BIN),
    ("no calibration", lambda f: f.path(CAL).unlink(), "calibration file is missing", CAL),
    ("no R0_rect", _edit(CAL, "R0_rect:", "R_rect:"), "no line 'R0_rect'", CAL),
    ("no Tr_velo_to_cam", _edit(CAL, "Tr_velo_to_cam:", "Tr_velo_cam:"), "no line 'Tr_velo_to_cam'", CAL),
    ("short P2", _edit(CAL, "P2: 700 0", "P2: 700"), "has 11 values", f"{CAL}, row 3, 'P2'"),
    ("a word", _edit(CAL, "P2: 700 0", "P2: 700 x"), "holds 'x'", f"{CAL}, row 3, 'P2'"),
    ("no rotation", _edit(CAL, "R0_rect: 1", "R0_rect: 2"), "'R0_rect' is no rigid", f"{CAL}, row 5, 'R0_rect'"),
    ("twice", _edit(CAL, "Tr_imu_to_velo", "Tr_velo_to_cam"), "occurs twice", f"{CAL}, row 7, 'Tr_velo_to_cam'"),
    ("no label", lambda f: f.path(LAB).unlink(), "label file is missing", LAB),
    ("short label", _edit(LAB, "8.0 0.0", "8.0"), "has 14 values", f"{LAB}, row 3"),
    ("result", _edit(LAB, "8.0 0.0", "8.0 0.0 0.9"), "has 16 values", f"{LAB}, row 3"),
    ("no number", _edit(LAB, "Car 0.20", "Car high"), "holds 'high'", f"{LAB}, row 1"),
    ("nan label", _edit(LAB, "4.0 2.0", "4.0 nan"), "holds 'nan'", f"{LAB}, row 1"),
    ("unknown type", _edit(LAB, "Pedestrian", "Pedestrien"), "type 'Pedestrien'", f"{LAB}, row 3"),
    ("flat box", _edit(LAB, "1.7 0.5", "1.7 0"), "width 0", f"{LAB}, row 3"),
    ("truncation", _edit(LAB, "Car 0.20", "Car 1.20"), "truncated 1.2", f"{LAB}, row 1"),
    ("occlusion", _edit(LAB, "0.20 1", "0.20 4"), "occluded 4", f"{LAB}, row 1"),
    ("mirrored", _edit(LAB, "100.0 50.0 180.0", "190.0 50.0 180.0"), "right 180", f"{LAB}, row 1"),
    ("upside down", _edit(LAB, "50.0 180.0 95.5", "50.0 180.0 5.5"), "bottom 5.5", f"{LAB}, row 1"),
    ("binary label", lambda f: f.path(LAB).write_bytes(b"\xff\xfe"), "not a text file", LAB),
    ("no image", lambda f: f.path(IMAGE).write_bytes(b"GIF89a" + b"\0" * 40), "no PNG", IMAGE),
    ("cut image", lambda f: f.path(IMAGE).write_bytes(png(9, 9)[:20]), "no PNG", IMAGE),
]


@pytest.mark.parametrize(
    ("spoil", "what", "where"), [case[1:] for case in BROKEN_FRAMES], ids=[case[0] for case in BROKEN_FRAMES]
)
def test_a_broken_frame_is_named(folder: Folder, spoil: Callable[[Folder], object], what: str, where: str) -> None:
    spoil(folder)
    (bad,) = folder.open().read("training/000000")
    assert isinstance(bad, BadFrame)
    assert bad.frame_id == "000000"
    assert what in bad.error.what
    assert bad.error.where == str(folder.path(where))
    assert bad.error.expected or bad.error.remedy
    # The others are whole.
    assert len(folder.read("training/000002")) == 3


def _empty(f: Folder) -> None:
    for path in f.root.rglob("*.bin"):
        path.unlink()


BROKEN_FOLDERS: list[tuple[str, Callable[[Folder], object], str, str]] = [
    ("no folder", lambda f: f.root.rename(f.root.parent / "away"), "no such folder", ""),
    ("no points", _empty, "no KITTI folder", ""),
    ("stray file", lambda f: f.write("training/velodyne/1.bin", ""), "unexpected file", "training/velodyne/1.bin"),
    (
        "outside",
        lambda f: f.write("ImageSets/val.txt", "000002\n../000001\n"),
        "'../000001'",
        "ImageSets/val.txt, row 2",
    ),
    ("a name", lambda f: f.write("ImageSets/train.txt", "7\n"), "frame '7'", "ImageSets/train.txt, row 1"),
    ("duplicate", lambda f: f.write("ImageSets/train.txt", "000000\n000000"), "twice", "ImageSets/train.txt, row 2"),
    ("leak", lambda f: f.write("ImageSets/val.txt", "000002\n000000"), "in train.txt too", "ImageSets/val.txt, row 2"),
]


@pytest.mark.parametrize(
    ("spoil", "what", "where"), [case[1:] for case in BROKEN_FOLDERS], ids=[case[0] for case in BROKEN_FOLDERS]
)
def test_a_broken_folder_is_named(folder: Folder, spoil: Callable[[Folder], object], what: str, where: str) -> None:
    root = str(folder.root)
    spoil(folder)
    with pytest.raises(DataError) as caught:
        folder.open()
    assert what in caught.value.what
    assert caught.value.where == (f"{root}/{where}" if where else root)
    assert caught.value.expected


def test_the_folder_above_is_asked_for_and_a_version_is_refused(folder: Folder) -> None:
    with pytest.raises(DataError) as caught:
        open_source(str(folder.path("training")))
    assert caught.value.remedy == "give the folder above it"
    with pytest.raises(ConfigError, match="no version '2017'"):
        open_source(str(folder.root), version="2017")
