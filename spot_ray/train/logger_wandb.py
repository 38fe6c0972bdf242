"""Figures for Weights & Biases: extra `wandb`.

The environment says where, by the client's own variables: `WANDB_API_KEY` or what `wandb login` has left, or
`WANDB_MODE=offline`; `WANDB_ENTITY`; `WANDB_PROJECT`, by default `spot_ray`; and `WANDB_DIR`, by default the folder of
a run on this machine, else a temporary one.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from spot_ray.errors import ConfigError
from spot_ray.storage import uri as uris
from spot_ray.train.loggers import LoggedRun, qualified

PROJECT = "spot_ray"

CONNECT_S = 20.0
"""Seconds to wait for an answer: the end of a process waits too, and `background.py` asks again."""

_WITHOUT_SERVER = ("offline", "disabled", "dryrun")


def open_wandb(run: LoggedRun) -> WandbLogger:
    """Open the logger.

    Raises:
        ConfigError: If nothing says how to get in.
    """
    import wandb

    return WandbLogger(run, wandb=wandb)


class WandbLogger:
    """A run of Weights & Biases', made or taken up by the first line.

    Args:
        run: The run.
        wandb: The package.

    Raises:
        ConfigError: If nothing says how to get in.
    """

    def __init__(self, run: LoggedRun, *, wandb: ModuleType) -> None:
        self._wandb = wandb
        self._run = run
        self._session: Any = None
        if os.environ.get("WANDB_MODE") in _WITHOUT_SERVER:
            return
        if not wandb.login(verify=False, prompt=False):
            raise ConfigError(
                "nothing says how to get into Weights & Biases",
                where="--logger wandb",
                expected="WANDB_API_KEY in the environment of worker 0, what `wandb login` leaves on its machine, or "
                "WANDB_MODE=offline",
                remedy="give one of these, then start the run again",
            )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Send a line."""
        if self._session is None:
            self._session = self._begin()
        self._session.log({"step": step, **{qualified(name): value for name, value in figures.items()}})

    def close(self, *, failed: bool = False) -> None:
        """Send what is left, and tell that the run has ended."""
        if self._session is not None:
            self._session.finish(exit_code=int(failed))

    def _begin(self) -> Any:
        run_id = self._run.ids.get("wandb")
        if run_id is None:
            run_id = uuid.uuid4().hex[:12]
            self._run.ids.keep("wandb", run_id)
        session = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id,
            name=self._run.name,
            resume="allow",
            config=self._run.parameters,
            allow_val_change=True,
            dir=os.environ.get("WANDB_DIR") or _folder(self._run.uri),
            reinit="create_new",  # a run that the user's own code has begun in this process stays theirs
            settings=self._wandb.Settings(console="off", silent=True, init_timeout=CONNECT_S),
        )
        # Its own counter of steps cannot fall back, as ours does in a resumed run.
        session.define_metric("*", step_metric="step")
        return session


def _folder(run_uri: str) -> str:
    return uris.absolute(run_uri) if uris.is_local(run_uri) else tempfile.mkdtemp(prefix="spot_ray_wandb_")
