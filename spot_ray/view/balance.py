"""A picture of how much of each class there is, before and after balancing (the paper's Fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from spot_ray.view.figure import DPI, INK, LEGEND_ROW_PX, PALE, WIDTH_PX, add_legend, save_png

LEFT_PX, RIGHT_PX, GAP_PX = 220, 40, 44
TOP_PX, TITLE_PX, SCALE_PX = 44, 40, 44
CLASS_PX = 46
BAR = 0.36
"""Height of a bar; a class has a height of 1."""

_WHITE = 0.55
"""How much white the bars of before hold."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """One quantity of every class: a panel of the picture.

    Args:
        title: What stands above it, with its unit.
        before: (N + 1,) float over ids 0 to N; what is not over 0 is not drawn, since the scale is logarithmic.
        after: (N + 1,) float.
    """

    title: str
    before: npt.NDArray[np.floating]
    after: npt.NDArray[np.floating]


def draw_distributions(
    file: str | Path | BinaryIO,
    *,
    distributions: Sequence[Distribution],
    class_names: Sequence[str],
    colors: npt.NDArray[np.uint8],
    balanced: npt.NDArray[np.bool_],
    title: str = "",
) -> None:
    """Write the picture as a PNG, 1,800 pixels wide; nothing is written if drawing fails.

    Args:
        file: A path, or a binary file.
        distributions: As in :func:`distributions_figure`, like all that follow.
        class_names: Names of the classes 1 to N.
        colors: (N + 1, 3) uint8.
        balanced: (N + 1,) bool.
        title: What stands above all.
    """
    figure = distributions_figure(
        distributions=distributions, class_names=class_names, colors=colors, balanced=balanced, title=title
    )
    save_png(figure, file)


def distributions_figure(
    *,
    distributions: Sequence[Distribution],
    class_names: Sequence[str],
    colors: npt.NDArray[np.uint8],
    balanced: npt.NDArray[np.bool_],
    title: str = "",
) -> Figure:
    """Return the picture as a figure of its own (no pyplot state).

    A class is a row of two bars: before above, pale; after below, in the class's colour. Balanced classes come first,
    each group from most to least by the first quantity; classes of which there is nothing anywhere are left out.

    Args:
        distributions: At least one; drawn side by side, each with a logarithmic scale of its own.
        class_names: Names of the classes 1 to N.
        colors: (N + 1, 3) uint8 colours of ids 0 to N (`Taxonomy.colors()`).
        balanced: (N + 1,) bool: the classes that are balanced; the names of the others are grey.
        title: What stands above all, left.
    """
    there = np.any([(d.before > 0) | (d.after > 0) for d in distributions], axis=0)
    ids = sorted(np.flatnonzero(there).tolist(), key=lambda i: (not balanced[i], -distributions[0].before[i], i))
    top = TOP_PX + TITLE_PX
    bottom = SCALE_PX + LEGEND_ROW_PX + 12
    height = top + CLASS_PX * max(len(ids), 1) + bottom
    figure = Figure(figsize=(WIDTH_PX / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(LEFT_PX / WIDTH_PX, 1 - 14 / height, title, fontsize=15, color=INK, ha="left", va="top")
    width = (WIDTH_PX - LEFT_PX - RIGHT_PX - GAP_PX * (len(distributions) - 1)) / len(distributions)
    for column, distribution in enumerate(distributions):
        left = LEFT_PX + column * (width + GAP_PX)
        axes = figure.add_axes(
            (left / WIDTH_PX, bottom / height, width / WIDTH_PX, (height - top - bottom) / height),
            label=distribution.title,
        )
        _draw(axes, distribution, ids, colors[ids] / 255)
        axes.set_yticks(range(len(ids)), [class_names[i - 1] for i in ids] if column == 0 else [""] * len(ids))
        for tick, i in zip(axes.get_yticklabels(), ids, strict=True):
            tick.set_color(INK if balanced[i] else PALE)
    grey = np.array([0.35, 0.37, 0.4])
    entries = [Patch(color=_pale(grey), label="before"), Patch(color=grey, label="after")]
    add_legend(figure, entries, num_columns=2, height_px=height)
    return figure


def _draw(axes: Axes, distribution: Distribution, ids: Sequence[int], colors: npt.NDArray[np.floating]) -> None:
    before, after = distribution.before[ids], distribution.after[ids]
    values = np.concatenate([before, after])
    values = values[values > 0]
    axes.set_title(distribution.title, fontsize=14, color=INK, loc="left", pad=10)
    axes.set_ylim(len(ids) - 0.4, -0.6)
    axes.set_xscale("log")
    if len(values):
        # From a whole decade that leaves the least something to see, with room for the numbers at the end.
        least, most = 10 ** np.floor(np.log10(values.min()) - 0.3), values.max()
        axes.set_xlim(least, most * (most / least) ** 0.2)
    rows = np.arange(len(ids))
    for offset, amounts, shade, name in ((-0.19, before, _pale(colors), "before"), (0.19, after, colors, "after")):
        drawn = amounts > 0
        bars = axes.barh(rows[drawn] + offset, amounts[drawn], height=BAR, color=shade[drawn], label=name)
        axes.bar_label(bars, [f" {_number(value)}" for value in amounts[drawn]], fontsize=9, color=INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", colors=PALE, labelsize=10)
    axes.tick_params(axis="y", length=0, labelsize=13)
    axes.grid(axis="x", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PALE)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _pale(color: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return color + (1 - color) * _WHITE
