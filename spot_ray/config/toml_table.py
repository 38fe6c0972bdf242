"""TOML written by hand, read strictly: each key is asked for with what its value may be, and no other may be there."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError

T = TypeVar("T")


def parse_toml(content: bytes, *, where: str) -> TomlTable:
    """Return the top table of a file.

    Args:
        content: What the file holds.
        where: The file, for messages.

    Raises:
        ConfigError: If it is no TOML.
    """
    try:
        return TomlTable(tomllib.loads(content.decode()), "", where)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", where=where) from None


@dataclasses.dataclass(frozen=True)
class Kind(Generic[T]):
    """What a value may be.

    Args:
        expected: In words.
        read: Returns the value as it is wanted, or None where it is something else.
    """

    expected: str
    read: Callable[[Any], T | None]


class TomlTable:
    """One table of a file. Its keys are taken one by one; what :meth:`end` finds left over is unknown.

    Args:
        values: The table.
        path: Its place in the file, empty at the top.
        where: The file.
    """

    def __init__(self, values: dict[str, Any], path: str, where: str) -> None:
        self._values = values
        self._path = path
        self._where = where
        self._known: list[str] = []

    def optional(self, key: str, kind: Kind[T]) -> T | None:
        """Return a value, or None if the key is not there.

        Raises:
            ConfigError: If the value is of another kind.
        """
        self._known.append(key)
        if key not in self._values:
            return None
        value = kind.read(self._values[key])
        if value is None:
            text = repr(self._values[key])
            raise self.error(f"{self.place(key)} is {text if len(text) <= 80 else text[:77] + '...'}", kind.expected)
        return value

    def required(self, key: str, kind: Kind[T]) -> T:
        """Return a value.

        Raises:
            ConfigError: If it is not there, or of another kind.
        """
        value = self.optional(key, kind)
        if value is None:
            left = [name for name in self._values if name not in self._known]
            near = difflib.get_close_matches(key, left, n=1, cutoff=0.6)
            raise self.error(
                f"{self.place(key)} is missing", kind.expected, f"is {near[0]!r} meant to be it?" if near else ""
            )
        return value

    def tables(self, key: str) -> list[TomlTable]:
        """Return the entries of a list of tables; none if it is not there."""
        rows = self.optional(key, TABLES)
        return [TomlTable(row, f"{self.place(key)}[{i}]", self._where) for i, row in enumerate(rows or [])]

    def named_tables(self, key: str) -> dict[str, TomlTable]:
        """Return the tables in a table by their names; none if it is not there."""
        inner = self.optional(key, TABLE_OF_TABLES)
        return {name: TomlTable(row, f"{self.place(key)}.{name}", self._where) for name, row in (inner or {}).items()}

    def end(self) -> None:
        """Check that no key is left.

        Raises:
            ConfigError: If one is.
        """
        for key in self._values:
            if key not in self._known:
                raise self.error(f"unknown key {self.place(key)!r}", remedy=suggestion(key, self._known))

    def place(self, key: str) -> str:
        """Return where in the file a key stands."""
        return f"{self._path}.{key}" if self._path else key

    def error(self, what: str, expected: str = "", remedy: str = "") -> ConfigError:
        """Return an error of this table."""
        return ConfigError(what, where=self._where, expected=expected, remedy=remedy)


def read_number(value: Any) -> float | None:
    """Return a finite number, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def read_whole(value: Any) -> int | None:
    """Return a whole number, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_numbers(value: Any) -> tuple[float, ...] | None:
    """Return the numbers of a list, or None."""
    numbers = [read_number(v) for v in value] if isinstance(value, list) else [None]
    return None if None in numbers else tuple(n for n in numbers if n is not None)


def is_list_of(kind: type, value: Any) -> bool:
    """Tell whether a value is a list whose entries are all of a type."""
    return isinstance(value, list) and all(isinstance(v, kind) for v in value)


TEXT: Kind[str] = Kind("a text, not empty", lambda v: v if isinstance(v, str) and v else None)
TEXTS: Kind[tuple[str, ...]] = Kind("a list of texts", lambda v: tuple(v) if is_list_of(str, v) else None)
FLAG: Kind[bool] = Kind("true or false", lambda v: v if isinstance(v, bool) else None)
WHOLE = Kind("a whole number", read_whole)
NUMBER = Kind("a number", read_number)
NUMBERS = Kind("a list of numbers", read_numbers)
TABLES: Kind[list[dict[str, Any]]] = Kind(
    "tables, each under a line with the name in double brackets", lambda v: v if v and is_list_of(dict, v) else None
)
TABLE_OF_TABLES: Kind[dict[str, dict[str, Any]]] = Kind(
    "tables with a name each",
    lambda v: v if isinstance(v, dict) and is_list_of(dict, list(v.values())) else None,
)
