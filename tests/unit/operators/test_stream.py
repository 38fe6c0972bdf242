"""The plain iterator; that Ray's gives the same is in the integration tests."""

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.operators.config import AugmentConfig, BalanceConfig, BeamConfig, DataConfig
from spot_ray.operators.mixture import DataSource
from spot_ray.operators.stream import iterate
from spot_ray.schema.occupancy import OccupancyInfo
from spot_ray.schema.subset import Subset
from spot_ray.schema.taxonomy import SemanticClass
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.occupancy import OccupancyWriter, open_occupancy

CONFIG = DataConfig(beams=BeamConfig(targets=("hdl-32e",)))
AS_IT_IS = DataConfig(
    balance=BalanceConfig(enabled=False),
    augment=AugmentConfig(flip_x=False, flip_y=False, rotation_rad=(0.0, 0.0), scale=(1.0, 1.0)),
)


def batches(uri, config=CONFIG, *, seed=0, epoch=0, size=4, subset=None, **options):
    source = DataSource(uri, subset=subset)
    return list(iterate(source, config, seed=seed, epoch=epoch, global_batch_size=size, **options))


def samples(parts):
    """Return every planned sample's content, whatever batch it is in."""
    result = Counter()
    for batch in parts:
        for b in np.flatnonzero(batch.weight):
            points, voxels, boxes = (
                slice(offsets[b], offsets[b + 1])
                for offsets in (batch.point_offsets, batch.occupancy_offsets, batch.box_offsets)
            )
            arrays = (
                batch.points[points],
                batch.occupancy_index[voxels],
                batch.occupancy_class[voxels],
                batch.observed[b],
                batch.network_from_label[b],
                batch.boxes[boxes],
                batch.box_class[boxes],
            )
            result[(batch.step, batch.frames[b], int(batch.copies[b]), *(a.tobytes() for a in arrays))] += 1
    return result


