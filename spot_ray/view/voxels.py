"""One picture of the occupancy of a frame in three dimensions: any number of voxel arrays side by side.

Only arrays come in, so that any stage can be looked at. The camera stands behind the vehicle, to its left and above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon

from spot_ray.errors import DataError
from spot_ray.geometry.boxes import from_box_frame
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.taxonomy import EMPTY, IGNORE
from spot_ray.view.figure import DPI, INK, LEGEND_ROW_PX, WIDTH_PX, add_legend, legend_columns, save_png
from spot_ray.view.from_above import UNOBSERVED_COLOR
from spot_ray.view.isometric import Image, Projection, crop_to_reach, isometric_image

MARGIN_PX, GAP_PX = 28, 36
TOP_PX, TITLE_PX = 44, 40
NO_CLASS_COLOR = (184, 190, 198)
BOX_COLOR = "#d6336c"
VEHICLE_COLOR = "#4a525c"

SUPERSAMPLING = 2
"""Pixels that are drawn along each side of one that is shown."""

MOST_PIXELS = 200_000_000
"""So many take 1.4 GB while they are drawn."""

_ARROW = ((3.2, 0.0), (-2.2, 1.8), (-1.0, 0.0), (-2.2, -1.8))
"""The outline of the ego vehicle's marker seen from above: (forward, left), metres."""

_ARROW_HEIGHT_M = 1.4

_DRAFT = 100.0
"""Pixels a metre at which it is found out how much room the voxels take."""

Window = tuple[float, float, float, float]
"""(left, right, top, bottom) of a part of a picture, in its pixels."""


@dataclass(frozen=True, eq=False)
class Volume:
    """One voxel array of the picture.

    Args:
        title: What stands above it.
        labels: (nx, ny, nz) uint8: 0 not drawn, 1 to N the class, 255 occupied without a class.
        observed: (nx, ny, nz) bool of what was observed, or None. If given, columns in which nothing was observed
            are drawn as a grey floor.
    """

    title: str
    labels: npt.NDArray[np.uint8]
    observed: npt.NDArray[np.bool_] | None = None


def draw_volumes(
    file: str | Path | BinaryIO,
    *,
    volumes: Sequence[Volume],
    grid: VoxelGrid,
    class_names: Sequence[str],
    colors: npt.NDArray[np.uint8],
    reach_m: float = 40.0,
    boxes: npt.NDArray[np.floating] | None = None,
    title: str = "",
) -> None:
    """Write the picture as a PNG, 1,800 pixels wide; nothing is written if drawing fails.

    Args:
        file: A path, or a binary file.
        volumes: As in :func:`volumes_figure`, like all that follow.
        grid: Their grid.
        class_names: Names of the classes 1 to N.
        colors: (N + 1, 3) uint8.
        reach_m: How far the picture goes, metres.
        boxes: (M, 7), or None.
        title: What stands above all.
    """
    figure = volumes_figure(
        volumes=volumes,
        grid=grid,
        class_names=class_names,
        colors=colors,
        reach_m=reach_m,
        boxes=boxes,
        title=title,
    )
    save_png(figure, file)


