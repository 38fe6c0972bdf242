import itertools
from dataclasses import replace

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.geometry.boxes import points_in_boxes
from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.geometry.rays import mark_passed
from spot_ray.occupancy.visibility import PassedSpace, ray_origins, voxels_in_boxes
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sensors import LidarSpec, as_matrix
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY

GRID = VoxelGrid((-8.0, -8.0, -1.0), (0.4, 0.4, 0.4), (40, 40, 10))
ORIGIN = np.array([0.0, 0.0, 1.8])


def rays(seed, count=3000):
    """Ends all around, 2 to 12 m away."""
    rng = np.random.default_rng(seed)
    azimuth, inclination = rng.uniform(-np.pi, np.pi, count), np.deg2rad(rng.uniform(-20, 10, count))
    r = rng.uniform(2, 12, count)
    direction = [np.cos(azimuth) * np.cos(inclination), np.sin(azimuth) * np.cos(inclination), np.sin(inclination)]
    return ORIGIN + r[:, None] * np.stack(direction, axis=1)


def drive(cell_m):
    """Six sweeps on a curve: their poses, rays, and the space that they passed."""
    poses = [se3.from_yaw(0.1 * i, (1.1 * i, 0.1 * i * i, 0.03 * i)) for i in range(6)]
    sweeps = [rays(i) for i in range(6)]
    space = PassedSpace(GRID, poses, cell_m)
    for xyz, pose in zip(sweeps, poses, strict=True):
        space.add(xyz, np.broadcast_to(ORIGIN, xyz.shape), pose)
    return poses, sweeps, space


def cast_directly(frame, poses, sweeps):
    """The voxels of a frame that any sweep passed, each cast into the frame's own grid."""
    bits = np.zeros((GRID.num_voxels + 7) // 8, np.uint8)
    for xyz, pose in zip(sweeps, poses, strict=True):
        here = se3.invert(poses[frame]) @ pose
        mark_passed(bits, se3.transform_points(here, ORIGIN[None])[0], se3.transform_points(here, xyz), GRID)
    return unpack_bits(bits, (GRID.num_voxels,))


def test_one_cast_a_sweep_finds_what_casting_all_sweeps_into_each_frame_does():
    for cell, least in ((0.2, 0.93), (0.1, 0.96)):
        poses, sweeps, space = drive(cell)
        for frame in (0, 3, 5):
            direct = cast_directly(frame, poses, sweeps)
            looked_up = space.passed_by_sequence(poses[frame], free_fraction=0.0)
            iou = (direct & looked_up).sum() / (direct | looked_up).sum()
            assert iou > least, f"{cell} m, frame {frame}: {iou}"


def test_asking_for_more_of_a_voxel_only_takes_voxels_away():
    poses, _, space = drive(0.2)
    masks = [space.passed_by_sequence(poses[2], free_fraction=f) for f in (0.0, 0.25, 0.5, 0.75, 1.0)]
    sizes = [int(mask.sum()) for mask in masks]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 0
    assert all(not (b & ~a).any() for a, b in itertools.pairwise(masks))


@pytest.mark.parametrize(("free_fraction", "expected"), [(0.0, True), (0.25, True), (0.5, False), (1.0, False)])
def test_the_fraction_of_a_voxel_that_was_passed(free_fraction, expected):
    grid = VoxelGrid((0.0, 0.0, 0.0), (0.4, 0.4, 0.4), (4, 4, 4))
    space = PassedSpace(grid, [np.eye(4)], 0.2)
    # A ray along x in the lower quarter of the cross-section of the first row: 2 of 8 cells of each voxel.
    space.add(np.array([[1.5, 0.1, 0.1]]), np.array([[0.0, 0.1, 0.1]]), np.eye(4))
    passed = space.passed_by_sequence(np.eye(4), free_fraction=free_fraction).reshape(grid.shape)
    assert bool(passed[0, 0, 0]) == expected
    assert not passed[:, 1:].any()
    assert not passed[:, :, 1:].any()


def test_a_sequence_that_covers_a_country_is_refused():
    with pytest.raises(DataError, match="split the sequence"):
        PassedSpace(GRID, [np.eye(4), se3.from_yaw(0.0, (300_000.0, 300_000.0, 0.0))], 0.2)


def test_voxels_in_boxes_are_all_that_a_box_touches_and_few_more():
    box = np.array([[1.3, -2.1, 0.4, 4.0, 1.8, 1.5, 0.6]])
    found = np.zeros(GRID.num_voxels, bool)
    found[voxels_in_boxes(box, GRID, margin_m=0.0)] = True
    xyz = np.random.default_rng(0).uniform([-2, -5, -1], [5, 1, 2], (200_000, 3))
    inside = xyz[points_in_boxes(xyz, box) >= 0]
    touched = np.zeros(GRID.num_voxels, bool)
    touched[GRID.linear(GRID.voxel_of(inside)[0])] = True
    assert not (touched & ~found).any()
    assert found.sum() < 1.6 * touched.sum()
    assert not len(voxels_in_boxes(np.array([[50.0, 0, 0, 4, 2, 2, 0]]), GRID, margin_m=0.1))


def test_rays_start_at_the_lidar_of_their_own_id():
    rig = (
        LidarSpec("front", 77, "solid_state", 1, (-10.0, 10.0), ego_SE3_lidar=as_matrix(se3.from_yaw(0, (2, 0, 1)))),
        LidarSpec("top", 9, "spinning", 4, (-10.0, 10.0), ego_SE3_lidar=as_matrix(se3.from_yaw(0.5, (0, 0.5, 2)))),
    )
    info = DatasetInfo("two", rig, PAPER_TAXONOMY)
    sweep = Sweep("s", "f", 0, np.full((3, 3), 5, np.float32), lidar_id=np.array([9, 77, 9], np.uint8))
    np.testing.assert_array_equal(ray_origins(sweep, info), [[0, 0.5, 2], [2, 0, 1], [0, 0.5, 2]])
    np.testing.assert_array_equal(ray_origins(replace(sweep, lidar_id=None), info), [[2, 0, 1]] * 3)
    with pytest.raises(DataError, match="no LiDAR 1"):
        ray_origins(replace(sweep, lidar_id=np.array([9, 1, 9], np.uint8)), info)
