"""Counts and figures of hand-made labels."""

from __future__ import annotations

import numpy as np
import pytest

from spot_ray.evaluate.label_quality import (
    UNOBSERVED,
    TrueFrame,
    class_ious,
    count_frame,
    errors,
    figures,
    label_array,
    limits,
)

NAMES = ("car", "tree", "road")
GROUND = np.array([False, False, False, True])
CAR, TREE, ROAD, NO_CLASS = 1, 2, 3, 255


def frame(truth, domain=None, hit=None, kind=None, distance=None, height=None) -> TrueFrame:
    n = len(truth)
    zeros = np.zeros(n, np.uint8)
    return TrueFrame(
        np.array(truth, np.uint8),
        np.ones(n, bool) if domain is None else np.array(domain, bool),
        np.zeros(n, bool) if hit is None else np.array(hit, bool),
        zeros if kind is None else np.array(kind, np.uint8),
        zeros if distance is None else np.array(distance, np.uint8),
        zeros if height is None else np.array(height, np.uint8),
    )


def count(label, truth, **columns):
    return count_frame(np.array(label, np.uint8), frame(truth, **columns), NAMES, GROUND)


def test_a_label_against_itself_is_perfect() -> None:
    found = figures(count([0, CAR, TREE, ROAD], [0, CAR, TREE, ROAD]))
    assert found["geometric_iou"] == found["geometric_iou_non_ground"] == found["miou"] == 1.0
    rest = ("false_free", "false_occupied", "unobserved_share", "unobserved_occupied", "unobserved_free")
    assert all(found[name] == 0.0 for name in rest)


def test_each_kind_of_error_by_hand() -> None:
    #        right  right  missed free  unobserved miss  other class  false  unobserved free  right free  no class
    truth = [CAR, ROAD, CAR, TREE, TREE, 0, 0, 0, CAR]
    label = [CAR, ROAD, 0, UNOBSERVED, CAR, TREE, UNOBSERVED, 0, NO_CLASS]
    found = count(label, truth)
    values = figures(found)
    # TP: 0, 1, 4, 8. FN: 2, 3. FP: 5, 6.
    assert values["geometric_iou"] == pytest.approx(4 / 8)
    assert values["geometric_iou_non_ground"] == pytest.approx(3 / 7)
    # Car: 1 right of truth 3, label 2. Tree: none right. Road: 1 of 1.
    assert class_ious(found) == {"car": pytest.approx(1 / 4), "tree": 0.0, "road": 1.0}
    assert values["miou"] == pytest.approx((1 / 4 + 0 + 1) / 3)
    assert values["false_free"] == pytest.approx(1 / 6)
    assert values["false_occupied"] == pytest.approx(1 / 5)
    assert values["unobserved_share"] == pytest.approx(2 / 9)
    assert values["unobserved_occupied"] == pytest.approx(1 / 9)
    assert values["unobserved_free"] == pytest.approx(1 / 9)


def test_without_ground_a_ground_label_on_something_else_is_a_miss() -> None:
    #        ground, right or not    free, called ground   a car called ground     a car, right
    truth = [ROAD, ROAD, ROAD, 0, CAR, CAR]
    label = [ROAD, 0, CAR, ROAD, ROAD, CAR]
    values = figures(count(label, truth))
    assert values["geometric_iou_non_ground"] == pytest.approx(1 / 2)
    assert values["geometric_iou"] == pytest.approx(4 / 6)


def test_only_the_domain_counts_and_a_class_that_the_truth_lacks_has_no_iou() -> None:
    found = count([CAR, TREE, 0], [CAR, 0, CAR], domain=[True, False, False])
    assert figures(found)["geometric_iou"] == 1.0
    assert class_ious(found) == {"car": 1.0, "tree": None, "road": None}
    nothing = count([0], [CAR], domain=[False])
    assert set(figures(nothing).values()) == {None}
    assert set(limits(nothing).values()) == {None}


def test_the_inside_of_a_solid_counts_only_if_wanted() -> None:
    # Right, falsely occupied, and inside a solid: called occupied, unobserved, free.
    found = count([CAR, TREE, TREE, UNOBSERVED, 0], [CAR, 0, 0, 0, 0], kind=[0, 0, 2, 2, 2])
    assert figures(found)["geometric_iou"] == pytest.approx(1 / 2)
    assert figures(found)["unobserved_share"] == 0.0
    assert figures(found, with_insides=True)["geometric_iou"] == pytest.approx(1 / 4)
    assert figures(found, with_insides=True)["unobserved_share"] == pytest.approx(1 / 5)


def test_counts_of_frames_add_up() -> None:
    one, two = ([CAR, 0, TREE], [CAR, CAR, 0]), ([ROAD, UNOBSERVED, 0], [ROAD, 0, 0])
    whole = count([*one[0], *two[0]], [*one[1], *two[1]])
    np.testing.assert_array_equal((count(*one) + count(*two)).table, whole.table)


def test_what_the_returns_show() -> None:
    found = count([0] * 5, [CAR, CAR, CAR, 0, 0], hit=[True, True, False, True, False])
    assert limits(found) == {
        "hit_share": pytest.approx(2 / 3),
        "hit_precision": pytest.approx(2 / 3),
        "hit_iou": pytest.approx(2 / 4),
    }


def test_errors_are_told_by_class_kind_and_band() -> None:
    found = count(
        [0, UNOBSERVED, TREE, CAR, CAR, TREE, UNOBSERVED, 0],
        [CAR, CAR, CAR, CAR, 0, 0, 0, 0],
        hit=[True, False, True, True, True, False, False, False],
        kind=[0, 0, 0, 0, 1, 2, 2, 0],
        distance=[0, 0, 0, 0, 1, 1, 2, 2],
        height=[0, 1, 2, 3, 0, 0, 0, 0],
    )
    told = errors(found)
    assert told["false_negatives_by_class"] == {
        "car": {
            "voxels": 4,
            "free_without_hit": 0.0,
            "free_with_hit": 0.25,
            "unobserved_without_hit": 0.25,
            "unobserved_with_hit": 0.0,
            "other_class": 0.25,
            "mostly": {"tree": 0.25},
        }
    }
    kinds = told["false_positives_by_kind"]
    assert kinds["clear"] == {"labelled_occupied_with_hit": 0, "labelled_occupied_without_hit": 0, "unobserved": 0}
    assert kinds["touched"] == {"labelled_occupied_with_hit": 1, "labelled_occupied_without_hit": 0, "unobserved": 0}
    assert kinds["inside"] == {"labelled_occupied_with_hit": 0, "labelled_occupied_without_hit": 1, "unobserved": 1}
    assert told["false_positives_by_class"] == {"car": 1, "tree": 1}
    assert [band["voxels"] for band in told["by_distance"].values()] == [4, 2, 2]
    assert [band["voxels"] for band in told["by_height"].values()] == [5, 1, 1, 1]
    assert told["by_distance"]["0-20 m"]["geometric_iou"] == pytest.approx(2 / 4)
    assert told["by_distance"]["20-40 m"]["false_occupied"] == 1.0


def test_a_label_set_becomes_an_array() -> None:
    observed = np.array([True, True, False, True])
    label = label_array(np.array([1, 3], np.int32), np.array([CAR, 255], np.uint8), observed)
    assert label.tolist() == [0, CAR, UNOBSERVED, NO_CLASS]


def test_ids_and_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="an id above 3"):
        count([4], [0])
    with pytest.raises(ValueError, match="an id above 3"):
        count([0], [4])
    with pytest.raises(ValueError, match="label"):
        count([0, 0], [0])
