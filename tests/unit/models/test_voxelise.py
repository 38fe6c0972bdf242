from __future__ import annotations

import numpy as np
import torch

from spot_ray.models.voxelise import Voxels, voxelise


def run(points: torch.Tensor, offsets: list[int], max_points: int | None = None) -> Voxels:
    return voxelise(
        points,
        torch.tensor(offsets),
        lower_m=(-1.0, -2.0, 0.0),
        voxel_size_m=(0.5, 1.0, 2.0),
        voxel_shape=(2, 4, 4),
        max_points=max_points,
    )


def test_means_and_indices_by_hand() -> None:
    points = torch.tensor(
        [
            [0.6, 1.5, 3.0, 10.0],  # sample 0: x cell 3, y cell 3, z cell 1
            [-1.0, -2.0, 0.0, 1.0],  # the lower corner belongs to cell 0
            [-0.8, -1.5, 1.0, 3.0],  # the same voxel
            [1.0, 0.0, 0.0, 9.0],  # the upper edge in x does not
            [0.0, float("nan"), 0.0, 9.0],  # neither does a NaN
            [-0.8, -1.5, 1.0, 5.0],  # sample 1: another sample's voxel
        ]
    )
    voxels = run(points, [0, 5, 6])
    assert voxels.indices.dtype == torch.int32
    assert voxels.indices.tolist() == [[0, 0, 0, 0], [0, 1, 3, 3], [1, 0, 0, 0]]
    expected = torch.tensor([[-0.9, -1.75, 0.5, 2.0], [0.6, 1.5, 3.0, 10.0], [-0.8, -1.5, 1.0, 5.0]])
    torch.testing.assert_close(voxels.features, expected)
    assert voxels.num_dropped == 2


def test_only_the_first_points_of_a_voxel_count() -> None:
    points = torch.tensor([[0.1, 0.1, 0.1, v] for v in (1.0, 2.0, 6.0)] + [[0.1, 0.1, 2.1, 4.0]])
    voxels = run(points, [0, 4], max_points=2)
    assert voxels.features[:, 3].tolist() == [1.5, 4.0]


def test_agrees_with_numpy() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([-1.2, -2.2, -0.2, 0], [1.2, 2.2, 4.2, 1], (400, 4)).astype(np.float32)
    points[:, :3] += 0  # keep float32
    offsets = [0, 150, 150, 400]  # the second sample is empty
    expected: dict[tuple[int, ...], list[np.ndarray]] = {}
    for b in range(3):
        for point in points[offsets[b] : offsets[b + 1]]:
            x, y, z = np.floor((point[:3] - np.float32([-1, -2, 0])) / np.float32([0.5, 1, 2])).astype(int)
            if 0 <= x < 4 and 0 <= y < 4 and 0 <= z < 2:
                expected.setdefault((b, z, y, x), []).append(point.astype(np.float64))
    voxels = run(torch.from_numpy(points), offsets)
    assert [tuple(row) for row in voxels.indices.tolist()] == sorted(expected)
    means = np.stack([np.mean(expected[key], axis=0) for key in sorted(expected)])
    np.testing.assert_allclose(voxels.features.numpy(), means, atol=1e-6)


def test_mean_keeps_its_digits_far_from_the_origin() -> None:
    # 3,000 points about (75.01, 0, 0): a running float32 sum over all voxels would be off by centimetres.
    rng = np.random.default_rng(1)
    points = np.zeros((3000, 4))
    points[:, 0] = 75.0 + rng.uniform(0, 0.02, 3000)
    voxels = voxelise(
        torch.from_numpy(points.astype(np.float32)),
        torch.tensor([0, 3000]),
        lower_m=(-75.2, -75.2, -2.0),
        voxel_size_m=(0.1, 0.1, 0.15),
        voxel_shape=(40, 1504, 1504),
    )
    assert len(voxels.features) == 1
    assert abs(float(voxels.features[0, 0]) - points[:, 0].astype(np.float32).astype(np.float64).mean()) < 1e-3


def test_no_point_in_range() -> None:
    voxels = run(torch.full((3, 4), 100.0), [0, 1, 3])
    assert voxels.features.shape == (0, 4)
    assert voxels.indices.shape == (0, 4)
    assert voxels.num_dropped == 3
