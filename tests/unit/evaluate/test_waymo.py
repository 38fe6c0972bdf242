"""Waymo's metric: the official op's figures of a made-up scene, cases worked by hand, and what must always hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymo_scenes import Objects, Scene, make_scene

from spot_ray.errors import DataError
from spot_ray.evaluate.waymo import LEVELS, RANGES, average_precision, measure, range_of
from spot_ray.evaluate.waymo_boxes import CLASS_NAMES, WaymoPredictions, WaymoTruth, levels_of

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden" / "detection" / "waymo.json").read_text())
FRAME = (("segment", 1),)
CAR = (20.0, 5.0, 1.0, 4.0, 2.0, 1.5, 0.3)
AP, APH = 0, 1
L1, L2 = 0, 1
VEHICLE, PEDESTRIAN = 0, 1


def truth_of(scene: Scene) -> WaymoTruth:
    t = scene.truth
    levels = levels_of(scene.num_points, scene.difficulty)
    return WaymoTruth(scene.frames, True, CLASS_NAMES, t.frame, t.boxes, t.types, levels)


def predictions_of(scene: Scene) -> WaymoPredictions:
    p = scene.predictions
    return WaymoPredictions(scene.frames, True, p.frame, p.boxes, p.types, scene.scores, scene.overlaps_nlz)


def truth(
    *boxes: Sequence[float], levels: Sequence[int] | None = None, types: Sequence[int] | None = None
) -> WaymoTruth:
    count = len(boxes)
    return WaymoTruth(
        FRAME,
        True,
        CLASS_NAMES,
        np.zeros(count, np.int64),
        np.array(boxes, np.float64).reshape(-1, 7),
        np.array([1] * count if types is None else types, np.uint8),
        np.array([1] * count if levels is None else levels, np.uint8),
    )


def predictions(
    *boxes: Sequence[float],
    scores: Sequence[float],
    types: Sequence[int] | None = None,
    overlaps_nlz: Sequence[bool] | None = None,
) -> WaymoPredictions:
    count = len(boxes)
    return WaymoPredictions(
        FRAME,
        True,
        np.zeros(count, np.int64),
        np.array(boxes, np.float64).reshape(-1, 7),
        np.array([1] * count if types is None else types, np.uint8),
        np.array(scores, np.float32),
        np.zeros(count, np.bool_) if overlaps_nlz is None else np.array(overlaps_nlz),
    )


def moved(box: Sequence[float], **changes: float) -> tuple[float, ...]:
    axes = ("x", "y", "z", "dx", "dy", "dz", "yaw")
    return tuple(value + changes.get(axis, 0.0) for axis, value in zip(axes, box, strict=True))


def test_figures_are_those_of_the_official_op() -> None:
    scene = make_scene(11)
    assert scene.digest() == GOLDEN["digest"], "this NumPy makes another scene of the seed"
    measured = measure(truth_of(scene), predictions_of(scene))
    compared = 0
    for c, name in enumerate(CLASS_NAMES):
        for i, level in enumerate(LEVELS):
            official = GOLDEN["figures"][f"OBJECT_TYPE_TYPE_{name.upper()}_LEVEL_{level}"]
            assert measured.by_class[:, i, c] == pytest.approx(official, abs=1e-6), name
            for r, distance in enumerate(RANGES):
                official = GOLDEN["figures"][f"RANGE_TYPE_{name.upper()}_{distance}_LEVEL_{level}"]
                assert measured.by_range[:, i, c, r] == pytest.approx(official, abs=1e-6), (name, distance)
                compared += 1
    assert compared == 24 == len(GOLDEN["figures"]) - 8


def test_boxes_with_up_to_five_points_are_hard_and_without_any_do_not_count() -> None:
    assert levels_of(np.array([0, 1, 5, 6, 0, 3, 9]), np.array([0, 0, 0, 0, 1, 1, 2])).tolist() == [0, 2, 2, 1, 0, 1, 2]


def test_ranges_begin_at_their_lower_end_and_take_height_in() -> None:
    boxes = np.zeros((5, 7))
    boxes[:, 0] = (29.99, 30, 49.99, 50, 29.99)
    boxes[4, 2] = 2
    assert range_of(boxes).tolist() == [0, 1, 1, 2, 1]


def test_gaps_of_the_recall_are_filled_from_the_larger_one() -> None:
    # By hand: 0.5 from 0.2 to 0.15, straight from 0.5 to 1 between 0.15 and 0.1, then 1.
    area = average_precision(np.array([1.0, 0.5], np.float32), np.array([0.1, 0.2], np.float32))
    assert area == pytest.approx(0.05 * 0.5 + 0.05 * 0.75 + 0.1, abs=1e-6)


def test_a_better_precision_at_a_larger_recall_counts_before_it() -> None:
    area = average_precision(np.array([0.2, 0.8, 1.0], np.float32), np.array([0.02, 0.04, 0.0], np.float32))
    assert area == pytest.approx(0.04 * 0.8, abs=1e-6)


def test_nothing_found_is_zero() -> None:
    assert average_precision(np.ones(101, np.float32), np.zeros(101, np.float32)) == 0
    assert measure(truth(CAR), predictions(scores=[])).by_class.max() == 0
    assert measure(truth(), predictions(CAR, scores=[0.5])).by_class.max() == 0


@pytest.mark.parametrize(("kind", "overlap", "found"), [(1, 0.71, 1), (1, 0.69, 0), (2, 0.51, 1), (4, 0.49, 0)])
def test_a_match_needs_the_overlap_of_its_class(kind: int, overlap: float, found: float) -> None:
    # Two boxes that share a part s of their length overlap by s / (2 - s).
    shift = 4.0 * (1 - 2 * overlap / (1 + overlap))
    box = (20.0, 0.0, 1.0, 4.0, 2.0, 1.5, 0.0)
    measured = measure(truth(box, types=[kind]), predictions(moved(box, x=shift), scores=[0.9], types=[kind]))
    assert measured.by_class[AP, L2, kind - 1] == pytest.approx(found)


def test_other_classes_do_not_match() -> None:
    measured = measure(truth(CAR), predictions(CAR, scores=[1.0], types=[2]))
    assert measured.by_class.max() == 0


@pytest.mark.parametrize(("turn", "accuracy"), [(np.pi, 0.0), (-np.pi / 100, 0.99), (2 * np.pi, 1.0)])
def test_heading_weighs_a_match(turn: float, accuracy: float) -> None:
    measured = measure(truth(CAR), predictions(moved(CAR, yaw=turn), scores=[0.9]))
    assert measured.by_class[AP, L1, VEHICLE] == pytest.approx(1)
    assert measured.by_class[APH, L1, VEHICLE] == pytest.approx(accuracy, abs=1e-6)


def test_a_hard_box_is_found_at_level_1_and_missed_at_level_2_only() -> None:
    other = moved(CAR, x=20.0)
    found = measure(truth(CAR, other, levels=[1, 2]), predictions(other, scores=[0.9]))
    # One of two at either level: at level 1 the found one is counted as well.
    np.testing.assert_allclose(found.by_class[AP, :, VEHICLE], 0.5, atol=1e-6)
    missed = measure(truth(CAR, other, levels=[1, 2]), predictions(CAR, scores=[0.9]))
    np.testing.assert_allclose(missed.by_class[AP, :, VEHICLE], (1.0, 0.5), atol=1e-6)


def test_a_box_that_does_not_count_makes_its_finder_a_false_positive() -> None:
    other = moved(CAR, x=20.0)
    measured = measure(truth(CAR, other, levels=[1, 0]), predictions(CAR, other, scores=[0.9, 0.9]))
    assert measured.by_class[AP, L2, VEHICLE] == pytest.approx(0.5, abs=1e-6)
    assert measured.boxes[VEHICLE] == 1


def test_predictions_that_overlap_a_no_label_zone_are_not_false() -> None:
    far = moved(CAR, x=20.0)
    for overlaps, expected in ((False, 0.5), (True, 1.0)):
        found = predictions(CAR, far, scores=[0.9, 0.9], overlaps_nlz=[False, overlaps])
        assert measure(truth(CAR), found).by_class[AP, L2, VEHICLE] == pytest.approx(expected, abs=1e-6)


def test_by_range_a_prediction_beyond_the_border_meets_nothing() -> None:
    box = (29.9, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0)
    measured = measure(truth(box), predictions(moved(box, x=0.2), scores=[0.9]))
    assert measured.by_class[AP, L1, VEHICLE] == pytest.approx(1)
    assert measured.by_range[AP, L1, VEHICLE].tolist() == [0, 0, 0]
    assert measured.boxes_by_range[VEHICLE].tolist() == [1, 0, 0]


def test_perfect_predictions_score_one() -> None:
    scene = make_scene(3, num_frames=6, objects=60)
    t = truth_of(scene)
    counted = t.counted & (t.boxes[:, 3] > 0.01)
    t = replace(t, **{name: getattr(t, name)[counted] for name in ("frame", "boxes", "types", "levels")})
    count = len(t.frame)
    scores = np.random.default_rng(0).random(count).astype(np.float32)
    found = WaymoPredictions(t.frames, True, t.frame, t.boxes, t.types, scores, np.zeros(count, np.bool_))
    measured = measure(t, found)
    assert measured.boxes.min() >= 50
    assert measured.boxes_by_range.min() >= 1
    np.testing.assert_allclose(measured.by_class, 1, atol=1e-6)
    np.testing.assert_allclose(measured.by_range, 1, atol=1e-6)


def test_false_positives_never_raise_a_figure() -> None:
    scene = make_scene(4, num_frames=5)
    t, found = truth_of(scene), predictions_of(scene)
    before = measure(t, found)
    rng = np.random.default_rng(0)
    for _ in range(3):
        extra = 30
        boxes = found.boxes[rng.integers(0, len(found.boxes), extra)] + [0, 0, 40, 0, 0, 0, 0]
        found = WaymoPredictions(
            found.frames,
            True,
            np.append(found.frame, rng.integers(0, 5, extra)),
            np.concatenate([found.boxes, boxes]),
            np.append(found.types, rng.integers(1, 5, extra).astype(np.uint8)),
            np.append(found.scores, rng.random(extra, dtype=np.float32)),
            np.append(found.overlaps_nlz, np.zeros(extra, np.bool_)),
        )
        after = measure(t, found)
        assert (after.by_class <= before.by_class + 1e-7).all()
        assert (after.by_range <= before.by_range + 1e-7).all()
        assert after.by_class.sum() < before.by_class.sum()
        before = after


def test_the_order_of_frames_and_boxes_changes_nothing() -> None:
    scene = make_scene(5, num_frames=6)
    t, found = truth_of(scene), predictions_of(scene)
    expected = measure(t, found)
    rng = np.random.default_rng(0)
    for _ in range(2):
        frames = rng.permutation(len(t.frames))
        rows = rng.permutation(len(t.frame))
        t = replace(
            t,
            frames=tuple(t.frames[i] for i in frames),
            frame=np.argsort(frames)[t.frame][rows],
            **{name: getattr(t, name)[rows] for name in ("boxes", "types", "levels")},
        )
        rows = rng.permutation(len(found.frame))
        columns = ("frame", "boxes", "types", "scores", "overlaps_nlz")
        found = replace(found, **{name: getattr(found, name)[rows] for name in columns})
        measured = measure(t, found)
        np.testing.assert_allclose(measured.by_class, expected.by_class, rtol=0, atol=1e-7)
        np.testing.assert_allclose(measured.by_range, expected.by_range, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [(4, np.nan, "finite"), (0, np.inf, "finite"), (5, -1.5, "above 0"), (3, 0.0, "above 0")],
)
def test_broken_boxes_are_named(column: int, value: float, said: str) -> None:
    box = np.array(CAR)
    box[column] = value
    with pytest.raises(DataError, match="prediction 1 is") as error:
        predictions(CAR, tuple(box), scores=[0.5, 0.5])
    assert said in error.value.expected
    assert error.value.where == "frame segment/1"
    with pytest.raises(DataError, match="ground-truth box 0"):
        truth(tuple(box))


def test_broken_rows_are_named() -> None:
    for score in (1.01, -0.1, np.nan):
        with pytest.raises(DataError, match="the score of prediction 0"):
            predictions(CAR, scores=[score])
    for kind in (0, 5):
        with pytest.raises(DataError, match=f"the type of prediction 0 is {kind}"):
            predictions(CAR, scores=[0.5], types=[kind])
    with pytest.raises(DataError, match="the type of ground-truth box 0 is 5"):
        truth(CAR, types=[5])
    with pytest.raises(DataError, match="the level of ground-truth box 0 is 3"):
        truth(CAR, levels=[3])
    with pytest.raises(DataError, match="shape"):
        predictions(CAR, scores=[0.5, 0.6])
    with pytest.raises(DataError, match="frame index"):
        replace(truth(CAR), frame=np.array([1]))
    none = Objects(np.zeros(0, np.int64), np.zeros((0, 6)), np.zeros(0, np.uint8))
    with pytest.raises(DataError, match=r"\(0, 6\)"):
        WaymoTruth(FRAME, True, CLASS_NAMES, none.frame, none.boxes, none.types, none.types)
