from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spot_ray.models import voxelise as voxelise_module
from spot_ray.models.voxelise import Voxels, voxelise

LOWER_M = (-1.0, -2.0, 0.0)
VOXEL_SIZE_M = (0.5, 1.0, 2.0)
VOXEL_SHAPE = (2, 4, 4)
WAYMO: dict[str, Any] = {
    "lower_m": (-75.2, -75.2, -2.0),
    "voxel_size_m": (0.1, 0.1, 0.15),
    "voxel_shape": (40, 1504, 1504),
}


def run(points: torch.Tensor, offsets: list[int], max_points: int | None = None) -> Voxels:
    return voxelise(
        points,
        torch.tensor(offsets),
        lower_m=LOWER_M,
        voxel_size_m=VOXEL_SIZE_M,
        voxel_shape=VOXEL_SHAPE,
        max_points=max_points,
    )


def reference(
    points: npt.NDArray[np.float32],
    offsets: list[int],
    *,
    lower_m: tuple[float, float, float],
    voxel_size_m: tuple[float, float, float],
    voxel_shape: tuple[int, int, int],
    max_points: int | None = None,
) -> tuple[list[tuple[int, ...]], npt.NDArray[np.float64]]:
    """Fill a dictionary point by point: cells in NumPy float32, means in float64."""
    cells: dict[tuple[int, ...], list[npt.NDArray[np.float64]]] = {}
    nz, ny, nx = voxel_shape
    for b in range(len(offsets) - 1):
        for point in points[offsets[b] : offsets[b + 1]]:
            cell = np.floor((point[:3] - np.float32(lower_m)) / np.float32(voxel_size_m))
            if (cell >= 0).all() and (cell < (nx, ny, nz)).all():
                x, y, z = cell.astype(int).tolist()
                cells.setdefault((b, z, y, x), []).append(point.astype(np.float64))
    means = [np.mean(cells[key][:max_points], axis=0) for key in sorted(cells)]
    return sorted(cells), np.stack(means) if means else np.zeros((0, points.shape[1]))


def test_means_and_indices_by_hand() -> None:
    points = torch.tensor(
        [
            [0.6, 1.5, 3.0, 10.0],  # sample 0: x cell 3, y cell 3, z cell 1
            [-1.0, -2.0, 0.0, 1.0],  # the lower corner belongs to cell 0
            [-0.8, -1.5, 1.0, 3.0],  # the same voxel
            [1.0, 0.0, 0.0, 9.0],  # the upper edge in x does not
            [-0.8, -1.5, 1.0, 5.0],  # sample 1: another sample's voxel
        ]
    )
    voxels = run(points, [0, 4, 5])
    assert voxels.indices.dtype == torch.int32
    assert voxels.indices.tolist() == [[0, 0, 0, 0], [0, 1, 3, 3], [1, 0, 0, 0]]
    expected = torch.tensor([[-0.9, -1.75, 0.5, 2.0], [0.6, 1.5, 3.0, 10.0], [-0.8, -1.5, 1.0, 5.0]])
    torch.testing.assert_close(voxels.features, expected)
    assert int(voxels.num_dropped) == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38, -3e38])
def test_point_without_a_place_is_dropped(axis: int, value: float) -> None:
    points = torch.tensor([[0.1, 0.1, 0.1, 1.0]] * 3)
    points[1, axis] = value
    voxels = run(points, [0, 3])
    assert voxels.indices.tolist() == [[0, 0, 2, 2]]
    assert int(voxels.num_dropped) == 1
    assert voxels.features.isfinite().all()


def test_only_the_first_points_of_a_voxel_count() -> None:
    points = torch.tensor([[0.1, 0.1, 0.1, v] for v in (1.0, 2.0, 6.0)] + [[0.1, 0.1, 2.1, 4.0]])
    voxels = run(points, [0, 4], max_points=2)
    assert voxels.features[:, 3].tolist() == [1.5, 4.0]
    assert voxels.features.is_contiguous()


@pytest.mark.parametrize("max_points", [None, 1, 5])
def test_agrees_with_numpy(max_points: int | None) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([-1.2, -2.2, -0.2, 0], [1.2, 2.2, 4.2, 1], (400, 4)).astype(np.float32)
    points[150:160] = 50.0  # sample 2 has points, none of them in the range; sample 1 has no point
    offsets = [0, 150, 150, 160, 400]
    indices, means = reference(
        points, offsets, lower_m=LOWER_M, voxel_size_m=VOXEL_SIZE_M, voxel_shape=VOXEL_SHAPE, max_points=max_points
    )
    voxels = run(torch.from_numpy(points), offsets, max_points)
    assert [tuple(row) for row in voxels.indices.tolist()] == indices
    assert {b for b, *_ in indices} == {0, 3}
    np.testing.assert_allclose(voxels.features.numpy(), means, atol=1e-6)


