import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from spot_ray.errors import ConfigError, DataError
from spot_ray.operators.config import BalanceConfig, DataConfig
from spot_ray.operators.mixture import DataSource, mix
from spot_ray.operators.plan import EpochPlan, Planner
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.manifest import SWEEP_MANIFEST
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.subset import Subset
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import Dataset, open_dataset

PLAIN = DataConfig(balance=BalanceConfig(enabled=False))


def planner(dataset, config=PLAIN, *, seed=0, size=4, subset=None):
    mixture = mix([dataset], [None], [DataSource(dataset.uri, subset=subset)])
    return Planner(mixture, config, seed=seed, global_batch_size=size)


def plan(uri, config=PLAIN, *, seed=0, epoch=0, size=4, subset=None, **options):
    return planner(open_dataset(uri), config, seed=seed, size=size, subset=subset).plan(epoch, **options)


def test_without_balancing_every_frame_is_used_once_in_another_order(uri):
    first, second = plan(uri, epoch=0), plan(uri, epoch=1)
    assert sorted(first.frame) == sorted(second.frame) == list(range(11))
    assert list(first.frame) != list(second.frame) != list(range(11))
    np.testing.assert_array_equal(first.frame, plan(uri, epoch=0).frame)
    assert list(plan(uri, seed=1).frame) != list(first.frame)


def test_in_order_without_shuffling(uri):
    assert list(plan(uri, shuffle=False).frame) == list(range(11))


def test_balancing_repeats_the_frames_with_the_rare_class(uri):
    # Cars are in all 11 frames, cyclists in frame 1 of both sequences (indices 1 and 8): N = (11, 2), n = N / 13,
    # s_cyclist = sqrt(0.5 / (2 / 13)) = 1.803: those two are used once or twice, the second time in 80 of 100 epochs.
    uses = np.zeros(11)
    for epoch in range(100):
        epoch_plan = plan(uri, DataConfig(), epoch=epoch)
        assert set(zip(epoch_plan.frame.tolist(), epoch_plan.copy.tolist(), strict=True)) >= {(i, 0) for i in range(11)}
        uses += np.bincount(epoch_plan.frame, minlength=11)
    np.testing.assert_array_equal(np.delete(uses, [1, 8]), 100)
    np.testing.assert_allclose(uses[[1, 8]], 180.3, atol=15)  # four standard deviations of a binomial


def test_copies_are_numbered(uri):
    plans = planner(open_dataset(uri), DataConfig(), size=1)
    for epoch in range(20):
        copies = plans.plan(epoch, shuffle=False)
        for frame in range(11):
            assert list(copies.copy[copies.frame == frame]) == list(range((copies.frame == frame).sum()))


def test_a_subset_alone_is_planned(uri):
    assert sorted(plan(uri, subset=Subset("sequence", ("b",))).frame) == [7, 8, 9, 10]
    assert sorted(plan(uri, subset=Subset("frame", ("a/004", "b/000", "b/003"))).frame) == [4, 7, 10]
    three = Subset("frame", ("a/004", "b/000", "b/003"))
    assert planner(open_dataset(uri), size=2, subset=three).num_steps(1) == 2
    with pytest.raises(DataError, match="lacks 1 of the subset's 2 sequences: 'c'"):
        plan(uri, subset=Subset("sequence", ("b", "c")))


def test_balancing_counts_the_frames_in_use_alone(uri):
    # Cyclists are in frame 1 of both sequences, cars in every frame. Of a/001 and b/000 … b/003 two of five frames hold
    # a cyclist: N = (5, 2), n = N / 7, s_cyclist = sqrt(0.5 / (2 / 7)) = 1.323; over the whole dataset it is 1.803.
    subset = Subset("frame", ("a/001", "b/000", "b/001", "b/002", "b/003"))
    uses = np.zeros(11)
    for epoch in range(200):
        uses += np.bincount(plan(uri, DataConfig(), epoch=epoch, subset=subset).frame, minlength=11)
    np.testing.assert_array_equal(uses[[7, 9, 10]], 200)
    np.testing.assert_allclose(uses[[1, 8]], 264.6, atol=27)  # four standard deviations of a binomial
    np.testing.assert_array_equal(uses[[0, 2, 3, 4, 5, 6]], 0)


def test_key_frames_are_planned_unless_all_are_asked_for(uri):
    dataset = open_dataset(uri)
    is_keyframe = np.arange(11) % 5 == 0
    column = dataset.manifest.schema.get_field_index("keyframe")
    field = SWEEP_MANIFEST.field("keyframe")

    def marked(values):
        rows = dataset.manifest.set_column(column, field, [pa.array(values)])
        return Dataset(uri, dataset.info, rows, [])

    some, every = marked(is_keyframe), replace(PLAIN, frames="all")
    assert sorted(planner(some, PLAIN, size=2).plan(0).frame) == [0, 5, 10]
    assert sorted(planner(some, every, size=2).plan(0).frame) == list(range(11))
    assert planner(some, PLAIN, size=2).num_steps(0) == 2
    whole, named = Subset("sequence", ("b",)), Subset("frame", ("a/005", "b/001"))
    assert sorted(planner(some, PLAIN, size=2, subset=whole).plan(0).frame) == [10]
    assert sorted(planner(some, every, size=2, subset=whole).plan(0).frame) == [7, 8, 9, 10]
    # Frames that are named are used, key frames or not.
    assert sorted(planner(some, PLAIN, size=2, subset=named).plan(0).frame) == [5, 8]
    with pytest.raises(DataError, match="none of the 11 frames is a key frame") as error:
        planner(marked(np.zeros(11, bool)), PLAIN, size=2).plan(0)
    assert "data.frames=all" in error.value.remedy


