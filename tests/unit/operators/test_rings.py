from dataclasses import replace

import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.operators.rings import estimate_rings, find_beams, rings_of
from spot_ray.schema.lidars import HDL_32E, HDL_64E, ONCE_40, WAYMO_TOP
from spot_ray.schema.sensors import LidarSpec, as_matrix

COLUMNS = 400


def scene(table_deg, *, columns=COLUMNS, heights=0.0, way_m=(0.0, 0.0), seed=0):
    """Return (N, 3) points in the sensor's frame of a turn amid walls on a road 1.9 m below, and their rings.

    `heights` are of the beams' origins; on its way of `way_m` during the turn the sensor is at its own origin half-way.
    """
    rng = np.random.default_rng(seed)
    ring = np.repeat(np.arange(len(table_deg)), columns)
    turn = np.tile((np.arange(columns) + 0.5) / columns - 0.5, len(table_deg))
    azimuth, slope = 2 * np.pi * turn, np.tan(np.radians(np.array(table_deg)))[ring]
    height = np.broadcast_to(heights, len(table_deg))[ring]
    wall = 12 + 45 * np.abs(np.sin(2.5 * azimuth + 0.3)) * rng.uniform(0.97, 1.03, len(ring))
    car = np.where((np.sin(9 * azimuth) > 0.6) & (slope < 0.01), 7.0, np.inf)
    road = np.where(slope < -0.01, (1.9 + height) / np.maximum(-slope, 1e-9), np.inf)
    distance = np.minimum(np.minimum(wall, road), car) + rng.normal(0, 0.01, len(ring))
    origin = turn[:, None] * np.array([*way_m, 0.0]) + np.stack([0 * height, 0 * height, height], axis=1)
    points = origin + distance[:, None] * np.stack([np.cos(azimuth), np.sin(azimuth), slope], axis=1)
    return points, ring


def seen(points, spec: LidarSpec) -> np.ndarray:
    """Return points of the sensor's frame in the ego frame."""
    return se3.transform_points(spec.pose, points).astype(np.float32)


def turned(spec: LidarSpec, degrees: float) -> LidarSpec:
    """Return the spec with its sensor mounted tilted about an axis that is neither x nor y."""
    half = np.radians(degrees) / 2
    tilt = se3.from_quaternion([np.cos(half), 0.8 * np.sin(half), 0.6 * np.sin(half), 0.0])
    return replace(spec, ego_SE3_lidar=as_matrix(spec.pose @ tilt))


@pytest.mark.parametrize("spec", [WAYMO_TOP, HDL_64E, HDL_32E, ONCE_40], ids=lambda spec: spec.name)
def test_the_beams_of_every_known_sensor(spec):
    points, ring = scene(spec.inclinations_deg)
    found, inclination = estimate_rings(seen(points, spec), spec)
    assert (found == ring).mean() > 0.999
    assert found.dtype == np.uint16
    np.testing.assert_allclose(inclination, spec.inclinations_deg, atol=0.05)


@pytest.mark.parametrize("spec", [WAYMO_TOP, HDL_64E, HDL_32E, ONCE_40], ids=lambda spec: spec.name)
def test_units_that_differ_from_the_table(spec):
    # Every beam off its place by up to a fifth of the least space between beams, and all by a third of it.
    table = np.array(spec.inclinations_deg)
    space = np.abs(np.diff(table)).min()
    table = table + space * (0.33 + np.random.default_rng(1).uniform(-0.2, 0.2, len(table)))
    points, ring = scene(table)
    found, inclination = estimate_rings(seen(points, spec), spec)
    assert (found == ring).mean() > 0.999
    np.testing.assert_allclose(inclination, table, atol=0.05)


