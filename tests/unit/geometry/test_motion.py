import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from spot_ray.geometry import se3
from spot_ray.geometry.motion import move_along, pose_at, rotation_vectors

TURN = np.stack([se3.from_yaw(0.0), se3.from_yaw(np.pi / 2, (2.0, 0.0, 0.0))])
"""A quarter turn to the left and 2 m ahead, from time 100 to time 200."""
TIMES = np.array([100, 200])


def test_by_hand_halfway_before_and_after():
    xyz = np.array([[1, 0, 5]] * 5, np.float64)
    moved = move_along(xyz, np.array([100, 150, 200, 300, 0]), TIMES, TURN)
    half = np.sqrt(0.5)
    expected = [
        [1, 0, 5],
        [1 + half, half, 5],
        [2, 1, 5],
        [4 - 1, 0, 5],  # the motion goes on: half a turn, 4 m
        [-2, -1, 5],  # and was the same before
    ]
    np.testing.assert_allclose(moved, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_paths_follow_scipys_slerp(dtype):
    rng = np.random.default_rng(0)
    steps = Rotation.from_rotvec(rng.normal(0, 0.4, (12, 3)))
    rotations = [Rotation.random(random_state=1)]
    for step in steps:
        rotations.append(rotations[-1] * step)
    turned = Rotation.concatenate(rotations)
    times = np.cumsum(rng.integers(1, 50, 13)) * 1_000_000
    poses = np.tile(np.eye(4), (13, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = turned.as_matrix(), rng.uniform(-5, 5, (13, 3))
    at = rng.integers(times[0], times[-1] + 1, 1000)
    at[:13] = times
    xyz = rng.uniform(-80, 80, (1000, 3)).astype(dtype)
    path = np.stack([np.interp(at, times, poses[:, axis, 3]) for axis in range(3)], axis=1)
    expected = Slerp(times, turned)(at).apply(xyz.astype(np.float64)) + path
    moved = move_along(xyz, at, times, poses)
    assert moved.dtype == dtype
    np.testing.assert_allclose(moved, expected, atol=1e-5 if dtype == np.float32 else 1e-10)
    np.testing.assert_allclose(pose_at(float(at[500]), times, poses)[:3, 3], path[500], atol=1e-12)
    np.testing.assert_allclose(pose_at(float(at[500]), times, poses)[:3, :3], Slerp(times, turned)(at[500]).as_matrix())


def test_what_does_not_turn_stays_exact():
    poses = np.stack([se3.from_yaw(0.0), se3.from_yaw(0.0, (1.0, 0.0, 0.0))])
    moved = move_along(np.array([[7.0, 8.0, 9.0]]), np.array([150]), TIMES, poses)
    np.testing.assert_array_equal(moved, [[7.5, 8.0, 9.0]])


def test_rotation_vectors_of_known_turns():
    rotations = np.stack([np.eye(3), Rotation.from_rotvec([0, 0.3, 0]).as_matrix(), se3.from_yaw(-2.9)[:3, :3]])
    np.testing.assert_allclose(rotation_vectors(rotations), [[0, 0, 0], [0, 0.3, 0], [0, 0, -2.9]], atol=1e-12)


def test_what_no_vehicle_does():
    xyz, at = np.zeros((1, 3)), np.array([150])
    with pytest.raises(ValueError, match="180 degrees"):
        move_along(xyz, at, TIMES, np.stack([np.eye(4), se3.from_yaw(np.pi)]))
    with pytest.raises(ValueError, match="do not ascend"):
        move_along(xyz, at, TIMES[::-1], TURN)
    with pytest.raises(ValueError, match="1 times of poses"):
        move_along(xyz, at, TIMES[:1], TURN[:1])
