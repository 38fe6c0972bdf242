"""Where two configs differ."""

from __future__ import annotations

import dataclasses


def differing_fields(one: object, other: object, prefix: str = "") -> list[str]:
    """Return the dotted paths of the fields in which two instances of one dataclass differ."""
    if not dataclasses.is_dataclass(one) or type(one) is not type(other):
        return [] if one == other else [prefix]
    return [
        path
        for field in dataclasses.fields(one)
        for path in differing_fields(
            getattr(one, field.name), getattr(other, field.name), f"{prefix}.{field.name}" if prefix else field.name
        )
    ]
