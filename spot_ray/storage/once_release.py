"""What the files of ONCE's official release hold, checked: for whoever converts it and whoever scores against it.

Layout: `data/SEQ/SEQ.json` lists a sequence's frames, `ImageSets/*.txt` the sequences of a split. Whoever reads the
files hands their content in: a conversion also keeps a hash of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from spot_ray.config.load import suggestion
from spot_ray.errors import DataError
from spot_ray.storage import uri as uris

CLASS_NAMES = ("Car", "Bus", "Truck", "Pedestrian", "Cyclist")
"""ONCE's classes, which have names only, in the order of its benchmark."""

SPLIT_LISTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("train", ("train.txt",)),
    ("val", ("val.txt",)),
    ("test", ("test.txt", "test_set.txt")),
    ("raw_small", ("raw_small.txt",)),
    ("raw_medium", ("raw_medium.txt",)),
    ("raw_large", ("raw_large.txt",)),
)
"""The official splits and the names of their lists. raw_small is part of raw_medium, and that of raw_large: a sequence
counts as of the smallest that lists it."""

LAYOUT = "the folder that holds data/, with one folder a sequence, and ImageSets/"
AGAIN = "the file is cut or damaged: download and unpack it again"

_FRAME_ID = re.compile(r"[0-9]{13}")


def sequence_file(sequence_id: str) -> str:
    """Return the path of a sequence's JSON file within the release."""
    return f"data/{sequence_id}/{sequence_id}.json"


def list_sequences(root: str) -> list[str]:
    """Return the names of the sequences in `data`, sorted.

    Args:
        root: URI of the release's folder.

    Raises:
        DataError: If it is not there, or has none.
    """
    if not uris.exists(root):
        raise DataError("no such folder", where=root, expected=LAYOUT)
    # What was unpacked may lie beside its archives.
    sequences = sorted(name for name in uris.list_dir(uris.join(root, "data")) if "." not in name)
    if not sequences:
        raise DataError("this is no ONCE folder: no sequence in data/", where=root, expected=LAYOUT)
    return sequences


def read_splits(root: str, read_text: Callable[[str], str]) -> dict[str, str]:
    """Return the split of every sequence that a list of `ImageSets` names.

    Args:
        root: URI of the release's folder.
        read_text: Returns the content of one of its files, named relative to it.

    Raises:
        DataError: If a sequence is in two splits.
    """
    present = uris.list_dir(uris.join(root, "ImageSets"))
    split_of: dict[str, str] = {}
    for split, names in SPLIT_LISTS:
        for name in (n for n in names if n in present):
            for sequence_id in read_text(f"ImageSets/{name}").split():
                other = split_of.setdefault(sequence_id, split)
                if other != split and not (other.startswith("raw_") and split.startswith("raw_")):
                    raise DataError(
                        f"sequence {sequence_id!r} is in the splits {other} and {split}",
                        where=uris.join(root, "ImageSets", name),
                        expected="train, val, test and raw without a common sequence",
                    )
    return split_of


def check_sequence(content: Any, where: str) -> dict[str, Any]:
    """Return the content of a sequence's JSON file, its list `frames` being there; the frames are unchecked.

    Raises:
        DataError: If it lists no frames.
    """
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list) or not content["frames"]:
        raise DataError(
            "the file lists no frames",
            where=where,
            expected="an object with calib and a list `frames`",
            remedy=AGAIN,
        )
    return content


def frame_time_ms(row: Any) -> int | None:
    """Return the time that an entry of `frames` is named by, milliseconds since 1970; None if it is named otherwise."""
    frame_id = row.get("frame_id") if isinstance(row, dict) else None
    if isinstance(frame_id, bool) or not isinstance(frame_id, str | int) or not _FRAME_ID.fullmatch(str(frame_id)):
        return None
    return int(frame_id)


def check_frame_time(row: Any, where: str) -> int:
    """Return what :func:`frame_time_ms` does.

    Raises:
        DataError: If the entry is named otherwise.
    """
    time_ms = frame_time_ms(row)
    if time_ms is None:
        raise DataError(
            f"frame_id is {shorten(row.get('frame_id')) if isinstance(row, dict) else shorten(row)}",
            where=where,
            expected="the frame's time: 13 digits, milliseconds since 1970",
        )
    return time_ms


def read_annos(annos: Any, where: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint16]]:
    """Return the boxes that a frame's `annos` hold.

    Args:
        annos: The entry, unchecked.
        where: The frame, for messages.

    Returns:
        (M, 7) float64 boxes `[x, y, z, dx, dy, dz, yaw]` in the LiDAR's frame, x to the left and y to the back; and
        (M,) uint16 place of each one's class in :data:`CLASS_NAMES`.

    Raises:
        DataError: If names and boxes disagree in number, a class is unknown, or a box is broken.
    """
    names, rows = (annos.get(key) if isinstance(annos, dict) else None for key in ("names", "boxes_3d"))
    if not isinstance(names, list) or not isinstance(rows, list) or len(names) != len(rows):
        found = [len(v) if isinstance(v, list) else shorten(v) for v in (names, rows)]
        raise DataError(
            f"annos has {found[0]} names and {found[1]} boxes_3d",
            where=f"{where}.annos",
            expected="two lists of one length",
            remedy=AGAIN,
        )
    return read_boxes(rows, f"{where}.annos.boxes_3d"), read_classes(names, f"{where}.annos.names")


def read_classes(names: list[Any], where: str) -> npt.NDArray[np.uint16]:
    """Return the (M,) uint16 places of M class names in :data:`CLASS_NAMES`.

    Raises:
        DataError: Naming the first that is none of them.
    """
    for i, name in enumerate(names):
        if name not in CLASS_NAMES:
            raise DataError(
                f"the class of box {i} is {shorten(name)}",
                where=where,
                expected=f"one of {', '.join(CLASS_NAMES)}",
                remedy=suggestion(name, list(CLASS_NAMES)) if isinstance(name, str) else "",
            )
    return np.array([CLASS_NAMES.index(name) for name in names], dtype=np.uint16)


def read_boxes(rows: list[Any], where: str) -> npt.NDArray[np.float64]:
    """Return M lists of seven numbers as (M, 7) float64 boxes.

    Raises:
        DataError: Naming the first that is not finite or has a size that is not positive.
    """
    try:
        boxes = np.array(rows)
    except ValueError:  # of several lengths
        boxes = np.zeros(0)
    # Not of text or None, which a dtype given beforehand would turn into numbers.
    if boxes.ndim == 2 and boxes.shape[1] == 7 and boxes.dtype.kind in "iuf":
        boxes = boxes.astype(np.float64)
        if np.isfinite(boxes).all() and (boxes[:, 3:6] > 0).all():
            return boxes
    for i, row in enumerate(rows):
        if not are_numbers(row, 7) or min(row[3:6]) <= 0:
            raise DataError(
                f"box {i} is {shorten(row)}",
                where=where,
                expected="x, y, z, length, width, height, yaw: finite numbers, positive sizes",
            )
    return np.array(rows, dtype=np.float64).reshape(-1, 7)


def are_numbers(values: object, count: int) -> TypeGuard[list[float]]:
    """Tell whether something that JSON held is a list of so many finite numbers."""
    return isinstance(values, list) and len(values) == count and all(map(_is_number, values))


def _is_number(value: object) -> bool:
    # JSON's integers have any size, and its true is an int to Python.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def shorten(value: object) -> str:
    """Return what something that JSON held looks like, cut to a line's length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
