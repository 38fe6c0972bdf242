"""SemanticKITTI's poses, labels and class map against numbers worked by hand, and every kind of broken folder."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from spot_ray.convert.semantickitti import SemanticKitti, open_source
from spot_ray.convert.source import BadFrame, known_sources
from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry import se3
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_CLASSES
from spot_ray.storage.dataset import DatasetWriter, open_dataset

POINTS = np.array([[10, 0, -1.73, 0], [5, -2, 0.5, 0.99], [-3, 4, 1, 0.25]], np.float32)
# A parked car of instance 7, a road, a rider of instance 300 in motion.
LABELS = np.array([10 | 7 << 16, 40, 253 | 300 << 16], np.uint32)
# x_cam = -y, y_cam = -z - 0.1, z_cam = x - 0.3: the camera sits 0.3 m in front of the Velodyne.
CALIB = "P0: 700 0 600 0 0 700 180 0 0 0 1 0\nTr: 0 -1 0 0 0 0 -1 -0.1 1 0 0 -0.3\n"
START = "1 0 0 0 0 1 0 0 0 0 1 0"
# The camera drove 2 m along its z, forward, and then turned to the right by a quarter: its z is the first one's x.
TURNED = "0 0 1 0 0 1 0 0 -1 0 0 2"
TIMES = "0.000000e+00\n1.037359e-01\n2.073381e-01\n"

# The official configuration: `labels` with `learning_map`, then `learning_map_inv` with its names.
LEARNING_MAP = {
    **{0: 0, 1: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 44: 10, 48: 11, 49: 12},
    **{50: 13, 51: 14, 52: 0, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 99: 0},
    **{252: 1, 253: 7, 254: 6, 255: 8, 256: 5, 257: 5, 258: 4, 259: 5},
}
LEARNING_MAP_INVERSE = [10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]


class Folder:
    """Sequence 00 with two of its three sweeps, 08 with the first, and 11 without labels and poses."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, numbers in (("00", (0, 1)), ("08", (0,)), ("11", (0,))):
            self.write(f"{name}/calib.txt", CALIB)
            self.write(f"{name}/times.txt", TIMES)
            self.path(f"{name}/velodyne").mkdir()
            for i in numbers:
                self.path(f"{name}/velodyne/{i:06d}.bin").write_bytes(POINTS.tobytes())
            if name != "11":
                self.write(f"{name}/poses.txt", f"{START}\n{TURNED}\n{TURNED}\n")
                self.path(f"{name}/labels").mkdir()
                for i in numbers:
                    self.path(f"{name}/labels/{i:06d}.label").write_bytes(LABELS.tobytes())

    def path(self, relative: str) -> Path:
        return self.root / "sequences" / relative

    def write(self, relative: str, text: str) -> None:
        self.path(relative).parent.mkdir(parents=True, exist_ok=True)
        self.path(relative).write_text(text)

    def open(self) -> SemanticKitti:
        return open_source(str(self.root))

    def read(self, sequence_id: str = "00") -> list[Sweep]:
        sweeps = []
        for sweep in self.open().read(sequence_id):
            assert isinstance(sweep, Sweep), sweep.error
            sweeps.append(sweep)
        return sweeps


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "semantickitti")


def test_it_is_found_by_its_name_and_pickles(folder: Folder) -> None:
    assert "semantickitti" in known_sources()
    source = pickle.loads(pickle.dumps(folder.open()))
    assert source.sequences() == ("00", "08", "11")
    assert source.info().sequences_a_shard == 1
    assert source.info().rig[0].height_m == 1.73


