"""Batches through real Ray Data, from one process and from two ranks at once."""

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from street_log import write_street

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.operators.config import (
    AugmentConfig,
    BalanceConfig,
    BeamConfig,
    BoxConfig,
    DataConfig,
    GtSamplingConfig,
    MergeConfig,
)
from spot_ray.operators.gt_database import build_gt_database
from spot_ray.operators.mixture import DataSource, open_mixture
from spot_ray.operators.stream import iterate, stream
from spot_ray.schema.lidars import WAYMO_TOP
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter

# Ray Data copies its own deprecated settings.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")

GRID = VoxelGrid((-8.0, -8.0, -2.2), (0.4, 0.4, 0.4), (40, 40, 16))
CONFIG = DataConfig(beams=BeamConfig(targets=("hdl-32e",)))
RUN = {"seed": 7, "epoch": 1, "global_batch_size": 5}


def write(folder: Path, *, driving: bool = False) -> str:
    """Write 23 labelled frames of two sequences; driving: with poses, 20 Hz, skewed, each third a key frame."""
    uri = str(folder)
    rng = np.random.default_rng(0)
    sweeps = {
        name: [
            Sweep(
                name,
                f"{i:03d}",
                i * 50_000_000,
                rng.uniform(-8, 8, (500 + i, 3)).astype(np.float32),
                world_SE3_ego=se3.from_yaw(0.03 * i, (0.5 * i, 0.0, 0.0)) if driving else None,
                time_offset_ns=rng.integers(-50_000_000, 1, 500 + i).astype(np.int32) if driving else None,
                motion_compensated=False if driving else None,
                keyframe=not driving or i % 3 == 0,
                intensity=rng.random(500 + i, np.float32),
                ring=rng.integers(0, 64, 500 + i).astype(np.uint16),
                point_source_class=rng.choice([2, 4, 14], 500 + i, p=[0.01, 0.001, 0.989]).astype(np.uint16),
            )
            for i in range(count)
        ]
        for name, count in (("a", 16), ("b", 7))
    }
    with DatasetWriter(uri, name="test", rig=[WAYMO_TOP], taxonomy=PAPER_TAXONOMY) as writer:
        for sequence in sweeps.values():
            for sweep in sequence:
                writer.add(sweep)
    with OccupancyWriter(uri, OccupancyInfo("default", GRID, PAPER_TAXONOMY.classes, {})) as writer:
        for name, sequence in sweeps.items():
            writer.add_sequence(name, [_label(sweep) for sweep in sequence])
    return uri


def _label(sweep: Sweep) -> Occupancy:
    voxel, inside = GRID.voxel_of(sweep.xyz)
    index = np.unique(GRID.linear(voxel[inside]))
    observed = np.isin(np.arange(GRID.num_voxels), index)
    return Occupancy(sweep.sequence_id, sweep.frame_id, index, np.full(len(index), 2, np.uint8), pack_bits(observed))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("stream") / "dataset")


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.stage_s.keys() == other.stage_s.keys()
        for field in (field for field in fields(one) if field.name != "stage_s"):
            a, b = getattr(one, field.name), getattr(other, field.name)
            np.testing.assert_array_equal(a, b, err_msg=field.name)
            assert getattr(a, "dtype", type(a)) == getattr(b, "dtype", type(b))


def contents(batches):
    """Return every planned sample's step, name and input, counted."""
    return Counter(
        (
            batch.step,
            batch.frames[b],
            int(batch.copies[b]),
            batch.points[batch.point_offsets[b] : batch.point_offsets[b + 1]].tobytes(),
            batch.network_from_label[b].tobytes(),
            batch.observed[b].tobytes(),
        )
        for batch in batches
        for b in np.flatnonzero(batch.weight)
    )


def test_ray_gives_the_batches_of_the_plain_iterator(uri):
    assert_same(list(stream(uri, CONFIG, **RUN)), list(iterate(uri, CONFIG, **RUN)))


