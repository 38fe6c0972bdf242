from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from waymo_files import NAME, Segment, make_segment, write_v2
from waymo_v1_files import CAMERA_BYTES, float_image, frame_message, int_image, write_v1

from spot_ray.convert import files, waymo_v1, waymo_v2
from spot_ray.convert._tfrecord import crc32c, frame_record, read_records
from spot_ray.convert._waymo_v1_frame import parse
from spot_ray.convert.source import BadFrame
from spot_ray.errors import ConfigError, DataError
from spot_ray.schema.sweep import NO_LABEL_ZONE, Sweep


@pytest.fixture(scope="module")
def segment() -> Segment:
    return make_segment()


@pytest.fixture
def file(tmp_path: Path, segment: Segment) -> Path:
    return write_v1(tmp_path, segment)


def read(root: Path | str, name: str = NAME) -> list[Sweep | BadFrame]:
    return list(waymo_v1.open_source(str(root)).read(name))


def read_one(root: Path, message: Any) -> Sweep | BadFrame:
    """Write a file of one message and return what becomes of it."""
    path = root / "training" / f"segment-{NAME}_with_camera_labels.tfrecord"
    path.parent.mkdir()
    path.write_bytes(frame_record(message.SerializeToString()))
    (result,) = read(root)
    return result


# CRC-32C ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_crc32c_gives_the_published_values(data: bytes, expected: int) -> None:
    """The test vectors of RFC 3720, appendix B.4, and the check value of the catalogue of CRCs."""
    assert crc32c(data) == expected


def test_a_record_is_framed_as_tensorflow_does() -> None:
    # What tf.io.TFRecordWriter of TensorFlow 2.13 makes of b"hello".
    assert frame_record(b"hello").hex() == "0500000000000000eab2043e68656c6c6fbb1f1c19"


# TFRecord -----------------------------------------------------------------------------------------------------------


def test_records_come_back_in_order(tmp_path: Path) -> None:
    contents = [b"", b"a", bytes(range(256)) * 5]
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"".join(map(frame_record, contents)))
    assert [record.checked() for record in read_records(str(path))] == contents


@pytest.mark.parametrize("kept", [3, 12, 15, 19])
def test_a_file_that_ends_within_a_record_is_told(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.tfrecord"
    record = frame_record(b"hello")
    path.write_bytes(record + record[:kept])
    records = read_records(str(path))
    assert next(records).checked() == b"hello"
    with pytest.raises(DataError) as error:
        next(records)
    left, expected = (kept, 12) if kept < 12 else (kept - 12, 9)
    assert error.value.what == f"the file ends within the record: {left} bytes are left"
    assert error.value.where == f"{path}, record 1"
    assert error.value.expected == f"{expected} bytes"


def test_a_damaged_length_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    damaged = bytearray(frame_record(b"hello"))
    damaged[7] = 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="the record's length reads 72057594037927941, which has the checksum 0x"):
        list(read_records(str(path)))


def test_an_empty_and_a_missing_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    with pytest.raises(DataError, match="no such file"):
        list(read_records(str(path)))
    path.touch()
    with pytest.raises(DataError, match="the file is empty"):
        list(read_records(str(path)))


# Sweeps -------------------------------------------------------------------------------------------------------------


def test_points_are_where_the_world_was_hit(tmp_path: Path, segment: Segment, file: Path) -> None:
    for sweep, frame in zip(read(tmp_path), segment.frames, strict=True):
        truth = [points for laser in range(1, 6) for points in frame.returns[laser].truth]
        expected = np.concatenate([points[np.isfinite(points[..., 0])] for points in truth])
        np.testing.assert_allclose(sweep.xyz, expected, rtol=0, atol=1e-5)
        assert sweep.name == f"{NAME}/{frame.timestamp_us}"
        assert sweep.timestamp_ns == frame.timestamp_us * 1000
        assert sweep.motion_compensated
        np.testing.assert_array_equal(sweep.world_SE3_ego, frame.world_from_vehicle)


def test_points_keep_what_their_pixel_has(tmp_path: Path, segment: Segment, file: Path) -> None:
    sweep = read(tmp_path)[0]
    returns = segment.frames[0].returns
    for laser in range(1, 6):
        for index, image in enumerate(returns[laser].range_images):
            here = (sweep.lidar_id == laser) & (sweep.return_index == index)
            rows, columns = np.nonzero(image[..., 0] > 0)
            np.testing.assert_array_equal(sweep.ring[here], rows)
            np.testing.assert_array_equal(sweep.intensity[here], image[rows, columns, 1])
            np.testing.assert_array_equal(sweep.elongation[here], image[rows, columns, 2])
            np.testing.assert_array_equal(sweep.flags[here] == NO_LABEL_ZONE, image[rows, columns, 3] == 1)
            if laser == 1:
                labels = returns[laser].segmentation[index][rows, columns]
                np.testing.assert_array_equal(sweep.instance_id[here], labels[:, 0])
                np.testing.assert_array_equal(sweep.point_source_class[here], labels[:, 1])
            else:
                assert (sweep.point_source_class[here] == 65535).all()