def test_frames_arrive_as_they_were_written(uri):
    dataset, labels = open_dataset(uri), open_occupancy(uri, "default")
    parts = batches(uri, AS_IT_IS, shuffle=False)
    assert [name for batch in parts for name in batch.frames][:11] == [
        f"{s}/{i:03d}" for s, count in (("a", 7), ("b", 4)) for i in range(count)
    ]
    sweep = dataset[5]
    truth = labels.get("a", "005")
    batch = parts[1]
    points = batch.points[batch.point_offsets[1] : batch.point_offsets[2]]
    np.testing.assert_array_equal(points[:, :3], sweep.xyz)
    np.testing.assert_allclose(points[:, 3], sweep.intensity / 255, rtol=1e-6)
    voxels = slice(batch.occupancy_offsets[1], batch.occupancy_offsets[2])
    np.testing.assert_array_equal(batch.occupancy_index[voxels], truth.index)
    np.testing.assert_array_equal(batch.occupancy_class[voxels], truth.semantic)
    np.testing.assert_array_equal(batch.observed[1], truth.observed)
    np.testing.assert_array_equal(batch.boxes[batch.box_offsets[1] : batch.box_offsets[2]], sweep.boxes.boxes)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_workers_sees_the_same_samples(uri, world_size):
    together = samples(batches(uri))
    apart = [batches(uri, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sum((samples(part) for part in apart), Counter()) == together
    assert {len(part) for part in apart} == {len(batches(uri))}
    assert set(together.values()) == {1}


def test_start_step_gives_the_tail(uri):
    whole, tail = batches(uri, rank=1, world_size=2), batches(uri, rank=1, world_size=2, start_step=2)
    assert [batch.step for batch in tail] == [batch.step for batch in whole[2:]]
    for first, second in zip(whole[2:], tail, strict=True):
        for field in fields(first):
            if field.name != "stage_s":
                np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
    assert batches(uri, start_step=99) == []


def test_seed_and_epoch_change_the_samples(uri):
    runs = [samples(batches(uri, seed=seed, epoch=epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert samples(batches(uri)) == runs[0]
    assert all(not runs[i] & runs[j] for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_subset_alone_is_read(uri):
    for subset, expected in (
        (Subset("sequence", ("b",)), {f"b/{i:03d}" for i in range(4)}),
        (Subset("frame", ("a/002", "b/003")), {"a/002", "b/003"}),
    ):
        assert {name for batch in batches(uri, subset=subset) for name in batch.frames} == expected


def test_labels_are_cropped_to_the_recipes_grid(uri, grid):
    inner = VoxelGrid((-4.0, -4.0, -2.2), (0.4, 0.4, 0.4), (20, 20, 8))
    (batch,) = batches(uri, AS_IT_IS, size=1, shuffle=False, subset=Subset("sequence", ("a",)), grid=inner)[:1]
    sweep = open_dataset(uri)[0]
    voxel, inside = inner.voxel_of(sweep.xyz)
    np.testing.assert_array_equal(batch.occupancy_index, np.unique(inner.linear(voxel[inside])))
    assert batch.observed.shape == (1, 400)
    with pytest.raises(DataError, match="does not lie in the grid of the labels"):
        batches(uri, grid=replace(inner, lower_m=(-4.1, -4.0, -2.2)))


def test_without_augmentation_only_the_order_is_random(uri):
    plain = AS_IT_IS
    assert samples(batches(uri, plain, seed=0)) != samples(batches(uri, plain, seed=1))  # the order
    first, second = (batches(uri, plain, seed=seed, shuffle=False) for seed in (0, 1))
    assert samples(first) == samples(second)
    assert all((batch.network_from_label == np.eye(2, 3)).all() for batch in first)


def test_a_broken_frame_names_file_row_and_reason(own_uri):
    shard = next(Path(own_uri).glob("shards/b*"))
    damage_frame(shard, 2)
    with pytest.raises(DataError, match="row group 2, row 0") as caught:
        batches(own_uri)
    assert shard.name in caught.value.where
    assert "b/002" in caught.value.where
    assert "intensity has 1 bytes" in caught.value.what


def damage_frame(shard: Path, row_group: int) -> None:
    """Cut one frame's intensity off."""
    file = pq.ParquetFile(shard)
    groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    column = groups[row_group].schema.get_field_index("intensity")
    groups[row_group] = groups[row_group].set_column(column, groups[row_group].schema.field(column), [[b"\0"]])
    with pq.ParquetWriter(shard, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)


def test_a_truncated_shard(own_uri):
    shard = next(Path(own_uri).glob("shards/a*"))
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(DataError) as caught:
        batches(own_uri)
    assert shard.name in caught.value.where


def test_labels_outside_their_grid(own_uri):
    info = open_occupancy(own_uri, "default").info
    small = VoxelGrid((-8.0, -8.0, -2.2), (0.4, 0.4, 0.4), (10, 10, 16))
    with OccupancyWriter(own_uri, OccupancyInfo("wrong", small, info.classes, {})) as writer:
        labels = open_occupancy(own_uri, "default")
        for sequence_id, count in (("a", 7), ("b", 4)):
            writer.add_sequence(sequence_id, [labels.get(sequence_id, f"{i:03d}") for i in range(count)])
    with pytest.raises(DataError, match="bytes of mask"):
        batches(own_uri, replace(CONFIG, labels="wrong"))


def test_frames_without_labels_are_counted(own_uri):
    labels = open_occupancy(own_uri, "default")
    with OccupancyWriter(own_uri, replace(labels.info, name="some")) as writer:
        writer.add_sequence("a", [labels.get("a", f"{i:03d}") for i in range(7)])
    assert len(batches(own_uri, replace(CONFIG, labels="some"), subset=Subset("sequence", ("a",)))) >= 2
    with pytest.raises(DataError, match="4 of 11 frames have no labels in the set 'some', the first is b/000"):
        batches(own_uri, replace(AS_IT_IS, labels="some"))


def test_labels_have_classes_of_their_own(own_uri):
    labels = open_occupancy(own_uri, "default")
    with OccupancyWriter(
        own_uri, replace(labels.info, name="binary", classes=(SemanticClass("occupied", (0, 0, 0)),))
    ) as writer:
        for sequence_id, count in (("a", 7), ("b", 4)):
            frames = [labels.get(sequence_id, f"{i:03d}") for i in range(count)]
            writer.add_sequence(sequence_id, [replace(f, semantic=np.ones_like(f.semantic)) for f in frames])
    before, after = batches(own_uri, AS_IT_IS), batches(own_uri, replace(AS_IT_IS, labels="binary"))
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.occupancy_index, other.occupancy_index)
        np.testing.assert_array_equal(one.box_class, other.box_class)  # boxes keep the dataset's classes
        assert np.unique(one.occupancy_class).tolist() != [1]
        assert np.unique(other.occupancy_class).tolist() == [1]


def test_mistakes_show_before_the_first_batch(uri):
    # The iterator itself is not touched: a trainer must not start for this.
    with pytest.raises(ConfigError, match="'intensty' is no feature"):
        iterate(uri, DataConfig(features=("x", "y", "z", "intensty")), seed=0, epoch=0, global_batch_size=1)
    with pytest.raises(DataError, match="no occupancy labels 'none'"):
        iterate(uri, DataConfig(labels="none"), seed=0, epoch=0, global_batch_size=1)
