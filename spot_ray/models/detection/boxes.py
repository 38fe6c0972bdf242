"""What passes between the data plane, a detection head and its loss: boxes of a batch as tensors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class BoxTruth:
    """The annotated boxes of B samples, end to end, on the training device.

    Args:
        boxes: (K, 7) float32 `[x, y, z, dx, dy, dz, yaw]`, network frame, metres and radians.
        classes: (K,) int64 position in the detector's `class_names`, from 0.
        velocity: (K, 2) float32 over ground in network axes, m/s; NaN where unknown.
        sample: (K,) int64, 0 to B - 1, ascending.
        batch_size: B.
    """

    boxes: Tensor
    classes: Tensor
    velocity: Tensor
    sample: Tensor
    batch_size: int


@dataclass(frozen=True, eq=False)
class FoundBoxes:
    """The boxes that a head finds in one sample, by falling score.

    Args:
        boxes: (M, 7) float32, network frame.
        scores: (M,) float32, 0 to 1.
        classes: (M,) int64 position in the detector's `class_names`, from 0.
        velocity: (M, 2) float32, m/s, or None: it is not regressed.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    velocity: Tensor | None = None
