"""A vehicle that turns while its LiDAR does, in a world that stands still."""

from dataclasses import replace

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.schema.motion import deskew, is_skewed, with_frame_poses
from spot_ray.schema.sweep import Sweep

START_NS = 1_700_000_000_000_000_000
SWEEP_NS = 100_000_000
SPEED_M_S, TURN_RAD_S = 12.0, 0.6
WORLD_SE3_MAP = se3.from_yaw(0.4, (450_000.0, 5_400_000.0, 310.0))


def pose(offset_ns: float) -> np.ndarray:
    """The vehicle on a circle of 20 m, in a world with coordinates as large as UTM's."""
    angle, radius = TURN_RAD_S * offset_ns * 1e-9, SPEED_M_S / TURN_RAD_S
    return WORLD_SE3_MAP @ se3.from_yaw(angle, (radius * np.sin(angle), radius * (1 - np.cos(angle)), 0.0))


def drive(num_poses: int = 11, count: int = 500) -> tuple[Sweep, np.ndarray]:
    """A sweep as such a LiDAR gives it, and the same points as if the vehicle had stood at the sweep's time."""
    rng = np.random.default_rng(0)
    truth = rng.uniform([-60, -60, 0], [60, 60, 4], (count, 3))
    offsets = np.sort(rng.integers(-SWEEP_NS // 2, SWEEP_NS // 2, count)).astype(np.int32)
    ego0_SE3_ego = [se3.invert(pose(0)) @ pose(t) for t in offsets]
    seen = [se3.transform_points(se3.invert(t), xyz[None])[0] for t, xyz in zip(ego0_SE3_ego, truth, strict=True)]
    times = np.linspace(-SWEEP_NS // 2, SWEEP_NS // 2, num_poses).astype(np.int64)
    sweep = Sweep(
        "log",
        "0",
        START_NS,
        np.array(seen, np.float32),
        world_SE3_ego=pose(0),
        time_offset_ns=offsets,
        motion_compensated=False,
        sweep_pose_time_offset_ns=times,
        sweep_poses=np.stack([pose(t) for t in times]),
    )
    return sweep, truth


def test_a_quarter_turn_by_hand():
    # At 0 the vehicle looks along x, 100 ns later along y, 2 m further on: halfway it looks between, 1 m on.
    sweep = Sweep(
        "log",
        "0",
        0,
        np.array([[10, 0, 1], [10, 0, 1], [10, 0, 1]], np.float32),
        world_SE3_ego=np.eye(4),
        time_offset_ns=np.array([0, 50, 100], np.int32),
        motion_compensated=False,
        sweep_pose_time_offset_ns=np.array([0, 100]),
        sweep_poses=np.stack([np.eye(4), se3.from_yaw(np.pi / 2, (2.0, 0.0, 0.0))]),
    )
    result = deskew(sweep)
    half = 10 * np.sqrt(0.5)
    np.testing.assert_allclose(result.xyz, [[10, 0, 1], [1 + half, half, 1], [2, 10, 1]], atol=1e-6)
    assert result.motion_compensated is True
    np.testing.assert_array_equal(result.time_offset_ns, sweep.time_offset_ns)


def test_points_of_a_standing_world_come_to_where_they_are():
    sweep, truth = drive()
    assert np.abs(sweep.xyz - truth).max() > 1.0, "else there would be nothing to correct"
    result = deskew(sweep)
    # Chords of 0.12 m on a circle of 20 m, and float32.
    np.testing.assert_allclose(result.xyz, truth, atol=2e-3)
    assert result.xyz.dtype == np.float32
    assert deskew(result) is result, "once is enough"


def test_without_a_frame_pose_the_path_tells_it():
    sweep, truth = drive()
    np.testing.assert_allclose(deskew(replace(sweep, world_SE3_ego=None)).xyz, truth, atol=2e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"motion_compensated": True},
        {"motion_compensated": None},
        {"time_offset_ns": None},
        {"sweep_poses": None},
        {"sweep_pose_time_offset_ns": np.zeros(1, np.int64), "sweep_poses": np.eye(4)[None]},
    ],
    ids=["corrected", "unknown", "no times", "no poses", "one pose"],
)
def test_a_sweep_that_cannot_or_need_not_be_corrected_passes(change):
    sweep = replace(drive()[0], **change)
    assert deskew(sweep) is sweep


def test_the_frames_around_a_sweep_tell_its_motion():
    sweep, truth = drive()
    bare = replace(sweep, sweep_poses=None, sweep_pose_time_offset_ns=None)
    frames = [(START_NS + k * SWEEP_NS, pose(k * SWEEP_NS)) for k in (1, -1)]
    given = with_frame_poses(bare, frames)
    np.testing.assert_array_equal(given.sweep_pose_time_offset_ns, [-SWEEP_NS, 0, SWEEP_NS])
    np.testing.assert_allclose(deskew(given).xyz, truth, atol=0.06)  # chords of 1.2 m, up to 9 mm and 1 mrad off
    # The first frame of a log: its motion goes on backwards.
    np.testing.assert_allclose(deskew(with_frame_poses(bare, frames[:1])).xyz, truth, atol=0.15)


def test_frames_are_not_asked_where_they_cannot_tell():
    sweep, _ = drive()
    bare = replace(sweep, sweep_poses=None, sweep_pose_time_offset_ns=None)
    far = [(START_NS + k * 600_000_000, pose(k * 6 * SWEEP_NS)) for k in (-1, 1)]
    near = (START_NS + SWEEP_NS, pose(SWEEP_NS))
    assert with_frame_poses(bare, far) is bare
    assert with_frame_poses(bare, []) is bare
    np.testing.assert_array_equal(with_frame_poses(bare, [*far, near]).sweep_pose_time_offset_ns, [0, SWEEP_NS, 6e8])
    assert with_frame_poses(sweep, [near]) is sweep, "it has poses of its own"
    corrected = replace(bare, motion_compensated=True)
    assert with_frame_poses(corrected, [near]) is corrected
    assert not is_skewed(corrected)


def test_times_in_another_unit_are_told():
    sweep, _ = drive()
    wrong = replace(sweep, sweep_pose_time_offset_ns=sweep.sweep_pose_time_offset_ns // 1000)
    with pytest.raises(DataError, match="poses within the sweep are of -50000 to 50000 ns") as error:
        deskew(wrong)
    assert error.value.where == "log/0"
    assert "nanoseconds" in error.value.remedy


def test_poses_out_of_order():
    sweep, _ = drive()
    times = sweep.sweep_pose_time_offset_ns.copy()
    times[[4, 5]] = times[[5, 4]]
    with pytest.raises(DataError, match="do not ascend"):
        deskew(replace(sweep, sweep_pose_time_offset_ns=times))
