"""Voxels and points as images from above: arrays `[x, y]`, each cell what lies on top of its column."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.taxonomy import EMPTY, IGNORE

UNOBSERVED_COLOR = (226, 228, 232)
"""Light grey of columns that nothing observed."""

LOWEST_BRIGHTNESS = 0.82
"""Brightness of a voxel at the grid's bottom; at its top it has its class colour in full."""

FADED = 0.22
"""Opacity of what is predicted in columns without an observed voxel."""

Image = npt.NDArray[np.uint8]


def top_voxels(labels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return what one sees from above.

    Args:
        labels: (nx, ny, nz) uint8: 0 empty, 1 to N, 255 unobserved.

    Returns:
        (nx, ny) uint8 class of the top-most occupied voxel of each column; 0 where none is occupied but some are
        observed; 255 where none is observed. And (nx, ny) int64 height index of that voxel, 0 where there is none.
    """
    occupied = (labels != EMPTY) & (labels != IGNORE)
    height = labels.shape[2] - 1 - np.argmax(occupied[:, :, ::-1], axis=2)
    top = np.take_along_axis(labels, height[:, :, None], axis=2)[:, :, 0]
    has_occupied = occupied.any(axis=2)
    unobserved = (labels == IGNORE).all(axis=2)
    classes = np.where(has_occupied, top, np.where(unobserved, np.uint8(IGNORE), np.uint8(EMPTY)))
    return classes, np.where(has_occupied, height, 0)


def occupancy_image(labels: npt.NDArray[np.uint8], colors: npt.NDArray[np.uint8]) -> Image:
    """Return the (nx, ny, 3) uint8 image of the voxels from above, higher ones brighter.

    Args:
        labels: (nx, ny, nz) uint8: 0 empty, 1 to N, 255 unobserved.
        colors: (N + 1, 3) uint8 colours of ids 0 to N.
    """
    palette = np.empty((256, 3), dtype=np.float64)
    palette[: len(colors)] = colors
    palette[IGNORE] = UNOBSERVED_COLOR
    classes, height = top_voxels(labels)
    fraction = (height + 1) / labels.shape[2]
    brightness = LOWEST_BRIGHTNESS + (1 - LOWEST_BRIGHTNESS) * fraction
    brightness[(classes == EMPTY) | (classes == IGNORE)] = 1.0
    return np.rint(palette[classes] * brightness[:, :, None]).astype(np.uint8)


def observed_image(labels: npt.NDArray[np.uint8], observed: npt.NDArray[np.bool_], colors: Image) -> Image:
    """Return the image of a prediction, told apart by what the label observed.

    Voxels outside `observed` are left out, so that a guess above or behind hides nothing that can be compared. Columns
    without any observed voxel show the prediction faded into the grey of the unobserved.

    Args:
        labels: (nx, ny, nz) uint8 prediction.
        observed: (nx, ny, nz) bool.
        colors: (N + 1, 3) uint8 colours of ids 0 to N.
    """
    image = occupancy_image(np.where(observed, labels, np.uint8(IGNORE)), colors)
    guess = occupancy_image(labels, colors).astype(np.float64)
    faded = np.rint(FADED * guess + (1 - FADED) * np.array(UNOBSERVED_COLOR)).astype(np.uint8)
    alone = ~np.any(observed, axis=2)
    image[alone] = faded[alone]
    return image


def points_image(
    xyz: npt.NDArray[np.floating], point_colors: npt.NDArray[np.uint8], grid: VoxelGrid, *, size: int
) -> Image:
    """Return the (size, size · ny / nx, 3) uint8 image of points from above on white; the highest point is on top.

    Args:
        xyz: (P, 3) points, metres, ego frame.
        point_colors: (P, 3) uint8.
        grid: Its x, y extent is shown; points of any height are.
        size: Pixels along x.
    """
    shape = np.array([size, round(size * grid.shape[1] / grid.shape[0])])
    lower, upper = np.array(grid.lower_m[:2]), np.array(grid.upper_m[:2])
    pixel = np.floor((xyz[:, :2] - lower) / (upper - lower) * shape).astype(np.int64)
    inside = ((pixel >= 0) & (pixel < shape)).all(axis=1)
    order = np.flatnonzero(inside)
    order = order[np.argsort(xyz[order, 2], kind="stable")]
    image = np.full((*shape, 3), 255, dtype=np.uint8)
    x, y = pixel[order].T
    # A point covers 2 × 2 pixels, but never the pixel of another point: far rings stay visible, near ones sharp.
    for dx, dy in ((1, 1), (1, 0), (0, 1), (0, 0)):
        image[np.minimum(x + dx, shape[0] - 1), np.minimum(y + dy, shape[1] - 1)] = point_colors[order]
    return image


def upright(image: Image) -> Image:
    """Return an `[x, y]` image as rows and columns of a picture: forward (x) is up, left (y) is left."""
    return image[::-1, ::-1]
