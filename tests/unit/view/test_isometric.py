import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.view.isometric import (
    CORNER_SHADE,
    EDGE_SHADE,
    SHADES,
    Projection,
    crop_to_reach,
    isometric_image,
)

GRID = VoxelGrid((-2.0, -2.0, 0.0), (1.0, 1.0, 1.0), (4, 4, 3))
STEPS = ((-4, 6), (-8, -3), (0, 9))
"""(right, up) of a step forward, of one to the left, and of one upwards."""

VIEW = Projection(GRID, STEPS)
PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[1], PALETTE[2], PALETTE[255] = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def voxels(*cells: tuple[int, int, int], value: int = 1) -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    for cell in cells:
        labels[cell] = value
    return labels


def areas(image: np.ndarray, color: int, brightness: float) -> int:
    """Count the pixels of a face, its edges included."""
    channel = image[..., color].astype(int)
    shades = [round(200 * brightness), round(200 * brightness * EDGE_SHADE)]
    others = np.delete(image, color, axis=2).max(axis=2) == 0
    return int(sum(((channel == shade) & others).sum() for shade in shades))


def cross(a: tuple[int, int], b: tuple[int, int]) -> int:
    return abs(a[0] * b[1] - a[1] * b[0])


def test_a_voxel_is_three_parallelograms_of_the_size_of_its_steps() -> None:
    image = isometric_image(voxels((1, 2, 1)), PALETTE, VIEW)
    x, y, z = STEPS
    top, rear, left = (areas(image, 0, shade) for shade in SHADES)
    # The shoelace formula: a parallelogram that two steps span.
    assert (top, rear, left) == (cross(x, y), cross(y, z), cross(x, z)) == (60, 72, 36)
    assert (image.min(axis=2) < 255).sum() == 60 + 72 + 36


def test_a_voxel_lies_where_its_steps_lead() -> None:
    width, height = VIEW.size
    assert (width, height) == (4 * 4 + 4 * 8, 4 * 6 + 4 * 3 + 3 * 9)
    image = isometric_image(voxels((1, 2, 1)), PALETTE, VIEW)
    rows, columns = np.nonzero(image.min(axis=2) < 255)
    # The origin is at the right: 4 · 4 + 4 · 8 from the left edge, 4 · 3 from the lower one.
    right, up = 48 - 1 * 4 - 2 * 8, 12 + 1 * 6 - 2 * 3 + 1 * 9
    assert (columns.min(), columns.max()) == (right - 4 - 8, right - 1)
    assert (rows.min(), rows.max()) == (height - (up + 6 + 9), height - (up - 3) - 1)
    # The top is up, the rear face right of the left one.
    masks = [np.abs(image[..., 0].astype(int) - round(200 * shade)) <= 1 for shade in SHADES]
    top, rear, left = (np.argwhere(mask & (image[..., 1] == 0)).mean(axis=0) for mask in masks)
    assert top[0] < min(rear[0], left[0])
    assert rear[1] > left[1]


def test_points_lie_where_the_corners_of_voxels_do() -> None:
    place = VIEW.place_of_points(np.array([[-1.0, 0.0, 1.0], [-2.0, -2.0, 0.0]]))
    assert place.tolist() == VIEW.place(np.array([[1, 2, 1], [0, 0, 0]])).tolist() == [[28, 63 - 21], [48, 63 - 12]]


@pytest.mark.parametrize(("ahead", "behind"), [((0, 2, 1), (2, 1, 0)), ((0, 0, 1), (1, 0, 0)), ((1, 2, 0), (1, 1, 0))])
def test_the_nearer_voxel_hides_the_farther(ahead: tuple[int, int, int], behind: tuple[int, int, int]) -> None:
    alone = isometric_image(voxels(ahead), PALETTE, VIEW)
    both = isometric_image(voxels(ahead) + voxels(behind, value=2), PALETTE, VIEW)
    drawn = alone.min(axis=2) < 255
    hidden = (isometric_image(voxels(behind), PALETTE, VIEW).min(axis=2) < 255) & drawn
    assert hidden.any()
    # Every pixel of the nearer one is still its own.
    assert (both[drawn][:, 1] == 0).all()
    assert (both[drawn][:, 0] > 0).all()
    assert (both[~drawn][:, 0] < 255).any()


