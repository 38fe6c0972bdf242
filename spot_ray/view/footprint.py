"""Boxes from above: their outlines as lines of a picture in which forward is up and left is left."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_OUTLINE = np.array([[0.5, 0.5], [0.5, -0.5], [-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])
_TO_FRONT = np.array([[0.0, 0.0], [0.5, 0.0]])

Lines = list[npt.NDArray[np.float64]]


def footprint_lines(boxes: npt.NDArray[np.floating]) -> Lines:
    """Return the outline of each box and the stroke from its centre to its front, two lines a box.

    Args:
        boxes: (M, 7) `[x, y, z, dx, dy, dz, yaw]`, metres and radians.

    Returns:
        2 M arrays of (y, x), metres: y is the picture's abscissa.
    """
    lines = []
    for x, y, _, dx, dy, _, yaw in boxes.astype(np.float64):
        turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        lines += [(shape * (dx, dy) @ turn + (x, y))[:, ::-1] for shape in (_OUTLINE, _TO_FRONT)]
    return lines
