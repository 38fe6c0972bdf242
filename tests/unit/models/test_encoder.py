from __future__ import annotations

import torch
from torch import nn

from spot_ray.models.encoder import SparseEncoder, bev_shape
from spot_ray.models.sparse import SparseTensor, default_back_end

SHAPE = (40, 16, 24)


def encoder() -> SparseEncoder:
    torch.manual_seed(0)
    return SparseEncoder(
        in_channels=4,
        channels=(4, 6, 8, 8),
        out_channels=5,
        num_blocks=1,
        voxel_shape=SHAPE,
        sparse=default_back_end(),
    )


def test_height_folds_into_channels_as_in_the_public_detectors() -> None:
    network = encoder().eval()
    last: list[SparseTensor] = []
    network.conv_out.register_forward_hook(lambda module, inputs, output: last.append(output))
    sites = torch.randperm(2 * 40 * 16 * 24, generator=torch.Generator().manual_seed(1))[:400]
    columns = (sites // (40 * 16 * 24), sites // (16 * 24) % 40, sites // 24 % 16, sites % 24)
    bev = network(torch.randn(400, 4), torch.stack(columns, dim=1).int(), 2)
    depth, height, width = bev_shape(SHAPE)
    assert (depth, height, width) == (2, 2, 3)
    assert bev.shape == (2, 5 * depth, height, width)
    expected = torch.zeros_like(bev)
    for (b, z, y, x), values in zip(last[0].indices.tolist(), last[0].features, strict=True):
        for channel, value in enumerate(values):
            expected[b, channel * depth + z, y, x] = value
    assert expected.any()
    assert torch.equal(bev, expected)


def test_norms_are_those_of_the_public_encoder() -> None:
    norms = [module for module in encoder().modules() if isinstance(module, nn.BatchNorm1d)]
    assert len(norms) == 1 + 4 * 2 + 3 + 1
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
