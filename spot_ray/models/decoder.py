"""The occupancy decoder: three transposed convolutions and a linear head over bird's-eye-view features (paper, Fig. 3).

Where the augmentation turned or scaled the points by what no permutation of label cells can follow, the label stays in
its own grid and the features are sampled at the places that its cells have in the network's frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from spot_ray.models.bev import BevMap, conv_norm_relu


class OccupancyDecoder(nn.Module):
    """From BEV features to class logits of every label voxel.

    Args:
        in_channels: Channels of the BEV features.
        channels: Output channels of each transposed convolution.
        strides: Stride of each.
        num_outputs: Classes with empty, N + 1.
        num_z: Label voxels in a column.
        feature_map: Where the cells lie that the transposed convolutions compute, network frame.
        label_map: Where the cells of the label lie, label frame.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[int],
        num_outputs: int,
        num_z: int,
        feature_map: BevMap,
        label_map: BevMap,
    ) -> None:
        super().__init__()
        self._num_outputs = num_outputs
        self._num_z = num_z
        self._feature_map = feature_map
        self._label_map = label_map
        layers = []
        before = in_channels
        for width, stride in zip(channels, strides, strict=True):
            up = nn.ConvTranspose2d(before, width, 3, stride, padding=1, output_padding=stride - 1, bias=False)
            layers.append(conv_norm_relu(up, width))
            before = width
        self.upsample = nn.Sequential(*layers)
        self.head = nn.Conv2d(before, num_outputs * num_z, 1)

    def forward(self, bev: Tensor, network_from_label: Tensor | None = None) -> Tensor:
        """Predict every label voxel.

        Args:
            bev: (B, in_channels, h, w) BEV features, network frame.
            network_from_label: (B, 2, 3) float32 affine `[A | t]`, xy_network = A · xy_label + t in metres, or None:
                the identity. On the CPU it costs no wait for the device.

        Returns:
            (B, num_outputs, num_z, ny, nx) logits on the label's grid.
        """
        features = self.upsample(bev)
        if not (_is_identity(network_from_label) and self._feature_map.same_as(self._label_map)):
            affine = _affine(network_from_label, len(bev))
            grid = sampling_grid(self._feature_map, self._label_map, affine, features.device)
            # Places need float32, and its kernels read neighbouring cells of one channel together.
            features = features.to(torch.float32, memory_format=torch.contiguous_format)
            features = functional.grid_sample(features, grid, mode="bilinear", align_corners=False)
        logits = self.head(features)
        return logits.unflatten(1, (self._num_outputs, self._num_z))


def sampling_grid(
    feature_map: BevMap, label_map: BevMap, network_from_label: Tensor, device: torch.device | None = None
) -> Tensor:
    """Return where each label cell's centre lies on the feature map.

    Args:
        feature_map: Where the features lie, network frame.
        label_map: Where the label cells lie, label frame.
        network_from_label: (B, 2, 3) affine `[A | t]`: xy_network = A · xy_label + t, metres.
        device: Where to compute the grid; None: where the affine is. Only six numbers a sample travel there.

    Returns:
        (B, ny, nx, 2) float32 (x, y): -1 and 1 are the outer edges of the map, as `grid_sample` with
        `align_corners=False` has it.
    """
    # All that is large or cancels is folded, in float64, into one affine from cell numbers to places.
    affine = network_from_label.double()
    label_from_cell = torch.eye(3, dtype=torch.float64, device=affine.device)
    for axis in (0, 1):
        label_from_cell[axis, axis] = label_map.cell_m[axis]
        label_from_cell[axis, 2] = label_map.lower_m[axis] + label_map.cell_m[axis] / 2
    network_from_cell = affine @ label_from_cell
    half_m = [cell * count / 2 for cell, count in zip(feature_map.cell_m, reversed(feature_map.shape), strict=True)]
    center_m = [lower + half for lower, half in zip(feature_map.lower_m, half_m, strict=True)]
    network_from_cell[:, :, 2] -= affine.new_tensor(center_m)
    place_from_cell = network_from_cell / affine.new_tensor(half_m)[:, None]
    columns = place_from_cell.float().to(device, non_blocking=True)[:, None, None]  # (B, 1, 1, 2, 3)
    y, x = (torch.arange(count, dtype=torch.float32, device=columns.device) for count in label_map.shape)
    # Multiplied one by one: a matrix product may be rounded to 10 bits on a GPU.
    return columns[..., 0] * x[:, None] + (columns[..., 1] * y[:, None, None] + columns[..., 2])


def _affine(network_from_label: Tensor | None, batch_size: int) -> Tensor:
    return torch.eye(2, 3).expand(batch_size, 2, 3) if network_from_label is None else network_from_label


def _is_identity(network_from_label: Tensor | None) -> bool:
    if network_from_label is None:
        return True
    identity = torch.eye(2, 3, dtype=network_from_label.dtype, device=network_from_label.device)
    return bool((network_from_label == identity).all())
