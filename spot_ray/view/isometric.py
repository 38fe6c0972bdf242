"""Voxels in three dimensions: a parallel projection from behind and above, drawn face by face into a depth buffer.

The three steps of the grid are whole pixels on the picture. Then all voxels look alike but for their place, faces that
share an edge share no pixel and leave none between them, and drawing is a scatter of integers, the same at every run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.taxonomy import EMPTY

AZIMUTH_DEG = 30.0
"""The camera stands behind the vehicle, this much to its left."""

ELEVATION_DEG = 38.0
"""The camera looks down by this angle."""

SHADES = (1.0, 0.66, 0.83)
"""Brightness of a voxel's top, rear and left faces."""

EDGE_SHADE = 0.86
"""Brightness of the outermost pixels of a face beside the rest of it."""

EDGE_FROM_PX = 4.0
"""Faces narrower than this have no edges drawn: they would be all edge."""

CORNER_SHADE = 0.45
"""Brightness that a face loses if all eight cells around the one before it are occupied."""

_SAMPLE = (0.5137, 0.5071)
"""Where in a pixel it is decided which face it shows: off the centre, since edges run through centres."""

_NORMALS = ((0, 0, 1), (-1, 0, 0), (0, 1, 0))
"""The faces that the camera sees, in the order of `SHADES`: top, rear (at the lower x), left (at the upper y)."""

_EDGES = ((0, 1), (1, 2), (0, 2))
"""The axes that each of these faces spans."""

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Projection:
    """Where the points of a grid lie on a picture.

    Args:
        grid: The grid.
        steps: (right, up) in pixels of one voxel along x, along y and along z.
    """

    grid: VoxelGrid
    steps: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

    @classmethod
    def of(cls, grid: VoxelGrid, pixels_per_metre: float) -> Projection:
        """Return the view of a grid at about this scale; no step is shorter than a pixel across and along."""
        azimuth, elevation = np.deg2rad([AZIMUTH_DEG, ELEVATION_DEG])
        sin, cos, tilt = float(np.sin(azimuth)), float(np.cos(azimuth)), float(np.sin(elevation))
        x, y, z = (size * pixels_per_metre for size in grid.voxel_size_m)

        def whole(length: float) -> int:
            return max(1, round(length))

        along_x = (-whole(x * sin), whole(x * cos * tilt))
        along_y = (-whole(y * cos), -whole(y * sin * tilt))
        return cls(grid, (along_x, along_y, (0, whole(z * float(np.cos(elevation))))))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture in pixels."""
        width, height = np.abs(np.array(self.steps) * np.array(self.grid.shape)[:, None]).sum(axis=0)
        return int(width), int(height)

    def place(self, cells: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Return the (N, 2) place (right, down) in pixels, from the upper left corner, of (N, 3) places in cells."""
        steps = np.array(self.steps)
        leftmost, lowest = np.minimum(steps * np.array(self.grid.shape)[:, None], 0).sum(axis=0)
        right, up = (np.asarray(cells, dtype=np.float64) @ steps).T
        return np.stack([right - leftmost, self.size[1] - (up - lowest)], axis=1)

    def place_of_points(self, xyz: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Return the (N, 2) place (right, down) in pixels of (N, 3) points in metres in the grid's frame."""
        return self.place((np.asarray(xyz, np.float64) - self.grid.lower_m) / self.grid.voxel_size_m)


def crop_to_reach(grid: VoxelGrid, reach_m: float) -> tuple[VoxelGrid, tuple[slice, slice, slice]]:
    """Return the part of a grid that lies within `reach_m` of the ego vehicle along x and along y.

    Args:
        grid: The grid.
        reach_m: How far the part goes, to the next whole voxel, metres.

    Returns:
        The grid of the part, and the part of an array of the whole grid.

    Raises:
        DataError: If no voxel lies so near.
    """
    size, lower = np.array(grid.voxel_size_m), np.array(grid.lower_m)
    first = np.maximum(np.floor((-reach_m - lower) / size + 1e-6), 0).astype(int)
    last = np.minimum(np.ceil((reach_m - lower) / size - 1e-6), grid.shape).astype(int)
    first[2], last[2] = 0, grid.shape[2]
    if (last <= first).any():
        raise DataError(
            f"no voxel lies within {reach_m:g} m of the vehicle", where=str(grid), remedy="a larger --reach"
        )
    (x, y, z), (nx, ny, nz) = (lower + first * size).tolist(), (last - first).tolist()
    slices = (slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2]))
    return VoxelGrid((x, y, z), grid.voxel_size_m, (nx, ny, nz)), slices


