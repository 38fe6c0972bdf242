"""What a converter is: a :class:`Source` of sweeps, found by the name of its module."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Protocol

import spot_ray.convert
from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sweep import Sweep

_MACHINERY = {"source", "run"}
"""Modules of this package that are not a dataset."""


class Source(Protocol):
    """A raw log, opened. It travels to Ray tasks, so it must pickle; it should hold an index and no points."""

    def info(self) -> DatasetInfo:
        """Return name, rig, taxonomy, extra columns, licence and provenance of the dataset to write."""
        ...

    def sequences(self) -> tuple[str, ...]:
        """Return the names of the sequences."""
        ...

    def read(self, sequence_id: str) -> Iterator[Sweep]:
        """Yield the sweeps of one sequence in time order, in the ego frame.

        Raises:
            DataError: If a file of the sequence is missing or broken.
        """
        ...


class OpenSource(Protocol):
    """How a source is opened: the function `open_source` of a converter module."""

    def __call__(self, source: str, *, version: str | None) -> Source:
        """Open the log in the folder `source`, which may hold several versions.

        Raises:
            DataError: If the folder does not hold such a log.
        """
        ...


def known_sources() -> list[str]:
    """Return the names of the datasets that :mod:`spot_ray.convert` has a module for.

    A module whose name begins with `_` is a part of another.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(spot_ray.convert.__path__))
    return [name for name in names if name not in _MACHINERY and not name.startswith("_")]


def find_source(name: str) -> OpenSource:
    """Return the function that opens a source.

    Args:
        name: A module of this package (`nuscenes`), or any importable `my_package.module:function`.

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
    return _function_of(f"{spot_ray.convert.__name__}.{name}", "open_source", name)


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
