"""The files of the detection benchmark of the Waymo Open Dataset: `Objects` messages of truth and of predictions.

The messages are those of `waymo_open_dataset/protos/metrics.proto` and `label.proto` (release 1.6), declared here, so
that neither Waymo's package nor TensorFlow is needed. A file has an object a box, and nothing for a frame without any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.evaluate.waymo_boxes import CLASS_NAMES, FrameKey, WaymoPredictions, WaymoTruth, levels_of
from spot_ray.storage import uri as uris
from spot_ray.storage.protobuf import declare, decode

MESSAGES: dict[str, tuple[str, ...]] = {
    "Box": (
        "optional double center_x = 1",
        "optional double center_y = 2",
        "optional double center_z = 3",
        "optional double width = 4",
        "optional double length = 5",
        "optional double height = 6",
        "optional double heading = 7",
    ),
    "Label": (
        "optional Box box = 1",
        "optional int32 type = 3",
        "optional int32 detection_difficulty_level = 5",
        "optional int32 num_lidar_points_in_box = 7",
    ),
    "Object": (
        "optional Label object = 1",
        "optional float score = 2",
        "optional bool overlap_with_nlz = 3",
        "optional string context_name = 4",
        "optional int64 frame_timestamp_micros = 5",
        "optional int32 camera_name = 6",
    ),
    "Objects": ("repeated Object objects = 1",),
}
"""The fields of each message; see :func:`~spot_ray.storage.protobuf.declare`."""

CLASSES = declare("spot_ray.waymo_metrics", MESSAGES)
"""The class of each message of `MESSAGES`."""

DEFAULT_SCORE = 1.0
"""The score of an object that gives none, as `metrics.proto` has it."""
BLOCK_BYTES = 4 << 20
"""How much of a file is decoded at a time: decoded objects take five times the memory."""

_EXPECTED = "a serialised waymo.open_dataset.Objects message (`metrics.proto`)"
_AGAIN = "download it again, or write it with the benchmark's own tools"


def read_truth(uri: str) -> WaymoTruth:
    """Read an official file of ground truth, such as `validation_ground_truth_objects_gt.bin`.

    Raises:
        DataError: Naming the file and the box, if the file is missing or no `Objects` message, or a box is broken.
    """
    keys: dict[FrameKey, int] = {}
    block = np.dtype([*_COLUMNS, ("points", np.int32), ("level", np.uint8)])
    rows = _read(uri, block, keys, lambda o: (o.object.num_lidar_points_in_box, o.object.detection_difficulty_level))
    if not len(rows):
        raise DataError("the file is empty", where=uri, expected=_EXPECTED, remedy=_AGAIN)
    return _located(
        uri,
        lambda: WaymoTruth(
            frames=tuple(keys),
            every_frame=False,
            class_names=CLASS_NAMES,
            frame=rows["frame"],
            boxes=rows["box"],
            types=rows["type"],
            levels=levels_of(rows["points"], rows["level"]),
            where=uri,
        ),
    )


def read_predictions(uri: str) -> WaymoPredictions:
    """Read predictions in the benchmark's submission format; an empty file is an `Objects` message without any.

    Raises:
        DataError: Naming the file and the prediction, if the file is missing or no `Objects` message, a box is not
            finite, has no size or an unknown type, or a score is not within 0 and 1.
    """
    keys: dict[FrameKey, int] = {}
    block = np.dtype([*_COLUMNS, ("score", np.float32), ("overlaps_nlz", np.bool_)])
    rows = _read(uri, block, keys, lambda o: (o.score if o.HasField("score") else DEFAULT_SCORE, o.overlap_with_nlz))
    return _located(
        uri,
        lambda: WaymoPredictions(
            frames=tuple(keys),
            every_frame=False,
            frame=rows["frame"],
            boxes=rows["box"],
            types=rows["type"],
            scores=rows["score"],
            overlaps_nlz=rows["overlaps_nlz"],
            where=uri,
        ),
    )


def write_predictions(predictions: WaymoPredictions, uri: str) -> None:
    """Write predictions in the benchmark's submission format, frame by frame.

    Raises:
        DataError: If the place is not to be written to.
    """
    order = np.argsort(predictions.frame, kind="stable")
    ends = np.searchsorted(predictions.frame[order], np.arange(1, len(predictions.frames) + 1))
    starts = [0, *ends[:-1]]
    content = b"".join(
        _encode(predictions, key, order[start:end])
        for key, start, end in zip(predictions.frames, starts, ends, strict=True)
    )
    uris.write_bytes(uri, content)


def _encode(predictions: WaymoPredictions, key: FrameKey, rows: npt.NDArray[np.int64]) -> bytes:
    """Return the `Objects` message of one frame; such messages one after the other are one of all frames."""
    message: Any = CLASSES["Objects"]()
    for box, kind, score, overlaps in zip(
        predictions.boxes[rows].tolist(),
        predictions.types[rows].tolist(),
        predictions.scores[rows].tolist(),
        predictions.overlaps_nlz[rows].tolist(),
        strict=True,
    ):
        added = message.objects.add(score=score, context_name=key[0], frame_timestamp_micros=key[1])
        if overlaps:
            added.overlap_with_nlz = True
        label = added.object
        label.type = kind
        written = label.box
        written.center_x, written.center_y, written.center_z = box[:3]
        written.length, written.width, written.height, written.heading = box[3:]
    return bytes(message.SerializeToString())


_COLUMNS: tuple[tuple[Any, ...], ...] = (("frame", np.int64), ("box", np.float64, (7,)), ("type", np.uint8))


def _read(
    uri: str, dtype: np.dtype[np.void], keys: dict[FrameKey, int], more: Callable[[Any], tuple[Any, ...]]
) -> npt.NDArray[np.void]:
    """Return (N,) rows of an `Objects` file, and put its frames into `keys` in the order in which they come.

    An empty file has none: so a message without objects is written.

    Args:
        uri: The file.
        dtype: Of a row: `_COLUMNS` and more.
        keys: Empty.
        more: Returns the further columns of an `Object`.
    """
    blocks = [np.empty(0, dtype)]
    num_rows = 0
    for message in _messages(uri):
        rows: list[tuple[Any, ...]] = []
        for o in message.objects:
            label = o.object
            box = label.box
            kind = label.type
            key = o.context_name, o.frame_timestamp_micros
            if not (key[0] and 0 <= kind <= len(CLASS_NAMES)) or o.camera_name:
                raise _refusal(o, uri, num_rows + len(rows))
            numbers = (
                *(box.center_x, box.center_y, box.center_z),
                *(box.length, box.width, box.height, box.heading),
            )
            rows.append((keys.setdefault(key, len(keys)), numbers, kind, *more(o)))
        blocks.append(np.array(rows, dtype))
        num_rows += len(rows)
    if len(blocks) > 1 and not num_rows:
        raise DataError("the message holds no object", where=uri, expected=_EXPECTED, remedy=_AGAIN)
    return np.concatenate(blocks)


def _refusal(message: Any, uri: str, number: int) -> DataError:
    """Return what is wrong with an object."""
    where = f"{uri}, object {number}"
    if not message.context_name:
        return DataError("the object names no frame", where=where, expected="context_name and frame_timestamp_micros")
    if message.camera_name:
        return DataError(
            f"the object is of camera {message.camera_name}", where=where, expected="no camera_name: boxes of lasers"
        )
    return DataError(
        f"the object has the type {message.object.type}",
        where=where,
        expected=", ".join(f"{i} {name}" for i, name in enumerate(CLASS_NAMES, 1)),
    )


def _messages(uri: str) -> Iterator[Any]:
    """Yield the content of an `Objects` file in parts, each an `Objects` message of its own."""
    system, path = uris.filesystem(uri)
    with uris.refusals_told("read the file", uri), system.open_input_stream(path, compression=None) as stream:
        rest, position = b"", 0
        while block := stream.read(BLOCK_BYTES):
            data = rest + block
            whole = int(_whole_fields(np.frombuffer(data, np.uint8)))
            where = f"{uri}, bytes {position} to {position + (len(data) if whole < 0 else whole) - 1}"
            if whole < 0:
                raise DataError("the bytes are no fields of a message", where=where, expected=_EXPECTED, remedy=_AGAIN)
            if whole:
                yield decode(CLASSES["Objects"], data[:whole], where=where, expected=_EXPECTED, remedy=_AGAIN)
            rest, position = data[whole:], position + whole
        if rest:
            raise DataError(
                f"the file ends within an object: {len(rest)} bytes are left",
                where=uri,
                expected=_EXPECTED,
                remedy=_AGAIN,
            )


@numba.njit(cache=True)
def _whole_fields(data: npt.NDArray[np.uint8]) -> int:
    """Return how many bytes of the data are whole fields, all with a length, as those of `Objects` are; -1: no message.

    A field is its tag (number and kind), its length, each a base-128 varint, and its content.
    """
    end = 0
    while True:
        position = end
        length = 0
        for part in range(2):
            value, shift = 0, 0
            while True:
                if position == len(data):
                    return end
                byte = int(data[position])
                position += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
                if shift > 28:
                    return -1
            if part == 0 and value & 7 != 2:
                return -1
            length = value
        if position + length > len(data):
            return end
        end = position + length


def _located(uri: str, make: Callable[[], Any]) -> Any:
    """Return what is made, an error naming the file as well."""
    try:
        return make()
    except DataError as error:
        where = f"{uri}, {error.where}" if error.where else uri
        raise DataError(error.what, where=where, expected=error.expected, remedy=error.remedy) from None
