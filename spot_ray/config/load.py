"""Typed configs to JSON and back: strict, with a suggestion for a misspelt key."""

from __future__ import annotations

import dataclasses
import difflib
import json
from typing import Any, TypeVar

import numpy as np

from spot_ray.errors import ConfigError

T = TypeVar("T")


def to_json(config: Any, *, indent: int | None = 2) -> str:
    """Return a dataclass instance as JSON text that :func:`from_json` reads back to an equal instance.

    NumPy scalars, which calibrations are full of, become plain numbers.

    Raises:
        TypeError: If a value has no form in JSON.
    """
    return json.dumps(dataclasses.asdict(config), indent=indent, default=_plain) + ("\n" if indent else "")


def from_json(cls: type[T], text: str | bytes, *, where: str) -> T:
    """Read a frozen dataclass from JSON text.

    Args:
        cls: The dataclass.
        text: The JSON text.
        where: The file or flag that the text came from, for the message.

    Returns:
        The instance; lists become tuples where the type says so.

    Raises:
        ConfigError: On malformed JSON, a missing or unknown key, or a value of another type.
    """
    from pydantic import ValidationError

    try:
        return _adapter(cls).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise ConfigError(
                f"the text is not valid JSON: {first['ctx']['error']}",
                where=where,
                expected="one whole JSON object",
                remedy="it is cut or damaged: write it again",
            ) from None
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            name = str(first["loc"][-1])
            raise ConfigError(
                f"unknown key {place!r}", where=where, remedy=suggestion(name, _keys_beside(cls, first["loc"]))
            ) from None
        if first["type"] == "missing":
            raise ConfigError(f"{place!r} is missing", where=where, expected="a value") from None
        expected = first["msg"]
        raise ConfigError(
            f"{place!r} is not valid: got {_shorten(first.get('input'))}", where=where, expected=expected
        ) from None


def suggestion(name: str, candidates: list[str]) -> str:
    """Return what to write instead of the unknown `name`: its nearest candidate, or all of them."""
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(candidates)}"


def _adapter(cls: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    if "__pydantic_config__" not in vars(cls):
        cls.__pydantic_config__ = ConfigDict(strict=True, extra="forbid")
    return TypeAdapter(cls)


def _keys_beside(cls: type, location: tuple[str | int, ...]) -> list[str]:
    """Return the field names of the dataclass in which the last key of `location` was looked for."""
    import typing

    current: Any = cls
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        hints = typing.get_type_hints(current) if dataclasses.is_dataclass(current) else {}
        if part not in hints:
            return []
        current = next(
            (t for t in (hints[part], *typing.get_args(hints[part])) if dataclasses.is_dataclass(t)), hints[part]
        )
    return [field.name for field in dataclasses.fields(current)] if dataclasses.is_dataclass(current) else []


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} has no form in JSON")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
