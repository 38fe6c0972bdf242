"""The matchings of all cut-offs against a Hungarian matching of each, in crowds where boxes compete."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import linear_sum_assignment
from waymo_scenes import make_scene

from spot_ray.evaluate.waymo_boxes import CLASS_NAMES, WaymoPredictions, WaymoTruth
from spot_ray.evaluate.waymo_matching import CUTOFFS, MIN_IOU, count, pair
from spot_ray.geometry.rotated_iou import iou_3d


def crowd(seed: int, *, frames: int, boxes: int, predictions: int) -> tuple[WaymoTruth, WaymoPredictions]:
    """Return boxes and predictions of about the same place and size, so that everything overlaps."""
    rng = np.random.default_rng(seed)

    def around(count: int) -> npt.NDArray[np.float64]:
        centre = rng.normal(0, 0.07, (count, 3)) * (4, 2, 1.5) + (10, 0, 1)
        return np.column_stack([centre, rng.uniform(0.95, 1.05, (count, 3)) * (4, 2, 1.5), rng.normal(0, 0.05, count)])

    keys = tuple(("segment", i) for i in range(frames))
    n, m = frames * boxes, frames * predictions
    truth = WaymoTruth(
        keys,
        True,
        CLASS_NAMES,
        rng.integers(0, frames, n),
        around(n),
        rng.integers(1, 3, n).astype(np.uint8),
        rng.integers(1, 3, n).astype(np.uint8),
    )
    scores = np.round(rng.random(m), 1 + seed % 2).astype(np.float32)
    found = WaymoPredictions(
        keys,
        True,
        rng.integers(0, frames, m),
        around(m),
        rng.integers(1, 3, m).astype(np.uint8),
        scores,
        rng.random(m) < 0.2,
    )
    return truth, found


def one_by_one(truth: WaymoTruth, found: WaymoPredictions) -> tuple[npt.NDArray[np.float64], int]:
    """Return (4, 101, 5) true and false positives, misses of both levels, sum of heading accuracy; and the crowding."""
    result = np.zeros((4, len(CUTOFFS), 5))
    rivals = 0
    for kind in (1, 2):
        for f in range(len(truth.frames)):
            t = np.flatnonzero((truth.frame == f) & (truth.types == kind))
            p = np.flatnonzero((found.frame == f) & (found.types == kind))
            iou = iou_3d(found.boxes[p], truth.boxes[t]).astype(np.float32)
            weight = np.where(iou >= MIN_IOU[kind - 1], np.floor(iou * np.float32(1e6) + np.float32(0.5)), 0.0)
            rivals = max(rivals, int(((weight > 0).sum(axis=0) > 1).sum()))
            for k, cutoff in enumerate(CUTOFFS):
                active = found.scores[p] >= cutoff
                rows, columns = linear_sum_assignment(weight[active], maximize=True)
                matched = weight[active][rows, columns] > 0
                rows, columns = p[active][rows[matched]], t[columns[matched]]
                turn = np.abs(found.boxes[rows, 6] - truth.boxes[columns, 6])
                false = active & ~np.isin(p, rows) & ~found.overlaps_nlz[p]
                missed = ~np.isin(t, columns)
                easy = truth.levels[t] == 1
                result[kind - 1, k] += (
                    len(rows),
                    false.sum(),
                    (missed & easy).sum(),
                    missed.sum(),
                    (1 - turn / np.pi).sum(),
                )
    return result, rivals


@pytest.mark.parametrize("seed", range(4))
def test_every_cutoff_is_matched_as_if_it_were_alone(seed: int) -> None:
    truth, found = crowd(seed, frames=3, boxes=10, predictions=24)
    pairs = pair(truth, found)
    counts = count(pairs, pairs.truth_type, pairs.prediction_type, 4)
    expected, rivals = one_by_one(truth, found)
    assert rivals >= 5
    np.testing.assert_array_equal(counts.true_positives, expected[..., 0])
    np.testing.assert_array_equal(counts.false_positives, expected[..., 1])
    np.testing.assert_array_equal(counts.misses, np.moveaxis(expected[..., 2:4], -1, 0))
    np.testing.assert_allclose(counts.heading_accuracy, expected[..., 4], rtol=0, atol=1e-9)
    assert (np.diff(counts.true_positives[0]) <= 0).all()
    assert counts.true_positives[0, 0] > 10


def test_a_new_prediction_may_push_others_on() -> None:
    """By hand: `a` takes A; `b`, which only fits A, comes later: `a` moves on to B, where it fits less."""
    places, scores = {"A": 0.0, "B": 0.5, "a": 0.2, "b": -0.1}, {"a": 0.9, "b": 0.5}
    box = np.array([10.0, 0.0, 1.0, 4.0, 2.0, 1.5, 0.0])
    rows = {name: box + np.array([x, 0, 0, 0, 0, 0, 0]) for name, x in places.items()}
    truth = WaymoTruth(
        (("segment", 0),),
        True,
        CLASS_NAMES,
        np.zeros(2, np.int64),
        np.stack([rows["A"], rows["B"]]),
        np.ones(2, np.uint8),
        np.array([2, 1], np.uint8),
    )
    found = WaymoPredictions(
        truth.frames,
        True,
        np.zeros(2, np.int64),
        np.stack([rows["a"], rows["b"]]),
        np.ones(2, np.uint8),
        np.array([scores["a"], scores["b"]], np.float32),
        np.zeros(2, np.bool_),
    )
    pairs = pair(truth, found)
    counts = count(pairs, pairs.truth_type, pairs.prediction_type, 4)
    assert counts.true_positives[0, [0, 50, 51, 90, 91]].tolist() == [2, 2, 1, 1, 0]
    assert counts.false_positives[0].max() == 0
    # The one of level 1 is B: found from 0.5 down, when `a` is pushed to it.
    assert counts.misses[0, 0, [50, 51, 91]].tolist() == [0, 1, 1]
    assert counts.misses[1, 0, [50, 51, 91]].tolist() == [0, 1, 2]


def test_predictions_in_other_frames_are_no_candidates() -> None:
    there = make_scene(6, num_frames=2, objects=20).truth
    nowhere, ones = np.zeros(len(there.frame), np.int64), np.ones(len(there.frame), np.uint8)
    truth = WaymoTruth((("segment", 0),), True, CLASS_NAMES, nowhere, there.boxes, there.types, ones)
    scores, unmarked = ones.astype(np.float32), np.zeros(len(ones), np.bool_)
    elsewhere = WaymoPredictions((("segment", 7),), True, nowhere, there.boxes, there.types, scores, unmarked)
    pairs = pair(truth, elsewhere)
    assert len(pairs.box) == 0
    counts = count(pairs, pairs.truth_type, pairs.prediction_type, 4)
    assert counts.false_positives[:, 0].sum() == len(ones)
    assert counts.misses[0, :, 0].sum() == len(ones)


@pytest.mark.parametrize(
    ("order", "scores", "precision"),
    [
        # As the official op has them: heading accuracy over predictions at the cut-offs 0 and 0.55.
        ("right, turned", (0.5, 0.9), (0.5, 0.0)),
        ("turned, right", (0.5, 0.9), (0.0, 1.0)),
        ("turned, right", (0.9, 0.5), (0.0, 0.0)),
        ("right, turned", (0.9, 0.5), (0.5, 1.0)),
    ],
)
def test_of_predictions_that_fit_equally_the_first_gets_the_box(
    order: str, scores: tuple[float, float], precision: tuple[float, float]
) -> None:
    box = np.array([10.0, 0.0, 1.0, 4.0, 2.0, 1.5, 0.0])
    rows = {"right": box, "turned": box + np.array([0, 0, 0, 0, 0, 0, np.pi])}
    one, two = np.zeros(1, np.int64), np.zeros(2, np.int64)
    frames = (("segment", 0),)
    truth = WaymoTruth(frames, True, CLASS_NAMES, one, box[None], np.ones(1, np.uint8), np.ones(1, np.uint8))
    boxes = np.stack([rows[name] for name in order.split(", ")])
    found = WaymoPredictions(
        frames, True, two, boxes, np.ones(2, np.uint8), np.array(scores, np.float32), np.zeros(2, np.bool_)
    )
    pairs = pair(truth, found)
    counts = count(pairs, pairs.truth_type, pairs.prediction_type, 4)
    shown = counts.true_positives + counts.false_positives
    assert (counts.heading_accuracy / np.maximum(shown, 1))[0, [0, 55]] == pytest.approx(precision)
