"""Rows of KITTI's text files: what its labels, its results of detectors and its tables of numbers have in common.

Reading files is the caller's part: a converter hashes what it reads, a metric reads thousands of small files at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from spot_ray.config.load import suggestion
from spot_ray.errors import DataError

DONT_CARE = "DontCare"
"""Type of the rows that are no objects but regions of the image in which nothing counts."""

OBJECT_TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
"""KITTI's object types in the order of its readme."""

LABEL_COLUMNS = (
    *("type", "truncated", "occluded", "alpha", "left", "top", "right", "bottom"),
    *("height", "width", "length", "x", "y", "z", "rotation_y"),
)
"""The values of a row of a label file: pixels, metres in the rectified frame of camera 0, radians."""

RESULT_COLUMNS = (*LABEL_COLUMNS, "score")
"""The values of a row of a detector's results."""


def object_rows(
    text: str, where: str, columns: Sequence[str], types: Sequence[str], *, remedy: str
) -> Iterator[tuple[int, str, list[float]]]:
    """Yield row, type and numbers of each object that a label or result file lists; empty rows are passed over.

    Args:
        text: The file's content.
        where: The file, for messages.
        columns: :data:`LABEL_COLUMNS` or :data:`RESULT_COLUMNS`.
        types: The types that may be; their case does not matter, as it does not to the benchmark's evaluator.
        remedy: What to do about a row that cannot be read.

    Yields:
        The row, counted from 1; the type as `types` spells it; its numbers, all finite, in the order of the columns
        behind the type.

    Raises:
        DataError: If a row has other columns, names another type, or holds something that is no finite number.
    """
    spelled = {name.lower(): name for name in types}
    for row, line in enumerate(text.splitlines(), 1):
        kind, *values = line.split() or [""]
        if not kind:
            continue
        if 1 + len(values) != len(columns):
            raise DataError(
                f"the row has {1 + len(values)} values",
                where=f"{where}, row {row}",
                expected=f"{len(columns)}: {', '.join(columns)}",
                remedy=_other_file(1 + len(values), columns) or remedy,
            )
        name = spelled.get(kind.lower())
        if name is None:
            raise DataError(
                f"unknown object type {kind!r}",
                where=f"{where}, row {row}",
                expected=f"one of {', '.join(types)}",
                remedy=suggestion(kind, list(types)),
            )
        yield row, name, numbers(values, len(columns) - 1, f"{where}, row {row}", remedy=remedy)


def numbers(values: Sequence[str], count: int, where: str, *, remedy: str) -> list[float]:
    """Return the numbers that a row of a text file holds.

    Args:
        values: The row, split.
        count: How many there should be.
        where: File and row, for messages.
        remedy: What to do about a row that cannot be read.

    Raises:
        DataError: If there are more or fewer, or one is no finite number.
    """
    if len(values) != count:
        raise DataError(f"the row has {len(values)} values", where=where, expected=f"{count} numbers", remedy=remedy)
    try:
        found = list(map(float, values))
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        wrong = next(value for value in values if not _is_finite(value))
        raise DataError(f"the row holds {wrong!r}", where=where, expected=f"{count} finite numbers", remedy=remedy)
    return found


def _is_finite(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _other_file(count: int, columns: Sequence[str]) -> str:
    """Return what to do about a file of the other kind; empty if it is not one."""
    if len(columns) == len(LABEL_COLUMNS) and count == len(RESULT_COLUMNS):
        return "give labels, not the results of a detector"
    if len(columns) == len(RESULT_COLUMNS) and count == len(LABEL_COLUMNS):
        return "give the results of a detector, with a score behind each row, not labels"
    return ""
