import numpy as np

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.view.from_above import (
    FADED,
    LOWEST_BRIGHTNESS,
    UNOBSERVED_COLOR,
    observed_image,
    occupancy_image,
    points_image,
    top_voxels,
    upright,
)

COLORS = np.array([(255, 255, 255), (200, 0, 0), (0, 100, 0)], np.uint8)


def labels(*columns: tuple[int, int, int]) -> np.ndarray:
    return np.array(columns, np.uint8)[:, None, :]


def test_the_top_most_occupied_voxel_is_seen() -> None:
    classes, height = top_voxels(labels((1, 2, 0), (1, 255, 255), (2, 0, 1), (0, 0, 0), (255, 0, 255), (255, 255, 255)))
    np.testing.assert_array_equal(classes[:, 0], [2, 1, 1, 0, 0, 255])
    np.testing.assert_array_equal(height[:, 0], [1, 0, 2, 0, 0, 0])


def test_colours_are_full_at_the_top_and_darker_below() -> None:
    image = occupancy_image(labels((0, 0, 1), (1, 0, 0), (0, 0, 0), (255, 255, 255)), COLORS)[:, 0]
    low = round(200 * (LOWEST_BRIGHTNESS + (1 - LOWEST_BRIGHTNESS) / 3))
    np.testing.assert_array_equal(image, [(200, 0, 0), (low, 0, 0), (255, 255, 255), UNOBSERVED_COLOR])


def test_a_guess_that_was_not_observed_hides_nothing_and_is_faint_where_alone() -> None:
    prediction = labels((0, 1, 2), (0, 0, 2))
    observed = np.array([(True, True, False), (False, False, False)])[:, None, :]
    image = observed_image(prediction, observed, COLORS)[:, 0]
    np.testing.assert_array_equal(image[0], occupancy_image(labels((0, 1, 0)), COLORS)[0, 0])
    expected = FADED * np.array([0, 100, 0]) + (1 - FADED) * np.array(UNOBSERVED_COLOR)
    np.testing.assert_allclose(image[1], expected, atol=0.5)


def test_points_fall_on_their_pixel_and_the_highest_is_on_top() -> None:
    grid = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 8, 1))
    xyz = np.array([(3.5, 0.5, 2.0), (3.6, 0.6, 1.0), (1.5, 6.5, -9.0), (0.5, 8.5, 0.0)], np.float32)
    point_colors = np.array([(1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0)], np.uint8)
    image = points_image(xyz, point_colors, grid, size=4)
    assert image.shape == (4, 8, 3)
    assert image[3, 0].tolist() == [1, 0, 0]
    # The third point covers its pixel and the three beyond; the fourth lies outside.
    assert {(x, y) for x, y in zip(*np.nonzero((image == (3, 0, 0)).all(axis=2)), strict=True)} == {
        (1, 6),
        (1, 7),
        (2, 6),
        (2, 7),
    }
    assert not (image == (4, 0, 0)).all(axis=2).any()


def test_forward_is_up_and_left_is_left() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[3, 5] = 9  # far forward, far left
    assert upright(image)[0, 0].tolist() == [9, 9, 9]
