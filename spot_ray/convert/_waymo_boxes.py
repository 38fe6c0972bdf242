"""The 3D labels of the Waymo Open Dataset as boxes of a sweep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.convert._waymo_laser import Float64
from spot_ray.convert._waymo_taxonomy import BOX_CLASS_OFFSET, BOX_TYPES
from spot_ray.errors import DataError
from spot_ray.schema.sweep import Boxes


@dataclass(frozen=True, eq=False)
class BoxLabels:
    """The 3D labels of one frame as both formats have them.

    Args:
        boxes: (M, 7) float64 centre, length, width, height, heading in the ego frame.
        types: (M,) `Label.Type`.
        ids: M ids, unique within the frame and constant over the segment.
        velocity_world: (M, 3) float64 m/s in world axes, NaN where unknown; None if the segment has none.
        num_lidar_points: (M,) points of all lasers.
        difficulty: (M,) detection difficulty as labelled: 0 unknown, 1, 2; None if the segment has none.
        where: The file that they come from, for messages.
    """

    boxes: Float64
    types: npt.NDArray[np.integer]
    ids: list[str]
    velocity_world: Float64 | None
    num_lidar_points: npt.NDArray[np.integer] | None
    difficulty: npt.NDArray[np.integer] | None
    where: str


def boxes_of(labels: BoxLabels, world_SE3_ego: Float64) -> Boxes:
    """Return the boxes of a frame, their velocity over ground turned from world to ego axes.

    The dataset's authors say that speeds are in the global frame, derived from the boxes' centres over time
    (waymo-research/waymo-open-dataset, thread 39).

    Raises:
        DataError: If a type is unknown, an id occurs twice, or a box is not finite or has no size.
    """
    unknown = ~np.isin(labels.types, np.arange(len(BOX_TYPES)))
    if unknown.any():
        raise DataError(
            f"box {labels.ids[int(np.flatnonzero(unknown)[0])]!r} has the type {int(labels.types[unknown][0])}",
            where=labels.where,
            expected=f"0 to {len(BOX_TYPES) - 1}",
        )
    if len(set(labels.ids)) != len(labels.ids):
        twice = sorted({i for i in labels.ids if labels.ids.count(i) > 1})[0]
        raise DataError(f"box {twice!r} occurs twice in the frame", where=labels.where, expected="every object once")
    velocity = None
    if labels.velocity_world is not None:
        velocity = (labels.velocity_world @ world_SE3_ego[:3, :3]).astype(np.float32)
    try:
        return Boxes(
            boxes=labels.boxes.astype(np.float32),
            source_class=(labels.types.astype(np.uint16) + BOX_CLASS_OFFSET).astype(np.uint16),
            track_id=list(labels.ids),
            velocity=velocity,
            num_lidar_points=None if labels.num_lidar_points is None else labels.num_lidar_points.astype(np.int32),
            difficulty=None if labels.difficulty is None else labels.difficulty.astype(np.int32),
        )
    except DataError as error:
        raise DataError(error.what, where=labels.where, expected=error.expected, remedy=error.remedy) from None
