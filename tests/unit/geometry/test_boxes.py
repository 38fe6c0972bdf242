import numpy as np

from spot_ray.geometry import se3
from spot_ray.geometry.boxes import (
    from_box_frame,
    points_in_boxes,
    points_of_boxes,
    to_box_frame,
    transform_boxes,
    wrap_angle,
)

CAR = np.array([[10.0, 5.0, 1.0, 4.0, 2.0, 1.5, np.pi / 2]])
"""Long along y: x in 9..11, y in 3..7, z in 0.25..1.75."""


def test_points_in_a_turned_box_and_its_faces():
    xyz = np.array([[10, 6.9, 1], [11.1, 5, 1], [10, 7.05, 1], [10, 5, 1.8], [10.95, 3.05, 0.3], [10, 5, 0.2]])
    assert points_in_boxes(xyz, CAR).tolist() == [0, -1, -1, -1, 0, -1]
    assert points_in_boxes(xyz, CAR, margin_m=0.1).tolist() == [0, 0, 0, 0, 0, 0]


def test_of_two_boxes_that_hold_a_point_the_smaller_owns_it_in_any_order():
    small = np.array([[10.0, 5.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    xyz = np.array([[10.2, 5.2, 1.1], [10.0, 6.5, 1.0], [0.0, 0.0, 0.0]])
    assert points_in_boxes(xyz, np.concatenate([CAR, small])).tolist() == [1, 0, -1]
    assert points_in_boxes(xyz, np.concatenate([small, CAR])).tolist() == [0, 1, -1]


def test_no_boxes_own_nothing():
    assert points_in_boxes(np.zeros((2, 3), np.float32), np.zeros((0, 7), np.float32)).tolist() == [-1, -1]


def test_membership_agrees_with_the_box_frame_on_random_boxes():
    rng = np.random.default_rng(1)
    xyz = rng.uniform(-5, 5, (4000, 3))
    box = np.array([0.5, -1.0, 0.2, 4.0, 2.0, 3.0, 0.6])
    inside = (np.abs(to_box_frame(xyz, box)) <= [2.0, 1.0, 1.5]).all(axis=1)
    np.testing.assert_array_equal(points_in_boxes(xyz, box[None]) == 0, inside)
    assert 50 < inside.sum() < 400


def test_the_box_frame_has_its_x_axis_along_the_length():
    front = np.array([[10.0, 7.0, 1.0]])
    np.testing.assert_allclose(to_box_frame(front, CAR[0]), [[2, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(from_box_frame(to_box_frame(front, CAR[0]), CAR[0]), front, atol=1e-12)


def test_boxes_move_with_their_frame_and_keep_their_points():
    world_SE3_ego = se3.from_yaw(-2.5, (100.0, -50.0, 2.0))
    xyz = np.random.default_rng(0).uniform([8, 2, 0], [12, 8, 2], (500, 3))
    moved = transform_boxes(world_SE3_ego, CAR)
    np.testing.assert_allclose(moved[0, 3:6], CAR[0, 3:6])
    np.testing.assert_allclose(moved[0, 6], wrap_angle(np.array(np.pi / 2 - 2.5)))
    np.testing.assert_array_equal(
        points_in_boxes(se3.transform_points(world_SE3_ego, xyz), moved), points_in_boxes(xyz, CAR)
    )


def test_wrap_angle_maps_into_one_turn():
    np.testing.assert_allclose(
        wrap_angle(np.array([0, np.pi, 3 * np.pi, -np.pi, 7.0])), [0, -np.pi, -np.pi, -np.pi, 7 - 2 * np.pi]
    )


def test_of_many_boxes_over_each_other_the_smallest_owns_a_point_the_last_of_equal_ones():
    rng = np.random.default_rng(1)
    boxes = np.concatenate(
        [rng.normal(size=(60, 3)) * (600, 8, 1), rng.uniform(2, 9, (60, 3)), rng.uniform(-4, 4, (60, 1))], axis=1
    )
    boxes[:, 0] = np.where(rng.random(60) < 0.5, boxes[:, 0] / 60, boxes[:, 0])
    boxes[10:20, 3:6] = boxes[10, 3:6]
    boxes[5] = boxes[15]
    xyz = np.concatenate([boxes[rng.integers(0, 60, 500), :3] + rng.normal(size=(500, 3)), [[1e6, 0, 0]]])
    expected = np.full(len(xyz), -1)
    for m in np.argsort(-boxes[:, 3:6].prod(axis=1), kind="stable"):
        local = to_box_frame(xyz, boxes[m])
        expected[np.all(np.abs(local) <= boxes[m, 3:6] / 2 + 0.2, axis=1)] = m
    np.testing.assert_array_equal(points_in_boxes(xyz, boxes, margin_m=0.2), expected)
    assert len(np.unique(expected)) > 30


def test_points_of_boxes_are_those_of_each_box_alone() -> None:
    rng = np.random.default_rng(5)
    xyz = rng.uniform(-12, 12, (3000, 3)).astype(np.float32)
    boxes = np.column_stack(
        [rng.uniform(-9, 9, (40, 2)), rng.uniform(-3, 3, 40), rng.uniform(1, 6, (40, 3)), rng.uniform(-4, 4, 40)]
    ).astype(np.float32)
    index, count = points_of_boxes(xyz, boxes, margin_m=0.2)
    parts = np.split(index, np.cumsum(count)[:-1])
    assert len(parts) == len(boxes)
    assert count.sum() > len(np.unique(index))  # boxes overlap
    for part, box in zip(parts, boxes, strict=True):
        offset = np.abs(to_box_frame(xyz.astype(np.float64), box))
        inside = (offset <= box[3:6].astype(np.float64) / 2 + 0.2).all(axis=1)
        np.testing.assert_array_equal(part, np.flatnonzero(inside))


def test_points_of_boxes_where_there_is_nothing() -> None:
    for xyz, boxes in ((np.zeros((4, 3)), np.zeros((0, 7))), (np.zeros((0, 3)), np.ones((2, 7)))):
        index, count = points_of_boxes(xyz, boxes)
        assert len(index) == 0
        assert count.tolist() == [0] * len(boxes)
