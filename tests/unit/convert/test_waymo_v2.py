"""Component files against the world that they were cast from, in any order of rows; and every kind of broken file."""

from __future__ import annotations

import gc
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import waymo_files

from spot_ray.convert import _waymo_parquet
from spot_ray.convert.files import hashed_reading
from spot_ray.convert.source import BadFrame, known_sources
from spot_ray.convert.waymo_v2 import open_source
from spot_ray.errors import ConfigError, DataError
from spot_ray.schema.sweep import Sweep

Array = npt.NDArray[Any]
Tables = dict[str, pa.Table]
TIME, LASER = "key.frame_timestamp_micros", "key.laser_name"
RETURN_1, RETURN_2 = "[LiDARComponent].range_image_return1", "[LiDARComponent].range_image_return2"
EXTRINSIC = "[LiDARCalibrationComponent].extrinsic.transform"
VEHICLE = "[VehiclePoseComponent].world_from_vehicle.transform"


@pytest.fixture(scope="module")
def segment() -> waymo_files.Segment:
    return waymo_files.make_segment()


@pytest.fixture
def tables(segment: waymo_files.Segment) -> Tables:
    return waymo_files.v2_tables(segment)


def read(root: Path) -> list[Sweep]:
    source = open_source(str(root))
    sweeps = []
    for item in source.read(source.sequences()[0]):
        assert isinstance(item, Sweep), item
        sweeps.append(item)
    return sweeps


def assert_is_the_world(sweep: Sweep, frame: waymo_files.Frame) -> None:
    """Every column against the arrays that the files were written from."""
    assert sweep.frame_id == str(frame.timestamp_us)
    assert sweep.timestamp_ns == frame.timestamp_us * 1000
    np.testing.assert_array_equal(sweep.world_SE3_ego, frame.world_from_vehicle)
    truth, features, rings, lidars = [], [], [], []
    for number in sorted(frame.returns):
        returns = frame.returns[number]
        for image, points in zip(returns.range_images, returns.truth, strict=True):
            valid = image[..., 0] > 0
            truth.append(points[valid])
            features.append(image[valid])
            rings.append(np.nonzero(valid)[0])
            lidars.append(np.full(int(valid.sum()), number))
    np.testing.assert_allclose(sweep.xyz, np.concatenate(truth), atol=1e-3)
    channels = np.concatenate(features)
    np.testing.assert_array_equal(sweep.intensity, channels[:, 1])
    np.testing.assert_array_equal(sweep.elongation, channels[:, 2])
    np.testing.assert_array_equal(sweep.flags, channels[:, 3] == 1)
    np.testing.assert_array_equal(sweep.ring, np.concatenate(rings))
    np.testing.assert_array_equal(sweep.lidar_id, np.concatenate(lidars))
    top = frame.returns[waymo_files.TOP]
    assert (sweep.point_source_class is None) == (top.segmentation is None)
    if top.segmentation is not None:
        labels = [label[image[..., 0] > 0] for label, image in zip(top.segmentation, top.range_images, strict=True)]
        on_top = sweep.lidar_id == waymo_files.TOP
        assert sweep.point_source_class is not None
        assert sweep.instance_id is not None
        np.testing.assert_array_equal(sweep.instance_id[on_top], np.concatenate(labels)[:, 0])
        np.testing.assert_array_equal(sweep.point_source_class[on_top], np.concatenate(labels)[:, 1])


def permuted(table: pa.Table, order: Array) -> pa.Table:
    return table.take(pa.array(order))


def as_written(tables: Tables) -> None:
    pass


def shuffled(tables: Tables) -> None:
    rng = np.random.default_rng(0)
    for name in tables:
        tables[name] = permuted(tables[name], rng.permutation(len(tables[name])))


def backwards(tables: Tables) -> None:
    for name in ("lidar", "lidar_pose", "vehicle_pose", "lidar_segmentation"):
        tables[name] = permuted(tables[name], np.arange(len(tables[name]))[::-1])


def laser_by_laser(tables: Tables) -> None:
    tables["lidar"] = tables["lidar"].sort_by([(LASER, "ascending"), (TIME, "ascending")])


def variable_lists(tables: Tables) -> None:
    """As a writer that knows no lists of fixed length leaves them."""
    for name, table in tables.items():
        for i, field in enumerate(table.schema):
            if pa.types.is_fixed_size_list(field.type):
                column = table.column(i).cast(pa.list_(field.type.value_type))
                table = table.set_column(i, field.name, column)
        tables[name] = table


