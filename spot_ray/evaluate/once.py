"""ONCE's detection metric: average precision of three superclasses, overall and by distance, over 50 recall positions.

The rules are those of `once_eval` of the official devkit (github.com/once-for-auto-driving/once_devkit, 49f4b72), which
OpenPCDet's `pcdet/datasets/once/once_eval` repeats:

- Car, Bus and Truck count as one, Vehicle. Boxes match by their 3D IoU: over 0.7 for vehicles, 0.3 for pedestrians, 0.5
  for cyclists; not at all where their headings differ by more than 90 degrees.
- Ranges are of the norm of the box's centre in the LiDAR's frame: all, below 30 m, 30 to 50 m, from 50 m on. A box
  outside the range is *ignored*: as a true one it is no miss, what matches it counts neither way, and as a found one it
  is no false alarm. The official code marks boxes of **other** classes outside the range so, too; inside it they do not
  take part.
- First, each true box in turn takes the free found one of the highest score among those that overlap it enough. The
  scores of these pairs give up to 51 thresholds, at the recalls 0, 1/50, … 1.
- Then, at each threshold, each true box in turn takes the free found one of the largest IoU among those that reach the
  threshold, preferring one that is not ignored. Precision at a recall is the largest at it or beyond; the average
  precision is the mean over the recalls 1/50 to 1, and 0 where no threshold reaches.
- The mean over classes counts a class without truth as 0.

Two variants. `official` turns boxes clockwise by their yaw, as the official IoU does on GPU and CPU alike: it sees
every box with its yaw negated. It also takes headings that differ by more than a full turn to agree. `corrected` turns
boxes counter-clockwise, as the devkit draws them, and wraps the difference of headings.

All is computed in float64; the official GPU code intersects in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.evaluate.hits import COUNTED, IGNORED, OTHER, count_at_thresholds, scores_of_hits
from spot_ray.geometry.rotated_iou import iou_3d

SUPERCLASSES = ("Vehicle", "Pedestrian", "Cyclist")
"""What is scored, in the official order."""
SUPERCLASS_OF = np.array([0, 0, 0, 1, 2])
"""The superclass of each of ONCE's classes Car, Bus, Truck, Pedestrian, Cyclist."""
MIN_IOU = (0.7, 0.3, 0.5)
"""What the IoU of a match exceeds, by superclass."""
RANGES = ("overall", "0-30m", "30-50m", "50m-inf")
"""The ranges of distance, in the official order."""
RANGE_M = ((0.0, np.inf), (0.0, 30.0), (30.0, 50.0), (50.0, np.inf))
"""From and below which distance each range holds."""
RECALL_POSITIONS = 50

Variant = Literal["official", "corrected"]
Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

_RECALL_EPS = 1e-6


@dataclass(frozen=True, eq=False)
class OnceBoxes:
    """The boxes of one frame, true or found.

    Args:
        boxes: (M, 7) float64 `[x, y, z, dx, dy, dz, yaw]` in the LiDAR's frame.
        classes: (M,) int64, 0 to 4: Car, Bus, Truck, Pedestrian, Cyclist.
        scores: (M,) float64; None: they are true.

    Raises:
        DataError: If the columns disagree in length, a number is not finite, or a size is not positive.
    """

    boxes: Float
    classes: Int
    scores: Float | None = None

    def __post_init__(self) -> None:
        """Check lengths, finiteness and sizes."""
        count = len(self.boxes)
        shapes = {"boxes": (count, 7), "classes": (count,), "scores": (count,)}
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values is None:
                continue
            if values.shape != shape:
                raise DataError(f"{name} has the shape {values.shape}", expected=f"{shape}")
            wrong = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            if wrong.any():
                m = int(np.flatnonzero(wrong)[0])
                raise DataError(f"{name} of box {m} is {values[m].tolist()}", expected="finite numbers")
        flat = (self.boxes[:, 3:6] <= 0).any(axis=1)
        if flat.any():
            m = int(np.flatnonzero(flat)[0])
            raise DataError(f"box {m} has the sizes {self.boxes[m, 3:6].tolist()}", expected="positive sizes")


@dataclass(frozen=True, eq=False)
class OnceAp:
    """What the metric says.

    Args:
        ap: (3, 4) float64 average precision, 0 to 1, by superclass and range; 0 where there is no truth.
        num_truth: (3, 4) int64 number of true boxes.
    """

    ap: Float
    num_truth: Int


def once_ap(truth: Sequence[OnceBoxes], predictions: Sequence[OnceBoxes], *, variant: Variant = "official") -> OnceAp:
    """Score what was found in frames.

    Args:
        truth: The true boxes of each frame.
        predictions: What was found in each, with scores.
        variant: See the module.

    Raises:
        DataError: If there are not as many predictions as truths, or some have no scores.
    """
    if len(truth) != len(predictions) or any(found.scores is None for found in predictions):
        raise DataError(
            f"{len(predictions)} frames of predictions for {len(truth)} of truth", expected="one each, with scores"
        )
    pairs = _pairs(truth, predictions, variant)
    true_class, true_range = _class_and_ranges(truth)
    found_class, found_range = _class_and_ranges(predictions)
    scores = np.concatenate([np.zeros(0), *(found.scores for found in predictions if found.scores is not None)])
    ap = np.zeros((len(SUPERCLASSES), len(RANGES)))
    num_truth = np.zeros(ap.shape, np.int64)
    for c in range(len(SUPERCLASSES)):
        for r in range(len(RANGES)):
            true_flag = _flags(true_class == c, true_range[r])
            found_flag = _flags(found_class == c, found_range[r])
            num_truth[c, r] = np.count_nonzero(true_flag == COUNTED)
            ap[c, r] = _average_precision(pairs, true_flag, found_flag, scores, MIN_IOU[c], int(num_truth[c, r]))
    return OnceAp(ap, num_truth)


