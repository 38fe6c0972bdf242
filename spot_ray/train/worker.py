"""What one worker of a run does, whoever started it; and a run in this very process, without Ray."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from spot_ray.errors import CheckpointError, StoreError
from spot_ray.models.backbone import BevNetwork
from spot_ray.models.compute import prepare_for
from spot_ray.models.sparse_choice import choose_back_end
from spot_ray.operators.batch import Batch
from spot_ray.operators.mixture import DataSource
from spot_ray.storage.cache import CacheConfig
from spot_ray.storage.patience import try_patiently
from spot_ray.train.checkpoint import SavedCheckpoint, newest_usable, read_origin, resolve
from spot_ray.train.checkpoint_folders import latest_checkpoint
from spot_ray.train.checkpoint_writer import CheckpointWriter
from spot_ray.train.distribution import first_says, num_workers
from spot_ray.train.learner import Learner, learner_for
from spot_ray.train.loggers import RunLogger, open_loggers
from spot_ray.train.loop import Hooks, Signal, fit
from spot_ray.train.metrics import StepMeter, StepReport
from spot_ray.train.metrics_writer import MetricsWriter, read_metrics
from spot_ray.train.profile import StepProfiler
from spot_ray.train.provenance import Origin, provenance_of
from spot_ray.train.run import Run
from spot_ray.train.skipped import SkipGuard, SkippedSample, read_skipped
from spot_ray.train.state import RunState
from spot_ray.train.task import Probe
from spot_ray.train.tensors import collect_tensors, restore_tensors
from spot_ray.train.utilisation import peak_flops, training_flops

Figures = dict[str, float]


@dataclass(frozen=True)
class Launch:
    """How a run is started this time: nothing of it changes what the run learns.

    Args:
        deadline_s: When to stop with a checkpoint, as `time.time()` counts, or None: at the run's end.
        cache: Where shards of a remote store are kept on each machine, or None: they are read from the store.
        probe: The labelled dataset of the probe, or None: no probe.
        loggers: Further loggers of the figures, by name.
        profile_steps: Steps of the first worker that are traced; 0: none.
    """

    deadline_s: float | None = None
    cache: CacheConfig | None = None
    probe: DataSource | None = None
    loggers: tuple[str, ...] = ()
    profile_steps: int = 0


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Listener:
    """What is told of a run on its way, on every worker; each has a default that does nothing.

    Args:
        on_start: Called once with the step that the run goes on from.
        on_metrics: Called with each line of figures.
        on_checkpoint: Called with each checkpoint that is begun, and the URI of the newest one that is written by then:
            at the run's end its own; None on other workers than the first, and before there is one.
        on_skipped: Called with the samples that all workers left out, if any, before each line.
        on_step: Called with what each of this worker's steps cost.
        on_note: Called with what the user should know, in a line.
        signal: Asked before each line of figures; see :class:`~spot_ray.train.loop.Hooks`.
    """

    on_start: Callable[[int], None] = _ignore
    on_metrics: Callable[[RunState, Figures], None] = _ignore
    on_checkpoint: Callable[[RunState, Figures, str | None], None] = _ignore
    on_skipped: Callable[[Sequence[SkippedSample]], None] = _ignore
    on_step: Callable[[StepReport], None] = _ignore
    on_note: Callable[[str], None] = _ignore
    signal: Callable[[], Signal] = lambda: Signal.GO_ON


@dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Args:
        checkpoint: URI of its last checkpoint.
        state: How far it came.
        finished: Whether that is its end, not a deadline.
        metrics: The last line of metrics.
        skipped: The planned samples that it left out, in the order of its steps.
    """

    checkpoint: str
    state: RunState
    finished: bool
    metrics: Figures
    skipped: tuple[SkippedSample, ...]