def isometric_image(
    labels: npt.NDArray[np.uint8],
    palette: npt.NDArray[np.uint8],
    projection: Projection,
    *,
    background: Image | None = None,
) -> Image:
    """Return the (height, width, 3) uint8 picture of voxels as shaded cubes.

    Of each voxel the top, the rear and the left face can be seen. A face is the darker, the more of the cells around
    the one before it are occupied, which tells steps and corners.

    Args:
        labels: (nx, ny, nz) uint8: 0 is not drawn.
        palette: (256, 3) uint8 colours of all other values.
        projection: The view of their grid.
        background: (height, width, 3) uint8 picture of what lies behind all voxels; None is white.

    Raises:
        ValueError: If the labels do not have the projection's shape.
    """
    if labels.shape != projection.grid.shape:
        raise ValueError(f"labels have the shape {labels.shape}, expected {projection.grid.shape}")
    width, height = projection.size
    occupied = np.pad(labels != EMPTY, 1)
    cells, face = _visible_faces(occupied)
    value = labels[tuple(cells.T)]
    # The line of sight runs towards higher x, lower y, lower z: whatever hides another is ahead of it in all three.
    nearness = cells @ np.array([-1, 1, 1])
    order = np.argsort(nearness, kind="stable")
    cells, face, value = cells[order], face[order], value[order]

    nearest = np.full(width * height, -1, dtype=np.int32)
    corner = np.rint(projection.place(cells)).astype(np.int64)
    for f, (right, down, is_edge) in enumerate(_face_pixels(projection)):
        mine = np.flatnonzero(face == f)
        code = (2 * mine).astype(np.int32)
        pixel = corner[mine, 1] * width + corner[mine, 0]
        for u, v, edge in zip(right.tolist(), down.tolist(), is_edge.tolist(), strict=True):
            np.maximum.at(nearest, pixel + (v * width + u), code + np.int32(edge))

    brightness = np.array(SHADES)[face] * (1 - CORNER_SHADE * _crowding(occupied, cells, face))
    shaded = palette[value] * brightness[:, None]
    colors = np.rint(np.stack([shaded, shaded * EDGE_SHADE], axis=1)).astype(np.uint8).reshape(-1, 3)
    image = np.full((height * width, 3), 255, np.uint8) if background is None else background.reshape(-1, 3).copy()
    drawn = nearest >= 0
    image[drawn] = colors[nearest[drawn]]
    return image.reshape(height, width, 3)


def _visible_faces(
    occupied: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (F, 3) cells and (F,) face of all faces with an empty cell before them; `occupied` is padded by one."""
    inner = occupied[1:-1, 1:-1, 1:-1]
    cells = []
    for normal in _NORMALS:
        before = occupied[tuple(slice(1 + d, n - 1 + d) for d, n in zip(normal, occupied.shape, strict=True))]
        cells.append(np.argwhere(inner & ~before))
    return np.concatenate(cells), np.repeat(np.arange(3), [len(c) for c in cells])


def _crowding(
    occupied: npt.NDArray[np.bool_], cells: npt.NDArray[np.int64], face: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return (F,) the share of the eight cells around the one before each face that are occupied."""
    count = np.zeros(len(cells))
    for f, (normal, (a, b)) in enumerate(zip(_NORMALS, _EDGES, strict=True)):
        mine = face == f
        before = cells[mine] + 1 + normal
        for da in (-1, 0, 1):
            for db in (-1, 0, 1):
                x, y, z = (before + da * np.eye(3, dtype=int)[a] + db * np.eye(3, dtype=int)[b]).T
                count[mine] += occupied[x, y, z]
    return count / 8


def _face_pixels(
    projection: Projection,
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """Return the pixels of each face of a voxel: (right, down) of the place of its lower corner, and if on an edge."""
    steps = np.array(projection.steps)
    origins = (steps[2], np.zeros(2, int), steps[1])
    pixels = []
    for origin, (a, b) in zip(origins, _EDGES, strict=True):
        corners = origin + np.array([(0, 0), steps[a], steps[b], steps[a] + steps[b]])
        (low_r, low_u), (high_r, high_u) = corners.min(axis=0), corners.max(axis=0)
        right, up = (v.ravel() for v in np.meshgrid(np.arange(low_r, high_r), np.arange(low_u, high_u)))
        sample = np.stack([right + _SAMPLE[0], up + _SAMPLE[1]], axis=1) - origin
        along = np.linalg.solve(np.stack([steps[a], steps[b]], axis=1).astype(float), sample.T).T
        inside = ((along >= 0) & (along < 1)).all(axis=1)
        # How far it is across the face from one edge to the other, in pixels.
        area = abs(float(np.linalg.det(np.stack([steps[a], steps[b]]).astype(float))))
        span = area / np.linalg.norm(steps[[b, a]], axis=1)
        # Of two faces side by side only one draws the line between them.
        is_edge = ((along * span).min(axis=1) < 1.0) & (span.min() >= EDGE_FROM_PX)
        pixels.append((right[inside], -up[inside] - 1, is_edge[inside]))
    return pixels
