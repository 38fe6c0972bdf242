"""Points to voxels on the training device: the mean of each voxel's points, as OpenPCDet's `MeanVFE`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spot_ray.models.sparse import Size3


class Voxels(NamedTuple):
    """The occupied voxels of a batch, in order of (batch, z, y, x).

    Args:
        features: (V, C) float32 mean of the features of each voxel's points.
        indices: (V, 4) int32 (batch, z, y, x).
        num_dropped: Points outside the range.
    """

    features: Tensor
    indices: Tensor
    num_dropped: int


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

    The result is the same on every run: points are sorted by voxel and summed in their order, nothing is hashed.

    Args:
        points: (P, C) float32 features; the first three are x, y, z in metres.
        point_offsets: (B + 1,) int64 on any device; sample b owns `points[point_offsets[b]:point_offsets[b + 1]]`.
        lower_m: (x, y, z) of the range's lower corner, metres.
        voxel_size_m: (x, y, z) edge lengths, metres.
        voxel_shape: Number of voxels (nz, ny, nx).
        max_points: Points that count in a voxel's mean, the first ones in their order, or None: all.

    Returns:
        The voxels, on the device of `points`.
    """
    device = points.device
    nz, ny, nx = voxel_shape
    x, y, z = (
        ((points[:, axis] - low) / size).floor()
        for axis, (low, size) in enumerate(zip(lower_m, voxel_size_m, strict=True))
    )
    inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny) & (z >= 0) & (z < nz)
    kept = inside.nonzero().squeeze(1)
    sample = torch.bucketize(kept, point_offsets.to(device)[1:], right=True)
    cell = ((z.long() * ny + y.long()) * nx + x.long()).index_select(0, kept)

    key, order = torch.sort(sample * (nz * ny * nx) + cell, stable=True)
    voxel, counts = torch.unique_consecutive(key, return_counts=True)
    if max_points is not None:
        first = torch.cumsum(counts, 0) - counts
        rank = torch.arange(len(key), device=device) - torch.repeat_interleave(first, counts)
        order = order[rank < max_points]
        counts = counts.clamp(max=max_points)
    # Summing each voxel apart keeps float32 exact enough; `index_add` would be as fast, but not repeatable on CUDA.
    grouped = points.index_select(0, kept.index_select(0, order))
    features = torch.segment_reduce(grouped, "mean", lengths=counts) if len(grouped) else grouped
    column = (voxel // (nz * ny * nx), voxel // (ny * nx) % nz, voxel // nx % ny, voxel % nx)
    indices = torch.stack(column, dim=1).int()
    return Voxels(features, indices, len(points) - len(kept))
