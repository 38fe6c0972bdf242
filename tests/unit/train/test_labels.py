from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from spot_ray.losses.config import LossConfig
from spot_ray.schema.occupancy import dense_labels, to_network_order
from spot_ray.train.labels import class_weights, to_labels

RANGE = (-6.4, -6.4, -1.6, 6.4, 6.4, 1.6)


def test_labels_are_the_dense_labels_in_network_order(toy: ModuleType) -> None:
    batch = toy.batch_of(np.random.default_rng(0), 3)
    batch.occupancy_class[5] = 255
    labels = to_labels(batch, toy.GRID, "cpu", point_cloud_range_m=RANGE)
    assert labels.shape == (3, 4, 16, 16)
    assert labels.dtype == torch.uint8
    for b in range(3):
        mine = slice(batch.occupancy_offsets[b], batch.occupancy_offsets[b + 1])
        expected = dense_labels(batch.occupancy_index[mine], batch.occupancy_class[mine], batch.observed[b], toy.GRID)
        np.testing.assert_array_equal(labels[b].numpy(), to_network_order(expected))


def test_an_unobserved_voxel_counts_as_empty_only_when_asked(toy: ModuleType) -> None:
    batch = toy.batch_of(np.random.default_rng(0), 1)
    unobserved = np.unpackbits(batch.observed[0], bitorder="little") == 0
    masked = to_labels(batch, toy.GRID, "cpu", point_cloud_range_m=RANGE)
    plain = to_labels(batch, toy.GRID, "cpu", point_cloud_range_m=RANGE, mask_unobserved=False)
    flat_masked, flat_plain = (to_network_order(x[0].numpy()).reshape(-1) for x in (masked, plain))
    assert unobserved.any()
    assert (flat_masked[unobserved] == 255).all()
    assert (flat_plain[unobserved] == 0).all()
    np.testing.assert_array_equal(flat_masked[~unobserved], flat_plain[~unobserved])


def test_columns_that_the_augmentation_moves_out_of_the_range_are_ignored(toy: ModuleType) -> None:
    batch = toy.batch_of(np.random.default_rng(0), 2)
    everything = replace(batch, observed=np.full_like(batch.observed, 255))
    shifted = everything.network_from_label.copy()
    shifted[1, 0, 2] = 1.6  # two cells towards +x: the last two rows of cells leave the range
    labels = to_labels(replace(everything, network_from_label=shifted), toy.GRID, "cpu", point_cloud_range_m=RANGE)
    assert not (labels[0] == 255).any()
    assert (labels[1, :, :, 14:] == 255).all()
    assert not (labels[1, :, :, :14] == 255).any()


def test_a_turn_ignores_the_corners(toy: ModuleType) -> None:
    batch = toy.batch_of(np.random.default_rng(0), 1)
    c = np.sqrt(0.5)
    turned = replace(
        batch,
        observed=np.full_like(batch.observed, 255),
        network_from_label=np.array([[[c, -c, 0], [c, c, 0]]], np.float32),
    )
    labels = to_labels(turned, toy.GRID, "cpu", point_cloud_range_m=RANGE)
    centres = (np.arange(16) + 0.5) * 0.8 - 6.4
    y, x = np.meshgrid(centres, centres, indexing="ij")
    outside = (np.abs(c * (x - y)) > 6.4) | (np.abs(c * (x + y)) > 6.4)
    np.testing.assert_array_equal((labels[0] == 255).all(dim=0).numpy(), outside)
    assert 0 < outside.mean() < 0.3


def test_class_weights_follow_the_taxonomy(toy: ModuleType) -> None:
    weights = class_weights(toy.TAXONOMY, LossConfig(), "cpu")
    assert weights.tolist() == pytest.approx([0.01, 2.0, 1.0, 1.0])
