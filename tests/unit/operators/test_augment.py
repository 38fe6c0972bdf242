import math
from dataclasses import replace

import numpy as np
import pytest

from spot_ray.geometry.boxes import points_in_boxes
from spot_ray.geometry.grid import VoxelGrid, pack_bits, unpack_bits
from spot_ray.operators.augment import Augment, build_augment, move, move_bits, move_voxels
from spot_ray.operators.config import AugmentConfig

QUARTER = math.pi / 2
EXACT = [(flip_x, flip_y, turns) for flip_x in (False, True) for flip_y in (False, True) for turns in (-1, 0, 1, 2)]


def classes_at(sample, grid, xy, z):
    """Return the label class of each place, 0 where the label is empty."""
    dense = np.zeros(grid.num_voxels, np.uint8)
    dense[sample.occupancy_index] = sample.occupancy_class
    voxel, inside = grid.voxel_of(np.column_stack([xy, z]))
    return np.where(inside, dense[grid.linear(voxel)], 0)


@pytest.mark.parametrize(("flip_x", "flip_y", "turns"), EXACT)
def test_labels_sit_on_points_after_flips_and_quarter_turns(sample, grid, flip_x, flip_y, turns):
    before = classes_at(sample, grid, sample.sweep.xyz[:, :2], sample.sweep.xyz[:, 2])
    moved = move(sample, grid, flip_x=flip_x, flip_y=flip_y, rotation_rad=turns * QUARTER, scale=1.0)
    after = classes_at(moved, grid, moved.sweep.xyz[:, :2], moved.sweep.xyz[:, 2])
    assert before.all()
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(moved.network_from_label, np.eye(2, 3))
    assert (np.diff(moved.occupancy_index) > 0).all()
    # What is occupied stays observed, and the number of observed voxels stays.
    observed = unpack_bits(moved.observed, (grid.num_voxels,))
    assert observed[moved.occupancy_index].all()
    assert observed.sum() == unpack_bits(sample.observed, (grid.num_voxels,)).sum()


@pytest.mark.parametrize("rotation_rad", [0.0, 0.3, -0.7, 1.2, 2.9])
@pytest.mark.parametrize(("flip_x", "flip_y"), [(False, False), (True, False), (False, True), (True, True)])
def test_the_affine_takes_labels_to_points(sample, grid, flip_x, flip_y, rotation_rad):
    before = classes_at(sample, grid, sample.sweep.xyz[:, :2], sample.sweep.xyz[:, 2])
    moved = move(sample, grid, flip_x=flip_x, flip_y=flip_y, rotation_rad=rotation_rad, scale=1.05)
    a, t = moved.network_from_label[:, :2], moved.network_from_label[:, 2]
    # The rest is a turn within a quarter's half and the scale: no flip is left for the affine.
    assert np.linalg.det(a) == pytest.approx(1.05**2)
    assert abs(math.atan2(a[1, 0], a[0, 0])) <= math.pi / 4 + 1e-9
    xy_label = (moved.sweep.xyz[:, :2] - t) @ np.linalg.inv(a).T
    np.testing.assert_array_equal(classes_at(moved, grid, xy_label, moved.sweep.xyz[:, 2]), before)
    # Seen from the other side: every label cell, taken to the network frame, has a point within half its diagonal.
    centers = grid.centers(moved.occupancy_index)
    network = np.column_stack([centers[:, :2] @ a.T + t, centers[:, 2]])
    distance = np.linalg.norm(network[:, None] - moved.sweep.xyz[None], axis=2).min(axis=1)
    assert distance.max() <= 1.05 * 0.2 * math.sqrt(3) + 1e-5


def test_the_whole_goes_to_the_affine_where_cells_do_not_map_to_cells(sample, grid):
    oblong = VoxelGrid((-8.0, -7.6, -2.2), (0.4, 0.4, 0.4), (40, 38, 16))
    moved = move(sample, oblong, flip_x=True, flip_y=False, rotation_rad=QUARTER, scale=1.0)
    assert moved.occupancy_index is sample.occupancy_index
    assert moved.observed is sample.observed
    expected = sample.sweep.xyz[:, :2] @ moved.network_from_label[:, :2].T
    np.testing.assert_allclose(moved.sweep.xyz[:, :2], expected, atol=1e-6)
    # (1, 0) stays under the flip and turns to (0, 1); (0, 1) flips to (0, -1) and turns to (1, 0).
    np.testing.assert_allclose(moved.network_from_label, [[0, 1, 0], [1, 0, 0]], atol=1e-12)


