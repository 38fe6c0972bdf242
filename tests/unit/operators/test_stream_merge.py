"""Merged and de-skewed sweeps through the whole chain, without Ray: 20 Hz sweeps, each fourth a key frame."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.operators.config import AugmentConfig, BalanceConfig, BeamConfig, DataConfig, MergeConfig
from spot_ray.operators.features import point_features
from spot_ray.operators.frame import input_columns, read_frames
from spot_ray.operators.mixture import DataSource
from spot_ray.operators.stream import iterate
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sensors import LidarSpec, as_matrix, nominal_mount
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter, open_dataset
from spot_ray.storage.occupancy import OccupancyWriter

GRID = VoxelGrid((-8.0, -8.0, -2.2), (0.4, 0.4, 0.4), (40, 40, 16))
BEAMS_DEG = tuple(np.linspace(-4.0, 4.0, 8).tolist())
TOP = LidarSpec("top", 4, "spinning", 8, (-4.0, 4.0), BEAMS_DEG, nominal_mount(1.8), intensity_max=255.0)
SIDE = LidarSpec("side", 90, "solid_state", 1, (-20.0, 20.0), ego_SE3_lidar=as_matrix(se3.from_yaw(1.5, (0, 0.9, 1))))
STEP_NS = 50_000_000
SPEED_M_S, TURN_RAD_S = 10.0, 0.5
FRAMES = 9
STILL = AugmentConfig(flip_x=False, flip_y=False, rotation_rad=(0.0, 0.0), scale=(1.0, 1.0))
PLAIN = DataConfig(
    features=("x", "y", "z", "intensity", "time_lag"),
    balance=BalanceConfig(enabled=False),
    augment=STILL,
    merge=MergeConfig(num_sweeps=3, max_gap_s=0.06, min_distance_m=1.0),
)


def pose(time_ns: float) -> np.ndarray:
    """The vehicle on a circle of 20 m."""
    angle, radius = TURN_RAD_S * time_ns * 1e-9, SPEED_M_S / TURN_RAD_S
    return se3.from_yaw(angle, (1e5 + radius * np.sin(angle), radius * (1 - np.cos(angle)), 0.0))


def landmarks(name: str) -> np.ndarray:
    """Points that stand in the world; the order of a sweep's points is theirs."""
    return np.random.default_rng(ord(name)).uniform([1e5 + 3, 3, 0.2], [1e5 + 30, 30, 3], (200, 3))


def seen(name: str, frame: int, *, skewed: bool) -> Sweep:
    """A sweep of 50 ms that ends at the frame's time and sees each landmark at a time of its own."""
    points, time = landmarks(name), frame * STEP_NS
    offsets = np.linspace(1 - STEP_NS, 0, len(points)).round().astype(np.int32)
    poses = [pose(time + offset) if skewed else pose(time) for offset in offsets]
    ego = [se3.transform_points(se3.invert(p), xyz[None])[0] for p, xyz in zip(poses, points, strict=True)]
    number = np.arange(len(points))
    body = np.array([[0.3, 0.2, 1.0], [0.1, 1.3, 1.1]])  # both within 1 m of one of the LiDARs
    return Sweep(
        name,
        f"{frame:03d}",
        1_700_000_000_000_000_000 + time,
        np.concatenate([ego, body]).astype(np.float32),
        world_SE3_ego=pose(time),
        intensity=np.append(number % 255, [250, 251]).astype(np.float32),
        ring=np.append(number % 8, [0, 0]).astype(np.uint16),
        lidar_id=np.append(np.where(number % 10 == 0, 90, 4), [4, 90]).astype(np.uint8),
        time_offset_ns=np.append(offsets, [0, 0]).astype(np.int32),
        boxes=Boxes(np.array([[3, 1, 0.5, 4, 2, 1.5, 0.3]], np.float32), np.array([2], np.uint16)),
        motion_compensated=not skewed,
        keyframe=frame % 4 == 0,
    )


