"""The peer of `train_step.py`: the same network, trained the way that public LiDAR codebases train theirs.

What their loaders do is done here on the CPU, without kernels of its own: each sweep's points are put into voxels of at
most five points, padded with zeros (OpenPCDet's `transform_points_to_voxels`), and the labels are spread out into a
dense tensor. The step copies both, takes the mean of a voxel's points (`MeanVFE`), and computes the network in float32,
the cross-entropy over all voxels of the grid, and the Lovász-Softmax of the whole batch by one `torch.sort` for each
class that it holds, over the observed voxels, as its authors' code does (Berman et al., CVPR 2018). Gradients are
clipped, AdamW takes the step, and the loss is read for the log, which waits for the device, in every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.spot import OccupancyModel
from spot_ray.operators.batch import Batch
from spot_ray.train.config import PretrainConfig
from spot_ray.train.labels import tensor_of, to_labels

MAX_POINTS = 5
IGNORED = 255


@dataclass(frozen=True)
class Loaded:
    """What a loader hands over, on the CPU.

    Args:
        voxels: (V, MAX_POINTS, C) float32 points of each voxel, padded with zeros.
        num_points: (V,) int64 points of each.
        indices: (V, 4) int32 (batch, z, y, x).
        labels: (B, nz, ny, nx) uint8, 255 where unobserved.
        affine: (B, 2, 3) float32 from label to network.
    """

    voxels: Tensor
    num_points: Tensor
    indices: Tensor
    labels: Tensor
    affine: Tensor


def load(batch: Batch, config: PretrainConfig, grid: VoxelGrid, voxel_shape: tuple[int, int, int]) -> Loaded:
    """Do a loader's part, sweep by sweep."""
    samples = []
    for b in range(len(batch)):
        points = tensor_of(batch.points[batch.point_offsets[b] : batch.point_offsets[b + 1]], "cpu")
        voxels, num_points, indices = to_hard_voxels(points, config, voxel_shape)
        samples.append((voxels, num_points, functional.pad(indices, (1, 0), value=b)))
    voxels, num_points, indices = (torch.cat(parts) for parts in zip(*samples, strict=True))
    labels = to_labels(batch, grid, "cpu", point_cloud_range_m=config.model.voxel.point_cloud_range_m)
    return Loaded(voxels, num_points, indices, labels, tensor_of(batch.network_from_label, "cpu"))


def to_hard_voxels(
    points: Tensor, config: PretrainConfig, voxel_shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (V, MAX_POINTS, C) points, (V,) their number and (V, 3) int32 (z, y, x) of the voxels of (P, C) points."""
    lower = torch.tensor(config.model.voxel.point_cloud_range_m[:3])
    cell = ((points[:, :3] - lower) / torch.tensor(config.model.voxel.voxel_size_m)).floor().int().flip(1)
    inside = ((cell >= 0) & (cell < torch.tensor(voxel_shape))).all(dim=1)
    points, cell = points[inside], cell[inside]
    indices, voxel, counts = torch.unique(cell, dim=0, return_inverse=True, return_counts=True)
    order = voxel.argsort(stable=True)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[voxel[order]]
    kept = rank < MAX_POINTS
    voxels = points.new_zeros(len(indices), MAX_POINTS, points.shape[1])
    voxels[voxel[order][kept], rank[kept]] = points[order[kept]]
    return voxels, counts.clamp(max=MAX_POINTS), indices


class Peer:
    """Takes steps the public way.

    Args:
        model: The network, on the device, as built.
        config: The run.
        class_weights: (N + 1,) float32 weights of the cross-entropy.
        device: The device.
    """

    def __init__(self, model: OccupancyModel, config: PretrainConfig, class_weights: Tensor, device: str) -> None:
        self._model = model
        self._config = config
        self._class_weights = class_weights
        self._device = device
        self._optimiser = torch.optim.AdamW(
            model.parameters(), lr=config.optimiser.lr / config.optimiser.div_factor, weight_decay=0.01
        )

    def train_step(self, loaded: Loaded) -> float:
        """Take a step and return its loss."""
        voxels, num_points, indices, labels = (
            x.to(self._device) for x in (loaded.voxels, loaded.num_points, loaded.indices, loaded.labels.long())
        )
        self._optimiser.zero_grad()
        features = voxels.sum(dim=1) / num_points[:, None]
        folded = self._model.encoder(features, indices, len(labels))
        logits = self._model.decoder(self._model.bev(folded), loaded.affine)
        loss = functional.cross_entropy(logits, labels, self._class_weights, ignore_index=IGNORED)
        loss = loss + self._config.loss.lovasz_weight * lovasz_by_class(logits.softmax(dim=1), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optimiser.clip_norm)
        self._optimiser.step()
        return loss.item()


def lovasz_by_class(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the Lovász-Softmax of (B, N + 1, ...) probabilities and (B, ...) labels; class 0 is left out."""
    rows = probabilities.movedim(1, -1).flatten(0, -2)
    flat = labels.flatten()
    observed = flat != IGNORED
    rows, flat = rows[observed], flat[observed]
    losses = []
    for number in range(1, rows.shape[1]):
        truth = (flat == number).float()
        if not truth.any():
            continue
        errors, order = torch.sort((truth - rows[:, number]).abs(), descending=True)
        truth = truth[order]
        jaccard = 1 - (truth.sum() - truth.cumsum(0)) / (truth.sum() + (1 - truth).cumsum(0))
        losses.append(errors @ torch.cat((jaccard[:1], jaccard[1:] - jaccard[:-1])))
    return torch.stack(losses).mean() if losses else probabilities.sum() * 0
