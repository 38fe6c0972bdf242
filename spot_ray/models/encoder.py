"""The 3D encoder that pre-training is for: OpenPCDet's sparse backbones, with and without residual blocks.

OpenPCDet's names of what is here: `VoxelResBackBone8x` is `kind="residual"`, `VoxelBackBone8x` is `kind="plain"`. The
names of the modules within, which state dicts hold, are our own:

=====================  ==============================  ==============================
here                   `VoxelResBackBone8x`            `VoxelBackBone8x`
=====================  ==============================  ==============================
`conv_input`           `conv_input`                    `conv_input`
`stages.0.K`           `conv1.K` (a residual block)    `conv1.K` (one convolution)
`stages.S.0`           `conv{S+1}.0` (it strides)      `conv{S+1}.0` (it strides)
`stages.S.K`           `conv{S+1}.K` (residual block)  `conv{S+1}.K` (K = 1, 2)
`conv_out`             `conv_out`                      `conv_out`
=====================  ==============================  ==============================
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from spot_ray.models.sparse import Size3, SparseBackEnd, SparseTensor, conv_output_shape

BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.01
STRIDE = 8
"""Voxels along an edge of a BEV cell."""

FLOAT16_GRADIENT_SCALE = 2.0**14
"""Factor of gradients on their way through an encoder in float16; a power of two, so that it costs no rounding.

Training `spot-tiny`, half of the gradients at the BEV features are below 3e-6 and the greatest is 1e-4, where float16
has full precision from 6e-5 to 65504 and nothing below 6e-8.
"""

_DOWN_KERNEL: Size3 = (3, 3, 3)
_DOWN_STRIDE: Size3 = (2, 2, 2)
_DOWN_PADDINGS: tuple[Size3, ...] = ((1, 1, 1), (1, 1, 1), (0, 1, 1))
_OUT_KERNEL: Size3 = (3, 1, 1)
_OUT_STRIDE: Size3 = (2, 1, 1)
_OUT_PADDING: Size3 = (0, 0, 0)


class SparseEncoder(nn.Module):
    """Sparse 3D encoder of four stages whose height is folded into channels at the end.

    Args:
        in_channels: Features of a voxel.
        channels: Channels of the four stages, at strides 1, 2, 4 and 8.
        out_channels: Channels of the last convolution, which halves the height.
        kind: `residual`: `num_blocks` residual blocks a stage. `plain`: one submanifold convolution in the first stage,
            two in the others.
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
        kind: Literal["residual", "plain"] = "residual",
        num_blocks: int,
        voxel_shape: Size3,
        sparse: SparseBackEnd,
    ) -> None:
        super().__init__()
        self.sparse = sparse
        self.spatial_shape = sparse_shape(voxel_shape)
        self.bev_channels = out_channels * bev_shape(voxel_shape)[0]
        self.bev_format = torch.contiguous_format
        """Memory format of the BEV features: that of the 2D encoder's weights."""
        self._dtype = torch.float32
        self._gradient_scale = 1.0
        self._unscaled = 0
        self.conv_input = _ConvNormReLU(
            sparse.submanifold_conv(in_channels, channels[0], 3, rulebook="stage0"), channels[0]
        )

        def units(stage: int) -> list[nn.Module]:
            width, rulebook = channels[stage], f"stage{stage}"
            if kind == "residual":
                return [_ResidualBlock(sparse, width, rulebook=rulebook) for _ in range(num_blocks)]
            convs = [sparse.submanifold_conv(width, width, 3, rulebook=rulebook) for _ in range(2 if stage else 1)]
            return [_ConvNormReLU(conv, width) for conv in convs]

        self.stages = nn.ModuleList([nn.Sequential(*units(0))])
        for stage, ((before, width), padding) in enumerate(
            zip(itertools.pairwise(channels), _DOWN_PADDINGS, strict=True), start=1
        ):
            down = sparse.strided_conv(before, width, _DOWN_KERNEL, _DOWN_STRIDE, padding)
            self.stages.append(nn.Sequential(_ConvNormReLU(down, width), *units(stage)))
        out = sparse.strided_conv(channels[-1], out_channels, _OUT_KERNEL, _OUT_STRIDE, _OUT_PADDING)
        self.conv_out = _ConvNormReLU(out, out_channels)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Compute the convolutions of training in a precision; to be called once, before the first pass.

        Weights, batch norm and the BEV features stay float32, and evaluation computes in float32 throughout: so what a
        checkpoint scores does not depend on how it was trained. float16 keeps its range, since a batch norm follows
        every convolution (activations stay below 40), and the first one's sums of 27 voxels in metres (75 at most)
        times small weights stay far below 65504; gradients, which would vanish, are scaled. One that overflows all the
        same leaves the encoder's gradients not finite, for the trainer to notice.

        Args:
            dtype: float32, or what the back end has besides.
        """
        self._dtype = dtype
        if dtype != torch.float16:
            return
        self._gradient_scale = FLOAT16_GRADIENT_SCALE
        self._unscaled = id(self.conv_input.norm.weight)
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.register_hook(_unscale)

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
        dtype = self._dtype if self.training else torch.float32
        # Layers cast by themselves: spconv has no bfloat16 kernels to be sent to, and batch norm is to stay float32.
        with torch.autocast(features.device.type, enabled=False):
            x = self.conv_input(self.sparse.tensor(features.to(dtype), indices, self.spatial_shape, batch_size))
            outputs = []
            for stage in self.stages:
                x = stage(x)
                outputs.append(x)
            return outputs

    def fold(self, last: SparseTensor) -> Tensor:
        """Return the BEV features, as :meth:`forward` does, of the last stage's output."""
        with torch.autocast(last.features.device.type, enabled=False):
            x = self.conv_out(last)
            bev = to_bev(x.replace_feature(x.features.float()), self.bev_format)
            if self._gradient_scale == 1.0:
                return bev
            if torch.is_grad_enabled() and id(self.conv_input.norm.weight) != self._unscaled:
                # What shards or copies a network makes new parameters, which do not divide the factor out again.
                raise RuntimeError("the encoder's parameters were replaced after it was told to compute in float16")
            scaled: Tensor = _ScaleGradient.apply(bev, self._gradient_scale)
            return scaled