def write(folder: Path, *, skewed: bool = False, poses: bool = True, lossless: bool = True) -> str:
    uri = str(folder)
    with DatasetWriter(uri, name="drive", rig=[TOP, SIDE], taxonomy=PAPER_TAXONOMY, lossless=lossless) as writer:
        for name in "ab":
            for frame in range(FRAMES):
                sweep = seen(name, frame, skewed=skewed)
                writer.add(sweep if poses else replace(sweep, world_SE3_ego=None))
    bits = pack_bits(np.zeros(GRID.num_voxels, bool))
    with OccupancyWriter(uri, OccupancyInfo("default", GRID, PAPER_TAXONOMY.classes, {})) as labels:
        for name in "ab":
            none = np.zeros(0, np.int32)
            labels.add_sequence(
                name, [Occupancy(name, f"{i:03d}", none, none.astype(np.uint8), bits) for i in range(0, FRAMES, 4)]
            )
    return uri


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("merge") / "straight")


@pytest.fixture(scope="module")
def skewed_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("merge") / "skewed", skewed=True)


def batches(uri, config=PLAIN, *, size=1, shuffle=False, subset=None, **options):
    source = DataSource(uri, subset=subset)
    return list(iterate(source, config, seed=3, epoch=0, global_batch_size=size, shuffle=shuffle, **options))


def test_key_frames_come_with_the_sweeps_before_them(uri):
    parts = batches(uri)
    assert [batch.frames[0] for batch in parts] == [f"{name}/{i:03d}" for name in "ab" for i in (0, 4, 8)]
    lags = [np.unique(batch.points[:, 4]) for batch in parts]
    for lag, expected in zip(lags, ([0], [0, 0.05, 0.1], [0, 0.05, 0.1]) * 2, strict=True):
        np.testing.assert_allclose(lag, expected, atol=1e-7)
    # All see the same standing landmarks, and the vehicle's own body is of the frame itself alone.
    own, *older = (parts[1].points[np.isclose(parts[1].points[:, 4], lag)] for lag in lags[1])
    assert len(own) == 202
    for sweep in older:
        np.testing.assert_allclose(sweep[:, :3], own[:200, :3], atol=1e-4)
        np.testing.assert_array_equal(sweep[:, 3], own[:200, 3])
    np.testing.assert_array_equal(parts[1].boxes, [[3, 1, 0.5, 4, 2, 1.5, np.float32(0.3)]])


def test_quantised_coordinates_merge_as_well(tmp_path):
    points = batches(write(tmp_path / "dataset", lossless=False))[1].points
    for sweep in (points[202:402], points[402:]):
        np.testing.assert_allclose(sweep[:, :3], points[:200, :3], atol=0.008)


def points_of(batch):
    """Return the input of every planned sample by its frame."""
    ends = batch.point_offsets
    return {batch.frames[b]: batch.points[ends[b] : ends[b + 1]].tobytes() for b in np.flatnonzero(batch.weight)}


@pytest.mark.parametrize("config", [PLAIN, replace(PLAIN, augment=AugmentConfig(), beams=BeamConfig(("hdl-32e",)))])
def test_any_number_of_workers_and_any_start_see_the_same_samples(uri, config):
    whole = batches(uri, config, size=4, shuffle=True)
    first, second = (batches(uri, config, size=4, shuffle=True, rank=rank, world_size=2) for rank in (0, 1))
    for step, batch in enumerate(whole):
        one, other = (points_of(part[step]) for part in (first, second))
        assert points_of(batch) == {**one, **other}
        assert len(one) + len(other) == len(points_of(batch))
    again = batches(uri, config, size=4, shuffle=True, start_step=1)
    for one, other in zip(whole[1:], again, strict=True):
        for field in (field for field in fields(one) if field.name != "stage_s"):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_augmentation_moves_all_sweeps_as_one(uri):
    still = batches(uri)[1]
    moved = batches(uri, replace(PLAIN, augment=AugmentConfig()))[1]
    assert not np.allclose(still.points[:, :2], moved.points[:, :2])
    np.testing.assert_allclose(moved.points[202:402, :3], moved.points[:200, :3], atol=2e-4)
    np.testing.assert_array_equal(still.points[:, 3:], moved.points[:, 3:])


