"""Points to voxels on the training device: the mean of each voxel's points, as OpenPCDet's `MeanVFE`."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spot_ray.models.sparse import Size3


class Voxels(NamedTuple):
    """The occupied voxels of a batch, in order of (batch, z, y, x).

    Args:
        features: (V, C) float32 mean of the features of each voxel's points.
        indices: (V, 4) int32 (batch, z, y, x).
        num_dropped: () int64 points outside the range or with a coordinate that is not finite, on the device: to read
            it waits for it.
    """

    features: Tensor
    indices: Tensor
    num_dropped: Tensor


def voxelise(
    points: Tensor,
    point_offsets: Tensor,
    *,
    lower_m: tuple[float, float, float],
    voxel_size_m: tuple[float, float, float],
    voxel_shape: Size3,
    max_points: int | None = None,
) -> Voxels:
    """Average the points of each voxel.

    The result is the same on every run: points are sorted by voxel and summed in their order; nothing is hashed, and no
    sum depends on which thread came first. On a GPU it waits for the device once, to learn how many voxels there are.

    A point belongs to the cell floor((coordinate - lower) / size), all in float32; what counts is whether this cell
    lies in `voxel_shape`, so a point that rounding puts on the upper border is dropped. So is a point with a coordinate
    that is not finite. Other features are not looked at: one that is not finite makes its voxel's mean so.

    Args:
        points: (P, C) float32 features; the first three are x, y, z in metres.
        point_offsets: (B + 1,) int64 from 0 to P, on any device, but elsewhere than `points` costs another wait; sample
            b owns `points[point_offsets[b]:point_offsets[b + 1]]`.
        lower_m: (x, y, z) of the range's lower corner, metres.
        voxel_size_m: (x, y, z) edge lengths, metres.
        voxel_shape: Number of voxels (nz, ny, nx).
        max_points: Points that count in a voxel's mean, the first ones in their order, or None: all.

    Returns:
        The voxels, on the device of `points`.
    """
    num_points = len(points)
    nz, ny, nx = voxel_shape
    outside = (len(point_offsets) - 1) * nz * ny * nx
    # One key orders by (sample, z, y, x), and what is dropped last. 32 bits sort with half the traffic of 64.
    key_type = torch.int32 if outside <= torch.iinfo(torch.int32).max else torch.int64
    x, y, z, is_inside = _cells(points, _frame(lower_m, voxel_size_m, voxel_shape, points.device))
    sample = torch.repeat_interleave(point_offsets.to(points.device).diff().int(), output_size=num_points)
    key = (sample.to(key_type) * nz).add_(z).mul_(ny).add_(y).mul_(nx).add_(x).masked_fill_(~is_inside, outside)
    key, order = torch.sort(key, stable=True)

    # A run of equal keys is a voxel. The key added at the end opens a run even if nothing was dropped, so that the last
    # start is where the kept points end: all that follows takes its sizes from this one answer of the device.
    key = torch.cat((key, key.new_full((1,), outside)))
    is_first = torch.cat((key.new_ones(1, dtype=torch.bool), key[1:] != key[:-1]))
    starts = _positions(is_first)
    features = _means(points.index_select(0, order), starts, max_points)
    # The cell is that of a voxel's first point: no division of the key.
    first = order.index_select(0, starts[:-1])
    indices = torch.stack((sample, z, y, x), dim=1).index_select(0, first)
    return Voxels(features, indices, num_points - starts[-1])


class _Frame(NamedTuple):
    """A grid's constants on a device, each (3, 1) float32 of x, y, z.

    Args:
        lower_m: Lower corner, metres.
        voxel_size_m: Edge lengths, metres.
        last: Greatest cell.
    """

    lower_m: Tensor
    voxel_size_m: Tensor
    last: Tensor


@functools.lru_cache(maxsize=16)
def _frame(
    lower_m: tuple[float, float, float],
    voxel_size_m: tuple[float, float, float],
    voxel_shape: Size3,
    device: torch.device,
) -> _Frame:
    """Copy a grid's constants to a device; kept, since each such copy waits for it."""
    last = [count - 1 for count in reversed(voxel_shape)]
    # What is first made in inference mode would else not serve in training.
    with torch.inference_mode(mode=False):
        columns = [torch.tensor(v, dtype=torch.float32, device=device)[:, None] for v in (lower_m, voxel_size_m, last)]
    return _Frame(*columns)


def _cells(points: Tensor, frame: _Frame) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each point's (P,) int32 x, y and z cell, of no meaning outside of the grid, and (P,) bool: inside."""
    # Divided by a tensor: for a Python number CUDA multiplies by the inverse, which rounds other than the CPU does.
    cell = points[:, :3].T.contiguous().sub(frame.lower_m).div_(frame.voxel_size_m).floor_()
    nearest = torch.minimum(cell.clamp(min=0.0), frame.last)
    in_x, in_y, in_z = cell == nearest  # a NaN equals nothing
    x, y, z = nearest.int()
    return x, y, z, in_x & in_y & in_z


def _positions(mask: Tensor) -> Tensor:
    """Return the (K,) int64 positions of the true values of a mask, in order; on a CPU NumPy is far quicker."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


def _means(points: Tensor, starts: Tensor, max_points: int | None) -> Tensor:
    """Return the (V, C) means of the points from each of (V + 1,) starts to the next, or of the first ones of them.

    `segment_reduce` adds up a segment's column in one thread, in order, and takes offsets without asking the device
    whether they fit; points after the last offset it does not touch.
    """
    if len(points) == 0:
        return points
    if max_points is None:
        return torch.segment_reduce(points, "mean", offsets=starts)
    # Every second segment takes a voxel's points in excess and is thrown away: nothing to select, nothing to wait for.
    ends = torch.minimum(starts[:-1] + max_points, starts[1:])
    offsets = torch.cat((torch.stack((starts[:-1], ends), dim=1).flatten(), starts[-1:]))
    return torch.segment_reduce(points, "mean", offsets=offsets)[::2].contiguous()
