import itertools
from dataclasses import replace

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.geometry.rays import mark_passed
from spot_ray.occupancy.visibility import (
    PassedSpace,
    passed_by_sequence,
    passed_by_sweep,
    ray_origins,
    voxels_in_boxes,
)
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


def drive():
    """Six sweeps on a curve: their poses and rays."""
    poses = [se3.from_yaw(0.1 * i, (1.1 * i, 0.1 * i * i, 0.03 * i)) for i in range(6)]
    return poses, [rays(i) for i in range(6)]


def space_of(poses, sweeps, cell_m=0.2, **options):
    """What sweeps passed, in one space."""
    space = PassedSpace(GRID, poses, cell_m, **options)
    for xyz, pose in zip(sweeps, poses, strict=True):
        space.add(xyz, np.broadcast_to(ORIGIN, xyz.shape), pose)
    return space


def cast_directly(frame, poses, sweeps):
    """The voxels of a frame that any sweep passed, each cast into the frame's own grid."""
    bits = np.zeros((GRID.num_voxels + 7) // 8, np.uint8)
    for xyz, pose in zip(sweeps, poses, strict=True):
        here = se3.invert(poses[frame]) @ pose
        mark_passed(bits, se3.transform_points(here, ORIGIN[None])[0], se3.transform_points(here, xyz), GRID)
    return unpack_bits(bits, (GRID.num_voxels,))


def near(mask):
    """The voxels of a (n,) mask and their neighbours."""
    padded = np.pad(mask.reshape(GRID.shape), 1)
    steps = itertools.product((slice(0, -2), slice(1, -1), slice(2, None)), repeat=3)
    return np.any([padded[step] for step in steps], axis=0).reshape(-1)


@pytest.mark.parametrize("cell_m", [0.2, 0.1])
def test_one_cast_a_sweep_finds_what_casting_all_sweeps_into_each_frame_does(cell_m):
    poses, sweeps = drive()
    space = space_of(poses, sweeps, cell_m)
    for frame in (0, 3, 5):
        direct = cast_directly(frame, poses, sweeps)
        looked_up = passed_by_sequence([space], poses[frame], GRID)
        # So few rays: most voxels that one touches have no other, at far more than in a real drive.
        assert (direct & looked_up).sum() > 0.97 * direct.sum()
        assert not (looked_up & ~near(direct)).any(), "nothing but voxels next to the rays' own"
        assert looked_up.sum() < 1.25 * direct.sum()


def test_several_spaces_together_are_one_space_over_all():
    poses, sweeps = drive()
    whole = space_of(poses, sweeps)
    # Each covers the whole and something else besides, so that they begin at different cells.
    parts = []
    for k, x in ((slice(0, 1), -3.0), (slice(1, 4), 0.0), (slice(4, 6), -5.0)):
        space = PassedSpace(GRID, [*poses, se3.from_yaw(0.0, (x, 2 * x, 0.0))], 0.2)
        for xyz, pose in zip(sweeps[k], poses[k], strict=True):
            space.add(xyz, np.broadcast_to(ORIGIN, xyz.shape), pose)
        parts.append(space)
    assert len({tuple(space.first) for space in parts}) == 3
    for frame in (0, 3, 5):
        expected = passed_by_sequence([whole], poses[frame], GRID)
        np.testing.assert_array_equal(passed_by_sequence(parts, poses[frame], GRID), expected)
        np.testing.assert_array_equal(passed_by_sequence(parts[::-1], poses[frame], GRID), expected)
        alone = passed_by_sequence(parts[1:2], poses[frame], GRID)
        assert not (alone & ~expected).any()
        assert alone.sum() < expected.sum()


def test_a_row_of_voxels_along_a_ray_is_passed_and_no_other():
    grid = VoxelGrid((0.0, 0.0, 0.0), (0.4, 0.4, 0.4), (4, 4, 4))
    space = PassedSpace(grid, [np.eye(4)], 0.2)
    space.add(np.array([[1.5, 0.5, 0.9]]), np.array([[0.1, 0.5, 0.9]]), np.eye(4))
    passed = passed_by_sequence([space], np.eye(4), grid).reshape(grid.shape)
    # The end's voxel is passed too, as the ray came through a cell of 0.2 m of it.
    assert {tuple(v) for v in np.argwhere(passed).tolist()} == {(i, 1, 2) for i in range(4)}


def test_what_a_space_does_not_reach_is_not_passed():
    poses, sweeps = drive()
    space = space_of(poses[:1], sweeps[:1])
    away = se3.from_yaw(0.0, (1000.0, 0.0, 0.0))
    assert passed_by_sequence([space], poses[0], GRID).any()
    assert not passed_by_sequence([space], away, GRID).any()


def test_a_margin_leaves_room_for_heights_that_are_corrected_later():
    low = space_of([np.eye(4)], [rays(0)])
    high = PassedSpace(GRID, [np.eye(4)], 0.2, margin_z_m=3.0)
    lifted = se3.from_yaw(0.0, (0.0, 0.0, 2.4))
    high.add(rays(0), np.broadcast_to(ORIGIN, (3000, 3)), lifted)
    np.testing.assert_array_equal(
        passed_by_sequence([high], lifted, GRID), passed_by_sequence([low], np.eye(4), GRID), "moved by whole cells"
    )


def test_a_sweeps_own_rays_are_cast_into_its_own_grid():
    xyz = rays(0)
    sweep = Sweep("s", "f", 0, xyz.astype(np.float32))
    own = passed_by_sweep(sweep, np.broadcast_to(ORIGIN, xyz.shape), GRID)
    np.testing.assert_array_equal(own, cast_directly(0, [np.eye(4)], [sweep.xyz.astype(np.float64)]))
    hit = GRID.voxel_of(np.array([[4.1, 0.1, 1.8]]))[0]
    one = passed_by_sweep(Sweep("s", "f", 0, np.array([[4.1, 0.1, 1.8]], np.float32)), ORIGIN[None], GRID)
    assert one.any()
    assert not one[GRID.linear(hit)].any(), "where it ends it did not pass"


def test_a_sequence_that_covers_a_country_is_refused():
    with pytest.raises(DataError, match="shorten the window"):
        PassedSpace(GRID, [np.eye(4), se3.from_yaw(0.0, (300_000.0, 300_000.0, 0.0))], 0.2)


@pytest.mark.parametrize("margin_m", [0.0, 0.3])
def test_voxels_in_boxes_are_those_whose_centre_lies_in_an_enlarged_box(margin_m):
    boxes = np.array([[1.3, -2.1, 0.4, 4.0, 1.8, 1.5, 0.6], [-7.8, 7.0, 0.0, 3.0, 3.0, 9.0, -2.0]])
    centres = GRID.centers(np.arange(GRID.num_voxels))
    inside = np.zeros(GRID.num_voxels, bool)
    for x, y, z, dx, dy, dz, yaw in boxes:
        along = (centres[:, 0] - x) * np.cos(yaw) + (centres[:, 1] - y) * np.sin(yaw)
        across = (centres[:, 1] - y) * np.cos(yaw) - (centres[:, 0] - x) * np.sin(yaw)
        offset = np.stack([along, across, centres[:, 2] - z], axis=1)
        inside |= np.all(np.abs(offset) <= np.array([dx, dy, dz]) / 2 + margin_m, axis=1)
    found = voxels_in_boxes(boxes, GRID, margin_m=margin_m)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.flatnonzero(inside))


def test_a_box_outside_the_grid_holds_no_voxel():
    assert not len(voxels_in_boxes(np.array([[50.0, 0, 0, 4, 2, 2, 0]]), GRID, margin_m=0.1))
    assert not len(voxels_in_boxes(np.zeros((0, 7)), GRID, margin_m=0.1))


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


def test_blocks_are_those_with_a_passed_cell():
    space = PassedSpace(VoxelGrid((0.0, 0.0, 0.0), (0.2, 0.2, 0.2), (21, 10, 13)), [np.eye(4)], 0.2)
    assert not space.blocks().any()
    rng = np.random.default_rng(0)
    space.add(rng.uniform(0, 4, (6, 3)), rng.uniform(0, 4, (6, 3)), np.eye(4))
    bits = unpack_bits(space.bits, (space.grid.num_voxels,)).reshape(space.grid.shape)
    expected = np.zeros(-(-np.array(bits.shape) // 4), dtype=bool)
    expected[tuple(np.argwhere(bits).T // 4)] = True
    np.testing.assert_array_equal(space.blocks(), expected)
    assert 0 < expected.sum() < expected.size
