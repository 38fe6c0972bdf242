from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from spot_ray.models.config import ModelConfig
from spot_ray.models.state_dict.mmdet3d import (
    MMDET3D_LAYOUTS,
    encoder_channels,
    encoder_paddings,
    to_mmdet3d_names,
)

Weights = dict[str, torch.Tensor]
NetworkOf = Callable[..., tuple[Weights, ModelConfig]]
ShapesOf = Callable[[str], dict[str, tuple[int, ...]]]

NETWORK: dict[str, dict[str, Any]] = {
    "centerpoint": {"kind": "residual"},
    "second": {"kind": "plain", "num_features": 4},
    "mvx": {"kind": "plain", "num_z": 59, "height_m": 0.1},
}


@pytest.mark.parametrize("detector", MMDET3D_LAYOUTS)
def test_every_key_and_shape_is_the_detectors(detector: str, network_of: NetworkOf, shapes_of: ShapesOf) -> None:
    weights, config = network_of(**NETWORK[detector])
    exported = to_mmdet3d_names(weights, config, MMDET3D_LAYOUTS[detector])
    as_read = {key: t.permute(4, 0, 1, 2, 3) if t.ndim == 5 else t for key, t in exported.items()}
    assert {key: tuple(tensor.shape) for key, tensor in as_read.items()} == shapes_of(f"mmdet3d-{detector}")


@pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        ("residual", "encoder_layers.encoder_layer1.1.bn2.running_var", "stages.0.1.norm2.running_var"),
        ("residual", "encoder_layers.encoder_layer1.2.1.bias", "stages.1.0.norm.bias"),
        ("residual", "encoder_layers.encoder_layer3.2.1.weight", "stages.3.0.norm.weight"),
        ("residual", "encoder_layers.encoder_layer4.0.bn1.running_mean", "stages.3.1.norm1.running_mean"),
        ("plain", "encoder_layers.encoder_layer1.0.1.bias", "stages.0.0.norm.bias"),
        ("plain", "encoder_layers.encoder_layer2.0.1.bias", "stages.1.0.norm.bias"),
        ("plain", "encoder_layers.encoder_layer4.2.1.bias", "stages.3.2.norm.bias"),
        ("plain", "conv_out.1.num_batches_tracked", "conv_out.norm.num_batches_tracked"),
    ],
)
def test_weights_are_where_they_are_used(kind: str, theirs: str, ours: str, network_of: NetworkOf) -> None:
    weights, config = network_of(kind)
    exported = to_mmdet3d_names(weights, config, MMDET3D_LAYOUTS["second"])
    assert torch.equal(exported[f"middle_encoder.{theirs}"], weights[f"encoder.{ours}"])


def test_backbone_and_neck_count_without_padding_layers(network_of: NetworkOf) -> None:
    weights, config = network_of("residual")
    exported = to_mmdet3d_names(weights, config, MMDET3D_LAYOUTS["mvx"])
    for theirs, ours in (
        ("pts_backbone.blocks.0.0.weight", "bev.blocks.0.0.0.weight"),
        ("pts_backbone.blocks.1.16.running_mean", "bev.blocks.1.5.1.running_mean"),
        ("pts_neck.deblocks.0.0.weight", "bev.upsamples.0.0.weight"),
        ("pts_neck.deblocks.1.1.bias", "bev.upsamples.1.1.bias"),
    ):
        assert torch.equal(exported[theirs], weights[ours])


def test_sparse_convolutions_have_the_input_channels_before_the_output_channels(network_of: NetworkOf) -> None:
    weights, config = network_of("residual")
    exported = to_mmdet3d_names(weights, config, MMDET3D_LAYOUTS["centerpoint"])
    ours = weights["encoder.stages.1.0.conv.weight"]
    theirs = exported["pts_middle_encoder.encoder_layers.encoder_layer1.2.0.weight"]
    assert theirs.shape == (3, 3, 3, 16, 32)
    assert theirs[2, 0, 1, 5, 30] == ours[30, 2, 0, 1, 5]


def test_nothing_is_lost_or_added(network_of: NetworkOf) -> None:
    weights, config = network_of("residual")
    exported = to_mmdet3d_names(weights, config, MMDET3D_LAYOUTS["centerpoint"])
    kept = sorted(tensor.flatten()[0].item() for tensor in exported.values())
    assert kept == sorted(t.flatten()[0].item() for key, t in weights.items() if not key.startswith("decoder."))


def test_a_convolution_for_no_stride_computes_what_the_transposed_one_does(network_of: NetworkOf) -> None:
    weights, config = network_of("residual")
    exported = to_mmdet3d_names(weights, config, MMDET3D_LAYOUTS["centerpoint"])
    x = torch.randn(1, 128, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = functional.conv2d(x, exported["pts_neck.deblocks.0.0.weight"].double())
    torch.testing.assert_close(found, functional.conv_transpose2d(x, weights["bev.upsamples.0.0.weight"].double()))


def test_what_the_config_of_its_encoder_must_say(network_of: NetworkOf) -> None:
    """The expected values of full size are those of its configs for CenterPoint and SECOND."""
    _, residual = network_of("residual")
    assert encoder_channels(residual) == ((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128))
    assert encoder_paddings(residual) == (
        (0, 0, (1, 1, 1)),
        (0, 0, (1, 1, 1)),
        (0, 0, (0, 1, 1)),
        (0, 0),
    )
    _, plain = network_of("plain")
    assert encoder_channels(plain) == ((16,), (32, 32, 32), (64, 64, 64), (64, 64, 64))
    assert encoder_paddings(plain) == ((1,), ((1, 1, 1), 1, 1), ((1, 1, 1), 1, 1), ((0, 1, 1), 1, 1))
    _, small = network_of("residual", channels=(8, 16, 16, 32), blocks=1)
    assert encoder_channels(small) == ((8, 16), (16, 16), (16, 32), (32,))


@pytest.mark.parametrize("kind", ["residual", "plain"])
def test_layers_come_in_the_order_of_ours(kind: str, network_of: NetworkOf, firsts_in_order: Any) -> None:
    weights, config = network_of(kind)
    exported = to_mmdet3d_names(weights, config, MMDET3D_LAYOUTS["second"])
    for part, theirs in (("encoder.", "middle_encoder."), ("bev.", ("backbone.", "neck."))):
        for select in (
            lambda key, tensor: tensor.ndim > 1,
            lambda key, tensor: tensor.ndim == 1 and key.endswith(".weight"),
            lambda key, tensor: key.endswith(".bias") and not key.endswith(("conv1.bias", "conv2.bias")),
            lambda key, tensor: key.endswith(".running_mean"),
            lambda key, tensor: key.endswith(".running_var"),
            lambda key, tensor: key.endswith(".num_batches_tracked"),
        ):
            found = firsts_in_order({key: t for key, t in exported.items() if key.startswith(theirs)}, select)
            assert found == firsts_in_order({key: t for key, t in weights.items() if key.startswith(part)}, select)
            assert len(set(found)) == len(found) > 10
