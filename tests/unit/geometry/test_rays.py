import numpy as np
import pytest

from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.geometry.rays import mark_passed

GRID = VoxelGrid((-1.0, -2.0, 0.0), (0.5, 0.25, 1.0), (7, 9, 5))


def passed(origins, ends, grid=GRID, **kwargs):
    bits = np.zeros((grid.num_voxels + 7) // 8, np.uint8)
    mark_passed(bits, np.asarray(origins, float), np.atleast_2d(np.asarray(ends, float)), grid, **kwargs)
    return unpack_bits(bits, grid.shape)


def chords(origin, end, grid, margin=0.0):
    """Length in each voxel (widened by a margin) of the segment, by intersecting it with every voxel on its own."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    low = index * np.array(grid.voxel_size_m) + grid.lower_m - margin
    high = low + grid.voxel_size_m + 2 * margin
    d = np.where(end == origin, 1e-300, end - origin)
    t0, t1 = (low - origin) / d, (high - origin) / d
    t0, t1 = np.minimum(t0, t1), np.maximum(t0, t1)
    return np.clip(np.minimum(t1.min(-1), 1) - np.maximum(t0.max(-1), 0), 0, None) * np.linalg.norm(d)


def unit(n):
    return VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (n, n, n))


def test_a_ray_along_x_passes_the_voxels_before_its_end():
    seen = passed([0.5, 0.5, 0.5], [4.2, 0.5, 0.5], unit(6))
    expected = np.zeros((6, 6, 6), bool)
    expected[:4, 0, 0] = True
    np.testing.assert_array_equal(seen, expected)
    seen = passed([0.5, 0.5, 0.5], [4.2, 0.5, 0.5], unit(6), include_end=True)
    expected[4, 0, 0] = True
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_axis_parallel_rays_in_both_directions(axis, sign):
    origin, end = np.full(3, 2.5), np.full(3, 2.5)
    end[axis] += 2 * sign
    expected = np.zeros((5, 5, 5), bool)
    line = [2, 2, 2]
    for step in (0, 1):
        line[axis] = 2 + sign * step
        expected[tuple(line)] = True
    np.testing.assert_array_equal(passed(origin, end, unit(5)), expected)


def test_an_end_on_a_face_belongs_to_the_voxel_above_it_as_a_point_does():
    grid = unit(6)
    up = passed([0.5, 0.5, 0.5], [3.0, 0.5, 0.5], grid)
    assert np.flatnonzero(up[:, 0, 0]).tolist() == [0, 1, 2]
    down = passed([5.5, 0.5, 0.5], [3.0, 0.5, 0.5], grid)
    assert np.flatnonzero(down[:, 0, 0]).tolist() == [4, 5]
    index, _ = grid.voxel_of(np.array([[3.0, 0.5, 0.5]]))
    assert not up[tuple(index[0])]
    assert not down[tuple(index[0])]


def test_rays_are_clipped_at_both_ends_and_pass_the_last_voxel_when_they_leave():
    through = passed([-5.0, 1.5, 1.5], [20.0, 1.5, 1.5], unit(4))
    assert through[:, 1, 1].all()
    assert through.sum() == 4
    assert not passed([-5.0, 9.0, 1.0], [20.0, 9.0, 1.0], unit(4)).any()
    assert not passed([-5.0, 1.0, 1.0], [-1.0, 1.0, 1.0], unit(4)).any()
    inward = passed([-5.0, 0.5, 0.5], [1.5, 0.5, 0.5], unit(4))
    assert np.flatnonzero(inward.reshape(-1)).tolist() == [0]


def test_a_ray_of_no_length_passes_nothing():
    assert not passed([1.5, 1.5, 1.5], [1.5, 1.5, 1.5], unit(4)).any()


def test_set_bits_stay_and_every_ray_has_its_own_origin():
    seen = passed([[0.5, 0.5, 0.5], [0.5, 3.5, 0.5]], [[2.5, 0.5, 0.5], [1.5, 3.5, 0.5]], unit(4))
    assert sorted(map(tuple, np.argwhere(seen))) == [(0, 0, 0), (0, 3, 0), (1, 0, 0)]


def test_random_rays_pass_the_voxels_that_they_cross_and_no_others():
    rng = np.random.default_rng(3)
    lower, upper = np.array(GRID.lower_m), np.array(GRID.upper_m)
    size = upper - lower
    for _ in range(300):
        origin, end = (rng.uniform(lower - 0.5 * size, upper + 0.5 * size) for _ in range(2))
        if rng.random() < 0.3:  # starts and ends on faces and corners
            origin = np.round(origin / GRID.voxel_size_m) * GRID.voxel_size_m
        if rng.random() < 0.3:
            end = np.round(end / GRID.voxel_size_m) * GRID.voxel_size_m
        seen = passed(origin, end, include_end=True)
        assert seen[chords(origin, end, GRID) > 1e-9].all()
        # Corners and edges that the ray only touches may count or not.
        assert not seen[chords(origin, end, GRID, margin=1e-6) == 0].any()


def test_a_long_ray_through_many_voxels_ends_where_its_end_lies():
    grid = VoxelGrid((-75.2, -75.2, -2.2), (0.1, 0.1, 0.1), (1504, 1504, 64))
    end = np.array([74.9613, -70.0377, 3.3])
    seen = passed([-75.0, 75.0, -2.0], end, grid, include_end=True)
    index, _ = grid.voxel_of(end[None])
    assert seen[tuple(index[0])]
    start, _ = grid.voxel_of(np.array([[-75.0, 75.0, -2.0]]))
    assert seen.sum() == np.abs(index - start).sum() + 1


def test_wrong_shapes_are_refused():
    bits = np.zeros(1, np.uint8)
    with pytest.raises(ValueError, match="bits are"):
        mark_passed(bits, np.zeros(3), np.zeros((1, 3)), GRID)
    bits = np.zeros((GRID.num_voxels + 7) // 8, np.uint8)
    with pytest.raises(ValueError, match="origins"):
        mark_passed(bits, np.zeros((2, 3)), np.zeros((1, 3)), GRID)
