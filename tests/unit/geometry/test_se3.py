import numpy as np
import pytest

from spot_ray.geometry import se3


def test_a_quarter_turn_takes_x_to_y_then_moves():
    a_SE3_b = se3.from_yaw(np.pi / 2, (10.0, 20.0, 30.0))
    np.testing.assert_allclose(se3.transform_points(a_SE3_b, np.array([[1.0, 2.0, 3.0]])), [[8, 21, 33]], atol=1e-12)


def test_unit_quaternions_w_first():
    # 120 degrees about (1, 1, 1) takes x to y, y to z and z to x.
    a_SE3_b = se3.from_quaternion([0.5, 0.5, 0.5, 0.5], (1, 0, 0))
    np.testing.assert_allclose(se3.transform_points(a_SE3_b, np.eye(3)), [[1, 1, 0], [1, 0, 1], [2, 0, 0]], atol=1e-12)
    yaw = 0.7
    np.testing.assert_allclose(
        se3.from_quaternion([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]), se3.from_yaw(yaw), atol=1e-12
    )


@pytest.mark.parametrize("wxyz", [[0, 0, 0, 0], [np.nan, 0, 0, 1], [0.9, 0.5, 0, 0]])
def test_a_quaternion_that_has_not_the_norm_1_is_no_rotation(wxyz):
    with pytest.raises(ValueError, match="not a rotation"):
        se3.from_quaternion(wxyz)


def test_the_inverse_undoes_a_transform():
    a_SE3_b = se3.from_quaternion([0.9, 0.1, -0.3, 0.3], (5, -4, 3))
    np.testing.assert_allclose(se3.invert(a_SE3_b), np.linalg.inv(a_SE3_b), atol=1e-12)


def test_points_keep_their_dtype_and_lose_nothing_far_from_the_origin():
    far_SE3_ego = se3.from_yaw(0.0, (500_000.0, 4_000_000.0, 0.0))
    ego_SE3_far = se3.invert(far_SE3_ego)
    xyz = np.array([[1.25, -2.5, 0.125]], np.float32)
    assert se3.transform_points(ego_SE3_far, xyz).dtype == np.float32
    np.testing.assert_array_equal(se3.transform_points(ego_SE3_far @ far_SE3_ego, xyz), xyz)


@pytest.mark.parametrize("yaw", [0.0, 1.0, -3.0, np.pi])
def test_yaw_of_returns_the_heading(yaw):
    assert se3.yaw_of(se3.from_yaw(yaw, (1, 2, 3))) == pytest.approx(yaw)


def test_is_rigid_refuses_mirrors_scales_and_what_is_not_finite():
    good = se3.from_yaw(0.3, (1, 2, 3))
    assert se3.is_rigid(good)
    assert not se3.is_rigid(np.diag([1, 1, -1, 1]))
    assert not se3.is_rigid(np.diag([1.1, 1.1, 1.1, 1]))
    assert not se3.is_rigid(good * np.nan)
    assert not se3.is_rigid(good[:3])
    last_row = good.copy()
    last_row[3] = [0, 0, 1, 1]
    assert not se3.is_rigid(last_row)
