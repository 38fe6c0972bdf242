"""What a detector finds in a frame beside the truth, from above: predictions red, truth green (the paper's Fig. 7).

Only arrays come in, so that any detector's boxes can be looked at. Forward is up, left is left.
"""

from __future__ import annotations

import math
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
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from spot_ray.geometry.grid import VoxelGrid
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
from spot_ray.view.from_above import points_image, upright
from spot_ray.view.labels import Rectangle, place_labels

PREDICTED, TRUE = "#d1122f", "#0b8a3a"

MARGIN_PX, GAP_PX, TITLE_PX = 24, 30, 40
HEIGHT_SPAN_M = (-0.5, 3.0)
"""Heights that the greys of points span."""

LOW_GREY, HIGH_GREY = 205, 120
"""The ground is paler than what stands on it, and the darkest point paler than any box."""

LABEL_PT, LABEL_HEIGHT_PX, LETTER_PX = 8.0, 12.0, 6.4
"""Size of a label's letters, and how much room a line of them and a letter take, pixels."""


@dataclass(frozen=True, eq=False)
class DrawnBoxes:
    """Boxes of a frame, predicted or true.

    Args:
        boxes: (M, 7) `[x, y, z, dx, dy, dz, yaw]`, metres and radians, ego frame.
        class_names: M names.
        scores: (M,) 0 to 1, or None: they have none.

    Raises:
        ValueError: If the columns disagree in length.
    """

    boxes: npt.NDArray[np.floating]
    class_names: Sequence[str]
    scores: npt.NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        """Check the lengths."""
        count = len(self.class_names)
        if self.boxes.shape != (count, 7) or (self.scores is not None and self.scores.shape != (count,)):
            raise ValueError(
                f"boxes {self.boxes.shape}, scores {None if self.scores is None else self.scores.shape} and "
                f"{count} names do not belong together"
            )

    def labels(self) -> list[str]:
        """Return what stands beside each box: its class, and its score in hundredths."""
        if self.scores is None:
            return list(self.class_names)
        return [f"{name} {score:.2f}" for name, score in zip(self.class_names, self.scores, strict=True)]


@dataclass(frozen=True, eq=False)
class Scene:
    """One frame of the picture.

    Args:
        xyz: (P, 3) points, metres, ego frame.
        truth: What is there, or None: nobody knows.
        prediction: What a detector found, or None: there is no detector.
        title: What stands above it.
    """

    xyz: npt.NDArray[np.floating]
    truth: DrawnBoxes | None
    prediction: DrawnBoxes | None = None
    title: str = ""


def draw_detections(file: str | Path | BinaryIO, *, scenes: Sequence[Scene], reach_m: float) -> None:
    """Write the picture as a PNG, 1,800 pixels wide; nothing is written if drawing fails.

    Args:
        file: A path, or a binary file.
        scenes: As in :func:`detections_figure`.
        reach_m: See there.
    """
    save_png(detections_figure(scenes=scenes, reach_m=reach_m), file)