def heading_difference(a: Float, b: Float, *, variant: Variant = "official") -> Float:
    """Return the (N, M) differences of (N,) and (M,) headings, radians; 0 to π if each lies within a turn of the other.

    The official code reflects a difference at half a turn once, so one of more than a full turn comes out negative.
    """
    apart = np.abs(a[:, None] - b[None, :])
    if variant == "corrected":
        apart %= 2 * np.pi
    return np.where(apart >= np.pi, 2 * np.pi - apart, apart)


def once_iou(truth: Float, found: Float, *, variant: Variant = "official") -> Float:
    """Return the (N, M) 3D IoU of (N, 7) true and (M, 7) found boxes; 0 where headings differ by over 90 degrees."""
    turn = np.array([1, 1, 1, 1, 1, 1, -1 if variant == "official" else 1])
    iou = iou_3d(truth * turn, found * turn)
    iou[heading_difference(truth[:, 6], found[:, 6], variant=variant) > np.pi / 2] = 0.0
    return iou


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The pairs of true and found boxes of one frame that overlap enough for some class.

    Args:
        first: (G + 1,) int64 where the pairs of each true box begin.
        found: (K,) int64 the found boxes, ascending, counted over all frames.
        iou: (K,) float64.
    """

    first: Int
    found: Int
    iou: Float


def _pairs(truth: Sequence[OnceBoxes], predictions: Sequence[OnceBoxes], variant: Variant) -> _Pairs:
    counts, found, iou = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    before = 0
    for true_boxes, found_boxes in zip(truth, predictions, strict=True):
        overlap = once_iou(true_boxes.boxes, found_boxes.boxes, variant=variant)
        rows, columns = np.nonzero(overlap > min(MIN_IOU))
        counts.append(np.bincount(rows, minlength=len(overlap)))
        found.append(columns + before)
        iou.append(overlap[rows, columns])
        before += len(found_boxes.boxes)
    return _Pairs(np.cumsum(np.concatenate(counts)), np.concatenate(found), np.concatenate(iou))


def _class_and_ranges(frames: Sequence[OnceBoxes]) -> tuple[Int, npt.NDArray[np.bool_]]:
    """Return the (M,) superclass of every frame's boxes, and (4, M) whether each range holds them."""
    classes = np.concatenate([np.zeros(0, np.int64), *(frame.classes for frame in frames)])
    centres = np.concatenate([np.zeros((0, 3)), *(frame.boxes[:, :3] for frame in frames)])
    distance = np.sqrt(np.sum(centres * centres, axis=1))
    return SUPERCLASS_OF[classes], np.stack([(distance >= low) & (distance < high) for low, high in RANGE_M])


def _flags(is_class: npt.NDArray[np.bool_], in_range: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8]:
    return np.where(in_range, np.where(is_class, COUNTED, OTHER), IGNORED).astype(np.int8)


def _average_precision(
    pairs: _Pairs,
    true_flag: npt.NDArray[np.int8],
    found_flag: npt.NDArray[np.int8],
    scores: Float,
    min_iou: float,
    num_truth: int,
) -> float:
    sides = (pairs.first, pairs.found, pairs.iou, min_iou, true_flag, found_flag, scores)
    thresholds = _thresholds(np.sort(scores_of_hits(*sides))[::-1], num_truth)
    if not len(thresholds):
        return 0.0
    levels, place = np.unique(thresholds, return_inverse=True)
    hits, taken, _ = count_at_thresholds(*sides, levels, np.zeros(0, np.int64), np.zeros(0))
    ascending = np.sort(scores[found_flag == COUNTED])
    false_alarms = len(ascending) - np.searchsorted(ascending, levels) - taken
    # Where ignored boxes took all that reached the threshold, the official code divides zero by zero.
    precision = (hits / np.maximum(hits + false_alarms, 1))[place]
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[1 : RECALL_POSITIONS + 1].sum() / RECALL_POSITIONS)


@numba.njit(cache=True, nogil=True)
def _thresholds(falling: Float, num_truth: int) -> Float:
    """Return the scores at which the recall comes nearest to 0, 1/50, … 1, one for each that is reached.

    Other than KITTI's, where each score stands for one recall at most; and a tie rounds differently, which decides.
    """
    result = np.empty(RECALL_POSITIONS + 2)
    count = 0
    level = 0.0
    for i in range(len(falling)):
        is_last = i == len(falling) - 1
        here = (i + 1) / num_truth
        beyond = here if is_last else (i + 2) / num_truth
        if beyond + here < 2 * level and not is_last:
            continue
        while True:
            if count < len(result):
                result[count] = falling[i]
                count += 1
            level += 1 / RECALL_POSITIONS
            # So many decimals, or level 1 would be missed by rounding.
            if not beyond + here + _RECALL_EPS > 2 * level:
                break
    return result[: min(count, RECALL_POSITIONS + 1)]
