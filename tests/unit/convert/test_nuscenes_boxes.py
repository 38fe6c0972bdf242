"""Sweeps between keyframes: which there are, where they are, and their boxes worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from spot_ray.convert._nuscenes_boxes import _slerp
from spot_ray.convert.nuscenes import open_source
from spot_ray.convert.source import BadFrame
from spot_ray.errors import DataError
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.storage.dataset import DatasetWriter, open_dataset

ORDER = ["sweep-0-before", "sample-0-0", "sweep-0-early", "sample-0-1", "sweep-0-middle", "sample-0-2", "sweep-0-after"]


@pytest.fixture
def folder(nuscenes_folder: Any) -> Any:
    nuscenes_folder.add_sweeps()
    return nuscenes_folder


def read(folder: Any, scene: str = "scene-0000") -> dict[str, Sweep]:
    """Return the sweeps of a scene by frame id."""
    sweeps = list(open_source(str(folder.root)).read(scene))
    assert all(isinstance(sweep, Sweep) for sweep in sweeps)
    return {sweep.frame_id: sweep for sweep in sweeps if isinstance(sweep, Sweep)}


def boxes_of(sweep: Sweep) -> Boxes:
    assert sweep.boxes is not None
    return sweep.boxes


def the_car(sweep: Sweep) -> tuple[Any, Any]:
    """Return box and velocity of the car."""
    boxes = boxes_of(sweep)
    assert boxes.track_id is not None
    assert boxes.velocity is not None
    m = boxes.track_id.index("car-0")
    return boxes.boxes[m], boxes.velocity[m]


def turn(row: dict[str, Any], yaw_deg: float, sign: float = 1.0) -> None:
    half = math.radians(yaw_deg) / 2
    row["rotation"] = [sign * math.cos(half), 0.0, 0.0, sign * math.sin(half)]


def edit_car(folder: Any, frame: int, change: Any) -> None:
    def find(rows: list[dict[str, Any]]) -> None:
        change(next(row for row in rows if row["token"] == f"car-0-{frame}"))

    folder.edit("sample_annotation", find)


def test_sweeps_stand_between_the_keyframes_with_their_own_pose_and_calibration(folder: Any) -> None:
    sweeps = read(folder)
    assert list(sweeps) == ORDER
    assert [s.keyframe for s in sweeps.values()] == [False, True] * 3 + [False]
    early = sweeps["sweep-0-early"]
    assert early.timestamp_ns == 1_000_125_000_000
    assert early.world_SE3_ego is not None
    np.testing.assert_allclose(early.world_SE3_ego @ [1, 0, 0, 1], [100, 51.25, 0, 1], atol=1e-9)
    # The keyframes' sensor is 1.8 m above the ground, that of these sweeps 1.9 m.
    np.testing.assert_allclose(early.xyz[0], [10.9, 0.0, 0.1], atol=1e-5)
    np.testing.assert_allclose(sweeps["sample-0-1"].xyz[0], [10.9, 0.0, 0.0], atol=1e-5)
    assert [len(s) for s in sweeps.values()] == [3, 4] * 3 + [3]
    assert early.point_source_class is None
    assert sweeps["sample-0-1"].point_source_class is not None


def test_boxes_go_between_keyframes_and_hold_at_the_ends_of_a_scene(folder: Any) -> None:
    sweeps = read(folder)
    # The car's place in the world, less the ego's 50 + 2 t.
    for name, x, speed in (
        ("before", 70 - 49.9, 4),
        ("early", 70.5 - 50.25, 4),
        ("middle", 74 - 51.5, 8),
        ("after", 76 - 52.1, 8),
    ):
        box, velocity = the_car(sweeps[f"sweep-0-{name}"])
        np.testing.assert_allclose(box, [x, 3, 0.8, 4.5, 2.0, 1.6, 0.0], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(velocity, [speed, 0, 0], atol=1e-5, err_msg=name)


def test_only_objects_of_both_keyframes_are_interpolated(folder: Any) -> None:
    tracks = {name: set(boxes_of(sweep).track_id or []) for name, sweep in read(folder).items()}
    assert tracks["sample-0-1"] == {"car-0", "rack-0", "cone-0"}
    for name in ("before", "early", "middle", "after"):
        assert tracks[f"sweep-0-{name}"] == {"car-0", "rack-0"}


def test_interpolated_boxes_are_marked_and_nobody_counted_their_points(folder: Any) -> None:
    for sweep in read(folder).values():
        boxes = boxes_of(sweep)
        assert boxes.interpolated is not None
        assert boxes.interpolated.tolist() == [not sweep.keyframe] * len(boxes)
        for column in (boxes.num_lidar_points, boxes.num_radar_points, boxes.attribute):
            assert (column is not None) == sweep.keyframe
        assert sweep.ignore_regions is not None
        np.testing.assert_allclose(sweep.ignore_regions[0, 1:], [-10, 0.5, 3, 1, 1, 0], atol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rotation_takes_the_shorter_way_and_size_goes_along(folder: Any, sign: float) -> None:
    def later(row: dict[str, Any]) -> None:
        turn(row, 90 - 60, sign)  # a quaternion and its negative are the same rotation
        row["size"] = [2.4, 4.5, 1.6]

    edit_car(folder, 1, later)
    box, _ = the_car(read(folder)["sweep-0-early"])
    assert box[6] == pytest.approx(math.radians(-15), abs=1e-6)
    assert box[3:6].tolist() == pytest.approx([4.5, 2.1, 1.6])


def test_rotation_crosses_the_seam_of_the_angle(folder: Any) -> None:
    edit_car(folder, 1, lambda row: turn(row, 90 + 170))
    edit_car(folder, 2, lambda row: turn(row, 90 - 170))
    box, _ = the_car(read(folder)["sweep-0-middle"])
    assert abs(box[6]) == pytest.approx(math.pi, abs=1e-6)


def test_slerp_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = (Rotation.random(20, rng=rng) for _ in range(2))
    q_a, q_b = (r.as_quat(scalar_first=True) for r in (a, b))
    for weight in (0.0, 0.3, 1.0):
        expected = [Slerp([0, 1], Rotation.concatenate([a[i], b[i]]))(weight) for i in range(20)]
        found = Rotation.from_quat(_slerp(q_a, q_b, weight), scalar_first=True)
        assert max((e * f.inv()).magnitude() for e, f in zip(expected, found, strict=True)) < 1e-7
    np.testing.assert_allclose(_slerp(q_a, q_a, 0.3), q_a, atol=1e-12)
    np.testing.assert_allclose(_slerp(q_a, -q_a, 0.3), q_a, atol=1e-12)


def test_too_long_a_gap_interpolates_without_velocity(folder: Any) -> None:
    def stretch(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["timestamp"] = 1_000_000_000 + {0: 0, 1: 500_000, 2: 2_100_000}[int(row["token"][-1])]

    folder.edit("sample", stretch)
    box, velocity = the_car(read(folder)["sweep-0-middle"])
    assert box[0] == pytest.approx(72 + 4 * 0.25 / 1.6 - 51.5, abs=1e-5)
    assert np.isnan(velocity).all()


def test_a_version_without_annotations_has_none_between_keyframes(folder: Any) -> None:
    folder.edit("sample_annotation", list.clear)
    assert all(sweep.boxes is None for sweep in read(folder).values())


def test_the_keyframes_alone_are_the_same_with_and_without_sweeps(folder: Any) -> None:
    alone = list(open_source(str(folder.root), sweeps="keyframes").read("scene-0000"))
    with_sweeps = [sweep for sweep in read(folder).values() if sweep.keyframe]
    for a, b in zip(alone, with_sweeps, strict=True):
        assert isinstance(a, Sweep)
        assert a.name == b.name
        np.testing.assert_array_equal(a.xyz, b.xyz)
        np.testing.assert_array_equal(boxes_of(a).boxes, boxes_of(b).boxes)
    provenance = open_source(str(folder.root)).info().provenance
    assert "keyframes and the sweeps between them of LIDAR_TOP" in provenance


def test_sweeps_that_were_not_downloaded_are_told_with_the_way_out(folder: Any) -> None:
    (folder.root / "sweeps").rename(folder.root / "elsewhere")
    with pytest.raises(DataError, match="list 8 sweeps between the keyframes") as caught:
        open_source(str(folder.root))
    assert caught.value.where.endswith("sweeps/LIDAR_TOP")
    assert "--option sweeps=keyframes" in caught.value.remedy
    assert len(list(open_source(str(folder.root), sweeps="keyframes").read("scene-0000"))) == 3


def test_a_broken_sweep_is_a_bad_frame(folder: Any) -> None:
    folder.sweep(0, "middle").write_bytes(b"\0" * 30)
    bad = [frame for frame in open_source(str(folder.root)).read("scene-0000") if isinstance(frame, BadFrame)]
    assert [frame.frame_id for frame in bad] == ["sweep-0-middle"]
    assert bad[0].error.where.endswith("0-middle.pcd.bin")


def test_two_sweeps_of_one_time_are_refused_on_writing(folder: Any, tmp_path: Path) -> None:
    def same_time(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["token"] == "sweep-0-early":
                row["timestamp"] = 1_000_750_000

    folder.edit("sample_data", same_time)
    with pytest.raises(DataError, match="does not follow") as caught:
        write(folder, tmp_path / "out")
    assert caught.value.where in {"scene-0000/sweep-0-early", "scene-0000/sweep-0-middle"}


def test_sweeps_survive_writing_and_reading(folder: Any, tmp_path: Path) -> None:
    write(folder, tmp_path / "out")
    for given, found in zip(read(folder).values(), open_dataset(str(tmp_path / "out")), strict=True):
        assert (found.name, found.keyframe, found.timestamp_ns) == (given.name, given.keyframe, given.timestamp_ns)
        a, b = boxes_of(given), boxes_of(found)
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.interpolated, b.interpolated)
        assert (a.num_lidar_points is None) == (b.num_lidar_points is None)
        assert a.attribute == b.attribute
        np.testing.assert_allclose(found.xyz, given.xyz, atol=0.0026)


def write(folder: Any, out: Path) -> None:
    source = open_source(str(folder.root))
    info = source.info()
    with DatasetWriter(str(out), name=info.name, rig=info.rig, taxonomy=info.taxonomy) as writer:
        for sweep in source.read("scene-0000"):
            assert isinstance(sweep, Sweep)
            writer.add(sweep)
