"""Beams that are put between others (R > 1)."""

from dataclasses import replace

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.operators.beams import added_beams, inclinations_deg, resample
from spot_ray.operators.config import BalanceConfig, BeamConfig, DataConfig
from spot_ray.operators.stream import iterate
from spot_ray.schema.sensors import LidarSpec, as_matrix
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import UNLABELLED_SOURCE

COLUMNS = 90


def spec_of(slopes, **fields) -> LidarSpec:
    """Return a sensor at the ego's origin with beams of given tangents, ring 0 the first."""
    degrees = np.degrees(np.arctan(slopes))
    values = {
        "name": "few",
        "lidar_id": 0,
        "kind": "spinning",
        "num_beams": len(slopes),
        "vfov_deg": (float(degrees.min()), float(degrees.max())),
        "inclinations_deg": tuple(degrees.tolist()),
        "columns": COLUMNS,
    }
    return LidarSpec(**(values | fields))


def column_of(slopes, distances, ring=None, turn=0.0, **columns) -> Sweep:
    """Return one point a beam, all in one direction."""
    distances = np.array(distances, np.float64)
    xyz = np.stack([distances * np.cos(turn), distances * np.sin(turn), distances * np.array(slopes)], axis=1).astype(
        np.float32
    )
    ring = np.arange(len(xyz)) if ring is None else np.array(ring)
    return Sweep("s", "f", 0, xyz, ring=ring.astype(np.uint16), **columns)


def with_one_between(sweep: Sweep, spec: LidarSpec, rig=None) -> Sweep:
    """Return the sweep with one new beam in each of the equal gaps of a sensor."""
    factor = (2 * spec.num_beams - 1) / spec.num_beams
    return resample(sweep, rig or (spec,), density=factor * spec.beam_density * (1 + 1e-9), phase=1e-9)


def test_one_point_between_two_by_hand():
    slopes = (-0.2, -0.1)
    result = with_one_between(column_of(slopes, (10.0, 11.0)), spec_of(slopes))
    # Half-way in the slope: -0.15; along the line from (10, -2) to (11, -1.1) that is at 10 / 21.
    np.testing.assert_allclose(result.xyz[2], [10 + 10 / 21, 0, -2 + 0.9 * 10 / 21], atol=1e-5)
    np.testing.assert_allclose(result.xyz[2, 2] / result.xyz[2, 0], -0.15, atol=1e-6)
    assert len(result) == 3


def test_points_of_a_plane_stay_on_it():
    slopes = np.tan(np.radians(np.linspace(-25, -3, 12)))
    pose = se3.from_yaw(0.7, (1.4, 0.2, 1.9))
    spec = spec_of(slopes, ego_SE3_lidar=as_matrix(pose))
    turn = np.tile((np.arange(COLUMNS) + 0.5) / COLUMNS * 2 * np.pi, 12)
    ring = np.repeat(np.arange(12), COLUMNS)
    flat = 1.9 / -slopes[ring]
    lidar = np.stack([flat * np.cos(turn), flat * np.sin(turn), np.full(len(flat), -1.9)], axis=1)
    sweep = Sweep("s", "f", 0, se3.transform_points(pose, lidar).astype(np.float32), ring=ring.astype(np.uint16))
    result = with_one_between(sweep, spec)
    # Rings 28 and 36 m away are more than a tenth apart, and one surface all the same.
    assert len(result) == len(sweep) + 11 * COLUMNS
    np.testing.assert_allclose(result.xyz[:, 2], 0, atol=1e-4)
    new = np.tan(np.radians(inclinations_deg(result.xyz[len(sweep) :], spec)))
    expected = np.repeat((slopes[1:] + slopes[:-1]) / 2, COLUMNS)
    np.testing.assert_allclose(np.sort(new), np.sort(expected), atol=1e-4)


def test_a_depth_edge_is_not_bridged():
    slopes = (-0.2, -0.1)
    spec = spec_of(slopes)
    assert len(with_one_between(column_of(slopes, (10.0, 11.5)), spec)) == 2
    assert len(with_one_between(column_of(slopes, (11.5, 10.0)), spec)) == 2


