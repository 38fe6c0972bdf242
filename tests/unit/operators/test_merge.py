"""Merging by hand: an ego that drives 2 m a sweep along the world's x axis and then turns."""

from dataclasses import replace

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.operators.merge import Merge, merge_sweeps
from spot_ray.operators.sample import Place, Sample, Slot
from spot_ray.schema.sensors import LidarSpec, as_matrix
from spot_ray.schema.sweep import Boxes, Sweep

FRONT = LidarSpec("front", 5, "spinning", 4, (-20.0, 10.0), ego_SE3_lidar=as_matrix(se3.from_yaw(0.3, (1.0, 0, 1.8))))
REAR = LidarSpec("rear", 200, "solid_state", 1, (-20.0, 10.0), ego_SE3_lidar=as_matrix(se3.from_yaw(3.1, (-2, 0, 1))))
RIG = (FRONT, REAR)
EAST = 450_000.0


def sweep(number: int, points, *, yaw=0.0, **columns) -> Sweep:
    return Sweep(
        "log",
        str(number),
        number * 50_000_000,
        np.array(points, np.float32),
        world_SE3_ego=se3.from_yaw(yaw, (EAST + 2.0 * number, 7.0, 0.0)),
        **columns,
    )


def merge(frame, *older, rig=RIG, min_distance_m=1.0):
    return merge_sweeps(frame, older, rig=rig, min_distance_m=min_distance_m)


def test_points_come_to_the_frames_ego_frame_with_their_lag():
    # A post 30 m ahead of where the ego was at first, seen from three places, in the last after a quarter turn.
    frame = sweep(2, [[0, -26, 1], [3, 3, 0]], yaw=np.pi / 2)
    merged, lag = merge(frame, sweep(1, [[28, 0, 1]]), sweep(0, [[30, 0, 1]]))
    np.testing.assert_allclose(merged.xyz, [[0, -26, 1], [3, 3, 0], [0, -26, 1], [0, -26, 1]], atol=1e-5)
    np.testing.assert_allclose(lag, [0, 0, 0.05, 0.1], rtol=1e-6)
    assert merged.xyz.dtype == lag.dtype == np.float32
    np.testing.assert_array_equal(merged.xyz[:2], frame.xyz)
    np.testing.assert_array_equal(frame.xyz, [[0, -26, 1], [3, 3, 0]])


def test_the_vehicles_own_body_is_left_out_of_older_sweeps_alone():
    body = [[1.5, 0.0, 1.0], [1.99, 0.99, 5.0], [2.1, 0.0, 1.0], [0.1, 1.05, 1.0]]
    merged, lag = merge(sweep(1, body), sweep(0, body))
    # Around the first LiDAR at x = 1: the two of less than 1 m in x and in y are gone, whatever their height.
    assert lag.tolist() == pytest.approx([0, 0, 0, 0, 0.05, 0.05])
    np.testing.assert_allclose(merged.xyz[4:], [[0.1, 0.0, 1.0], [-1.9, 1.05, 1.0]], atol=1e-5)
    assert len(merge(sweep(1, body), sweep(0, body), min_distance_m=0.0)[0]) == 8


def test_near_is_near_to_the_lidar_that_fired():
    ids = np.array([5, 200, 200], np.uint8)
    points = [[-2, 0, 1], [-2, 0, 1], [1, 0, 1]]
    merged, _ = merge(sweep(1, points, lidar_id=ids), sweep(0, points, lidar_id=ids))
    assert merged.lidar_id.tolist() == [5, 200, 200, 5, 200]
    np.testing.assert_allclose(merged.xyz[3:, 0], [-4, -1], atol=1e-5)


def columns(count: int, start: int) -> dict:
    number = np.arange(start, start + count)
    return {
        "intensity": number.astype(np.float32),
        "elongation": number.astype(np.float32),
        "ring": number.astype(np.uint16),
        "lidar_id": np.full(count, 200, np.uint8),
        "return_index": number.astype(np.uint8),
        "time_offset_ns": number.astype(np.int32),
        "flags": number.astype(np.uint8),
        "point_source_class": number.astype(np.uint16),
        "instance_id": number.astype(np.int32),
        "extra": {"doppler": number.astype(np.float64)},
    }


