"""nuScenes' tables: relational JSON files, read row by row and checked.

The full release lists 2.6 million `sample_data` and `ego_pose` rows, of which one in eight is the LiDAR's. So no table
is ever built as Python objects: its rows are parsed one at a time, and the caller keeps what it needs.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from spot_ray.config.load import suggestion
from spot_ray.convert.files import AGAIN, inside, read_file
from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.storage import uri as uris

_FIELDS: dict[str, dict[str, type]] = {
    "category": {"token": str, "name": str},
    "log": {"token": str, "location": str},
    "scene": {"token": str, "name": str},
    "sample": {"token": str, "timestamp": int, "scene_token": str},
    "sensor": {"token": str, "channel": str},
    "calibrated_sensor": {"token": str, "sensor_token": str, "translation": list, "rotation": list},
    "sample_data": {
        "token": str,
        "sample_token": str,
        "ego_pose_token": str,
        "calibrated_sensor_token": str,
        "timestamp": int,
        "filename": str,
        "is_key_frame": bool,
    },
    "ego_pose": {"token": str, "translation": list, "rotation": list},
    "instance": {"token": str, "category_token": str},
    "sample_annotation": {
        "token": str,
        "sample_token": str,
        "instance_token": str,
        "attribute_tokens": list,
        "translation": list,
        "size": list,
        "rotation": list,
        "num_lidar_pts": int,
        "num_radar_pts": int,
    },
    "attribute": {"token": str, "name": str},
    "lidarseg": {"sample_data_token": str, "filename": str},
}
"""The tables that are read, and which fields of them, with their JSON types."""

CHUNK_BYTES = 1 << 22
"""A table is decoded this much at a time; a row that is longer is taken for damage."""

_SPACE = re.compile(r"[ \t\n\r]*")

Row = dict[str, Any]
Float = npt.NDArray[np.float64]
T = TypeVar("T")


def find_version(source: str, version: str | None) -> str:
    """Return the version to read: `version`, or the only one in the folder.

    Raises:
        DataError: If the folder is missing, is not one of nuScenes, or has not (only) the version.
    """
    layout = "the folder that holds samples/ and one folder of tables, e.g. v1.0-mini/"
    if not uris.exists(source):
        raise DataError("no such folder", where=source, expected=layout)
    names = uris.list_dir(source)
    if "scene.json" in names:
        raise DataError(
            "this is the folder of the tables", where=source, expected=layout, remedy="give the folder above it"
        )
    tables = {f"{name}.json" for name in _FIELDS}
    found = [name for name in names if not tables.isdisjoint(uris.list_dir(uris.join(source, name)))]
    if not found:
        raise DataError("this is no nuScenes folder: no folder in it holds tables", where=source, expected=layout)
    if version is None and len(found) > 1:
        raise DataError(
            "the folder holds several versions", where=source, remedy=f"choose one: --version {' | '.join(found)}"
        )
    if version is not None and version not in found:
        raise DataError(
            f"no version {version!r}",
            where=source,
            expected=f"one of {', '.join(found)}",
            remedy=suggestion(version, found),
        )
    return version or found[0]


class Tables:
    """The tables of one version.

    Args:
        root: The folder that holds the version's folder.
        version: E.g. `v1.0-mini`.
    """

    def __init__(self, root: str, version: str) -> None:
        self.root = root
        self._version = version

    def where(self, table: str) -> str:
        """Return the file of a table."""
        return uris.join(self.root, self._version, f"{table}.json")

    def has(self, table: str) -> bool:
        """Tell whether the table is there."""
        return uris.exists(self.where(table))

    def rows(self, table: str) -> Iterator[Row]:
        """Yield the rows of a table, each with the fields that are needed and of their types.

        Raises:
            DataError: If the file is missing or malformed, or a row lacks a field.
        """
        data = read_file(self.root, f"{self._version}/{table}.json", f"table {table!r}")
        fields = _FIELDS[table]
        for n, row in enumerate(_items(data, self.where(table))):
            if not isinstance(row, dict):
                raise self.error(table, f"row {n} is {_shorten(row)}", "an object")
            for field, kind in fields.items():
                if field not in row:
                    raise self.error(table, f"row {n} has no field {field!r}: {_shorten(row)}", ", ".join(fields))
                if type(row[field]) is not kind:
                    raise self.error(
                        table, f"field {field!r} is {_shorten(row[field])} in row {n}: {_shorten(row)}", kind.__name__
                    )
            yield row

    def unique_rows(self, table: str) -> Iterator[Row]:
        """Yield the rows of a table whose tokens others refer to.

        Raises:
            DataError: As :meth:`rows`, and if a token occurs twice.
        """
        tokens: set[str] = set()
        for row in self.rows(table):
            if row["token"] in tokens:
                raise self.error(table, f"token {row['token']} occurs twice", "unique tokens")
            tokens.add(row["token"])
            yield row

    def find(self, rows: Mapping[str, T], token: str, table: str, referrer: str) -> T:
        """Return what a token of another row refers to.

        Raises:
            DataError: If the token is unknown.
        """
        if token not in rows:
            raise self.error(table, f"{referrer} refers to {token!r}, which is not in the table", "a known token")
        return rows[token]

    def check_file(self, table: str, row: Row) -> str:
        """Return a row's `filename`.

        Raises:
            DataError: If it leads out of the log's folder.
        """
        try:
            inside(self.root, row["filename"])
        except DataError as error:
            token = row.get("token", row.get("sample_data_token"))
            raise DataError(
                f"{error.what}, in the row {token}",
                where=self.where(table),
                expected=error.expected,
                remedy=error.remedy,
            ) from None
        return str(row["filename"])

    def error(self, table: str, what: str, expected: str) -> DataError:
        """Return the error of a table."""
        return DataError(what, where=self.where(table), expected=expected)


class Poses:
    """Gathers rotations and translations of a table's rows, checked, in little memory.

    Args:
        tables: The tables.
        table: Which of them.
    """

    def __init__(self, tables: Tables, table: str) -> None:
        self._tables = tables
        self._table = table
        self._values = array("d")

    def add(self, row: Row) -> None:
        """Take in the pose of a row.

        Raises:
            DataError: If it is not four and three finite numbers, or the quaternion's norm is not 1 to 0.001.
        """
        norm = math.nan
        try:
            (w, qx, qy, qz), (x, y, z) = row["rotation"], row["translation"]
            norm = math.hypot(w, qx, qy, qz)
            valid = abs(norm - 1) <= 1e-3 and math.isfinite(x + y + z)
        except (TypeError, ValueError, OverflowError):
            valid = False
        if not valid:
            raise self._tables.error(
                self._table,
                f"row {row['token']} is no pose: rotation {row['rotation']} (norm {norm:.4g}), "
                f"translation {row['translation']}",
                "a unit quaternion w, x, y, z and three metres",
            )
        self._values.extend((x, y, z, w / norm, qx / norm, qy / norm, qz / norm))

    def array(self) -> Float:
        """Return the (N, 7) float64 poses: x, y, z in metres and the unit quaternion w, x, y, z."""
        return np.array(self._values, dtype=np.float64).reshape(-1, 7)


def as_transform(pose: Sequence[float] | Float) -> Float:
    """Return the (4, 4) transform of a pose of :class:`Poses`."""
    return se3.from_quaternion(pose[3:], pose[:3])


def _items(data: bytes, where: str) -> Iterator[Any]:
    """Yield the items of a JSON list.

    Raises:
        DataError: If it is no JSON, or no list.
    """
    text = _Text(data, where)
    if text.next() != "[":
        text.refuse_list()
    text.skip()
    if text.next() != "]":
        yield text.item()
        while text.next() == ",":
            text.skip()
            yield text.item()
    if text.next() != "]":
        text.refuse("Expecting ',' delimiter" if text.next() else "the file ends")
    text.skip()
    if text.next():
        text.refuse("Extra data")


class _Text:
    """JSON text that is decoded a chunk at a time, and forgotten once parsed."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        self._start = 0
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._parse = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._num_items = 0

    def next(self) -> str:
        """Return the next character that is no white space, without taking it; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Take the character that :meth:`next` returned."""
        self._at += 1

    def item(self) -> Any:
        """Take and return the value that comes next."""
        self.next()
        while True:
            try:
                value, self._at = self._parse(self._text, self._at)
            except json.JSONDecodeError as error:
                why = error.msg
            else:
                self._num_items += 1
                return value
            # Either the row goes on in the next chunk, or it is broken.
            if len(self._text) - self._at > CHUNK_BYTES or not self._more():
                self.refuse(why)

    def refuse(self, why: str) -> NoReturn:
        """Raise the error of text that is no JSON."""
        near = _shorten(self._text[self._at : self._at + 100])
        raise DataError(f"not valid JSON: {why} in row {self._num_items}: {near}", where=self._where, remedy=AGAIN)

    def refuse_list(self) -> NoReturn:
        """Raise the error of a file that does not begin as a list."""
        if not self._text[self._at :]:
            self.refuse("the file is empty")
        raise DataError(
            f"the file holds {_shorten(self._text[self._at : self._at + 100])}",
            where=self._where,
            expected="a list of objects",
            remedy=AGAIN,
        )

    def _more(self) -> bool:
        """Append the next chunk, dropping what was taken; return False at the end."""
        if self._start >= len(self._data):
            return False
        part = self._data[self._start : self._start + CHUNK_BYTES]
        self._start += len(part)
        try:
            decoded = self._decode(part, final=self._start >= len(self._data))
        except UnicodeDecodeError as error:
            self.refuse(f"no UTF-8: {error.reason}")
        self._text, self._at = self._text[self._at :] + decoded, 0
        return True


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