def to_bev(x: SparseTensor, memory_format: torch.memory_format) -> Tensor:
    """Return (B, C · z, y, x) features, 0 where no site is active; a channel is (C, z), z fastest.

    The sites are written where they belong in that format: the large tensor is not moved afterwards.

    Args:
        x: Features on a grid of few layers.
        memory_format: Contiguous or channels last.
    """
    depth, height, width = x.spatial_shape
    size, channels = x.batch_size, x.features.shape[1]
    b, z, row, column = x.indices.long().unbind(1)
    if memory_format == torch.channels_last:
        cells = size * height * width
        last: Tensor = _Scatter.apply(x.features, (b * height + row) * width + column, z, cells, depth)
        return last.view(size, height, width, channels * depth).permute(0, 3, 1, 2)
    cells = depth * height * width
    first: Tensor = _Scatter.apply(x.features, b, (z * height + row) * width + column, size, cells)
    return first.view(size, channels * depth, height, width)


def sparse_shape(voxel_shape: Size3) -> Size3:
    """Return the (z, y, x) grid of the encoder: OpenPCDet's has one empty layer above, so that 40 cells leave 2."""
    return voxel_shape[0] + 1, voxel_shape[1], voxel_shape[2]


def bev_shape(voxel_shape: Size3) -> Size3:
    """Return the (z, y, x) shape after the last convolution; z below 1 means that the grid is too low."""
    shape = sparse_shape(voxel_shape)
    for kernel, stride, padding in strided_convs():
        shape = conv_output_shape(shape, kernel, stride, padding)
    return shape


def sees_whole_height(voxel_shape: Size3) -> bool:
    """Tell whether the topmost voxel reaches the output: two convolutions have no padding in z and may end below it."""
    shape, top = sparse_shape(voxel_shape), voxel_shape[0] - 1
    for kernel, stride, padding in strided_convs():
        shape = conv_output_shape(shape, kernel, stride, padding)
        if top > (shape[0] - 1) * stride[0] - padding[0] + kernel[0] - 1:
            return False
        top = min(shape[0] - 1, (top + padding[0]) // stride[0])
    return shape[0] > 0


def strided_convs() -> list[tuple[Size3, Size3, Size3]]:
    """Return kernel, stride and padding of the convolutions that stride, in their order."""
    return [(_DOWN_KERNEL, _DOWN_STRIDE, padding) for padding in _DOWN_PADDINGS] + [
        (_OUT_KERNEL, _OUT_STRIDE, _OUT_PADDING)
    ]


def _batch_norm(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)


def _unscale(gradient: Tensor) -> Tensor:
    return gradient / FLOAT16_GRADIENT_SCALE


class _ConvNormReLU(nn.Module):
    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv = conv
        self.norm = _batch_norm(channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self.conv(x)
        out = functional.relu(self.norm(x.features.float()), inplace=True)
        return x.replace_feature(out.to(x.features.dtype))


class _ResidualBlock(nn.Module):
    def __init__(self, sparse: SparseBackEnd, channels: int, *, rulebook: str) -> None:
        super().__init__()
        self.conv1 = sparse.submanifold_conv(channels, channels, 3, rulebook=rulebook)
        self.norm1 = _batch_norm(channels)
        self.conv2 = sparse.submanifold_conv(channels, channels, 3, rulebook=rulebook)
        self.norm2 = _batch_norm(channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        dtype = x.features.dtype
        out: SparseTensor = self.conv1(x)
        out = out.replace_feature(functional.relu(self.norm1(out.features.float()), inplace=True).to(dtype))
        out = self.conv2(out)
        total = self.norm2(out.features.float()) + x.features
        return out.replace_feature(functional.relu(total, inplace=True).to(dtype))


class _Scatter(torch.autograd.Function):
    """Write (V, C) rows to (row, column) of a (rows, C, columns) tensor; backward only reads them there.

    Autograd's own backward of an indexed write copies the whole gradient first.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, row: Tensor, column: Tensor, rows: int, columns: int) -> Tensor:
        ctx.save_for_backward(row, column)
        out = features.new_zeros(rows, features.shape[1], columns)
        out.transpose(1, 2)[row, column] = features
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        row, column = ctx.saved_tensors
        return gradient.transpose(1, 2)[row, column], None, None, None, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None
