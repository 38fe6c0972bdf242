"""Several datasets in one run: their classes, proportions, and what each can label."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from spot_ray.errors import ConfigError
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.operators.config import AugmentConfig, BalanceConfig, DataConfig, ShuffleConfig
from spot_ray.operators.mixture import DataSource, as_sources, open_mixture, parse_source, with_subsets
from spot_ray.operators.plan import Planner, proportioned
from spot_ray.operators.stream import iterate
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter

GRID = VoxelGrid((-8.0, -8.0, -2.2), (0.4, 0.4, 0.4), (40, 40, 16))
CAR, ROAD = SemanticClass("car", (0, 0, 255), foreground=True), SemanticClass("road", (90, 90, 90), ground=True)
TREE = SemanticClass("tree", (0, 200, 0))
PLAIN = DataConfig(
    features=("x", "y", "z"),
    balance=BalanceConfig(enabled=False),
    augment=AugmentConfig(flip_x=False, flip_y=False, rotation_rad=(0.0, 0.0), scale=(1.0, 1.0)),
)


def write(uri, name, classes, *, logs, frames, point_class=1, height=1.8):
    """Write a dataset whose every frame has one voxel, and points, of one class."""
    taxonomy = Taxonomy.from_classes(name, classes)
    lidar = LidarSpec(name, 0, "spinning", 4, (-20.0, 10.0), ego_SE3_lidar=nominal_mount(height))
    with DatasetWriter(str(uri), name=name, rig=[lidar], taxonomy=taxonomy) as writer:
        for log in range(logs):
            for i in range(frames):
                xyz = np.array([[1.0, 2.0, 0.5], [3.0, 4.0, 0.5]], np.float32)
                own = np.full(2, point_class, np.uint16)
                writer.add(Sweep(f"{name}{log}", f"{i:03d}", i * 10**9, xyz, point_source_class=own))
    index = np.array([17], np.int32)
    seen = pack_bits(np.isin(np.arange(GRID.num_voxels), index))
    with OccupancyWriter(str(uri), OccupancyInfo("default", GRID, classes, {})) as labels:
        for log in range(logs):
            row = [
                Occupancy(f"{name}{log}", f"{i:03d}", index, np.array([point_class], np.uint8), seen)
                for i in range(frames)
            ]
            labels.add_sequence(f"{name}{log}", row)
    return str(uri)


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    return write(tmp_path_factory.mktemp("mix") / "city", "city", (CAR, ROAD), logs=3, frames=4, point_class=1)


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    classes = (TREE, ROAD, replace(CAR, labelled=False))
    return write(tmp_path_factory.mktemp("mix") / "forest", "forest", classes, logs=2, frames=3)


def test_classes_of_one_name_are_one_class(city, forest):
    mixture = open_mixture([city, forest], labels="default")
    assert len(mixture) == 18
    assert mixture.label_taxonomy.class_names == mixture.taxonomy.class_names == ("car", "road", "tree")
    first, second = mixture.members
    np.testing.assert_array_equal(first.class_of_label[:3], [0, 1, 2])
    np.testing.assert_array_equal(second.class_of_label[[0, 1, 2, 255]], [0, 3, 2, 255])
    # The city has no trees; the forest's annotators leave cars out.
    np.testing.assert_array_equal(first.labelled, [True, True, True, False])
    np.testing.assert_array_equal(second.labelled, [True, False, True, True])
    assert mixture.label_taxonomy.mask("labelled").tolist() == [False, True, True, True]
    np.testing.assert_array_equal(mixture.member_of(np.array([0, 11, 12, 17])), [0, 0, 1, 1])


def test_one_dataset_stays_as_it_is(forest):
    mixture = open_mixture(forest, labels="default")
    assert mixture.taxonomy == mixture.members[0].dataset.info.taxonomy
    np.testing.assert_array_equal(mixture.members[0].labelled, [True, True, True, False])


def test_samples_carry_the_mixtures_classes_and_what_their_dataset_can_label(city, forest):
    config = replace(PLAIN, point_labels=True)
    seen = Counter()
    for batch in iterate([city, forest], config, seed=0, epoch=0, global_batch_size=4):
        for b in np.flatnonzero(batch.weight):
            points = slice(*batch.point_offsets[b : b + 2])
            expected = 1 if batch.frames[b].startswith("city") else 3
            assert set(batch.point_class[points].tolist()) == {expected}
            assert batch.occupancy_class[batch.occupancy_offsets[b]] == expected
            assert batch.labelled[b].tolist() == [[True, True, True, False], [True, False, True, True]][expected // 3]
            assert batch.datasets[b] == expected // 3
            seen[batch.frames[b]] += 1
    assert len(seen) == 18
    assert set(seen.values()) == {1}


def test_a_class_that_means_two_things_is_an_error(city, tmp_path):
    other = write(tmp_path / "other", "other", (replace(ROAD, ground=False),), logs=1, frames=1)
    with pytest.raises(ConfigError, match="'road' is neither foreground nor ground here, but ground in") as caught:
        open_mixture([city, other], labels="default")
    assert caught.value.where == other


def test_proportions_never_cut_a_dataset(city, forest):
    assert proportioned([12, 6], [1.0, 1.0]) == [12, 12]
    assert proportioned([12, 6], [3.0, 1.0]) == [18, 6]
    assert proportioned([12, 6], [0.2, 0.8]) == [12, 48]
    mixture = open_mixture([DataSource(city, 0.2), DataSource(forest, 0.8)], labels="default")
    spread = replace(PLAIN, shuffle=ShuffleConfig(apart_s=0.0))
    planner = Planner(mixture, spread, seed=0, global_batch_size=5)
    plan = planner.plan(0)
    uses = np.bincount(plan.frame, minlength=18)
    np.testing.assert_array_equal(uses, [1] * 12 + [8] * 6)
    assert planner.num_steps(0) == plan.num_steps == 12
    assert sorted(zip(plan.frame.tolist(), plan.copy.tolist(), strict=True)) == [
        (frame, copy) for frame, count in enumerate(uses) for copy in range(count)
    ]
    # In each fifth of the epoch, a fifth of the city.
    assert {int((part < 12).sum()) for part in np.split(plan.frame, 5)} <= {2, 3}


def test_a_part_of_the_frames_is_used_once_more_where_copies_do_not_come_out_even(city, forest):
    mixture = open_mixture([DataSource(city, 2.0), DataSource(forest, 3.0)], labels="default")
    planner = Planner(mixture, PLAIN, seed=0, global_batch_size=5)
    assert [np.bincount(planner.plan(epoch).frame, minlength=18)[12:].sum() for epoch in range(3)] == [18] * 3
    mixture = open_mixture([DataSource(city, 3.0), DataSource(forest, 2.0)], labels="default")
    uses = [np.bincount(Planner(mixture, PLAIN, seed=0, global_batch_size=5).plan(e).frame)[12:] for e in (0, 1)]
    assert [sorted(u.tolist()) for u in uses] == [[1, 1, 1, 1, 2, 2]] * 2
    assert uses[0].tolist() != uses[1].tolist()  # other frames in another epoch


def test_balancing_is_over_the_union(city, forest):
    # Cars are in the city's 12 frames alone; with trees as foreground, in 6 of the forest's: N = (12, 6),
    # s_tree = sqrt(0.5 / (6 / 18)) = 1.22.
    balance = BalanceConfig(foreground=("car", "tree"))
    mixture = open_mixture([city, forest], labels="default")
    planner = Planner(mixture, replace(PLAIN, balance=balance), seed=0, global_batch_size=5)
    uses = sum(np.bincount(planner.plan(epoch).frame, minlength=18) for epoch in range(100))
    np.testing.assert_array_equal(uses[:12], 100)
    assert 600 * 1.225 - 80 < uses[12:].sum() < 600 * 1.225 + 80


def test_names_of_sources(city, forest):
    assert parse_source("s3://bucket/city:0.25") == DataSource("s3://bucket/city", 0.25)
    assert parse_source("s3://bucket/city") == DataSource("s3://bucket/city")
    assert parse_source("data:new/city") == DataSource("data:new/city")
    for text in ("city:0", "city:-1", "city:nan", "city:inf"):
        with pytest.raises(ConfigError, match="the proportion is"):
            parse_source(text)
    with pytest.raises(ConfigError, match="named twice"):
        as_sources([city, city + "/"])
    with pytest.raises(ConfigError, match="only some of the datasets have a proportion"):
        as_sources([city, DataSource(forest, 1.0)])
    with pytest.raises(ConfigError, match="there is no dataset"):
        as_sources([])


def test_subsets_find_their_datasets(city, forest):
    part = Subset("sequence", ("forest1",), dataset="forest")
    found = with_subsets(as_sources([city, forest]), [part])
    assert [source.subset for source in found] == [None, part]
    plan = Planner(open_mixture(found, labels="default"), PLAIN, seed=0, global_batch_size=5).plan(0)
    assert sorted(plan.frame.tolist()) == [*range(12), 15, 16, 17]
    with pytest.raises(ConfigError, match="subset of 'ocean'"):
        with_subsets(as_sources([city, forest]), [replace(part, dataset="ocean")])
    with pytest.raises(ConfigError, match="subset of 'forest'"):
        with_subsets(as_sources([city, forest]), [part, part])
    assert with_subsets([DataSource(city)], [part])[0].subset == part  # the only one takes it, whatever its name
