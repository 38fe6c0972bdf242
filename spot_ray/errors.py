"""The error family: every message says what is wrong, where, what was expected and what to do.

An error of this family is the user's to solve (a file, a field, a flag); the command line prints it without a
traceback and exits with status 2. Our own bugs stay ordinary exceptions and keep their traceback.
"""

from __future__ import annotations

from typing import Self


class SpotRayError(ValueError):
    """Base of all errors that a user can act on.

    Args:
        what: One sentence on what is wrong, holding the offending value.
        where: The culprit: a file, a row, a field or a flag.
        expected: What would have been right.
        remedy: What to do about it.
    """

    def __init__(self, what: str, *, where: str = "", expected: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.remedy = remedy
        super().__init__(str(self))  # whoever prints the arguments, as parsers of configs do, prints all of it

    def with_remedies(self, *more: str) -> Self:
        """Return the same error with more that can be done about it."""
        remedy = "; ".join(part for part in (self.remedy, *more) if part)
        return type(self)(self.what, where=self.where, expected=self.expected, remedy=remedy)

    def __str__(self) -> str:
        """Return the whole message, one fact a line."""
        lines = [self.what]
        lines += [
            f"  {name}: {value}"
            for name, value in (("where", self.where), ("expected", self.expected), ("do", self.remedy))
            if value
        ]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from all fields, so that the error survives the way between Ray processes."""
        return _rebuild, (type(self), self.what, self.where, self.expected, self.remedy)


def _rebuild(cls: type[SpotRayError], what: str, where: str, expected: str, remedy: str) -> SpotRayError:
    return cls(what, where=where, expected=expected, remedy=remedy)


class ConfigError(SpotRayError):
    """A recipe, field, flag or config file is wrong."""


class DataError(SpotRayError):
    """A file or a frame of the user's data is missing, broken or contradicts the schema."""


class StoreError(DataError):
    """A store cannot be reached, does not let us in, or goes on failing: nothing is wrong with the data in it."""


class CheckpointError(SpotRayError):
    """A checkpoint is missing, incomplete, of another format, or does not fit the model."""


class InstallError(SpotRayError):
    """A package that the asked work needs is not installed or does not work here."""


class TrainingError(SpotRayError):
    """A run ended because workers were lost or hang, not because of its config or data."""