@pytest.mark.parametrize("row_group_size", [None, 1, 4])
@pytest.mark.parametrize("order", [as_written, shuffled, backwards, laser_by_laser, variable_lists])
def test_sweeps_are_the_world_in_any_order_of_rows(
    tmp_path: Path,
    segment: waymo_files.Segment,
    tables: Tables,
    order: Callable[[Tables], None],
    row_group_size: int | None,
) -> None:
    order(tables)
    waymo_files.write_v2(tmp_path, segment, tables=tables, row_group_size=row_group_size)
    sweeps = read(tmp_path)
    assert len(sweeps) == len(segment.frames)
    for sweep, frame in zip(sweeps, segment.frames, strict=True):
        assert_is_the_world(sweep, frame)


def test_no_more_than_a_frame_waits(
    tmp_path: Path, segment: waymo_files.Segment, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_waymo_parquet, "_MAX_WAITING_ROWS", 5)
    tables["lidar"] = tables["lidar"].sort_by([(TIME, "ascending"), (LASER, "descending")])
    waymo_files.write_v2(tmp_path / "by-frame", segment, tables=tables)
    assert_is_the_world(read(tmp_path / "by-frame")[2], segment.frames[2])
    # Sorted by laser, the five lasers are read side by side, and one row of each waits.
    laser_by_laser(tables)
    waymo_files.write_v2(tmp_path / "by-laser", segment, tables=tables)
    assert_is_the_world(read(tmp_path / "by-laser")[2], segment.frames[2])
    tables["lidar"] = tables["lidar"].sort_by([(TIME, "descending"), (LASER, "ascending")])
    waymo_files.write_v2(tmp_path / "backwards", segment, tables=tables)
    with pytest.raises(DataError, match="too far apart") as caught:
        read(tmp_path / "backwards")
    assert caught.value.where.endswith(f"lidar/{waymo_files.NAME}.parquet")
    assert TIME in caught.value.remedy


def test_segments_are_read_from_any_store(tmp_path: Path, segment: waymo_files.Segment) -> None:
    folder = waymo_files.write_v2(tmp_path, segment)
    store = fsspec.filesystem("memory")
    for path in folder.rglob("*.parquet"):
        store.pipe_file(f"/waymo-v2/{path.relative_to(tmp_path)}", path.read_bytes())
    source = open_source("memory://waymo-v2")
    for sweep, frame in zip(source.read(segment.name), segment.frames, strict=True):
        assert isinstance(sweep, Sweep)
        assert_is_the_world(sweep, frame)


@pytest.mark.parametrize("num_frames", [1, 3], ids=["stopped early", "to the end"])
def test_nothing_stays_in_memory(tmp_path: Path, segment: waymo_files.Segment, num_frames: int) -> None:
    waymo_files.write_v2(tmp_path, segment)
    gc.collect()
    before = pa.total_allocated_bytes()
    gc.disable()
    try:
        sweeps = open_source(str(tmp_path)).read(segment.name)
        assert len(list(itertools.islice(sweeps, num_frames))) == num_frames
        del sweeps
        # Rows, and the decoders that stopped at one, would be kept by a cycle until the collector runs.
        assert pa.total_allocated_bytes() == before
    finally:
        gc.enable()


def test_boxes_are_in_the_ego_frame_with_all_that_the_labels_say(tmp_path: Path, segment: waymo_files.Segment) -> None:
    waymo_files.write_v2(tmp_path, segment)
    for sweep, frame in zip(read(tmp_path), segment.frames, strict=True):
        boxes = sweep.boxes
        assert boxes is not None
        assert boxes.track_id == [label.name for label in frame.labels]
        assert boxes.velocity is not None
        assert boxes.num_lidar_points is not None
        assert boxes.difficulty is not None
        assert boxes.source_class.tolist() == [100 + label.type for label in frame.labels]
        assert boxes.num_lidar_points.tolist() == [label.num_points for label in frame.labels]
        assert boxes.difficulty.tolist() == [label.difficulty for label in frame.labels]
        to_ego = np.linalg.inv(frame.world_from_vehicle)
        for i, label in enumerate(frame.labels):
            np.testing.assert_allclose(
                boxes.boxes[i], [*label.center, *label.size, label.heading], rtol=1e-6, atol=1e-5
            )
            if label.speed is None:
                assert np.isnan(boxes.velocity[i]).all()
            else:
                np.testing.assert_allclose(boxes.velocity[i], to_ego[:3, :3] @ label.speed, atol=1e-5)
                # What drives, drives where it heads.
                heading = np.arctan2(boxes.velocity[i, 1], boxes.velocity[i, 0])
                assert abs(heading - label.heading) < 0.05
    # The last frame was annotated, and nothing was there.
    assert not segment.frames[-1].labels
    assert boxes is not None
    assert len(boxes) == 0


