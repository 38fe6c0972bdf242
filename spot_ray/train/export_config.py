"""What the configs of other codebases must say, so that exported weights mean there what they mean here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spot_ray.models.config import ModelConfig, VoxelConfig
from spot_ray.models.encoder import bev_shape
from spot_ray.models.sparse import Size3
from spot_ray.models.state_dict.mmdet3d import Mmdet3dLayout, encoder_channels, encoder_paddings
from spot_ray.models.state_dict.openpcdet import CLASS_OF_KIND, OpenPCDetLayout

_OPENPCDET_FEATURES = {"time_lag": "timestamp"}
"""Its names of features, where they are not ours."""


def openpcdet_config(model: ModelConfig, features: Sequence[str], layout: OpenPCDetLayout) -> str:
    """Return the part of a YAML config of OpenPCDet that the weights depend on.

    Args:
        model: Sizes of the network.
        features: Input features, in order.
        layout: The detector's variant.
    """
    voxel, bev = model.voxel, model.bev
    names = _list(_OPENPCDET_FEATURES.get(name, name) for name in features)
    bias = "" if layout.residual_bias or model.encoder.kind == "plain" else "\n        USE_BIAS: False"
    conv = "\n        USE_CONV_FOR_NO_STRIDE: True" if layout.conv_for_no_stride else ""
    return f"""\
DATA_CONFIG:
    POINT_CLOUD_RANGE: {_list(voxel.point_cloud_range_m)}
    POINT_FEATURE_ENCODING:
        encoding_type: absolute_coordinates_encoding
        used_feature_list: {names}
        src_feature_list: {names}  # all that its dataset gives, in its order
    DATA_PROCESSOR:  # a list: the dataset's own other entries belong here too
        - NAME: transform_points_to_voxels
          VOXEL_SIZE: {_list(voxel.voxel_size_m)}
          {_max_points(voxel, "MAX_POINTS_PER_VOXEL: ")}
MODEL:
    VFE:
        NAME: MeanVFE
    BACKBONE_3D:
        NAME: {CLASS_OF_KIND[model.encoder.kind]}{bias}
    MAP_TO_BEV:
        NAME: HeightCompression
        NUM_BEV_FEATURES: {_bev_channels(model)}
    BACKBONE_2D:
        NAME: BaseBEVBackbone
        LAYER_NUMS: {_list(bev.layers)}
        LAYER_STRIDES: {_list(bev.strides)}
        NUM_FILTERS: {_list(bev.filters)}
        UPSAMPLE_STRIDES: {_list(bev.upsample_strides)}
        NUM_UPSAMPLE_FILTERS: {_list(bev.upsample_filters)}{conv}
"""


def mmdet3d_config(model: ModelConfig, features: Sequence[str], layout: Mmdet3dLayout, out: str) -> str:
    """Return the part of a config of mmdetection3d that the weights depend on.

    Args:
        model: Sizes of the network.
        features: Input features, in order.
        layout: The detector's variant.
        out: The file of the weights.
    """
    voxel, encoder, bev, prefix = model.voxel, model.encoder, model.bev, layout.prefix
    nz, ny, nx = _voxel_shape(voxel)
    block_type = "basicblock" if encoder.kind == "residual" else "conv_module"
    return f"""\
load_from = {out!r}
model = dict(
    data_preprocessor=dict(
        voxel_layer=dict(
            point_cloud_range={_list(voxel.point_cloud_range_m)},
            {_max_points(voxel, "max_num_points=", ",")}
            voxel_size={_list(voxel.voxel_size_m)})),
    {prefix}voxel_encoder=dict(type='HardSimpleVFE', num_features={len(features)}),  # {", ".join(features)}
    {prefix}middle_encoder=dict(
        type='SparseEncoder',
        in_channels={len(features)},
        sparse_shape={_list((nz + 1, ny, nx))},
        order=('conv', 'norm', 'act'),
        base_channels={encoder.channels[0]},
        output_channels={encoder.out_channels},
        encoder_channels={encoder_channels(model)},
        encoder_paddings={encoder_paddings(model)},
        block_type={block_type!r}),
    {prefix}backbone=dict(
        type='SECOND',
        in_channels={_bev_channels(model)},
        out_channels={_list(bev.filters)},
        layer_nums={_list(bev.layers)},
        layer_strides={_list(bev.strides)}),
    {prefix}neck=dict(
        type='SECONDFPN',
        in_channels={_list(bev.filters)},
        out_channels={_list(bev.upsample_filters)},
        upsample_strides={_list(bev.upsample_strides)},
        use_conv_for_no_stride={layout.conv_for_no_stride}))
"""


def _voxel_shape(voxel: VoxelConfig) -> Size3:
    lower, upper = voxel.point_cloud_range_m[:3], voxel.point_cloud_range_m[3:]
    x, y, z = (round((high - low) / size) for low, high, size in zip(lower, upper, voxel.voxel_size_m, strict=True))
    return z, y, x


def _bev_channels(model: ModelConfig) -> int:
    return model.encoder.out_channels * bev_shape(_voxel_shape(model.voxel))[0]


def _max_points(voxel: VoxelConfig, name: str, end: str = "") -> str:
    """Return the setting of how many points count in a voxel's mean, for which both codebases need a limit."""
    if voxel.max_points is not None:
        return f"{name}{voxel.max_points}{end}"
    return f"# {name.strip(':= ')}: here all points of a voxel count; the more of them, the closer to that"


def _list(values: Iterable[object]) -> str:
    return repr(list(values))
