from __future__ import annotations

import pytest
import torch

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.config import BevConfig, DecoderConfig, EncoderConfig, ModelConfig, VoxelConfig
from spot_ray.models.flops import Flops, count_flops
from spot_ray.models.spot import OccupancyModel, build_model

GRID = VoxelGrid((-3.2, -3.2, -2.2), (0.4, 0.4, 0.4), (16, 16, 5))


def model(kind: str, grid: VoxelGrid = GRID) -> OccupancyModel:
    config = ModelConfig(
        VoxelConfig((-3.2, -3.2, -2.0, 3.2, 3.2, 4.0), (0.1, 0.1, 0.15)),
        EncoderConfig((2, 3, 5, 7), 11, 1, kind),
        BevConfig((1, 0), (1, 2), (8, 12), (1, 2), (4, 6)),
        DecoderConfig((9, 10), (2, 1)),
    )
    return build_model(config, num_features=4, num_classes=3, grid=grid)


def at(*sites: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one sample with a point in the middle of each voxel (z, y, x)."""
    z, y, x = torch.tensor(sites, dtype=torch.float32).T + 0.5
    points = torch.stack((x * 0.1 - 3.2, y * 0.1 - 3.2, z * 0.15 - 2.0, torch.ones_like(x)), dim=1)
    return points, torch.tensor([0, len(sites)])


# Two neighbours in x at even and odd places: a submanifold kernel joins 2 + 2 pairs of them. A kernel of 3, stride 2
# and padding 1 takes an even place to one output and an odd one to two: site (4, 8, 8) to 1 and site (4, 8, 9) to 2
# outputs, 2 outputs at (2, 4, 4) and (2, 4, 5) in all; these again are even and odd. The third has no padding in z:
# layer 1 is odd and goes to 0 alone, as tap 1. The last one takes layer 0 to 0. Pairs: 3, 3, 3 and 2.
def test_pairs_of_two_neighbours_by_hand() -> None:
    found = count_flops(model("residual"), *at((4, 8, 8), (4, 8, 9)))
    sparse = 4 * (4 * 2 + 2 * 2 * 2)  # input layer, one residual block
    sparse += 3 * 2 * 3 + 4 * 2 * 3 * 3
    sparse += 3 * 3 * 5 + 4 * 2 * 5 * 5
    sparse += 3 * 5 * 7 + 4 * 2 * 7 * 7
    sparse += 2 * 7 * 11
    # Maps of 8 × 8 cells, 22 channels; then 4 × 4; the decoder doubles 8 × 8 to 16 × 16.
    bev = 64 * (9 * 22 * 8 + 9 * 8 * 8 + 8 * 4) + 16 * (9 * 8 * 12 + 4 * 12 * 6)
    # A transposed convolution multiplies every input cell with all of its kernel.
    decoder = 64 * 9 * 10 * 9 + 256 * 9 * 9 * 10 + 256 * 10 * 4 * 5
    assert found == Flops(2 * sparse, 2 * bev, 2 * decoder)
    assert found.forward == 2 * (sparse + bev + decoder)
    assert found.training == 3 * found.forward


def test_the_plain_encoder_has_one_and_two_convolutions_a_stage() -> None:
    found = count_flops(model("plain"), *at((4, 8, 8), (4, 8, 9)))
    sparse = 4 * (4 * 2 + 2 * 2)
    sparse += 3 * 2 * 3 + 4 * 2 * 3 * 3
    sparse += 3 * 3 * 5 + 4 * 2 * 5 * 5
    sparse += 3 * 5 * 7 + 4 * 2 * 7 * 7
    sparse += 2 * 7 * 11
    assert found.sparse == 2 * sparse


def test_the_head_counts_on_the_grid_of_the_label() -> None:
    smaller = VoxelGrid((-3.2, -2.4, -2.2), (0.4, 0.4, 0.4), (16, 12, 5))
    points = at((4, 8, 8))
    whole, cut = (count_flops(model("plain", grid), *points).decoder for grid in (GRID, smaller))
    assert whole - cut == 2 * 16 * 4 * 10 * 4 * 5


def test_counting_leaves_the_network_as_it_was() -> None:
    network = model("residual")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count_flops(network, *at((4, 8, 8)))
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_no_point_in_range_is_the_users_error() -> None:
    with pytest.raises(DataError, match="none of the 1 points"):
        count_flops(model("plain"), torch.full((1, 4), 50.0), torch.tensor([0, 1]))


def test_dense_parts_at_full_size() -> None:
    # By hand, layer by layer: cells × kernel × channels in × channels out.
    network = build_model(ModelConfig(), num_features=5, num_classes=15, grid=VoxelGrid())
    points, offsets = torch.zeros(1, 5), torch.tensor([0, 1])
    found = count_flops(network, points, offsets)
    bev = 188**2 * (9 * 256 * 128 + 5 * 9 * 128**2 + 128 * 256) + 94**2 * (9 * 128 * 256 + 5 * 9 * 256**2 + 4 * 256**2)
    decoder = 188**2 * 9 * 512 * 128 + 376**2 * (2 * 9 * 128**2 + 128 * 256)
    assert (found.bev, found.decoder) == (2 * bev, 2 * decoder)
    assert (round(found.bev / 1e9), round(found.decoder / 1e9)) == (137, 134)
