"""One planned sample on its way through the operators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.schema.sweep import Sweep


@dataclass(frozen=True)
class Place:
    """Where a sweep or the labels of a frame are stored.

    Args:
        shard: The file, relative to the dataset.
        row_group: Its row group.
        row: Its row in the row group.
    """

    shard: str
    row_group: int
    row: int


@dataclass(frozen=True)
class Slot:
    """A place in a worker's share of the plan, and where its frame and labels are stored.

    Args:
        dataset: Which of the run's datasets it is from.
        sequence_id: The frame's sequence.
        frame_id: The frame.
        copy: Which of the frame's repeats.
        weight: 1 for a planned sample, 0 for one that only fills a batch.
        step: Index of the global batch in the epoch.
        global_weight: Number of planned samples in that global batch.
        sweep: Where its sweep is.
        labels: Where its labels are; None: none are asked for.
        older: The sweeps before it that are to be merged into it, newest first.
        beside: The sweeps before and after all these, as far as there are such; their poses tell the motion within a
            sweep that has none of its own. Only where sweeps are to be de-skewed.
    """

    dataset: int
    sequence_id: str
    frame_id: str
    copy: int
    weight: float
    step: int
    global_weight: float
    sweep: Place
    labels: Place | None = None
    older: tuple[Place, ...] = ()
    beside: tuple[Place, ...] = ()

    @property
    def frame(self) -> str:
        """`SEQUENCE/FRAME`."""
        return f"{self.sequence_id}/{self.frame_id}"


@dataclass(frozen=True, eq=False)
class Sample:
    """A frame with its labels. Operators return a changed copy and never write into an array.

    Args:
        slot: Its place in the plan.
        sweep: Points and boxes, in the network frame: the ego frame, moved by the augmentation.
        occupancy_index: (M,) int32 linear indices of the occupied voxels in the label grid, ascending.
        occupancy_class: (M,) uint8 class of those voxels, 1 to N, or 255.
        observed: (ceil(n / 8),) uint8 bits of the observed voxels.
        network_from_label: (2, 3) float64 affine `[A | t]`: xy_network = A · xy_label + t, metres.
        older: Sweeps before it that are still to be merged into it, newest first, each in its own ego frame.
        time_lag_s: (N,) float32 age of each point's sweep, seconds, 0 for the frame's own; None: all are its own.
    """

    slot: Slot
    sweep: Sweep
    occupancy_index: npt.NDArray[np.int32]
    occupancy_class: npt.NDArray[np.uint8]
    observed: npt.NDArray[np.uint8]
    network_from_label: npt.NDArray[np.float64]
    older: tuple[Sweep, ...] = ()
    time_lag_s: npt.NDArray[np.float32] | None = None
