"""Shapes of points as scan lines leave them, and what is filled in. All in metres; cells of 0.1 m."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from spot_ray.occupancy.cloud import CloudBuilder
from spot_ray.occupancy.surfaces import Patches, fill_surfaces


def cloud(xyz, label=5):
    builder = CloudBuilder(0.1)
    xyz = np.array(xyz, np.float64)
    builder.add(xyz, np.broadcast_to(np.array(label, np.uint8), len(xyz)).copy())
    return builder.build()


def line(start, end, step=0.1):
    """Points on a straight line, both ends among them."""
    start, end = np.array(start, float), np.array(end, float)
    return start + np.linspace(0, 1, round(np.linalg.norm(end - start) / step) + 1)[:, None] * (end - start)


def turned(xyz, yaw):
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array(xyz) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def filled(xyz, label=5):
    patches = fill_surfaces(cloud(xyz, label))
    assert patches.xyz.dtype == np.float32
    assert patches.label.dtype == np.uint8
    assert patches.xyz.shape == (len(patches.label), 3)
    return patches


def farthest(places, *clouds):
    """The greatest distance from any of the places to the nearest point."""
    return cKDTree(np.concatenate(clouds)).query(places)[0].max()


@pytest.mark.parametrize("yaw", [0.0, 0.4, 0.785, 1.5708])
def test_a_wall_is_closed_between_two_scan_lines_and_not_beyond_them(yaw):
    lines = np.concatenate([line((0, 5, z), (6, 5, z)) for z in (1.0, 1.6)])
    xyz = turned(lines, yaw)
    patches = turned(filled(xyz).xyz, -yaw)
    between = np.concatenate([line((0.5, 5, z), (5.5, 5, z)) for z in np.arange(1.0, 1.61, 0.1)])
    assert farthest(between, lines) == pytest.approx(0.3, abs=0.01)
    assert farthest(between, lines, patches) < 0.15
    assert np.abs(patches[:, 1] - 5.0).max() < 0.1, "in the wall's plane"
    # It may reach as far as the blocks of 0.4 m in which the lines lie.
    assert patches[:, 2].min() > 0.55
    assert patches[:, 2].max() < 2.05
    assert patches[:, 0].min() > -0.7
    assert patches[:, 0].max() < 6.7


def test_a_slanted_roof_is_closed_in_its_own_plane():
    # Scan lines 0.5 m apart on a plane that rises by 45°.
    lines = np.concatenate([line((0, y, y), (5, y, y)) for y in np.arange(2.0, 4.1, 0.5)])
    patches = filled(lines).xyz
    middle = np.concatenate([line((0.5, y, y), (4.5, y, y)) for y in np.arange(2.1, 3.9, 0.1)])
    assert farthest(middle, lines) > 0.25
    assert farthest(middle, lines, patches) < 0.2
    assert np.abs(patches[:, 1] - patches[:, 2]).max() < 0.15


@pytest.mark.parametrize("place", [(3.0, 2.0), (-1.13, 4.21)])
def test_a_pole_is_closed_between_the_scan_lines_that_hit_it(place):
    # Two points 0.1 m apart, each 0.5 m in height.
    heights = np.arange(0.3, 4.4, 0.5)
    xyz = np.array([[place[0] + dx, place[1], z] for z in heights for dx in (0.0, 0.1)])
    patches = filled(xyz).xyz
    middle = line((place[0] + 0.05, place[1], 0.9), (place[0] + 0.05, place[1], 3.7))
    assert farthest(middle, xyz) > 0.2
    assert farthest(middle, xyz, patches) < 0.15
    assert np.hypot(patches[:, 0] - place[0] - 0.05, patches[:, 1] - place[1]).max() < 0.2
    assert patches[:, 2].min() > 0.3 - 0.5
    assert patches[:, 2].max() < 4.3 + 0.5


@pytest.mark.parametrize("seed", range(8))
def test_a_lone_cluster_grows_nothing_around_it(seed):
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-5, 5, 3) + rng.uniform(-0.15, 0.15, (40, 3))
    patches = filled(xyz).xyz
    assert np.all(patches > xyz.min(axis=0) - 0.2)
    assert np.all(patches < xyz.max(axis=0) + 0.2)


def test_scattered_leaves_are_no_surface():
    rng = np.random.default_rng(0)
    assert len(filled(rng.uniform(0, 4, (300, 3))).xyz) < 0.05 * 40**2, "of all the planes that would fit in"


def test_few_points_and_none_fill_nothing():
    assert len(filled(np.zeros((0, 3))).xyz) == 0
    assert len(filled(line((0, 0, 0), (1, 0, 0), 0.5)).xyz) == 0
    assert len(Patches.none().xyz) == len(Patches.none().label) == 0


def test_between_two_parallel_walls_nothing_is_filled():
    walls = np.concatenate([line((0, y, z), (6, y, z)) for y in (2.0, 4.5) for z in (1.0, 1.5, 2.0)])
    patches = filled(walls).xyz
    assert len(patches) > 100
    assert np.minimum(np.abs(patches[:, 1] - 2.0), np.abs(patches[:, 1] - 4.5)).max() < 0.1


def test_a_gap_wider_than_the_neighbourhood_stays_open():
    # A gateway of 3 m in a wall, and one line on either side of a row of windows 2.5 m high.
    wall = np.concatenate([line((x, 5, z), (x + 3, 5, z)) for x in (0, 6) for z in (1.0, 1.5, 2.0)])
    patches = filled(wall).xyz
    assert not ((patches[:, 0] > 3.6) & (patches[:, 0] < 5.4)).any()
    apart = np.concatenate([line((0, 5, z), (6, 5, z)) for z in (1.0, 3.5)])
    patches = filled(apart).xyz
    assert not ((patches[:, 2] > 1.6) & (patches[:, 2] < 2.9)).any()


def test_what_is_filled_has_the_class_of_the_points_next_to_it():
    lines = np.concatenate([line((0, 5, z), (8, 5, z)) for z in (1.0, 1.6)])
    patches = filled(lines, np.where(lines[:, 0] < 4, 5, 7))
    x = patches.xyz[:, 0]
    assert set(patches.label[x < 3.2].tolist()) == {5}
    assert set(patches.label[x > 4.8].tolist()) == {7}
    assert set(patches.label.tolist()) == {5, 7}


def test_what_is_filled_among_unlabelled_points_has_the_class_of_labelled_ones_near_it_or_none():
    lines = np.concatenate([line((0, 5, z), (4, 5, z)) for z in (1.0, 1.6)])
    assert set(filled(lines, 255).label.tolist()) == {255}
    some = filled(lines, np.where(lines[:, 2] > 1.3, 9, 255))
    inside = (some.xyz[:, 0] > 0.5) & (some.xyz[:, 0] < 3.5)
    assert set(some.label[inside].tolist()) == {9}


def test_a_surface_that_is_dense_already_gets_next_to_nothing():
    wall = np.concatenate([line((0.05, 5.05, z), (5.95, 5.05, z)) for z in np.arange(0.05, 4, 0.1)])
    patches = filled(wall).xyz
    inner = (patches[:, 0] > 0.4) & (patches[:, 0] < 5.6) & (patches[:, 2] > 0.4) & (patches[:, 2] < 3.6)
    assert not inner.any()


def test_the_same_cloud_far_away_is_filled_in_the_same_way():
    lines = np.concatenate([line((0.03, 5, z), (4.03, 5, z)) for z in (1.0, 1.6)])
    shift = np.array([2000.0, -1200.0, 40.0])
    here, there = filled(lines).xyz, filled(lines + shift).xyz - shift
    assert len(here) == len(there)
    np.testing.assert_allclose(here, there, atol=2e-3)
