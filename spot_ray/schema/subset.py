"""Subsets: repeatable lists of sequences or frames, saved as files so that a table can be made again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spot_ray.errors import DataError

SUBSET_VERSION = 1
Unit = Literal["sequence", "frame"]


@dataclass(frozen=True)
class Subset:
    """Some sequences or frames of a dataset.

    Args:
        unit: What `names` are: `sequence` ids, or frames as `SEQUENCE/FRAME`.
        names: The names, sorted.
        dataset: Name of the dataset that it was drawn from.
        fraction: The fraction that was asked for; None if the names were chosen otherwise.
        seed: What it was drawn by; None if the names were chosen otherwise.
        split: The official split that it was drawn from; None: the whole dataset.
        version: Format version.

    Raises:
        DataError: If it names nothing, or something twice.
    """

    unit: Unit
    names: tuple[str, ...]
    dataset: str = ""
    fraction: float | None = None
    seed: int | None = None
    split: str | None = None
    version: int = SUBSET_VERSION

    def __post_init__(self) -> None:
        """Check the names."""
        if self.version > SUBSET_VERSION:
            raise DataError(
                f"the subset has version {self.version}",
                expected=f"at most {SUBSET_VERSION}",
                remedy="upgrade spot_ray",
            )
        if not self.names or len(set(self.names)) != len(self.names):
            raise DataError("the subset is empty or names something twice", expected="unique names, at least one")

    def __str__(self) -> str:
        """Return what it is in a few words."""
        drawn = [] if self.fraction is None else [f"{100 * self.fraction:g} %"]
        drawn += [] if self.split is None else [f"of the split {self.split!r}"]
        drawn += [] if self.seed is None else [f"by seed {self.seed}"]
        number = f"{len(self.names)} {self.unit}{'s' * (len(self.names) > 1)}"
        return f"{number} ({' '.join(drawn)})" if drawn else number
