"""Trackers of experiments that a run tells its figures besides its own files, by one small protocol.

`metrics.jsonl` and TensorBoard's files are always written (`metrics_writer.py`). Further loggers are opened by name,
`mlflow` or `wandb`, each with an extra of the package, or `my_package.module:factory` of the user's own.

A tracker that is slow, away or refuses what it is told neither holds up a run nor ends it, see `background.py`. Where
it is and how to get in is taken from the environment of worker 0, by the tracker's own variables; nothing of it is
stored with the run. A resumed run goes on in the tracker's same run, whose id is in `loggers.json` of the run's folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError, InstallError
from spot_ray.storage import uri as uris
from spot_ray.train.background import BackgroundLogger
from spot_ray.train.credentials import without_credentials

IDS_FILE = "loggers.json"

_ADAPTERS = {"mlflow": "spot_ray.train.logger_mlflow:open_mlflow", "wandb": "spot_ray.train.logger_wandb:open_wandb"}
"""Each is named like the package that it needs, and like the extra that brings it."""

Parameter = str | int | float | bool | None


class RunLogger(Protocol):
    """What a run tells its figures."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take in a line of figures.

        Args:
            step: Global step, counted from 1; it may fall back, since a resumed run repeats the steps after its
                checkpoint.
            figures: By their names, see `metrics.py`.
        """

    def close(self, *, failed: bool = False) -> None:
        """Deliver what is left and let go.

        Args:
            failed: The run ends by an error.
        """


class RunIds:
    """The ids by which trackers know a run, kept in its folder so that a resumed run finds them.

    Args:
        run_uri: The run's folder.
    """

    def __init__(self, run_uri: str) -> None:
        self._file = uris.join(run_uri, IDS_FILE)
        self._guard = threading.Lock()  # every logger keeps its id from a thread of its own

    def get(self, logger: str) -> str | None:
        """Return the id that was kept for a logger, or None."""
        return self._read().get(logger)

    def keep(self, logger: str, run_id: str) -> None:
        """Keep the id of this run for a logger."""
        with self._guard:
            ids = self._read() | {logger: run_id}
            uris.write_bytes(self._file, (json.dumps(ids, indent=2) + "\n").encode())

    def _read(self) -> dict[str, str]:
        if not uris.exists(self._file):
            return {}
        ids: dict[str, str] = json.loads(uris.read_bytes(self._file))
        return ids


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is opened for.

    Args:
        uri: The run's folder, without credentials.
        name: Its name.
        parameters: The config, flat: `{"train.epochs": 30, …}`, see :func:`parameters_of`.
        ids: Where the logger keeps the tracker's id of the run.
    """

    uri: str
    name: str
    parameters: dict[str, Parameter]
    ids: RunIds


Factory = Callable[[LoggedRun], RunLogger]
"""Opens a logger. It must not wait for a network: the first call of `log` may, in a thread of its own."""


def open_loggers(names: Sequence[str], *, run_uri: str, run_name: str, config: Any) -> RunLogger:
    """Open loggers as one that never waits and never fails; worker 0 does so.

    Args:
        names: Names of loggers, see the head of this file; none: a logger that does nothing.
        run_uri: The run's folder.
        run_name: What trackers call the run.
        config: The run's config, a dataclass.

    Raises:
        ConfigError: If there is no such logger, or the environment does not say where its tracker is.
        InstallError: If its package is not installed.
    """
    run = LoggedRun(without_credentials(run_uri), run_name, parameters_of(config), RunIds(run_uri))
    loggers = _Several()
    for name in dict.fromkeys(names):
        loggers.add(BackgroundLogger(_factory_of(name)(run), name=name))
    return loggers


def check_loggers(names: Sequence[str]) -> None:
    """Check names of loggers before a run begins.

    Raises:
        ConfigError: If there is no such logger.
        InstallError: If its package is not installed.
    """
    for name in names:
        _factory_of(name)


def parameters_of(config: Any) -> dict[str, Parameter]:
    """Return a config's fields by their paths; sequences are JSON text, and URIs are without credentials.

    Args:
        config: A dataclass.
    """
    return dict(_fields("", dataclasses.asdict(config)))


def qualified(name: str) -> str:
    """Return a figure's name in trackers, which group figures by what stands before a slash."""
    return name if "/" in name else f"train/{name}"


def _fields(path: str, value: Any) -> Iterator[tuple[str, Parameter]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _fields(f"{path}.{name}" if path else str(name), inner)
    elif value is None or isinstance(value, bool | int | float):
        yield path, value
    else:
        yield path, without_credentials(value if isinstance(value, str) else json.dumps(value, default=str))


def _factory_of(name: str) -> Factory:
    module_name, separator, function = _ADAPTERS.get(name, name).partition(":")
    if not separator:
        raise ConfigError(
            f"no logger {name!r}",
            where="--logger",
            expected="mlflow, wandb or my_package.module:factory; metrics.jsonl and TensorBoard's files always are",
            remedy=suggestion(name, list(_ADAPTERS)),
        )
    if name in _ADAPTERS and importlib.util.find_spec(name) is None:
        raise InstallError(
            f"the package {name} is not installed",
            where=f"the logger {name!r}",
            remedy=f"pip install -c constraints.txt 'spot_ray[{name}]'",
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise
        raise ConfigError(
            f"there is no module {missing!r}",
            where=f"the logger {name!r}",
            expected="my_package.module:factory of an importable module",
            remedy="install the package, or put its folder on PYTHONPATH",
        ) from None
    factory: Factory | None = vars(module).get(function)
    if not callable(factory):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"{module_name} has no function {function!r}",
            where=f"the logger {name!r}",
            expected="a function (run: LoggedRun) -> RunLogger",
            remedy=suggestion(function, functions) if functions else "",
        )
    return factory


class _Several:
    """Loggers as one."""

    def __init__(self) -> None:
        self._loggers: list[BackgroundLogger] = []

    def add(self, logger: BackgroundLogger) -> None:
        self._loggers.append(logger)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for logger in self._loggers:
            logger.log(step, figures)

    def close(self, *, failed: bool = False) -> None:
        with contextlib.ExitStack() as stack:
            for logger in reversed(self._loggers):
                stack.callback(logger.close, failed=failed)
