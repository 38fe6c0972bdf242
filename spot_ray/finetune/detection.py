"""Fine-tuning a detector, as a task of the trainer: its network, its loss, and what its weights mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError
from spot_ray.finetune.anchor_objective import ANCHOR_LOSS_NAMES, anchor_objective
from spot_ray.finetune.center_objective import CENTER_LOSS_NAMES, center_objective
from spot_ray.finetune.config import DetectionConfig
from spot_ray.losses.config import AnchorLossConfig, CenterLossConfig
from spot_ray.models.backbone import BevNetwork
from spot_ray.models.config import VoxelConfig
from spot_ray.models.detection.anchor_head import AnchorHead
from spot_ray.models.detection.boxes import BoxTruth
from spot_ray.models.detection.center_head import CenterHead
from spot_ray.models.detection.config import class_groups, same_weights
from spot_ray.models.detection.detector import Detector, build_detector
from spot_ray.models.detection.head import HeadOutputs
from spot_ray.models.sparse import SparseBackEnd
from spot_ray.operators.batch import Batch
from spot_ray.operators.mixture import Mixture
from spot_ray.train.checkpoint import (
    OCCUPANCY,
    CheckpointFormat,
    StoredWeights,
    read_description,
    read_stored,
    read_task,
)
from spot_ray.train.checkpoint_folders import latest_checkpoint
from spot_ray.train.labels import tensor_of
from spot_ray.train.task import Objective, Task
from spot_ray.train.transfer import INPUT_WEIGHT, LoadReport, check_fit, map_features

ENCODERS = ("encoder.", "bev.")
"""What the state dicts of the encoders begin with, whatever was trained."""


@dataclass(frozen=True)
class DetectorDescription:
    """What the weights of a detector mean.

    Args:
        features: Input features of a point, in the order of the first convolution's channels.
        class_names: The classes that it detects, in the order of its outputs.
        lidar_names: LiDARs of the rig that it was trained on.
        task: What tells these checkpoints from others.
    """

    features: tuple[str, ...]
    class_names: tuple[str, ...]
    lidar_names: tuple[str, ...]
    task: Literal["detection"] = "detection"


DETECTION = CheckpointFormat("detection", DetectorDescription, DetectionConfig)
"""Checkpoints of detectors."""


@dataclass(frozen=True)
class DetectionTask(Task[DetectionConfig, DetectorDescription]):
    """Find the boxes of a benchmark's classes.

    Args:
        config: The run.
        description: What its weights mean.
        data_classes: The classes of the data's boxes, from 1.
    """

    name: ClassVar[str] = "finetune"

    data_classes: tuple[str, ...]

    @classmethod
    def of(cls, config: DetectionConfig, mixture: Mixture) -> Self:
        """See :class:`~spot_ray.train.task.Task`."""
        names = tuple(name for group in class_groups(config.model.head.groups) for name in group)
        known = mixture.detection_classes
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"the data have no detection class {name!r}",
                    where="model.head.groups",
                    expected=f"of {', '.join(known)}",
                    remedy=suggestion(name, list(known)),
                )
        lidars = (lidar.name for member in mixture.members for lidar in member.dataset.info.rig)
        return cls(config, DetectorDescription(config.data.features, names, tuple(dict.fromkeys(lidars))), known)

    def check_fresh(self) -> None:
        """Check that no encoder is frozen that has learned nothing."""
        freeze = self.config.transfer.freeze
        if freeze != "nothing":
            raise ConfigError(
                f"transfer.freeze is {freeze!r}, and there is no checkpoint to begin with",
                where="transfer.freeze",
                expected="nothing: what begins with random numbers has to learn",
                remedy="name the checkpoint (--init CKPT), or set --transfer.freeze nothing",
            )

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The losses of the head."""
        return CENTER_LOSS_NAMES if isinstance(self.config.loss, CenterLossConfig) else ANCHOR_LOSS_NAMES

    def build_model(self, sparse: SparseBackEnd | None = None) -> Detector:
        """See :class:`~spot_ray.train.task.Task`."""
        model = build_detector(self.config.model, num_features=len(self.description.features), sparse=sparse)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = self.config.transfer.batch_norm_momentum
        return model

    def load_init(self, model: BevNetwork, uri: str) -> LoadReport:
        """Take over the encoders of a checkpoint, and the head of a detector whose head means the same.

        The channels of the first convolution are found by the names of their features. A head of other classes, groups,
        anchors or sizes is left behind.

        Args:
            model: The fresh network; overwritten.
            uri: A checkpoint's folder, of pre-training or of a detector, or a run's: then its newest.

        Returns:
            What became of every weight.

        Raises:
            CheckpointError: If the checkpoint is missing or damaged, or of other encoders; nothing is loaded then.
        """
        stored: StoredWeights[Any, Any]
        if read_task(uri) == DETECTION.task:
            stored = read_stored(uri, DETECTION)
            same_head = stored.description.class_names == self.description.class_names
            same_head &= same_weights(stored.config.model.head, self.config.model.head)
            notes: tuple[str, ...] = () if same_head else ("its head is not of this form: this one is fresh",)
        else:
            stored = read_stored(uri, OCCUPANCY)
            same_head, notes = False, ()
        taken = (*ENCODERS, "head.") if same_head else ENCODERS
        own = model.state_dict()
        weights = {key: weight for key, weight in stored.tensors.items() if key.startswith(taken)}
        fresh = tuple(key for key in own if not key.startswith(taken))
        before, after = stored.description.features, self.description.features
        if INPUT_WEIGHT in weights:
            weights[INPUT_WEIGHT] = map_features(weights[INPUT_WEIGHT], before, after)
        check_fit(own, weights, fresh, stored.uri)
        model.load_state_dict(weights, strict=False)
        return LoadReport(
            uri=stored.uri,
            loaded=tuple(key for key in own if key in weights),
            fresh=fresh,
            new_features=tuple(name for name in after if name not in before),
            unused_features=tuple(name for name in before if name not in after),
            weights=stored.kind,
            left_behind=tuple(sorted(key for key in stored.tensors if key not in weights)),
            notes=(*_voxel_notes(stored.config.model.voxel, self.config.model.voxel), *notes),
        )

    def inputs(self, batch: Batch, device: torch.device | str) -> tuple[Tensor, ...]:
        """Return points and their offsets."""
        return tensor_of(batch.points, device), tensor_of(batch.point_offsets, device)

    def objective(self, model: BevNetwork, device: torch.device | str) -> Objective:
        """See :class:`~spot_ray.train.task.Task`."""
        assert isinstance(model, Detector)
        compute = head_objective(model, self.config.loss)
        table = class_table(self.data_classes, self.description.class_names)
        range_m = self.config.model.voxel.point_cloud_range_m
        no_counts = torch.zeros((1, 3), dtype=torch.int64, device=device)

        def objective(outputs: HeadOutputs, batch: Batch) -> tuple[Tensor, Tensor]:
            return compute(outputs, box_truth(batch, table, range_m, device)), no_counts

        return objective

    def frozen(self, model: BevNetwork) -> tuple[nn.Module, ...]:
        """See :class:`~spot_ray.train.task.Task`."""
        parts: dict[str, tuple[nn.Module, ...]] = {
            "nothing": (),
            "encoder": (model.encoder,),
            "encoders": (model.encoder, model.bev),
        }
        return parts[self.config.transfer.freeze]

    def lr_factor(self, parameter: str) -> float:
        """See :class:`~spot_ray.train.task.Task`."""
        return self.config.transfer.lr_factor if parameter.startswith(ENCODERS) else 1.0

    def check_learned(self, uri: str) -> None:
        """Check that the data have not been made anew with classes that the run's checkpoint does not detect."""
        latest = latest_checkpoint(uri)
        if latest is None:
            return
        learned = read_description(uri, DETECTION).class_names
        if learned != self.description.class_names:
            raise ConfigError(
                f"the run detects {', '.join(self.description.class_names)} now",
                where=latest,
                expected=f"{', '.join(learned)}, as it has learned",
                remedy=f"start a new run in another --out; --init {uri} keeps all but the head",
            )


