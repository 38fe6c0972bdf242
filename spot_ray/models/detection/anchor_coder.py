"""What the anchor head regresses: a box as residuals to an anchor (SECOND, Sensors 18(10), 2018, Eq. 4 and 5).

A residual of yaw is learned by its sine, which turns of half a circle leave as it is up to the sign: which of the two
yaws half a circle apart is meant, is a class of its own, the direction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DIRECTION_OFFSET = math.pi / 4
"""Yaws from here on, for half a circle, are of direction 0. So yaws along the axes lie far from where it changes."""

MAX_LOG_SIZE = 4.0
"""Decoded sizes are at most this power of e times those of the anchor, and at least its inverse: always finite."""


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return (M, 7) residuals of (M, 7) boxes to (M, 7) anchors, all `[x, y, z, dx, dy, dz, yaw]`.

    x and y in diagonals of the anchor, z in its heights, logarithms of the ratios of sizes, and the difference of yaws.
    """
    return torch.cat(
        (
            (boxes[:, :2] - anchors[:, :2]) / _diagonal(anchors),
            (boxes[:, 2:3] - anchors[:, 2:3]) / anchors[:, 5:6],
            torch.log(boxes[:, 3:6] / anchors[:, 3:6]),
            boxes[:, 6:] - anchors[:, 6:],
        ),
        dim=1,
    )


def direction_of(yaw: Tensor) -> Tensor:
    """Return the int64 direction, 0 or 1, of yaws in radians."""
    return (torch.remainder(yaw - DIRECTION_OFFSET, 2 * math.pi) >= math.pi).long()


def decode_boxes(residuals: Tensor, anchors: Tensor, direction: Tensor) -> Tensor:
    """Return the boxes that residuals to anchors and directions stand for.

    Args:
        residuals: (M, 7) as of :func:`encode_boxes`.
        anchors: (M, 7) `[x, y, z, dx, dy, dz, yaw]`.
        direction: (M,) int64, 0 or 1.

    Returns:
        (M, 7) `[x, y, z, dx, dy, dz, yaw]` with positive, finite sizes, yaw from -π up to π.
    """
    half_circle = torch.remainder(residuals[:, 6:] + anchors[:, 6:] - DIRECTION_OFFSET, math.pi)
    yaw = half_circle + DIRECTION_OFFSET + math.pi * direction[:, None]
    return torch.cat(
        (
            residuals[:, :2] * _diagonal(anchors) + anchors[:, :2],
            residuals[:, 2:3] * anchors[:, 5:6] + anchors[:, 2:3],
            residuals[:, 3:6].clamp(-MAX_LOG_SIZE, MAX_LOG_SIZE).exp() * anchors[:, 3:6],
            torch.remainder(yaw + math.pi, 2 * math.pi) - math.pi,
        ),
        dim=1,
    )


def _diagonal(anchors: Tensor) -> Tensor:
    return torch.hypot(anchors[:, 3:4], anchors[:, 4:5])