def test_rings_are_dropped_alike_in_all_sweeps_of_the_spinning_lidar(uri):
    config = replace(PLAIN, features=("x", "y", "z", "ring", "time_lag"), beams=BeamConfig(("hdl-32e",) * 50))
    points = batches(uri, config)[1].points
    side = np.isclose(points[:, 3] % 1, 0) & (points[:, 3] > 0)  # a ring over one beam, against an eighth of a ring
    kept = [np.unique(points[~side & np.isclose(points[:, 4], lag), 3]) for lag in (0, 0.05, 0.1)]
    assert 0 < len(kept[0]) < 8
    for rings in kept[1:]:
        np.testing.assert_array_equal(rings, kept[0])
    assert (side & (points[:, 4] == 0)).sum() == (side & (points[:, 4] > 0)).sum() / 2 > 0


def test_skewed_sweeps_are_put_right_by_the_frames_around_them(skewed_uri, uri):
    truth = batches(uri)
    as_stored = batches(skewed_uri)
    corrected = batches(skewed_uri, replace(PLAIN, deskew=True))
    for step in (1, 2, 4, 5):
        assert np.abs(as_stored[step].points[:, :2] - truth[step].points[:, :2]).max() > 0.4
        # Between the frames' poses the path is taken as straight: 12 mm off a circle of 20 m at 60 m/s² · (25 ms)² / 2.
        np.testing.assert_allclose(corrected[step].points, truth[step].points, atol=0.02)
    # The first of a sequence has no frame before it: what comes after tells.
    np.testing.assert_allclose(corrected[0].points[:, :3], truth[0].points[:, :3], atol=0.05)


def test_deskew_alone_merges_nothing(skewed_uri, uri):
    single = replace(PLAIN, merge=MergeConfig())
    corrected, truth = batches(skewed_uri, replace(single, deskew=True)), batches(uri, single)
    assert len(corrected[1].points) == 202
    np.testing.assert_allclose(corrected[1].points, truth[1].points, atol=0.02)


@pytest.mark.parametrize("config", [PLAIN, replace(PLAIN, deskew=True), replace(PLAIN, merge=MergeConfig())])
def test_frames_are_read_for_prediction_as_for_training(skewed_uri, config):
    dataset = open_dataset(skewed_uri)
    columns = input_columns(config.features, dataset.info, merge=config.merge, deskew=config.deskew)
    frames = list(read_frames(dataset, range(0, FRAMES, 4), columns, merge=config.merge, deskew=config.deskew))
    for frame, batch in zip(frames, batches(skewed_uri, config, subset=Subset("sequence", ("a",))), strict=True):
        points = point_features(frame.merged, config.features, dataset.info.rig, time_lag_s=frame.time_lag_s)
        np.testing.assert_array_equal(points, batch.points)
        np.testing.assert_array_equal(frame.own.xyz, batch.points[: len(frame.own), :3])


def test_no_sweep_is_merged_across_a_gap(uri):
    with pytest.raises(ConfigError, match=r"within 0\.04 s: the nearest are 0\.05 s apart"):
        batches(uri, replace(PLAIN, merge=MergeConfig(num_sweeps=3, max_gap_s=0.04)))


def test_without_poses_nothing_can_be_merged(tmp_path):
    uri = write(tmp_path / "dataset", poses=False)
    with pytest.raises(DataError, match="has no pose") as error:
        batches(uri)
    assert "num_sweeps=1" in error.value.remedy
    assert len(batches(uri, replace(PLAIN, merge=MergeConfig()))) == 6


def test_frames_between_key_frames_have_no_labels(uri):
    with pytest.raises(DataError, match="12 of 18 frames have no labels") as error:
        batches(uri, replace(PLAIN, frames="all"))
    assert "data.frames=keyframes" in error.value.remedy


def test_a_broken_older_sweep_names_its_own_place(tmp_path):
    uri = write(tmp_path / "dataset")
    shard = next(Path(uri).glob("shards/a*"))
    file = pq.ParquetFile(shard)
    groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    column = groups[7].schema.get_field_index("xyz")
    groups[7] = groups[7].set_column(column, groups[7].schema.field(column), [[b"cut off"]])
    with pq.ParquetWriter(shard, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)
    with pytest.raises(DataError, match="xyz has 7 bytes") as error:
        batches(uri)
    assert error.value.where.endswith(f"{shard.name}, row group 7, row 0 (to be merged into frame a/008)")
