"""One picture of a sweep and its occupancy: points and any number of voxel arrays side by side from above.

The layout of the paper's Fig. 8. Only arrays come in, so that any stage can be looked at. Forward is up, left is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.taxonomy import EMPTY, IGNORE
from spot_ray.view.figure import (
    DPI,
    INK,
    LEGEND_ROW_PX,
    PALE,
    WIDTH_PX,
    add_legend,
    ego_marker,
    legend_columns,
    save_png,
)
from spot_ray.view.footprint import footprint_lines
from spot_ray.view.from_above import (
    UNOBSERVED_COLOR,
    observed_image,
    occupancy_image,
    points_image,
    top_voxels,
    upright,
)

LEFT_PX, RIGHT_PX, GAP_PX = 78, 24, 34
TOP_PX, TITLE_PX, BELOW_PX = 44, 46, 66
HEIGHT_SPAN_M = (-1.0, 4.0)
"""Heights that the colours of points span."""

HEIGHT_COLORS = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.88, 256)), name="height")


@dataclass(frozen=True, eq=False)
class Panel:
    """One voxel array of the picture.

    Args:
        title: What stands above it.
        labels: (nx, ny, nz) uint8: 0 empty, 1 to N, 255 unobserved.
        observed: (nx, ny, nz) bool of what the label observed, or None. If given (for a prediction), voxels outside
            are left out, and columns that lie outside altogether show the prediction faded.
    """

    title: str
    labels: npt.NDArray[np.uint8]
    observed: npt.NDArray[np.bool_] | None = None


def draw_occupancy(
    file: str | Path | BinaryIO,
    *,
    xyz: npt.NDArray[np.floating],
    panels: Sequence[Panel],
    grid: VoxelGrid,
    class_names: Sequence[str],
    colors: npt.NDArray[np.uint8],
    boxes: npt.NDArray[np.floating] | None = None,
    point_classes: npt.NDArray[np.uint8] | None = None,
    title: str = "",
    sweep_title: str = "Input sweep",
) -> None:
    """Write the picture as a PNG, 1,800 pixels wide; nothing is written if drawing fails.

    Args:
        file: A path, or a binary file.
        xyz: As in :func:`occupancy_figure`, like all that follow.
        panels: The voxel arrays.
        grid: Their grid.
        class_names: Names of the classes 1 to N.
        colors: (N + 1, 3) uint8.
        boxes: (M, 7), or None.
        point_classes: (P,) uint8, or None.
        title: What stands above all.
        sweep_title: What stands above the sweep.
    """
    figure = occupancy_figure(
        xyz=xyz,
        panels=panels,
        grid=grid,
        class_names=class_names,
        colors=colors,
        boxes=boxes,
        point_classes=point_classes,
        title=title,
        sweep_title=sweep_title,
    )
    save_png(figure, file)


def occupancy_figure(
    *,
    xyz: npt.NDArray[np.floating],
    panels: Sequence[Panel],
    grid: VoxelGrid,
    class_names: Sequence[str],
    colors: npt.NDArray[np.uint8],
    boxes: npt.NDArray[np.floating] | None = None,
    point_classes: npt.NDArray[np.uint8] | None = None,
    title: str = "",
    sweep_title: str = "Input sweep",
) -> Figure:
    """Return the picture as a figure of its own (no pyplot state).

    Args:
        xyz: (P, 3) points, metres, ego frame.
        panels: The voxel arrays, drawn right of the sweep in this order.
        grid: Their grid; its x, y extent is the extent of every panel.
        class_names: Names of the classes 1 to N.
        colors: (N + 1, 3) uint8 colours of ids 0 to N (`Taxonomy.colors()`).
        boxes: (M, 7) boxes in the ego frame, outlined on the sweep with a stroke to their front; or None.
        point_classes: (P,) uint8 class of each point, 1 to N, 255 unlabelled; None colours the points by height.
        title: What stands above all, left.
        sweep_title: What stands above the sweep.

    Raises:
        ValueError: If an array does not fit the grid or the classes.
    """
    _check(xyz, panels, grid, class_names, colors, point_classes)
    num_panels = 1 + len(panels)
    span_m = (grid.upper_m[0] - grid.lower_m[0], grid.upper_m[1] - grid.lower_m[1])
    width = (WIDTH_PX - LEFT_PX - RIGHT_PX - GAP_PX * (num_panels - 1)) // num_panels
    height = round(width * span_m[0] / span_m[1])
    entries = _legend_entries(panels, point_classes, class_names, colors)
    num_columns = legend_columns(len(entries), WIDTH_PX - LEFT_PX - RIGHT_PX)
    num_rows = -(-len(entries) // num_columns)
    total = (TOP_PX if title else 0) + TITLE_PX + height + BELOW_PX + LEGEND_ROW_PX * num_rows + 14

    figure = Figure(figsize=(WIDTH_PX / DPI, total / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    bottom = total - (TOP_PX if title else 0) - TITLE_PX - height
    axes = [
        figure.add_axes(((LEFT_PX + i * (width + GAP_PX)) / WIDTH_PX, bottom / total, width / WIDTH_PX, height / total))
        for i in range(num_panels)
    ]
    point_colors = _point_colors(xyz, point_classes, colors)
    _show(axes[0], points_image(xyz, point_colors, grid, size=height), grid, sweep_title)
    if boxes is not None:
        _outline(axes[0], boxes)
    if point_classes is None:
        _height_bar(axes[0])
    for ax, panel in zip(axes[1:], panels, strict=True):
        image = (
            occupancy_image(panel.labels, colors)
            if panel.observed is None
            else observed_image(panel.labels, panel.observed, colors)
        )
        _show(ax, image, grid, panel.title)
        ax.tick_params(labelleft=False)
    axes[0].set_ylabel("x, forward (m)", fontsize=12, color=INK)
    if title:
        figure.text(LEFT_PX / WIDTH_PX, 1 - 16 / total, title, fontsize=16, color=INK, va="top", ha="left")
    add_legend(figure, entries, num_columns=num_columns, height_px=total)
    return figure


def _check(
    xyz: npt.NDArray[np.floating],
    panels: Sequence[Panel],
    grid: VoxelGrid,
    class_names: Sequence[str],
    colors: npt.NDArray[np.uint8],
    point_classes: npt.NDArray[np.uint8] | None,
) -> None:
    if colors.shape != (len(class_names) + 1, 3):
        raise ValueError(f"colours have the shape {colors.shape}, expected ({len(class_names) + 1}, 3)")
    if point_classes is not None and point_classes.shape != (len(xyz),):
        raise ValueError(f"point classes have the shape {point_classes.shape}, expected ({len(xyz)},)")
    for panel in panels:
        for what, array in (("labels", panel.labels), ("observed", panel.observed)):
            if array is not None and array.shape != grid.shape:
                raise ValueError(f"{what} of {panel.title!r} have the shape {array.shape}, expected {grid.shape}")


def _show(ax: Axes, image: npt.NDArray[np.uint8], grid: VoxelGrid, title: str) -> None:
    """Draw an `[x, y]` image with axes in metres and the ego vehicle as an arrow head."""
    (x0, y0, _), (x1, y1, _) = grid.lower_m, grid.upper_m
    scale = (ax.get_position().width * WIDTH_PX) / image.shape[1]
    # Cells of two pixels and more stay sharp; smaller ones would come out unevenly wide.
    interpolation = "nearest" if scale >= 2 else "antialiased"
    ax.imshow(upright(image), extent=(y1, y0, x0, x1), origin="upper", aspect="auto", interpolation=interpolation)
    ax.add_patch(ego_marker())
    ax.set_xlim(y1, y0)
    ax.set_ylim(x0, x1)
    ax.set_title(title, fontsize=14, color=INK, pad=9)
    ax.set_xlabel("y, left (m)", fontsize=12, color=INK)
    ax.tick_params(labelsize=11, color=PALE, labelcolor=INK, length=4)
    for spine in ax.spines.values():
        spine.set(color=PALE, linewidth=0.8)


def _outline(ax: Axes, boxes: npt.NDArray[np.floating]) -> None:
    """Draw the footprints of boxes, each with a stroke from its centre to its front."""
    ax.add_collection(LineCollection(footprint_lines(boxes), colors="#d6336c", linewidths=1.0), autolim=False)


def _height_bar(ax: Axes) -> None:
    """Draw the colour scale of points by height into the panel's lower left corner."""
    backdrop = ax.inset_axes((0.015, 0.015, 0.36, 0.088), facecolor="white")
    backdrop.set(xticks=[], yticks=[])
    backdrop.patch.set_alpha(0.85)
    bar = backdrop.inset_axes((0.1, 0.62, 0.8, 0.2))
    scale = ScalarMappable(Normalize(*HEIGHT_SPAN_M), HEIGHT_COLORS)
    assert ax.figure is not None
    ax.figure.colorbar(scale, cax=bar, orientation="horizontal", ticks=[-1, 0, 1, 2, 3, 4])
    bar.tick_params(labelsize=9, length=2, pad=2, color=PALE, labelcolor=INK)
    bar.set_xticklabels(["−1", "0", "1", "2", "3", "4 m"])
    for spine in (*backdrop.spines.values(), *bar.spines.values()):
        spine.set_visible(False)


