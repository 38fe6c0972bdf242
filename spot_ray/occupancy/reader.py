"""What the label generator reads of a sequence: its poses and boxes at once, its points sweep by sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from spot_ray.schema.sweep import Boxes, Sweep

SWEEP_COLUMNS = ("xyz", "lidar_id", "time_offset_ns", "flags", "point_source_class", "boxes")
"""The columns of a sweep that labelling reads."""


@dataclass(frozen=True, eq=False)
class FrameInfo:
    """A sweep without its points.

    Args:
        sequence_id: As in the sweep.
        frame_id: As in the sweep.
        timestamp_ns: As in the sweep.
        world_SE3_ego: As in the sweep.
        boxes: As in the sweep.
        keyframe: As in the sweep.
        has_point_labels: Whether its points have source classes.
    """

    sequence_id: str
    frame_id: str
    timestamp_ns: int
    world_SE3_ego: npt.NDArray[np.float64] | None
    boxes: Boxes | None
    keyframe: bool
    has_point_labels: bool

    @classmethod
    def of(cls, sweep: Sweep) -> FrameInfo:
        """Return what a sweep is without its points."""
        return cls(
            sweep.sequence_id,
            sweep.frame_id,
            sweep.timestamp_ns,
            sweep.world_SE3_ego,
            sweep.boxes,
            sweep.keyframe,
            sweep.point_source_class is not None,
        )


class SequenceReader(Protocol):
    """A sequence, frame by frame in time order; nothing is kept between calls."""

    def __len__(self) -> int:
        """Return the number of sweeps."""

    def frame(self, i: int) -> FrameInfo:
        """Return sweep i without its points; quick, since it is asked for all sweeps at once."""

    def read(self, i: int) -> Sweep:
        """Return sweep i, with at least the columns `SWEEP_COLUMNS` where they exist."""


class SweepList:
    """A sequence whose sweeps are in memory.

    Args:
        sweeps: The sweeps in time order.
    """

    def __init__(self, sweeps: Sequence[Sweep]) -> None:
        self._sweeps = sweeps

    def __len__(self) -> int:
        """Return the number of sweeps."""
        return len(self._sweeps)

    def frame(self, i: int) -> FrameInfo:
        """Return sweep i without its points."""
        return FrameInfo.of(self._sweeps[i])

    def read(self, i: int) -> Sweep:
        """Return sweep i."""
        return self._sweeps[i]