@pytest.mark.parametrize("size", [1, 3, 4, 5, 32])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_workers_share_every_global_batch(uri, size, world_size):
    whole = plan(uri, size=size)
    shares = [whole.share(rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(whole.num_steps):
        expected = Counter(whole.frame[step * size : (step + 1) * size].tolist())
        used = [share.frame[(share.step == step) & (share.weight > 0)].tolist() for share in shares]
        assert Counter(frame for part in used for frame in part) == expected
        for share in shares:
            assert (share.step == step).sum() == share.batch_size
            assert set(share.global_weight[share.step == step]) == {float(expected.total())}
    assert sum(share.weight.sum() for share in shares) == 11


@pytest.mark.parametrize(("size", "most"), [(32, 4.2), (256, 2.5)])
def test_a_shard_is_read_by_few_workers(size, most):
    # 200 logs of 100 frames in a random order, eight workers.
    rng = np.random.default_rng(0)
    frame = rng.permutation(20_000)

    def workers_a_log(affinity):
        whole = EpochPlan(frame, np.zeros(20_000, np.int32), affinity.astype(np.float32), size)
        shares = [whole.share(rank=rank, world_size=8) for rank in range(8)]
        used = [share.frame[share.weight > 0] for share in shares]
        assert sorted(np.concatenate(used)) == list(range(20_000))
        for step in range(whole.num_steps):
            together = np.concatenate([s.frame[(s.step == step) & (s.weight > 0)] for s in shares])
            assert set(together) == set(frame[step * size : (step + 1) * size])
        return sum(len(np.unique(frames // 100)) for frames in used) / 200

    assert workers_a_log(rng.random(200)[frame // 100]) < most
    assert workers_a_log(np.zeros(20_000)) > 7.9


def test_last_batch_is_filled_with_samples_that_weigh_nothing(uri):
    share = plan(uri, size=4).share()
    np.testing.assert_array_equal(share.weight, [1.0] * 11 + [0.0])
    np.testing.assert_array_equal(share.global_weight, [4.0] * 8 + [3.0] * 4)
    assert share.frame[11] in range(11)


def test_more_places_than_the_global_batch_has(uri):
    # Three workers take ceil(4 / 3) = 2 each: the third computes nothing that counts, but has samples.
    share = plan(uri, size=4).share(rank=2, world_size=3)
    np.testing.assert_array_equal(share.weight, np.zeros(6))


def test_start_step_leaves_the_tail(uri):
    whole, tail = plan(uri).share(rank=1, world_size=2), plan(uri).share(rank=1, world_size=2, start_step=1)
    for name in ("frame", "copy", "weight", "step", "global_weight"):
        np.testing.assert_array_equal(getattr(tail, name), getattr(whole, name)[whole.batch_size :])
    assert len(plan(uri).share(start_step=3)) == len(plan(uri).share(start_step=9)) == 0


def test_steps_are_those_of_the_plans(uri):
    plans = planner(open_dataset(uri), DataConfig(), seed=3, size=2)
    steps = [plans.num_steps(epoch) for epoch in range(12)]
    assert steps == [plans.plan(epoch).num_steps for epoch in range(12)]
    assert len(set(steps)) > 1  # 11 to 13 samples: 6 or 7 steps


def test_wrong_sizes(uri):
    with pytest.raises(ConfigError, match="global_batch_size is 0"):
        plan(uri, size=0)
    with pytest.raises(ConfigError, match="max_repeat"):
        plan(uri, DataConfig(balance=BalanceConfig(max_repeat=0.5)))
    with pytest.raises(ValueError, match="rank 2 of 2"):
        plan(uri).share(rank=2, world_size=2)


def test_a_fleets_epochs_are_planned_in_seconds():
    # 160 000 frames (Waymo) and 30 epochs: planning must not look at frames one by one.
    count = 160_000
    rng = np.random.default_rng(0)
    frames = [f"{i:06d}" for i in range(count)]
    counts = pa.FixedSizeListArray.from_arrays(rng.integers(0, 2, count * 15), 15).cast(pa.list_(pa.int64()))
    columns = {
        "sequence_id": pa.array(["s"] * count),
        "frame_id": pa.array(frames),
        "class_point_counts": counts,
        "class_box_counts": pa.nulls(count, pa.list_(pa.int64())),
        "keyframe": pa.repeat(True, count),
    }
    for field in SWEEP_MANIFEST:
        if field.name not in columns:
            columns[field.name] = pa.repeat(pa.scalar("0").cast(field.type), count)
    rows = pa.table(columns).select(SWEEP_MANIFEST.names)
    info = DatasetInfo("fleet", (LidarSpec("top", 0, "spinning", 64, (-17.6, 2.4)),), PAPER_TAXONOMY)
    dataset = Dataset("memory", info, rows, [])
    start = time.perf_counter()
    plans = planner(dataset, DataConfig(), size=32)
    steps = [plans.num_steps(epoch) for epoch in range(30)]
    whole = plans.plan(29)
    assert time.perf_counter() - start < 5  # measured: 0.5 s
    assert isinstance(whole, EpochPlan)
    assert steps[29] == whole.num_steps
