"""The nuScenes metric against numbers worked by hand, and what has to hold for any boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spot_ray.evaluate.nuscenes import (
    ERRORS,
    BikeRacks,
    NuscenesBoxes,
    average_precision,
    counted,
    evaluate,
    match_errors,
    mean_error,
    yaws,
)
from spot_ray.schema.nuscenes import DETECTION_CLASSES

CAR, BICYCLE, CONE, BARRIER = (DETECTION_CLASSES.index(n) for n in ("car", "bicycle", "traffic_cone", "barrier"))


def boxes(xy: Any, *, label: Any = CAR, sample: Any = 0, **columns: Any) -> NuscenesBoxes:
    """Return boxes of 2 × 4 × 1.5 m that head along x and stand."""
    xy = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    count = len(xy)
    standard: dict[str, Any] = {
        "size_wlh": np.tile([2.0, 4.0, 1.5], (count, 1)),
        "rotation": np.tile([1.0, 0.0, 0.0, 0.0], (count, 1)),
        "velocity": np.zeros((count, 2)),
        "attribute": np.full(count, 5, np.int8),
        "num_points": np.full(count, -1, np.int32),
    }
    return NuscenesBoxes(
        sample=np.broadcast_to(np.int32(sample), count).copy(),
        label=np.broadcast_to(np.int8(label), count).copy(),
        centre=np.pad(xy, ((0, 0), (0, 1))),
        **{name: np.asarray(columns.get(name, value), dtype=value.dtype) for name, value in standard.items()},
    )


def turned(*yaw: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    half = np.array(yaw) / 2
    return np.stack([np.cos(half), 0 * half, 0 * half, np.sin(half)], axis=1)


def test_precision_is_read_off_at_recalls_and_clipped() -> None:
    # Recalls 0.5, 0.5, 1 with precisions 1, 1/2, 2/3. Up to recall 0.5 it is 1, at 0.5 itself the last of the two, and
    # above it climbs from 1/2 to 2/3.
    above = 0.5 + (np.arange(50, 101) - 50) / 50 * (2 / 3 - 0.5)
    expected = (39 * 0.9 + (above - 0.1).sum()) / 90 / 0.9
    assert average_precision(np.array([True, False, True]), 2) == pytest.approx(expected, abs=1e-12)


def test_recall_that_is_not_reached_has_no_precision() -> None:
    # One of four is found, and surely: precision 1 at recalls 0.11 to 0.25 of 0.11 to 1.
    assert average_precision(np.array([True]), 4) == pytest.approx(15 / 90, abs=1e-12)
    assert average_precision(np.array([True]), 20) == 0
    assert average_precision(np.array([False, False]), 2) == 0
    assert average_precision(np.zeros(0, bool), 2) == 0


def test_errors_are_means_of_what_is_as_confident() -> None:
    # Two of two found, with errors 1 and 3 at scores 0.8 and 0.4: the running mean is 1 up to recall 0.5, where the
    # score is 0.8, and climbs to 2 at the score 0.4.
    climb = 1 + (np.arange(50, 101) - 50) / 50
    expected = (39 * 1 + climb.sum()) / 90
    found = mean_error(np.array([1.0, 3.0]), np.array([True, True]), np.array([0.8, 0.4]), 2)
    assert found == pytest.approx(expected, abs=1e-12)


def test_errors_of_what_is_hardly_found_or_not_known_are_one() -> None:
    true, scores = np.array([True]), np.array([0.9])
    assert mean_error(np.array([0.25]), true, scores, 4) == 0.25
    assert mean_error(np.array([0.25]), true, scores, 10) == 1
    assert mean_error(np.array([np.nan]), true, scores, 1) == 1
    assert mean_error(np.zeros(0), np.array([False]), scores, 1) == 1
    # A score of 0 is as if recall had ended before.
    assert mean_error(np.array([0.25]), true, np.array([0.0]), 1) == 1


def test_unknown_errors_are_passed_over() -> None:
    # The first error is unknown: 0 up to it, then the mean of the known, here from a score of 0.8 to 0.4 linearly.
    found = mean_error(np.array([np.nan, 2.0]), np.array([True, True]), np.array([0.8, 0.4]), 2)
    assert found == pytest.approx((2 * (np.arange(50, 101) - 50) / 50).sum() / 90, abs=1e-12)


def test_errors_of_a_pair() -> None:
    truth = boxes([(0, 0)], rotation=turned(0.1), velocity=[(1, 1)])
    found = boxes([(3, 4)], size_wlh=[(2, 2, 3)], rotation=turned(-np.pi), velocity=[(1, -1)], attribute=[6])
    errors = match_errors(truth, found, half_turn=False)
    # 2 × 2 × 1.5 is common to 12 and 12 cubic metres.
    expected = {"ATE": 5, "ASE": 1 - 6 / 18, "AOE": np.pi - 0.1, "AVE": 2, "AAE": 1}
    assert {name: float(value[0]) for name, value in errors.items()} == pytest.approx(expected, abs=1e-12)
    assert match_errors(truth, found, half_turn=True)["AOE"][0] == pytest.approx(0.1, abs=1e-12)
    unknown = match_errors(boxes([(0, 0)], attribute=[-1], velocity=[(np.nan, 0)]), found, half_turn=False)
    assert np.isnan(unknown["AAE"][0])
    assert np.isnan(unknown["AVE"][0])
    same = match_errors(truth, boxes([(0, 0)]), half_turn=False)
    assert same["AAE"][0] == 0


def test_yaw_does_not_need_a_unit_quaternion() -> None:
    np.testing.assert_allclose(yaws(3 * turned(0.3, -3.0, 1.6)), [0.3, -3.0, 1.6], atol=1e-12)


def test_the_best_prediction_takes_the_nearest_that_is_left() -> None:
    truth = boxes([(0, 0), (1.5, 0)])
    found = boxes([(0.7, 0), (0.1, 0), (0, 0.1)])
    metrics = evaluate(truth, found, np.array([0.9, 0.8, 0.7]), num_samples=1, class_names=["car"])
    # At 0.5 m: the first finds none, the second one of the two, the third none. From 1 m on the first takes the left
    # box, and the second, until 2 m, comes too late for it.
    assert metrics.ap[0, 0] == average_precision(np.array([False, True, False]), 2)
    assert metrics.ap[0, 1] == average_precision(np.array([True, False, False]), 2)
    assert metrics.ap[0, 2] == average_precision(np.array([True, True, False]), 2)


def test_of_equal_scores_the_last_counts_first() -> None:
    truth = boxes([(0, 0)])
    scores = np.array([0.5, 0.5])
    late = evaluate(truth, boxes([(9, 0), (0, 0)]), scores, num_samples=1, class_names=["car"])
    early = evaluate(truth, boxes([(0, 0), (9, 0)]), scores, num_samples=1, class_names=["car"])
    assert late.ap[0, 0] == average_precision(np.array([True, False]), 1)
    assert early.ap[0, 0] == average_precision(np.array([False, True]), 1)


def test_a_distance_of_the_threshold_is_no_match() -> None:
    metrics = evaluate(boxes([(0, 0)]), boxes([(2, 0)]), np.ones(1), num_samples=1, class_names=["car"])
    assert metrics.ap[0].tolist() == pytest.approx([0, 0, 0, 1])


def test_boxes_of_other_samples_and_classes_do_not_match() -> None:
    truth = boxes([(0, 0), (5, 0)], sample=[0, 1])
    assert not evaluate(truth, boxes([(5, 0)], sample=0), np.ones(1), num_samples=2).ap.any()
    assert not evaluate(truth, boxes([(5, 0)], sample=1, label=CONE), np.ones(1), num_samples=2).ap.any()
    assert evaluate(truth, boxes([(5, 0)], sample=1), np.ones(1), num_samples=2).ap.any()


def test_cones_and_barriers_have_fewer_errors_and_a_class_without_truth_has_them_all() -> None:
    truth = boxes([(0, 0), (5, 0)], label=[CONE, BARRIER])
    found = boxes([(0, 0), (5, 0)], label=[CONE, BARRIER], rotation=turned(0, np.pi))
    metrics = evaluate(truth, found, np.ones(2), num_samples=1)
    table = dict(zip(DETECTION_CLASSES, metrics.errors.round(9).tolist(), strict=True))
    assert table["traffic_cone"] == pytest.approx([0, 0, np.nan, np.nan, np.nan], nan_ok=True)
    assert table["barrier"] == pytest.approx([0, 0, 0, np.nan, np.nan], nan_ok=True)
    assert table["bus"] == [1] * 5
    assert metrics.mean_ap == pytest.approx(0.2)
    assert metrics.mean_errors == pytest.approx({"ATE": 0.8, "ASE": 0.8, "AOE": 8 / 9, "AVE": 1, "AAE": 1})
    assert metrics.detection_score == pytest.approx((5 * 0.2 + 0.2 + 0.2 + 1 / 9) / 10)


def test_errors_that_nobody_tells_are_left_out_of_the_score() -> None:
    truth = boxes([(0, 0)], label=CONE)
    metrics = evaluate(truth, truth, np.ones(1), num_samples=1, class_names=["traffic_cone"])
    assert metrics.mean_errors == {"ATE": 0, "ASE": 0}
    assert metrics.detection_score == pytest.approx(1)
    few = evaluate(boxes([(0, 0)]), boxes([(0, 0)]), np.ones(1), num_samples=1, error_names=ERRORS[:4])
    assert list(few.mean_errors) == ["ATE", "ASE", "AOE", "AVE"]


def test_what_counts() -> None:
    ego = np.array([[100.0, 50.0]])
    none = BikeRacks.of(np.zeros(0, int), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 4)), num=1)
    places = [(149.9, 50), (150, 50), (139.9, 50), (140.1, 50)]
    assert counted(boxes(places), ego, none).tolist() == [True, False, True, True]
    assert counted(boxes(places, label=BICYCLE), ego, none).tolist() == [False, False, True, False]
    points = boxes(np.tile([100, 50], (3, 1)), num_points=[-1, 0, 1])
    assert counted(points, ego, none).tolist() == [True, False, True]


def test_cycles_in_a_rack_do_not_count() -> None:
    ego = np.zeros((2, 2))
    # 4 m long at 45 degrees around (10, 0), 1 m wide; in the second sample only.
    racks = BikeRacks.of(np.array([1]), np.array([[10.0, 0, 0]]), np.array([[1.0, 4, 2]]), turned(np.pi / 4), num=2)
    along, across = (11.3, 1.3), (11.3, -1.3)
    assert counted(boxes([along, across], label=BICYCLE, sample=1), ego, racks).tolist() == [False, True]
    assert counted(boxes([along], label=BICYCLE, sample=0), ego, racks).all()
    assert counted(boxes([along], label=CAR, sample=1), ego, racks).all()
    high = boxes([along], label=BICYCLE, sample=1)
    high.centre[:, 2] = 1.01
    assert counted(high, ego, racks).all()


@pytest.fixture
def scattered() -> NuscenesBoxes:
    rng = np.random.default_rng(0)
    count = 800
    return boxes(
        200 * rng.random((count, 2)),
        label=np.arange(count) % 10,
        sample=rng.integers(0, 6, count),
        rotation=turned(*(6 * rng.random(count))),
        velocity=rng.normal(size=(count, 2)),
    )


def test_the_truth_itself_is_found_perfectly(scattered: NuscenesBoxes) -> None:
    assert np.bincount(scattered.label).min() >= 50
    metrics = evaluate(scattered, scattered, np.random.default_rng(1).random(800), num_samples=6)
    np.testing.assert_allclose(metrics.ap, 1, atol=1e-12)
    np.testing.assert_allclose(np.nan_to_num(metrics.errors), 0, atol=1e-12)
    assert metrics.detection_score == pytest.approx(1)


def test_what_is_nowhere_never_raises_a_precision(scattered: NuscenesBoxes) -> None:
    rng = np.random.default_rng(2)
    found = scattered.take(rng.random(800) < 0.8)
    found.centre[:, :2] += rng.normal(size=(len(found), 2))
    scores = rng.random(len(found))
    before = evaluate(scattered, found, scores, num_samples=6).ap
    for _ in range(5):
        wrong = found.take(rng.random(len(found)) < 0.3)
        wrong.centre[:, 0] += 1000
        both = NuscenesBoxes(
            *(np.concatenate([getattr(part, name) for part in (found, wrong)]) for name in vars(found))
        )
        after = evaluate(scattered, both, np.concatenate([scores, rng.random(len(wrong))]), num_samples=6).ap
        assert (after <= before + 1e-12).all()
        assert (after < before - 1e-3).any()


def test_the_numbering_of_samples_changes_nothing(scattered: NuscenesBoxes) -> None:
    rng = np.random.default_rng(3)
    found = scattered.take(rng.permutation(800)[:600])
    found.centre[:, :2] += rng.normal(size=(len(found), 2))
    scores = rng.random(len(found))
    before = evaluate(scattered, found, scores, num_samples=6)
    renumbered = np.array([3, 5, 0, 1, 4, 2], np.int32)
    for part in (scattered, found):
        part.sample[:] = renumbered[part.sample]
    after = evaluate(scattered, found, scores, num_samples=6)
    np.testing.assert_array_equal(before.ap, after.ap)
    np.testing.assert_array_equal(before.errors, after.errors)