def test_what_a_segment_was_not_given_is_none(tmp_path: Path, segment: waymo_files.Segment, tables: Tables) -> None:
    del tables["lidar_box"], tables["lidar_segmentation"]
    waymo_files.write_v2(tmp_path, segment, split="testing", tables=tables)
    for sweep in read(tmp_path):
        assert sweep.boxes is None
        assert sweep.point_source_class is None
        assert sweep.instance_id is None
        assert sweep.split == "test"


def test_a_return_that_is_null_has_no_points(tmp_path: Path, segment: waymo_files.Segment, tables: Tables) -> None:
    lidar = tables["lidar"]
    for column in (f"{RETURN_2}.values", f"{RETURN_2}.shape"):
        i = lidar.schema.get_field_index(column)
        lidar = lidar.set_column(i, column, pa.nulls(len(lidar), lidar.schema.field(column).type))
    waymo_files.write_v2(tmp_path, segment, tables=tables | {"lidar": lidar})
    for sweep in read(tmp_path):
        assert sweep.return_index is not None
        assert not sweep.return_index.any()
        assert len(sweep) > 500


def test_splits_and_names_come_from_the_folders(tmp_path: Path, segment: waymo_files.Segment) -> None:
    other = waymo_files.make_segment(name="1_0_000_20_000", num_frames=1)
    training = waymo_files.write_v2(tmp_path, segment, split="training")
    waymo_files.write_v2(tmp_path, other, split="validation")
    both = open_source(str(tmp_path))
    assert both.sequences() == (segment.name, other.name)
    assert {s.split for name in both.sequences() for s in both.read(name) if isinstance(s, Sweep)} == {"train", "val"}
    one = open_source(str(training))
    assert one.sequences() == (segment.name,)
    assert [s.split for s in one.read(segment.name) if isinstance(s, Sweep)] == ["train"] * 3
    bare = waymo_files.write_v2(tmp_path / "elsewhere", other, split=None)
    assert [s.split for s in open_source(str(bare)).read(other.name) if isinstance(s, Sweep)] == [None]
    assert "waymo-v2" in known_sources()


def test_the_rig_states_the_first_segments_calibration_and_the_source_pickles(
    tmp_path: Path, segment: waymo_files.Segment
) -> None:
    waymo_files.write_v2(tmp_path, segment)
    source = pickle.loads(pickle.dumps(open_source(str(tmp_path))))
    info = source.info()
    assert [(lidar.lidar_id, lidar.name) for lidar in info.rig] == [
        (1, "TOP"), (2, "FRONT"), (3, "SIDE_LEFT"), (4, "SIDE_RIGHT"), (5, "REAR")
    ]  # fmt: skip
    assert [lidar.kind for lidar in info.rig] == ["spinning"] + ["solid_state"] * 4
    assert [lidar.num_beams for lidar in info.rig] == [8, 6, 6, 6, 6]
    for lidar in info.rig:
        np.testing.assert_allclose(lidar.pose, segment.calibrations[lidar.lidar_id].extrinsic)
    assert info.name == "waymo"
    assert info.sequences_a_shard == 1
    assert len(list(source.read(segment.name))) == 3


def test_another_file_gives_another_hash(tmp_path: Path, segment: waymo_files.Segment) -> None:
    digests = []
    for i in (0, 0, 1):
        waymo_files.write_v2(tmp_path, waymo_files.make_segment(num_frames=2, seed=i))
        with hashed_reading() as hashing:
            read(tmp_path)
        digests.append(hashing.hexdigest)
    assert digests[0] is not None
    assert digests[0] == digests[1] != digests[2]


def _path(root: Path, component: str) -> Path:
    return root / "training" / component / f"{waymo_files.NAME}.parquet"


def _rewrite(component: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[Path, Tables], None]:
    def spoil(root: Path, tables: Tables) -> None:
        waymo_files.pq.write_table(change(tables[component]), _path(root, component))

    return spoil


def _set(column: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        i = table.schema.get_field_index(column)
        values = table.column(i).to_pylist()
        values[row] = value
        return table.set_column(i, column, pa.array(values, table.schema.field(column).type))

    return change


def _edit(column: str, row: int, index: int, value: float) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column][row].as_py()
        values[index] = value
        return _set(column, row, values)(table)

    return change


