"""What a training worker gets: samples packed end to end, on the CPU, without voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Batch:
    """One worker's share of a global batch; B samples.

    Args:
        points: (P, C) float32 named features; x, y, z in metres in the network frame (after augmentation).
        point_offsets: (B + 1,) int64; sample b owns `points[point_offsets[b]:point_offsets[b + 1]]`.
        occupancy_index: (M,) int32 linear voxel indices in the label grid, flips and quarter turns already applied.
        occupancy_class: (M,) uint8 class of those voxels, 1 to N, or 255 (occupied without a class).
        occupancy_offsets: (B + 1,) int64 into the two above.
        observed: (B, ceil(n / 8)) uint8 bits of the observed voxels, flips and quarter turns already applied.
        network_from_label: (B, 2, 3) float32 affine `[A | t]`: xy_network = A · xy_label + t; what flips and quarter
            turns leave of the augmentation (the identity if nothing).
        boxes: (K, 7) float32 boxes in the network frame.
        box_class: (K,) uint8 class 1 to N, or 255.
        box_offsets: (B + 1,) int64 into the two above.
        weight: (B,) float32: 1 for a planned sample, 0 for one that only fills the last global batch.
        global_weight: Number of planned samples in the whole global batch, over all workers.
        step: Index of the global batch within the epoch.
        frames: B names `SEQUENCE/FRAME`.
        copies: (B,) int32, which of a frame's repeats each is.
    """

    points: npt.NDArray[np.float32]
    point_offsets: npt.NDArray[np.int64]
    occupancy_index: npt.NDArray[np.int32]
    occupancy_class: npt.NDArray[np.uint8]
    occupancy_offsets: npt.NDArray[np.int64]
    observed: npt.NDArray[np.uint8]
    network_from_label: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    box_class: npt.NDArray[np.uint8]
    box_offsets: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    global_weight: float
    step: int
    frames: tuple[str, ...]
    copies: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.weight)