def test_all_columns_go_along_and_the_rest_stays_the_frames():
    boxes, ignored = Boxes(np.ones((1, 7), np.float32), np.array([1], np.uint16)), np.ones((1, 7), np.float32)
    frame = sweep(1, np.full((2, 3), 9.0), **columns(2, 10), boxes=boxes, ignore_regions=ignored)
    older = sweep(0, [[9, 9, 9], [-2, 0, 1], [9, 9, 9]], **columns(3, 20), keyframe=False)
    merged, _ = merge(frame, older)
    for name in columns(1, 0).keys() - {"extra", "lidar_id"}:
        values = getattr(merged, name)
        assert values.tolist() == [10, 11, 20, 22], name
        assert values.dtype == getattr(frame, name).dtype
    assert merged.extra["doppler"].tolist() == [10, 11, 20, 22]
    assert merged.boxes is boxes
    assert merged.ignore_regions is ignored
    assert (merged.name, merged.timestamp_ns, merged.keyframe) == ("log/1", 50_000_000, True)


def test_unlabelled_sweeps_between_labelled_ones():
    labels = {"point_source_class": np.array([4], np.uint16), "instance_id": np.array([3], np.int32)}
    merged, _ = merge(sweep(1, [[9, 9, 9]], **labels), sweep(0, [[9, 9, 9]]))
    assert merged.point_source_class.tolist() == [4, 65535]
    assert merged.instance_id.tolist() == [3, -1]


def test_without_lidar_id_points_are_of_the_first_lidar():
    merged, _ = merge(sweep(1, [[9, 9, 9]], lidar_id=np.array([200], np.uint8)), sweep(0, [[9, 9, 9]]))
    assert merged.lidar_id.tolist() == [200, 5]


def test_a_column_that_none_has_stays_none_and_one_that_some_lack_is_told():
    bright = {"intensity": np.ones(1, np.float32)}
    assert merge(sweep(1, [[9, 9, 9]], **bright), sweep(0, [[9, 9, 9]], **bright))[0].ring is None
    with pytest.raises(DataError, match="log/0 has no point column 'intensity', log/1 has it") as error:
        merge(sweep(1, [[9, 9, 9]], **bright), sweep(0, [[9, 9, 9]]))
    assert error.value.where == "log/1"
    with pytest.raises(DataError, match="log/1 has no point column 'doppler', log/0 has it"):
        merge(sweep(1, [[9, 9, 9]]), sweep(0, [[9, 9, 9]], extra={"doppler": np.ones(1)}))


@pytest.mark.parametrize("lacks", [0, 1])
def test_a_sweep_without_a_pose(lacks):
    sweeps = [sweep(1, [[9, 9, 9]]), sweep(0, [[9, 9, 9]])]
    sweeps[lacks] = replace(sweeps[lacks], world_SE3_ego=None)
    with pytest.raises(DataError, match="has no pose") as error:
        merge(*sweeps)
    assert error.value.where == sweeps[lacks].name


def test_poses_within_the_sweep_are_not_those_of_merged_points():
    poses = {"sweep_pose_time_offset_ns": np.array([0, 1]), "sweep_poses": np.stack([np.eye(4)] * 2)}
    merged, _ = merge(sweep(1, [[9, 9, 9]], **poses), sweep(0, [[9, 9, 9]], **poses))
    assert merged.sweep_poses is None
    assert merged.sweep_pose_time_offset_ns is None


def test_the_operator_leaves_what_has_nothing_to_merge(sample):
    operator = Merge(rig=RIG, min_distance_m=1.0)
    assert operator(sample) is sample
    own = Sample(
        Slot(0, "log", "1", 0, 1.0, 0, 1.0, Place("", 0, 0)),
        sweep(1, [[9, 9, 9]]),
        np.zeros(0, np.int32),
        np.zeros(0, np.uint8),
        np.zeros(1, np.uint8),
        np.eye(2, 3),
        older=(sweep(0, [[9, 9, 9]]),),
    )
    merged = operator(own)
    assert len(merged.sweep) == len(merged.time_lag_s) == 2
    assert merged.older == ()