def test_faces_that_touch_leave_no_pixel_between_them() -> None:
    image = isometric_image(np.ones(GRID.shape, np.uint8), PALETTE, VIEW)
    x, y, z = STEPS
    # A block of 4 × 4 × 3: only its hull is seen, each face as large as its voxels' faces together.
    tops, rears, lefts = (areas(image, 0, shade) for shade in SHADES)
    assert (tops, rears, lefts) == (16 * cross(x, y), 12 * cross(y, z), 12 * cross(x, z))


def test_what_stands_beside_a_face_darkens_it() -> None:
    # Ground of 3 × 3 with a voxel on one corner: of the middle face, one of eight cells around the one above is taken.
    ground = [(x, y, 0) for x in range(3) for y in range(3)]
    image = isometric_image(voxels(*ground) + voxels((2, 0, 1), value=2), PALETTE, VIEW)
    assert areas(image, 0, 1 - CORNER_SHADE / 8) >= cross(STEPS[0], STEPS[1])
    assert areas(isometric_image(voxels(*ground), PALETTE, VIEW), 0, 1 - CORNER_SHADE / 8) == 0


def test_colours_are_those_of_the_palette_and_the_rest_is_the_background() -> None:
    width, height = VIEW.size
    behind = np.full((height, width, 3), 77, np.uint8)
    image = isometric_image(voxels((0, 0, 0), value=255), PALETTE, VIEW, background=behind)
    assert areas(image, 2, 1.0) == cross(STEPS[0], STEPS[1])
    assert (image == 77).all(axis=2).sum() == width * height - 168
    assert (behind == 77).all()


def test_two_drawings_are_alike_to_the_byte() -> None:
    labels = np.random.default_rng(0).integers(0, 3, GRID.shape).astype(np.uint8)
    first = isometric_image(labels, PALETTE, VIEW)
    assert first.tobytes() == isometric_image(labels.copy(order="F"), PALETTE, VIEW).tobytes()


def test_the_view_looks_forward_from_the_left() -> None:
    (forward, left, up) = Projection.of(VoxelGrid(), 20.0).steps
    # To the camera's left and away; to its left and nearer; upwards.
    assert forward[0] < 0 < forward[1]
    assert left[0] < 0
    assert left[1] < 0
    assert up[0] == 0 < up[1]
    # 0.4 m at 20 pixels a metre: 8 · sin 30° across, 8 · cos 38° up.
    assert (forward[0], up[1]) == (-4, 6)
    assert Projection.of(VoxelGrid(), 1e-3).steps == ((-1, 1), (-1, -1), (0, 1))


def test_a_crop_holds_whole_voxels_within_reach() -> None:
    grid = VoxelGrid((-4.0, -4.0, -1.0), (0.5, 1.0, 1.0), (16, 8, 2))
    near, part = crop_to_reach(grid, 2.2)
    assert near == VoxelGrid((-2.5, -3.0, -1.0), (0.5, 1.0, 1.0), (10, 6, 2))
    assert part == (slice(3, 13), slice(1, 7), slice(0, 2))
    assert crop_to_reach(grid, 100.0)[0] == grid
    # 0.4 m cells: the edge at 40 m is one of the grid, not a cell beyond it.
    assert crop_to_reach(VoxelGrid(), 40.0)[0].shape == (200, 200, 16)
    with pytest.raises(DataError, match="no voxel lies within 1 m"):
        crop_to_reach(VoxelGrid((5.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2, 2, 2)), 1.0)


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        isometric_image(np.zeros((4, 4, 4), np.uint8), PALETTE, VIEW)