@pytest.mark.parametrize(
    ("spec", "degrees"), [(WAYMO_TOP, 0.08), (HDL_64E, 0.2), (HDL_32E, 0.8), (ONCE_40, 0.15)],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_a_sensor_that_is_mounted_tilted(spec, degrees):
    points, ring = scene(spec.inclinations_deg)
    assert (estimate_rings(seen(points, turned(spec, degrees)), spec)[0] == ring).mean() > 0.998


def test_blocks_of_lasers_above_the_origin_in_a_moving_vehicle():
    # As KITTI's HDL-64E: two optical centres, 8.5 m/s, points corrected for the motion.
    heights = np.repeat([0.21, 0.14], 32)
    points, ring = scene(HDL_64E.inclinations_deg, heights=heights, way_m=(-0.85, -0.05), columns=1000)
    xyz = seen(points, HDL_64E)
    plain = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    table = np.array(HDL_64E.inclinations_deg)
    nearest = np.abs(plain[:, None] - table).argmin(axis=1)
    assert (nearest == ring).mean() < 0.5, "what the fit is for"
    found, inclination = estimate_rings(xyz, HDL_64E)
    assert (found == ring).mean() > 0.998
    np.testing.assert_allclose(inclination[:32], table[:32], atol=0.05)
    beams = find_beams(xyz, HDL_64E)
    assert beams.parameters[2] == pytest.approx(-0.85, abs=0.1)
    np.testing.assert_allclose(beams.parameters[6:], (0.14, 0.21), atol=0.02)


def test_rings_without_returns_and_few_points():
    points, ring = scene(HDL_32E.inclinations_deg)
    left = np.isin(ring, [*range(5, 9), *range(10, 27)]) & (np.random.default_rng(0).random(len(ring)) < 0.2)
    found, _ = estimate_rings(seen(points[left], HDL_32E), HDL_32E)
    assert (found == ring[left]).mean() > 0.999


def test_without_a_table_beams_are_even_over_the_field_of_view():
    points, ring = scene(HDL_32E.inclinations_deg)
    assert (estimate_rings(seen(points, HDL_32E), replace(HDL_32E, inclinations_deg=None))[0] == ring).mean() > 0.999


def test_the_order_of_the_points_does_not_matter():
    points, _ = scene(HDL_64E.inclinations_deg)
    xyz = seen(points, HDL_64E)
    order = np.random.default_rng(0).permutation(len(xyz))
    assert (estimate_rings(xyz, HDL_64E)[0][order] == estimate_rings(xyz[order], HDL_64E)[0]).mean() > 0.999


def test_the_same_points_give_the_same_rings():
    points, _ = scene(ONCE_40.inclinations_deg)
    xyz = seen(points, ONCE_40)
    first, second = (estimate_rings(xyz.copy(), ONCE_40) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_the_beams_of_one_frame_fit_the_next():
    frames = [scene(HDL_64E.inclinations_deg, seed=seed) for seed in (0, 1)]
    beams = find_beams(seen(frames[0][0], HDL_64E), HDL_64E)
    assert (rings_of(seen(frames[1][0], HDL_64E), HDL_64E, beams) == frames[1][1]).mean() > 0.999


@pytest.mark.parametrize("order", ["beam by beam", "shot by shot"])
def test_points_at_the_sensor_take_the_ring_of_their_place(order):
    points, ring = scene(HDL_32E.inclinations_deg)
    if order == "shot by shot":
        points, ring = (values.reshape(32, COLUMNS, *values.shape[1:]).swapaxes(0, 1) for values in (points, ring))
        points, ring = points.reshape(-1, 3), ring.reshape(-1)
    lost = np.random.default_rng(0).random(len(ring)) < 0.2
    points[lost] *= 0.01  # shots without a return
    found, _ = estimate_rings(seen(points, HDL_32E), HDL_32E)
    assert (found[~lost] == ring[~lost]).mean() > 0.999
    assert (found[lost] == ring[lost]).mean() > 0.99


def test_points_at_the_sensor_only():
    found, inclination = estimate_rings(
        np.full((7, 3), 0.1, np.float32) + HDL_32E.pose[:3, 3].astype(np.float32), HDL_32E
    )
    np.testing.assert_array_equal(found, np.full(7, found[0]))
    np.testing.assert_allclose(inclination, HDL_32E.inclinations_deg, atol=0.1)


@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_sensors_of_few_beams(num_beams):
    table = tuple(np.linspace(-12, 0, 5)[:num_beams].tolist())
    spec = LidarSpec("few", 0, "spinning", num_beams, (-12.0, 0.0), inclinations_deg=table)
    points, ring = scene(table)
    np.testing.assert_array_equal(estimate_rings(seen(points, spec), spec)[0], ring)


def test_two_beams_of_one_inclination():
    spec = replace(HDL_32E, num_beams=33, inclinations_deg=(*HDL_32E.inclinations_deg, HDL_32E.inclinations_deg[-1]))
    points, ring = scene(HDL_32E.inclinations_deg)
    found, _ = estimate_rings(seen(points, spec), spec)
    assert (found == ring)[ring < 31].mean() > 0.999
