"""Pre-training by occupancy prediction, as a task of the trainer: its network, its loss, and what its weights mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from spot_ray.errors import ConfigError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.losses.occupancy import UNLABELLED_LOGIT, occupancy_loss
from spot_ray.models.backbone import BevNetwork
from spot_ray.models.sparse import SparseBackEnd
from spot_ray.models.spot import OccupancyModel, build_model
from spot_ray.operators.batch import Batch
from spot_ray.operators.mixture import DataSource, Mixture
from spot_ray.schema.taxonomy import Taxonomy
from spot_ray.train.checkpoint import OCCUPANCY, ModelDescription, read_description
from spot_ray.train.checkpoint_folders import latest_checkpoint
from spot_ray.train.config import PretrainConfig
from spot_ray.train.labels import class_weights, tensor_of, to_labels
from spot_ray.train.learner import Learner, learner_for
from spot_ray.train.probe import open_probe
from spot_ray.train.task import Objective, Probe, Task
from spot_ray.train.transfer import LoadReport, load_weights
from spot_ray.train.voxel_counts import voxel_counts


@dataclass(frozen=True)
class PretrainTask(Task[PretrainConfig, ModelDescription]):
    """Predict the occupancy around a sweep.

    Args:
        config: The run.
        description: What its weights mean.
    """

    name: ClassVar[str] = "pretrain"

    @classmethod
    def check_config(cls, config: PretrainConfig) -> None:
        """See :class:`~spot_ray.train.task.Task`."""
        if config.data.labels is None:
            raise ConfigError(
                "there are no labels to learn from", where="data.labels", expected="the name of a label set"
            )

    @classmethod
    def of(cls, config: PretrainConfig, mixture: Mixture) -> Self:
        """See :class:`~spot_ray.train.task.Task`."""
        assert mixture.label_taxonomy is not None
        assert config.data.labels is not None
        lidars = (lidar.name for member in mixture.members for lidar in member.dataset.info.rig)
        description = ModelDescription(
            features=config.data.features,
            taxonomy=mixture.label_taxonomy,
            grid=config.grid,
            lidar_names=tuple(dict.fromkeys(lidars)),
            labels=config.data.labels,
        )
        return cls(config, description)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The loss and its two parts."""
        return "loss", "cross_entropy", "lovasz"

    @property
    def grid(self) -> VoxelGrid:
        """The label grid."""
        return self.config.grid

    @property
    def counted_classes(self) -> tuple[str, ...]:
        """The classes of the labels."""
        return self.description.taxonomy.class_names

    @property
    def probe_every_steps(self) -> int:
        """Global steps between two probes."""
        return self.config.probe.every_steps

    def build_model(self, sparse: SparseBackEnd | None = None) -> OccupancyModel:
        """See :class:`~spot_ray.train.task.Task`."""
        return build_model(
            self.config.model,
            num_features=len(self.description.features),
            num_classes=self.description.taxonomy.num_classes,
            grid=self.config.grid,
            sparse=sparse,
        )

    def load_init(self, model: BevNetwork, uri: str) -> LoadReport:
        """See :class:`~spot_ray.train.task.Task`."""
        description = self.description
        return load_weights(
            model, uri, features=description.features, taxonomy=description.taxonomy, grid=self.config.grid
        )

    def inputs(self, batch: Batch, device: torch.device | str) -> tuple[Tensor, ...]:
        """See :class:`~spot_ray.train.task.Task`."""
        return occupancy_inputs(batch, device)

    def objective(self, model: BevNetwork, device: torch.device | str) -> Objective:  # noqa: ARG002 - others need it
        """See :class:`~spot_ray.train.task.Task`."""
        return occupancy_objective(
            self.config, taxonomy=self.description.taxonomy, grid=self.config.grid, device=device
        )

    def open_probe(self, data: DataSource) -> Probe:
        """See :class:`~spot_ray.train.task.Task`."""
        config = self.config
        return open_probe(
            config.probe, data=data, description=self.description, voxel=config.model.voxel, inputs=config.data
        )

    def check_learned(self, uri: str) -> None:
        """Check that the label set has not been made anew with other classes."""
        latest = latest_checkpoint(uri)
        if latest is None:
            return
        learned, names = read_description(uri, OCCUPANCY).taxonomy.class_names, self.description.taxonomy.class_names
        if learned != names:
            raise ConfigError(
                f"the labels {self.description.labels!r} have other classes now: {', '.join(names)}",
                where=latest,
                expected=f"{', '.join(learned)}, as the run has learned",
                remedy=f"start a new run in another --out; --init {uri} keeps all but the head",
            )


def build_learner(
    model: nn.Module,
    config: PretrainConfig,
    *,
    taxonomy: Taxonomy,
    grid: VoxelGrid,
    device: torch.device | str,
    total_steps: int,
    world_size: int | None = None,
) -> Learner:
    """Return the learner of a pre-training; see :func:`~spot_ray.train.learner.learner_for`.

    Args:
        model: `(points, point_offsets, network_from_label) -> (B, N + 1, nz, ny, nx)` logits.
        config: The run.
        taxonomy: The classes of the labels.
        grid: The label grid.
        device: The training device.
        total_steps: Global steps of the whole run, for the schedule.
        world_size: Number of workers that share a global batch; None: those of the process group.
    """
    return learner_for(
        model,
        config,
        inputs=occupancy_inputs,
        loss=occupancy_objective(config, taxonomy=taxonomy, grid=grid, device=device),
        device=device,
        total_steps=total_steps,
        world_size=world_size,
    )


def occupancy_inputs(batch: Batch, device: torch.device | str) -> tuple[Tensor, ...]:
    """Return points, their offsets, and the affine of the augmentation, which the network looks at on the CPU."""
    return (
        tensor_of(batch.points, device),
        tensor_of(batch.point_offsets, device),
        tensor_of(batch.network_from_label, "cpu"),
    )


def occupancy_objective(
    config: PretrainConfig, *, taxonomy: Taxonomy, grid: VoxelGrid, device: torch.device | str
) -> Objective:
    """Return the pre-training loss (paper, Eq. 3) of logits against a batch's occupancy.

    A class that a sample's dataset cannot label is left out of its softmax.
    """
    weights = class_weights(taxonomy, config.loss, device)

    def objective(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = to_labels(
            batch,
            grid,
            device,
            point_cloud_range_m=config.model.voxel.point_cloud_range_m,
            mask_unobserved=config.loss.mask_unobserved,
        )
        labelled = None if batch.labelled.all() else tensor_of(batch.labelled, device)
        loss = occupancy_loss(
            logits,
            labels,
            weights,
            lovasz_weight=config.loss.lovasz_weight,
            over_present=config.loss.lovasz_over_present,
            labelled=labelled,
        )
        predicted = logits.detach()
        if labelled is not None:
            predicted = predicted.masked_fill(~labelled[:, :, None, None, None], UNLABELLED_LOGIT)
        return torch.stack([loss.total, loss.cross_entropy, loss.lovasz], dim=1), voxel_counts(predicted, labels)

    return objective
