"""What one worker of a run does, whoever started it; and a run in this very process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from spot_ray.operators.batch import Batch
from spot_ray.operators.mixture import Sources
from spot_ray.operators.stream import iterate
from spot_ray.storage.cache import CacheConfig
from spot_ray.train.checkpoint import checkpoint_uri, latest_checkpoint, resolve, resume_state, save_checkpoint
from spot_ray.train.config import PretrainConfig
from spot_ray.train.loop import RunState, build_learner, fit
from spot_ray.train.metrics import MetricsWriter, StepMeter, StepReport, read_metrics
from spot_ray.train.run import Run, prepare_run
from spot_ray.train.skipped import SkipGuard, SkippedSample, read_skipped

Figures = dict[str, float]


@dataclass(frozen=True)
class PretrainResult:
    """What a finished run leaves.

    Args:
        checkpoint: URI of its last checkpoint.
        state: How far it came.
        metrics: The last line of metrics.
        skipped: The planned samples that it left out, in the order of its steps.
    """

    checkpoint: str
    state: RunState
    metrics: Figures
    skipped: tuple[SkippedSample, ...]


def train_worker(
    run: Run,
    batches: Callable[[int, int], Iterable[Batch]],
    *,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    on_metrics: Callable[[RunState, Figures], None] | None = None,
    on_checkpoint: Callable[[RunState, Figures, str], None] | None = None,
    on_skipped: Callable[[Sequence[SkippedSample]], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> RunState:
    """Train from the run's newest checkpoint, or from its beginning, to its end.

    Weights are seeded by the config alone: they are the same in every worker.

    Args:
        run: The run.
        batches: (epoch, first step within it) to this worker's shares.
        device: The training device.
        rank: This worker; worker 0 writes metrics and checkpoints.
        world_size: Number of workers.
        wrap: Wraps the network for distribution.
        on_metrics: Called on every worker with each line of metrics.
        on_checkpoint: Called on every worker with each checkpoint's URI; on worker 0 it is written by then.
        on_skipped: Called on every worker with the samples that all of them left out, if any, before each line.
        on_step: Called on every worker with what each of its steps cost.

    Returns:
        The state at the end.

    Raises:
        DataError: If a loss is not finite, a frame cannot be read and is not to be left out, or too many are.
    """
    config = run.config
    torch.manual_seed(config.train.seed)
    model = run.build_model()
    checkpoint = latest_checkpoint(run.out)
    if checkpoint is None:
        run.load_init(model)
    learner = build_learner(
        model.to(device),
        config,
        taxonomy=run.taxonomy,
        grid=config.grid,
        device=device,
        total_steps=run.total_steps,
        world_size=world_size,
        wrap=wrap,
    )
    state = RunState()
    if checkpoint is not None:
        state = resume_state(checkpoint, model=learner.model, optimiser=learner.optimiser)
    guard = SkipGuard(
        limit=config.data.max_skipped,
        samples_by_epoch=[steps * config.train.global_batch_size for steps in run.record.steps_by_epoch],
        before=[sample for sample in read_skipped(run.out) if sample.step <= state.step],
        where=run.out,
    )
    writer = MetricsWriter(run.out, start_step=state.step) if rank == 0 else None
    last: Figures = {}

    def keep_metrics(state: RunState, figures: Figures) -> None:
        figures = {
            "epoch": state.epoch,
            "samples": state.samples_seen,
            "wall_time_s": state.wall_time_s,
            **figures,
            "data/skipped_total": guard.total,
        }
        last.clear()
        last.update(figures)
        if writer is not None:
            writer.write(state.step, figures)
        if on_metrics is not None:
            on_metrics(state, figures)

    def keep_skipped(samples: Sequence[SkippedSample]) -> None:
        if writer is not None:
            writer.write_skipped(samples)
        if on_skipped is not None:
            on_skipped(samples)
        guard.add(samples)

    def keep_checkpoint(state: RunState) -> None:
        if writer is not None:
            writer.flush()
            save_checkpoint(
                run.out,
                model=learner.model,
                optimiser=learner.optimiser,
                state=state,
                config=config,
                description=run.description,
                keep=config.train.keep_checkpoints,
            )
        if on_checkpoint is not None:
            on_checkpoint(state, dict(last), checkpoint_uri(run.out, state.step))

    try:
        return fit(
            learner,
            batches,
            meter=StepMeter(class_names=run.taxonomy.class_names, device=device, world_size=world_size),
            state=state,
            steps_by_epoch=run.record.steps_by_epoch,
            log_every_steps=config.train.log_every_steps,
            checkpoint_every_steps=config.train.checkpoint_every_steps,
            on_metrics=keep_metrics,
            on_checkpoint=keep_checkpoint,
            on_skipped=keep_skipped,
            on_step=on_step,
        )
    finally:
        if writer is not None:
            writer.close()


def pretrain_here(
    config: PretrainConfig,
    *,
    data: Sources,
    out: str,
    init: str | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
    cache: CacheConfig | None = None,
    on_metrics: Callable[[RunState, Figures], None] | None = None,
) -> PretrainResult:
    """Pre-train in this process, without Ray: for a debugger, a notebook, or a machine that has no Ray.

    The run is that of :func:`spot_ray.train.trainer.pretrain` with one worker, and either can resume the other.

    Args:
        config: The run.
        data: The labelled datasets; when resuming, with the subsets and proportions that the run began with, or none.
        out: The run's folder.
        init: A checkpoint to begin with, or None.
        resume: Go on with the run that `out` holds.
        device: The training device.
        cache: Where shards of a remote store are kept on this machine, or None.
        on_metrics: Called with each line of metrics.

    Raises:
        SpotRayError: See :func:`~spot_ray.train.run.prepare_run` and :func:`~spot_ray.train.loop.fit`.
    """
    run, _ = prepare_run(config, data=data, out=out, init=init, resume=resume)
    mixture = run.open_mixture()
    planner = run.build_planner(mixture)

    def batches(epoch: int, start_step: int) -> Iterable[Batch]:
        return iterate(
            mixture,
            config.data,
            grid=config.grid,
            seed=config.train.seed,
            epoch=epoch,
            global_batch_size=config.train.global_batch_size,
            start_step=start_step,
            planner=planner,
            cache=cache,
        )

    return result_of(run, train_worker(run, batches, device=device, on_metrics=on_metrics))


def result_of(run: Run, state: RunState) -> PretrainResult:
    """Return what a finished run leaves, as its folder holds it."""
    lines = read_metrics(run.out)
    return PretrainResult(
        checkpoint=resolve(run.out),
        state=state,
        metrics=lines[-1] if lines else {},
        skipped=tuple(read_skipped(run.out)),
    )