def train_worker(
    run: Run,
    batches: Callable[[int, int], Iterable[Batch]],
    *,
    device: torch.device | str,
    rank: int = 0,
    launch: Launch = Launch(),
    listener: Listener = Listener(),
) -> RunState:
    """Train from the run's newest checkpoint that is whole, or from its beginning, to its end or a deadline.

    Weights are seeded by the config alone: they are the same in every worker.

    Args:
        run: The run.
        batches: (epoch, first step within it) to this worker's shares.
        device: The training device.
        rank: This worker; worker 0 writes metrics and checkpoints.
        launch: How the run is started this time.
        listener: What to tell.

    Returns:
        The state at the end.

    Raises:
        DataError: If a loss is not finite, a frame cannot be read and is not to be left out, or too many are.
        CheckpointError: If the run's checkpoint does not fit it.
    """
    config = run.config
    saved = _newest(run, rank, listener)
    torch.manual_seed(config.train.seed)
    learner = learner_of(run, device, rank=rank, with_init=saved is None)
    if saved is not None:
        restore_tensors(learner, saved.tensors, where=saved.uri)
    state = RunState() if saved is None else saved.state
    origin = read_origin(run.record.init, resumed=saved) if rank == 0 else None
    del saved  # its tensors
    listener.on_start(state.step)
    with contextlib.ExitStack() as stack:
        record = _Record(run, learner, state, launch=launch, listener=listener)
        if rank == 0:
            record.open_files(state, origin, stack)
        if launch.probe is not None and (rank == 0 or config.train.parallel == "shard"):
            # A sharded network is gathered part by part while it runs: then all workers have to probe.
            record.open_probe(launch.probe)
        return fit(
            learner,
            batches,
            meter=_build_meter(run, learner),
            state=state,
            steps_by_epoch=run.record.steps_by_epoch,
            log_every_steps=config.train.log_every_steps,
            checkpoint_every_steps=config.train.checkpoint_every_steps,
            probe_every_steps=run.task.probe_every_steps if launch.probe is not None else 0,
            skip_non_finite=config.train.on_non_finite == "skip",
            hooks=record.hooks(),
        )


def _newest(run: Run, rank: int, listener: Listener) -> SavedCheckpoint | None:
    """Return what to go on from, the same in every worker."""
    saved, damaged = try_patiently(lambda: newest_usable(run.out), doing="read the checkpoints of", where=run.out)
    if saved is None and latest_checkpoint(run.out) is not None:
        raise CheckpointError(
            "none of the run's checkpoints is whole: " + "; ".join(damaged),
            where=run.out,
            remedy="start a new run in another --out, or remove the folder `checkpoints` there to begin this one anew",
        )
    if rank == 0:
        for line in damaged:
            listener.on_note(f"passed over a damaged checkpoint: {line}")
    found = "" if saved is None else saved.uri
    if first_says(found) != found:
        raise StoreError(
            f"worker {rank} does not find the checkpoint that the first worker goes on from",
            where=run.out,
            expected="one folder that all workers see, such as a bucket or a shared disk",
        )
    return saved


def learner_of(run: Run, device: torch.device | str, *, rank: int = 0, with_init: bool) -> Learner:
    """Return a run's learner, computing as its config says, on every worker alike.

    Args:
        run: The run.
        device: The training device.
        rank: This worker.
        with_init: Take over the weights of `--init`, if there is one.
    """
    compute = run.config.compute
    # One worker measures for all: in the same run all of them compute alike.
    dtype = getattr(torch, compute.sparse_precision)
    chosen = first_says(choose_back_end(compute.sparse, device, dtype=dtype).name if rank == 0 else None)
    model = run.task.build_model(choose_back_end("spconv" if chosen == "spconv" else "torch", device))
    if with_init:
        run.load_init(model)
    model.to(device)
    prepare_for(
        model,
        device,
        precision=compute.precision,
        sparse_precision=compute.sparse_precision,
        tf32=compute.tf32,
        channels_last=compute.channels_last,
        compile=compute.compile,
    )
    task = run.task
    return learner_for(
        model,
        run.config,
        inputs=task.inputs,
        loss=task.objective(model, device),
        device=device,
        total_steps=run.total_steps,
        frozen=task.frozen(model),
        lr_factor=task.lr_factor,
    )


def _build_meter(run: Run, learner: Learner) -> StepMeter:
    """Return what sums up the figures; utilisation is told of networks that each worker holds whole."""
    model, compute = learner.model, run.config.compute
    assert isinstance(model, BevNetwork)
    return StepMeter(
        class_names=run.task.counted_classes,
        device=learner.device,
        loss_names=run.task.loss_names,
        world_size=num_workers(),
        clock=learner.clock,
        peak_flops=peak_flops(learner.device, precision=compute.precision),
        flops_of=None
        if run.config.train.parallel == "shard"
        else partial(training_flops, model, device=learner.device),
    )