def test_only_labelled_frames_have_point_classes(tmp_path: Path, file: Path) -> None:
    assert [sweep.point_source_class is not None for sweep in read(tmp_path)] == [True, False, True]


def test_boxes_are_the_labels(tmp_path: Path, segment: Segment, file: Path) -> None:
    sweeps = read(tmp_path)
    assert [len(sweep.boxes) for sweep in sweeps] == [5, 5, 0]
    for sweep, frame in zip(sweeps, segment.frames, strict=True):
        boxes, labels = sweep.boxes, frame.labels
        expected = np.array([[*b.center, *b.size, b.heading] for b in labels], np.float32).reshape(-1, 7)
        np.testing.assert_array_equal(boxes.boxes, expected)
        assert boxes.track_id == [b.name for b in labels]
        assert boxes.source_class.tolist() == [100 + b.type for b in labels]
        assert boxes.num_lidar_points.tolist() == [b.num_points for b in labels]
        assert boxes.difficulty.tolist() == [b.difficulty for b in labels]
        for velocity, label in zip(boxes.velocity, labels, strict=True):
            if label.speed is None:
                assert np.isnan(velocity).all()
            else:
                in_world = sweep.world_SE3_ego[:3, :3] @ velocity
                np.testing.assert_allclose(in_world, label.speed, atol=1e-5)


def test_both_formats_give_the_same_dataset(tmp_path: Path, segment: Segment) -> None:
    def equal(one: Any, other: Any, name: str) -> None:
        if dataclasses.is_dataclass(one):
            for field in dataclasses.fields(one):
                equal(getattr(one, field.name), getattr(other, field.name), f"{name}.{field.name}")
        elif isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, name
            np.testing.assert_array_equal(one, other, err_msg=name)
        else:
            assert one == other, name

    write_v1(tmp_path / "v1", segment)
    write_v2(tmp_path / "v2", segment)
    sources = waymo_v1.open_source(str(tmp_path / "v1")), waymo_v2.open_source(str(tmp_path / "v2"))
    for one, other in zip(*(source.read(NAME) for source in sources), strict=True):
        equal(one, other, other.frame_id)
    one, other = (dataclasses.replace(source.info(), provenance="") for source in sources)
    equal(one, other, "info")


def test_a_label_without_vertical_speed_has_none(tmp_path: Path, segment: Segment) -> None:
    message = frame_message(segment, segment.frames[0])
    label = message.laser_labels[0]
    label.metadata.ClearField("speed_z")
    speed = [label.metadata.speed_x, label.metadata.speed_y, 0.0]
    sweep = read_one(tmp_path, message)
    np.testing.assert_allclose(sweep.world_SE3_ego[:3, :3] @ sweep.boxes.velocity[0], speed, atol=1e-6)


def test_labels_without_point_counts_have_none(tmp_path: Path, segment: Segment) -> None:
    message = frame_message(segment, segment.frames[0])
    message.laser_labels[1].ClearField("num_lidar_points_in_box")
    assert read_one(tmp_path, message).boxes.num_lidar_points is None


def test_what_is_not_declared_is_skipped(segment: Segment) -> None:
    data = frame_message(segment, segment.frames[0]).SerializeToString()
    assert CAMERA_BYTES in data
    frame = parse("Frame", data, where="")
    assert {field.name for field, _ in frame.ListFields()} == {
        *("context", "timestamp_micros", "pose", "lasers", "laser_labels")
    }


def test_a_laser_may_lack_its_second_return(tmp_path: Path, segment: Segment) -> None:
    message = frame_message(segment, segment.frames[0])
    for laser in message.lasers:
        laser.ClearField("ri_return2")
    sweep = read_one(tmp_path, message)
    whole = sum(int((r.range_images[0][..., 0] > 0).sum()) for r in segment.frames[0].returns.values())
    assert len(sweep) == whole
    assert (sweep.return_index == 0).all()