def test_borders_agree_with_numpy_in_float32() -> None:
    """Points at and beside every border of cells, the outer ones included, as float32 rounds them."""
    steps = np.arange(-2, 1507) * 0.1 - 75.2
    x = np.concatenate([np.float32(steps)] + [np.nextafter(np.float32(steps), np.float32(s)) for s in (-1e3, 1e3)])
    points = np.zeros((2 * len(x) + 4, 4), dtype=np.float32)
    points[: len(x), 0] = x
    points[len(x) : 2 * len(x), 1] = x
    points[-4:, 0] = [75.2 - 1e-6, 75.2, -75.2, -75.2 - 1e-6]
    points[:, 3] = np.arange(len(points))
    voxels = voxelise(torch.from_numpy(points), torch.tensor([0, len(points)]), **WAYMO)
    indices, means = reference(points, [0, len(points)], **WAYMO)
    assert [tuple(row) for row in voxels.indices.tolist()] == indices
    np.testing.assert_allclose(voxels.features.numpy(), means, rtol=1e-5, atol=1e-5)
    assert 0 < int(voxels.num_dropped) < 40
    assert int(voxels.indices[:, 3].max()) == 1503


def test_mean_keeps_its_digits_far_from_the_origin() -> None:
    # 3,000 points about (75.01, 0, 0): a running float32 sum over all voxels would be off by centimetres.
    rng = np.random.default_rng(1)
    points = np.zeros((3000, 4))
    points[:, 0] = 75.0 + rng.uniform(0, 0.02, 3000)
    voxels = voxelise(torch.from_numpy(points.astype(np.float32)), torch.tensor([0, 3000]), **WAYMO)
    assert len(voxels.features) == 1
    assert abs(float(voxels.features[0, 0]) - points[:, 0].astype(np.float32).astype(np.float64).mean()) < 1e-3


def test_keys_beyond_32_bits_order_the_same() -> None:
    # 24 samples of 90 million voxels: more than int32 counts. The last sample must not fold onto another one.
    rng = np.random.default_rng(2)
    points = torch.from_numpy(rng.uniform([-75, -75, -2, 0], [75, 75, 4, 1], (240, 4)).astype(np.float32))
    many = voxelise(points, torch.arange(0, 241, 10), **WAYMO)
    for b in range(24):
        alone = voxelise(points[10 * b : 10 * b + 10], torch.tensor([0, 10]), **WAYMO)
        mine = many.indices[:, 0] == b
        assert torch.equal(many.indices[mine, 1:], alone.indices[:, 1:])
        assert torch.equal(many.features[mine], alone.features)
    assert many.indices.dtype == torch.int32


@pytest.mark.parametrize("max_points", [None, 5])
@pytest.mark.parametrize("num_points", [0, 3])
def test_no_point_in_range(max_points: int | None, num_points: int) -> None:
    voxels = run(torch.full((num_points, 4), 100.0), [0, num_points // 3, num_points], max_points)
    assert voxels.features.shape == (0, 4)
    assert voxels.indices.shape == (0, 4)
    assert int(voxels.num_dropped) == num_points


@pytest.mark.parametrize("num_points", [1, 2])
def test_points_stay_as_they_are(num_points: int) -> None:
    # The coordinates of a single point are contiguous either way around: nothing may be copied in passing.
    points = torch.full((num_points, 4), 0.3)
    voxels = run(points, [0, num_points])
    assert (points == 0.3).all()
    assert voxels.features.tolist() == [points[0].tolist()]


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("max_points", [None, 5])
def test_a_gpu_would_be_waited_for_once(max_points: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the operators that give a size or a number to the host, one `nonzero` runs, and none that copies constants."""
    monkeypatch.setattr(voxelise_module, "_positions", lambda mask: mask.nonzero().squeeze(1))  # as on a GPU
    points = torch.rand(50, 4)
    run(points, [0, 20, 50], max_points)  # the grid's constants are made once
    offsets = torch.tensor([0, 20, 50])
    with Operators() as operators:
        voxelise(
            points,
            offsets,
            lower_m=LOWER_M,
            voxel_size_m=VOXEL_SIZE_M,
            voxel_shape=VOXEL_SHAPE,
            max_points=max_points,
        )
    waiting = ("nonzero", "_local_scalar_dense", "unique", "masked_select", "bincount", "lift_fresh", "index.Tensor")
    found = {name: count for name, count in operators.counts.items() if any(word in name for word in waiting)}
    assert found == {"aten.nonzero.default": 1}
    assert operators.counts["aten.segment_reduce.default"] == 1
    assert sum(operators.counts.values()) < 80


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("max_points", [None, 5])
def test_gpu_gives_the_same_bits_and_is_waited_for_once(max_points: int | None) -> None:
    rng = np.random.default_rng(4)
    points = torch.from_numpy(rng.normal(0, 20, (20_000, 4)).astype(np.float32))
    offsets = torch.tensor([0, 9000, 9000, 20_000])
    expected = voxelise(points, offsets, **WAYMO, max_points=max_points)
    there = (points.cuda(), offsets.cuda())
    voxelise(*there, **WAYMO, max_points=max_points)  # the grid's constants are made once
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        voxels = voxelise(*there, **WAYMO, max_points=max_points)
        torch.cuda.set_sync_debug_mode("default")
    assert len(caught) <= 1
    assert torch.equal(voxels.indices.cpu(), expected.indices)
    assert torch.equal(voxels.features.cpu(), expected.features)
    assert int(voxels.num_dropped) == int(expected.num_dropped)
