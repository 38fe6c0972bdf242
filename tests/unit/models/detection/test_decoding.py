from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from spot_ray.models.detection.config import DecodeConfig
from spot_ray.models.detection.decoding import Candidates, best_places, found_boxes

CONFIG = DecodeConfig(score_threshold=0.5, num_candidates=3, nms="class", nms_iou=0.2, max_detections=4)
RANGE_M = torch.tensor([[-10.0, -10.0, -3.0], [10.0, 10.0, 3.0]])


def test_the_greatest_come_first_and_of_equal_ones_the_first() -> None:
    logits = torch.tensor([[1.0, -0.1, 2.0], [2.0, 0.0, 1.0]])
    line, column = best_places(logits, replace(CONFIG, num_candidates=9))
    assert list(zip(line.tolist(), column.tolist(), strict=True)) == [(0, 2), (1, 0), (0, 0), (1, 2), (1, 1)]
    line, column = best_places(logits, CONFIG)
    assert list(zip(line.tolist(), column.tolist(), strict=True)) == [(0, 2), (1, 0), (0, 0)]
    # Also where there are so many that a sort of another kind would mix them.
    (place,) = best_places(torch.zeros(5000), replace(CONFIG, num_candidates=4000))
    assert torch.equal(place, torch.arange(4000))


def test_every_score_is_a_candidate_without_a_threshold_and_what_is_no_number_always() -> None:
    (place,) = best_places(torch.tensor([-math.inf, -90.0, 5.0]), replace(CONFIG, score_threshold=0.0))
    assert place.tolist() == [2, 1, 0]
    (place,) = best_places(torch.tensor([-1.0, math.nan, 5.0]), CONFIG)
    assert sorted(place.tolist()) == [1, 2]


def candidates(*rows: tuple[float, float, float, int], velocity: bool = False) -> Candidates:
    """Return boxes of 2 × 2 × 2 m by (x, z, score, class), which move as fast as they are far."""
    boxes = torch.tensor([[x, 0.0, z, 2.0, 2.0, 2.0, 0.0, x, -x] for x, z, _, _ in rows]).view(-1, 9)
    scores, classes = torch.tensor([row[2] for row in rows]), torch.tensor([row[3] for row in rows]).long()
    return Candidates(boxes if velocity else boxes[:, :7], scores, classes)


@pytest.mark.parametrize(("nms", "expected"), [("class", [0.9, 0.8, 0.7]), ("group", [0.9, 0.7])])
def test_boxes_of_one_class_or_of_one_group_suppress_each_other(nms: str, expected: list[float]) -> None:
    first = candidates((0, 0, 0.6, 0), (0.1, 0, 0.9, 0), (0.2, 0, 0.8, 1))
    second = candidates((0, 0, 0.7, 2))
    found = found_boxes([first, second], replace(CONFIG, nms=nms), range_m=RANGE_M)  # type: ignore[arg-type]
    assert found.scores.tolist() == pytest.approx(expected)
    assert found.velocity is None


def test_a_box_out_of_range_neither_is_found_nor_suppresses() -> None:
    group = candidates((10.1, 0, 0.9, 0), (9.9, 0, 0.8, 0), (0, 3.1, 0.7, 0), (math.nan, 0, 0.6, 0), velocity=True)
    found = found_boxes([group], CONFIG, range_m=RANGE_M)
    assert found.scores.tolist() == pytest.approx([0.8, 0.6])
    assert found.boxes.shape == (2, 7)
    assert found.velocity is not None
    assert found.velocity[0].tolist() == pytest.approx([9.9, -9.9])


def test_the_best_of_all_groups_are_left_and_of_equal_ones_the_first() -> None:
    groups = [candidates(*((3.0 * k, 0, 0.7, c) for k in range(3))) for c in range(2)]
    found = found_boxes([*groups, candidates()], CONFIG, range_m=RANGE_M)
    assert found.classes.tolist() == [0, 0, 0, 1]
    assert found.boxes[:, 0].tolist() == [0, 3, 6, 0]
