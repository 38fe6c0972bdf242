"""A pre-training run, whole: what a recipe returns, the command line overrides and a checkpoint keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spot_ray.errors import ConfigError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.losses.config import LossConfig
from spot_ray.models.config import ModelConfig
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
        log_every_steps: Global steps between lines of metrics.
    """

    epochs: int = 30
    global_batch_size: int = 32
    micro_batch_size: int = 4
    seed: int = 0
    checkpoint_every_steps: int = 1000
    keep_checkpoints: int = 3
    log_every_steps: int = 10


@dataclass(frozen=True)
class PretrainConfig:
    """A whole pre-training run.

    Args:
        recipe: Name of the recipe that it came from.
        grid: The voxels that the decoder predicts; the labels are made on this grid or on a larger one around it.
        data: The data plane.
        model: The network.
        loss: The loss.
        optimiser: The optimiser.
        train: The run.
    """

    recipe: str
    grid: VoxelGrid = field(default_factory=VoxelGrid)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
