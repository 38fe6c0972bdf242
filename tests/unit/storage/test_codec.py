from __future__ import annotations

import dataclasses
import re

import numpy as np
import pyarrow as pa
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.schema.dataset import DatasetInfo, ExtraColumn
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.sensors import LidarSpec, as_matrix
from spot_ray.schema.sweep import POINT_DTYPES, Boxes, Sweep
from spot_ray.schema.taxonomy import SemanticClass, SourceClass, Taxonomy
from spot_ray.storage.codec import (
    EXTRA,
    LABEL_COLUMNS,
    OCCUPANCY_SCHEMA,
    columns_for,
    decode_occupancy,
    decode_sweep,
    encode_occupancy,
    encode_sweep,
    sweep_schema,
)

NUM_BEAMS, NUM_COLUMNS = 8, 300
INCLINATIONS_DEG = tuple(float(4 - 3 * beam) for beam in range(NUM_BEAMS))
ROOF = LidarSpec(
    "roof",
    0,
    "spinning",
    NUM_BEAMS,
    (-17.0, 4.0),
    INCLINATIONS_DEG,
    as_matrix(se3.from_yaw(1.0, (1.0, -0.5, 2.0))),
)
INFO = DatasetInfo(
    name="made up",
    rig=(ROOF,),
    taxonomy=Taxonomy("made up", (SemanticClass("car", (1, 2, 3)),), (SourceClass(7, "car", "car"),)),
)
BEAM = np.tile(np.arange(NUM_BEAMS, dtype=np.uint16), NUM_COLUMNS)
PLAIN, LANES = 0, 1


def fired_by_column() -> Sweep:
    """Points of ROOF in the order of firing, the beams by turns; each beam sees a wall at a distance of its own."""
    azimuth = np.repeat(np.arange(NUM_COLUMNS) * 0.002, NUM_BEAMS)
    inclination = np.radians(np.array(INCLINATIONS_DEG))[BEAM]
    distance = 10.0 + 7 * (BEAM * 3 % 8) + np.random.default_rng(0).normal(0, 0.02, len(BEAM))
    in_lidar = distance[:, None] * np.stack(
        [np.cos(inclination) * np.cos(azimuth), np.cos(inclination) * np.sin(azimuth), np.sin(inclination)], axis=1
    )
    return Sweep("s", "f", 1, se3.transform_points(ROOF.pose, in_lidar).astype(np.float32))


def through(sweep: Sweep, info: DatasetInfo, **replaced: bytes) -> Sweep:
    table = pa.Table.from_pylist([encode_sweep(sweep, info) | replaced], schema=sweep_schema(info))
    return decode_sweep(table, 0, info)


def lane_bytes(sweep: Sweep, info: DatasetInfo = INFO) -> int:
    assert np.abs(through(sweep, info).xyz - sweep.xyz).max() <= 1 / 512
    lanes: int = encode_sweep(sweep, info)["xyz"][1]
    return lanes


def test_beams_are_told_by_inclination_where_the_source_has_no_rings() -> None:
    assert lane_bytes(fired_by_column()) == LANES
    unknown = dataclasses.replace(INFO, rig=(dataclasses.replace(ROOF, inclinations_deg=None),))
    assert lane_bytes(fired_by_column(), unknown) == PLAIN
    two = dataclasses.replace(INFO, rig=(ROOF, dataclasses.replace(ROOF, lidar_id=1)))
    assert lane_bytes(fired_by_column(), two) == PLAIN


def test_beams_are_told_by_the_rings_of_each_lidar() -> None:
    two = dataclasses.replace(INFO, rig=(ROOF, dataclasses.replace(ROOF, lidar_id=9)))
    sweep = fired_by_column()
    assert lane_bytes(dataclasses.replace(sweep, ring=BEAM), two) == LANES
    # The same beams as two LiDARs of four: neither the ring nor the LiDAR alone tells them apart.
    lidar_id = np.where(BEAM < 4, 0, 9).astype(np.uint8)
    assert lane_bytes(dataclasses.replace(sweep, ring=BEAM % 4, lidar_id=lidar_id), two) == LANES
    assert lane_bytes(dataclasses.replace(sweep, ring=np.zeros_like(BEAM)), two) == PLAIN
    # More beams than 16 bits tell apart are no lanes, and no error.
    many = dataclasses.replace(sweep, ring=BEAM * np.uint16(40), lidar_id=np.where(BEAM < 4, 0, 255).astype(np.uint8))
    assert lane_bytes(many, dataclasses.replace(INFO, rig=(ROOF, dataclasses.replace(ROOF, lidar_id=255)))) == PLAIN


def test_rings_of_another_dtype_than_stored_are_taken() -> None:
    assert lane_bytes(dataclasses.replace(fired_by_column(), ring=BEAM.astype(np.int64))) == LANES  # type: ignore[arg-type]


def test_points_in_beam_order_need_no_lanes() -> None:
    sweep = fired_by_column()
    order = np.argsort(BEAM, kind="stable")
    assert lane_bytes(dataclasses.replace(sweep, xyz=sweep.xyz[order], ring=BEAM[order])) == PLAIN


def test_absent_columns_stay_absent_and_own_columns_exact() -> None:
    rng = np.random.default_rng(1)
    values = {
        "doppler": rng.normal(0, 10, len(BEAM)),
        "moving": rng.random(len(BEAM)) < 0.1,
        "serial": rng.integers(0, 2**64, len(BEAM), dtype=np.uint64, endpoint=False),
    }
    info = dataclasses.replace(INFO, extra={name: ExtraColumn(v.dtype.name, "1") for name, v in values.items()})
    sweep = dataclasses.replace(fired_by_column(), extra=values)
    found = through(sweep, info)
    assert all(getattr(found, column) is None for column in POINT_DTYPES)
    for name, wanted in values.items():
        assert found.extra[name].dtype == wanted.dtype
        np.testing.assert_array_equal(found.extra[name], wanted)