def volumes_figure(
    *,
    volumes: Sequence[Volume],
    grid: VoxelGrid,
    class_names: Sequence[str],
    colors: npt.NDArray[np.uint8],
    reach_m: float = 40.0,
    boxes: npt.NDArray[np.floating] | None = None,
    title: str = "",
) -> Figure:
    """Return the picture as a figure of its own (no pyplot state).

    Args:
        volumes: The voxel arrays, drawn from left to right, at one scale and of one place.
        grid: Their grid, in the ego frame.
        class_names: Names of the classes 1 to N.
        colors: (N + 1, 3) uint8 colours of ids 0 to N (`Taxonomy.colors()`).
        reach_m: How far the picture goes from the vehicle along x and along y, metres.
        boxes: (M, 7) boxes in the ego frame, drawn as wire frames; or None.
        title: What stands above all, left.

    Raises:
        DataError: If no voxel lies so near, or the picture would be too large to draw.
        ValueError: If an array does not fit the grid or the classes.
    """
    if colors.shape != (len(class_names) + 1, 3):
        raise ValueError(f"colours have the shape {colors.shape}, expected ({len(class_names) + 1}, 3)")
    for volume in volumes:
        for what, array in (("labels", volume.labels), ("observed", volume.observed)):
            if array is not None and array.shape != grid.shape:
                raise ValueError(f"{what} of {volume.title!r} have the shape {array.shape}, expected {grid.shape}")
    near, part = crop_to_reach(grid, reach_m)
    volumes = [Volume(v.title, v.labels[part], None if v.observed is None else v.observed[part]) for v in volumes]
    panel_width = (WIDTH_PX - 2 * MARGIN_PX - GAP_PX * (len(volumes) - 1)) // len(volumes)
    projection, window = _framed(near, volumes, panel_width * SUPERSAMPLING)
    height = round(panel_width * (window[3] - window[2]) / (window[1] - window[0]))
    palette = _palette(colors)
    entries = _legend_entries(volumes, class_names, palette)
    num_columns = legend_columns(len(entries), WIDTH_PX - 2 * MARGIN_PX)
    num_rows = -(-len(entries) // num_columns)
    total = (TOP_PX if title else 0) + TITLE_PX + height + LEGEND_ROW_PX * num_rows + 20

    figure = Figure(figsize=(WIDTH_PX / DPI, total / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    bottom = total - (TOP_PX if title else 0) - TITLE_PX - height
    for i, volume in enumerate(volumes):
        left = MARGIN_PX + i * (panel_width + GAP_PX)
        ax = figure.add_axes((left / WIDTH_PX, bottom / total, panel_width / WIDTH_PX, height / total))
        _show(ax, _drawn(volume, palette, projection), window)
        ax.set_title(volume.title, fontsize=14, color=INK, pad=9)
        if boxes is not None:
            _draw_boxes(ax, boxes, near, projection)
        _draw_vehicle(ax, projection)
    if title:
        figure.text(MARGIN_PX / WIDTH_PX, 1 - 16 / total, title, fontsize=16, color=INK, va="top", ha="left")
    add_legend(figure, entries, num_columns=num_columns, height_px=total)
    return figure


def _palette(colors: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    palette = np.empty((256, 3), dtype=np.uint8)
    palette[: len(colors)] = colors
    palette[IGNORE] = NO_CLASS_COLOR
    return palette


def _framed(grid: VoxelGrid, volumes: Sequence[Volume], width_px: int) -> tuple[Projection, Window]:
    """Return the view in which what is drawn is about `width_px` wide, and the part of it that holds all of that."""
    shown = np.zeros(grid.shape, dtype=bool)
    for volume in volumes:
        shown |= volume.labels != EMPTY
        if volume.observed is not None:
            shown[:, :, 0] |= ~volume.observed.any(axis=2)
    cells = np.argwhere(shown) if shown.any() else np.argwhere(np.ones(grid.shape, dtype=bool))
    left, right, _, _ = _extent(Projection.of(grid, _DRAFT), cells)
    projection = Projection.of(grid, _DRAFT * width_px / (right - left))
    width, height = projection.size
    if width * height > MOST_PIXELS:
        raise DataError(
            f"the picture would have {width:,} × {height:,} pixels",
            where=f"a grid of {' × '.join(map(str, grid.shape))} voxels",
            expected=f"{MOST_PIXELS:,} pixels at most",
            remedy="draw less of it: a smaller --reach",
        )
    left, right, top, low = _extent(projection, cells)
    # A street that runs away from the camera would make the panel higher than wide.
    beside = max(0.0, (low - top) - (right - left)) / 2
    margin = 0.01 * (right - left)
    return projection, (left - beside - margin, right + beside + margin, top - margin, low + margin)


def _extent(projection: Projection, cells: npt.NDArray[np.int64]) -> Window:
    """Return the (left, right, top, bottom) pixels between which cells lie."""
    leftmost, rightmost, highest, lowest = (
        projection.place(cells + np.array(corner)) for corner in ((1, 1, 0), (0, 0, 0), (1, 0, 1), (0, 1, 0))
    )
    left, right = float(leftmost[:, 0].min()), float(rightmost[:, 0].max())
    return left, right, float(highest[:, 1].min()), float(lowest[:, 1].max())


def _drawn(volume: Volume, palette: npt.NDArray[np.uint8], projection: Projection) -> Image:
    floor = None
    if volume.observed is not None:
        # The lowest cells of columns without anything observed hide nothing: what stands there would be observed.
        ground = np.zeros(volume.labels.shape, dtype=np.uint8)
        ground[:, :, 0] = np.where(volume.observed.any(axis=2), EMPTY, IGNORE)
        grey = np.array(UNOBSERVED_COLOR, np.uint8)
        floor = isometric_image(ground, np.broadcast_to(grey, (256, 3)), projection)
    return isometric_image(volume.labels, palette, projection, background=floor)


def _show(ax: Axes, image: Image, window: Window) -> None:
    """Draw the part of a picture within the window; the window may go beyond it."""
    height, width = image.shape[:2]
    left, right = max(0, int(window[0])), min(width, int(window[1]) + 1)
    top, low = max(0, int(window[2])), min(height, int(window[3]) + 1)
    ax.imshow(image[top:low, left:right], extent=(left, right, low, top), interpolation="antialiased", aspect="auto")
    ax.set_xlim(window[0], window[1])
    ax.set_ylim(window[3], window[2])
    ax.set_axis_off()


def _draw_vehicle(ax: Axes, projection: Projection) -> None:
    """Draw the ego vehicle as an arrow head that points forward, over everything."""
    outline = np.array(_ARROW)
    low, high = (np.column_stack([outline, np.full(len(outline), z)]) for z in (0.0, _ARROW_HEIGHT_M))
    for i in range(len(outline)):
        j = (i + 1) % len(outline)
        side = projection.place_of_points(np.stack([low[i], low[j], high[j], high[i]]))
        ax.add_patch(Polygon(side, facecolor=INK, edgecolor=INK, lw=0.5, zorder=4))
    top = projection.place_of_points(high)
    ax.add_patch(Polygon(top, facecolor=VEHICLE_COLOR, edgecolor="white", lw=0.8, zorder=5))


def _draw_boxes(ax: Axes, boxes: npt.NDArray[np.floating], grid: VoxelGrid, projection: Projection) -> None:
    """Draw the boxes whose centres lie over the grid as wire frames, each with a stroke to its front."""
    signs = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    edges = [(i, j) for i in range(8) for j in range(i) if np.count_nonzero(signs[i] != signs[j]) == 1]
    lines = []
    for box in boxes.astype(np.float64):
        if not all(low <= v < high for v, low, high in zip(box[:2], grid.lower_m, grid.upper_m, strict=False)):
            continue
        front = np.array([(0.0, 0.0, -0.5), (0.5, 0.0, -0.5)])
        corners = projection.place_of_points(from_box_frame(np.concatenate([signs, front]) * box[3:6], box))
        lines += [corners[[i, j]] for i, j in (*edges, (8, 9))]
    ax.add_collection(LineCollection(lines, colors=BOX_COLOR, linewidths=0.9, zorder=3), autolim=False)


def _legend_entries(
    volumes: Sequence[Volume], class_names: Sequence[str], palette: npt.NDArray[np.uint8]
) -> list[Patch]:
    """Return an entry for every class that is drawn in some panel, in their order."""
    seen = np.zeros(256, dtype=bool)
    for volume in volumes:
        seen[np.unique(volume.labels)] = True
    entries = [Patch(facecolor=palette[i] / 255, label=name) for i, name in enumerate(class_names, start=1) if seen[i]]
    if seen[IGNORE]:
        entries.append(Patch(facecolor=palette[IGNORE] / 255, label="occupied, no class"))
    if any(v.observed is not None and not v.observed.any(axis=2).all() for v in volumes):
        entries.append(Patch(facecolor=np.array(UNOBSERVED_COLOR) / 255, label="not observed"))
    return entries
