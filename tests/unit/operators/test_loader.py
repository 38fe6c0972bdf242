"""Streams without Ray; with it, and in several processes, in the integration tests."""

import gc
import itertools
import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import spot_ray
from spot_ray.errors import ConfigError, DataError, InstallError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.operators.config import AugmentConfig, BalanceConfig, DataConfig
from spot_ray.operators.loader import BatchStream
from spot_ray.operators.mixture import DataSource
from spot_ray.operators.stream import iterate
from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter, open_dataset
from spot_ray.train.config import PretrainConfig, TrainConfig

CONFIG = DataConfig(balance=BalanceConfig(enabled=False))
INNER = VoxelGrid((-4.0, -4.0, -2.2), (0.4, 0.4, 0.4), (20, 20, 16))
SIZE = 3  # eleven frames: four steps, the last of two


def open_stream(uri, config=CONFIG, **options):
    return BatchStream(uri, config, **{"seed": 5, "global_batch_size": SIZE, "with_ray": False} | options)


def keys(batches):
    """Return every planned sample and its very bytes, counted."""
    return Counter(
        (
            batch.step,
            batch.frames[b],
            int(batch.copies[b]),
            batch.points[slice(*batch.point_offsets[b : b + 2])].tobytes(),
        )
        for batch in batches
        for b in np.flatnonzero(batch.weight)
    )


def planned(uri, epoch, *, seed=5, config=CONFIG):
    return keys(iterate(uri, config, seed=seed, epoch=epoch, global_batch_size=SIZE))


def test_each_loop_is_an_epoch(uri):
    with open_stream(uri) as stream:
        for epoch in range(3):
            assert (stream.epoch, stream.step, len(stream)) == (epoch, 0, 4)
            assert keys(stream) == planned(uri, epoch)
        assert len(planned(uri, 0)) == 11


def test_an_iterator_stays_at_its_end(uri):
    with open_stream(uri) as stream:
        assert len(list(stream)) == 4
        assert next(stream, None) is None
        assert next(stream, None) is None
        assert (stream.epoch, stream.step) == (1, 0)
        assert next(iter(stream)).step == 0


def test_a_loop_that_was_left_is_gone_on_with(uri):
    with open_stream(uri) as stream:
        seen = []
        for batch in stream:
            seen.append(batch)
            if batch.step == 1:
                break
        assert (stream.epoch, stream.step, len(stream)) == (0, 2, 2)
        seen += stream
        assert keys(seen) == planned(uri, 0)


def test_resumed_with_other_workers_no_sample_is_lost_or_twice(uri):
    seen, states = [], []
    for rank in range(2):
        with open_stream(uri, rank=rank, world_size=2) as stream:
            list(stream)
            seen += itertools.islice(stream, 3)
            states.append(stream.state_dict())
    assert states[0] == states[1]
    assert (states[0]["epoch"], states[0]["step"]) == (1, 3)
    state = json.loads(json.dumps(states[0]))
    for rank in range(3):
        with open_stream(uri, rank=rank, world_size=3) as stream:
            stream.load_state_dict(state)
            assert (stream.epoch, stream.step, len(stream)) == (1, 3, 1)
            seen += stream
            assert stream.epoch == 2
    assert keys(seen) == planned(uri, 1)


def test_batches_that_were_prepared_but_not_handed_out_are_not_counted(uri):
    with open_stream(uri, prefetch_batches=4) as stream:
        first = next(stream)
        state = stream.state_dict()
    with open_stream(uri) as stream:
        stream.load_state_dict(state)
        assert keys([first, *stream]) == planned(uri, 0)


def test_a_state_of_the_epochs_end_has_an_empty_loop_left(uri):
    with open_stream(uri) as stream:
        for _ in stream:
            state = stream.state_dict()
        assert (state["epoch"], state["step"]) == (0, 4)
        stream.load_state_dict(state)
        assert len(stream) == 0
        assert list(stream) == []
        assert keys(stream) == planned(uri, 1)


