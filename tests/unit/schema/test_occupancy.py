from __future__ import annotations

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.schema.occupancy import Occupancy, crop_occupancy

LARGE = VoxelGrid((-2.0, -2.0, -1.0), (0.4, 0.4, 0.4), (10, 10, 5))


def test_a_cropped_label_is_the_middle_of_the_dense_one() -> None:
    rng = np.random.default_rng(0)
    index = np.sort(rng.choice(LARGE.num_voxels, 200, replace=False)).astype(np.int32)
    semantic = rng.integers(1, 16, 200).astype(np.uint8)
    observed, own = rng.random((2, *LARGE.shape)) < 0.6
    label = Occupancy("s", "f", index, semantic, pack_bits(observed), pack_bits(own))

    small = VoxelGrid((-1.2, -0.8, -0.6), (0.4, 0.4, 0.4), (5, 4, 3))
    cropped = crop_occupancy(label, LARGE, small)
    np.testing.assert_array_equal(cropped.dense(small), label.dense(LARGE)[2:7, 3:7, 1:4])
    np.testing.assert_array_equal(cropped.observed_by_frame, pack_bits(own[2:7, 3:7, 1:4]))


@pytest.mark.parametrize(
    "other",
    [
        VoxelGrid((-1.0, -0.8, -0.6), (0.4, 0.4, 0.4), (5, 4, 3)),
        VoxelGrid((-1.2, -0.8, -0.6), (0.2, 0.2, 0.2), (5, 4, 3)),
        VoxelGrid((-1.2, -0.8, -0.6), (0.4, 0.4, 0.4), (9, 4, 3)),
        VoxelGrid((-2.4, -0.8, -0.6), (0.4, 0.4, 0.4), (5, 4, 3)),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(other: VoxelGrid) -> None:
    empty = Occupancy("s", "f", np.zeros(0, np.int32), np.zeros(0, np.uint8), pack_bits(np.zeros(LARGE.shape, bool)))
    with pytest.raises(DataError, match="does not lie in the grid of the labels"):
        crop_occupancy(empty, LARGE, other)
