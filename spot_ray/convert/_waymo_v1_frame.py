"""The messages of Waymo's `Frame` that a LiDAR dataset needs, declared here: neither TensorFlow nor Waymo's package.

Names, numbers and types are those of `waymo_open_dataset/dataset.proto` and `label.proto` (release 1.6). What is not
declared, camera images above all, is skipped on decoding. Enums are declared as numbers, and packed floats as `bytes`.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from spot_ray.convert.files import AGAIN
from spot_ray.errors import DataError
from spot_ray.storage.protobuf import declare, decode

MESSAGES: dict[str, tuple[str, ...]] = {
    "MatrixShape": ("repeated int32 dims = 1",),
    "MatrixFloat": ("repeated bytes data = 1", "optional MatrixShape shape = 2"),
    "MatrixInt32": ("packed int32 data = 1", "optional MatrixShape shape = 2"),
    "Transform": ("repeated double transform = 1",),
    "LaserCalibration": (
        "optional int32 name = 1",
        "repeated double beam_inclinations = 2",
        "optional double beam_inclination_min = 3",
        "optional double beam_inclination_max = 4",
        "optional Transform extrinsic = 5",
    ),
    "Stats": (
        "optional string time_of_day = 2",
        "optional string location = 3",
        "optional string weather = 4",
    ),
    "Context": (
        "optional string name = 1",
        "repeated LaserCalibration laser_calibrations = 3",
        "optional Stats stats = 4",
    ),
    "RangeImage": (
        "optional bytes range_image_compressed = 2",
        "optional bytes range_image_pose_compressed = 4",
        "optional bytes segmentation_label_compressed = 6",
    ),
    "Laser": (
        "optional int32 name = 1",
        "optional RangeImage ri_return1 = 2",
        "optional RangeImage ri_return2 = 3",
    ),
    "Box": (
        "optional double center_x = 1",
        "optional double center_y = 2",
        "optional double center_z = 3",
        "optional double width = 4",
        "optional double length = 5",
        "optional double height = 6",
        "optional double heading = 7",
    ),
    "Metadata": (
        "optional double speed_x = 1",
        "optional double speed_y = 2",
        "optional double speed_z = 5",
    ),
    "Label": (
        "optional Box box = 1",
        "optional Metadata metadata = 2",
        "optional int32 type = 3",
        "optional string id = 4",
        "optional int32 detection_difficulty_level = 5",
        "optional int32 num_lidar_points_in_box = 7",
    ),
    "Frame": (
        "optional Context context = 1",
        "optional int64 timestamp_micros = 2",
        "optional Transform pose = 3",
        "repeated Laser lasers = 5",
        "repeated Label laser_labels = 6",
    ),
}
"""The fields of each message; see :func:`~spot_ray.storage.protobuf.declare`."""

CLASSES = declare("spot_ray.waymo_v1", MESSAGES)
"""The class of each message of `MESSAGES`."""


def parse(name: str, data: bytes, *, where: str) -> Any:
    """Return a decoded message.

    Args:
        name: Its type, of `MESSAGES`.
        data: The encoded message.
        where: The file and record, for messages.

    Raises:
        DataError: If the data is no such message.
    """
    expected = f"waymo.open_dataset.{name}, as in the .tfrecord files of Waymo's perception data"
    return decode(CLASSES[name], data, where=where, expected=expected, remedy=AGAIN)


def read_float_image(compressed: bytes, *, channels: int, what: str, where: str) -> npt.NDArray[np.float32]:
    """Return the (H, W, channels) float32 image of a compressed `MatrixFloat`.

    Args:
        compressed: The image, as `RangeImage` holds it.
        channels: How many values a pixel has.
        what: What the image is, for messages.
        where: The file, record and laser, for messages.

    Raises:
        DataError: If it cannot be inflated or decoded, or has another shape.
    """
    matrix = parse("MatrixFloat", _inflate(compressed, what, where), where=where)
    data = b"".join(matrix.data)
    return np.frombuffer(data, "<f4").reshape(_shape(matrix, len(data) / 4, channels, what, where))


def read_int_image(compressed: bytes, *, channels: int, what: str, where: str) -> npt.NDArray[np.int32]:
    """Return the (H, W, channels) int32 image of a compressed `MatrixInt32`; see :func:`read_float_image`."""
    matrix = parse("MatrixInt32", _inflate(compressed, what, where), where=where)
    return np.array(matrix.data, np.int32).reshape(_shape(matrix, len(matrix.data), channels, what, where))


def _inflate(compressed: bytes, what: str, where: str) -> bytes:
    try:
        return zlib.decompress(compressed)
    except zlib.error as error:
        raise DataError(
            f"the {what} cannot be inflated: {error}",
            where=where,
            expected=f"{len(compressed)} bytes of zlib data",
            remedy=AGAIN,
        ) from None


def _shape(matrix: Any, num_values: float, channels: int, what: str, where: str) -> tuple[int, int, int]:
    dims = list(matrix.shape.dims)
    if len(dims) != 3 or min(dims) < 1 or dims[2] != channels or num_values != dims[0] * dims[1] * dims[2]:
        raise DataError(
            f"the {what} has the shape {dims} and {num_values:g} values",
            where=where,
            expected=f"(height, width, {channels}) and one value an element",
            remedy=AGAIN,
        )
    return dims[0], dims[1], dims[2]
