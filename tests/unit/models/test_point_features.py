from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.config import BevConfig, DecoderConfig, EncoderConfig, ModelConfig, VoxelConfig
from spot_ray.models.point_features import encode_points, locate
from spot_ray.models.sparse import SparseBackEnd
from spot_ray.models.sparse_spconv import SpconvBackEnd
from spot_ray.models.sparse_torch import TorchBackEnd
from spot_ray.models.spot import OccupancyModel, build_model

VOXEL = VoxelConfig((-1.6, -3.2, -1.3, 1.6, 3.2, 1.3), (0.1, 0.1, 0.1))
CONFIG = ModelConfig(
    voxel=VOXEL,
    encoder=EncoderConfig((4, 6, 8, 10), 8, 1),
    bev=BevConfig((1,), (1,), (12,), (1,), (12,)),
    decoder=DecoderConfig((16,), (1,)),
)
GRID = VoxelGrid((-1.6, -3.2, -1.6), (0.8, 0.8, 0.8), (4, 8, 4))
BORDER = (1.59999, 3.19999, 1.29999)


def network(kind: str, sparse: SparseBackEnd) -> OccupancyModel:
    torch.manual_seed(0)
    encoder = dataclasses.replace(CONFIG.encoder, kind=kind)
    config = dataclasses.replace(CONFIG, encoder=encoder)
    return build_model(config, num_features=4, num_classes=3, grid=GRID, sparse=sparse).eval()


def cloud() -> tuple[torch.Tensor, torch.Tensor]:
    """Return two samples of 300 and 200 points, some out of range, with the range's corners among them."""
    random = torch.Generator().manual_seed(1)
    points = torch.rand(500, 4, generator=random) * torch.tensor([3.6, 7.0, 3.0, 1.0]) - torch.tensor(
        [1.8, 3.5, 1.5, 0]
    )
    points[0, :3], points[300, :3] = torch.tensor(BORDER), -torch.tensor(BORDER)
    return points, torch.tensor([0, 300, 500])


@pytest.mark.parametrize("kind", ["residual", "plain"])
@pytest.mark.parametrize("sparse", [SpconvBackEnd(), TorchBackEnd()], ids=["spconv", "torch"])
def test_a_point_has_the_features_of_the_sites_and_cells_that_hold_it(kind: str, sparse: SparseBackEnd) -> None:
    model = network(kind, sparse)
    points, offsets = cloud()
    chosen = locate(points[:, :3], VOXEL)[1].nonzero().squeeze(1)
    assert {0, 300} <= set(chosen.tolist())
    with torch.no_grad():
        found = encode_points(model, points, offsets, chosen, voxel=VOXEL)
        stages, bev = model.encode(points, offsets)
    assert found.shape == (len(chosen), 4 + 6 + 8 + 10 + 12)
    sites = [
        {tuple(site): value for site, value in zip(stage.indices.tolist(), stage.features, strict=True)}
        for stage in stages
    ]
    for row, point in enumerate(chosen.tolist()):
        sample = int(point >= 300)
        x, y, z = (float(v) for v in points[point, :3])
        column, line, layer = (math.floor(round((v - low) / 0.1, 4)) for v, low in ((x, -1.6), (y, -3.2), (z, -1.3)))
        start = 0
        for depth, (stage, sites_of) in enumerate(zip(stages, sites, strict=True)):
            # At stride 8 the topmost sites are left out, where no kernel's centre lies.
            index = (min(layer >> depth, stage.spatial_shape[0] - 1), line >> depth, column >> depth)
            expected = sites_of[(sample, *index)]  # every site is there: its kernel covers the point's voxel
            assert torch.equal(found[row, start : start + len(expected)], expected)
            start += len(expected)
        assert found[row, start:] == pytest.approx(bilinear(bev[sample], (x + 1.6) / 0.8, (y + 3.2) / 0.8), abs=1e-5)


def bilinear(values: torch.Tensor, x: float, y: float) -> list[float]:
    """Return the (C,) interpolation of (C, ny, nx) values at a place in cells, beyond the outer centres theirs."""
    _, ny, nx = values.shape
    column, line = min(max(x - 0.5, 0), nx - 1), min(max(y - 0.5, 0), ny - 1)
    x0, y0 = min(int(column), nx - 2), min(int(line), ny - 2)
    a, b = column - x0, line - y0
    near = (1 - a) * values[:, y0, x0] + a * values[:, y0, x0 + 1]
    far = (1 - a) * values[:, y0 + 1, x0] + a * values[:, y0 + 1, x0 + 1]
    return ((1 - b) * near + b * far).tolist()


def test_points_are_located_as_voxels_are_made() -> None:
    model = network("residual", TorchBackEnd())
    points = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(2)) * 3.4 - 1.7
    points[:1000, :3] = (points[:1000, :3] / 0.1).round() * 0.1  # on faces
    index, inside = locate(points[:, :3], VOXEL)
    voxels = model.voxels(points, torch.tensor([0, len(points)]))
    assert 0 < int(inside.sum()) < len(points)
    assert torch.equal(torch.unique(index[inside], dim=0), torch.unique(voxels.indices[:, 1:].long(), dim=0))
    assert not locate(torch.tensor([[float("nan"), 0, 0], [1.6, 0, 0], [0, 0, 1.31]]), VOXEL)[1].any()
