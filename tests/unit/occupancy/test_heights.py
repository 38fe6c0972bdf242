import dataclasses

import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.occupancy.heights import align_heights
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY

LOOKUP = PAPER_TAXONOMY.lookup()
GROUND = np.append(PAPER_TAXONOMY.mask("ground"), np.zeros(240, bool))
ROAD, BUILDING = PAPER_TAXONOMY.id_of("road"), PAPER_TAXONOMY.id_of("building")


def climb(num_frames=5, labelled=True, far=(0.0, 0.0, 0.0)):
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
        sweeps.append(Sweep("log", str(i), i, xyz, pose, point_source_class=classes if labelled else None))
    return sweeps


def heights(sweeps):
    poses = [sweep.world_SE3_ego for sweep in sweeps]
    corrected = align_heights(sweeps, poses, LOOKUP, GROUND)
    for before, after in zip(poses, corrected, strict=True):
        moved = after - before
        moved[2, 3] = 0
        assert not moved.any(), "only z changes"
    return [after[2, 3] - before[2, 3] for before, after in zip(poses, corrected, strict=True)]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("far", [(0.0, 0.0, 0.0), (450_000.0, -5_400_000.0, 300.0)])
def test_a_climb_that_the_poses_lack_is_found(labelled, far):
    np.testing.assert_allclose(heights(climb(labelled=labelled, far=far)), [0.0, 0.2, 0.4, 0.6, 0.8], atol=0.02)


def test_right_heights_stay():
    sweeps = [
        dataclasses.replace(s, world_SE3_ego=se3.from_yaw(0.0, (4.0 * i, 0.0, 0.2 * i))) for i, s in enumerate(climb())
    ]
    np.testing.assert_allclose(heights(sweeps), 0.0, atol=0.02)


def test_sweeps_that_share_no_ground_keep_the_last_correction():
    sweeps = climb(3)
    away = dataclasses.replace(sweeps[2], world_SE3_ego=se3.from_yaw(0.0, (500.0, 0.0, 0.0)))
    nothing = dataclasses.replace(sweeps[2], xyz=np.array([[1.0, 2.0, 30.0]], np.float32), point_source_class=None)
    first, second, third, fourth = heights([sweeps[0], sweeps[1], away, nothing])
    assert first == 0.0
    assert second == pytest.approx(0.2, abs=0.02)
    assert third == fourth == second
