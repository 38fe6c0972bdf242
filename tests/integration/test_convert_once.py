"""Real sweeps of ONCE, converted: every point, the vehicle's axes, and what poses must bring together.

The real files hold points only. Their JSON is made up around them here; its poses were found by registering the sweeps
with each other, so they are of the LiDAR frame, as the official ones.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spot_ray.convert.run import convert
from spot_ray.geometry import se3
from spot_ray.storage.dataset import Dataset, open_dataset

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "once" / "data" / "000076" / "lidar_roof"
# Where each sweep's LiDAR was in the frame of the one before: x, y, z in metres and the turn in degrees.
STEPS = (((0.0, 0.0, 0.0), 0.0), ((-0.23, -2.82, -0.03), -5.48), ((-0.21, -3.18, -0.03), -4.77))


@pytest.fixture(scope="module")
def raw() -> list[Path]:
    if not REAL.exists():
        pytest.skip(f"the real log is not here: {REAL}")
    return sorted(REAL.glob("*.bin"))


@pytest.fixture(scope="module")
def real(raw: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    source = tmp_path_factory.mktemp("real")
    sequence = source / "once" / "data" / "000076"
    sequence.mkdir(parents=True)
    (sequence / "lidar_roof").symlink_to(REAL)
    frames: list[dict[str, Any]] = []
    world_SE3_lidar = np.eye(4)
    for path, (translation, turn_deg) in zip(raw, STEPS, strict=True):
        world_SE3_lidar = world_SE3_lidar @ se3.from_yaw(math.radians(turn_deg), translation)
        half = se3.yaw_of(world_SE3_lidar) / 2
        pose = [0.0, 0.0, math.sin(half), math.cos(half), *world_SE3_lidar[:3, 3].tolist()]
        frames.append({"frame_id": path.stem, "sequence_id": "000076", "pose": pose})
    (sequence / "000076.json").write_text(json.dumps({"meta_info": {}, "calib": {}, "frames": frames}))
    convert("once", source=str(source / "once"), version=None, uri=str(source / "out"))
    return open_dataset(str(source / "out"))


def test_every_point_arrives_to_the_far_end_of_the_range(raw: list[Path], real: Dataset) -> None:
    assert len(real) == 3
    for sweep, path in zip(real, raw, strict=True):
        points = np.fromfile(path, "<f4").reshape(-1, 4)
        assert len(sweep) == len(points) == path.stat().st_size // 16
        turned = np.column_stack([-points[:, 1], points[:, 0], points[:, 2] + real.info.rig[0].height_m])
        assert np.abs(sweep.xyz - turned).max() < 0.0026
        assert np.abs(sweep.xyz).max() > 163.84  # where 16 bits of 5 mm end
        assert sweep.timestamp_ns == int(path.stem) * 1_000_000
        assert sweep.boxes is None


def test_the_vehicle_drives_ahead_on_a_road_near_zero(real: Dataset) -> None:
    poses = [sweep.world_SE3_ego for sweep in real]
    for before, after in itertools.pairwise(poses):
        assert before is not None
        assert after is not None
        step = (se3.invert(before) @ after)[:3, 3]
        assert 2.7 < step[0] < 3.3
        assert abs(step[1]) < 0.3
    for sweep in real:
        distance = np.hypot(sweep.xyz[:, 0], sweep.xyz[:, 1])
        road = (distance > 4) & (distance < 12) & (np.abs(sweep.xyz[:, 2]) < 0.5)
        assert road.sum() > 3000
        assert abs(float(np.median(sweep.xyz[road, 2]))) < 0.2


def test_poses_bring_standing_things_together(real: Dataset) -> None:
    from scipy.spatial import cKDTree

    for first, later in itertools.pairwise(real):
        clouds = []
        for sweep in (first, later):
            distance = np.hypot(sweep.xyz[:, 0], sweep.xyz[:, 1])
            clouds.append(sweep.xyz[(distance > 4) & (distance < 50) & (sweep.xyz[:, 2] > 0.7)].astype(np.float64))
        assert first.world_SE3_ego is not None
        assert later.world_SE3_ego is not None
        moved = se3.transform_points(se3.invert(first.world_SE3_ego) @ later.world_SE3_ego, clouds[1])
        tree = cKDTree(clouds[0])
        near = [(tree.query(cloud)[0] < 0.2).mean() for cloud in (moved, clouds[1])]
        assert near[0] > 0.65
        assert near[1] < 0.75 * near[0]


def test_a_ring_keeps_its_inclination_while_the_vehicle_moves(raw: list[Path]) -> None:
    """Correcting for the ego's motion would have spread the lowest ring, 4 m from the sensor, over degrees."""
    for path in raw:
        points = np.fromfile(path, "<f4").reshape(-1, 4).astype(np.float64)
        inclination = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
        lowest = inclination[inclination < -22]
        assert len(lowest) > 1000
        assert np.ptp(lowest) < 1e-4
