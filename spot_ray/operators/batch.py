"""What a training worker gets: samples packed end to end, on the CPU, without voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.storage.cache import Traffic


@dataclass(frozen=True)
class SkippedFrame:
    """A planned sample that is missing from its batch, because its frame cannot be read.

    Args:
        frame: `SEQUENCE/FRAME`.
        copy: Which of the frame's repeats.
        reason: What is wrong, and where.
    """

    frame: str
    copy: int
    reason: str


@dataclass(frozen=True, eq=False)
class Batch:
    """One worker's share of a global batch; B samples.

    Args:
        points: (P, C) float32 named features; x, y, z in metres in the network frame (after augmentation).
        point_offsets: (B + 1,) int64; sample b owns `points[point_offsets[b]:point_offsets[b + 1]]`.
        point_class: (P,) uint8 class 1 to K of each point, 255 where unlabelled; None unless they are asked for.
        occupancy_index: (M,) int32 linear voxel indices in the label grid, flips and quarter turns already applied.
        occupancy_class: (M,) uint8 class of those voxels, 1 to N, or 255 (occupied without a class).
        occupancy_offsets: (B + 1,) int64 into the two above.
        observed: (B, ceil(n / 8)) uint8 bits of the observed voxels, flips and quarter turns already applied.
        labelled: (B, N + 1) bool over empty and the classes 1 to N: which of them the sample's dataset can label at
            all; the others are to be masked in its loss.
        network_from_label: (B, 2, 3) float32 affine `[A | t]`: xy_network = A · xy_label + t; what flips and quarter
            turns leave of the augmentation (the identity if nothing).
        boxes: (K, 7) float32 boxes in the network frame.
        box_class: (K,) uint8 class of each box, of those that `data.boxes.classes` names, from 1; 255: of none of them.
        box_velocity: (K, 2) float32 over ground along the network's axes, m/s; NaN where it is not known, and where
            boxes are of the taxonomy's classes: it is read only for detection.
        box_offsets: (B + 1,) int64 into the two above.
        weight: (B,) float32: 1 for a planned sample; 0 for one that only fills the last global batch, or stands for one
            that was skipped: it has a single point and nothing observed.
        global_weight: Number of planned samples in the whole global batch, over all workers, skipped ones included.
        step: Index of the global batch within the epoch.
        datasets: (B,) int32 which of the run's datasets each is from.
        frames: B names `SEQUENCE/FRAME`.
        copies: (B,) int32, which of a frame's repeats each is.
        skipped: The planned samples that are missing.
        stage_s: Seconds that each operator took for these samples, by name, wherever it ran.
        traffic: What was read from stores and caches for these samples and, since reading tasks prepare several and
            count once, perhaps for those after them; over the batches of an epoch it adds up.
    """

    points: npt.NDArray[np.float32]
    point_offsets: npt.NDArray[np.int64]
    point_class: npt.NDArray[np.uint8] | None
    occupancy_index: npt.NDArray[np.int32]
    occupancy_class: npt.NDArray[np.uint8]
    occupancy_offsets: npt.NDArray[np.int64]
    observed: npt.NDArray[np.uint8]
    labelled: npt.NDArray[np.bool_]
    network_from_label: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    box_class: npt.NDArray[np.uint8]
    box_velocity: npt.NDArray[np.float32]
    box_offsets: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    global_weight: float
    step: int
    datasets: npt.NDArray[np.int32]
    frames: tuple[str, ...]
    copies: npt.NDArray[np.int32]
    skipped: tuple[SkippedFrame, ...]
    stage_s: dict[str, float]
    traffic: Traffic

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.weight)
