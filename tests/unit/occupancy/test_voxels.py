import numpy as np
import pytest

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.voxels import voxelise

GRID = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2, 2, 2))
FOREGROUND = np.array([False, False, True, False])
"""Of the classes 1, 2, 3 the second is foreground."""


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 1, 3], 1),
        ([3, 3, 1], 3),
        ([1, 3], 1),
        ([1, 2], 2),
        ([3, 2], 2),
        ([1, 1, 2], 1),
        ([255, 255, 3], 3),
        ([255], 255),
    ],
)
def test_majority_with_ties_for_the_foreground(labels, expected):
    index, semantic = voxelise(np.full((len(labels), 3), 0.5), np.array(labels, np.uint8), GRID, FOREGROUND)
    assert (index.tolist(), semantic.tolist()) == ([0], [expected])


def test_voxels_are_sorted_and_points_outside_do_not_count():
    xyz = np.array([[1.5, 1.5, 1.5], [0.5, 0.5, 1.5], [2.5, 0.5, 0.5], [0.5, 0.5, -0.1]])
    index, semantic = voxelise(xyz, np.array([1, 3, 2, 2], np.uint8), GRID, FOREGROUND)
    assert (index.tolist(), semantic.tolist()) == ([1, 7], [3, 1])
    assert index.dtype == np.int32
    assert semantic.dtype == np.uint8


def test_no_points():
    index, semantic = voxelise(np.zeros((0, 3)), np.zeros(0, np.uint8), GRID, FOREGROUND)
    assert len(index) == len(semantic) == 0
