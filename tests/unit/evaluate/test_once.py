"""ONCE's metric: scenes that the devkit's evaluator scored, cases worked by hand, and what must hold of any scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from once_scenes import NAMES, SCENES, Frame, scene

from spot_ray.errors import DataError
from spot_ray.evaluate.once import (
    MIN_IOU,
    RANGES,
    SUPERCLASSES,
    OnceAp,
    OnceBoxes,
    Variant,
    heading_difference,
    once_ap,
    once_iou,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "detection" / "once.json").read_text())
OFFICIAL: dict[str, dict[str, float]] = GOLDEN["percent"]
CORRECTED: dict[str, dict[str, float]] = GOLDEN["percent_corrected"]
CAR = (10.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0)
VEHICLE, PEDESTRIAN, CYCLIST = range(3)
ALL, NEAR, MIDDLE, FAR = range(4)


def boxes(*rows: tuple[float, ...], classes: list[int] | None = None, scores: list[float] | None = None) -> OnceBoxes:
    return OnceBoxes(
        np.array(rows, np.float64).reshape(-1, 7),
        np.array([0] * len(rows) if classes is None else classes, np.int64),
        None if scores is None else np.array(scores, np.float64),
    )


def of(frames: list[Frame]) -> list[OnceBoxes]:
    place = {name: i for i, name in enumerate(NAMES)}
    return [
        OnceBoxes(f["boxes_3d"], np.array([place[name] for name in f["name"]], np.int64), f.get("score"))
        for f in frames
    ]


def moved(row: tuple[float, ...], **changes: float) -> tuple[float, ...]:
    axes = ("x", "y", "z", "dx", "dy", "dz", "yaw")
    return tuple(value + changes.get(axis, 0.0) for axis, value in zip(axes, row, strict=True))


def score(truth: OnceBoxes, found: OnceBoxes, variant: Variant = "official") -> OnceAp:
    return once_ap([truth], [found], variant=variant)


@pytest.mark.parametrize("name", SCENES)
def test_figures_are_those_of_the_official_evaluator(name: str) -> None:
    truth, found = map(of, scene(**SCENES[name]))
    check(once_ap(truth, found), OFFICIAL[name])


@pytest.mark.parametrize("name", CORRECTED)
def test_corrected_figures_are_what_it_says_of_mirrored_boxes(name: str) -> None:
    truth, found = map(of, scene(**SCENES[name]))
    check(once_ap(truth, found, variant="corrected"), CORRECTED[name])


def check(result: OnceAp, official: dict[str, float]) -> None:
    for c, superclass in enumerate(SUPERCLASSES):
        for r, where in enumerate(RANGES):
            assert 100 * result.ap[c, r] == pytest.approx(official[f"AP_{superclass}/{where}"], abs=1e-6)
    mean = 100 * result.ap.mean(axis=0)
    np.testing.assert_allclose(mean, [official[f"AP_mean/{where}"] for where in RANGES], atol=1e-6)


def test_the_scenes_have_something_to_decide() -> None:
    figures = [value for figures in OFFICIAL.values() for value in figures.values()]
    assert sum(0 < value < 100 for value in figures) > 60
    truth, found = scene(**SCENES["middling"])
    assert (
        np.abs(once_ap(of(truth), of(found)).ap - once_ap(of(truth), of(found), variant="corrected").ap).max() > 0.005
    )


def test_yaw_turns_boxes_clockwise_officially() -> None:
    # The second box lies ahead of the first along its length if the yaw of 30 degrees is clockwise.
    yaw = np.pi / 6
    first = np.array([[0, 0, 0, 4.0, 2.0, 1.5, yaw]])
    ahead = np.array([[np.cos(yaw), -np.sin(yaw), 0, 4.0, 2.0, 1.5, yaw]])
    assert once_iou(first, ahead)[0, 0] == pytest.approx(3 / 5)
    mirrored = ahead * np.array([1, -1, 1, 1, 1, 1, 1])
    assert once_iou(first, mirrored, variant="corrected")[0, 0] == pytest.approx(3 / 5)
    # Counter-clockwise the first case shifts by cos 60° along the box and sin 60° across it.
    shared = (4 - np.cos(np.pi / 3)) * (2 - np.sin(np.pi / 3))
    assert once_iou(first, ahead, variant="corrected")[0, 0] == pytest.approx(shared / (16 - shared))


@pytest.mark.parametrize(
    ("a", "b", "official", "corrected"),
    [
        (0.1, -0.2, 0.3, 0.3),
        (3.0, -3.0, 2 * np.pi - 6, 2 * np.pi - 6),
        (0.0, np.pi, np.pi, np.pi),
        # More than a turn apart, by three quarters of one: the official difference is negative, so it passes.
        (5.5 * np.pi, 2 * np.pi, -1.5 * np.pi, 0.5 * np.pi),
        (3 * np.pi, 0.0, -np.pi, np.pi),
    ],
)
def test_headings_differ(a: float, b: float, official: float, corrected: float) -> None:
    for variant, wanted in (("official", official), ("corrected", corrected)):
        found = heading_difference(np.array([a]), np.array([b]), variant=variant)  # type: ignore[arg-type]
        assert found[0, 0] == pytest.approx(wanted)


def test_a_box_turned_around_is_no_match() -> None:
    truth = boxes(CAR)
    assert score(truth, boxes(moved(CAR, yaw=np.pi), scores=[0.9])).ap[VEHICLE, ALL] == 0
    square = (10.0, 0.0, 0.0, 2.0, 2.0, 1.5, 0.0)
    for degrees, wanted in ((89, 1), (91, 0)):
        found = boxes(moved(square, yaw=np.radians(degrees)), scores=[0.9])
        assert score(boxes(square), found).ap[VEHICLE, ALL] == wanted


def test_a_match_exceeds_the_threshold() -> None:
    # Along x, a shift of s leaves an IoU of (L - s) / (L + s).
    for c, name in ((0, "Vehicle"), (3, "Pedestrian"), (4, "Cyclist")):
        min_iou = MIN_IOU[SUPERCLASSES.index(name)]
        limit = 4 * (1 - min_iou) / (1 + min_iou)
        for shift, wanted in ((limit - 1e-6, 1.0), (limit + 1e-6, 0.0)):
            truth, found = boxes(CAR, classes=[c]), boxes(moved(CAR, x=shift), classes=[c], scores=[0.9])
            assert score(truth, found).ap[SUPERCLASSES.index(name), ALL] == wanted


def test_cars_buses_and_trucks_are_one_class() -> None:
    for true_class in range(3):
        for found_class in range(5):
            ap = score(boxes(CAR, classes=[true_class]), boxes(CAR, classes=[found_class], scores=[0.5])).ap
            assert ap[VEHICLE, ALL] == (found_class < 3)


def test_precision_over_recall_by_hand() -> None:
    # Four cars; by falling score: right, wrong, right, wrong, wrong, right; the fourth car is missed.
    truth = boxes(*(moved(CAR, y=10.0 * i) for i in range(4)))
    right = [moved(CAR, y=10.0 * i) for i in range(3)]
    wrong = [moved(CAR, y=-10.0 * (i + 1)) for i in range(3)]
    found = boxes(right[0], wrong[0], right[1], wrong[1], wrong[2], right[2], scores=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    # Thresholds stand at the recall that is nearest: 0.9 up to (1/4 + 2/4) / 2 = 0.375, which are the positions 0 to
    # 18; 0.7 up to 0.625, positions 19 to 31; 0.4, the last one, up to 0.75, positions 32 to 37. Position 0 does not
    # count.
    assert score(truth, found).ap[VEHICLE, ALL] == pytest.approx((18 * 1 + 13 * 2 / 3 + 6 * 3 / 6) / 50)


def test_at_a_threshold_the_largest_iou_counts_not_the_score() -> None:
    # By score the first car takes the first box, and the other is left the second: thresholds 0.9 and 0.5. At 0.5 the
    # first car takes the box that overlaps it most, the second; the other car reaches none, and the first box is false.
    at = [moved(CAR, x=x) for x in (0.0, 0.7)]
    found = boxes(moved(CAR, x=-0.6), moved(CAR, x=0.1), scores=[0.9, 0.5])
    # 0.9 stands at the positions 0 to 37, up to a recall of 0.75.
    assert score(boxes(*at), found).ap[VEHICLE, ALL] == pytest.approx((37 * 1 + 13 * 1 / 2) / 50)


def test_of_equal_scores_the_first_is_taken() -> None:
    found = boxes(moved(CAR, x=-0.3), moved(CAR, x=0.35), scores=[0.9, 0.9])
    assert score(boxes(CAR, moved(CAR, x=0.7)), found).ap[VEHICLE, ALL] == 1.0


def test_ranges_are_of_the_norm_in_three_dimensions() -> None:
    rows = [(29.9, 0.0, 0.0), (29.9, 0.0, 3.0), (30.0, 0.0, 0.0), (0.0, -49.9, 0.0), (0.0, 50.0, 0.0)]
    truth = boxes(*((*row, 4.0, 2.0, 1.5, 0.0) for row in rows))
    assert score(truth, boxes(scores=[])).num_truth[VEHICLE].tolist() == [5, 1, 3, 1]


def test_what_is_outside_the_range_counts_neither_way() -> None:
    near, far = CAR, moved(CAR, x=50.0)
    truth = boxes(near, far)
    # The far one is missed and another invented there; the near range does not mind.
    found = boxes(near, moved(far, y=20.0), scores=[0.5, 0.9])
    assert score(truth, found).ap[VEHICLE].tolist() == [0.25, 1.0, 0.0, 0.0]
    # One found beyond the border of the range takes the true one on this side: no hit, so half the recall is missing.
    truth, found = boxes((29.9, 0.0, 0.0, *CAR[3:]), near), boxes((30.1, 0.0, 0.0, *CAR[3:]), near, scores=[0.9, 0.5])
    assert score(truth, found).ap[VEHICLE].tolist() == [1.0, 0.5, 0.0, 0.0]


def test_boxes_of_other_classes_outside_the_range_are_ignored_ones() -> None:
    # A true pedestrian beyond 30 m stands where a vehicle was found at 29.9 m: the vehicle is no false alarm.
    beyond, before = (30.1, 0.0, 0.0, *CAR[3:]), (29.9, 0.0, 0.0, *CAR[3:])
    truth = boxes(beyond, CAR, classes=[3, 0])
    found = boxes(before, CAR, classes=[0, 0], scores=[0.9, 0.5])
    ap = score(truth, found).ap[VEHICLE]
    assert ap[ALL] == 0.5
    assert ap[NEAR] == 1.0


def test_a_class_without_truth_scores_nothing() -> None:
    result = score(boxes(CAR), boxes(CAR, CAR, classes=[3, 4], scores=[0.9, 0.9]))
    assert result.ap.max() == 0
    assert result.num_truth.sum(axis=0).tolist() == [1, 1, 0, 0]
    assert once_ap([], []).ap.max() == 0


def test_where_ignored_boxes_take_all_that_reach_a_threshold_precision_is_0() -> None:
    # In turn: the true one outside the range takes by score the found one outside it, so that the first threshold is
    # the other's score; by IoU it takes this other one, and neither a hit nor a false alarm is left.
    outside, inside = (30.05, 0.0, 0.0, *CAR[3:]), (29.95, 0.0, 0.0, *CAR[3:])
    truth = boxes(outside, (29.65, 0.0, 0.0, *CAR[3:]))
    found = boxes((30.35, 0.0, 0.0, *CAR[3:]), inside, scores=[0.9, 0.8])
    assert score(truth, found).ap[VEHICLE, NEAR] == 0


@pytest.mark.parametrize("variant", ["official", "corrected"])
@pytest.mark.parametrize("count", [1, 3, 50, 137])
def test_perfect_predictions_score_1_with_any_number_of_boxes(variant: Variant, count: int) -> None:
    rng = np.random.default_rng(count)
    frames = []
    for middle in (15.0, 40.0, 60.0):
        for c in range(5):
            place = rng.uniform(-8, 8, (count, 3)) + np.array([middle, 0, 0])
            rows = np.column_stack([place, rng.uniform(1, 5, (count, 3)), rng.uniform(-3, 3, count)])
            frames += [OnceBoxes(row[None], np.array([c]), rng.uniform(0.1, 1, 1)) for row in rows]
    result = once_ap(frames, frames, variant=variant)
    assert result.num_truth.min() >= count
    np.testing.assert_allclose(result.ap, 1.0, atol=1e-12)


@pytest.mark.parametrize("variant", ["official", "corrected"])
def test_false_alarms_never_raise_a_figure(variant: Variant) -> None:
    rng = np.random.default_rng(0)
    truth, found = map(of, scene(**SCENES["middling"]))
    before = once_ap(truth, found, variant=variant).ap
    for _ in range(4):
        # 200 m up, nothing true is near; but the ranges shrink to the last one: also some on the ground, far from all.
        up = rng.uniform(-20, 20, (len(found), 2))
        found = [
            OnceBoxes(
                np.concatenate([f.boxes, [[x, y, rng.choice([-27.0, 20.0, 45.0, 200.0]), 4.0, 2.0, 1.5, 0.3]]]),
                np.append(f.classes, rng.integers(5)),
                np.append(f.scores if f.scores is not None else [], rng.uniform()),
            )
            for f, (x, y) in zip(found, up, strict=True)
        ]
        after = once_ap(truth, found, variant=variant).ap
        assert (after <= before + 1e-12).all()
        before = after
    assert (before < once_ap(truth, of(scene(**SCENES["middling"])[1]), variant=variant).ap - 0.01).any()


def test_the_order_of_frames_does_not_matter() -> None:
    truth, found = map(of, scene(**SCENES["middling"]))
    order = np.random.default_rng(1).permutation(len(truth))
    again = once_ap([truth[i] for i in order], [found[i] for i in order])
    np.testing.assert_allclose(again.ap, once_ap(truth, found).ap, atol=1e-15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.full((1, 7), np.nan)}, "boxes of box 0 is"),
        ({"boxes": np.array([[*CAR[:5], 0.0, 0.0]])}, "box 0 has the sizes"),
        ({"boxes": np.array([[*CAR[:3], -4.0, 2.0, 1.5, 0.0]])}, "box 0 has the sizes"),
        ({"classes": np.zeros(2, np.int64)}, "classes has the shape"),
        ({"scores": np.array([np.inf])}, "scores of box 0 is inf"),
    ],
)
def test_broken_boxes_are_named(changes: dict[str, Any], message: str) -> None:
    whole = {"boxes": np.array([CAR]), "classes": np.zeros(1, np.int64), "scores": np.ones(1)}
    with pytest.raises(DataError, match=message):
        OnceBoxes(**whole | changes)


def test_truth_has_no_scores_and_predictions_have() -> None:
    with pytest.raises(DataError, match="1 frames of predictions for 1 of truth"):
        once_ap([boxes(CAR)], [boxes(CAR)])
    with pytest.raises(DataError, match="0 frames of predictions for 1"):
        once_ap([boxes(CAR)], [])