def _point_colors(
    xyz: npt.NDArray[np.floating], point_classes: npt.NDArray[np.uint8] | None, colors: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    if point_classes is None:
        rgba: npt.NDArray[np.uint8] = HEIGHT_COLORS(Normalize(*HEIGHT_SPAN_M)(xyz[:, 2]), bytes=True)
        return rgba[:, :3]
    palette = np.empty((256, 3), dtype=np.uint8)
    palette[: len(colors)] = colors
    palette[IGNORE] = UNOBSERVED_COLOR
    return palette[point_classes]


def _legend_entries(
    panels: Sequence[Panel],
    point_classes: npt.NDArray[np.uint8] | None,
    class_names: Sequence[str],
    colors: npt.NDArray[np.uint8],
) -> list[Patch]:
    """Return an entry for every class that can be seen in some panel, in the taxonomy's order."""
    seen = np.zeros(256, dtype=bool)
    if point_classes is not None:
        seen[point_classes] = True
    faded = False
    for panel in panels:
        if panel.observed is None:
            seen[np.unique(top_voxels(panel.labels)[0])] = True
        else:
            within = np.where(panel.observed, panel.labels, np.uint8(IGNORE))
            seen[np.unique(top_voxels(within)[0])] = True
            faded = faded or not panel.observed.any(axis=2).all()
    seen[EMPTY] &= bool(panels)
    names = ["empty", *class_names]
    entries = [
        Patch(facecolor=colors[i] / 255, edgecolor=PALE if i == EMPTY else "none", linewidth=0.8, label=names[i])
        for i in (*range(1, len(names)), EMPTY)
        if seen[i]
    ]
    if seen[IGNORE]:
        label = "not observed (prediction faint)" if faded else "not observed"
        entries.append(Patch(facecolor=np.array(UNOBSERVED_COLOR) / 255, label=label))
    return entries
