"""The v1 file of a made-up Waymo segment: a TFRecord file of `Frame` messages, camera data that no one reads included.

write_v1(folder, segment, split="training")   # folder/training/segment-NAME_with_camera_labels.tfrecord
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from waymo_files import TOP, Calibration, Frame, Label, Segment

from spot_ray.convert._tfrecord import frame_record
from spot_ray.convert._waymo_v1_frame import CLASSES

CAMERA_BYTES = b"\xff\xd8 no camera image that anyone reads \xff\xd9"


def write_v1(root: Path, segment: Segment, *, split: str | None = "training", level: int = 6) -> Path:
    """Write a segment and return its file.

    Args:
        root: Folder of the splits.
        segment: The segment.
        split: Folder of the split; None writes to `root` itself.
        level: Of compression.
    """
    folder = root if split is None else root / split
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"segment-{segment.name}_with_camera_labels.tfrecord"
    records = [frame_record(frame_message(segment, f, level=level).SerializeToString()) for f in segment.frames]
    path.write_bytes(b"".join(records))
    return path


def frame_message(segment: Segment, frame: Frame, *, level: int = 6) -> Any:
    """Return the `Frame` message of a frame."""
    message = CLASSES["Frame"]()
    message.context.name = segment.name
    message.context.stats.time_of_day = "Day"
    message.context.stats.location = "location_sf"
    message.context.stats.weather = "sunny"
    for laser, calibration in segment.calibrations.items():
        _add_calibration(message.context.laser_calibrations.add(name=laser), calibration)
    message.timestamp_micros = frame.timestamp_us
    message.pose.transform.extend(frame.world_from_vehicle.ravel())
    for laser in (TOP, *(laser for laser in frame.returns if laser != TOP)):
        returns = frame.returns[laser]
        added = message.lasers.add(name=laser)
        for number, (target, image) in enumerate(
            zip((added.ri_return1, added.ri_return2), returns.range_images, strict=True)
        ):
            target.range_image_compressed = float_image(image, level)
            _add_unread(target, 3, int_image(np.zeros((*image.shape[:2], 6), np.int32), level))
            if returns.segmentation is not None:
                target.segmentation_label_compressed = int_image(returns.segmentation[number], level)
        if returns.pixel_pose is not None:
            added.ri_return1.range_image_pose_compressed = float_image(returns.pixel_pose, level)
    for label in frame.labels:
        _add_label(message.laser_labels.add(), label)
    image = CLASSES["RangeImage"]()
    _add_unread(image, 2, CAMERA_BYTES)
    _add_unread(message, 4, image.SerializeToString())
    return message


def float_image(image: npt.NDArray[np.float32], level: int = 6) -> bytes:
    """Return a compressed `MatrixFloat`."""
    matrix = CLASSES["MatrixFloat"](data=[image.astype("<f4").tobytes()])
    matrix.shape.dims.extend(image.shape)
    return zlib.compress(matrix.SerializeToString(), level)


def int_image(image: npt.NDArray[np.int32], level: int = 6) -> bytes:
    """Return a compressed `MatrixInt32`."""
    matrix = CLASSES["MatrixInt32"](data=image.ravel().tolist())
    matrix.shape.dims.extend(image.shape)
    return zlib.compress(matrix.SerializeToString(), level)


def _add_calibration(message: Any, calibration: Calibration) -> None:
    message.beam_inclinations.extend(calibration.values)
    message.beam_inclination_min = calibration.inclination_min
    message.beam_inclination_max = calibration.inclination_max
    message.extrinsic.transform.extend(calibration.extrinsic.ravel())


def _add_label(message: Any, label: Label) -> None:
    message.box.center_x, message.box.center_y, message.box.center_z = label.center
    message.box.length, message.box.width, message.box.height = label.size
    message.box.heading = label.heading
    message.type = label.type
    message.id = label.name
    message.num_lidar_points_in_box = label.num_points
    if label.speed is not None:
        message.metadata.speed_x, message.metadata.speed_y, message.metadata.speed_z = label.speed
    if label.difficulty:
        message.detection_difficulty_level = label.difficulty


def _add_unread(message: Any, number: int, content: bytes) -> None:
    """Add a field of bytes that is not declared: it travels along as what it is."""
    length, varint = len(content), b""
    while length > 127:
        varint, length = varint + bytes([length & 127 | 128]), length >> 7
    message.MergeFromString(bytes([number << 3 | 2]) + varint + bytes([length]) + content)