def test_loading_leaves_the_present_epoch(uri):
    with open_stream(uri) as stream:
        begin = stream.state_dict()
        list(stream)
        next(iter(stream))
        stream.load_state_dict(begin)
        assert keys(stream) == planned(uri, 0)


def test_other_settings_are_refused_by_name(uri):
    state = open_stream(uri).state_dict()
    flipless = replace(CONFIG, augment=AugmentConfig(flip_x=False))
    for other, named in (
        (open_stream(uri, seed=6), "other are seed"),
        (open_stream(uri, global_batch_size=2, shuffle=False), "other are global_batch_size, shuffle"),
        (open_stream(uri, flipless), "other are data.augment.flip_x"),
        (open_stream(uri, grid=INNER), "other are grid.lower_m, grid.shape"),
        (open_stream(DataSource(uri, 2.0)), "the dataset had another proportion when the state was saved"),
        (open_stream(DataSource(uri, subset=Subset("sequence", ("a",)))), "the dataset had another subset when"),
    ):
        with pytest.raises(ConfigError, match=f"(?m){named}"):
            other.load_state_dict(state)
    # What a broken frame leads to may change.
    open_stream(uri, replace(CONFIG, on_bad_frame="skip")).load_state_dict(state)


def test_a_damaged_state_is_refused(uri):
    stream = open_stream(uri)
    state = stream.state_dict()
    for wrong, named in (
        ({**state, "step": 5}, "epoch 0, step 5, which is not planned"),
        ({**state, "epoch": -1}, "epoch -1"),
        ({name: value for name, value in state.items() if name != "seed"}, "'seed' is missing"),
        ({**state, "step": "2"}, "'step' is not valid"),
        ({**state, "datasets": []}, "the state is of 0 datasets, here are 1"),
    ):
        with pytest.raises(ConfigError, match=named):
            stream.load_state_dict(wrong)
    assert (stream.epoch, stream.step) == (0, 0)


def test_logs_that_came_later_are_told_of_and_left_out_by_their_parts(own_uri):
    parts = tuple(open_dataset(own_uri).parts)
    with open_stream(own_uri) as stream:
        first = next(stream)
        state = stream.state_dict()
    dataset = open_dataset(own_uri)
    with DatasetWriter(own_uri, name="tiny", rig=dataset.info.rig, taxonomy=dataset.info.taxonomy) as writer:
        writer.add(replace(dataset[0], sequence_id="c"))
    assert len(open_dataset(own_uri)) == 12
    with pytest.raises(ConfigError, match="other frames when the state was saved: 11, and 12 now") as caught:
        open_stream(own_uri).load_state_dict(state)
    assert caught.value.where.startswith(own_uri)
    with open_stream(DataSource(own_uri, parts=parts)) as stream:
        stream.load_state_dict(state)
        assert keys([first, *stream]) == planned(DataSource(own_uri, parts=parts), 0)


def test_a_broken_frame_ends_the_loop_and_the_next_one_asks_for_it_again(own_uri):
    for shard in Path(own_uri).glob("shards/*"):
        shard.rename(shard.with_suffix(".away"))
    with open_stream(own_uri) as stream:
        for _ in range(2):
            with pytest.raises(DataError):
                list(stream)
            assert (stream.epoch, stream.step) == (0, 0)
        for shard in Path(own_uri).glob("shards/*"):
            shard.rename(shard.with_suffix(".parquet"))
        assert keys(stream) == planned(own_uri, 0)


def test_datasets_are_opened_once(uri, monkeypatch):
    with open_stream(uri) as stream:
        for name in ("spot_ray.operators.stream.open_mixture", "spot_ray.operators.stream.Planner"):
            monkeypatch.setattr(name, None)
        assert sum(len(list(stream)) for _ in range(2)) == 8


def test_nothing_runs_on(uri):
    stream = open_stream(uri)
    next(stream)
    assert running()
    stream.close()
    assert not running()
    assert next(stream).step == 1
    del stream
    gc.collect()
    assert not running()


def running():
    return [thread for thread in threading.enumerate() if thread.name == "spot-ray-feed"]


