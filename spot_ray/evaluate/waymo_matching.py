"""Which predictions match which ground truth of the Waymo Open Dataset, at all cut-offs of the score at once."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.evaluate.waymo_boxes import CLASS_NAMES, Float, Index, WaymoPredictions, WaymoTruth
from spot_ray.geometry.rotated_iou import clip_scratch, rectangles_share

MIN_IOU = np.array([0.7, 0.5, 0.5, 0.5], np.float32)
"""How far a prediction must overlap a box to match it, by class."""
CUTOFFS = np.append(np.arange(100) * 0.01, 1.0).astype(np.float32)
"""The scores at which predictions are cut off."""
SIZE_LIMITS_M = (1e-2, 1e6)
"""A box with a size that is not between them overlaps nothing."""
_PLACE_BITS = 20
_NOT_REACHED = -(1 << 62)


@dataclass(frozen=True, eq=False)
class Counts:
    """What the matchings come to, by breakdown and cut-off.

    Args:
        true_positives: (S, 101) int64.
        false_positives: (S, 101) int64.
        misses: (2, S, 101) int64, of level 1 and 2.
        heading_accuracy: (S, 101) float64 sum over the true positives, 1 for the right heading, 0 for its opposite.
        boxes: (S,) int64 boxes that count, of both levels.
    """

    true_positives: Index
    false_positives: Index
    misses: Index
    heading_accuracy: Float
    boxes: Index


@dataclass(frozen=True, eq=False)
class Pairs:
    """Boxes that count and predictions, both sorted by frame and class, and which of them may match.

    Args:
        truth_type: (N,) int64 position in `CLASS_NAMES`.
        truth_boxes: (N, 7) float64.
        truth_easy: (N,) bool, of level 1.
        prediction_type: (M,) int64.
        prediction_boxes: (M, 7) float64.
        order: (M,) int64 predictions by falling score.
        cutoff: (M,) int64 the highest cut-off that a prediction passes.
        counts_as_false: (M,) bool, that it is a false positive if it has no match.
        start: (M + 1,) int64 where in `box` each prediction's candidates begin.
        box: (E,) int64 a candidate.
        weight: (E,) int64 its IoU in millionths, times 2^20, less the place of the prediction in its frame and class.
        heading: (E,) float64 its heading accuracy.
    """

    truth_type: Index
    truth_boxes: Float
    truth_easy: npt.NDArray[np.bool_]
    prediction_type: Index
    prediction_boxes: Float
    order: Index
    cutoff: Index
    counts_as_false: npt.NDArray[np.bool_]
    start: Index
    box: Index
    weight: Index
    heading: Float


def pair(truth: WaymoTruth, predictions: WaymoPredictions) -> Pairs:
    """Return the sorted boxes that count, the predictions, and which of them may match.

    Args:
        truth: The ground truth.
        predictions: The predictions; some may be in frames that the truth does not have.
    """
    counted = np.flatnonzero(truth.counted)
    index = {key: i for i, key in enumerate(truth.frames)}
    places = np.array([index.setdefault(key, len(index)) for key in predictions.frames], np.int64)
    num_classes = len(CLASS_NAMES)
    truth_group = truth.frame[counted] * num_classes + truth.types[counted] - 1
    group = places[predictions.frame] * num_classes + predictions.types - 1
    by_truth, by_prediction = (np.argsort(groups, kind="stable") for groups in (truth_group, group))
    truth_group, group = truth_group[by_truth], group[by_prediction]
    by_truth_row = counted[by_truth]
    truth_boxes, boxes = truth.boxes[by_truth_row], predictions.boxes[by_prediction]
    scores = predictions.scores[by_prediction]
    first, behind = (np.searchsorted(truth_group, group, side=side) for side in ("left", "right"))
    start, box, iou = _candidates(boxes, truth_boxes, first, behind, MIN_IOU[group % num_classes])
    turn = np.repeat(boxes[:, 6], np.diff(start)) - truth_boxes[box, 6]
    # Of predictions that fit a box equally, the first one of the frame gets it, as in the official code: the bits below
    # those of the IoU say which that is.
    millionths = np.floor(iou * np.float32(1e6) + np.float32(0.5)).astype(np.int64)
    place = np.repeat(np.arange(len(group)) - np.searchsorted(group, group), np.diff(start))
    apart = np.abs(turn - 2 * np.pi * np.round(turn / (2 * np.pi)))
    return Pairs(
        truth_type=truth_group % num_classes,
        truth_boxes=truth_boxes,
        truth_easy=truth.levels[by_truth_row] == 1,
        prediction_type=group % num_classes,
        prediction_boxes=boxes,
        order=np.argsort(-scores, kind="stable"),
        cutoff=np.searchsorted(CUTOFFS, scores, side="right") - 1,
        counts_as_false=~predictions.overlaps_nlz[by_prediction],
        start=start,
        box=box,
        weight=(millionths << _PLACE_BITS) - place,
        heading=1 - apart / np.pi,
    )


def count(pairs: Pairs, truth_shard: Index, prediction_shard: Index, num_shards: int) -> Counts:
    """Match predictions and boxes of the same shard at every cut-off, and count.

    Args:
        pairs: Boxes, predictions and candidates.
        truth_shard: (N,) 0 to `num_shards` - 1.
        prediction_shard: (M,) the same.
        num_shards: How many breakdowns there are.
    """
    changes = _insert(
        pairs.order,
        pairs.cutoff,
        pairs.counts_as_false,
        prediction_shard,
        pairs.start,
        pairs.box,
        pairs.weight,
        pairs.heading,
        truth_shard,
        pairs.truth_easy,
        np.zeros((num_shards, len(CUTOFFS), 4)),
    )
    totals = changes[:, ::-1].cumsum(axis=1)[:, ::-1]
    matched, easy, free = (np.rint(totals[..., i]).astype(np.int64) for i in range(3))
    boxes = np.bincount(truth_shard, minlength=num_shards)
    easy_boxes = np.bincount(truth_shard[pairs.truth_easy], minlength=num_shards)
    return Counts(
        true_positives=matched,
        false_positives=free,
        misses=np.stack([easy_boxes[:, None] - easy, boxes[:, None] - matched]),
        heading_accuracy=np.maximum(totals[..., 3], 0.0),
        boxes=boxes,
    )


@numba.njit(cache=True, nogil=True)
def _numbers(boxes: Float, n: int) -> tuple[float, float, float, float, float, float, float]:
    return boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3], boxes[n, 4], boxes[n, 5], boxes[n, 6]


@numba.njit(cache=True, nogil=True)
def _candidates(
    boxes: Float, truth_boxes: Float, first: Index, behind: Index, min_iou: npt.NDArray[np.float32]
) -> tuple[Index, Index, npt.NDArray[np.float32]]:
    """Return start (M + 1,), box (E,) and IoU (E,) of the ground truth that each prediction may match.

    Of prediction `m` these are among the boxes `first[m]` to `behind[m]` - 1.
    """
    low, high = SIZE_LIMITS_M
    start = np.zeros(len(boxes) + 1, np.int64)
    box = np.empty(len(boxes) + 16, np.int64)
    ious = np.empty(len(boxes) + 16, np.float32)
    corners, clipped = clip_scratch()
    found = 0
    for m in range(len(boxes)):
        x, y, z, length, width, height, yaw = _numbers(boxes, m)
        sized = low < min(length, width, height) and max(length, width, height) < high
        for n in range(first[m], behind[m] if sized else first[m]):
            bx, by, bz, blength, bwidth, bheight, byaw = _numbers(truth_boxes, n)
            if not (low < min(blength, bwidth, bheight) and max(blength, bwidth, bheight) < high):
                continue
            dx, dy = x - bx, y - by
            reach = (np.hypot(length, width) + np.hypot(blength, bwidth)) / 2
            tall = min((height + bheight) / 2 - abs(z - bz), height, bheight)
            if dx * dx + dy * dy >= reach * reach or tall <= 0:
                continue
            c, s = np.cos(byaw), np.sin(byaw)
            area = rectangles_share(
                dx * c + dy * s,
                dy * c - dx * s,
                yaw - byaw,
                length / 2,
                width / 2,
                blength / 2,
                bwidth / 2,
                corners,
                clipped,
            )
            shared = area * tall
            iou = np.float32(shared / (length * width * height + blength * bwidth * bheight - shared))
            if iou >= min_iou[m]:
                if found == len(box):
                    box = np.concatenate((box, np.empty_like(box)))
                    ious = np.concatenate((ious, np.empty_like(ious)))
                box[found] = n
                ious[found] = iou
                found += 1
        start[m + 1] = found
    return start, box[:found], ious[:found]


@numba.njit(cache=True, nogil=True)
def _insert(
    order: Index,
    cutoff: Index,
    counts_as_false: npt.NDArray[np.bool_],
    prediction_shard: Index,
    start: Index,
    box: Index,
    weight: Index,
    heading: Float,
    truth_shard: Index,
    truth_easy: npt.NDArray[np.bool_],
    changes: Float,
) -> Float:
    """Return (S, 101, 4) what the predictions of each cut-off change in the counts; `changes` comes as zeros.

    The four are the matched boxes, those of level 1 among them, the predictions that are false positives, and the sum
    of heading accuracies.

    Predictions come in by falling score. The matching of those that are in has the largest weight that there is. When
    one more comes in, a heaviest matching of all of them differs from it by one alternating path that begins at the new
    one: it takes a box, the prediction that had the box takes another, and so on, until a box is free or a prediction
    stays without. If no path gains weight, the new one stays without.
    """
    owner_edge = np.full(len(truth_shard), -1, np.int64)  # the candidate by which a box is matched
    owner = np.full(len(truth_shard), -1, np.int64)
    matched_edge = np.full(len(order), -1, np.int64)
    came_by = np.full(len(order), -1, np.int64)  # the candidate by which a prediction's box was taken from it
    taker = np.full(len(order), -1, np.int64)
    gain = np.full(len(order), _NOT_REACHED, np.int64)
    reached = np.empty(len(order), np.int64)
    for new in order:
        shard = prediction_shard[new]
        change = changes[shard, cutoff[new]]
        if counts_as_false[new]:
            change[2] += 1
        if start[new] == start[new + 1]:
            continue
        e, p, displaced = _best_path(
            new, shard, start, box, weight, truth_shard, owner, owner_edge, matched_edge, came_by, taker, gain, reached
        )
        if e < 0:
            continue
        if counts_as_false[new]:
            change[2] -= 1
        if displaced >= 0:
            change[3] -= heading[matched_edge[displaced]]
            matched_edge[displaced] = -1
            if counts_as_false[displaced]:
                change[2] += 1
        else:
            change[0] += 1
            if truth_easy[box[e]]:
                change[1] += 1
        # From the end of the path to its beginning: each prediction leaves its box to the one before it.
        while True:
            left = matched_edge[p]
            if left >= 0:
                change[3] -= heading[left]
            change[3] += heading[e]
            owner[box[e]], owner_edge[box[e]], matched_edge[p] = p, e, e
            if p == new:
                break
            e, p = came_by[p], taker[p]
    return changes


@numba.njit(cache=True, nogil=True)
def _best_path(
    new: int,
    shard: int,
    start: Index,
    box: Index,
    weight: Index,
    truth_shard: Index,
    owner: Index,
    owner_edge: Index,
    matched_edge: Index,
    came_by: Index,
    taker: Index,
    gain: Index,
    reached: Index,
) -> tuple[int, int, int]:
    """Return how the alternating path that gains most ends: its last candidate, who takes it, and who stays without.

    The candidate is -1 if no path gains anything; who stays without is -1 if the box was free. `came_by` and `taker`
    lead from there to the beginning. Found as Bellman and Ford find it: nothing is gained within a heaviest matching,
    so there is no cycle to get lost in. `gain` (of leaving a prediction without its box) is left as it came.
    """
    reached[0], num_reached = new, 1
    gain[new] = 0
    best, last, last_taker, displaced = 0, -1, -1, -1
    improved = True
    while improved:
        improved = False
        k = 0
        while k < num_reached:
            p = reached[k]
            k += 1
            for e in range(start[p], start[p + 1]):
                t = box[e]
                if truth_shard[t] != shard or e == matched_edge[p]:
                    continue
                with_it = gain[p] + weight[e]
                q = owner[t]
                if q < 0:
                    if with_it > best:
                        best, last, last_taker = int(with_it), int(e), int(p)
                    continue
                without = with_it - weight[owner_edge[t]]
                if without > gain[q]:
                    if gain[q] == _NOT_REACHED:
                        reached[num_reached] = q
                        num_reached += 1
                    gain[q], came_by[q], taker[q] = without, e, p
                    improved = True
    for k in range(num_reached):
        q = reached[k]
        if gain[q] > best:
            best, last, last_taker, displaced = int(gain[q]), int(came_by[q]), int(taker[q]), int(q)
        gain[q] = _NOT_REACHED
    return last, last_taker, displaced
