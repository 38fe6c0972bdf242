"""What the encoders know at single points: the features of the sites and cells that hold them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from spot_ray.models.backbone import BevNetwork
from spot_ray.models.config import VoxelConfig
from spot_ray.models.sparse import SparseTensor


def encode_points(
    model: BevNetwork, points: Tensor, point_offsets: Tensor, chosen: Tensor, *, voxel: VoxelConfig
) -> Tensor:
    """Return the features of some points of a batch.

    A point has, one after the other, the features of the sites that hold it at each stage of the 3D encoder (at stride
    s the site of its voxel's index divided by s and rounded down), and those of the 2D encoder at its place, bilinearly
    interpolated between the centres of cells.

    Args:
        model: The network, in the mode in which it shall encode.
        points: (P, C) float32 features of all points, x, y, z in metres first; on the network's device.
        point_offsets: (B + 1,) int64; sample b owns `points[point_offsets[b]:point_offsets[b + 1]]`.
        chosen: (K,) int64 ascending indices of points that lie in the network's range.
        voxel: The network's input voxels.

    Returns:
        (K, D) float32: D is the sum of the stages' channels and the 2D encoder's.

    Raises:
        DataError: If no point of the batch lies in the range.
    """
    stages, bev = model.encode(points, point_offsets)
    sample = torch.bucketize(chosen, point_offsets[1:], right=True)
    xyz = points.index_select(0, chosen)[:, :3]
    index, _ = locate(xyz, voxel)
    parts = [_at_sites(stage, sample, index >> depth) for depth, stage in enumerate(stages)]
    return torch.cat([*parts, _in_cells(bev, sample, xyz, voxel)], dim=1)


def locate(xyz: Tensor, voxel: VoxelConfig) -> tuple[Tensor, Tensor]:
    """Return where points lie, by the arithmetic that voxels are made by: the voxel of every point inside exists.

    Args:
        xyz: (K, 3) float32, metres, network frame.
        voxel: The input voxels.

    Returns:
        (K, 3) int64 voxel indices (z, y, x), and (K,) bool whether they lie in the range.
    """
    lower, upper = (xyz.new_tensor(voxel.point_cloud_range_m[first : first + 3]) for first in (0, 3))
    size = xyz.new_tensor(voxel.voxel_size_m)
    index = ((xyz - lower) / size).floor()
    inside = ((index >= 0) & (index < ((upper - lower) / size).round())).all(dim=1)
    return index.flip(1).long(), inside


def _at_sites(x: SparseTensor, sample: Tensor, index: Tensor) -> Tensor:
    """Return the (K, C) features of the sites of (K, 3) indices (z, y, x); 0 where none is active."""
    shape = torch.tensor(x.spatial_shape, device=index.device)
    # Strides without padding leave out the topmost layer; the site below has seen it.
    wanted = _linear(sample, torch.minimum(index, shape - 1), shape)
    active, order = _linear(x.indices[:, 0].long(), x.indices[:, 1:].long(), shape).sort()
    place = torch.searchsorted(active, wanted).clamp_(max=len(active) - 1)
    features = x.features.index_select(0, order.index_select(0, place)).float()
    return features.masked_fill((active.index_select(0, place) != wanted)[:, None], 0)


def _linear(sample: Tensor, index: Tensor, shape: Tensor) -> Tensor:
    return ((sample * shape[0] + index[:, 0]) * shape[1] + index[:, 1]) * shape[2] + index[:, 2]


def _in_cells(bev: Tensor, sample: Tensor, xyz: Tensor, voxel: VoxelConfig) -> Tensor:
    """Return the (K, C) features of a (B, C, y, x) map over the network's range."""
    lower, upper = (xyz.new_tensor(voxel.point_cloud_range_m[first : first + 2]) for first in (0, 3))
    place = (xyz[:, :2] - lower) / (upper - lower) * 2 - 1  # -1 to 1 from edge to edge
    parts = []
    for number, one in enumerate(bev.float().split(1)):
        own = place[sample == number]
        found = functional.grid_sample(one, own[None, None], padding_mode="border", align_corners=False)
        parts.append(found[0, :, 0].T)
    return torch.cat(parts)