def test_what_cannot_work_is_told_when_a_stream_is_opened(uri):
    with pytest.raises(ConfigError, match="rank is 2 of 2"):
        open_stream(uri, rank=2, world_size=2)
    with pytest.raises(ConfigError, match="'doppler' is no feature"):
        open_stream(uri, replace(CONFIG, features=("x", "y", "z", "doppler")))
    with pytest.raises(DataError, match="does not lie in the grid of the labels"):
        open_stream(uri, grid=replace(INNER, lower_m=(-4.1, -4.0, -2.2)))


def test_ray_is_asked_for_only_where_it_is(uri, monkeypatch):
    monkeypatch.setattr("spot_ray.operators.loader.has_ray", lambda _: False)
    with pytest.raises(InstallError, match="Ray is not installed"):
        open_stream(uri, with_ray=True)
    monkeypatch.setattr("spot_ray.operators.loader.stream", None)
    with open_stream(uri, with_ray=None) as stream:
        assert len(list(stream)) == 4


def test_without_occupancy_labels(tmp_path):
    """What a detector or a segmentation network needs: points, classes and boxes, augmented and balanced."""
    classes = (SemanticClass("car", (0, 0, 255), foreground=True), SemanticClass("road", (90, 90, 90), ground=True))
    taxonomy = Taxonomy.from_classes("bare", classes)
    lidar = LidarSpec("top", 0, "spinning", 4, (-20.0, 10.0), ego_SE3_lidar=nominal_mount(1.8))
    uri = str(tmp_path / "bare")
    box = Boxes(np.array([[3, 1, 1, 4, 2, 2, 0]], np.float32), np.array([1], np.uint16))
    with DatasetWriter(uri, name="bare", rig=[lidar], taxonomy=taxonomy) as writer:
        for i in range(5):
            xyz = np.array([[3, 1, 1], [3 + i, -4, 0]], np.float32)
            writer.add(
                Sweep("a", str(i), i * 10**10, xyz, point_source_class=np.array([1, 65535], np.uint16), boxes=box)
            )
    config = DataConfig(features=("x", "y", "z"), labels=None, point_labels=True)
    with open_stream(uri, config, global_batch_size=2) as stream:
        assert stream.label_taxonomy is None
        batches = list(stream)
        names = [name for batch in batches for name in np.array(batch.frames)[batch.weight > 0]]
        assert sorted(names) == [f"a/{i}" for i in range(5)]
        for batch in batches:
            assert (len(batch.occupancy_index), batch.observed.any()) == (0, False)
            detection = spot_ray.to_openpcdet(batch, stream.taxonomy)
            segmentation = spot_ray.to_pointcept(batch)
            assert segmentation["segment"].reshape(-1, 2).tolist() == [[0, -1]] * detection["batch_size"]
            # The first point is the centre of the box, and moved with it.
            centres, points = detection["gt_boxes"][:, 0, :3], detection["points"][::2, 1:]
            np.testing.assert_allclose(centres, points, atol=3e-3)
            assert detection["gt_boxes"][:, 0, 7].tolist() == [1] * detection["batch_size"]


def test_a_recipe_gives_batch_size_and_grid(uri, grid):
    recipe = PretrainConfig(recipe="test", grid=INNER, data=CONFIG, train=TrainConfig(global_batch_size=4))
    with spot_ray.stream(uri, recipe, seed=5, with_ray=False) as stream:
        batch = next(stream)
        assert (len(batch), len(stream)) == (4, 2)
        assert batch.observed.shape == (4, INNER.num_voxels // 8)
    with spot_ray.stream(uri, recipe, seed=5, with_ray=False, global_batch_size=2, grid=grid) as stream:
        batch = next(stream)
        assert batch.observed.shape == (2, grid.num_voxels // 8)
    with spot_ray.stream([DataSource(uri)], CONFIG, seed=5, with_ray=False, global_batch_size=SIZE) as stream:
        assert keys(stream) == planned(uri, 0)
    with pytest.raises(ConfigError, match="no batch size"):
        spot_ray.stream(uri, CONFIG, seed=5)
