from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spot_ray.models.detection import nms as nms_module
from spot_ray.models.detection.box_iou import bev_iou
from spot_ray.models.detection.nms import nms


def random_boxes(count: int, seed: int, spread_m: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 7, generator=generator)
    boxes[:, :2] = (boxes[:, :2] - 0.5) * spread_m
    boxes[:, 3:6] = boxes[:, 3:6] * 4 + 0.5
    boxes[:, 6] = (boxes[:, 6] - 0.5) * 12
    scores = (torch.rand(count, generator=generator) * 50).round() / 50  # many ties
    return boxes, scores, torch.randint(0, 3, (count,), generator=generator)


def one_by_one(boxes: Tensor, scores: Tensor, iou: float, classes: Tensor | None) -> list[int]:
    """Greedy suppression as its definition says it."""
    overlap = bev_iou(boxes, boxes)
    kept: list[int] = []
    for k in sorted(range(len(boxes)), key=lambda k: (-scores[k].item(), k)):
        rivals = [m for m in kept if classes is None or classes[m] == classes[k]]
        if all(overlap[m, k] <= iou for m in rivals):
            kept.append(k)
    return kept


def row(*x: float) -> Tensor:
    """Boxes of 4 × 2 m along the x axis."""
    return torch.tensor([[value, 0, 0, 4, 2, 1, 0] for value in x], dtype=torch.float32)


def test_a_suppressed_box_suppresses_none() -> None:
    # Neighbours 2 m apart share a third, the others none: the first takes the second, which would take the third.
    boxes = row(0, 2, 4, 6)
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), iou=0.3).tolist() == [0, 2]
    assert nms(boxes, torch.tensor([0.6, 0.9, 0.7, 0.8]), iou=0.3).tolist() == [1, 3]
    assert nms(boxes, torch.tensor([0.6, 0.7, 0.8, 0.9]), iou=0.34).tolist() == [3, 2, 1, 0]


def test_only_boxes_of_one_class_suppress_each_other() -> None:
    boxes, scores = row(0, 0, 0, 0), torch.tensor([0.1, 0.4, 0.3, 0.2])
    assert nms(boxes, scores, iou=0.5).tolist() == [1]
    assert nms(boxes, scores, iou=0.5, classes=torch.tensor([7, 7, 1, 1])).tolist() == [1, 2]


def test_of_equal_scores_the_earlier_box_wins() -> None:
    assert nms(row(0, 0, 50, 50), torch.full((4,), 0.5), iou=0.5).tolist() == [0, 2]


def test_an_overlap_of_exactly_the_threshold_is_let_be() -> None:
    assert nms(row(0, 0), torch.tensor([0.5, 0.6]), iou=1.0).tolist() == [1, 0]


@pytest.mark.parametrize("block", [1, 16, 256])
@pytest.mark.parametrize("with_classes", [False, True])
@pytest.mark.parametrize(("spread_m", "iou"), [(60.0, 0.2), (15.0, 0.01), (4.0, 0.5), (1.0, 0.1)])
def test_is_exactly_the_greedy_algorithm(
    spread_m: float, iou: float, with_classes: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nms_module, "_BLOCK", block)
    boxes, scores, labels = random_boxes(150, seed=round(spread_m), spread_m=spread_m)
    classes = labels if with_classes else None
    expected = one_by_one(boxes, scores, iou, classes)
    assert 0 < len(expected) < len(boxes)
    assert nms(boxes, scores, iou=iou, classes=classes).tolist() == expected


def test_the_longest_chain_there_can_be() -> None:
    count = 300
    boxes = row(*(2.0 * k for k in range(count)))
    kept = nms(boxes, torch.linspace(1, 0, count), iou=0.3)
    assert kept.tolist() == list(range(0, count, 2))


def test_none_and_one_box() -> None:
    assert nms(torch.zeros(0, 7), torch.zeros(0), iou=0.2).tolist() == []
    assert nms(row(3), torch.ones(1), iou=0.2, classes=torch.ones(1)).tolist() == [0]


def test_a_box_that_is_not_finite_is_kept_for_others_to_judge() -> None:
    boxes = row(0, float("nan"), 0)
    assert sorted(nms(boxes, torch.tensor([0.5, 0.4, 0.3]), iou=0.2).tolist()) == [0, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_keeps_the_same_boxes() -> None:
    boxes, scores, classes = random_boxes(500, seed=3, spread_m=20.0)
    there = nms(boxes.cuda(), scores.cuda(), iou=0.2, classes=classes.cuda())
    assert there.tolist() == nms(boxes, scores, iou=0.2, classes=classes).tolist()
