"""The 3D encoder that pre-training is for: `VoxelResBackBone8x` of OpenPCDet, residual and sparse."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from spot_ray.models.sparse import Size3, SparseBackEnd, SparseTensor, conv_output_shape, to_dense

BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.01
STRIDE = 8
"""Voxels along an edge of a BEV cell."""

_DOWN_KERNEL: Size3 = (3, 3, 3)
_DOWN_STRIDE: Size3 = (2, 2, 2)
_DOWN_PADDINGS: tuple[Size3, ...] = ((1, 1, 1), (1, 1, 1), (0, 1, 1))
_OUT_KERNEL: Size3 = (3, 1, 1)
_OUT_STRIDE: Size3 = (2, 1, 1)
_OUT_PADDING: Size3 = (0, 0, 0)


class VoxelResBackBone8x(nn.Module):
    """Residual sparse 3D encoder whose height is folded into channels at the end.

    Args:
        in_channels: Features of a voxel.
        channels: Channels of the four stages, at strides 1, 2, 4 and 8.
        out_channels: Channels of the last convolution, which halves the height.
        num_blocks: Residual blocks a stage.
        voxel_shape: Number of voxels (nz, ny, nx).
        sparse: The library of sparse convolutions.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        out_channels: int,
        num_blocks: int,
        voxel_shape: Size3,
        sparse: SparseBackEnd,
    ) -> None:
        super().__init__()
        self._sparse = sparse
        self.spatial_shape = sparse_shape(voxel_shape)
        self.bev_channels = out_channels * bev_shape(voxel_shape)[0]
        self.conv_input = _ConvNormReLU(
            sparse.submanifold_conv(in_channels, channels[0], 3, rulebook="stage0"), channels[0]
        )
        self.stages = nn.ModuleList([_residual_blocks(sparse, channels[0], num_blocks, rulebook="stage0")])
        for stage, ((before, width), padding) in enumerate(
            zip(itertools.pairwise(channels), _DOWN_PADDINGS, strict=True), start=1
        ):
            down = sparse.strided_conv(before, width, _DOWN_KERNEL, _DOWN_STRIDE, padding)
            blocks = _residual_blocks(sparse, width, num_blocks, rulebook=f"stage{stage}")
            self.stages.append(nn.Sequential(_ConvNormReLU(down, width), *blocks))
        out = sparse.strided_conv(channels[-1], out_channels, _OUT_KERNEL, _OUT_STRIDE, _OUT_PADDING)
        self.conv_out = _ConvNormReLU(out, out_channels)

    def forward(self, features: Tensor, indices: Tensor, batch_size: int) -> Tensor:
        """Encode voxels.

        Args:
            features: (V, in_channels) float32 voxel features, V > 0.
            indices: (V, 4) int32 unique voxel indices (batch, z, y, x).
            batch_size: Number of samples B.

        Returns:
            (B, bev_channels, ny / 8, nx / 8) float32 BEV features; a channel is (out channel, height), height fastest.
        """
        return self.fold(self.stage_outputs(features, indices, batch_size)[-1])

    def stage_outputs(self, features: Tensor, indices: Tensor, batch_size: int) -> list[SparseTensor]:
        """Return the sparse features of the four stages, at strides 1, 2, 4 and 8; arguments as of :meth:`forward`."""
        # spconv has no bfloat16 kernels, and its half precision is a choice of its own.
        with torch.autocast(features.device.type, enabled=False):
            x = self.conv_input(self._sparse.tensor(features.float(), indices, self.spatial_shape, batch_size))
            outputs = []
            for stage in self.stages:
                x = stage(x)
                outputs.append(x)
            return outputs

    def fold(self, last: SparseTensor) -> Tensor:
        """Return the BEV features, as :meth:`forward` does, of the last stage's output."""
        with torch.autocast(last.features.device.type, enabled=False):
            return to_dense(self.conv_out(last)).flatten(1, 2)


def sparse_shape(voxel_shape: Size3) -> Size3:
    """Return the (z, y, x) grid of the encoder: OpenPCDet's has one empty layer above, so that 40 cells leave 2."""
    return voxel_shape[0] + 1, voxel_shape[1], voxel_shape[2]


def bev_shape(voxel_shape: Size3) -> Size3:
    """Return the (z, y, x) shape after the last convolution; z below 1 means that the grid is too low."""
    shape = sparse_shape(voxel_shape)
    for kernel, stride, padding in _strided_convs():
        shape = conv_output_shape(shape, kernel, stride, padding)
    return shape


def sees_whole_height(voxel_shape: Size3) -> bool:
    """Tell whether the topmost voxel reaches the output: two convolutions have no padding in z and may end below it."""
    shape, top = sparse_shape(voxel_shape), voxel_shape[0] - 1
    for kernel, stride, padding in _strided_convs():
        shape = conv_output_shape(shape, kernel, stride, padding)
        if top > (shape[0] - 1) * stride[0] - padding[0] + kernel[0] - 1:
            return False
        top = min(shape[0] - 1, (top + padding[0]) // stride[0])
    return shape[0] > 0


def _strided_convs() -> list[tuple[Size3, Size3, Size3]]:
    """Return kernel, stride and padding of the convolutions that stride, in their order."""
    return [(_DOWN_KERNEL, _DOWN_STRIDE, padding) for padding in _DOWN_PADDINGS] + [
        (_OUT_KERNEL, _OUT_STRIDE, _OUT_PADDING)
    ]


def _residual_blocks(sparse: SparseBackEnd, channels: int, count: int, *, rulebook: str) -> nn.Sequential:
    return nn.Sequential(*(_ResidualBlock(sparse, channels, rulebook=rulebook) for _ in range(count)))


def _batch_norm(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)


class _ConvNormReLU(nn.Module):
    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv = conv
        self.norm = _batch_norm(channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self.conv(x)
        return x.replace_feature(functional.relu(self.norm(x.features), inplace=True))


class _ResidualBlock(nn.Module):
    def __init__(self, sparse: SparseBackEnd, channels: int, *, rulebook: str) -> None:
        super().__init__()
        self.conv1 = sparse.submanifold_conv(channels, channels, 3, rulebook=rulebook)
        self.norm1 = _batch_norm(channels)
        self.conv2 = sparse.submanifold_conv(channels, channels, 3, rulebook=rulebook)
        self.norm2 = _batch_norm(channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        out: SparseTensor = self.conv1(x)
        out = out.replace_feature(functional.relu(self.norm1(out.features), inplace=True))
        out = self.conv2(out)
        return out.replace_feature(functional.relu(self.norm2(out.features) + x.features, inplace=True))
