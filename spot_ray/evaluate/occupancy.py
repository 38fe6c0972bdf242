"""Occupancy metrics: geometric IoU and mIoU from one confusion matrix over all frames, in all and without ground.

Definitions (those of Occ3D and SSCBench, with the domain written out):

- *Domain*: the voxels that the truth observes (its value is not 255). Nothing else counts, whatever is predicted there.
- *Geometric IoU*: occupied against empty, of any class: TP / (TP + FP + FN).
- *mIoU*: the mean of the IoU of the classes 1 to N that occur in the truth. Empty is no class.
- *Without ground*: voxels whose **truth** is a ground class leave the domain; everything else counts as before, so
  ground predicted into empty space is still a false positive. The mean is over the other classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.taxonomy import EMPTY, IGNORE


@dataclass(frozen=True)
class OccupancyScores:
    """The figures of one method. A figure that is not defined (nothing to divide by) is None, never 0.

    Args:
        geometric_iou: Occupied against empty.
        geometric_iou_non_ground: The same over the voxels whose truth is not ground.
        miou: Mean of `iou_by_class` over the classes in the truth.
        miou_non_ground: Mean over the classes in the truth that are not ground, on the voxels whose truth is not
            ground.
        iou_by_class: IoU of each class by name, over all voxels; None for a class that the truth lacks.
        num_frames: Frames counted.
        num_voxels: Observed voxels counted, over all frames.
    """

    geometric_iou: float | None
    geometric_iou_non_ground: float | None
    miou: float | None
    miou_non_ground: float | None
    iou_by_class: dict[str, float | None]
    num_frames: int
    num_voxels: int


class OccupancyMetrics:
    """Accumulates frames, then scores them.

    Args:
        class_names: Names of the classes 1 to N.
        ground: (N + 1,) bool over ids 0 to N: which are ground (`Taxonomy.mask("ground")`).

    Attributes:
        confusion: (N + 1, N + 1) int64, rows by truth, columns by prediction.
        num_frames: Frames counted so far.
    """

    def __init__(self, class_names: Sequence[str], ground: npt.NDArray[np.bool_]) -> None:
        if ground.shape != (len(class_names) + 1,):
            raise ValueError(f"ground has the shape {ground.shape}, expected ({len(class_names) + 1},)")
        self.class_names = tuple(class_names)
        self.ground = ground
        self.confusion = np.zeros((len(ground), len(ground)), dtype=np.int64)
        self.num_frames = 0

    def update(self, prediction: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> None:
        """Count one frame.

        Args:
            prediction: uint8, 0 (empty) to N; any shape, usually (nx, ny, nz).
            truth: uint8 of the same shape, 0 to N, or 255: not counted.

        Raises:
            ValueError: If shape or dtype differ, if the truth holds an id above N that is not 255, or the prediction
                any id above N, 255 too and ignored voxels too: a method has to commit itself everywhere.
        """
        self.confusion += confusion_matrix(prediction, truth, num_classes=len(self.class_names))
        self.num_frames += 1

    def result(self) -> OccupancyScores:
        """Return the figures of all frames so far."""
        return scores(self.confusion, self.class_names, self.ground, num_frames=self.num_frames)


def confusion_matrix(
    prediction: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], *, num_classes: int
) -> npt.NDArray[np.int64]:
    """Return the (N + 1, N + 1) int64 counts of (truth, prediction); see :meth:`OccupancyMetrics.update`."""
    if prediction.shape != truth.shape or prediction.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(
            f"prediction {prediction.dtype}{prediction.shape} and truth {truth.dtype}{truth.shape}: "
            "expected uint8 of one shape"
        )
    # Every pair of bytes is counted: that is as quick as masking first, and shows ids that must not occur.
    pairs = (truth.astype(np.uint16) << 8) | prediction
    counts = np.bincount(pairs.reshape(-1), minlength=256 * 256).reshape(256, 256)
    _check_ids("prediction", counts.sum(axis=0), num_classes)
    _check_ids("truth", counts.sum(axis=1)[:IGNORE], num_classes)
    return counts[: num_classes + 1, : num_classes + 1]


def scores(
    confusion: npt.NDArray[np.int64], class_names: Sequence[str], ground: npt.NDArray[np.bool_], *, num_frames: int
) -> OccupancyScores:
    """Return the figures of a confusion matrix.

    Args:
        confusion: (N + 1, N + 1) int64, rows by truth, columns by prediction, id 0 empty.
        class_names: Names of the classes 1 to N.
        ground: (N + 1,) bool: which ids are ground.
        num_frames: Frames that the matrix counts.
    """
    without_ground = np.where(ground[:, None], 0, confusion)
    ious = class_ious(confusion)
    return OccupancyScores(
        geometric_iou=geometric_iou(confusion),
        geometric_iou_non_ground=geometric_iou(without_ground),
        miou=_mean(ious[1:]),
        miou_non_ground=_mean(class_ious(without_ground)[1:]),
        iou_by_class={
            name: None if np.isnan(iou) else float(iou) for name, iou in zip(class_names, ious[1:], strict=True)
        },
        num_frames=num_frames,
        num_voxels=int(confusion.sum()),
    )


def geometric_iou(confusion: npt.NDArray[np.int64]) -> float | None:
    """Return the IoU of occupied (ids from 1) against empty (id 0); None if nothing is occupied on either side."""
    both = int(confusion[1:, 1:].sum())
    either = int(confusion.sum() - confusion[EMPTY, EMPTY])
    return both / either if either else None


def class_ious(confusion: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Return the (..., N + 1) float64 IoU of each id, of (..., N + 1, N + 1) counts; NaN where the truth lacks it."""
    both = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    in_truth = confusion.sum(axis=-1)
    either = in_truth + confusion.sum(axis=-2) - both
    return np.divide(both, either, out=np.full(both.shape, np.nan), where=in_truth > 0)