class _Record:
    """Keeps what a run says of itself, and tells it: figures, samples left out, checkpoints, probes."""

    def __init__(
        self,
        run: Run,
        learner: Learner,
        state: RunState,
        *,
        launch: Launch,
        listener: Listener,
    ) -> None:
        config = run.config
        self._run, self._learner, self._launch, self._listener = run, learner, launch, listener
        self._last: Figures = {}
        self._guard = SkipGuard(
            limit=config.data.max_skipped,
            samples_by_epoch=[steps * config.train.global_batch_size for steps in run.record.steps_by_epoch],
            before=[sample for sample in read_skipped(run.out) if sample.step <= state.step],
            where=run.out,
        )
        self._metrics: MetricsWriter | None = None
        self._checkpoints: CheckpointWriter | None = None
        self._profiler: StepProfiler | None = None
        self._loggers: RunLogger | None = None
        self._probe: Probe | None = None

    def open_probe(self, data: DataSource) -> None:
        """Read the frames of the probe."""
        self._probe = self._run.task.open_probe(data)

    def open_files(self, state: RunState, origin: Origin | None, stack: contextlib.ExitStack) -> None:
        """Open what keeps figures and checkpoints.

        Args:
            state: Where the run goes on.
            origin: What it began with.
            stack: Closes it all.
        """
        run, launch = self._run, self._launch
        metrics = self._metrics = MetricsWriter(run.out, start_step=state.step)
        stack.push(lambda kind, *_: metrics.close(failed=kind is not None))
        loggers = open_loggers(launch.loggers, run_uri=run.out, run_name=run.name, config=run.config)
        stack.push(lambda kind, *_: loggers.close(failed=kind is not None))
        self._loggers = loggers
        self._checkpoints = CheckpointWriter(
            run.out,
            config=run.config,
            description=run.task.description,
            provenance=provenance_of(run, run.open_mixture(), origin),
            keep=run.config.train.keep_checkpoints,
            keep_best=run.config.train.keep_best,
        )
        stack.callback(self._checkpoints.close)
        if launch.profile_steps:
            self._profiler = StepProfiler(run.out, num_steps=launch.profile_steps, clock=self._learner.clock)
            stack.callback(self._profiler.close)

    def hooks(self) -> Hooks:
        """Return what the loop calls."""
        return Hooks(
            on_metrics=self._keep_metrics,
            on_checkpoint=self._keep_checkpoint,
            on_skipped=self._keep_skipped,
            on_step=self._after_step,
            probe=self._run_probe,
            signal=self._signal,
        )

    def _signal(self) -> Signal:
        deadline = self._launch.deadline_s
        late = deadline is not None and time.time() >= deadline
        return max(self._listener.signal(), Signal.STOP if late else Signal.GO_ON)

    def _after_step(self, report: StepReport) -> None:
        if self._profiler is not None:
            self._profiler.step()
        self._listener.on_step(report)

    def _run_probe(self) -> Figures:
        if self._probe is None:
            return {}
        model = self._learner.model
        assert isinstance(model, BevNetwork)
        return self._probe(model)

    def _keep_metrics(self, state: RunState, figures: Figures) -> None:
        figures = {
            "epoch": state.epoch,
            "samples": state.samples_seen,
            "wall_time_s": state.wall_time_s,
            **figures,
            "data/skipped_total": self._guard.total,
        }
        # A probe's figures hold until the next one: the best checkpoint is chosen by them.
        probed = {name: value for name, value in self._last.items() if name.startswith("probe/")}
        self._last = probed | figures
        if self._metrics is not None:
            self._metrics.write(state.step, figures)
        if self._loggers is not None:
            self._loggers.log(state.step, figures)
        self._listener.on_metrics(state, figures)

    def _keep_skipped(self, samples: Sequence[SkippedSample]) -> None:
        if self._metrics is not None:
            self._metrics.write_skipped(samples)
        self._listener.on_skipped(samples)
        self._guard.add(samples)

    def _keep_checkpoint(self, state: RunState, ends: bool) -> None:
        tensors = collect_tensors(self._learner, keep=self._checkpoints is not None)
        newest = None
        if self._metrics is not None and self._checkpoints is not None:
            assert tensors is not None
            self._metrics.flush()
            self._checkpoints.save(state, tensors, dict(self._last))
            if ends:
                self._checkpoints.wait()
            newest = self._checkpoints.newest
        self._listener.on_checkpoint(state, dict(self._last), newest)


def deadline_after(max_hours: float | None) -> float | None:
    """Return when so many hours from now are over, as `time.time()` counts."""
    return None if max_hours is None else time.time() + max_hours * 3600


def result_of(run: Run, state: RunState) -> RunResult:
    """Return what a run leaves, as its folder holds it."""
    lines = read_metrics(run.out)
    return RunResult(
        checkpoint=resolve(run.out),
        state=state,
        finished=state.step >= run.total_steps,
        metrics=lines[-1] if lines else {},
        skipped=tuple(read_skipped(run.out)),
    )
