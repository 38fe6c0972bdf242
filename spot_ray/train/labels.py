"""Occupancy labels on the training device: from a batch's sparse voxels and bits to a dense tensor in network order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.losses.config import LossConfig
from spot_ray.operators.batch import Batch
from spot_ray.schema.taxonomy import EMPTY, IGNORE, Taxonomy


def to_labels(
    batch: Batch,
    grid: VoxelGrid,
    device: torch.device | str,
    *,
    point_cloud_range_m: tuple[float, float, float, float, float, float],
    mask_unobserved: bool = True,
) -> Tensor:
    """Return the dense labels of a batch.

    Args:
        batch: B samples.
        grid: The label grid, (nx, ny, nz) voxels.
        device: Where to build them; only the sparse voxels and the bits travel there.
        point_cloud_range_m: What the model sees, x, y, z lower, then upper corner, metres, network frame. A column of
            voxels whose centre the augmentation takes out of it in x or y is not to be predicted.
        mask_unobserved: Off: a voxel that nothing observed counts as empty, or as the class it is labelled with.

    Returns:
        (B, nz, ny, nx) uint8: 0 empty, 1 to N the class, 255 unobserved, without a class or out of the model's range.
    """
    size = len(batch)
    observed = tensor_of(batch.observed, device)
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    seen = ((observed[:, :, None] >> shifts) & 1).reshape(size, -1)[:, : grid.num_voxels].bool()
    labels = torch.full((size, grid.num_voxels), EMPTY, dtype=torch.uint8, device=device)

    owner = np.repeat(np.arange(size, dtype=np.int64), np.diff(batch.occupancy_offsets))
    position = tensor_of(owner * grid.num_voxels + batch.occupancy_index, device)
    labels.view(-1)[position] = tensor_of(batch.occupancy_class, device)
    if mask_unobserved:
        labels.masked_fill_(~seen, IGNORE)

    outside = _outside(batch, grid, device, point_cloud_range_m)
    columns = labels.view(size, *grid.shape).masked_fill_(outside[..., None], IGNORE)
    return columns.transpose(1, 3).contiguous()


def class_weights(taxonomy: Taxonomy, config: LossConfig, device: torch.device | str) -> Tensor:
    """Return the (N + 1,) float32 cross-entropy weights of empty and the classes 1 to N (paper, section 3.3)."""
    weights = np.where(taxonomy.mask("foreground"), config.foreground_weight, config.background_weight)
    weights[EMPTY] = config.empty_weight
    return torch.tensor(weights, dtype=torch.float32, device=device)


def tensor_of(array: npt.NDArray[np.generic], device: torch.device | str) -> Tensor:
    """Return an array as a tensor on `device`; a read-only array (Ray hands out such) is copied first."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)


def _outside(
    batch: Batch, grid: VoxelGrid, device: torch.device | str, range_m: tuple[float, float, float, float, float, float]
) -> Tensor:
    """Return (B, nx, ny) bool: which columns' centres lie outside the model's range in x or y, network frame."""
    x, y = (
        torch.arange(grid.shape[axis], device=device, dtype=torch.float32) * grid.voxel_size_m[axis]
        + (grid.lower_m[axis] + grid.voxel_size_m[axis] / 2)
        for axis in (0, 1)
    )
    affine = tensor_of(batch.network_from_label, device)[..., None, None]
    moved = affine[:, :, 0] * x[:, None] + affine[:, :, 1] * y[None, :] + affine[:, :, 2]
    lower, upper = (torch.tensor(range_m[k : k + 2], device=device).view(2, 1, 1) for k in (0, 3))
    return ((moved < lower) | (moved >= upper)).any(dim=1)