def test_a_frame_with_other_calibrations_uses_them(tmp_path: Path, segment: Segment, file: Path) -> None:
    message = frame_message(segment, segment.frames[1])
    for calibration in message.context.laser_calibrations:
        calibration.extrinsic.transform[11] += 1.0
    file.write_bytes(file.read_bytes() + frame_record(message.SerializeToString()))
    sweeps = read(tmp_path)
    moved = (sweeps[3].xyz - sweeps[1].xyz)[sweeps[1].lidar_id != 1]
    np.testing.assert_allclose(moved, np.broadcast_to([0, 0, 1], moved.shape), atol=1e-5)


# Folders ------------------------------------------------------------------------------------------------------------


def test_folders_are_splits(tmp_path: Path, segment: Segment) -> None:
    names = {"training": "a", "validation": "b", "testing": "c"}
    for folder, name in names.items():
        write_v1(tmp_path, dataclasses.replace(segment, name=name), split=folder)
    write_v1(tmp_path, dataclasses.replace(segment, name="d"), split=None)
    source = waymo_v1.open_source(str(tmp_path))
    assert source.sequences() == ("a", "b", "c", "d")
    splits = {name: next(iter(source.read(name))).split for name in source.sequences()}
    assert splits == {"a": "train", "b": "val", "c": "test", "d": None}
    (sequence,) = waymo_v1.open_source(str(tmp_path / "validation")).sequences()
    assert next(iter(waymo_v1.open_source(str(tmp_path / "validation")).read(sequence))).split == "val"


@pytest.mark.parametrize(("folder", "annotated"), [("training", True), ("testing", False), (None, False)])
def test_a_frame_without_labels_is_annotated_only_where_labels_are_given(
    tmp_path: Path, folder: str | None, annotated: bool
) -> None:
    write_v1(tmp_path, make_segment(num_frames=1, boxes=False), split=folder)
    (sweep,) = read(tmp_path)
    assert (sweep.boxes is not None) == annotated


def test_segments_are_read_from_any_store(segment: Segment, tmp_path: Path, file: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file(f"/waymo-v1/training/{file.name}", file.read_bytes())
    remote, local = read("memory://waymo-v1"), read(tmp_path)
    assert len(remote) == 3
    for one, other in zip(remote, local, strict=True):
        np.testing.assert_array_equal(one.xyz, other.xyz)


def test_info_tells_the_rig(tmp_path: Path, file: Path) -> None:
    info = waymo_v1.open_source(str(tmp_path)).info()
    assert [(lidar.name, lidar.lidar_id, lidar.num_beams) for lidar in info.rig] == [
        ("TOP", 1, 8),
        ("FRONT", 2, 6),
        ("SIDE_LEFT", 3, 6),
        ("SIDE_RIGHT", 4, 6),
        ("REAR", 5, 6),
    ]


def test_the_source_travels_without_points(tmp_path: Path, file: Path) -> None:
    packed = pickle.dumps(waymo_v1.open_source(str(tmp_path)))
    assert len(packed) < 1000
    assert len(list(pickle.loads(packed).read(NAME))) == 3


def test_the_hash_is_of_all_records(tmp_path: Path, file: Path) -> None:
    def digest() -> str | None:
        with files.hashed_reading() as running:
            read(tmp_path)
        return running.hexdigest

    first = digest()
    assert first is not None
    assert digest() == first
    content = file.read_bytes()
    last = len(content) - 5
    file.write_bytes(content[:last] + bytes([content[last] ^ 1]) + content[last + 1 :])
    assert digest() not in (None, first)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no segments in the folder") as error:
        waymo_v1.open_source(str(tmp_path))
    assert error.value.where == str(tmp_path)


def test_a_segment_that_is_there_twice_is_told(tmp_path: Path, segment: Segment, file: Path) -> None:
    write_v1(tmp_path, segment, split="validation")
    with pytest.raises(DataError, match=f"{NAME} is there twice: training/segment-.*and validation/segment-"):
        waymo_v1.open_source(str(tmp_path))


def test_a_version_is_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ConfigError, match=r"version is '1\.4'"):
        waymo_v1.open_source(str(tmp_path), version="1.4")


# Damage -------------------------------------------------------------------------------------------------------------


def test_a_damaged_record_is_set_aside_alone(tmp_path: Path, file: Path) -> None:
    content = bytearray(file.read_bytes())
    first = 16 + int.from_bytes(content[:8], "little")
    content[first + 500] ^= 0x10
    file.write_bytes(content)
    sweeps = read(tmp_path)
    assert [isinstance(sweep, Sweep) for sweep in sweeps] == [True, False, True]
    assert sweeps[1].frame_id == "record 1"
    assert sweeps[1].error.where == f"{file}, record 1"
    assert "have the checksum 0x" in sweeps[1].error.what


