"""What people get wrong on the first log is found and named; what is right is left in peace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spot_ray.diagnose.finding import Finding
from spot_ray.diagnose.run import Diagnosis, diagnose, render
from spot_ray.geometry import se3
from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter, open_dataset

MOUNT = nominal_mount(1.8)
POLES = np.random.default_rng(1).uniform((-10, -18), (60, 18), (60, 2))
CARS = ((12.0, 3.5, 0.0), (25.0, -3.5, 0.2), (38.0, 3.5, -0.1), (45.0, -8.0, 0.6))
NUM_FRAMES = 8


def right_sweep(frame: int) -> Sweep:
    """Poles, parked cars and a road, seen on a drive of a metre a frame along a bend."""
    rng = np.random.default_rng(frame)
    world_SE3_ego = se3.from_yaw(0.03 * frame, (1.0 * frame, 0.015 * frame**2, 0.0))
    heights = rng.uniform(0.05, 3.0, (60, 60))
    poles = np.dstack([np.repeat(POLES[:, None], 60, axis=1), heights]).reshape(-1, 3)
    shell = rng.uniform(-1, 1, (400, 3))
    shell[np.arange(400), rng.integers(0, 2, 400)] = rng.choice([-1.0, 1.0], 400)
    cars = np.concatenate(
        [se3.transform_points(se3.from_yaw(yaw, (x, y, 0.75)), shell * (2.2, 0.95, 0.72)) for x, y, yaw in CARS]
    )
    ego_SE3_world = se3.invert(world_SE3_ego)
    road = np.column_stack([rng.uniform(-30, 30, (6000, 2)), rng.normal(0, 0.03, 6000)])
    xyz = np.concatenate([se3.transform_points(ego_SE3_world, np.concatenate([poles, cars])), road])
    boxes = np.array([[x, y, 0.75, 4.5, 2.0, 1.55, yaw] for x, y, yaw in CARS])
    boxes[:, :3] = se3.transform_points(ego_SE3_world, boxes[:, :3])
    boxes[:, 6] -= 0.03 * frame
    return Sweep(
        "drive",
        f"{frame:02d}",
        (frame + 1) * 100_000_000,
        xyz.astype(np.float32),
        world_SE3_ego=world_SE3_ego,
        intensity=rng.integers(0, 256, len(xyz)).astype(np.float32),
        boxes=Boxes(boxes.astype(np.float32), np.full(len(CARS), 2, np.uint16)),
    )


def change_boxes(sweep: Sweep, change: Callable[[np.ndarray], np.ndarray]) -> Sweep:
    assert sweep.boxes is not None
    return dataclasses.replace(sweep, boxes=dataclasses.replace(sweep.boxes, boxes=change(sweep.boxes.boxes.copy())))


def diagnosed(
    tmp_path: Path, change: Callable[[Sweep], Sweep | None] = lambda s: s, intensity_max: float = 255.0
) -> Diagnosis:
    rig = [LidarSpec("roof", 0, "spinning", 32, (-25, 15), ego_SE3_lidar=MOUNT, intensity_max=intensity_max)]
    with DatasetWriter(str(tmp_path / "data"), name="fleet", rig=rig, taxonomy=PAPER_TAXONOMY) as writer:
        for frame in range(NUM_FRAMES):
            sweep = change(right_sweep(frame))
            if sweep is not None:
                writer.add(sweep)
    return diagnose(open_dataset(str(tmp_path / "data")))


def found(diagnosis: Diagnosis, check: str, severity: str = "error") -> Finding:
    findings = [f for f in diagnosis.findings if f.check == check and f.severity == severity]
    assert len(findings) == 1, render(diagnosis)
    return findings[0]


def test_a_log_that_is_right_is_left_in_peace(tmp_path: Path) -> None:
    diagnosis = diagnosed(tmp_path)
    assert {f.severity for f in diagnosis.findings} == {"note"}, render(diagnosis)
    assert "nothing wrong found" in render(diagnosis)
    assert "of the points over the ground meet the frame before" in found(diagnosis, "alignment", "note").what


def replaced(sweep: Sweep, **values: object) -> Sweep:
    return dataclasses.replace(sweep, **values)  # type: ignore[arg-type]


def pose(sweep: Sweep) -> np.ndarray:
    assert sweep.world_SE3_ego is not None
    return sweep.world_SE3_ego


def test_poses_that_are_inverted(tmp_path: Path) -> None:
    diagnosis = diagnosed(tmp_path, lambda s: replaced(s, world_SE3_ego=se3.invert(pose(s))))
    assert "look inverted" in found(diagnosis, "alignment").remedy


def test_points_that_are_in_the_world_frame_already(tmp_path: Path) -> None:
    diagnosis = diagnosed(tmp_path, lambda s: replaced(s, xyz=se3.transform_points(pose(s), s.xyz), boxes=None))
    assert "in a world frame already" in found(diagnosis, "alignment").remedy


def test_poses_of_the_lidar(tmp_path: Path) -> None:
    turned = se3.from_yaw(-np.pi / 2, (1.0, 0.0, 1.8))
    rig = [LidarSpec("roof", 0, "spinning", 32, (-25, 15), ego_SE3_lidar=tuple(map(tuple, turned.tolist())))]
    with DatasetWriter(str(tmp_path / "data"), name="fleet", rig=rig, taxonomy=PAPER_TAXONOMY) as writer:
        for frame in range(NUM_FRAMES):
            sweep = right_sweep(frame)
            writer.add(replaced(sweep, world_SE3_ego=pose(sweep) @ turned))
    diagnosis = diagnose(open_dataset(str(tmp_path / "data")))
    assert "like the LiDAR's" in found(diagnosis, "alignment").remedy


def test_a_jump_of_the_pose(tmp_path: Path) -> None:
    far = se3.from_yaw(0.0, (300.0, 0.0, 0.0))
    diagnosis = diagnosed(tmp_path, lambda s: replaced(s, world_SE3_ego=far @ pose(s)) if s.frame_id >= "05" else s)
    jump = found(diagnosis, "poses")
    assert jump.where == "drive/05"
    assert "1 times" in jump.what


def test_points_in_the_lidars_frame(tmp_path: Path) -> None:
    diagnosis = diagnosed(tmp_path, lambda s: replaced(s, xyz=s.xyz - np.float32([0, 0, 1.8])))
    assert "z = -1.80 m" in found(diagnosis, "ground").what
    assert "mounting height" in found(diagnosis, "ground").remedy


def test_axes_that_are_swapped(tmp_path: Path) -> None:
    diagnosis = diagnosed(tmp_path, lambda s: replaced(s, xyz=s.xyz[:, [0, 2, 1]], boxes=None))
    assert "one layer across y" in found(diagnosis, "axes").what


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda b: b[:, [0, 1, 2, 4, 3, 5, 6]], "with length and width swapped"),
        (lambda b: b - np.float32([0, 0, 0.775, 0, 0, 0, 0]), "with z at the bottom"),
    ],
)
def test_boxes_that_are_given_otherwise(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], told: str) -> None:
    diagnosis = diagnosed(tmp_path, lambda s: change_boxes(s, change))
    assert told in found(diagnosis, "boxes").what


def test_boxes_of_another_frame(tmp_path: Path) -> None:
    diagnosis = diagnosed(tmp_path, lambda s: change_boxes(s, lambda b: b + np.float32([0, 0, 6, 0, 0, 0, 0])))
    assert "hold no point" in found(diagnosis, "boxes").what
    world = diagnosed(tmp_path / "b", lambda s: change_boxes(s, lambda b: b + np.float32([900, 0, 0, 0, 0, 0, 0])))
    assert "those of a world frame" in found(world, "boxes").what


@pytest.mark.parametrize(("factor", "unit"), [(1e-3, "microseconds"), (1e-9, "milliseconds or seconds")])
def test_times_in_another_unit(tmp_path: Path, factor: float, unit: str) -> None:
    diagnosis = diagnosed(tmp_path, lambda s: replaced(s, timestamp_ns=int(s.timestamp_ns * factor) + int(s.frame_id)))
    assert unit in found(diagnosis, "times").what


def test_frames_that_are_missing(tmp_path: Path) -> None:
    diagnosis = diagnosed(
        tmp_path, lambda s: replaced(s, timestamp_ns=s.timestamp_ns + (2 * 10**9 if s.frame_id >= "04" else 0))
    )
    gap = found(diagnosis, "times", "warning")
    assert (gap.where, "the longest 2.1 s" in gap.what) == ("drive/04", True)


def test_intensity_outside_its_scale(tmp_path: Path) -> None:
    assert "its scale from 0 to 1" in found(diagnosed(tmp_path / "a", intensity_max=1.0), "intensity").what
    small = diagnosed(tmp_path / "b", lambda s: replaced(s, intensity=s.intensity / np.float32(255)))
    assert "reaches 1, of a scale of 255" in found(small, "intensity", "warning").what


def test_frames_without_points_or_labels(tmp_path: Path) -> None:
    cut = diagnosed(tmp_path / "a", lambda s: replaced(s, xyz=s.xyz[:50], intensity=None) if s.frame_id == "03" else s)
    assert found(cut, "points", "warning").where == "drive/03"
    bare = diagnosed(tmp_path / "b", lambda s: replaced(s, boxes=None) if s.frame_id == "02" else s)
    assert "1 of 8 key frames" in found(bare, "labels", "note").what
    none = diagnosed(tmp_path / "c", lambda s: replaced(s, boxes=None))
    assert found(none, "labels", "warning").what == "no frame has boxes or point labels"


def test_classes_that_never_occur(tmp_path: Path) -> None:
    assert "14 of 15 classes never occur" in found(diagnosed(tmp_path), "classes", "note").what


def test_the_manifest_alone_can_be_checked(tmp_path: Path) -> None:
    diagnosed(tmp_path, lambda s: replaced(s, world_SE3_ego=se3.invert(pose(s))))
    diagnosis = diagnose(open_dataset(str(tmp_path / "data")), max_frames=0)
    assert (diagnosis.num_frames_read, diagnosis.num_errors) == (0, 0)