def head_objective(
    model: Detector, loss: CenterLossConfig | AnchorLossConfig
) -> Callable[[HeadOutputs, BoxTruth], Tensor]:
    """Return the loss of a detector's head: (B, L) a sample, the total first."""
    head = model.head
    if isinstance(head, CenterHead) and isinstance(loss, CenterLossConfig):
        return center_objective(head, loss)
    assert isinstance(head, AnchorHead)
    assert isinstance(loss, AnchorLossConfig)
    return anchor_objective(head, loss)


def class_table(data_classes: Sequence[str], class_names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the (256,) table from classes of the data, from 1, to those of a detector, from 0; -1: not detected."""
    table = np.full(256, -1, dtype=np.int64)
    for number, name in enumerate(data_classes, start=1):
        if name in class_names:
            table[number] = class_names.index(name)
    return table


def box_truth(
    batch: Batch,
    table: npt.NDArray[np.int64],
    range_m: tuple[float, float, float, float, float, float],
    device: torch.device | str,
) -> BoxTruth:
    """Return the boxes that are to be detected in a batch.

    A box whose centre is out of range is not, whatever of it lies within: a head does not return it either. Scores
    count it all the same.

    Args:
        batch: B samples.
        table: See :func:`class_table`.
        range_m: (x, y, z, x, y, z), lowest and highest centre of a box.
        device: Where to put them.
    """
    classes = table[batch.box_class]
    inside = ((batch.boxes[:, :3] >= range_m[:3]) & (batch.boxes[:, :3] <= range_m[3:])).all(axis=1)
    kept = np.flatnonzero((classes >= 0) & inside)
    sample = np.repeat(np.arange(len(batch)), np.diff(batch.box_offsets))
    return BoxTruth(
        boxes=tensor_of(batch.boxes[kept], device),
        classes=tensor_of(classes[kept], device),
        velocity=tensor_of(batch.box_velocity[kept], device),
        sample=tensor_of(sample[kept], device),
        batch_size=len(batch),
    )


def _voxel_notes(before: VoxelConfig, after: VoxelConfig) -> tuple[str, ...]:
    """Return what the user should know of voxels that are not those of pre-training: weights fit all the same."""
    if before.voxel_size_m == after.voxel_size_m:
        return ()
    was, now = (" × ".join(f"{size:g}" for size in voxel.voxel_size_m) for voxel in (before, after))
    return (f"its voxels were {was} m, here they are {now} m",)
