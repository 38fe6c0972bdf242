"""What a user relies on: what goes in comes out, nothing half-written shows, and contradictions are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.schema.dataset import ExtraColumn
from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY, SemanticClass, SourceClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter, open_dataset

RIG = (LidarSpec("roof", 0, "spinning", 32, (-25.0, 15.0)),)
FLEET = Taxonomy(
    "fleet",
    tuple(SemanticClass(f"class {i}", (i, i, i), foreground=i < 3) for i in range(9)),
    (*(SourceClass(100 + i, f"source {i}", f"class {i}") for i in range(9)), SourceClass(7, "noise", None)),
)


def make_sweep(frame: int = 0, sequence: str = "drive 1/a", *, num_points: int = 500, **changes: object) -> Sweep:
    rng = np.random.default_rng(frame)
    fields: dict[str, object] = {
        "sequence_id": sequence,
        "frame_id": f"{frame:04d}",
        "timestamp_ns": 1_000_000 * (frame + 1),
        "xyz": rng.uniform(-150, 150, (num_points, 3)).astype(np.float32),
        "world_SE3_ego": se3.from_yaw(0.3 * frame, (1e6 + frame, -2e6, 12.5)),
        "intensity": rng.integers(0, 256, num_points).astype(np.float32),
        "ring": rng.integers(0, 32, num_points).astype(np.uint16),
        "point_source_class": rng.choice([1, 2, 15, 65535], num_points).astype(np.uint16),
        "instance_id": rng.integers(-1, 70_000, num_points).astype(np.int32),
        "time_offset_ns": rng.integers(-50_000_000, 50_000_000, num_points).astype(np.int32),
        "boxes": Boxes(
            np.array([[1, 2, 0.5, 4, 2, 1.5, 0.1], [9, -2, 0.5, 1, 1, 1.8, 3.0]], np.float32),
            np.array([2, 3], np.uint16),
            track_id=["a", "b"],
            velocity=np.array([[1, 0, 0], [np.nan, np.nan, np.nan]], np.float32),
        ),
    }
    return Sweep(**(fields | changes))  # type: ignore[arg-type]


def writer(path: Path, **changes: object) -> DatasetWriter:
    arguments: dict[str, object] = {"name": "test", "rig": RIG, "taxonomy": PAPER_TAXONOMY} | changes
    return DatasetWriter(str(path), **arguments)  # type: ignore[arg-type]


def test_a_sweep_comes_back_as_it_was_written(tmp_path: Path) -> None:
    sweep = make_sweep(3)
    with writer(tmp_path / "data") as w:
        w.add(sweep)
    back = open_dataset(str(tmp_path / "data"))[0]

    assert np.abs(back.xyz - sweep.xyz).max() <= 0.0025 + 1e-4
    for name in ("intensity", "ring", "point_source_class", "instance_id", "time_offset_ns"):
        np.testing.assert_array_equal(getattr(back, name), getattr(sweep, name))
        assert getattr(back, name).dtype == getattr(sweep, name).dtype
    np.testing.assert_array_equal(back.world_SE3_ego, sweep.world_SE3_ego)
    assert (back.name, back.timestamp_ns, back.elongation) == (sweep.name, sweep.timestamp_ns, None)
    assert back.boxes is not None
    assert sweep.boxes is not None
    np.testing.assert_array_equal(back.boxes.boxes, sweep.boxes.boxes)
    np.testing.assert_array_equal(back.boxes.velocity, sweep.boxes.velocity)
    assert back.boxes.track_id == ["a", "b"]
    assert back.boxes.num_lidar_points is None


def test_far_points_are_not_clipped_and_lossless_is_lossless(tmp_path: Path) -> None:
    far = np.array([[400.0, -3.0, 1.0], [0.001, 0.0, -500.25]], np.float32)
    for lossless, tolerance in ((False, 0.0026), (True, 0.0)):
        path = tmp_path / str(lossless)
        with writer(path, lossless=lossless) as w:
            w.add(make_sweep(xyz=far, **dict.fromkeys(POINTWISE)))
        assert np.abs(open_dataset(str(path))[0].xyz - far).max() <= tolerance


POINTWISE = ("intensity", "ring", "point_source_class", "instance_id", "time_offset_ns")


def test_frames_are_found_by_name_and_read_by_column(tmp_path: Path) -> None:
    with writer(tmp_path / "data") as w:
        for sequence in ("b", "a/1"):
            for frame in range(3):
                w.add(make_sweep(frame, sequence))
    data = open_dataset(str(tmp_path / "data"))

    assert data.sequences == ("a/1", "b")
    assert list(data.frames_of("b")) == [3, 4, 5]
    assert data.index_of("a/1/0002") == 2
    only = data.read(4, ("intensity",))
    assert (only.name, only.ring, only.boxes) == ("b/0001", None, None)
    assert only.intensity is not None
    with pytest.raises(DataError, match="did you mean '0001'"):
        data.index_of("b/001")
    with pytest.raises(DataError, match="no sequence"):
        data.index_of("c/0001")


def test_the_manifest_counts_classes_so_that_planning_reads_no_point(tmp_path: Path) -> None:
    labels = np.array([102] * 5 + [7] * 2 + [65535] * 3, np.uint16)
    boxes = Boxes(np.array([[0, 0, 0, 1, 1, 1, 0]], np.float32), np.array([108], np.uint16))
    with writer(tmp_path / "data", taxonomy=FLEET) as w:
        w.add(make_sweep(num_points=10, point_source_class=labels, boxes=boxes))
        w.add(make_sweep(1, num_points=10, point_source_class=None, boxes=None))
    data = open_dataset(str(tmp_path / "data"))
    points = data.manifest.column("class_point_counts").to_pylist()
    assert points[1] is None
    by_class = data.info.taxonomy.class_counts(np.array(points[0]))
    assert by_class.tolist() == [0, 0, 0, 5, 0, 0, 0, 0, 0, 0]
    by_class = data.info.taxonomy.class_counts(np.array(data.manifest.column("class_box_counts")[0].as_py()))
    assert by_class.tolist() == [0] * 9 + [1]
    assert data.info.taxonomy.lookup()[data[0].point_source_class].tolist() == [3] * 5 + [255] * 5


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken source"), writer(tmp_path / "data") as w:
        w.add(make_sweep())
        raise RuntimeError("broken source")
    assert not (tmp_path / "data").exists()


def test_a_failed_addition_leaves_the_dataset_as_it_was(tmp_path: Path) -> None:
    with writer(tmp_path / "data") as w:
        w.add(make_sweep(sequence="a"))
    before = sorted(p.name for p in (tmp_path / "data").rglob("*"))
    with pytest.raises(RuntimeError), writer(tmp_path / "data") as w:
        w.add(make_sweep(sequence="b"))
        raise RuntimeError
    assert sorted(p.name for p in (tmp_path / "data").rglob("*")) == before


def test_logs_may_arrive_later_and_a_snapshot_stays_what_it_was(tmp_path: Path) -> None:
    with writer(tmp_path / "data") as w:
        w.add(make_sweep(sequence="monday"))
    open_dataset(str(tmp_path / "data")).pin("v1")
    with writer(tmp_path / "data") as w:
        w.add(make_sweep(sequence="tuesday"))
    assert open_dataset(str(tmp_path / "data")).sequences == ("monday", "tuesday")
    assert open_dataset(str(tmp_path / "data"), snapshot="v1").sequences == ("monday",)
    with pytest.raises(DataError, match="one of: v1"):
        open_dataset(str(tmp_path / "data"), snapshot="v2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"point_source_class": np.full(500, 99, np.uint16)}, r"source class ids \[99\] are not in the taxonomy"),
        ({"lidar_id": np.full(500, 4, np.uint8)}, "lidar_id 4 is not in the rig"),
        ({"extra": {"doppler": np.zeros(500, np.float32)}}, "extra columns"),
    ],
)
def test_a_sweep_that_contradicts_the_dataset_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message), writer(tmp_path / "data") as w:
        w.add(make_sweep(**change))
    assert not (tmp_path / "data").exists()


def test_time_must_grow_and_frames_must_be_unique(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not follow"), writer(tmp_path / "a") as w:
        w.add(make_sweep(1))
        w.add(make_sweep(0))
    with pytest.raises(DataError, match="occurs twice"), writer(tmp_path / "b") as w:
        w.add(make_sweep(1))
        w.add(make_sweep(1))


def test_another_rig_or_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "data") as w:
        w.add(make_sweep())
    with pytest.raises(DataError, match="another taxonomy"):
        writer(tmp_path / "data", taxonomy=FLEET)
    with pytest.raises(DataError, match="another name, another rig"):
        writer(tmp_path / "data", name="other", rig=[LidarSpec("roof", 0, "spinning", 64, (-25.0, 15.0))])
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        writer(tmp_path / "home")


def test_a_vehicle_that_is_calibrated_a_little_otherwise_is_of_the_same_rig(tmp_path: Path) -> None:
    with writer(tmp_path / "data", provenance="monday") as w:
        w.add(make_sweep())

    def rig(height_m: float) -> tuple[LidarSpec, ...]:
        return (LidarSpec("roof", 0, "spinning", 32, (-25.1, 15.0), ego_SE3_lidar=nominal_mount(height_m)),)

    with writer(tmp_path / "data", provenance="tuesday", rig=rig(0.03)) as w:
        w.add(make_sweep(sequence="drive 2"))
    with pytest.raises(DataError, match="another rig"):
        writer(tmp_path / "data", rig=rig(0.6))
    data = open_dataset(str(tmp_path / "data"))
    assert data.sequences == ("drive 1/a", "drive 2")
    assert (data.info.rig, data.info.provenance) == (RIG, "monday")


def test_a_lidar_id_that_no_lidar_has_is_named(tmp_path: Path) -> None:
    for wrong in (np.full(500, 7, np.uint8), np.full(500, -1, np.int64)):
        with pytest.raises(DataError, match=f"lidar_id {wrong[0]} is not in the rig"), writer(tmp_path / "data") as w:
            w.add(make_sweep(lidar_id=wrong))


def test_two_writers_of_the_same_frames_are_found_out(tmp_path: Path) -> None:
    first, second = writer(tmp_path / "data"), writer(tmp_path / "data")
    with first as w:
        w.add(make_sweep())
    with second as w:
        w.add(make_sweep())
        w.add(make_sweep(1))
    with pytest.raises(DataError, match="1 frames are listed twice, the first is drive 1/a/0000"):
        open_dataset(str(tmp_path / "data"))


def test_the_same_content_makes_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with writer(tmp_path / name) as w:
            w.add(make_sweep())
    a, b = ({str(p.relative_to(tmp_path / n)): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in "ab")
    assert a == b


def test_what_is_no_dataset_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"has no dataset\.json"):
        open_dataset(str(tmp_path))


def test_a_truncated_shard_names_itself(tmp_path: Path) -> None:
    with writer(tmp_path / "data") as w:
        w.add(make_sweep(sequence="s"))
    shard = next((tmp_path / "data" / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"s\.0000\.parquet"):
        open_dataset(str(tmp_path / "data"))[0]


def test_own_columns_pass_through(tmp_path: Path) -> None:
    doppler = np.linspace(-30, 30, 500)
    with writer(tmp_path / "data", extra={"doppler": ExtraColumn("float64", "m/s")}) as w:
        w.add(make_sweep(extra={"doppler": doppler}))
    data = open_dataset(str(tmp_path / "data"))
    np.testing.assert_array_equal(data[0].extra["doppler"], doppler)
    np.testing.assert_array_equal(data.read(0, ("extra.doppler",)).extra["doppler"], doppler)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xyz": np.zeros((0, 3), np.float32)}, "no points"),
        ({"xyz": np.array([[0, 0, np.nan]] * 500, np.float32)}, "500 of 500 points"),
        ({"intensity": np.zeros(3, np.float32)}, "'intensity'"),
        ({"world_SE3_ego": np.diag([2.0, 1, 1, 1])}, "not a rigid transform"),
    ],
)
def test_a_broken_sweep_says_what_is_broken(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_sweep(**change)


def test_ids_may_hold_anything_but_zero_characters(tmp_path: Path) -> None:
    names = [("a", "b/c"), ("a/b", "d"), ("a%2Fb", "é"), (".hidden", "0"), ("ü ?#*", "0"), ("a.0001", "0")]
    with writer(tmp_path / "data") as w:
        for sequence, name in names:
            w.add(make_sweep(0, sequence, frame_id=name, num_points=3))
    data = open_dataset(str(tmp_path / "data"))
    for sequence, name in names:
        found = data[data.index_of(f"{sequence}/{name}")]
        assert (found.sequence_id, found.frame_id) == (sequence, name)
    with pytest.raises(DataError, match="no frame 'x'"):
        data.index_of("a/b/x")
    for ids in ({"sequence_id": ""}, {"frame_id": ""}, {"frame_id": "a\0b"}):
        with pytest.raises(DataError, match="not empty"):
            make_sweep(**ids)  # type: ignore[arg-type]


def test_long_sequences_go_on_in_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spot_ray.storage.sequence.FRAMES_A_PART", 3)
    with writer(tmp_path / "data") as w:
        for frame in range(7):
            w.add(make_sweep(frame, "long", num_points=frame + 1))
    data = open_dataset(str(tmp_path / "data"))
    assert len(set(data.manifest.column("shard").to_pylist())) == 3
    assert [(len(sweep), sweep.frame_id) for sweep in data] == [(i + 1, f"{i:04d}") for i in range(7)]


def test_coordinates_beyond_the_steps_stay_what_they_are(tmp_path: Path) -> None:
    # Beyond 65 km steps are no better than float32: coordinates of the world frame in the place of the ego's.
    far = np.array([[1e8, -2e7, 0.0], [163.8, -163.8, 0.004]], np.float32)
    with writer(tmp_path / "data") as w:
        w.add(make_sweep(0, xyz=far[:1], num_points=1))
        w.add(make_sweep(1, xyz=far[1:], num_points=1))
        w.add(make_sweep(2, xyz=np.float32([[164.0, 0, -2000.0]]), num_points=1))
    data = open_dataset(str(tmp_path / "data"))
    np.testing.assert_array_equal(data[0].xyz, far[:1])
    np.testing.assert_allclose(data[1].xyz, far[1:], atol=0.0026)
    np.testing.assert_allclose(data[2].xyz, [[164.0, 0, -2000.0]], atol=0.0026)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("instance_id", 1 << 40, "instance_id holds 1099511627776, which int32"),
        ("ring", 70_000, "ring holds 70000"),
        ("ring", 1.5, "ring holds 1.5"),
        ("point_source_class", -1, "point_source_class holds -1"),
    ],
)
def test_a_value_that_a_column_cannot_hold_is_an_error(tmp_path: Path, column: str, value: float, message: str) -> None:
    sweep = make_sweep(0, num_points=3, **{column: np.array([0, value, 1]), "boxes": None})
    with pytest.raises(DataError, match=message), writer(tmp_path / "data") as w:
        w.add(sweep)
    assert not (tmp_path / "data").exists()


def test_whole_numbers_of_a_wider_dtype_are_taken(tmp_path: Path) -> None:
    with writer(tmp_path / "data", extra={"doppler": ExtraColumn("float32", "m/s")}) as w:
        w.add(make_sweep(0, num_points=2, ring=np.array([3, 31]), extra={"doppler": np.array([0.5, -2.0])}))
    back = open_dataset(str(tmp_path / "data"))[0]
    assert back.ring is not None
    assert (back.ring.tolist(), back.ring.dtype) == ([3, 31], np.dtype(np.uint16))
    assert back.extra["doppler"].tolist() == [0.5, -2.0]
    with pytest.raises(DataError, match="'floaty' is no dtype"):
        ExtraColumn("floaty", "m")
    with (
        pytest.raises(DataError, match=r"extra\.count holds 1\.5"),
        writer(tmp_path / "other", extra={"count": ExtraColumn("uint8", "")}) as w,
    ):
        w.add(make_sweep(0, num_points=2, extra={"count": np.array([1.5, 2.0])}))


def test_a_rig_of_numpy_numbers_is_written(tmp_path: Path) -> None:
    rig = (LidarSpec("roof", np.int64(0), "spinning", np.int64(32), (np.float32(-25.0), np.float64(15.0))),)  # type: ignore[arg-type]
    with writer(tmp_path / "data", rig=rig) as w:
        w.add(make_sweep(0, num_points=2))
    assert open_dataset(str(tmp_path / "data")).info.rig == RIG


@pytest.mark.parametrize("where", ["shards.ShardWriter.close", "manifest.append_part"])
def test_a_disk_that_fills_at_the_end_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"spot_ray.storage.{where}", full)
        with pytest.raises(OSError, match="No space"), writer(tmp_path / "data") as w:
            w.add(make_sweep())
    assert not (tmp_path / "data").exists()
    with writer(tmp_path / "data") as w:
        w.add(make_sweep())
    assert len(open_dataset(str(tmp_path / "data"))) == 1


@pytest.mark.parametrize("column", ["xyz", "intensity"])
def test_bytes_that_changed_in_the_store_are_not_taken_for_points(tmp_path: Path, column: str) -> None:
    with writer(tmp_path / "data") as w:
        w.add(make_sweep())
    (shard,) = (tmp_path / "data" / "shards").iterdir()
    group = pq.ParquetFile(shard).metadata.row_group(0)
    chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == column)
    content = bytearray(shard.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="checksum") as caught:
        open_dataset(str(tmp_path / "data")).read(0, [column, "xyz"])
    assert shard.name in caught.value.where
