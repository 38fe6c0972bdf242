"""A run in this very process, without Ray: for a debugger, a notebook, or a machine that has no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from spot_ray.operators.batch import Batch
from spot_ray.operators.mixture import DataSource, Sources
from spot_ray.operators.stream import iterate
from spot_ray.storage.cache import CacheConfig
from spot_ray.train.config import PretrainConfig, RunConfig
from spot_ray.train.lease import hold
from spot_ray.train.loop import Signal
from spot_ray.train.pretraining import PretrainTask
from spot_ray.train.run import AnyTask, Resume, prepare_data, prepare_run, write_run
from spot_ray.train.state import RunState
from spot_ray.train.transfer import LoadReport
from spot_ray.train.worker import Figures, Launch, Listener, RunResult, deadline_after, result_of, train_worker


def _ignore(*_: object) -> None:
    pass


def pretrain_here(
    config: PretrainConfig,
    *,
    data: Sources,
    out: str,
    init: str | None = None,
    resume: Resume = False,
    device: torch.device | str = "cpu",
    cache: CacheConfig | None = None,
    probe: DataSource | None = None,
    loggers: Sequence[str] = (),
    profile_steps: int = 0,
    max_hours: float | None = None,
    on_metrics: Callable[[RunState, Figures], None] | None = None,
) -> RunResult:
    """Pre-train in this process.

    The run is that of :func:`spot_ray.train.trainer.pretrain` with one worker, and either can resume the other.

    Args:
        config: The run.
        data: The labelled datasets; when resuming, with the subsets and proportions that the run began with, or none.
        out: The run's folder.
        init: A checkpoint to begin with, or None.
        resume: Go on with the run that `out` holds; `auto`: if it holds one.
        device: The training device.
        cache: Where shards of a remote store are kept on this machine, or None.
        probe: The labelled dataset of the probe, or None: no probe.
        loggers: Further loggers of the figures, by name.
        profile_steps: Steps that are traced; 0: none.
        max_hours: Hours after which to stop with a checkpoint, or None.
        on_metrics: Called with each line of metrics.

    Raises:
        SpotRayError: See :func:`~spot_ray.train.run.prepare_run` and :func:`~spot_ray.train.loop.fit`.
    """
    return train_here(
        PretrainTask,
        config,
        data=data,
        out=out,
        init=init,
        resume=resume,
        device=device,
        cache=cache,
        probe=probe,
        loggers=loggers,
        profile_steps=profile_steps,
        max_hours=max_hours,
        on_metrics=on_metrics,
    )


def train_here(
    task: type[AnyTask],
    config: RunConfig,
    *,
    data: Sources,
    out: str,
    init: str | None = None,
    resume: Resume = False,
    device: torch.device | str = "cpu",
    cache: CacheConfig | None = None,
    probe: DataSource | None = None,
    loggers: Sequence[str] = (),
    profile_steps: int = 0,
    max_hours: float | None = None,
    on_metrics: Callable[[RunState, Figures], None] | None = None,
    on_loaded: Callable[[LoadReport], None] = _ignore,
) -> RunResult:
    """Run a task in this process, without Ray; see :func:`pretrain_here`.

    Args of its own: `task`, what to learn; `on_loaded`, called with what became of the weights of `init`.
    """
    deadline = deadline_after(max_hours)
    run, report = prepare_run(
        config, task=task, data=data, out=out, init=init, resume=resume, probe=probe, loggers=loggers
    )
    if report is not None:
        on_loaded(report)
    with hold(run.out) as lease:
        write_run(run, report)
        prepare_data(run)
        mixture = run.open_mixture()
        planner = run.build_planner(mixture)

        def batches(epoch: int, start_step: int) -> Iterable[Batch]:
            return iterate(
                mixture,
                config.data,
                grid=run.task.grid,
                seed=config.train.seed,
                epoch=epoch,
                global_batch_size=config.train.global_batch_size,
                start_step=start_step,
                planner=planner,
                cache=cache,
            )

        def check_lease() -> Signal:
            lease.check()
            return Signal.GO_ON

        state = train_worker(
            run,
            batches,
            device=device,
            launch=Launch(deadline, cache, probe, tuple(loggers), profile_steps),
            listener=Listener(on_metrics=on_metrics or _ignore, signal=check_lease),
        )
        return result_of(run, state)
