"""A running Ray: the cluster that there is, or one on this machine's cores."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from spot_ray.errors import InstallError

if TYPE_CHECKING:
    from ray.data import DataContext

_CHATTY_LOGGERS = ("ray.data._internal.execution.streaming_executor", "ray.data._internal.progress")
"""Loggers that tell of every pipeline's start and end: two lines an epoch and worker amid the training's progress."""

_DATA_THREADS = ("StreamingExecutor", "iter_threaded", "Prefetcher")
"""Threads of Ray Data, by their names: closing an iterator tells them to end and does not wait for it."""


def has_ray(num_workers: int | None) -> bool:
    """Return whether Ray is installed.

    Args:
        num_workers: How many workers are asked for; None: as many as there can be.

    Raises:
        InstallError: If several are and it is not.
    """
    installed = importlib.util.find_spec("ray") is not None
    if num_workers is not None and num_workers > 1 and not installed:
        raise InstallError(
            "several workers need Ray, which is not installed",
            where=f"{num_workers} workers",
            expected="one worker, or Ray",
            remedy="pip install 'spot_ray[train]', or take one worker (--workers 1)",
        )
    return installed


@contextlib.contextmanager
def ray_session(*, spare_cpus: int = 0) -> Iterator[bool]:
    """Make sure that Ray runs while the block does.

    A Ray that runs in this process or that `RAY_ADDRESS` names is used; else one is started on this machine, quietly
    and without a dashboard, and stopped at the end.

    Args:
        spare_cpus: CPUs that a Ray started here offers beyond the machine's cores. Training workers hold theirs all the
            time, and what reads for them must never wait for one.

    Yields:
        Whether a Ray was started on this machine.
    """
    import ray

    if ray.is_initialized():
        yield False
        return
    # Ray's coming default, asked for today: a task without GPUs leaves the visible devices alone, without a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(logging_level="ERROR", log_to_driver=False)
    else:
        num_cpus = num_cores() + spare_cpus
        ray.init("local", num_cpus=num_cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        yield not address
    finally:
        _wait_for_data_threads()
        ray.shutdown()


def _wait_for_data_threads(patience_s: float = 10.0) -> None:
    """Wait until iterators over data that were closed are at rest: one that talks to an ended Ray ends the process."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        gc.collect()  # some end when what they serve is collected
        threads = [thread for thread in threading.enumerate() if thread.name.startswith(_DATA_THREADS)]
        if not threads:
            return
        threads[0].join(timeout=0.1)


@contextlib.contextmanager
def quiet_data_context() -> Iterator[DataContext]:
    """Make Ray Data silent about pipelines that are built in the block: no progress bars, no line per execution.

    Yields:
        The context that they take their options from; changes to it end with the block.
    """
    import ray.data

    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        yield context


def num_cores() -> int:
    """Return the number of CPU cores that this process may use; a container may have fewer than its machine."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