def test_sweeps_before_a_cut_are_given(tmp_path: Path, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    sweeps = waymo_v1.open_source(str(tmp_path)).read(NAME)
    assert isinstance(next(sweeps), Sweep)
    assert isinstance(next(sweeps), Sweep)
    with pytest.raises(DataError, match="the file ends within the record") as error:
        next(sweeps)
    assert error.value.where == f"{file}, record 2"


def test_a_record_that_is_no_frame_is_told(tmp_path: Path, file: Path) -> None:
    file.write_bytes(frame_record(b"\xff" * 50))
    (bad,) = read(tmp_path)
    assert "50 bytes are no Frame message" in bad.error.what


def laser_of(message: Any, number: int) -> Any:
    (laser,) = (laser for laser in message.lasers if laser.name == number)
    return laser


def cut_image(message: Any) -> None:
    image = laser_of(message, 4).ri_return2
    image.range_image_compressed = image.range_image_compressed[:-7]


def flip_image(message: Any) -> None:
    image = laser_of(message, 2).ri_return1
    image.range_image_compressed = b"\0" + image.range_image_compressed[1:]


def three_channels(message: Any) -> None:
    laser_of(message, 5).ri_return1.range_image_compressed = float_image(np.ones((6, 30, 3), np.float32))


def no_image(message: Any) -> None:
    laser_of(message, 3).ri_return1.ClearField("range_image_compressed")


def no_pixel_pose(message: Any) -> None:
    laser_of(message, 1).ri_return1.ClearField("range_image_pose_compressed")


def no_laser(message: Any) -> None:
    del message.lasers[2]


def unknown_laser(message: Any) -> None:
    message.lasers[2].name = 0


def calibrated_twice(message: Any) -> None:
    message.context.laser_calibrations.add().CopyFrom(message.context.laser_calibrations[0])


def narrow_segmentation(message: Any) -> None:
    labels = int_image(np.zeros((8, 89, 2), np.int32))
    laser_of(message, 1).ri_return1.segmentation_label_compressed = labels


def flat_box(message: Any) -> None:
    message.laser_labels[1].box.ClearField("height")


def unknown_type(message: Any) -> None:
    message.laser_labels[1].type = 9


def short_pose(message: Any) -> None:
    del message.pose.transform[12:]


def infinite_range(message: Any) -> None:
    image = np.ones((6, 30, 4), np.float32)
    image[2, 3, 0] = np.inf
    laser_of(message, 5).ri_return1.range_image_compressed = float_image(image)


def other_segment(message: Any) -> None:
    message.context.name = "another"


@pytest.mark.parametrize(
    ("damage", "where", "what", "expected"),
    [
        (cut_image, ", laser SIDE_RIGHT", "range image of return 2 cannot be inflated", "bytes of zlib data"),
        (flip_image, ", laser FRONT", "range image of return 1 cannot be inflated", "bytes of zlib data"),
        (three_channels, ", laser REAR", "has the shape [6, 30, 3] and 540 values", "(height, width, 4)"),
        (no_image, ", laser SIDE_LEFT", "the laser has no range image", "first return"),
        (no_pixel_pose, ", laser TOP", "laser TOP has no pixel poses", "the pose of every pixel"),
        (no_laser, "", "the frame has no range image of laser REAR", "all of TOP"),
        (unknown_laser, "", "a laser has the number 0", "1 TOP, 2 FRONT"),
        (calibrated_twice, "", "laser FRONT is calibrated twice", "every laser once"),
        (narrow_segmentation, ", laser TOP", "the segmentation has the shape (8, 89, 2)", "(8, 90, 2)"),
        (flat_box, "", "the box of label 'van-left' has only center_x", "height"),
        (unknown_type, "", "box 'van-left' has the type 9", "0 to 4"),
        (short_pose, "", "the vehicle pose has 12 numbers", "16"),
        (infinite_range, ", laser REAR", "holds inf in row 2, column 3, channel 0", "finite"),
        (other_segment, "", "the frame belongs to segment 'another'", NAME),
    ],
)
def test_damage_is_told_with_its_place(
    tmp_path: Path, segment: Segment, damage: Any, where: str, what: str, expected: str
) -> None:
    message = frame_message(segment, segment.frames[0])
    damage(message)
    bad = read_one(tmp_path, message)
    assert isinstance(bad, BadFrame)
    assert what in bad.error.what
    assert expected in bad.error.expected
    assert f"{NAME}_with_camera_labels.tfrecord, record 0{where}" in bad.error.where
