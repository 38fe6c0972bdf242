"""Figures for MLflow: extra `mlflow`, which is the client without the server.

The environment says where: `MLFLOW_TRACKING_URI`, what its client reads besides (`MLFLOW_TRACKING_TOKEN`, …), and
`MLFLOW_EXPERIMENT_NAME`, by default `spot_ray`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from types import ModuleType

from spot_ray.errors import ConfigError
from spot_ray.train.credentials import without_credentials
from spot_ray.train.loggers import LoggedRun, qualified

EXPERIMENT = "spot_ray"

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""The client's own is several minutes; it is `background.py` that asks again, and knows when a run ends."""

_PARAMETERS_A_CALL = 100
_LONGEST_VALUE = 6000
_FORBIDDEN = re.compile(r"[^\w\-./ ]")
"""What names of MLflow's parameters and metrics must not hold; class names may."""


def open_mlflow(run: LoggedRun) -> MlflowLogger:
    """Open the logger.

    Raises:
        ConfigError: If the environment does not say where its server is, or nothing that the client can use.
    """
    import mlflow

    for variable, value in PATIENCE.items():
        os.environ.setdefault(variable, value)
    return MlflowLogger(run, mlflow=mlflow)


class MlflowLogger:
    """A run of MLflow's, made or taken up by the first line.

    Args:
        run: The run.
        mlflow: The package.

    Raises:
        ConfigError: If the environment does not say where the server is, or nothing that the client can use.
    """

    def __init__(self, run: LoggedRun, *, mlflow: ModuleType) -> None:
        if not mlflow.is_tracking_uri_set():
            raise ConfigError(
                "nothing says where MLflow is",
                where="--logger mlflow",
                expected="MLFLOW_TRACKING_URI in the environment of worker 0",
                remedy="export MLFLOW_TRACKING_URI=http://HOST:PORT of a server",
            )
        try:
            self._client = mlflow.MlflowClient()  # looks at the URI, and asks no server yet
        except (mlflow.exceptions.MlflowException, ImportError) as error:
            raise ConfigError(
                f"MLflow does not take its tracking URI: {without_credentials(str(error))}",
                where="MLFLOW_TRACKING_URI in the environment of worker 0",
                expected="http://HOST:PORT of a server; for a database, all of MLflow (pip install mlflow)",
            ) from None
        self._run = run
        self._entities = mlflow.entities
        self._id: str | None = None
        self._unsent = list(run.parameters.items())

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Send a line, and before the first the config."""
        if self._id is None:
            self._id = self._take_up(self._run.ids.get("mlflow")) or self._begin()
        while self._unsent:
            some = self._unsent[:_PARAMETERS_A_CALL]
            parameters = [self._entities.Param(_key(name), str(value)[:_LONGEST_VALUE]) for name, value in some]
            self._client.log_batch(self._id, params=parameters)
            del self._unsent[:_PARAMETERS_A_CALL]
        now_ms = int(time.time() * 1e3)
        metrics = [self._entities.Metric(_key(qualified(name)), value, now_ms, step) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, failed: bool = False) -> None:
        """Tell that the run has ended."""
        if self._id is not None:
            self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")

    def _take_up(self, run_id: str | None) -> str | None:
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            # A parameter cannot change at MLflow, and fields of a resumed run's config may: those of its start stay.
            self._unsent.clear()
        return run_id

    def _begin(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        where = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        created = self._client.create_run(where, run_name=self._run.name, tags={"spot_ray.run": self._run.uri})
        run_id: str = created.info.run_id
        self._run.ids.keep("mlflow", run_id)
        return run_id


def _key(name: str) -> str:
    return _FORBIDDEN.sub("_", name)
