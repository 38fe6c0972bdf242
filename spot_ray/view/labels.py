"""Where labels stand in a picture so that none lies on another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Rectangle(NamedTuple):
    """An upright rectangle, pixels from the picture's upper left corner.

    Args:
        left: Its left side.
        top: Its upper side, less than `bottom`.
        right: Its right side.
        bottom: Its lower side.
    """

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Rectangle) -> bool:
        """Tell whether two rectangles share an area."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def holds(self, other: Rectangle) -> bool:
        """Tell whether another one lies within this one."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


def place_labels(
    around: Sequence[Rectangle],
    sizes: Sequence[tuple[float, float]],
    *,
    within: Rectangle,
    taken: Sequence[Rectangle] = (),
    avoid: Sequence[Rectangle] = (),
    gap: float = 3.0,
) -> list[Rectangle | None]:
    """Return where each label stands beside what it names: right, left, above or below it, whichever is free first.

    A place that also lies on nothing to be avoided goes before one that does.

    Args:
        around: What each label names; the first ones choose first.
        sizes: (width, height) of each.
        within: What no label leaves.
        taken: What no label may lie on.
        avoid: What a label lies on only where it must, such as all that is named.
        gap: Distance between a label and what it names.

    Returns:
        A place each; None where none of the four is free.
    """
    used = list(taken)
    places: list[Rectangle | None] = []
    for thing, (width, height) in zip(around, sizes, strict=True):
        middle_x, middle_y = (thing.left + thing.right - width) / 2, (thing.top + thing.bottom - height) / 2
        corners = (
            (thing.right + gap, middle_y),
            (thing.left - gap - width, middle_y),
            (middle_x, thing.top - gap - height),
            (middle_x, thing.bottom + gap),
        )
        candidates = [Rectangle(left, top, left + width, top + height) for left, top in corners]
        free = [c for c in candidates if within.holds(c) and not any(map(c.meets, used))]
        clear = [c for c in free if not any(map(c.meets, avoid))]
        place = next(iter([*clear, *free]), None)
        places.append(place)
        if place is not None:
            used.append(place)
    return places
