"""What the points of a sweep are: of the vehicle itself, of an object, of the ground, or of what stands still."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import boxes as boxes_ops
from spot_ray.occupancy.ground import ground_mask
from spot_ray.occupancy.guesses import MARGIN_M
from spot_ray.occupancy.tracks import FrameObjects
from spot_ray.schema.sweep import NO_LABEL_ZONE, Sweep
from spot_ray.schema.taxonomy import IGNORE

_LARGE_M2 = 2.0
_BOTTOM_M = 0.15
"""Ground lies so far up in boxes with a small footprint."""


@dataclass(frozen=True, eq=False)
class PointParts:
    """What the points of a sweep are.

    Args:
        label: (N,) uint8 class by the source's label, else by the box that holds the point; 255 where neither.
        box: (N,) int32 box of the frame that holds the point as part of its object; -1 in none.
        on_ego: (N,) bool: a return from the vehicle's own body.
        doubtful: (N,) bool: in no box, yet perhaps part of an object that moves.
        ground: (N,) bool: ground, by the source's label, else by geometry.
    """

    label: npt.NDArray[np.uint8]
    box: npt.NDArray[np.int32]
    on_ego: npt.NDArray[np.bool_]
    doubtful: npt.NDArray[np.bool_]
    ground: npt.NDArray[np.bool_]


def split_points(
    sweep: Sweep,
    objects: FrameObjects,
    guessed: npt.NDArray[np.float32],
    lookup: npt.NDArray[np.uint8],
    ground: npt.NDArray[np.bool_],
    *,
    box_margin_m: float,
    ego_body_m: tuple[float, ...],
    ground_reach_m: float,
) -> PointParts:
    """Tell the points of objects from the rest.

    A point in an enlarged box belongs to its object, unless it is ground by the source's label or by geometry: the
    ground does not drive along with a car. A box is not enlarged downwards, since unlabelled ground lies there. What
    lies in the vehicle's own body and has no class and no box is a return from it.

    Args:
        sweep: The sweep.
        objects: Its objects.
        guessed: (K, 7) boxes in which there may be others, see :func:`~spot_ray.occupancy.guesses.guess_boxes`.
        lookup: (65536,) uint8 class of each source class.
        ground: (256,) bool by class: whether it is ground.
        box_margin_m: Margin on the sides and top of a box, metres.
        ego_body_m: Lower, then upper corner of the vehicle's own body, ego frame, metres.
        ground_reach_m: How far from the vehicle geometry tells which unlabelled points are ground, metres.

    Returns:
        What each point is.
    """
    label = np.full(len(sweep), IGNORE, np.uint8)
    if sweep.point_source_class is not None:
        label = lookup[sweep.point_source_class]
    box = _in_enlarged(sweep.xyz, objects.boxes, box_margin_m)
    by_geometry = np.zeros(len(sweep), dtype=bool)
    if (label == IGNORE).any():
        near = np.hypot(sweep.xyz[:, 0], sweep.xyz[:, 1]) < ground_reach_m
        by_geometry = ground_mask(sweep.xyz) & near & (label == IGNORE)
    between = by_geometry & _may_be_ground(sweep.xyz, box, objects.boxes)
    box[ground[label] | between] = -1
    from_box = (box >= 0) & (label == IGNORE)
    label[from_box] = objects.label[box[from_box]]
    low, high = np.array(ego_body_m[:3]), np.array(ego_body_m[3:])
    on_ego = np.all((sweep.xyz >= low) & (sweep.xyz <= high), axis=1) & (label == IGNORE) & (box < 0)
    is_ground = ground[label] | (by_geometry & (box < 0) & ~on_ego & ~between)
    doubtful = (_in_enlarged(sweep.xyz, guessed, MARGIN_M) >= 0) & (box < 0) & ~is_ground
    if sweep.flags is not None and objects.known:
        # Nobody drew boxes there, though elsewhere in the sweep.
        doubtful |= (sweep.flags & NO_LABEL_ZONE > 0) & (label == IGNORE) & ~is_ground
    doubtful |= between
    return PointParts(label, box, on_ego, doubtful, is_ground)


def _may_be_ground(
    xyz: npt.NDArray[np.float32], box: npt.NDArray[np.int32], boxes: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Return the (N,) points in boxes that geometry cannot tell from the ground there: tyres and feet, and the road.

    They are of neither. In a large box that is all that looks like ground, in a small one what lies at its bottom.
    """
    result = np.zeros(len(xyz), dtype=bool)
    held = box >= 0
    own = boxes[box[held]]
    at_bottom = xyz[held, 2] < own[:, 2] - own[:, 5] / 2 + _BOTTOM_M
    result[held] = at_bottom | (own[:, 3] * own[:, 4] > _LARGE_M2)
    return result


def _in_enlarged(
    xyz: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32], margin_m: float
) -> npt.NDArray[np.int32]:
    """Return the (N,) box that holds each point, enlarged on its sides and top; -1 in none."""
    if not len(boxes):
        return np.full(len(xyz), -1, np.int32)
    lifted = boxes.copy()
    lifted[:, 2] += margin_m / 2
    # The margin is added on both ends below, so the height gives it back: the bottom stays where it is.
    lifted[:, 5] = np.maximum(lifted[:, 5] - margin_m, 0.0)
    return boxes_ops.points_in_boxes(xyz, lifted, margin_m=margin_m)