def test_points_stand_on_the_ground_with_their_labels(folder: Folder) -> None:
    first, second = folder.read()
    np.testing.assert_allclose(first.xyz, [[10, 0, 0], [5, -2, 2.23], [-3, 4, 2.73]], atol=1e-6)
    assert first.xyz.dtype == np.float32
    assert first.intensity is not None
    assert first.point_source_class is not None
    assert first.instance_id is not None
    assert first.intensity.tolist() == POINTS[:, 3].tolist()
    assert first.point_source_class.tolist() == [10, 40, 253]
    assert first.instance_id.tolist() == [7, -1, 300]
    assert (first.frame_id, second.frame_id) == ("000000", "000001")
    assert (first.timestamp_ns, second.timestamp_ns) == (0, 103_735_900)
    assert first.motion_compensated is True
    assert first.boxes is None
    assert first.ring is None
    assert json.loads(first.calibration or "") == {
        "Tr": [[0, -1, 0, 0], [0, 0, -1, -0.1], [1, 0, 0, -0.3]],
        "P0": [[700, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]],
        **dict.fromkeys(("P1", "P2", "P3", "image_size")),
    }


def test_poses_of_the_camera_become_those_of_the_vehicle(folder: Folder) -> None:
    first, second = folder.read()
    np.testing.assert_allclose(first.world_SE3_ego, np.eye(4), atol=1e-12)
    # The camera was 0.3 m ahead of the ego origin and went to 2.3 m; the vehicle now stands 0.3 m behind it, seen along
    # the new heading, which is to the right: at (2.3, 0.3). Height does not change.
    expected = se3.from_yaw(-np.pi / 2, (2.3, 0.3, 0.0))
    np.testing.assert_allclose(second.world_SE3_ego, expected, atol=1e-12)


def test_splits_are_the_official_ones_and_test_sequences_have_no_labels(folder: Folder) -> None:
    assert [folder.read(name)[0].split for name in ("00", "08", "11")] == ["train", "val", "test"]
    (sweep,) = folder.read("11")
    assert sweep.point_source_class is None
    assert sweep.instance_id is None
    assert sweep.world_SE3_ego is None
    folder.path("08").rename(folder.path("22"))
    assert folder.read("22")[0].split is None


def test_all_sequences_of_the_release_have_their_split(tmp_path: Path) -> None:
    root = Folder(tmp_path / "s")
    for number in range(22):
        if number not in (0, 8, 11):
            root.path("11").rename(root.path(f"{number:02d}"))
            found = root.read(f"{number:02d}")[0].split
            root.path(f"{number:02d}").rename(root.path("11"))
            assert found == ("train" if number <= 10 else "test"), number


def test_a_test_sequence_takes_poses_where_they_are(folder: Folder) -> None:
    folder.write("11/poses.txt", f"{TURNED}\n")
    assert folder.read("11")[0].world_SE3_ego is not None


def test_frames_are_numbered_by_their_file_and_not_by_their_order(folder: Folder) -> None:
    folder.path("00/velodyne/000000.bin").unlink()
    (sweep,) = folder.read()
    assert sweep.timestamp_ns == 103_735_900
    assert sweep.world_SE3_ego is not None
    np.testing.assert_allclose(sweep.world_SE3_ego[:3, 3], [2.3, 0.3, 0], atol=1e-12)


def test_the_benchmarks_classes_are_the_official_learning_map(folder: Folder) -> None:
    taxonomy = folder.open().info().taxonomy
    assert {s.id for s in taxonomy.sources} == LEARNING_MAP.keys()
    lookup = taxonomy.benchmark_lookup("segmentation")
    assert {i: int(lookup[i]) for i in LEARNING_MAP} == {i: c or 255 for i, c in LEARNING_MAP.items()}
    names = {s.id: s.name for s in taxonomy.sources}
    assert taxonomy.segmentation_classes == tuple(names[i] for i in LEARNING_MAP_INVERSE)
    assert taxonomy.detection_classes == ()