@pytest.mark.parametrize("schema_version", [1, 2])
def test_training_reads_points_boxes_and_pose_and_leaves_the_rest(schema_version: int) -> None:
    info = dataclasses.replace(INFO, schema_version=schema_version)
    names = ("xyz", "intensity", "boxes")
    assert columns_for(names, info, bare=True) == [
        *("sequence_id", "frame_id", "timestamp_ns", "world_SE3_ego", "num_points", "xyz_scale_m"),
        *("boxes", "box_source_class", "xyz", "intensity"),
    ]
    assert "boxes" not in columns_for(("xyz",), info, bare=True)
    motion = set(columns_for(("xyz", "time_offset_ns"), info, bare=True)) - set(columns_for(("xyz",), info, bare=True))
    assert motion == {"time_offset_ns", "motion_compensated", "sweep_pose_time_offset_ns", "sweep_poses"}


def test_a_sweep_of_the_columns_of_training_is_the_same_as_far_as_it_goes() -> None:
    boxes = Boxes(
        np.array([[5, 1, 1, 4, 2, 2, 0.5]], np.float32),
        np.array([7], np.uint16),
        track_id=["a"],
        velocity=np.array([[1, 0, 0]], np.float32),
    )
    whole = dataclasses.replace(
        fired_by_column(),
        world_SE3_ego=se3.from_yaw(0.3, (1, 2, 0)),
        intensity=np.arange(len(BEAM), dtype=np.float32),
        ring=BEAM,
        boxes=boxes,
        calibration="{}",
        keyframe=False,
        split="val",
    )
    table = pa.Table.from_pylist([encode_sweep(whole, INFO)], schema=sweep_schema(INFO))
    found = decode_sweep(table.select(columns_for(("xyz", "intensity", "boxes"), INFO, bare=True)), 0, INFO)
    assert (found.name, found.timestamp_ns) == ("s/f", 1)
    np.testing.assert_array_equal(found.xyz, decode_sweep(table, 0, INFO).xyz)
    np.testing.assert_array_equal(found.intensity, whole.intensity)
    np.testing.assert_array_equal(found.world_SE3_ego, whole.world_SE3_ego)
    np.testing.assert_array_equal(found.boxes.boxes, boxes.boxes)
    assert found.boxes.source_class.tolist() == [7]
    assert found.ring is found.calibration is found.split is found.boxes.track_id is found.boxes.velocity is None


def test_labels_of_the_columns_of_training_lack_only_the_frames_own_mask() -> None:
    mask = np.array([0b101, 1], np.uint8)
    labels = Occupancy("s", "f", np.array([0, 2, 8], np.int32), np.array([1, 2, 255], np.uint8), mask, mask)
    table = pa.Table.from_pylist([encode_occupancy(labels)], schema=OCCUPANCY_SCHEMA)
    for found in (decode_occupancy(table, 0), decode_occupancy(table.select(LABEL_COLUMNS), 0)):
        assert found.index.tolist() == [0, 2, 8]
        assert found.semantic.tolist() == [1, 2, 255]
        assert found.observed.tolist() == [5, 1]
    assert found.observed_by_frame is None
    assert decode_occupancy(table, 0).observed_by_frame.tolist() == [5, 1]


def test_any_row_of_any_chunk_is_found() -> None:
    """A row group of one frame is the usual table, yet not the only one."""
    sweeps = [dataclasses.replace(fired_by_column(), frame_id=f"{i}", ring=BEAM if i % 2 else None) for i in range(5)]
    rows = [encode_sweep(sweep, INFO) for sweep in sweeps]
    parts = [pa.Table.from_pylist(part, schema=sweep_schema(INFO)) for part in (rows[:2], rows[2:])]
    table = pa.concat_tables(parts).slice(1)
    for i in range(4):
        found = decode_sweep(table, i, INFO)
        assert found.frame_id == f"{i + 1}"
        assert (found.ring is None) == (i % 2 == 1)


def test_labels_without_an_occupied_voxel() -> None:
    nothing = Occupancy("s", "f", np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(2, np.uint8))
    found = decode_occupancy(pa.Table.from_pylist([encode_occupancy(nothing)], schema=OCCUPANCY_SCHEMA), 0)
    assert (len(found.index), len(found.semantic), found.observed.tolist()) == (0, 0, [0, 0])


def test_a_blob_of_the_wrong_length_names_frame_column_and_lengths() -> None:
    info = dataclasses.replace(INFO, extra={"doppler": ExtraColumn("float32", "m/s")})
    values = np.arange(len(BEAM), dtype=np.float32)
    sweep = dataclasses.replace(fired_by_column(), intensity=values, extra={"doppler": values})
    for column in ("xyz", "intensity", EXTRA + "doppler"):
        message = f"{column} has 6 bytes for {len(BEAM)} points"
        with pytest.raises(DataError, match=re.escape(message)) as caught:
            through(sweep, info, **{column: b"\2\1\0\0ab"})
        assert caught.value.where == "s/f"


def test_wide_extra_columns_are_refused() -> None:
    with pytest.raises(DataError, match="no dtype"):
        ExtraColumn("complex64", "1")
    with pytest.raises(DataError, match="no dtype"):
        ExtraColumn("longdouble", "1")
