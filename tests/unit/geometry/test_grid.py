import numpy as np
import pytest

from spot_ray.geometry.grid import VoxelGrid, pack_bits, unpack_bits

GRID = VoxelGrid((-1.0, 0.0, 2.0), (0.5, 1.0, 0.25), (4, 3, 2))


def test_voxel_of_hand_made_points():
    xyz = np.array(
        [[-1.0, 0.0, 2.0], [0.99, 2.99, 2.49], [0.0, 1.0, 2.25], [1.0, 0.0, 2.0], [-1.01, 0, 2], [0, 0, 2.5]]
    )
    index, inside = GRID.voxel_of(xyz)
    assert inside.tolist() == [True, True, True, False, False, False]
    assert index[:3].tolist() == [[0, 0, 0], [3, 2, 1], [2, 1, 1]]
    assert index.dtype == np.int32


def test_linear_order_has_z_fastest():
    assert GRID.linear(np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [3, 2, 1]])).tolist() == [1, 2, 6, 23]
    every = np.arange(GRID.num_voxels)
    np.testing.assert_array_equal(GRID.linear(GRID.unravel(every)), every)
    np.testing.assert_array_equal(np.arange(24).reshape(GRID.shape)[3, 2, 1], 23)


def test_centres_lie_in_their_voxels():
    np.testing.assert_allclose(GRID.centers(np.array([0, 23])), [[-0.75, 0.5, 2.125], [0.75, 2.5, 2.375]])
    every = np.arange(GRID.num_voxels)
    index, inside = GRID.voxel_of(GRID.centers(every))
    assert inside.all()
    np.testing.assert_array_equal(GRID.linear(index), every)


def test_default_grid_is_the_encoders_range_with_the_ground_inside_a_cell():
    grid = VoxelGrid()
    np.testing.assert_allclose(grid.upper_m, (75.2, 75.2, 4.2))
    assert grid.is_square_and_centred
    assert grid.num_voxels == 376 * 376 * 16
    np.testing.assert_allclose(grid.centers(grid.linear(np.array([[188, 188, 5]])))[0, 2], 0.0, atol=1e-9)


@pytest.mark.parametrize(
    "grid",
    [
        VoxelGrid((-2.0, -1.0, 0.0), (1.0, 1.0, 1.0), (4, 2, 1)),
        VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 4, 1)),
        VoxelGrid((-2.0, -2.0, 0.0), (1.0, 0.5, 1.0), (4, 8, 1)),
    ],
)
def test_other_grids_are_not_square_and_centred(grid):
    assert not grid.is_square_and_centred


@pytest.mark.parametrize(("voxel", "shape"), [((0.0, 1.0, 1.0), (1, 1, 1)), ((1.0, 1.0, 1.0), (1, 0, 1))])
def test_a_grid_without_voxels_is_refused(voxel, shape):
    with pytest.raises(ValueError, match="positive sizes"):
        VoxelGrid((0.0, 0.0, 0.0), voxel, shape)


def test_bits_are_little_endian_and_come_back():
    mask = np.zeros((1, 3, 3), bool)
    mask[0, 0, 0] = mask[0, 0, 1] = mask[0, 2, 2] = True
    assert pack_bits(mask).tolist() == [0b11, 0b1]
    np.testing.assert_array_equal(unpack_bits(pack_bits(mask), mask.shape), mask)