def test_a_car_on_the_ground_is_not_bridged_to_what_is_behind():
    # Ground, twice, 1.9 m below; then the side of a car, twice, its roof, and a wall.
    slopes = np.tan(np.radians([-12.0, -10.0, -8.0, -6.0, -4.0, -2.0]))
    result = with_one_between(column_of(slopes, (8.94, 10.78, 11.0, 11.1, 12.0, 40.0)), spec_of(slopes))
    # Ground to ground is a fifth further, and no third ring of it is there to tell that it is one surface.
    new = result.xyz[6:, 0]
    assert len(new) == 3
    assert new.min() > 10.78
    assert new.max() < 12.0


def test_points_too_far_apart_in_azimuth_are_no_neighbours():
    slopes = (-0.2, -0.1)
    spec, step = spec_of(slopes), 2 * np.pi / COLUMNS
    below = column_of(slopes[:1], (10.0,), turn=0.5 * step)
    for columns, expected in ((1.4, 3), (1.6, 2)):
        above = column_of(slopes[1:], (10.0,), turn=(0.5 + columns) * step)
        xyz = np.concatenate([below.xyz, above.xyz])
        assert len(with_one_between(replace(below, xyz=xyz, ring=np.array([0, 1], np.uint16)), spec)) == expected


def test_neighbours_across_the_seam_of_the_turn():
    slopes = (-0.2, -0.1)
    xyz = np.concatenate(
        [column_of(slopes[:1], (10.0,), turn=np.pi - 0.01).xyz, column_of(slopes[1:], (10.0,), turn=0.01 - np.pi).xyz]
    )
    result = with_one_between(Sweep("s", "f", 0, xyz, ring=np.array([0, 1], np.uint16)), spec_of(slopes))
    assert len(result) == 3
    np.testing.assert_allclose(result.xyz[2, :2], [-10, 0], atol=0.01)


def test_every_column_of_a_new_point():
    slopes = np.tan(np.radians([-10.0, -5.0, 0.0]))
    sweep = column_of(
        slopes,
        (10.0, 10.0, 10.0),
        intensity=np.array([1, 3, 4], np.float32),
        elongation=np.array([0, 1, 0], np.float32),
        lidar_id=np.zeros(3, np.uint8),
        return_index=np.zeros(3, np.uint8),
        time_offset_ns=np.array([10, 13, 20], np.int32),
        flags=np.array([0, 1, 2], np.uint8),
        point_source_class=np.array([5, 5, 6], np.uint16),
        instance_id=np.array([7, 7, 8], np.int32),
        extra={"doppler": np.array([1, 2, 4], np.float64), "kind": np.array([1, 9, 5], np.int16)},
    )
    result = with_one_between(sweep, spec_of(slopes))
    assert len(result) == 5
    for name in ("intensity", "elongation", "time_offset_ns", "flags", "point_source_class", "instance_id"):
        np.testing.assert_array_equal(getattr(result, name)[:3], getattr(sweep, name))
        assert getattr(result, name).dtype == getattr(sweep, name).dtype
    np.testing.assert_array_equal(result.intensity[3:], [2, 3.5])
    np.testing.assert_array_equal(result.elongation[3:], [0.5, 0.5])
    np.testing.assert_array_equal(result.time_offset_ns[3:], [12, 16])  # 11.5 and 16.5, halves to even
    np.testing.assert_array_equal(result.flags[3:], [1, 3])
    np.testing.assert_array_equal(result.point_source_class[3:], [5, UNLABELLED_SOURCE])
    np.testing.assert_array_equal(result.instance_id[3:], [7, -1])
    np.testing.assert_array_equal(result.extra["doppler"][3:], [1.5, 3])
    assert result.extra["doppler"].dtype == np.float64
    # Half-way exactly: the one above.
    np.testing.assert_array_equal(result.extra["kind"], [1, 9, 5, 9, 5])
    np.testing.assert_array_equal(result.ring, [0, 1, 2, 1, 2])
    assert not result.lidar_id.any()
    assert not result.return_index.any()


