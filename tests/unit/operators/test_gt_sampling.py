"""Objects of other frames that are pasted into a sample."""

import pickle
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
from street_log import STREET_LIDAR, STREET_TAXONOMY, make_street_sweep, street_objects

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.boxes import points_in_boxes
from spot_ray.geometry.rotated_iou import bev_intersections
from spot_ray.operators.chain import build_chain
from spot_ray.operators.config import (
    AugmentConfig,
    BalanceConfig,
    BoxConfig,
    DataConfig,
    GtSamplingConfig,
    MergeConfig,
)
from spot_ray.operators.gt_database import build_gt_database
from spot_ray.operators.gt_sampling import draw
from spot_ray.operators.loader import BatchStream
from spot_ray.operators.mixture import DataSource, common_grid, open_mixture
from spot_ray.operators.read import slots
from spot_ray.operators.stream import _plan, iterate
from spot_ray.schema.subset import Subset
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.shards import ShardReader

STILL = AugmentConfig(flip_x=False, flip_y=False, rotation_rad=(0.0, 0.0), scale=(1.0, 1.0))
CONFIG = DataConfig(
    features=("x", "y", "z", "intensity", "ring"),
    labels=None,
    balance=BalanceConfig(enabled=False),
    augment=STILL,
    boxes=BoxConfig(classes="detection"),
    gt_sampling=GtSamplingConfig(classes=("Pedestrian", "Car"), counts=(3, 6), min_points=(5, 4)),
)
RUN = {"seed": 1, "epoch": 0, "global_batch_size": 1}


@pytest.fixture(scope="module")
def database(street, tmp_path_factory):
    """The database of the whole street."""
    uri = str(tmp_path_factory.mktemp("objects"))
    build_gt_database(open_mixture(street, labels=None), CONFIG, uri)
    return uri


@pytest.fixture
def mixture(street, database):
    return replace(open_mixture(street, labels=None), gt_database=database)


def by_frame(batches):
    return {batch.frames[0]: batch for batch in batches}


def codes_of(batch):
    """Return the codes of the objects whose points a batch holds: 10 · frame + object, see `street_log`."""
    return {round(code) for code in np.unique(batch.points[:, 3] * 255).tolist()} - {0}


def number_of(name):
    return int(name[2:]) + (5 if name[0] == "b" else 0)


def test_classes_are_filled_up_with_objects_that_fit(mixture):
    pasted = Counter()
    for epoch in range(4):
        for name, batch in by_frame(iterate(mixture, CONFIG, **RUN | {"epoch": epoch})).items():
            frame, sweep = number_of(name), make_street_sweep(name[0], int(name[2:]))
            # The frame's own boxes come first, as they were.
            np.testing.assert_array_equal(batch.boxes[:5], sweep.boxes.boxes)
            own, found = batch.box_class[:5].tolist(), batch.box_class.tolist()
            assert own == [2, 2, 2, 255, 1]
            assert 1 <= found.count(1) <= 3
            assert 3 <= found.count(2) <= 6
            pasted.update(batch.box_class[5:].tolist())
            shared = bev_intersections(batch.boxes, batch.boxes[5:])
            shared[np.arange(5, len(shared)), np.arange(len(shared) - 5)] = 0
            assert not shared.any()
            own_codes = {10 * frame + k + 1 for k in range(5)}
            others = codes_of(batch) - own_codes
            assert len(others) == len(batch.boxes) - 5
            for code in others:
                _check_whole(batch, code)
    assert min(pasted[1], pasted[2]) > 8


def _check_whole(batch, code):
    """Check that an object is in a batch with its box, its class, its velocity and all of its points."""
    frame, k = divmod(code, 10)
    source, box, count, _ = street_objects(frame)[k - 1]
    at = np.flatnonzero((batch.boxes == np.float32(box)).all(axis=1))
    assert len(at) == 1
    assert batch.box_class[at[0]] == (2 if source == 0 else 1)
    np.testing.assert_array_equal(batch.box_velocity[at[0]], [np.nan] * 2 if source else [frame, 1])
    name = ("a", frame) if frame < 5 else ("b", frame - 5)
    sweep = make_street_sweep(*name)
    own, mine = np.rint(batch.points[:, 3] * 255) == code, sweep.intensity == code
    assert own.sum() == count
    np.testing.assert_array_equal(batch.points[own, :3], sweep.xyz[mine])
    np.testing.assert_allclose(batch.points[own, 4], sweep.ring[mine] / 4)


def test_the_scene_gives_way_to_what_is_pasted(mixture):
    removed = 0
    for name, batch in by_frame(iterate(mixture, CONFIG, **RUN)).items():
        sweep = make_street_sweep(name[0], int(name[2:]))
        own = np.isin(np.rint(batch.points[:, 3] * 255), np.unique(sweep.intensity))
        kept = points_in_boxes(sweep.xyz, batch.boxes[5:], margin_m=0.1) < 0
        np.testing.assert_array_equal(batch.points[own, :3], sweep.xyz[kept])
        removed += (~kept).sum()
    assert removed > 10