def test_directions_by_hand(sample, grid):
    sweep = replace(sample.sweep, xyz=np.tile(np.float32([2, 1, 0.5]), (len(sample.sweep), 1)))
    base = replace(sample, sweep=sweep)

    def first(**changes):
        still = {"flip_x": False, "flip_y": False, "rotation_rad": 0.0, "scale": 1.0}
        return move(base, grid, **{**still, **changes}).sweep.xyz[0].tolist()

    assert first(flip_x=True) == [2, -1, 0.5]
    assert first(flip_y=True) == [-2, 1, 0.5]
    assert first(rotation_rad=QUARTER) == [-1, 2, 0.5]
    assert first(scale=2.0) == [4, 2, 0.5]


@pytest.mark.parametrize(("flip_x", "flip_y"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("rotation_rad", [0.0, 0.6, QUARTER, -2.5])
def test_boxes_keep_their_points(sample, grid, flip_x, flip_y, rotation_rad):
    rng = np.random.default_rng(0)
    boxes = sample.sweep.boxes
    dense = rng.uniform([-6, -7, -0.5], [6, 4, 1.5], (4000, 3)).astype(np.float32)
    sweep = replace(sample.sweep, xyz=dense, intensity=None, ring=None, point_source_class=None)
    before = points_in_boxes(dense, boxes.boxes)
    moved = move(
        replace(sample, sweep=sweep), grid, flip_x=flip_x, flip_y=flip_y, rotation_rad=rotation_rad, scale=1.04
    ).sweep
    after = points_in_boxes(moved.xyz, moved.boxes.boxes)
    assert (before >= 0).sum() > 50
    assert (before != after).sum() <= 2  # float32 at the faces
    np.testing.assert_allclose(moved.boxes.boxes[:, 3:6], boxes.boxes[:, 3:6] * [1.04, 1.04, 1], rtol=1e-6)
    assert (np.abs(moved.boxes.boxes[:, 6]) <= np.float32(math.pi)).all()


def test_yaw_and_velocity_by_hand(sample, grid):
    # A box that heads 0.3 rad left of forward and drives at (1, 2): the mirror about x turns both to the right.
    moved = move(sample, grid, flip_x=True, flip_y=False, rotation_rad=0.0, scale=1.0).sweep.boxes
    assert moved.boxes[0, 6] == pytest.approx(-0.3)
    assert moved.velocity[0].tolist() == [1, -2, 0]
    moved = move(sample, grid, flip_x=False, flip_y=True, rotation_rad=0.1, scale=1.0).sweep.boxes
    assert moved.boxes[0, 6] == pytest.approx(math.pi - 0.3 + 0.1)


@pytest.mark.parametrize("layers", [3, 8, 16], ids=["bits", "bytes", "two bytes"])
@pytest.mark.parametrize(("flip_x", "flip_y", "turns"), EXACT)
def test_masks_move_as_voxels_do(layers, flip_x, flip_y, turns):
    grid = VoxelGrid((-1.5, -1.5, 0.0), (0.5, 0.5, 0.5), (6, 6, layers))
    mask = np.random.default_rng(0).random(grid.num_voxels) < 0.3
    exact = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turns % 4) @ np.diag(
        [-1 if flip_y else 1, -1 if flip_x else 1]
    )
    index = np.flatnonzero(mask).astype(np.int32)
    moved, _ = move_voxels(index, np.zeros(len(index), np.uint8), exact.astype(float), grid)
    bits = move_bits(pack_bits(mask), exact.astype(float), grid)
    np.testing.assert_array_equal(np.flatnonzero(unpack_bits(bits, (grid.num_voxels,))), moved)
    # The voxels' centres have moved as points do.
    expected = grid.centers(index)
    expected[:, :2] = expected[:, :2] @ exact.T
    np.testing.assert_allclose(grid.centers(moved), expected[np.argsort(grid.linear(grid.voxel_of(expected)[0]))])


@pytest.mark.parametrize("rotation_rad", [0.0, 0.3, QUARTER, -2.5])
def test_points_move_in_float64_and_are_rounded_once(sample, grid, rotation_rad):
    rng = np.random.default_rng(0)
    xyz = (rng.normal(0, 1, (2500, 3)) * 10.0 ** rng.integers(-3, 4, (2500, 1))).astype(np.float32)
    sweep = replace(sample.sweep, xyz=xyz, intensity=None, ring=None, point_source_class=None)
    moved = move(
        replace(sample, sweep=sweep), grid, flip_x=True, flip_y=False, rotation_rad=rotation_rad, scale=1.04
    ).sweep
    # The whole matrix, as it is told: quarter turns and flips first, then what is left.
    turns = round(rotation_rad / QUARTER)
    exact = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turns % 4) @ np.diag([1, -1])
    rest = rotation_rad - turns * QUARTER
    c, s = 1.04 * math.cos(rest), 1.04 * math.sin(rest)
    (a, b), (d, e) = (np.array([[c, -s], [s, c]]) @ exact).tolist()
    # Point by point in Python's own floats, which are of 64 bits and never fused.
    expected = [(a * x + b * y, d * x + e * y, z) for x, y, z in xyz.astype(np.float64).tolist()]
    assert moved.xyz.dtype == np.float32
    assert moved.xyz.tobytes() == np.array(expected).astype(np.float32).tobytes()