def test_second_returns_stay_and_nothing_is_put_beside_them():
    slopes = (-0.2, -0.1)
    sweep = column_of(
        (-0.2, -0.1, -0.2, -0.1),
        (10.0, 20.0, 20.0, 10.0),
        ring=(0, 1, 0, 1),
        return_index=np.array([0, 0, 1, 1], np.uint8),
    )
    result = with_one_between(sweep, spec_of(slopes))
    np.testing.assert_array_equal(result.xyz, sweep.xyz)
    first = with_one_between(replace(sweep, return_index=np.array([0, 1, 1, 0], np.uint8)), spec_of(slopes))
    assert len(first) == 5


def test_shots_without_a_return_are_not_used():
    slopes = (-0.2, -0.1)
    assert len(with_one_between(column_of(slopes, (0.9, 0.9)), spec_of(slopes))) == 2


def test_other_lidars_are_left_as_they_are():
    slopes = (-0.2, -0.1)
    spec = spec_of(slopes, lidar_id=3)
    side = LidarSpec("side", 1, "solid_state", 2, (-10, 10))
    dense = spec_of((-0.02, -0.01), name="dense", lidar_id=9)
    points = column_of((-0.2, -0.1) * 3, (10.0,) * 6, ring=(0, 1) * 3, lidar_id=np.array([1, 1, 3, 3, 9, 9], np.uint8))
    result = with_one_between(points, spec, (side, spec, dense))
    np.testing.assert_array_equal(result.lidar_id[result.lidar_id != 9], [1, 1, 3, 3, 3])
    # The dense one has more than the target: it is thinned, whole rings.
    assert len(np.unique(result.ring[result.lidar_id == 9])) == 1


@pytest.mark.parametrize("factor", [1.29, 2.0, 3.1])
def test_as_many_beams_as_the_target_has_on_the_average(factor):
    beams = np.linspace(-30.67, 10.67, 32)
    counts = [added_beams(beams, factor=factor, phase=phase) for phase in np.linspace(0, 1, 200, endpoint=False)]
    assert np.mean([count.sum() for count in counts]) == pytest.approx((factor - 1) * 32, abs=0.01)
    # Equal gaps get equally many, but for one.
    assert all(np.ptp(count) <= 1 for count in counts)


def test_wide_gaps_get_more():
    np.testing.assert_array_equal(added_beams(np.array([0.0, 1.0, 2.0, 6.0]), factor=2.5, phase=0.0), [1, 1, 4])


def test_beams_are_added_where_the_source_states_no_ring():
    slopes = np.tan(np.radians(np.linspace(-20, 0, 16)))
    rng = np.random.default_rng(0)
    ring = np.repeat(np.arange(16), COLUMNS)
    turn = np.tile((np.arange(COLUMNS) + 0.5) / COLUMNS * 2 * np.pi, 16)
    flat = 15 + 5 * np.sin(turn) + rng.uniform(-0.02, 0.02, len(turn))
    xyz = np.stack([flat * np.cos(turn), flat * np.sin(turn), flat * slopes[ring]], axis=1).astype(np.float32)
    sweep = Sweep("s", "f", 0, xyz)
    result = with_one_between(sweep, spec_of(slopes))
    assert len(result) == len(sweep) + 15 * COLUMNS
    assert result.ring is None


def test_a_ring_that_the_lidar_does_not_have():
    slopes = (-0.2, -0.1)
    with pytest.raises(DataError, match="ring 2 of the LiDAR 'few'"):
        with_one_between(column_of(slopes, (10.0, 10.0), ring=(0, 2)), spec_of(slopes))


def test_arrays_that_were_given_stay_as_they_were():
    slopes = (-0.2, -0.1)
    sweep = column_of(slopes, (10.0, 11.0), intensity=np.array([1, 2], np.float32))
    for values in (sweep.xyz, sweep.ring, sweep.intensity):
        values.flags.writeable = False
    assert len(with_one_between(sweep, spec_of(slopes))) == 3


def test_the_stream_adds_beams_alike_every_time(uri):
    config = DataConfig(
        features=("x", "y", "z", "intensity", "ring"),
        balance=BalanceConfig(enabled=False),
        beams=BeamConfig(targets=("hdl-32e",), probabilities=(1.0,)),
    )
    plain = replace(config, beams=BeamConfig())
    runs = [
        [batch.points for batch in iterate(uri, one, seed=0, epoch=0, global_batch_size=4)]
        for one in (config, config, plain)
    ]
    for first, second, source in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)
        assert len(first) > len(source)