def test_no_frame_gets_its_own_objects(street, tmp_path):
    # A database of one frame, whose boxes are left out for want of points: only the name tells.
    only = replace(open_mixture(DataSource(street, subset=Subset("frame", ("a/002",))), labels=None))
    config = replace(CONFIG, boxes=BoxConfig("detection", 1000))
    build_gt_database(only, config, str(tmp_path))
    (batch,) = iterate(replace(only, gt_database=str(tmp_path)), config, **RUN)
    assert len(batch.boxes) == 0
    np.testing.assert_array_equal(np.unique(np.rint(batch.points[:, 3] * 255)), [0, 21, 22, 23, 24, 25])


def test_a_class_that_is_there_often_enough_gets_none(mixture):
    config = replace(CONFIG, gt_sampling=replace(CONFIG.gt_sampling, counts=(1, 3)))
    for name, batch in by_frame(iterate(mixture, config, **RUN)).items():
        assert len(batch.boxes) == 5
        assert codes_of(batch) == {10 * number_of(name) + k + 1 for k in range(5)}


def test_objects_have_their_time_lag(street, tmp_path):
    config = replace(
        CONFIG, features=("x", "y", "z", "intensity", "time_lag"), merge=MergeConfig(num_sweeps=2, min_distance_m=0.0)
    )
    mixture = open_mixture(street, labels=None)
    build_gt_database(mixture, config, str(tmp_path))
    mixture = replace(mixture, gt_database=str(tmp_path))
    plain = by_frame(iterate(mixture, replace(config, gt_sampling=GtSamplingConfig()), **RUN))
    older = 0
    for name, batch in by_frame(iterate(mixture, config, **RUN)).items():
        lag = {tuple(point[:3].tolist()): float(point[4]) for point in plain[name].points}
        own = [tuple(point[:3].tolist()) in lag for point in batch.points]
        assert all(lag[tuple(point[:3].tolist())] == float(point[4]) for point in batch.points[own])
        pasted = batch.points[~np.array(own), 4]
        older += (pasted > 0).sum()
        assert set(np.round(pasted, 6).tolist()) <= set(np.float32([0, 0.1]).round(6).tolist())
    assert older


def test_after_some_epochs_nothing_is_pasted(street, mixture):
    config = replace(CONFIG, gt_sampling=replace(CONFIG.gt_sampling, until_epoch=2))
    boxes = [sum(len(batch.boxes) for batch in iterate(mixture, config, **RUN | {"epoch": e})) for e in (1, 2, 3)]
    assert boxes[0] > 40
    assert boxes[1:] == [40, 40]
    # Nor is a database needed any more.
    plain = open_mixture(street, labels=None)
    assert sum(len(batch.boxes) for batch in iterate(plain, config, **RUN | {"epoch": 2})) == 40


@pytest.mark.parametrize("moved", [STILL, AugmentConfig(scale_height=True)], ids=["still", "moved"])
def test_samples_are_the_same_at_any_number_of_workers_and_in_any_order(mixture, moved):
    config = replace(CONFIG, augment=moved)

    def contents(batches):
        return Counter(
            (
                batch.frames[b],
                int(batch.copies[b]),
                batch.points[batch.point_offsets[b] : batch.point_offsets[b + 1]].tobytes(),
                *(
                    values[batch.box_offsets[b] : batch.box_offsets[b + 1]].tobytes()
                    for values in (batch.boxes, batch.box_class, batch.box_velocity)
                ),
            )
            for batch in batches
            for b in np.flatnonzero(batch.weight)
        )

    run = RUN | {"global_batch_size": 4}
    whole = contents(iterate(mixture, config, **run))
    assert len(whole) == 8
    for world_size in (2, 3):
        ranks = [contents(iterate(mixture, config, **run, rank=r, world_size=world_size)) for r in range(world_size)]
        assert sum(ranks, Counter()) == whole
    assert contents(iterate(mixture, config, **run, shuffle=False)) == whole
    assert contents(iterate(mixture, config, **run, start_step=1)) <= whole
    assert not contents(iterate(mixture, config, **run | {"epoch": 1})) & whole
    assert not contents(iterate(mixture, config, **run | {"seed": 2})) & whole


def test_each_repeat_of_a_frame_gets_objects_of_its_own(mixture):
    work = _plan(mixture, CONFIG, **RUN, rank=0, world_size=1, start_step=0, shuffle=False, grid=None, planner=None)
    chain = pickle.loads(pickle.dumps(work.chain.datasets[0]))  # as Ray sends it
    slot = next(iter(slots(work.places)))
    found = {chain(replace(slot, copy=copy), ShardReader(chain.uri))[0]["points"].tobytes() for copy in range(6)}
    assert len(found) > 3