def test_every_label_has_its_place_among_the_papers_classes(folder: Folder) -> None:
    taxonomy = folder.open().info().taxonomy
    assert taxonomy.class_names == tuple(c.name for c in PAPER_CLASSES)
    target = {s.name: s.target for s in taxonomy.sources}
    assert {name for name, t in target.items() if t is None} == {"unlabeled", "outlier"}
    moving = [name for name in target if name.startswith("moving-")]
    assert len(moving) == 8
    assert all(target[name] == target[name.removeprefix("moving-")] for name in moving)
    grounds = {t: {n for n in target if target[n] == t} for t in ("road", "walkable")}
    assert grounds["road"] == {"road", "parking", "lane-marking"}
    assert grounds["walkable"] == {"sidewalk", "terrain", "other-ground"}
    assert target["trunk"] == "tree trunk"
    assert target["traffic-sign"] == "sign"
    unlabelled = {c.name for c in taxonomy.classes if not c.labelled}
    assert unlabelled == {"traffic light", "construction cone"}
    assert unlabelled | {t for t in target.values() if t is not None} == set(taxonomy.class_names)


def test_a_dataset_of_it_gives_everything_back(folder: Folder, tmp_path: Path) -> None:
    info = folder.open().info()
    uri = str(tmp_path / "out")
    with DatasetWriter(uri, name=info.name, rig=info.rig, taxonomy=info.taxonomy) as writer:
        for sequence_id in folder.open().sequences():
            for sweep in folder.read(sequence_id):
                writer.add(sweep)
    dataset = open_dataset(uri)
    assert dataset.sequences == ("00", "08", "11")
    back, sweep = dataset[1], folder.read()[1]
    np.testing.assert_array_equal(back.point_source_class, sweep.point_source_class)
    np.testing.assert_array_equal(back.instance_id, sweep.instance_id)
    np.testing.assert_array_equal(back.world_SE3_ego, sweep.world_SE3_ego)
    np.testing.assert_allclose(back.xyz, sweep.xyz, atol=0.0026)
    assert (back.timestamp_ns, back.split, back.motion_compensated) == (103_735_900, "train", True)


def test_it_reads_from_an_object_store(folder: Folder) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder.root), "/semantickitti-test", recursive=True)
    try:
        source = open_source("memory:///semantickitti-test")
        sweeps = list(source.read("00"))
    finally:
        store.rm("/semantickitti-test", recursive=True)
    assert source.sequences() == folder.open().sequences()
    for sweep, local in zip(sweeps, folder.read(), strict=True):
        assert isinstance(sweep, Sweep)
        np.testing.assert_array_equal(sweep.world_SE3_ego, local.world_SE3_ego)
        np.testing.assert_array_equal(sweep.point_source_class, local.point_source_class)


def _labels(*labels: int) -> Callable[[Folder], object]:
    return lambda f: f.path("00/labels/000001.label").write_bytes(np.array(labels, np.uint32).tobytes())


def _infinite(f: Folder) -> None:
    points = POINTS.copy()
    points[2, 0] = np.inf
    f.path("00/velodyne/000001.bin").write_bytes(points.tobytes())


BIN, LABEL = "velodyne/000001.bin", "labels/000001.label"
BROKEN_FRAMES: list[tuple[str, Callable[[Folder], object], str, str]] = [
    ("cut points", lambda f: f.path(f"00/{BIN}").write_bytes(b"\0" * 30), "has 30 bytes", BIN),
    ("empty points", lambda f: f.path(f"00/{BIN}").write_bytes(b""), "is empty", BIN),
    ("infinite", _infinite, "not finite, the first is point 2", BIN),
    ("missing label", lambda f: f.path(f"00/{LABEL}").unlink(), "label file is missing", LABEL),
    ("label count", _labels(10, 40), "2 labels for 3 points", LABEL),
    ("cut label", lambda f: f.path(f"00/{LABEL}").write_bytes(b"\0" * 11), "2.75 labels for 3 points", LABEL),
    ("unknown class", _labels(10, 40, 33), "point 2 has the label 33", LABEL),
    ("learning map", _labels(10, 9 | 5 << 16, 40), "point 1 has the label 9", LABEL),
    ("short poses", lambda f: f.write("00/poses.txt", START), "has 1 rows and none for the frame 000001", "poses.txt"),
    ("short times", lambda f: f.write("00/times.txt", "0\n"), "has 1 rows and none for the frame 000001", "times.txt"),
    (
        "no rotation",
        lambda f: f.write("00/poses.txt", f"{START}\n2 0 0 0 0 1 0 0 0 0 1 0"),
        "no rigid transform",
        "poses.txt, row 2",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "what", "where"), [case[1:] for case in BROKEN_FRAMES], ids=[case[0] for case in BROKEN_FRAMES]
)
def test_a_broken_frame_is_named(folder: Folder, spoil: Callable[[Folder], object], what: str, where: str) -> None:
    spoil(folder)
    first, bad = folder.open().read("00")
    assert isinstance(first, Sweep)
    assert isinstance(bad, BadFrame)
    assert bad.frame_id == "000001"
    assert what in bad.error.what
    assert bad.error.where == str(folder.path(f"00/{where}"))
    assert bad.error.expected
    assert bad.error.remedy


