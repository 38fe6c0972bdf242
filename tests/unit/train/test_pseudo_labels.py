"""Which predictions become labels, and of what dataset they can."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep
from spot_ray.storage.dataset import Dataset, DatasetWriter, open_dataset
from spot_ray.train.checkpoint import LoadedModel, ModelDescription
from spot_ray.train.predict import Prediction, predict_dataset, predict_with_confidence
from spot_ray.train.pseudo_labels import (
    PseudoLabelConfig,
    check_dataset,
    predict_labels,
    seen_by_sweep,
    to_occupancy,
)

LIDAR = LidarSpec("L", 0, "spinning", 32, (-30.0, 10.0), intensity_max=1.0)
GRID = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (3, 2, 1))
SWEEP = Sweep("log", "7", 0, np.zeros((1, 3), np.float32))


class Sure(nn.Module):
    """Tells each voxel's logits from its height and the batch's mean of the last feature, whatever the points are."""

    def __init__(self, grid: VoxelGrid, outputs: int) -> None:
        super().__init__()
        self.shape = tuple(reversed(grid.shape))
        self.outputs = outputs
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, points: Tensor, point_offsets: Tensor) -> Tensor:
        logits = torch.zeros(len(point_offsets) - 1, self.outputs, *self.shape)
        for b in range(len(logits)):
            logits[b, 0, 1:] = 3.0
            logits[b, 2, 0] = 10 * points[point_offsets[b] : point_offsets[b + 1], -1].mean()
        return logits


def loaded(toy: ModuleType, features: tuple[str, ...] = ("x", "y", "z", "intensity")) -> LoadedModel:
    description = ModelDescription(features, toy.TAXONOMY, toy.GRID, ("L",), "default")
    return LoadedModel(Sure(toy.GRID, 4), toy.CONFIG, description, 1)


def write(path: Path, toy: ModuleType, *, intensity: bool = True) -> Dataset:
    with DatasetWriter(str(path), name="d", rig=[LIDAR], taxonomy=toy.TAXONOMY) as writer:
        for i in range(3):
            xyz = np.array([[2.0, 0.1, 0.1], [0.1, -3.0, 0.1]], np.float32)
            value = np.full(2, 0.1 * i, np.float32) if intensity else None
            writer.add(Sweep("log", str(i), i, xyz, intensity=value))
    return open_dataset(str(path))


def observed(occupancy, grid: VoxelGrid) -> list[int]:
    return np.flatnonzero(unpack_bits(occupancy.observed, (grid.num_voxels,))).tolist()


def test_a_voxel_is_labelled_if_the_network_is_sure_enough_of_its_value() -> None:
    prediction = Prediction(
        np.array([0, 0, 2, 2, 1, 1], np.uint8).reshape(GRID.shape),
        np.array([0.9, 0.89, 0.6, 0.59, 1.0, 0.3], np.float32).reshape(GRID.shape),
    )
    config = PseudoLabelConfig(min_confidence=0.6, min_confidence_empty=0.9)
    labels = to_occupancy(prediction, SWEEP, config)
    assert (labels.sequence_id, labels.frame_id) == ("log", "7")
    assert labels.index.tolist() == [2, 4]
    assert labels.semantic.tolist() == [2, 1]
    assert (labels.index.dtype, labels.semantic.dtype) == (np.int32, np.uint8)
    assert observed(labels, GRID) == [0, 2, 4]
    assert labels.observed_by_frame is None
    assert labels.dense(GRID).reshape(-1).tolist() == [0, 255, 2, 255, 1, 255]


def test_a_network_that_gives_no_numbers_labels_nothing() -> None:
    prediction = Prediction(np.ones(GRID.shape, np.uint8), np.full(GRID.shape, np.nan, np.float32))
    labels = to_occupancy(prediction, SWEEP, PseudoLabelConfig(min_confidence=0.0))
    assert len(labels.index) == 0
    assert observed(labels, GRID) == []


def test_what_the_rays_did_not_reach_can_be_left_out() -> None:
    prediction = Prediction(np.array([0, 1, 0, 1, 0, 1], np.uint8).reshape(GRID.shape), np.ones(GRID.shape, np.float32))
    # From the middle of the first voxel to that of the third of the row: passed 0, 2; hit 4. One point lies outside.
    sweep = dataclasses.replace(SWEEP, xyz=np.array([[2.5, 0.5, 0.5], [-1.0, 0.5, 0.5]], np.float32))
    seen = seen_by_sweep(sweep, np.full((2, 3), 0.5), GRID)
    assert np.flatnonzero(seen).tolist() == [0, 2, 4]
    labels = to_occupancy(prediction, sweep, PseudoLabelConfig(), seen=seen)
    assert labels.index.tolist() == []
    assert observed(labels, GRID) == [0, 2, 4]
    np.testing.assert_array_equal(labels.observed_by_frame, labels.observed)


def test_confidence_is_the_probability_of_the_predicted_value(toy: ModuleType, tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", toy)
    network = loaded(toy)
    found = list(predict_with_confidence(network, dataset, [0, 1, 2], batch_size=2))
    plain = list(predict_dataset(network, dataset, [0, 1, 2]))
    for (sweep, prediction), (_, values) in zip(found, plain, strict=True):
        np.testing.assert_array_equal(prediction.values, values)
        i = int(sweep.frame_id)
        lowest = np.exp(i) / (np.exp(i) + 3)  # logits 0, 0, i, 0
        np.testing.assert_allclose(prediction.confidence[:, :, 0], lowest, rtol=1e-3)
        np.testing.assert_allclose(prediction.confidence[:, :, 1:], np.exp(3) / (np.exp(3) + 3), rtol=1e-6)
        assert prediction.confidence.dtype == np.float32
        assert prediction.confidence.shape == toy.GRID.shape


def test_frames_of_a_dataset_are_labelled_on_the_networks_grid(toy: ModuleType, tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", toy)
    config = PseudoLabelConfig(min_confidence=0.6, min_confidence_empty=0.5)
    labels = list(predict_labels(loaded(toy), dataset, [0, 1, 2], config))
    assert [label.frame_id for label in labels] == ["0", "1", "2"]
    # The lowest layer's probability is 1 / 4, 0.48 and 0.71 in the three frames; above it is empty at 0.87.
    assert [len(label.index) for label in labels] == [0, 0, 16 * 16]
    assert set(labels[2].semantic) == {2}
    assert [len(observed(label, toy.GRID)) for label in labels] == [3 * 256, 3 * 256, 4 * 256]
    only_seen = list(predict_labels(loaded(toy), dataset, [0, 2], dataclasses.replace(config, only_seen=True)))
    rows = set(observed(only_seen[1], toy.GRID))
    cells = toy.GRID.unravel(np.array(sorted(rows)))
    # The LiDAR sits in the origin: rays to +2 m in x and -3 m in y reach seven voxels of the layer at 0 to 0.8 m.
    assert {tuple(c) for c in cells.tolist()} == {(x, 8, 2) for x in (8, 9, 10)} | {(8, y, 2) for y in (7, 6, 5, 4)}


def test_a_feature_that_the_dataset_lacks_is_named_before_work_begins(toy: ModuleType, tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", toy, intensity=False)
    network = loaded(toy, ("x", "y", "z", "intensity", "elongation", "extra.doppler"))
    with pytest.raises(DataError, match=r"no extra\.doppler, intensity, elongation") as caught:
        check_dataset(network, dataset, 0, PseudoLabelConfig())
    flags = "--zero-feature extra.doppler --zero-feature intensity --zero-feature elongation"
    assert flags in caught.value.remedy
    with pytest.raises(DataError, match=r"has no intensity\n"):
        check_dataset(network, dataset, 0, PseudoLabelConfig(zero_features=("extra.doppler", "elongation")))
    check_dataset(network, dataset, 0, PseudoLabelConfig(zero_features=("extra.doppler", "intensity", "elongation")))
    with pytest.raises(ConfigError, match="'ring' is no input feature"):
        check_dataset(network, dataset, 0, PseudoLabelConfig(zero_features=("ring",)))


def test_a_feature_of_zeros_is_not_read_and_the_others_keep_their_place(toy: ModuleType, tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", toy)
    network = loaded(toy, ("x", "y", "z", "elongation", "intensity"))
    ((_, with_zeros),) = predict_with_confidence(network, dataset, [2], zero_features=("elongation",))
    ((_, plain),) = predict_with_confidence(loaded(toy), dataset, [2])
    np.testing.assert_array_equal(with_zeros.confidence, plain.confidence)
    ((_, zero),) = predict_with_confidence(loaded(toy), dataset, [2], zero_features=("intensity",))
    np.testing.assert_allclose(zero.confidence[:, :, 0], 0.25)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"min_confidence": 1.1}, "min-confidence is"),
        ({"min_confidence_empty": -0.1}, "min-confidence-empty"),
        ({"min_confidence": float("nan")}, "min-confidence is"),
        ({"batch_size": 0}, "batch-size"),
    ],
)
def test_a_bound_that_is_no_probability_is_refused(change: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        PseudoLabelConfig(**change)
