"""A picture of one sweep at several beam densities (the paper's Fig. 3): from above, and as its sensor sees it."""

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
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.view.figure import DPI, INK, PALE, WIDTH_PX, save_png
from spot_ray.view.from_above import points_image, upright

LEFT_PX, RIGHT_PX, GAP_PX = 64, 16, 14
TOP_PX, TITLE_PX, ABOVE_PX, SEEN_PX, BETWEEN_PX, BELOW_PX = 40, 60, 412, 200, 58, 52

_SHADES = 12
"""Colours by height and by distance: few, so that the file is small."""

_HEIGHTS_M = (-0.5, 4.0)
_DISTANCES_M = (4.0, 60.0)
_GREY = (226, 228, 232)


@dataclass(frozen=True, eq=False)
class Density:
    """A sweep at one beam density: a column of the picture.

    Args:
        title: What stands above it.
        xyz: (N, 3) points, metres, ego frame.
        azimuth_deg: (N,) azimuth in the sensor's frame, degrees, 0 ahead, to the left positive.
        inclination_deg: (N,) inclination in the sensor's frame, degrees.
        distance_m: (N,) distance from the sensor, metres.
    """

    title: str
    xyz: npt.NDArray[np.floating]
    azimuth_deg: npt.NDArray[np.floating]
    inclination_deg: npt.NDArray[np.floating]
    distance_m: npt.NDArray[np.floating]


def draw_densities(
    file: str | Path | BinaryIO,
    *,
    densities: Sequence[Density],
    reach_m: float = 20.0,
    window_deg: tuple[float, float, float, float] = (-30.0, 30.0, -18.0, 3.0),
    title: str = "",
) -> None:
    """Write the picture as a PNG, 1,800 pixels wide; nothing is written if drawing fails.

    Args:
        file: A path, or a binary file.
        densities: As in :func:`densities_figure`, like all that follow.
        reach_m: How far the view from above reaches.
        window_deg: What the view from the sensor shows.
        title: What stands above all.
    """
    save_png(densities_figure(densities=densities, reach_m=reach_m, window_deg=window_deg, title=title), file)


def densities_figure(
    *,
    densities: Sequence[Density],
    reach_m: float = 20.0,
    window_deg: tuple[float, float, float, float] = (-30.0, 30.0, -18.0, 3.0),
    title: str = "",
) -> Figure:
    """Return the picture as a figure of its own (no pyplot state).

    The upper row is from above, coloured by height; the lower one is what the sensor sees ahead, azimuth over
    inclination, coloured by distance: there every beam is a level line.

    Args:
        densities: At least one, drawn side by side.
        reach_m: How far the view from above reaches in x and y, metres.
        window_deg: (from, to) azimuth and (from, to) inclination of what is seen ahead, degrees.
        title: What stands above all, left.

    Raises:
        ValueError: If the arrays of a density differ in length.
    """
    for density in densities:
        if {len(density.azimuth_deg), len(density.inclination_deg), len(density.distance_m)} != {len(density.xyz)}:
            raise ValueError(f"the arrays of {density.title!r} differ in length")
    width = (WIDTH_PX - LEFT_PX - RIGHT_PX - GAP_PX * (len(densities) - 1)) // len(densities)
    total = TOP_PX + TITLE_PX + ABOVE_PX + BETWEEN_PX + SEEN_PX + BELOW_PX
    figure = Figure(figsize=(WIDTH_PX / DPI, total / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(LEFT_PX / WIDTH_PX, 1 - 14 / total, title, fontsize=16, color=INK, ha="left", va="top")
    for column, density in enumerate(densities):
        left, part = (LEFT_PX + column * (width + GAP_PX)) / WIDTH_PX, width / WIDTH_PX
        above = figure.add_axes((left, (BELOW_PX + SEEN_PX + BETWEEN_PX) / total, part, ABOVE_PX / total))
        seen = figure.add_axes((left, BELOW_PX / total, part, SEEN_PX / total))
        above.set_title(density.title, fontsize=14, color=INK, pad=9)
        _show_above(above, density, reach_m, width)
        _show_seen(seen, density, window_deg, width)
        if column == 0:
            above.set_ylabel("x, forward (m)", fontsize=12, color=INK)
            seen.set_ylabel("inclination (°)", fontsize=12, color=INK)
        for axes in (above, seen):
            axes.xaxis.set_major_locator(MaxNLocator(5, prune="both"))
            axes.tick_params(labelsize=10, color=PALE, labelcolor=INK, length=4, labelleft=column == 0)
            for spine in axes.spines.values():
                spine.set(color=PALE, linewidth=0.8)
    return figure


def _show_above(axes: Axes, density: Density, reach_m: float, width: int) -> None:
    grid = VoxelGrid((-reach_m, -reach_m, -4.0), (2 * reach_m, 2 * reach_m, 8.0), (1, 1, 1))
    image = points_image(density.xyz, _shades(density.xyz[:, 2], _HEIGHTS_M, "viridis"), grid, size=width)
    axes.imshow(upright(image), extent=(reach_m, -reach_m, -reach_m, reach_m), aspect="auto", interpolation="nearest")
    axes.set_xlabel("y, left (m)", fontsize=12, color=INK)


def _show_seen(axes: Axes, density: Density, window: tuple[float, float, float, float], width: int) -> None:
    right, left, low, high = window
    column = np.floor((left - density.azimuth_deg) / (left - right) * width).astype(np.int64)
    row = np.floor((high - density.inclination_deg) / (high - low) * SEEN_PX).astype(np.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < SEEN_PX)
    # The nearest is on top.
    order = np.flatnonzero(inside)[np.argsort(-density.distance_m[inside], kind="stable")]
    image = np.full((SEEN_PX, width, 3), _GREY, dtype=np.uint8)
    color = _shades(density.distance_m[order], _DISTANCES_M, "plasma_r")
    for aside in (1, 0):
        image[row[order], np.minimum(column[order] + aside, width - 1)] = color
    axes.imshow(image, extent=(left, right, low, high), aspect="auto", interpolation="nearest")
    axes.set_xlabel("azimuth, left (°)", fontsize=12, color=INK)


def _shades(values: npt.NDArray[np.floating], limits: tuple[float, float], name: str) -> npt.NDArray[np.uint8]:
    """Return (N, 3) uint8 colours by value."""
    share = np.clip((values - limits[0]) / (limits[1] - limits[0]), 0, 1)
    steps = np.rint(share * (_SHADES - 1)) / (_SHADES - 1)
    return np.rint(colormaps[name](0.9 * steps)[:, :3] * 255).astype(np.uint8)