@pytest.mark.parametrize(("flip_x", "flip_y", "turns"), EXACT)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0])
def test_voxels_move_one_by_one_and_are_sorted(share, flip_x, flip_y, turns):
    grid = VoxelGrid((-5.0, -5.0, 0.0), (0.5, 0.5, 0.5), (20, 20, 9))
    rng = np.random.default_rng(0)
    index = np.flatnonzero(rng.random(grid.num_voxels) < share).astype(np.int32)
    semantic = rng.choice([1, 2, 255], len(index)).astype(np.uint8)
    exact = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turns % 4) @ np.diag(
        [-1 if flip_y else 1, -1 if flip_x else 1]
    )
    found, classes = move_voxels(index, semantic, exact.astype(float), grid)
    moved = {}
    for voxel, label in zip(index.tolist(), semantic.tolist(), strict=True):
        (x, y), z = divmod(voxel // 9, 20), voxel % 9
        # Centres lie at odd numbers of half cells from the middle of the grid.
        x, y = ((np.array([2 * x - 19, 2 * y - 19]) @ exact.T + 19) // 2).tolist()
        moved[(x * 20 + y) * 9 + z] = label
    assert (found.dtype, classes.dtype) == (np.int32, np.uint8)
    assert found.tolist() == sorted(moved)
    assert classes.tolist() == [moved[voxel] for voxel in sorted(moved)]


def test_inputs_are_not_written_to(sample, grid):
    kept = [sample.sweep.xyz.copy(), sample.occupancy_index.copy(), sample.sweep.boxes.boxes.copy()]
    move(sample, grid, flip_x=True, flip_y=True, rotation_rad=0.4, scale=0.95)
    for now, then in zip((sample.sweep.xyz, sample.occupancy_index, sample.sweep.boxes.boxes), kept, strict=True):
        np.testing.assert_array_equal(now, then)


def affine(sample, grid, config, *, epoch=0, copy=0):
    operator = build_augment(config, grid, seed=0, epoch=epoch)
    return operator(replace(sample, slot=replace(sample.slot, copy=copy))).network_from_label


def test_draws_are_keyed_by_epoch_and_copy(sample, grid):
    config = AugmentConfig()
    np.testing.assert_array_equal(affine(sample, grid, config), affine(sample, grid, config))
    drawn = {affine(sample, grid, config, epoch=e, copy=c).tobytes() for e in range(3) for c in range(3)}
    assert len(drawn) == 9


def test_draws_cover_their_ranges(sample, grid):
    operator = Augment(
        grid=grid,
        flip_x=True,
        flip_y=True,
        rotation_rad=(-0.5, 0.5),
        scale=(0.9, 1.1),
        scale_height=False,
        seed=0,
        epoch=0,
    )
    moved = [operator(replace(sample, slot=replace(sample.slot, copy=copy))) for copy in range(400)]
    affines = np.array([m.network_from_label[:, :2] for m in moved])
    scale, angle = np.sqrt(np.linalg.det(affines)), np.arctan2(affines[:, 1, 0], affines[:, 0, 0])
    assert 0.9 <= scale.min() < 0.905 < 1.095 < scale.max() <= 1.1
    assert -0.5 <= angle.min() < -0.49 < 0.49 < angle.max() <= 0.5
    # The label itself tells which flips were drawn: each of the four in a quarter of the samples.
    kinds = np.unique([m.occupancy_index.tobytes() for m in moved], return_counts=True)[1]
    np.testing.assert_allclose(kinds / 400, 0.25, atol=0.09)


def test_one_switch_leaves_the_other_draws(sample, grid):
    with_flips, without = AugmentConfig(), AugmentConfig(flip_x=False, flip_y=False)
    np.testing.assert_allclose(affine(sample, grid, with_flips), affine(sample, grid, without))