def evaluation_truth(truth: Occupancy, domain: Occupancy, grid: VoxelGrid) -> npt.NDArray[np.uint8]:
    """Return the truth of a frame on the voxels that another label set observed.

    So an exact world is compared only where the sensor could have known: its truth holds everywhere, but the domain is
    what the generated labels observed.

    Args:
        truth: The occupancy that counts as true.
        domain: The occupancy of the same frame whose `observed` mask is the domain.
        grid: The grid of both.

    Returns:
        (nx, ny, nz) uint8: 0 to N where both observed the voxel; 255 elsewhere, and where the truth is occupied by
        something without a class.

    Raises:
        DataError: If one of them does not fit the grid or they are of different frames.
    """
    name = f"{truth.sequence_id}/{truth.frame_id}"
    if (truth.sequence_id, truth.frame_id) != (domain.sequence_id, domain.frame_id):
        raise DataError(f"the domain is of frame {domain.sequence_id}/{domain.frame_id}", where=name)
    num_bytes = -(-grid.num_voxels // 8)
    for what, occupancy in (("truth", truth), ("domain", domain)):
        if len(occupancy.observed) != num_bytes:
            raise DataError(
                f"the mask of the {what} has {len(occupancy.observed)} bytes",
                where=name,
                expected=f"{num_bytes}, as the grid of shape {grid.shape} has",
                remedy="compare label sets of one grid",
            )
    return np.where(unpack_bits(domain.observed, grid.shape), truth.dense(grid), np.uint8(IGNORE))


def _check_ids(what: str, counts: npt.NDArray[np.int64], num_classes: int) -> None:
    wrong = np.flatnonzero(counts[num_classes + 1 :])
    if len(wrong):
        first = int(wrong[0]) + num_classes + 1
        raise ValueError(f"the {what} holds id {first} in {int(counts[first])} voxels; ids go to {num_classes}")


def _mean(ious: npt.NDArray[np.float64]) -> float | None:
    present = ious[~np.isnan(ious)]
    return float(present.mean()) if len(present) else None
