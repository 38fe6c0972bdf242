"""Our state dict under the names of OpenPCDet: the `backbone_3d` and `backbone_2d` of its detectors.

Its weights of sparse convolutions are (out, kz, ky, kx, in) as ours. A block of its 2D backbone begins with a layer
that pads, so that indices are one higher than the number of layers with weights tells.

The channels and blocks of its 3D backbones stand in its code; ours must be the same. Those of its 2D backbone come from
its config: any of ours fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spot_ray.errors import CheckpointError
from spot_ray.models.config import EncoderConfig, ModelConfig
from spot_ray.models.state_dict.rename import (
    Names,
    bev_names,
    conv_norm,
    plain_convs,
    rename,
    residual_block,
    residual_blocks,
    with_convs_for_no_stride,
)

CLASS_OF_KIND = {"residual": "VoxelResBackBone8x", "plain": "VoxelBackBone8x"}
"""Its class of each kind of encoder."""

_CHANNELS_OF_KIND = {"residual": (16, 32, 64, 128), "plain": (16, 32, 64, 64)}
_OUT_CHANNELS = 128
_NUM_BLOCKS = 2
_DEBLOCKS = "backbone_2d.deblocks"


@dataclass(frozen=True)
class OpenPCDetLayout:
    """In what the state dicts of its detectors differ.

    Args:
        like: A config of its own that is so.
        residual_bias: Whether the convolutions of residual blocks have a bias: yes, unless the config of the 3D
            backbone says `USE_BIAS: False`.
        conv_for_no_stride: Whether the 2D backbone's config says `USE_CONV_FOR_NO_STRIDE: True`.
    """

    like: str
    residual_bias: bool = True
    conv_for_no_stride: bool = False


OPENPCDET_LAYOUTS = {
    "centerpoint": OpenPCDetLayout("tools/cfgs/waymo_models/centerpoint.yaml"),
    "second": OpenPCDetLayout("tools/cfgs/waymo_models/second.yaml"),
    "transfusion": OpenPCDetLayout(
        "tools/cfgs/nuscenes_models/transfusion_lidar.yaml", residual_bias=False, conv_for_no_stride=True
    ),
}
"""By a detector's name. PV-RCNN and Voxel R-CNN are as the first two, which differ in the head alone; the LiDAR branch
of BEVFusion is as TransFusion."""


def to_openpcdet_names(
    weights: Mapping[str, Tensor], config: ModelConfig, layout: OpenPCDetLayout
) -> dict[str, Tensor]:
    """Return encoder and BEV encoder as a part of the state dict of one of its detectors.

    Args:
        weights: State dict of the :class:`~spot_ray.models.spot.OccupancyModel` of `config`.
        config: Its sizes.
        layout: The detector's variant.

    Returns:
        Tensors by its names. Most are those of `weights`; biases that ours lack are 0.

    Raises:
        CheckpointError: If the encoder's sizes are not those that its code fixes.
    """
    _check_sizes(config.encoder)
    renamed = rename(weights, _names(config))
    if layout.conv_for_no_stride:
        renamed = with_convs_for_no_stride(renamed, config.bev, _DEBLOCKS)
    if layout.residual_bias and config.encoder.kind == "residual":
        for stage, block, _ in residual_blocks(config.encoder):
            for i in (1, 2):
                conv = f"{_residual_name(stage, block)}.conv{i}"
                weight = renamed[f"{conv}.weight"]
                renamed[f"{conv}.bias"] = torch.zeros(len(weight), dtype=weight.dtype)
    return renamed


def _names(config: ModelConfig) -> Names:
    encoder = config.encoder
    names = conv_norm("encoder.conv_input", "backbone_3d.conv_input")
    if encoder.kind == "residual":
        for stage, block, ours in residual_blocks(encoder):
            names |= residual_block(ours, _residual_name(stage, block))
        for stage in range(1, len(encoder.channels)):
            names |= conv_norm(f"encoder.stages.{stage}.0", f"backbone_3d.conv{stage + 1}.0")
    else:
        for stage, conv, ours in plain_convs():
            names |= conv_norm(ours, f"backbone_3d.conv{stage + 1}.{conv}")
    names |= conv_norm("encoder.conv_out", "backbone_3d.conv_out")
    return names | bev_names(config.bev, "backbone_2d.blocks", _DEBLOCKS, first=1)


def _residual_name(stage: int, block: int) -> str:
    return f"backbone_3d.conv{stage + 1}.{block + min(stage, 1)}"


def _check_sizes(encoder: EncoderConfig) -> None:
    """Check the sizes that stand in its code: it passes over weights of other shapes without an error."""
    kind = encoder.kind
    fixed = {"channels": _CHANNELS_OF_KIND[kind], "out_channels": _OUT_CHANNELS}
    fixed |= {"blocks": _NUM_BLOCKS} if kind == "residual" else {}
    wrong = {name: getattr(encoder, name) for name, value in fixed.items() if getattr(encoder, name) != value}
    if wrong:
        raise CheckpointError(
            "the encoder has "
            + ", ".join(f"{name} {value}" for name, value in wrong.items())
            + f"; OpenPCDet's {CLASS_OF_KIND[kind]} cannot hold its weights",
            where="model.encoder",
            expected=", ".join(f"{name} {fixed[name]}" for name in wrong) + ", which stand in OpenPCDet's code",
            remedy="export to mmdet3d, whose encoder takes any channels, or to safetensors; or pre-train one of "
            "OpenPCDet's sizes, as the recipe spot-waymo does",
        )
