from __future__ import annotations

import math

import pytest
import torch

from spot_ray.models.detection.anchor_coder import MAX_LOG_SIZE, decode_boxes, direction_of, encode_boxes

CAR = [10.0, -5.0, 1.0, 3.0, 4.0, 2.0, 0.0]


def test_residuals_worked_by_hand() -> None:
    # The diagonal is 5 m.
    box = torch.tensor([[11.0, -7.5, 0.5, 3.0 * math.e, 4.0, 2.0 / math.e, 0.3]])
    expected = torch.tensor([[0.2, -0.5, -0.25, 1.0, 0.0, -1.0, 0.3]])
    torch.testing.assert_close(encode_boxes(box, torch.tensor([CAR])), expected)


@pytest.mark.parametrize(
    ("degrees", "direction"),
    [(46, 0), (90, 0), (180, 0), (224, 0), (226, 1), (270, 1), (0, 1), (44, 1), (-90, 1), (-180, 0), (406, 0)],
)
def test_direction_changes_at_45_and_225_degrees(degrees: float, direction: int) -> None:
    assert direction_of(torch.tensor([math.radians(degrees)])).tolist() == [direction]


def test_boxes_come_back_whatever_their_yaw_and_their_anchor() -> None:
    generator = torch.Generator().manual_seed(0)
    count = 4000
    unit = torch.rand(count, 7, generator=generator)
    boxes = torch.cat(((unit[:, :3] - 0.5) * 150, 0.2 + 15 * unit[:, 3:6], (unit[:, 6:] - 0.5) * 6 * math.pi), dim=1)
    anchors = torch.tensor([CAR]).repeat(count, 1)
    anchors[:, :2] = boxes[:, :2] + torch.randn(count, 2, generator=generator)
    anchors[1::2, 6] = math.pi / 2
    decoded = decode_boxes(encode_boxes(boxes, anchors), anchors, direction_of(boxes[:, 6]))
    torch.testing.assert_close(decoded[:, :6], boxes[:, :6], atol=1e-3, rtol=0)
    turn = decoded[:, 6] - boxes[:, 6]
    assert (torch.remainder(turn + math.pi, 2 * math.pi) - math.pi).abs().max() < 1e-3
    assert decoded[:, 6].abs().max() <= math.pi


def test_the_direction_decides_between_two_yaws() -> None:
    residual = torch.zeros(2, 7)
    residual[:, 6] = torch.tensor([0.1, 0.1 + math.pi])  # a sine cannot tell these apart
    for direction, yaw in ((1, 0.1), (0, 0.1 - math.pi)):
        decoded = decode_boxes(residual, torch.tensor([CAR, CAR]), torch.tensor([direction, direction]))
        torch.testing.assert_close(decoded[:, 6], torch.full((2,), yaw))


def test_sizes_stay_finite_and_positive() -> None:
    residual = torch.zeros(2, 7)
    residual[0, 3:6], residual[1, 3:6] = 1e4, -1e4
    sizes = decode_boxes(residual, torch.tensor([CAR, CAR]), torch.tensor([0, 1]))[:, 3:6]
    expected = torch.tensor(CAR[3:6]) * torch.tensor([[math.exp(MAX_LOG_SIZE)], [math.exp(-MAX_LOG_SIZE)]])
    torch.testing.assert_close(sizes, expected)
