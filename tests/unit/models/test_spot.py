from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.backbone import count_parameters
from spot_ray.models.config import BevConfig, DecoderConfig, EncoderConfig, ModelConfig, VoxelConfig
from spot_ray.models.encoder import bev_shape, sees_whole_height
from spot_ray.models.spot import OccupancyModel, build_model

GRID = VoxelGrid((-3.2, -3.2, -2.2), (0.4, 0.4, 0.4), (16, 16, 16))
CONFIG = ModelConfig(
    VoxelConfig((-3.2, -3.2, -2.0, 3.2, 3.2, 4.0), (0.1, 0.1, 0.15)),
    EncoderConfig((4, 6, 8, 8), 8, 1),
    BevConfig((1, 1), (1, 2), (8, 8), (1, 2), (8, 8)),
    DecoderConfig((8, 8, 8), (2, 1, 1)),
)


def model(config: ModelConfig = CONFIG, grid: VoxelGrid = GRID, num_classes: int = 3) -> OccupancyModel:
    torch.manual_seed(0)
    return build_model(config, num_features=4, num_classes=num_classes, grid=grid)


def cloud(*counts: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(sum(counts), 4, generator=generator)
    points[:, :2] = points[:, :2] * 6 - 3
    points[:, 2] = points[:, 2] * 3 - 1
    return points, torch.tensor([0, *counts]).cumsum(0)


def test_output_is_logits_on_the_label_grid_and_every_weight_learns() -> None:
    grid = dataclasses.replace(GRID, lower_m=(-3.2, -2.4, -2.2), shape=(16, 12, 5))
    network = model(grid=grid)
    logits = network(*cloud(200, 300), None)
    assert logits.shape == (2, 4, 5, 12, 16)
    assert logits.dtype == torch.float32
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_samples_do_not_see_each_other() -> None:
    network = model().eval()
    points, offsets = cloud(200, 300, 150)
    together = network(points, offsets)
    for b in range(3):
        alone = network(points[offsets[b] : offsets[b + 1]], torch.tensor([0, int(offsets[b + 1] - offsets[b])]))
        torch.testing.assert_close(alone[0], together[b], atol=1e-5, rtol=1e-5)


def test_sample_without_points_stands_beside_others() -> None:
    logits = model().eval()(*cloud(200, 0))
    assert logits.shape[0] == 2
    assert logits.isfinite().all()


def test_order_of_points_does_not_matter() -> None:
    network = model().eval()
    points, offsets = cloud(300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network(points[order], offsets), network(points, offsets), atol=1e-4, rtol=1e-4)


def test_turned_points_with_the_turn_given_predict_in_the_label_frame() -> None:
    # Without learnt symmetry logits differ, but where they are read must not: shift by whole BEV cells.
    network = model().eval()
    points, offsets = cloud(300)
    shift = torch.tensor([[[1.0, 0.0, 0.8], [0.0, 1.0, 0.0]]])
    plain = network(points, offsets)
    read_elsewhere = network(points, offsets, shift)
    torch.testing.assert_close(read_elsewhere[..., :-2], plain[..., 2:], atol=1e-4, rtol=1e-4)


def test_same_seed_same_weights() -> None:
    first, second = model().state_dict(), model().state_dict()
    assert {name.split(".")[0] for name in first} == {"encoder", "bev", "decoder"}
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_point_in_range_is_the_users_error() -> None:
    with pytest.raises(DataError, match="none of the 5 points"):
        model()(torch.full((5, 4), 50.0), torch.tensor([0, 5]))


def test_full_size_has_the_public_shapes() -> None:
    assert bev_shape((40, 1504, 1504)) == (2, 188, 188)
    with torch.device("meta"):
        network = build_model(ModelConfig(), num_features=4, num_classes=15, grid=VoxelGrid())
    assert network.encoder.bev_channels == 256
    assert network.decoder.head.weight.shape[:2] == (16 * 16, 128)
    # By hand: 27 · Σ in · out over the convolutions, 3 · 128 · 128 for the last, two values a normalised channel.
    pairs = [(4, 16), *[(16, 16)] * 4, (16, 32), *[(32, 32)] * 4, (32, 64), *[(64, 64)] * 4, (64, 128)]
    pairs += [(128, 128)] * 4
    expected = 27 * sum(a * b for a, b in pairs) + 3 * 128 * 128 + 2 * (sum(b for _, b in pairs) + 128)
    assert count_parameters(network.encoder) == expected


@pytest.mark.parametrize("num_z", [24, 40, 43, 56])
def test_heights_that_fit(num_z: int) -> None:
    assert sees_whole_height((num_z, 64, 64))


@pytest.mark.parametrize("num_z", [8, 16, 32, 48])
def test_heights_whose_top_would_be_lost(num_z: int) -> None:
    assert not sees_whole_height((num_z, 64, 64))


def test_topmost_voxel_reaches_the_output() -> None:
    network = model().eval()
    low, offsets = cloud(100)
    high = torch.cat((low, torch.tensor([[0.0, 0.0, 3.99, 0.5]])))
    assert not torch.equal(network(low, offsets), network(high, torch.tensor([0, 101])))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"voxel": VoxelConfig((-3.2, -3.2, -2.0, 3.2, 3.2, 4.0), (0.15, 0.1, 0.15))}, "voxel_size_m"),
        ({"voxel": VoxelConfig((-3.2, -3.2, -2.0, 3.2, 3.2, 4.0), (0.1, 0.1, 0.1875))}, "voxel_size_m"),
        ({"voxel": VoxelConfig((-3.2, -3.2, -2.0, 3.2, 3.2, 4.0), (0.1, 0.1, -0.15))}, "voxel_size_m"),
        ({"voxel": VoxelConfig((-3.2, -3.2, -2.0, 3.6, 3.2, 4.0), (0.1, 0.1, 0.15))}, "point_cloud_range_m"),
        ({"voxel": dataclasses.replace(CONFIG.voxel, max_points=0)}, "max_points"),
        ({"encoder": EncoderConfig((4, 0, 8, 8), 8, 1)}, "encoder.channels"),
        ({"encoder": EncoderConfig((4, 4, 8, 8), 8, 0)}, "encoder.blocks"),
        ({"bev": BevConfig((1, 1), (1, 2), (8,), (1, 2), (8, 8))}, "model.bev"),
        ({"bev": BevConfig((1, 1), (1, 2), (8, 8), (1, 1), (8, 8))}, "bev.upsample_strides"),
        ({"decoder": DecoderConfig((8, 8), (1, 1))}, "decoder.strides"),
        ({"decoder": DecoderConfig((), ())}, "model.decoder"),
    ],
)
def test_sizes_that_do_not_fit_name_their_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model(dataclasses.replace(CONFIG, **change))
    assert field in caught.value.where
    assert caught.value.expected


def test_network_learns_where_the_points_are() -> None:
    # Occupied: the label voxels that hold points. A handful of steps has to lift its loss well below its start.
    network = model(num_classes=1)
    points, offsets = cloud(400)
    index = ((points[:, :3] - torch.tensor(GRID.lower_m)) / 0.4).long()
    labels = torch.zeros(1, 16, 16, 16, dtype=torch.long)
    labels[0, index[:, 2], index[:, 1], index[:, 0]] = 1
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(network(points, offsets), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert math.isfinite(losses[-1])
    assert losses[-1] < 0.25 * losses[0]
