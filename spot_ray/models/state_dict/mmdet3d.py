"""Our state dict under the names of mmdetection3d: the middle encoder, backbone and neck of its detectors.

Its `SparseEncoder` has the convolution that strides at the end of the stage before, where ours begins the next one. Its
`SECOND` and `SECONDFPN` are our BEV encoder's blocks and upsamplings.

Weights of sparse convolutions are written as (kz, ky, kx, in, out). That is what the sparse convolutions of mmcv hold;
and with spconv 2 installed it moves the last axis of every such weight to the front, unless the state dict carries
version numbers of its modules, which a plain file does not.

All sizes come from its configs: any of ours fit. The `BEVFusion` of its `projects` orders the axes of voxels otherwise,
so that what is written here is not for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from spot_ray.models.config import ModelConfig
from spot_ray.models.encoder import strided_convs
from spot_ray.models.sparse import Size3
from spot_ray.models.state_dict.rename import (
    PLAIN_CONVS,
    Names,
    bev_names,
    conv_norm,
    plain_convs,
    rename,
    residual_block,
    residual_blocks,
    with_convs_for_no_stride,
)


@dataclass(frozen=True)
class Mmdet3dLayout:
    """In what the state dicts of its detectors differ.

    Args:
        like: A config of its own that is so.
        prefix: What the names of the LiDAR's modules begin with in detectors that may also see images.
        conv_for_no_stride: Whether the neck's config says `use_conv_for_no_stride=True`.
    """

    like: str
    prefix: str
    conv_for_no_stride: bool = False


MMDET3D_LAYOUTS = {
    "centerpoint": Mmdet3dLayout("configs/_base_/models/centerpoint_voxel01_second_secfpn_nus.py", "pts_", True),
    "second": Mmdet3dLayout("configs/_base_/models/second_hv_secfpn_kitti.py", ""),
    "mvx": Mmdet3dLayout("configs/_base_/models/second_hv_secfpn_waymo.py", "pts_"),
}
"""By a detector's name: `CenterPoint`, `VoxelNet` (PV-RCNN is as that), and `MVXFasterRCNN`."""


def to_mmdet3d_names(weights: Mapping[str, Tensor], config: ModelConfig, layout: Mmdet3dLayout) -> dict[str, Tensor]:
    """Return encoder and BEV encoder as a part of the state dict of one of its detectors.

    Args:
        weights: State dict of the :class:`~spot_ray.models.spot.OccupancyModel` of `config`.
        config: Its sizes.
        layout: The detector's variant.

    Returns:
        Tensors by its names, views of those of `weights`; sparse convolutions' are (kz, ky, kx, in, out).
    """
    renamed = rename(weights, _names(config, layout.prefix))
    if layout.conv_for_no_stride:
        renamed = with_convs_for_no_stride(renamed, config.bev, f"{layout.prefix}neck.deblocks")
    return {key: tensor.permute(1, 2, 3, 4, 0) if tensor.ndim == 5 else tensor for key, tensor in renamed.items()}


def encoder_channels(config: ModelConfig) -> tuple[tuple[int, ...], ...]:
    """Return what the config of its `SparseEncoder` must say as `encoder_channels`."""
    encoder = config.encoder
    if encoder.kind == "plain":
        return tuple((width,) * count for width, count in zip(encoder.channels, PLAIN_CONVS, strict=True))
    following = (*((width,) for width in encoder.channels[1:]), ())
    return tuple((width,) * encoder.blocks + down for width, down in zip(encoder.channels, following, strict=True))


def encoder_paddings(config: ModelConfig) -> tuple[tuple[int | Size3, ...], ...]:
    """Return what the config of its `SparseEncoder` must say as `encoder_paddings`; only strided ones are read."""
    encoder = config.encoder
    down = [padding for _, _, padding in strided_convs()[: len(encoder.channels) - 1]]
    if encoder.kind == "plain":
        before: list[tuple[Size3, ...]] = [(), *((padding,) for padding in down)]
        return tuple(
            padding + (1,) * (count - len(padding)) for padding, count in zip(before, PLAIN_CONVS, strict=True)
        )
    after: list[tuple[Size3, ...]] = [*((padding,) for padding in down), ()]
    return tuple((0,) * encoder.blocks + padding for padding in after)


def _names(config: ModelConfig, prefix: str) -> Names:
    middle = f"{prefix}middle_encoder"
    stages = f"{middle}.encoder_layers.encoder_layer"
    encoder = config.encoder
    names = conv_norm("encoder.conv_input", f"{middle}.conv_input")
    if encoder.kind == "residual":
        for stage, block, ours in residual_blocks(encoder):
            names |= residual_block(ours, f"{stages}{stage + 1}.{block}")
        for stage in range(1, len(encoder.channels)):
            names |= conv_norm(f"encoder.stages.{stage}.0", f"{stages}{stage}.{encoder.blocks}")
    else:
        for stage, conv, ours in plain_convs():
            names |= conv_norm(ours, f"{stages}{stage + 1}.{conv}")
    names |= conv_norm("encoder.conv_out", f"{middle}.conv_out")
    return names | bev_names(config.bev, f"{prefix}backbone.blocks", f"{prefix}neck.deblocks", first=0)