def _without(row: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.filter(pc.not_equal(pa.array(range(len(table))), row))


def _again(row: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: pa.concat_tables([table, table.slice(row, 1)])


def _cut(root: Path, tables: Tables) -> None:
    path = _path(root, "lidar")
    path.write_bytes(path.read_bytes()[:-100])


def _damage(root: Path, tables: Tables) -> None:
    data = bytearray(_path(root, "lidar").read_bytes())
    data[4:1000] = b"\xff" * 996
    _path(root, "lidar").write_bytes(bytes(data))


SHAPE = "[LiDARPoseComponent].range_image_return1.shape"
BROKEN_FILES: list[tuple[str, Callable[[Path, Tables], Any], str, str]] = [
    ("empty", lambda r, t: _path(r, "lidar_pose").write_bytes(b""), "the file is empty", "lidar_pose/NAME"),
    ("tiny", lambda r, t: _path(r, "lidar_box").write_bytes(b"PAR1"), "no Parquet file: 4 bytes", "lidar_box/NAME"),
    ("text", lambda r, t: _path(r, "vehicle_pose").write_text("x" * 99), "no Parquet file: 99", "vehicle_pose/NAME"),
    ("cut", _cut, "no Parquet file", "lidar/NAME"),
    ("damaged", _damage, "the file cannot be read", "lidar/NAME"),
    ("no component", lambda r, t: _path(r, "lidar_pose").unlink(), "no component 'lidar_pose'", "lidar_pose/NAME"),
    ("no column", _rewrite("lidar", lambda t: t.drop_columns([f"{RETURN_2}.shape"])), "no column", "lidar/NAME"),
    ("no key", _rewrite("lidar_pose", lambda t: t.drop_columns([TIME])), f"no column '{TIME}'", "lidar_pose/NAME"),
    ("type", _rewrite("lidar_box", lambda t: t.set_column(1, TIME, pc.cast(t[TIME], pa.string()))), "type string",
     "lidar_box/NAME"),
    ("null key", _rewrite("lidar", _set(TIME, 7, None)), "is null", "lidar/NAME, row 7"),
    ("null box", _rewrite("lidar_box", _set("[LiDARBoxComponent].box.size.x", 3, None)), "is null",
     "lidar_box/NAME, row 3"),
    ("calibrated twice", _rewrite("lidar_calibration", _again(0)), "laser FRONT is calibrated twice",
     "lidar_calibration/NAME, row 5"),
    ("unknown laser", _rewrite("lidar_calibration", _set(LASER, 2, 6)), "number 6", "lidar_calibration/NAME, row 2"),
    ("no rotation", _rewrite("lidar_calibration", _edit(EXTRINSIC, 4, 0, 2.0)), "laser TOP is not a rigid transform",
     "lidar_calibration/NAME, row 4"),
    ("no matrix", _rewrite("lidar_calibration", _set(EXTRINSIC, 1, None)), "0 numbers",
     "lidar_calibration/NAME, row 1"),
    ("nan beam", _rewrite("lidar_calibration", _edit("[LiDARCalibrationComponent].beam_inclination.values", 4, 0,
     np.nan)), "inclinations of laser TOP", "lidar_calibration/NAME, row 4"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "what", "where"), [case[1:] for case in BROKEN_FILES], ids=[case[0] for case in BROKEN_FILES]
)
def test_a_broken_file_is_named(
    tmp_path: Path,
    segment: waymo_files.Segment,
    tables: Tables,
    spoil: Callable[[Path, Tables], object],
    what: str,
    where: str,
) -> None:
    waymo_files.write_v2(tmp_path, segment, tables=tables)
    spoil(tmp_path, tables)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert what in caught.value.what
    assert where.replace("NAME", f"{waymo_files.NAME}.parquet") in caught.value.where
    assert caught.value.expected or caught.value.remedy


TOP_ROW = 5
"""Row of TOP in the second frame, in `lidar`; row 1 in the components that have TOP alone."""

BROKEN_FRAMES: list[tuple[str, Callable[[Path, Tables], Any], str, str]] = [
    ("no vehicle pose", _rewrite("vehicle_pose", _without(1)), "has no vehicle poses", "vehicle_pose/NAME"),
    ("two vehicle poses", _rewrite("vehicle_pose", _again(1)), "2 vehicle poses, in rows [1, 3]", "vehicle_pose/NAME"),
    ("bent pose", _rewrite("vehicle_pose", _edit(VEHICLE, 1, 5, 0.1)), "is not a rigid", "vehicle_pose/NAME, row 1"),
    ("nan pose", _rewrite("vehicle_pose", _edit(VEHICLE, 1, 3, np.nan)), "is not a rigid", "vehicle_pose/NAME, row 1"),
    ("null pose", _rewrite("vehicle_pose", _set(VEHICLE, 1, None)), "0 numbers", "vehicle_pose/NAME, row 1"),
    ("no laser", _rewrite("lidar", _without(TOP_ROW + 2)), "no range image of laser SIDE_LEFT", "lidar/NAME"),
    ("laser twice", _rewrite("lidar", _again(TOP_ROW + 1)), "laser FRONT occurs twice", "lidar/NAME, row 15"),
    ("unknown laser", _rewrite("lidar", _set(LASER, TOP_ROW, 0)), "number 0", "lidar/NAME, row 5"),
    ("null image", _rewrite("lidar", _set(f"{RETURN_1}.values", TOP_ROW, None)), "no range image", "lidar/NAME, row 5"),
    ("null shape", _rewrite("lidar", _set(f"{RETURN_1}.shape", TOP_ROW, None)), "the shape []", "lidar/NAME, row 5"),
    ("shape", _rewrite("lidar", _set(f"{RETURN_2}.shape", TOP_ROW, [8, 89, 4])), "2880 values", "lidar/NAME, row 5"),
    ("negative", _rewrite("lidar", _set(f"{RETURN_2}.shape", TOP_ROW, [-8, -90, 4])), "-90", "lidar/NAME, row 5"),
    ("null value", _rewrite("lidar", _edit(f"{RETURN_1}.values", TOP_ROW, 8, None)), "nulls", "lidar/NAME, row 5"),
    ("nan", _rewrite("lidar", _edit(f"{RETURN_1}.values", TOP_ROW, 368, np.nan)), "nan in row 1, column 2, channel 0",
     "lidar/NAME, row 5"),
    ("no pixel pose", _rewrite("lidar_pose", _without(1)), "TOP has no pixel poses", "lidar/NAME, row 5"),
    ("pose twice", _rewrite("lidar_pose", _again(1)), "TOP occurs twice", "lidar_pose/NAME, row 3"),
    ("pose shape", _rewrite("lidar_pose", _set(SHAPE, 1, [8, 60, 9])), "4320 values", "lidar_pose/NAME, row 1"),
    ("box", _rewrite("lidar_box", _set("[LiDARBoxComponent].box.size.y", 7, 0.0)), "box 2 is",
     "lidar_box/NAME, rows 5 to 9"),
    ("box type", _rewrite("lidar_box", _set("[LiDARBoxComponent].type", 7, 9)), "has the type 9", "lidar_box/NAME"),
    ("box twice", _rewrite("lidar_box", _again(8)), "'sign' occurs twice", "lidar_box/NAME, rows 5 to 10"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "what", "where"), [case[1:] for case in BROKEN_FRAMES], ids=[case[0] for case in BROKEN_FRAMES]
)
def test_a_broken_frame_is_named_and_the_others_are_read(
    tmp_path: Path,
    segment: waymo_files.Segment,
    tables: Tables,
    spoil: Callable[[Path, Tables], object],
    what: str,
    where: str,
) -> None:
    waymo_files.write_v2(tmp_path, segment, tables=tables)
    spoil(tmp_path, tables)
    first, bad, last = open_source(str(tmp_path)).read(segment.name)
    assert isinstance(bad, BadFrame)
    assert bad.frame_id == str(segment.frames[1].timestamp_us)
    assert what in bad.error.what
    assert where.replace("NAME", f"{waymo_files.NAME}.parquet") in bad.error.where
    assert bad.error.expected
    assert isinstance(first, Sweep)
    assert isinstance(last, Sweep)
    assert_is_the_world(first, segment.frames[0])
    assert_is_the_world(last, segment.frames[2])


def test_a_frame_that_only_labels_know_is_bad(tmp_path: Path, segment: waymo_files.Segment, tables: Tables) -> None:
    waymo_files.write_v2(tmp_path, segment, tables=tables)
    _rewrite("lidar_box", _set(TIME, 0, 12345))(tmp_path, tables)
    first, *rest = open_source(str(tmp_path)).read(segment.name)
    assert isinstance(first, BadFrame)
    assert first.frame_id == "12345"
    assert len(rest) == 3


def test_folders_without_segments_are_told(tmp_path: Path, segment: waymo_files.Segment) -> None:
    with pytest.raises(DataError, match="no segments") as caught:
        open_source(str(tmp_path))
    assert caught.value.where == str(tmp_path)
    assert "training" in caught.value.expected
    waymo_files.write_v2(tmp_path, segment, split="training")
    waymo_files.write_v2(tmp_path, segment, split="validation")
    with pytest.raises(DataError, match="in two folders: training and validation"):
        open_source(str(tmp_path))
    with pytest.raises(ConfigError, match="version"):
        open_source(str(tmp_path), version="2.0.1")
