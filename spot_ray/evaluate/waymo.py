"""The detection metric of the Waymo Open Dataset: AP and APH of levels 1 and 2, by class and by range.

What is computed is what `waymo_open_dataset/metrics` (release 1.6) does with the configuration of its
`tools/compute_detection_metrics_main.cc`. At each of 101 scores, the predictions with at least that score are matched
with the ground truth of their frame and class so that the sum of the IoUs of all pairs is the largest, pairs below the
class's IoU not allowed. A match is a true positive whatever the level of its box; what the levels tell apart is which
boxes count as missed. A prediction without a match is a false positive, unless it is marked as overlapping a no-label
zone. By range, predictions and boxes are each put where their own centre is, and only meet within one range.

The matchings of all 101 scores come out of one pass over the predictions; see `waymo_matching.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.evaluate.waymo_boxes import CLASS_NAMES, Float, Index, WaymoPredictions, WaymoTruth
from spot_ray.evaluate.waymo_matching import Counts, count, pair

LEVELS = (1, 2)
RANGES = ("[0, 30)", "[30, 50)", "[50, +inf)")
"""How far a box's centre is from the vehicle frame's origin, metres."""
RANGE_ENDS_M = (30.0, 50.0)
RECALL_STEP = np.float32(0.05)
"""Wider gaps of the recall are filled before the integral is taken."""


@dataclass(frozen=True, eq=False)
class Measured:
    """AP and APH of levels 1 and 2.

    Args:
        by_class: (2, 2, 4) float64: AP and APH, level, class.
        by_range: (2, 2, 4, 3) float64, the same by range.
        boxes: (4,) int64 boxes that count.
        boxes_by_range: (4, 3) int64.
    """

    by_class: Float
    by_range: Float
    boxes: Index
    boxes_by_range: Index


def measure(truth: WaymoTruth, predictions: WaymoPredictions) -> Measured:
    """Return AP and APH of predictions; 0 where there is no truth, as the official code has it.

    Args:
        truth: The ground truth.
        predictions: The predictions; those in frames that the truth does not have are false positives.
    """
    pairs = pair(truth, predictions)
    num_classes, num_ranges = len(CLASS_NAMES), len(RANGES)
    of_class = count(pairs, pairs.truth_type, pairs.prediction_type, num_classes)
    of_range = count(
        pairs,
        pairs.truth_type * num_ranges + range_of(pairs.truth_boxes),
        pairs.prediction_type * num_ranges + range_of(pairs.prediction_boxes),
        num_classes * num_ranges,
    )
    return Measured(
        _figures(of_class),
        _figures(of_range).reshape(2, len(LEVELS), num_classes, num_ranges),
        of_class.boxes,
        of_range.boxes.reshape(num_classes, num_ranges),
    )


def range_of(boxes: Float) -> Index:
    """Return the index in `RANGES` of each of (N, 7) boxes."""
    distance = np.sqrt((boxes[:, :3] ** 2).sum(axis=1))
    return np.searchsorted(RANGE_ENDS_M, distance, side="right").astype(np.int64)


def average_precision(precision: npt.NDArray[np.float32], recall: npt.NDArray[np.float32]) -> float:
    """Return the area under a precision-recall curve.

    The curve is the largest precision at each recall or beyond it, straight between the points. Where neighbouring
    recalls are more than 0.05 apart, points are put 0.05 apart, counted from the larger one, with its precision; the
    precision at recall 0 is that of the smallest recall found. All in float32, as the official code has it: whether
    a gap is wider than 0.05 hangs on how it rounds.

    Args:
        precision: (K,) float32.
        recall: (K,) float32 of the same cut-offs.
    """
    recalls, which = np.unique(np.append(np.float32(0), recall), return_inverse=True)
    best = np.zeros(len(recalls), np.float32)
    np.maximum.at(best, which, np.append(np.float32(1), precision))
    best[0] = 1
    curve: list[tuple[np.float32, np.float32]] = []
    highest, last = np.float32(0), recalls[0]
    for r, p in zip(recalls[::-1], best[::-1], strict=True):
        while last - r > RECALL_STEP + np.float32(1e-6):
            last = last - RECALL_STEP
            curve.append((highest, last))
        highest = max(highest, p)
        curve.append((highest, r))
        last = r
    if len(curve) > 1:
        curve[-1] = (curve[-2][0], curve[-1][1])
    points = np.array(curve, np.float32)
    widths = points[:-1, 1] - points[1:, 1]
    return float((0.5 * widths * (points[:-1, 0] + points[1:, 0])).sum(dtype=np.float64))


def _figures(counts: Counts) -> Float:
    """Return (2, 2, S) AP and APH, level, breakdown."""
    shown = counts.true_positives + counts.false_positives
    result = np.zeros((2, len(LEVELS), len(shown)))
    for i in range(len(LEVELS)):
        wanted = counts.true_positives + counts.misses[i]
        recall = _ratio(counts.true_positives, wanted)
        for j, right in enumerate((counts.true_positives, counts.heading_accuracy)):
            precision = np.where(recall == 0, np.float32(1), _ratio(right, shown))
            result[j, i] = [average_precision(p, r) for p, r in zip(precision, recall, strict=True)]
    return result


def _ratio(part: npt.NDArray[np.number], whole: Index) -> npt.NDArray[np.float32]:
    part32, whole32 = part.astype(np.float32), whole.astype(np.float32)
    return np.divide(part32, whole32, out=np.zeros_like(part32), where=whole > 0)