def test_nothing_is_written_into_the_sample(mixture):
    chain = build_chain(mixture, CONFIG, common_grid(mixture), seed=1, epoch=0).datasets[0]
    work = _plan(mixture, CONFIG, **RUN, rank=0, world_size=1, start_step=0, shuffle=False, grid=None, planner=None)
    sample = chain.frame(next(iter(slots(work.places))), ShardReader(chain.uri))
    before = {f.name: np.copy(getattr(sample.sweep, f.name)) for f in fields(sample.sweep) if f.name in ("xyz", "ring")}
    boxes = sample.sweep.boxes.boxes.copy()
    assert len(chain.paste(sample).sweep) > len(sample.sweep)
    np.testing.assert_array_equal(sample.sweep.boxes.boxes, boxes)
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(sample.sweep, name), values)


def test_objects_are_of_the_frames_own_dataset(street, tmp_path):
    other = str(tmp_path / "other")
    with DatasetWriter(other, name="other", rig=[STREET_LIDAR], taxonomy=STREET_TAXONOMY, lossless=True) as writer:
        for number in range(3):
            sweep = make_street_sweep("b", number)
            writer.add(replace(sweep, sequence_id="c", intensity=sweep.intensity + 100))
    mixture = open_mixture([street, other], labels=None)
    build_gt_database(mixture, CONFIG, str(tmp_path / "objects"))
    pasted = [0, 0]
    for batch in iterate(replace(mixture, gt_database=str(tmp_path / "objects")), CONFIG, **RUN):
        own = int(batch.datasets[0])
        assert {code >= 100 for code in codes_of(batch)} == {bool(own)}
        pasted[own] += len(batch.boxes) - 5
    assert min(pasted) > 0


def test_a_column_that_an_object_lacks_is_named(street, tmp_path):
    mixed = str(tmp_path / "mixed")
    with DatasetWriter(mixed, name="mixed", rig=[STREET_LIDAR], taxonomy=STREET_TAXONOMY) as writer:
        for number in range(4):
            sweep = make_street_sweep("a", number)
            writer.add(replace(sweep, ring=sweep.ring if number == 3 else None))
    mixture = open_mixture(mixed, labels=None)
    build_gt_database(mixture, CONFIG, str(tmp_path / "objects"))
    mixture = replace(mixture, gt_database=str(tmp_path / "objects"))
    only = replace(CONFIG, gt_sampling=replace(CONFIG.gt_sampling, counts=(9, 9)))
    with pytest.raises(DataError, match="has no point column 'ring', the frame has it"):
        chain = build_chain(mixture, only, common_grid(mixture), seed=1, epoch=0).datasets[0]
        work = _plan(mixture, only, **RUN, rank=0, world_size=1, start_step=0, shuffle=False, grid=None, planner=None)
        for slot in list(slots(work.places))[3:]:
            chain.paste(chain.frame(slot, ShardReader(chain.uri)))


def test_a_database_is_asked_for(street, database, tmp_path):
    with pytest.raises(ConfigError, match="there is no whole database") as caught:
        list(iterate(street, CONFIG, **RUN))
    assert caught.value.where == "data.gt_sampling"
    empty = replace(open_mixture(street, labels=None), gt_database=str(tmp_path))
    with pytest.raises(ConfigError, match="there is no whole database") as caught:
        list(iterate(empty, CONFIG, **RUN))
    assert caught.value.where == str(tmp_path)
    some = open_mixture(DataSource(street, subset=Subset("sequence", ("a",))), labels=None)
    with pytest.raises(ConfigError, match="was made of other datasets"):
        list(iterate(replace(some, gt_database=database), CONFIG, **RUN))


def test_no_frame_is_skipped_for_a_database_that_is_gone(street, tmp_path):
    mixture = open_mixture(street, labels=None)
    build_gt_database(mixture, CONFIG, str(tmp_path))
    (tmp_path / "objects.arrow").unlink()
    with pytest.raises(ConfigError, match="the objects cannot be read") as caught:
        list(iterate(replace(mixture, gt_database=str(tmp_path)), replace(CONFIG, on_bad_frame="skip"), **RUN))
    assert caught.value.where == str(tmp_path / "objects.arrow")


def test_a_stream_of_ones_own_pastes_too(street, database):
    with BatchStream(
        street, CONFIG, seed=1, global_batch_size=8, gt_database=database, with_ray=False, shuffle=False
    ) as stream:
        assert len(next(iter(stream)).boxes) > 40


def test_drawn_numbers_differ_and_are_as_likely():
    rng = np.random.default_rng(0)
    counts, first = np.zeros(7), np.zeros(7)
    for _ in range(4000):
        numbers = draw(rng.random(3), 7)
        assert len(set(numbers.tolist())) == 3
        counts[numbers] += 1
        first[numbers[0]] += 1
    np.testing.assert_allclose(counts / 4000, 3 / 7, atol=0.03)
    np.testing.assert_allclose(first / 4000, 1 / 7, atol=0.025)
    assert sorted(draw(rng.random(9), 4).tolist()) == [0, 1, 2, 3]
    assert len(draw(rng.random(3), 0)) == 0
    assert draw(np.array([0.999, 0.999, 0.0]), 3).tolist() == [2, 0, 1]
