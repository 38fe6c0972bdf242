"""Sizes of the network. Defaults are the full size of REFERENCE: OpenPCDet's Waymo encoder, the paper's decoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class VoxelConfig:
    """The input voxels.

    Args:
        point_cloud_range_m: x, y, z lower, then x, y, z upper corner, metres, ego frame.
        voxel_size_m: Edge lengths, metres.
        max_points: Points that count in a voxel's mean (the first ones), or None: all.
    """

    point_cloud_range_m: tuple[float, float, float, float, float, float] = (-75.2, -75.2, -2.0, 75.2, 75.2, 4.0)
    voxel_size_m: tuple[float, float, float] = (0.1, 0.1, 0.15)
    max_points: int | None = None


@dataclass(frozen=True)
class EncoderConfig:
    """The sparse 3D encoder: OpenPCDet's `VoxelResBackBone8x`, or `VoxelBackBone8x` without residual blocks.

    Args:
        channels: Channels of the four stages (strides 1, 2, 4, 8).
        out_channels: Channels of the last convolution, which halves the height.
        blocks: Residual blocks a stage; of no meaning to the plain encoder.
        kind: `residual`: every stage has residual blocks. `plain`: the first stage has one convolution, the others two
            after the one that strides; OpenPCDet's has channels (16, 32, 64, 64).
    """

    channels: tuple[int, int, int, int] = (16, 32, 64, 128)
    out_channels: int = 128
    blocks: int = 2
    kind: Literal["residual", "plain"] = "residual"


@dataclass(frozen=True)
class BevConfig:
    """The dense 2D encoder.

    Args:
        layers: 3 × 3 convolutions a block, after the first one that strides.
        strides: Stride of each block.
        filters: Channels of each block.
        upsample_strides: Factor by which each block's output is upsampled.
        upsample_filters: Channels of each upsampled output; they are concatenated.
    """

    layers: tuple[int, ...] = (5, 5)
    strides: tuple[int, ...] = (1, 2)
    filters: tuple[int, ...] = (128, 256)
    upsample_strides: tuple[int, ...] = (1, 2)
    upsample_filters: tuple[int, ...] = (256, 256)


@dataclass(frozen=True)
class DecoderConfig:
    """The occupancy decoder: 2D transposed convolutions with kernel 3, then a linear head.

    Args:
        channels: Output channels of each transposed convolution.
        strides: Stride of each; their product takes the BEV cell to the label's cell.
    """

    channels: tuple[int, ...] = (128, 128, 128)
    strides: tuple[int, ...] = (2, 1, 1)


@dataclass(frozen=True)
class ModelConfig:
    """The whole network."""

    voxel: VoxelConfig = field(default_factory=VoxelConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    bev: BevConfig = field(default_factory=BevConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


@dataclass(frozen=True)
class ComputeConfig:
    """How the network is computed: what it learns stays the same but for rounding, so a resumed run may change it.

    Args:
        sparse: The sparse-convolution back end; `auto`: the quicker one, measured at start-up.
        precision: Of the dense 2D parts, under autocast; weights, batch norm and losses stay in float32. `auto`:
            bfloat16 on a GPU that has it, else float32.
        sparse_precision: Of the sparse convolutions. spconv has no bfloat16; float16 scales the gradients on their way
            through the encoder, since small ones would vanish.
        tf32: Let products of float32 numbers on a GPU round them to 10 bits, as torch's convolutions do anyhow: several
            times as fast.
        channels_last: Lay out dense feature maps channel by channel of a cell; `auto`: on a GPU.
        compile: Compile the dense 2D parts with `torch.compile`.
    """

    sparse: Literal["auto", "spconv", "torch"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    sparse_precision: Literal["float32", "bfloat16", "float16"] = "float32"
    tf32: bool = True
    channels_last: Literal["auto", "on", "off"] = "auto"
    compile: bool = False
