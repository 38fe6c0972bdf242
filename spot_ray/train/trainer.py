"""Pre-training on any number of workers with Ray Train; each of them runs what `worker.py` says."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from torch import nn

from spot_ray.errors import ConfigError, SpotRayError
from spot_ray.operators.batch import Batch
from spot_ray.operators.mixture import Sources
from spot_ray.operators.stream import stream
from spot_ray.session import num_cores, ray_session
from spot_ray.storage import uri as uris
from spot_ray.storage.cache import CacheConfig
from spot_ray.train.config import PretrainConfig
from spot_ray.train.loop import RunState
from spot_ray.train.progress import ProgressDisplay
from spot_ray.train.ray_metrics import RayMetrics
from spot_ray.train.run import Run, prepare_run
from spot_ray.train.skipped import SkippedSample
from spot_ray.train.worker import Figures, PretrainResult, result_of, train_worker

POLL_S = 0.5
"""Seconds between two looks at what the workers tell."""

WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that spin while they wait for each other take the cores that reading needs: with both cores of a machine busy
otherwise, a step of two threads took 6 to 15 times as long as with threads that sleep."""

RETRIES_ON_A_CLUSTER = 3
"""Times that a run goes on after losing a worker, where Ray was running before; a run on this machine alone fails."""


class _Board:
    """What the workers tell the driver: figures and what is left out, and the user's error that ended the run."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, Figures]] = []
        self._skipped: list[SkippedSample] = []
        self._error: SpotRayError | None = None

    def post(self, step: int, figures: Figures) -> None:
        self._lines.append((step, figures))

    def leave_out(self, samples: Sequence[SkippedSample]) -> None:
        self._skipped += samples

    def take(self) -> tuple[list[tuple[int, Figures]], list[SkippedSample]]:
        lines, self._lines = self._lines, []
        skipped, self._skipped = self._skipped, []
        return lines, skipped

    def fail(self, error: SpotRayError) -> None:
        self._error = self._error or error

    def error(self) -> SpotRayError | None:
        return self._error


@dataclass(frozen=True)
class _Orders:
    """What every worker is given."""

    run: Run
    board: ActorHandle
    cache: CacheConfig | None


def pretrain(
    config: PretrainConfig,
    *,
    data: Sources,
    out: str,
    init: str | None = None,
    resume: bool = False,
    num_workers: int = 1,
    cache: CacheConfig | None = None,
    use_gpu: bool | None = None,
    max_failures: int | None = None,
    progress: bool = True,
    on_metrics: Callable[[int, Figures], None] | None = None,
) -> PretrainResult:
    """Pre-train an encoder by occupancy prediction.

    Ray is started on this machine if it is not running and `RAY_ADDRESS` does not name a cluster; what was started is
    stopped at the end.

    Args:
        config: The run.
        data: The labelled datasets; when resuming, with the subsets and proportions that the run began with, or none.
        out: The run's folder: checkpoints, `config.json`, `metrics.jsonl`, TensorBoard logs.
        init: A checkpoint, or a run's folder, whose weights to begin with; or None.
        resume: Go on with the run that `out` holds, from its newest checkpoint.
        num_workers: Training workers; the global batch stays as the config says.
        cache: Where shards of a remote store are kept on each machine, or None: they are read from the store.
        use_gpu: A GPU a worker, or the CPU; None: GPUs if there is one for each worker.
        max_failures: Lost workers after which to give up; None: 0 on a Ray that is started here, else 3.
        progress: Show the figures on standard error.
        on_metrics: Called in another thread of this process with (global step, figures) of each line of metrics.

    Returns:
        The last checkpoint and figures.

    Raises:
        ConfigError: If the config contradicts itself, the data, the cluster, or the run in `out`.
        DataError: If the data are missing or broken.
        CheckpointError: If a checkpoint is missing, damaged or does not fit.
        ray.train.TrainingFailedError: If workers fail for another reason, more often than `max_failures`.
    """
    if num_workers < 1:
        raise ConfigError(f"num_workers is {num_workers}", expected="at least 1")
    run, report = prepare_run(config, data=data, out=out, init=init, resume=resume)
    with ray_session(spare_cpus=num_workers) as started_here, contextlib.ExitStack() as stack:
        gpu = _choose_gpu(use_gpu, num_workers)
        _check_cpus(num_workers)
        display = stack.enter_context(ProgressDisplay(run.total_steps)) if progress else None
        if display is not None and report is not None:
            display.say(str(report))
        board = ray.remote(num_cpus=0)(_Board).remote()
        stack.enter_context(_watching(board, display, on_metrics))
        if max_failures is None:
            max_failures = 0 if started_here else RETRIES_ON_A_CLUSTER
        state = _fit(_Orders(run, board, cache), num_workers=num_workers, use_gpu=gpu, max_failures=max_failures)
    return result_of(run, state)


def _fit(orders: _Orders, *, num_workers: int, use_gpu: bool, max_failures: int) -> RunState:
    """Run Ray Train; an error of the user's arrives as itself."""
    system, path = uris.filesystem(orders.run.out)
    trainer = ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={"orders": orders},
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        # Our checkpoints are not Ray's: they are found by looking into the run's folder, so that a run can be resumed
        # by another cluster, or without Ray. Ray keeps a marker of its own there, which goes away at the end.
        run_config=RunConfig(
            name="ray_train",
            storage_path=path,
            storage_filesystem=system,
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        state = trainer.fit().return_value
    except SystemExit:
        raise KeyboardInterrupt from None  # what Ray Train's own handler of Ctrl-C leaves behind
    except ray.train.TrainingFailedError:
        error = ray.get(orders.board.error.remote())
        if error is None:
            raise
        raise error from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # Ray Train puts its own in place
        uris.remove_tree(uris.join(orders.run.out, "ray_train"))
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

    mixture = run.open_mixture()
    planner = run.build_planner(mixture)

    def batches(epoch: int, start_step: int) -> Iterable[Batch]:
        return stream(
            mixture,
            run.config.data,
            grid=run.config.grid,
            seed=run.config.train.seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            global_batch_size=run.config.train.global_batch_size,
            start_step=start_step,
            planner=planner,
            cache=orders.cache,
        )

    def tell(state: RunState, figures: Figures) -> None:
        if rank == 0:
            board.post.remote(state.step, figures)

    def tell_skipped(samples: Sequence[SkippedSample]) -> None:
        if rank == 0:
            board.leave_out.remote(samples)

    def report(state: RunState, figures: Figures, checkpoint: str) -> None:
        # A barrier of all workers that Ray polls every two seconds: with checkpoints only.
        ray.train.report({"step": state.step, **figures, "checkpoint_path": checkpoint})

    try:
        state = train_worker(
            run,
            batches,
            device=device,
            rank=rank,
            world_size=world_size,
            wrap=_distribute,
            on_metrics=tell,
            on_checkpoint=report,
            on_skipped=tell_skipped,
            on_step=RayMetrics(run_name=run.name, rank=rank).add,
        )
    except SpotRayError as error:
        ray.get(board.fail.remote(error))
        raise
    return {**vars(state)}


def _distribute(model: nn.Module) -> nn.Module:
    # Without device ids DDP leaves inputs where they are: the affine of the augmentation belongs on the CPU.
    kwargs = {"device_ids": None, "output_device": None}
    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs=kwargs)


@contextlib.contextmanager
def _watching(
    board: ActorHandle, display: ProgressDisplay | None, on_metrics: Callable[[int, Figures], None] | None
) -> Iterator[None]:
    """Show what the workers tell, from a thread, until the block ends."""
    done = threading.Event()

    def show() -> None:
        lines, skipped = ray.get(board.take.remote())
        if display is not None:
            display.say_skipped(skipped)
        for step, figures in lines:
            if display is not None:
                display.update(step, figures)
            if on_metrics is not None:
                on_metrics(step, figures)

    def watch() -> None:
        while not done.wait(POLL_S):
            show()

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
