from __future__ import annotations

import math

import pytest
import torch

from spot_ray.models.bev import BevMap
from spot_ray.models.decoder import OccupancyDecoder, sampling_grid

MAP = BevMap((-4.0, -4.0), (1.0, 1.0), (8, 8))


def decoder(label_map: BevMap = MAP, feature_map: BevMap = MAP) -> OccupancyDecoder:
    torch.manual_seed(0)
    return OccupancyDecoder(
        in_channels=3,
        channels=(5, 4),
        strides=(2, 1),
        num_outputs=4,
        num_z=2,
        feature_map=feature_map,
        label_map=label_map,
    ).eval()


def affine(angle_rad: float, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    c, s = scale * math.cos(angle_rad), scale * math.sin(angle_rad)
    return torch.tensor([[[c, -s, shift[0]], [s, c, shift[1]]]])


def test_shape_is_class_z_y_x_and_each_stride_doubles() -> None:
    assert decoder()(torch.randn(2, 3, 4, 4), None).shape == (2, 4, 2, 8, 8)


def test_sampling_with_the_identity_is_no_sampling() -> None:
    x = torch.randn(2, 3, 4, 4)
    model = decoder()
    features = model.upsample(x)
    grid = sampling_grid(MAP, MAP, affine(0).expand(2, 2, 3))
    sampled = torch.nn.functional.grid_sample(features, grid, align_corners=False)
    torch.testing.assert_close(sampled, features, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(x, affine(0).expand(2, 2, 3)), model(x, None))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_rot90(turns: int) -> None:
    # The network sees the scene turned by +90° (x → y); the label's own grid is that map turned back.
    x = torch.randn(1, 3, 4, 4)
    model = decoder()
    turned = model(x, affine(turns * math.pi / 2))
    # In an array [y, x] a turn from x to y is a rotation from axis 1 (x) to axis 0 (y); rot90(k, (y, x)) goes y → x.
    expected = torch.rot90(model(x, None), turns, (-2, -1))
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=1e-5)


def test_label_cell_reads_the_feature_at_its_place_in_the_network_frame() -> None:
    # Features hold their own cell centre in metres; bilinear sampling of a linear ramp is exact inside the map.
    y, x = torch.meshgrid(torch.arange(8) - 3.5, torch.arange(8) - 3.5, indexing="ij")
    label_map = BevMap((-1.0, -0.5), (0.5, 0.5), (2, 4))
    transform = affine(0.3, 1.05, (0.4, -0.2))
    grid = sampling_grid(MAP, label_map, transform)
    sampled = torch.nn.functional.grid_sample(torch.stack((x, y))[None], grid, align_corners=False)[0]
    for iy in range(2):
        for ix in range(4):
            center = torch.tensor([-1.0 + 0.5 * (ix + 0.5), -0.5 + 0.5 * (iy + 0.5), 1.0])
            torch.testing.assert_close(sampled[:, iy, ix], transform[0] @ center)


def test_label_grid_smaller_than_the_map_is_cut_out() -> None:
    x = torch.randn(1, 3, 4, 4)
    inner = BevMap((-2.0, -1.0), (1.0, 1.0), (3, 4))
    torch.testing.assert_close(decoder(inner)(x, None), decoder()(x, None)[..., 3:6, 2:6], atol=1e-5, rtol=1e-5)


def test_gradient_reaches_the_features_through_sampling() -> None:
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    decoder()(x, affine(0.3)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()
