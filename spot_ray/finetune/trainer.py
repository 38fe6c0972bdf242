"""Fine-tuning on any number of workers with Ray Train."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spot_ray.finetune.config import DetectionConfig
from spot_ray.finetune.detection import DetectionTask
from spot_ray.operators.mixture import Sources
from spot_ray.storage.cache import CacheConfig
from spot_ray.train.run import Resume
from spot_ray.train.trainer import NumWorkers, train_on_ray
from spot_ray.train.worker import Figures, RunResult


def finetune(
    config: DetectionConfig,
    *,
    data: Sources,
    out: str,
    init: str | None = None,
    resume: Resume = False,
    num_workers: NumWorkers = 1,
    cache: CacheConfig | None = None,
    loggers: Sequence[str] = (),
    profile_steps: int = 0,
    max_hours: float | None = None,
    use_gpu: bool | None = None,
    max_failures: int | None = None,
    progress: bool = True,
    on_metrics: Callable[[int, Figures], None] | None = None,
) -> RunResult:
    """Fine-tune a detector.

    Args:
        config: The run.
        data: The datasets, each with the subset that is to be trained on; when resuming, as the run began.
        out: The run's folder: checkpoints, `config.json`, `metrics.jsonl`, TensorBoard logs.
        init: A checkpoint, of pre-training or of a detector, or a run's folder;
            :data:`~spot_ray.train.run.SCRATCH`: from scratch; None: when resuming as the run began, else from scratch.
        resume: See :func:`~spot_ray.train.trainer.pretrain`, as for all below.
        num_workers: Training workers, or the fewest and the most.
        cache: Where shards of a remote store are kept on each machine.
        loggers: Further loggers of the figures, by name.
        profile_steps: Steps of the first worker that are traced.
        max_hours: Hours after which to stop with a checkpoint.
        use_gpu: A GPU a worker, or the CPU; None: GPUs if there is one for each worker.
        max_failures: Times in a row that workers may be lost without another checkpoint.
        progress: Show the figures on standard error.
        on_metrics: Called with (global step, figures) of each line of metrics.

    Raises:
        SpotRayError: See :func:`~spot_ray.train.trainer.pretrain`.
    """
    return train_on_ray(
        DetectionTask,
        config,
        data=data,
        out=out,
        init=init,
        resume=resume,
        num_workers=num_workers,
        cache=cache,
        loggers=loggers,
        profile_steps=profile_steps,
        max_hours=max_hours,
        use_gpu=use_gpu,
        max_failures=max_failures,
        progress=progress,
        on_metrics=on_metrics,
    )
