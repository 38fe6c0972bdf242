"""Pre-training on any number of workers with Ray Train; each of them runs what `worker.py` says."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.train import FailureConfig, LoggingConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.context import get_train_context

from spot_ray.errors import ConfigError, SpotRayError
from spot_ray.operators.batch import Batch
from spot_ray.operators.mixture import DataSource, Sources
from spot_ray.operators.stream import stream
from spot_ray.session import num_cores, ray_session
from spot_ray.storage import uri as uris
from spot_ray.storage.cache import CacheConfig
from spot_ray.train.board import open_board
from spot_ray.train.config import PretrainConfig, RunConfig
from spot_ray.train.lease import Lease, LeaseLostError, hold
from spot_ray.train.loop import Signal
from spot_ray.train.metrics import StepReport
from spot_ray.train.pretraining import PretrainTask
from spot_ray.train.progress import ProgressDisplay
from spot_ray.train.ray_failures import told
from spot_ray.train.ray_metrics import RayMetrics
from spot_ray.train.run import AnyTask, Resume, Run, prepare_data, prepare_run, write_run
from spot_ray.train.skipped import SkippedSample
from spot_ray.train.state import RunState
from spot_ray.train.watchdog import Watchdog
from spot_ray.train.worker import Figures, Launch, Listener, RunResult, deadline_after, result_of, train_worker

POLL_S = 0.5
"""Seconds between two looks at what the workers tell."""

START_S = 300.0
"""Seconds that a worker's first step may take at least: it comes after a checkpoint's reading, and compiles."""

RESIZE_S = 30.0
"""Seconds between two looks for machines that a run with fewer workers than it may have could grow onto."""

SHRINKING_S = 20
"""Seconds that a run which may shrink waits for a machine that is gone, before it goes on without it."""

MOST_WAITS = 1000
"""Times in all, a minute each, that a run which may lose workers waits for machines to start again on."""

HANG_PATIENCE_S = 10.0
"""Seconds that a worker that gives itself up takes to say so, and to let the others speak."""

WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that spin while they wait for each other take the cores that reading needs: with both cores of a machine busy
otherwise, a step of two threads took 6 to 15 times as long as with threads that sleep."""

RETRIES_ON_A_CLUSTER = 3
"""Times in a row that a run goes on after losing a worker without having come to another checkpoint, where Ray was
running before; a run on this machine alone fails."""

