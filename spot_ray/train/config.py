"""A pre-training run, whole: what a recipe returns, the command line overrides and a checkpoint keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from spot_ray.errors import ConfigError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.losses.config import LossConfig
from spot_ray.models.config import ComputeConfig, ModelConfig
from spot_ray.operators.config import DataConfig


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam with decoupled weight decay under a one-cycle schedule, counted in global steps.

    Args:
        lr: Highest learning rate.
        div_factor: The schedule starts at lr / div_factor.
        final_div_factor: The schedule ends at lr / div_factor / final_div_factor.
        warmup_fraction: Part of the steps that the rise takes.
        beta1: (highest, lowest): falls while the learning rate rises, then returns.
        beta2: Adam's second momentum.
        weight_decay: Decoupled weight decay.
        clip_norm: Gradient norm clip.
    """

    lr: float = 0.003
    div_factor: float = 10.0
    final_div_factor: float = 1e4
    warmup_fraction: float = 0.4
    beta1: tuple[float, float] = (0.95, 0.85)
    beta2: float = 0.99
    weight_decay: float = 0.01
    clip_norm: float = 10.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("lr", "div_factor", "final_div_factor", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=f"optimiser.{name}", expected="more than 0")
        if not 0 <= self.warmup_fraction <= 1:
            raise ConfigError(
                f"warmup_fraction is {self.warmup_fraction}", where="optimiser.warmup_fraction", expected="0 to 1"
            )
        for name, momentum in (("beta1", self.beta1[0]), ("beta1", self.beta1[1]), ("beta2", self.beta2)):
            if not 0 <= momentum < 1:
                raise ConfigError(f"{name} has {momentum}", where=f"optimiser.{name}", expected="from 0, less than 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"weight_decay is {self.weight_decay}", where="optimiser.weight_decay", expected="at least 0"
            )


@dataclass(frozen=True)
class TrainConfig:
    """The run.

    Args:
        epochs: Passes over the plan.
        global_batch_size: Samples a step over all workers.
        micro_batch_size: Most samples a worker computes at once; more are accumulated.
        seed: Seed of weights, plan and augmentation.
        checkpoint_every_steps: Global steps between checkpoints; the end of the run always has one.
        keep_checkpoints: Newest checkpoints that stay.
        keep_best: A figure, such as `probe/miou`: the checkpoint where it was greatest stays too; or None.
        log_every_steps: Global steps between lines of metrics.
        ema_decay: Decay of a moving average of the weights, which is kept beside them; or None: no average.
        on_non_finite: What to do about a step whose loss or gradient is not finite: `stop`, naming its frames, or
            `skip` it, which leaves the weights as they were, and count and list its samples.
        parallel: `replicate` the network on every worker, or `shard` its weights, gradients and optimiser over them
            (FSDP2), for networks that do not fit otherwise.
        sync_batch_norm: Batch norm's statistics over all workers, not each one's own.
        step_timeout_s: Seconds after which a worker that has not finished a step is given up as hanging; the first
            step, in which kernels are compiled and caches are filled, has five minutes at least.
    """

    epochs: int = 30
    global_batch_size: int = 32
    micro_batch_size: int = 4
    seed: int = 0
    checkpoint_every_steps: int = 1000
    keep_checkpoints: int = 3
    keep_best: str | None = None
    log_every_steps: int = 10
    ema_decay: float | None = None
    on_non_finite: Literal["stop", "skip"] = "stop"
    parallel: Literal["replicate", "shard"] = "replicate"
    sync_batch_norm: bool = False
    step_timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        counts = ("epochs", "global_batch_size", "micro_batch_size", "checkpoint_every_steps", "keep_checkpoints")
        for name in (*counts, "log_every_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=f"train.{name}", expected="at least 1")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(
                f"ema_decay is {self.ema_decay}", where="train.ema_decay", expected="over 0, below 1, such as 0.999"
            )
        if not self.step_timeout_s > 0:
            raise ConfigError(
                f"step_timeout_s is {self.step_timeout_s}", where="train.step_timeout_s", expected="seconds, over 0"
            )


@dataclass(frozen=True)
class ProbeConfig:
    """A linear classifier of points on the frozen encoder, trained and scored while pre-training goes on.

    Args:
        every_steps: Global steps between two probes; it needs labelled data (`--probe-data`).
        num_train_frames: Frames that the classifier is fitted on, of other sequences than it is scored on.
        num_test_frames: Frames that it is scored on.
        points_a_frame: Labelled points that are drawn of each frame.
    """

    every_steps: int = 1000
    num_train_frames: int = 48
    num_test_frames: int = 24
    points_a_frame: int = 2048

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("every_steps", "num_train_frames", "num_test_frames", "points_a_frame"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=f"probe.{name}", expected="at least 1")


@dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever it learns.

    Args:
        recipe: Name of the recipe that it came from.
        data: The data plane.
        optimiser: The optimiser.
        train: The run.
        compute: How the network is computed.
    """

    recipe: str
    data: DataConfig = field(default_factory=DataConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        """Check what no section can check alone."""
        if self.train.parallel == "shard" and self.compute.sparse_precision == "float16":
            raise ConfigError(
                "a sharded network has no scaled gradients, which float16 needs",
                where="train.parallel and compute.sparse_precision",
                expected="replicate, or another precision of the sparse convolutions (bfloat16, float32)",
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """A whole pre-training run.

    Args:
        grid: The voxels that the decoder predicts; the labels are made on this grid or on a larger one around it.
        model: The network.
        loss: The loss.
        probe: What tells which checkpoint transfers.
    """

    grid: VoxelGrid = field(default_factory=VoxelGrid)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
