"""What the centre head is to put out for a batch of annotated boxes (CenterPoint, arXiv:2006.11275, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spot_ray.models.bev import BevMap
from spot_ray.models.detection.boxes import BoxTruth

BOX_VALUES = 8
"""Regressed values of a box: x and y from the lower corner of its cell, in cells; z; log dx, log dy, log dz; sine and
cosine of its yaw. Two more, the velocity, may follow. Metres, metres a second."""


class CenterGrid(nn.Module):
    """The maps of a centre head, and of which of its groups a class is.

    Args:
        bev_map: Where the cells lie, network frame.
        group_sizes: Number of classes of each group; a group's classes follow each other.
    """

    lower_m: Tensor
    """(2,) float32 (x, y) of the lower corner of cell [0, 0]."""
    cell_m: Tensor
    """(2,) float32 edge lengths (x, y) of a cell."""
    group_of_class: Tensor
    """(C,) int64 group of each class."""

    def __init__(self, bev_map: BevMap, group_sizes: Sequence[int]) -> None:
        super().__init__()
        self.map_shape = bev_map.shape
        self.group_sizes = tuple(group_sizes)
        groups = [group for group, size in enumerate(group_sizes) for _ in range(size)]
        self.register_buffer("lower_m", torch.tensor(bev_map.lower_m, dtype=torch.float32), persistent=False)
        self.register_buffer("cell_m", torch.tensor(bev_map.cell_m, dtype=torch.float32), persistent=False)
        self.register_buffer("group_of_class", torch.tensor(groups), persistent=False)


@dataclass(frozen=True, eq=False)
class CenterTargets:
    """Targets of B samples with K boxes.

    Args:
        heatmaps: One a group: (B, classes of the group, ny, nx) float32, 0 to 1: a Gaussian around each centre, 1 in
            its cell; of two Gaussians of one class the greater value.
        values: (K, 8 or 10) float32, see `BOX_VALUES`; 0 where unknown.
        known: (K, 8 or 10) bool, the values to be learned.
        learned: (K,) bool, the boxes to be learned: those with their centre on the map, and of several of one group
            in one cell the largest as seen from above; of equally large ones the first.
        group: (K,) int64 the group of each box.
        sample: (K,) int64 its sample.
        cell: (K,) int64 y · nx + x of its cell; 0 if the centre lies outside the map.
    """

    heatmaps: tuple[Tensor, ...]
    values: Tensor
    known: Tensor
    learned: Tensor
    group: Tensor
    sample: Tensor
    cell: Tensor


def center_targets(
    truth: BoxTruth, grid: CenterGrid, *, gaussian_overlap: float, min_radius: int, velocity: bool
) -> CenterTargets:
    """Place the boxes on the maps; waits for a GPU once, to learn how wide the widest Gaussian is.

    Args:
        truth: The boxes of the batch.
        grid: The maps, on the device of the boxes.
        gaussian_overlap: See :func:`gaussian_radius`.
        min_radius: Least radius of a Gaussian, cells.
        velocity: Velocities are regressed too.
    """
    boxes = truth.boxes
    place = (boxes[:, :2] - grid.lower_m) / grid.cell_m
    corner = place.floor()
    column, line = corner.long().unbind(dim=1)
    ny, nx = grid.map_shape
    inside = (column >= 0) & (column < nx) & (line >= 0) & (line < ny)
    cell = (line * nx + column).masked_fill_(~inside, 0)

    group = grid.group_of_class[truth.classes]
    radius = gaussian_radius(boxes[:, 3:5] / grid.cell_m, gaussian_overlap).floor().long().clamp(min=min_radius)
    heatmap = boxes.new_zeros((truth.batch_size, len(grid.group_of_class), ny, nx))
    _draw(heatmap, truth.sample, truth.classes, line, column, radius.masked_fill_(~inside, -1))

    values = [place - corner, boxes[:, 2:3], boxes[:, 3:6].log(), boxes[:, 6:].sin(), boxes[:, 6:].cos()]
    if velocity:
        values.append(truth.velocity)
    columns = torch.cat(values, dim=1)
    place_key = ((truth.sample * len(grid.group_sizes) + group) * (ny * nx) + cell).masked_fill_(~inside, -1)
    learned = inside & _first_of_each(place_key, boxes[:, 3] * boxes[:, 4])
    known = learned[:, None] & ~columns.isnan()
    return CenterTargets(
        heatmaps=heatmap.split(grid.group_sizes, dim=1),
        values=columns.masked_fill_(~known, 0.0),
        known=known,
        learned=learned,
        group=group,
        sample=truth.sample,
        cell=cell,
    )


def gaussian_radius(size: Tensor, overlap: float) -> Tensor:
    """Return how far both corners of an axis-parallel box may stray, so that it still overlaps itself by `overlap`.

    The least of CornerNet's three cases (arXiv:1808.01244, section 3.2): one corner strays inwards and the other
    outwards, both inwards, or both outwards. As in all public code of CenterPoint, roots of a·r² + b·r + c are taken as
    (b + √(b² - 4·a·c)) / 2, without CornerNet's later division by a: published models are trained with these radii.

    Args:
        size: (K, 2) sizes, cells.
        overlap: IoU, 0 to 1.

    Returns:
        (K,) radii, cells.
    """
    total, area = size.sum(dim=1), size.prod(dim=1)
    mixed = (total + (total**2 - 4 * area * (1 - overlap) / (1 + overlap)).clamp(min=0).sqrt()) / 2
    inwards = (2 * total + (4 * total**2 - 16 * (1 - overlap) * area).clamp(min=0).sqrt()) / 2
    step = 2 * overlap * total
    outwards = (-step + (step**2 + 16 * overlap * (1 - overlap) * area).sqrt()) / 2
    return torch.minimum(torch.minimum(mixed, inwards), outwards)


def _draw(heatmap: Tensor, sample: Tensor, channel: Tensor, line: Tensor, column: Tensor, radius: Tensor) -> None:
    """Raise (B, C, ny, nx) maps to Gaussians around K cells, a sixth of their diameter wide; radius -1: to none."""
    if len(radius) == 0:
        return
    reach = min(max(int(radius.max()), 0), max(heatmap.shape[2:]))
    step = torch.arange(-reach, reach + 1, device=radius.device)
    step_y, step_x = step[:, None], step
    radius = radius[:, None, None]
    deviation = (2 * radius + 1).to(heatmap.dtype) / 6
    height = torch.exp(-(step_y**2 + step_x**2) / (2 * deviation**2))
    y, x = line[:, None, None] + step_y, column[:, None, None] + step_x
    ny, nx = heatmap.shape[2:]
    drawn = (step_y.abs() <= radius) & (step_x.abs() <= radius) & (y >= 0) & (y < ny) & (x >= 0) & (x < nx)
    plane = (sample * heatmap.shape[1] + channel)[:, None, None]
    target = ((plane * ny + y) * nx + x).masked_fill_(~drawn, 0)
    heatmap.view(-1).scatter_reduce_(0, target.flatten(), height.masked_fill_(~drawn, 0.0).flatten(), "amax")


def _first_of_each(key: Tensor, size: Tensor) -> Tensor:
    """Return the (K,) bool mask of the first of the largest among those of one (K,) integer key."""
    order = size.argsort(descending=True, stable=True)
    order = order[key[order].argsort(stable=True)]
    key = key[order]
    is_first = torch.ones_like(key, dtype=torch.bool)
    is_first[1:] = key[1:] != key[:-1]
    return torch.zeros_like(is_first).scatter_(0, order, is_first)