NumWorkers = int | tuple[int, int]
"""Workers, or the fewest and the most: then a run goes on with fewer while machines are away, and grows again."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Orders:
    """What every worker is given."""

    run: Run
    board: ActorHandle
    launch: Launch


def pretrain(
    config: PretrainConfig,
    *,
    data: Sources,
    out: str,
    init: str | None = None,
    resume: Resume = False,
    num_workers: NumWorkers = 1,
    cache: CacheConfig | None = None,
    probe: DataSource | None = None,
    loggers: Sequence[str] = (),
    profile_steps: int = 0,
    max_hours: float | None = None,
    use_gpu: bool | None = None,
    max_failures: int | None = None,
    progress: bool = True,
    on_metrics: Callable[[int, Figures], None] | None = None,
) -> RunResult:
    """Pre-train an encoder by occupancy prediction.

    Ray is started on this machine if it is not running and `RAY_ADDRESS` does not name a cluster; what was started is
    stopped at the end. One driver at a time works on a run: a second one waits to see whether the first is alive, and
    takes over or gives up.

    Args:
        config: The run.
        data: The labelled datasets; when resuming, with the subsets and proportions that the run began with, or none.
        out: The run's folder: checkpoints, `config.json`, `metrics.jsonl`, TensorBoard logs.
        init: A checkpoint, or a run's folder, whose weights to begin with; or None.
        resume: Go on with the run that `out` holds, from its newest checkpoint that is whole; `auto`: if it holds one,
            so that a job can be submitted again as it is.
        num_workers: Training workers, or the fewest and the most; the global batch stays as the config says.
        cache: Where shards of a remote store are kept on each machine, or None: they are read from the store.
        probe: A labelled dataset on which the encoder is probed on the way, or None.
        loggers: Further loggers of the figures, by name: see :mod:`spot_ray.train.loggers`.
        profile_steps: Steps of the first worker that are traced; 0: none.
        max_hours: Hours after which to stop with a checkpoint, between two lines of figures; None: never.
        use_gpu: A GPU a worker, or the CPU; None: GPUs if there is one for each worker.
        max_failures: Times in a row that workers may be lost without another checkpoint; None: 0 on a Ray that is
            started here, else 3.
        progress: Show the figures on standard error.
        on_metrics: Called in another thread of this process with (global step, figures) of each line of metrics.

    Returns:
        The last checkpoint and figures.

    Raises:
        ConfigError: If the config contradicts itself, the data, the cluster, or the run in `out`; or another driver
            works on it.
        DataError: If the data are missing or broken.
        CheckpointError: If a checkpoint is missing, damaged or does not fit.
        TrainingError: If workers are lost or hang more often than `max_failures`.
    """
    return train_on_ray(
        PretrainTask,
        config,
        data=data,
        out=out,
        init=init,
        resume=resume,
        num_workers=num_workers,
        cache=cache,
        probe=probe,
        loggers=loggers,
        profile_steps=profile_steps,
        max_hours=max_hours,
        use_gpu=use_gpu,
        max_failures=max_failures,
        progress=progress,
        on_metrics=on_metrics,
    )


def train_on_ray(
    task: type[AnyTask],
    config: RunConfig,
    *,
    data: Sources,
    out: str,
    init: str | None = None,
    resume: Resume = False,
    num_workers: NumWorkers = 1,
    cache: CacheConfig | None = None,
    probe: DataSource | None = None,
    loggers: Sequence[str] = (),
    profile_steps: int = 0,
    max_hours: float | None = None,
    use_gpu: bool | None = None,
    max_failures: int | None = None,
    progress: bool = True,
    on_metrics: Callable[[int, Figures], None] | None = None,
) -> RunResult:
    """Run a task on Ray; arguments, results and errors are those of :func:`pretrain`, and `task` is what to learn."""
    fewest, most = (num_workers, num_workers) if isinstance(num_workers, int) else num_workers
    if not 1 <= fewest <= most:
        raise ConfigError(f"num_workers is {num_workers}", expected="at least 1, the fewest first")
    deadline = deadline_after(max_hours)
    run, report = prepare_run(
        config, task=task, data=data, out=out, init=init, resume=resume, probe=probe, loggers=loggers
    )
    with hold(run.out) as lease, contextlib.ExitStack() as stack:
        write_run(run, report)
        prepare_data(run, progress=progress)
        started_here = stack.enter_context(ray_session(spare_cpus=most))
        gpu = _choose_gpu(use_gpu, fewest)
        _check_cpus(fewest)
        display = stack.enter_context(ProgressDisplay(run.total_steps)) if progress else None
        if display is not None and report is not None:
            display.say(str(report))
        if max_failures is None:
            max_failures = 0 if started_here else RETRIES_ON_A_CLUSTER
        board = open_board(max_failures)
        stack.enter_context(_watching(board, lease, display, on_metrics))
        launch = Launch(deadline, cache, probe, tuple(loggers), profile_steps)
        state = _fit(_Orders(run, board, launch), num_workers=num_workers, use_gpu=gpu, max_failures=max_failures)
        return result_of(run, state)


def _fit(orders: _Orders, *, num_workers: NumWorkers, use_gpu: bool, max_failures: int) -> RunState:
    """Run Ray Train; an error of the user's arrives as itself."""
    system, path = uris.filesystem(orders.run.out)
    # The watchdog is to come before torch gives up an exchange: it says where the workers stand.
    if not isinstance(num_workers, int):
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(SHRINKING_S))
    timeout_s = int(max(orders.run.config.train.step_timeout_s, START_S) * 1.5) + 60
    trainer = ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={"orders": orders},
        torch_config=TorchConfig(timeout_s=timeout_s),
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, elastic_resize_monitor_interval_s=RESIZE_S
        ),
        # Our checkpoints are not Ray's: they are found by looking into the run's folder, so that a run can be resumed
        # by another cluster, or without Ray. Ray keeps a marker of its own there, which goes away at the end.
        run_config=RayRunConfig(
            name="ray_train",
            storage_path=path,
            storage_filesystem=system,
            # Whether to go on is the board's to say: Ray counts all failures of a run, however long ago.
            failure_config=FailureConfig(
                max_failures=-1 if max_failures else 0, controller_failure_limit=MOST_WAITS if max_failures else 0
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        state = trainer.fit().return_value
    except SystemExit:
        raise KeyboardInterrupt from None  # what Ray Train's own handler of Ctrl-C leaves behind
    except ray.train.TrainingFailedError as failure:
        error, hangs = ray.get([orders.board.error.remote(), orders.board.hangs.remote()])
        step_timeout_s = orders.run.config.train.step_timeout_s
        raise error or told(failure, hangs=hangs, step_timeout_s=step_timeout_s, out=orders.run.out) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # Ray Train puts its own in place
        try:
            uris.remove_tree(uris.join(orders.run.out, "ray_train"))
        except (SpotRayError, OSError) as away:
            _log.warning("Ray's marker stays in the run's folder, which does no harm: %s", away)
    error = ray.get(orders.board.error.remote())
    if error is not None:
        raise error
    return RunState(**state)


def _work(options: dict[str, Any]) -> dict[str, Any]:
    """Train as one worker of a Ray Train group."""
    orders: _Orders = options["orders"]
    run, board, context = orders.run, orders.board, ray.train.get_context()
    if ray.get(board.error.remote()) is not None:
        return {}  # Ray retries whatever fails, but what the user got wrong stays wrong
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        # Ray sets OMP_NUM_THREADS to the CPUs that a worker asks for, which is one.
        torch.set_num_threads(max(1, num_cores() // context.get_local_world_size()))

    def give_up(text: str) -> None:
        message = f"worker {rank} of {world_size} on {socket.gethostname()}: {text}"
        deadline = time.monotonic() + HANG_PATIENCE_S
        with contextlib.suppress(RayError):
            spoken = ray.get(board.hang.remote(message), timeout=HANG_PATIENCE_S)
            # The first to go breaks the others' exchange: then they would tell that, and not where they stood.
            while spoken < world_size and time.monotonic() < deadline:
                time.sleep(POLL_S)
                spoken = len(ray.get(board.hangs.remote(), timeout=HANG_PATIENCE_S))
        os.kill(os.getpid(), signal.SIGKILL)  # a thread that hangs in a library can be ended in no other way

    try:
        with Watchdog(run.config.train.step_timeout_s, give_up, start_s=START_S) as watchdog:
            listener = _listener(board, rank, world_size, watchdog, RayMetrics(run_name=run.name, rank=rank))
            batches = _batches(orders, rank=rank, world_size=world_size)
            state = train_worker(run, batches, device=device, rank=rank, launch=orders.launch, listener=listener)
    except SpotRayError as error:
        ray.get(board.fail.remote(error))
        raise
    except Exception as error:
        ray.get(board.blame.remote(f"worker {rank}: {type(error).__name__}: {error}"))
        raise
    return {**vars(state)}


def _batches(orders: _Orders, *, rank: int, world_size: int) -> Callable[[int, int], Iterable[Batch]]:
    """Return what streams this worker's batches from a step of an epoch on."""
    run = orders.run
    mixture = run.open_mixture()
    planner = run.build_planner(mixture)

    def batches(epoch: int, start_step: int) -> Iterable[Batch]:
        return stream(
            mixture,
            run.config.data,
            grid=run.task.grid,
            seed=run.config.train.seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            global_batch_size=run.config.train.global_batch_size,
            start_step=start_step,
            planner=planner,
            cache=orders.launch.cache,
        )

    return batches


def _listener(board: ActorHandle, rank: int, world_size: int, watchdog: Watchdog, metrics: RayMetrics) -> Listener:
    """Return what tells the driver and Ray Train; the first worker speaks for all."""
    saved_for: set[str] = set()

    def begin(step: int) -> None:
        # All ask, the first counts: nobody goes on where the first was refused.
        if rank == 0:
            ray.get(board.begin.remote(step, world_size))
        stop_if_failed()

    def stop_if_failed() -> None:
        error = ray.get(board.error.remote()) if rank == 0 else None
        if error is not None:
            raise error

    def after_step(report: StepReport) -> None:
        watchdog.pat(f"step {report.step}")
        metrics.add(report)

    def tell(state: RunState, figures: Figures) -> None:
        metrics.add_line(figures)
        if rank == 0:
            board.post.remote(state.step, figures)

    def tell_skipped(samples: Sequence[SkippedSample]) -> None:
        if rank == 0:
            board.leave_out.remote(samples)

    def note(text: str) -> None:
        board.note.remote(text)

    def report(state: RunState, figures: Figures, newest: str | None) -> None:
        # A barrier of all workers that Ray polls every two seconds: with checkpoints only.
        ray.train.report({"step": state.step, **figures, "checkpoint_path": newest or ""})

    def signal_of() -> Signal:
        stop_if_failed()
        # Ray tells all workers when a machine of theirs is about to be taken away. `ray.train.get_preemption_info` is a
        # barrier over an actor (8 ms with two workers, where an exchange takes 0.6), and ours agree on a signal anyway.
        notice = get_train_context().preemption_context.preemption_info
        if notice is None or saved_for.issuperset(notice.preempted_node_ids):
            return Signal.GO_ON
        saved_for.update(notice.preempted_node_ids)
        return Signal.SAVE

    return Listener(
        on_start=begin,
        on_metrics=tell,
        on_checkpoint=report,
        on_skipped=tell_skipped,
        on_step=after_step,
        on_note=note,
        signal=signal_of,
    )


@contextlib.contextmanager
def _watching(
    board: ActorHandle,
    lease: Lease,
    display: ProgressDisplay | None,
    on_metrics: Callable[[int, Figures], None] | None,
) -> Iterator[None]:
    """Show what the workers tell, from a thread, until the block ends; end them if another driver has taken the run."""
    done = threading.Event()

    def show() -> None:
        lines, skipped, notes = ray.get(board.take.remote())
        if display is not None:
            display.say_skipped(skipped)
            for note in notes:
                display.say(note)
        for step, figures in lines:
            if display is not None:
                display.update(step, figures)
            if on_metrics is not None:
                on_metrics(step, figures)

    def watch() -> None:
        while not done.wait(POLL_S):
            show()
            try:
                lease.check()
            except LeaseLostError as error:
                ray.get(board.fail.remote(error))

    thread = threading.Thread(target=watch, name="pretrain-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        show()


def _choose_gpu(use_gpu: bool | None, num_workers: int) -> bool:
    """Return whether each worker takes a GPU.

    Raises:
        ConfigError: If GPUs are asked for and there are too few.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if use_gpu and gpus < num_workers:
        raise ConfigError(f"{num_workers} workers need a GPU each", expected=f"at most {gpus}, what Ray's cluster has")
    return gpus >= num_workers if use_gpu is None else use_gpu


def _check_cpus(num_workers: int) -> None:
    """Refuse to start where reading would wait for ever for a CPU.

    Raises:
        ConfigError: If the workers would take every CPU of a cluster that was not named by RAY_ADDRESS (such a one may
            grow).
    """
    cpus = ray.cluster_resources().get("CPU", 0)
    if cpus < num_workers + 1 and not os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            f"{num_workers} workers take a CPU each, and Ray was started with {cpus:g}",
            where="ray.init(num_cpus=…)",
            expected=f"at least {num_workers + 1}: reading needs one",
            remedy="start Ray with more CPUs, or let pretrain() start it",
        )
