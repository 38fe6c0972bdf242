"""JSON files of millions of objects, read as columns.

As Python objects the three million boxes of a nuScenes submission take six gigabytes and half a minute. Here the
brackets around the objects are walked, each object is copied to a line of its own, and Arrow parses the lines: 80 MB/s
on one core, and no more memory than the file and its columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import json as arrow_json

from spot_ray.errors import DataError

CHUNK_BYTES = 1 << 26
"""This much is parsed at a time; an object that is longer is taken for damage."""

_AGAIN = "the file is cut or damaged: write or download it again"
_SPACE = re.compile(rb"[ \t\n\r]*")
_END, _FULL, _BROKEN = range(3)
_KINDS = {b"{": "an object", b"[": "a list", b'"': "a string", b"t": "true", b"f": "false", b"n": "null"}
_KINDS |= dict.fromkeys((b"-", *(b"%d" % digit for digit in range(10))), "a number")
"""What a value is, by its first character."""


class JsonText:
    """JSON text that is walked from its outermost bracket inwards.

    Args:
        data: The text.
        where: Its file, for messages.
        expected: What it should hold, for messages.
    """

    def __init__(self, data: bytes, where: str, expected: str = "") -> None:
        self.where = where
        self.expected = expected
        self._data = data
        self._bytes = np.frombuffer(data, dtype=np.uint8)
        self._at = 0

    def next(self) -> bytes:
        """Return the next character that is no white space, without taking it; empty at the end."""
        found = _SPACE.match(self._data, self._at)
        assert found is not None
        self._at = found.end()
        return self._data[self._at : self._at + 1]

    def take(self, character: bytes) -> None:
        """Take a character.

        Raises:
            DataError: If another one comes next.
        """
        if self.next() != character:
            self.refuse(f"expecting {character.decode()!r}")
        self._at += 1

    def open(self, bracket: bytes) -> None:
        """Take the bracket that an object or a list begins with.

        Raises:
            DataError: If something else comes next.
        """
        self._refuse_other_than(bracket)
        self.take(bracket)

    def value(self) -> Any:
        """Take and return the value that comes next.

        Raises:
            DataError: If it is no JSON.
        """
        self.next()
        end = _end_of_value(self._bytes, self._at)
        try:
            value = json.loads(self._data[self._at : end])
        except RecursionError:
            self.refuse("it is nested too deeply")
        except ValueError as error:  # also of numbers of more digits than Python takes
            self.refuse(str(error))
        self._at = end
        return value

    def members(self) -> _Members:
        """Take an object member by member: yields each key, after which the value has to be taken.

        Raises:
            DataError: If no object comes next, or a key occurs twice.
        """
        return _Members(self)

    def rows(self, into: Rows) -> int:
        """Take a list of objects and return how many there are.

        Raises:
            DataError: If something else comes next, or an object is broken.
        """
        self.open(b"[")
        state, count, comma = _FULL, 0, False
        while state == _FULL:
            state, self._at, written, copied = _copy_objects(self._bytes, self._at, into.lines, into.filled, comma)
            into.add(written, copied)
            count += copied
            comma = comma or copied > 0
            if state == _FULL:
                if not into.filled:
                    self.refuse(f"an object is longer than {len(into.lines)} bytes")
                into.parse()
        if state == _BROKEN:
            if self._data[max(0, self._at - 80) : self._at].rstrip()[-1:] in (b"[", b","):
                self._refuse_other_than(b"{")
            self.refuse(f"expecting object {count} of a list, ',' or ']'")
        return count

    def end(self) -> None:
        """Make sure that nothing follows.

        Raises:
            DataError: If something does.
        """
        if self.next():
            self.refuse("something follows the end")

    def refuse(self, why: str) -> NoReturn:
        """Raise the error of text that is no JSON, or another one."""
        near = self._data[self._at : self._at + 80].decode(errors="replace")
        what = f"not valid JSON at byte {self._at}: {why}" + (f"; there is {near!r}" if near else "; the file ends")
        raise DataError(what, where=self.where, expected=self.expected, remedy=_AGAIN)

    def _refuse_other_than(self, bracket: bytes) -> None:
        """Raise the error of JSON of another shape, if what comes next is the beginning of another value."""
        found = _KINDS.get(self.next())
        if found is not None and found != _KINDS[bracket]:
            near = self._data[self._at : self._at + 40].decode(errors="replace")
            raise DataError(
                f"there is {found} where {_KINDS[bracket]} should be, at byte {self._at}: {near!r}",
                where=self.where,
                expected=self.expected,
            )


class _Members:
    def __init__(self, text: JsonText) -> None:
        self._text = text
        self._keys: set[str] = set()
        text.open(b"{")

    def __iter__(self) -> _Members:
        return self

    def __next__(self) -> str:
        text = self._text
        if text.next() == b"}":
            text.take(b"}")
            raise StopIteration
        if self._keys:
            text.take(b",")
        if text.next() != b'"':
            text.refuse("expecting a key")
        key = str(text.value())
        if key in self._keys:
            raise DataError(f"the key {key!r} occurs twice", where=text.where, expected="unique keys")
        self._keys.add(key)
        text.take(b":")
        return key


class Rows:
    """Gathers objects as the rows of a table.

    Args:
        schema: The fields to keep of every object; others are passed over.
        name: What row number N is called in messages.
        where: The file, for messages.
        keep: Which rows of a part of the table to keep; None: all.
    """

    def __init__(
        self,
        schema: pa.Schema,
        *,
        name: Callable[[int], str],
        where: str,
        keep: Callable[[pa.Table], pa.Table] | None = None,
    ) -> None:
        self.lines = np.empty(CHUNK_BYTES, dtype=np.uint8)
        """(CHUNK_BYTES,) uint8 in which objects are laid, each on a line."""
        self.filled = 0
        """How many bytes of it are."""
        self._schema = schema
        # Arrow would not say in which row a field lacks.
        self._lenient = pa.schema([field.with_nullable(True) for field in schema])
        self._name = name
        self._where = where
        self._keep = keep
        self._parts: list[pa.Table] = []
        self._waiting = 0
        self._parsed = 0

    def add(self, filled: int, count: int) -> None:
        """Note that `lines` now holds `count` objects more, and `filled` bytes."""
        self.filled = filled
        self._waiting += count

    def parse(self) -> None:
        """Make columns of the lines.

        Raises:
            DataError: If an object is no JSON, lacks a field, or has one of another type.
        """
        if not self._waiting:
            return
        try:
            part = self._columns(self.lines[: self.filled])
        except pa.ArrowInvalid:
            self._refuse()
        # Two values on a line would be two rows.
        assert part.num_rows == self._waiting
        for column in self._schema.names:
            if part.column(column).null_count and not self._schema.field(column).nullable:
                row = int(np.flatnonzero(part.column(column).is_null().to_numpy())[0])
                raise DataError(
                    f"{self._name(self._parsed + row)} has no {column!r}",
                    where=self._where,
                    expected=", ".join(field.name for field in self._schema if not field.nullable),
                )
        part = part.cast(self._schema)
        self._parts.append(part if self._keep is None else self._keep(part))
        self._parsed += self._waiting
        self.filled = self._waiting = 0

    def table(self) -> pa.Table:
        """Return all rows.

        Raises:
            DataError: As :meth:`parse`.
        """
        self.parse()
        return pa.concat_tables([self._schema.empty_table(), *self._parts])

    def _columns(self, lines: npt.NDArray[np.uint8]) -> pa.Table:
        """Return the objects of lines as columns."""
        return arrow_json.read_json(
            pa.BufferReader(pa.py_buffer(lines)),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
            parse_options=arrow_json.ParseOptions(explicit_schema=self._lenient, unexpected_field_behavior="ignore"),
        )

    def _refuse(self) -> NoReturn:
        """Raise the error of lines that Arrow cannot parse, the first such row called by its name."""
        # Arrow does not always tell the row, so it is searched by halves.
        ends = np.flatnonzero(self.lines[: self.filled] == ord("\n")) + 1
        starts = np.concatenate([[0], ends[:-1]])
        first, behind = 0, len(ends)
        while behind - first > 1:
            middle = (first + behind) // 2
            if self._error_of(self.lines[starts[first] : ends[middle - 1]]):
                behind = middle
            else:
                first = middle
        # Arrow: "JSON parse error: Column(/size/[]) changed from number to string in row 0".
        what = self._error_of(self.lines[starts[first] : ends[first]]).removeprefix("JSON parse error: ")
        what = what.removesuffix(" in row 0").replace("Column(/", "the field (").replace("changed", "changes")
        name = self._name(self._parsed + first)
        raise DataError(f"{name} is broken: {what}", where=self._where, expected=_told(self._schema))

    def _error_of(self, lines: npt.NDArray[np.uint8]) -> str:
        """Return what Arrow says against lines; empty: nothing."""
        try:
            self._columns(lines)
        except pa.ArrowInvalid as error:
            return str(error)
        return ""


def read_list(
    data: bytes, schema: pa.Schema, *, where: str, keep: Callable[[pa.Table], pa.Table] | None = None
) -> pa.Table:
    """Return a file that is one list of objects as a table.

    Args:
        data: The file's content.
        schema: The fields to keep of every object; those that are not nullable have to be there.
        where: The file, for messages.
        keep: Which rows of a part of the table to keep; None: all.

    Raises:
        DataError: If it is no list of objects, one lacks a field or has one of another type.
    """
    rows = Rows(schema, name=lambda n: f"row {n}", where=where, keep=keep)
    text = JsonText(data, where, "a list of objects")
    text.rows(rows)
    text.end()
    return rows.table()


def _told(schema: pa.Schema) -> str:
    """Return the fields and their types, as a person would say it."""
    kinds = {"double": "a number", "int64": "a whole number", "string": "a string", "bool": "true or false"}
    told = []
    for field in schema:
        listed = pa.types.is_list(field.type)
        kind = kinds[str(field.type.value_type if listed else field.type)]
        told.append(f"{field.name}: " + (f"a list, each {kind}" if listed else kind))
    return "; ".join(told)


@numba.njit(cache=True, nogil=True)
def _copy_objects(
    data: npt.NDArray[np.uint8], at: int, lines: npt.NDArray[np.uint8], filled: int, comma: bool
) -> tuple[int, int, int, int]:
    """Copy objects of a list to lines until the list ends or the lines are full.

    Args:
        data: (N,) uint8 the text.
        at: Where to begin: after the list's bracket, or after one of its objects.
        lines: (L,) uint8 to fill.
        filled: How many bytes of them are filled.
        comma: Whether a comma has to precede the next object.

    Returns:
        `_END`, `_FULL` or `_BROKEN`; where to go on in the text; how many bytes are filled; how many objects were
        copied.
    """
    count = 0
    while True:
        before = at
        while at < len(data) and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
            at += 1
        if at < len(data) and data[at] == ord("]"):
            return _END, at + 1, filled, count
        if comma:
            if at == len(data) or data[at] != ord(","):
                return _BROKEN, at, filled, count
            at += 1
            while at < len(data) and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
                at += 1
        if at == len(data) or data[at] != ord("{"):
            return _BROKEN, at, filled, count
        begin, to, depth, quoted = at, filled, 0, False
        while True:
            if at == len(data):
                return _BROKEN, begin, filled, count
            if to + 3 > len(lines):
                return _FULL, before, filled, count
            byte = data[at]
            if quoted:
                if byte == ord("\\") and at + 1 < len(data):
                    lines[to] = byte
                    to, at = to + 1, at + 1
                    byte = data[at]
                elif byte == ord('"'):
                    quoted = False
            elif byte == ord('"'):
                quoted = True
            elif byte == ord("{") or byte == ord("["):
                depth += 1
            elif byte == ord("}") or byte == ord("]"):
                depth -= 1
            # A line break within an object would end its line.
            lines[to] = byte if byte != 10 and byte != 13 else 32
            to, at = to + 1, at + 1
            if depth == 0:
                break
        lines[to] = 10
        filled, count, comma = to + 1, count + 1, True


@numba.njit(cache=True, nogil=True)
def _end_of_value(data: npt.NDArray[np.uint8], at: int) -> int:
    """Return where the value ends that begins at `at`; the end of the text if it does not."""
    depth, quoted = 0, False
    while at < len(data):
        byte = data[at]
        if quoted:
            if byte == ord("\\"):
                at += 1
            elif byte == ord('"'):
                quoted = False
                if depth == 0:
                    return at + 1
        elif byte == ord('"'):
            quoted = True
        elif byte == ord("{") or byte == ord("["):
            depth += 1
        elif depth == 0 and (byte == ord("}") or byte == ord("]") or byte == ord(",")):
            return at
        elif byte == ord("}") or byte == ord("]"):
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return len(data)
