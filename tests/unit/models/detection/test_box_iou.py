from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spot_ray.models.detection import box_iou as box_iou_module
from spot_ray.models.detection.box_iou import bev_iou, iou_3d

GOLDEN = Path(__file__).parents[3] / "golden" / "rotated_iou.json"
"""Pairs with shapely's figures: identical, touching and contained boxes, 1 cm apart at 100 m, and at random."""


def box(
    x: float = 0, y: float = 0, z: float = 0, dx: float = 4, dy: float = 2, dz: float = 1, yaw: float = 0
) -> Tensor:
    return torch.tensor([[x, y, z, dx, dy, dz, yaw]], dtype=torch.float32)


def random_boxes(count: int, seed: int, spread_m: float = 20.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 7, generator=generator)
    boxes[:, :2] = (boxes[:, :2] - 0.5) * spread_m
    boxes[:, 3:6] = boxes[:, 3:6] * 4 + 0.5
    boxes[:, 6] = (boxes[:, 6] - 0.5) * 12
    return boxes


def test_figures_are_shapelys() -> None:
    pairs = json.loads(GOLDEN.read_text())["pairs"]
    a, b = (torch.tensor([pair[side] for pair in pairs]) for side in (0, 1))
    bev, volume = (torch.tensor([pair[column] for pair in pairs]) for column in (2, 3))
    assert ((bev > 0.01) & (bev < 0.99)).sum() > 30
    torch.testing.assert_close(bev_iou(a, b).diagonal(), bev, atol=1e-6, rtol=0)
    torch.testing.assert_close(iou_3d(a, b).diagonal(), volume, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("a", "b", "bev", "volume"),
    [
        (box(), box(x=4), 0.0, 0.0),  # an edge in common
        (box(), box(x=4, y=2), 0.0, 0.0),  # a corner in common
        (box(), box(x=2), 1 / 3, 1 / 3),  # 4 of 12, edges along each other
        (box(), box(z=0.5), 1.0, 1 / 3),
        (box(), box(z=1), 1.0, 0.0),  # one on top of the other
        (box(), box(dx=1, dy=1, yaw=0.7), 1 / 8, 1 / 8),  # within
        (box(), box(x=1.5, y=0.5, dx=1, dy=1, yaw=math.pi / 2), 1 / 8, 1 / 8),  # within, two edges in common
        (box(), box(dx=2, dy=4, yaw=math.pi / 2), 1.0, 1.0),  # the same, said otherwise
        (box(dx=2), box(dx=2, yaw=math.pi / 4), 1 / math.sqrt(2), 1 / math.sqrt(2)),  # two squares: an octagon
        (box(dx=0, dy=0), box(dx=0, dy=0), 0.0, 0.0),  # points
        (box(x=100, y=-100, yaw=0.3), box(x=100, y=-100, yaw=0.3), 1.0, 1.0),
    ],
)
def test_worked_by_hand(a: Tensor, b: Tensor, bev: float, volume: float) -> None:
    for first, second in ((a, b), (b, a)):
        assert bev_iou(first, second).item() == pytest.approx(bev, abs=1e-6)
        assert iou_3d(first, second).item() == pytest.approx(volume, abs=1e-6)


def test_nearly_coincident_edges_are_counted_once() -> None:
    # Where two polygons' edges all but coincide, clipping by cases may count an edge twice, or not at all.
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(300, seed=1, spread_m=200).double()
    shifted = boxes.clone()
    shifted[:, [0, 1, 6]] += 1e-9 * torch.randn(300, 3, generator=generator)
    iou = bev_iou(boxes, shifted)
    torch.testing.assert_close(iou.diagonal(), torch.ones(300, dtype=torch.float64), atol=1e-7, rtol=0)
    assert iou.max() <= 1.0


def test_symmetric_and_the_same_wherever_the_scene_lies() -> None:
    a, b = random_boxes(40, seed=2), random_boxes(30, seed=3)
    iou = iou_3d(a, b)
    assert (iou > 0).sum() > 30
    torch.testing.assert_close(iou, iou_3d(b, a).T, atol=1e-6, rtol=0)
    moved = [boxes.double() for boxes in (a, b)]
    c, s = math.cos(2.1), math.sin(2.1)
    for boxes in moved:
        x, y = boxes[:, 0].clone(), boxes[:, 1].clone()
        boxes[:, 0], boxes[:, 1] = c * x - s * y + 90, s * x + c * y - 70
        boxes[:, 6] += 2.1
    torch.testing.assert_close(iou_3d(*moved).float(), iou, atol=1e-6, rtol=0)


def test_half_a_turn_changes_nothing() -> None:
    a, b = random_boxes(20, seed=4), random_boxes(20, seed=5)
    turned = b.clone()
    turned[:, 6] += math.pi
    torch.testing.assert_close(bev_iou(a, turned), bev_iou(a, b), atol=1e-6, rtol=0)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_boxes(40, seed=6), random_boxes(50, seed=7)
    expected = bev_iou(a, b)
    monkeypatch.setattr(box_iou_module, "_CIRCLE_PAIRS", 170)
    monkeypatch.setattr(box_iou_module, "_EXACT_PAIRS", 3)
    assert torch.equal(bev_iou(a, b), expected)


def test_no_boxes_and_boxes_that_are_not_finite() -> None:
    assert bev_iou(torch.zeros(0, 7), random_boxes(3, seed=0)).shape == (0, 3)
    assert iou_3d(random_boxes(3, seed=0), torch.zeros(0, 7)).shape == (3, 0)
    boxes = box(x=math.nan)
    assert bev_iou(boxes, boxes).item() == 0.0


def test_dtype_is_that_of_the_boxes_but_float32_at_least() -> None:
    boxes = box(x=1.5)
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2):
        iou = bev_iou(boxes.to(dtype), boxes.to(dtype))
        assert iou.dtype == expected
        assert iou.item() == 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees() -> None:
    a, b = random_boxes(300, seed=8), random_boxes(200, seed=9)
    torch.testing.assert_close(iou_3d(a.cuda(), b.cuda()).cpu(), iou_3d(a, b), atol=1e-6, rtol=0)
