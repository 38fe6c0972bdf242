"""The dense 2D encoder over the bird's-eye view: OpenPCDet's `BaseBEVBackbone`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spot_ray.models.encoder import BATCH_NORM_EPS, BATCH_NORM_MOMENTUM


@dataclass(frozen=True)
class BevMap:
    """Where the cells of a (..., y, x) map lie, in metres.

    Args:
        lower_m: (x, y) of the lower corner of cell [0, 0].
        cell_m: Edge lengths (x, y) of a cell.
        shape: Number of cells (ny, nx).
    """

    lower_m: tuple[float, float]
    cell_m: tuple[float, float]
    shape: tuple[int, int]

    def finer(self, factor: int) -> BevMap:
        """Return the map of the same area with cells this many times as short along x and y."""
        (cell_x, cell_y), (ny, nx) = self.cell_m, self.shape
        return BevMap(self.lower_m, (cell_x / factor, cell_y / factor), (ny * factor, nx * factor))

    def same_as(self, other: BevMap) -> bool:
        """Tell whether the cells coincide, to a millionth of a metre."""
        mine, others = (*self.lower_m, *self.cell_m), (*other.lower_m, *other.cell_m)
        return self.shape == other.shape and all(abs(a - b) < 1e-6 for a, b in zip(mine, others, strict=True))


class BevEncoder(nn.Module):
    """Blocks of 3 × 3 convolutions one after the other; each block's output is upsampled, and they are concatenated.

    Args:
        in_channels: Channels of the folded 3D features.
        layers: 3 × 3 convolutions a block, after the first one that strides.
        strides: Stride of each block.
        filters: Channels of each block.
        upsample_strides: Factor by which each block's output is upsampled.
        upsample_filters: Channels of each upsampled output.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        layers: Sequence[int],
        strides: Sequence[int],
        filters: Sequence[int],
        upsample_strides: Sequence[int],
        upsample_filters: Sequence[int],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.upsamples = nn.ModuleList()
        before = in_channels
        for num_layers, stride, width, factor, up_width in zip(
            layers, strides, filters, upsample_strides, upsample_filters, strict=True
        ):
            convs = [nn.Conv2d(before, width, 3, stride, padding=1, bias=False)]
            convs += [nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(num_layers)]
            self.blocks.append(nn.Sequential(*(conv_norm_relu(conv, width) for conv in convs)))
            up = nn.ConvTranspose2d(width, up_width, factor, factor, bias=False)
            self.upsamples.append(conv_norm_relu(up, up_width))
            before = width
        self.out_channels = sum(upsample_filters)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, h', w') features of (B, in_channels, h, w) ones."""
        outputs = []
        for block, upsample in zip(self.blocks, self.upsamples, strict=True):
            x = block(x)
            outputs.append(upsample(x))
        return torch.cat(outputs, dim=1)


def conv_norm_relu(conv: nn.Conv2d | nn.ConvTranspose2d, channels: int) -> nn.Sequential:
    """Return the convolution followed by batch normalisation of its `channels` outputs and ReLU."""
    norm = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
    return nn.Sequential(conv, norm, nn.ReLU(inplace=True))