def test_pasted_objects_too(tmp_path):
    mixture = open_mixture(write_street(str(tmp_path / "street")), labels=None)
    config = DataConfig(
        labels=None,
        boxes=BoxConfig(classes="detection", min_points=4),
        balance=BalanceConfig(method="draw", power=1.0, count="objects"),
        augment=AugmentConfig(scale_height=True),
        gt_sampling=GtSamplingConfig(classes=("Car", "Pedestrian"), counts=(6, 3), min_points=(4, 5)),
    )
    build_gt_database(mixture, config, str(tmp_path / "objects"))
    mixture = replace(mixture, gt_database=str(tmp_path / "objects"))
    batches = list(stream(mixture, config, **RUN))
    assert sum(len(batch.boxes) for batch in batches) > 4 * sum(len(batch) for batch in batches)
    assert_same(batches, list(iterate(mixture, config, **RUN)))


def test_merged_sweeps_too(tmp_path):
    uri = write(tmp_path / "dataset", driving=True)
    config = replace(
        CONFIG,
        features=("x", "y", "z", "intensity", "time_lag"),
        deskew=True,
        merge=MergeConfig(num_sweeps=5, max_gap_s=0.06),
    )
    batches = list(iterate(uri, config, **RUN))
    assert_same(list(stream(uri, config, **RUN)), batches)
    lags = {round(float(lag), 3) for batch in batches for lag in np.unique(batch.points[:, 4])}
    assert lags == {0.0, 0.05, 0.1, 0.15, 0.2}
    options = {"rank": 1, "world_size": 2, "start_step": 1}
    assert_same(list(stream(uri, config, **RUN, **options)), list(iterate(uri, config, **RUN, **options)))
    apart = [contents(stream(uri, config, **RUN, rank=rank, world_size=3)) for rank in range(3)]
    assert sum(apart, Counter()) == contents(batches)


def test_resumed_in_the_middle_and_cropped(uri):
    inner = VoxelGrid((-4.0, -4.0, -2.2), (0.4, 0.4, 0.4), (20, 20, 16))
    options = {"rank": 1, "world_size": 2, "start_step": 3, "grid": inner, "shuffle": False}
    part = DataSource(uri, subset=Subset("sequence", ("a",)))
    assert_same(list(stream(part, CONFIG, **RUN, **options)), list(iterate(part, CONFIG, **RUN, **options)))
    assert list(stream(uri, CONFIG, **RUN, start_step=99)) == []


def test_batches_are_writable(uri):
    with stream(uri, CONFIG, **RUN) as batches:
        assert next(batches).points.flags.writeable
    assert list(batches) == []


def test_two_ranks_at_once_see_what_one_sees(uri):
    # As under Ray Train: each rank is an actor that holds a part of the CPUs and streams its own share.
    @ray.remote(num_cpus=0.5)
    class Rank:
        def run(self, rank):
            return contents(stream(uri, CONFIG, **RUN, rank=rank, world_size=2))

    ranks = [Rank.remote() for _ in range(2)]
    parts = ray.get([actor.run.remote(rank) for rank, actor in enumerate(ranks)], timeout=120)
    together = contents(iterate(uri, CONFIG, **RUN))
    assert parts[0] + parts[1] == together
    assert set(together.values()) == {1}


def test_in_a_placement_group_that_captures_its_tasks(uri):
    # Ray Train's workers live in a placement group: reading must not wait for room in it.
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"CPU": 1}])
    ray.get(group.ready(), timeout=60)
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)

    @ray.remote(num_cpus=1, scheduling_strategy=strategy)
    def run():
        return contents(stream(uri, CONFIG, **RUN, max_tasks=1))

    assert ray.get(run.remote(), timeout=60) == contents(iterate(uri, CONFIG, **RUN))
    remove_placement_group(group)


def test_a_broken_frame_is_our_error_here_too(tmp_path):
    uri = write(tmp_path / "dataset")
    shard = next(Path(uri).glob("shards/b*"))
    file = pq.ParquetFile(shard)
    groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    column = groups[4].schema.get_field_index("xyz")
    groups[4] = groups[4].set_column(column, groups[4].schema.field(column), [[b"cut off"]])
    with pq.ParquetWriter(shard, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)
    with pytest.raises(DataError, match="xyz has 7 bytes for 504 points") as caught:
        list(stream(uri, CONFIG, **RUN))
    assert "row group 4, row 0 (frame b/004)" in caught.value.where
    assert shard.name in caught.value.where
