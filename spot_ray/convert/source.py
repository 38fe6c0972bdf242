"""What a converter is: a :class:`Source` of sweeps, found by the name of its module.

A dataset is one module of this package with a function :class:`OpenSource` called `open_source`; nothing else names it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import spot_ray.convert
from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError, DataError, StoreError
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sweep import Sweep

_MACHINERY = {"source", "run", "files", "estimate"}
"""Modules of this package that are not a dataset."""

T = TypeVar("T")


@dataclass(frozen=True)
class BadFrame:
    """What a source yields in place of a sweep that it cannot read, so that reading can go on with the next.

    Args:
        frame_id: The frame.
        error: What is wrong with it.
    """

    frame_id: str
    error: DataError


class Source(Protocol):
    """A raw log, opened. It travels to Ray tasks, so it must pickle; it should hold an index and no points."""

    def info(self) -> DatasetInfo:
        """Return name, rig, taxonomy, extra columns, licence and provenance of the dataset to write."""
        ...

    def sequences(self) -> tuple[str, ...]:
        """Return the names of the sequences."""
        ...

    def read(self, sequence_id: str) -> Iterator[Sweep | BadFrame]:
        """Yield the sweeps of one sequence in time order, in the ego frame; see :func:`read_frames`.

        Raises:
            DataError: If what all frames of the sequence need is missing or broken.
        """
        ...


def read_frames(frames: Iterable[tuple[str, T]], read: Callable[[T], Sweep]) -> Iterator[Sweep | BadFrame]:
    """Yield the sweep of each frame, or a :class:`BadFrame` where it cannot be read.

    Args:
        frames: Pairs of frame id and what `read` needs, in time order.
        read: Returns the sweep; a `DataError` that it raises is the frame's.

    Raises:
        StoreError: If the source's store fails: that says nothing of the frame.
    """
    for frame_id, reference in frames:
        try:
            sweep: Sweep | BadFrame = read(reference)
        except StoreError:
            raise
        except DataError as error:
            sweep = BadFrame(frame_id, error)
        yield sweep


class OpenSource(Protocol):
    """How a source is opened: the function `open_source` of a converter module.

    Beside `version` it may take options of its own, as keyword arguments with a default: strings, since the command
    line gives them (`--option NAME=VALUE`).
    """

    def __call__(self, source: str, *, version: str | None, **options: str) -> Source:
        """Open the log in the folder `source`, which may hold several versions.

        Raises:
            DataError: If the folder does not hold such a log.
            ConfigError: If an option has a value that it cannot have.
        """
        ...


def known_sources() -> list[str]:
    """Return the names of the datasets that :mod:`spot_ray.convert` has a module for.

    A module whose name begins with `_` is a part of another.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(spot_ray.convert.__path__))
    return [name.replace("_", "-") for name in names if name not in _MACHINERY and not name.startswith("_")]


def find_source(name: str) -> OpenSource:
    """Return the function that opens a source.

    Args:
        name: A module of this package (`nuscenes`, `waymo-v2`), or any importable `my_package.module:function`.

    Raises:
        ConfigError: If there is no such module or function.
    """
    if ":" in name:
        module_name, _, function = name.partition(":")
        return _function_of(module_name, function, name)
    known = known_sources()
    if name not in known:
        raise ConfigError(
            f"no converter is called {name!r}",
            where="the name of the source",
            expected=f"one of {', '.join(known)}, or my_package.module:function",
            remedy=suggestion(name, known),
        )
    return _function_of(f"{spot_ray.convert.__name__}.{name.replace('-', '_')}", "open_source", name)


def open_by_name(
    name: str, source: str, *, version: str | None = None, options: Mapping[str, str] | None = None
) -> Source:
    """Open a log.

    Args:
        name: See :func:`find_source`.
        source: The folder of the log.
        version: Which of the versions in the folder; None if it holds only one.
        options: Options that the dataset's `open_source` takes.

    Raises:
        ConfigError: If there is no such source, or it has no such option or value.
        DataError: If the folder does not hold such a log.
    """
    function = find_source(name)
    given = dict(options or {})
    if given:
        known = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in ("source", "version")
        ]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ConfigError(
                f"{name} has no option {unknown[0]!r}",
                where="--option",
                expected=f"one of: {', '.join(known)}" if known else "no option at all",
                remedy=suggestion(unknown[0], known) if known else "",
            )
    return function(source, version=version, **given)


def one_of(option: str, value: str, choices: tuple[str, ...]) -> str:
    """Return an option's value.

    Raises:
        ConfigError: If it is not one of the choices.
    """
    if value not in choices:
        raise ConfigError(
            f"{option} is {value!r}",
            where="--option",
            expected=f"one of: {', '.join(choices)}",
            remedy=suggestion(value, list(choices)),
        )
    return value


def _function_of(module_name: str, function: str, name: str) -> OpenSource:
    where = f"the name of the source, {name!r}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise
        raise ConfigError(
            f"there is no module {missing!r}",
            where=where,
            expected="my_package.module:function of an importable module",
            remedy="install the package, or put its folder on PYTHONPATH",
        ) from None
    found: Callable[..., Source] | None = vars(module).get(function)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"{module_name} has no function {function!r}",
            where=where,
            expected="a function (source: str, *, version: str | None) -> Source",
            remedy=suggestion(function, functions) if functions else "",
        )
    return found
