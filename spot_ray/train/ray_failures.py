"""What Ray says of lost workers, in words that tell the user what happened and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence

import ray
import ray.train
from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from spot_ray.errors import TrainingError

BROKEN_EXCHANGE = ("Connection closed by peer", "Connection reset by peer", "ncclRemoteError", "ncclSystemError")
"""What the neighbours of a lost worker say, now and then before Ray notices the loss."""

MESSAGE_CHARS = 600
"""Of what Ray says of a loss."""


def told(failure: ray.train.TrainingFailedError, *, hangs: Sequence[str], step_timeout_s: float, out: str) -> Exception:
    """Return what to tell the user of a run that Ray gave up.

    Args:
        failure: What Ray raised.
        hangs: What workers said that made no progress.
        step_timeout_s: How long they had for a step.
        out: The run's folder.

    Returns:
        A short error where workers were lost; what went wrong in our code or the user's keeps its trace.
    """
    remedy = f"go on with --resume, --out {out}; on a cluster --max-failures lets a run go on by itself"
    if hangs:
        return TrainingError(
            "\n".join(("the workers made no progress, and were ended", *hangs)),
            expected=f"a step within {step_timeout_s:g} s (train.step_timeout_s)",
            remedy=remedy,
        )
    if isinstance(failure, ray.train.ControllerError):
        return TrainingError(
            "Ray could not start the workers",
            where=_first_lines(failure.controller_failure),
            expected="machines with a free CPU (or GPU) for each worker, or for the fewest of --workers FEWEST:MOST",
            remedy=remedy,
        )
    failures = failure.worker_failures if isinstance(failure, ray.train.WorkerGroupError) else {}
    lost = {rank: error for rank, error in failures.items() if _is_loss(error)}
    broken = [str(error) for error in failures.values() if any(sign in str(error) for sign in BROKEN_EXCHANGE)]
    if not lost and not broken:
        return failure
    ranks = ", ".join(map(str, sorted(lost)))
    what = f"worker {ranks} was lost" if len(lost) == 1 else f"workers {ranks} were lost"
    return TrainingError(
        what if lost else "a worker was lost: the exchange of another with it broke off",
        where=_first_lines(next(iter(lost.values()))) if lost else broken[0].strip().splitlines()[-1],
        expected="processes and machines that live; one that is killed was often out of memory",
        remedy=remedy,
    )


def _is_loss(error: BaseException | None) -> bool:
    """Tell whether an error, or what it came from, is Ray's word for a process or machine that is gone."""
    while error is not None:
        if isinstance(error, WorkerHealthCheckFailedError):
            error = error.health_check_failure
        if isinstance(error, WorkerHealthCheckTimeoutError):
            return True
        if isinstance(error, RayError) and not isinstance(error, ray.exceptions.RayTaskError):
            return True
        error = error.__cause__
    return False


def _first_lines(error: BaseException) -> str:
    """Return what Ray says first: of a worker's loss which process it was, on which machine, and how it ended."""
    if isinstance(error, WorkerHealthCheckFailedError):
        error = error.health_check_failure
    text = " ".join(line.strip() for line in str(error).strip().splitlines())
    text = re.sub(r"\b(class_name|actor_id|namespace): \S+ ", "", text)  # of no use to whoever lost a worker
    return text.partition(" Some common causes")[0][:MESSAGE_CHARS]
