from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from spot_ray.errors import CheckpointError
from spot_ray.models.config import ModelConfig
from spot_ray.models.state_dict.openpcdet import OPENPCDET_LAYOUTS, to_openpcdet_names

Weights = dict[str, torch.Tensor]
NetworkOf = Callable[..., tuple[Weights, ModelConfig]]
ShapesOf = Callable[[str], dict[str, tuple[int, ...]]]

KIND = {"centerpoint": "residual", "second": "plain", "transfusion": "residual"}


@pytest.mark.parametrize("detector", OPENPCDET_LAYOUTS)
def test_every_key_and_shape_is_the_detectors(detector: str, network_of: NetworkOf, shapes_of: ShapesOf) -> None:
    weights, config = network_of(KIND[detector])
    exported = to_openpcdet_names(weights, config, OPENPCDET_LAYOUTS[detector])
    assert {key: tuple(tensor.shape) for key, tensor in exported.items()} == shapes_of(f"openpcdet-{detector}")


@pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        ("residual", "backbone_3d.conv_input.0.weight", "encoder.conv_input.conv.weight"),
        ("residual", "backbone_3d.conv1.1.conv2.weight", "encoder.stages.0.1.conv2.weight"),
        ("residual", "backbone_3d.conv3.0.1.running_var", "encoder.stages.2.0.norm.running_var"),
        ("residual", "backbone_3d.conv4.2.bn1.num_batches_tracked", "encoder.stages.3.2.norm1.num_batches_tracked"),
        ("plain", "backbone_3d.conv1.0.0.weight", "encoder.stages.0.0.conv.weight"),
        ("plain", "backbone_3d.conv2.2.1.running_mean", "encoder.stages.1.2.norm.running_mean"),
        ("plain", "backbone_3d.conv_out.1.bias", "encoder.conv_out.norm.bias"),
        ("residual", "backbone_2d.blocks.0.1.weight", "bev.blocks.0.0.0.weight"),
        ("residual", "backbone_2d.blocks.1.17.running_mean", "bev.blocks.1.5.1.running_mean"),
        ("residual", "backbone_2d.deblocks.0.0.weight", "bev.upsamples.0.0.weight"),
        ("residual", "backbone_2d.deblocks.1.1.bias", "bev.upsamples.1.1.bias"),
    ],
)
def test_weights_are_where_they_are_used(kind: str, theirs: str, ours: str, network_of: NetworkOf) -> None:
    weights, config = network_of(kind)
    exported = to_openpcdet_names(weights, config, OPENPCDET_LAYOUTS["centerpoint"])
    assert torch.equal(exported[theirs], weights[ours])


def test_nothing_is_lost_or_added_but_biases_of_zero(network_of: NetworkOf) -> None:
    weights, config = network_of("residual")
    exported = to_openpcdet_names(weights, config, OPENPCDET_LAYOUTS["centerpoint"])
    added = {key for key in exported if key.endswith(("conv1.bias", "conv2.bias"))}
    assert len(added) == 4 * 2 * 2
    assert not any(exported[key].any() for key in added)
    kept = sorted(exported[key].flatten()[0].item() for key in exported.keys() - added)
    assert kept == sorted(t.flatten()[0].item() for key, t in weights.items() if not key.startswith("decoder."))


def test_a_convolution_for_no_stride_computes_what_the_transposed_one_does(network_of: NetworkOf) -> None:
    weights, config = network_of("residual")
    exported = to_openpcdet_names(weights, config, OPENPCDET_LAYOUTS["transfusion"])
    x = torch.randn(1, 128, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = functional.conv2d(x, exported["backbone_2d.deblocks.0.0.weight"].double())
    torch.testing.assert_close(found, functional.conv_transpose2d(x, weights["bev.upsamples.0.0.weight"].double()))
    assert torch.equal(exported["backbone_2d.deblocks.1.0.weight"], weights["bev.upsamples.1.0.weight"])


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"channels": (16, 16, 32, 64)}, r"channels \(16, 16, 32, 64\)"),
        ({"out_channels": 64}, "out_channels 64"),
        ({"blocks": 3}, "blocks 3"),
    ],
)
def test_sizes_that_its_code_fixes_are_refused(sizes: dict[str, object], said: str, network_of: NetworkOf) -> None:
    weights, config = network_of("residual", **sizes)
    with pytest.raises(CheckpointError, match=said):
        to_openpcdet_names(weights, config, OPENPCDET_LAYOUTS["centerpoint"])


def test_blocks_are_of_no_meaning_to_the_plain_encoder(network_of: NetworkOf) -> None:
    weights, config = network_of("plain", blocks=7)
    assert to_openpcdet_names(weights, config, OPENPCDET_LAYOUTS["second"])


def test_weights_of_another_network_are_not_dropped(network_of: NetworkOf) -> None:
    weights, config = network_of("residual")
    rest = {key: tensor for key, tensor in weights.items() if ".2.1.norm1." not in key}
    with pytest.raises(KeyError, match=r"encoder\.stages\.2\.1\.norm1"):
        to_openpcdet_names(rest, config, OPENPCDET_LAYOUTS["second"])


@pytest.mark.parametrize("kind", ["residual", "plain"])
def test_layers_come_in_the_order_of_ours(kind: str, network_of: NetworkOf, firsts_in_order: Any) -> None:
    weights, config = network_of(kind)
    exported = to_openpcdet_names(weights, config, OPENPCDET_LAYOUTS["centerpoint"])
    for part, theirs in (("encoder.", "backbone_3d."), ("bev.", "backbone_2d.")):
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
