"""The voxels that the world's own rays reached."""

from __future__ import annotations

import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.synthetic.domain import passed_and_hit
from spot_ray.synthetic.world import World

GRID = VoxelGrid((-24.0, -24.0, -2.2), (0.4, 0.4, 0.4), (120, 120, 16))


@pytest.fixture(scope="module")
def world() -> World:
    return World("nuscenes", seed=0, sequence=1, num_frames=3)


def test_the_rays_of_one_sweep_pass_what_lies_on_them() -> None:
    alone = World("nuscenes", seed=0, sequence=0, num_frames=1)
    passed, hit = passed_and_hit(alone, 0, GRID)
    returns = alone.scan(0)
    voxel, inside = GRID.voxel_of(returns.exact_xyz)
    ends = np.unique(GRID.linear(voxel[inside]))
    np.testing.assert_array_equal(np.flatnonzero(hit), ends)
    assert passed[ends].all()

    # Places along the rays, found without a traversal, are all passed; and nearly all that is passed is found so.
    origin = alone.preset.lidar.pose[:3, 3]
    reached = np.zeros(GRID.num_voxels, bool)
    for share in np.linspace(0.0, 1.0, 400):
        voxel, inside = GRID.voxel_of(origin + share * (returns.exact_xyz.astype(np.float64) - origin))
        reached[GRID.linear(voxel[inside])] = True
    assert passed[reached].all()
    assert reached.sum() > 0.97 * passed.sum()
    assert 0.02 < passed.mean() < 0.6


def test_all_sweeps_count_whatever_the_number_of_threads(world: World) -> None:
    passed, hit = passed_and_hit(world, 1, GRID)
    for found, again in zip((passed, hit), passed_and_hit(world, 1, GRID, threads=2), strict=True):
        np.testing.assert_array_equal(found, again)
    # A sweep's own returns lie in the domain of every frame, moved by the poses.
    for other in range(3):
        moved = se3.invert(world.world_SE3_ego(1)) @ world.world_SE3_ego(other)
        xyz = se3.transform_points(moved, world.scan(other).exact_xyz.astype(np.float64))
        voxel, inside = GRID.voxel_of(xyz)
        assert passed[GRID.linear(voxel[inside])].all()


def test_returns_of_what_moves_are_carried_to_where_it_is() -> None:
    # Over a second, what moves leaves its place.
    world = World("nuscenes", seed=0, sequence=1, num_frames=11)
    _, hit = passed_and_hit(world, 10, GRID)
    distance = np.linalg.norm(world.thing_poses(10)[:, :3, 3] - world.thing_poses(0)[:, :3, 3], axis=1)
    first = world.scan(0)
    fast = np.flatnonzero((first.owner >= 0) & (distance[first.owner] > 2.0))
    assert len(fast) > 20
    frame_SE3_world = se3.invert(world.world_SE3_ego(10))
    stale = se3.transform_points(
        frame_SE3_world @ world.world_SE3_ego(0), first.exact_xyz[fast].astype(np.float64)
    )  # fmt: skip
    shift = np.stack([
        frame_SE3_world @ world.thing_poses(10)[thing] @ se3.invert(world.thing_poses(0)[thing])
        @ world.world_SE3_ego(0)
        for thing in first.owner[fast]
    ])  # fmt: skip
    carried = (shift[:, :3, :3] @ first.exact_xyz[fast].astype(np.float64)[..., None])[..., 0] + shift[:, :3, 3]
    voxel, inside = GRID.voxel_of(carried)
    assert inside.sum() > 10
    assert hit[GRID.linear(voxel[inside])].mean() > 0.999
    voxel, inside = GRID.voxel_of(stale)
    assert hit[GRID.linear(voxel[inside])].mean() < 0.9
