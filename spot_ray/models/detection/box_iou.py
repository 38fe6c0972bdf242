"""Intersection over union of rotated boxes, in plain torch: the same on a CPU and a GPU, and nothing to compile.

Only pairs whose circumscribed circles meet are looked at. One rectangle of such a pair is seen from the other, as a
polygon P from an axis-parallel rectangle of half sizes h around 0. By Green's theorem, their intersection has the area

    -∮ [|x| ≤ h_x] · clamp(y, -h_y, h_y) dx    along the boundary of P, counter-clockwise:

four edges, cut where they leave |x| ≤ h_x and where they cross y = ± h_y, and the trapezoid rule between is exact. No
polygon is built and no case told apart, so that edges that coincide, corners that touch and boxes within one another
need no care: the formula is continuous in all its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_CIRCLE_PAIRS = 1 << 20
"""Pairs whose circles are compared at once: some 20 MB."""
_EXACT_PAIRS = 1 << 16
"""Pairs whose area is computed at once: some 40 MB."""
_SLACK = 1.0001
"""Factor on radii: far more than float32 rounds off."""


def bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of each pair of boxes as seen from above.

    Args:
        a: (N, 7) `[x, y, z, dx, dy, dz, yaw]`, metres and radians, floating-point; sizes are at least 0.
        b: (M, 7), on the same device.

    Returns:
        (N, M) IoU in the dtype of the boxes, float32 at least; computed in float64. 0 where the union is empty or a
        number is not finite. No gradient.
    """
    return _pairwise(a, b, pair_bev_iou)


def iou_3d(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of each pair of boxes' volumes; z is at a box's centre.

    Args:
        a: (N, 7) `[x, y, z, dx, dy, dz, yaw]`, metres and radians, floating-point; sizes are at least 0.
        b: (M, 7), on the same device.

    Returns:
        (N, M) IoU as of :func:`bev_iou`.
    """
    return _pairwise(a, b, pair_iou_3d)


def near_pairs(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Find the pairs whose circumscribed circles meet, seen from above: no others can overlap.

    Waits for a GPU once a block of `a`.

    Args:
        a: (N, 7) float32 or float64 boxes.
        b: (M, 7) ones.

    Yields:
        (P,) int64 rows of `a` and (P,) rows of `b`, ascending over all blocks.
    """
    radius_a, radius_b = (torch.hypot(boxes[:, 3], boxes[:, 4]) * (_SLACK / 2) for boxes in (a, b))
    height = max(1, _CIRCLE_PAIRS // max(1, len(b)))
    for start in range(0, len(a), height):
        rows = slice(start, start + height)
        distance = (a[rows, 0, None] - b[:, 0]).square_()
        distance += (a[rows, 1, None] - b[:, 1]).square_()
        distance -= (radius_a[rows, None] + radius_b).square_()
        i, j = (distance <= 0).nonzero(as_tuple=True)
        yield i + start, j


def pair_bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the (P,) float64 IoU, as seen from above, of (P, 7) boxes with (P, 7) others."""
    a, b = a.double(), b.double()
    shared = _pair_intersection(a, b)
    return _over_union(shared, a[:, 3] * a[:, 4], b[:, 3] * b[:, 4])


def pair_iou_3d(a: Tensor, b: Tensor) -> Tensor:
    """Return the (P,) float64 IoU of volumes of (P, 7) boxes with (P, 7) others."""
    a, b = a.double(), b.double()
    half_a, half_b = a[:, 5] / 2, b[:, 5] / 2
    # Seen from the middle of a: sums of heights would lose the digits of thin boxes far up.
    above = b[:, 2] - a[:, 2]
    height = torch.minimum(half_a, above + half_b) - torch.maximum(-half_a, above - half_b)
    shared = _pair_intersection(a, b) * height.clamp_(min=0.0)
    return _over_union(shared, a[:, 3:6].prod(dim=1), b[:, 3:6].prod(dim=1))


def in_blocks(i: Tensor, j: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Part the (P,) pairs into blocks of which the exact areas take little memory."""
    return zip(i.split(_EXACT_PAIRS), j.split(_EXACT_PAIRS), strict=True)


def _pairwise(a: Tensor, b: Tensor, pair_iou: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.detach().to(dtype), b.detach().to(dtype)
    iou = a.new_zeros((len(a), len(b)))
    for pairs in near_pairs(a, b):
        for i, j in in_blocks(*pairs):
            iou[i, j] = pair_iou(a[i], b[j]).to(dtype)
    return iou


def _over_union(shared: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
    """Return shared / union; what rounding adds to the shared part of boxes within one another is taken off."""
    shared = shared.clamp(min=0.0).minimum(size_a).minimum(size_b)
    union = size_a + size_b - shared
    return (shared / union).masked_fill_(~(union > 0), 0.0)


def _pair_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Return the (P,) areas that (P, 7) float64 boxes share with (P, 7) others, seen from above."""
    x, y = _corners_in(a, b)
    half_x, half_y = a[:, 3] / 2, a[:, 4] / 2
    next_x, next_y = x.roll(-1, 0), y.roll(-1, 0)
    run, rise = next_x - x, next_y - y

    # Where an edge enters and leaves |x| <= h_x, as parts of the way. One that runs along y spans no x: any part does.
    inside = x.clamp(-half_x, half_x)
    next_inside = inside.roll(-1, 0)
    run = run.masked_fill(run == 0, 1.0)
    first = y + rise * ((inside - x) / run).clamp_(0.0, 1.0)
    last = y + rise * ((next_inside - x) / run).clamp_(0.0, 1.0)

    # Between these, where it crosses y = -h_y and y = h_y; one that does so nowhere is cut at its ends.
    climb = last - first
    over = climb.masked_fill(climb == 0, 1.0)
    low, high = ((-half_y - first) / over).clamp_(0.0, 1.0), ((half_y - first) / over).clamp_(0.0, 1.0)
    s, t = torch.minimum(low, high), torch.maximum(low, high)
    y_0, y_s, y_t, y_1 = (part.clamp(-half_y, half_y) for part in (first, first + climb * s, first + climb * t, last))
    # Twice the mean of the clamped y: three trapezoids, with like terms put together.
    twice_mean = s * (y_0 - y_t) + t * (y_s - y_1) + y_t + y_1
    return ((inside - next_inside) * twice_mean).sum(dim=0) / 2


def _corners_in(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y, each (4, P), of the corners of boxes b seen from boxes a, counter-clockwise."""
    cos_a, sin_a = torch.cos(a[:, 6]), torch.sin(a[:, 6])
    cos_b, sin_b = torch.cos(b[:, 6]), torch.sin(b[:, 6])
    cos, sin = cos_a * cos_b + sin_a * sin_b, cos_a * sin_b - sin_a * cos_b
    away_x, away_y = b[:, 0] - a[:, 0], b[:, 1] - a[:, 1]
    center_x, center_y = cos_a * away_x + sin_a * away_y, cos_a * away_y - sin_a * away_x
    along_x, along_y = cos * b[:, 3] / 2, sin * b[:, 3] / 2
    across_x, across_y = -sin * b[:, 4] / 2, cos * b[:, 4] / 2
    x = torch.stack((along_x + across_x, across_x - along_x, -along_x - across_x, along_x - across_x))
    y = torch.stack((along_y + across_y, across_y - along_y, -along_y - across_y, along_y - across_y))
    return x + center_x, y + center_y