BROKEN_SEQUENCES: list[tuple[str, str, str | None, str, str]] = [
    ("no calibration", "calib.txt", None, "calibration file is missing", "calib.txt"),
    ("no Tr", "calib.txt", CALIB.replace("Tr:", "Tr_velo:"), "no line 'Tr'", "calib.txt"),
    ("short Tr", "calib.txt", CALIB.replace("-0.3\n", "\n"), "has 11 values", "calib.txt, row 2, 'Tr'"),
    ("no times", "times.txt", None, "has no times", "times.txt"),
    ("standing time", "times.txt", "0\n0.1\n0.1\n0.2\n", "0.1 s does not follow 0.1 s", "times.txt, row 3"),
    ("time back", "times.txt", "0\n0.2\n0.1\n", "0.1 s does not follow 0.2 s", "times.txt, row 3"),
    ("negative time", "times.txt", "-0.1\n0.2\n", "negative", "times.txt, row 1"),
    ("no poses", "poses.txt", None, "pose file is missing", "poses.txt"),
    ("short pose", "poses.txt", f"{START}\n1 0 0 0\n", "has 4 values", "poses.txt, row 2"),
    ("4 × 4 pose", "poses.txt", f"{START} 0 0 0 1\n", "has 16 values", "poses.txt, row 1"),
    ("pose of words", "poses.txt", START.replace("1 0 0 0", "one 0 0 0"), "holds 'one'", "poses.txt, row 1"),
    ("nan pose", "poses.txt", f"{START}\n{START}\nnan{START[1:]}\n", "holds 'nan'", "poses.txt, row 3"),
    # Rows are counted by frame, so one that is left blank moves all later ones.
    ("blank row", "poses.txt", f"{START}\n\n{TURNED}\n", "has 0 values", "poses.txt, row 2"),
]


@pytest.mark.parametrize(
    ("file", "text", "what", "where"), [case[1:] for case in BROKEN_SEQUENCES], ids=[c[0] for c in BROKEN_SEQUENCES]
)
def test_what_a_whole_sequence_needs_is_named(
    folder: Folder, file: str, text: str | None, what: str, where: str
) -> None:
    if text is None:
        folder.path(f"00/{file}").unlink()
    else:
        folder.write(f"00/{file}", text)
    with pytest.raises(DataError) as caught:
        list(folder.open().read("00"))
    assert what in caught.value.what
    assert caught.value.where == str(folder.path(f"00/{where}"))
    assert caught.value.expected
    assert caught.value.remedy
    assert len(folder.read("08")) == 1


def test_a_folder_that_is_none_is_named(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_source(str(tmp_path / "away"))
    with pytest.raises(DataError, match="no SemanticKITTI folder") as caught:
        open_source(str(folder.path("")))
    assert caught.value.remedy == "give the folder above it"
    folder.write("00/velodyne/notes.txt", "")
    with pytest.raises(DataError, match="unexpected file") as caught:
        folder.open()
    assert caught.value.where == str(folder.path("00/velodyne/notes.txt"))
    with pytest.raises(ConfigError, match="no version 'v1'"):
        open_source(str(folder.root), version="v1")
