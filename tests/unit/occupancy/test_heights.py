import dataclasses

import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.occupancy.heights import HeightAligner, are_flat
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY

ROAD, BUILDING = PAPER_TAXONOMY.id_of("road"), PAPER_TAXONOMY.id_of("building")


def climb(num_frames=5, far=(0.0, 0.0, 0.0)):
    """A road that climbs by 5 %, with a wall on it, seen from poses whose height is never known, 4 m apart."""
    rng = np.random.default_rng(0)
    sweeps = []
    for i in range(num_frames):
        road = rng.uniform([-15, -15, 0], [15, 15, 0], (8000, 3))
        road[:, 2] = 0.05 * road[:, 0] + rng.normal(0, 0.01, len(road))
        wall = rng.uniform([-15, 8, -1], [15, 8.1, 1], (2000, 3))
        xyz = np.concatenate([road, wall]).astype(np.float32)
        classes = np.repeat(np.array([ROAD, BUILDING], np.uint16), [len(road), len(wall)])
        pose = se3.from_yaw(0.0, np.array([4.0 * i, 0.0, 0.0]) + far)
        sweeps.append(Sweep("log", str(i), i, xyz, pose, point_source_class=classes))
    return sweeps


def heights(sweeps):
    """How far up the pose of each sweep is moved."""
    aligner, moved = HeightAligner(), []
    for sweep in sweeps:
        known = sweep.world_SE3_ego.copy()
        change = aligner.correct(sweep.xyz, sweep.point_source_class == ROAD, sweep.world_SE3_ego) - known
        np.testing.assert_array_equal(sweep.world_SE3_ego, known, "the pose given is not written to")
        moved.append(change[2, 3])
        change[2, 3] = 0
        assert not change.any(), "only z changes"
    return moved


@pytest.mark.parametrize("far", [(0.0, 0.0, 0.0), (450_000.0, -5_400_000.0, 300.0)])
def test_a_climb_that_the_poses_lack_is_found(far):
    np.testing.assert_allclose(heights(climb(far=far)), [0.0, 0.2, 0.4, 0.6, 0.8], atol=0.02)


def test_right_heights_stay():
    sweeps = [
        dataclasses.replace(s, world_SE3_ego=se3.from_yaw(0.0, (4.0 * i, 0.0, 0.2 * i))) for i, s in enumerate(climb())
    ]
    np.testing.assert_allclose(heights(sweeps), 0.0, atol=0.02)


def test_sweeps_that_share_no_ground_keep_the_last_correction():
    sweeps = climb(3)
    away = dataclasses.replace(sweeps[2], world_SE3_ego=se3.from_yaw(0.0, (500.0, 0.0, 0.0)))
    nothing = dataclasses.replace(
        sweeps[2], xyz=np.array([[1.0, 2.0, 30.0]], np.float32), point_source_class=np.array([ROAD], np.uint16)
    )
    first, second, third, fourth = heights([sweeps[0], sweeps[1], away, nothing])
    assert first == 0.0
    assert second == pytest.approx(0.2, abs=0.02)
    assert third == fourth == second


def level(z, low_x=-15.0, high_x=15.0, seed=1):
    """Level ground: points dense enough for each cell."""
    xyz = np.random.default_rng(seed).uniform([low_x, -15, 0], [high_x, 15, 0], (8000, 3))
    xyz[:, 2] = z
    return xyz.astype(np.float32)


def test_the_newest_height_of_a_place_counts():
    # The second sweep fits the first in most places, but not at x > 8, which is all that the third sees.
    second = level(0.0, seed=2)
    second[second[:, 0] > 8, 2] = 0.1
    aligner = HeightAligner()
    moved = [
        aligner.correct(xyz, np.ones(len(xyz), bool), np.eye(4))[2, 3] for xyz in (level(0.0), second, level(0.0, 8.5))
    ]
    np.testing.assert_allclose(moved, [0.0, 0.0, 0.1], atol=1e-6)


def test_what_is_no_ground_or_not_flat_does_not_count():
    # Each place of the rough ground is there twice: a step of 0.7 m in each cell.
    rough = np.concatenate([level(0.0) + np.float32([0, 0, z]) for z in (0.2, 0.9)])
    aligner = HeightAligner()

    def moved(xyz, is_ground):
        return aligner.correct(xyz, np.full(len(xyz), is_ground), np.eye(4))[2, 3]

    assert moved(level(0.0), True) == 0.0
    assert moved(rough, True) == 0.0
    assert moved(level(0.5), False) == 0.0
    assert moved(level(0.5), True) == pytest.approx(-0.5)


def test_a_long_drive_forgets_where_it_began():
    # The ground falls by 0.01 m a sweep. 80 sweeps 10 m apart are twice the cells that are kept.
    rng = np.random.default_rng(2)
    aligner = HeightAligner()
    for i in range(80):
        xyz = rng.uniform([-20, -20, 0], [20, 20, 0], (20_000, 3)).astype(np.float32)
        xyz[:, 2] = 0.01 * i
        moved = aligner.correct(xyz, np.ones(len(xyz), bool), se3.from_yaw(0.0, (10.0 * i, 0.0, 0.0)))[2, 3]
    assert moved == pytest.approx(-0.79, abs=1e-3)
    again = aligner.correct(level(0.0), np.ones(8000, bool), np.eye(4))[2, 3]
    assert again == moved, "had it not forgotten the first sweep's ground, it would be at 0 again"


def test_poses_that_have_one_height_along_a_way_know_none():
    def way(*xyz):
        return [se3.from_yaw(0.3, place) for place in xyz]

    assert are_flat(way((0, 0, 7.0), (2, 0, 7.0), (4, 1, 7.0)))
    assert not are_flat(way((0, 0, 7.0), (2, 0, 7.01), (4, 1, 7.0)))
    assert not are_flat(way((0, 0, 7.0), (0.1, 0, 7.0))), "a vehicle that stands does not climb"
