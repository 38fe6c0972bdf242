from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.config import VoxelConfig
from spot_ray.models.spot import build_model
from spot_ray.operators.config import MergeConfig
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep
from spot_ray.storage.dataset import DatasetWriter, open_dataset
from spot_ray.train.checkpoint import LoadedModel, ModelDescription
from spot_ray.train.predict import (
    class_table,
    predict_dataset,
    predict_frames,
    predict_sweep,
    prediction_columns,
)

LIDAR = LidarSpec("L", 0, "spinning", 32, (-30.0, 10.0), intensity_max=10.0)


class PointsAsVoxels(nn.Module):
    """Predicts the voxel of each point; the class is the point's fourth feature, in tenths."""

    def __init__(self, grid: VoxelGrid, num_classes: int) -> None:
        super().__init__()
        self.grid, self.num_classes = grid, num_classes
        self.bias = nn.Parameter(torch.tensor([0.5]))
        self.batch_sizes: list[int] = []

    def forward(self, points: Tensor, point_offsets: Tensor, network_from_label: Tensor | None = None) -> Tensor:
        assert network_from_label is None
        assert points.dtype == torch.float32
        nx, ny, nz = self.grid.shape
        logits = torch.zeros(len(point_offsets) - 1, self.num_classes + 1, nz, ny, nx)
        logits[:, 0] = self.bias
        for b, (first, last) in enumerate(itertools.pairwise(point_offsets.tolist())):
            for x, y, z, feature in points[first:last].tolist():
                cell = [int((v - low) // 0.8) for v, low in zip((x, y, z), self.grid.lower_m, strict=True)]
                logits[b, round(feature * 10), cell[2], cell[1], cell[0]] = 1.0
        self.batch_sizes.append(len(logits))
        return logits


def loaded(
    toy: ModuleType, network: nn.Module, features: tuple[str, ...] = ("x", "y", "z", "intensity")
) -> LoadedModel:
    return LoadedModel(network, toy.CONFIG, ModelDescription(features, toy.TAXONOMY, toy.GRID, ("L",), "default"), 1)


def sweep(xyz: list[tuple[float, float, float]], intensity: list[float], frame: str = "f") -> Sweep:
    return Sweep("s", frame, 0, np.array(xyz, np.float32), intensity=np.array(intensity, np.float32))


def test_a_point_is_predicted_in_its_own_voxel_in_label_order(toy: ModuleType) -> None:
    info = DatasetInfo("d", (LIDAR,), toy.TAXONOMY)
    network = loaded(toy, PointsAsVoxels(toy.GRID, 3))
    # Intensity 3 of 10 is the feature 0.3, which this network takes for class 3.
    prediction = predict_sweep(network, sweep([(-6.0, 5.0, 1.0), (2.0, -1.0, -1.5)], [3.0, 1.0]), info)
    assert prediction.shape == toy.GRID.shape
    assert prediction.dtype == np.uint8
    assert prediction.flags.c_contiguous
    expected = np.zeros(toy.GRID.shape, np.uint8)
    expected[0, 14, 3] = 3
    expected[10, 6, 0] = 1
    np.testing.assert_array_equal(prediction, expected)


def test_frames_are_batched_in_order(toy: ModuleType) -> None:
    info = DatasetInfo("d", (LIDAR,), toy.TAXONOMY)
    network = loaded(toy, PointsAsVoxels(toy.GRID, 3))
    sweeps = [sweep([(0.5 * i, 0.0, 0.0)], [2.0], str(i)) for i in range(5)]
    batched = list(predict_frames(network, iter(sweeps), info, batch_size=2))
    assert network.model.batch_sizes == [2, 2, 1]
    for one, frame in zip(batched, sweeps, strict=True):
        np.testing.assert_array_equal(one, predict_sweep(network, frame, info))
    assert len({frame.tobytes() for frame in batched}) > 1


def test_a_dataset_is_predicted_from_merged_sweeps_if_the_network_was_trained_on_them(
    toy: ModuleType, tmp_path: Path
) -> None:
    with DatasetWriter(str(tmp_path / "d"), name="d", rig=[LIDAR], taxonomy=toy.TAXONOMY) as writer:
        for i in range(3):  # 0.8 m a sweep, one voxel; each sees another point, 2.1 m to its left
            writer.add(
                dataclasses.replace(
                    sweep([(0.1, 2.1, 0.1)], [float(i + 1)], str(i)),
                    timestamp_ns=i * 100_000_000,
                    world_SE3_ego=se3.from_yaw(0.0, (0.8 * i, 0.0, 0.0)),
                )
            )
    dataset = open_dataset(str(tmp_path / "d"))
    single = loaded(toy, PointsAsVoxels(toy.GRID, 3))
    merge = MergeConfig(num_sweeps=2)
    merging = dataclasses.replace(
        single, config=dataclasses.replace(toy.CONFIG, data=dataclasses.replace(toy.CONFIG.data, merge=merge))
    )
    for network, expected in ((single, {(8, 10): 3}), (merging, {(8, 10): 3, (7, 10): 2})):
        ((own, prediction),) = predict_dataset(network, dataset, [2], columns=("ring",))
        found = {(int(x), int(y)): int(prediction[x, y, z]) for x, y, z in zip(*np.nonzero(prediction), strict=True)}
        assert found == expected
        assert len(own) == 1, "the frame's own sweep comes back"
    assert len(list(predict_dataset(merging, dataset, [0, 1, 2], batch_size=2))) == 3


def test_the_real_network_predicts_a_frame_alike_alone_and_in_a_batch(toy: ModuleType) -> None:
    torch.manual_seed(0)
    voxel = VoxelConfig((-6.4, -6.4, -1.6, 6.4, 6.4, 1.6), (0.1, 0.1, 0.08))
    config = dataclasses.replace(toy.CONFIG.model, voxel=voxel)
    network = build_model(config, num_features=4, num_classes=3, grid=toy.GRID).eval()
    info = DatasetInfo("d", (LIDAR,), toy.TAXONOMY)
    rng = np.random.default_rng(0)
    sweeps = [
        Sweep("s", str(i), 0, rng.uniform(-6, 6, (n, 3)).astype(np.float32) * np.array([1, 1, 0.2], np.float32),
              intensity=rng.uniform(0, 10, n).astype(np.float32))
        for i, n in enumerate((200, 350))
    ]  # fmt: skip
    together = list(predict_frames(loaded(toy, network), sweeps, info, batch_size=2))
    for frame, prediction in zip(sweeps, together, strict=True):
        alone = predict_sweep(loaded(toy, network), frame, info)
        assert (alone == prediction).mean() > 0.999  # a tie may fall either way in another order of sums
        assert alone.max() <= 3


def test_a_missing_feature_is_named(toy: ModuleType) -> None:
    info = DatasetInfo("d", (LIDAR,), toy.TAXONOMY)
    frame = Sweep("s", "f", 0, np.zeros((1, 3), np.float32))
    with pytest.raises(DataError, match="no 'intensity'"):
        predict_sweep(loaded(toy, PointsAsVoxels(toy.GRID, 3)), frame, info)
    doppler = loaded(toy, PointsAsVoxels(toy.GRID, 3), ("x", "y", "z", "extra.doppler"))
    with pytest.raises(ConfigError, match=r"extra\.doppler"):
        prediction_columns(doppler, info)
    with pytest.raises(ConfigError, match=r"extra\.doppler"):
        predict_sweep(doppler, frame, info)


def test_only_the_needed_columns_are_asked_for(toy: ModuleType) -> None:
    info = DatasetInfo("d", (LIDAR,), toy.TAXONOMY)
    assert prediction_columns(loaded(toy, PointsAsVoxels(toy.GRID, 3)), info) == ("intensity",)


def test_classes_are_matched_by_name() -> None:
    table = class_table(("a", "b"), ("b", "x", "a"), where="here")
    assert table[[0, 1, 2, 255]].tolist() == [0, 3, 1, 255]
    with pytest.raises(DataError, match="class 'c' has no counterpart"):
        class_table(("a", "c"), ("a", "b"), where="here")


def test_a_class_that_could_not_be_learned_is_never_predicted(toy: ModuleType) -> None:
    info = DatasetInfo("d", (LIDAR,), toy.TAXONOMY)
    trained = loaded(toy, PointsAsVoxels(toy.GRID, 3))
    road_unknown = dataclasses.replace(
        toy.TAXONOMY,
        classes=tuple(dataclasses.replace(c, labelled=c.name != "road") for c in toy.TAXONOMY.classes),
        sources=tuple(s for s in toy.TAXONOMY.sources if s.target != "road"),
    )
    untrained = dataclasses.replace(
        trained, description=dataclasses.replace(trained.description, taxonomy=road_unknown)
    )
    points = sweep([(0.1, 0.1, 0.1), (4.1, 0.1, 0.1)], [2.0, 3.0])
    assert set(np.unique(predict_sweep(trained, points, info))) == {0, 2, 3}
    assert set(np.unique(predict_sweep(untrained, points, info))) == {0, 3}