def detections_figure(*, scenes: Sequence[Scene], reach_m: float) -> Figure:
    """Return the picture as a figure of its own (no pyplot state): frame after frame, in rows of at most three.

    Points are grey, higher ones darker; of each box there are the outline, a stroke from its centre to its front, and
    its label: beside a prediction its class and score, beside a true box its class where no prediction is drawn in the
    frame or none of this class lies within its outline. Labels give way to each other: one that would lie on another
    or outside the picture is left out, those of better predictions come first.

    Args:
        scenes: At least one frame.
        reach_m: How far the picture goes from the vehicle along x and along y, metres.

    Raises:
        ValueError: If there is no frame, or the reach is not positive.
    """
    if not scenes or not 0 < reach_m < math.inf:
        raise ValueError(f"{len(scenes)} frames within {reach_m} m: expected at least one, and a positive reach")
    num_columns = min(3, math.ceil(math.sqrt(len(scenes))))
    num_rows = math.ceil(len(scenes) / num_columns)
    side = (WIDTH_PX - 2 * MARGIN_PX - GAP_PX * (num_columns - 1)) // num_columns
    entries = _legend_entries(scenes)
    total = (TITLE_PX + side) * num_rows + GAP_PX * (num_rows - 1) + MARGIN_PX + LEGEND_ROW_PX + 14

    figure = Figure(figsize=(WIDTH_PX / DPI, total / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for i, scene in enumerate(scenes):
        row, column = divmod(i, num_columns)
        left = MARGIN_PX + column * (side + GAP_PX)
        top = row * (TITLE_PX + side + GAP_PX) + TITLE_PX
        ax = figure.add_axes((left / WIDTH_PX, 1 - (top + side) / total, side / WIDTH_PX, side / total))
        _show(ax, scene, reach_m, side)
    columns = legend_columns(len(entries), WIDTH_PX - 2 * MARGIN_PX)
    add_legend(figure, entries, num_columns=columns, height_px=total)
    return figure


def _show(ax: Axes, scene: Scene, reach_m: float, side_px: int) -> None:
    """Draw one frame."""
    ax.imshow(
        upright(points_image(scene.xyz, _greys(scene.xyz), _extent(reach_m), size=side_px)),
        extent=(reach_m, -reach_m, -reach_m, reach_m),
        origin="upper",
        interpolation="nearest",
    )
    ax.add_patch(ego_marker())
    ax.set(xlim=(reach_m, -reach_m), ylim=(-reach_m, reach_m), xticks=[], yticks=[])
    ax.set_title(scene.title, fontsize=13, color=INK, pad=8, loc="left")
    for spine in ax.spines.values():
        spine.set(color=PALE, linewidth=0.8)
    # The truth first and wider: where both agree, a green rim shows around the red line.
    for drawn, color, width in ((scene.truth, TRUE, 2.2), (scene.prediction, PREDICTED, 1.2)):
        if drawn is not None:
            ax.add_collection(
                LineCollection(footprint_lines(drawn.boxes), colors=color, linewidths=width), autolim=False
            )
    bar_m = _round_length(reach_m / 3)
    taken = [_scale_bar(ax, bar_m, reach_m, side_px)]
    _write_labels(ax, scene, reach_m, side_px, taken)


def _greys(xyz: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    low, high = HEIGHT_SPAN_M
    fraction = np.clip((xyz[:, 2] - low) / (high - low), 0, 1)
    grey = np.rint(LOW_GREY + (HIGH_GREY - LOW_GREY) * fraction).astype(np.uint8)
    return np.repeat(grey[:, None], 3, axis=1)


def _extent(reach_m: float) -> VoxelGrid:
    return VoxelGrid((-reach_m, -reach_m, 0.0), (2 * reach_m, 2 * reach_m, 1.0), (1, 1, 1))


def _round_length(length_m: float) -> float:
    """Return the greatest of 1, 2, 5 times a power of ten that is not longer."""
    power = 10.0 ** math.floor(math.log10(length_m))
    return max(step * power for step in (1.0, 2.0, 5.0) if step * power <= length_m * (1 + 1e-9))


def _scale_bar(ax: Axes, bar_m: float, reach_m: float, side_px: int) -> Rectangle:
    """Draw a bar of a known length into the lower left corner and return its place, pixels from the upper left."""
    metre = side_px / (2 * reach_m)
    left, bottom = reach_m - 18 / metre, -reach_m + 20 / metre
    ax.add_collection(
        LineCollection(
            [
                [(left, bottom), (left - bar_m, bottom)],
                [(left, bottom - 5 / metre), (left, bottom + 5 / metre)],
                [(left - bar_m, bottom - 5 / metre), (left - bar_m, bottom + 5 / metre)],
            ],
            colors=INK,
            linewidths=1.6,
        ),
        autolim=False,
    )
    centre = left - bar_m / 2
    ax.text(centre, bottom + 7 / metre, f"{bar_m:g} m", fontsize=11, color=INK, ha="center", va="bottom")
    return Rectangle(10.0, side_px - 50.0, 26 + bar_m * metre, side_px - 8.0)


def _write_labels(ax: Axes, scene: Scene, reach_m: float, side_px: int, taken: list[Rectangle]) -> None:
    """Write the labels beside their boxes, as far as there is room."""
    metre = side_px / (2 * reach_m)
    wanted: list[tuple[str, str, npt.NDArray[np.floating]]] = []
    if scene.prediction is not None:
        scores = scene.prediction.scores
        order = np.arange(len(scene.prediction.boxes)) if scores is None else np.argsort(-scores, kind="stable")
        texts = scene.prediction.labels()
        wanted += [(texts[i], PREDICTED, scene.prediction.boxes[i]) for i in order]
    if scene.truth is not None:
        missed = np.flatnonzero(_missed(scene.truth, scene.prediction))
        nearest = missed[np.argsort(np.hypot(*scene.truth.boxes[missed, :2].T), kind="stable")]
        texts = scene.truth.labels()
        wanted += [(texts[i], TRUE, scene.truth.boxes[i]) for i in nearest]
    around = [_around(box, reach_m, metre) for _, _, box in wanted]
    sizes = [(LETTER_PX * len(text), LABEL_HEIGHT_PX) for text, _, _ in wanted]
    frame = Rectangle(0.0, 0.0, float(side_px), float(side_px))
    drawn = [kind.boxes for kind in (scene.truth, scene.prediction) if kind is not None]
    avoid = [_around(box, reach_m, metre) for boxes in drawn for box in boxes]
    places = place_labels(around, sizes, within=frame, taken=taken, avoid=avoid)
    for (text, color, _), place in zip(wanted, places, strict=True):
        if place is not None:
            ax.text(
                reach_m - place.left / metre,
                reach_m - (place.top + place.bottom) / 2 / metre,
                text,
                fontsize=LABEL_PT,
                color=color,
                ha="left",
                va="center_baseline",
                path_effects=[withStroke(linewidth=2.0, foreground="white", alpha=0.85)],
            )


def _missed(truth: DrawnBoxes, prediction: DrawnBoxes | None) -> npt.NDArray[np.bool_]:
    """Return (M,) bool: no predicted box of the same class has its centre within the true box's outline."""
    missed = np.ones(len(truth.boxes), dtype=bool)
    if prediction is None:
        return missed
    names = np.array(prediction.class_names)
    for i, (x, y, _, dx, dy, _, yaw) in enumerate(truth.boxes.astype(np.float64)):
        away = prediction.boxes[names == truth.class_names[i], :2] - (x, y) if len(names) else np.zeros((0, 2))
        along = away @ (np.cos(yaw), np.sin(yaw))
        across = away @ (-np.sin(yaw), np.cos(yaw))
        missed[i] = not ((abs(along) <= dx / 2) & (abs(across) <= dy / 2)).any()
    return missed


def _around(box: npt.NDArray[np.floating], reach_m: float, metre: float) -> Rectangle:
    """Return the upright rectangle around a box, pixels from the picture's upper left corner."""
    x, y, _, dx, dy, _, yaw = box.astype(np.float64)
    along_x = (abs(dx * np.cos(yaw)) + abs(dy * np.sin(yaw))) / 2
    along_y = (abs(dx * np.sin(yaw)) + abs(dy * np.cos(yaw))) / 2
    return Rectangle(
        (reach_m - y - along_y) * metre,
        (reach_m - x - along_x) * metre,
        (reach_m - y + along_y) * metre,
        (reach_m - x + along_x) * metre,
    )


def _legend_entries(scenes: Sequence[Scene]) -> list[Line2D]:
    kinds = (
        ("prediction", PREDICTED, 1.8, any(scene.prediction is not None for scene in scenes)),
        ("truth", TRUE, 2.6, any(scene.truth is not None for scene in scenes)),
    )
    lines = [
        Line2D([], [], color=color, linewidth=width, label=name) for name, color, width, is_there in kinds if is_there
    ]
    dots = Line2D([], [], color=f"{(LOW_GREY + HIGH_GREY) / 510:.2f}", marker=".", markersize=9, linestyle="none")
    dots.set_label("points, higher ones darker")
    ego = Line2D([], [], color=INK, marker="^", markersize=9, linestyle="none", label="ego, driving up")
    return [*lines, dots, ego]
