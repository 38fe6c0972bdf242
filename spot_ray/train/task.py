"""What a run learns. Pre-training is one task, fine-tuning a detector another; the trainer knows neither."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.backbone import BevNetwork
from spot_ray.models.sparse import SparseBackEnd
from spot_ray.operators.batch import Batch
from spot_ray.operators.mixture import DataSource, Mixture
from spot_ray.train.config import RunConfig
from spot_ray.train.transfer import LoadReport

Objective = Callable[[Any, Batch], tuple[Tensor, Tensor]]
"""(the network's outputs, batch) to (B, L) losses a sample, the first of which is minimised, and the (N + 1, 3) counts
of `voxel_counts`, of the task's `counted_classes`."""

Probe = Callable[[BevNetwork], dict[str, float]]
"""A network to figures whose names begin with `probe/`; it leaves the network as it was."""


class Description(Protocol):
    """What weights mean: a dataclass that checkpoints keep as JSON."""

    @property
    def features(self) -> tuple[str, ...]:
        """Input features of a point, in the order of the first convolution's channels."""


C = TypeVar("C", bound=RunConfig)
D = TypeVar("D", bound=Description)


@dataclass(frozen=True)
class Task(ABC, Generic[C, D]):
    """What a run learns, as every worker is told of it: small and picklable.

    Args:
        config: The run.
        description: What its weights mean.
    """

    name: ClassVar[str]
    """What it is called in a run's folder."""

    config: C
    description: D

    @classmethod
    def check_config(cls, config: C) -> None:
        """Check what can be checked before the data are opened.

        Raises:
            ConfigError: If the config cannot be one of this task.
        """

    def check_fresh(self) -> None:
        """Check that it makes sense to begin with random numbers.

        Raises:
            ConfigError: If it does not.
        """

    @classmethod
    @abstractmethod
    def of(cls, config: C, mixture: Mixture) -> Self:
        """Return the task of a config on its data.

        Raises:
            ConfigError: If they do not fit each other.
        """

    @property
    @abstractmethod
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses; the first is `loss`."""

    @property
    def grid(self) -> VoxelGrid | None:
        """The grid that labels are cropped to; None: it reads none."""
        return None

    @property
    def counted_classes(self) -> tuple[str, ...]:
        """The classes whose voxels the objective counts."""
        return ()

    @property
    def probe_every_steps(self) -> int:
        """Global steps between two probes; 0: it has no probe."""
        return 0

    @abstractmethod
    def build_model(self, sparse: SparseBackEnd | None = None) -> BevNetwork:
        """Return the network with fresh weights, on the CPU.

        Args:
            sparse: The library of sparse convolutions; None: spconv where it is installed, else torch.
        """

    @abstractmethod
    def load_init(self, model: BevNetwork, uri: str) -> LoadReport:
        """Take over the weights of a checkpoint.

        Raises:
            CheckpointError: If it is missing, damaged, or of another architecture.
        """

    @abstractmethod
    def inputs(self, batch: Batch, device: torch.device | str) -> tuple[Tensor, ...]:
        """Return what the network is called with."""

    @abstractmethod
    def objective(self, model: BevNetwork, device: torch.device | str) -> Objective:
        """Return the loss of the network's outputs; `model` itself is not called."""

    def frozen(self, model: BevNetwork) -> tuple[nn.Module, ...]:  # noqa: ARG002 - tasks may
        """Return the parts that do not learn."""
        return ()

    def lr_factor(self, parameter: str) -> float:  # noqa: ARG002 - tasks may
        """Return the learning rate of a parameter over that of the schedule, by its name in the state dict."""
        return 1.0

    def open_probe(self, data: DataSource) -> Probe:
        """Read what a probe needs.

        Raises:
            ConfigError: If the task has no probe, or the data do not fit it.
        """
        raise NotImplementedError(f"{self.name} has no probe")

    @abstractmethod
    def check_learned(self, uri: str) -> None:
        """Check that what the newest checkpoint of a run's folder has learned is what the run is to learn now.

        Raises:
            ConfigError: If its classes are others.
        """
