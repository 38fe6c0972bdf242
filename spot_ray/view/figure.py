"""What all pictures of a frame have in common: their width, their ink, a legend below, and how they are saved."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

WIDTH_PX = 1800
DPI = 100
LEGEND_ROW_PX, LEGEND_COLUMN_PX = 30, 190
INK, PALE = "#22262b", "#8a9099"


def save_png(figure: Figure, file: str | Path | BinaryIO) -> None:
    """Write a figure as a PNG; nothing is written if drawing fails.

    Args:
        figure: The figure.
        file: A path, or a binary file.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    if isinstance(file, str | Path):
        Path(file).write_bytes(buffer.getvalue())
    else:
        file.write(buffer.getvalue())


def legend_columns(num_entries: int, width_px: int) -> int:
    """Return in how many columns a legend stands within a width, pixels."""
    return max(1, min(num_entries, width_px // LEGEND_COLUMN_PX))


def ego_marker() -> Polygon:
    """Return the ego vehicle as an arrow head, for axes in metres: y to the left as abscissa, x forward as ordinate."""
    return Polygon([(0.0, 3.2), (1.8, -2.2), (0.0, -1.0), (-1.8, -2.2)], facecolor=INK, edgecolor="white", lw=1)


def add_legend(figure: Figure, entries: Sequence[Artist], *, num_columns: int, height_px: int) -> None:
    """Draw a legend at the lower edge, if there are entries.

    Args:
        figure: The figure.
        entries: Of the legend.
        num_columns: As by :func:`legend_columns`.
        height_px: The figure's height, pixels.
    """
    if entries:
        figure.legend(
            handles=list(entries),
            loc="lower center",
            bbox_to_anchor=(0.5, 6 / height_px),
            ncols=num_columns,
            frameon=False,
            fontsize=13,
            labelcolor=INK,
            handlelength=1.1,
            handleheight=1.1,
            columnspacing=1.8,
        )
